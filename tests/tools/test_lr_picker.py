"The picker: controls that agree, copies that train as the model would, and nothing of the model changes."
import asyncio
import math
import random

import numpy as np
import pytest
import torch

from conftest import assert_unchanged, everything, same_bits, state
from finetune_teach.engine.explorer import two_digits
from finetune_teach.engine.random_state import seeded, with_own_random_state
from finetune_teach.lr_finder import LRFinder, rate_text
from finetune_teach.one_cycle import one_cycle
from finetune_teach.tools.lr_picker import LRPicker, pick_lr
from finetune_teach.tools.previews import plot_previews, recorded_previews
from finetune_teach.training_loop import fit


def error_of(picker):
    "The error that the page shows."
    return picker.widget.news.get('error', '')


# The controls

@pytest.fixture
def finder():
    lrs = [10 ** (-6 + i / 4) for i in range(24)]  # 1e-6, 1.78e-6, ... 0.56
    losses = [2.5 - 1.5 / (1 + math.exp(10 - i)) + 0.15 * max(i - 17, 0) ** 2 for i in range(24)]
    return LRFinder(lrs, losses, losses, 0, 0)


def test_the_choice_is_marked(finder):
    picker = LRPicker(finder)
    assert picker.lr == two_digits(finder.valley)
    before = picker.still()
    assert before.startswith(b'\x89PNG')
    picker.take(1e-2)
    assert picker.lr == 1e-2 and picker.still() != before
    picker.take(finder.valley)
    assert picker.still() == before, 'the same rate, the same picture'


def test_the_page_has_the_curve_and_what_the_rules_say(finder):
    picker = LRPicker(finder)
    curve = picker.spec['data']['curve']
    assert curve['lrs'] == finder.lrs and curve['smoothed'] == pytest.approx(finder.smoothed, abs=1e-5)
    assert {rule['name']: rule['lr'] for rule in curve['rules']} == {
        'valley': two_digits(finder.valley), 'steep': two_digits(finder.steep), 'minimum/10': two_digits(finder.minimum)}
    assert curve['problem'] == '' and curve['bottom'] < min(finder.smoothed) < curve['top']


def test_a_range_is_a_slice(finder):
    picker = LRPicker(finder)
    before = picker.still()
    picker.move(many=True)  # as the page does
    assert isinstance(picker.lr, slice) and picker.lr.start < picker.lr.stop
    assert picker.still() != before
    picker.take(slice(1e-5, 1e-3))
    assert picker.lr == slice(1e-5, 1e-3)
    picker.take(1e-4)
    assert picker.lr == 1e-4 and not picker.values['many']


def test_without_a_suggestion_a_usual_rate_is_chosen_and_it_is_said():
    for first in (1e-6, 0.1):  # the usual 1e-3 lies within the rates that were tried, or below
        lrs = [first * 1.5 ** i for i in range(30)]
        picker = LRPicker(LRFinder(lrs, lrs, lrs))
        assert lrs[0] <= picker.lr <= lrs[-1] * 1.0001
        curve = picker.spec['data']['curve']
        assert curve['rules'] == [] and 'never fell' in curve['problem']


def test_a_slice_with_one_end(make_learner):
    picker = pick_lr(make_learner(), num_it=12, epochs=1)
    picker.take(slice(1e-3))
    assert rate_text(slice(1e-3)) == 'slice(1e-3)' and picker.lr == slice(1e-4, 1e-3)
    assert picker.preview(slice(1e-3)).problem == '' and not error_of(picker)


# The game

def test_the_game_comes_first_and_then_the_answer():
    picker = pick_lr()
    assert picker.values['stage'] == 'guess' and picker.previews == [] and picker.lr == 1e-5
    picker.move(lr=1e-3)
    assert picker.previews == [], 'nothing is shown before a guess'
    picker.move(stage='free')  # as the button of the page does
    grid, shown = recorded_previews(), picker.previews[0]
    place = grid['rates'].index(1e-3)
    assert shown.lr == 1e-3 and len(picker.previews) == 1
    assert shown.recorder.history[-1]['error_rate'] == pytest.approx(grid['errors'][place][0], abs=0.009)
    assert picker.spec['data']['previews'][0]['values'][0] == pytest.approx(shown.recorder.history[-1]['error_rate'], abs=1e-5)


# Steps with random numbers of their own

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


# Previews

@pytest.mark.parametrize('first_group, rate', [(-1, 3e-2), (-1, slice(1e-4, 1e-2)), (1, 1e-3), (0, slice(1e-4, 1e-2))])
def test_a_preview_is_what_training_gives(make_learner, first_group, rate):
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


@pytest.mark.parametrize('body', ['frozen', 'unfrozen'])
def test_a_preview_has_the_learners_precision(make_learner, body):
    learn = make_learner(precision='bf16')
    if body == 'unfrozen':
        learn.unfreeze()
    picker = pick_lr(learn, num_it=12, epochs=1)
    assert picker.finder.losses == learn.lr_find(num_it=12).losses
    shown = picker.preview(1e-2)
    learn.fit_one_cycle(1, 1e-2)
    assert shown.recorder.losses == pytest.approx(learn.recorder.losses, rel=1e-3)


