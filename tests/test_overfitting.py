"Best epochs and callbacks, confidence against accuracy, confident mistakes, and their plots."
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conftest import assert_unchanged, changed, everything, same_bits, small_network, state
from finetune_teach.engine.calibration import calibration, confidences, plot_calibration
from finetune_teach.engine.history import Phase, Recorder
from finetune_teach.engine.metrics import auc, balanced_accuracy, f1_macro, top_k_accuracy
from finetune_teach.engine.mistakes import mistakes_in, top_mistakes
from finetune_teach.engine.plots import COLOURS
from finetune_teach.overfitting import EarlyStopping, KeepBest, best_epoch, plot_loss_and_metric
from finetune_teach.tools.learners import load_learner
from finetune_teach.training_loop import accuracy, error_rate, get_logits


@pytest.fixture
def recorder():
    "One frozen and three unfrozen epochs; the loss is lowest early, the error late."
    columns = dict(train_loss=[2., 1., .5, .2], valid_loss=[1.5, 1.2, 1.4, 1.9],
                   error_rate=[.6, .5, .4, .4], accuracy=[.4, .5, .6, .6])
    rows = [{'phase': 'frozen' if i == 0 else 'unfrozen', 'epoch': max(i - 1, 0), 'position': i + 1.,
             **{name: values[i] for name, values in columns.items()}, 'time': 1.} for i in range(4)]
    return Recorder(history=rows, phases=[Phase('frozen', 0.), Phase('unfrozen', 1.)],
                    modes={'error_rate': 'min', 'accuracy': 'max'})


def sure(predicted, confidence, n_classes=4):
    "Logits of answers given with a certain confidence; the rest is shared by the other classes."
    probabilities = torch.full((len(predicted), n_classes), 0.)
    for row, k, c in zip(probabilities, predicted, confidence):
        row[:] = (1 - c) / (n_classes - 1)
        row[k] = c
    return probabilities.log()


# Best epoch

@pytest.mark.parametrize('key, mode, expected', [
    ('valid_loss', None, 1), ('train_loss', None, 3), ('error_rate', None, 2), ('error_rate', 'max', 0),
    ('accuracy', None, 2), ('accuracy', 'min', 0), ('time', None, 0)])
def test_best_epoch_is_a_place_in_the_history_and_the_first_of_equals(recorder, key, mode, expected):
    assert best_epoch(recorder, key, mode) == expected


@pytest.mark.parametrize('mode', [None, 'highest', False])
def test_which_way_is_good_is_never_assumed(recorder, mode):
    for row in recorder.history:
        row['f1'] = row['accuracy']
    for ask in (best_epoch, plot_loss_and_metric):
        with pytest.raises(ValueError, match="'f1'.*mode='max'.*metric.higher_is_better = True"):
            ask(recorder, 'f1', mode=mode)
    assert best_epoch(recorder, 'f1', 'max') == 2 and best_epoch(recorder, 'f1', 'min') == 0


def test_best_epoch_leaves_out_epochs_without_a_value(recorder):
    recorder.history[2]['error_rate'] = math.nan
    del recorder.history[3]['error_rate']
    assert best_epoch(recorder, 'error_rate') == 1
    recorder.history[0]['accuracy'], recorder.history[1]['accuracy'] = math.nan, math.inf
    del recorder.history[2]['accuracy']
    assert best_epoch(recorder, 'accuracy') == 3


@pytest.mark.parametrize('key', ['eror_rate', 'phase'])
def test_best_epoch_names_the_columns_there_are(recorder, key):
    with pytest.raises(ValueError, match='error_rate.*valid_loss'):
        best_epoch(recorder, key)


def test_best_epoch_where_nothing_was_a_number(recorder):
    for row in recorder.history:
        row['valid_loss'] = math.nan
    with pytest.raises(ValueError, match="'valid_loss' was not a finite number"):
        best_epoch(recorder)


def test_best_epoch_before_any_training():
    with pytest.raises(ValueError, match='no epochs yet'):
        best_epoch(Recorder())


# Callbacks: keep the best, stop early

def watch(callback, losses, key='valid_loss', first=0):
    "What a callback says of a made-up run with these values in `key`; `first` is its first epoch's number."
    recorder, model, said = Recorder(modes={'accuracy': 'max'}), nn.Linear(1, 1), []
    for i, value in enumerate(losses):
        recorder.history.append({'phase': 'frozen', 'epoch': first + i, 'position': i + 1., key: value})
        nn.init.constant_(model.weight, i)
        said.append(callback(model, recorder))
    return said, model


