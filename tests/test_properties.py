"""What holds for any input: hypothesis looks for one for which it does not.

The same inputs each time (see conftest.py), so that a change breaks a test and chance does not.
"""
import argparse
import copy
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import nn

from finetune_teach.engine.explorer import two_digits
from finetune_teach.engine.history import smooth
from finetune_teach.engine.metrics import metric_names
from finetune_teach.freezing import freeze_to, layer_groups
from finetune_teach.lr_finder import (
    LRFinder, known_points, rate_text, suggest_minimum, suggest_steep, suggest_valley)
from finetune_teach.one_cycle import cosine, fine_tune_schedule, one_cycle, spread_lrs
from finetune_teach.tools.command_line import parser
from finetune_teach.tools.lr_picker import LRPicker
from finetune_teach.training_loop import constant, create_optimizer

few = settings(max_examples=15)  # for what draws pictures

POSITIVE = st.floats(1e-12, 1e3)
RATES = st.floats(1e-9, 10)


# Schedules

@given(st.integers(1, 400), st.lists(RATES, min_size=1, max_size=4), st.floats(1, 1e6), st.floats(1, 1e9),
       st.floats(0, 1), st.tuples(*[st.floats(0, 0.999)] * 3))
@example(1, [1e-3], 25.0, 1e5, 0.25, (0.95, 0.85, 0.95))
@example(3, [1e-3], 25.0, 1e5, 1.0, (0.95, 0.85, 0.95))
@example(3, [1e-3], 25.0, 1e5, 5e-324, (0.95, 0.85, 0.95))
def test_one_cycle(steps, peaks, div, div_final, pct_start, moms):
    schedule = one_cycle(steps, peaks, div, div_final, pct_start, moms)
    assert len(schedule.lrs) == len(schedule.moms) == steps
    for peak, rates in zip(peaks, zip(*schedule.lrs), strict=True):
        assert all(0 < rate <= peak * (1 + 1e-12) for rate in rates)  # nan is neither
        if pct_start > 0:
            assert rates[0] == peak / div
        rising = sum(i / steps < pct_start for i in range(steps))
        assert all(a <= b * (1 + 1e-12) for a, b in zip(rates[:rising], rates[1:rising]))
        assert all(a * (1 + 1e-12) >= b for a, b in zip(rates[rising:], rates[rising + 1:]))
    low, high = min(moms), max(moms)
    for step in schedule.moms:
        assert len(step) == len(peaks) and all(low - 1e-12 <= mom <= high + 1e-12 for mom in step)


@given(st.sampled_from(['div', 'div_final', 'pct_start', 'moms']), st.floats(), st.integers(0, 4))
def test_numbers_that_make_no_cycle_are_refused(name, value, n):
    good = {'div': 0 < value < math.inf, 'div_final': 0 < value < math.inf, 'pct_start': 0 <= value <= 1,
            'moms': n == 3 and 0 <= value < 1}
    options = {name: [value] * n if name == 'moms' else value}
    if good[name]:
        one_cycle(5, 1e-3, **options)
    else:
        with pytest.raises(ValueError, match=name):
            one_cycle(5, 1e-3, **options)


@given(st.integers(1, 60), RATES)
def test_one_rate_is_the_same_as_a_list_of_it(steps, peak):
    assert one_cycle(steps, peak) == one_cycle(steps, [peak])


@given(st.integers(1, 100), st.one_of(RATES, st.lists(RATES, min_size=1, max_size=4)), st.floats(0, 0.999))
def test_constant(steps, lr, mom):
    schedule = constant(steps, lr, mom)
    lrs = tuple(lr) if isinstance(lr, list) else (lr,)
    assert schedule.lrs == [lrs] * steps and schedule.moms == [(mom,) * len(lrs)] * steps


@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 3), RATES, st.floats(1e-2, 1e6), st.floats(0, 1),
       st.floats(1, 1e4), st.integers(1, 6))
