"Callbacks: what is called when, also where training ends otherwise than planned."
import signal
from types import SimpleNamespace

import pytest
import torch

from conftest import same_bits, state, toy_twin
from finetune_teach.engine.history import Recorder
from finetune_teach.training_loop import constant, fit, fit_steps


class Notes:
    "Writes down what it hears of."
    def __init__(self, stop_after=99):
        self.heard, self.stop_after, self.error = [], stop_after, 'not told'

    def before_fit(self, model, recorder):
        self.heard.append('before')

    def after_step(self, model, recorder):
        assert model[1].weight.grad is not None, 'gradients are still there'
        self.heard.append(len(recorder.steps))

    def __call__(self, model, recorder):
        self.heard.append('epoch')
        return len(recorder.history) == self.stop_after

    def after_fit(self, model, recorder, error):
        self.heard.append('after')
        self.error = error


class NoMore(Notes):
    def after_step(self, model, recorder):
        raise OSError('the disk is full')


class Objects(Notes):
    def before_fit(self, model, recorder):
        raise ValueError('not with me')


def train(model, dls, callbacks, epochs=2, **options):
    return fit(model, dls, epochs, constant(epochs * len(dls.train), 0.01), show=False, callbacks=callbacks, **options)


def test_what_is_called_and_when(toy, batches):
    notes, twin = Notes(), toy_twin()
    train(toy, batches, [notes], seed=0)
    assert notes.heard == ['before', 1, 2, 3, 'epoch', 4, 5, 6, 'epoch', 'after'] and notes.error is None
    train(twin, batches, [], seed=0)
    assert same_bits(state(toy), state(twin)), 'listening changes nothing'


def test_each_is_asked_and_one_is_enough_to_stop(toy, batches):
    stops, other, steps_only = Notes(stop_after=1), Notes(), SimpleNamespace(after_step=lambda model, recorder: True)
    recorder = train(toy, batches, [stops, other, steps_only], epochs=5)
    assert len(recorder.history) == 1 and stops.heard == other.heard and stops.error is other.error is None


def test_an_error_in_one_ends_all(toy, batches):
    first, last = Notes(), Notes()
    with pytest.raises(OSError):
        train(toy, batches, [first, NoMore(), last])
    assert first.heard == ['before', 1, 'after'] and last.heard == ['before', 'after']
    assert isinstance(first.error, OSError) and first.error is last.error


def test_what_did_not_begin_is_not_ended(toy, batches):
    first, objects, last = Notes(), Objects(), Notes()
    recorder = Recorder()
    with pytest.raises(ValueError, match='not with me'):
        train(toy, batches, [first, objects, last], recorder=recorder)
    assert first.heard == ['before', 'after'] and objects.heard == last.heard == [] and not recorder.phases


def test_after_fit_is_called_where_another_one_fails(toy, batches):
    def fails(model, recorder, error):
        raise OSError('cannot be closed')
    first = Notes()
    with pytest.raises(OSError, match='closed'):
        train(toy, batches, [first, SimpleNamespace(after_fit=fails)])
    assert first.heard[-1] == 'after'


def test_whoever_drives_the_loop_may_leave_it(toy, batches):
    notes = Notes()
    steps = fit_steps(toy, batches, 2, constant(6, 0.01), show=False, callbacks=[notes])
    next(steps)
    steps.close()
    assert notes.heard == ['before', 1, 'after'] and isinstance(notes.error, GeneratorExit)


def test_ctrl_c_is_an_end_too(toy, batches):
    def press(model, recorder):
        signal.raise_signal(signal.SIGINT)
    notes = Notes()
    with pytest.raises(KeyboardInterrupt):
        train(toy, batches, [notes, SimpleNamespace(after_step=press)])
    assert notes.heard == ['before', 1, 'after'] and isinstance(notes.error, GeneratorExit)


@pytest.mark.parametrize('checkpoint', [False, True])
def test_a_learner_and_its_checkpoint_pass_all_on(make_learner, tmp_path, checkpoint):
    learn, notes = make_learner(checkpoint=tmp_path / 'run' if checkpoint else None), SimpleNamespace(heard=[])
    notes.before_fit = lambda model, recorder: notes.heard.append('before')
    notes.after_fit = lambda model, recorder, error: notes.heard.append(error)
    learn.fine_tune(1, callbacks=[notes])
    assert notes.heard == ['before', None, 'before', None], 'two phases'
    with pytest.raises(OSError) as caught:
        learn.fit(1, 1e-3, callbacks=[notes, NoMore()])
    assert notes.heard[4:] == ['before', caught.value]
    assert torch.isfinite(torch.tensor(learn.recorder.losses)).all()
