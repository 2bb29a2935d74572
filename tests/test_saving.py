"Files that run no code and are whole or not there; training that goes on to the bit after a stop."
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from conftest import same_bits, small_network, state
from torch import nn
from torchvision.models import mobilenet_v3_small, resnet18

from finetune_teach import __version__
from finetune_teach.engine.drawing import draw_pet
from finetune_teach.engine.files import check_writable, whole_file
from finetune_teach.engine.modules import checksum
from finetune_teach.engine.saving import file_name, read_saved, read_tensors, write_tensors
from finetune_teach.engine.tiny_resnet import tiny_resnet
from finetune_teach.engine.versions import show_versions, versions
from finetune_teach.fine_tuning import Learner
from finetune_teach.overfitting import EarlyStopping, KeepBest
from finetune_teach.pictures import drawn_pets
from finetune_teach.pretrained_body import create_body
from finetune_teach.random_head import create_head
from finetune_teach.tools.learners import load_learner, vision_learner

OLD = {n: Path(__file__).parent / 'saved' / f'format_{n}.safetensors' for n in (1, 2)} # keep them
SAVED = OLD[1]


# What a file holds

def test_metadata(make_learner, tmp_path):
    learn = make_learner()
    learn.fit(1, 1e-2)
    saved = read_saved(learn.save(tmp_path / 'a'))
    assert saved.description['arch'] == 'TinyResNet' and saved.description['classes'] == learn.dls.classes
    assert saved.description['size'] == 32 and len(saved.description['mean']) == 3
    assert saved.history == learn.recorder.history
    assert saved.about['versions']['finetune_teach'] == __version__
    assert set(saved.learns) == {n for n, p in learn.model.named_parameters() if p.requires_grad}


def test_export_is_for_prediction(pets, tmp_path):
    learn = vision_learner(pets, tiny_resnet, weights=None, hidden=(8,), seed=0, device='cpu', show=False)
    learn.fit(1, 1e-2)
    whole, small = learn.save(tmp_path / 'whole'), learn.export(tmp_path / 'small')
    assert small.stat().st_size < 0.5 * whole.stat().st_size
    again, picture = load_learner(small), draw_pet('pug', seed=3)
    assert again.predict(picture).probabilities.equal(learn.predict(picture).probabilities)
    assert again.recorder.history == learn.recorder.history
    learn.load(small)
    assert not learn.optimizer.state


@pytest.mark.parametrize('number', OLD)
def test_files_of_earlier_versions(make_learner, number):
    "Each written by the code of its day; the first has neither checksum nor history."
    learn = make_learner(seed=9).load(OLD[number])
    found = learn.predict(draw_pet('beagle', seed=5)).probabilities
    known = [.08288144, .08403316, .08398332, .08338004, .08322059, .08307391, .08345735, .08260565,
             .08321449, .08345079, .08251309, .08418617]
    assert torch.allclose(found, torch.tensor(known), atol=1e-5)
    assert len(learn.optimizer.state) == sum(p.requires_grad for p in learn.model.parameters())
    same = load_learner(OLD[number], arch=small_network())
    assert torch.allclose(same.predict(draw_pet('beagle', seed=5)).probabilities, found)
    assert len(same.recorder.history) == number - 1


def test_mode_of_a_file_is_as_usual(make_learner, tmp_path):
    (tmp_path / 'usual').touch()
    path = make_learner().save(tmp_path / 'a')
    assert path.stat().st_mode == (tmp_path / 'usual').stat().st_mode, 'a class can read it'


def test_pictures_of_another_size_are_a_warning(make_learner, tmp_path):
    path = make_learner().save(tmp_path / 'a')
    with pytest.warns(UserWarning, match='size 32, here it is 48'):
        make_learner(drawn_pets(n_train=4, n_valid=3, size=48)).load(path)


def test_versions(capsys):
    show_versions()
    shown = capsys.readouterr().out
    for name, value in versions().items():
        assert f'{name} ' in shown and value in shown
    assert torch.__version__.startswith(versions()['torch'])


# Whole, or not there

