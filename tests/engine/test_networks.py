"Networks of any library: where they are cut, by their own words or by structure; nothing is lost without a word."
import copy

import pytest
import torch
from torch import nn
from torchvision import models

from conftest import small_network
from finetune_teach.engine.networks import (
    PlainNetwork, check_end, finish_body, last_layers, plain_network, try_network)
from finetune_teach.pretrained_body import create_body
from finetune_teach.tools.learners import load_learner, vision_learner

LAST = {'resnet18': 'fc', 'mobilenet_v2': 'classifier.1', 'convnext_tiny': 'classifier.2', 'swin_t': 'head'}


class TwoHeads(nn.Module):
    "As distilled networks are: the answer is the mean of two."
    def __init__(self, second=6):
        super().__init__()
        self.body, self.one, self.two = nn.Linear(12, 6), nn.Linear(6, 5), nn.Linear(second, 5)

    def forward(self, x):
        x = self.body(x.flatten(1))
        return (self.one(x) + self.two(x)) / 2


class Says(nn.Module):
    "A network that says where its last layer is, as timm's do; what comes last in it is something else."
    def __init__(self, **cfg):
        super().__init__()
        self.pretrained_cfg = {'classifier': 'end.linear', **cfg}
        self.end = nn.Sequential()
        self.end.norm, self.end.linear = nn.BatchNorm1d(12), nn.Linear(12, 5)
        self.gate = nn.Linear(12, 12)

    def forward(self, x):
        x = x.flatten(1)
        return self.end(x * self.gate(x).sigmoid())


def parameters_without(net, layers):
    "Ids cannot be compared, since networks are copied; sizes by name can."
    return {name: p.shape for name, p in net.named_parameters()
            if not name.startswith(tuple(f'{layer}.' for layer in layers))}


def names_and_shapes(body):
    return {name: p.shape for name, p in body.named_parameters()}


# What a network says

def test_what_a_network_says_counts_before_its_structure():
    net = Says()
    assert list(last_layers(net)) == ['end.linear']
    body = create_body(net, x=torch.randn(2, 3, 2, 2))
    assert body.num_features == 12 and names_and_shapes(body) == parameters_without(net, ['end.linear'])
    assert isinstance(body.end.norm, nn.BatchNorm1d) and 'end' in dict(net.named_children())
    assert list(last_layers(Says(classifier=('end.linear',)))) == ['end.linear']
    assert list(last_layers(Says(classifier='end'))) == ['end.linear'], 'a part that holds more than the last layer'
    assert list(last_layers(Says(classifier=None))) == ['gate'], 'it says nothing: by structure'


def test_by_its_own_words_the_last_layer_was_taken_away():
    net = Says()
    net.end = nn.Identity() # what it names lay inside
    assert last_layers(net) == {} and create_body(net, x=torch.randn(2, 3, 2, 2)).num_features == 12


def test_what_it_says_is_tried():
    net = Says(classifier='gate')
    with pytest.raises(ValueError, match="'gate', is followed by others"):
        create_body(net, x=torch.randn(2, 3, 2, 2))


# Bodies: the last layer was taken away before

@pytest.mark.parametrize('name', LAST)
def test_a_network_whose_last_layer_was_taken_away(name):
    "Nothing else is: in the first edition the last linear layer that was left went, too."
    net = models.get_model(name, weights=None)
    width = net.get_submodule(LAST[name]).in_features
    net.set_submodule(LAST[name], nn.Identity())
    body = create_body(net)
    assert body.num_features == width and names_and_shapes(body) == names_and_shapes(net)


def test_the_idiom_without_the_last_child():
    "Sequential(*children[:-1]) does not say that something is gone: asked, then maps are averaged."
    net = nn.Sequential(*list(models.resnet18(weights=None).children())[:-2])
    with pytest.raises(ValueError, match="followed by others.*say cut='none'"):
        create_body(net)
    body, x = create_body(net, cut='none').eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(body(x), net.eval()(x).mean((2, 3)), atol=1e-5)
    assert body.num_features == 512 and names_and_shapes(body[0]) == names_and_shapes(net)


