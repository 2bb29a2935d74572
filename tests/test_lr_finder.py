"The finder changes nothing; its rules give fastai's numbers."
import contextlib
import copy
import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conftest import (
    WithoutPlans, assert_unchanged, everything, same_bits, small_network, state)
from finetune_teach.engine.features import FeatureTable, Loaders
from finetune_teach.engine.history import smooth
from finetune_teach.freezing import freeze_to
from finetune_teach.lr_finder import (
    LRFinder, exponential, lr_find, rate_text, suggest_minimum, suggest_steep, suggest_valley)
from finetune_teach.pretrained_body import create_body
from finetune_teach.random_head import create_head
from finetune_teach.training_loop import constant, create_optimizer, fit, train_epoch

LRS = [10 ** (-6 + i / 4) for i in range(24)]  # 1e-6, 1.78e-6, ... 0.56


# The rules. Places in LRS are what fastai 2.8.12's valley, steep and minimum gave for these losses.

S_CURVE = [2.5 - 1.5 / (1 + math.exp(10 - i)) + 0.15 * max(i - 17, 0) ** 2 for i in range(24)]
BUMPY = [3.0, 2.9, 2.95, 2.8, 2.85, 2.7, 2.5, 2.6, 2.25, 2.3, 1.9, 1.7, 1.8, 1.45, 1.5, 1.2, 1.3, 1.25,
         1.6, 2.0, 2.9, 4.0, 6.0, 9.0]
TWO_FALLS = [3, 2.8, 2.6, 2.9, 3.1, 2.7, 2.4, 2.1, 1.9, 2.2, 2.5, 2.6, 2.0, 1.8, 1.7, 1.75, 1.6, 1.65, 1.9,
             2.5, 3, 4, 5, 7]


@pytest.mark.parametrize('losses, valley, steep, lowest', [
    (S_CURVE, 8, 10, 17), (BUMPY, 10, 9, 15), (TWO_FALLS, 11, 11, 16)])
def test_rules_give_fastais_numbers(losses, valley, steep, lowest):
    assert suggest_valley(LRS, losses) == LRS[valley]
    assert suggest_steep(LRS, losses) == LRS[steep]
    assert suggest_minimum(LRS, losses) == pytest.approx(LRS[lowest] / 10)


def test_a_curve_that_only_falls():
    losses = [3 - 0.1 * i for i in range(24)]
    assert suggest_valley(LRS, losses) == LRS[11], "the middle, as fastai's"
    assert suggest_minimum(LRS, losses) == pytest.approx(LRS[23] / 10)


@pytest.mark.parametrize('losses', [
    [1 + 0.1 * i for i in range(24)], [2.0] * 24, [1.0], []], ids=['rising', 'level', 'one', 'none'])
def test_no_fall_no_suggestion(losses):
    "fastai names the first rate there, without a warning."
    lrs = LRS[:len(losses)]
    for rule in (suggest_valley, suggest_steep, suggest_minimum):
        assert rule(lrs, losses) is None


def test_a_dip_at_the_start_does_not_suggest_the_highest_rate():
    "fastai's valley does: it looks up place -1."
    losses = [2.0, 1.9] + [2 + 0.1 * i for i in range(22)]
    assert suggest_valley(LRS, losses) <= LRS[1] and suggest_steep(LRS, losses) <= LRS[1]
    assert suggest_minimum(LRS, losses) is None, 'a tenth of that rate was not tried'
    assert suggest_minimum(LRS, [1.9, 1.8, 1.7, 1.6, 1.5] + losses[5:]) == pytest.approx(LRS[0]), 'this just was'


def test_rules_take_arrays():
    assert suggest_valley(np.array(LRS), np.array(S_CURVE)) == LRS[8]
    assert suggest_steep(np.array(LRS), np.array(S_CURVE)) == LRS[10]
    assert suggest_minimum(np.array(LRS), np.array(S_CURVE)) == pytest.approx(LRS[17] / 10)


def test_the_rules_skip_start_and_end():
    lrs = [10 ** (-6 + i / 10) for i in range(60)]
    losses = [9.0, 1.0] + [5 - 0.05 * i for i in range(53)] + [0.5] * 5  # both ends would mislead
    finder = LRFinder(lrs, losses, losses, skip_start=2, skip_end=5)
    assert finder.minimum == pytest.approx(lrs[54] / 10)
    assert finder.valley == suggest_valley(lrs[2:55], losses[2:55])
    assert finder.steep == suggest_steep(lrs[2:55], losses[2:55])


def test_what_the_finder_says():
    found = LRFinder(LRS, S_CURVE, S_CURVE, 0, 0)
    assert found.suggestions == {'valley': LRS[8], 'steep': LRS[10], 'minimum': pytest.approx(LRS[17] / 10)}
    assert 'valley=1e-4' in repr(found)
    rising = LRFinder(LRS, LRS, LRS)
    assert rising.suggestions == {} and 'no suggestion: the loss never fell' in repr(rising)
    short = LRFinder(LRS[:12], S_CURVE[:12], S_CURVE[:12])
    assert short.suggestions == {} and 'too few losses' in repr(short), 'it may well have fallen'