def test_nothing_is_left_of_a_program_that_was_killed(tmp_path):
    path = tmp_path / 'a.safetensors'
    write_tensors(path, {'w': torch.ones(3)}, {})
    beside = tmp_path / '.a.safetensors.part'
    beside.mkdir()
    (beside / '.tmpabc').write_bytes(b'half')
    assert read_tensors(path)[0]['w'].equal(torch.ones(3))
    write_tensors(path, {'w': torch.zeros(3)}, {})
    assert list(tmp_path.iterdir()) == [path]


def test_any_part_of_a_new_file_leaves_the_old_one(tmp_path, monkeypatch):
    "As if the program was killed after so many bytes."
    path = write_tensors(tmp_path / 'a.safetensors', {'w': torch.arange(5.)}, {'n': 1})
    new = write_tensors(tmp_path / 'b.safetensors', {'w': torch.arange(9.)}, {'n': 2}).read_bytes()
    for n in range(0, len(new) + 1, 7):
        with pytest.raises(SystemExit), whole_file(path) as aside:
            aside.write_bytes(new[:n])
            raise SystemExit
        assert read_tensors(path)[0]['w'].equal(torch.arange(5.))


def test_names_that_cannot_be_written(make_learner, tmp_path):
    (tmp_path / 'file').touch()
    (tmp_path / 'folder.safetensors').mkdir()
    learn = make_learner()
    with pytest.raises(OSError, match='file/a.safetensors cannot be written.*another name or folder'):
        learn.save(tmp_path / 'file' / 'a')
    with pytest.raises(OSError, match='folder.safetensors cannot be written: it is a folder'):
        learn.save(tmp_path / 'folder')
    with pytest.raises(OSError, match='cannot be written'):
        check_writable(tmp_path / 'file' / 'a')
    check_writable(tmp_path / 'new')
    assert not (tmp_path / 'new').exists()


FULL = '''
import resource, signal, sys, torch
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from pathlib import Path
path = write_tensors(Path(sys.argv[1]), {'w': torch.zeros(100)}, {})
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)) # no file may become larger
try:
    write_tensors(path, {'w': torch.ones(100_000)}, {})
except OSError as error:
    print(error)
assert read_tensors(path)[0]['w'].equal(torch.zeros(100)), 'the old one'
'''

@pytest.mark.skipif(os.name != 'posix', reason='limits files as POSIX does')
def test_a_disk_that_is_full(tmp_path):
    done = subprocess.run([sys.executable, '-c', FULL, str(tmp_path / 'a.safetensors')], text=True,
                          capture_output=True)
    assert not done.returncode, done.stderr
    assert 'cannot be written' in done.stdout and 'The older file is still there' in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ['a.safetensors']


READ_ONLY = '''
import os, sys
from pathlib import Path
if os.getuid() == 0:
    os.setuid(65534) # nobody: for the superuser no folder is read-only
try:
    check_writable(Path(sys.argv[1]) / 'a.safetensors')
except OSError as error:
    print(error)
'''

@pytest.mark.skipif(os.name != 'posix', reason='permissions as on POSIX')
def test_a_folder_that_is_read_only():
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        done = subprocess.run([sys.executable, '-c', READ_ONLY, folder], text=True, capture_output=True)
        assert 'a.safetensors cannot be written: [Errno 13] Permission denied' in done.stdout, done.stderr
        assert not os.listdir(folder)


# Files made to do harm

def header(text, rest=b''):
    data = text.encode() if isinstance(text, str) else text
    return len(data).to_bytes(8, 'little') + data + rest

def with_about(about, format='finetune_teach 1'):
    about = {'format': format, 'description': '{}', 'learns': '[]', **about}
    return header(json.dumps({'__metadata__': about}))

class Evil:
    "Leaves a trace where it is unpickled."
    def __reduce__(self):
        return Path.write_text, (Path('ran'), 'code was run')

def torch_pickle():
    import io
    file = io.BytesIO()
    torch.save({'model': Evil()}, file)
    return file.getvalue()

def old_torch_pickle():
    import io
    file = io.BytesIO()
    torch.save({'model': Evil()}, file, _use_new_zipfile_serialization=False)
    return file.getvalue()

def zip_bomb():
    import io
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('data.pkl', bytes(50_000_000))
    return file.getvalue()

