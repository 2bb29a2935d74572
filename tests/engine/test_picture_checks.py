"What is wrong with a set of pictures is an error or a warning that says what to do."
import os
import struct
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

from finetune_teach.engine import picture_checks
from finetune_teach.engine.picture_checks import (
    check_classes, class_imbalance, gap_names, rare_classes, same_pictures, similar_class_names)
from finetune_teach.pictures import ImageLoader, ImageLoaders, drawn_pets, image_files, image_folders
from picture_files import make_folder, red, saved, says, warned


@pytest.fixture
def pets(tmp_path): return make_folder(tmp_path / 'pets', dict(cat=10, dog=25, eel=2))


def test_one_class_only(tmp_path):
    make_folder(tmp_path / 'up', dict(cat=4))
    says(image_folders, tmp_path / 'up', match=["'cat'", 'two classes', str(tmp_path / 'up')])
    says(image_files, tmp_path / 'up', lambda p: 'x', match=["'x'", 'two classes'])


def test_single_pictures(pets):
    make_folder(pets, dict(ant=1, bee=1))
    wanted = ['one picture in 2 of 5 classes:\n  ant, bee\n', 'min_per_class=2', "single='train'", str(pets)]
    says(image_folders, pets, match=wanted)
    assert 'different labels' not in says(image_files, pets, lambda p: p.parent.name, match=wanted)
    paths = [p for p in pets.rglob('*.png') if p.parent.name not in ('ant', 'bee')]
    assert len(image_files(paths, lambda p: p.parent.name).classes) == 3


def test_all_single_classes_are_named_on_lines_that_are_not_too_long():
    for n, more in ((50, False), (60, True)):
        text = says(check_classes, ['x', 'x', *(f'species number {i}' for i in range(n))], None, 'pets')
        assert all(len(line) < 100 for line in text.splitlines() if line.startswith('  ')) and ('10 more' in text) == more
        assert 'species number 12,' in ' '.join(text.split())


def test_a_label_for_each_picture_is_doubted(pets):
    text = says(image_files, pets, lambda path: path.stem, match=['Of 37 pictures 37 have different labels', 'Is this label'])
    assert 'regression' in text
    says(image_files, pets, lambda path: path.stat().st_ino, match='Is this number')


OPTIONS = [dict(size=0), dict(size=-5), dict(size=64.5), dict(size='64'), dict(batch_size=0),
           dict(batch_size=None), dict(batch_size=True), dict(valid_pct=0), dict(valid_pct=1),
           dict(valid_pct=20), dict(valid_pct='a'), dict(min_scale=0), dict(min_scale=2),
           dict(min_scale=None), dict(on_error='ignore'), dict(on_error=None), dict(mean=.5),
           dict(mean=(1, 2)), dict(std=(1, 2, 0)), dict(std='abc'), dict(memory=-1),
           dict(memory=None), dict(memory='1 GB'), dict(memory=float('nan')),
           dict(min_per_class=0), dict(min_per_class='2'), dict(min_per_class=True), dict(single='keep'), dict(single=None)]


@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_options_out_of_range(pets, options):
    (name, value), = options.items()
    says(image_folders, pets, **options, match=[f'{name}={value!r}', 'must be'])
    says(image_files, pets, '([a-z]+)', **options, match=[f'{name}={value!r}', 'must be'])


def test_unknown_option_is_an_error(pets):
    for function, args in ((image_folders, [pets]), (image_files, [pets, '(.)']), (drawn_pets, [])):
        with pytest.raises(TypeError, match='bs'): function(*args, bs=3)


# ---- the same picture on both sides ----

def given_split(root):
    make_folder(root / 'train', dict(cat=6, dog=6))
    make_folder(root / 'valid', dict(cat=3, dog=3), start=100)
    return root


