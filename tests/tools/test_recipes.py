"Five recipes that differ in what the body does, and a measure of how near a task is."
from dataclasses import replace

import pytest
import torch

from conftest import same_bits, state
from finetune_teach.engine.loaders import ImageLoaders
from finetune_teach.engine.random_state import seeded
from finetune_teach.engine.weights import preprocessing_of
from finetune_teach.pictures import drawn_pets
from finetune_teach.pretrained_body import create_body, get_features, linear_probe
from finetune_teach.tools.learners import vision_learner
from finetune_teach.tools.recipes import RECIPES, SCRATCH, Nearness, final_error, nearness, probe_error


@pytest.fixture(scope='module')
def dls():
    return drawn_pets(2, 1, size=32)


@pytest.mark.parametrize('recipe', RECIPES)
def test_equal_epochs_and_equal_rates_for_the_head(dls, recipe):
    learn = vision_learner(dls, 'drawn_resnet', seed=0, device='cpu', show=False)
    before = state(learn.model[0])
    RECIPES[recipe](learn, 3, 1e-3)
    assert len(learn.recorder.history) == 3
    n = len(learn.recorder.lrs) // 3 # steps of an epoch; the last two are alike in all recipes but one
    assert max(lrs[-1] for lrs in learn.recorder.lrs[n:]) == pytest.approx(1e-3, rel=.1)
    assert same_bits(state(learn.model[0]), before) == (recipe == 'head only')


def test_final_error_is_a_fresh_training_each_time(dls):
    first, again = (final_error(dls, 'drawn_resnet', 'fine_tune', epochs=2, seed=3) for _ in range(2))
    learn = vision_learner(dls, 'drawn_resnet', seed=3, show=False)
    learn.fine_tune(1)
    assert first == again == learn.recorder.history[-1]['error_rate'], 'the default rate is fine_tune\'s'


def test_all_at_once_has_no_frozen_epoch(dls):
    learn = vision_learner(dls, 'drawn_resnet', seed=0, show=False)
    RECIPES['all at once'](learn, 1, 1e-3)
    assert all(p.requires_grad for p in learn.model.parameters()) and torch.isfinite(
        torch.tensor(learn.recorder.history[0]['train_loss']))


def test_probe_error_is_that_of_a_linear_layer_on_the_features(dls):
    body = create_body('drawn_resnet')
    prepared = dls.with_preprocessing(*preprocessing_of('drawn_resnet', 'DEFAULT'), device='cpu')
    with seeded(0):
        train, valid = (get_features(body, part) for part in (prepared.train, prepared.valid))
    assert probe_error(dls, 'drawn_resnet') == probe_error(dls, 'drawn_resnet') == 1 - linear_probe(train, valid)


def test_drawings_are_nearer_for_the_body_made_of_drawings():
    pets = drawn_pets(2, 5, size=32)
    near, far = (nearness(pets, arch) for arch in ('drawn_resnet', 'tiny_resnet'))
    assert near.verdict == 'small rates' and near.ratio < far.ratio and near.probe < far.probe
    assert near[:2] == far[:2] and near.guess == pytest.approx(11 / 12), 'the body plays no part in these'
    assert near.scratch == final_error(pets, seed=0, weights=None, **SCRATCH)


def test_nearness_leaves_pictures_and_the_generator_alone(dls):
    before, pictures = torch.get_rng_state(), dls.valid.pictures[:]
    nearness(dls)
    assert torch.get_rng_state().equal(before) and dls.valid.pictures[:].equal(pictures)


@pytest.mark.parametrize('errors, verdict', [
    ((.9, .8, .1), 'small rates'), ((.9, .3, .1), 'one rate'), ((.9, .46, .1), 'either'),
    ((.9, .95, .1), 'small rates'), # from scratch is worse than guessing
    ((.9, .5, .9), 'one rate'), ((.9, .9, .95), 'small rates')]) # the body knows nothing; nor do the pictures teach anything
def test_verdicts(errors, verdict):
    assert Nearness(*errors).verdict == verdict and 0 <= Nearness(*errors).ratio < 1e10


def test_guessing_is_the_class_that_occurs_most(dls):
    uneven = ImageLoaders(dls.train, replace(dls.valid, pictures=dls.valid.pictures.index_select(
        0, torch.arange(4)), labels=torch.tensor([3, 3, 3, 1]), files=None), dls.classes)
    assert nearness(uneven).guess == .25