class Maps(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.shape, self.weight = shape, nn.Parameter(torch.ones(1))
        self.num_features = 7

    def forward(self, x):
        return self.weight * x.mean() + torch.arange(7.).expand(len(x), *self.shape)


def test_maps_with_channels_last_by_what_the_network_says():
    body = create_body(Maps(4, 4, 7), cut='none')
    assert body.num_features == 7
    found = body(torch.zeros(2, 3, 32, 32))
    assert torch.equal(found, torch.arange(7.).expand(2, 7))


def test_tokens_are_refused():
    with pytest.raises(ValueError, match=r'Maps gives \(2, 9, 7\) for two pictures'):
        create_body(Maps(9, 7), cut='none')


class Fussy(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(12, 4)

    def forward(self, x):
        return self.linear(x.flatten(1))


def test_a_body_that_takes_no_picture_it_is_tried_with():
    with pytest.raises(ValueError, match='Fussy gives nothing'):
        create_body(Fussy(), cut='none')
    body = create_body(Fussy(), cut='none', x=torch.zeros(2, 3, 2, 2))
    assert body.num_features == 4


# By hand

def test_by_hand():
    net = TwoHeads()
    x = torch.randn(2, 3, 2, 2)
    with pytest.raises(ValueError, match="'two', is followed by others"):
        create_body(net, x=x)
    body = create_body(net, cut=['one', 'two'], x=x)
    assert names_and_shapes(body) == parameters_without(net, ['one', 'two'])
    assert torch.allclose((net.one(body(x)) + net.two(body(x))) / 2, net(x), atol=1e-6), 'nothing else is lost'


@pytest.mark.parametrize('cut', ['head', '', ['fc', 'nose']])
def test_a_name_that_is_not_there(cut):
    with pytest.raises(ValueError, match=r"TinyResNet has no layer of this name. Its last ones are fc;.*'none'"):
        create_body(small_network(), cut=cut)


def test_layers_that_cannot_go():
    for net, cut in ((TwoHeads(second=7), ['one', 'two']), (Says(), 'end.norm')):
        with pytest.raises(ValueError, match='Only linear layers'):
            last_layers(net, cut)


def test_what_lies_behind_a_cut_by_hand_is_told():
    softmax, x = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Softmax(1)), torch.randn(2, 3, 2, 2)
    with pytest.raises(ValueError, match='does not end in a linear layer'):
        create_body(softmax, x=x)
    with pytest.warns(UserWarning, match="cut='1': what Sequential gives does not come straight from there"):
        assert create_body(softmax, cut='1', x=x).num_features == 12


def test_a_learner_with_a_cut_is_saved_and_loaded(pets, tmp_path):
    net = small_network()
    net.more = nn.Linear(3, 3) # never used, but the last one in the list
    learn = vision_learner(pets, net, cut='fc', hidden=(8,), device='cpu', show=False)
    x = next(iter(pets.valid))[0]
    again = load_learner(learn.export(tmp_path / 'mine'), arch=net, device='cpu')
    assert again.description['cut'] == 'fc'
    with torch.no_grad():
        assert torch.equal(learn.model.eval()(x), again.model.eval()(x))


# The end is tried

@pytest.mark.parametrize('name', ['resnet18', 'squeezenet1_1', 'googlenet', 'vgg11'])
def test_a_network_that_ends_in_its_last_layer(name):
    network, x = models.get_model(name, weights=None), torch.rand(2, 3, 64, 64)
    modes = [m.training for m in network.modules()]
    check_end(network, last_layers(network), x)
    assert modes == [m.training for m in network.modules()]
    assert not any(m._forward_hooks for m in network.modules())


def test_trying_changes_nothing():
    net = small_network().train()
    before, state, generator = [m.training for m in net.modules()], copy.deepcopy(net.state_dict()), torch.get_rng_state()
    assert try_network(net).shape == (2, 5) and try_network(net, torch.zeros(2, 4, 8, 8)) is None
    assert before == [m.training for m in net.modules()] and torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(t, state[name]) for name, t in net.state_dict().items())


# transformers

