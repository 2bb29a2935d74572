"""What holds for any input: hypothesis looks for one for which it does not.

The same inputs each time (see conftest.py), so that a change breaks a test and chance does not.
"""
import argparse
import math
import warnings

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from finetune_teach.engine.explorer import two_digits
from finetune_teach.lr_finder import (
    LRFinder, rate_text, suggest_minimum, suggest_steep, suggest_valley)
from finetune_teach.tools.command_line import parser
from finetune_teach.tools.lr_picker import LRPicker

few = settings(max_examples=15)  # for what draws pictures

POSITIVE = st.floats(1e-12, 1e3)
RATES = st.floats(1e-9, 10)


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
    assert finder.diverged is None or finder.diverged in lrs


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
    curve = picker.spec['data']['curve']
    assert bool(curve['problem']) == bool(picker.finder.problem) == (not curve['rules'])
    assert picker.page()  # all of it is JSON


# Rates as text


@given(st.floats(1e-300, 1e300))
def test_a_rate_as_text_is_the_rate_to_two_digits(lr):
    assert float(rate_text(lr)) == two_digits(lr) == pytest.approx(lr, rel=0.051)
    assert two_digits(two_digits(lr)) == two_digits(lr)
    assert eval(rate_text(slice(lr))) == slice(two_digits(lr))
    assert eval(rate_text(slice(lr, 2 * lr))) == slice(two_digits(lr), two_digits(2 * lr))


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
