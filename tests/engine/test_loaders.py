"Training and validation loaders with their classes; what is left open, and what cannot be read."
import copy
import pickle

import matplotlib.pyplot as plt
import pytest
import torch

from finetune_teach.engine import store
from finetune_teach.engine.decoding import load_file, load_picture
from finetune_teach.engine.loaders import IMAGENET_MEAN, IMAGENET_STD, ImageLoader, ImageLoaders
from finetune_teach.pictures import drawn_pets, image_folders
from picture_files import assert_same_batches, break_files, make_folder, says, warned

pytestmark = pytest.mark.filterwarnings('ignore:.*very unequal size:UserWarning')


@pytest.fixture
def pets(tmp_path): return make_folder(tmp_path / 'pets', dict(cat=10, dog=25, eel=2))


def test_repr():
    text = repr(drawn_pets(2, 1))
    assert '24 training' in text and '12 validation' in text and '12 classes' in text
    assert '64 x 64' in text and 'batches of 16' in text and 'Bengal' in text and '\n' not in text


def test_show_batch():
    dls = drawn_pets(2, 1, batch_size=4, min_scale=.5)
    before = torch.get_rng_state()
    axes = dls.show_batch(9)
    assert (torch.get_rng_state() == before).all()
    titles = [t.get_text() for t in axes.texts]
    y = torch.cat([y for x, y in dls.train])[:9]  # what training sees next is what was shown
    assert titles == [dls.classes[k] for k in y] and len(plt.get_fignums()) == 1
    assert len(dls.show_batch(1000).texts) == 24


# ---- what a network wants ----

def test_preprocessing_leaves_the_original_alone(pets):
    dls = image_folders(pets)
    big = dls.with_preprocessing(size=96, mean=(.5, .5, .5), std=(.1, .2, .3), device='cpu')
    assert isinstance(big, ImageLoaders) and big.size == 96 and dls.size == 64
    assert big.mean == (.5, .5, .5) and dls.mean == IMAGENET_MEAN and dls.std == IMAGENET_STD
    assert (big.train.labels == dls.train.labels).all() and big.classes == dls.classes
    assert big.train.files == dls.train.files and big.train.flip and big.train.shuffle
    assert (big.valid.pictures[0] == load_picture(dls.valid.files[0], 96)).all()
    x, _ = next(iter(big.valid))
    assert x.shape[-1] == 96 and abs(x.mean()) < 5


def test_explicit_values_win(pets):
    dls = image_folders(pets, size=48, mean=[.1, .1, .1], std=(.2, .2, .2))
    new = dls.with_preprocessing(size=96, mean=(.5,) * 3, std=(.5,) * 3)
    assert new.size == 48 and new.mean == (.1, .1, .1) and new.std == (.2, .2, .2)
    half = image_folders(pets, mean=(.1, .1, .1)).with_preprocessing(mean=(.5,) * 3, std=(.5,) * 3)
    assert half.mean == (.1, .1, .1) and half.std == (.5, .5, .5)
    assert drawn_pets(2, 1).with_preprocessing(size=224).size == 64
    again = image_folders(pets).with_preprocessing(size=96).with_preprocessing(size=32, mean=(.5,) * 3)
    assert again.size == 32 and again.mean == (.5,) * 3
    assert image_folders(pets).with_preprocessing().mean == IMAGENET_MEAN


def test_preprocessing_on_a_device(pets):
    new = image_folders(pets).with_preprocessing(device='meta')
    assert new.device.type == 'meta' and new.train.device.type == 'meta'
    assert new.train.pictures[:1].device.type == 'cpu'


