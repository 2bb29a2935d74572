"Schedules as fastai's, the optimiser, the training loop and what it writes down."
import copy
import math
import random
import re
import signal
import subprocess
import sys
import warnings
from collections import namedtuple
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conftest import changed, same_bits, small_network, state
from finetune_teach.engine.guards import NotFinite
from finetune_teach.engine.history import Recorder, plot_schedule, predicted_labels, smooth
from finetune_teach.engine.metrics import NOT_METRICS
from finetune_teach.freezing import freeze, freeze_to, layer_groups, unfreeze
from finetune_teach.one_cycle import cosine, one_cycle, spread_lrs
from finetune_teach.pictures import drawn_pets
from finetune_teach.pretrained_body import create_body
from finetune_teach.random_head import create_head
from finetune_teach.training_loop import (
    accuracy, constant, create_optimizer, error_rate, fit, fit_steps, set_rates, set_weight_decay,
    validate)

Batches = namedtuple('Batches', 'train valid')  # any loaders will do, lists of (x, y) too


@pytest.fixture
def toy():
    "Three layer groups, the middle one is a norm layer."
    torch.manual_seed(0)
    return nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU()), nn.Linear(8, 3))


@pytest.fixture
def batches():
    "Three training batches of five vectors and one validation batch."
    generator = torch.Generator().manual_seed(0)
    def batch(n):
        x = torch.randn(n, 4, generator=generator)
        return x, x[:, :3].argmax(1)
    return Batches([batch(5), batch(5), batch(5)], [batch(7)])


def train(model, batches, epochs=1, lr=0.01, **options):
    return fit(model, batches, epochs, constant(epochs * len(batches.train), [lr] * 3), show=False, **options)


# Schedules. The numbers are what fastai 2.8.12 printed, with 10 batches an epoch and three groups.

def test_fit_one_cycle_3_epochs_as_in_fastai():
    schedule = one_cycle(30, 3e-3)
    lrs, moms = [lr for lr, in schedule.lrs], [mom for mom, in schedule.moms]
    assert len(lrs) == len(moms) == 30
    assert lrs[0] == pytest.approx(1.2e-4, rel=1e-12) and moms[0] == 0.95
    fastais = {0: 0.00012, 1: 0.0002444945537900165, 5: 0.002280000077839823, 7: 0.0029685325487941706,
               8: 0.002996346105629279, 9: 0.002967221710880735, 15: 0.0022500074594588295,
               17: 0.001862894193373963, 29: 1.4627788261927215e-05}
    assert {i: lrs[i] for i in fastais} == pytest.approx(fastais, rel=1e-5)
    assert lrs[29] == pytest.approx(1.4627788261927215e-05, rel=1e-6)
    fastais = {1: 0.9456772724378466, 5: 0.8749999972972283, 8: 0.850121797697001, 16: 0.881269675730667,
               29: 0.9495134021919577}
    assert {i: moms[i] for i in fastais} == pytest.approx(fastais, rel=1e-6)


def test_discriminative_rates_12_epochs_as_in_fastai():
    lrs = one_cycle(120, spread_lrs(slice(1e-6, 1e-4), 3)).lrs
    assert lrs[0] == pytest.approx((4e-8, 4e-7, 4e-6), rel=1e-9)
    assert lrs[10] == pytest.approx((2.8e-7, 2.8e-6, 2.8e-5), rel=1e-6)
    assert lrs[15] == pytest.approx((5.2e-7, 5.2e-6, 5.2e-5), rel=1e-6)
    assert lrs[119] == pytest.approx((3.1458177e-10, 3.1458177e-9, 3.1458177e-8), rel=1e-4)


@pytest.mark.parametrize('options', [
    {}, {'pct_start': 0.3, 'div': 5.0}, {'pct_start': 0.5, 'div': 10.0, 'div_final': 1e3},
    {'moms': (0.9, 0.8, 0.9)}])
@pytest.mark.parametrize('steps', [30, 77])
def test_agrees_with_torch(steps, options):
    "torch counts the steps from 0 to total_steps - 1, we (and fastai) from 0 to steps."
    settings = {'pct_start': 0.25, 'div': 25.0, 'div_final': 1e5, 'moms': (0.95, 0.85, 0.95), **options}
    pct_start, div, div_final, moms = settings.values()
    optimizer = torch.optim.AdamW([{'params': [nn.Parameter(torch.zeros(1))]} for _ in range(2)])
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [1e-3, 5e-2], total_steps=steps + 1, pct_start=(pct_start * steps + 1) / (steps + 1),
        div_factor=div, final_div_factor=div_final / div, base_momentum=moms[1], max_momentum=moms[0])
    ours = one_cycle(steps, [1e-3, 5e-2], **options)
    for lrs, momenta in zip(ours.lrs, ours.moms, strict=True):
        groups = optimizer.param_groups
        assert lrs == pytest.approx([g['lr'] for g in groups], rel=1e-5, abs=1e-9)
        assert momenta == pytest.approx([g['betas'][0] for g in groups], rel=1e-6)
        optimizer.step()
        scheduler.step()


def test_the_peak_is_reached_in_the_middle_and_the_end_never():
    lrs = [lr for lr, in one_cycle(40, 1.0, pct_start=0.25).lrs]
    assert max(lrs) == lrs[10] == 1.0
    assert lrs[:11] == sorted(lrs[:11]) and lrs[10:] == sorted(lrs[10:], reverse=True)
    assert lrs[-1] > 1e-5


