"The site: every link leads somewhere, every picture is described, every function has its place, nothing is fetched."
import ast
import configparser
import functools
import io
import itertools
import re
import tokenize
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

import mistune
import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup
from PIL import Image

import finetune_teach.all as everything
import site_pages
from finetune_teach.tools.function_docs import (all_entries, function_list, function_parts, public_nodes, site_address,
                                                source_address)
from finetune_teach.tools.site import only_imports

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
            right = url.scheme in ('https', 'http', 'mailto', 'data')
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


def files(entries):
    "The notebooks of a part of the sidebar, in order."
    for entry in entries:
        yield from files(entry['contents']) if 'contents' in entry else [entry['href'] if 'href' in entry else entry]


def test_sidebar_names_every_notebook_once():
    named = files(QUARTO['website']['sidebar']['contents'])
    assert sorted(named) == sorted(path.relative_to(NBS).as_posix() for path in NOTEBOOKS)


def test_sidebar_has_the_three_storeys_in_reading_order():
    home, *sections = QUARTO['website']['sidebar']['contents']
    titles = [section['section'] for section in sections]
    assert (home, titles) == ('index.ipynb', ['The course', 'What it stands on', 'Tools', 'To look up'])
    for section, folder in zip(sections, [r'\d\d_', 'engine/', 'tools/', r'(words|glossary|functions|reading|teaching)\.']):
        groups = [entry for entry in section['contents'] if 'contents' in entry] or [section]
        assert all(re.match(folder, name) for group in groups for name in files([group]))
        if section['section'] != 'To look up':
            assert all(list(files([group])) == sorted(files([group])) for group in groups)
    for entry in sections[0]['contents']: # the number and the title of the lesson
        title = nbformat.read(NBS / entry['href'], 4).cells[1].source.splitlines()[0].removeprefix('# ')
        assert entry['text'] == f'{int(entry["href"][:2])}. {title}'


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


# What nbdev makes of the notebooks, before Quarto renders it

@pytest.fixture(scope='module')
def pages(tmp_path_factory):
    found, printed = site_pages.processed(tmp_path_factory.mktemp('site'))
    assert 'torch' not in printed.split('loaded:')[1], 'the site needs none of the course to run'
    assert set(found) == {path.relative_to(NBS).as_posix() for path in NOTEBOOKS}
    return found


def shown(notebook, kind):
    return [cell for cell in notebook.cells if cell.cell_type == kind]


@pytest.fixture(scope='module')
def html(pages):
    "The pages as a reader gets them, by their notebooks."
    return {name: BeautifulSoup(site_pages.page_html(notebook), 'html.parser') for name, notebook in pages.items()}


def address(name):
    return re.sub(r'(^|/)\d+_', r'\1', name.replace('.ipynb', '.html'))


def test_imports_are_hidden_except_the_one_that_a_reader_types(pages):
    for name, notebook in pages.items():
        for cell in shown(notebook, 'code'):
            assert cell.outputs or not only_imports(cell.source), f'{name}: {cell.source}'


def test_exported_source_is_folded_below_what_it_does(pages):
    "The name, how it is called and the docstring stand in sight, once; the source is one click away."
    for path in NOTEBOOKS:
        exported = [cell.source for cell in nbformat.read(path, 4).cells if '#| export' in cell.source.splitlines()]
        wanted = [node.name for source in exported for node in public_nodes(ast.parse(source))]
        notebook = pages[path.relative_to(NBS).as_posix()]
        headings = re.findall(r'(?m)^### \w+ \{#(.*)\}$', '\n'.join(c.source for c in shown(notebook, 'markdown')))
        assert sorted(map(str.lower, headings)) == sorted(map(str.lower, wanted)) and len({*headings}) == len(headings)
        for cell in shown(notebook, 'code'):
            nodes = public_nodes(ast.parse(re.sub(r'(?m)^\s*[%!].*', '', cell.source)))
            if {node.name for node in nodes} & set(wanted):
                assert cell.source.startswith('#| code-fold: true\n#| code-summary: "Source"\n')


def test_every_function_has_its_address_and_its_source_link(html):
    "The addresses that nbdev notes lead to a heading or a method; the lines of source links are right."
    found = {address(name): page for name, page in html.items()}
    assert len(all_entries()) > 600
    for entry in all_entries().values():
        page, anchor = entry.link.split('#')
        assert len(found[page].find_all(id=anchor)) == 1, entry.link
        line = (ROOT / entry.file).read_text('utf-8').splitlines()[entry.line - 1]
        assert re.search(rf'\b(def|class) {entry.name.split(".")[-1]}\b', line)
        if '.' not in entry.name:
            assert found[page].find('a', class_='source', href=source_address(entry)), entry.name


def test_names_and_works_are_linked_and_lead_somewhere(html):
    known = {address(name): {tag['id'] for tag in page(id=True)} for name, page in html.items()}
    count = 0
    for name, page in html.items():
        for tag in page('a', href=re.compile('^(#|https://[^/]*github.io/)')):
            where, _, anchor = tag['href'].removeprefix(f'{site_address()}/').partition('#')
            assert not anchor or anchor in known[where or address(name)], f'{name}: {tag["href"]}'
            count += 1
    assert count > 200
    assert html['03_freezing.ipynb'].find('a', href=f'{site_address()}/reading.html#kumar-2022')
    assert html['functions.ipynb'].find('a', href='03_freezing.ipynb#freeze_to')


