"What a step costs with each number of frozen groups, what an epoch does to the body, and the explorer of both."
import itertools
import math

import pytest
import torch
from torch import nn

from conftest import CHROMIUM, WithoutPlans, same_bits, small_network, state
from finetune_teach.freezing import layer_groups
from finetune_teach.pretrained_body import create_body
from finetune_teach.random_head import create_head
from finetune_teach.tools.explore_freezing import (
    HEADS, RATES, SEEDS, StepCost, explore_freezing, plot_freezing, read_epochs, run_epoch, step_cost, two_networks)


def test_costs_of_a_step(pets):
    model = nn.Sequential(create_body(small_network()), create_head(8, 12, hidden=(8,)))
    before, generator = state(model), torch.get_rng_state()
    x, y = next(iter(WithoutPlans(pets.valid)))
    costs = [step_cost(model, x, y, n) for n in range(3)]
    assert same_bits(before, state(model)) and generator.equal(torch.get_rng_state())
    assert costs[0].learns == sum(p.numel() for p in model.parameters())
    assert costs[2].learns == sum(p.numel() for p in model[1].parameters())
    assert costs[0].kept > costs[1].kept > costs[2].kept > 0
    assert all(c.seconds > 0 for c in costs) and costs[2].reused < costs[2].seconds
    assert math.isnan(costs[0].reused) and math.isnan(costs[1].reused)


def test_explorer_of_freezing(pets, make_learner):
    learn = make_learner()
    explorer = explore_freezing(learn)
    assert explorer.values == {'start': 2}
    columns, costs = explorer.spec['data']['columns'], explorer.spec['data']['costs']
    assert [column['name'] for column in columns] == ['early body', 'late body', 'head']
    for column, group in zip(columns, layer_groups(learn.model)):
        assert column['weights'] == sum(p.numel() for p in group.parameters()) == sum(n for _, n in column['layers'])
    weights = [column['weights'] for column in columns]
    assert [cost[0] for cost in costs] == [sum(weights[n:]) for n in range(3)]
    assert [cost[3] is None for cost in costs] == [True, True, False], 'JSON knows no NaN'
    pictures = set()
    for n in range(3):
        explorer.move(start=n)
        pictures.add(explorer.still())
    assert len(pictures) == 3
    assert explore_freezing(learn.model, pets).values == {'start': 2}, 'a model with loaders will do'


def test_the_recorded_epochs_are_all_there():
    found = read_epochs()
    wanted = set(itertools.product(HEADS, range(3), RATES, SEEDS))
    assert len(found['runs']) == len(wanted) and {run[:4] for run in found['runs']} == wanted
    assert all(run.knows == found['before'] for run in found['runs'] if run.start == 2), 'frozen is frozen'
    assert [cost.learns for cost in found['costs']] == [2_845_100, 2_764_044, 138_764]
    seconds = [cost.seconds for cost in found['costs']]
    assert seconds[0] > seconds[1] > seconds[2] > found['costs'][2].reused > 0


@pytest.mark.parametrize('head, start, lr, seed', [('random', 0, 3e-3, 0), ('trained', 1, 3e-4, 2), ('trained', 2, 1e-4, 1)])
def test_what_is_recorded_comes_out_again(head, start, lr, seed):
    "The same to the bit on this kind of processor; others add in another order, and an epoch makes more of that."
    dls, models = two_networks()
    again = run_epoch(models[head], dls, head, start, lr, seed)
    recorded = next(run for run in read_epochs()['runs'] if run[:4] == (head, start, lr, seed))
    assert again.knows == pytest.approx(recorded.knows, abs=0.06) and again.error == pytest.approx(recorded.error, abs=0.06)


