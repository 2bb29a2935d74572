"Looking inside a network shows what is there, and changes nothing."
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models

from conftest import same_bits, small_network, state
from finetune_teach.engine.random_state import seeded
from finetune_teach.freezing import freeze
from finetune_teach.pretrained_body import create_body
from finetune_teach.random_head import create_head
from finetune_teach.what_it_learned import (
    activations, evidence_map, exciting_patches, first_convolution, plot_activations, plot_filters,
    plot_patches, receptive_field, special_channels)


@pytest.fixture
def model():
    "A small body and head, the body frozen, in training mode."
    with seeded(3):
        body = create_body(small_network())
        return freeze(nn.Sequential(body, create_head(body.num_features, 3, hidden=(6,)))).train()


@pytest.fixture
def x():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def nothing_changes(model):
    "Afterwards the model, its modes, switches, gradients and hooks are as before, and so is the generator."
    def look():
        return ([m.training for m in model.modules()], [p.requires_grad for p in model.parameters()],
                [p.grad for p in model.parameters()], [len(m._forward_hooks) for m in model.modules()],
                torch.get_rng_state().tolist())
    before, weights = look(), state(model)
    yield
    assert look() == before and same_bits(weights, state(model))


# Filters

def test_filters_of_a_network_or_of_a_layer(model):
    assert first_convolution(model) is first_convolution(model[0]) is first_convolution(model[0].conv1)
    shown = plot_filters(model, cols=2).images[0].get_array()
    assert 0 <= shown.min() and shown.max() <= 1


def test_filters_are_stretched_to_full_contrast_with_zero_as_grey():
    layer = nn.Conv2d(3, 2, 3, bias=False)
    layer.weight.data.zero_()
    layer.weight.data[0, 0, 1, 1] = -1e-3
    shown = torch.tensor(plot_filters(layer).images[0].get_array().data)
    assert {round(v, 3) for v in shown.unique().tolist()} == {0, .5, 1}, 'black, grey, and the gaps white'


def test_filters_need_colours():
    with pytest.raises(ValueError, match='three colours'):
        plot_filters(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Linear(3, 3)))


# Activations

def test_activations_are_what_the_parts_compute(model, x, nothing_changes):
    found = activations(model, x, ['0.layer4', '0.conv1', '1'])
    assert list(found) == ['0.layer4', '0.conv1', '1']
    assert found['0.layer4'].shape == (4, 8, 2, 2) and not found['0.layer4'].requires_grad
    assert torch.allclose(found['0.conv1'], F.conv2d(x, model[0].conv1.weight, stride=2, padding=3))
    assert torch.allclose(found['1'], copy.deepcopy(model).eval()(x))


def test_activations_are_from_before_a_layer_that_works_in_place(model, x):
    found = activations(model, x, ['0.bn1', '0.relu'])
    assert found['0.bn1'].min() < 0 and torch.equal(found['0.bn1'].relu(), found['0.relu'])


@pytest.mark.parametrize('names, match', [(['0.layer9'], '0.layer'), (['0', 'nowhere'], 'no part')])
def test_unknown_part(model, x, names, match, nothing_changes):
    with pytest.raises(ValueError, match=match):
        activations(model, x, names)


def test_an_error_inside_the_network_leaves_no_hooks(model, nothing_changes):
    with pytest.raises(RuntimeError):
        activations(model, torch.zeros(1, 7, 32, 32), ['0.layer4'])


def test_a_part_that_gives_no_tensor():
    model = nn.Sequential(nn.LSTM(3, 4))
    with pytest.raises(ValueError, match='single tensor'):
        activations(model, torch.zeros(2, 5, 3), ['0'])
    assert not model[0]._forward_hooks


def test_special_channels_compare_with_other_pictures():
    maps = torch.ones(2, 3, 2, 2)
    maps[0, 0], maps[1, 0] = 9, 9   # strong in both
    maps[0, 2, 1, 1] = 4            # strong in the first only
    assert special_channels(maps, 0, 1) == [2]
    assert special_channels(maps[:1], 0, 9) == [0, 2, 1], 'one picture alone: the strongest'


def test_plot_activations(model, x):
    maps = activations(model[0], x, ['layer1', 'layer4'])
    axes = plot_activations(maps, torch.zeros(3, 32, 32, dtype=torch.uint8), i=1, n=3)
    assert axes.shape == (2, 4) and 'layer4' in axes[1, 0].get_title()
    channel = int(axes[1, 1].get_title().split()[1])
    assert torch.equal(torch.tensor(axes[1, 1].images[0].get_array().data), maps['layer4'][1, channel])
    assert channel == special_channels(maps['layer4'], 1)[0]


# Receptive field and patches

def test_receptive_field_of_two_convolutions(x):
    net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 3, padding=1))
    assert receptive_field(net, '0', x, share=0.999).side == 3
    field = receptive_field(net, '1', x, share=0.999)
    assert field.side == 7 and field.stride == 2
    assert abs(field.first) < 0.5, 'the first place looks around pixel 0'
    assert receptive_field(net, '1', x).side < 7, 'the middle counts most'


