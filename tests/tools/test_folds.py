"K-fold: each picture is validated once, classes evenly, no group on both sides, nothing decoded twice."
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from finetune_teach.engine import store
from finetune_teach.engine.drawing import draw_pets
from finetune_teach.pictures import image_folders, image_table
from finetune_teach.tools.folds import fold_loaders, fold_of_each

pytest.importorskip('sklearn')


@given(st.lists(st.integers(0, 3), min_size=8, max_size=60), st.integers(2, 4), st.integers(0, 99))
def test_each_fold_has_its_share_of_every_class(labels, k, seed):
    labels = torch.tensor(labels + [0, 1, 2, 3] * 4)
    fold = fold_of_each(labels, k, list('abcd'), seed=seed)
    assert fold.equal(fold_of_each(labels, k, list('abcd'), seed=seed))
    for c in range(4):
        counts = fold[labels == c].bincount(minlength=k)
        assert counts.max() - counts.min() <= 1
    sizes = fold.bincount(minlength=k)
    assert sizes.sum() == len(labels) and sizes.max() - sizes.min() <= 4


@given(st.lists(st.integers(0, 9), min_size=20, max_size=60), st.integers(0, 99))
def test_no_group_is_on_both_sides(groups, seed):
    groups = groups + list(range(10, 20)) * 2
    labels = torch.tensor([g % 2 for g in groups])
    fold = fold_of_each(labels, 3, ['a', 'b'], groups, seed)
    assert all(len(set(fold[torch.tensor(groups) == g].tolist())) == 1 for g in groups)
    assert set(fold.tolist()) == {0, 1, 2}


def test_another_seed_gives_other_folds():
    labels = torch.arange(40) % 2
    assert not fold_of_each(labels, 4, ['a', 'b']).equal(fold_of_each(labels, 4, ['a', 'b'], seed=1))


def test_drawn_pictures(pets, make_learner):
    parts = fold_loaders(pets, 4)
    pictures = torch.cat([pets.train.pictures, pets.valid.pictures])
    found = torch.cat([part.valid.pictures for part in parts])
    assert sorted(map(bytes, map(torch.Tensor.numpy, found))) == sorted(map(bytes, map(torch.Tensor.numpy, pictures)))
    for i, part in enumerate(parts):
        assert f'fold {i + 1} of 4' in repr(part) and not part.duplicates()
        assert len(part.train.labels) + len(part.valid.labels) == 84 and set(part.train.labels.tolist()) == set(range(12))
        assert part.train.shuffle and part.train.flip and not part.valid.shuffle and not part.valid.flip
    assert len(pets.train.labels) == 48, 'the loaders given are as before'
    learn = make_learner(parts[0])
    learn.fit(1, 1e-3)
    assert 0 <= learn.validate().error_rate <= 1


@pytest.fixture
def folder(tmp_path):
    for i, picture in enumerate(draw_pets(2, 0, 32)[0]):
        place = tmp_path / 'ab'[i % 2]
        place.mkdir(exist_ok=True)
        Image.fromarray(picture).save(place / f'pet{i // 4}_{i % 4}.png')
    return tmp_path


def test_files_with_groups(folder, monkeypatch):
    decoded, load = [], store.load_file
    monkeypatch.setattr(store, 'load_file', lambda path, *how: decoded.append(path) or load(path, *how))
    dls = image_folders(folder, size=32, groups=r'(pet\d)_', flip=False).with_transforms(torch.clone)
    parts = fold_loaders(dls, 3, groups=r'(pet\d)_')
    assert not decoded
    for part in parts:
        names = [{path.name[:4] for path in loader.files} for loader in (part.train, part.valid)]
        assert not names[0] & names[1] and len(names[0] | names[1]) == 6
        assert part.train.transform is torch.clone and part.valid.transform is None
        for loader in (part.train, part.valid):
            for path, picture, label in zip(loader.files, loader.pictures[:], loader.labels.tolist()):
                assert dls.classes[label] == path.parent.name
                assert torch.equal(picture, torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1))
    assert len(decoded) == len(set(decoded)) == 24, 'once for all folds'
    assert sorted(path for part in parts for path in part.valid.files) == sorted(dls.files)


def test_pictures_that_belong_together_are_not_torn_apart_without_a_word(folder):
    dls = image_folders(folder, size=32, groups=r'(pet\d)_')
    with pytest.warns(UserWarning, match='groups='):
        fold_loaders(dls, 3)


def test_the_same_file_twice_is_told(folder):
    dls = image_folders(folder, size=32, groups=r'(pet\d)_')
    (folder / 'a' / 'other.png').write_bytes((folder / 'a' / 'pet0_0.png').read_bytes())
    dls = image_folders(folder, size=32, is_valid=lambda path: 'pet1' in path.name)
    with pytest.warns(UserWarning, match='other.png|pet0_0.png') as said:
        fold_loaders(dls, 3, groups=lambda path: path.stem)
    assert any('of 3' in str(w.message) for w in said)


def test_a_test_set_stays_out(folder):
    table = [{'file': str(p), 'label': p.parent.name, 'split': part} for p, part in zip(
        sorted(folder.rglob('*.png')), ['train', 'valid', 'test'] * 8)]
    dls = image_table(table, split='split', size=32)
    parts = fold_loaders(dls, 2)
    assert all(part.test is dls.test for part in parts)
    assert not {*dls.test.files} & {path for part in parts for path in part.train.files + part.valid.files}


@pytest.mark.parametrize('k', [0, 1, 4, 2.0, True])
def test_numbers_of_folds_that_cannot_be(k):
    with pytest.raises(ValueError, match='k=.* 2 to 3'):
        fold_of_each(torch.tensor([0, 0, 0, 1, 1, 1, 1]), k, ['a', 'b'])


def test_a_class_of_one_group_is_named():
    with pytest.raises(ValueError, match='all pictures of cat'):
        fold_of_each(torch.tensor([0, 0, 1, 1, 1, 1]), 2, ['cat', 'dog'], [1, 1, 2, 3, 4, 5])
