"Pictures, drawn or in files, become batches."
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from finetune_teach.engine import store
from finetune_teach.engine.batches import BatchSpec
from finetune_teach.engine.decoding import load_file, load_picture
from finetune_teach.engine.drawing import draw_pet
from finetune_teach.pictures import ImageLoader, denormalise, drawn_pets, image_files, image_folders
from picture_files import make_folder, says

DATA = Path(__file__).resolve().parents[2] / 'shared' / 'data'


def needs(folder):
    return pytest.mark.skipif(not folder.exists(), reason=f'no test data at {folder}')


@pytest.fixture
def loader():
    x = torch.arange(10 * 3 * 4 * 4).view(10, 3, 4, 4).remainder(251).to(torch.uint8)
    return ImageLoader(x, torch.arange(10), 4, shuffle=True, flip=True, min_scale=.5)


def test_specs_and_load_are_iteration(loader):
    torch.manual_seed(3)
    by_hand = [(loader.load(p), loader.labels[p.index]) for p in loader.specs()]
    state = torch.get_rng_state()
    torch.manual_seed(3)
    for (x, y), (a, b) in zip(loader, by_hand, strict=True):
        assert (x == a).all() and (y == b).all()
        assert x.dtype == torch.float32 and y.dtype == torch.int64
    assert (torch.get_rng_state() == state).all()


def test_spec_contents(loader):
    spec = next(loader.specs())
    assert isinstance(spec, BatchSpec) and spec._fields == ('index', 'flip', 'crop', 'seeds')
    assert spec.index.dtype == torch.int64 and spec.flip.dtype == torch.bool
    assert spec.crop.shape == (len(spec.index), 4) and spec.crop.dtype == torch.float32
    loader.min_scale = 1
    assert next(loader.specs()).crop is None


def test_other_generators_do_not_matter(loader):
    def epoch(seed, torchs=1):
        torch.manual_seed(torchs)
        random.seed(seed)
        np.random.seed(seed)
        return torch.cat([x for x, y in loader])
    assert (epoch(1) == epoch(2)).all() and not (epoch(1) == epoch(1, torchs=2)).all()


def test_drawing_between_batches_changes_no_spec(loader):
    torch.manual_seed(1)
    wanted = list(loader.specs())
    torch.manual_seed(1)
    for a, b in zip(loader.specs(), wanted):
        torch.rand(100)  # as dropout does
        assert all((s == t).all() for s, t in zip(a[:3], b[:3]))


def test_validation_needs_no_chance():
    dls = drawn_pets(2, 2, min_scale=.5)
    before = torch.get_rng_state()
    x = torch.cat([x for x, y in dls.valid])
    y = torch.cat([y for x, y in dls.valid])
    assert (torch.get_rng_state() == before).all()
    assert (y == dls.valid.labels).all()
    mean, std = (torch.tensor(v)[:, None, None] for v in (dls.mean, dls.std))
    assert torch.allclose(x, (dls.valid.pictures / 255 - mean) / std, atol=1e-5)
    for spec in dls.valid.specs(): assert not spec.flip.any() and spec.crop is None


def test_loader_wants_as_many_labels_as_pictures():
    says(ImageLoader, torch.zeros(3, 3, 4, 4), torch.zeros(2), match=['3 pictures', '2 labels'])
    says(ImageLoader, torch.zeros(0, 3, 4, 4), torch.zeros(0), match='0 pictures')


def test_the_key_of_pictures_changes_with_them():
    dls = drawn_pets(2, 1, size=8)
    key = dls.train.pictures_key()
    assert key == drawn_pets(2, 1, size=8).train.pictures_key() != dls.valid.pictures_key()
    others = [drawn_pets(2, 1, size=8, seed=1), dls.with_preprocessing(mean=(.1, .2, .3)), dls.with_preprocessing(std=(.1, .2, .3))]
    dls.train.pictures[0, 0, 0, 0] += 1  # in place
    keys = [key, dls.train.pictures_key(), *(other.train.pictures_key() for other in others)]
    assert len(set(keys)) == 5


