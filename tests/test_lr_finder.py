"The finder changes nothing; its rules give fastai's numbers; the slider."
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
from finetune_teach.freezing import Loaders, freeze_to
from finetune_teach.lr_finder import (
    LRFinder, LRPicker, lr_find, pick_lr, suggest_minimum, suggest_steep, suggest_valley)
from finetune_teach.one_cycle import constant, create_optimizer, fit, smooth
from finetune_teach.pretrained_body import create_body
from finetune_teach.random_head import create_head

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
    for rule in (suggest_valley, suggest_steep, suggest_minimum):
        assert rule(LRS, losses) <= LRS[1]


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
    assert rising.suggestions == {} and 'no suggestion' in repr(rising)


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


def test_rates_are_fastais(toy, batches):
    finder = lr_find(toy, batches, stop_div=False)
    assert len(finder.lrs) == len(finder.losses) == len(finder.smoothed) == 100
    assert finder.lrs[0] == 1e-7
    assert finder.lrs[50] == pytest.approx(1e-3)
    assert finder.lrs[99] == pytest.approx(8.317637711, rel=1e-6), 'not 10'
    assert finder.smoothed == smooth(finder.losses)
    assert (finder.skip_start, finder.skip_end) == (10, 5)
    assert len(lr_find(toy, batches, num_it=2).lrs) == 6, 'at least 6, as in fastai'


def test_each_rate_is_applied_to_all_groups(toy, batches):
    "Steps of Adam with beta1 0.9, all rates alike: training by hand gives the same third loss."
    finder = lr_find(toy, batches, start_lr=1e-2, end_lr=1, num_it=6)
    twin = copy.deepcopy(toy)
    schedule = [(lr,) * 3 for lr in finder.lrs[:2]], [(0.9,) * 3] * 2
    fit(twin, Loaders(batches.train[:2], batches.valid), 1, schedule, show=False)
    x, y = batches.train[2]
    assert finder.losses[2] == pytest.approx(F.cross_entropy(twin.train()(x), y).item(), rel=1e-6)


def test_it_stops_when_the_loss_explodes(toy, batches):
    "At the first smoothed loss above four times the lowest one."
    def growing(scores, targets):
        growing.loss += 0.2
        return growing.loss + 0 * scores.sum()
    growing.loss = 1.0
    finder = lr_find(toy, batches, loss_func=growing)
    expected = smooth([1.2 + 0.2 * i for i in range(100)])
    last = next(i for i, loss in enumerate(expected) if loss > 4 * 1.2)
    assert len(finder.lrs) == last + 1 < 100
    growing.loss = 1.0
    assert len(lr_find(toy, batches, loss_func=growing, stop_div=False).lrs) == 100


def test_it_stops_at_a_loss_that_is_no_number(toy, batches):
    def breaks(scores, targets):
        breaks.calls += 1
        return F.cross_entropy(scores, targets) * (float('nan') if breaks.calls > 20 else 1)
    breaks.calls = 0
    finder = lr_find(toy, batches, loss_func=breaks)
    assert len(finder.lrs) == len(finder.losses) == 20 and all(map(math.isfinite, finder.losses))


@pytest.mark.parametrize('start, end', [(0, 1), (-1e-3, 1), (1e-3, 1e-3), (1, 1e-3), (1e-7, float('inf')),
                                        (float('nan'), 1), (1e-7, float('nan'))])
def test_bad_start_or_end(toy, batches, start, end):
    with pytest.raises(ValueError, match='start_lr.*end_lr'):
        lr_find(toy, batches, start, end)


class Empty(list):
    "A loader that drops its last, only, batch."
    passes = 0

    def __iter__(self):
        self.passes += 1
        assert self.passes < 5, 'this would go on for ever'
        return super().__iter__()


def test_nothing_to_find_in(toy, batches):
    with pytest.raises(ValueError, match='batch|picture'):
        lr_find(toy, Loaders(Empty(), batches.valid))


def test_a_loss_that_never_was_a_number(toy, batches):
    with pytest.raises(ValueError, match='number'):
        lr_find(toy, batches, loss_func=lambda scores, targets: scores.sum() * float('nan'))


# It changes nothing

def picture_model(first_group):
    torch.manual_seed(0)
    model = nn.Sequential(create_body(small_network()), create_head(8, 12, hidden=(8,)))
    return freeze_to(model, first_group)


class Raises:
    "A loss that stops at its tenth call, and draws random numbers before."
    def __init__(self, error):
        self.error, self.calls = error, 0

    def __call__(self, scores, targets):
        self.calls += 1
        random.random(), np.random.rand(), torch.rand(1)
        if self.calls == 10 and self.error:
            raise self.error
        return F.cross_entropy(scores, targets)


@pytest.mark.parametrize('first_group', [-1, 1, 0], ids=['frozen', 'partly', 'unfrozen'])
@pytest.mark.parametrize('seed', [None, 4])
@pytest.mark.parametrize('error', [None, KeyboardInterrupt, RuntimeError], ids=['normal', 'Ctrl-C', 'error'])
def test_nothing_is_changed(pets, first_group, seed, error):
    model = picture_model(first_group)
    optimizer = create_optimizer(model)
    fit(model, pets, 1, constant(len(pets.train), [0.01] * 3), optimizer, show=False)  # fills its memory
    x, y = next(iter(pets.train))
    F.cross_entropy(model(x), y).backward()  # gradients of someone else
    model.train()
    model[0].layer3.eval()  # modes that are not all alike
    before, loss = everything(model, optimizer), Raises(error)
    if error is None:
        lr_find(model, pets, num_it=20, loss_func=loss, seed=seed)
    else:
        with pytest.raises(error):
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
        recorder = fit(model, pets, 2, constant(2 * len(pets.train), [0.01] * 3), seed=seed, show=False)
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


# The picture and the slider

@pytest.fixture
def finder():
    return LRFinder(LRS, S_CURVE, S_CURVE, 0, 0)


def test_plot(finder):
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
    assert labels == ['each step', 'smoothed']


def test_slider_moves_rate_and_picture(finder):
    picker = LRPicker(finder)
    assert picker.lr == pytest.approx(finder.valley)
    before = bytes(picker.image.value)
    assert before.startswith(b'\x89PNG')
    picker.slider.value = 1e-2
    assert picker.lr == pytest.approx(1e-2)
    assert bytes(picker.image.value).startswith(b'\x89PNG') and picker.image.value != before
    moved = bytes(picker.image.value)
    picker.slider.value = 1e-3
    picker.slider.value = 1e-2
    assert bytes(picker.image.value) == moved, 'the same rate, the same picture'


def test_slider_without_a_suggestion(toy, batches):
    for first in (1e-6, 0.1):  # the usual 1e-3 lies within the rates that were tried, or below
        lrs = [first * 1.5 ** i for i in range(30)]
        picker = LRPicker(LRFinder(lrs, lrs, lrs))
        assert lrs[0] <= picker.lr <= lrs[-1] * 1.0001


def test_pick_lr_takes_a_model_with_loaders_or_a_learner(toy, batches, make_learner):
    before = state(toy)
    picker = pick_lr(toy, batches, num_it=30)
    assert len(picker.finder.lrs) == 30 and same_bits(before, state(toy))
    learn = make_learner()
    before = everything(learn.model, learn.optimizer)
    assert len(pick_lr(learn, num_it=12).finder.lrs) == 12
    assert_unchanged(before, everything(learn.model, learn.optimizer))
    assert learn.recorder.losses == []
