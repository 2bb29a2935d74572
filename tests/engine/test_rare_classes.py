"Weights of classes, the loss made with them, and an order in which rare classes come more often."
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from conftest import Batches
from finetune_teach.engine.rare_classes import (
    balanced_weights, loss_options, loss_text, oversampled_order, weighted_loss)


class Dls:
    classes = ['cat', 'dog', 'fox']

    class train:
        labels = torch.tensor([0] * 6 + [1] * 3 + [2])


def test_balanced_weights_are_scikit_learns():
    utils = pytest.importorskip('sklearn.utils.class_weight')
    labels = Dls.train.labels
    expected = utils.compute_class_weight('balanced', classes=np.arange(3), y=labels.numpy())
    assert balanced_weights(labels, Dls.classes).tolist() == pytest.approx(expected)


def test_all_classes_count_the_same_in_sum():
    labels = Dls.train.labels
    loss = weighted_loss(Dls, 'balanced')
    shares = [loss.weight[k] * (labels == k).sum() for k in range(3)]
    assert torch.allclose(torch.stack(shares), torch.tensor(10 / 3))
    logits = torch.randn(10, 3)
    each = torch.stack([F.cross_entropy(logits[labels == k], labels[labels == k]) for k in range(3)])
    assert torch.allclose(loss(logits, labels), each.mean())


@pytest.mark.parametrize('weights', [[1, 2.5, 0], (1, 2.5, 0), torch.tensor([1, 2.5, 0])])
def test_a_list_of_weights_and_smoothing(weights):
    loss = weighted_loss(Dls, weights, 0.1)
    assert isinstance(loss, nn.CrossEntropyLoss)
    assert loss.weight.tolist() == [1, 2.5, 0] and loss.label_smoothing == 0.1
    assert loss_text(loss) == "weights ['1', '2.5', '0'], smoothing 0.1" and loss_text(F.cross_entropy) is None


@pytest.mark.parametrize('weights', ['balance', [1, 2], [1, 2, -1], [0, 0, 0], [1, 2, float('nan')], ['a', 'b', 'c'], 3, {}])
def test_weights_that_are_none(weights):
    with pytest.raises(ValueError, match='class_weights=.*3 numbers'):
        weighted_loss(Dls, weights)


@pytest.mark.parametrize('smoothing', [-0.1, 1, 1.5, float('nan'), '0.1'])
def test_smoothing_that_is_none(smoothing):
    with pytest.raises(ValueError, match='label_smoothing'):
        weighted_loss(Dls, None, smoothing)


def test_balanced_where_there_is_no_way_to_know():
    with pytest.raises(ValueError, match='no training picture of cow'):
        balanced_weights(Dls.train.labels, [*Dls.classes, 'cow'])
    class Lists(Batches):
        classes = ['a', 'b']
    with pytest.raises(ValueError, match='give a list'):
        weighted_loss(Lists([], []), 'balanced')


def test_a_learner_is_trained_with_them(make_learner):
    plain, weighted, smoothed = (make_learner(**options) for options in (
        {}, {'class_weights': [5.0] + [1.0] * 11}, {'label_smoothing': 0.2}))
    assert plain.loss_func is F.cross_entropy
    for learn in (plain, weighted, smoothed):
        learn.fit(1, 1e-2)
    assert len({learn.recorder.losses[0] for learn in (plain, weighted, smoothed)}) == 3
    assert weighted.validate().valid_loss == weighted.recorder.history[-1]['valid_loss']
    assert make_learner(class_weights='balanced').loss_func.weight.tolist() == [1] * 12
    for options in ({'class_weights': 'balanced'}, {'label_smoothing': 0.1}):
        with pytest.raises(ValueError, match='loss_func'):
            make_learner(loss_func=F.cross_entropy, **options)
    assert loss_options(None, None, 0.0, {'loss_func': 1}) == {'loss_func': 1}


def test_another_loss_is_another_training(make_learner, tmp_path):
    make_learner(label_smoothing=0.1, checkpoint=tmp_path / 'a').fit(1, 1e-3)
    with pytest.raises(ValueError, match='loss was weights None, smoothing 0.1, now it is weights None, smoothing 0.2'):
        make_learner(label_smoothing=0.2, checkpoint=tmp_path / 'a').fit(1, 1e-3)
    with pytest.raises(ValueError, match='now it is the default'):
        make_learner(checkpoint=tmp_path / 'a').fit(1, 1e-3)


# Oversampling

@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(0, 10**6))
def test_each_class_comes_equally_often_and_each_picture_up_to_one(labels, seed):
    labels = torch.tensor(labels)
    torch.manual_seed(seed)
    order = oversampled_order(labels)
    assert len(order) == len(labels)
    counts = labels[order].bincount()[labels.unique()]
    assert counts.max() - counts.min() <= 1
    for k in labels.unique():
        times = order.bincount(minlength=len(labels))[labels == k]
        assert times.max() - times.min() <= 1


def test_shares_and_chance():
    labels = torch.tensor([0] * 90 + [1] * 8 + [2] * 2)
    torch.manual_seed(0)
    order, other = (oversampled_order(labels, [1, 2, 1]) for _ in range(2))
    assert labels[order].bincount().tolist() == [25, 50, 25] and not order.equal(other)
    assert (labels[order].diff() != 0).sum() > 30, 'the classes are mixed'
    torch.manual_seed(0)
    assert oversampled_order(labels, [1, 2, 1]).equal(order)
    assert labels[oversampled_order(labels, [1, 0, 1])].bincount().tolist() == [50, 0, 50]
    odd = torch.tensor([0, 0, 0, 1, 1])
    assert {tuple(odd[oversampled_order(odd)].bincount().tolist()) for _ in range(50)} == {(2, 3), (3, 2)}


@pytest.mark.parametrize('shares', [[1], [0, 0], [1, -1], [1, float('inf')]])
def test_shares_that_are_none(shares):
    with pytest.raises(ValueError, match='shares=.*2 classes'):
        oversampled_order(torch.tensor([0, 1]), shares)