def test_the_region_that_diverged():
    finder = LRFinder(LRS, S_CURVE, S_CURVE, 0, 0)
    first = next(i for i in range(18, 24) if S_CURVE[i] > S_CURVE[0])
    assert finder.diverged == LRS[first]
    assert LRFinder(LRS[:18], S_CURVE[:18], S_CURVE[:18], 0, 0).diverged is None, 'it was stopped before'
    assert LRFinder(LRS, LRS, LRS, 0, 0).diverged is None, 'nothing was learned that could be lost'
    back = [*S_CURVE[:-1], min(S_CURVE)]
    assert LRFinder(LRS, back, back, 0, 0).diverged is None, 'a rise that falls again'


@pytest.mark.parametrize('lr, text', [(1e-3, '1e-3'), (0.00123, '1.2e-3'), (0.25, '0.25'), (1, '1'), (12.0, '12'),
                                      (1e-12, '1e-12'), (slice(1e-6, 1e-4), 'slice(1e-6, 1e-4)')])
def test_rates_as_in_code(lr, text):
    assert rate_text(lr) == text
    assert eval(text) == pytest.approx(lr, rel=0.05) if not isinstance(lr, slice) else eval(text) == lr


# The run

@pytest.fixture
def toy():
    torch.manual_seed(0)
    return nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU()), nn.Linear(8, 3))


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(15, 4, generator=generator)
    y = x[:, :3].argmax(1)
    return Loaders(list(zip(x.split(5), y.split(5))), [(x, y)])


def picture_model(first_group):
    torch.manual_seed(0)
    model = nn.Sequential(create_body(small_network()), create_head(8, 12, hidden=(8,)))
    return freeze_to(model, first_group)


def test_rates_are_fastais(toy, batches):
    finder = lr_find(toy, batches, stop_div=False)
    assert len(finder.lrs) == len(finder.losses) == len(finder.smoothed) == 100
    assert finder.lrs[0] == 1e-7
    assert finder.lrs[50] == pytest.approx(1e-3)
    assert finder.lrs[99] == pytest.approx(8.317637711, rel=1e-6), 'not 10'
    assert finder.smoothed == smooth(finder.losses)
    assert (finder.skip_start, finder.skip_end) == (10, 5)
    assert len(lr_find(toy, batches, num_it=2).lrs) == 6, 'at least 6, as in fastai'


@pytest.mark.parametrize('seed', [None, 3])
def test_the_losses_are_those_of_a_training_by_hand(pets, seed):
    "With the exponential schedule, on a copy; pictures and dropout are drawn from the same numbers."
    model, twin, n = picture_model(0), picture_model(0), 2 * len(pets.train)
    torch.manual_seed(1)
    finder = lr_find(model, pets, 1e-4, 1e-1, n, stop_div=False, seed=seed)
    torch.manual_seed(1 if seed is None else seed)
    optimizer, rates, losses = create_optimizer(twin), zip(*exponential(n, 1e-4, 1e-1)), []
    for _ in range(2):
        losses += [step.loss for step in train_epoch(twin, pets.train, rates, optimizer)]
    assert finder.losses == losses and finder.lrs == [lr for lr, in exponential(n, 1e-4, 1e-1).lrs]


class GrowingLoss:
    "1.2, 1.4, 1.6, ..."
    def __init__(self):
        self.loss = 1.0

    def __call__(self, logits, targets):
        self.loss += 0.2
        return self.loss + 0 * logits.sum()


def test_it_stops_when_the_loss_explodes(toy, batches):
    "At the first smoothed loss above four times the lowest one."
    expected = smooth([1.2 + 0.2 * i for i in range(100)])
    last = next(i for i, loss in enumerate(expected) if loss > 4 * 1.2)
    assert len(lr_find(toy, batches, loss_func=GrowingLoss()).lrs) == last + 1 < 100
    assert len(lr_find(toy, batches, loss_func=GrowingLoss(), stop_div=False).lrs) == 100


def test_it_stops_at_nan(toy, batches):
    def breaks_after(n):
        calls = iter(range(1000))
        return lambda logits, targets: logits.sum() * (math.nan if next(calls) >= n else 1)
    finder = lr_find(toy, batches, loss_func=breaks_after(20), stop_div=False)
    assert len(finder.lrs) == len(finder.losses) == 20 and all(map(math.isfinite, finder.losses))
    with pytest.raises(ValueError, match='the loss is nan at the very first rate, 1e-07: look for NaN'):
        lr_find(toy, batches, loss_func=breaks_after(0))


@pytest.mark.parametrize('start, end', [
    (0, 1), (-1e-3, 1), (1e-3, 1e-3), (1, 1e-3), (1e-7, math.inf), (math.nan, 1), (1e-7, math.nan)])
