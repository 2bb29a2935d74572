"The optimiser, a step, an epoch, the loop, and `fit` with all that is put around it."
import math
import random
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from conftest import Batches, same_bits, small_network, state, toy_twin
from finetune_teach.engine.history import Epoch, Recorder, Step
from finetune_teach.engine.optimizers import set_weight_decay
from finetune_teach.engine.random_state import seed_all
from finetune_teach.freezing import freeze, layer_groups, unfreeze
from finetune_teach.one_cycle import one_cycle
from finetune_teach.pretrained_body import create_body
from finetune_teach.random_head import create_head
from finetune_teach.training_loop import (
    accuracy, constant, create_optimizer, error_rate, fit, fit_steps, set_rates,
    train, train_epoch, train_step, validate)


def fit_constant(model, dls, epochs=1, lr=0.01, **options):
    return fit(model, dls, epochs, constant(epochs * len(dls.train), lr), show=False, **options)


def picture_model(unfrozen=False):
    torch.manual_seed(0)
    model = nn.Sequential(create_body(small_network()), create_head(8, 12, hidden=(8,)))
    return unfreeze(model) if unfrozen else freeze(model)


# The optimiser

def test_defaults_are_fastais_and_frozen_parameters_are_in_it(toy):
    optimizer = create_optimizer(freeze(toy))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert all(g['betas'] == (0.9, 0.99) and g['eps'] == 1e-5 for g in optimizer.param_groups)
    grouped = [id(p) for g in optimizer.param_groups for p in g['params']]
    assert sorted(grouped) == sorted(id(p) for p in toy.parameters())


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
    plain = torch.optim.SGD(toy.parameters(), 1.0)
    set_rates(plain, [1e-5], [0.9])
    assert (plain.param_groups[0]['lr'], plain.param_groups[0]['momentum']) == (1e-5, 0.9)


def test_validation_counts_pictures_not_batches():
    logits = torch.tensor([[5.0, 0.0]] * 3 + [[0.0, 5.0]])
    loader = [(logits[:3], torch.zeros(3, dtype=torch.long)), (logits[3:], torch.zeros(1, dtype=torch.long))]
    loss, error = validate(nn.Identity(), loader)
    assert error == 0.25
    wrong, right = math.log(1 + math.exp(5)), math.log(1 + math.exp(-5))
    assert loss == pytest.approx((3 * right + wrong) / 4, rel=1e-6)


# The loop, driven by hand

def steps_by_hand(model, batches, lr=0.01):
    "What `train_epoch` is, in five lines; the optimiser."
    optimizer = create_optimizer(model)
    for x, y in batches:
        set_rates(optimizer, [lr], [0.9])
        optimizer.zero_grad()
        F.cross_entropy(model.train()(x), y).backward()
        optimizer.step()
    return optimizer


def test_the_loop_waits_after_each_step(toy, batches):
    twin, loop = toy_twin(), train(toy, batches, 2, constant(6, 0.01), create_optimizer(toy))
    assert toy.training and same_bits(state(toy), state(twin)), 'nothing happens before it is asked for'
    first, second = next(loop), next(loop)
    assert isinstance(first, Step) and first.lrs == (0.01,) and first.moms == (0.9,) and second.loss != first.loss
    loop.close()
    steps_by_hand(twin, batches.train[:2])
    assert same_bits(state(toy), state(twin))


def test_an_epoch_is_its_steps_and_a_validation(toy, batches):
    events = list(train(toy, batches, 2, constant(6, 0.01), create_optimizer(toy), metrics=[accuracy, error_rate]))
    assert [type(event) for event in events] == [Step, Step, Step, Epoch] * 2
    epoch = events[-1]
    assert epoch.values == validate(toy, batches.valid, metrics=[accuracy, error_rate])
    assert torch.equal(epoch.logits, toy.eval()(batches.valid[0][0]))
    assert epoch.targets.equal(batches.valid[0][1]) and not epoch.logits.requires_grad


def test_a_step_of_ones_own(toy, batches):
    "For instance with clipped gradients; the rates come from anywhere."
    def clipped(model, x, y, optimizer, loss_func):
        loss = loss_func(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 0.1)))
        optimizer.step()
        return loss.item()
    norms, rates = [], (((lr,), (0.5,)) for lr in (0.1, 0.2))
    steps = list(train_epoch(toy, batches.train, rates, create_optimizer(toy), step=clipped))
    assert [step.lrs for step in steps] == [(0.1,), (0.2,)] and len(norms) == 2, 'as many steps as rates'
    assert sum(p.grad.square().sum().item() for p in toy.parameters()) ** 0.5 == pytest.approx(0.1, rel=1e-4)


def test_gradients_left_over_do_not_count(toy, batches):
    twin = toy_twin()
    for p in toy.parameters():
        p.grad = torch.full_like(p, 1e3)
    for model in (toy, twin):
        train_step(model, *batches.train[0], create_optimizer(model), F.cross_entropy)
    assert same_bits(state(toy), state(twin))


