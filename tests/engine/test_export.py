"Models that leave the package: plain, as ONNX, as PyTorch's exported program, as the body's weights."
import copy
import json
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer, mobilenet_v3_small, resnet18

from conftest import same_bits, small_network, state
from test_networks import CLASSIFIERS, tiny
from finetune_teach.engine.drawn_resnet import drawn_resnet
from finetune_teach.freezing import freeze
from finetune_teach.pictures import drawn_pets
from finetune_teach.pretrained_body import create_body
from finetune_teach.random_head import create_head
from finetune_teach.engine.export import (
    backbone_state_dict, onnx_difference, plain_model, to_exported, to_onnx)
from finetune_teach.tools.learners import load_learner, vision_learner

pytestmark = pytest.mark.filterwarnings('ignore:`torch.jit', 'ignore:.*does not say how the pictures',
                                        'ignore::torch.jit.TracerWarning')


def small_vit():
    return VisionTransformer(32, 16, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5)


def efficientnet():
    pytest.importorskip('efficientnet_lite_pytorch')
    return 'efficientnet_lite0'


ARCHS = {'small': small_network, 'drawn_resnet': lambda: drawn_resnet, 'resnet18': resnet18,
         'mobilenet_v3_small': mobilenet_v3_small, 'vit': small_vit, 'efficientnet_lite0': efficientnet}


def whole(arch):
    "Body and head with random statistics of batch norm, frozen, and pictures."
    torch.manual_seed(0)
    body = create_body(arch, None)
    model = freeze(nn.Sequential(body, create_head(body.num_features, 4, (8,))))
    for name, tensor in model.named_buffers():
        if 'running' in name:
            tensor.uniform_(0.5, 1.5)
    return model, torch.randn(3, 3, 32, 32)


@pytest.mark.parametrize('name', ARCHS)
def test_a_plain_model_is_the_same_to_the_bit_and_goes_through_all_of_pytorch(name):
    model, x = whole(ARCHS[name]())
    plain = plain_model(model)
    assert b'finetune_teach' in pickle.dumps(model)
    with torch.no_grad():
        expected = model.eval()(x)
    for copied in (plain, copy.deepcopy(plain), pickle.loads(pickle.dumps(plain)), torch.jit.script(plain),
                   torch.jit.trace(plain, x)):
        assert torch.equal(copied(x), expected)
    assert torch.allclose(torch.export.export(plain, (x,)).module()(x), expected, atol=1e-6) # attention: other kernels
    assert same_bits(state(plain), state(model))


def test_a_pickle_of_it_needs_pytorch_alone(tmp_path):
    model, x = whole(small_network())
    torch.save((plain_model(model), x, model.eval()(x)), tmp_path / 'model.pt')
    code = ("import sys; sys.modules['finetune_teach'] = None; import torch; "
            "model, x, y = torch.load('model.pt', weights_only=False); assert torch.equal(model(x), y); print('fine')")
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == 'fine\n', done.stderr


def test_the_learner_stays_as_it_is(make_learner):
    learn = make_learner()
    before, modes = state(learn.model), [m.training for m in learn.model.modules()]
    plain = plain_model(learn)
    for p in plain.parameters():
        p.zero_()
    assert same_bits(before, state(learn.model))
    assert modes == [m.training for m in learn.model.modules()] and not plain.training
    learn.model.train()(torch.randn(4, 3, 32, 32))
    assert same_bits(before, state(learn.model) | {k: v for k, v in before.items() if k.startswith('1.')}), \
        'its body is still frozen'


def test_parametrisations_go_and_hooks_of_others_stay():
    model, x = whole(small_network())
    nn.utils.parametrizations.weight_norm(model[1][-1])
    nn.utils.parametrizations.orthogonal(model[1][2])
    model[0].register_forward_hook(lambda module, inputs, output: output * 2)
    expected = model.eval()(x)
    plain = plain_model(model)
    assert torch.equal(plain(x), expected)
    assert 'parametrizations' not in str(plain) and '1.6.weight' in plain.state_dict()
    assert torch.equal(model(x), expected)


def test_it_can_be_trained_again():
    model, x = whole(small_network())
    plain = plain_model(model).train().requires_grad_()
    before = state(plain)
    plain(x).sum().backward()
    assert all(p.grad is not None for p in plain.parameters())
    assert not torch.equal(before['0.bn1.running_mean'], plain.state_dict()['0.bn1.running_mean'])


# ONNX

@pytest.fixture(scope='module')
def learn():
    dls = drawn_pets(n_train=4, n_valid=3, size=32)
    learn = vision_learner(dls, small_network(), seed=0, hidden=(8,), device='cpu', show=False)
    learn.fit(1, 1e-2)
    return learn


@pytest.fixture(scope='module')
def onnx_file(learn, tmp_path_factory):
    for name in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(name)
    return to_onnx(learn, tmp_path_factory.mktemp('onnx') / 'pets.onnx')


def test_onnxruntime_gives_the_same_logits_for_any_number_of_pictures(learn, onnx_file):
    session = pytest.importorskip('onnxruntime').InferenceSession(onnx_file)
    for n in (1, 2, 7):
        x = torch.randn(n, 3, 32, 32)
        with torch.no_grad():
            expected = learn.model.eval()(x)
        assert torch.allclose(torch.from_numpy(session.run(['logits'], {'pictures': x.numpy()})[0]), expected, atol=1e-5)
    assert 0 <= onnx_difference(learn, onnx_file) < 1e-5
    assert [path.name for path in onnx_file.parent.iterdir()] == ['pets.onnx'], 'one file'


