"Five recipes that differ in what the body does, and a measure of how near a task is."
import pytest
import torch

from conftest import same_bits, state
from finetune_teach.pictures import drawn_pets
from finetune_teach.pretrained_body import create_body
from finetune_teach.tools.learners import vision_learner
from finetune_teach.tools.recipes import RECIPES, Nearness, final_error, last_stage, nearness


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


@pytest.mark.parametrize('arch, part', [
    ('tiny_resnet', 'layer4.0.downsample.0'), ('drawn_resnet', 'layer4.0.downsample.0'),
    ('resnet18', 'layer4.0.downsample.0'), ('convnext_tiny', 'features.6.1'),
    ('densenet121', 'features.transition3.pool')])
def test_where_the_last_stage_begins(arch, part):
    assert last_stage(create_body(arch, None), torch.randn(2, 3, 64, 64)) == part


def test_a_network_without_stages_is_told_so():
    body = create_body('vit_b_16', None)
    with pytest.raises(ValueError, match='VisionTransformer has no stages that halve its maps.*layer='):
        last_stage(body, torch.randn(1, 3, 224, 224))


def test_a_given_part(dls):
    usual, given = nearness(dls, 'drawn_resnet'), nearness(dls, 'drawn_resnet', 'layer4')
    assert usual == given != nearness(dls, 'drawn_resnet', 'layer2')


def test_drawings_are_near_for_one_body_and_far_for_the_other():
    pets = drawn_pets(8, 20, size=48)
    near, far = (nearness(pets, arch) for arch in ('drawn_resnet', 'tiny_resnet'))
    assert near.verdict == 'near' and near.after < far.after and far.ratio > near.ratio


def test_verdicts():
    assert Nearness(.4, .2, 100).verdict == 'near' and Nearness(.2, .4, 100).verdict == 'far'
    assert Nearness(.4, .36, 100).verdict == 'between' and Nearness(0, 0, 9).ratio == 1


def test_measuring_leaves_no_hooks_and_no_trace(dls):
    body = create_body('drawn_resnet')
    before = state(body)
    last_stage(body, torch.randn(2, 3, 32, 32))
    assert same_bits(state(body), before) and not any(m._forward_hooks for m in body.modules())
