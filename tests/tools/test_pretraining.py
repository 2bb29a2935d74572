"Pretraining: Tiny ImageNet in its two layouts, a run that is stopped and gone on with, the file of weights."
import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from PIL import Image

from conftest import same_bits, state
from finetune_teach.engine.drawing import draw_pets
from finetune_teach.engine.drawn_resnet import DRAWN_FILE, DRAWN_MEAN, DRAWN_STD, drawn_resnet
from finetune_teach.engine.random_state import seeded
from finetune_teach.engine.tiny_resnet import WEIGHTS_FILE, TinyResNet, read_weights, tiny_resnet
from finetune_teach.one_cycle import one_cycle
from finetune_teach.tools import pretraining
from finetune_teach.tools.pretraining import (
    DRAWN_RECIPE, Photos, Recipe, confusions, draw_made_up, normalised, pretrain, pretrain_drawn,
    random_views, read_tiny_imagenet, save_weights, shrink, top1)

TINY_IMAGENET = Path(__file__).parents[3] / 'shared' / 'data' / 'tiny_imagenet_32.zip'
BREEDS = ['pug', 'Siamese', 'poodle']


@pytest.fixture(scope='module')
def photos():
    "40 training and 12 validation photos of three classes, drawn."
    train, labels = draw_pets(13, size=32, breeds=BREEDS)
    valid, valid_labels = draw_pets(4, seed=1, size=32, breeds=BREEDS)
    return Photos(*map(torch.from_numpy, (train, labels, valid, valid_labels)), BREEDS)


SHORT = dict(cycles=((0.1, ((1, 32), (1, 40))), (0.05, ((2, 32),))), batch_size=13)


def metadata(path):
    with safetensors.safe_open(path, 'pt') as file:
        return file.metadata()


def jpeg(colour, size):
    file = io.BytesIO()
    Image.new('RGB', (size, size), colour).save(file, 'JPEG', quality=95)
    return file.getvalue()


# Reading

CLASSES = {'n02': ((250, 10, 10), 'goldfish, Carassius auratus'), 'n01': ((10, 10, 250), 'tailed frog')}

def write_photos(folder, original):
    "Two classes, three training photos and one validation photo each; returns the folder."
    root = folder / 'tiny-imagenet-200' if original else folder
    listed = []
    for name, (colour, _) in CLASSES.items():
        train = root / 'train' / name / ('images' if original else '')
        valid = root / 'val' / ('images' if original else name)
        train.mkdir(parents=True)
        valid.mkdir(parents=True, exist_ok=True)
        for i in range(3):
            (train / f'{name}_{i}.JPEG').write_bytes(jpeg(colour, 64 if original else 32))
        (valid / f'val_{name}.JPEG').write_bytes(jpeg(colour, 64 if original else 32))
        listed.append(f'val_{name}.JPEG\t{name}\t0\t0\t62\t62\n')
    if original:
        (root / 'val' / 'val_annotations.txt').write_text(''.join(listed))
        (root / 'test' / 'images').mkdir(parents=True)
        (root / 'test' / 'images' / 'test_0.JPEG').write_bytes(jpeg('green', 64))
    (root / 'words.txt').write_text(''.join(f'{n}\t{words}\n' for n, (_, words) in CLASSES.items()))
    return folder


@pytest.mark.parametrize('original', [True, False], ids=['as downloaded', 'a folder per class in val'])
@pytest.mark.parametrize('packed', [True, False], ids=['zip', 'folder'])
def test_both_layouts_are_read(tmp_path, original, packed):
    path = write_photos(tmp_path / 'data', original)
    if packed:
        path = Path(shutil.make_archive(tmp_path / 'photos', 'zip', path))
    data = read_tiny_imagenet(path)
    assert data.classes == ['tailed frog', 'goldfish']  # sorted by the folders' names
    assert data.train.shape == (6, 32, 32, 3) and data.train.dtype == torch.uint8
    assert sorted(data.labels.tolist()) == [0, 0, 0, 1, 1, 1]
    assert data.valid.shape == (2, 32, 32, 3)
    for pictures, labels in ((data.train, data.labels), (data.valid, data.valid_labels)):
        for picture, label in zip(pictures.float(), labels):
            red, _, blue = picture.mean((0, 1))
            assert (red > blue) == (label == 1)
    assert read_tiny_imagenet(path, size=64).train.shape == (6, 64, 64, 3)


