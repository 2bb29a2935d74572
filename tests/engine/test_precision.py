"A body that computes with fewer bits; weights, head and loss keep theirs."
import pytest
import torch
from torch import nn

from conftest import small_network
from finetune_teach.engine.precision import has_bf16, with_precision
from finetune_teach.tools.learners import load_learner


def test_sixteen_bits_train_as_well(make_learner, tmp_path):
    "The same seed, every way of counting: other numbers, but nearly the same loss."
    losses = {}
    for kind in ('fp32', 'bf16'):
        learn = make_learner(precision=kind)
        learn.fine_tune(2)
        losses[kind] = learn.recorder.history[-1]['valid_loss']
        assert all(p.dtype == torch.float32 for p in learn.model.parameters())
        assert learn.validate().valid_loss == pytest.approx(losses[kind], rel=1e-5), 'frozen or not'
    assert losses['bf16'] != losses['fp32'] and losses['bf16'] == pytest.approx(losses['fp32'], rel=.05)
    again = load_learner(learn.save(tmp_path / 'bf16'), arch=small_network(), device='cpu')
    picture = learn.dls.valid.pictures[0]
    one, two = learn.predict(picture), again.predict(picture)
    assert again.precision == 'bf16' and torch.equal(one.probabilities, two.probabilities)
    assert one.probabilities.dtype == torch.float32


def test_a_view_shares_everything_and_adds_nothing(make_learner):
    model, x = make_learner().model.eval(), torch.randn(2, 3, 32, 32)
    names, exact, seen = list(model.state_dict()), model(x), []
    hooks = [part.register_forward_hook(lambda m, inputs, output: seen.append(
        (output.dtype, torch.is_autocast_enabled('cpu')))) for part in (model[0].layer4, model[1])]
    view = with_precision(model, 'bf16')
    assert torch.equal(view(x).argmax(1), exact.argmax(1)) and not torch.equal(view(x), exact)
    assert seen[:2] == [(torch.bfloat16, True), (torch.float32, False)], 'the body and the head'
    [hook.remove() for hook in hooks]
    assert {id(p) for p in view.parameters()} == {id(p) for p in model.parameters()}
    assert {id(b) for b in view.buffers()} == {id(b) for b in model.buffers()}
    assert list(model.state_dict()) == names and torch.equal(model(x), exact), 'the model is as before'
    with pytest.raises(RuntimeError):
        view(torch.randn(2, 5, 32, 32))
    assert not torch.is_autocast_enabled('cpu'), 'an error leaves no trace'


@pytest.mark.parametrize('can, expected', [({'amx_bf16': True}, True), ({'avx512_bf16': True}, True), ({}, False)])
def test_auto_is_bf16_where_the_processor_has_it(monkeypatch, can, expected):
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: can, raising=False)
    model = nn.Linear(2, 2)
    assert (with_precision(model, 'auto') is not model) is expected and with_precision(model, 'fp32') is model
    assert has_bf16(torch.device('cpu')) is expected and not has_bf16(torch.device('mps'))


def test_there_are_three(make_learner):
    with pytest.raises(ValueError, match="precision='half': there are fp32, bf16, auto"):
        make_learner(precision='half')
