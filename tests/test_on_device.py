"""Losses with weights, and metrics with tensors of their own, where a model is on a GPU.

No GPU is needed: tensors are torch's fake ones, which have a device, and refuse to be mixed with those of another, but no
numbers. Each number that is asked for is 1, and there is no backward pass.
"""
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from finetune_teach.engine.training_steps import training_step
from finetune_teach.fine_tuning import Learner
from finetune_teach.lr_finder import lr_find
from finetune_teach.tools.previews import PreviewTrainer
from finetune_teach.training_loop import constant, error_rate, fit, validate


class Numbers(TorchDispatchMode):
    "Gives 1 for each number that is asked for."
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            return args[0].dtype.is_floating_point and 1.0 or True
        return function(*args, **(kwargs or {}))


class Dls:
    def __init__(self, device='cuda'):
        batch = torch.randn(5, 4, device=device), torch.zeros(5, dtype=torch.long, device=device)
        self.train, self.valid, self.classes = [batch, batch], [batch], ['a', 'b', 'c']


class Weighted(nn.Module):
    "A metric that has weights."
    higher_is_better = False

    def __init__(self):
        super().__init__()
        self.register_buffer('weight', torch.ones(3))

    def forward(self, logits, targets):
        return F.cross_entropy(logits, targets, self.weight)


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch.Tensor, 'backward', lambda loss: None)
    monkeypatch.setattr('copy.deepcopy', lambda thing, memo=None: thing) # a copy would be on another fake GPU
    with FakeTensorMode(), Numbers():
        yield nn.Sequential(nn.Linear(4, 8, device='cuda'), nn.Linear(8, 3, device='cuda'))


def loss():
    return nn.CrossEntropyLoss(torch.ones(3), label_smoothing=0.1)


def test_the_fake_gpu_refuses_what_a_real_one_does(gpu):
    x, y = Dls().valid[0]
    with pytest.raises(RuntimeError, match='devices'):
        loss()(gpu(x), y)
    with pytest.raises(RuntimeError, match='devices'):
        loss().to('cuda')(gpu(x).cpu(), y.cpu())


@pytest.mark.parametrize('step', [training_step(), training_step(clip=1.0, accumulate=2)])
def test_fit_and_validate(gpu, step):
    recorder = fit(gpu, Dls(), 2, constant(4, 1e-3), loss_func=loss(), metrics=[error_rate, Weighted()], show=False,
                   step=step)
    assert len(recorder.history) == 2 and recorder.modes['Weighted'] == 'min'
    assert validate(gpu, Dls().valid, loss(), [Weighted()]) == [1, 1]


def test_finder(gpu):
    assert len(lr_find(gpu, Dls(), num_it=6, loss_func=loss()).lrs) == 6


def test_previews(gpu):
    trainer = PreviewTrainer(gpu, Dls(), epochs=1, loss_func=loss(), metrics=[Weighted()])
    assert trainer.before == {'valid_loss': 1, 'Weighted': 1}
    *_, preview = trainer.train(1e-3)
    assert not preview.problem and len(preview.recorder.history) == 1


def test_learner(gpu, monkeypatch):
    monkeypatch.setattr(nn.Module, 'to', lambda module, device: module) # it is there
    learn = Learner(Dls(), gpu, loss_func=nn.CrossEntropyLoss(torch.ones(3, device='cuda')), device='cuda', show=False)
    learn.fit(1, 1e-3)
    assert learn.validate() == (1, 0), 'all right'
