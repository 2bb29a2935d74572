"Every notebook of the three storeys runs from top to bottom, and looks as the design says."
import ast
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NBS = ROOT / 'nbs'
NOTEBOOKS = sorted([path for path in NBS.rglob('*.ipynb') if '.ipynb_checkpoints' not in path.parts],
                   key=lambda path: (path.parent != NBS, path))
LESSONS = [path for path in NOTEBOOKS if path.name[0].isdigit()]
ROOMS = [path for path in NOTEBOOKS if path.parent != NBS] # of engine and tools
SLOW = {'tools/claims', 'tools/pretraining'} # measured by `finetune-teach claims`; what it is, is long
REPO = 'finetune-teach/finetune_teach'
COLAB = '''#| hide
#| eval: false
import sys
if 'google.colab' in sys.modules:  # Colab does not have the package yet
    %pip install -q finetune_teach'''


def place(path):
    return path.relative_to(NBS).with_suffix('').as_posix()


def each(paths):
    return pytest.mark.parametrize('path', paths, ids=place)


def execute(path):
    "The notebook as committed, and as it is when every cell has been run again."
    committed = nbformat.read(path, 4)
    notebook = nbformat.read(path, 4)
    client = NotebookClient(notebook, timeout=300, kernel_name='python3',
                            resources={'metadata': {'path': path.parent}})
    client.execute()
    return committed, notebook


@pytest.fixture(scope='module')
def runs(request, tmp_path_factory):
    "The notebooks that are tested run in the background, two at a time, in a copy: some write files."
    folder = tmp_path_factory.mktemp('course') / 'nbs'
    shutil.copytree(NBS, folder, symlinks=True)
    paths = [item.callspec.params['path'] for item in request.session.items
             if getattr(item, 'originalname', '') == 'test_runs']
    pool = ThreadPoolExecutor(2)
    yield {path: pool.submit(execute, folder / path.relative_to(NBS)) for path in paths}
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize('path', [pytest.param(path, id=place(path), marks=[pytest.mark.slow] * (place(path) in SLOW))
                                  for path in NOTEBOOKS])
def test_runs(path, runs):
    committed, again = ([printed_numbers(cell) for cell in notebook.cells] for notebook in runs[path].result())
    assert list(map(len, again)) == list(map(len, committed)), 'cells print as much as in the committed notebook'
    pairs = [pair for one, other in zip(committed, again) for pair in zip(one, other)]
    differ = [(a, b) for a, b in pairs if abs(a - b) > max(0.05, 0.15 * abs(a))]
    assert len(differ) <= len(pairs) / 10, f'committed, now: {differ}'


def printed_numbers(cell):
    "Numbers with a decimal point that a code cell prints; not those of time, which differ each time."
    texts = [''.join(output.get('text') or output.get('data', {}).get('text/plain', ''))
             for output in cell.get('outputs', [])]
    lines = [line for text in texts for line in text.splitlines()
             if not re.search(r'second|minute|time| ms|torch|/s\]', line)]
    return [float(number) for line in lines for number in re.findall(r'(?<![\w.])\d+\.\d+(?![\w.])', line)]


def cells(path, kind):
    return [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == kind]


@each(NOTEBOOKS)
def test_no_progress_bar_is_left(path):
    "It is there only where a machine was slow."
    assert not re.search(r'\d ?(pictures|it|step|epoch|s)?/(s|it)\]', path.read_text('utf-8'))


@each(NOTEBOOKS)
def test_is_committed_as_run_from_top_to_bottom(path):
    code = [c for c in nbformat.read(path, 4).cells if c.cell_type == 'code' and c.source.strip()]
    counts = [c.execution_count for c in code if not c.source.startswith('#| default_exp')]
    outputs = [output for c in code for output in c.outputs]
    assert not [o for o in outputs if o.output_type == 'error']
    shown = [o for o in outputs if o.output_type in ('stream', 'display_data', 'execute_result')]
    if path in LESSONS:
        assert shown, 'execute it'
    assert all(a is None or b is None or a < b for a, b in zip(counts, counts[1:]))


@each(NOTEBOOKS)
def test_opens_with_title_promise_and_links(path):
    title, opening = cells(path, 'markdown')[:2]
    # title and description of the page: nbdev keeps nothing else of the cell that holds the title
    assert re.fullmatch(r'# .+\n\n> .{20,}', title), 'title, and one line in a quote: what the page is about'
    assert (f'[Open in Colab](https://colab.research.google.com/github/{REPO}/blob/main/nbs/{place(path)}.ipynb) · '
            f'[download this notebook](https://github.com/{REPO}/raw/main/nbs/{place(path)}.ipynb)') in opening