def test_each_epoch_trains_in_training_mode_and_validates_in_evaluation_mode(toy, batches):
    seen = []
    def loss_func(logits, targets):
        seen.append((logits.requires_grad, toy.training, toy[0][1].training))
        return F.cross_entropy(logits, targets)
    fit_constant(toy.eval(), batches, 2, loss_func=loss_func)
    assert seen == ([(True, True, True)] * 3 + [(False, False, False)]) * 2


# `fit` is this loop

def test_fit_gives_the_same_to_the_bit_as_the_loop(toy, batches):
    twin, schedule = toy_twin(), one_cycle(6, [1e-3, 1e-2, 1e-1])
    recorder = fit(toy, batches, 2, schedule, show=False)
    events = list(train(twin, batches, 2, schedule, create_optimizer(twin)))
    assert same_bits(state(toy), state(twin))
    assert recorder.losses == [event.loss for event in events if isinstance(event, Step)]
    assert [[row['valid_loss'], row['error_rate']] for row in recorder.history] == [
        event.values for event in events if isinstance(event, Epoch)]
    assert recorder.history[-1]['train_loss'] < recorder.history[0]['train_loss']


@pytest.mark.parametrize('unfrozen', [True, False])
def test_fit_is_given_step_by_step(pets, unfrozen):
    "The recorder comes after each step and after each epoch."
    n, whole, parts = len(pets.train), picture_model(unfrozen), picture_model(unfrozen)
    schedule, recorder = one_cycle(2 * n, 1e-2), Recorder()
    wanted = fit(whole, pets, 2, schedule, seed=0, show=False)
    seen = [(len(r.steps), len(r.history)) for r in fit_steps(
        parts, pets, 2, schedule, recorder=recorder, seed=0, show=False)]
    epoch = [*range(1, n + 1), n]
    assert seen == [(i, 0) for i in epoch[:-1]] + [(n, 1)] + [(n + i, 1) for i in epoch[:-1]] + [(2 * n, 2)]
    assert recorder.losses == wanted.losses and same_bits(state(whole), state(parts))


class Listener:
    "Counts; ends the training after `epochs`."
    def __init__(self, epochs=99):
        self.epochs, self.seen = epochs, []

    def __call__(self, model, recorder):
        self.seen.append('epoch')
        return len(recorder.history) == self.epochs

    def after_step(self, model, recorder):
        self.seen.append(len(recorder.steps))


def test_callbacks_are_called_after_steps_and_epochs(toy, batches):
    twin, listeners, models = toy_twin(), [Listener(2), Listener()], []
    recorder = fit_constant(toy, batches, 3, callbacks=[*listeners, lambda model, _: models.append(model)])
    assert [listener.seen for listener in listeners] == [[1, 2, 3, 'epoch', 4, 5, 6, 'epoch']] * 2, 'each is called'
    assert models == [toy, toy] and len(recorder.history) == 2
    *_, last = fit_steps(twin, batches, 3, constant(9, 0.01), callbacks=[Listener(2)], show=False)
    assert last.losses == recorder.losses and len(last.history) == 2, 'the last epoch is given, too'


def test_epochs_done_before_are_left_out(toy, batches):
    twin, schedule, parts = toy_twin(), one_cycle(9, 0.01), Recorder()
    whole = fit(toy, batches, 3, schedule, seed=1, show=False)
    optimizer = create_optimizer(twin)
    fit(twin, batches, 3, schedule, optimizer, recorder=parts, seed=1, show=False, callbacks=[Listener(2)])
    fit(twin, batches, 3, schedule, optimizer, recorder=parts, seed=1, show=False, done=2)
    assert parts.steps == whole.steps and same_bits(state(toy), state(twin))


# Bad input

def test_a_schedule_that_does_not_fit(toy, batches):
    before, recorder = state(toy), Recorder()
    for epochs, rates, told in [(2, [0.01] * 3, '3 steps, but 2 epochs of 3 batches are 6'),
                                (1, [0.01] * 2, '2 rates a step for 3 layer groups')]:
        with pytest.raises(ValueError, match=told):
            fit(toy, batches, epochs, constant(3, rates), recorder=recorder, show=False)
    assert same_bits(before, state(toy)) and recorder == Recorder(), 'said before any training'


def test_loaders_without_batches(toy, batches):
    for empty in (Batches([], batches.valid), Batches(batches.train, [])):
        with pytest.raises(ValueError, match='0 .*validation batches: both are needed|training and 0 validation'):
            fit(toy, empty, 1, constant(3, 0.01), show=False)


def test_a_loader_with_more_batches_than_it_says(toy, batches):
    class Longer(list):
        def __len__(self):
            return 2
    recorder = Recorder()
    with pytest.raises(ValueError, match=r'more batches than the 2 of its len\(\)'):
        fit_constant(toy, Batches(Longer(batches.train), batches.valid), recorder=recorder)
    assert len(recorder.steps) == 2 and not recorder.history


# What goes wrong