@pytest.mark.parametrize('key, mode, values, expected', [
    ('valid_loss', None, [3, 1, 2, 1], 1), ('accuracy', None, [.1, .5, .4, .5], 1), ('f1', 'max', [.1, .2, .6], 2),
    ('f1', 'min', [.1, .2, .6], 0), ('valid_loss', None, [math.nan, 2, math.nan, math.inf], 1)])
def test_keep_best_restores_the_weights_of_the_best_epoch(key, mode, values, expected):
    keep = KeepBest(key, mode)
    said, model = watch(keep, [float(v) for v in values], key)
    assert not any(said), 'it never stops a run'
    assert keep.epoch == expected and keep.restore(model) is model and model.weight.item() == expected


def test_keep_best_of_another_run_begins_anew():
    keep = KeepBest()
    watch(keep, [.1, .2])
    _, model = watch(keep, [3., 2.5, 2.8])
    assert keep.epoch == 1 and keep.restore(model).weight.item() == 1


def test_keep_best_that_has_seen_nothing():
    with pytest.raises(ValueError, match="'valid_loss' was seen"):
        KeepBest().restore(nn.Linear(1, 1))
    keep = KeepBest()
    _, model = watch(keep, [math.nan])
    with pytest.raises(ValueError, match='train with'):
        keep.restore(model)


def test_keep_best_goes_on_from_a_checkpoint():
    "Of equal epochs the first is kept, also if a stop lies between them."
    model, recorder = nn.Linear(1, 1), Recorder([{'valid_loss': 1 / 3}])
    first, second = KeepBest(), KeepBest()
    first(model, recorder)
    second.load_state_dict(first.state_dict())
    recorder.history.append({'valid_loss': 1 / 3})
    nn.init.zeros_(model.weight)
    second(model, recorder)
    assert second.epoch == first.epoch == 0 and second.cost == first.cost
    assert second.restore(model).weight.item() == first.weights['weight'].item() != 0
    fresh = KeepBest()
    fresh.load_state_dict(KeepBest().state_dict())
    assert fresh.epoch is None and fresh.weights is None and fresh.cost == math.inf


@pytest.mark.parametrize('kept', [True, False])
@pytest.mark.parametrize('callback, told', [
    (KeepBest('acuracy'), "'acuracy'.*error_rate.*valid_loss"), (EarlyStopping('acuracy'), "'acuracy'.*valid_loss"),
    (KeepBest('level'), "'level'.*mode='max'"), (EarlyStopping('level'), "'level'.*mode='max'"),
    (EarlyStopping('level', mode='up'), "'level', mode='up'")])
def test_callbacks_complain_before_any_training(make_learner, tmp_path, callback, told, kept):
    def level(logits, targets):
        return 1.0
    learn = make_learner(metrics=[error_rate, level], checkpoint=tmp_path / 'run' if kept else None)
    before = everything(learn.model, learn.optimizer)
    with pytest.raises(ValueError, match=told):
        learn.fit(1, callbacks=[callback])
    assert_unchanged(before, everything(learn.model, learn.optimizer))
    assert not learn.recorder.steps and not learn.recorder.history and not [*tmp_path.iterdir()]
    learn.fit(1, 1e-3, callbacks=[KeepBest('level', mode='max')])
    assert len(learn.recorder.history) == 1


@pytest.mark.parametrize('metric', [f1_macro, auc, balanced_accuracy, top_k_accuracy(2), accuracy, error_rate])
def test_keep_best_and_early_stopping_know_the_built_in_metrics(make_learner, metric):
    learn, states, name = make_learner(metrics=[metric, metric]), [], metric.__name__ + '_2'
    keep, stop = KeepBest(name), EarlyStopping(name, patience=4)
    learn.unfreeze()
    learn.fit(8, 5e-2, callbacks=[keep, stop, lambda model, recorder: states.append(state(model))])
    values = [row[name] for row in learn.recorder.history]
    best = values.index((min if metric is error_rate else max)(values))
    assert len(set(values)) > 1 and best_epoch(learn.recorder, name) == keep.epoch == best
    assert same_bits(keep.weights, states[best]) and len(values) == min(8, best + 5)
    star = stars(plot_loss_and_metric(learn.recorder, name)[1])
    assert star == [(best + 1, values[best])]


