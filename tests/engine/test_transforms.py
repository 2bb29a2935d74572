"Transforms of training pictures and of their batches: equal to a loop by hand, repeatable, and nothing else is touched."
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, default_collate
from torchvision.transforms import v2

from conftest import Batches, assert_unchanged, everything, same_bits, small_network, state
from finetune_teach.engine.drawing import draw_pets
from finetune_teach.engine.history import Recorder
from finetune_teach.engine.random_state import seeded
from finetune_teach.engine.transforms import batch_titles, transforms_text
from finetune_teach.pictures import drawn_pets, image_folders
from finetune_teach.tools.testing import evaluate
from finetune_teach.training_loop import constant, create_optimizer, fit, set_rates

MIXUP, CUTMIX = (kind(num_classes=12) for kind in (v2.MixUp, v2.CutMix))
JITTER = v2.Compose([v2.RandomResizedCrop(32, scale=(.3, 1)), v2.ColorJitter(.4, .4, .4)])


def pictures(dls):
    torch.manual_seed(0)
    return [t for batch in dls.train for t in batch]


def by_hand(model, dls, epochs, change, optimizer=None):
    "A loop of plain PyTorch."
    optimizer, losses = optimizer or create_optimizer(model), []
    set_rates(optimizer, [1e-3], [0.9])
    for _ in range(epochs):
        model.train()
        for x, y in dls.train:
            x, y = change(x, y)
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize('mix', [MIXUP, CUTMIX, v2.RandomChoice([MIXUP, CUTMIX])], ids=['mixup', 'cutmix', 'either'])
def test_mixing_equals_a_loop_by_hand_to_the_bit(pets, mix):
    model, twin = small_network(), small_network()
    model.fc, twin.fc = (nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 12)) for _ in range(2))
    twin.load_state_dict(model.state_dict())
    dls, steps = pets.with_transforms(batch=mix), 2 * len(pets.train)
    torch.manual_seed(0)
    recorder = fit(model, dls, 2, constant(steps, 1e-3), show=False)
    torch.manual_seed(0)
    assert recorder.losses == by_hand(twin, pets, 2, mix)
    assert same_bits(state(model), state(twin))
    assert recorder.answers[-1].actual.dtype == torch.int64, 'validation has labels as ever'


def test_a_frozen_body_sees_mixed_pictures_in_each_epoch(make_learner, pets):
    learn, seen = make_learner(pets.with_transforms(batch=MIXUP)), []
    handle = learn.model[0].register_forward_hook(lambda m, inputs, output: seen.append(inputs[0].clone()))
    learn.fit(2, 1e-3)
    handle.remove()
    train = [x for x in seen if len(x) == 16][:6]
    assert len(train) == 6 and not any(train[0].equal(x) for x in train[1:])
    twin, recorder = make_learner(pets).model, Recorder()
    optimizer, losses = create_optimizer(twin), []
    for _ in range(2):
        with seeded(recorder.begin_epoch(0)):
            losses += by_hand(twin, pets, 1, MIXUP, optimizer)
    assert learn.recorder.losses == pytest.approx(losses, abs=1e-5)


def test_all_that_trains_takes_them(make_learner, pets):
    dls = pets.with_transforms(JITTER, MIXUP)
    learn, other, plain = make_learner(dls), make_learner(dls), make_learner(pets)
    for one in (learn, other, plain):
        one.fine_tune(1)
    assert learn.recorder.losses == other.recorder.losses != plain.recorder.losses
    assert_unchanged(everything(learn.model, learn.optimizer), everything(other.model, other.optimizer))
    before = everything(learn.model, learn.optimizer)
    learn.lr_find(num_it=5)
    assert_unchanged(before, everything(learn.model, learn.optimizer))
    smooth = make_learner(dls, class_weights=[2.0] + [1.0] * 11, label_smoothing=0.1)
    smooth.fit(1, 1e-3)
    assert smooth.validate() and np.isfinite(smooth.recorder.losses).all()


def test_a_test_on_training_pictures_takes_them_as_they_are(make_learner):
    "Mixed ones have no class that an answer could be right about."
    plain = drawn_pets(n_train=4, n_valid=3, size=32, flip=False)
    learn = make_learner(plain.with_transforms(JITTER, MIXUP))
    learn.fit(1, 1e-3)
    assert learn.validate(learn.dls.train) == learn.validate(plain.train)
    assert evaluate(learn, learn.dls.train).errors == evaluate(learn, plain.train).errors


def test_a_picture_has_chance_of_its_own(pets):
    "Whatever draws in between, and from whichever generator; and none of those moves."
    def twist(picture):
        assert picture.dtype == torch.uint8 and picture.shape == (3, 32, 32)
        shades = [random.random(), np.random.rand(), torch.rand(()).item()]
        return picture // 2 + torch.tensor(shades).mul(100).to(torch.uint8).view(3, 1, 1)
    dls = pets.with_transforms(twist)
    def epoch(disturb):
        torch.manual_seed(0)
        xs = []
        for x, _ in dls.train:
            xs.append(x)
            if disturb:
                random.random(), np.random.rand(), torch.rand(3)
        return torch.cat(xs)
    assert epoch(False).equal(epoch(True))
    first, second = (torch.cat([x for x, _ in dls.train]) for _ in range(2))
    assert not first.equal(second), 'another epoch, other pictures'
    python, numpy = random.getstate(), np.random.get_state()[1].tolist()
    epoch(False)
    assert python == random.getstate() and numpy == np.random.get_state()[1].tolist()