def test_fine_tune_schedule(per_epoch, epochs, freeze_epochs, base_lr, lr_mult, pct_start, div, n_groups):
    schedule = fine_tune_schedule(per_epoch, epochs, base_lr, freeze_epochs, lr_mult, pct_start, div, n_groups=n_groups)
    assert len(schedule.lrs) == len(schedule.moms) == per_epoch * (epochs + freeze_epochs)
    frozen = per_epoch * freeze_epochs
    for lrs, moms in zip(schedule.lrs[:frozen], schedule.moms[:frozen]):
        assert all(map(math.isnan, [*lrs[:-1], *moms[:-1]])), 'what is frozen has no rate'
        assert 0 < lrs[-1] <= base_lr * (1 + 1e-12) and 0.85 <= moms[-1] <= 0.95
    peaks = spread_lrs(slice(base_lr / 2 / lr_mult, base_lr / 2), n_groups)
    for lrs, moms in zip(schedule.lrs[frozen:], schedule.moms[frozen:]):
        assert len(lrs) == len(moms) == n_groups
        assert all(0 < lr <= peak * (1 + 1e-12) for lr, peak in zip(lrs, peaks))
        assert all(0.85 <= mom <= 0.95 for mom in moms)


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.floats(0, 1), st.floats(0, 1))
def test_cosine(start, end, share, other):
    tiny = 1e-9 * (1 + abs(start) + abs(end))
    value = cosine(start, end, share)
    assert min(start, end) - tiny <= value <= max(start, end) + tiny
    assert cosine(start, end, 0) == start and cosine(start, end, 1) == pytest.approx(end, abs=tiny)
    if share <= other:  # never back
        assert (cosine(start, end, other) - value) * (end - start) >= -tiny * abs(end - start)


# A rate for each layer group

@given(RATES, RATES, st.integers(1, 8))
def test_a_slice_goes_from_end_to_end(first, last, n):
    rates = spread_lrs(slice(first, last), n)
    assert len(rates) == n and rates[-1] == last
    if n > 1:
        assert rates[0] == pytest.approx(first, rel=1e-9)
    sign = 1 if first <= last else -1
    assert all(sign * (b - a) >= -1e-12 * a for a, b in zip(rates, rates[1:])), 'all one way'
    assert all(b / a == pytest.approx((last / first) ** (1 / (n - 1)), rel=1e-9) for a, b in zip(rates, rates[1:]))


@given(RATES, st.integers(1, 8))
def test_one_end_or_one_rate(lr, n):
    assert spread_lrs(slice(lr), n) == [lr / 10] * (n - 1) + [lr]
    assert spread_lrs(lr, n) == spread_lrs([lr] * n, n) == spread_lrs(np.full(n, lr), n) == [lr] * n
    assert spread_lrs(np.float64(lr), n) == [lr] * n
    assert all(type(rate) is float for rate in spread_lrs(np.float32(lr), n))


NUMBERS = st.one_of(st.floats(), st.integers(), st.booleans(), st.floats(width=32).map(np.float32),
                    st.floats().map(np.float64), st.fractions(), st.sampled_from([10**400, -10**400, 5e-324, 1.7e308]))
ANYTHING = st.recursive(st.one_of(NUMBERS, st.none(), st.text(max_size=4)), lambda inner: st.one_of(
    st.lists(inner, max_size=4), st.tuples(inner, inner), st.builds(slice, inner, inner),
    st.builds(slice, inner), st.lists(st.floats(), max_size=4).map(np.array)), max_leaves=6)


@settings(max_examples=500)
@given(ANYTHING, st.integers(1, 5))
def test_any_rates_give_positive_numbers_or_a_value_error(given_rates, n):
    try:
        rates = spread_lrs(given_rates, n)
    except ValueError as error:
        assert len(str(error)) > 20
    else:
        assert len(rates) == n and all(type(lr) is float and 0 < lr < math.inf for lr in rates)


# The finder's suggestions

RULES = suggest_valley, suggest_steep, suggest_minimum
ANY = st.floats(allow_nan=True, allow_infinity=True)


def any_curve(rates, losses):
    return st.integers(0, 50).flatmap(lambda n: st.tuples(
        st.lists(rates, min_size=n, max_size=n), st.lists(losses, min_size=n, max_size=n)))


GROWING = st.lists(st.floats(1e-9, 100), max_size=50, unique=True).map(sorted)


@settings(max_examples=400)
@given(st.one_of(any_curve(ANY, ANY), any_curve(POSITIVE, st.floats(-10, 10)),
                 any_curve(POSITIVE, st.sampled_from([1.0, 2.0, math.nan, math.inf]))))
def test_a_suggestion_is_none_or_within_the_curve(curve):
    lrs, losses = curve
    tried = [lr for lr in lrs if 0 < lr < math.inf]
    for rule in RULES:
        lr = rule(lrs, losses)
        assert lr is None or min(tried) <= lr <= max(tried), rule.__name__
        assert lr == rule(np.array(lrs), np.array(losses)), 'arrays as well'
    assert suggest_valley(lrs, losses) in [None, *tried] and suggest_steep(lrs, losses) in [None, *tried]


