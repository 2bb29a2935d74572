"What a file says of its model; what cannot be described is refused before a learner is built."
import pytest
import torch
from torch import nn

from conftest import small_network
from finetune_teach.engine.description import check_body, describe, describe_pictures
from finetune_teach.engine.tiny_resnet import TinyResNet_Weights
from finetune_teach.engine.weights import preprocessing_of
from finetune_teach.training_loop import accuracy


@pytest.mark.parametrize('arch, weights, name, said', [
    ('tiny_resnet', 'DEFAULT', 'tiny_resnet', str(TinyResNet_Weights.DEFAULT)),
    (small_network, None, 'small_network', None), (small_network(), 'DEFAULT', 'TinyResNet', 'its own')])
def test_everything_that_building_the_model_again_takes(pets, arch, weights, name, said):
    found = describe(pets, arch, weights, preprocessing_of(arch, weights), ((8, 4), 0.5), 'bf16')
    assert (found['arch'], found['weights'], found['precision']) == (name, said, 'bf16')
    assert found['head'] == {'hidden': [8, 4], 'dropout': 0.5} and found['classes'] == pets.classes
    assert found['size'] == 32 and found['mean'] == list(pets.mean)
    assert describe_pictures([]) == {}


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
