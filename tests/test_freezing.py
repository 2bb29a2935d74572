"Layer groups of any network; frozen means frozen to the bit."
import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from conftest import changed, same_bits, small_network, state
from finetune_teach.engine.features import Loaders
from finetune_teach.freezing import (
    blocks, freeze, freeze_to, group_distances, layer_groups, phase_name,
    unfreeze)
from finetune_teach.pretrained_body import create_body
from finetune_teach.random_head import create_head
from finetune_teach.training_loop import constant, create_optimizer, fit


@pytest.fixture
def model():
    "Body with batch norm (three layer groups) and a head with batch norm and dropout."
    torch.manual_seed(0)
    return nn.Sequential(create_body(small_network()), create_head(8, 12, hidden=(8,)))


def train(model, pets, lr=0.1, wd=0.5):
    "An epoch as anyone writes it, with much weight decay; the mode is set at every step."
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=wd)
    for x, y in pets.train:
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def keys_of(model, *numbers):
    "Names of the parameters of these layer groups."
    groups = layer_groups(model)
    wanted = {id(p) for i in numbers for p in groups[i].parameters()}
    return {name for name, p in model.named_parameters() if id(p) in wanted}


def learning(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


# Layer groups

def test_groups_from_input_to_head(model):
    assert [g.name for g in layer_groups(model)] == ['early body', 'late body', 'head']
    early = {name.split('.')[1] for name in keys_of(model, 0)}
    assert early == {'conv1', 'bn1', 'layer1', 'layer2'}
    assert {name.split('.')[1] for name in keys_of(model, 1)} == {'layer3', 'layer4'}
    assert all(name.startswith('1.') for name in keys_of(model, 2))
    parts = blocks(nn.Sequential(nn.Sequential(*[nn.Linear(4, n) for n in range(4, 9)]), nn.Linear(4, 2)))
    assert [m.out_features for m in parts] == [4, 5, 6, 7, 8, 2], 'large ones are taken apart, in order'


class OwnParameter(nn.Module):
    "A network with a parameter that lies in none of its parts."
    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.zeros(4))
        self.first, self.second, self.third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)


@pytest.mark.parametrize('network', [nn.Sequential(OwnParameter(), nn.Linear(2, 2)), OwnParameter(), nn.Linear(4, 2)])
def test_groups_hold_each_parameter_once(network):
    check_groups(network)


def check_groups(network):
    groups = layer_groups(network)
    held = [id(p) for group in groups for p in group.parameters()]
    assert sorted(held) == sorted(id(p) for p in network.parameters())
    assert [g.name for g in groups] in (['head'], ['body', 'head'], ['early body', 'late body', 'head'])
    assert all(group.parameters() for group in groups) or not held, 'none is empty'
    in_optimizer = [id(p) for group in create_optimizer(network).param_groups for p in group['params']] if held else []
    assert sorted(in_optimizer) == sorted(held)


def test_distances_of_groups(model):
    moved = copy.deepcopy(model)
    moved[1][-1].weight.data *= 3
    moved[0].conv1.weight.data *= -1
    distances = group_distances(moved, model)
    last, head = model[1][-1].weight, sum(p.detach().square().sum() for p in model[1].parameters())
    assert distances['late body'] == 0 < distances['early body'] < 2
    assert distances['head'] == pytest.approx(2 * (last.detach().square().sum() / head).sqrt().item(), rel=1e-5)
    zeros = nn.Linear(2, 2, bias=False)
    zeros.weight.data.zero_()
    assert group_distances(nn.Linear(2, 2, bias=False), zeros) == {'head': 1.0}
    with pytest.raises(ValueError, match="group 'head' differs in the reference"):
        group_distances(nn.Linear(2, 3), nn.Linear(2, 2))


# Frozen to the bit

def test_frozen_body_keeps_every_bit(model, pets):
    before = state(freeze(model))
    assert not model[0](pets.valid.load(next(pets.valid.specs()))).requires_grad, 'no graph goes through it'
    assert learning(model) == keys_of(model, 2)
    train(model, pets)
    moved = changed(before, state(model))
    assert not [name for name in moved if name.startswith('0.')]
    assert {'1.2.weight', '1.4.running_mean', '1.6.weight'} <= moved, 'the head learns'


def test_an_optimizer_with_memory_does_not_move_frozen_weights(model, pets):
    unfreeze(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    x, y = next(iter(pets.train))
    F.cross_entropy(model(x), y).backward()
    optimizer.step()          # fills the moments
    optimizer.zero_grad(set_to_none=False)
    before = state(freeze(model)[0])
    for _ in range(2):
        F.cross_entropy(model.train()(x), y).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
    assert same_bits(before, state(model[0]))


@pytest.mark.parametrize('cached', [True, False])
def test_frozen_to_the_bit_in_our_loop(model, pets, cached):
    "With features that are computed once, and the plain way: frozen, unfrozen, frozen."
    dls = pets if cached else Loaders(list(pets.train), list(pets.valid))
    optimizer = create_optimizer(model, wd=0.5)
    for n, moves in [(-1, False), (0, True), (-1, False)]:
        before = state(freeze_to(model, n)[0])
        fit(model, dls, 1, constant(len(dls.train), 0.1), optimizer, show=False)
        assert bool(changed(before, state(model[0]))) is moves


def test_train_bn_moves_exactly_the_norm_layers(model, pets):
    freeze(model, train_bn=True)
    before = state(model[0])
    train(model, pets)
    norms = {f'{name}.{key}' for name, m in model[0].named_modules() if isinstance(m, nn.BatchNorm2d)
             for key in m.state_dict()}
    assert changed(before, state(model[0])) == norms and phase_name(model) == 'frozen'


@pytest.mark.parametrize('n', [3, -4])
def test_beyond_the_groups(model, n):
    before = learning(freeze_to(model, 1))
    with pytest.raises(ValueError, match=rf'freeze_to\({n}\).*3 layer groups.*-3 to 2'):
        freeze_to(model, n)
    assert learning(model) == before


def test_one_group_cannot_be_frozen():
    single = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match='one layer group'):
        freeze(single)
    assert all(p.requires_grad for p in unfreeze(single).parameters())


