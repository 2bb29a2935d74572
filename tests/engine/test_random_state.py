"Seeds that repeat, and random generators that stay as they were."
import os
import random
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler, DataLoader, Dataset, RandomSampler, SubsetRandomSampler, WeightedRandomSampler)

from conftest import same_bits, state
from finetune_teach.engine.random_state import keep_random_state, not_repeatable, seed_all, seeded, set_seed


def draws():
    "One number from each generator; they go on by that."
    return random.random(), np.random.rand(), torch.rand(1).item()


@pytest.mark.parametrize('context', [keep_random_state, lambda: seeded(9)])
@pytest.mark.parametrize('error', [None, KeyboardInterrupt, ValueError])
def test_generators_are_put_back(context, error):
    seed_all(5)
    expected = draws()
    seed_all(5)
    try:
        with context():
            draws()
            if error is not None:
                raise error
    except (KeyboardInterrupt, ValueError) as raised:
        assert type(raised) is error
    assert draws() == expected


def drawn(seed):
    with seeded(seed):
        return draws()


def test_a_seed_sets_all_three_generators():
    assert drawn(9) == drawn(9) and drawn(np.int64(9)) == drawn(9)
    assert all(a != b for a, b in zip(drawn(9), drawn(10)))


def test_no_seed_goes_on_with_the_generators():
    seed_all(5)
    expected = draws(), draws()
    seed_all(5)
    assert (drawn(None), draws()) == expected


@pytest.mark.parametrize('seed', [2**40 + 1, -1, 2**64 - 1, -2**63, np.uint8(3)])
def test_seeds_of_any_size(seed):
    assert drawn(seed) == drawn(seed)


@pytest.mark.parametrize('seed', [1.5, '3', True, 2**64, -2**63 - 1, [3], float('nan')])
def test_what_is_no_seed(seed):
    "Said before anything is changed."
    with keep_random_state():
        before = random.getstate()
        with pytest.raises(ValueError, match='a seed has to be a whole number'):
            set_seed(seed)
        with pytest.raises(ValueError, match='a seed has to be a whole number'), seeded(seed):
            pass
        assert random.getstate() == before


# A whole notebook that repeats

@pytest.fixture
def settings_kept():
    "What `set_seed` sets for good is put back."
    env, benchmark = dict(os.environ), torch.backends.cudnn.benchmark
    strict, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with keep_random_state():
        yield
    os.environ.clear()
    os.environ.update(env)
    torch.backends.cudnn.benchmark = benchmark
    torch.use_deterministic_algorithms(strict, warn_only=warn)


def test_set_seed_makes_learners_repeat_that_have_no_seed(make_learner, settings_kept):
    runs = []
    for seed in (0, 0, 1):
        set_seed(seed)
        learn = make_learner(seed=None)
        learn.fine_tune(1)
        runs.append((state(learn.model), learn.recorder.losses, draws()))
    assert same_bits(runs[0][0], runs[1][0]) and runs[0][1:] == runs[1][1:]
    assert not same_bits(runs[0][0], runs[2][0])
    assert all(a != b for a, b in zip(runs[0][2], runs[2][2]))


def test_set_seed_on_a_gpu_asks_for_ways_that_repeat(monkeypatch, settings_kept):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    os.environ.pop('CUBLAS_WORKSPACE_CONFIG', None)
    torch.backends.cudnn.benchmark = True
    assert len(not_repeatable('cuda')) == 2 and 'set_seed' in not_repeatable('cuda:0')[0]
    set_seed(0)
    assert torch.are_deterministic_algorithms_enabled() and torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ['CUBLAS_WORKSPACE_CONFIG'] == ':4096:8' and not torch.backends.cudnn.benchmark
    assert not_repeatable('cuda') == []
    os.environ['CUBLAS_WORKSPACE_CONFIG'] = ':16:8'
    set_seed(0)
    assert os.environ['CUBLAS_WORKSPACE_CONFIG'] == ':16:8', "the user's own choice"
    del os.environ['CUBLAS_WORKSPACE_CONFIG']
    reason, = not_repeatable(torch.device('cuda'))
    assert 'CUBLAS_WORKSPACE_CONFIG' in reason


