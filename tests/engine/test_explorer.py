"Explorers without a browser: what Python knows of them, that they are safe, and that nothing piles up."
import copy
import gc
import io
import json
import re
import sys
import types
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from PIL import Image

from conftest import assert_unchanged, everything
from finetune_teach.all import explore_freezing, explore_one_cycle, explore_overfitting, pick_lr
from finetune_teach.engine.explorer import Explorer, two_digits

VIEW = 'function view(app) { return { draw() {}, nodes: [] }; }'


def line(figure, height=1.0, **_):
    figure.subplots().plot([0, height])


@pytest.fixture
def explorer():
    return Explorer(VIEW, {'top': 9}, {'height': 1}, line, alt='a <line>', size=(3, 2))


def test_the_still_picture_is_that_of_the_controls(explorer):
    before = explorer.still()
    assert Image.open(io.BytesIO(before)).size == (300, 200)
    explorer.move(height=5)
    assert explorer.values == {'height': 5} and explorer.still() != before
    explorer.values['height'] = 3
    explorer.move()
    assert explorer.values == {'height': 5}, 'what was given out is a copy'
    explorer.move(height=1)
    assert explorer.still() == before, 'the same value, the same picture'


def test_an_error_is_shown_and_goes_again(explorer):
    def fail(number):
        raise RuntimeError(f'too high: <{number}>')
    explorer.tell(curve=[1, 2])
    explorer.guarded(fail, 5)
    assert explorer.widget.news['error'].startswith('RuntimeError: too high: <5>') and explorer.widget.news['curve'] == [1, 2]
    explorer.guarded(lambda: None)
    assert explorer.widget.news == {'curve': [1, 2], 'error': ''}


def test_the_kernel_answers_what_the_page_asks():
    asked = []
    def answer(question):
        asked.append(question)
        raise KeyError('no answer')
    explorer = Explorer(VIEW, {}, {'x': 1}, line, alt='', answer=answer)
    explorer.widget._handle_custom_msg({'train': 3}, [])
    assert asked == [{'train': 3}] and 'no answer' in explorer.widget.news['error']


@pytest.mark.parametrize('data', [{'loss': float('nan')}, {'picture': b'1'}, {'set': {1}}])
def test_what_json_does_not_know_is_an_error_at_once(data):
    with pytest.raises((ValueError, TypeError)):
        Explorer(VIEW, data, {}, line, alt='')


def test_the_page_holds_the_state_the_words_and_the_still_picture(explorer):
    explorer.move(height=7)
    page = explorer.page()
    spec = json.loads(re.search(r'(?m)^start\("\w+", (.*)\);$', page)[1])
    assert spec == {'data': {'top': 9}, 'alt': 'a <line>', 'state': {'height': 7}}
    assert 'alt="a &lt;line&gt;"' in page and VIEW in page and '</script' not in page.rsplit('</script>', 1)[0]
    assert explorer._repr_mimebundle_().keys() == {'text/html', 'text/plain'}


def test_where_only_a_shown_widget_hears_python_the_widget_is_shown(monkeypatch):
    "Colab and VS Code."
    monkeypatch.setitem(sys.modules, 'google.colab', types.ModuleType('google.colab'))
    shown = Explorer(VIEW, {}, {'x': 1}, line, alt='')
    assert 'application/vnd.jupyter.widget-view+json' in shown._repr_mimebundle_()
    assert VIEW in shown.widget._esm and shown.widget.spec['state'] == {'x': 1}


def test_two_digits():
    assert two_digits(0.0012345) == 0.0012 and two_digits(97.6) == 98


# The explorers of the course

@pytest.fixture
def explorers(make_learner):
    "Each explorer, with a function that moves it to a place from 0 to 1."
    learn = make_learner()
    learn.fit_one_cycle(3, 1e-2)
    frozen = pick_lr(learn, num_it=30, epochs=1)
    learn.unfreeze()
    unfrozen = pick_lr(learn, num_it=12, epochs=1)
    freezing, cycle, overfitting = explore_freezing(learn), explore_one_cycle(learn), explore_overfitting(learn)
    def rate(picker):
        return lambda x: picker.take(1e-6 * 10 ** (5 * x))
    def control(explorer, name, low, high):
        def move(x):
            explorer.move(**{name: low + round(x * (high - low))})
            if x < 0.1:  # in ten of a hundred moves
                explorer.still()
        return move
    return [(frozen, rate(frozen)), (unfrozen, rate(unfrozen)), (freezing, control(freezing, 'start', 0, 2)),
            (cycle, control(cycle, 'epochs', 1, 9)), (overfitting, control(overfitting, 'epoch', 1, 3))]


@pytest.mark.slow
def test_a_hundred_moves_leave_nothing_behind(explorers):
    for explorer, move in explorers:
        def moves(n):
            for i in range(n):
                move((i * 37 % 100) / 100)
        moves(10)  # caches are filled
        gc.collect()
        figures, objects, blocks = len(plt.get_fignums()), len(gc.get_objects()), sys.getallocatedblocks()
        moves(100)
        gc.collect()
        assert not (explorer.widget.news.get('error') if isinstance(explorer, Explorer) else explorer.error.value)
        assert len(plt.get_fignums()) == figures
        assert len(gc.get_objects()) - objects < 100, 'fewer than one object for each move'
        assert sys.getallocatedblocks() - blocks < 1000


def test_nothing_of_the_learner_changes(make_learner):
    learn = make_learner(seed=None)
    learn.unfreeze()
    learn.fit_one_cycle(1, 1e-3)  # fills the optimiser's memory
    learn.optimizer.zero_grad()
    learn.model.train()
    before, recorder = everything(learn.model, learn.optimizer), copy.deepcopy(learn.recorder)
    picker = pick_lr(learn, num_it=12, epochs=1)
    picker.take(1e-2)
    picker.preview(slice(1e-4, 1e-2))
    picker.preview(1e9)
    for explorer, changes in [(explore_freezing(learn), {'start': 0}), (explore_freezing(), {'start': 2}),
                              (explore_one_cycle(learn), {'epochs': 9}), (explore_overfitting(learn), {'epoch': 1})]:
        explorer.move(**changes)
        explorer.page()
    assert_unchanged(before, everything(learn.model, learn.optimizer))
    assert learn.recorder.steps == recorder.steps and learn.recorder.history == recorder.history
    assert len(learn.recorder.answers) == len(recorder.answers)
