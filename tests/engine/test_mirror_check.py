"Classes that a mirror exchanges: found where they are the reason, and nowhere else."
import numpy as np
import pytest
import torch
from torch import nn

from finetune_teach.engine.history import PredictedLabels
from finetune_teach.engine.loaders import ImageLoader, ImageLoaders
from finetune_teach.engine.mirror_check import are_mirror_images, confused_pairs, mirror_trouble
from finetune_teach.engine.tiny_resnet import tiny_resnet
from finetune_teach.pictures import drawn_pets


def wedges(n, seed, kinds, **options):
    "A bright wedge at a random place: 'left' and 'right' point to sides, 'up' and 'down' do not."
    rng, pictures = np.random.default_rng(seed), []
    for i in range(n * len(kinds)):
        one = np.full((32, 32), rng.integers(0, 60), np.uint8)
        x, y, size = rng.integers(2, 14), rng.integers(2, 14), rng.integers(12, 17)
        wedge = np.tril(np.full((size, size), 200, np.uint8)) + np.triu(np.full((size, size), 200, np.uint8))[::-1]
        wedge = np.where(np.add.outer(abs(np.arange(size) - size // 2) * 2, np.arange(size)) < size, 220, 0)
        wedge = np.rot90(wedge, 'right up left down'.split().index(kinds[i % len(kinds)]))
        one[y:y + size, x:x + size] = np.maximum(one[y:y + size, x:x + size], wedge)
        pictures.append(one)
    pictures = torch.from_numpy(np.stack(pictures))[:, None].expand(-1, 3, -1, -1).contiguous()
    return ImageLoader(pictures, torch.arange(len(pictures)) % len(kinds), 16, **options)


def loaders(*kinds, flip=True):
    return ImageLoaders(wedges(30, 1, kinds, shuffle=True, flip=flip), wedges(20, 2, kinds), list(kinds))


@pytest.fixture(scope='module')
def model():
    body = tiny_resnet(weights='DEFAULT')
    body.fc = nn.Identity()
    return nn.Sequential(body, nn.Linear(256, 2))


def taken_for_each_other(dls):
    y = dls.valid.labels
    return PredictedLabels(torch.where(torch.arange(len(y)) % 3 > 0, (y + 1) % len(dls.classes), y), y * 0. + 1, y)


def test_pairs_that_are_taken_for_each_other():
    actual = torch.tensor([0] * 4 + [1] * 4 + [2] * 4).repeat(2)
    said = torch.tensor([1, 1, 0, 0] + [0, 0, 0, 1] + [1, 1, 1, 2]).repeat(2) # nobody takes a 1 for a 2
    assert confused_pairs(PredictedLabels(said, actual * 0. + 1, actual)) == [(0, 1)]
    assert confused_pairs(PredictedLabels(actual, actual * 0. + 1, actual)) == []
    assert confused_pairs(PredictedLabels(said[:12], actual[:12] * 0. + 1, actual[:12])) == [], 'too few to tell'


def test_left_and_right(model):
    dls = loaders('left', 'right')
    assert are_mirror_images(model[0], dls.train, dls.valid, 0, 1)
    told = mirror_trouble(model, dls, taken_for_each_other(dls))
    assert told.startswith('left and right are taken for each other') and 'flip=False' in told and '--no-flip' in told


def test_no_false_alarm(model):
    up = loaders('up', 'down')
    assert not are_mirror_images(model[0], up.train, up.valid, 0, 1)
    assert mirror_trouble(model, up, taken_for_each_other(up)) is None
    pets = drawn_pets(10, 10, cats_vs_dogs=True, size=32)
    assert mirror_trouble(model, pets, taken_for_each_other(pets)) is None
    for dls in (loaders('left', 'right', flip=False), loaders('left', 'right')): # not mirrored; all right
        answers = taken_for_each_other(dls)
        if dls.train.flip:
            answers = answers._replace(predicted=answers.actual)
        assert mirror_trouble(model, dls, answers) is None
    assert mirror_trouble(model, dls, None) is None


def test_looking_changes_nothing(model):
    dls = loaders('left', 'right')
    model.train()
    state = torch.get_rng_state()
    mirror_trouble(model, dls, taken_for_each_other(dls))
    assert torch.get_rng_state().equal(state) and model.training and model[0].training
