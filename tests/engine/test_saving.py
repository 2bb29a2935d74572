"Files that run no code and are whole or not there, from which a model comes back to the bit."
import io
import json
import os
import pickle
import random
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch

from conftest import assert_unchanged, everything, same_bits, state
from finetune_teach import __version__
from finetune_teach.engine.drawing import draw_pet
from finetune_teach.engine.files import check_writable, whole_file
from finetune_teach.engine.saving import file_name, read_saved, read_tensors, write_tensors
from finetune_teach.engine.tiny_resnet import TinyResNet, tiny_resnet
from finetune_teach.pictures import drawn_pets
from finetune_teach.tools.learners import load_learner, vision_learner

OLD = {n: Path(__file__).parents[1] / 'saved' / f'format_{n}.safetensors' for n in (1, 2)}  # keep them


def network_of_then():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return TinyResNet(5, widths=(4, 4, 8, 8), depths=(1, 1, 1, 1))


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


@pytest.mark.parametrize('number', OLD)
def test_files_of_earlier_versions(make_learner, number):
    "Each written by the code of its day; the first has neither checksum nor history."
    learn = make_learner(seed=9, arch=network_of_then()).load(OLD[number])
    found = learn.predict(draw_pet('beagle', seed=5)).probabilities
    known = [.08288144, .08403316, .08398332, .08338004, .08322059, .08307391, .08345735, .08260565,
             .08321449, .08345079, .08251309, .08418617]
    assert torch.allclose(found, torch.tensor(known), atol=1e-5)
    assert len(learn.optimizer.state) == sum(p.requires_grad for p in learn.model.parameters())
    same = load_learner(OLD[number], arch=network_of_then())
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


def moments(learn):
    memory = learn.optimizer.state_dict()['state']
    return {f'{i}.{k}': v.clone() for i, tensors in memory.items() for k, v in tensors.items()}


@pytest.mark.parametrize('group', [-1, 1, 0])
def test_a_learner_comes_back_as_it_was(make_learner, tmp_path, group):
    "Also after others were unfrozen; training goes on as if nothing had been saved, to the bit."
    learn = make_learner(seed=None)
    learn.freeze_to(group)
    learn.fit(1, 1e-2)
    before, memory, learns = state(learn.model), moments(learn), [p.requires_grad for p in learn.model.parameters()]
    path = learn.save(tmp_path / 'deeper' / 'stage-1')
    assert path == tmp_path / 'deeper' / 'stage-1.safetensors'
    assert [p.name for p in path.parent.iterdir()] == [path.name], 'nothing else is left there'
    other = make_learner(seed=9)
    other.freeze_to(-1 if group == 0 else 0)
    assert other.load(tmp_path / 'deeper' / 'stage-1') is other
    other.seed = None
    assert same_bits(before, state(other.model)) and same_bits(memory, moments(other)) and memory
    assert learns == [p.requires_grad for p in other.model.parameters()]
    for each in (learn, other):
        torch.manual_seed(4)
        each.fit(2, 1e-2)
    assert same_bits(state(learn.model), state(other.model)) and same_bits(moments(learn), moments(other))
    assert learn.recorder.losses[-2 * len(learn.dls.train):] == other.recorder.losses
    moved = {name for name, t in state(other.model[0]).items() if not t.equal(before[f'0.{name}'])}
    assert bool(moved) is (group != -1), 'frozen still means frozen to the bit'
    assert ('conv1.weight' in moved) is (group == 0)
    assert not moments(learn.load(path, with_opt=False))


def test_what_was_read_does_not_hang_on_the_file(tmp_path):
    path = write_tensors(tmp_path / 'a.safetensors', {'w': torch.arange(9.)}, {})
    weights = read_tensors(path)[0]['w']
    path.write_bytes(bytes(path.stat().st_size))
    assert weights.equal(torch.arange(9.))


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


