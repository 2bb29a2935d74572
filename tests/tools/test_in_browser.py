"""The explorers in JupyterLab, in a real Chromium: the page of each is opened and run.

Screenshots, and the times from a key to the new picture, are left in `tests/screenshots`.
"""
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

from conftest import CHROMIUM

pytest.importorskip('playwright.sync_api', reason='needs playwright')
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason='needs Chromium')]

ROOT = Path(__file__).parents[2]
SCREENSHOTS = ROOT / 'tests' / 'screenshots'
SETTINGS = {
    'notebook-extension/tracker': {'windowingMode': 'none'},  # every cell is in the page
    'apputils-extension/notification': {'fetchNews': 'false', 'checkForUpdates': False},
    'docmanager-extension/plugin': {'autosave': False},
}


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "Address of a JupyterLab that serves copies of the notebooks."
    folder = tmp_path_factory.mktemp('lab')
    shutil.copytree(ROOT / 'nbs', folder / 'nbs', symlinks=True)
    for name, values in SETTINGS.items():
        path = folder / f'settings/@jupyterlab/{name}.jupyterlab-settings'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    command = [sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', f'--port={port}',
               '--IdentityProvider.token=', '--ServerApp.password=', '--ServerApp.disable_check_xsrf=True',
               f'--ServerApp.root_dir={folder / "nbs"}', f'--LabApp.user_settings_dir={folder / "settings"}']
    with open(folder / 'log', 'w') as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    address = f'http://localhost:{port}'
    for _ in range(200):
        try:
            urllib.request.urlopen(f'{address}/api').read()
            break
        except OSError:
            assert server.poll() is None, (folder / 'log').read_text()
            time.sleep(0.2)
    yield address, folder / 'nbs'
    server.terminate()
    server.wait(30)


def open_and_run(browser, lab, name, *more):
    "The page of a notebook in which all cells have been run; `more` cells were put at its end."
    address, folder = lab
    notebook = nbformat.read(folder / f'{name}.ipynb', 4)
    for cell in notebook.cells:
        if cell.cell_type == 'code':
            cell.outputs, cell.execution_count = [], None
    notebook.cells += [nbformat.v4.new_code_cell(source) for source in more or ['pass']]
    nbformat.write(notebook, folder / f'{name}.ipynb')
    page = browser.new_page(viewport={'width': 880, 'height': 1000})
    page.set_default_timeout(60_000)
    page.problems = []
    page.on('pageerror', lambda error: page.problems.append(str(error)))
    page.goto(f'{address}/doc/tree/{name}.ipynb?reset')
    page.locator('.jp-NotebookPanel-toolbar').wait_for()
    page.get_by_text('| Idle').wait_for()
    page.get_by_role('menuitem', name='Run', exact=True).click()
    page.get_by_text('Run All Cells', exact=True).click()
    page.wait_for_timeout(2000)
    if page.locator('.jp-Dialog').count():  # which kernel? it asks if that was too early
        page.locator('.jp-Dialog .jp-mod-accept').click()
    page.wait_for_function('''() => {
        const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(e => e.textContent);
        return /\\d/.test(prompts.at(-1)) && !prompts.some(text => text.includes('*')); }''', timeout=240_000)
    assert page.locator('.jp-RenderedText[data-mime-type="application/vnd.jupyter.stderr"]').count() == 0
    return page


APPS = '[...finetuneTeach.apps.values()].flat().filter(app => app.model)'


def test_page_and_kernel_are_one(browser, lab):
    "What is moved in the page is known in Python, and the other way round; nothing is shown twice."
    page = open_and_run(browser, lab, 'tools/explore_one_cycle', "print('CHOSEN', explorer.values['epochs'])")
    page.wait_for_function(f'{APPS}.length')
    host = page.locator('[data-explorer]')
    assert host.count() == 1 and page.locator('.jp-OutputArea img').count() == 1  # the still one, not to be seen
    assert not page.locator('.jp-OutputArea img').is_visible()
    assert page.evaluate(f'{APPS}[0].state.base_lr') == 0.03, 'a cell has moved it'
    host.scroll_into_view_if_needed()
    host.locator('summary').click()
    slider = host.locator('input[name=epochs]')
    slider.focus()
    page.keyboard.press('ArrowRight')
    page.wait_for_timeout(500)
    assert chosen(page) == '5'
    host.locator('code').get_by_text('fine_tune(5, base_lr=0.03)').wait_for()
    slider.focus()
    page.keyboard.press('ArrowLeft')  # not one for the notebook
    assert slider.evaluate('e => e.getRootNode().activeElement === e') and page.problems == []
    SCREENSHOTS.mkdir(exist_ok=True)
    host.screenshot(path=SCREENSHOTS / 'lab-one_cycle.png')
    page.close()


