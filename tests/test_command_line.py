"`finetune-teach` as a person types it."
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from PIL import Image

from finetune_teach import one_cycle, saving
from finetune_teach.drawing import draw_pet
from finetune_teach.engine.saving import read_saved
from finetune_teach.pictures import drawn_pets
from finetune_teach.tools.command_line import main
from finetune_teach.tools.course_writer import INSTALL, notebooks_folder
from finetune_teach.tools.learners import load_learner, vision_learner


@pytest.fixture
def photos(tmp_path):
    "A folder of two classes, twelve pictures each."
    for breed in ('Siamese', 'pug'):
        (tmp_path / 'photos' / breed).mkdir(parents=True)
        for i in range(12):
            draw_pet(breed, seed=i).save(tmp_path / 'photos' / breed / f'{i}.png')
    return tmp_path / 'photos'


def test_main_job(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([]) == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines() if line.strip()[:1].isdigit()]
    assert len(rows) == 5, 'one frozen epoch and four unfrozen ones'
    assert float(rows[-1][3]) < float(rows[0][3]), 'the error falls'
    assert 'Next:' in out and 'notebooks' in out
    assert Image.open('finetune_teach.png').size[0] > 800


def test_train_then_predict(photos, tmp_path, capsys):
    model = tmp_path / 'pets.safetensors'
    arguments = ['train', str(photos), '--epochs', '2', '--batch-size', '8', '--out', str(model),
                 '--plot', str(tmp_path / 'run.png')]
    assert main(arguments) == 0 and model.exists() and (tmp_path / 'run.png').exists()
    assert load_learner(model).description['classes'] == ['Siamese', 'pug']
    capsys.readouterr()
    pictures = [str(photos / 'pug' / '0.png'), str(photos / 'Siamese' / '1.png')]
    assert main(['predict', str(model), *pictures]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(': ')[0] for line in lines] == pictures
    assert lines[0].split(': ')[1].startswith('pug ') and lines[1].split(': ')[1].startswith('Siamese ')