def test_before_fit_is_called_once_with_a_checkpoint_and_without(make_learner, tmp_path):
    class Notes:
        def __init__(self):
            self.seen = []

        def before_fit(self, model, recorder):
            self.seen.append((len(recorder.history), recorder.columns))

        def __call__(self, model, recorder):
            self.seen.append(len(recorder.history))

    columns = ['train_loss', 'valid_loss', 'error_rate', 'time']
    for checkpoint in (None, tmp_path / 'run'):
        notes, learn = Notes(), make_learner(checkpoint=checkpoint)
        learn.fit(2, 1e-3, callbacks=[notes])
        learn.fit(1, 1e-3, callbacks=notes)
        assert notes.seen == [(0, columns), 1, 2, (2, columns), 3]


def test_a_loaded_learner_knows_which_way_is_good(make_learner, tmp_path):
    learn = make_learner(metrics=[accuracy, lambda logits, targets: 1.0])
    learn.fit(2, 1e-2)
    loaded = load_learner(learn.save(tmp_path / 'a'), small_network(), device='cpu')
    assert best_epoch(loaded.recorder, 'accuracy') == best_epoch(learn.recorder, 'accuracy')
    with pytest.raises(ValueError, match="'<lambda>'.*mode='max'"):
        best_epoch(loaded.recorder, '<lambda>')


def test_keep_best_restores_to_the_bit_and_nothing_else(make_learner):
    learn, states = make_learner(), []
    learn.unfreeze()
    keep = KeepBest('train_loss', mode='max')
    learn.fit(3, 1e-2, callbacks=[keep, lambda model, recorder: states.append(state(model))])
    assert keep.epoch < 2 and not same_bits(state(learn.model), states[keep.epoch])
    assert changed(states[0], states[2]) >= {n for n in states[0] if 'running_mean' in n}
    learn.freeze()
    before, history = everything(learn.model, learn.optimizer), list(learn.recorder.history)
    keep.restore(learn.model)
    after = everything(learn.model, learn.optimizer)
    assert same_bits(after['state'], states[keep.epoch]), 'with the statistics of batch norm'
    assert_unchanged({**before, 'state': after['state']}, after)
    assert learn.recorder.history == history


@pytest.mark.parametrize('losses, patience, mode, stops_after', [
    ([5, 4, 3, 4, 4, 4, 1], 3, None, 5), ([5, 4, 4], 1, None, 2), ([5, 4, 4.5, 3, 2], 2, None, None),
    ([5, math.nan, math.nan, 4, 3], 2, None, 2), ([math.nan, 5, 6, 4], 2, None, None), ([1, 2, 3], 2, 'max', None),
    ([math.nan, math.nan, math.nan], 2, None, 2)])
def test_early_stopping_stops_at_the_right_epoch(losses, patience, mode, stops_after):
    said, _ = watch(EarlyStopping(patience=patience, mode=mode), [float(v) for v in losses])
    assert (said.index(True) if True in said else None) == stops_after


@pytest.mark.parametrize('patience', [0, -1, 1.5, None])
def test_patience_is_a_whole_number(patience):
    with pytest.raises(ValueError, match='patience'):
        EarlyStopping(patience=patience)


def test_a_stopped_run_is_the_beginning_of_the_whole_one(make_learner):
    metrics = [error_rate, accuracy]
    whole, stopped = make_learner(metrics=metrics), make_learner(metrics=metrics)
    whole.fit(6, 1e-2)
    stop = EarlyStopping('train_loss', patience=2, mode='max') # falls, so it stops after the third epoch
    stopped.fit(6, 1e-2, callbacks=[KeepBest('accuracy'), stop])
    assert len(stopped.recorder.history) == 3 and stopped.recorder.losses == whole.recorder.losses[:len(stopped.recorder.losses)]
    whole = make_learner(metrics=metrics)
    whole.fit(3, 1e-2)
    assert_unchanged(everything(whole.model, whole.optimizer), everything(stopped.model, stopped.optimizer))


def test_early_stopping_counts_in_each_phase_anew(make_learner):
    def level(logits, targets):
        return 1.0
    learn = make_learner(metrics=level)
    learn.fine_tune(4, freeze_epochs=4, callbacks=[EarlyStopping('level', patience=1, mode='min')])
    assert [(r['phase'], r['epoch']) for r in learn.recorder.history] == [
        ('frozen', 0), ('frozen', 1), ('unfrozen', 0), ('unfrozen', 1)]


# The plot of losses and metric