def test_some_classes_only(tmp_path):
    path = write_photos(tmp_path / 'data', original=True)
    assert read_tiny_imagenet(path, n_classes=1).classes == ['tailed frog']
    rest = read_tiny_imagenet(path, skip=1)
    assert rest.classes == ['goldfish'] and rest.labels.tolist() == [0, 0, 0]


def test_what_is_not_tiny_imagenet(tmp_path):
    with pytest.raises(FileNotFoundError, match='tiny-imagenet-200.zip'):
        read_tiny_imagenet(tmp_path / 'nowhere.zip')
    with zipfile.ZipFile(tmp_path / 'other.zip', 'w') as archive:
        archive.writestr('train/readme.txt', 'no photos')
    for path in (tmp_path / 'other.zip', tmp_path):
        with pytest.raises(ValueError, match='is it Tiny ImageNet'):
            read_tiny_imagenet(path)


@pytest.mark.skipif(not TINY_IMAGENET.exists(), reason='needs Tiny ImageNet')
def test_a_few_steps_on_real_photos(tmp_path):
    "Two classes, a few seconds: better than guessing, and far above it for the shipped weights."
    data = read_tiny_imagenet(TINY_IMAGENET, n_classes=2)
    assert data.train.shape == (1000, 32, 32, 3) and data.valid.shape == (100, 32, 32, 3)
    model, rows = pretrain(data, tmp_path, Recipe(cycles=((0.05, ((2, 32),)),), batch_size=50))
    assert rows[-1]['train_loss'] < rows[0]['train_loss']
    assert top1(model, data.valid, data.valid_labels, 32) > 0.65
    shipped = pretraining.guesses(tiny_resnet(weights='DEFAULT'), data.valid, 64)
    assert (shipped == data.valid_labels).float().mean() > 0.5  # of 200 classes


# Views

def test_views_of_a_photo():
    ramp = torch.arange(32, dtype=torch.uint8).view(1, 1, 32, 1).expand(400, 32, 32, 3) * 8
    with seeded(0):
        views = random_views(ramp, 24)
    assert views.shape == (400, 3, 24, 24)
    slope = views[:, 0, :, -1].mean(1) - views[:, 0, :, 0].mean(1)
    assert 0.4 < (slope < 0).float().mean() < 0.6, 'half of them are mirrored'
    seen = slope.abs() / slope.abs().max()  # share of the width that a view shows
    assert 0.4 < seen.min() < 0.65 and seen.mean() < 0.95
    assert views.min() >= normalised(ramp).min() and views.max() <= normalised(ramp).max()
    with seeded(0):
        assert torch.equal(random_views(ramp, 24), views)


# The epochs

def test_every_cycle_is_one_cycle():
    recipe = Recipe(cycles=((0.2, ((2, 32), (1, 48))), (0.1, ((1, 64),))), batch_size=10)
    epochs = recipe.epochs(105)  # ten whole batches an epoch
    assert [size for size, _, _ in epochs] == [32, 32, 48, 64]
    assert [end for _, _, end in epochs] == [False, False, True, True]
    first = [lr for _, lrs, _ in epochs[:3] for lr in lrs]
    assert first == [lr for lr, in one_cycle(30, 0.2, div_final=25e3, pct_start=0.15).lrs]
    assert max(epochs[3][1]) == pytest.approx(0.1, rel=0.05) and recipe.size == 64


# Training

class Stopped(Exception):
    pass


@pytest.fixture
def stop_in(monkeypatch):
    "A function: after how many steps training is to be stopped."
    steps = {'left': float('inf')}
    update = pretraining.AveragedModel.update_parameters
    def count(self, model):
        steps['left'] -= 1
        if steps['left'] < 0:
            raise Stopped
        update(self, model)
    monkeypatch.setattr(pretraining.AveragedModel, 'update_parameters', count)
    return lambda n: steps.update(left=n)


def test_stopped_and_gone_on_with_gives_the_same_bits(photos, tmp_path, stop_in):
    "Whatever the step it is stopped in: three steps make an epoch, four epochs the run."
    model, rows = pretrain(photos, tmp_path / 'whole', Recipe(**SHORT))
    for n in (1, 3, 5, 9, 11):
        folder = tmp_path / f'stopped after {n}'
        stop_in(n)
        with pytest.raises(Stopped):
            pretrain(photos, folder, Recipe(**SHORT))
        stop_in(float('inf'))
        again, rows_again = pretrain(photos, folder, Recipe(**SHORT))
        assert same_bits(state(model), state(again)), n
        for one, two in zip(rows, rows_again, strict=True):
            assert {**one, 'seconds': 0} == {**two, 'seconds': 0}
        for name in ('epoch_2.safetensors', 'epoch_4.safetensors'):
            assert same_bits(read_weights(folder / name), read_weights(tmp_path / 'whole' / name))
            assert metadata(folder / name) == metadata(tmp_path / 'whole' / name)


