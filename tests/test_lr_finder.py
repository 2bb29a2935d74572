"The finder changes nothing; its rules give fastai's numbers; the slider."
import asyncio
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
from finetune_teach.engine.features import Loaders
from finetune_teach.engine.history import smooth
from finetune_teach.engine.random_state import seeded, with_own_random_state
from finetune_teach.freezing import freeze_to
from finetune_teach.lr_finder import (
    LRFinder, lr_find, rate_text, suggest_minimum, suggest_steep, suggest_valley)
from finetune_teach.one_cycle import one_cycle
from finetune_teach.pretrained_body import create_body
from finetune_teach.random_head import create_head
from finetune_teach.tools.lr_picker import LRPicker, PreviewTrainer, pick_lr, plot_previews
from finetune_teach.training_loop import constant, create_optimizer, fit

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
    def growing(logits, targets):
        growing.loss += 0.2
        return growing.loss + 0 * logits.sum()
    growing.loss = 1.0
    finder = lr_find(toy, batches, loss_func=growing)
    expected = smooth([1.2 + 0.2 * i for i in range(100)])
    last = next(i for i, loss in enumerate(expected) if loss > 4 * 1.2)
    assert len(finder.lrs) == last + 1 < 100
    growing.loss = 1.0
    assert len(lr_find(toy, batches, loss_func=growing, stop_div=False).lrs) == 100


def test_it_stops_at_a_loss_that_is_no_number(toy, batches):
    def breaks(logits, targets):
        breaks.calls += 1
        return F.cross_entropy(logits, targets) * (float('nan') if breaks.calls > 20 else 1)
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
        lr_find(toy, batches, loss_func=lambda logits, targets: logits.sum() * float('nan'))


# It changes nothing

def picture_model(first_group):
    torch.manual_seed(0)
    model = nn.Sequential(create_body(small_network()), create_head(8, 12, hidden=(8,)))
    return freeze_to(model, first_group)


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
    assert labels == ['each step', 'smoothed', 'no suggestion: the loss never fell']


def test_slider_moves_rate_and_picture(finder):
    picker = LRPicker(finder)
    assert picker.lr == pytest.approx(finder.valley)
    before = bytes(picker.pictures[0].widget.value)
    assert before.startswith(b'\x89PNG')
    picker.slider.value = 1e-2
    assert picker.lr == pytest.approx(1e-2)
    assert bytes(picker.pictures[0].widget.value).startswith(b'\x89PNG') and picker.pictures[0].widget.value != before
    moved = bytes(picker.pictures[0].widget.value)
    picker.slider.value = 1e-3
    picker.slider.value = 1e-2
    assert bytes(picker.pictures[0].widget.value) == moved, 'the same rate, the same picture'


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


def test_the_region_that_diverged():
    finder = LRFinder(LRS, S_CURVE, S_CURVE, 0, 0)
    first = next(i for i in range(18, 24) if S_CURVE[i] > S_CURVE[0])
    assert finder.diverged == LRS[first]
    assert LRFinder(LRS[:18], S_CURVE[:18], S_CURVE[:18], 0, 0).diverged is None, 'it was stopped before'
    assert LRFinder(LRS, LRS, LRS, 0, 0).diverged is None, 'nothing was learned that could be lost'


@pytest.mark.parametrize('lr, text', [(1e-3, '1e-3'), (0.00123, '1.2e-3'), (0.25, '0.25'), (1, '1'), (12.0, '12'),
                                      (1e-12, '1e-12'), (slice(1e-6, 1e-4), 'slice(1e-6, 1e-4)')])
def test_rates_as_in_code(lr, text):
    assert rate_text(lr) == text
    assert eval(text) == pytest.approx(lr, rel=0.05) if not isinstance(lr, slice) else eval(text) == lr


# Previews

def draws(n):
    "Steps that use all generators."
    for _ in range(n):
        yield random.random(), np.random.rand(), torch.rand(1).item()


def test_steps_set_aside_do_not_disturb_and_are_not_disturbed():
    with seeded(1):
        wanted = list(draws(4))
    with seeded(1):
        aside, mine = with_own_random_state(draws(4)), []
        got = []
        for value in aside:
            got.append(value)
            mine.append((random.random(), torch.rand(1).item()))
    assert got == wanted
    with seeded(1):
        assert mine == [(random.random(), torch.rand(1).item()) for _ in range(4)]


