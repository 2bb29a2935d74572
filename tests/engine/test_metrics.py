"Metrics: any callable, each with a name of its own."
import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from finetune_teach.engine.metrics import (
    NOT_METRICS, auc, balanced_accuracy, compute_metrics, f1_macro, from_sklearn, metric_mode, metric_modes,
    metric_names, says_mode, top_k_accuracy)
from finetune_teach.training_loop import accuracy, error_rate

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
    assert metric_names(metrics) == ['accuracy', 'Largest', 'top', '<lambda>', 'CrossEntropyLoss']


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


# Which way is good

def test_a_metric_says_which_way_is_good():
    class Good(nn.Module):
        higher_is_better = True

        def forward(self, logits, targets):
            return logits.mean()

    class Says:
        def __init__(self, said):
            self.higher_is_better = said

        def measure(self, logits, targets):
            return 0.0

    said = partial(top, k=2)
    said.higher_is_better = False
    metrics = {accuracy: 'max', error_rate: 'min', top_k_accuracy(2): 'max', f1_macro: 'max', balanced_accuracy: 'max',
               auc: 'max', partial(partial(auc)): 'max', partial(Good()): 'max', Good(): 'max', said: 'min',
               Says(np.False_): 'min', Says(None): None, top: None, partial(top, k=2): None, Largest(): None}
    assert [metric_mode(metric) for metric in metrics] == list(metrics.values())
    assert metric_modes([accuracy, top, accuracy]) == {'accuracy': 'max', 'top': None, 'accuracy_2': 'max'}
    assert metric_modes([says_mode('min')(lambda logits, targets: 0.0)]) == {'<lambda>': 'min'}


# The built-in ones against scikit-learn

