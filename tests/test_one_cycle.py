"Schedules as fastai's, and a rate for each layer group."
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from finetune_teach.one_cycle import (
    cosine, fine_tune_schedule, one_cycle, plot_fine_tune_schedule, spread_lrs)

RATES = st.floats(1e-9, 10)

# The numbers are what fastai 2.8.12 printed, with 10 batches an epoch and three groups.

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


# Any numbers

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


# One rate for each layer group

@pytest.mark.parametrize('lr, n_groups, expected', [
    (1, 2, [1, 1]), (slice(1e-3), 3, [1e-4, 1e-4, 1e-3]), (slice(1e-6, 1e-4), 3, [1e-6, 1e-5, 1e-4]),
    ((1e-5, 1e-3), 2, [1e-5, 1e-3]), (np.array([1e-5, 1e-3]), 2, [1e-5, 1e-3]),
    (torch.tensor([0.25, 0.5]), 2, [0.25, 0.5])])
def test_rates_are_spread(lr, n_groups, expected):
    assert spread_lrs(lr, n_groups) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize('lr, told', [
    ([1e-3, -1, 1e-3], 'a learning rate has to be a positive number, not -1 (in [0.001, -1, 0.001]). Usual values'),
    ('123', "not '123'. "), (slice(1e-5, None), 'not None (in slice'), (True, 'not True'),
    ([1e-3, 1e-3], '2 learning rates for 3 layer groups: [0.001, 0.001]. Give one rate'), ([], '0 learning rates')])
def test_bad_rates(lr, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        spread_lrs(lr, 3)


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


@settings(max_examples=300)
@given(ANYTHING, st.integers(1, 5))
def test_any_rates_give_positive_numbers_or_a_value_error(given_rates, n):
    try:
        rates = spread_lrs(given_rates, n)
    except ValueError as error:
        assert len(str(error)) > 20
    else:
        assert len(rates) == n and all(type(lr) is float and 0 < lr < math.inf for lr in rates)


# The picture of both phases

@pytest.mark.parametrize('freeze_epochs', [0, 2])
def test_plot_of_fine_tune_marks_its_phases(freeze_epochs):
    axes = plot_fine_tune_schedule(5, ['body', 'head'], epochs=3, freeze_epochs=freeze_epochs)
    marks = {'frozen': 0, 'unfrozen': freeze_epochs}
    for ax in axes:
        body, head = ax.get_lines()[:2]
        assert (body.get_label(), head.get_label()) == ('body', 'head')
        assert list(head.get_xdata()) == pytest.approx([(i + 1) / 5 for i in range(5 * (3 + freeze_epochs))])
        assert np.isnan(body.get_ydata()).sum() == 5 * freeze_epochs
        assert {t.get_text().strip(): t.get_position()[0] for t in ax.texts} == {
            name: at for name, at in marks.items() if freeze_epochs or name == 'unfrozen'}
