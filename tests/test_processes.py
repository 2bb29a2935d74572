"Several processes train one model: the same as one process, one table, one file, and no hanging."
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from finetune_teach.engine.distributed import by_first_process, default_device, share_work, world
from finetune_teach.engine.modules import checksum
from finetune_teach.pictures import drawn_pets
from finetune_teach.tools.learners import load_learner

PICTURES = dict(n_train=4, n_valid=3, size=32, batch_size=7) # batches of 7 and 6: two shares cannot be equal
TRAIN = f'''
import json
import torch
from finetune_teach.all import *

def facts(learn):
    weights = [t.double().abs().sum().item() for t in learn.model.state_dict().values()]
    return dict(losses=learn.recorder.losses, weights=weights,
                rows=[[v for k, v in row.items() if k != 'time'] for row in learn.recorder.history],
                learns=[p.requires_grad for p in learn.model.parameters()], names=list(learn.model.state_dict()))

dls = drawn_pets(**{PICTURES})
learn = vision_learner(dls, seed=0, hidden=(16,), device='cpu')
learn.fine_tune(2)
path = learn.save('models/model')
found = dict(world=world(), seeded=facts(learn), valid=list(learn.validate()), path=str(path),
             answer=learn.predict(dls.valid.pictures[0].permute(1, 2, 0).numpy()).probabilities.tolist())

free = vision_learner(dls, hidden=(16,), device='cpu', show=False)
free.unfreeze()
found['finder'] = free.lr_find(num_it=6, start_lr=1e-4, end_lr=1e-2).losses
free.fit_one_cycle(1)
found |= dict(unseeded=facts(free), random=torch.rand(3).tolist())
with open(f'{{world().rank}}.json', 'w') as file:
    json.dump(found, file)
'''
PARTS = '''
import copy, itertools
import torch
from torch import nn
rank, size = world()
torch.manual_seed(0)

def everywhere(tensor): # one row for each process
    return put_together(tensor.detach().reshape(1, -1).double(), rank, size - rank - 1)

def body(*more):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.ReLU(), nn.Conv2d(4, 5, 3),
                         nn.BatchNorm2d(5, momentum=None, affine=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.BatchNorm1d(5, track_running_stats=False), *more)

def train(model, x, y):
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    return loss

for n, dtype in itertools.product([7, 2], [torch.float32, torch.float64]): # 3, 2, 2 rows; 1, 1, 0 rows
    alone = nn.Sequential(body(), nn.Linear(5, 2)).to(dtype)
    model = copy.deepcopy(alone)
    x, y = 3 + 2 * torch.randn(n, 3, 8, 8, dtype=dtype), torch.arange(n) % 2
    near = dict(rtol=1e-5, atol=1e-5) if dtype == torch.float32 else dict(rtol=1e-10, atol=1e-10)
    names, modules = list(model.state_dict()), list(model.modules())
    shared = share_work(model)
    for _ in range(2):
        torch.testing.assert_close(train(shared, x, y), train(alone, x, y), **near)
    assert names == list(model.state_dict()) and modules == list(model.modules())
    for (name, p), q in zip(model.named_parameters(), alone.parameters()):
        torch.testing.assert_close(p.grad, q.grad, msg=lambda m: f'{n} {name} {m}', **near)
    for (name, p), q in zip(model.named_buffers(), alone.buffers()):
        torch.testing.assert_close(p, q, msg=lambda m: f'{n} {name} {m}', **near)
    torch.testing.assert_close(shared.eval()(x), alone.eval()(x), **near)

model = nn.Sequential(body(nn.Dropout()), nn.Linear(5, 2))
with torch.no_grad():
    model[0][0].weight += rank
shared = share_work(model)
assert (everywhere(model[0][0].weight) == everywhere(model[0][0].weight)[0]).all(), 'the weights of the first'
torch.rand(3)
features = shared[0](torch.randn(9, 3, 8, 8))
assert len({tuple(part.eq(0).flatten().tolist()) for part in features.split(3)}) > 1, 'other masks in each'
assert everywhere(torch.rand(3)).unique(dim=0).shape[0] == 1, 'random numbers stay the same everywhere'

model.requires_grad_(False)
assert not share_work(model)[0](torch.zeros(4, 3, 8, 8)).requires_grad

def fails(action, error):
    try:
        action()
    except error as raised:
        return str(raised)

said = fails(lambda: share_work(model)(torch.randn(4, 3, 8, 8) + rank), ValueError)
assert 'different batches' in said
said = fails(lambda: share_work(model)(torch.zeros(4 + rank, 3, 8, 8)), ValueError)
assert 'different batches' in said

@by_first_process
def write(fail):
    assert rank == 0
    if fail:
        raise OSError('the disk is full')
    return 'written'

assert write(False) == 'written' and fails(lambda: write(True), OSError) == 'the disk is full'
assert everywhere(torch.ones(1)).sum() == size
print('fine', flush=True)
'''
STOPS = '''
from finetune_teach.all import *
learn = vision_learner(drawn_pets(n_train=2, n_valid=2, size=32), device='cpu', show=False)
learn.unfreeze()
try:
    if world().rank == 1:
        raise OSError('process 1 fails')
    learn.fit(1)
finally:
    learn.save('model') # does not wait for a process that may be training
'''
GOES_ON = f'''
import os, sys
import torch
from finetune_teach.all import *

def training(name, dies=False):
    torch.manual_seed(world().rank)
    learn = vision_learner(drawn_pets(**{PICTURES}), hidden=(16,), device='cpu', show=False, checkpoint=name)
    def die(model, recorder):
        if dies and len(recorder.history) == 2:
            torch.distributed.barrier() # the file of the first epoch is written
            os._exit(9)
    learn.fine_tune(2, callbacks=[die])
    return checksum(learn.model.state_dict())

if not os.path.exists('run.safetensors'):
    training('straight')
    training('run', dies=True)
else:
    again = training('run')
    straight = read_saved('straight').tensors
    same = all(t.equal(straight['model.' + k]) for k, t in load_learner('run').model.state_dict().items())
    print('same' if same else 'other', len(read_saved('run').history), flush=True)
'''