@given(GROWING, st.data())
def test_a_curve_that_never_falls_has_no_suggestion(lrs, data):
    losses = sorted(data.draw(st.lists(st.floats(-1e6, 1e6), min_size=len(lrs), max_size=len(lrs))))
    skip = data.draw(st.integers(0, 20))
    assert [rule(lrs, losses) for rule in RULES] == [None] * 3
    finder = LRFinder(lrs, losses, losses, skip, 5)
    assert finder.suggestions == {} and 'no suggestion' in repr(finder) and finder.diverged is None
    with_gaps = [math.nan if data.draw(st.booleans()) else loss for loss in losses]
    assert [rule(lrs, with_gaps) for rule in RULES] == [None] * 3


@given(GROWING, st.data())
def test_a_curve_that_falls_has_a_suggestion(lrs, data):
    losses = data.draw(st.lists(st.integers(-5, 5), min_size=len(lrs), max_size=len(lrs)))
    falls = any(a > b for a, b in zip(losses, losses[1:]))
    assert (suggest_valley(lrs, losses) is not None) == (suggest_steep(lrs, losses) is not None) == falls


@given(st.lists(ANY, max_size=5), st.lists(ANY, max_size=5))
def test_rates_and_losses_have_to_be_as_many(lrs, losses):
    assume(len(lrs) != len(losses))
    for rule in RULES:
        with pytest.raises(ValueError, match=f'{len(lrs)} rates and {len(losses)} losses'):
            rule(lrs, losses)
    for one, other in (losses, lrs), (lrs, losses):
        with pytest.raises(ValueError, match='one loss for each rate'):
            LRFinder(lrs, one, other)


@given(any_curve(ANY, ANY), st.integers(0, 20), st.integers(0, 20))
def test_a_finder_made_of_anything_can_be_asked(curve, start, end):
    lrs, losses = curve
    finder = LRFinder(lrs, losses, losses, start, end)
    assert set(finder.suggestions) <= {'valley', 'steep', 'minimum'}
    assert all(math.isfinite(lr) for lr in finder.suggestions.values())
    assert bool(finder.problem) != bool(finder.suggestions) and finder.problem in repr(finder)
    assert finder.diverged is None or finder.diverged in known_points(lrs, losses)[0]


@few
@given(st.one_of(any_curve(st.floats(1e-9, 100), st.floats(-1e6, 1e6)),
                 any_curve(ANY, st.sampled_from([1.0, 2.0, math.nan, math.inf, -math.inf]))))