def test_a_failed_save_keeps_the_older_file_and_names_may_have_dots(make_learner, tmp_path, monkeypatch):
    learn = make_learner()
    path = learn.save(tmp_path / 'v1.2')
    assert path.name == 'v1.2.safetensors' == learn.save(path).name
    before = path.read_bytes()
    def full(tensors, name, about):
        Path(name).write_bytes(b'half a file')
        raise OSError('no space left on device')
    monkeypatch.setattr(safetensors.torch, 'save_file', full)
    with pytest.raises(OSError, match='no space'):
        learn.save(tmp_path / 'v1.2')
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [path.name]
    assert file_name('~/run') == Path.home() / 'run.safetensors'


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
from finetune_teach.engine.saving import read_tensors, write_tensors
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
from finetune_teach.engine.files import check_writable
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

# Files that do not fit, or are made to do harm

def other_arch(folder, make_learner):
    return make_learner(arch=tiny_resnet).save(folder / 'model')

def other_classes(folder, make_learner):
    return make_learner(drawn_pets(n_train=1, n_valid=1, size=32, cats_vs_dogs=True)).save(folder / 'model')

def other_names_of_classes(folder, make_learner):
    dls = drawn_pets(n_train=1, n_valid=1, size=32)
    dls.classes = [f'breed {i}' for i in range(12)]
    return make_learner(dls).save(folder / 'model')

def other_head_width(folder, make_learner):
    return make_learner(hidden=(9,)).save(folder / 'model')

def other_head_depth(folder, make_learner):
    return make_learner(hidden=()).save(folder / 'model')

def damaged_start(folder, make_learner):
    path = make_learner().save(folder / 'model')
    path.write_bytes(b'\xff' * 64 + path.read_bytes()[64:])
    return path

def cut_off(folder, make_learner):
    path = make_learner().save(folder / 'model')
    path.write_bytes(path.read_bytes()[:-100])
    return path

def foreign(folder, make_learner):
    safetensors.torch.save_file({'weight': torch.zeros(3)}, folder / 'model.safetensors', {'format': 'pt'})
    return folder / 'model.safetensors'


@pytest.mark.parametrize('make, told', [
    (other_arch, 'arch.*tiny_resnet.*TinyResNet'), (other_classes, "classes.*'cat'"),
    (other_names_of_classes, 'classes'), (other_head_width, 'tensors differ.*1\\.'),
    (other_head_depth, 'tensors differ.*1\\.'), (damaged_start, 'damaged'), (cut_off, 'damaged'),
    (foreign, 'tensors of another program')], ids=lambda v: getattr(v, '__name__', ''))
def test_load_changes_all_or_nothing(make_learner, tmp_path, make, told):
    path = make(tmp_path, make_learner)
    learn = make_learner(seed=5)
    learn.fit(1, 1e-2)
    before = everything(learn.model, learn.optimizer)
    with pytest.raises(ValueError, match=f'(?s){told}') as error:
        learn.load(path)
    assert str(path) in str(error.value), 'says which file'
    assert_unchanged(before, everything(learn.model, learn.optimizer))
    with pytest.raises(FileNotFoundError, match='stage-2.*model.safetensors'):
        learn.load(tmp_path / 'stage-2')


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
    file = io.BytesIO()
    torch.save({'model': Evil()}, file)
    return file.getvalue()

def zip_bomb():
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
    'zip bomb': zip_bomb(),
    'python source': b'import os; open("ran", "w")',
    'empty': b'',
    'header of no bytes': bytes(8),
    'header of 2^60': (2**60).to_bytes(8, 'little') + b'{}',
    'header of 2^63': (2**63).to_bytes(8, 'little') + b'{}',
    'header longer than the file': (100).to_bytes(8, 'little') + b'{}',
    'no JSON': header('hello'),
    'nested header': header('{"__metadata__":' + '{"a":' * 50_000 + '1' + '}' * 50_000 + '}'),
    'shape overflows': tensor('F32', [2**32, 2**32], [0, 4]),
    'shape larger than the data': tensor('F32', [1000], [0, 4]),
    'offsets beyond the end': tensor('F32', [1], [0, 2**40]),
    'offsets backwards': tensor('F32', [1], [4, 0]),
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