def run(folder, script, processes):
    "Run a script in so many processes."
    (folder / 'script.py').write_text(script)
    launcher = ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}']
    command = [sys.executable, *(launcher if processes > 1 else []), 'script.py']
    root = str(Path(__file__).parent.parent)
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120,
                          env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': root})


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    "What one process says, and what each of two; with the folder and the output of the two."
    folders = [tmp_path_factory.mktemp(name) for name in ('alone', 'together')]
    for folder, processes in zip(folders, (1, 2)):
        done = run(folder, TRAIN, processes)
        assert done.returncode == 0, done.stderr
    alone, *together = [json.loads((folder / f'{rank}.json').read_text())
                        for folder, rank in zip([folders[0], folders[1], folders[1]], (0, 0, 1))]
    return alone, together, folders[1], done.stdout


def test_an_ordinary_process_is_a_world_of_one():
    assert world() == (0, 1) and not torch.distributed.is_initialized()
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
    assert share_work(model) is model
    assert default_device() in ('cpu', 'cuda', 'mps')
    assert by_first_process(lambda: 'done')() == 'done'


def test_two_processes_train_like_one(results):
    alone, together, _, _ = results
    assert alone['world'] == [0, 1] and [r['world'] for r in together] == [[0, 2], [1, 2]]
    one, two = alone['seeded'], together[0]['seeded']
    assert two['losses'] == pytest.approx(one['losses'], rel=1e-4) and len(one['losses']) == 3 * 7
    assert two['losses'][:7] == pytest.approx(one['losses'][:7], rel=1e-6), 'frozen'
    assert two['weights'] == pytest.approx(one['weights'], rel=1e-3)
    for row, other in zip(one['rows'], two['rows'], strict=True):
        assert row[:3] == other[:3] and row[3:5] == pytest.approx(other[3:5], rel=1e-3)
    assert two['names'] == one['names'] and two['learns'] == one['learns']


def test_processes_agree_to_the_bit_also_without_a_seed(results):
    _, (first, second), _, _ = results
    for what in ('seeded', 'unseeded', 'finder', 'random', 'valid', 'answer', 'path'):
        assert first[what] == second[what], what


def test_one_table_and_one_file(results):
    _, (first, _), folder, printed = results
    lines = printed.strip().splitlines()
    assert [line.split()[0] for line in lines] == ['epoch', '0', 'epoch', '0', '1']
    assert [p.name for p in (folder / 'models').iterdir()] == ['model.safetensors']
    learn = load_learner(folder / first['path'], device='cpu')
    learn.dls = dls = drawn_pets(**PICTURES).with_preprocessing(mean=learn.description['mean'], std=learn.description['std'])
    assert list(learn.validate()) == pytest.approx(first['valid'], rel=1e-5)
    image = dls.valid.pictures[0].permute(1, 2, 0).numpy()
    assert learn.predict(image).probabilities.tolist() == pytest.approx(first['answer'], rel=1e-5)


def test_the_parts_give_what_the_whole_gives(tmp_path):
    done = run(tmp_path, PARTS, 3)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('fine') == 3


def test_a_failing_process_ends_all(tmp_path):
    done = run(tmp_path, STOPS, 2)
    assert done.returncode != 0 and 'process 1 fails' in done.stderr


@pytest.mark.slow
def test_a_training_of_two_processes_goes_on_after_a_stop(tmp_path):
    "Both die in the second epoch; started again, two end with the weights of a training in one go."
    assert run(tmp_path, GOES_ON, 2).returncode != 0
    assert (tmp_path / 'run.safetensors').exists()
    done = run(tmp_path, GOES_ON, 2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ['same', '3'] * 2, done.stdout
