"`finetune-teach` as a person types it."
import os
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from finetune_teach.__main__ import main
from finetune_teach.drawing import draw_pet
from finetune_teach.fine_tuning import load_learner


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