def tensor(dtype, shape, offsets, rest=bytes(4)):
    return header(json.dumps({'__metadata__': {'format': 'finetune_teach 1', 'description': '{}', 'learns': '[]'},
                              'w': {'dtype': dtype, 'shape': shape, 'data_offsets': offsets}}), rest)

HOSTILE = {
    'pickle': pickle.dumps(Evil()),
    'old pickle': pickle.dumps(Evil(), protocol=0),
    'torch file': torch_pickle(),
    'old torch file': old_torch_pickle(),
    'zip bomb': zip_bomb(),
    'python source': b'import os; open("ran", "w")',
    'empty': b'',
    'seven bytes': b'1234567',
    'header of no bytes': bytes(8),
    'header of 2^63': (2**63).to_bytes(8, 'little') + b'{}',
    'header of 2^64 - 1': b'\xff' * 8 + b'{}',
    'header longer than the file': (100).to_bytes(8, 'little') + b'{}',
    'header over the limit': header(b'{' + b' ' * 100_000_001 + b'}'),
    'no JSON': header('hello'),
    'JSON list': header('[]'),
    'no UTF-8': header(b'{"\xff\xfe": 1}'),
    'nested header': header('{"__metadata__":' + '{"a":' * 50_000 + '1' + '}' * 50_000 + '}'),
    'shape overflows': tensor('F32', [2**32, 2**32], [0, 4]),
    'shape overflows once more': tensor('F32', [2**62, 4], [0, 4]),
    'shape larger than the data': tensor('F32', [1000], [0, 4]),
    'shape of a negative number': tensor('F32', [-1], [0, 4]),
    'shape with zero and much': tensor('F32', [0, 2**63 - 1, 2**63 - 1], [0, 0], b''),
    'ten thousand dimensions': tensor('F32', [1] * 10_000, [0, 4]),
    'offsets beyond the end': tensor('F32', [1], [0, 2**40]),
    'offsets backwards': tensor('F32', [1], [4, 0]),
    'offsets negative': tensor('F32', [1], [-4, 0]),
    'unknown type': tensor('PICKLE', [1], [0, 4]),
    'data without a tensor': with_about({}) + bytes(100),
    'other format': with_about({}, 'pt'),
    'format of the future': with_about({}, 'finetune_teach 99'),
    'no checksum': with_about({}, 'finetune_teach 2'),
    'wrong checksum': with_about({'checksum': '0' * 64}, 'finetune_teach 2'),
    'text nested deeply': with_about({'learns': '[' * 100_000}),
    'text of a huge number': with_about({'learns': '9' * 5_000_000}),
    'text that is no JSON': with_about({'description': "__import__('os')"}),
    'description is a list': with_about({'description': '[]'}),
    'learns is a number': with_about({'learns': '7'}),
    'history is text': with_about({'history': '"x"'}),
    'empty description': with_about({}),
}

def description(**changes):
    good = {'arch': 'tiny_resnet', 'classes': ['a', 'b'], 'size': 64, 'mean': [.5] * 3, 'std': [.5] * 3,
            'head': {'hidden': [], 'dropout': .5}, 'precision': 'fp32'}
    return with_about({'description': json.dumps(good | changes)})