def test_loaders_of_ones_own_tensors():
    part = ImageLoader(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
    dls = ImageLoaders(part, part, ['a', 'b'])
    assert dls.with_preprocessing(size=224, mean=(0, 0, 0)).size == 8 and dls.files == []


def test_resize_and_range_are_left_open_or_asked_for(pets):
    dls = image_folders(pets)
    assert dls.resize == 'crop' and dls.train.resize == 'crop' and dls.value_range is None
    new = dls.with_preprocessing(size=16, resize='squeeze', value_range=(0, 4095))
    assert (new.resize, new.value_range, new.train.resize, new.valid.value_range) == ('squeeze', (0, 4095), 'squeeze', (0, 4095))
    assert torch.equal(new.train.pictures[0], load_picture(new.train.files[0], 16, 'squeeze'))
    keys = {part.pictures_key() for part in (dls.train, new.train, dls.with_preprocessing(16).train, dls.with_preprocessing(16, resize='pad').train,
                                             dls.with_preprocessing(16, value_range=(0, 1)).train)}
    assert len(keys) == 5
    mine = image_folders(pets, resize='pad', value_range=[0, 1000])
    other = mine.with_preprocessing(size=16, resize='squeeze', value_range=(0, 4095))
    assert (other.resize, other.value_range, other.size) == ('pad', (0, 1000), 16)
    assert mine.requested == dict(size=None, mean=None, std=None, resize='pad', value_range=(0, 1000)) == mine.train.requested
    drawn = drawn_pets(2, 1).with_preprocessing(resize='pad', value_range=(0, 5))
    assert drawn.resize == drawn.train.resize == 'crop' and drawn.value_range is None is drawn.valid.value_range


def test_one_loader_is_prepared_like_a_pair(pets):
    valid = image_folders(pets).valid
    new = valid.with_preprocessing(size=16, mean=(.5,) * 3, std=(.1,) * 3, device='cpu', resize='squeeze', value_range=(0, 9))
    assert (new.size, new.mean, new.std, new.resize, new.value_range) == (16, (.5,) * 3, (.1,) * 3, 'squeeze', (0, 9))
    assert new.pictures.store is valid.pictures.store and valid.size == 64 and new.files == valid.files
    asked = image_folders(pets, size=32, std=(.3,) * 3, resize='pad').valid.with_preprocessing(16, (.5,) * 3, (.1,) * 3, resize='crop')
    assert (asked.size, asked.mean, asked.std, asked.resize) == (32, (.5,) * 3, (.3,) * 3, 'pad')
    assert torch.equal(valid.with_preprocessing().pictures[:2], valid.pictures[:2])
    own = ImageLoader(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]), mean=(0, 0, 0))
    again = own.with_preprocessing(size=16, mean=(.5,) * 3, std=(.1,) * 3, resize='pad')
    assert (again.size, again.mean, again.std, again.resize) == (8, (0, 0, 0), (.1,) * 3, 'crop'), 'what was given stays'
    assert ImageLoaders(own, own, ['a', 'b']).with_preprocessing(mean=(.5,) * 3).mean == (0, 0, 0)


def test_what_is_not_read_yet_is_decoded_once_as_the_network_wants(pets, decoded):
    (pets / 'cat' / 'notes.txt').write_text('a good dog')
    with pytest.warns(UserWarning, match='1 of 38'):
        dls = image_folders(pets, on_error='skip').with_preprocessing(size=16, resize='squeeze', value_range=(0, 9))
    assert len(decoded) == 38 and dls.resize == 'squeeze' and dls.train.pictures.in_memory


# ---- on_error='skip' ----

@pytest.fixture
def decoded(monkeypatch):
    seen = []
    monkeypatch.setattr(store, 'load_file', lambda path, size, *more: (seen.append(size), load_file(path, size, *more))[1])
    return seen