def test_duplicates_are_found_and_reported(tmp_path):
    root = given_split(tmp_path / 'pets')
    dls, said = warned(image_folders, root)
    assert not said and dls.duplicates() == []
    train, valid = root / 'train', root / 'valid'
    (valid / 'cat' / 'cat_100.png').write_bytes((train / 'cat' / 'cat_1.png').read_bytes())
    with Image.open(train / 'cat' / 'cat_2.png') as image: image.save(valid / 'cat' / 'same.bmp')  # the same pixels
    (valid / 'dog' / 'dog_102.png').unlink()
    (valid / 'dog' / 'dog_102.png').symlink_to(train / 'cat' / 'cat_3.png')
    os.link(train / 'dog' / 'dog_4.png', valid / 'dog' / 'linked.png')
    with Image.open(train / 'dog' / 'dog_5.png') as image: image.resize((24, 18)).save(valid / 'dog' / 'resized.png')
    dls, said = warned(image_folders, root)
    wanted = {'cat/cat_100.png': 'cat/cat_1.png', 'dog/dog_102.png': 'cat/cat_3.png', 'dog/linked.png': 'dog/dog_4.png'}
    assert said == [
        f'{root}: 3 of 9 validation pictures are training pictures, too (1 of them under another class): '
        + ', '.join(f'{Path("valid") / v} = {Path("train") / t}' for v, t in wanted.items()) + '. Their answers '
        'have been told, so the validation error will look too good. Delete one file of each pair; .duplicates() lists '
        'all pairs']
    assert not warned(dls.with_preprocessing, 32)[1], 'said once'
    lazy, _ = warned(image_folders, root, memory=0)
    for loaders in (dls, lazy):  # the bytes of the files
        assert dict(loaders.duplicates()) == {valid / v: train / t for v, t in wanted.items()}
    assert not dls.train.pictures.store.sizes, 'nothing was decoded for it'
    list(dls.train), list(dls.valid)
    wanted['cat/same.bmp'] = 'cat/cat_2.png'  # pixels, as all are in memory
    assert dict(dls.duplicates()) == {valid / v: train / t for v, t in wanted.items()}
    (train / 'cat' / 'cat_1.png').unlink()
    assert len(lazy.duplicates()) == 2


def test_many_files_are_compared_when_a_network_needs_them(tmp_path):
    data = saved(red((8, 8)), 'BMP')
    for name in 'ab':
        (tmp_path / name).mkdir()
        for i in range(1001): (tmp_path / name / f'{i}.bmp').write_bytes(data[:54] + struct.pack('<HB', i, ord(name)) + data[57:])
    for i in range(20): (tmp_path / 'b' / f'{i}.bmp').write_bytes((tmp_path / 'b' / '20.bmp').read_bytes())
    dls, said = warned(image_folders, tmp_path)
    assert not said
    said, again = warned(dls.with_preprocessing, 8)[1], warned(dls.with_preprocessing, 8)[1]
    assert len(said) == 1 and 'validation pictures are training pictures, too' in said[0] and not again


def test_duplicates_of_ones_own_tensors_are_places():
    x = torch.arange(6 * 3 * 4 * 4).view(6, 3, 4, 4).remainder(251).to(torch.uint8)
    part = lambda at: ImageLoader(x[at], torch.zeros(len(at), dtype=torch.long))
    dls = ImageLoaders(part([0, 1, 2, 2]), part([5, 2, 0, 2]), ['a', 'b'])
    assert dls.duplicates() == [(1, 2), (2, 0), (3, 2)]


def test_equal_hashes_are_not_enough(monkeypatch):
    monkeypatch.setattr(picture_checks, 'hash', lambda data: 0, raising=False)
    x = torch.arange(2 * 3 * 4 * 4).view(2, 3, 4, 4).to(torch.uint8)
    assert same_pictures(x[:1], x[1:]) == {} and same_pictures(x[:1], x[:1]) == {0: 0}
    many = torch.zeros(4000, 3, 2, 2, dtype=torch.uint8)  # a pair each would be sixteen million
    monkeypatch.undo()
    assert same_pictures(many, many) == dict.fromkeys(range(4000), 0)


def test_drawn_pets_have_no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for style in ('paint', 'sketch'): assert drawn_pets(3, 3, style=style).duplicates() == []
        drawn_pets(2, 30, size=4)


