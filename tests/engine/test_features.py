"A frozen body's features are computed once, and forgotten when body or pictures change."
import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from conftest import WithoutPlans, same_bits, small_network, state
from finetune_teach.engine.features import FeatureCache, FeatureTable, Loaders, cache_features
from finetune_teach.freezing import freeze, freeze_to
from finetune_teach.pictures import drawn_pets
from finetune_teach.pretrained_body import create_body
from finetune_teach.random_head import create_head
from finetune_teach.tools.learners import vision_learner
from finetune_teach.training_loop import constant, fit, validate


@pytest.fixture
def model():
    "A frozen body with batch norm, and a head."
    torch.manual_seed(0)
    return freeze(nn.Sequential(create_body(small_network()), create_head(8, 12, hidden=(8,))))


@pytest.fixture
def own_pets(pets):
    "The same pictures, to be changed."
    copies = [replace(loader, pictures=loader.pictures.clone()) for loader in (pets.train, pets.valid)]
    return Loaders(*copies)


@pytest.fixture
def filled(monkeypatch):
    "Lists of the variants that pass a body."
    lists, fill = [], FeatureTable.fill
    def noting(table, body, loader, variants):
        lists.append(variants.tolist())
        fill(table, body, loader, variants)
    monkeypatch.setattr(FeatureTable, 'fill', noting)
    return lists


def all_features(loader):
    xs, ys = zip(*loader)
    return torch.cat(xs), torch.cat(ys)


# The same as the plain way

def test_features_equal_the_plain_way(model, pets):
    head, loaders = cache_features(model.eval(), pets)
    assert head is model[1]
    for plain, cached in zip((pets.train, pets.valid), loaders):
        assert len(plain) == len(cached)
        for epoch in range(4):  # flips are drawn anew in each
            torch.manual_seed(epoch)
            x, y = all_features(plain)
            torch.manual_seed(epoch)
            features, labels = all_features(cached)
            assert torch.equal(y, labels)
            assert torch.allclose(features, model[0](x), atol=1e-5)
    assert not torch.allclose(model[0](x), model[0](x.flip(-1)), atol=1e-3), 'mirror images are others'


def test_a_frozen_epoch_trains_as_the_plain_way(model, pets):
    twin, schedule = copy.deepcopy(model), constant(3 * len(pets.train), 0.01)
    fit(model, pets, 3, schedule, seed=1, show=False)
    fit(twin, Loaders(WithoutPlans(pets.train), WithoutPlans(pets.valid)), 3, schedule, seed=1, show=False)
    for (name, one), two in zip(model.state_dict().items(), twin.state_dict().values()):
        assert torch.allclose(one, two, atol=1e-3), name


def test_each_picture_and_mirror_image_passes_the_body_once(model, pets, filled):
    def passed():
        return sorted(sum(filled, []))
    cache = FeatureCache()
    _, loaders = cache_features(model, pets, cache)
    for _ in range(2):
        all_features(loaders.valid)
    assert passed() == list(range(0, 2 * len(pets.valid.labels), 2))
    filled.clear()
    all_features(loaders.train)
    assert len(passed()) == len(pets.train.labels), 'in the first epoch no more than is asked for'
    for _ in range(25):
        all_features(loaders.train)
    for again in (model, copy.deepcopy(model)):
        all_features(cache_features(again, pets, cache)[1].train)
    assert passed() == list(range(2 * len(pets.train.labels)))


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_features_are_the_same_to_the_bit_whatever_was_asked_before(model, pets, layout):
    model.to(memory_format=layout)
    def features(first_seeds):
        loader = cache_features(model, pets)[1].train
        for seed in [*first_seeds, 1]:
            torch.manual_seed(seed)
            x, _ = all_features(loader)
        return x
    assert torch.equal(features([]), features([5, 6, 7]))


def test_the_body_has_always_as_many_pictures(model, pets):
    counts = set()
    model[0].register_forward_hook(lambda m, inputs, output: counts.add(len(inputs[0])))
    _, loaders = cache_features(model, pets)
    for _ in range(5):
        all_features(loaders.train), all_features(loaders.valid)
    assert counts == {1, 16}, 'one for the cache_key'


def test_with_random_crops_nothing_is_kept(model, filled):
    dls = drawn_pets(n_train=2, n_valid=1, size=32, min_scale=0.5)
    loader = cache_features(model, dls)[1].train
    torch.manual_seed(0)
    first, y = all_features(loader)
    second, _ = all_features(loader)
    torch.manual_seed(0)
    x, labels = all_features(dls.train)
    assert torch.equal(y, labels) and not torch.equal(first, second) and not filled
    assert torch.allclose(first, model.eval()[0](x), atol=1e-5)


def test_frozen_by_hand_is_cached_as_in_evaluation(model, pets):
    "Many freeze with requires_grad_(False) alone; validation must be that of the model all the same."
    model = nn.Sequential(create_body(small_network()).requires_grad_(False), model[1]).train()
    before = state(model[0])
    head, loaders = cache_features(model, pets)
    assert validate(head, loaders.valid) == pytest.approx(validate(model, pets.valid), abs=1e-5)
    all_features(cache_features(model.train(), pets)[1].train)
    assert same_bits(before, state(model[0])) and model[0].bn1.training


