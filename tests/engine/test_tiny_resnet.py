"The network in the package: its shape, and its weights, whose file is whole or refused."
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from conftest import same_bits, state
from finetune_teach.engine.tiny_resnet import (
    WEIGHTS_FILE, TinyResNet, TinyResNet_Weights, read_weights, tiny_resnet)


def test_it_brings_its_weights():
    net = tiny_resnet(weights=TinyResNet_Weights.DEFAULT)
    assert same_bits(state(tiny_resnet(weights='TINY_IMAGENET')), state(net))
    assert same_bits(state(net), TinyResNet_Weights.DEFAULT.get_state_dict())
    assert all(t.dtype is torch.float32 for t in state(net).values() if t.is_floating_point()), 'halves in the file'
    assert net.conv1.kernel_size == (7, 7)  # large enough to look at
    for side in (32, 64, 224):
        assert net.eval()(torch.randn(2, 3, side, side)).shape == (2, 200)


def test_it_is_small():
    assert sum(p.numel() for p in tiny_resnet().parameters()) <= 3_000_000
    assert Path(str(WEIGHTS_FILE)).stat().st_size <= 6e6


def test_without_weights_they_are_random():
    assert not torch.equal(tiny_resnet().conv1.weight, tiny_resnet().conv1.weight)


def test_widths_and_depths():
    net = TinyResNet(5, widths=(8, 16, 24, 32), depths=(1, 2, 1, 1))
    assert net.fc.weight.shape == (5, 32) and len(net.layer2) == 2
    assert net.layer1[0].downsample is None and isinstance(net.layer2[0].downsample, nn.Sequential)


def damaged(tmp_path, change):
    data = bytearray(WEIGHTS_FILE.read_bytes())
    path = tmp_path / 'w.safetensors'
    path.write_bytes(change(data))
    return path


def turned(data, share):
    data[int(share * len(data))] ^= 1
    return data


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere.safetensors are not there. Install finetune_teach again'):
        read_weights(tmp_path / 'nowhere.safetensors')


@pytest.mark.parametrize('share', [0, 0.0001, 0.3, 0.999])
def test_a_file_that_is_cut_off(tmp_path, share):
    with pytest.raises(ValueError, match='w.safetensors are damaged: .*Install finetune_teach again'):
        read_weights(damaged(tmp_path, lambda data: data[:int(share * len(data))]))


@pytest.mark.parametrize('share', [0.1, 0.5, 0.9, 0.9999])
def test_a_file_with_one_altered_bit(tmp_path, share):
    with pytest.raises(ValueError, match='do not give the checksum'):
        read_weights(damaged(tmp_path, lambda data: turned(data, share)))


def test_a_file_without_a_checksum(tmp_path):
    safetensors.torch.save_file(state(tiny_resnet()), tmp_path / 'w.safetensors')
    with pytest.raises(ValueError, match='checksum'):
        read_weights(tmp_path / 'w.safetensors')