HOSTILE |= {
    'arch is a path': description(arch='../../evil.py'),
    'arch is code': description(arch='__import__("os").system("touch ran")'),
    'arch of a torch function': description(arch='torch.hub.load'),
    'arch is a list': description(arch=['tiny_resnet']),
    'a network of 12 GB': description(arch='vit_h_14'),
    'classes are numbers': description(classes=[1, 2]),
    'one class': description(classes=['a']),
    'a million classes': description(classes=['a'] * 1_000_000),
    'pictures of 10^9 pixels': description(size=10**9),
    'pictures of -1 pixels': description(size=-1),
    'std of 0': description(std=[0., 1., 1.]),
    'mean of two': description(mean=[0., 1.]),
    'a head of 10^12 units': description(head={'hidden': [10**12], 'dropout': .5}),
    'a head of 10^5 layers': description(head={'hidden': [1] * 100_000, 'dropout': .5}),
    'a head with other options': description(head={'hidden': [], 'dropout': .5, 'code': 'x'}),
    'dropout is text': description(head={'hidden': [], 'dropout': 'x'}),
    'another precision': description(precision='int1'),
    'no weights at all': description(),
    'classes are lists': description(classes=[[1], [2]]),
    'a class of 1 MB': description(classes=['a' * 1_000_000, 'b']),
    'names that clear the screen': description(classes=['\x1b[2J', 'b'], arch='\x1b[2J'),
    'a format that clears the screen': with_about({}, '\x1b[2J' * 9999),
    'a tensor that clears the screen': header(json.dumps({
        '__metadata__': {'format': 'finetune_teach 1', 'learns': '[]', 'description': json.dumps(
            {'arch': 'tiny_resnet', 'classes': ['a', 'b'], 'size': 64, 'mean': [.5] * 3, 'std': [.5] * 3,
             'head': {'hidden': [], 'dropout': .5}})},
        'model.\x1b[2J' + 'x' * 100_000: {'dtype': 'F32', 'shape': [1], 'data_offsets': [0, 4]}}), bytes(4)),
}


@pytest.fixture(scope='module')
def small_memory():
    "A limit for this process: 3 GB more than it has now."
    import resource # not on Windows
    with open('/proc/self/statm') as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + 3_000_000_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.skipif(sys.platform != 'linux', reason='limits memory as Linux does')
@pytest.mark.parametrize('what', HOSTILE)
def test_hostile_files(what, make_learner, tmp_path, monkeypatch, small_memory):
    monkeypatch.chdir(tmp_path)
    Path('model.safetensors').write_bytes(HOSTILE[what])
    learn, start = make_learner(), time.process_time()
    before = state(learn.model)
    for load in (load_learner, learn.load):
        with pytest.raises(ValueError, match='model.safetensors') as error:
            load('model')
        assert len(str(error.value)) < 1000 and '\x1b' not in str(error.value), 'fit to be read'
    assert same_bits(before, state(learn.model))
    assert not Path('ran').exists() and time.process_time() - start < 10
    assert os.listdir() == ['model.safetensors']


def rewrite(path, change):
    "Change a file's tensors and text, and give it a checksum that is right again."
    tensors, about = read_tensors(path)
    change(tensors, about)
    return write_tensors(path, tensors, about)

OPTIMIZERS = {
    'a negative number': lambda t, a: t.update({'optimizer.-1.step': torch.tensor(1.)}),
    'no number': lambda t, a: t.update({'optimizer.x.step': torch.tensor(1.)}),
    'many digits': lambda t, a: t.update({f'optimizer.{"9" * 5000}.step': torch.tensor(1.)}),
    'no such parameter': lambda t, a: t.update({'optimizer.999.step': torch.tensor(1.)}),
    'no name': lambda t, a: t.update({'optimizer.': torch.tensor(1.)}),
    'whole numbers': lambda t, a: t.update({'optimizer.0.step': torch.tensor(1)}),
    'a step of many numbers': lambda t, a: t.update({'optimizer.0.step': torch.ones(9)}),
    'memory of one missing': lambda t, a: t.pop(next(k for k in t if k.endswith('.exp_avg'))),
    'weights of another type': lambda t, a: t.update({'model.0.conv1.weight':
                                                      t['model.0.conv1.weight'].double()}),
    'a weight too many': lambda t, a: t.update({'model.0.extra': torch.ones(1)}),
    'a weight missing': lambda t, a: t.pop('model.0.conv1.weight'),
}

@pytest.mark.parametrize('what', OPTIMIZERS)
def test_hostile_contents_with_a_right_checksum(what, make_learner, tmp_path):
    learn = make_learner()
    learn.fit(1, 1e-2)
    path, before = rewrite(learn.save(tmp_path / 'a'), OPTIMIZERS[what]), state(learn.model)
    with pytest.raises(ValueError, match='a.safetensors'):
        learn.load(path)
    assert same_bits(before, state(learn.model))
    learn.fit(1, 1e-2)


