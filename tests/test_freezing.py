"Frozen means frozen to the bit; a frozen body's features are computed once."
import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conftest import WithoutPlans, changed, same_bits, small_network, state
from finetune_teach.engine.features import FeatureLoader, Loaders, cache_features
from finetune_teach.freezing import blocks, freeze, freeze_to, layer_groups, unfreeze
from finetune_teach.pictures import drawn_pets
from finetune_teach.pretrained_body import create_body
from finetune_teach.random_head import create_head
from finetune_teach.tools.explore_freezing import (
    StepCost, activation_memory, explore_freezing, plot_freezing, step_cost)
from finetune_teach.training_loop import constant, create_optimizer, fit, validate


@pytest.fixture
def model():
    "Body with batch norm (three layer groups) and a head with batch norm and dropout."
    torch.manual_seed(0)
    return nn.Sequential(create_body(small_network()), create_head(8, 12, hidden=(8,)))


def train(model, pets, epochs=1, lr=0.1, wd=0.5):
    "A loop as anyone writes it, with much weight decay; the mode is set at every step."
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=wd)
    for _ in range(epochs):
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


# Layer groups

def test_groups_from_input_to_head(model):
    groups = layer_groups(model)
    assert [g.name for g in groups] == ['early body', 'late body', 'head']
    early = {'0.conv1', '0.bn1', '0.layer1', '0.layer2'}
    assert {name.rsplit('.', 1)[0] for name in keys_of(model, 0)} >= {'0.conv1', '0.bn1'}
    assert all(name.startswith(tuple(early)) for name in keys_of(model, 0))
    assert all(name.startswith(('0.layer3', '0.layer4')) for name in keys_of(model, 1))
    assert all(name.startswith('1.') for name in keys_of(model, 2))


class OwnParameter(nn.Module):
    "A network with a parameter that lies in none of its parts."
    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.zeros(4))
        self.first, self.second, self.third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.third(self.second(self.first(x + self.position)))


@pytest.mark.parametrize('network', [
    nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)),
    nn.Sequential(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), nn.Linear(3, 2)),
    nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3), nn.Linear(3, 2)),
    nn.Sequential(OwnParameter(), nn.Linear(2, 2)),
    OwnParameter(),
    nn.Linear(4, 2),
])
def test_groups_of_any_network_hold_each_parameter_once(network):
    groups = layer_groups(network)
    ids = [id(p) for g in groups for p in g.parameters()]
    assert sorted(ids) == sorted(id(p) for p in network.parameters())
    assert all(g.parameters() for g in groups)


def test_large_parts_are_taken_apart():
    body = nn.Sequential(nn.Sequential(*[nn.Linear(4, 4) for _ in range(6)]), nn.Linear(4, 2))
    assert len(blocks(body)) >= 5
    assert [m.out_features for m in blocks(body)][-1] == 2, 'still in order'


# Frozen to the bit

def test_only_the_head_learns(model):
    freeze(model)
    learns = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learns == {name for name, _ in model.named_parameters() if name.startswith('1.')}


def test_frozen_body_keeps_every_bit(model, pets):
    before = state(freeze(model))
    train(model, pets)
    moved = changed(before, state(model))
    assert not [name for name in moved if name.startswith('0.')]
    assert {'1.2.weight', '1.4.running_mean', '1.6.weight'} <= moved, 'the head learns'


def test_unfreeze_train_freeze_train(model, pets):
    start = state(freeze(model))
    train(unfreeze(model), pets)
    second = state(model)
    assert {'0.conv1.weight', '0.bn1.running_mean', '0.layer4.0.conv2.weight'} <= changed(start, second)
    train(freeze(model), pets)
    moved = changed(second, state(model))
    assert moved and all(name.startswith('1.') for name in moved)


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


@pytest.mark.parametrize('wd', [0.0, 0.5])
def test_frozen_to_the_bit_in_our_loop(model, pets, wd):
    "Once with features that are computed once, once the plain way."
    for dls in (pets, Loaders(list(pets.train), list(pets.valid))):
        freeze(model)
        before, optimizer = state(model[0]), create_optimizer(model, wd)
        fit(model, dls, 1, constant(len(dls.train), [0.1] * 3), optimizer, show=False)
        assert same_bits(before, state(model[0]))
        unfreeze(model)
        fit(model, dls, 1, constant(len(dls.train), [0.1] * 3), optimizer, show=False)
        second = state(model[0])
        assert not same_bits(before, second)
        freeze(model)
        fit(model, dls, 1, constant(len(dls.train), [0.1] * 3), optimizer, show=False)
        assert same_bits(second, state(model[0]))


