"Bodies: every torchvision network without its last layer, their layer groups, what they know."
import gc
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models
from torchvision.models.regnet import BlockParams

from conftest import changed, same_bits, state
from finetune_teach.engine.tiny_resnet import TinyResNet
from finetune_teach.freezing import freeze, layer_groups
from finetune_teach.pretrained_body import centroid_accuracy, create_body, linear_probe
from finetune_teach.random_head import create_head

ARCHS = models.list_models(module=models)
SIDES = {'inception_v3': 96, 'maxvit_t': 224, 'vit_b_16': 224}  # smallest pictures, in pixels; of the others 64


def count(modules_or_parameters):
    return sum(p.numel() for p in modules_or_parameters)


def published_parameters(arch):
    "As torchvision states it (for the smallest pictures, where the weights differ in that)."
    return min(weights.meta['num_params'] for weights in models.get_model_weights(arch))


# The smallest of each family is trained; all are built on the meta device, which takes no memory.
FAMILIES = {}
for arch in sorted(ARCHS, key=published_parameters, reverse=True):
    FAMILIES[arch.split('_')[0].rstrip('0123456789')] = arch
TRAINED = {arch for arch in FAMILIES.values() if published_parameters(arch) < 100e6}

# What else goes besides a last layer of 1000 x F weights and 1000 biases: inception's auxiliary classifier;
# maxvit's last layer has no biases.
BESIDES = {'inception_v3': 3_326_696, 'maxvit_t': -1000}


@contextmanager
def meta():
    "On the meta device; the regnets work out their widths with real numbers."
    original = BlockParams.from_init_params
    def with_numbers(*args, **kwargs):
        with torch.device('cpu'):
            return original(*args, **kwargs)
    with patch.object(BlockParams, 'from_init_params', with_numbers), torch.device('meta'):
        yield


def test_the_list_is_long():
    assert len(ARCHS) >= 80 and {'resnet34', 'squeezenet1_0', 'vit_b_16', 'regnet_y_128gf'} <= set(ARCHS)
    assert len(TRAINED) >= 14 and {'resnet18', 'swin_t', 'convnext_tiny', 'maxvit_t'} <= TRAINED


@pytest.mark.filterwarnings('ignore:The default weight initialization:FutureWarning')
@pytest.mark.parametrize('arch', ARCHS)
def test_every_network(arch):
    "Body, head, groups, freezing."
    with meta():
        body = create_body(arch, weights=None)
        model = freeze(nn.Sequential(body, create_head(body.num_features, 3, hidden=())))
    gone = 1000 * (body.num_features + 1) + BESIDES.get(arch, 0)
    assert count(body.parameters()) == published_parameters(arch) - gone
    assert not any(isinstance(m, nn.Linear) and m.out_features == 1000 for m in body.modules())

    groups = layer_groups(model)
    grouped = [id(p) for group in groups for p in group.parameters()]
    assert len(groups) >= (3 if 'resne' in arch else 2)
    assert all(group.parameters() for group in groups)
    assert len(grouped) == len(set(grouped)), 'a parameter lies in two groups'
    assert set(grouped) == {id(p) for p in model.parameters()}
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {'1.0.weight', '1.0.bias'}
    if 'resne' in arch:  # split as in fastai: conv1 to layer2, layer3 and layer4, head
        late = {p for name, p in body.named_parameters() if name.startswith(('layer3', 'layer4'))}
        assert set(groups[0].parameters()) == set(body.parameters()) - late and set(groups[1].parameters()) == late
    if arch == 'resnet34':
        assert [count(g.parameters()) for g in groups] == [1_347_904, 19_936_768, 512 * 3 + 3]


@pytest.mark.filterwarnings('ignore:The default weight initialization:FutureWarning')
@pytest.mark.parametrize('arch', sorted(TRAINED))
def test_the_smallest_of_each_family_trains_frozen(arch):
    body = create_body(arch, weights=None)
    model = freeze(nn.Sequential(body, create_head(body.num_features, 3, hidden=())))
    side = SIDES.get(arch, 64)
    before = state(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    logits = model.train()(torch.randn(2, 3, side, side))
    assert logits.shape == (2, 3)
    F.cross_entropy(logits, torch.tensor([0, 1])).backward()
    optimizer.step()
    assert changed(before, model.state_dict()) == {'1.0.weight', '1.0.bias'}
    del body, model, before, optimizer, logits
    gc.collect()


def test_a_network_with_narrow_shortcuts_trains():
    "Strided 1x1 convolutions of four channels: with the channels last, oneDNN computes them wrongly."
    torch.manual_seed(0)
    network = TinyResNet(5, widths=(4, 4, 8, 8), depths=(1, 1, 1, 1))
    model = nn.Sequential(create_body(network), nn.Linear(8, 2))
    assert all(p.is_contiguous() for p in model.parameters())
    x, y = torch.randn(8, 3, 32, 32), torch.arange(8) % 2
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        losses.append(F.cross_entropy(model(x), y))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


# What `arch` may be

def test_a_builder_its_name_and_a_ready_network():
    torch.manual_seed(0)
    by_name = create_body('resnet18', weights=None)
    torch.manual_seed(0)
    by_builder = create_body(models.resnet18, weights=None)
    torch.manual_seed(0)
    network = models.resnet18()
    own = create_body(network)
    assert same_bits(state(by_name), state(by_builder)) and same_bits(state(by_name), state(own))
    assert network.fc.out_features == 1000, 'the network that was passed must stay whole'
    own.conv1.weight.data.zero_()
    assert network.conv1.weight.any()


def test_a_network_without_a_linear_layer():
    with pytest.raises(ValueError, match='no linear layer'):
        create_body(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))