def test_plot_has_each_line_where_it_was_measured(recorder):
    left, right = plot_loss_and_metric(recorder)
    lines = {line.get_label(): line for ax in (left, right) for line in ax.lines}
    assert list(lines['train_loss'].get_xdata()) == [.5, 1.5, 2.5, 3.5], 'an average over its epoch'
    assert list(lines['valid_loss'].get_xdata()) == [1, 2, 3, 4], 'measured at its end'
    assert list(lines['valid_loss'].get_ydata()) == [1.5, 1.2, 1.4, 1.9]
    assert lines['error_rate'] in list(right.lines) and list(lines['error_rate'].get_ydata())[-1] == .4
    assert 'loss' in left.get_ylabel() and 'error_rate' in right.get_ylabel() and left.get_xlabel() == 'epochs'


def stars(ax):
    return [(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines if line.get_marker() == '*']


def test_stars_mark_the_best_epochs(recorder):
    left, right = plot_loss_and_metric(recorder)
    assert stars(left) == [(2, 1.2)] and stars(right) == [(3, .4)]
    assert stars(plot_loss_and_metric(recorder, 'accuracy')[1]) == [(3, .6)]


# Confidence and calibration

def test_confidences_are_the_largest_probabilities():
    assert torch.allclose(confidences(sure([0, 3], [.7, .4])), torch.tensor([.7, .4]))
    assert torch.allclose(confidences(torch.zeros(2, 5)), torch.tensor(.2))
    assert confidences(torch.zeros(1, 3, dtype=torch.half)).dtype == torch.float32


def test_calibration_against_a_plain_loop():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(500, 7, generator=generator)
    targets = torch.randint(7, (500,), generator=generator)
    confidence, predicted = F.softmax(logits, 1).max(1)
    error = 0
    for k in range(15): # Guo et al. 2017, equation 3
        inside = (confidence > k / 15) & (confidence <= (k + 1) / 15)
        if inside.any():
            accuracy = (predicted == targets)[inside].float().mean()
            error += inside.sum() / 500 * (accuracy - confidence[inside].mean()).abs()
    result = calibration(logits, targets, bins=15)
    assert math.isclose(result.error, error.item(), rel_tol=1e-4)
    assert sum(b.count for b in result.bins) == 500


def test_certainty_of_one_is_in_the_last_bin():
    result = calibration(torch.tensor([[1000., 0.]]), torch.tensor([0]))
    assert [(b.low, b.high, b.count) for b in result.bins] == [(.9, 1, 1)] and result.error == 0


@pytest.mark.parametrize('logits, targets', [
    (torch.zeros(3), torch.zeros(3)), (torch.zeros(3, 2), torch.zeros(2)), (torch.zeros(0, 2), torch.zeros(0)),
    (torch.zeros(3, 1), torch.zeros(3)), (torch.full((1, 2), math.nan), torch.zeros(1))])
@pytest.mark.parametrize('function', [calibration, top_mistakes, plot_calibration])
def test_bad_logits_are_refused(function, logits, targets):
    with pytest.raises(ValueError, match='logits'):
        function(logits, targets.long())


def test_no_bins_are_refused():
    with pytest.raises(ValueError, match='bins=0'):
        calibration(torch.zeros(2, 2), torch.zeros(2).long(), bins=0)


def test_two_calibrations_on_one_picture():
    logits, targets = sure([0, 1], [.9, .6]), torch.tensor([0, 0])
    ax = plot_calibration(logits, targets, label='early')
    assert plot_calibration(logits / 2, targets, ax=ax, label='late') is ax
    diagonal, early, late = ax.lines
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == [0, 1]
    assert (early.get_color(), late.get_color()) == tuple(COLOURS[:2])
    assert early.get_label().startswith('early') and sorted(early.get_ydata()) == [0, 1]


# Mistakes

def test_top_mistakes_are_wrong_and_the_most_confident_first():
    logits = sure([0, 1, 2, 3, 0], [.6, .9, .8, .99, .7])
    found = top_mistakes(logits, torch.tensor([1, 1, 3, 0, 2]))
    assert [m.place for m in found] == [3, 2, 4, 0]
    assert (found[0].predicted, found[0].actual) == (3, 0) and math.isclose(found[0].confidence, .99, rel_tol=1e-5)
    assert top_mistakes(logits, torch.tensor([1, 1, 3, 0, 2]), n=2) == found[:2]


def test_mistakes_of_recorded_answers_are_those_of_the_logits(make_learner):
    trained = make_learner()
    trained.fit(1, 1e-2)
    logits, targets = get_logits(trained.model, trained.dls.valid)
    recorded, fresh = mistakes_in(trained.recorder.answers[-1], 5), top_mistakes(logits, targets, 5)
    assert [m[:3] for m in recorded] == [m[:3] for m in fresh] and len(recorded) == 5