@pytest.mark.slow
def test_no_mutation_of_a_file_is_accepted_or_does_harm(make_learner, tmp_path):
    "8,000 files with bits flipped, cut, spliced; of the second format all are noticed."
    learn, generator = make_learner(), random.Random(0)
    learn.fit(1, 1e-2)
    accepted, counts = [], {1: 0, 2: 0}
    for number, path in {2: learn.save(tmp_path / 'two'), 1: SAVED}.items():
        whole, target = path.read_bytes(), tmp_path / 'mutated.safetensors'
        length = int.from_bytes(whole[:8], 'little')
        for _ in range(4000):
            mutated = mutate(bytearray(whole), length, generator)
            target.write_bytes(mutated)
            counts[number] += 1
            try:
                saved = read_saved(target)
                learn.load(target)
            except ValueError as error:
                assert str(target) in str(error)
            else:
                if number == 2 and bytes(mutated) != whole:
                    accepted.append(saved)
    print(counts)
    assert counts == {1: 4000, 2: 4000} and not accepted

def mutate(data, length, generator):
    "One to three changes: most in the header, where they hurt."
    for _ in range(generator.randint(1, 3)):
        kind, size = generator.randrange(6), max(len(data), 1)
        at = generator.randrange(min(size, length + 8) if generator.random() < .8 else size)
        if not data:
            return data
        if kind == 0:
            data[at] ^= 1 << generator.randrange(8)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            data[at:at + generator.randint(1, 9)] = generator.randbytes(generator.randint(0, 9))
        elif kind == 3:
            other = generator.randrange(size)
            data[at:at + 16] = data[other:other + 16]
        elif kind == 4:
            digits = [i for i, b in enumerate(data[:length + 8]) if 48 <= b <= 57]
            if digits:
                data[generator.choice(digits)] = generator.choice(b'0123456789-e')
        else:
            data[:8] = generator.randbytes(generator.randint(1, 8)).ljust(8, b'\0')
    return data


# Going on after a stop

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
    learn.fit_one_cycle(4, 1e-2, callbacks=[learn.best, EarlyStopping('valid_loss', patience=1, lowest=False)])
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

def everything(learn):
    tensors = state(learn.model)
    for i, memory in learn.optimizer.state_dict()['state'].items():
        tensors |= {f'{i}.{k}': v.clone() for k, v in memory.items()}
    recorder = learn.recorder
    rows = [{k: v for k, v in row.items() if k != 'time'} for row in recorder.history]
    answers = [tuple(t.tolist() for t in a) for a in recorder.answers]
    return tensors, (rows, recorder.steps, recorder.phases, recorder.epochs_begun, answers)


@pytest.mark.parametrize('train', [recipe, by_hand, with_callbacks], ids=lambda f: f.__name__)
@pytest.mark.parametrize('seed', [0, None])
def test_stopped_anywhere_it_ends_as_if_it_had_not_been(make_learner, tmp_path, train, seed):
    straight, _ = run(make_learner, None, train, seed=seed)
    tensors, told = everything(straight)
    stops = range(1, 18) # 4 epochs of 3 steps and a validation each
    for stop in stops:
        path, tries = tmp_path / f'{stop}', 1
        learn, whole = run(make_learner, path, train, stop, seed=seed)
        while not whole: # each time it comes 5 calls of the loss further, an epoch and a step
            learn, whole = run(make_learner, path, train, 6, seed=seed)
            tries += 1
            assert tries < 9
        again = everything(learn)
        assert same_bits(tensors, again[0]), f'stopped at {stop}'
        assert again[1] == told
        if seed is None and stop == 1:
            assert tries > 1


@pytest.mark.slow
@pytest.mark.parametrize('seed', [0, None])
@pytest.mark.parametrize('arch', [tiny_resnet, resnet18, mobilenet_v3_small], ids=lambda f: f.__name__)
def test_real_networks_and_two_threads(tmp_path, arch, seed):
    "In the frozen epoch, and in both of the unfrozen ones."
    dls = drawn_pets(n_train=10, n_valid=6) # 8 batches
    def make(**options):
        return vision_learner(dls, arch, weights=None, device='cpu', **{'show': False, **options})
    torch.set_num_threads(2)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore') # that nothing is pretrained
            straight, _ = run(make, None, lambda learn: learn.fine_tune(2), seed=seed)
            for stop in (3, 12, 22):
                run(make, tmp_path / f'{stop}', lambda learn: learn.fine_tune(2), stop, seed=seed)
                again, _ = run(make, tmp_path / f'{stop}', lambda learn: learn.fine_tune(2), seed=seed)
                assert same_bits(everything(straight)[0], everything(again)[0]), stop
    finally:
        torch.set_num_threads(1)


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