@pytest.mark.parametrize('end', ['close', 'error'])
def test_unfinished_steps_leave_the_generators_alone(end):
    def steps():
        with seeded(5):
            yield random.random()
            raise RuntimeError
    aside = with_own_random_state(steps())
    next(aside)
    random.random()
    state = random.getstate()
    if end == 'close':
        aside.close()
    else:
        with pytest.raises(RuntimeError):
            next(aside)
    assert random.getstate() == state


def preview(trainer, lr):
    *_, last = trainer.train(lr)
    return last


@pytest.mark.parametrize('rate', [1e-3, 3e-2, slice(1e-4, 1e-2)])
@pytest.mark.parametrize('first_group', [-1, 1, 0], ids=['frozen', 'partly', 'unfrozen'])
def test_a_preview_is_what_training_gives(make_learner, rate, first_group):
    "After some training, too: the optimiser's memory and the epochs begun are part of it."
    learn = make_learner(seed=3)
    learn.fit_one_cycle(1, 1e-2)
    learn.freeze_to(first_group)
    picker = pick_lr(learn, num_it=12, epochs=2)
    shown = picker.preview(rate)
    assert picker.preview(rate).recorder.losses == shown.recorder.losses, 'it repeats'
    before = len(learn.recorder.losses)
    learn.fit_one_cycle(2, rate)
    assert shown.recorder.losses == pytest.approx(learn.recorder.losses[before:], rel=1e-3)
    for ours, theirs in zip(shown.recorder.history, learn.recorder.history[1:], strict=True):
        assert ours['valid_loss'] == pytest.approx(theirs['valid_loss'], rel=1e-3)
        assert ours['error_rate'] == pytest.approx(theirs['error_rate'], abs=1.01 / 36)


def test_previews_of_a_model_with_loaders(pets):
    model = picture_model(-1)
    trainer = PreviewTrainer(model, pets, seed=2, epochs=1)
    shown = preview(trainer, 1e-2)
    recorder = fit(model, pets, 1, one_cycle(len(pets.train), 1e-2), seed=2, show=False)
    assert shown.recorder.losses == pytest.approx(recorder.losses, rel=1e-4)


def test_previews_start_where_the_model_was_even_if_it_goes_on_to_learn(make_learner):
    learn = make_learner()
    picker = pick_lr(learn, num_it=12, epochs=1)
    first, before = picker.preview(1e-2), picker.trainer.before
    learn.fine_tune(1)
    assert picker.preview(1e-2).recorder.losses == first.recorder.losses and picker.trainer.before == before


def test_a_rate_that_explodes_is_shown_as_far_as_it_came(make_learner):
    picker = pick_lr(make_learner(), num_it=12)
    shown = picker.preview(1e30)
    assert 'no longer a finite number' in shown.problem and len(shown.recorder.losses) < picker.trainer.steps
    assert 'no longer a finite number' in picker.status.value and picker.error.value == ''
    labels = [t.get_text() for t in plot_previews([shown], picker.trainer.before)[0].figure.legends[0].get_texts()]
    assert labels == ['1e+30 (broke off)'] or labels == ['1e30 (broke off)']


def test_an_error_in_a_metric_is_an_error_and_not_a_rate_that_broke_off(make_learner):
    picker = pick_lr(make_learner(), num_it=12, epochs=1)
    def fails(logits, targets):
        raise ValueError('wrong labels')
    picker.trainer.metrics = [fails]
    with pytest.raises(ValueError, match='wrong labels'):
        picker.preview(1e-2)
    picker.take(3e-3)  # as with the slider
    assert 'the metric fails failed' in picker.error.value and 'wrong labels' in picker.error.value
    assert len(picker.previews) == 1, 'only the one from before'


def test_four_previews_stay_the_oldest_goes(make_learner):
    picker = pick_lr(make_learner(), num_it=12, epochs=1)
    assert picker.lr not in [2e-5, 1e-4, 1e-3, 1e-2]
    for lr in [2e-5, 1e-4, 1e-3, 1e-2]:
        picker.preview(lr)
    assert [p.lr for p in picker.previews] == [1e-2, 2e-5, 1e-4, 1e-3], 'the first, at the suggestion, is gone'
    picker.preview(1e-4)
    assert len(picker.previews) == 4 and picker.previews[picker.newest].lr == 1e-4, 'no rate twice'
    picker.preview(1e-1)
    assert [p.lr for p in picker.previews] == [1e-2, 1e-1, 1e-4, 1e-3]