def test_one_step_and_a_rate_that_only_rises():
    assert one_cycle(1, 1.0).lrs == [(pytest.approx(1 / 25),)]
    lrs = [lr for lr, in one_cycle(92, 1.0, pct_start=0.99).lrs] # one frozen epoch of the lesson's pets
    assert lrs == sorted(lrs) and lrs[-1] > 0.999


def test_cosine_and_constant():
    assert [cosine(1, 3, s) for s in (0, 0.5, 1)] == pytest.approx([1, 2, 3])
    assert constant(2, 1e-3).lrs == [(1e-3,), (1e-3,)]
    assert constant(2, [1e-4, 1e-3]) == ([(1e-4, 1e-3)] * 2, [(0.9, 0.9)] * 2)


# One rate for each layer group

@pytest.mark.parametrize('lr, n_groups, expected', [
    (1e-3, 3, [1e-3, 1e-3, 1e-3]),
    (1, 2, [1, 1]),
    (slice(1e-3), 3, [1e-4, 1e-4, 1e-3]),
    (slice(1e-3), 1, [1e-3]),
    (slice(1e-6, 1e-4), 3, [1e-6, 1e-5, 1e-4]),
    (slice(1e-6, 1e-4), 2, [1e-6, 1e-4]),
    (slice(1e-6, 1e-4), 1, [1e-4]),
    (slice(1e-6, 1e-3), 4, [1e-6, 1e-5, 1e-4, 1e-3]),
    ([1e-5, 1e-4, 1e-3], 3, [1e-5, 1e-4, 1e-3]),
    ((1e-5, 1e-3), 2, [1e-5, 1e-3]),
    (np.array([1e-5, 1e-3]), 2, [1e-5, 1e-3]),
    (torch.tensor([0.25, 0.5]), 2, [0.25, 0.5]),
    (np.float32(0.25), 2, [0.25, 0.25]),
    (np.float64(0.25), 2, [0.25, 0.25]),
])
def test_rates_are_spread(lr, n_groups, expected):
    assert spread_lrs(lr, n_groups) == pytest.approx(expected, rel=1e-12)


NAN, INF = float('nan'), float('inf')

@pytest.mark.parametrize('lr', [
    -1e-3, 0, 0.0, NAN, INF, -INF, slice(-1e-3), slice(NAN), slice(1e-5, INF), slice(-1e-5, 1e-3),
    slice(1e-5, None), slice(None), slice(0, 1e-3), slice(0.0, 1e-3), slice('a', 'b'),
    [1e-3, 0, 1e-3], [1e-3, -1, 1e-3], [1e-3, NAN, 1e-3], [1e-3, 1e-3], [1e-3] * 4, [],
    np.array([1e-3] * 2), '0.001', '123', 'fast', None,
    ['1e-3', '1e-3', 'x'], {}], ids=repr)
def test_bad_rates(lr):
    with pytest.raises(ValueError, match='rate') as error:
        spread_lrs(lr, 3)
    assert str(error.value).count('group') or 'positive' in str(error.value), 'what is wanted'


def test_a_wrong_number_of_rates_says_both_numbers():
    with pytest.raises(ValueError, match='2 learning rates for 3 layer groups'):
        spread_lrs([1e-3, 1e-3], 3)


# The optimiser

def test_all_parameters_are_in_it_also_frozen_ones(toy):
    grouped = [id(p) for g in create_optimizer(freeze(toy)).param_groups for p in g['params']]
    assert sorted(grouped) == sorted(id(p) for p in toy.parameters())


def test_defaults_are_fastais(toy):
    optimizer = create_optimizer(toy)
    assert isinstance(optimizer, torch.optim.AdamW)
    for group in optimizer.param_groups:
        assert group['betas'] == (0.9, 0.99) and group['eps'] == 1e-5
        assert not group['amsgrad'] and not group['maximize']


def test_norm_layers_and_biases_do_not_decay():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GroupNorm(2, 4)),
                          nn.Sequential(nn.Flatten(), nn.LayerNorm(4), nn.Linear(4, 2)))
    optimizer = create_optimizer(model, wd=0.3)
    decayed = {id(p) for g in optimizer.param_groups if g['weight_decay'] for p in g['params']}
    assert decayed == {id(model[0][0].weight), id(model[1][2].weight)}
    assert {g['weight_decay'] for g in optimizer.param_groups} == {0, 0.3}
    set_weight_decay(optimizer, 0.1)
    assert {g['weight_decay'] for g in optimizer.param_groups} == {0, 0.1}


def test_rates_reach_their_groups(toy):
    optimizer = create_optimizer(toy)
    set_rates(optimizer, [1e-5, 1e-4, 1e-3], [0.91, 0.92, 0.93])
    of = {id(p): (g['lr'], g['betas']) for g in optimizer.param_groups for p in g['params']}
    for i, group in enumerate(layer_groups(toy)):
        for p in group.parameters():
            assert of[id(p)] == ([1e-5, 1e-4, 1e-3][i], ([0.91, 0.92, 0.93][i], 0.99))


