"Optimisers of one's own: every layer group has its rate, and weight decays stay as they were meant."
import math

import pytest
import torch
from torch import nn

from conftest import assert_unchanged, everything, same_bits, state
from finetune_teach.engine.optimizers import divide_groups, set_weight_decay
from finetune_teach.freezing import freeze, layer_groups
from finetune_teach.tools.lr_picker import pick_lr
from finetune_teach.training_loop import constant, create_optimizer, fit, make_optimizer, set_rates


def sgd(model, wd):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=wd)


def test_plain_groups_are_divided_by_layer_group(toy):
    optimizer = make_optimizer(toy, 0.05, sgd)
    groups = layer_groups(toy)
    assert [[id(p) for p in g['params']] for g in optimizer.param_groups] == [
        [id(p) for p in g.parameters()] for g in groups]
    set_rates(optimizer, [1e-4, 1e-3, 1e-2], [0.8, 0.85, 0.9])
    assert [(g['lr'], g['momentum'], g['weight_decay']) for g in optimizer.param_groups] == [
        (1e-4, 0.8, 0.05), (1e-3, 0.85, 0.05), (1e-2, 0.9, 0.05)]
    again = divide_groups(optimizer, [g.parameters() for g in groups])
    assert again is optimizer and len(again.param_groups) == 3


def test_the_course_s_own_optimiser_stays_as_it_is(toy):
    one, two = create_optimizer(toy, 0.3), make_optimizer(toy, 0.3)
    assert type(one) is type(two) and one.state_dict() == two.state_dict()


def test_the_head_learns_with_the_rate_of_the_head(make_learner):
    "Without layer groups, all of it would have learned with the lowest rate."
    own, step = make_learner(opt_func=sgd), make_learner(opt_func=lambda model, wd: torch.optim.SGD([
        {'params': group.parameters(), 'layer_group': i} for i, group in enumerate(layer_groups(model))],
        lr=0.1, momentum=0.9, weight_decay=wd))
    for learn in (own, step):
        learn.unfreeze()
        learn.fit(1, [1e-6, 1e-5, 0.1])
    assert same_bits(state(own.model), state(step.model))
    assert own.recorder.lrs[0] == (1e-6, 1e-5, 0.1)


def test_weight_decays_of_their_own_stay(toy):
    def mixed(model, wd):
        body, head = model.children()
        return torch.optim.SGD([{'params': body.parameters(), 'weight_decay': 0.0}, {'params': head.parameters()}],
                               lr=0.1, weight_decay=wd)
    optimizer = make_optimizer(toy, 0.01, mixed)
    assert set_weight_decay(optimizer, 0.2) == 0.2 and set_weight_decay(optimizer, None, 0.3) == 0.3
    assert {g['weight_decay'] for g in optimizer.param_groups} == {0.0, 0.3}


def test_a_weight_decay_that_nothing_would_follow(make_learner):
    learn = make_learner(opt_func=lambda model, wd: torch.optim.SGD(model.parameters(), 0.1, weight_decay=5e-4))
    learn.fit(1, 1e-3)
    assert {g['weight_decay'] for g in learn.optimizer.param_groups} == {5e-4}
    with pytest.raises(ValueError, match='wd=0.1'):
        learn.fit(1, 1e-3, wd=0.1)


OTHERS = [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop, torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adamax,
          torch.optim.Adadelta, torch.optim.ASGD]


@pytest.mark.parametrize('kind', OTHERS)
def test_optimisers_of_torch_train_and_come_back_from_files(make_learner, tmp_path, kind):
    def learner(**options):
        return make_learner(opt_func=lambda model, wd: kind(model.parameters(), weight_decay=wd, lr=1e-3), **options)
    whole, first, second = learner(), learner(), learner()
    whole.fine_tune(1, 1e-3)
    whole.fit(1, 1e-3)
    first.fine_tune(1, 1e-3)
    first.save(tmp_path / 'a')
    second.unfreeze()
    second.load(tmp_path / 'a')
    second.recorder = first.recorder
    second.fit(1, 1e-3)
    assert all(math.isfinite(v) for v in whole.recorder.losses) and len(set(whole.recorder.losses)) > 3
    assert same_bits(state(whole.model), state(second.model))


def test_finder_and_previews_use_it(make_learner):
    asked = []
    def noting(model, wd):
        asked.append(wd)
        return sgd(model, wd)
    learn = make_learner(opt_func=noting, wd=0.02)
    before = everything(learn.model, learn.optimizer)
    learn.lr_find(num_it=8)
    assert asked == [0.02, 0.02]
    picker = pick_lr(learn, epochs=1, num_it=8)
    assert isinstance(picker.trainer.optimizer, torch.optim.SGD) and asked == [0.02] * 3
    assert picker.previews and not picker.previews[0].problem
    pick_lr(learn.model, learn.dls, epochs=1, num_it=8, opt_func=noting, wd=0.5)
    assert asked[3:] == [0.5, 0.5]
    assert_unchanged(before, everything(learn.model, learn.optimizer))


def test_another_optimiser_is_another_training(make_learner, tmp_path):
    make_learner(opt_func=sgd, checkpoint=tmp_path / 'a').fit(1, 1e-3)
    with pytest.raises(ValueError, match='optimizer was SGD, now it is the default'):
        make_learner(checkpoint=tmp_path / 'a').fit(1, 1e-3)
    make_learner(opt_func=sgd, checkpoint=tmp_path / 'a').fit(1, 1e-3)


@pytest.mark.parametrize('opt_func, told', [
    (lambda model, wd: None, 'opt_func gave None'),
    (lambda model, wd: torch.optim.LBFGS(model.parameters()), 'LBFGS.*closure'),
    (lambda model, wd: torch.optim.Adagrad(model.parameters()), 'Adagrad'),
    (lambda model, wd: torch.optim.SGD(model[1].parameters(), 0.1), 'parameters of the model learn')])
def test_what_the_loop_cannot_drive_is_refused_before_training(make_learner, opt_func, told):
    with pytest.raises(ValueError, match=told):
        make_learner(opt_func=opt_func)


def test_an_optimiser_of_what_learns_is_enough(toy, batches):
    freeze(toy)
    optimizer = torch.optim.SGD([p for p in toy.parameters() if p.requires_grad], 0.1)
    fit(toy, batches, 1, constant(3, 0.1), optimizer, show=False)
    toy.requires_grad_(True)
    with pytest.raises(ValueError, match='4 parameters.*SGD'):
        fit(toy, batches, 1, constant(3, 0.1), optimizer, show=False)