def test_a_copy_is_frozen_too(model, pets):
    twin = copy.deepcopy(freeze(model))
    before = state(twin[0])
    train(twin, pets)
    assert same_bits(before, state(twin[0]))
    train(unfreeze(twin), pets)
    assert {'conv1.weight', 'bn1.running_mean', 'layer4.0.conv2.weight'} <= changed(before, state(twin[0]))
    assert same_bits(before, state(model[0]))


def test_evaluation_gives_the_same_whatever_is_frozen(model, pets):
    x, _ = next(iter(pets.valid))
    expected = model.eval()(x)
    for n in (-1, 1, 0, 2):
        assert torch.equal(freeze_to(model, n).eval()(x), expected)


def test_layers_without_parameters_rest_and_wake_with_their_neighbours():
    flat = nn.Sequential(nn.Linear(4, 40), nn.BatchNorm1d(40, affine=False), nn.Dropout(0.5),
                         nn.Linear(40, 2))
    x, before = torch.randn(6, 4), state(flat)
    assert torch.equal(freeze(flat).train()(x), flat(x)), 'no dropout in what is frozen'
    assert same_bits(before, state(flat)), 'no moving statistics either'
    assert not torch.equal(unfreeze(flat).train()(x), flat(x)), 'dropout is back'
    assert not torch.equal(before['1.running_mean'], flat[1].running_mean)


def test_freezing_many_times_adds_nothing(model):
    for _ in range(5):
        unfreeze(freeze(model))
    assert max(len(m._forward_pre_hooks) for m in model.modules()) <= 1


@pytest.mark.parametrize('saved, own', [(-1, 0), (0, -1)])
def test_a_loaded_model_is_as_frozen_as_the_saved_one(make_learner, tmp_path, saved, own):
    learn, other = make_learner(), make_learner()
    learn.freeze_to(saved)
    other.freeze_to(own)
    other.load(learn.save(tmp_path / 'model'))
    before = state(other.model[0])
    train(other.model, learn.dls)
    assert ('bn1.running_mean' in changed(before, state(other.model[0]))) is (saved == 0)
    assert bool(changed(before, state(other.model[0]))) is (saved == 0)


# Any network

def leaf(kind):
    return {'linear': lambda: nn.Linear(4, 4), 'norm': lambda: nn.BatchNorm1d(4), 'relu': nn.ReLU,
            'dropout': lambda: nn.Dropout(0.5), 'no bias': lambda: nn.Linear(4, 4, bias=False)}[kind]()


@pytest.mark.filterwarnings('ignore:`torch.jit')
@pytest.mark.parametrize('make', [torch.jit.script, lambda model: torch.export.export(
    model, (torch.zeros(2, 3, 32, 32),)).module()])
def test_a_network_with_frozen_groups_goes_through_pytorchs_compilers(model, make):
    x = torch.randn(2, 3, 32, 32)
    freeze(model).eval()
    assert torch.equal(make(model)(x), model(x))


KINDS = st.sampled_from(['linear', 'norm', 'relu', 'dropout', 'no bias'])
NETWORKS = st.recursive(KINDS, lambda inner: st.lists(inner, max_size=5), max_leaves=14)


def build(plan):
    return leaf(plan) if isinstance(plan, str) else nn.Sequential(*map(build, plan))


@given(NETWORKS)
def test_layer_groups_of_any_network(plan):
    check_groups(build(plan))


@given(NETWORKS.filter(lambda plan: isinstance(plan, list)), st.integers(-5, 5), st.booleans())
def test_freeze_to_any_group(plan, n, training):
    model = build(plan).train(training)
    groups, before = layer_groups(model), copy.deepcopy(model.state_dict())
    learned = [p.requires_grad for p in model.parameters()]
    if not -len(groups) <= n < len(groups) or len(groups) == 1 and n == -1:
        with pytest.raises(ValueError):
            freeze_to(model, n)
        assert [p.requires_grad for p in model.parameters()] == learned, 'nothing was changed'
        return
    assert freeze_to(model, n) is model and model.training is training
    for i, group in enumerate(groups):
        assert all(p.requires_grad == (i >= n % len(groups)) for p in group.parameters())
    y = model.train()(torch.randn(6, 4))
    if y.requires_grad:
        y.square().sum().backward()
        create_optimizer(model).step()
    after, frozen = model.state_dict(), groups[:n % len(groups)]
    held = {id(p) for group in frozen for p in group.parameters()}
    for name, p in model.named_parameters():
        assert id(p) not in held or torch.equal(before[name], after[name])
    held = {id(m) for group in frozen for part in group.modules for m in part.modules()}
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm1d) and id(module) in held:
            assert torch.equal(before[f'{name}.running_mean'], after[f'{name}.running_mean'])
