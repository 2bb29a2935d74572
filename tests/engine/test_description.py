"What a file says of its model; what cannot be described is refused before a learner is built."
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from conftest import small_network
from finetune_teach.engine.description import (
    check_body, check_preprocessing, describe, describe_pictures)
from finetune_teach.engine.tiny_resnet import TinyResNet_Weights
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
