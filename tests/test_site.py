"The site: every link leads somewhere, every picture is described, every page is in the sidebar."
import configparser
import functools
import itertools
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

import mistune
import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup
from PIL import Image

ROOT = Path(__file__).parent.parent
NBS = ROOT / 'nbs'
NOTEBOOKS = sorted(path for path in NBS.rglob('*.ipynb') if '.ipynb_checkpoints' not in path.parts)
PAGES = [*NOTEBOOKS, NBS / '404.qmd', ROOT / 'README.md']
QUARTO = yaml.safe_load((ROOT / '_quarto.yml').read_text(encoding='utf-8'))
SETTINGS = configparser.ConfigParser()
SETTINGS.read(ROOT / 'settings.ini', encoding='utf-8')
USER, REPO, BRANCH = (SETTINGS['DEFAULT'][name] for name in ('user', 'repo', 'branch'))


@functools.cache
def page(path):
    "A page as HTML: a file of Markdown, or a notebook's text and the text among its outputs."
    if path.suffix != '.ipynb':
        texts = [re.sub(r'(?s)\A---\n.*?\n---\n', '', path.read_text(encoding='utf-8'))]
    else:
        cells = nbformat.read(path, 4).cells
        texts = [cell.source for cell in cells if cell.cell_type == 'markdown']
        texts += [output.data[kind] for cell in cells for output in cell.get('outputs', [])
                  for kind in ('text/markdown', 'text/html') if kind in output.get('data', {})]
    return BeautifulSoup('\n'.join(map(mistune.html, texts)), 'html.parser')


def anchors(path):
    """Where a link into a page may lead: headings by the name that GitHub and Quarto both give them.

    GitHub keeps numbers at the start and all spaces, Quarto (that is, Pandoc) keeps full stops. Of
    equal headings all but the first get a number, and nbdev takes the title out of a notebook.
    """
    headings = [h.get_text().strip().lower() for h in page(path).find_all(re.compile('^h[1-6]$'))]
    github = [re.sub(r'[^\w\- ]', '', h).replace(' ', '-') for h in headings]
    quarto = ['-'.join(re.sub(r'[^\w\-. ]', '', h).split()) for h in headings]
    quarto = [''.join(itertools.dropwhile(lambda c: not c.isalpha(), name)) for name in quarto]
    both = [a for a, b in zip(github, quarto) if a == b and github.count(a) == 1]
    title = github[:1] if path.suffix == '.ipynb' else []
    return {*both, *(tag['id'] for tag in page(path).find_all(id=True))} - {*title}


def wrong(path):
    "The links and pictures of a page that lead nowhere."
    html = {re.sub(r'^\d+_', '', p.relative_to(NBS).with_suffix('.html').as_posix()) for p in NOTEBOOKS}
    top = NBS if path.suffix == '.ipynb' else ROOT # the site knows nothing outside of nbs
    for link in [tag.get('href') or tag.get('src') for tag in page(path).find_all(['a', 'img'])]:
        url = urlsplit(link or '')
        ours = re.fullmatch(rf'(?:/github)?/{USER}/{REPO}/(?:blob|raw|tree)/{BRANCH}/(.+)', url.path)
        if url.netloc == f'{USER}.github.io':
            right = url.path.removeprefix(f'/{REPO}/') in html | {''}
        elif url.netloc in ('github.com', 'colab.research.google.com') and ours:
            right = (ROOT / unquote(ours[1])).exists()
        elif url.scheme:
            right = url.scheme in ('https', 'http', 'mailto')
        else:
            target = path.parent / unquote(url.path) if url.path else path
            right = link and target.exists() and target.resolve().is_relative_to(top.resolve())
            right = right and (not url.fragment or unquote(url.fragment) in anchors(target))
        if not right:
            yield link


def undescribed(path):
    "The pictures of a page that have no text for somebody who does not see them."
    for tag in page(path).find_all('img'):
        if not tag.get('alt', '').strip():
            yield tag.get('src')
    for cell in nbformat.read(path, 4).cells if path.suffix == '.ipynb' else []:
        options = re.match(r'(#\|.*\n?)*', cell.source)[0]
        given = re.findall(r'^#\| fig-alt: (.*)', options, re.M)
        texts = [text for line in given for text in [yaml.safe_load(line)] if text]
        texts = texts[0] if texts and isinstance(texts[0], list) else texts
        for output in cell.get('outputs', []):
            kinds = {'image/png', 'image/jpeg', 'image/svg+xml'} & output.get('data', {}).keys()
            if kinds and not any(output.metadata.get(kind, {}).get('alt') for kind in kinds):
                if not texts:
                    yield cell.source
                texts = texts[1:] # one for each picture, also where it comes in two formats


@pytest.mark.parametrize('path', PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path):
    assert list(wrong(path)) == []


@pytest.mark.parametrize('path', PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_pictures_are_described(path):
    assert list(undescribed(path)) == [], 'give the cell a line #| fig-alt: "..."'


def test_sidebar_names_every_notebook_once():
    def files(entries):
        return [name for entry in entries for name in
                (files(entry['contents']) if isinstance(entry, dict) else [entry])]
    named = files(QUARTO['website']['sidebar']['contents'])
    assert sorted(named) == sorted(path.relative_to(NBS).as_posix() for path in NOTEBOOKS)


def test_sidebar_has_the_three_storeys_in_reading_order():
    home, *sections, glossary = QUARTO['website']['sidebar']['contents']
    assert (home, glossary) == ('index.ipynb', 'glossary.ipynb')
    assert [section['section'] for section in sections] == ['The course', 'Engine', 'Tools']
    for section, folder in zip(sections, [r'\d\d_', 'engine/', 'tools/']):
        assert section['contents'] == sorted(section['contents'])
        assert all(re.match(folder, name) for name in section['contents'])


def test_glossary_is_sorted_and_leads_to_sections():
    items = page(NBS / 'glossary.ipynb').find_all('li')
    terms, links = zip(*[(item.a.get_text(), item.a['href']) for item in items])
    assert len(terms) >= 50 and len(set(terms)) == len(terms)
    assert list(terms) == sorted(terms, key=lambda term: re.sub(r'\W|_', ' ', term.lower()))
    # a lesson is long, so that the link is to a section; a page of engine or tools has one subject
    assert all(urlsplit(link).fragment or '/' in link for link in links)
    initials = [item.find_previous('h2').get_text().lower() for item in items]
    assert initials == [term[0].lower() for term in terms]


def test_site_is_configured_in_one_place():
    link = NBS / '_quarto.yml' # a link; git on Windows makes it a file that names its target
    assert link.resolve() == ROOT / '_quarto.yml' or link.read_text().strip() == '../_quarto.yml'


def test_page_for_wrong_addresses():
    path = NBS / '404.qmd'
    links = [tag['href'] for tag in page(path).find_all('a')]
    # it is shown at any address, however deep, so that only full ones work
    assert links and all(urlsplit(link).netloc for link in links)


def test_assets():
    site = QUARTO['website']
    assert ElementTree.parse(NBS / site['favicon']).getroot().tag.endswith('svg')
    card = NBS / site['image']
    assert Image.open(card).size == (1200, 630) and card.stat().st_size < 150_000
    assert (NBS / QUARTO['format']['html']['css']).is_file()