@st.composite
def answers(draw):
    "Logits with ties, for 2 to 5 classes of which some may have no picture."
    n_classes, n = draw(st.integers(2, 5)), draw(st.integers(2, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    logits = torch.randint(-2, 3, (n, n_classes), generator=generator).float()
    return logits, torch.randint(draw(st.integers(1, n_classes)), (n,), generator=generator)


@pytest.mark.filterwarnings('ignore:y_pred contains classes not in y_true', 'ignore:.*single label')
@given(answers())
def test_built_in_metrics_are_scikit_learns(both):
    sklearn = pytest.importorskip('sklearn.metrics')
    logits, targets = both
    predicted, n_classes = logits.argmax(1), logits.shape[1]
    for ours, theirs in [(accuracy, sklearn.accuracy_score), (balanced_accuracy, sklearn.balanced_accuracy_score),
                         (f1_macro, partial(sklearn.f1_score, average='macro'))]:
        assert ours(logits, targets) == pytest.approx(theirs(targets.numpy(), predicted.numpy()), abs=1e-6)
    scores = logits.double().softmax(1)
    classes = [1] if n_classes == 2 else range(n_classes)
    areas = [sklearn.roc_auc_score((targets == k).numpy(), scores[:, k].numpy()) for k in classes
             if len((targets == k).unique()) == 2]
    assert auc(logits, targets) == pytest.approx(np.mean(areas) if areas else np.nan, nan_ok=True)


def test_auc_and_top_k_are_scikit_learns_own():
    sklearn = pytest.importorskip('sklearn.metrics')
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(60, 4, generator=generator), torch.arange(60) % 4
    scores = logits.double().softmax(1).numpy()
    assert auc(logits, targets) == pytest.approx(sklearn.roc_auc_score(targets, scores, multi_class='ovr'))
    assert top_k_accuracy(2)(logits, targets) == pytest.approx(sklearn.top_k_accuracy_score(targets, scores, k=2))


def test_auc_without_numbers_or_without_two_classes_is_no_number():
    assert math.isnan(auc(torch.full((4, 2), math.nan), TARGETS))
    assert math.isnan(auc(torch.eye(3), torch.zeros(3).long()))
    assert auc(torch.tensor([[0.0, 1e4], [1e4, 0.0]]), torch.tensor([1, 0])) == 1
    assert auc(torch.zeros(4, 2), TARGETS) == auc(torch.zeros(4, 3), TARGETS) == 0.5


def test_top_k_of_equal_logits_is_no_more_than_chance():
    logits, targets = torch.zeros(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    assert top_k_accuracy(1)(logits, targets) == pytest.approx(accuracy(logits, targets)) == pytest.approx(1 / 3)
    assert top_k_accuracy(3)(logits, targets) == 1 and top_k_accuracy(3).__name__ == 'top_3_accuracy'
    with pytest.raises(ValueError, match='top_4_accuracy.*3 classes.*k=4'):
        compute_metrics(logits, targets, F.cross_entropy, [top_k_accuracy(4)])


# Of other packages

def test_functions_of_scikit_learn_are_metrics():
    sklearn = pytest.importorskip('sklearn.metrics')
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(60, 3, generator=generator), torch.arange(60) % 3
    logits[range(60), targets] += 1
    scores, predicted = logits.double().softmax(1).numpy(), logits.argmax(1).numpy()
    for metric, mode, expected in [
            (from_sklearn(sklearn.f1_score, average='macro'), 'max', f1_macro(logits, targets)),
            (from_sklearn(sklearn.roc_auc_score, multi_class='ovr'), 'max', auc(logits, targets)),
            (from_sklearn(sklearn.log_loss), 'min', F.cross_entropy(logits, targets).item()),
            (from_sklearn(sklearn.zero_one_loss), 'min', error_rate(logits, targets)),
            (from_sklearn(sklearn.matthews_corrcoef, mode='max', name='mcc'), 'max',
             sklearn.matthews_corrcoef(targets, predicted)),
            (from_sklearn(sklearn.matthews_corrcoef), None, sklearn.matthews_corrcoef(targets, predicted)),
            (from_sklearn(sklearn.top_k_accuracy_score, scores=True, k=2), 'max',
             sklearn.top_k_accuracy_score(targets, scores, k=2))]:
        _, value = compute_metrics(logits, targets, F.cross_entropy, [metric])
        assert value == pytest.approx(expected, abs=1e-6) and metric_mode(metric) == mode, metric.__name__
    assert from_sklearn(sklearn.matthews_corrcoef, name='mcc').__name__ == 'mcc'
    assert from_sklearn(sklearn.f1_score, average='macro').__name__ == 'f1_score'
    two = from_sklearn(sklearn.roc_auc_score)(logits[:, :2], (targets > 0).long())
    assert two == pytest.approx(auc(logits[:, :2], (targets > 0).long()))


def test_an_own_function_of_that_kind_has_to_say_what_it_wants():
    def agreement(y_true, answers):
        return (y_true == answers).mean()
    with pytest.raises(ValueError, match='agreement.*scores=True'):
        from_sklearn(agreement)
    metric = from_sklearn(agreement, scores=False)
    assert metric(LOGITS, TARGETS) == 0.5 and metric_mode(metric) is None, 'its name is not by their rule'
    with pytest.raises(ValueError, match="mode='high'"):
        from_sklearn(agreement, scores=False, mode='high')


def test_torchmetrics_are_metrics_and_nothing_leaks_from_epoch_to_epoch():
    pytest.importorskip('torchmetrics')
    from torchmetrics.classification import MulticlassAUROC, MulticlassF1Score
    from torchmetrics.functional.classification import multiclass_accuracy
    generator = torch.Generator().manual_seed(0)
    metrics = [MulticlassF1Score(num_classes=3), MulticlassAUROC(num_classes=3),
               partial(multiclass_accuracy, num_classes=3, average='micro')]
    assert metric_modes(metrics) == {'MulticlassF1Score': 'max', 'MulticlassAUROC': 'max', 'multiclass_accuracy': None}
    for _ in range(3):
        logits, targets = torch.randn(30, 3, generator=generator), torch.arange(30) % 3
        _, *values = compute_metrics(logits, targets, F.cross_entropy, metrics)
        assert values == pytest.approx([f1_macro(logits, targets), auc(logits, targets), accuracy(logits, targets)])
        assert metrics[0].update_count == 0 and not metrics[1].preds


# On the model's device

class Notes(nn.Module):
    "A loss or metric with a buffer that knows where it was asked; its answer lies on the CPU."
    def __init__(self):
        super().__init__()
        self.register_buffer('weight', torch.ones(2))
        self.seen = []

    def forward(self, logits, targets):
        self.seen.append({logits.device.type, targets.device.type, self.weight.device.type})
        return torch.tensor(1.0)


def test_loss_and_metrics_are_computed_on_the_device():
    loss, metric, inside = Notes(), Notes(), Notes()
    compute_metrics(LOGITS, TARGETS, loss, [metric, partial(inside)], torch.device('meta'))
    assert loss.seen == metric.seen == inside.seen == [{'meta'}]
    compute_metrics(LOGITS, TARGETS, F.cross_entropy, [Notes()])
