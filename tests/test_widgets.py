"Explorers without a browser: what they draw, that they are safe, and that nothing piles up."
import asyncio
import gc
import io
import random
import sys
import time

import ipywidgets
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
from nbconvert import HTMLExporter
from PIL import Image

from conftest import assert_unchanged, everything, same_bits, state
from finetune_teach.all import explore_freezing, explore_one_cycle, explore_overfitting, pick_lr
from finetune_teach.engine.explorer import Explorer, log_slider, slider, two_digits
from finetune_teach.engine.random_state import seeded


def line(figure, height=1.0, **_):
    figure.subplots().plot([0, height])


@pytest.fixture
def explorer():
    return Explorer(line, {'height': slider('Float', 'height', value=1, min=0, max=9)}, size=(3, 2), alt='a line')


def test_the_picture_follows_the_control(explorer):
    before = bytes(explorer.pictures[0].widget.value)
    assert Image.open(io.BytesIO(before)).size == (300, 200)
    explorer.controls['height'].value = 5
    after = bytes(explorer.pictures[0].widget.value)
    assert after != before and explorer.values == {'height': 5}
    explorer.controls['height'].value = 1
    assert bytes(explorer.pictures[0].widget.value) == before, 'the same value, the same picture'


def test_the_line_below_follows_too():
    explorer = Explorer(line, {'height': slider('Float', 'height', value=1, min=0, max=9)},
                        text=lambda height: f'height {height}')
    assert explorer.line.value == 'height 1.0'
    explorer.controls['height'].value = 4
    assert explorer.line.value == 'height 4.0'


def test_of_many_changes_at_once_only_the_last_is_drawn():
    drawn = []
    def draw(figure, height):
        drawn.append(height)
    explorer = Explorer(draw, {'height': slider('Float', 'height', value=1, min=0, max=9)})
    async def drag():
        for height in range(2, 9):
            explorer.controls['height'].value = height
        assert drawn == [1], 'nothing is drawn before the kernel is free'
        await asyncio.sleep(0.1)
        assert drawn == [1, 8]
        explorer.controls['height'].value = 3
        await asyncio.sleep(0.1)
    asyncio.run(drag())
    assert drawn == [1, 8, 3]


def test_a_slow_picture_does_not_let_changes_queue_up():
    "60 changes a second for a second; each picture takes a tenth: about ten are drawn, the last is right."
    drawn = []
    def draw(figure, height):
        time.sleep(0.1)
        drawn.append(height)
    explorer = Explorer(draw, {'height': slider('Int', 'height', value=0, min=0, max=99)})
    async def kernel():
        loop = asyncio.get_running_loop()
        def drag(): # messages come in while the kernel draws
            for height in range(1, 61):
                loop.call_soon_threadsafe(setattr, explorer.controls['height'], 'value', height)
                time.sleep(1 / 60)
        await asyncio.gather(asyncio.to_thread(drag))
        await asyncio.sleep(0.3)
    start = time.perf_counter()
    asyncio.run(kernel())
    assert drawn[-1] == 60 and len(drawn) < 20
    assert time.perf_counter() - start < 4


@pytest.mark.parametrize('in_kernel', [False, True])
def test_an_error_is_shown_and_the_picture_kept(in_kernel):
    def draw(figure, height):
        line(figure, height)
        if height > 3:
            raise RuntimeError(f'too high: <{height}>')
    explorer = Explorer(draw, {'height': slider('Float', 'height', value=1, min=0, max=9)})
    before = bytes(explorer.pictures[0].widget.value)
    async def move(height):
        explorer.controls['height'].value = height
        await asyncio.sleep(0.05)
    def go(height):
        if in_kernel:
            asyncio.run(move(height))
        else:
            explorer.controls['height'].value = height
    go(5)
    assert 'RuntimeError: too high: &lt;5.0&gt;' in explorer.error.value and 'role="alert"' in explorer.error.value
    assert bytes(explorer.pictures[0].widget.value) == before
    go(2)
    assert explorer.error.value == '' and bytes(explorer.pictures[0].widget.value) != before


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
    assert isinstance(slider('Int', 'n', value=1, min=0, max=3), ipywidgets.IntSlider)


# The explorers of the course

