"Heads: their layers, how they begin, and random generators that stay as they were."
import math
import os
import random
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import (
    BatchSampler, DataLoader, Dataset, RandomSampler, SubsetRandomSampler, WeightedRandomSampler)

from conftest import same_bits, state
from finetune_teach.engine.random_state import keep_random_state, not_repeatable, seeded, set_seed
from finetune_teach.random_head import check_head, create_head


def test_layers_are_fastais_without_the_pooling():
    head = create_head(512, 37)
    kinds = [type(layer).__name__ for layer in head]
    assert kinds == ['BatchNorm1d', 'Dropout', 'Linear', 'ReLU', 'BatchNorm1d', 'Dropout', 'Linear']
    assert (head[1].p, head[5].p) == (0.25, 0.5)
    assert head[2].weight.shape == (512, 512) and head[2].bias is None
    assert head[6].weight.shape == (37, 512)


def test_widths():
    assert [tuple(p.shape) for p in create_head(8, 3, hidden=()).parameters()] == [(3, 8), (3,)]
    linear = [m for m in create_head(8, 3, hidden=(6, 5), dropout=0.2) if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [(8, 6), (6, 5), (5, 3)]
    assert create_head(8, 3, hidden=(6, 5))(torch.randn(4, 8)).shape == (4, 3)


def test_random_weights_neither_blow_up_nor_vanish():
    torch.manual_seed(0)
    head = create_head(800, 1000, hidden=(500,))
    assert head[2].weight.std().item() == pytest.approx(math.sqrt(2 / 800), rel=0.02)
    assert head[2].weight.mean().item() == pytest.approx(0, abs=3e-4)
    features = torch.randn(256, 800)
    logits = head.eval()(features)
    assert logits.std() < 1, 'all classes are about as likely at first'
    loss = F.cross_entropy(logits, torch.randint(1000, (256,)))
    assert loss.item() == pytest.approx(math.log(1000), abs=0.1)


def test_two_classes_at_least():
    with pytest.raises(ValueError, match='two classes'):
        create_head(8, 1)


def test_every_head_is_another_one_unless_seeded():
    assert not torch.equal(create_head(8, 3)[2].weight, create_head(8, 3)[2].weight)
    with seeded(3):
        one = create_head(8, 3)
    with seeded(3):
        two = create_head(8, 3)
    assert same_bits(state(one), state(two))


# Random generators

def draws():
    "One number from each generator; they go on by that."
    return random.random(), np.random.rand(), torch.rand(1).item()


def seed_all():
    random.seed(5), np.random.seed(5), torch.manual_seed(5)


@pytest.mark.parametrize('context', [keep_random_state, lambda: seeded(9)])
@pytest.mark.parametrize('error', [None, KeyboardInterrupt, ValueError])
def test_generators_are_put_back(context, error):
    seed_all()
    expected = draws()
    seed_all()
    try:
        with context():
            draws()
            if error is not None:
                raise error
    except (KeyboardInterrupt, ValueError) as raised:
        assert type(raised) is error
    assert draws() == expected


def test_a_seed_sets_all_three_generators():
    with seeded(9):
        one = draws()
    with seeded(9):
        two = draws()
    with seeded(10):
        three = draws()
    assert one == two
    assert all(a != b for a, b in zip(one, three))


def test_no_seed_goes_on_with_the_generators():
    seed_all()
    expected = draws(), draws()
    seed_all()
    with seeded(None):
        first = draws()
    assert (first, draws()) == expected


def test_seeds_of_any_size():
    for seed in (2**40 + 1, -1, 2**64 - 1, -2**63, np.int64(3), np.uint8(3)):
        with seeded(seed):
            draws()
    with seeded(np.int64(3)):
        one = draws()
    with seeded(3):
        assert draws() == one


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


def test_devices():
    assert not_repeatable('cpu') == not_repeatable(torch.device('cpu')) == []
    reason, = not_repeatable('mps')
    assert "device='cpu'" in reason


class Draws(Dataset):
    "Each item draws from all generators; the first two take their time."
    def __len__(self):
        return 8

    def __getitem__(self, i):
        time.sleep(0.2 * (i < 2))
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
        loader = DataLoader(ITEMS, 2, num_workers=2, in_order=False)
    except TypeError:
        pytest.skip('this PyTorch keeps the order')
    with seeded(5):
        assert [int(batch[0, 0]) for batch in loader] != [0, 2, 4, 6], 'the clock decides'
    assert 'in_order' in not_repeatable('cpu', SimpleNamespace(train=loader))[0]


def test_the_loaders_of_this_package_repeat(pets):
    assert not_repeatable('cpu', pets) == []


# A head of one's own

class Pair(nn.Module):
    def forward(self, x):
        return x, x


@pytest.mark.parametrize('head, told', [
    (nn.Linear(7, 3), '8'),                                         # takes other features
    (nn.Sequential(nn.BatchNorm1d(7), nn.Linear(7, 3)), '8'),
    (nn.Sequential(nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 3)), '8'), # wants maps, not features
    (nn.Sequential(nn.Unflatten(1, (8, 1)), nn.Conv2d(8, 3, 1)), '3'),
    (nn.Linear(8, 4), '4'),                                         # gives other logits
    (nn.Sequential(nn.Linear(8, 3), nn.Unflatten(1, (3, 1))), '3'),
    (Pair(), '3'),
])
def test_a_head_that_does_not_fit(head, told):
    with pytest.raises(ValueError, match='the head') as error:
        check_head(head, 8, 3)
    assert told in str(error.value)


@pytest.mark.parametrize('training', [True, False])
def test_checking_changes_nothing(training):
    head = create_head(8, 3).train(training)
    before, expected = state(head), torch.get_rng_state()
    check_head(head, 8, 3)
    assert same_bits(before, state(head)) and head.training is training and head[0].training is training
    assert torch.equal(torch.get_rng_state(), expected)


def test_checking_keeps_the_modes_of_parts():
    head = create_head(8, 3).train()
    head[0].eval()  # as someone does who wants fixed statistics
    check_head(head, 8, 3)
    assert not head[0].training and head[1].training