def test_the_key_of_files_is_that_of_their_store_and_size(tmp_path):
    dls = image_folders(make_folder(tmp_path, dict(a=2, b=3)), size=8)
    key = dls.train.pictures_key()
    list(dls.train)
    assert dls.train.pictures_key() == key == dls.with_preprocessing().train.pictures_key()
    other = image_folders(tmp_path).with_preprocessing(size=9)
    assert len({key, dls.valid.pictures_key(), other.train.pictures_key(),
                other.with_preprocessing(size=10).train.pictures_key()}) == 4


def test_denormalise_undoes_it():
    dls = drawn_pets(1, 1, size=8, flip=False)
    x, _ = next(iter(dls.valid))
    assert torch.allclose(denormalise(x, dls), dls.valid.pictures[:len(x)] / 255, atol=1e-5)
    assert torch.equal(denormalise(x), denormalise(x, dls)) and denormalise(x * 9).max() == 1


# ---- drawn pets ----

def test_drawn_pets():
    dls = drawn_pets(3, 2)
    assert len(dls.train.labels) == 36 and len(dls.valid.labels) == 24 and len(dls.classes) == 12
    assert dls.classes == sorted(dls.classes) and dls.size == 64 and dls.files == []
    assert dls.train.batch_size == 16 and dls.train.flip and dls.train.shuffle
    assert torch.bincount(dls.train.labels).tolist() == [3] * 12
    both = [x.numpy().tobytes() for x in [*dls.train.pictures, *dls.valid.pictures]]
    assert len(set(both)) == 60  # no picture twice
    first = load_picture(draw_pet(dls.classes[0], 0), 64)
    assert (dls.train.pictures[0] == first).all()


def test_drawn_pets_seeds():
    a, b, c = drawn_pets(2, 2), drawn_pets(2, 2), drawn_pets(2, 2, seed=1)
    assert (a.train.pictures == b.train.pictures).all()
    parts = a.train, a.valid, c.train, c.valid
    pictures = [x.numpy().tobytes() for part in parts for x in part.pictures]
    assert len(set(pictures)) == len(pictures) == 96


def test_cats_vs_dogs():
    dls = drawn_pets(2, 2, cats_vs_dogs=True, size=32)
    assert dls.classes == ['cat', 'dog'] and torch.bincount(dls.train.labels).tolist() == [12, 12]
    fine = drawn_pets(2, 2, size=32)
    assert (fine.train.pictures == dls.train.pictures).all()
    for y, k in zip(dls.train.labels, fine.train.labels):
        assert dls.classes[y] == ('cat' if fine.classes[k][0].isupper() else 'dog')


def test_sketches():
    "The same breeds on other pictures: paper and pencil, so paler and less colourful."
    paint, sketch = drawn_pets(3, 2), drawn_pets(3, 2, style='sketch')
    assert sketch.classes == paint.classes and (sketch.train.labels == paint.train.labels).all()
    assert (drawn_pets(3, 2, style='sketch').train.pictures == sketch.train.pictures).all()
    both = [x.numpy().tobytes() for dls in (paint, sketch) for x in dls.train.pictures]
    assert len(set(both)) == 72
    colourful = [(x.float().amax(1) - x.float().amin(1)).mean()
                 for x in (paint.train.pictures, sketch.train.pictures)]
    assert colourful[1] < colourful[0] / 1.5
    assert sketch.train.pictures.float().mean() > paint.train.pictures.float().mean() + 20
    says(drawn_pets, style='oil', match=['oil', 'paint', 'sketch'])


@pytest.mark.parametrize('options', [
    dict(n_train=0), dict(n_valid=-1), dict(size=0), dict(batch_size=0), dict(batch_size=2.5),
    dict(min_scale=0), dict(min_scale=1.5)])
def test_drawn_pets_options(options):
    (name, value), = options.items()
    says(drawn_pets, **options, match=[name, repr(value), 'must be'])


# ---- files ----