def test_no_graph_goes_through_a_frozen_body(model, pets):
    x, _ = next(iter(pets.train))
    assert not freeze(model)[0](x).requires_grad
    assert unfreeze(model)[0](x).requires_grad


def test_train_bn_moves_exactly_the_norm_layers(model, pets):
    freeze(model, train_bn=True)
    before = state(model[0])
    train(model, pets)
    norms = {f'{name}.{key}' for name, m in model[0].named_modules() if isinstance(m, nn.BatchNorm2d)
             for key in m.state_dict()}
    assert changed(before, state(model[0])) == norms


def test_freeze_to_part_of_the_body(model, pets):
    freeze_to(model, 1)
    before = state(model)
    train(model, pets)
    moved = changed(before, state(model))
    assert not [name for name in moved if name.startswith(('0.conv1', '0.bn1', '0.layer1', '0.layer2'))]
    assert keys_of(model, 1) | keys_of(model, 2) <= moved
    assert '0.layer3.0.bn1.running_mean' in moved


@pytest.mark.parametrize('n, first', [(-3, 0), (-2, 1), (-1, 2), (0, 0), (2, 2)])
def test_numbers_of_groups(model, n, first):
    freeze_to(model, n)
    learns = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learns == keys_of(model, *range(first, 3))


@pytest.mark.parametrize('n', [3, -4, 17])
def test_beyond_the_groups(model, n):
    freeze_to(model, 1)
    before = [p.requires_grad for p in model.parameters()]
    with pytest.raises(ValueError, match='3 layer groups') as error:
        freeze_to(model, n)
    assert f'freeze_to({n})' in str(error.value) and '-3 to 2' in str(error.value)
    assert [p.requires_grad for p in model.parameters()] == before


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
    assert not same_bits(before, state(twin[0])) and same_bits(before, state(model[0]))


def test_evaluation_gives_the_same_whatever_is_frozen(model, pets):
    x, _ = next(iter(pets.valid))
    expected = model.eval()(x)
    for n in (-1, 1, 0, 2):
        assert torch.equal(freeze_to(model, n).eval()(x), expected)


def test_mode_of_the_whole_is_kept(model):
    assert freeze(model.train()).training and not unfreeze(model.eval()).training
    assert not model[1].training


def test_layers_without_parameters_rest_and_wake_with_their_neighbours():
    flat = nn.Sequential(nn.Linear(4, 40), nn.BatchNorm1d(40, affine=False), nn.Dropout(0.5),
                         nn.Linear(40, 2))
    x, before = torch.randn(6, 4), state(flat)
    assert torch.equal(freeze(flat).train()(x), flat(x)), 'no dropout in what is frozen'
    assert same_bits(before, state(flat)), 'no moving statistics either'
    assert not torch.equal(unfreeze(flat).train()(x), flat(x)), 'dropout is back'
    assert not torch.equal(before['1.running_mean'], flat[1].running_mean)


def test_freezing_many_times_adds_nothing(model, pets):
    for _ in range(5):
        unfreeze(freeze(model))
    assert max(len(m._forward_pre_hooks) for m in model.modules()) <= 1


# Features computed once

def all_features(loader):
    xs, ys = zip(*loader)
    return torch.cat(xs), torch.cat(ys)


def test_features_equal_the_plain_way(model, pets):
    freeze(model).eval()
    head, loaders = cache_features(model, pets)
    assert head is model[1]
    for plain, reused in [(pets.train, loaders.train), (pets.valid, loaders.valid)]:
        assert len(plain) == len(reused)
        for epoch in range(4):  # flips are drawn anew in each
            torch.manual_seed(epoch)
            x, y = all_features(plain)
            torch.manual_seed(epoch)
            features, labels = all_features(reused)
            assert torch.equal(y, labels)
            assert torch.allclose(features, model[0](x), atol=1e-5)
    assert not torch.allclose(model[0](x), model[0](x.flip(-1)), atol=1e-3), 'mirror images are others'