@pytest.mark.parametrize('other, told', [
    (lambda learn: learn.fine_tune(3, freeze_epochs=2), 'call 2 of fit: epochs was 2, now it is 3'),
    (lambda learn: learn.fine_tune(2, freeze_epochs=1), 'call 1 of fit: epochs was 2, now it is 1'),
    (lambda learn: learn.fine_tune(2, freeze_epochs=2, base_lr=1e-3), 'highest rate was 0.00188, now it is 0.000942'),
    (lambda learn: learn.fine_tune(2, freeze_epochs=2, wd=.1), 'weight decay was 0.01, now it is 0.1'),
    (lambda learn: learn.fit_one_cycle(2), 'layers|highest rate'),
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


def test_name():
    assert file_name('run').name == 'run.safetensors' == file_name('run.safetensors').name
    assert file_name('~/v1.2') == Path.home() / 'v1.2.safetensors'


TRAINING = '''
import os, random, sys, time
sys.path.insert(0, sys.argv[1])
import torch
from conftest import small_network

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
    "At least 60 kills; each run ends with the weights of one that was not killed."
    generator, tests = random.Random(0), Path(__file__).parent
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
    while kills < 60:
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
    print(f'{kills} kills in {runs} runs, all {runs} with the same weights')
    assert kills >= 60 and runs >= 2


ENDLESS = '''
import sys, torch
from pathlib import Path
n = 0
while True:
    n += 1
    write_tensors(Path(sys.argv[1]), {'w': torch.full((200_000,), float(n))}, {'n': n})
    if n == 1:
        print('begun', flush=True)
'''

@pytest.mark.slow
def test_killed_while_writing(tmp_path):
    "Ten kills of a program that does nothing but write one file: it is whole each time."
    generator = random.Random(0)
    for _ in range(10):
        worker = subprocess.Popen([sys.executable, '-c', ENDLESS, str(tmp_path / 'a.safetensors')], text=True,
                                  stdout=subprocess.PIPE)
        worker.stdout.readline()
        time.sleep(generator.uniform(0, 0.3))
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        tensors, about = read_tensors(tmp_path / 'a.safetensors')
        assert tensors['w'].equal(torch.full((200_000,), float(about['n'])))
    write_tensors(tmp_path / 'a.safetensors', {}, {})
    assert [p.name for p in tmp_path.iterdir()] == ['a.safetensors']


def test_what_was_read_does_not_hang_on_the_file(tmp_path):
    path = write_tensors(tmp_path / 'a.safetensors', {'w': torch.arange(9.)}, {})
    weights = read_tensors(path)[0]['w']
    path.write_bytes(bytes(path.stat().st_size))
    assert weights.equal(torch.arange(9.))


def test_every_length_of_a_header_can_be_read(tmp_path):
    "Among them those that begin with the byte of a pickle, 0x80, and the letters PK."
    first = set()
    for n in range(300):
        path = write_tensors(tmp_path / 'a.safetensors', {'w': torch.zeros(2)}, {'n': 'x' * n})
        first.add(path.read_bytes()[0])
        assert read_tensors(path)[1]['n'] == 'x' * n
    assert 0x80 in first


def test_a_learner_of_plain_parts(pets, tmp_path):
    "Its file does not say how the network was built: that has to be given."
    model = nn.Sequential(create_body(small_network()), create_head(8, 12, ()))
    learn = Learner(pets, model, device='cpu', show=False)
    learn.description |= {'mean': [0, 0, 0], 'std': [1, 1, 1]}
    path = learn.save(tmp_path / 'a')
    again = load_learner(path, arch=small_network(), head=create_head(8, 12, ()))
    assert same_bits(state(learn.model), state(again.model))
    for missing in (dict(arch=small_network()), dict(head=create_head(8, 12, ())), {}):
        with pytest.raises(ValueError, match='of your own'):
            load_learner(path, **missing)