def test_arguments_have_a_table(html):
    table = html['engine/splits.ipynb'].find(id='random_split').find_next('table')
    rows = [[cell.get_text() for cell in row(['td', 'th'])] for row in table('tr')]
    assert rows[0] == ['argument', 'type', 'what it is'] and ['valid_pct', 'float'] == rows[2][:2]
    for path in {ROOT / entry.file for entry in all_entries().values()}: # a comment beside an argument is not lost
        source = path.read_text('utf-8')
        for node in public_nodes(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                head = '\n'.join(source.splitlines()[node.lineno - 1:node.body[0].lineno - 1])
                parts, back = function_parts(source, node)
                notes = ' '.join([*(part.note for part in parts), back])
                tokens = tokenize.generate_tokens(io.StringIO(head + '\n    pass').readline)
                for comment in (t.string.lstrip('# ') for t in tokens if t.type == tokenize.COMMENT):
                    assert comment in notes, node.name


def test_nothing_leaks_into_a_page(pages):
    leaks = re.compile(r'/tmp/|/root/|/home/(?!you)|C:\\\\|<\w+ (object )?at 0x|<function |<class \'__main__|__main__\.|NoneType=None'
                       r'|^[A-Z]\w+\(\*args, \*\*kwargs\)|role="alert"|DeprecationWarning', re.M)
    for name in pages:
        text = '\n'.join(cell.source for cell in shown(pages[name], 'markdown'))
        text += '\n'.join(''.join(output.get('text') or output.get('data', {}).get(kind, ''))
                          for cell in shown(pages[name], 'code') for output in cell.outputs
                          for kind in ('text/markdown', 'text/plain'))
        assert not leaks.search(re.sub('base64,[^"]*', '', text)), (name, leaks.search(text))


def test_quarto_has_no_reason_to_load_jquery_requirejs_or_widgets(pages):
    "It does for any output of these kinds; ours are raw HTML in Markdown. Explorers are whole in there."
    for name, notebook in pages.items():
        kinds = {kind for cell in shown(notebook, 'code') for output in cell.outputs for kind in output.get('data', {})}
        assert kinds <= {'text/markdown', 'text/plain'}, name
        assert 'widgets' not in notebook.metadata
        explorers = nbformat.read(NBS / name, 4)
        explorers = [''.join(output.data['text/html']) for cell in shown(explorers, 'code') for output in cell.outputs
                     if 'data-explorer=' in ''.join(output.get('data', {}).get('text/html', ''))]
        page = site_pages.page_html(notebook)
        assert all(explorer in page for explorer in explorers)


def test_pictures_have_words_and_a_size_and_diagrams_are_told_apart(html):
    count = {'diagram': 0, 'picture': 0}
    for name, page in html.items():
        for tag in page('img', src=re.compile('^data:'), class_=True):
            assert tag['alt'].strip() and int(tag['width']) > 0 and int(tag['height']) > 0, name
            count[tag['class'][0]] += 1
    assert min(count.values()) > 20


def test_no_font_host_and_no_mathjax():
    theme, page = (NBS / 'theme.scss').read_text(), QUARTO['format']['html']
    assert re.search(r'^/\*-- scss:defaults --\*/$', theme, re.M) and '$web-font-path: false;' in theme
    assert all(names[1:] == ['theme.scss'] for names in page['theme'].values()) and 'http' not in theme
    assert page['html-math-method'] == 'mathml' and page['code-overflow'] == 'wrap'


def test_the_list_of_functions_is_complete():
    cells = nbformat.read(NBS / 'functions.ipynb', 4).cells
    course, every = [cell.outputs[0].data['text/markdown'] for cell in cells if cell.source.startswith('#| echo: false')]
    assert every == function_list() and course == function_list(everything.__all__), 'execute nbs/functions.ipynb'
    names = {name for names in import_module('finetune_teach._modidx').d['syms'].values() for name in names}
    public = {name.rsplit('.', 1)[1] for name in names if all_entries().get(name.rsplit('.', 1)[1])}
    assert {*re.findall(r'(?m)^\| \[`(\w+)`\]', every)} == {n for n in all_entries() if '.' not in n} == public
    assert all(all_entries()[name].about for name in everything.__all__ if name in all_entries())


def test_the_list_of_works_names_those_that_the_pages_name():
    text = '\n'.join(cell.source for cell in nbformat.read(NBS / 'reading.ipynb', 4).cells)
    works = dict(re.findall(r'(?m)^- <span id="([\w-]+)"></span>(.*)$', text))
    assert len(works) >= 15 and all(re.search(r'\]\(https://.*\]\(\S+\.ipynb\)', line) for line in works.values())
    named = {}
    for path in set(NOTEBOOKS) - {NBS / 'reading.ipynb', NBS / 'tools/site.ipynb'}:
        for cell in nbformat.read(path, 4).cells:
            if cell.cell_type == 'markdown':
                for who, year in re.findall(r'([A-Z][\w’]+)(?: (?:and|&) [A-Z]\w+| et al\.?),?\s\(?((?:19|20)\d\d)\b',
                                            cell.source):
                    named.setdefault(f'{who}-{year}'.lower(), set()).add(path.relative_to(NBS).as_posix())
    assert set(named) <= set(works), 'name it in nbs/reading.ipynb'
    for key, names in named.items():
        said = {*re.findall(r'\]\((\S+\.ipynb)\)', ' '.join(t for k, t in works.items() if k.startswith(key)))}
        assert names <= said, key


def test_what_is_folded_can_be_read():
    assert re.search(r'main details > summary \{\s*color: inherit;', (NBS / 'styles.css').read_text())
