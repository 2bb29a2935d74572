"Metrics: any callable, each with a name of its own."
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from finetune_teach.engine.metrics import NOT_METRICS, compute_metrics, metric_names
from finetune_teach.training_loop import accuracy

LOGITS, TARGETS = torch.tensor([[0.1, 0.9], [2.0, 1.0], [0.0, 3.0], [1.0, 0.0]]), torch.tensor([1, 0, 0, 1])


class Largest:
    "A metric that is an object, and gives a tensor."
    def __call__(self, logits, targets):
        return logits.max()


def top(logits, targets, k):
    return (logits.topk(k).indices == targets[:, None]).any(1).float().mean()


def test_any_callable_is_a_metric():
    metrics = [accuracy, Largest(), partial(top, k=2), lambda logits, targets: np.float64(2), nn.CrossEntropyLoss()]
    loss, *values = compute_metrics(LOGITS, TARGETS, F.cross_entropy, metrics)
    assert values == [0.5, 3.0, 1.0, 2.0, loss] and all(type(v) is float for v in values)
    assert metric_names(metrics) == ['accuracy', 'Largest', 'partial', '<lambda>', 'CrossEntropyLoss']


def my_metric(logits, targets):
    return logits.no_such_thing


@pytest.mark.parametrize('metric, told', [
    (my_metric, r'the metric my_metric failed on logits \(4, 2\) and labels \(4,\): AttributeError: .*no_such_thing.*'
                'returns one number'),
    (lambda logits, targets: 'both', "could not convert string to float: 'both'"),
    (lambda logits, targets: logits, 'lambda')])
def test_a_metric_that_fails_is_named(metric, told):
    with pytest.raises(ValueError, match=told):
        compute_metrics(LOGITS, TARGETS, F.cross_entropy, [accuracy, metric])


@given(st.lists(st.sampled_from(['f', 'f_2', 'f_3', 'f_2_2', 'g', 'g_2', 'time', 'valid_loss']), max_size=7))
def test_each_metric_has_a_name_of_its_own(names):
    def named(name):
        function = lambda logits, targets: 0.0
        function.__name__ = name
        return function
    found = metric_names([named(name) for name in names])
    assert len({*found, *NOT_METRICS}) == len(names) + len(NOT_METRICS), found
    assert all(a.startswith(b) for a, b in zip(found, names, strict=True))