# ---- classes ----

@pytest.mark.parametrize('one, two', [
    ('Cat', 'cat'), ('cat', 'cat '), ('two words', 'two  words'), ('caf\xe9', 'cafe\u0301'), ('STRASSE', 'stra\xdfe'),
    ('cat', 'ca\u200bt'), ('\uff23at', 'Cat')])
def test_names_that_look_alike(tmp_path, one, two):
    for k, name in enumerate((one, two, 'dog')): make_folder(tmp_path / 'pets', {name: 2}, start=10 * k)
    if len(list((tmp_path / 'pets').iterdir())) < 3: pytest.skip('the same name on this system')
    dls, said = warned(image_folders, tmp_path / 'pets')
    first, second = sorted([one, two])
    assert len(dls.classes) == 3 and said == [
        f'{tmp_path / "pets"}: names of classes that differ only in capital letters, spaces, zeros before a number or in how '
        f'accents are stored: {first!a} and {second!a}. If they are one class, give them one name; if they are meant to differ, '
        'all is well']


def test_numbers_that_are_equal_and_names_of_gaps():
    assert "'01' and '1', '2' and '2.0'" in similar_class_names(['1', '01', '2', '2.0', '10', '11', '110'], 'x')
    assert not similar_class_names([str(k) for k in range(200)], 'x')
    assert 'NaN 2, none 1 pictures' in gap_names(['NaN', 'none', 'NaN', 'cat'], 'x') and not gap_names(['nano', 'nun'], 'x')


def test_rare_classes_are_listed():
    rare, text = rare_classes(['a'] * 3 + ['b'] * 2 + ['c'], 3, 'pets')
    assert rare == {'b', 'c'} and text == 'pets: min_per_class=3 leaves out 3 of 6 pictures, in 2 of 3 classes:\n  b, c'
    assert rare_classes(['a'], 1, 'pets') == (set(), None)


def test_letters_may_be_meant():
    labels = [c for c in 'ABCDEFGHabcdefgh' for _ in range(3)]
    text = similar_class_names(labels, 'letters')
    assert "'A' and 'a', 'B' and 'b'" in text and '... 3 more' in text
    assert not similar_class_names(['cat', 'dog', 'cats', 'c at', 'caf\xe9', 'cafe'], 'x')


def test_a_thousand_classes(tmp_path):
    data = saved(red((8, 8)), 'BMP')
    for i in range(1000):
        (tmp_path / f'class {i}').mkdir()
        for k in range(3):  # another first pixel in each
            (tmp_path / f'class {i}' / f'{k}.bmp').write_bytes(data[:54] + struct.pack('<HB', i, k) + data[57:])
    dls, said = warned(image_folders, tmp_path, size=8)
    assert not said
    assert len(dls.classes) == 1000 and len(dls.train.labels) == 2000 and len(dls.valid.labels) == 1000
    assert dls.valid.labels.unique().numel() == 1000 and len(repr(dls)) < 200
    x, y = next(iter(dls.train))
    assert x.shape == (32, 3, 8, 8) and y.max() < 1000


def test_unequal_classes_are_reported(tmp_path):
    make_folder(tmp_path, {'dog': 40, 'cat': 12, 'an\neel': 4})
    dls, said = warned(image_folders, tmp_path)
    assert said == [
        f'{tmp_path}: the classes are of very unequal size: dog 40, cat 12, an\\neel 4 pictures. Who always answers '
        'dog is right for 71% of all, so do not trust the error rate of all pictures: look at the error of each class, which evaluate(learn) shows, '
        'and add pictures to the small ones']
    (tmp_path / 'dog' / 'dog_0.png').unlink()
    assert not warned(image_folders, tmp_path)[1], '39 is less than ten times 4'
    text = class_imbalance([f'{i:02}' for i in range(1, 31) for _ in range(i)], 'x')
    assert '30 30, 29 29, 28 28, 03 3, 02 2, 01 1 pictures (largest and smallest).' in text