@pytest.mark.parametrize('memory', [1, 0])
@pytest.mark.parametrize('way', ['size', 'network', 'look'])
def test_skipping(pets, memory, way, decoded):
    bad = break_files(pets / 'cat')
    n = 37 + len(bad)
    options = dict(on_error='skip', memory=memory, batch_size=8)
    if way == 'size': dls, said = warned(image_folders, pets, size=16, **options)
    else:
        dls, said = warned(image_folders, pets, **options)
        assert not said and not decoded and dls.classes == ['cat', 'dog', 'eel']
        assert f'{n} files, not read yet, 3 classes' in repr(dls) and not decoded
        look = dict(network=lambda: dls.with_preprocessing(size=16), look=lambda: list(dls.train))[way]
        said = warned(look)[1]
        assert type(dls) is ImageLoaders
    assert len(decoded) == n and set(decoded) == {64 if way == 'look' else 16}
    listed = [text for text in said if f'{len(bad)} of {n} files' in text]
    assert len(listed) == 1 and listed[0].endswith('They are left out; .skipped lists them.')
    assert {path.name for path, _ in dls.skipped} == set(bad) and all(reason for _, reason in dls.skipped)
    assert len(dls.files) == 37 and not set(dls.files) & {path for path, _ in dls.skipped}
    small = dls.with_preprocessing(size=16)
    for part in (small.train, small.valid):
        for path, x, y in zip(part.files, part.pictures, part.labels, strict=True):
            assert path.parent.name == dls.classes[y] and torch.equal(load_picture(path, 16), x)
    assert len(decoded) == n + 37 * (way == 'look')


def test_the_split_is_of_the_files_that_can_be_read(pets):
    bad = image_folders(pets).train.files[0]
    bad.write_bytes(b'no')
    with pytest.warns(UserWarning, match='1 of 37'):
        dls = image_folders(pets, on_error='skip', size=8)
    bad.unlink()
    assert dls.valid.files == image_folders(pets).valid.files


def test_classes_are_checked_after_skipping(tmp_path):
    make_folder(tmp_path, dict(cat=5, dog=2))
    (tmp_path / 'dog' / 'dog_0.png').write_bytes(b'no')
    dls = image_folders(tmp_path, on_error='skip')
    with pytest.warns(UserWarning): says(dls.with_preprocessing, size=8, match=['one picture', 'dog'])
    for path in tmp_path.rglob('*.png'): path.write_bytes(b'no')
    with pytest.warns(UserWarning): says(image_folders, tmp_path, on_error='skip', size=8, match='no pictures')


def test_unreadable_files_are_told_before_what_follows_from_them(tmp_path):
    make_folder(tmp_path, dict(cat=5, dog=1))
    (tmp_path / 'dog' / 'dog_0.png').write_bytes(b'no')
    says(image_folders, tmp_path, match=['1 of 6 files cannot be read', 'dog_0.png'])
    make_folder(tmp_path, dict(dog=1, eel=2), start=10)
    with pytest.warns(UserWarning, match='1 of 9'): says(image_folders, tmp_path, on_error='skip', size=8, match='only one picture in 1 of 3 classes:\n  dog')
    (tmp_path / 'dog' / 'dog_10.png').unlink()
    with pytest.warns(UserWarning, match='1 of 8'): dls = image_folders(tmp_path, on_error='skip')
    assert dls.classes == ['cat', 'eel'] and len(dls.files) == 7


def test_skipping_keeps_a_given_split(tmp_path):
    for start, (part, n) in enumerate(dict(train=6, valid=3).items()): make_folder(tmp_path / part, dict(a=n, b=n), start=50 * start)
    (tmp_path / 'train' / 'a' / 'a_0.png').write_bytes(b'no')
    with pytest.warns(UserWarning): dls = image_folders(tmp_path, on_error='skip', size=8)
    assert len(dls.train.labels) == 11 and len(dls.valid.labels) == 6
    assert all('valid' in p.parts for p in dls.valid.files)


@pytest.mark.parametrize('again', [copy.copy, copy.deepcopy, lambda dls: pickle.loads(pickle.dumps(dls))])
def test_copies_of_what_is_not_read_yet(pets, again):
    (pets / 'cat' / 'notes.txt').write_text('a good dog')
    dls = image_folders(pets, on_error='skip')
    other = again(dls)
    with pytest.warns(UserWarning, match='1 of 38'): assert len(other.files) == 37
    with pytest.warns(UserWarning, match='1 of 38'): assert_same_batches(dls, other)
    with pytest.raises(AttributeError): image_folders(pets, on_error='skip')._none
