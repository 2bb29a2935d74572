"`finetune-teach` as a person types it."
import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from finetune_teach import training_loop
from finetune_teach.all import draw_pet, drawn_pets
from finetune_teach.engine.saving import read_saved
from finetune_teach.tools import command_line
from finetune_teach.tools.command_line import main
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


# Long runs

def test_train_goes_on_after_a_stop(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ['train', str(photos), '--epochs', '2', '--size', '32', '--checkpoint', 'run', '--device', 'cpu']
    assert main([*command, '--out', 'straight']) == 0
    os.remove('run.safetensors')
    guarded, batches = training_loop.guarded, []
    def guarded_and_stopping(step, *names):
        def stopping(*args):
            batches.append(1)
            if len(batches) == 3: # the first is the frozen epoch's, the second the next epoch's
                raise KeyboardInterrupt
            return step(*args)
        return guarded(stopping, *names)
    with monkeypatch.context() as patch:
        patch.setattr(training_loop, 'guarded', guarded_and_stopping)
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
    whole = os.replace
    def replace(source, target):
        if str(target) == 'model.safetensors':
            raise OSError(28, 'No space left on device')
        return whole(source, target)
    monkeypatch.setattr(os, 'replace', replace)
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


# Many pictures, and testing

@pytest.fixture(scope='module')
def model(tmp_path_factory):
    "The file of a learner that knows twelve breeds a little."
    learn = vision_learner(drawn_pets(n_train=6, n_valid=2, size=32), seed=0, device='cpu', show=False)
    learn.fit(1, 1e-2)
    return str(learn.export(tmp_path_factory.mktemp('model') / 'pets'))


def test_predict_a_folder(model, photos, tmp_path, capsys):
    extra = tmp_path / 'extra.png'
    draw_pet('pug', seed=30).save(extra)
    assert main(['predict', model, str(photos / 'pug'), str(extra), '--top', '1']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 13 and lines[-1].startswith(f'{extra}: ') and lines[0].startswith(str(photos / 'pug'))


def test_predict_into_a_csv_file(model, photos, tmp_path, capsys):
    (photos / 'notes.txt').write_text('a good dog')
    command = ['predict', model, str(photos), '--csv', str(tmp_path / 'answers.csv')]
    assert main(command) == 2 and 'notes.txt' in capsys.readouterr().err and not (tmp_path / 'answers.csv').exists()
    assert main([*command, '--on-error', 'skip']) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith('24 answers are in') and 'notes.txt' in printed.err
    with open(tmp_path / 'answers.csv', newline='') as file:
        rows = [*csv.DictReader(file)]
    learn = load_learner(model)
    assert len(rows) == 24
    for row in rows[::8]:
        answer = learn.predict(row['file'])
        assert row['label'] == answer.label
        assert float(row['pug']) == pytest.approx(answer.probabilities[learn.description['classes'].index('pug')].item(),
                                                  abs=1e-4) # a GPU rounds batches in another way


def test_predict_says_first_what_cannot_be_written(model, photos, tmp_path, capsys):
    assert main(['predict', model, str(photos), '--csv', str(tmp_path)]) == 2
    assert 'cannot be written' in capsys.readouterr().err
    (tmp_path / 'empty').mkdir()
    assert main(['predict', model, str(tmp_path / 'empty')]) == 2
    assert 'empty: no files' in capsys.readouterr().err


def test_test_prints_errors_and_answers(model, photos, tmp_path, capsys):
    assert main(['test', model, str(photos), '--plot', str(tmp_path / 'confusion.png')]) == 0
    out = capsys.readouterr().out
    assert out.startswith('24 pictures of 2 classes: error ') and ' of 24 wrong, ' in out and 'Answers (a row' in out
    assert re.search(r'^pug +\d+\.\d%', out, re.M) and Image.open(tmp_path / 'confusion.png').size[0] > 300
    (photos / 'pug').rename(photos / 'Pug')
    assert main(['test', model, str(photos)]) == 2
    err = capsys.readouterr().err
    assert 'does not know: Pug' in err and 'beagle' in err and 'Traceback' not in err


def test_train_passes_on_how_pictures_are_made(photos, tmp_path, monkeypatch):
    asked = []
    def stop(folder, **options):
        asked.append(options)
        raise KeyboardInterrupt
    monkeypatch.setattr(command_line, 'image_folders', stop)
    for more in ([], ['--no-flip'], ['--resize', 'squeeze']):
        assert main(['train', str(photos), '--out', str(tmp_path / 'a'), *more]) == 130
    assert [a['flip'] for a in asked] == [True, False, True]
    assert [a.get('resize') for a in asked] == [None, None, 'squeeze'] and 'resize' not in asked[0]
