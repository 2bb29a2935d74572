"Every notebook runs from top to bottom, and looks as the design says."
import ast
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / 'nbs').glob('*.ipynb'))
LESSONS = [path for path in NOTEBOOKS if path.stem not in ('index', 'glossary')]
SLOW = {'03_freezing', '04_one_cycle', '05_lr_finder', '06_fine_tuning', '07_overfitting', '08_what_it_learned',
        '09_your_own_photos', '11_claims', '13_pretraining'}  # more than about 20 seconds
REPO = 'finetune-teach/finetune_teach'
COLAB = '''#| hide
#| eval: false
import sys
if 'google.colab' in sys.modules:  # Colab does not have the package yet
    %pip install -q finetune_teach'''


@pytest.fixture(scope='module')
def copies(tmp_path_factory):
    "Notebooks write files beside them and the README above them: run them in a copy."
    folder = tmp_path_factory.mktemp('course') / 'nbs'
    shutil.copytree(ROOT / 'nbs', folder, symlinks=True)
    return folder


@pytest.mark.parametrize('path', [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem in SLOW))
                                  for path in NOTEBOOKS])
def test_runs(path, copies):
    notebook = nbformat.read(copies / path.name, 4)
    committed = [printed_numbers(cell) for cell in notebook.cells]
    NotebookClient(notebook, timeout=300, kernel_name='python3',
                   resources={'metadata': {'path': copies}}).execute()
    again = [printed_numbers(cell) for cell in notebook.cells]
    assert list(map(len, again)) == list(map(len, committed)), 'cells print as much as in the committed notebook'
    pairs = [pair for one, other in zip(committed, again) for pair in zip(one, other)]
    differ = [(a, b) for a, b in pairs if abs(a - b) > max(0.05, 0.15 * abs(a))]
    assert len(differ) <= len(pairs) / 10, f'committed, now: {differ}'


def printed_numbers(cell):
    "Numbers with a decimal point that a code cell prints; not those of time, which differ each time."
    texts = [''.join(output.get('text') or output.get('data', {}).get('text/plain', ''))
             for output in cell.get('outputs', [])]
    lines = [line for text in texts for line in text.splitlines()
             if not re.search(r'second|minute|time| ms|torch', line)]
    return [float(number) for line in lines for number in re.findall(r'(?<![\w.])\d+\.\d+(?![\w.])', line)]


def cells(path, kind):
    return [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == kind]


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_is_committed_as_run_from_top_to_bottom(path):
    code = [c for c in nbformat.read(path, 4).cells if c.cell_type == 'code' and c.source.strip()]
    counts = [c.execution_count for c in code if not c.source.startswith('#| default_exp')]
    outputs = [output for c in code for output in c.outputs]
    assert not [o for o in outputs if o.output_type == 'error']
    assert not code or [o for o in outputs if o.output_type in ('stream', 'display_data', 'execute_result')]
    assert all(a is None or b is None or a < b for a, b in zip(counts, counts[1:]))


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_opens_with_title_promise_and_links(path):
    title, opening = cells(path, 'markdown')[:2]
    # title and description of the page: nbdev keeps nothing else of the cell that holds the title
    assert re.fullmatch(r'# .+\n\n> .+', title), 'title, and one line in a quote: what the reader will know'
    assert (f'[Open in Colab](https://colab.research.google.com/github/{REPO}/blob/main/nbs/{path.name}) · '
            f'[download this notebook](https://github.com/{REPO}/raw/main/nbs/{path.name})') in opening


@pytest.mark.parametrize('path', LESSONS, ids=lambda path: path.stem)
def test_has_minutes_and_end(path):
    text = cells(path, 'markdown')
    assert re.search(r'^(It takes|Takes|This takes) .*(second|minute)', text[1], re.M), 'how long it takes'
    everything = '\n'.join(text)
    assert '## To remember' in everything and everything.count('<details>') >= 3


@pytest.mark.parametrize('path', LESSONS, ids=lambda path: path.stem)
def test_first_cell_installs_the_package_in_colab(path):
    first = cells(path, 'code')[0]
    assert re.sub(r'\A#\| default_exp \w+\n', '', first) == COLAB


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_imports_stand_in_cells_of_their_own(path):
    "nbdev runs all cells that import something to make the site, and warns of what else they do."
    for source in cells(path, 'code'):
        if not re.search(r'^#\| (export|eval: false)', source, re.M):
            nodes = list(ast.walk(ast.parse(re.sub(r'^(\s*)[%!].*', r'\1pass', source, flags=re.M))))
            imports = [n for n in nodes if isinstance(n, (ast.Import, ast.ImportFrom))]
            assert not imports or not [n for n in nodes if isinstance(n, (ast.Expr, ast.Assign))], source


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_lines_are_short_and_no_place_is_reserved(path):
    for source in cells(path, 'code'):
        assert max(map(len, source.splitlines()), default=0) <= 100, source
    for source in cells(path, 'markdown'):
        assert not re.search(r'PROSE_RESULT|CHECKME|PLACEHOLDER|TODO', source), source
