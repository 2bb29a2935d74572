"Several processes train one model: the same as one process, one table, one file, and no hanging."
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from finetune_teach.engine.distributed import by_first_process, default_device, share_work, world
from finetune_teach.engine.drawing import draw_pets
from finetune_teach.tools.learners import load_learner

START = '''
import json, os
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2
from finetune_teach.all import *
from finetune_teach.engine import store
from finetune_teach.engine.distributed import by_first_process, share_work, world
from finetune_teach.engine.features import Loaders
from finetune_teach.engine.guards import NotFinite
from finetune_teach.engine.modules import checksum
from finetune_teach.engine.saving import read_saved
rank, size = world()
def small(seed=0): # no batch norm in the body, but in the head, with dropout
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(body, nn.Sequential(nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, 12)))
def plain(dls, **options): # PyTorch's own loaders of the same pictures
    sets = [TensorDataset(loader.load(next(loader.specs())._replace(index=torch.arange(len(loader.labels)),
                                                                    flip=torch.zeros(len(loader.labels)).bool())),
                          loader.labels) for loader in (dls.train, dls.valid)]
    return Loaders(DataLoader(sets[0], 9, shuffle=True, **options), DataLoader(sets[1], 9))
dls = drawn_pets(n_train=4, n_valid=3, size=32, batch_size=9) # 48 pictures: shares of 4 and 5; 3 are not shared
'''
TRAIN = START + '''
def facts(recorder, model):
    return dict(losses=recorder.losses, learns=[p.requires_grad for p in model.parameters()],
                weights=[t.double().abs().sum().item() for t in model.state_dict().values()],
                rows=[[v for k, v in row.items() if k != 'time'] for row in recorder.history])
found, model = dict(world=world()), small(rank)
if size > 1:
    share_work(model, dls)
    found['first'] = checksum(model.state_dict())
found['small'] = facts(fine_tune(model := small(), dls, 2, seed=0, show=False), model)
found['plain'] = facts(fine_tune(model := small(), plain(dls), 2, seed=0, show=False), model)
mixed = dls.with_transforms(v2.RandomRotation(20), v2.MixUp(num_classes=12))
found['mixed'] = facts(fine_tune(model := small(), mixed, 2, seed=0, show=False), model)
decoded, load = [], store.load_file
store.load_file = lambda path, *how: decoded.append(path.name) or load(path, *how)
vision_learner(image_folders('photos', size=32, batch_size=9), seed=0, device='cpu', show=False).fit_one_cycle(1)
found['decoded'] = decoded
learn = vision_learner(dls, seed=0, hidden=(16,), device='cpu')
learn.fit_one_cycle(1)
if rank == 0:
    learn.validate() # not together: the others go on
learn.fit_one_cycle(1)
found['frozen finder'] = learn.lr_find(num_it=6).losses
found['frozen'] = facts(learn.recorder, learn.model)
learn.unfreeze()
keep = KeepBest('error_rate')
learn.fit_one_cycle(2, 1e-3, callbacks=keep)
keep.restore(learn.model)
free = vision_learner(dls, hidden=(16,), device='cpu', show=False)
free.unfreeze()
found['finder'] = free.lr_find(num_it=6, start_lr=1e-4, end_lr=1e-2).losses
free.fit_one_cycle(1)
found |= dict(tuned=facts(learn.recorder, learn.model), unseeded=facts(free.recorder, free.model), kept=keep.epoch,
              random=torch.rand(3).tolist(), path=str(learn.save('models/model')), valid=list(learn.validate()))
with open(f'{rank}.json', 'w') as file:
    json.dump(found, file)
'''
PARTS = START + '''
from torch.utils.data.distributed import DistributedSampler
def fails(action, error):
    try:
        action()
    except error as raised:
        return str(raised)
def same_everywhere(thing):
    every = [None] * size
    torch.distributed.all_gather_object(every, thing)
    assert all(e == every[0] for e in every), every
    return thing
# NaN in the last row of the second batch, which is the second process's
bad = plain(dls)
x, y = bad.train.dataset.tensors
x[17] = float('nan')
bad = bad._replace(train=DataLoader(bad.train.dataset, 9))
for model in (small(), freeze(small())):
    before = checksum(freeze(small()).state_dict())
    schedule = constant(6, 1e-3)
    said = same_everywhere(fails(lambda: fit(model, bad, 1, schedule, show=False), NotFinite))
    assert 'the loss (nan) is no longer a finite number at step 2' in said, said
    same_everywhere(checksum(model.state_dict()))
sampler = DistributedSampler(bad.valid.dataset)
others = drawn_pets(3, 2, size=32, seed=rank)
for loaders in (bad._replace(train=DataLoader(bad.valid.dataset, 9, sampler=sampler)), others):
    steps = len(loaders.train)
    said = same_everywhere(fails(lambda: fit(small(), loaders, 1, constant(steps, 1e-3), show=False), ValueError))
    assert 'the processes have different pictures' in said
# a body with dropout draws other masks in each process, and the random numbers of all stay the same
model = nn.Sequential(nn.Sequential(nn.Linear(2, 200), nn.Dropout()), nn.Linear(200, 2))
shared, loaders = share_work(model, plain(dls))
shared[0].share.take(8)
masks = [shared[0](torch.ones(4, 2)).eq(0) for _ in range(2)]
assert len({tuple(rows[i].tolist()) for rows in masks for i in (0, 4)}) == 4, 'by process and step'
same_everywhere(torch.rand(3).tolist())
@by_first_process
def write(fail):
    assert rank == 0
    if fail:
        raise OSError('the disk is full')
    return 'written'
assert write(False) == 'written' and fails(lambda: write(True), OSError) == 'the disk is full'
print('fine', flush=True)
'''
STOPS = START + '''
learn = vision_learner(dls, device='cpu', show=False)
learn.unfreeze()
try:
    if rank == 1:
        raise OSError('process 1 fails')
    learn.fit(1)
finally:
    learn.save('model') # does not wait for a process that may be training
'''
GOES_ON = START + '''
def training(name, dies=False):
    torch.manual_seed(rank)
    learn = vision_learner(dls, hidden=(16,), device='cpu', show=False, checkpoint=name)
    def die(model, recorder):
        if dies and len(recorder.history) == 2:
            torch.distributed.barrier() # the file of the first epoch is written
            os._exit(9)
    learn.fine_tune(2, callbacks=[die])
    return learn.model.state_dict()
if not os.path.exists('run.safetensors'):
    training('straight')
    training('run', dies=True)
else:
    again, straight = training('run'), read_saved('straight').tensors
    same = all(t.equal(straight['model.' + k]) for k, t in again.items())
    print('same' if same else 'other', len(read_saved('run').history), flush=True)
'''


