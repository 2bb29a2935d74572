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

playwright = pytest.importorskip('playwright.sync_api', reason='needs playwright')
CHROMIUM = next(filter(None, map(shutil.which, ['chromium', 'chromium-browser', 'google-chrome'])), None)
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
               '--IdentityProvider.token=', '--ServerApp.password=',
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


@pytest.fixture(scope='module')
def browser():
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox', '--disable-gpu'])
        yield chromium
        chromium.close()


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


class Shown:
    "An explorer in a page."
    def __init__(self, page, number=0):
        self.page = page
        self.box = page.locator('.widget-vbox[class*="finetune-teach-"]').nth(number)
        self.box.scroll_into_view_if_needed()
        self.pictures = self.box.locator('img.widget-image')

    def handle(self, label, number=0):
        "The handle of the slider with this label."
        return self.box.get_by_role('slider', name=label).nth(number)

    def bytes(self, number=0):
        "The file of a picture that is shown."
        return self.pictures.nth(number).evaluate(
            'async e => { await e.decode(); const b = await (await fetch(e.src)).blob(); '
            'return [...new Uint8Array(await b.arrayBuffer())]; }')

    def changes(self, before, number=0):
        "Whether a picture becomes another than `before`; it is drawn a moment after the text."
        for _ in range(100):
            if self.bytes(number) != before:
                return True
            self.page.wait_for_timeout(100)
        return False

    def press(self, handle, key, picture=0):
        "Press a key; the milliseconds until the picture has been replaced, decoded and drawn."
        handle.focus()
        self.pictures.nth(picture).evaluate('''e => { window.taken = new Promise(done => {
            let pressed;
            addEventListener('keydown', () => { pressed = performance.now(); }, {capture: true, once: true});
            new MutationObserver((changes, observer) => { observer.disconnect(); e.decode().then(() =>
                requestAnimationFrame(() => done(performance.now() - pressed)));
            }).observe(e, {attributeFilter: ['src']}); }); }''')
        self.page.keyboard.press(key)
        return self.page.evaluate('Promise.race([window.taken, new Promise((_, no) => '
                                  'setTimeout(() => no(new Error("no new picture")), 10000))])')

    def check(self, name):
        "What holds for every explorer: labels, a hidden still picture, nothing cut off; a screenshot."
        for label in self.box.get_by_role('slider').evaluate_all('all => all.map(e => e.ariaLabel)'):
            assert label, 'a slider without a name'
        assert all(self.pictures.evaluate_all('all => all.map(e => e.alt)'))
        still = self.box.locator('xpath=ancestor::*[contains(@class, "jp-OutputArea-child")]'
                                 '/preceding-sibling::*[1]//img')
        assert still.count() == 1 and not still.is_visible()
        cut = self.box.evaluate('''box => [...box.querySelectorAll('*')].filter(e => e.clientWidth > 0 &&
            (e.scrollWidth > e.clientWidth && getComputedStyle(e).overflowX !== 'visible'
             || e.getBoundingClientRect().right > box.getBoundingClientRect().right + 1)
            && !e.closest('.noUi-target')).map(e => e.outerHTML.slice(0, 200))''')
        assert cut == [], f'something is cut off of {self.box.bounding_box()}: {cut}'
        assert self.box.bounding_box()['width'] <= 720
        SCREENSHOTS.mkdir(exist_ok=True)
        self.box.screenshot(path=SCREENSHOTS / f'{name}.png')
        assert self.page.problems == []

    def move(self, name, handle, picture=0, keys=('ArrowLeft', 'ArrowRight'), n=8):
        "Press keys; each gives another picture. The times are written down beside the screenshots."
        times, seen = [], self.bytes(picture)
        for i in range(n):
            times.append(self.press(handle, keys[i % len(keys)], picture))
            now = self.bytes(picture)
            assert now != seen, f'{name}: the picture is the same after key {i}'
            seen = now
        SCREENSHOTS.mkdir(exist_ok=True)
        file = SCREENSHOTS / 'milliseconds.json'
        known = json.loads(file.read_text()) if file.exists() else {}
        known[name] = {'median': round(statistics.median(times)), 'all': [round(t) for t in times]}
        file.write_text(json.dumps(known, indent=1))


def test_the_smallest_explorer(browser, lab):
    page = open_and_run(browser, lab, 'engine/explorer')
    shown = Shown(page)
    shown.check('descent')
    shown.move('descent', shown.handle('learning rate'))
    page.close()