def test_a_learners_features_are_used_again(make_learner):
    learn = make_learner()
    learn.fit(1, 1e-3)
    tables = [table for _, table, _ in learn.cache.tables.values()]
    picker = pick_lr(learn, num_it=12, epochs=1)
    loaders = picker.trainer.loaders
    assert tables[0] is loaders.train.table and tables[1] is loaders.valid.table
    with pytest.raises(ValueError, match='number of epochs has to be a whole number from 1 up, not 0'):
        pick_lr(learn, epochs=0)


def test_a_model_with_its_loaders_a_learner_or_an_error(pets, make_learner):
    learn = make_learner()
    before = everything(learn.model, learn.optimizer)
    assert len(pick_lr(learn, num_it=12, epochs=1).finder.lrs) == 12
    picker = pick_lr(learn.model, pets, epochs=1, num_it=12, seed=2)
    assert_unchanged(before, everything(learn.model, learn.optimizer))
    assert learn.recorder.losses == []
    shown = picker.preview(1e-2)
    recorder = fit(learn.model, pets, 1, one_cycle(len(pets.train), 1e-2), seed=2, show=False)
    assert shown.recorder.losses == pytest.approx(recorder.losses, rel=1e-4)
    learn.dls = None  # as `load_learner` gives it
    with pytest.raises(ValueError, match='without pictures'):
        pick_lr(learn)
    with pytest.raises(ValueError, match='loaders'):
        pick_lr(learn.model)


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
    assert 'no longer a finite number' in picker.spec['data']['previews'][-1]['problem'] and not error_of(picker)
    legend = plot_previews([shown], picker.trainer.before)[1].get_legend()
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ['1e+30 (broke off)'] or labels == ['1e30 (broke off)']


def test_an_error_in_a_metric_is_an_error_and_not_a_rate_that_broke_off(make_learner):
    picker = pick_lr(make_learner(), num_it=12, epochs=1)
    def fails(logits, targets):
        raise ValueError('wrong labels')
    picker.trainer.metrics = [fails]
    with pytest.raises(ValueError, match='wrong labels'):
        picker.preview(1e-2)
    picker.take(3e-3)  # as with the slider
    assert 'the metric fails failed' in error_of(picker) and 'wrong labels' in error_of(picker)
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


# In a kernel

@pytest.mark.parametrize('end', ['stop', 'another'])
def test_a_copy_in_the_background_can_be_stopped(make_learner, end):
    learn = make_learner()
    learn.unfreeze()
    picker = pick_lr(learn, num_it=12, epochs=50)
    async def kernel():
        picker.asked('train')
        await asyncio.sleep(0.5)
        assert picker.task and not picker.task.done() and picker.previews == []
        if end == 'stop':
            picker.asked('stop')
        else:
            picker.take(1e-4)
            picker.asked('train')
        await asyncio.sleep(0.1)
        picker.stop()
        await asyncio.sleep(0.1)
    asyncio.run(kernel())
    assert picker.previews[0].problem == 'stopped.' and 0 < len(picker.previews[0].recorder.losses) < picker.trainer.steps
    assert 'stopped' in picker.spec['data']['previews'][0]['problem'] and not error_of(picker)
    assert not picker.widget.news['running']


def test_an_error_in_the_background_is_shown(make_learner):
    learn = make_learner()
    learn.unfreeze()
    picker = pick_lr(learn, num_it=12, epochs=1)
    def fails(logits, targets):
        raise RuntimeError('no memory left')
    picker.trainer.loss_func = fails
    async def kernel():
        picker.asked('train')
        await asyncio.sleep(0.3)
    asyncio.run(kernel())
    assert 'RuntimeError: no memory left' in error_of(picker)


def test_a_dragged_picker_in_a_kernel_changes_nothing_either(make_learner):
    "Previews are begun, given up and finished between other work; that work draws random numbers."
    learn = make_learner()
    picker = pick_lr(learn, num_it=12)
    before = state(learn.model)
    async def kernel():
        drawn = []
        for i in range(15):
            picker.take(1e-5 * 1.3 ** i)
            drawn.append((np.random.rand(), torch.rand(1).item(), random.random()))
            await asyncio.sleep(0.02 if i % 10 else 0.3)
        await asyncio.sleep(0.8)
        return drawn
    with seeded(0):
        drawn = asyncio.run(kernel())
    with seeded(0):
        assert drawn == [(np.random.rand(), torch.rand(1).item(), random.random()) for _ in range(15)]
    assert same_bits(before, state(learn.model))
    assert not error_of(picker) and picker.previews[picker.newest].lr == two_digits(1e-5 * 1.3 ** 14)
    assert learn.recorder.steps == []
