"What was asked for becomes the loaders of a set: rare classes, parts, groups and files that cannot be read."
import pickle

import pytest
import torch

from finetune_teach.engine.picture_sets import picture_loaders
from finetune_teach.pictures import image_files, image_folders
from picture_files import assert_same_batches, make_folder, says, warned

pytestmark = pytest.mark.filterwarnings('ignore:.*very unequal size:UserWarning')


@pytest.fixture
def pets(tmp_path): return make_folder(tmp_path / 'pets', dict(cat=10, dog=25, eel=2, ant=1, bee=1))


def test_loaders_of_files_with_labels_and_a_split(tmp_path):
    files = sorted(make_folder(tmp_path, dict(a=4)).rglob('*.png'))
    dls = picture_loaders(files, ['x', 'y', 'x', 'y'], [False, False, True, True], 'my files', size=8, batch_size=3)
    assert dls.classes == ['x', 'y'] and dls.train.files == files[:2] and dls.valid.labels.tolist() == [0, 1]
    says(picture_loaders, files, ['x', 'y', 'x', 'y'], [True] * 4, 'my files', match='my files: no training pictures')


def test_rare_classes_are_left_out(pets):
    for least, classes in ((2, ['cat', 'dog', 'eel']), (3, ['cat', 'dog']), (10, ['cat', 'dog'])):
        dls, said = warned(image_folders, pets, min_per_class=least)
        assert dls.classes == classes and len(dls.files) == (37 if least == 2 else 35)
        assert [text for text in said if f'min_per_class={least} leaves out' in text and 'ant, bee' in text]
        assert all(dls.classes[y] in file.name for y, file in zip(dls.train.labels, dls.train.files))
    without = image_files([p for p in pets.rglob('*.png') if p.parent.name not in ('ant', 'bee')], '([a-z]+)')
    dls = warned(image_folders, pets, min_per_class=2)[0]
    assert dls.valid.files == without.valid.files and dls.train.files == without.train.files
    assert 'ant, bee, cat, eel' in says(image_folders, pets, min_per_class=11, match=["one class, 'dog'", 'min_per_class=11 leaves out'])


def test_rare_classes_of_what_can_be_read(pets):
    (pets / 'eel' / 'eel_0.png').write_bytes(b'no')
    dls = image_folders(pets, min_per_class=2, on_error='skip')
    assert 'not read yet, 3 classes' in repr(dls)
    _, said = warned(lambda: dls.train)
    assert dls.classes == ['cat', 'dog'] and len(dls.skipped) == 1 and [text for text in said if 'ant, bee, eel' in text]


def test_a_single_picture_is_trained_on(pets):
    dls, said = warned(image_folders, pets, single='train')
    assert dls.classes == ['ant', 'bee', 'cat', 'dog', 'eel'] and set(dls.valid.labels.tolist()) == {2, 3, 4}
    assert {'ant_0.png', 'bee_0.png'} < {p.name for p in dls.train.files}
    assert dls.valid.files == warned(image_folders, pets, min_per_class=2)[0].valid.files
    says(image_files, [pets / 'ant' / 'ant_0.png', pets / 'bee' / 'bee_0.png'], '([a-z]+)', single='train', match='one picture in 2 of 2')


def test_groups_and_parts_belong_to_the_files_that_can_be_read(pets):
    (pets / 'dog' / 'dog_3.png').write_bytes(b'no')
    animal = lambda path: path.stem[-1]
    for options in (dict(groups=animal), dict(is_valid=lambda path: animal(path) in '05')):
        dls = warned(image_folders, pets, min_per_class=2, on_error='skip', size=8, **options)[0]
        held, kept = ({animal(p) for p in part.files if p.parent.name in ('cat', 'dog')} for part in (dls.valid, dls.train))
        assert held and not held & kept and [p.name for p, _ in dls.skipped] == ['dog_3.png']
        for part in (dls.train, dls.valid): assert all(dls.classes[y] == p.parent.name for y, p in zip(part.labels, part.files))


def test_rare_classes_of_a_given_split(tmp_path):
    make_folder(tmp_path / 'train', dict(a=4, b=3, c=1))
    make_folder(tmp_path / 'valid', dict(a=2, b=2), start=10)
    make_folder(tmp_path / 'test', dict(a=2, d=1), start=20)
    says(image_folders, tmp_path, match='test pictures of d')
    dls, said = warned(image_folders, tmp_path, min_per_class=2)
    assert dls.classes == ['a', 'b'] and dls.test.labels.tolist() == [0, 0] and 'c, d' in said[0]


def test_loaders_with_all_parts_can_be_pickled(tmp_path):
    for i, part in enumerate(('train', 'valid', 'test')): make_folder(tmp_path / part, dict(a=4, b=3), start=10 * i)
    for options in (dict(), dict(on_error='skip')):
        dls = image_folders(tmp_path, **options)
        copy = pickle.loads(pickle.dumps(dls))
        assert_same_batches(dls, copy)
        assert copy.test.files == dls.test.files and torch.equal(next(iter(copy.test))[0], next(iter(dls.test))[0])


def test_names_in_series_are_told_at_once_or_when_a_network_comes(tmp_path):
    "Looking for them in many names takes longer than a batch."
    for name in 'ab':
        (tmp_path / name).mkdir()
        for i in range(1002): (tmp_path / name / f'patient{i // 6}_{i % 6}.jpg').touch()
    dls, said = warned(image_folders, tmp_path)
    assert not said
    assert any('patient' in text for text in warned(dls.with_preprocessing, 16)[1]) and not warned(dls.with_preprocessing, 16)[1]
    for path in (tmp_path / 'b').iterdir(): path.unlink()
    for i in range(900): (tmp_path / 'b' / f'patient{i // 6}_{i % 6}.jpg').touch()
    assert any('patient' in text for text in warned(image_folders, tmp_path)[1])