def test_stopped_while_the_checkpoint_is_written(photos, tmp_path, monkeypatch):
    model, _ = pretrain(photos, tmp_path / 'whole', Recipe(**SHORT))
    save, written = torch.save, []
    def cut_off(thing, file):
        save(thing, file)
        written.append(file)
        if len(written) == 2:
            Path(file).write_bytes(Path(file).read_bytes()[:1000])
            raise Stopped
    monkeypatch.setattr(torch, 'save', cut_off)
    with pytest.raises(Stopped):
        pretrain(photos, tmp_path / 'cut', Recipe(**SHORT))
    again, rows = pretrain(photos, tmp_path / 'cut', Recipe(**SHORT))
    assert same_bits(state(model), state(again)) and len(rows) == 4
    for name in ('epoch_2.safetensors', 'epoch_4.safetensors'):
        assert same_bits(read_weights(tmp_path / 'cut' / name), read_weights(tmp_path / 'whole' / name))


def test_a_finished_run_is_not_run_again(photos, tmp_path, stop_in):
    model, rows = pretrain(photos, tmp_path, Recipe(**SHORT))
    stop_in(0)
    again, rows_again = pretrain(photos, tmp_path, Recipe(**SHORT))
    assert same_bits(state(model), state(again)) and rows == rows_again


def test_another_recipe_is_refused(photos, tmp_path):
    pretrain(photos, tmp_path, Recipe(**SHORT))
    for data, recipe in ((photos, Recipe(**SHORT, seed=1)),
                         (photos._replace(classes=['a', 'b', 'c']), Recipe(**SHORT))):
        with pytest.raises(ValueError, match='another recipe or other classes'):
            pretrain(data, tmp_path, recipe)


def test_seeds_and_random_generators(photos, tmp_path):
    before = torch.get_rng_state()
    models = [pretrain(photos, tmp_path / str(i), Recipe(**SHORT, seed=seed))[0]
              for i, seed in enumerate((0, 0, 1))]
    assert torch.equal(before, torch.get_rng_state())
    assert same_bits(state(models[0]), state(models[1]))
    assert not same_bits(state(models[0]), state(models[2]))


def test_cutmix(photos, tmp_path):
    plain, _ = pretrain(photos, tmp_path / 'plain', Recipe(**SHORT))
    mixed, rows = pretrain(photos, tmp_path / 'mixed', Recipe(**SHORT, cutmix=True))
    assert np.isfinite(rows[-1]['train_loss'])
    assert not same_bits(state(plain), state(mixed))


def test_too_few_photos(photos, tmp_path):
    with pytest.raises(ValueError, match='39 photos'):
        pretrain(photos, tmp_path, Recipe())


# The file of weights

@pytest.fixture
def written(photos, tmp_path):
    "A file of weights, and the network in it."
    with seeded(0):
        model = TinyResNet(3)
    rows = [{'epoch': 0, 'size': 32, 'train_loss': 1.1, 'top1': 0.3, 'lr': 0.1, 'seconds': 1.0}]
    save_weights(model, tmp_path / 'w.safetensors', photos, Recipe(**SHORT), rows)
    return tmp_path / 'w.safetensors', model


def test_the_file_says_what_it_is(written, photos):
    path, model = written
    about = metadata(path)
    assert json.loads(about['classes']) == BREEDS
    assert json.loads(about['recipe'])['label_smoothing'] == 0.1
    assert (about['epochs'], about['size'], about['top1']) == ('1', '40', '0.3')
    assert '39 pictures of 32 pixels' in about['data'] and 'ImageNet' in about['licence']
    assert json.loads(about['mean']) == [0.485, 0.456, 0.406]
    pairs = json.loads(about['confusions'])
    assert pairs and sum(n for _, _, n in pairs) <= 12 and all(a != b for a, b, _ in pairs)
    assert [tuple(pair) for pair in pairs] == confusions(model, photos, 40)
    assert json.loads(path.with_suffix('.jsonl').read_text())['top1'] == 0.3
    again = TinyResNet(3)
    again.load_state_dict(read_weights(path))
    x = normalised(photos.valid)
    assert torch.allclose(again.eval()(x), model.eval()(x), rtol=1e-2, atol=1e-2)