class Failing:
    "A loss, metric or callback that raises an error in its nth call."
    def __init__(self, function, n, error):
        self.function, self.left, self.error = function, n, error

    def __call__(self, *args):
        self.left -= 1
        if self.left == 0:
            raise self.error
        return self.function(*args)


class FailingLoader(list):
    def __init__(self, batches, n, error):
        super().__init__(batches)
        self.n, self.error = n, error

    def __iter__(self):
        yield from self[:self.n]
        raise self.error


@pytest.mark.parametrize('error', [RuntimeError('on purpose'), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize('where, n_steps, rows', [
    ('loss', 4, 1), ('metric', 6, 1), ('callback', 6, 2), ('training loader', 2, 0), ('validation loader', 3, 0)])
def test_an_error_leaves_all_as_after_the_last_whole_step(toy, batches, where, n_steps, rows, error):
    dls, options = batches, {}
    if where == 'loss':
        options['loss_func'] = Failing(F.cross_entropy, 6, error)  # 3 batches, 1 validation, 1 batch, and then
    elif where == 'metric':
        options['metrics'] = [Failing(error_rate, 2, error)]
    elif where == 'callback':
        options['callbacks'] = [Failing(lambda *args: None, 2, error)]
    else:
        name = 'train' if where == 'training loader' else 'valid'
        dls = batches._replace(**{name: FailingLoader(getattr(batches, name), 2, error)})
    recorder, optimizer, generator = Recorder(), create_optimizer(toy), torch.get_rng_state()
    with pytest.raises((type(error), ValueError)):
        fit_constant(toy, dls, 3, optimizer=optimizer, recorder=recorder, seed=3, **options)
    assert torch.equal(torch.get_rng_state(), generator)
    assert len(recorder.steps) == n_steps and len(recorder.history) == rows
    twin = toy_twin()
    other = steps_by_hand(twin, (2 * batches.train)[:n_steps])
    assert same_bits(state(toy), state(twin)), 'weights and statistics'
    memory, wanted = optimizer.state_dict()['state'], other.state_dict()['state']
    assert all(memory[i][k].equal(wanted[i][k]) for i in wanted for k in wanted[i])
    fit_constant(toy, batches, 2, optimizer=optimizer, recorder=recorder, seed=3)
    assert len(recorder.steps) == n_steps + 6 and len(recorder.history) == rows + 2
    assert recorder.positions == sorted(set(recorder.positions)), 'time only goes forward'
    assert all(row['position'] in recorder.positions for row in recorder.history)


def killed_worker(x):
    import os
    import signal
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(sys.platform != 'linux', reason='kills')
def test_a_loading_process_that_is_killed(toy, batches):
    "Training on after it is possible."
    x, y = (torch.cat(part) for part in zip(*batches.train))
    bad = DataLoader(TensorDataset(x, y), batch_size=8, num_workers=1, collate_fn=killed_worker)
    before = state(toy)
    with pytest.raises(RuntimeError, match='worker.*(killed|exited)'):
        fit_constant(toy, batches._replace(train=bad))
    assert same_bits(before, state(toy))
    fit_constant(toy, batches)


# Repeatable

@pytest.mark.parametrize('unfrozen', [True, False])
def test_a_seed_repeats_a_run_to_the_bit(pets, unfrozen):
    runs = []
    for seed, state_before in [(7, 0), (7, 1), (8, 0), (None, 0), (None, 0), (None, 1)]:
        model = picture_model(unfrozen)
        seed_all(state_before)
        losses = fit_constant(model, pets, 2, seed=seed).losses
        runs.append((losses, state(model), (random.random(), np.random.rand(), torch.rand(1).item())))
    for one, two in [(0, 1), (3, 4)]:  # without a seed, the global generators decide
        assert runs[one][0] == runs[two][0] and same_bits(runs[one][1], runs[two][1])
    assert len({losses[-1] for losses, _, _ in runs}) == 4
    seed_all(0)
    assert runs[0][2] == runs[2][2] == (random.random(), np.random.rand(), torch.rand(1).item()), 'not touched'


def test_seeded_epochs_differ_from_each_other(toy, batches):
    "Also those of a second call: else every epoch would have the same order and the same flips."
    seen, recorder = [], Recorder()
    class Noise(list):
        def __iter__(self):
            seen.append(torch.rand(1).item())
            return super().__iter__()
    for _ in range(2):
        fit_constant(toy, Batches(Noise(batches.train), batches.valid), 2, seed=1, recorder=recorder)
    assert len(set(seen)) == 4


def test_a_seed_that_cannot_reach_everything_says_so(toy, batches, recwarn):
    x, y = (torch.cat(part) for part in zip(*batches.train))
    own = DataLoader(TensorDataset(x, y), 5, shuffle=True, generator=torch.Generator().manual_seed(0))
    dls = batches._replace(train=own)
    with pytest.warns(UserWarning, match='seed=3 will not repeat this training to the bit: dls.train.*generator'):
        fit_constant(toy, dls, seed=3)
    recwarn.clear()
    fit_constant(toy, dls)  # no seed, no promise
    fit_constant(toy, batches, seed=3)
    assert not recwarn