def run(folder, script, processes):
    "Run a script in so many processes."
    (folder / 'script.py').write_text(script)
    launcher = ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}']
    command = [sys.executable, *(launcher if processes > 1 else []), 'script.py']
    root = str(Path(__file__).parents[2])
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120,
                          env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': root})


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    "What one process says, and what each of two; with the folder and the output of the two."
    folders = [tmp_path_factory.mktemp(name) for name in ('alone', 'together')]
    for folder, processes in zip(folders, (1, 2)):
        for i, picture in enumerate(draw_pets(4, size=32)[0]):
            place = folder / 'photos' / 'ab'[i % 2]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(place / f'{i}.png')
        done = run(folder, TRAIN, processes)
        assert done.returncode == 0, done.stderr
    alone, *together = [json.loads((folder / f'{rank}.json').read_text())
                        for folder, rank in zip([folders[0], folders[1], folders[1]], (0, 0, 1))]
    return alone, together, folders[1], done.stdout


def test_an_ordinary_process_is_a_world_of_one():
    assert world() == (0, 1) and not torch.distributed.is_initialized()
    model, loaders = nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), object()
    assert share_work(model, loaders) == (model, loaders)
    assert default_device() in ('cpu', 'cuda', 'mps')
    assert by_first_process(lambda: 'done')() == 'done'


@pytest.mark.parametrize('run', ['small', 'plain', 'mixed', 'frozen'])
def test_two_processes_train_like_one(results, run):
    "To rounding: frozen, and with everything learning where the body has no batch norm."
    alone, together, _, _ = results
    assert alone['world'] == [0, 1] and [r['world'] for r in together] == [[0, 2], [1, 2]]
    one, two = alone[run], together[0][run]
    assert two['losses'] == pytest.approx(one['losses'], rel=1e-4)
    assert two['weights'] == pytest.approx(one['weights'], rel=1e-4) and two['learns'] == one['learns']
    for row, other in zip(one['rows'], two['rows'], strict=True):
        assert other[0] == row[0] and other[1:] == pytest.approx(row[1:], rel=1e-4)
    assert together[0]['frozen finder'] == pytest.approx(alone['frozen finder'], rel=1e-5)


def test_processes_agree_to_the_bit_also_without_a_seed(results):
    _, (first, second), _, _ = results
    own = ('world', 'decoded')
    assert {k: v for k, v in first.items() if k not in own} == {k: v for k, v in second.items() if k not in own}


def test_each_process_decodes_its_share_only(results):
    alone, (first, second), _, _ = results
    assert sorted(alone['decoded']) == sorted({*first['decoded'], *second['decoded']}) and len(alone['decoded']) == 48
    twice = {*first['decoded']} & {*second['decoded']}
    assert len(twice) <= 2 + 3 + 3, 'the first of both loaders, which are compared, and batches too small to share'
    assert max(len(first['decoded']), len(second['decoded'])) <= 34, 'the second has five of nine rows'


def test_one_table_and_one_file(results):
    _, (first, _), folder, printed = results
    lines = printed.strip().splitlines()
    assert [line.split()[0] for line in lines] == ['epoch', '0', 'epoch', '0', 'epoch', '0', '1']
    assert [p.name for p in (folder / 'models').iterdir()] == ['model.safetensors']
    learn = load_learner(folder / first['path'], device='cpu')
    weights = [t.double().abs().sum().item() for t in learn.model.state_dict().values()]
    assert weights == first['tuned']['weights']


def test_errors_are_those_of_all_and_the_parts_fit_together(tmp_path):
    done = run(tmp_path, PARTS, 2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('fine') == 2


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