def test_folders(tmp_path):
    pets = make_folder(tmp_path, dict(cat=10, dog=25, eel=2))
    with pytest.warns(UserWarning, match='very unequal'):
        dls = image_folders(pets, batch_size=8, min_scale=.7, flip=False)
    assert dls.classes == ['cat', 'dog', 'eel'] and dls.size == 64
    assert torch.bincount(dls.valid.labels).tolist() == [2, 5, 1]
    assert torch.bincount(dls.train.labels).tolist() == [8, 20, 1]
    assert dls.train.batch_size == dls.valid.batch_size == 8
    assert dls.train.min_scale == .7 and dls.valid.min_scale == 1 and not dls.train.flip
    for part in (dls.train, dls.valid):
        for path, x, y in zip(part.files, part.pictures, part.labels, strict=True):
            assert path.parent.name == dls.classes[y] and (load_picture(path, 64) == x).all()
    assert sorted(dls.files) == sorted(pets.rglob('*.png')) and dls.skipped == []


@pytest.mark.parametrize('memory', [1, 0])
def test_eight_files_to_two_trained_networks_are_eight_decodings(tmp_path, make_learner, monkeypatch, memory):
    seen = []
    monkeypatch.setattr(store, 'load_file', lambda path, *how: (seen.append(path), load_file(path, *how))[1])
    dls = image_folders(make_folder(tmp_path, dict(cat=4, dog=4)), memory=memory, batch_size=4)
    assert len(dls.train) == 2 and len(dls.train.labels) == 6 and repr(dls) and not seen
    for _ in range(2):
        learn = make_learner(dls)
        learn.fine_tune(1)
        learn.dls.show_batch()
        assert sorted(seen) == sorted(dls.files)


def test_training_stops_at_an_unreadable_file_and_goes_on_when_it_is_repaired(tmp_path, make_learner):
    folder = make_folder(tmp_path, dict(cat=10, dog=10))
    path = image_folders(folder).train.files[3]
    content = path.read_bytes()
    learn = make_learner(image_folders(folder, batch_size=8, size=32))
    path.write_bytes(b'no')
    modes = [m.training for m in learn.model.modules()]
    learns = [p.requires_grad for p in learn.model.parameters()]
    says(learn.fit_one_cycle, 1, match=path.name)
    assert [m.training for m in learn.model.modules()] == modes
    assert [p.requires_grad for p in learn.model.parameters()] == learns
    path.write_bytes(content)
    learn.fit_one_cycle(1)


# ---- real photos ----

@needs(DATA / 'oxford_pets_sample')
def test_real_photos():
    folder = DATA / 'oxford_pets_sample' / 'images'
    single = ['american_bulldog', 'american_pit_bull_terrier']
    says(image_files, folder, r'(.+)_\d+\.jpg$', match=single)
    paths = [p for p in folder.glob('*.jpg') if not p.name.startswith('american')]
    dls = image_files(paths, r'(.+)_\d+\.jpg$')
    assert dls.classes == ['Abyssinian', 'Siamese', 'Sphynx', 'havanese', 'yorkshire_terrier']
    assert len(dls.files) == 44 and set(dls.valid.labels.tolist()) == set(range(5))
    big = dls.with_preprocessing(size=224)
    assert big.train.pictures.shape[1:] == (3, 224, 224)
    x = torch.cat([x for x, y in big.valid])
    assert x.mean().abs() < 1 and .5 < x.std() < 2


@needs(DATA / 'cifar10_sample')
def test_cifar():
    dls = image_folders(DATA / 'cifar10_sample', size=32)
    assert len(dls.classes) == 10 and len(dls.train.labels) == len(dls.valid.labels) == 1000
    assert torch.bincount(dls.valid.labels).tolist() == [100] * 10
    assert len(dls.train) == 32 and {len(y) for x, y in dls.train} == {31, 32}
    path, x = dls.train.files[0], dls.train.pictures[0]
    with Image.open(path) as image: assert (np.asarray(image).transpose(2, 0, 1) == x.numpy()).all()
