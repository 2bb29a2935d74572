"The summary of a model."
import pytest
import torch
from torch import nn

from finetune_teach.engine.summary import output_shapes, summary
from finetune_teach.freezing import layer_groups


def test_summary(make_learner):
    learn = make_learner()
    text = learn.summary()
    first, *lines, last = text.splitlines()
    groups = [line.split()[0] for line in lines]
    order = ['early', 'late', 'head']
    assert groups == sorted(groups, key=order.index) and set(groups) == set(order)
    head = sum(p.numel() for p in learn.model[1].parameters())
    everything = sum(p.numel() for p in learn.model.parameters())
    assert last == f'{head:,} of {everything:,} parameters learn ({head / everything:.0%})' and repr(text) == str(text)
    assert [line.split()[-1] for line in lines] == ['no'] * (len(lines) - 1) + ['yes']
    assert '8x16x16' in lines[0], 'the shape after the first layer: 8 channels, half of 32 pixels'
    learn.train_bn = True
    learn.freeze()
    assert '0.bn1' in learn.summary().splitlines()[2] and learn.summary().splitlines()[2].endswith('yes')
    learn.unfreeze()
    assert all(line.endswith('yes') for line in learn.summary().splitlines()[1:-1])


def test_parts_that_learn_in_part_or_give_no_tensor():
    model = nn.Sequential(nn.GRU(4, 3, batch_first=True), nn.Identity())
    model[0].bias_ih_l0.requires_grad_(False)
    text = summary(model, torch.zeros(2, 5, 4), layer_groups(model))
    assert [line.split()[-2:] for line in text.splitlines()[1:-1]] == [['81', '72']] and ' ? ' in text


def test_shapes_leave_nothing_behind():
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout()).train()
    assert output_shapes(list(model), model, torch.zeros(2, 4)) == {model[0]: '3', model[1]: '3'}
    with pytest.raises(RuntimeError):
        output_shapes(list(model), model, torch.zeros(2, 5))
    assert model.training and not [m for m in model.modules() if m._forward_hooks]
