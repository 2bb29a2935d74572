"What one asks of any module."
import torch

from finetune_teach.engine.modules import checksum


def test_the_checksum_sees_names_shapes_and_types():
    t = torch.arange(4.)
    others = [{'b': t}, {'a': t.view(2, 2)}, {'a': t.int()}, {'a': t.flip(0)}, {'a': t, 'b': t}]
    assert len({checksum(tensors) for tensors in [{'a': t}, *others]}) == 6