def test_the_file_says_how_its_pictures_have_to_be(learn, onnx_file):
    session = pytest.importorskip('onnxruntime').InferenceSession(onnx_file)
    about = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
    for key in ('classes', 'size', 'mean', 'std', 'resize', 'arch'):
        assert about[key] == learn.description[key]
    assert about['value_range'] is None and about['made_by'].startswith('finetune_teach ')


def test_another_model_is_noticed(learn, onnx_file):
    other = copy.deepcopy(learn)
    with torch.no_grad():
        other.model[1][-1].bias[0] += 1
    assert onnx_difference(other, onnx_file) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize('name', [name for name in ARCHS if name != 'small'])
def test_other_networks_as_onnx(name, tmp_path):
    pytest.importorskip('onnxscript')
    pytest.importorskip('onnxruntime')
    dls = drawn_pets(n_train=2, n_valid=2, size=32)
    learn = vision_learner(dls, ARCHS[name](), weights=None, device='cpu', show=False)
    assert onnx_difference(learn, to_onnx(learn, tmp_path / 'a.onnx')) < 1e-5


@pytest.mark.parametrize('name', [name if name.startswith('ViT') else pytest.param(name, marks=pytest.mark.slow)
                                  for name in CLASSIFIERS])
def test_networks_of_transformers(name, tmp_path):
    "Plain, as ONNX and as PyTorch's program the answers stay; the body's weights have the names that it knows."
    network = tiny(name, **CLASSIFIERS[name])
    learn = vision_learner(drawn_pets(n_train=2, n_valid=2, size=64), network, seed=0, hidden=(8,), device='cpu', show=False)
    x = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        expected = learn.model.eval()(x)
        pickled = pickle.dumps(plain_model(learn))
        assert b'finetune_teach' not in pickled and torch.equal(pickle.loads(pickled)(x), expected)
        program = torch.export.load(to_exported(learn, tmp_path / 'a.pt2')).module()
        assert torch.allclose(program(x), expected, atol=1e-5)
    result = network.load_state_dict(learn.backbone_state_dict(), strict=False)
    assert result.missing_keys and not result.unexpected_keys
    assert {key.split('.')[0] for key in result.missing_keys} <= {'head', 'dist_head', 'classifier', 'cls_classifier',
                                                                  'classifier_distill', 'distillation_classifier'}
    pytest.importorskip('onnxscript')
    pytest.importorskip('onnxruntime')
    assert onnx_difference(learn, learn.to_onnx(tmp_path / 'a.onnx')) < 1e-5


# PyTorch's exported program

def test_an_exported_program_needs_pytorch_alone(learn, tmp_path):
    file = to_exported(learn, tmp_path / 'pets.pt2')
    x = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        torch.save((x, learn.model.eval()(x)), tmp_path / 'xy.pt')
    code = ("import sys, json; sys.modules['finetune_teach'] = sys.modules['torchvision'] = None; import torch; "
            "extra = {'preprocessing.json': ''}; model = torch.export.load('pets.pt2', extra_files=extra).module(); "
            "x, y = torch.load('xy.pt'); assert torch.allclose(model(x), y, atol=1e-5); "
            "print(json.loads(extra['preprocessing.json'])['classes'])")
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == f'{learn.description["classes"]}\n', done.stderr


def test_a_learner_without_pictures_exports_too(learn, tmp_path):
    loaded = load_learner(learn.export(tmp_path / 'pets'), small_network())
    assert to_exported(loaded, tmp_path / 'a.pt2').exists()


# The body's weights

@pytest.mark.parametrize('builder, missing', [
    (resnet18, ['fc.weight', 'fc.bias']), (mobilenet_v3_small, ['classifier.3.weight', 'classifier.3.bias']),
    (small_vit, ['heads.head.weight', 'heads.head.bias'])])
def test_the_builder_takes_all_but_the_last_layer(builder, missing, pets):
    learn = vision_learner(pets, builder(), device='cpu', show=False)
    learn.model.requires_grad_()
    weights = backbone_state_dict(learn)
    network = builder().eval()
    result = network.load_state_dict(weights, strict=False)
    assert (result.missing_keys, result.unexpected_keys) == (missing, [])
    assert all(t.is_contiguous() and not t.requires_grad for t in weights.values())
    network.set_submodule(missing[0].removesuffix('.weight'), nn.Identity())
    x = torch.randn(2, 3, 32, 32)
    assert torch.allclose(network(x), learn.model[0].eval()(x), atol=1e-5)


def test_timm_takes_it():
    timm = pytest.importorskip('timm')
    model, x = whole(timm.create_model('resnet10t', num_classes=5))
    network = timm.create_model('resnet10t', num_classes=0).eval()
    network.load_state_dict(backbone_state_dict(model))
    assert torch.allclose(network(x), model[0].eval()(x), atol=1e-5)


def test_names_stay_where_the_mean_of_maps_is_taken():
    maps = nn.Sequential(*list(resnet18(weights=None).children())[:-2])
    body = create_body(maps, cut='none')
    maps.load_state_dict(backbone_state_dict(nn.Sequential(body, nn.Linear(512, 2))))


def test_the_weights_are_copies(learn):
    for tensor in learn.backbone_state_dict().values():
        tensor.zero_()
    assert learn.model[0].conv1.weight.abs().sum() > 0