def test_two_steps_equal_adamw_by_hand():
    "Decay, averages of gradient and square, both corrected for their start at 0; on one weight."
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(2.0)
    first, second = [(torch.tensor([[x]]), torch.tensor([y])) for x, y in [(1.0, 0.0), (3.0, 1.0)]]
    dls = Batches([first, second], [first])
    lrs, moms, wd = [0.1, 0.2], [0.95, 0.85], 0.5
    fit(model, dls, 1, ([(lr,) for lr in lrs], [(mom,) for mom in moms]), create_optimizer(model, wd),
        loss_func=lambda logits, y: (y * logits[:, 0] + logits[:, 0] ** 2).mean(), metrics=[], show=False)

    w, average, square = 2.0, 0.0, 0.0
    for i, (x, y) in enumerate([(1, 0), (3, 1)]):
        gradient = y * x + 2 * w * x * x
        average = moms[i] * average + (1 - moms[i]) * gradient
        square = 0.99 * square + 0.01 * gradient ** 2
        w *= 1 - lrs[i] * wd
        corrected = math.sqrt(square / (1 - 0.99 ** (i + 1)))
        w -= lrs[i] * average / (1 - moms[i] ** (i + 1)) / (corrected + 1e-5)
    assert model.weight.item() == pytest.approx(w, rel=1e-6)


def test_each_group_moves_by_its_own_rate(toy, batches):
    "Adam's first step is as long as the rate, wherever the gradient is large enough."
    before = state(toy)
    fit(toy, Batches(batches.train[:1], batches.valid), 1, constant(1, [1e-5, 1e-4, 1e-3]),
        create_optimizer(toy, wd=0), show=False)
    after = state(toy)
    for name, lr in [('0.0.weight', 1e-5), ('0.1.bias', 1e-4), ('1.weight', 1e-3)]:
        assert (after[name] - before[name]).abs().max().item() == pytest.approx(lr, rel=0.02), name


# Metrics and validation

def test_accuracy_and_error_rate():
    logits = torch.tensor([[0.1, 0.9], [2.0, 1.0], [0.0, 3.0], [1.0, 0.0]])
    targets = torch.tensor([1, 0, 0, 1])
    assert accuracy(logits, targets) == 0.5 and error_rate(logits, targets) == 0.5
    assert accuracy(logits[:3], targets[:3]) == pytest.approx(2 / 3)


def test_validation_counts_pictures_not_batches():
    logits = torch.tensor([[5.0, 0.0]] * 3 + [[0.0, 5.0]])
    loader = [(logits[:3], torch.zeros(3, dtype=torch.long)), (logits[3:], torch.zeros(1, dtype=torch.long))]
    loss, error = validate(nn.Identity(), loader)
    assert error == 0.25
    wrong, right = math.log(1 + math.exp(5)), math.log(1 + math.exp(-5))
    assert loss == pytest.approx((3 * right + wrong) / 4, rel=1e-6)


class Largest:
    "A metric that is an object, and gives a tensor."
    def __call__(self, logits, targets):
        return logits.max()


def top(logits, targets, k):
    return (logits.topk(k).indices == targets[:, None]).any(1).float().mean()


def test_any_callable_is_a_metric(toy, batches):
    metrics = [accuracy, Largest(), partial(top, k=3), lambda logits, targets: np.float64(2),
               nn.CrossEntropyLoss()]
    recorder = train(toy, batches, 2, metrics=metrics)
    for row in recorder.history:
        values = [v for name, v in row.items() if name not in NOT_METRICS]
        assert len(values) == 5 and all(type(v) is float for v in values)
        assert row['accuracy'] == values[0] and values[2] == 1.0 and values[3] == 2.0
        assert values[4] == pytest.approx(row['valid_loss'])
    assert {'accuracy', 'Largest', 'CrossEntropyLoss'} <= set(recorder.history[0])


def test_metrics_of_the_same_name_are_all_kept(toy, batches, capsys):
    metrics = [partial(top, k=1), partial(top, k=3), lambda s, t: 5.0, lambda s, t: 6.0]
    recorder = fit(toy, batches, 1, constant(3, [0.01] * 3), metrics=metrics)
    values = [v for name, v in recorder.history[0].items() if name not in NOT_METRICS]
    assert len(values) == 4 and values[1:] == [1.0, 5.0, 6.0]
    header, row = capsys.readouterr().out.splitlines()
    assert len(header.split()) == len(row.split()) == 8


def test_a_metric_that_fails_is_named(toy, batches):
    def my_metric(logits, targets):
        return logits.no_such_thing
    recorder = Recorder()
    with pytest.raises(ValueError, match='my_metric.*no_such_thing'):
        train(toy, batches, metrics=[accuracy, my_metric], recorder=recorder)
    check_consistent(recorder)
    assert len(recorder.losses) == 3 and recorder.history == []
    train(toy, batches, metrics=[accuracy], recorder=recorder)
    check_consistent(recorder)
    assert len(recorder.losses) == 6 and len(recorder.history) == 1


def test_a_metric_that_gives_no_number(toy, batches):
    with pytest.raises(ValueError, match='both'):
        train(toy, batches, metrics=[lambda logits, targets: 'both'])


# The loop and what it writes down

def check_consistent(recorder):
    steps = len(recorder.losses)
    assert len(recorder.lrs) == len(recorder.moms) == len(recorder.positions) == steps
    assert recorder.positions == sorted(set(recorder.positions)), 'time only goes forward'
    for row in recorder.history:
        assert row['position'] in recorder.positions
    rows = [row['position'] for row in recorder.history]
    assert rows == sorted(set(rows))
    assert [p.start for p in recorder.phases] == sorted(p.start for p in recorder.phases)


