"On a real GPU: what the lesson's lines do there. Skipped where there is none; see test_devices.py."
import copy

import pytest
import torch
from torch import nn

from conftest import same_bits
from finetune_teach.all import (
    drawn_pets, evaluate, freeze, load_learner, pick_lr, resnet18, vision_learner)
from finetune_teach.engine.training_steps import training_step
from finetune_teach.tools.previews import PreviewTrainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')


@pytest.fixture(scope='module')
def small_dls():
    return drawn_pets(n_train=8, n_valid=4, size=64)


@pytest.fixture
def learn(small_dls):
    return vision_learner(small_dls, resnet18, weights=None, seed=0, show=False, device='cuda')


def places(module):
    return {t.device.type for t in [*module.parameters(), *module.buffers()]}


@pytest.mark.parametrize('precision', ['fp32', 'bf16', 'auto'])
def test_the_lesson(small_dls, precision, tmp_path):
    learn = vision_learner(small_dls, resnet18, weights=None, seed=0, show=False, device='cuda', precision=precision)
    freeze(learn.model)
    body = copy.deepcopy(learn.model[0].state_dict())
    found = learn.lr_find(num_it=20)
    assert len(found.lrs) > 5
    learn.fit_one_cycle(2, 3e-3)
    assert all(tensor.equal(body[name]) for name, tensor in learn.model[0].state_dict().items()), 'frozen to the bit'
    learn.unfreeze()
    learn.lr_find(num_it=20)
    learn.fit_one_cycle(2, lr_max=slice(1e-4, 1e-3))
    assert places(learn.model) == {'cuda'} and len(learn.recorder.history) == 4
    learn.validate()
    answers = learn.predict(small_dls.valid.pictures[:8])
    learn.export(tmp_path / 'pets.safetensors')
    other = load_learner(tmp_path / 'pets.safetensors', device='cpu')
    wanted = other.predict(small_dls.valid.pictures[:8])
    assert answers.probabilities.cpu() == pytest.approx(wanted.probabilities, abs=0.05)
    evaluate(learn, show=False)


def test_the_head_alone_costs_no_pass_of_the_body(learn, small_dls):
    calls = []
    freeze(learn.model)
    handle = learn.model[0].register_forward_hook(lambda *a: calls.append(1))
    learn.fit_one_cycle(3, 1e-3)
    handle.remove()
    first = len(calls)
    learn.fit_one_cycle(3, 1e-3)
    assert len(calls) == first, 'features are kept'


def test_losses_metrics_and_steps(small_dls):
    weights = torch.arange(1., 13.)
    learn = vision_learner(small_dls, resnet18, weights=None, seed=0, show=False, device='cuda',
                           loss_func=nn.CrossEntropyLoss(weights, label_smoothing=0.1),
                           step=training_step(clip=1.0, accumulate=2))
    learn.fine_tune(1)
    assert len(learn.recorder.history) == 2


def test_previews_and_picker(learn):
    before = copy.deepcopy(learn.model.state_dict())
    picker = pick_lr(learn, num_it=12, epochs=1)
    picker.preview(1e-2)
    learn.unfreeze()
    trainer = PreviewTrainer(learn.model, learn.dls, epochs=1, seed=0)
    *_, run = trainer.train(1e-3)
    assert run.recorder.history and picker.page()
    assert all(tensor.equal(before[name]) for name, tensor in learn.model.state_dict().items())


def test_a_stop_leaves_the_model_as_before_the_step(learn):
    class Stop(Exception):
        pass
    seen = []
    def step(model, x, y, optimizer, loss_func):
        seen.append(copy.deepcopy(learn.model.state_dict()))
        loss_func(model(x), y).backward()
        if len(seen) == 3:
            raise Stop
        optimizer.step()
        return 0.0
    learn.unfreeze()
    learn.step = step
    with pytest.raises(Stop):
        learn.fit(1, 1e-3)
    assert same_bits(seen[-1], learn.model.state_dict())


def test_too_little_memory_is_told_and_nothing_is_lost(learn):
    learn.unfreeze()
    before = copy.deepcopy(learn.model.state_dict())
    torch.cuda.set_per_process_memory_fraction(0.004)
    try:
        with pytest.raises((RuntimeError, MemoryError)):
            learn.dls = drawn_pets(n_train=20, n_valid=2, size=224, batch_size=240)
            learn.fit(1, 1e-3)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert all(tensor.equal(before[name]) for name, tensor in learn.model.state_dict().items())
