"Training that goes on to the bit after a stop, and files of another training that are refused."
import os
import random
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torchvision.models import mobilenet_v3_small, resnet18

from conftest import same_bits, state
from finetune_teach.engine.saving import read_saved, read_tensors, write_tensors
from finetune_teach.engine.tiny_resnet import tiny_resnet
from finetune_teach.overfitting import EarlyStopping, KeepBest
from finetune_teach.pictures import drawn_pets
from finetune_teach.tools.learners import vision_learner


class Stop(Exception):
    "The lights go out."


class LossThatStops:
    "Cross-entropy, until it has been asked so often."
    def __init__(self, calls):
        self.left = calls

    def __call__(self, logits, targets):
        self.left -= 1
        if self.left == 0:
            raise Stop
        return nn.functional.cross_entropy(logits, targets)


def recipe(learn):
    learn.fine_tune(2, freeze_epochs=2)


def by_hand(learn):
    learn.fit_one_cycle(2, 1e-2)
    learn.unfreeze()
    learn.fit_one_cycle(2, slice(1e-4, 1e-3))


def with_callbacks(learn):
    learn.best = KeepBest('error_rate')
    learn.fit_one_cycle(4, 1e-2, callbacks=[learn.best, EarlyStopping('valid_loss', patience=1, mode='max')])
    learn.best.restore(learn.model)


def run(make_learner, path, train, stop=None, **options):
    "Train; with `stop`, break down in that call of the loss. Whether it did not."
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    learn = make_learner(checkpoint=path, **options)
    if stop:
        learn.loss_func = LossThatStops(stop)
    try:
        train(learn)
    except Stop:
        return learn, False
    return learn, True


def everything_of(learn):
    tensors = state(learn.model)
    for i, memory in learn.optimizer.state_dict()['state'].items():
        tensors |= {f'{i}.{k}': v.clone() for k, v in memory.items()}
    recorder = learn.recorder
    rows = [{k: v for k, v in row.items() if k != 'time'} for row in recorder.history]
    answers = [tuple(t.tolist() for t in a) for a in recorder.answers]
    return tensors, (rows, recorder.steps, recorder.phases, recorder.epochs_begun, answers)


@pytest.mark.parametrize('train, seed', [(recipe, 0), (by_hand, None), (with_callbacks, 0)])
def test_stopped_anywhere_it_ends_as_if_it_had_not_been(make_learner, tmp_path, train, seed):
    straight, _ = run(make_learner, None, train, seed=seed)
    tensors, told = everything_of(straight)
    for stop in (1, 6, 14):  # of 4 epochs with 3 steps and a validation each
        path, tries = tmp_path / f'{stop}', 1
        learn, whole = run(make_learner, path, train, stop, seed=seed)
        while not whole: # each time it comes 5 calls of the loss further, an epoch and a step
            learn, whole = run(make_learner, path, train, 6, seed=seed)
            tries += 1
            assert tries < 9
        again = everything_of(learn)
        assert same_bits(tensors, again[0]), f'stopped at {stop}'
        assert again[1] == told
        if seed is None and stop == 1:
            assert tries > 1


@pytest.mark.slow
@pytest.mark.parametrize('arch, seed', [(tiny_resnet, None), (resnet18, 0), (mobilenet_v3_small, None)])
def test_real_networks_and_two_threads(tmp_path, arch, seed):
    "In the frozen epoch, and in the first of the unfrozen ones."
    dls = drawn_pets(n_train=6, n_valid=3, size=48)
    def make(**options):
        return vision_learner(dls, arch, weights=None, device='cpu', **{'show': False, **options})
    torch.set_num_threads(2)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore') # that nothing is pretrained
            straight, _ = run(make, None, lambda learn: learn.fine_tune(2), seed=seed)
            for stop in (3, 9):
                run(make, tmp_path / f'{stop}', lambda learn: learn.fine_tune(2), stop, seed=seed)
                again, _ = run(make, tmp_path / f'{stop}', lambda learn: learn.fine_tune(2), seed=seed)
                assert same_bits(everything_of(straight)[0], everything_of(again)[0]), stop
    finally:
        torch.set_num_threads(1)


class Clip:
    "What wants to know of each step, of each epoch, or of both."
    def __init__(self):
        self.steps, self.epochs = [], []

    def after_step(self, model, recorder):
        self.steps.append(recorder.steps[-1].loss)

    def __call__(self, model, recorder):
        self.epochs.append(len(recorder.history))


def test_callbacks_hear_of_each_step_through_a_checkpoint(make_learner, tmp_path):
    heard = []
    for path in (None, tmp_path / 'run'):
        learn, listener = make_learner(checkpoint=path), Clip()
        learn.fit(2, 1e-2, callbacks=[KeepBest(), listener])
        assert listener.epochs == [1, 2] and listener.steps == learn.recorder.losses
        heard.append(listener.steps)
    assert heard[0] == heard[1]