# What is not cached

@pytest.mark.parametrize('learning', [lambda m: freeze_to(m, 0), lambda m: freeze_to(m, 1),
                                      lambda m: freeze(m, train_bn=True)], ids=['all', 'late', 'norms'])
def test_a_body_that_learns_is_not_cached_and_clears(model, pets, learning):
    cache = FeatureCache()
    all_features(cache_features(model, pets, cache)[1].train)
    assert cache.tables
    assert cache_features(learning(model), pets, cache) == (model, pets) and not cache.tables


def test_other_models_and_loaders_stay_as_they_are(model, pets):
    lists = Loaders(list(pets.train), list(pets.valid))
    assert cache_features(model, lists) == (model, lists)
    three = freeze(nn.Sequential(nn.Flatten(), nn.Linear(3072, 8), nn.Linear(8, 12)))
    assert cache_features(three, pets) == (three, pets)


# What changes is noticed

def weight(model, dls): model[0].layer1[0].conv1.weight.data[0, 0, 0, 0] += 1e-6
def statistics(model, dls): model[0].bn1.running_mean[0] += 1e-6
def hook(model, dls): model[0].register_forward_hook(lambda module, inputs, output: 2 * output)
def layer(model, dls): model[0].avgpool = nn.AdaptiveMaxPool2d(1)
def pictures(model, dls): dls.valid.pictures = 255 - dls.valid.pictures
def pixel(model, dls): dls.valid.pictures[-1, 0, 0, 0] ^= 255  # in place, not in the one that is looked at
def mean(model, dls): dls.valid.__init__(**{**vars_of(dls.valid), 'mean': (0.5,) * 3})


def vars_of(loader):
    return {name: getattr(loader, name) for name in loader.__dataclass_fields__}


@pytest.mark.parametrize('change', [weight, statistics, hook, layer, pictures, pixel, mean])
def test_a_changed_body_or_picture_is_noticed(model, own_pets, change):
    cache = FeatureCache()
    before, _ = all_features(cache_features(model, own_pets, cache)[1].valid)
    change(model, own_pets)
    after, _ = all_features(cache_features(model, own_pets, cache)[1].valid)
    assert not torch.equal(before, after)
    assert torch.equal(after, all_features(cache_features(model, own_pets)[1].valid)[0])


# Who owns the cache

def test_a_learners_cache_lives_until_the_body_learns(make_learner, filled):
    learn = make_learner()
    tables = learn.cache.tables
    learn.freeze()
    learn.fit(30, 1e-3)
    assert sum(map(len, filled)) == 2 * len(learn.dls.train.labels) + len(learn.dls.valid.labels)
    filled.clear()
    learn.lr_find(num_it=10)
    learn.validate()
    learn.fit_one_cycle(1, 1e-3)
    assert not filled, 'nothing is computed twice'
    learn.precision = 'bf16'
    learn.validate()
    assert filled, 'other features'
    learn.unfreeze()
    learn.validate()
    assert not tables
    learn.freeze()
    learn.validate()
    assert tables is learn.cache.tables and tables


def test_looking_fills_the_cache_and_changes_nothing(make_learner):
    "With or without a finder and a validation before: the same weights to the bit."
    def trained(look):
        learn = make_learner()
        if look:
            learn.lr_find(num_it=11), learn.validate(), learn.lr_find(seed=5)
            assert learn.cache.tables
        learn.fit_one_cycle(2, 1e-2)
        learn.fine_tune(1)
        return state(learn.model)
    assert same_bits(trained(look=True), trained(look=False))


def test_a_call_has_a_cache_of_its_own_unless_it_is_given_one(model, pets, filled):
    def train(**options):
        filled.clear()
        fit(model, pets, 1, constant(len(pets.train), 0.01), seed=0, show=False, **options)
        return sum(map(len, filled))
    before = vars(pets.train).keys(), vars(pets.valid).keys()
    pictures = len(pets.train.labels) + len(pets.valid.labels)
    assert train() == train() == pictures
    cache = FeatureCache()
    assert (train(cache=cache), train(cache=cache)) == (pictures, 0)
    cache.clear()
    assert train(cache=cache) == pictures
    assert (vars(pets.train).keys(), vars(pets.valid).keys()) == before, 'nothing is left on the loaders'


def test_another_learner_of_the_same_body_and_pictures_has_the_features_already(monkeypatch):
    dls = drawn_pets(2, 2, size=32)
    first, second = (vision_learner(dls, seed=seed, show=False) for seed in range(2))
    assert first.dls.train is not second.dls.train
    first.fit_one_cycle(3)
    second.cache = first.cache
    monkeypatch.setattr(FeatureTable, 'fill', lambda *_: pytest.fail('computed again'))
    second.validate()
    assert len({id(table) for _, table, _ in second.cache.tables.values()}) == 2, 'one for train, one for valid'


def test_loaders_of_other_batches_do_not_share(model, pets):
    cache = FeatureCache()
    _, (train, _) = cache_features(model, pets, cache)
    other = copy.copy(pets)
    other.train = replace(pets.train, batch_size=pets.train.batch_size + 1)
    assert cache_features(model, other, cache)[1].train.table is not train.table