def test_errors_are_one_line_and_status_2(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (photos / 'pug' / 'cut.jpg').write_bytes(b'\xff\xd8 no picture')
    for arguments, told in [
            (['train', 'nowhere'], 'nowhere'),
            (['train', str(photos)], 'cut.jpg'),
            (['train', str(photos), '--on-error', 'skip', '--arch', 'resnet43'], 'resnet34'),
            (['train', str(photos), '--on-error', 'skip', '--lr', '-1'], 'learning rate'),
            (['predict', str(tmp_path / 'none'), 'x.png'], 'no saved model')]:
        assert main(arguments) == 2
        err = capsys.readouterr().err
        assert err.startswith('finetune-teach: ') and told in err and 'Traceback' not in err
    assert not list(tmp_path.glob('*.safetensors')), 'nothing was learned, nothing is saved'


@pytest.mark.skipif(sys.platform == 'win32', reason='sends SIGINT')
def test_ctrl_c_saves_the_model(photos, tmp_path):
    model = tmp_path / 'model.safetensors'
    process = subprocess.Popen(
        [sys.executable, '-u', '-m', 'finetune_teach', 'train', photos, '--epochs', '500', '--out', model],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) # a background shell ignores it
    for line in process.stdout: # wait for the second epoch
        if line.split()[:1] == ['1']:
            break
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and 'stopped' in err and 'Traceback' not in err
    assert load_learner(model).predict(photos / 'pug' / '0.png').label in ('Siamese', 'pug')


def write(dest, *options):
    "The written notebooks by name."
    assert main(['notebooks', str(dest), *options]) == 0
    return {path.name: nbformat.read(path, 4) for path in Path(dest).glob('*.ipynb')}


def sources(notebook, kind):
    return [cell.source for cell in notebook.cells if cell.cell_type == kind]


@pytest.fixture(scope='module')
def full(tmp_path_factory):
    return write(tmp_path_factory.mktemp('course') / 'two words')


def test_course_is_all_notebooks_and_they_are_valid(full):
    assert full.keys() == {path.name for path in notebooks_folder().glob('*.ipynb')}
    for notebook in full.values():
        nbformat.validate(notebook)
        first, *others = sources(notebook, 'code')
        assert notebook.cells[0].source == first == INSTALL
        assert not [s for s in others if s.startswith(INSTALL[:40])], 'the source says it in other words'


def test_course_keeps_what_a_learner_reads(full):
    for name, notebook in full.items():
        source = nbformat.read(notebooks_folder() / name, 4)
        assert sources(notebook, 'markdown') == sources(source, 'markdown')
        outputs = [c for c in notebook.cells if c.get('outputs')]
        assert outputs or name in ('index.ipynb', 'glossary.ipynb'), f'{name} lost its outputs'
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
        assert not re.search('<summary>Answer|</?details>', text), name
        whole = '\n'.join(sources(full[name], 'markdown'))
        for question in re.findall(r'^\d\. .*', whole.partition('## Exercises')[2], re.M):
            assert question in text
        assert whole.rpartition('</details>')[2].strip() in text, 'what follows the last answer stays'
        assert [c.get('outputs') for c in notebook.cells] == [c.get('outputs') for c in full[name].cells]


def test_course_shows_its_pictures(tmp_path):
    write(tmp_path)
    for path in tmp_path.glob('*.ipynb'):
        for shown in re.findall(r'!\[[^]]*\]\(([^)]+)\)', '\n'.join(sources(nbformat.read(path, 4), 'markdown'))):
            assert shown.startswith('http') or (tmp_path / shown).exists(), f'{path.name} shows {shown}'
    assert (tmp_path / 'images/fine_tuning.png').exists()


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
    for dest in ('file', str(notebooks_folder())):
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


@pytest.mark.parametrize('name', ['02_random_head.ipynb', '12_command_line.ipynb'])
def test_written_notebook_runs_outside_the_checkout(name, tmp_path):
    notebook = write(tmp_path, '--no-outputs', '--no-answers')[name]
    NotebookClient(notebook, timeout=300, kernel_name='python3',
                   resources={'metadata': {'path': tmp_path}}).execute()
    assert any(cell.get('outputs') for cell in notebook.cells)


# Long runs

def test_train_goes_on_after_a_stop(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ['train', str(photos), '--epochs', '2', '--size', '32', '--checkpoint', 'run']
    assert main([*command, '--out', 'straight']) == 0
    os.remove('run.safetensors')
    whole, batches = one_cycle.whole_step, []
    def stopping(*args):
        batches.append(1)
        if len(batches) == 3: # the first is the frozen epoch's, the second the next epoch's
            raise KeyboardInterrupt
        return whole(*args)
    with monkeypatch.context() as patch:
        patch.setattr(one_cycle, 'whole_step', stopping)
        assert main([*command, '--out', 'half']) == 130
    assert Path('half.safetensors').exists() and Path('run.safetensors').exists()
    assert main([*command, '--out', 'again']) == 0
    assert 'run.safetensors: 1 of 2 epochs were done before' in capsys.readouterr().out
    straight, again = (read_saved(name).tensors for name in ('straight', 'again'))
    assert straight.keys() == again.keys() and all(straight[k].equal(again[k]) for k in straight)


def test_a_place_that_cannot_be_written_is_said_first(photos, tmp_path, capsys):
    (tmp_path / 'file').touch()
    assert main(['train', str(photos), '--out', str(tmp_path / 'file' / 'model')]) == 2
    printed = capsys.readouterr()
    assert 'model.safetensors cannot be written' in printed.err and 'epoch' not in printed.out


def test_a_model_that_cannot_be_saved_is_saved_elsewhere(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = saving.os.replace
    def replace(source, target):
        if str(target) == 'model.safetensors':
            raise OSError(28, 'No space left on device')
        return whole(source, target)
    monkeypatch.setattr(saving.os, 'replace', replace)
    assert main(['train', str(photos), '--epochs', '1', '--size', '32']) == 0
    printed = capsys.readouterr()
    assert 'No space left on device' in printed.err
    assert read_saved(re.search('The model is saved in (.*)[.]', printed.out)[1]).history


def test_versions_for_a_bug_report(capsys):
    assert main(['versions']) == 0
    assert torch.__version__.split('+')[0] in capsys.readouterr().out


def test_names_from_strangers_do_nothing_to_the_screen(tmp_path, capsys):
    "A class and a file whose names would clear the screen."
    learn = vision_learner(drawn_pets(n_train=1, n_valid=1, size=32), seed=0, device='cpu', show=False)
    learn.description['classes'] = [f'\x1b[2J{i}' for i in range(12)]
    learn.export(tmp_path / 'model')
    draw_pet('pug', seed=1).save(tmp_path / 'a\nb.png')
    assert main(['predict', str(tmp_path / 'model'), str(tmp_path / 'a\nb.png')]) == 0
    printed = capsys.readouterr().out
    assert '\x1b' not in printed and printed.count('\n') == 1 and r'\x1b[2J' in printed