def test_ctrl_c_amid_an_epoch_leaves_a_file_to_go_on_from(make_learner, tmp_path):
    "With callbacks that keep a state; the second learner was never told of the first."
    def stops(model, recorder):
        if len(recorder.steps) == 7:
            raise KeyboardInterrupt
    class Stops(Clip):
        after_step = staticmethod(stops)
    ends = []
    for path in (None, tmp_path / 'run'):
        keep, stop = KeepBest(), EarlyStopping('train_loss', patience=2, mode='max')
        if path:
            learn = make_learner(checkpoint=path)
            with pytest.raises(KeyboardInterrupt):
                learn.fit(5, 1e-2, callbacks=[KeepBest(), EarlyStopping('train_loss', 2, 'max'), Stops()])
            assert len(learn.recorder.history) == 2 == len(read_saved(path).history)
        learn = make_learner(checkpoint=path)
        learn.fit(5, 1e-2, callbacks=[keep, stop, Clip()])
        ends.append((state(learn.model), keep.epoch, keep.cost, len(learn.recorder.history)))
    assert same_bits(ends[0][0], ends[1][0]) and ends[0][1:] == ends[1][1:] and ends[0][3] == 3


def test_a_run_that_is_done_is_not_done_again(make_learner, tmp_path, capsys):
    first, _ = run(make_learner, tmp_path / 'run', recipe)
    again, _ = run(make_learner, tmp_path / 'run', recipe, stop=1, show=True)
    assert same_bits(state(first.model), state(again.model))
    assert first.recorder.history == again.recorder.history
    assert 'run.safetensors: 2 of 2 epochs were done before' in capsys.readouterr().out
    again.loss_func = nn.functional.cross_entropy
    again.fit_one_cycle(1, 1e-3) # and it can be trained on
    assert len(again.recorder.history) == 5


def test_rows_that_were_read_are_shown(make_learner, tmp_path, capsys):
    run(make_learner, tmp_path / 'run', by_hand, stop=6)
    capsys.readouterr()
    learn, _ = run(make_learner, tmp_path / 'run', by_hand, show=True)
    shown = capsys.readouterr().out
    for row in learn.recorder.history:
        assert f'{row["valid_loss"]:.6f}' in shown


# Refused

@pytest.mark.parametrize('other, told', [
    (lambda learn: learn.fine_tune(3, freeze_epochs=2), 'call 2 of fit: epochs was 2, now it is 3'),
    (lambda learn: learn.fine_tune(2, freeze_epochs=1), 'call 1 of fit: epochs was 2, now it is 1'),
    (lambda learn: learn.fine_tune(2, freeze_epochs=2, base_lr=1e-3), 'highest rate was 0.00188, now it is 0.000942'),
    (lambda learn: learn.fine_tune(2, freeze_epochs=2, wd=.1), 'weight decay was 0.01, now it is 0.1'),
])
def test_another_training_is_refused(make_learner, tmp_path, other, told):
    run(make_learner, tmp_path / 'run', recipe, stop=13)
    learn = make_learner(checkpoint=tmp_path / 'run')
    before = state(learn.model)
    with pytest.raises(ValueError, match=told) as error:
        other(learn)
    assert str(tmp_path / 'run.safetensors') in str(error.value)
    assert same_bits(before, state(learn.model))


def test_other_pictures_are_refused(make_learner, tmp_path):
    run(make_learner, tmp_path / 'run', recipe, stop=6)
    with pytest.raises(ValueError, match='In call 1 of fit: other pictures'):
        recipe(make_learner(drawn_pets(n_train=4, n_valid=3, size=32, cats_vs_dogs=True),
                            checkpoint=tmp_path / 'run'))


def test_a_saved_model_is_no_checkpoint(make_learner, tmp_path):
    path = make_learner().save(tmp_path / 'a')
    with pytest.raises(ValueError, match='a.safetensors is no checkpoint of a training'):
        make_learner(checkpoint=path)


def rewrite(path, change):
    "Change a file's tensors and text, and give it a checksum that is right again."
    tensors, about = read_tensors(path)
    change(tensors, about)
    return write_tensors(path, tensors, about)


@pytest.mark.parametrize('change', [
    lambda t, a: t.pop('recorder.steps'), lambda t, a: t.pop('random.python'),
    lambda t, a: t.update({'random.numpy_rest': torch.zeros(1)}), lambda t, a: a.pop('record'),
    lambda t, a: a.update(record=[]), lambda t, a: a['record'].pop('phases'),
    lambda t, a: t.update({'random.python': torch.zeros(3, dtype=torch.int64)}),
    lambda t, a: t.update({'random.torch': torch.zeros(3, dtype=torch.uint8)}),
    lambda t, a: t.update({'recorder.steps': torch.zeros(2)}),
    lambda t, a: a.update(versions=7), lambda t, a: a.update(calls=7), lambda t, a: a.update(calls=[{}])])