@example(([], []))
@example(([1e-3], [1.0]))
@example(([1e-3, 1e-2], [0.0, 0.0]))
@example(([1e-3, 1e-2, 1e-1], [-3.0, -4.0, math.nan]))
def test_a_finder_made_of_anything_can_be_drawn(curve):
    lrs, losses = curve
    finder = LRFinder(lrs, losses, losses, 1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # matplotlib's about infinities
        ax = finder.plot()
        ax.figure.canvas.draw()
    low, high = ax.get_ylim()
    assert low < high
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert (finder.problem in labels) == bool(finder.problem)


@few
@given(GROWING.filter(len), st.data())
@example([1e-3], None)
def test_a_rate_can_be_picked_on_any_curve(lrs, data):
    losses = data.draw(st.lists(st.floats(0, 10), min_size=len(lrs), max_size=len(lrs))) if data else [1.0]
    picker = LRPicker(LRFinder(lrs, losses, losses, 0, 0))
    assert lrs[0] <= picker.lr <= lrs[-1]
    assert ('No suggestion' in picker.rules.children[-1].value) == bool(picker.finder.problem)


# Averages, names of metrics, rates as text

@given(st.lists(st.floats(-1e6, 1e6), max_size=60), st.floats(0, 0.999))
def test_smooth_stays_between_the_values_so_far(values, beta):
    result = smooth(values, beta)
    assert len(result) == len(values)
    for i, value in enumerate(result):
        assert min(values[:i + 1]) - 1e-6 <= value <= max(values[:i + 1]) + 1e-6


@given(st.floats(-1e6, 1e6), st.integers(1, 60), st.floats(0, 0.999))
def test_smooth_keeps_what_is_level(value, n, beta):
    assert smooth([value] * n, beta) == pytest.approx([value] * n, rel=1e-9, abs=1e-9)


@given(st.lists(st.sampled_from(['f', 'f_2', 'f_3', 'f_2_2', 'g', 'g_2']), max_size=7))
def test_each_metric_has_a_name_of_its_own(names):
    def named(name):
        function = lambda logits, targets: 0.0
        function.__name__ = name
        return function
    found = metric_names([named(name) for name in names])
    assert len(set(found)) == len(names), found
    assert all(a.startswith(b) for a, b in zip(found, names))


@given(st.floats(1e-300, 1e300))
def test_a_rate_as_text_is_the_rate_to_two_digits(lr):
    assert float(rate_text(lr)) == two_digits(lr) == pytest.approx(lr, rel=0.051)
    assert two_digits(two_digits(lr)) == two_digits(lr)
    assert eval(rate_text(slice(lr))) == slice(two_digits(lr))
    assert eval(rate_text(slice(lr, 2 * lr))) == slice(two_digits(lr), two_digits(2 * lr))


# Networks

def leaf(kind):
    return {'linear': lambda: nn.Linear(4, 4), 'norm': lambda: nn.BatchNorm1d(4), 'relu': nn.ReLU,
            'dropout': lambda: nn.Dropout(0.5), 'no bias': lambda: nn.Linear(4, 4, bias=False)}[kind]()


KINDS = st.sampled_from(['linear', 'norm', 'relu', 'dropout', 'no bias'])
NETWORKS = st.recursive(KINDS, lambda inner: st.lists(inner, max_size=5), max_leaves=14)


def build(plan):
    return leaf(plan) if isinstance(plan, str) else nn.Sequential(*map(build, plan))


@given(NETWORKS)
def test_layer_groups_hold_each_parameter_once(plan):
    model = build(plan)
    groups = layer_groups(model)
    held = [id(p) for group in groups for p in group.parameters()]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    names = [group.name for group in groups]
    assert names in (['head'], ['body', 'head'], ['early body', 'late body', 'head'])
    assert all(group.parameters() for group in groups) or not held, 'none is empty'
    if held:
        in_groups = [id(p) for group in create_optimizer(model).param_groups for p in group['params']]
        assert sorted(in_groups) == sorted(held)


@given(NETWORKS.filter(lambda plan: isinstance(plan, list)), st.integers(-5, 5), st.booleans())
def test_freeze_to_any_group(plan, n, training):
    model = build(plan).train(training)
    groups, before = layer_groups(model), copy.deepcopy(model.state_dict())
    learned = [p.requires_grad for p in model.parameters()]
    if not -len(groups) <= n < len(groups) or len(groups) == 1 and n == -1:
        with pytest.raises(ValueError):
            freeze_to(model, n)
        assert [p.requires_grad for p in model.parameters()] == learned, 'nothing was changed'
        return
    assert freeze_to(model, n) is model and model.training is training
    for i, group in enumerate(groups):
        assert all(p.requires_grad == (i >= n % len(groups)) for p in group.parameters())
    model.train()
    y = model(torch.randn(6, 4))
    if y.requires_grad:
        y.square().sum().backward()
        optimizer = create_optimizer(model)
        optimizer.step()
    after = model.state_dict()
    frozen = {id(p) for group in groups[:n % len(groups)] for p in group.parameters()}
    for name, p in model.named_parameters():
        assert id(p) not in frozen or torch.equal(before[name], after[name])
    held = {id(m) for group in groups[:n % len(groups)] for part in group.modules for m in part.modules()}
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm1d) and id(module) in held:
            assert torch.equal(before[f'{name}.running_mean'], after[f'{name}.running_mean'])


# The command line

WORDS = st.one_of(st.sampled_from(['train', 'predict', 'claims', 'notebooks', '--seed', '--epochs', '--lr', '--top', '--out',
                                   '--seeds', '--size', '--batch-size', '--on-error', 'skip', '--overwrite', '--plot', '-h',
                                   '--device', '0', '3', '1e-3', '-1', 'nan', '--', '--no-outputs', '%s', '9' * 5000]),
                  st.text(max_size=6))


@settings(max_examples=500)
@given(st.lists(WORDS, max_size=6))
def test_any_command_line_is_understood_or_refused(words):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, '_print_message', lambda self, message, file=None: None)
        try:
            args = parser().parse_args(words)
        except SystemExit as end:
            assert end.code in (0, 2)
        else:
            assert callable(args.run)


@given(st.integers(1, 99), RATES, st.integers(), st.text('abc/. é', min_size=1, max_size=6))
def test_numbers_arrive_as_they_were_written(epochs, lr, seed, folder):
    args = parser().parse_args(['train', folder, f'--epochs={epochs}', f'--lr={lr}', f'--seed={seed}'])
    assert (args.folder, args.epochs, args.lr, args.seed) == (folder, epochs, lr, seed)