def test_order_and_mirroring_stay_as_they_are(pets):
    "A transform that does nothing changes nothing."
    assert all(map(torch.equal, pictures(pets), pictures(pets.with_transforms(lambda p: p.clone()))))
    floats = pets.with_transforms(v2.ToDtype(torch.float32, scale=True))
    assert all(map(torch.equal, pictures(pets), pictures(floats)))


def test_only_training_pictures_are_transformed(tmp_path):
    save_pets(tmp_path)
    dls = image_folders(tmp_path, batch_size=8)
    grey = dls.with_transforms(lambda p: torch.full_like(p, 128))
    assert grey.valid is dls.valid and dls.train.transform is None
    assert all(x.std((2, 3)).max() < 1e-5 for x, _ in grey.train)
    resized = grey.with_preprocessing(size=48)
    assert next(iter(resized.train))[0].shape[2:] == (48, 48) and resized.train.transform is grey.train.transform
    assert 'new in each epoch' in repr(grey) and 'new in each epoch' not in repr(dls)
    assert 'new in each epoch' in repr(drawn_pets(2, 1, min_scale=.5)), 'random crops say so, too'


def save_pets(folder, n=4):
    for i, picture in enumerate(draw_pets(n, 0, 96)[0]):
        (folder / 'ab'[i % 2]).mkdir(exist_ok=True)
        Image.fromarray(picture).save(folder / 'ab'[i % 2] / f'{i}.png')


@pytest.mark.parametrize('on_error', ['raise', 'skip'])
def test_larger_pictures_for_sharp_crops(tmp_path, on_error):
    save_pets(tmp_path)
    (tmp_path / 'a' / 'notes.txt').write_text('no picture') if on_error == 'skip' else None
    seen = []
    def crop(picture):
        seen.append(tuple(picture.shape))
        return v2.RandomCrop(64)(picture)
    dls = image_folders(tmp_path, batch_size=8, on_error=on_error).with_transforms(crop, input_size=96)
    assert not seen
    with pytest.warns(UserWarning, match='notes.txt') if on_error == 'skip' else np.errstate():
        dls = dls.with_preprocessing(size=64)
    x, y = next(iter(dls.train))
    assert set(seen) == {(3, 96, 96)} and x.shape[1:] == (3, 64, 64)
    assert next(iter(dls.valid))[0].shape[1:] == (3, 64, 64)
    small = dls.with_transforms(v2.CenterCrop(64)) # of pictures of 64 x 64: all of it
    assert not next(iter(small.train))[0].equal(x)


def test_any_loader_may_mix_its_batches(pets):
    "PyTorch's own, as its documentation shows it."
    x, y = (torch.cat(part) for part in zip(*pets.valid))
    train = DataLoader(TensorDataset(x, y), 12, collate_fn=lambda batch: MIXUP(*default_collate(batch)))
    model = small_network()
    model.fc = nn.Linear(8, 12)
    recorder = fit(model, Batches(train, [(x, y)]), 1, constant(3, 1e-3), show=False)
    assert len(recorder.losses) == 3


def test_another_transform_is_another_training(make_learner, pets, tmp_path):
    def learner(*transforms):
        return make_learner(pets.with_transforms(*transforms), checkpoint=tmp_path / 'run')
    learner(JITTER, MIXUP).fit(1, 1e-3)
    learner(JITTER, MIXUP).fit(1, 1e-3)
    with pytest.raises(ValueError, match=r'transforms was transform Compose.*MixUp.*now it is batch_transform CutMix'):
        learner(None, CUTMIX).fit(1, 1e-3)
    def mine(picture):
        return picture
    assert transforms_text(pets.with_transforms(mine).train) == 'transform mine'
    assert transforms_text(pets.train) is None and transforms_text([]) is None


def test_what_is_shown_is_what_is_trained_on(pets):
    dls = pets.with_transforms(JITTER, MIXUP)
    before = torch.get_rng_state(), random.getstate()
    titles = [t.get_text() for t in dls.show_batch(6).texts]
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()
    assert len(titles) == 6 and any(title.count('%') == 2 for title in titles)
    assert batch_titles(torch.tensor([[0., 1], [.25, .75]]), ['a', 'b']) == ['100% b', '75% b\n25% a']
    assert batch_titles(torch.tensor([1, 0]), ['a', 'b']) == ['b', 'a']


@pytest.mark.parametrize('picture, message', [
    (v2.Resize(40), 'gives 3 x 40 x 40 .* wanted is 3 x 32 x 32'), (v2.ToPILImage(), 'gives a Image'),
    (v2.ToDtype(torch.float32), 'from .* to .*Leave v2.Normalize out'), (v2.Grayscale(1), '1 x 32 x 32'),
    (lambda p: p / 255 * torch.nan, 'numbers from nan')])
def test_what_is_no_picture_any_more(pets, picture, message):
    with pytest.raises(ValueError, match=message):
        next(iter(pets.with_transforms(picture).train))


@pytest.mark.parametrize('batch, message', [
    (v2.MixUp(num_classes=3), None), (v2.MixUp(num_classes=13), '13 classes, but there are 12: num_classes=12'),
    (lambda x, y: x, 'pictures and labels')])
def test_what_is_no_batch_any_more(pets, batch, message):
    with pytest.raises(ValueError if message else RuntimeError, match=message):
        next(iter(pets.with_transforms(batch=batch).train))


@pytest.mark.parametrize('options, message', [
    ({'picture': 'flip'}, 'picture='), ({'batch': 3}, 'batch='), ({'picture': JITTER, 'input_size': 0}, 'input_size='),
    ({'input_size': 64}, 'picture= is missing'), ({'picture': JITTER, 'input_size': 64}, 'have none')])
def test_options_that_make_no_transform(pets, options, message):
    with pytest.raises(ValueError, match=message):
        pets.with_transforms(**options)