def test_receptive_field_needs_maps(model, x, nothing_changes):
    with pytest.raises(ValueError, match='maps'):
        receptive_field(model, '1', x)
    receptive_field(model, '0.layer2', x)


class Loader(list):
    mean, std = (0., 0., 0.), (1., 1., 1.)


def test_exciting_patches_find_the_spot():
    x = torch.zeros(6, 3, 16, 16)
    for i, (row, col) in enumerate([(4, 4), (8, 12), (0, 0), (12, 8), (6, 6), (10, 2)]):
        x[i, :, row, col] = (i + 1) / 10
    net = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1, bias=False))
    net[0].weight.data.fill_(0.01)
    net[0].weight.data[0, :, 1, 1] = 1.0
    y = torch.zeros(2)
    found = exciting_patches(net, '0', Loader([(x[:2], y), (x[2:4], y), (x[4:], y)]), [0], n=3)
    assert torch.allclose(found.values, torch.tensor([[1.8, 1.5, 1.2]]))
    assert found.channels == [0] and found.pictures.shape[:3] == (1, 3, 3)
    assert torch.allclose(found.pictures.amax((2, 3, 4)), torch.tensor([[.6, .5, .4]]))
    assert plot_patches(found).texts[0].get_text() == 'channel 0'


def test_exciting_patches_change_nothing_and_take_a_shuffled_loader(model, pets, nothing_changes):
    found = exciting_patches(model[0], 'layer2', pets.train, [3, 0], n=4)
    assert found.pictures.shape[:2] == found.values.shape == (2, 4)
    assert 0 <= found.pictures.min() and found.pictures.max() <= 1
    assert (found.values.diff() <= 0).all()


def test_the_strongest_piece_is_the_strongest_of_all(model, pets):
    found = exciting_patches(model[0], 'layer2', pets.valid, [3])
    maps = activations(model[0], torch.cat([x for x, _ in pets.valid]), ['layer2'])['layer2']
    assert torch.allclose(found.values[0, 0], maps[:, 3].max(), atol=1e-5)


# Evidence

def test_evidence_map_as_computed_by_hand(model, x, nothing_changes):
    found = evidence_map(model, x, [2, 0, 1, 2])
    assert found.shape == (4, 32, 32) and found.min() >= 0 and found.max() <= 1
    plain = copy.deepcopy(model).eval()
    body = plain[0]
    maps = body.layer4(body.layer3(body.layer2(body.layer1(body.relu(body.bn1(body.conv1(x)))))))
    maps = maps.detach().requires_grad_()
    plain[1](body.avgpool(maps).flatten(1))[0, 2].backward()
    cam = (maps * maps.grad.mean((2, 3), keepdim=True)).sum(1, keepdim=True).relu()[:1].detach()
    cam = F.interpolate(cam, (32, 32), mode='bilinear')[0, 0]
    assert torch.allclose(found[0], cam / cam.max().clamp(min=1e-12), atol=1e-5)


def test_evidence_of_one_class_for_all_pictures_also_without_gradients(model, x, nothing_changes):
    with torch.no_grad():
        found = evidence_map(model, x, 1)
    assert torch.allclose(found, evidence_map(model, x, torch.tensor([1] * 4)))
    assert torch.allclose(found[2:3], evidence_map(model, x[2:3], 1), atol=1e-5), 'each picture on its own'


def test_evidence_lies_where_the_picture_is():
    body = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    body[0].weight.data.fill_(1.0)
    body.num_features = 2
    head = nn.Linear(2, 2)
    head.weight.data = torch.tensor([[1., 1.], [-1., -1.]])
    x = torch.zeros(1, 3, 8, 8)
    x[:, :, 2, 5] = 1
    found = evidence_map(nn.Sequential(body, head), x, 0)
    assert found[0, 2, 5] == 1 and found.sum() == 1
    assert evidence_map(nn.Sequential(body, head), x, 1).sum() == 0, 'nothing speaks for the other class'


@pytest.mark.parametrize('arch', ['squeezenet1_1', 'mobilenet_v3_small', 'shufflenet_v2_x0_5'])
def test_evidence_and_activations_of_torchvision_networks(arch):
    with seeded(0):
        body = create_body(arch, None)
        model = freeze(nn.Sequential(body, create_head(body.num_features, 3)))
    found = evidence_map(model, torch.randn(1, 3, 64, 64), 0)
    assert found.shape == (1, 64, 64) and found.isfinite().all()
    assert first_convolution(model).in_channels == 3


def test_channels_last_and_networks_without_maps():
    swin = models.SwinTransformer([4, 4], 8, [1, 1], [2, 2], [2, 2], num_classes=3)
    body = create_body(swin)
    found = evidence_map(nn.Sequential(body, create_head(body.num_features, 3)), torch.randn(2, 3, 32, 32), 0)
    assert found.shape == (2, 32, 32)
    vit = models.VisionTransformer(32, 16, 1, 2, 8, 16, num_classes=3)
    body = create_body(vit)
    with pytest.raises(ValueError, match='layer='):
        evidence_map(nn.Sequential(body, create_head(body.num_features, 3)), torch.randn(2, 3, 32, 32), 0)
