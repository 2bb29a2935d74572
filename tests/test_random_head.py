"Heads: their layers, how they begin, and what fits."
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conftest import same_bits, state
from finetune_teach.engine.random_state import seeded
from finetune_teach.random_head import check_head, create_head


def test_layers_are_fastais_without_the_pooling():
    head = create_head(512, 37)
    kinds = [type(layer).__name__ for layer in head]
    assert kinds == ['BatchNorm1d', 'Dropout', 'Linear', 'ReLU', 'BatchNorm1d', 'Dropout', 'Linear']
    assert (head[1].p, head[5].p) == (0.25, 0.5)
    assert head[2].weight.shape == (512, 512) and head[2].bias is None
    assert head[6].weight.shape == (37, 512)


def test_widths():
    assert [tuple(p.shape) for p in create_head(8, 3, hidden=()).parameters()] == [(3, 8), (3,)]
    linear = [m for m in create_head(8, 3, hidden=(6, 5), dropout=0.2) if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [(8, 6), (6, 5), (5, 3)]
    assert create_head(8, 3, hidden=(6, 5))(torch.randn(4, 8)).shape == (4, 3)


def test_random_weights_neither_blow_up_nor_vanish():
    torch.manual_seed(0)
    head = create_head(800, 1000, hidden=(500,))
    assert head[2].weight.std().item() == pytest.approx(math.sqrt(2 / 800), rel=0.02)
    assert head[2].weight.mean().item() == pytest.approx(0, abs=3e-4)
    features = torch.randn(256, 800)
    logits = head.eval()(features)
    assert logits.std() < 1, 'all classes are about as likely at first'
    loss = F.cross_entropy(logits, torch.randint(1000, (256,)))
    assert loss.item() == pytest.approx(math.log(1000), abs=0.1)


@pytest.mark.parametrize('n_classes, hidden, told', [
    (1, (), 'two classes or more, a whole number, not 1'), (2.0, (), r'not 2\.0'), (3, 512, 'hidden=512: .*widths'),
    (3, [5.5], 'widths')])
def test_numbers_that_make_no_head(n_classes, hidden, told):
    with pytest.raises(ValueError, match=told):
        create_head(8, n_classes, hidden)


def test_every_head_is_another_one_unless_seeded():
    assert not torch.equal(create_head(8, 3)[2].weight, create_head(8, 3)[2].weight)
    with seeded(3):
        one = create_head(8, 3)
    with seeded(3):
        two = create_head(8, 3)
    assert same_bits(state(one), state(two))


# A head of one's own

class Pair(nn.Module):
    def forward(self, x):
        return x, x


@pytest.mark.parametrize('head, told', [
    (nn.Linear(7, 3), '8'),                                         # takes other features
    (nn.Sequential(nn.BatchNorm1d(7), nn.Linear(7, 3)), '8'),
    (nn.Sequential(nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 3)), '8'), # wants maps, not features
    (nn.Sequential(nn.Unflatten(1, (8, 1)), nn.Conv2d(8, 3, 1)), '3'),
    (nn.Linear(8, 4), '4'),                                         # gives other logits
    (nn.Sequential(nn.Linear(8, 3), nn.Unflatten(1, (3, 1))), '3'),
    (Pair(), '3'),
])
def test_a_head_that_does_not_fit(head, told):
    with pytest.raises(ValueError, match='the head') as error:
        check_head(head, 8, 3)
    assert told in str(error.value)


@pytest.mark.parametrize('training', [True, False])
def test_checking_changes_nothing(training):
    head = create_head(8, 3).train(training)
    head[0].eval()  # as someone does who wants fixed statistics
    before, generator = state(head), torch.get_rng_state()
    check_head(head, 8, 3)
    assert same_bits(before, state(head)) and torch.equal(torch.get_rng_state(), generator)
    assert [m.training for m in head] == [False] + [training] * (len(head) - 1)
