"Every notebook runs from top to bottom, and looks as the design says."
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / 'nbs').glob('*.ipynb'))
LESSONS = [path for path in NOTEBOOKS if path.stem != 'index']


@pytest.fixture(scope='module')
def copies(tmp_path_factory):
    "Notebooks write files beside them and the README above them: run them in a copy."
    folder = tmp_path_factory.mktemp('course') / 'nbs'
    shutil.copytree(ROOT / 'nbs', folder, symlinks=True)
    return folder


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path, copies):
    notebook = nbformat.read(copies / path.name, 4)
    NotebookClient(notebook, timeout=300, kernel_name='python3',
                   resources={'metadata': {'path': copies}}).execute()


def cells(path, kind):
    return [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == kind]


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_is_committed_as_run_from_top_to_bottom(path):
    code = [c for c in nbformat.read(path, 4).cells if c.cell_type == 'code' and c.source.strip()]
    counts = [c.execution_count for c in code if not c.source.startswith('#| default_exp')]
    outputs = [output for c in code for output in c.outputs]
    assert not [o for o in outputs if o.output_type == 'error']
    assert [o for o in outputs if o.output_type in ('stream', 'display_data', 'execute_result')]
    assert all(a is None or b is None or a < b for a, b in zip(counts, counts[1:]))


@pytest.mark.parametrize('path', LESSONS, ids=lambda path: path.stem)
def test_has_title_promise_minutes_and_end(path):
    text = cells(path, 'markdown')
    opening, everything = '\n'.join(text[:2]), '\n'.join(text)
    assert opening.startswith('# ')
    assert re.search(r'^> ', opening, re.M), 'one line in a quote: what the reader will know'
    assert re.search(r'^(It takes|Takes|This takes) .*(second|minute)', opening, re.M), 'how long it takes'
    assert '## To remember' in everything and everything.count('<details>') >= 3


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_lines_are_short_and_no_place_is_reserved(path):
    for source in cells(path, 'code'):
        assert max(map(len, source.splitlines()), default=0) <= 100, source
    for source in cells(path, 'markdown'):
        assert not re.search(r'PROSE_RESULT|CHECKME|PLACEHOLDER|TODO', source), source


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    for target in re.findall(r'\]\((?!http)([^)]+)\)', '\n'.join(cells(path, 'markdown'))):
        file, _, anchor = target.partition('#')
        other = path.parent / file if file else path
        assert other.exists(), f'{path.name} links to {target}'
        if anchor:
            headings = re.findall(r'^#+ (.+)$', '\n'.join(cells(other, 'markdown')), re.M)
            anchors = [re.sub(r'[^\w\- ]', '', h).strip().lower().replace(' ', '-') for h in headings]
            assert anchor in anchors, f'{path.name} links to {target}'
