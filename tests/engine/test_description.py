"What a file says of its model; what cannot be described is refused before a learner is built."
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision import models

from conftest import small_network
from finetune_teach.engine.description import (
    check_body, check_end, check_preprocessing, describe, describe_pictures)
from finetune_teach.engine.tiny_resnet import TinyResNet_Weights
from finetune_teach.pictures import drawn_pets
from finetune_teach.pretrained_body import last_layer
from finetune_teach.tools.learners import vision_learner
from finetune_teach.training_loop import accuracy


@pytest.mark.parametrize('arch, weights, name, said', [
    ('tiny_resnet', 'DEFAULT', 'tiny_resnet', str(TinyResNet_Weights.DEFAULT)),
    (small_network, None, 'small_network', None), (small_network(), 'DEFAULT', 'TinyResNet', 'its own')])
def test_everything_that_building_the_model_again_takes(pets, arch, weights, name, said):
    found = describe(pets, arch, weights, ((8, 4), 0.5), 'bf16')
    assert (found['arch'], found['weights'], found['precision']) == (name, said, 'bf16')
    assert found['head'] == {'hidden': [8, 4], 'dropout': 0.5} and found['classes'] == pets.classes
    assert found['size'] == 32 and found['mean'] == list(pets.mean)
    assert describe_pictures([]) == {}


def test_classes_are_read_from_a_data_set_in_a_loader():
    loader = DataLoader(TensorDataset(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1])))
    assert describe_pictures(SimpleNamespace(train=loader, valid=loader)) == {}
    loader.dataset.classes = ['cat', 'dog']
    assert describe_pictures(SimpleNamespace(train=loader, valid=loader)) == {'classes': ['cat', 'dog']}


def test_what_is_missing_is_asked_for():
    with pytest.raises(ValueError, match=r'mine does not know size, mean, std .* preprocessing=dict\(classes='):
        check_preprocessing({'classes': ['cat', 'dog']}, 'mine')
    known = {'classes': ['cat', 'dog'], 'size': 8, 'mean': [0, 0, 0], 'std': [1, 1, 1]}
    assert check_preprocessing(known, 'mine') is known


@pytest.mark.parametrize('options, error, told', [
    ({'pretrained': True}, TypeError, "no pretrained=: give weights='DEFAULT'"),
    ({'dls': 'my_photos'}, ValueError, "dls='my_photos': wanted are loaders"),
    ({'metrics': 'accuracy'}, ValueError, "metrics='accuracy': wanted are functions.*without quotation marks"),
    ({'metrics': [accuracy, 3]}, ValueError, 'metrics=3'),
    ({'precision': 'half'}, ValueError, "precision='half': there are fp32, bf16, auto")])
def test_what_no_learner_can_be_made_of(make_learner, options, error, told):
    with pytest.raises(error, match=told):
        make_learner(**options)


def test_a_network_that_does_not_end_in_its_last_linear_layer():
    body = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5), nn.Unflatten(1, (5, 1))).train()
    body.num_features = 5
    with pytest.raises(ValueError, match=r'mine gives \(2, 5, 1\), not \(2, 5\): its last linear layer is not its end'):
        check_body(body, torch.zeros(2, 3, 8, 8), {'arch': 'mine'})
    assert body.training


@pytest.mark.parametrize('name', ['resnet18', 'mobilenet_v2', 'convnext_tiny', 'swin_t'])
def test_a_network_whose_last_layer_was_taken_away(name):
    "What is the last one now belongs to the body; pictures of another size would not help."
    network = models.get_model(name, weights=None)
    setattr(network, {'r': 'fc', 's': 'head'}.get(name[0], 'classifier'), nn.Identity())
    told = r'does not end in a linear layer.*Learner\(dls, nn.Sequential\(network, create_head\((512|1280|768|F), n_classes'
    with pytest.raises(ValueError, match=told):
        vision_learner(drawn_pets(1, 1), network)


@pytest.mark.parametrize('name', ['resnet18', 'squeezenet1_1', 'googlenet', 'vgg11'])
def test_a_network_that_ends_in_its_last_layer(name):
    network, modes = models.get_model(name, weights=None), []
    x = torch.rand(2, 3, 64, 64)
    modes = [m.training for m in network.modules()]
    check_end(network, last_layer(network)[1], x)
    assert modes == [m.training for m in network.modules()]
    assert not any(m._forward_hooks for m in network.modules())


def test_two_heads_and_other_ends():
    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(12, 5), nn.Linear(12, 5)

        def forward(self, x):
            return (self.one(x.flatten(1)) + self.two(x.flatten(1))) / 2
    x = torch.rand(2, 3, 2, 2)
    softmax = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Softmax(1))
    for network, layer in ((TwoHeads(), 'two'), (softmax, '1')):
        with pytest.raises(ValueError, match='does not end in a linear layer'):
            check_end(network, network.get_submodule(layer), x)
    check_end(softmax, softmax[1], torch.rand(2, 4, 4, 4)) # pictures that it cannot take: not said here