def test_a_checkpoint_without_a_part_changes_nothing(make_learner, tmp_path, change):
    run(make_learner, tmp_path / 'run', recipe, stop=6)
    rewrite(tmp_path / 'run.safetensors', change)
    generators = random.getstate(), torch.get_rng_state().tolist()
    with pytest.raises(ValueError, match='run.safetensors'):
        learn = make_learner(checkpoint=tmp_path / 'run')
        before = state(learn.model)
        try:
            recipe(learn)
        finally:
            assert same_bits(before, state(learn.model)) and not learn.recorder.history
    assert generators == (random.getstate(), torch.get_rng_state().tolist())


def test_a_checkpoint_that_cannot_be_written_is_said_before_training(make_learner, tmp_path):
    (tmp_path / 'file').touch()
    learn = make_learner(checkpoint=tmp_path / 'file' / 'run')
    with pytest.raises(OSError, match='cannot be written'):
        learn.fit(1, 1e-2)
    assert not learn.recorder.steps


def test_a_disk_that_fills_up_does_not_end_the_training(make_learner, tmp_path, monkeypatch):
    learn = make_learner(checkpoint=tmp_path / 'run')
    def full(*args):
        raise OSError(28, 'No space left on device')
    def fill(model, recorder):
        monkeypatch.setattr(safetensors.torch, 'save_file', full)
        if len(recorder.history) == 3:
            monkeypatch.undo()
    with pytest.warns(UserWarning, match='No space left.*older file is still there.*goes on') as warned:
        learn.fit(3, 1e-2, callbacks=[fill])
    assert len(warned) == 2 and len(learn.recorder.history) == 3
    assert len(read_saved(tmp_path / 'run').history) == 3, 'the last one could be written again'


def test_other_versions_are_said(make_learner, tmp_path):
    run(make_learner, tmp_path / 'run', recipe, stop=6)
    rewrite(tmp_path / 'run.safetensors', lambda t, a: a['versions'].update(torch='1.0'))
    with pytest.warns(UserWarning, match=r'torch 1.0, now .*last digits may differ'):
        run(make_learner, tmp_path / 'run', recipe)


# Killed

TRAINING = '''
import os, random, sys, time
sys.path.insert(0, sys.argv[1])
import torch
from conftest import small_network
from finetune_teach.engine.modules import checksum
from finetune_teach.pictures import drawn_pets
from finetune_teach.tools.learners import vision_learner

dls = drawn_pets(n_train=4, n_valid=3, size=32)

def train(name):
    learn = vision_learner(dls, small_network(), hidden=(8,), device='cpu', show=False, checkpoint=name)
    learn.fine_tune(8, freeze_epochs=4)
    with open(f'{name}.done', 'w') as file:
        file.write(checksum(learn.model.state_dict()))

for line in sys.stdin: # the name of a file, and how long to wait before the kill
    name, seconds = line.split()
    child = os.fork()
    if not child:
        torch.manual_seed(0)
        train(name)
        os._exit(0)
    time.sleep(float(seconds))
    killed = os.path.exists(f'{name}.done') is False
    os.kill(child, 9)
    os.waitpid(child, 0)
    print(int(killed), flush=True)
'''


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='forks')
def test_killed_at_random_moments(tmp_path):
    "At least 20 kills; each run ends with the weights of one that was not killed."
    generator, tests = random.Random(0), Path(__file__).parents[1]
    worker = subprocess.Popen([sys.executable, '-c', TRAINING, str(tests)], text=True, cwd=tmp_path,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              env=os.environ | {'OMP_NUM_THREADS': '1'})
    def attempt(name, seconds):
        worker.stdin.write(f'{name} {seconds}\n')
        worker.stdin.flush()
        return int(worker.stdout.readline())
    start, seconds = time.time(), 1.0
    while not (tmp_path / 'straight.done').exists(): # how long does one run take?
        (tmp_path / 'straight.safetensors').unlink(missing_ok=True)
        attempt('straight', seconds)
        seconds *= 1.5
    straight, kills, runs = (tmp_path / 'straight.done').read_text(), 0, 0
    whole = seconds / 1.5
    while kills < 20:
        runs += 1
        name = f'run{runs}'
        while not (tmp_path / f'{name}.done').exists():
            kills += attempt(name, generator.uniform(0.02, whole / 2))
            assert time.time() - start < 600
            if (tmp_path / f'{name}.safetensors').exists():
                read_saved(tmp_path / name) # whole, after each kill
        assert (tmp_path / f'{name}.done').read_text() == straight, name
    worker.stdin.close()
    worker.wait()
    assert kills >= 20 and runs >= 2