def test_recorder_of_three_phases(toy, batches):
    recorder, optimizer = Recorder(), create_optimizer(toy)
    for prepare, lr in [(freeze, 0.1), (freeze, 0.2), (unfreeze, 0.3), (lambda m: freeze_to(m, 1), 0.4)]:
        schedule = constant(6, [lr, 2 * lr, 3 * lr], mom=0.7)
        fit(prepare(toy), batches, 2, schedule, optimizer, recorder=recorder, show=False)
    check_consistent(recorder)
    assert recorder.positions == pytest.approx([i / 3 for i in range(1, 25)])
    assert [(p.name, p.start) for p in recorder.phases] == [('frozen', 0), ('unfrozen', pytest.approx(4)),
                                                            ('from group 1', pytest.approx(6))]
    assert recorder.lrs == [(lr, 2 * lr, 3 * lr) for lr in (0.1, 0.2, 0.3, 0.4) for _ in range(6)]
    assert recorder.moms == [(0.7, 0.7, 0.7)] * 24
    assert recorder.group_names == [g.name for g in layer_groups(toy)]
    keys = {'phase', 'epoch', 'position', 'train_loss', 'valid_loss', 'error_rate', 'time'}
    assert all(set(row) == keys for row in recorder.history)
    assert [row['epoch'] for row in recorder.history] == [0, 1] * 4
    phases = [row['phase'] for row in recorder.history]
    assert phases == ['frozen'] * 4 + ['unfrozen'] * 2 + ['from group 1'] * 2
    assert [row['position'] for row in recorder.history] == pytest.approx(list(range(1, 9)))


def test_history_holds_what_validation_gives(toy, batches):
    row = train(toy, batches, 3).history[-1]
    assert [row['valid_loss'], row['error_rate']] == validate(toy, batches.valid)


def test_each_epoch_trains_in_training_mode_and_validates_in_evaluation_mode(toy, batches):
    seen = []
    def loss_func(logits, targets):
        seen.append((logits.requires_grad, toy.training, toy[0][1].training))
        return F.cross_entropy(logits, targets)
    train(toy.eval(), batches, 2, loss_func=loss_func)
    assert seen == ([(True, True, True)] * 3 + [(False, False, False)]) * 2


def test_learning_happens(toy, batches):
    losses = [row['train_loss'] for row in train(toy, batches, 30).history]
    assert losses[-1] < 0.5 * losses[0]


def test_train_loss_weights_each_picture_alike(toy):
    torch.manual_seed(0)
    batches = Batches([(torch.randn(n, 4), torch.randint(3, (n,))) for n in (6, 2, 4)],
                      [(torch.randn(3, 4), torch.tensor([0, 1, 2]))])
    recorder = train(toy, batches)
    a, b, c = recorder.losses
    assert recorder.history[0]['train_loss'] == pytest.approx((6 * a + 2 * b + 4 * c) / 12, rel=1e-6)
    assert recorder.history[0]['train_loss'] != pytest.approx((a + b + c) / 3, rel=1e-6)


def test_fewer_pictures_than_a_batch_still_train():
    dls = drawn_pets(n_train=1, n_valid=1, size=32, cats_vs_dogs=True, batch_size=500)
    torch.manual_seed(0)
    model = freeze(nn.Sequential(create_body(small_network()), create_head(8, 2)))
    before = state(model[1])
    recorder = train(model, dls, 2)
    assert len(recorder.losses) == 2 and changed(before, state(model[1]))


def test_the_table_in_a_terminal(toy, batches, capsys):
    recorder = fit(toy, batches, 3, constant(9, [0.01] * 3), metrics=[error_rate, accuracy])
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ['epoch', 'train_loss', 'valid_loss', 'error_rate', 'accuracy', 'time']
    assert len(rows) == 3
    for i, (line, row) in enumerate(zip(rows, recorder.history)):
        expected = [f'{row[name]:.6f}' for name in header.split()[1:-1]]
        assert line.split() == [str(i), *expected, '00:00']
    train(toy, batches)
    assert capsys.readouterr().out == '', 'show=False'


def test_gradients_left_over_do_not_count(toy, batches):
    "For instance those of a step that Ctrl-C cut off."
    twin = nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU()), nn.Linear(8, 3))
    twin.load_state_dict(toy.state_dict())
    for p in toy.parameters():
        p.grad = torch.full_like(p, 1e3)
    train(toy, batches), train(twin, batches)
    assert same_bits(state(toy), state(twin))


# Bad input

def test_a_schedule_that_does_not_fit(toy, batches):
    before = state(toy)
    with pytest.raises(ValueError, match='step'):
        fit(toy, batches, 2, constant(3, [0.01] * 3), show=False)  # one epoch's steps for two
    with pytest.raises(ValueError, match='group'):
        fit(toy, batches, 1, constant(3, [0.01] * 2), show=False)  # two rates for three groups
    assert same_bits(before, state(toy)), 'said before any training'


def test_loaders_without_batches(toy, batches):
    for empty in (Batches([], batches.valid), Batches(batches.train, [])):
        with pytest.raises(ValueError, match='batch|picture'):
            fit(toy, empty, 1, constant(3, [0.01] * 3), show=False)


# Losses that are no numbers