def test_on_a_cpu_set_seed_changes_no_setting(settings_kept):
    if torch.cuda.is_available():
        pytest.skip('there is a GPU')
    before = dict(os.environ)
    set_seed(0)
    assert dict(os.environ) == before and not torch.are_deterministic_algorithms_enabled()


def test_the_reasons_about_devices():
    assert not_repeatable('cpu') == not_repeatable(torch.device('cpu')) == []
    reason, = not_repeatable('mps')
    assert "device='cpu'" in reason


class Draws(Dataset):
    "Each item draws from all generators; the first two take `seconds`."
    def __init__(self, seconds=0):
        self.seconds = seconds

    def __len__(self):
        return 8

    def __getitem__(self, i):
        time.sleep(self.seconds * (i < 2))
        return torch.tensor([i, random.random(), np.random.rand(), torch.rand(1).item()], dtype=torch.float64)


ITEMS, OWN = Draws(), torch.Generator
LOADERS = {  # and whether a seed repeats what they give
    'plain': (dict(shuffle=True), True),
    'workers': (dict(shuffle=True, num_workers=2), True),
    'a function for workers': (dict(num_workers=2, worker_init_fn=lambda i: None), True),
    'sampler': (dict(sampler=RandomSampler(ITEMS)), True),
    'weights': (dict(sampler=WeightedRandomSampler([1.0] * 8, 8)), True),
    'unused generator': (dict(generator=OWN()), True),
    'generator': (dict(shuffle=True, generator=OWN()), False),
    'generator for workers': (dict(num_workers=1, generator=OWN()), False),
    "sampler's generator": (dict(sampler=RandomSampler(ITEMS, generator=OWN())), False),
    "subset's generator": (dict(sampler=SubsetRandomSampler(range(8), OWN())), False),
    "batch sampler's generator": (dict(batch_sampler=BatchSampler(RandomSampler(ITEMS, generator=OWN()), 2, False)),
                                  False),
    'workers kept': (dict(shuffle=True, num_workers=1, persistent_workers=True), False),
}


@pytest.mark.filterwarnings('ignore:.*fork.*:DeprecationWarning')
@pytest.mark.parametrize('name', LOADERS)
def test_the_reasons_about_loaders_are_true(name):
    "The same seed twice: the same numbers exactly if there is no reason."
    options, repeats = LOADERS[name]
    if 'worker_init_fn' in options and torch.multiprocessing.get_start_method() == 'spawn':
        pytest.skip('a function without a name cannot be sent to a process')
    loader, runs = DataLoader(ITEMS, **{'batch_size': 1 if 'batch_sampler' in options else 2, **options}), []
    for _ in range(2):
        with seeded(5):
            runs.append(torch.cat(list(loader)))
    assert torch.equal(*runs) == repeats
    reasons = not_repeatable('cpu', SimpleNamespace(train=loader, valid=[]))
    assert (reasons == []) == repeats and all(reason.startswith('dls.train ') for reason in reasons)
    assert not_repeatable('cpu', SimpleNamespace(valid=loader)) == [r.replace('train', 'valid') for r in reasons]


def test_workers_that_overtake_each_other():
    try:
        loader = DataLoader(Draws(0.5), 2, num_workers=2, in_order=False)
    except TypeError:
        pytest.skip('this PyTorch keeps the order')
    with seeded(5):
        assert [int(batch[0, 0]) for batch in loader] != [0, 2, 4, 6], 'the clock decides'
    assert 'in_order' in not_repeatable('cpu', SimpleNamespace(train=loader))[0]


def test_the_loaders_of_this_package_repeat(pets):
    assert not_repeatable('cpu', pets) == []
