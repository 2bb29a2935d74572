"Five recipes that differ in what the body does, and a measure of how near a task is."
import pytest
import torch

from conftest import same_bits, state
from finetune_teach.pictures import drawn_pets
from finetune_teach.tools.learners import vision_learner
from finetune_teach.tools.recipes import RECIPES, final_error


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