@pytest.mark.parametrize('bad', [NAN, INF])
def test_a_nan_loss_stops_before_the_step(toy, batches, bad):
    "State as after two good batches: that is what training on these alone gives."
    twin = nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU()), nn.Linear(8, 3))
    twin.load_state_dict(toy.state_dict())
    train(twin, Batches(batches.train[:2], batches.valid))
    x, y = batches.train[2]
    broken = Batches([*batches.train[:2], (x * bad, y)], batches.valid)
    recorder, optimizer = Recorder(), create_optimizer(toy)
    with pytest.raises(ValueError, match='step 3 of epoch 0') as error:
        train(toy, broken, recorder=recorder, optimizer=optimizer)
    assert '0.01' in str(error.value) and 'loss' in str(error.value)
    assert same_bits(state(toy), state(twin)), 'weights and statistics as before that step'
    check_consistent(recorder)
    assert len(recorder.losses) == 2 and all(map(math.isfinite, recorder.losses))
    train(toy, batches, recorder=recorder, optimizer=optimizer)
    check_consistent(recorder)
    assert all(t.isfinite().all() for t in toy.state_dict().values())


def test_a_gradient_that_is_no_number(toy, batches):
    before = state(toy)
    def root_at_zero(logits, targets): # 0, but its slope is infinite
        return F.cross_entropy(logits, targets) + (logits * 0).abs().sum().sqrt()
    with pytest.raises(ValueError, match='gradient.*step 1 of epoch 0'):
        train(toy, batches, loss_func=root_at_zero)
    assert same_bits(before, state(toy))


# Ctrl-C

class Stopping:
    "A loss or metric that is interrupted in its nth call."
    def __init__(self, function, n):
        self.function, self.n, self.__name__ = function, n, function.__name__

    def __call__(self, *args):
        self.n -= 1
        if self.n == 0:
            raise KeyboardInterrupt
        return self.function(*args)


class StoppingLoader(list):
    def __iter__(self):
        yield self[0]
        raise KeyboardInterrupt


@pytest.mark.parametrize('where, steps, rows', [('loss', 4, 1), ('metric', 6, 1), ('training loader', 1, 0),
                                                ('validation loader', 3, 0)])
def test_ctrl_c_leaves_all_in_order(toy, batches, where, steps, rows):
    recorder, optimizer = Recorder(), create_optimizer(toy)
    loss, metric, dls = F.cross_entropy, error_rate, batches
    if where == 'loss':
        loss = Stopping(F.cross_entropy, 6)  # 3 batches, 1 validation, 1 batch, and then
    elif where == 'metric':
        metric = Stopping(error_rate, 2)
    elif where == 'training loader':
        dls = batches._replace(train=StoppingLoader(batches.train))
    else:
        dls = batches._replace(valid=StoppingLoader(batches.valid))
    seed_before = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        fit(toy, dls, 3, constant(9, [0.01] * 3), optimizer, loss, [metric], recorder, seed=3, show=False)
    check_consistent(recorder)
    assert torch.equal(torch.get_rng_state(), seed_before)
    assert len(recorder.losses) == steps and len(recorder.history) == rows
    fit(toy, batches, 2, constant(6, [0.01] * 3), optimizer, recorder=recorder, seed=3, show=False)
    check_consistent(recorder)
    assert len(recorder.losses) == steps + 6 and len(recorder.history) == rows + 2
    assert all(t.isfinite().all() for t in toy.state_dict().values())


def test_ctrl_c_amid_a_gradient(toy, batches):
    "What was computed of it must not leak into the next step."
    def stop(gradient):
        raise KeyboardInterrupt
    twin = nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU()), nn.Linear(8, 3))
    hook = toy[0][0].weight.register_hook(stop)  # the first layer's gradient comes last
    with pytest.raises(KeyboardInterrupt):
        train(toy, batches)
    hook.remove()
    twin.load_state_dict(toy.state_dict())
    train(toy, batches), train(twin, batches)
    assert same_bits(state(toy), state(twin))


# Repeatable

def picture_model(unfrozen):
    torch.manual_seed(0)
    model = nn.Sequential(create_body(small_network()), create_head(8, 12, hidden=(8,)))
    return unfreeze(model) if unfrozen else freeze(model)


@pytest.mark.parametrize('unfrozen', [True, False])
def test_a_seed_repeats_a_run_to_the_bit(pets, unfrozen):
    runs = []
    for seed in (7, 7, 8):
        model = picture_model(unfrozen)
        torch.manual_seed(len(runs))  # must not matter
        runs.append((train(model, pets, 2, seed=seed), state(model)))
    (one, model_one), (two, model_two), (three, _) = runs
    assert one.losses == two.losses and same_bits(model_one, model_two)
    assert one.losses != three.losses


def test_a_seed_does_not_touch_the_global_generators(pets):
    model = picture_model(True)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    train(model, pets, seed=7)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


def test_without_a_seed_the_global_generator_decides(pets):
    runs = []
    for seed in (7, 7, 8):
        model = picture_model(True)
        torch.manual_seed(seed)
        runs.append(train(model, pets).losses)
    assert runs[0] == runs[1] != runs[2]


def test_seeded_epochs_differ_from_each_other(toy):
    "Also those of a second call: else every epoch would have the same order and the same flips."
    seen = []
    class Noise:
        def __len__(self): return 1
        def __iter__(self):
            seen.append(torch.rand(1).item())
            yield torch.randn(4, 4), torch.tensor([0, 1, 2, 0])
    dls, recorder = Batches(Noise(), [(torch.randn(3, 4), torch.tensor([0, 1, 2]))]), Recorder()
    train(toy, dls, 2, seed=1, recorder=recorder)
    train(toy, dls, 2, seed=1, recorder=recorder)
    assert len(set(seen)) == 4


# Pictures of all this