# Probes

def two_clouds(n=40, gap=6.0, seed=0):
    "Two classes that differ in the first of three features, by `gap` standard deviations."
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2 * n, 3, generator=generator), torch.arange(2 * n) % 2
    x[:, 0] += gap * y
    return x, y


MEASURES = pytest.mark.parametrize('measure', [centroid_accuracy, linear_probe])


@MEASURES
def test_classes_that_lie_apart_are_told_apart(measure):
    train, (x, y) = two_clouds(), two_clouds(seed=1)
    assert measure(train, (x, y)) > 0.95
    assert measure(train, (x, 1 - y)) < 0.05, 'it is the share of right answers'
    scale, shift = torch.tensor([1e3, 1.0, 1e-3]), torch.tensor([0.0, 50.0, -2.0])
    moved = measure((train[0] * scale + shift, train[1]), (x * scale + shift, y))
    assert moved == pytest.approx(measure(train, (x, y)), abs=0.03), 'units of features do not count'


@MEASURES
def test_features_that_say_nothing_are_worth_guessing(measure):
    (x, y), (x_valid, y_valid) = two_clouds(200, gap=0), two_clouds(200, gap=0, seed=1)
    assert 0.4 < measure((x, y), (x_valid, y_valid)) < 0.6
    constant = torch.ones(4, 2)
    assert measure((constant, torch.tensor([0, 1, 1, 1])), (constant, torch.tensor([1, 1, 0, 0]))) <= 0.5


def test_a_probe_sees_what_centroids_cannot():
    "A feature with much noise that another one contains as well: the difference tells the class."
    generator = torch.Generator().manual_seed(0)
    def pictures(n):
        noise, y = 10 * torch.randn(n, generator=generator), torch.arange(n) % 2
        return torch.stack([noise + y, noise - y], 1), y
    train, valid = pictures(200), pictures(200)
    assert linear_probe(train, valid, decay=0) > 0.95 > 0.75 > centroid_accuracy(train, valid)


def test_decay_holds_a_probe_back():
    train, valid = two_clouds(gap=1), two_clouds(400, gap=1, seed=1)
    (x, y), wide = train, torch.randn(80, 300, generator=torch.Generator().manual_seed(2))
    x = torch.cat([x, wide], 1)
    assert linear_probe((x, y), (x, y), decay=1e-6) == 1, 'learned by heart'
    assert linear_probe((x, y), (x, y), decay=100) < 1 and linear_probe(train, valid) > 0.6


@MEASURES
def test_a_class_without_training_pictures_is_never_the_answer(measure):
    x, y = two_clouds()
    assert measure((x, 2 * y), (x, 2 * y)) > 0.95, 'class 1 is missing'
    assert measure((x, y), (x, y + 2)) == 0


def test_a_probe_changes_nothing_and_draws_nothing():
    x, y = two_clouds()
    x.requires_grad_()
    before, generator = x.detach().clone(), torch.get_rng_state()
    with torch.no_grad():
        first = linear_probe((x, y), (x, y))
    assert linear_probe((x, y), (x, y)) == first and x.grad is None
    assert torch.equal(x.detach(), before) and torch.equal(torch.get_rng_state(), generator)


@MEASURES
@pytest.mark.parametrize('which', [0, 1])
@pytest.mark.parametrize('wrong, match', [
    (lambda x, y: (x[:, :, None, None], y), 'mean over the places'),
    (lambda x, y: (x[:-1], y), 'one label'),
    (lambda x, y: (x, F.one_hot(y)), 'one label'),
    (lambda x, y: (x[:0], y[:0]), 'at least one'),
    (lambda x, y: (x, y.float()), 'whole numbers'),
    (lambda x, y: (x, y - 1), 'from 0 on'),
    (lambda x, y: (x / 0, y), 'finite'),
    (lambda x, y: (x[:, :2], y), 'same body')])
def test_wrong_features_or_labels_are_named(measure, which, wrong, match):
    pairs = [two_clouds(), two_clouds(seed=1)]
    pairs[which] = wrong(*pairs[which])
    with pytest.raises(ValueError, match=match) as error:
        measure(*pairs)
    assert ('train', 'valid')[which] in str(error.value)