def test_quick_previews_only_of_features_that_are_kept(make_learner):
    learn = make_learner()
    assert pick_lr(learn, num_it=12).trainer.quick
    learn.unfreeze()
    unfrozen = pick_lr(learn, num_it=12)
    assert not unfrozen.trainer.quick and unfrozen.previews == [], 'it waits for the button'
    assert not pick_lr(make_learner(train_bn=True), num_it=12).trainer.quick
    cropped = make_learner()
    cropped.dls.train.min_scale = 0.5
    assert not pick_lr(cropped, num_it=12).trainer.quick


@pytest.mark.parametrize('end', ['stop', 'another'])
def test_a_copy_in_the_background_can_be_stopped(make_learner, end):
    learn = make_learner()
    learn.unfreeze()
    picker = pick_lr(learn, num_it=12, epochs=50)
    async def kernel():
        picker.button.click()
        await asyncio.sleep(0.5)
        assert picker.task and not picker.task.done() and picker.previews == []
        if end == 'stop':
            picker.end.click()
        else:
            picker.take(1e-4)
            picker.button.click()
        await asyncio.sleep(0.1)
        picker.stop()
        await asyncio.sleep(0.1)
    asyncio.run(kernel())
    assert picker.previews[0].problem == 'stopped.' and 0 < len(picker.previews[0].recorder.losses) < picker.trainer.steps
    assert 'stopped' in picker.status.value and picker.error.value == ''


def test_an_error_in_the_background_is_shown(make_learner):
    learn = make_learner()
    learn.unfreeze()
    picker = pick_lr(learn, num_it=12, epochs=1)
    def fails(logits, targets):
        raise RuntimeError('no memory left')
    picker.trainer.loss_func = fails
    async def kernel():
        picker.button.click()
        await asyncio.sleep(0.3)
    asyncio.run(kernel())
    assert 'RuntimeError: no memory left' in picker.error.value


# The controls

def test_controls_agree(finder):
    picker = LRPicker(finder)
    picker.number.value = 0.00123
    assert picker.slider.value == pytest.approx(0.00123) and picker.lr == 0.00123, 'a number that is typed is kept'
    picker.slider.value = 0.045678
    assert picker.number.value == picker.lr == 0.046
    buttons = [row.children[0] for row in picker.rules.children[:-1]]
    assert [b.description.split()[0] for b in buttons] == ['valley', 'steep', 'minimum/10']
    buttons[0].click()
    assert picker.lr == pytest.approx(finder.valley, rel=0.05)
    assert 'guaranteed' in picker.rules.children[-1].value


def test_a_range_is_a_slice(finder):
    picker = LRPicker(finder)
    before = bytes(picker.pictures[0].widget.value)
    picker.many.value = True
    assert isinstance(picker.lr, slice) and picker.lr.start < picker.lr.stop
    assert bytes(picker.pictures[0].widget.value) != before
    picker.take(slice(1e-5, 1e-3))
    assert picker.lr == slice(1e-5, 1e-3)
    picker.take(1e-4)
    assert picker.lr == 1e-4 and not picker.many.value


def test_a_learner_without_pictures_or_a_model_without_loaders(make_learner):
    learn = make_learner()
    learn.dls = None  # as `load_learner` gives it
    with pytest.raises(ValueError, match='without pictures'):
        pick_lr(learn)
    with pytest.raises(ValueError, match='loaders'):
        pick_lr(learn.model)


def test_a_slice_with_one_end(make_learner):
    picker = pick_lr(make_learner(), num_it=12, epochs=1)
    picker.take(slice(1e-3))
    assert rate_text(slice(1e-3)) == 'slice(1e-3)' and picker.lr == slice(1e-4, 1e-3)
    assert picker.preview(slice(1e-3)).problem == '' and picker.error.value == ''


def test_no_suggestion_is_said():
    picker = LRPicker(LRFinder(LRS, LRS, LRS, 0, 0))
    assert 'never fell' in picker.rules.children[-1].value and len(picker.rules.children) == 1
