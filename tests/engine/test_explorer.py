"Explorers without a browser: what they draw, that they are safe, and that nothing piles up."
import asyncio
import copy
import gc
import io
import json
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
from ipywidgets import FloatSlider, IntSlider
from nbconvert import HTMLExporter
from PIL import Image

from conftest import assert_unchanged, everything
from finetune_teach.all import explore_freezing, explore_one_cycle, explore_overfitting, pick_lr
from finetune_teach.engine.explorer import Explorer, log_slider, slider, two_digits


def line(figure, height=1.0, **_):
    figure.subplots().plot([0, height])


def of_height(draw, **options):
    return Explorer(draw, {'height': slider(FloatSlider, 'height', value=1, min=0, max=9)}, **options)


def picture(explorer):
    return bytes(explorer.pictures[0].widget.value)


@pytest.fixture
def explorer():
    return of_height(line, size=(3, 2), alt='a line', text=lambda height: f'height {height}')


def test_picture_and_line_follow_the_control(explorer):
    before = picture(explorer)
    assert Image.open(io.BytesIO(before)).size == (300, 200)
    explorer.controls['height'].value = 5
    assert picture(explorer) != before and explorer.values == {'height': 5} and explorer.line.value == 'height 5.0'
    explorer.controls['height'].value = 1
    assert picture(explorer) == before, 'the same value, the same picture'


def test_of_many_changes_at_once_only_the_last_is_drawn():
    drawn = []
    explorer = of_height(lambda figure, height: drawn.append(height))
    async def drag():
        for height in range(2, 9):
            explorer.controls['height'].value = height
        assert drawn == [1], 'nothing is drawn before the kernel is free'
        await asyncio.sleep(0.1)
        explorer.controls['height'].value = 3
        await asyncio.sleep(0.1)
    asyncio.run(drag())
    assert drawn == [1, 8, 3]


def test_a_slow_picture_does_not_let_changes_queue_up():
    "40 changes in 0.7 seconds; each picture takes a tenth: some are drawn, the last is right."
    drawn = []
    def draw(figure, height):
        time.sleep(0.1)
        drawn.append(height)
    explorer = of_height(draw)
    async def kernel():
        loop = asyncio.get_running_loop()
        def drag():  # messages come in while the kernel draws
            for height in range(1, 41):
                loop.call_soon_threadsafe(setattr, explorer.controls['height'], 'value', height / 5)
                time.sleep(1 / 60)
        await asyncio.to_thread(drag)
        await asyncio.sleep(0.3)
    asyncio.run(kernel())
    assert drawn[-1] == 8 and len(drawn) < 16


@pytest.mark.parametrize('in_kernel', [False, True])
def test_an_error_is_shown_and_the_picture_kept(in_kernel):
    def draw(figure, height):
        line(figure, height)
        if height > 3:
            raise RuntimeError(f'too high: <{height}>')
    explorer = of_height(draw)
    async def move(height):
        explorer.controls['height'].value = height
        await asyncio.sleep(0.05 * in_kernel)
    def go(height):
        if in_kernel:
            asyncio.run(move(height))
        else:
            explorer.controls['height'].value = height
    before = picture(explorer)
    go(5)
    assert 'RuntimeError: too high: &lt;5.0&gt;' in explorer.error.value and 'role="alert"' in explorer.error.value
    assert picture(explorer) == before
    go(2)
    assert explorer.error.value == '' and picture(explorer) != before


def test_an_error_while_it_is_made_is_raised():
    with pytest.raises(ZeroDivisionError):
        Explorer(lambda figure: 1 / 0, {})


def shown(explorer, monkeypatch):
    "What is put into the notebook's output."
    outputs = []
    monkeypatch.setattr('IPython.display.display', lambda data, metadata=None, raw=False: outputs.append((data, metadata)))
    explorer._ipython_display_()
    return outputs


def test_a_still_picture_with_words_comes_first(explorer, monkeypatch):
    (still, metadata), (living, _) = shown(explorer, monkeypatch)
    assert Image.open(io.BytesIO(still['image/png'])).size == (300, 200)
    assert still['text/plain'] == metadata['image/png']['alt'] == 'a line'
    assert 'application/vnd.jupyter.widget-view+json' in living
    assert living['text/plain'] == 'Run this cell to move the controls.'


def test_the_still_picture_is_the_newest(explorer):
    async def change():
        explorer.controls['height'].value = 5
        return explorer.still()
    later = asyncio.run(change())
    explorer.controls['height'].value = 1
    assert explorer.still() != later


def test_two_digits_and_sliders():
    assert two_digits(0.0012345) == 0.0012 and two_digits(97.6) == 98
    rate = log_slider('rate', 1e-3, 1e-7, 10)
    assert rate.value == pytest.approx(1e-3) and (rate.min, rate.max) == (-7, 1)
    assert isinstance(slider(IntSlider, 'n', value=1, min=0, max=3), IntSlider)


# The explorers of the course

@pytest.fixture
def explorers(make_learner):
    "Each explorer, with a function that moves it to a place from 0 to 1."
    learn = make_learner()
    learn.fit_one_cycle(3, 1e-2)
    frozen = pick_lr(learn, num_it=30, epochs=1)
    learn.unfreeze()
    unfrozen = pick_lr(learn, num_it=12, epochs=1)
    freezing, one_cycle, overfitting = explore_freezing(learn), explore_one_cycle(learn), explore_overfitting(learn)
    def rate(picker):
        return lambda x: picker.take(1e-6 * 10 ** (5 * x))
    def control(explorer, name, low, high):
        return lambda x: setattr(explorer.controls[name], 'value', low + round(x * (high - low)))
    return [(frozen, rate(frozen)), (unfrozen, rate(unfrozen)), (freezing, control(freezing, 'n', 0, 2)),
            (one_cycle, control(one_cycle, 'epochs', 1, 20)), (overfitting, control(overfitting, 'epoch', 1, 3))]


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
        assert explorer.error.value == ''
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
    explore_freezing(learn).controls['n'].value = 0
    explore_one_cycle(learn).controls['epochs'].value = 9
    explore_overfitting(learn).controls['epoch'].value = 1
    assert_unchanged(before, everything(learn.model, learn.optimizer))
    assert learn.recorder.steps == recorder.steps and learn.recorder.history == recorder.history
    assert len(learn.recorder.answers) == len(recorder.answers)


def test_a_page_without_a_kernel_shows_the_still_picture():
    "nbconvert, GitHub and the site take the image; its words are there for those who cannot see it."
    nbs, names = Path(__file__).parents[2] / 'nbs', set()
    for path in nbs.rglob('*.ipynb'):
        for cell in json.loads(path.read_text())['cells']:
            for before, output in zip([None, *cell.get('outputs', [])], cell.get('outputs', [])):
                if 'application/vnd.jupyter.widget-view+json' in output.get('data', {}):
                    names.add(path.stem)
                    assert before['metadata']['image/png']['alt'], path
                    assert len(before['data']['image/png']) * 3 / 4 < 100_000, path
    assert {'explorer', 'lr_picker', 'explore_freezing', 'explore_one_cycle', 'explore_overfitting'} <= names
    notebook = nbformat.read(nbs / 'engine' / 'explorer.ipynb', 4)
    page = HTMLExporter(template_name='classic').from_notebook_node(notebook)[0]  # the usual one drops the words
    assert 'alt="Steps of gradient descent on a parabola."' in page
