"From an architecture, or from a file alone, to a learner."
import random
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from conftest import changed, same_bits, small_network, state
from finetune_teach.engine.drawing import draw_pet
from finetune_teach.engine.tiny_resnet import tiny_resnet
from finetune_teach.fine_tuning import Learner
from finetune_teach.pretrained_body import create_body
from finetune_teach.random_head import create_head
from finetune_teach.tools.learners import cnn_learner, load_learner, vision_learner
from finetune_teach.training_loop import accuracy, error_rate


def test_body_frozen_head_random(make_learner, pets):
    learn = make_learner()
    assert isinstance(learn.model, nn.Sequential) and len(learn.model) == 2
    assert {n[0] for n, p in learn.model.named_parameters() if p.requires_grad} == {'1'}
    assert learn.model[1][-1].out_features == len(pets.classes) == 12
    assert make_learner(weights=None, arch=tiny_resnet).model[0].conv1.weight.requires_grad
    assert cnn_learner is vision_learner


def test_a_seed_decides_the_head_and_touches_no_generator(make_learner):
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    expected = torch.rand(1).item(), random.random(), np.random.rand()
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    one, two, other = make_learner(seed=1), make_learner(seed=1), make_learner(seed=2)
    assert same_bits(state(one.model), state(two.model))
    assert same_bits(state(one.model[0]), state(other.model[0]))
    assert not torch.equal(one.model[1][2].weight, other.model[1][2].weight)
    assert (torch.rand(1).item(), random.random(), np.random.rand()) == expected


def test_arch_by_builder_name_or_ready_network(pets, make_learner):
    by_name = make_learner(arch='tiny_resnet')
    assert same_bits(state(by_name.model), state(make_learner(arch=tiny_resnet).model))
    network = small_network()
    learn = make_learner(arch=network)
    learn.fit(1, 0.1)
    learn.unfreeze()
    learn.fit(1, 0.1)
    assert same_bits(state(network), state(small_network())), 'the network itself stays as it was'


@pytest.mark.parametrize('builder', [small_network, partial(small_network, seed=3), lambda: small_network()])
def test_any_function_is_a_builder(make_learner, builder):
    learn = make_learner(arch=builder, weights=None)
    learn.fit(1, 1e-3)
    assert learn.model[0].conv1.weight.requires_grad


def test_unknown_names(make_learner):
    with pytest.raises(ValueError, match="unknown arch 'resnet35'.*resnet34"):
        make_learner(arch='resnet35')
    with pytest.raises(ValueError, match="no weights 'V7'.*TINY_IMAGENET"):
        make_learner(arch=tiny_resnet, weights='V7')


def test_pictures_that_are_too_small(pets):
    with pytest.raises(ValueError, match='vit_b_32.*32x32.*size=224'):
        vision_learner(pets, 'vit_b_32', weights=None, device='cpu')


class OwnHead(nn.Module):
    def __init__(self, n_in, n_out):
        super().__init__()
        self.layer = nn.Linear(n_in, n_out)

    def forward(self, x):
        return self.layer(x)


def test_own_head(make_learner):
    head = OwnHead(8, 12)
    learn = make_learner(head=head)
    assert learn.model[1] is head
    before = state(head)
    learn.fine_tune(1)
    assert changed(before, state(head)) == {'layer.weight', 'layer.bias'}


@pytest.mark.parametrize('head, told', [(nn.Linear(9, 12), '8 features'), (nn.Linear(8, 11), '12 classes')])
def test_head_of_wrong_width(make_learner, head, told):
    with pytest.raises(ValueError, match=told):
        make_learner(head=head)


def test_metrics_one_several_none(make_learner):
    for metrics, names in [(accuracy, ['accuracy']), ([accuracy, error_rate], ['accuracy', 'error_rate']),
                           (None, []), ([], [])]:
        learn = make_learner(metrics=metrics)
        learn.fit(1, 1e-3)
        assert list(learn.recorder.history[0])[5:-1] == names
        assert len(learn.validate()) == 1 + len(names)


@pytest.mark.parametrize('hidden', [(), (6, 5)])
def test_load_learner(pets, tmp_path, hidden):
    "`export` leaves out the optimiser."
    learn = vision_learner(pets, tiny_resnet, weights=None, hidden=hidden, seed=0, device='cpu', show=False)
    learn.fit(1, 1e-2)
    whole, small = learn.save(tmp_path / 'whole'), learn.export(tmp_path / 'small')
    assert small.stat().st_size < 0.5 * whole.stat().st_size
    picture = draw_pet('pug', seed=3)
    known = learn.predict(picture)
    for path in (whole, small):
        again = load_learner(path, device='cpu')
        assert same_bits(state(learn.model), state(again.model)) and again.recorder.history == learn.recorder.history
        assert [p.requires_grad for p in again.model.parameters()] == [p.requires_grad for p in learn.model.parameters()]
        answer = again.predict(picture)
        assert answer.label == known.label and answer.probabilities.equal(known.probabilities)
    learn.load(small)
    assert not learn.optimizer.state


def test_load_learner_with_parts_of_ones_own(make_learner, pets, tmp_path):
    "Or of a learner of plain parts, whose file does not say how the network was built: that has to be given."
    make_learner(head=OwnHead(8, 12)).save(tmp_path / 'own')
    with pytest.raises(ValueError, match='TinyResNet.*arch='):
        load_learner(tmp_path / 'own', head=OwnHead(8, 12))
    with pytest.raises(ValueError, match='head='):
        load_learner(tmp_path / 'own', small_network())
    again = load_learner(tmp_path / 'own', small_network(seed=5), OwnHead(8, 12), device='cpu')
    assert same_bits(state(again.model[0]), state(make_learner().model[0]))
    learn = Learner(pets, nn.Sequential(create_body(small_network()), create_head(8, 12, ())), device='cpu')
    path = learn.save(tmp_path / 'plain')
    again = load_learner(path, arch=small_network(), head=create_head(8, 12, ()), device='cpu')
    assert same_bits(state(learn.model), state(again.model))
    for missing in (dict(arch=small_network()), dict(head=create_head(8, 12, ())), {}):
        with pytest.raises(ValueError, match='of your own'):
            load_learner(path, **missing)


def test_numbers_of_numpy_go_into_a_file(make_learner, tmp_path):
    learn = make_learner(hidden=(np.int64(6),), dropout=np.float32(0.25), wd=np.float64(0.1), seed=np.int64(3))
    again = load_learner(learn.save(tmp_path / 'a'), small_network(), device='cpu')
    assert again.description['head'] == {'hidden': [6], 'dropout': 0.25} and (again.wd, again.seed) == (0.1, 3)


def test_an_image_processor_beside_a_network_of_transformers_is_asked(pets, tmp_path):
    "Without one, the mean is guessed and said to be; how it becomes known is said, too."
    transformers = pytest.importorskip('transformers')
    config = transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
                                    image_size=32, patch_size=16)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    network, options = transformers.ViTForImageClassification.from_pretrained(tmp_path), {'hidden': (), 'show': False}
    with pytest.warns(UserWarning, match=r"Assumed is .* mean=.*, std=.*AutoImageProcessor.from_pretrained\('/"):
        vision_learner(pets, network, **options)
    transformers.ViTImageProcessor(image_mean=[.5, .4, .3]).save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        learn = vision_learner(pets, network, **options)
    assert learn.description['mean'] == [.5, .4, .3] and learn.description['std'] == [.5] * 3