@each(LESSONS)
def test_lesson_has_minutes_and_end(path):
    text = cells(path, 'markdown')
    assert re.search(r'^(It takes|Takes|This takes) .*(second|minute)', text[1], re.M), 'how long it takes'
    _, remember, exercises = re.split('^## (?:To remember|Exercises)$', '\n'.join(text), flags=re.M)
    assert re.findall(r'^- ', remember, re.M), 'lines to remember'
    assert re.findall(r'^\*\*(\d)\.\*\* ', exercises, re.M) == ['1', '2', '3']
    answers = [cell for cell in nbformat.read(path, 4).cells if cell.source.startswith('with answer(')]
    assert len(answers) == 3, 'each answer is run'
    for cell in answers: # JupyterLab hides the code; what comes out of it is folded
        assert cell.metadata == {'jupyter': {'source_hidden': True}}
        (output,) = cell.outputs
        assert output.data['text/html'].startswith('<details><summary>Answer</summary>')


@each([path for path in ROOMS if path.parent.name == 'engine'])
def test_page_of_the_engine_is_a_reference(path):
    text = '\n'.join(cells(path, 'markdown'))
    assert not re.search(r'## (The question|To remember|Exercises)|<details>|^It takes .*(second|minute)', text, re.M)


@each(LESSONS + ROOMS)
def test_first_cell_installs_the_package_in_colab(path):
    first = cells(path, 'code')[0]
    assert re.sub(r'\A#\| default_exp [\w.]+\n', '', first) == COLAB


@each(LESSONS + ROOMS)
def test_exports_the_module_of_its_name(path):
    exported = re.match(r'#\| default_exp (\S+)', cells(path, 'code')[0])
    exports = [source for source in cells(path, 'code') if re.match(r'(#\|.*\n)*#\| export$', source, re.M)]
    name = re.sub(r'^\d\d_', '', place(path)).replace('/', '.')
    assert (exported and exported[1]) == (name if exports else None)


@each(NOTEBOOKS)
def test_imports_stand_in_cells_of_their_own(path):
    "nbdev runs all cells that import something to make the site, and warns of what else they do."
    for source in cells(path, 'code'):
        if not re.search(r'^#\| (export|eval: false)', source, re.M):
            nodes = list(ast.walk(ast.parse(re.sub(r'^(\s*)[%!].*', r'\1pass', source, flags=re.M))))
            imports = [n for n in nodes if isinstance(n, (ast.Import, ast.ImportFrom))]
            assert not imports or not [n for n in nodes if isinstance(n, (ast.Expr, ast.Assign))], source


@each(NOTEBOOKS)
def test_lines_are_short_and_no_place_is_reserved(path):
    for source in cells(path, 'code'):
        assert max(map(len, source.splitlines()), default=0) <= 100, source
    for source in cells(path, 'markdown'):
        assert not re.search(r'PROSE_RESULT|CHECKME|PLACEHOLDER|TODO', source), source


def set_ups():
    "Rows of the table on how each page measured: the page, and numbers that it names, but those of seeds."
    table = next(text for text in cells(NBS / '13_claims.ipynb', 'markdown') if text.startswith('## How each page'))
    page, rows = None, []
    for line in table.splitlines():
        if (columns := line.strip('|').split(' | '))[1:] and 'what is compared' not in line:
            page = (re.findall(r'\((\w+)\.ipynb\)', columns[0]) or [page])[0]
            rows += [] if 'claims' in columns[0] else [(page, columns[2:6])]
    return rows


def numbers(text):
    return {float(number) for number in re.findall(r'(?<![\w.])\d+(?:\.\d+)?(?:e-?\d+)?(?![\w.])', text)}


def test_the_table_of_set_ups_says_what_the_pages_do():
    "Each number stands in the page's code, or is a default of `drawn_pets`, `fine_tune` or a recorded run."
    rows, defaults = set_ups(), numbers('64 30 20 16 5 1e-3 3e-4 3e-2')
    assert len(rows) > 15 and {page for page, _ in rows} >= {path.stem for path in LESSONS[1:12]}
    for page, columns in rows:
        code = numbers('\n'.join(cells(NBS / f'{page}.ipynb', 'code')))
        assert numbers(' '.join(columns)) <= code | defaults, (page, numbers(' '.join(columns)) - code - defaults)