def test_smoothing():
    assert smooth([3.0, 3.0, 3.0]) == pytest.approx([3, 3, 3])
    assert smooth([1.0, 2.0], beta=0.5) == pytest.approx([1, (0.5 * 1 + 1 * 2) / 1.5])
    assert smooth([]) == []


def test_plot_loss(toy, batches):
    recorder = train(freeze(toy), batches, 2)
    train(unfreeze(toy), batches, 3, recorder=recorder)
    ax = recorder.plot_loss()
    lines = {line.get_label(): line for line in ax.get_lines()}
    assert list(lines['training'].get_xdata()) == recorder.positions
    assert list(lines['validation'].get_xdata()) == pytest.approx([1, 2, 3, 4, 5])
    assert list(lines['validation'].get_ydata()) == [row['valid_loss'] for row in recorder.history]
    assert any(list(line.get_ydata()) == recorder.losses for line in ax.get_lines()), 'the raw losses too'
    marks = [line.get_xdata()[0] for line in ax.get_lines() if list(line.get_ydata()) == [0, 1]]
    assert marks == pytest.approx([0, 2])
    assert {text.get_text().strip() for text in ax.texts} == {'frozen', 'unfrozen'}


def test_plot_metrics(toy, batches):
    recorder = train(toy, batches, 3, metrics=[error_rate, accuracy])
    lines = {line.get_label(): line for line in recorder.plot_metrics().get_lines()}
    for name in ('error_rate', 'accuracy'):
        assert list(lines[name].get_ydata()) == [row[name] for row in recorder.history]
    assert 'valid_loss' not in lines and 'time' not in lines


def test_plot_into_axes_that_are_there(toy, batches):
    import matplotlib.pyplot as plt
    recorder, (_, (first, second)) = train(toy, batches), plt.subplots(1, 2)
    assert recorder.plot_loss(first) is first and recorder.plot_metrics(second) is second


def test_plot_schedule_shows_every_group(toy, batches):
    recorder = Recorder()
    fit(toy, batches, 2, one_cycle(6, [1e-4, 1e-3, 1e-2]), recorder=recorder, show=False)
    rates, momenta = recorder.plot_schedule()
    assert [line.get_label() for line in rates.get_lines()] == recorder.group_names
    for i, (rate, momentum) in enumerate(zip(rates.get_lines(), momenta.get_lines(), strict=True)):
        assert list(rate.get_xdata()) == recorder.positions
        assert list(rate.get_ydata()) == [lrs[i] for lrs in recorder.lrs]
        assert list(momentum.get_ydata()) == [moms[i] for moms in recorder.moms]
    assert rates.get_yscale() == 'log', 'else the small rates could not be seen'


def test_plot_schedule_before_training():
    schedule = one_cycle(30, [1e-4, 1e-2])
    rates, _ = Recorder(group_names=['body', 'head']).plot_schedule(schedule)
    assert [line.get_label() for line in rates.get_lines()] == ['body', 'head']
    assert list(rates.get_lines()[1].get_ydata()) == [lrs[1] for lrs in schedule.lrs]
    assert len(plot_schedule(one_cycle(30, 1e-3))[0].get_lines()) == 1


def test_plot_schedule_without_any_steps():
    with pytest.raises(ValueError, match='schedule'):
        Recorder().plot_schedule()


# Steps, answers, and the schedule of fine_tune

def test_steps_are_given_one_by_one(pets):
    def model():
        torch.manual_seed(0)
        return nn.Sequential(create_body(small_network()), create_head(8, 12, hidden=(8,)))
    schedule = one_cycle(2 * len(pets.train), 1e-2)
    wanted = fit(model(), pets, 2, schedule, seed=0, show=False)
    seen = [len(r.losses) for r in fit_steps(model(), pets, 2, schedule, seed=0, show=False)]
    assert seen == list(range(1, 2 * len(pets.train) + 1))
    recorder = Recorder()
    for _ in fit_steps(model(), pets, 2, schedule, recorder=recorder, seed=0, show=False):
        pass
    assert recorder.losses == wanted.losses


def test_answers_of_each_epoch_are_kept(pets, make_learner):
    learn = make_learner()
    learn.fit_one_cycle(2, 1e-2)
    recorder = learn.recorder
    assert len(recorder.answers) == len(recorder.history) == 2
    for answers, row in zip(recorder.answers, recorder.history):
        wrong = (answers.predicted != answers.actual).float().mean().item()
        assert wrong == pytest.approx(row['error_rate'])
        assert answers.actual.equal(pets.valid.labels)
        assert 1 / 12 <= answers.confidence.min() and answers.confidence.max() <= 1
    with torch.no_grad():
        logits = torch.cat([learn.model.eval()(x) for x, _ in pets.valid])
    assert recorder.answers[-1].confidence.tolist() == pytest.approx(logits.softmax(1).amax(1).tolist(), rel=1e-4)


def test_scores_that_are_no_classes_have_no_answers():
    assert predicted_labels(torch.zeros(4, 1, 2), torch.zeros(4, dtype=torch.long)) is None
    assert predicted_labels(torch.zeros(4, 2), torch.zeros(4, 2)) is None
    assert predicted_labels(torch.zeros(4, 2), torch.zeros(4)) is None


# What goes wrong amid a step

def toy_twin():
    return nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU()), nn.Linear(8, 3))


class Failing:
    "A loss, metric or callback that raises an error in its nth call."
    def __init__(self, function, n, error):
        self.function, self.left, self.error, self.__name__ = function, n, error, 'failing'

    def __call__(self, *args):
        self.left -= 1
        if self.left == 0:
            raise self.error
        return self.function(*args)


