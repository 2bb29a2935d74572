"What one asks of any module: device, parameters, modes, checksum, memory layout."
import pytest
import torch
from torch import nn

from conftest import small_network
from finetune_teach.engine.modules import channels_last, checksum, modes_kept, on_device


@pytest.mark.parametrize('error', [None, KeyboardInterrupt])
def test_modes_are_kept_of_each_part(error):
    network = small_network().train()
    network.layer3.eval()
    before = [m.training for m in network.modules()]
    try:
        with modes_kept(network):
            network.eval()
            if error:
                raise error
    except KeyboardInterrupt:
        pass
    assert [m.training for m in network.modules()] == before and len(set(before)) == 2


def test_a_checksum_changes_with_names_types_shapes_and_each_bit():
    w = torch.arange(6.)
    tensors = [{'w': w}, {'v': w}, {'w': w.double()}, {'w': w.view(2, 3)}, {'w': w.view(2, 3).T}, {'w': -w},
               {'w': w.to(torch.bfloat16)}, {'w': w, 'v': w}, {'w': torch.nextafter(w, w + 1)}, {}]
    assert len(set(map(checksum, tensors))) == len(tensors)
    assert checksum({'w': w, 'v': -w}) == checksum({'v': -w.clone(), 'w': w.clone()}), 'the order does not count'
    assert checksum({'w': w.view(2, 3).T}) == checksum({'w': w.view(2, 3).T.contiguous()}), 'nor does the layout'
    odd = {'scalar': torch.tensor(1.0), 'empty': torch.empty(0), 'nan': torch.tensor([float('nan')])}
    assert checksum(odd) == checksum(odd)


@pytest.mark.parametrize('layer, last', [
    (nn.Conv2d(8, 8, 1, stride=2), True), (nn.Conv2d(4, 8, 1), True), (nn.Conv2d(4, 8, 3, stride=2), True),
    (nn.Conv2d(7, 8, 1, stride=2), False), (nn.Conv2d(4, 8, 1, stride=(1, 2)), False),
    (nn.Conv2d(16, 16, 1, stride=2, groups=4), False)], ids=str)
def test_channels_last_except_with_narrow_strided_convolutions(layer, last):
    net = nn.Sequential(nn.Conv2d(3, layer.in_channels, 3), layer)
    before = [p.clone() for p in net.parameters()]
    assert channels_last(channels_last(net)) is net
    assert net[0].weight.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    assert all(p.equal(q) for p, q in zip(before, net.parameters(), strict=True))


def test_copies_to_a_gpu_are_from_pinned_memory_and_do_not_wait(monkeypatch):
    done, to = [], torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, 'pin_memory', lambda x: done.append('pinned') or x)
    monkeypatch.setattr(torch.Tensor, 'to', lambda x, device, non_blocking: done.append((str(device), non_blocking))
                        or to(x, 'meta'))
    there = on_device(torch.zeros(2), 'cuda')
    on_device(there, torch.device('cuda:0'))
    on_device(torch.zeros(2), 'cpu')
    assert done == ['pinned', ('cuda', True), ('cuda:0', False), ('cpu', False)]