def unknown(dls):
    "The same pictures, of which nothing is known yet."
    return Loaders(replace(dls.train), replace(dls.valid))


def test_each_picture_and_mirror_image_passes_the_body_once(model, pets, monkeypatch):
    passed = []
    learn = KnownFeatures.learn
    monkeypatch.setattr(KnownFeatures, 'learn',
                        lambda kept, body, loader, variants: (passed.append(variants), learn(kept, body, loader, variants)))
    pets = unknown(pets)
    _, loaders = cache_features(freeze(model), pets)
    all_features(loaders.valid)
    all_features(loaders.valid)
    assert sorted(torch.cat(passed).tolist()) == list(range(0, 2 * len(pets.valid.labels), 2))
    passed.clear()
    all_features(loaders.train)
    assert len(torch.cat(passed)) == len(pets.train.labels), 'in the first epoch no more than is asked for'
    for _ in range(25):
        all_features(loaders.train)
    all_features(cache_features(model, pets)[1].train)  # also for the next training
    all_features(cache_features(copy.deepcopy(model), pets)[1].train)  # and for a copy
    assert sorted(torch.cat(passed).tolist()) == list(range(2 * len(pets.train.labels)))


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_features_are_the_same_to_the_bit_whatever_was_asked_before(model, pets, layout):
    freeze(model).to(memory_format=layout)
    def features(first_seeds):
        loader = cache_features(model, unknown(pets))[1].train
        for seed in [*first_seeds, 1]:
            torch.manual_seed(seed)
            x, _ = all_features(loader)
        return x
    assert torch.equal(features([]), features([5, 6, 7]))


def test_the_body_has_always_as_many_pictures(model, pets):
    counts = set()
    freeze(model)[0].register_forward_hook(lambda m, inputs, output: counts.add(len(inputs[0])))
    _, loaders = cache_features(model, unknown(pets))
    for _ in range(5):
        all_features(loaders.train), all_features(loaders.valid)
    assert counts == {1, 16}, 'one for the cache_key'


def weight(model): model[0].layer4[0].conv2.weight.data[0, 0, 0, 0] += 1e-6
def statistics(model): model[0].bn1.running_mean[0] += 1e-6
def hook(model): model[0].register_forward_hook(lambda module, inputs, output: 2 * output)
def layer(model): model[0].avgpool = nn.AdaptiveMaxPool2d(1)


@pytest.mark.parametrize('change', [weight, statistics, hook, layer])
def test_a_changed_body_is_noticed(model, pets, change):
    freeze(model)
    before, y = all_features(cache_features(model, pets)[1].valid)
    change(model)
    after, _ = all_features(cache_features(model, pets)[1].valid)
    assert not torch.equal(before, after)
    assert torch.equal(after, all_features(cache_features(model, unknown(pets))[1].valid)[0])


def test_features_of_a_body_that_learns_are_forgotten(model, pets):
    pets = unknown(pets)
    all_features(cache_features(freeze(model), pets)[1].train)
    assert pets.train.known_features.known.any()
    cache_features(unfreeze(model), pets)
    assert not hasattr(pets.train, 'known_features')


def test_a_frozen_epoch_trains_as_the_plain_way(model, pets):
    twin = copy.deepcopy(freeze(model))
    schedule = constant(3 * len(pets.train), [0.01] * 3)
    fit(model, pets, 3, schedule, seed=1, show=False)
    fit(twin, Loaders(WithoutPlans(pets.train), WithoutPlans(pets.valid)), 3, schedule, seed=1, show=False)
    for (name, one), two in zip(model.state_dict().items(), twin.state_dict().values()):
        assert torch.allclose(one, two, atol=1e-3), name


def test_with_random_crops_nothing_is_kept(model):
    dls = drawn_pets(n_train=2, n_valid=1, size=32, min_scale=0.5)
    freeze(model)
    loader = FeatureLoader(dls.train, model[0])
    torch.manual_seed(0)
    first, y = all_features(loader)
    second, _ = all_features(loader)
    torch.manual_seed(0)
    again, _ = all_features(loader)
    torch.manual_seed(0)
    x, labels = all_features(dls.train)
    assert torch.equal(first, again) and torch.equal(y, labels) and not torch.equal(first, second)
    assert torch.allclose(first, model[0](x), atol=1e-5)
    assert loader.kept.values is None


