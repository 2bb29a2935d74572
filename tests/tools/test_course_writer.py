"The course as `finetune-teach notebooks` writes it."
import json
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from finetune_teach.tools import course_writer
from finetune_teach.tools.command_line import main
from finetune_teach.tools.course_writer import INSTALL, notebooks_folder


def write(dest, *options):
    "The written notebooks by name."
    assert main(['notebooks', str(dest), *options]) == 0
    return {name: nbformat.read(Path(dest) / name, 4) for name in names(dest)}


def names(folder):
    "Its notebooks, also those in folders."
    return {path.relative_to(folder).as_posix() for path in Path(folder).rglob('*.ipynb')}


def sources(notebook, kind):
    return [cell.source for cell in notebook.cells if cell.cell_type == kind]


@pytest.fixture(scope='module')
def full(tmp_path_factory):
    return write(tmp_path_factory.mktemp('course') / 'two words')


def test_course_is_all_notebooks_and_they_are_valid(full):
    assert full.keys() == names(notebooks_folder()) > {'index.ipynb', 'engine/saving.ipynb', 'tools/claims.ipynb'}
    for notebook in full.values():
        nbformat.validate(notebook)
        first, *others = sources(notebook, 'code')
        assert notebook.cells[0].source == first == INSTALL
        assert not [s for s in others if s.startswith(INSTALL[:40])], 'the source says it in other words'


def test_course_keeps_what_a_learner_reads(full):
    for name, notebook in full.items():
        source = nbformat.read(notebooks_folder() / name, 4)
        assert sources(notebook, 'markdown') == sources(source, 'markdown')
        outputs = [len(c.outputs) for c in source.cells if c.get('outputs') and '#| hide' not in c.source]
        assert [len(c.outputs) for c in notebook.cells if c.get('outputs')] == outputs, f'{name} lost some'
    code = '\n'.join(sources(full['02_random_head.ipynb'], 'code'))
    assert 'def create_head(' in code


def test_course_has_nothing_of_the_workshop(full):
    for name, notebook in full.items():
        for source in sources(notebook, 'code'):
            assert source and not re.search(r'^#\|', source, re.M), f'{name}: {source}'
            assert not re.search(r'^\s*(import|from) nbdev|\.\./(?!evil)', source, re.M), f'{name}: {source}'
        text = json.dumps([cell.get('outputs') for cell in notebook.cells])
        assert not re.search(r'/tmp/|/home/|/Users/|\\Users|' + re.escape(str(Path.home())), text), name


def test_course_without_outputs_and_answers(full, tmp_path):
    for name, notebook in write(tmp_path / 'a', '--no-outputs').items():
        assert not [c for c in notebook.cells if c.get('outputs') or c.get('execution_count')], name
        assert [c.source for c in notebook.cells] == [c.source for c in full[name].cells]
    for name, notebook in write(tmp_path / 'b', '--no-answers').items():
        text = '\n'.join(sources(notebook, 'markdown'))
        assert text == '\n'.join(sources(full[name], 'markdown')) and '<details>' not in text, 'all questions stay'
        assert notebook.cells == [c for c in full[name].cells if not c.source.startswith('with answer(')]
        assert not name[0].isdigit() or len(full[name].cells) == len(notebook.cells) + 3


def test_links_and_pictures_lead_somewhere(tmp_path):
    write(tmp_path)
    for name in names(tmp_path):
        page = tmp_path / name
        for link in re.findall(r'\]\(([^)#]+)[^)]*\)', '\n'.join(sources(nbformat.read(page, 4), 'markdown'))):
            assert link.startswith('http') or (page.parent / link).is_file(), f'{name} leads to {link}'
    assert (tmp_path / 'images/fine_tuning.png').exists()


def test_what_was_left_lying_about_is_not_written(tmp_path, monkeypatch):
    for name in ('index.ipynb', 'engine/saving.ipynb', 'Untitled.ipynb', 'engine/Untitled1.ipynb', '03_freezing-Copy1.ipynb',
                 'tools/claims-Copy1.ipynb', '.ipynb_checkpoints/03_freezing.ipynb', 'engine/.ipynb_checkpoints/saving.ipynb'):
        (tmp_path / 'nbs' / name).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(
            '![](images/a.png) ![](../images/b.png)')]), tmp_path / 'nbs' / name)
    (tmp_path / 'nbs/images').mkdir()
    for name in 'abc':
        (tmp_path / f'nbs/images/{name}.png').write_bytes(b'')
    monkeypatch.setattr(course_writer, 'notebooks_folder', lambda: tmp_path / 'nbs')
    assert write(tmp_path / 'mine').keys() == {'index.ipynb', 'engine/saving.ipynb'}
    assert sorted(path.name for path in (tmp_path / 'mine/images').iterdir()) == ['a.png', 'b.png']


def test_course_never_overwrites_silently(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('mine').mkdir()
    Path('mine/02_random_head.ipynb').write_text('my work')
    assert main(['notebooks', 'mine']) == 2
    err = capsys.readouterr().err
    assert '02_random_head.ipynb' in err and '03_freezing' not in err and err.count('\n') == 1
    assert [path.name for path in Path('mine').iterdir()] == ['02_random_head.ipynb'], 'half a course'
    assert Path('mine/02_random_head.ipynb').read_text() == 'my work'
    assert main(['notebooks', 'mine', '--overwrite']) == 0
    assert 'jupyter lab "mine"' in capsys.readouterr().out
    assert nbformat.read('mine/02_random_head.ipynb', 4).cells
    Path('file').write_text('')
    for dest in ('file', str(notebooks_folder()), str(notebooks_folder() / 'engine')):
        assert main(['notebooks', dest, '--overwrite']) == 2
        assert capsys.readouterr().err.startswith(f'finetune-teach: {dest} is ')


def test_a_full_disk_leaves_no_half_course(tmp_path, capsys, monkeypatch):
    write_bytes = Path.write_bytes

    def write_until_full(path, content):
        if path.name.startswith('03'):
            raise OSError(28, 'No space left on device')
        return write_bytes(path, content)
    monkeypatch.setattr(Path, 'write_bytes', write_until_full)
    assert main(['notebooks', str(tmp_path / 'course')]) == 2
    assert 'No space left' in capsys.readouterr().err
    assert not list((tmp_path / 'course').iterdir())


@pytest.mark.parametrize('name', ['02_random_head.ipynb', 'tools/command_line.ipynb'])
def test_written_notebook_runs_outside_the_checkout(name, tmp_path):
    notebook = write(tmp_path, '--no-outputs', '--no-answers')[name]
    NotebookClient(notebook, timeout=300, kernel_name='python3',
                   resources={'metadata': {'path': (tmp_path / name).parent}}).execute()
    assert any(cell.get('outputs') for cell in notebook.cells)
