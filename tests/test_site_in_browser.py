"""Pages of the site in Chromium: their height, what comes first, how much of them is code, and nothing scrolls sideways.

They are made by nbdev's processing and by `site_pages`, in a column of 680 px, since Quarto is not at hand; so heights are
near those of the site, not the same.
"""
import re
from pathlib import Path

import pytest

import site_pages
from conftest import CHROMIUM

pytest.importorskip('playwright.sync_api', reason='needs playwright')
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason='needs Chromium')]

ROOT = Path(__file__).parent.parent
NAMES = sorted(path.relative_to(ROOT / 'nbs').as_posix() for path in (ROOT / 'nbs').rglob('*.ipynb')
               if '.ipynb_checkpoints' not in path.parts)
LESSONS = [name for name in NAMES if name[0].isdigit()]
LIMITS = {'first picture': 900, 'height': 12_000, 'code': 0.35, 'weight': 1_500_000}
MEASURE = '''() => {
    const box = e => e.getBoundingClientRect(), seen = e => e.checkVisibility() && box(e).height > 0;
    const first = [...document.querySelectorAll('main img, main [data-explorer]')].filter(e => seen(e) && box(e).height > 60);
    const code = [...document.querySelectorAll('main pre')].filter(e => seen(e) && !e.closest('.cell-output'));
    const height = document.documentElement.scrollHeight;
    const beside = e => e.closest('table, pre, [data-explorer]');
    return {
        'first picture': first.length ? box(first[0]).top + scrollY : null, height,
        'code': code.reduce((sum, e) => sum + box(e).height, 0) / height,
        'sideways': document.documentElement.scrollWidth - innerWidth,
        'too wide': [...document.querySelectorAll('main *')].filter(e => seen(e) && !beside(e)
            && box(e).right > innerWidth + 1).map(e => e.outerHTML.slice(0, 100)),
        'scrolls': [...document.querySelectorAll('main pre')].filter(e => seen(e)
            && e.scrollWidth > e.clientWidth + 1).map(e => e.innerText.slice(0, 60)),
    }; }'''
CONTRAST = '''() => {
    const light = text => { const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
        .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const ground = light(getComputedStyle(document.body).backgroundColor);
    return [...document.querySelectorAll('main summary')].map(e => light(getComputedStyle(e).color))
        .map(v => (Math.max(v, ground) + 0.05) / (Math.min(v, ground) + 0.05)); }'''


@pytest.fixture(scope='module')
def pages(tmp_path_factory):
    return site_pages.processed(tmp_path_factory.mktemp('site'))[0]


def opened(browser, html, tmp_path, width, **options):
    (tmp_path / 'page.html').write_text(html, 'utf-8')
    page = browser.new_context(viewport={'width': width, 'height': 900}, offline=True, **options).new_page()
    page.asked, page.problems = [], []
    page.on('request', lambda request: page.asked.append(request.url))
    page.on('pageerror', lambda error: page.problems.append(str(error)))
    page.goto((tmp_path / 'page.html').as_uri())
    page.wait_for_function('[...document.querySelectorAll("[data-explorer]")].every(e => e.shadowRoot)')
    page.wait_for_timeout(200)
    return page


@pytest.mark.parametrize('name', LESSONS)
def test_the_idea_comes_first_and_a_page_is_not_endless(browser, pages, tmp_path, name):
    html = site_pages.page_html(pages[name])
    page = opened(browser, html, tmp_path, 1280)
    found = {**page.evaluate(MEASURE), 'weight': len(html.encode())}
    page.context.close()
    print(name, {key: round(found[key], 2) for key in LIMITS if found[key] is not None})
    for key, limit in LIMITS.items():
        assert (found[key] or 0) <= limit, f'{key}: {found[key]}'


@pytest.mark.parametrize('width', [390, 1280])
def test_nothing_scrolls_sideways_and_nothing_is_fetched(browser, pages, tmp_path, width):
    for name in NAMES:
        page = opened(browser, site_pages.page_html(pages[name]), tmp_path, width)
        found = page.evaluate(MEASURE)
        assert found['sideways'] <= 0 and found['too wide'] == [], name
        assert width < 1280 or found['scrolls'] == [], f'code or output is cut: {name}'
        assert [url for url in page.asked if not url.startswith(('file:', 'data:', 'blob:'))] == [] == page.problems, name
        page.context.close()


@pytest.mark.parametrize('dark', [False, True])
def test_summaries_can_be_read_and_diagrams_suit_the_theme(browser, pages, tmp_path, dark):
    html = site_pages.page_html(pages['08_overfitting.ipynb'], dark)
    page = opened(browser, html, tmp_path, 1280, color_scheme='dark' if dark else 'light')
    ratios = page.evaluate(CONTRAST)
    assert ratios and min(ratios) >= 4.5
    filters = {*page.evaluate('[...document.querySelectorAll("img.diagram")].map(e => getComputedStyle(e).filter)')}
    assert filters == {'invert(0.87) hue-rotate(180deg)' if dark else 'none'}
    page.context.close()


def test_an_explorer_works_in_the_page_that_nbdev_made(browser, pages, tmp_path):
    page = opened(browser, site_pages.page_html(pages['tools/explore_one_cycle.ipynb']), tmp_path, 1280)
    host = page.locator('[data-explorer]').first
    look = 'host => [...host.shadowRoot.querySelectorAll("svg")].map(e => e.outerHTML).join()'
    before = host.evaluate(look)
    host.locator('[data-control]').first.focus()
    page.keyboard.press('ArrowRight')
    page.wait_for_timeout(200)
    assert host.evaluate(look) != before and page.problems == []
    page.context.close()