class FailingLoader(list):
    def __iter__(self):
        yield from self[:2]
        raise OSError('the disk was pulled out')


@pytest.mark.parametrize('where, steps', [('loss', 2), ('metric', 3), ('callback', 3), ('training loader', 2),
                                          ('validation loader', 3), ('backward', 2)])
def test_an_error_leaves_the_model_as_after_the_last_whole_step(toy, batches, where, steps):
    twin, dls, error = toy_twin(), batches, RuntimeError('on purpose')
    twin.load_state_dict(toy.state_dict())
    options = dict(optimizer=create_optimizer(toy), recorder=Recorder(), show=False)
    if where == 'loss':
        options['loss_func'] = Failing(F.cross_entropy, 3, error)
    elif where == 'metric':
        options['metrics'] = [Failing(error_rate, 1, error)]
    elif where == 'callback':
        options['callbacks'] = [Failing(lambda *args: None, 1, error)]
    elif where == 'training loader':
        dls = batches._replace(train=FailingLoader(batches.train))
    elif where == 'validation loader':
        dls = batches._replace(valid=FailingLoader(batches.valid))
    else:
        class Broken(torch.autograd.Function):
            forward = staticmethod(lambda ctx, x: x.view_as(x))
            backward = staticmethod(Failing(lambda ctx, g: g, 3, error))
        toy[0][0].register_forward_hook(lambda module, inputs, output: Broken.apply(output))
    with pytest.raises((RuntimeError, ValueError, OSError)):
        fit(toy, dls, 2, constant(6, [0.01] * 3), **options)
    assert len(options['recorder'].steps) == steps
    check_consistent(options['recorder'])
    optimizer = create_optimizer(twin)
    for x, y in batches.train[:steps]:
        set_rates(optimizer, [0.01] * 3, [0.9] * 3)
        twin.train()
        optimizer.zero_grad()
        F.cross_entropy(twin(x), y).backward()
        optimizer.step()
    assert same_bits(state(toy), state(twin)), 'weights and statistics'
    memory, other = (o.state_dict()['state'] for o in (options['optimizer'], optimizer))
    assert all(memory[i][k].equal(other[i][k]) for i in other for k in other[i])


def killed_worker(x):
    import os, signal
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(sys.platform != 'linux', reason='kills')
def test_a_loading_process_that_is_killed(toy, batches):
    "Training on after it is possible."
    from torch.utils.data import DataLoader, TensorDataset
    x, y = (torch.cat(part) for part in zip(*batches.train))
    bad = DataLoader(TensorDataset(x, y), batch_size=8, num_workers=1, collate_fn=killed_worker)
    before = state(toy)
    with pytest.raises(RuntimeError, match='worker.*(killed|exited)'):
        fit(toy, batches._replace(train=bad), 1, constant(len(bad), 0.01), show=False)
    assert same_bits(before, state(toy))
    train(toy, batches)


def test_a_bad_batch_names_its_pictures(pets, make_learner):
    learn = make_learner(copy.copy(pets))
    for name in ('train', 'valid'): # as if they had come from files
        loader = copy.copy(getattr(learn.dls, name))
        loader.files = [f'{name}/{i}.jpg' for i in range(len(loader.labels))]
        setattr(learn.dls, name, loader)
    learn.unfreeze()
    order = []
    def loss(logits, y):
        order.append(learn.dls.train.last_plan.index.tolist())
        return F.cross_entropy(logits, y) * (float('nan') if len(order) == 2 else 1)
    learn.loss_func = loss
    with pytest.raises(NotFinite, match=r'(?s)loss \(nan\).*step 2 of epoch 0, rates .*This batch was made of:') as error:
        learn.fit_one_cycle(1, 1e-3)
    named = re.findall(r'train/(\d+).jpg', str(error.value))
    assert [int(n) for n in named] == order[1] and len(named) == 16
    assert len(learn.recorder.steps) == 1


def test_pictures_without_files_are_numbered(pets, make_learner):
    learn = make_learner()
    learn.loss_func = lambda logits, y: F.cross_entropy(logits, y) * float('inf')
    with pytest.raises(NotFinite, match=r'inf.*This batch was made of the pictures \d+, \d+'):
        learn.fit_one_cycle(1, 1e-3)


class Greedy(nn.Module):
    "Stands for a network that has memory for `most` pictures only."
    def __init__(self, most, error):
        super().__init__()
        self.linear, self.most, self.error, self.tried = nn.Linear(4, 3), most, error, []

    def forward(self, x):
        self.tried.append(len(x))
        if self.training and len(x) > self.most:
            raise self.error
        return self.linear(x)


ERRORS = [torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB'), MemoryError(),
          RuntimeError('[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can\'t allocate memory'),
          RuntimeError('MPS backend out of memory'), RuntimeError('std::bad_alloc')]