def test_a_record_is_read_as_it_was_written(monkeypatch, tmp_path, pets):
    from finetune_teach.tools import explore_freezing as module
    models = {head: nn.Sequential(create_body(small_network()), create_head(8, 12, hidden=(8,))) for head in HEADS}
    monkeypatch.setattr(module, 'two_networks', lambda: (pets, models))
    monkeypatch.setattr(module, 'RATES', (1e-3,))
    module.record_epochs(tmp_path / 'runs.json')
    found = read_epochs(tmp_path / 'runs.json')
    assert [run[:4] for run in found['runs']] == list(itertools.product(HEADS, range(3), (1e-3,), SEEDS))
    assert found['n'] == 36 and found['classes'] == 12 and math.isnan(found['costs'][0].reused)
    assert (tmp_path / 'runs.json').read_text().count('\n') == 19, 'each run has a line'


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason='needs Chromium')
def test_the_page_shows_what_was_measured(tmp_path):
    playwright = pytest.importorskip('playwright.sync_api', reason='needs playwright')
    explorer, found = explore_freezing(), read_epochs()
    (tmp_path / 'page.html').write_text(f'<meta charset="utf-8">{explorer.page()}', 'utf-8')
    def percent(value):
        return f'{math.floor(100 * value + 0.5)}\u202f%'
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        page = browser.new_context(viewport={'width': 800, 'height': 1200}).new_page()
        page.goto((tmp_path / 'page.html').as_uri())
        page.wait_for_function('globalThis.finetuneTeach?.apps.size')
        app, lock = '[...finetuneTeach.apps.values()][0][0]', page.get_by_role('slider')
        def check(head, start, lr):
            three = [run for run in found['runs'] if run[:3] == (head, start, lr)]
            means = [sum(run[k] for run in three) / 3 for k in (4, 5)]
            assert page.locator('.big:visible').all_inner_texts() == [percent(value) for value in means]
            assert page.evaluate(f'{app}.found({app}.state)') == pytest.approx(dict(zip(('knows', 'error'), means)))
            seeds = ', '.join(str(math.floor(100 * run.error + 0.5)) for run in three)
            assert page.get_by_text(f'3 seeds: {seeds}').first.is_visible()
        def costs(start):
            cost, whole = found['costs'][start], found['costs'][0]
            assert page.locator('.costs .value').all_inner_texts()[:2] == [
                percent(cost.learns / whole.learns), percent(cost.seconds / whole.seconds)]
            learning = [box.evaluate('e => e.classList.contains("learns")') for box in page.locator('button.column').all()]
            assert learning == [i >= start for i in range(3)]
            assert lock.get_attribute('aria-valuenow') == str(start)
        assert page.locator('.big:visible').count() == 0, 'nothing is told before the guess'
        costs(0)
        page.get_by_role('button', name='about half').click()
        before, chance = found['before'], 1 / 12
        after = sum(run.knows for run in found['runs'] if run[:3] == ('random', 0, 3e-3)) / 3
        share = (after - chance) / (before - chance)
        wanted = ('More than before' if share > 1.1 else 'As much as before' if share > 0.8 else
                  'About half' if share > 0.25 else 'Next to nothing')
        assert page.locator('h3:visible').first.inner_text() == wanted
        check('random', 0, 3e-3)
        for label, lr in [('1e-4', 1e-4), ('3e-4', 3e-4), ('1e-3', 1e-3), ('3e-3', 3e-3)]:
            page.get_by_label(label, exact=True).check()
            for key, start in [('ArrowRight', 1), ('ArrowRight', 2), ('ArrowRight', 2), ('ArrowLeft', 1), ('ArrowLeft', 0)]:
                lock.press(key)
                check('random', start, lr)
                costs(start)
        page.get_by_label('trained before').check()
        page.locator('button.column').nth(1).click()
        check('trained', 1, 3e-3)
        box, lane = lock.bounding_box(), page.locator('.columns').bounding_box()
        page.wait_for_timeout(500)  # the lock glides
        box = lock.bounding_box()
        page.mouse.move(box['x'] + 20, box['y'] + 20)
        page.mouse.down()
        page.mouse.move(lane['x'] + lane['width'] * 0.7, box['y'] + 20, steps=5)
        page.mouse.up()
        check('trained', 2, 3e-3)
        costs(2)
        browser.close()


def test_plot_of_freezing_names_layers_and_costs(make_learner):
    model = make_learner().model
    costs = [StepCost(100, 2**20, 0.1, math.nan), StepCost(50, 2**19, 0.05, math.nan), StepCost(9, 10, 0.02, 0.001)]
    texts = [t.get_text() for t in plot_freezing(model, costs, 1).texts]
    assert {'conv1', 'layer1', 'layer4', 'Linear', 'from head', '100 ms', '1.0 MB'} <= set(texts)
    assert '20 ms, 1.0 with cached features' in texts