def tiny(name, **more):
    "One of transformers' image classifiers with random weights, as small as it can be."
    transformers = pytest.importorskip('transformers')
    model = getattr(transformers, name)
    return model(model.config_class(num_labels=7, image_size=64, **more)).eval()


TRANSFORMER = {'hidden_size': 32, 'num_hidden_layers': 3, 'num_attention_heads': 2, 'intermediate_size': 64, 'patch_size': 16}
STAGES = {'depths': [1, 1, 1, 1], 'hidden_sizes': [8, 16, 24, 32]}
CLASSIFIERS = {
    'ViTForImageClassification': TRANSFORMER,
    'DeiTForImageClassification': TRANSFORMER,
    'DeiTForImageClassificationWithTeacher': TRANSFORMER,
    'BeitForImageClassification': TRANSFORMER,
    'Data2VecVisionForImageClassification': TRANSFORMER,
    'Dinov2ForImageClassification': TRANSFORMER,
    'ResNetForImageClassification': {**STAGES, 'embedding_size': 8},
    'RegNetForImageClassification': {**STAGES, 'embedding_size': 8, 'groups_width': 8},
    'ConvNextForImageClassification': STAGES,
    'ConvNextV2ForImageClassification': STAGES,
    'BitForImageClassification': {**STAGES, 'embedding_size': 8, 'num_groups': 8},
    'SwinForImageClassification': {'embed_dim': 8, 'depths': [1, 1], 'num_heads': [1, 2], 'window_size': 4},
    'Swinv2ForImageClassification': {'embed_dim': 8, 'depths': [1, 1], 'num_heads': [1, 2], 'window_size': 4},
    'PvtV2ForImageClassification': {},
    'PoolFormerForImageClassification': {'depths': [1, 1, 1, 1], 'hidden_sizes': [8, 16, 24, 32]},
    'MobileNetV2ForImageClassification': {},
    'MobileNetV1ForImageClassification': {'depth_multiplier': 0.25},
    'LevitForImageClassificationWithTeacher': {'hidden_sizes': [16, 32, 48], 'num_attention_heads': [1, 1, 1],
                                               'depths': [1, 1, 1], 'key_dim': [8, 8, 8]},
    'SwiftFormerForImageClassification': {},
    'FocalNetForImageClassification': {'embed_dim': 8, 'depths': [1, 1], 'focal_levels': [1, 1], 'focal_windows': [3, 3]},
}


@torch.no_grad()
def loses_only_its_last_layers(net, side=64):
    "Cut a network; return names of what went and how many features there are, or fail."
    net = net.double() # in float32 rounding may grow, with random weights
    plain, x = plain_network(net), torch.randn(2, 3, side, side, dtype=torch.float64)
    layers = last_layers(plain)
    body = create_body(net, x=x)
    features, logits = body.eval()(x), plain.eval()(x)
    assert features.shape == (2, body.num_features)
    assert names_and_shapes(body) == parameters_without(plain, layers)
    if layers:
        again = sum(layer(features.reshape(2, -1, *[1, 1] * isinstance(layer, nn.Conv2d))).flatten(1)
                    for layer in layers.values()) / len(layers)
        assert torch.allclose(again, logits, atol=1e-8 * logits.abs().max()), 'the features are what the layers get'
    return list(layers), body.num_features


TWO_HEADS = 'WithTeacher', 'SwiftFormerForImageClassification' # distilled


@pytest.mark.parametrize('name', CLASSIFIERS)
def test_classifiers_of_transformers(name):
    net = tiny(name, **CLASSIFIERS[name])
    layers, _ = loses_only_its_last_layers(net)
    assert len(layers) == 1 + name.endswith(TWO_HEADS)
    assert isinstance(plain_network(net), PlainNetwork)


def test_a_body_of_transformers():
    vit = tiny('ViTModel', **TRANSFORMER)
    body, x = create_body(vit), torch.randn(2, 3, 64, 64)
    assert body.num_features == 32 and torch.equal(body.eval()(x), vit(x).pooler_output)
    with pytest.raises(ValueError, match='ViTModel gives last_hidden_state, no pooler_output'):
        plain_network(type(vit)(vit.config, add_pooling_layer=False))(x)