GOOD = {'arch': 'tiny_resnet', 'classes': ['a', 'b'], 'size': 64, 'mean': [.5] * 3, 'std': [.5] * 3,
        'head': {'hidden': [], 'dropout': .5}, 'precision': 'fp32'}

def description(**changes):
    return with_about({'description': json.dumps(GOOD | changes)})

HOSTILE |= {
    'arch is a path': description(arch='../../evil.py'),
    'arch is code': description(arch='__import__("os").system("touch ran")'),
    'arch of a torch function': description(arch='torch.hub.load'),
    'arch is a list': description(arch=['tiny_resnet']),
    'a network of 12 GB': description(arch='vit_h_14'),
    'classes are numbers': description(classes=[1, 2]),
    'a million classes': description(classes=['a'] * 1_000_000),
    'pictures of 10^9 pixels': description(size=10**9),
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
            GOOD)},
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


@pytest.fixture(scope='module')
def learner():
    return vision_learner(drawn_pets(n_train=1, n_valid=1, size=32), network_of_then(), hidden=(8,), device='cpu')


@pytest.mark.skipif(sys.platform != 'linux', reason='limits memory as Linux does')
@pytest.mark.parametrize('what', HOSTILE)
def test_hostile_files(what, learner, tmp_path, monkeypatch, small_memory):
    "Refused with the file's name, in few words, quickly; nothing is changed, and no code is run."
    monkeypatch.chdir(tmp_path)
    Path('model.safetensors').write_bytes(HOSTILE[what])
    before, start = state(learner.model), time.process_time()
    for load in (load_learner, learner.load):
        with pytest.raises(ValueError, match='model.safetensors') as error:
            load('model')
        assert len(str(error.value)) < 1000 and '\x1b' not in str(error.value), 'fit to be read'
    assert same_bits(before, state(learner.model))
    assert time.process_time() - start < 10
    assert os.listdir() == ['model.safetensors'], 'no file `ran`'


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
    'whole numbers': lambda t, a: t.update({'optimizer.0.step': torch.tensor(1)}),
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


def test_every_length_of_a_header_can_be_read(tmp_path):
    "Among them those that begin with the byte of a pickle, 0x80."
    first = set()
    for n in range(0, 264, 8):  # lengths are multiples of 8
        path = write_tensors(tmp_path / 'a.safetensors', {'w': torch.zeros(2)}, {'n': 'x' * n})
        first.add(path.read_bytes()[0])
        assert read_tensors(path)[1]['n'] == 'x' * n
    assert 0x80 in first


@pytest.mark.slow
def test_no_mutation_of_a_file_is_accepted_or_does_harm(make_learner, tmp_path):
    "4,000 files with bits flipped, cut, spliced; of the second format all are noticed."
    learn, generator = make_learner(arch=network_of_then()), random.Random(0)
    learn.fit(1, 1e-2)
    accepted, counts = [], {1: 0, 2: 0}
    for number, path in {2: learn.save(tmp_path / 'two'), 1: OLD[1]}.items():
        whole, target = path.read_bytes(), tmp_path / 'mutated.safetensors'
        length = int.from_bytes(whole[:8], 'little')
        for _ in range(2000):
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
    assert counts == {1: 2000, 2: 2000} and not accepted

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


@pytest.mark.parametrize('content, told', [
    (with_about({}, 'finetune_teach 9'), r"by a later version of finetune_teach \(its format is 'finetune_teach 9'"),
    (header('{}'), 'tensors of another program'), (HOSTILE['pickle'], r'a pickle.*load_state_dict\(torch.load')])
def test_other_files_are_not_called_damaged(content, told, tmp_path):
    (tmp_path / 'a.safetensors').write_bytes(content)
    with pytest.raises(ValueError, match=told) as error:
        read_saved(tmp_path / 'a')
    assert 'damaged' not in str(error.value)