def test_an_error_of_the_kernel_shows_in_the_explorer(browser, lab):
    page = open_and_run(browser, lab, 'engine/explorer', 'explorer.guarded(lambda: 1 / 0)')
    page.wait_for_function(f'{APPS}.length')
    page.locator('[data-explorer] [role=alert]').get_by_text('ZeroDivisionError').wait_for()
    page.close()


def test_a_notebook_that_is_only_opened_moves(browser, lab):
    "Run, saved, its kernel ended, opened again: it moves, though there is no kernel behind it."
    address, folder = lab
    page = open_and_run(browser, lab, 'engine/explorer')
    page.locator('.jp-Notebook').first.click(position={'x': 5, 'y': 5})
    page.keyboard.press('Control+s')
    page.wait_for_timeout(2000)
    page.close()
    for session in json.load(urllib.request.urlopen(f'{address}/api/sessions')):
        urllib.request.urlopen(urllib.request.Request(f'{address}/api/sessions/{session["id"]}', method='DELETE'))
    page = browser.new_page(viewport={'width': 880, 'height': 1000})
    page.goto(f'{address}/doc/tree/engine/explorer.ipynb?reset')
    host = page.locator('[data-explorer]').first
    host.locator('input').first.wait_for()
    look = 'e => [...e.shadowRoot.querySelectorAll("svg, .value")].map(e => e.outerHTML).join()'
    before = host.evaluate(look)
    host.locator('input').first.focus()
    page.keyboard.press('ArrowRight')
    page.wait_for_timeout(300)
    assert host.evaluate(look) != before and page.evaluate(f'{APPS}.length') == 0
    page.close()


def test_freezing(browser, lab):
    page = open_and_run(browser, lab, 'tools/explore_freezing', "print('CHOSEN', explorer.values['start'])")
    page.wait_for_function(f'{APPS}.length == 2')
    host = page.locator('[data-explorer]').first
    host.scroll_into_view_if_needed()
    lock = host.get_by_role('slider')
    for key, start in [('ArrowRight', '1'), ('ArrowRight', '2'), ('ArrowLeft', '1')]:
        lock.focus()
        page.keyboard.press(key)
        page.wait_for_timeout(500)
        assert lock.get_attribute('aria-valuenow') == chosen(page) == start
    host.locator('button.column').first.click()
    host.get_by_role('button', name='about half').click()
    host.get_by_text('You said: about half').wait_for()
    page.wait_for_timeout(500)
    assert chosen(page) == '0' and page.problems == []
    host.screenshot(path=SCREENSHOTS / 'lab-freezing.png')
    own = page.locator('[data-explorer]').last
    assert own.get_by_role('slider').get_attribute('aria-valuenow') == '2', 'a network of one\'s own: the head learns'
    assert not own.get_by_text('Guess first').count(), 'nothing is known of its epochs'
    page.close()


UNFROZEN = """from finetune_teach.freezing import unfreeze
from finetune_teach.tools.previews import practice
model, dls = practice()
unfrozen = pick_lr(unfreeze(model), dls, 2, seed=0)
unfrozen"""


def chosen(page):
    "Run the last cell again, and read what it says."
    cell = page.locator('.jp-CodeCell').filter(has_text='CHOSEN').last
    cell.locator('.cm-content').click()
    page.keyboard.press('Shift+Enter')
    page.wait_for_timeout(1000)
    return cell.locator('.jp-OutputArea-output').inner_text().split()[-1]


def written(file, name, value):
    "Write a figure down beside the screenshots."
    SCREENSHOTS.mkdir(exist_ok=True)
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**known, name: value}, indent=1))