@pytest.fixture
def explorers(make_learner):
    "Each explorer, with a function that moves its first control to a place from 0 to 1, and the learner."
    learn = make_learner()
    learn.fit_one_cycle(3, 1e-2)
    learn.freeze()
    frozen = pick_lr(learn, num_it=30, epochs=1)
    learn.unfreeze()
    unfrozen = pick_lr(learn, num_it=12, epochs=1)
    freezing, one_cycle, overfitting = explore_freezing(learn), explore_one_cycle(learn), explore_overfitting(learn)
    def rate(picker):
        return lambda x: picker.take(1e-6 * 10 ** (5 * x))
    def control(explorer, name, low, high):
        return lambda x: setattr(explorer.controls[name], 'value', low + round(x * (high - low)))
    return learn, {
        'pick_lr': (frozen, rate(frozen)), 'pick_lr unfrozen': (unfrozen, rate(unfrozen)),
        'explore_freezing': (freezing, control(freezing, 'n', 0, 2)),
        'explore_one_cycle': (one_cycle, control(one_cycle, 'epochs', 1, 20)),
        'explore_overfitting': (overfitting, control(overfitting, 'epoch', 1, 3))}


NAMES = ['pick_lr', 'pick_lr unfrozen', 'explore_freezing', 'explore_one_cycle', 'explore_overfitting']


@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_two_hundred_moves_leave_nothing_behind(explorers, name):
    _, all_of_them = explorers
    explorer, move = all_of_them[name]
    def moves(n):
        for i in range(n):
            move((i * 37 % 100) / 100)
    moves(20)  # caches are filled
    gc.collect()
    figures = len(plt.get_fignums())
    objects, blocks = len(gc.get_objects()), sys.getallocatedblocks()
    moves(200)
    gc.collect()
    assert explorer.error.value == ''
    assert len(plt.get_fignums()) == figures
    assert len(gc.get_objects()) - objects < 200, 'fewer than one object for each move'
    assert sys.getallocatedblocks() - blocks < 2000


@pytest.mark.parametrize('seed', [None, 3])
def test_nothing_of_the_learner_changes(make_learner, seed):
    learn = make_learner(seed=seed)
    learn.fine_tune(1)
    for stage in (learn.freeze, learn.unfreeze):
        learn.fit_one_cycle(1, 1e-3)
        stage()
        learn.optimizer.zero_grad()
        learn.model.train()
        before, steps, rows = everything(learn.model, learn.optimizer), list(learn.recorder.steps), len(learn.recorder.history)
        picker = pick_lr(learn, num_it=12, epochs=1)
        picker.take(1e-2)
        picker.preview(slice(1e-4, 1e-2))
        picker.preview(1e9)
        explore_freezing(learn).controls['n'].value = 0
        explore_one_cycle(learn).controls['epochs'].value = 9
        explore_overfitting(learn).controls['epoch'].value = 1
        assert_unchanged(before, everything(learn.model, learn.optimizer))
        assert learn.recorder.steps == steps and len(learn.recorder.history) == rows == len(learn.recorder.answers)


def test_a_dragged_picker_in_a_kernel_changes_nothing_either(make_learner):
    "Previews are begun, given up and finished between other work; that work draws random numbers."
    learn = make_learner()
    picker = pick_lr(learn, num_it=12)
    before = state(learn.model)
    async def kernel():
        drawn = []
        for i in range(30):
            picker.take(1e-5 * 1.3 ** i)
            drawn.append((np.random.rand(), torch.rand(1).item(), random.random()))
            await asyncio.sleep(0.02 if i % 10 else 0.5)
        await asyncio.sleep(1)
        return drawn
    with seeded(0):
        drawn = asyncio.run(kernel())
    with seeded(0):
        assert drawn == [(np.random.rand(), torch.rand(1).item(), random.random()) for _ in range(30)]
    assert same_bits(before, state(learn.model))
    assert picker.error.value == '' and picker.previews[picker.newest].lr == two_digits(1e-5 * 1.3 ** 29)
    assert learn.recorder.steps == []


WIDGETS = {'00_widgets': 1, '03_freezing': 1, '04_one_cycle': 1, '05_lr_finder': 2, '07_overfitting': 1}


@pytest.mark.parametrize('name', WIDGETS)
def test_a_page_without_a_kernel_shows_the_still_picture(name):
    "nbconvert, GitHub and the site take the image; its words are there for those who cannot see it."
    from test_notebooks import ROOT
    notebook = nbformat.read(ROOT / 'nbs' / f'{name}.ipynb', 4)
    stills = [(output, after) for cell in notebook.cells if cell.cell_type == 'code'
              for output, after in zip(cell.outputs, cell.outputs[1:])
              if 'application/vnd.jupyter.widget-view+json' in after.get('data', {})]
    assert len(stills) == WIDGETS[name]
    page = HTMLExporter().from_notebook_node(notebook)[0]
    classic = HTMLExporter(template_name='classic').from_notebook_node(notebook)[0]
    for still, _ in stills:
        picture = still.data['image/png'].strip()
        assert picture in page and picture in classic
        assert f'alt="{still.metadata["image/png"]["alt"]}"' in classic, 'the usual template drops the words'
        assert len(still.data['image/png']) * 3 / 4 < 100_000