def test_shrinking_changes_no_answer(photos):
    with seeded(0):
        model = TinyResNet(3)
    x = normalised(photos.valid)
    model.train()(x)  # batch norm's statistics move from where they start
    small = shrink(model, 4)
    assert torch.allclose(small.eval()(x), model.eval()(x), atol=1e-3)
    convolutions = [(a.weight, b.weight) for a, b in zip(small.modules(), model.modules())
                    if isinstance(a, torch.nn.Conv2d)]
    assert len(convolutions) == 16
    for a, b in convolutions:
        assert torch.equal(a * 4, b)
    assert same_bits(state(shrink(small, 1 / 4)), state(model))


def as_saved(recipe):
    "Its fields as a file has them: lists for tuples."
    return json.loads(json.dumps(recipe.__dict__))


def test_the_shipped_file():
    about = metadata(str(WEIGHTS_FILE))
    rows = [json.loads(line) for line in WEIGHTS_FILE.with_suffix('.jsonl').read_text().splitlines()]
    epochs, taken = Recipe().epochs(100_000), int(about['epochs'])
    assert len(rows) == len(epochs) and epochs[taken - 1][2], 'the whole run; taken at the end of a cycle'
    assert float(about['top1']) == rows[taken - 1]['top1'] >= 0.42
    assert as_saved(Recipe(**json.loads(about['recipe']))) == as_saved(Recipe())
    assert len(json.loads(about['classes'])) == 200


@pytest.mark.skipif(not TINY_IMAGENET.exists(), reason='needs Tiny ImageNet')
def test_the_shipped_weights_are_as_good_as_they_say():
    data = read_tiny_imagenet(TINY_IMAGENET)
    stated = float(metadata(str(WEIGHTS_FILE))['top1'])
    assert top1(tiny_resnet(weights='DEFAULT'), data.valid, data.valid_labels, 64) == pytest.approx(
        stated, abs=0.005)


# The body that knows drawings

def test_pictures_of_made_up_breeds():
    data = draw_made_up(2, 1, n_breeds=5, size=32)
    assert data.train.shape == (20, 32, 32, 3) and data.valid.shape == (10, 32, 32, 3)
    assert data.labels.tolist() == [*np.repeat(range(5), 2), *np.repeat(range(5), 2)]
    again = draw_made_up(2, 1, n_breeds=5, size=32)
    assert torch.equal(data.train, again.train) and torch.equal(data.valid, again.valid)
    seen = {picture.numpy().tobytes() for picture in (*data.train, *data.valid)}
    assert len(seen) == 30, 'no picture is there twice'


def test_their_means_are_those_that_the_network_wants():
    pictures = draw_made_up(1, 0, size=32).train.float() / 255
    assert pictures.mean((0, 1, 2)).tolist() == pytest.approx(DRAWN_MEAN, abs=.02)
    assert pictures.std((0, 1, 2)).tolist() == pytest.approx(DRAWN_STD, abs=.02)
    x = normalised((pictures * 255).to(torch.uint8), (DRAWN_MEAN, DRAWN_STD))
    assert x.mean().abs() < .1 and .9 < x.std() < 1.1


def test_a_short_pretraining_on_drawings(tmp_path):
    data = draw_made_up(8, 2, n_breeds=4, size=32)
    recipe = Recipe(**vars(DRAWN_RECIPE) | {'cycles': ((.05, ((6, 32),)),), 'batch_size': 16})
    path = pretrain_drawn(tmp_path / 'a', data, recipe)
    rows = [json.loads(line) for line in path.with_suffix('.jsonl').read_text().splitlines()]
    assert len(rows) == 6 and rows[-1]['train_loss'] < rows[0]['train_loss']
    net = drawn_resnet(num_classes=4)
    net.load_state_dict(read_weights(path))
    right = top1(net, data.valid, data.valid_labels, 32, data.scale)
    assert right == pytest.approx(rows[-1]['top1'], abs=1e-4) and right > .25
    again = pretrain_drawn(tmp_path / 'b', data, recipe)
    assert same_bits(read_weights(path), read_weights(again)) and 'ImageNet' not in str(metadata(path))


def test_the_shipped_weights_of_drawings():
    "They are as good as they say, on the drawings they were validated with."
    about, data = metadata(str(DRAWN_FILE)), draw_made_up(0, 3)
    assert as_saved(Recipe(**json.loads(about['recipe']))) == as_saved(DRAWN_RECIPE)
    net = drawn_resnet(weights='DEFAULT')
    right = top1(net, data.valid, data.valid_labels, DRAWN_RECIPE.size, data.scale)
    assert right == pytest.approx(float(about['top1']), abs=.01) and right > .8