def test_freezing(browser, lab):
    page = open_and_run(browser, lab, 'tools/explore_freezing')
    shown = Shown(page)
    shown.check('freezing')
    readout = shown.box.locator('.widget-readout')
    assert readout.inner_text() == 'head'
    for name in ('late body', 'early body'):
        shown.press(shown.handle('learns from here on'), 'ArrowLeft')
        assert readout.inner_text() == name
    shown.move('explore_freezing', shown.handle('learns from here on'), keys=('ArrowRight', 'ArrowLeft'))
    page.close()


def test_one_cycle(browser, lab):
    page = open_and_run(browser, lab, 'tools/explore_one_cycle')
    shown = Shown(page)
    shown.check('one_cycle')
    shown.move('explore_one_cycle', shown.handle('peak rate, base_lr'), keys=['ArrowRight'])
    for label, argument in [('epochs', r'fine_tune\(5'), ('frozen epochs', 'freeze_epochs=2'),
                            ('head : body', 'lr_mult=110'), ('warm-up', r'pct_start=0\.35'),
                            ('peak : first', r'div=5\.5'), ('peak : last', 'div_final=110000'),
                            ('momentum', r'moms=\(0\.95, 0\.86, 0\.95\)')]:
        before = shown.bytes()
        shown.press(shown.handle(label), 'ArrowRight')
        assert shown.bytes() != before, label
        assert re.search(argument, shown.box.locator('code').inner_text()), label
    page.close()


UNFROZEN = """from finetune_teach.freezing import unfreeze
unfrozen = pick_lr(unfreeze(model), drawn_pets(8, 4), 2, seed=0)
unfrozen"""


def chosen(page):
    "Run the last cell again, and read what it says."
    cell = page.locator('.jp-CodeCell').filter(has_text='CHOSEN').last
    cell.locator('.cm-content').click()
    page.keyboard.press('Shift+Enter')
    page.wait_for_timeout(1000)
    return cell.locator('.jp-OutputArea-output').inner_text().split()[-1]


def test_pick_lr(browser, lab):
    page = open_and_run(browser, lab, 'tools/lr_picker', UNFROZEN, "print('CHOSEN', picker.lr)")
    def settled():
        page.wait_for_timeout(1500)  # the preview of the last choice, too, has been drawn
    shown = Shown(page)
    handle, number = shown.handle('learning rate'), shown.box.get_by_role('spinbutton', name='as a number')
    for rule in ('valley', 'steep'):
        button = shown.box.get_by_role('button', name=rule)
        button.click()
        settled()
        says = float(button.text_content().split()[-1])
        assert float(number.input_value()) == float(chosen(page)) == pytest.approx(says)
    shown.check('pick_lr')
    start = float(number.input_value())
    shown.move('pick_lr with preview', handle, picture=1, keys=['ArrowRight'], n=10)
    settled()
    assert float(number.input_value()) == float(chosen(page))
    assert float(chosen(page)) == pytest.approx(10 ** 0.5 * start, rel=0.1)  # twenty steps are a power of ten
    before = shown.bytes()
    number.fill('0.0123')
    number.press('Tab')
    settled()
    assert shown.bytes() != before and chosen(page) == '0.0123'
    shown.box.get_by_role('checkbox').check()
    settled()
    before = shown.bytes()
    shown.press(shown.handle('from body to head', 0), 'ArrowLeft')
    settled()
    assert shown.bytes() != before and chosen(page) == 'None)'  # slice(low, high, None)

    after = Shown(page, 1)  # the one after unfreezing, which trains in the background
    start, stop = (after.box.get_by_role('button', name=name) for name in ('Train a copy', 'Stop'))
    before = after.bytes(1)
    start.click()
    after.box.get_by_text('epoch 0 of 2').wait_for()
    stop.click()  # at once: two epochs take some seconds only
    after.box.get_by_text('stopped').wait_for()
    assert after.changes(before, 1)
    start.click()
    after.box.get_by_text('epoch 0 of 2').wait_for()
    assert chosen(page), 'other cells run meanwhile'
    after.box.get_by_text('after 2 epochs').wait_for(timeout=120_000)
    after.check('pick_lr_unfrozen')
    page.close()


def test_overfitting(browser, lab):
    page = open_and_run(browser, lab, 'tools/explore_overfitting')
    shown = Shown(page)
    shown.check('overfitting')
    shown.move('explore_overfitting', shown.handle('epoch'), keys=['ArrowLeft'] * 3 + ['ArrowRight'] * 3)
    page.close()
