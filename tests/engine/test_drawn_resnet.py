"The body that knows drawings: its size, its weights, and how it wants its pictures."
import json
from pathlib import Path

import pytest
import safetensors
import torch

from conftest import same_bits, state
from finetune_teach.engine.drawn_resnet import (
    DRAWN_FILE, DRAWN_MEAN, DRAWN_STD, DrawnResNet_Weights, drawn_resnet)
from finetune_teach.engine.made_up_breeds import made_up_breeds
from finetune_teach.engine.weights import find_builder, preprocessing_of
from finetune_teach.pictures import drawn_pets
from finetune_teach.tools.learners import load_learner, vision_learner


@pytest.fixture(scope='module')
def about():
    with safetensors.safe_open(str(DRAWN_FILE), 'pt') as file:
        return file.metadata()


def test_it_brings_its_weights():
    net = drawn_resnet(weights='DEFAULT')
    assert same_bits(state(drawn_resnet(weights=DrawnResNet_Weights.MADE_UP_BREEDS)), state(net))
    assert same_bits(state(net), DrawnResNet_Weights.DEFAULT.get_state_dict())
    for side in (32, 64, 224):
        assert net.eval()(torch.randn(2, 3, side, side)).shape == (2, 240)
    assert not torch.equal(drawn_resnet().conv1.weight, drawn_resnet().conv1.weight), 'without: random'


def test_it_is_small():
    assert sum(p.numel() for p in drawn_resnet().parameters()) <= 1_500_000
    assert Path(str(DRAWN_FILE)).stat().st_size <= 3e6


def test_how_it_wants_its_pictures(about):
    assert preprocessing_of('drawn_resnet', 'DEFAULT') == (64, DRAWN_MEAN, DRAWN_STD)
    assert json.loads(about['mean']) == list(DRAWN_MEAN) and json.loads(about['std']) == list(DRAWN_STD)


def test_the_file_says_what_it_is(about):
    assert json.loads(about['classes']) == [b.name for b in made_up_breeds()]
    assert 'ImageNet' not in json.dumps(about), 'nothing of anybody else'
    assert "this package's own" in about['licence']
    log = [json.loads(line) for line in DRAWN_FILE.with_suffix('.jsonl').read_text().splitlines()]
    assert len(log) == int(about['epochs']) and log[-1]['top1'] == float(about['top1'])


def test_by_its_name(tmp_path):
    assert find_builder('drawn_resnet') is drawn_resnet
    learn = vision_learner(drawn_pets(2, 1, size=32), 'drawn_resnet', seed=0, show=False, device='cpu')
    assert learn.dls.mean == DRAWN_MEAN and learn.dls.std == DRAWN_STD
    learn.fit_one_cycle(1)
    again = load_learner(learn.save(tmp_path / 'model'), device='cpu')
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again.model.eval()(x), learn.model.eval()(x))