def test_pick_lr(browser, lab):
    "The game, with copies that are really trained; then any rate, as a number, as a slice, and all layers."
    page = open_and_run(browser, lab, 'tools/lr_picker', UNFROZEN, "print('CHOSEN', repr(picker.lr).replace(' ', ''))")
    page.wait_for_function(f'{APPS}.length === 2')
    host, after = page.locator('[data-explorer]').all()
    host.scroll_into_view_if_needed()
    number, marker = host.get_by_label('Learning rate as a number'), host.get_by_role('slider', name='Learning rate')
    assert chosen(page) == '0.002' and number.input_value() == '2e-3', 'a cell has moved it'
    host.get_by_text('error after 3 epochs at 2e-3').wait_for()  # trained, as it was moved
    for rule in ('valley', 'steep'):
        button = host.get_by_role('button', name=rule)
        button.click()
        says = button.inner_text().split()[1]
        host.get_by_text(f'error after 3 epochs at {says}').wait_for()
        assert float(number.input_value()) == float(chosen(page)) == float(says)
    start, times = float(number.input_value()), []
    for _ in range(10):  # each key: at once in the page, and the copy of that rate within a second
        before = page.evaluate(f'{APPS}[0].news.previews.map(p => p.lr)')
        marker.focus()
        begun = time.perf_counter()
        page.keyboard.press('ArrowRight')
        page.wait_for_function(f'lr => {APPS}[0].news.previews.some(p => p.lr === {APPS}[0].state.lr)')
        times.append(time.perf_counter() - begun)
        assert page.evaluate(f'{APPS}[0].news.previews.map(p => p.lr)') != before
    written(SCREENSHOTS / 'milliseconds.json', 'pick_lr: key to trained copy',
            {'median': round(1000 * statistics.median(times)), 'all': [round(1000 * t) for t in times]})
    assert float(chosen(page)) == float(number.input_value()) == pytest.approx(10 ** 0.5 * start, rel=0.1)
    number.fill('0.0123')
    number.press('Tab')
    host.get_by_text('at 1.2e-2').wait_for()
    assert chosen(page) == '0.0123'
    number.fill('much')
    number.press('Tab')
    host.get_by_text('much: type a rate between').wait_for()
    assert chosen(page) == '0.0123'
    SCREENSHOTS.mkdir(exist_ok=True)
    host.screenshot(path=SCREENSHOTS / 'lab-pick_lr.png')

    after.scroll_into_view_if_needed()  # the one after unfreezing, which trains in the background
    start, stop = (after.get_by_role('button', name=name) for name in ('Train a copy', 'Stop'))
    start.click()
    after.get_by_text('epoch 0 of 2').wait_for()
    stop.click()  # at once: two epochs take some seconds only
    after.get_by_text('stopped', exact=True).wait_for()
    start.click()
    after.get_by_text('epoch 0 of 2').wait_for()
    assert chosen(page), 'other cells run meanwhile'
    after.get_by_text('error after 2 epochs').wait_for(timeout=120_000)
    after.get_by_role('switch').check()  # a rate for each layer group
    marker = after.get_by_role('slider', name='Rate of the first layers')
    marker.focus()
    page.keyboard.press('ArrowLeft')
    after.locator('code').get_by_text('slice(').wait_for()
    after.screenshot(path=SCREENSHOTS / 'lab-pick_lr_unfrozen.png')
    assert page.problems == []
    page.close()


def test_overfitting(browser, lab):
    page = open_and_run(browser, lab, 'tools/explore_overfitting', "print('CHOSEN', explorer.values['epoch'])")
    page.wait_for_function(f'{APPS}.length')
    host = page.locator('[data-explorer]')
    host.scroll_into_view_if_needed()
    ring = host.get_by_role('slider', name='Epoch', exact=True)
    assert chosen(page) == '1'
    host.get_by_label('fewer', exact=True).check()
    host.get_by_label('surer').check()
    host.get_by_text('You said: fewer, and surer.').wait_for()
    page.wait_for_timeout(4000)  # the run goes on to its end
    last = str(page.evaluate(f'{APPS}[0].data.epochs.length'))
    assert chosen(page) == last == ring.get_attribute('aria-valuenow')
    ring.focus()
    page.keyboard.press('ArrowLeft')
    page.wait_for_timeout(500)
    assert chosen(page) == str(int(last) - 1) and page.problems == []
    host.screenshot(path=SCREENSHOTS / 'lab-overfitting.png')
    page.close()
