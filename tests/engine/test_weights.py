"Networks with their weights: builders and weights by name, downloads, files that are damaged or hostile."
import io
import os
import pickle
import re
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torchvision import models

from conftest import publish, same_bits, small_network, state
from finetune_teach.engine.tiny_resnet import tiny_resnet
from finetune_teach.engine.weights import (
    fetch_weights, find_builder, find_weights, load_network, own_preprocessing,
    preprocessing_of)

V2 = models.ResNet50_Weights.IMAGENET1K_V2
SQUEEZE = models.SqueezeNet1_1_Weights.DEFAULT


# Names

def test_builders_by_name():
    assert find_builder('resnet34') is find_builder(models.resnet34) is models.resnet34
    assert find_builder('tiny_resnet') is tiny_resnet and find_builder(small_network) is small_network


@pytest.mark.parametrize('arch', ['resnet43', 'fcn_resnet50', 'my net', '', None, 34])
def test_unknown_arch(arch):
    with pytest.raises(ValueError, match='unknown arch') as error:
        find_builder(arch)
    assert repr(arch) in str(error.value) and 'tiny_resnet' in str(error.value)
    assert arch != 'resnet43' or "'resnet34'" in str(error.value), 'close ones are named'


@pytest.mark.parametrize('weights', ['DEFAULT', V2, 'IMAGENET1K_V2', 'ResNet50_Weights.IMAGENET1K_V2',
                                     'ResNet50_Weights.DEFAULT'])
def test_weights_by_enum_and_by_name(weights):
    assert find_weights(models.resnet50, weights) is V2


@pytest.mark.parametrize('weights', ['IMAGENET1K_V3', 'ResNet18_Weights.DEFAULT', models.ResNet18_Weights.DEFAULT, '',
                                     True])
def test_unknown_weights(weights):
    with pytest.raises(ValueError, match='IMAGENET1K_V1') as error:  # says which ones there are
        find_weights(models.resnet50, weights)
    assert 'resnet50' in str(error.value) and repr(weights) in str(error.value)


def test_a_builder_without_published_weights():
    with pytest.raises(ValueError, match='small_network has no published weights.*weights=None'):
        load_network(small_network)
    assert same_bits(state(load_network(small_network, weights=None)), state(small_network()))


def test_no_weights():
    assert find_weights(models.resnet50, None) is None
    first, second = load_network('resnet18', weights=None), load_network('resnet18', weights=None)
    assert not torch.equal(first.conv1.weight, second.conv1.weight)


def test_a_ready_network_is_copied():
    network = small_network()
    copied = load_network(network)
    assert copied is not network and same_bits(state(copied), state(network))


# Downloads

@pytest.fixture
def published(weights_cache, tmp_path, monkeypatch, web):
    "squeezenet1_1 with random weights, as torchvision's file on a server; the cache is empty."
    network = models.squeezenet1_1()
    file = publish(network, SQUEEZE, tmp_path, monkeypatch)
    web.files[f'/models/{file.name}'] = file.read_bytes()
    monkeypatch.setattr(SQUEEZE.value, 'url', f'{web.url}/models/{file.name}')
    network.cached = weights_cache / file.name
    return network


def test_weights_are_fetched_once(published, web):
    for _ in range(2):
        assert same_bits(state(load_network('squeezenet1_1')), state(published))
    assert len(web.asked) == 1 and [*published.cached.parent.iterdir()] == [published.cached]


@pytest.mark.parametrize('cause, match', [('lost', '404'), ('cut', 'it was cut'), ('other', 'wants a login')])
def test_weights_that_do_not_come(published, web, cause, match):
    path = next(iter(web.files))
    web.files = {'lost': {}, 'cut': web.files, 'other': {path: b'<html>'}}[cause]
    web.cut = 1000
    with pytest.raises(FileNotFoundError, match=match) as error:
        load_network('squeezenet1_1')
    for part in (str(SQUEEZE), f'to {published.cached}', 'put it there. ', 'set_dir', 'weights=None', 'arch=tiny_resnet'):
        assert part in str(error.value)
    assert [*published.cached.parent.iterdir()] == []


def test_a_file_in_the_cache_needs_no_network(weights_cache, monkeypatch):
    network = models.resnet18()
    publish(network, models.ResNet18_Weights.DEFAULT, weights_cache, monkeypatch)
    monkeypatch.setattr('urllib.request.OpenerDirector.open', None)
    assert same_bits(state(load_network('resnet18')), state(network))