@pytest.mark.parametrize('n', [0, 1])
def test_a_body_that_learns_is_not_reused(model, pets, n):
    assert cache_features(freeze_to(model, n), pets) == (model, pets)


def test_norm_layers_that_learn_are_not_reused(model, pets):
    assert cache_features(freeze(model, train_bn=True), pets) == (model, pets)


def test_other_models_and_loaders_stay_as_they_are(model, pets):
    lists = Loaders(list(pets.train), list(pets.valid))
    assert cache_features(freeze(model), lists) == (model, lists)
    three = freeze(nn.Sequential(nn.Flatten(), nn.Linear(3072, 8), nn.Linear(8, 12)))
    assert cache_features(three, pets) == (three, pets)


def test_frozen_by_hand_is_reused_as_in_evaluation(model, pets):
    "Many freeze with requires_grad_(False) alone; validation must be that of the model all the same."
    model[0].requires_grad_(False)
    model.train()
    before = state(model[0])
    head, loaders = cache_features(model, pets)
    assert validate(head, loaders.valid) == pytest.approx(validate(model, pets.valid), abs=1e-5)
    model.train()
    all_features(loaders.train)
    assert same_bits(before, state(model[0]))


# What a step costs

def test_memory_kept_for_the_backward_pass():
    "By hand: four-byte numbers, five pictures."
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), nn.Linear(8, 3))
    x = torch.randn(5, 4)
    assert activation_memory(model, x) == 4 * 5 * (4 + 8), 'the inputs of both layers'
    assert activation_memory(freeze(model), x) == 4 * 5 * 8, 'that of the last one'


def test_costs_of_a_step(pets):
    model = nn.Sequential(create_body(small_network()), create_head(8, 12, hidden=(8,)))
    before, generator = state(model), torch.get_rng_state()
    x, y = next(iter(WithoutPlans(pets.valid)))
    costs = [step_cost(model, x, y, n) for n in range(3)]
    assert same_bits(before, state(model)) and generator.equal(torch.get_rng_state())
    assert costs[0].learns == sum(p.numel() for p in model.parameters())
    assert costs[2].learns == sum(p.numel() for p in model[1].parameters())
    assert costs[0].kept > costs[1].kept > costs[2].kept > 0
    assert all(c.seconds > 0 for c in costs) and costs[2].reused < costs[2].seconds
    assert math.isnan(costs[0].reused) and math.isnan(costs[1].reused)


def test_explorer_of_freezing(pets, make_learner):
    learn = make_learner()
    explorer = explore_freezing(learn)
    assert explorer.values == {'n': 2} and [name for name, _ in explorer.controls['n'].options] == [
        'early body', 'late body', 'head']
    pictures = set()
    for n in range(3):
        explorer.controls['n'].value = n
        pictures.add(bytes(explorer.pictures[0].widget.value))
    assert len(pictures) == 3
    assert explore_freezing(learn.model, pets).values == {'n': 2}, 'a model with loaders will do'


def test_plot_of_freezing_names_layers_and_costs(make_learner):
    model = make_learner().model
    costs = [StepCost(100, 2**20, 0.1, math.nan), StepCost(50, 2**19, 0.05, math.nan), StepCost(9, 10, 0.02, 0.001)]
    texts = [t.get_text() for t in plot_freezing(model, costs, 1).texts]
    assert {'conv1', 'layer1', 'layer4', 'Linear', 'from head', '100 ms', '1.0 MB'} <= set(texts)
    assert '20 ms, 1.0 with known features' in texts


def replaced(loader): loader.pictures = 255 - loader.pictures
def repainted(loader): loader.pictures[1:] = 255 - loader.pictures[1:]  # all but the one that is looked at


@pytest.mark.parametrize('change', [replaced, repainted])
def test_changed_pictures_are_noticed(model, change):
    dls = drawn_pets(n_train=2, n_valid=2, size=32)
    before, _ = all_features(cache_features(freeze(model), dls)[1].valid)
    change(dls.valid)
    after, _ = all_features(cache_features(model, dls)[1].valid)
    assert not torch.equal(before, after)
    assert torch.equal(after, all_features(cache_features(model, unknown(dls))[1].valid)[0])