@pytest.mark.parametrize('error', ERRORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize('most, told', [(31, '16 do: make the loaders with batch_size=16'),
                                        (4, 'batch_size=4'), (1, 'Nor do two: take smaller pictures')])
def test_too_little_memory_names_a_batch_that_fits(error, most, told):
    x, y = torch.randn(32, 4), torch.randint(3, (32,))
    model = nn.Sequential(Greedy(most, error), nn.Linear(3, 3))
    before = state(model)
    with pytest.raises(MemoryError, match='32 pictures at once do not fit into the memory of cpu') as raised:
        fit(model, Batches([(x, y)], [(x[:2], y[:2])]), 1, constant(1, 0.01), show=False)
    assert told in str(raised.value)
    assert same_bits(before, state(model)) and all(p.grad is None for p in model.parameters())


def test_too_little_memory_while_features_are_computed(make_learner):
    def full(module, inputs):
        if len(inputs[0]) > 8:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
    learn = make_learner()
    learn.model[0].conv1.register_forward_pre_hook(full)
    before = state(learn.model)
    with pytest.raises(MemoryError, match='batch_size of half'):
        learn.fit(1, 1e-3)
    assert same_bits(before, state(learn.model))


TOO_LARGE = '''
import resource, torch
from torch import nn
torch.set_num_threads(1)
model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1)),
                      nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2)))
x, y = torch.randn(64, 3, 128, 128), torch.zeros(64, dtype=torch.long)
class Dls: train, valid = [(x, y)], [(x[:2], y[:2])]
now = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 600_000_000, -1))
try:
    fit(model, Dls, 1, constant(1, 0.01), show=False)
except MemoryError as error:
    print(error)
    n = int(str(error).split('batch_size=')[1].split('.')[0])
    Dls.train = [(x[:n], y[:n])]
    fit(model, Dls, 1, constant(1, 0.01), show=False)
    print('fits')
'''

@pytest.mark.skipif(sys.platform != 'linux', reason='limits memory as Linux does')
def test_memory_that_really_ends():
    done = subprocess.run([sys.executable, '-c', TOO_LARGE], text=True, capture_output=True, timeout=200)
    assert 'batch_size=' in done.stdout and 'fits' in done.stdout, done.stdout + done.stderr


# Ctrl-C while training

def press(model, recorder):
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize('where, steps, rows', [('loss', 2, 0), ('metric', 3, 1), ('callback', 3, 1)])
def test_ctrl_c_waits_for_the_step(toy, batches, where, steps, rows):
    "Pressed in the second step, in the validation, in a callback: what was begun is done."
    calls, recorder, options = [], Recorder(), {}
    def pressing(function, n):
        def pressed(*args):
            calls.append(1)
            if len(calls) == n:
                signal.raise_signal(signal.SIGINT)
            return function(*args)
        return pressed
    if where == 'loss':
        options['loss_func'] = pressing(F.cross_entropy, 2)
    elif where == 'metric':
        options['metrics'] = [pressing(error_rate, 1)]
    else:
        options['callbacks'] = [pressing(lambda *args: None, 1)]
    handler, generator = signal.getsignal(signal.SIGINT), torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        fit(toy, batches, 3, constant(9, [0.01] * 3), recorder=recorder, seed=3, show=False, **options)
    assert len(recorder.steps) == steps and len(recorder.history) == rows
    assert signal.getsignal(signal.SIGINT) is handler and torch.equal(torch.get_rng_state(), generator)
    check_consistent(recorder)
    train(toy, batches, recorder=recorder)


def test_a_second_ctrl_c_stops_at_once(toy, batches):
    recorder, reached = Recorder(), []
    def loss(logits, y):
        signal.raise_signal(signal.SIGINT)
        reached.append('after the first')
        signal.raise_signal(signal.SIGINT)
        reached.append('after the second')
        return F.cross_entropy(logits, y)
    before = state(toy)
    with pytest.raises(KeyboardInterrupt):
        fit(toy, batches, 1, constant(3, [0.01] * 3), loss_func=loss, recorder=recorder, show=False)
    assert reached == ['after the first'] and not recorder.steps and same_bits(before, state(toy))


def test_other_threads_have_no_ctrl_c(toy, batches):
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor() as pool:
        recorder = pool.submit(train, toy, batches).result()
    assert len(recorder.history) == 1


def test_epochs_done_before_are_left_out(toy, batches):
    whole, parts, twin = Recorder(), Recorder(), toy_twin()
    twin.load_state_dict(toy.state_dict())
    schedule = one_cycle(9, [0.01] * 3)
    fit(toy, batches, 3, schedule, recorder=whole, seed=1, show=False)
    optimizer = create_optimizer(twin)
    stop = lambda model, recorder: len(recorder.history) == 2
    fit(twin, batches, 3, schedule, optimizer, recorder=parts, seed=1, show=False, callbacks=[stop])
    fit(twin, batches, 3, schedule, optimizer, recorder=parts, seed=1, show=False, done=2)
    assert parts.steps == whole.steps and same_bits(state(toy), state(twin))


def test_a_seed_that_cannot_reach_everything_says_so(toy, batches):
    from torch.utils.data import DataLoader, TensorDataset
    x, y = (torch.cat(part) for part in zip(*batches.train))
    own = DataLoader(TensorDataset(x, y), 5, shuffle=True, generator=torch.Generator().manual_seed(0))
    dls = batches._replace(train=own)
    with pytest.warns(UserWarning, match='seed=3 will not repeat this training to the bit: dls.train.*generator'):
        fit(toy, dls, 1, constant(3, 0.01), seed=3, show=False)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        fit(toy, dls, 1, constant(3, 0.01), show=False)     # no seed, no promise
        fit(toy, batches, 1, constant(3, 0.01), seed=3, show=False)


def test_a_batch_of_one_picture(make_learner):
    dls = drawn_pets(n_train=1, n_valid=1, size=32, batch_size=1)
    with pytest.raises(ValueError, match='batch of one picture. Make the loaders with another batch_size'):
        make_learner(dls).fit(1, 1e-3)
