"The explorer shows the recorded runs, and names the recipe that is best among them."
from statistics import mean

import pytest

from conftest import CHROMIUM, open_explorer
from finetune_teach.tools.explore_near_and_far import (
    MEANINGS, REGIMES, explore_near_and_far, ranking, regime_data)
from finetune_teach.tools.recipes import RECIPES
from finetune_teach.tools.recorded_runs import best_rate, read_runs, select


def test_each_regime_is_complete():
    runs = read_runs()
    assert list(MEANINGS) == list(RECIPES)
    for name, (wanted, about, what) in REGIMES.items():
        regime = regime_data(runs, name)
        assert list(regime['errors']) == list(RECIPES) and about and what
        assert {r.n_valid for r in select(runs, **wanted)} == {regime['n_valid']}
        for recipe, errors in regime['errors'].items():
            assert sum(e is not None for e in errors) >= 3 and all(len(e) == 3 for e in errors if e)
            for rate, found in zip(regime['rates'], errors):
                assert found is None or found == [r.error for r in select(
                    runs, **wanted, epochs=5, recipe=recipe, rate=rate)]


def test_the_best_come_first():
    regime = {'rates': [1, 2], 'errors': {'a': [[.3, .5], [.1]], 'b': [[.2], None], 'c': [[.9], [.0]]}}
    assert ranking(regime, 1, 'abc') == [(.2, 'b'), (.4, 'a'), (.9, 'c')]
    assert ranking(regime, 2, 'ab') == [(.1, 'a')] and ranking(regime, 2, []) == []


def test_still_pictures_follow_the_controls():
    explorer = explore_near_and_far()
    stills = [explorer.still()]
    for values in ({'guess': 'fine_tune'}, {'rate': 1e-2}, {'recipes': ['head only']}, {'regime': 'flowers'}, {'recipes': []}):
        explorer.move(**values)
        stills.append(explorer.still())
    assert len(set(stills)) == 6


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason='needs Chromium')
def test_the_page_says_what_python_finds(browser, tmp_path):
    runs = read_runs()
    page = open_explorer(browser, explore_near_and_far(), tmp_path)
    assert not page.locator('.big').is_visible()
    page.get_by_role('button', name='fine_tune').click()
    app = '[...finetuneTeach.apps.values()][0][0]'
    for name, (wanted, *_) in REGIMES.items():
        regime = regime_data(runs, name)
        for recipes in (list(RECIPES), ['all at once', 'fine_tune']):
            own = {r: best_rate(select(runs, **wanted, epochs=5, recipe=r)) for r in recipes}
            best = min(own, key=lambda r: mean(own[r][1]))
            for rate in regime['rates']:
                state = {'regime': name, 'rate': rate, 'recipes': recipes}
                page.evaluate(f'o => {app}.move(o)', state)
                found = page.evaluate(f'{app}.ranking({app}.state)')
                wanted_ = ranking(regime, rate, recipes)
                assert [one['name'] for one in found] == [recipe for _, recipe in wanted_]
                assert [one['error'] for one in found] == pytest.approx([error for error, _ in wanted_])
                assert page.locator('.big').inner_text() == wanted_[0][1]
            found = page.evaluate(f'{app}.bestOfAll({app}.state)')
            assert (found['name'], found['rate']) == (best, own[best][0])
            assert found['error'] == pytest.approx(mean(own[best][1]))
    page.evaluate(f'o => {app}.move(o)', {'recipes': []})
    assert page.locator('.big').inner_text() == 'Tick a recipe'
    page.close()