def test_the_network_in_the_package_needs_no_cache(monkeypatch):
    monkeypatch.setattr('finetune_teach.engine.weights.fetch_weights', None)
    assert same_bits(state(load_network('tiny_resnet')), state(tiny_resnet(weights='DEFAULT')))


@pytest.mark.parametrize('content', [b'', b'half a file', 'own weights'])
def test_a_file_in_the_cache_that_is_another_one(published, content):
    if content == 'own weights':
        torch.save(models.squeezenet1_1().state_dict(), published.cached)
    else:
        published.cached.write_bytes(content)
    with pytest.raises(ValueError, match='checksum') as error:
        load_network('squeezenet1_1')
    for part in (str(SQUEEZE), str(published.cached), 'Delete it, and it will be downloaded again', 'pass as `arch`'):
        assert part in str(error.value)


def test_every_published_file_has_digits():
    for name in models.list_models(module=models):
        for weights in models.get_model_weights(name):
            assert re.search(r'-[0-9a-f]{8,}\.pth$', weights.url), weights


# What is in the file

def cached(weights_cache, monkeypatch, content):
    "A file with squeezenet's weights whose name has no digits."
    path = weights_cache / 'squeezenet1_1.pth'
    monkeypatch.setattr(SQUEEZE.value, 'url', f'http://127.0.0.1:1/{path.name}')
    path.write_bytes(content)
    return path


def saved(value, **options):
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def test_older_files_and_those_without_digits_are_read(weights_cache, monkeypatch):
    network = models.squeezenet1_1()
    content = saved(network.state_dict(), _use_new_zipfile_serialization=False)
    path = cached(weights_cache, monkeypatch, content)
    assert fetch_weights(SQUEEZE) == path
    assert same_bits(state(load_network('squeezenet1_1')), state(network))


@pytest.mark.parametrize('content, why', [(b'', 'EOFError'), (saved({'a': torch.ones(99)})[:-200], 'zip')])
def test_a_file_that_cannot_be_read(weights_cache, monkeypatch, content, why):
    path = cached(weights_cache, monkeypatch, content)
    with pytest.raises(ValueError) as error:
        load_network('squeezenet1_1')
    said = str(error.value)
    assert f'the file with {SQUEEZE}, {path}, is damaged: ' in said and why in said
    assert said.endswith('. Delete it, and it will be downloaded again.') and '\n' not in said


class Bomb:
    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return Path.touch, (Path(self.target),)


def bomb(folder):
    return {'classifier.1.weight': Bomb(folder / 'code was run')}


def zip_of_one_file(content):  # torch.hub takes such a file out and reads it
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as z:
        z.writestr('weights.pth', content)
    return file.getvalue()


def old_tar(folder):  # the format before 2017
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode='w') as tar:
        for name, value in {'sys_info': {}, 'storages': Bomb(folder / 'code was run'), 'tensors': 0,
                            'pickle': bomb(folder)}.items():
            info = tarfile.TarInfo(name)
            info.size = len(pickle.dumps(value))
            tar.addfile(info, io.BytesIO(pickle.dumps(value)))
    return file.getvalue()


HOSTILE = {
    'zip': lambda folder: saved(bomb(folder)),
    'older': lambda folder: saved(bomb(folder), _use_new_zipfile_serialization=False),
    'plain pickle': lambda folder: pickle.dumps(bomb(folder)),
    'zip in a zip': lambda folder: zip_of_one_file(saved(bomb(folder))),
    'older in a zip': lambda folder: zip_of_one_file(saved(bomb(folder), _use_new_zipfile_serialization=False)),
    'tar': old_tar,
}


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('setting', ['TORCH_FORCE_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'])
@pytest.mark.parametrize('kind', HOSTILE)
def test_a_hostile_file_in_the_cache(weights_cache, tmp_path, monkeypatch, kind, setting):
    monkeypatch.setenv(setting, '1')
    before = dict(os.environ)
    path = cached(weights_cache, monkeypatch, HOSTILE[kind](tmp_path))
    with pytest.raises(ValueError) as error:
        load_network('squeezenet1_1')
    for part in (str(path), 'Delete it', 'holds more than weights, which was not run'):
        assert part in str(error.value)
    assert 'weights_only' not in str(error.value) and error.value.__cause__ is None, 'no advice on how to run it'
    assert not (tmp_path / 'code was run').exists() and dict(os.environ) == before