def test_bad_start_or_end(toy, batches, start, end):
    with pytest.raises(ValueError, match='start_lr.*end_lr'):
        lr_find(toy, batches, start, end)


def test_nothing_to_try_the_rates_on(toy, batches):
    with pytest.raises(ValueError, match='no batches'):
        lr_find(toy, Loaders([], batches.valid))
    with pytest.raises(ValueError, match='1 rates and 2 losses'):
        LRFinder([1e-3], [1.0], [1.0, 2.0])


# It changes nothing

class Raises:
    "A loss that stops at its tenth call, and draws random numbers before."
    def __init__(self, error):
        self.error, self.calls = error, 0

    def __call__(self, logits, targets):
        self.calls += 1
        random.random(), np.random.rand(), torch.rand(1)
        if self.calls == 10 and self.error:
            raise self.error
        return F.cross_entropy(logits, targets)


@pytest.mark.parametrize('first_group, seed, error', [
    (-1, None, None), (-1, 4, KeyboardInterrupt), (1, None, RuntimeError), (0, 4, None), (0, None, KeyboardInterrupt)])
def test_nothing_is_changed(pets, first_group, seed, error):
    model = picture_model(first_group)
    optimizer = create_optimizer(model)
    fit(model, pets, 1, constant(len(pets.train), 0.01), optimizer, show=False)  # fills its memory
    x, y = next(iter(pets.train))
    F.cross_entropy(model(x), y).backward()  # gradients of someone else
    model.train()
    model[0].layer3.eval()  # modes that are not all alike
    before, loss = everything(model, optimizer), Raises(error)
    with pytest.raises(error) if error else contextlib.nullcontext():
        lr_find(model, pets, num_it=20, loss_func=loss, seed=seed)
    assert loss.calls >= 10
    assert_unchanged(before, everything(model, optimizer))


@pytest.mark.parametrize('first_group', [-1, 0], ids=['frozen', 'unfrozen'])
@pytest.mark.parametrize('seed', [None, 5])
def test_inserted_before_a_fit_it_changes_nothing(pets, first_group, seed):
    runs = []
    for find in (False, True):
        model = picture_model(first_group)
        torch.manual_seed(3)
        if find:
            lr_find(model, pets, num_it=12, seed=seed)
        recorder = fit(model, pets, 2, constant(2 * len(pets.train), 0.01), seed=seed, show=False)
        runs.append((recorder.losses, state(model)))
    assert runs[0][0] == runs[1][0] and same_bits(runs[0][1], runs[1][1])


def test_with_torchs_own_loaders(toy, batches):
    data = torch.utils.data.TensorDataset(*batches.valid[0])
    runs = []
    for find in (False, True):
        model = copy.deepcopy(toy)
        shuffled = torch.utils.data.DataLoader(data, batch_size=5, shuffle=True)
        dls = Loaders(shuffled, torch.utils.data.DataLoader(data, batch_size=5))
        torch.manual_seed(3)
        if find:
            lr_find(model, dls, num_it=12)
        runs.append(fit(model, dls, 2, constant(6, [0.01] * 3), show=False).losses)
    assert runs[0] == runs[1]


def test_frozen_and_plain_give_the_same_curve(pets):
    model = picture_model(-1)
    plain = Loaders(WithoutPlans(pets.train), WithoutPlans(pets.valid))
    one, two = lr_find(model, pets, seed=1, num_it=20), lr_find(model, plain, seed=1, num_it=20)
    assert one.lrs == two.lrs and one.losses == pytest.approx(two.losses, rel=1e-3)


def test_a_learners_features_are_computed_once(make_learner, monkeypatch):
    "By whatever looks or trains first; a finder that was interrupted has left nothing wrong."
    learn = make_learner()
    with pytest.raises(KeyboardInterrupt):
        learn.lr_find(loss_func=Raises(KeyboardInterrupt), num_it=20)
    losses = learn.lr_find(num_it=20).losses
    def computed(*args):
        raise AssertionError('it was there')
    monkeypatch.setattr(FeatureTable, 'fill', computed)
    assert learn.lr_find(num_it=20).losses == losses, 'the same seed, the same pictures'


# The picture

def test_plot():
    finder = LRFinder(LRS, S_CURVE, S_CURVE, 0, 0)
    ax = finder.plot()
    assert ax.get_xscale() == 'log' and ax.get_xlabel() == 'learning rate'
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    for name in ('valley 1e-4', 'steep 3.2e-4', 'minimum'):
        assert any(label.startswith(name) for label in labels)
    lines = {line.get_label(): line for line in ax.get_lines()}
    assert list(lines['smoothed'].get_ydata()) == S_CURVE
    assert lines['valley 1e-4'].get_xdata() == pytest.approx([LRS[8]])
    assert finder.plot(ax) is ax


def test_plot_of_a_rising_curve():
    labels = [t.get_text() for t in LRFinder(LRS, LRS, LRS, 0, 0).plot().get_legend().get_texts()]
    assert labels == ['each step', 'smoothed', 'no suggestion: the loss never fell']