def test_the_bombs_are_real(tmp_path):
    for make in list(HOSTILE.values())[:2]:
        (tmp_path / 'bomb').write_bytes(make(tmp_path))
        torch.load(tmp_path / 'bomb', weights_only=False)
        (tmp_path / 'code was run').unlink()


# Preprocessing

@pytest.mark.parametrize('arch, weights, size, mean, std', [
    ('resnet34', 'DEFAULT', 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ('inception_v3', 'DEFAULT', 299, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ('efficientnet_v2_l', 'DEFAULT', 480, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ('vit_b_16', 'IMAGENET1K_SWAG_E2E_V1', 384, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ('tiny_resnet', 'DEFAULT', 64, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ('resnet34', None, 64, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    (small_network(), 'DEFAULT', 64, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
])
def test_pictures_are_prepared_as_the_weights_want(arch, weights, size, mean, std):
    assert preprocessing_of(arch, weights) == (size, mean, std)


class Timm(nn.Sequential):
    "A network that says how its pictures looked, as timm's do."
    def __init__(self, **said):
        super().__init__(nn.Flatten(), nn.Linear(3, 2))
        self.pretrained_cfg = said


CFG = {'input_size': (3, 240, 288), 'mean': (0.5, 0.5, 0.5), 'std': (0.25, 0.5, 0.5)}


@pytest.mark.parametrize('network, said', [
    (Timm(**CFG), (288, (0.5, 0.5, 0.5), (0.25, 0.5, 0.5))),
    (nn.Sequential(Timm(**CFG)), (288, (0.5, 0.5, 0.5), (0.25, 0.5, 0.5))), # inside of another
    (Timm(mean=[0.5, 0.5, 0.5]), (224, (0.5, 0.5, 0.5), (0.229, 0.224, 0.225))),
    (nn.Flatten(), (224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))])
def test_a_ready_network_is_asked(network, said):
    assert preprocessing_of(network, 'DEFAULT') == said


def test_other_ways_to_say_it():
    "timm's newer objects, its older name, and the config of transformers, which knows the size alone."
    network = nn.Flatten()
    network.default_cfg = SimpleNamespace(**CFG)
    assert own_preprocessing(network) == {'size': 288, 'mean': (0.5, 0.5, 0.5), 'std': (0.25, 0.5, 0.5)}
    for size in (384, (256, 384)):
        network = nn.Flatten()
        network.config = SimpleNamespace(image_size=size)
        assert own_preprocessing(network) == {'size': 384}
    assert own_preprocessing(nn.Flatten()) == {}


@pytest.mark.parametrize('how, expected', [
    ({'size': {'height': 64, 'width': 64}, 'image_mean': [.5, .4, .3]}, {'size': 32, 'mean': (.5, .4, .3), 'std': (.5, .5, .5)}),
    ({'do_normalize': False}, {'size': 32, 'mean': (0, 0, 0), 'std': (1, 1, 1)}),
    ({'do_rescale': False}, {'size': 32})])
def test_an_image_processor_of_transformers_beside_the_network(how, expected, tmp_path):
    transformers = pytest.importorskip('transformers')
    config = transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=32)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    network = transformers.ViTForImageClassification.from_pretrained(tmp_path)
    assert own_preprocessing(network) == {'size': 32}
    transformers.ViTImageProcessor(**how).save_pretrained(tmp_path)
    said = own_preprocessing(nn.Sequential(network))
    assert {key: value if key == 'size' else tuple(value) for key, value in said.items()} == expected


def test_an_image_processor_knows_the_size_where_the_network_does_not(tmp_path):
    transformers = pytest.importorskip('transformers')
    network = nn.Flatten()
    network.config = SimpleNamespace(name_or_path=str(tmp_path))
    assert own_preprocessing(network) == {}
    transformers.CLIPImageProcessor(size={'shortest_edge': 40}, crop_size={'height': 36, 'width': 36}).save_pretrained(tmp_path)
    assert own_preprocessing(network)['size'] == 36
    transformers.CLIPImageProcessor(size={'shortest_edge': 40}, do_center_crop=False).save_pretrained(tmp_path)
    assert own_preprocessing(network)['size'] == 40


def test_a_method_of_a_network():
    with pytest.raises(ValueError, match='forward_features is a method of a Says. Give the network itself'):
        class Says(nn.Module):
            def forward_features(self, x):
                return x
        load_network(Says().forward_features)
