"""The whole package with a model that is not on the CPU, and no GPU needed: what is left behind on the CPU is an error.

The device of these tests is PyTorch's 'meta', but its tensors do have numbers: they lie in memory, and only say that they are
elsewhere. An operation on tensors of both places fails, as on a GPU; all others give what they give on the CPU, so a training
has to come out equal to the bit.
"""
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

from conftest import Batches, small_network, toy_twin
from finetune_teach.all import auc, balanced_accuracy, evaluate, f1_macro, load_learner, pick_lr, top_k_accuracy
from finetune_teach.engine.guards import NotFinite, guarded
from finetune_teach.engine.training_steps import training_step
from finetune_teach.fine_tuning import fine_tune
from finetune_teach.freezing import freeze
from finetune_teach.lr_finder import lr_find
from finetune_teach.pictures import drawn_pets
from finetune_teach.pretrained_body import create_body, get_features
from finetune_teach.random_head import create_head
from finetune_teach.tools.learners import vision_learner
from finetune_teach.tools.previews import PreviewTrainer
from finetune_teach.training_loop import create_optimizer, error_rate, train_step, validate

pytestmark = pytest.mark.filterwarnings('ignore:.*to a meta parameter in the current model')
MOVES = torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default


class There(torch.Tensor):
    "A tensor on the device; `numbers` are where they really are."
    @staticmethod
    def __new__(cls, numbers):
        there = torch.Tensor._make_wrapper_subclass(cls, numbers.shape, numbers.stride(), numbers.storage_offset(),
                                                    dtype=numbers.dtype, device='meta')
        there.numbers = numbers
        return there

    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self):
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, *args):
        raise RuntimeError('the device is not there any more')


class Device(TorchDispatchMode):
    "While it is entered, 'meta' computes."
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, tensors = kwargs or {}, [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        there = {id(t.numbers): t for t in tensors if isinstance(t, There)}
        left = [tuple(t.shape) for t in tensors if not isinstance(t, There) and t.ndim]  # single numbers may be anywhere
        if there and left and function not in MOVES:
            raise RuntimeError(f'{function}: tensors on two devices; on the CPU those of shape {left}')
        goes_there = bool(there)
        if kwargs.get('device') is not None:
            goes_there = torch.device(kwargs['device']).type == 'meta'
            kwargs = {**kwargs, 'device': 'cpu'}
        args, kwargs = tree_map_only(There, lambda t: t.numbers, (args, kwargs))
        result = function(*args, **kwargs)
        if not goes_there:
            return result
        return tree_map_only(torch.Tensor, lambda t: there[id(t)] if id(t) in there else There(t), result)


@pytest.fixture(autouse=True)
def device(monkeypatch):
    optimizers, tensor = sys.modules['torch.optim.optimizer'], torch.tensor
    fused = optimizers._get_fused_kernels_supported_devices()
    monkeypatch.setattr(optimizers, '_get_fused_kernels_supported_devices', lambda: [*fused, 'meta'])
    monkeypatch.setattr(torch, 'tensor', lambda numbers, *, device=None, **options:  # which asks no mode
                        tensor(numbers, **options).to(device))
    with Device():
        yield


def places(model):
    return {t.device.type for t in [*model.parameters(), *model.buffers()]}


def numbers(model):
    return {name: t.tolist() for name, t in model.state_dict().items()}


def equal_on_both(work):
    "Do the same on the CPU and on the device; the numbers that come out have to be equal to the bit."
    there = work('meta')
    assert there and there == work('cpu')


def learner(device, dls=None, **options):
    dls = drawn_pets(n_train=2, n_valid=2, size=32) if dls is None else dls
    return vision_learner(dls, small_network(), seed=0, hidden=(8,), device=device, show=False, **options)


def facts(learn):
    "All numbers of a training."
    rows = [[v for k, v in row.items() if k != 'time'] for row in learn.recorder.history]
    return learn.recorder.losses, rows, [t.double().sum().item() for t in learn.model.state_dict().values()]


# The device of these tests

def test_it_computes_and_refuses_what_is_left_on_the_cpu():
    x = torch.arange(3., device='meta', requires_grad=True)
    (x * x).sum().backward()
    assert x.grad.device.type == 'meta' and x.grad.tolist() == [0, 2, 4]
    for mistake in (lambda: x + torch.ones(3), lambda: x[torch.tensor([1, 0])], lambda: F.linear(torch.ones(1, 3), x[None]),
                    lambda: F.cross_entropy(x[None], torch.tensor([1])), lambda: torch.cat([x, torch.ones(3)])):
        with pytest.raises(RuntimeError, match='two devices'):
            mistake()


# The lesson

def test_the_lesson(tmp_path):
    def work(device):
        learn = learner(device, metrics=[error_rate, top_k_accuracy(3), f1_macro, balanced_accuracy, auc])
        found = [learn.lr_find(num_it=6).losses]
        learn.fit_one_cycle(2, 3e-3)
        assert places(learn.model) == {device} and learn.cache.tables, 'features are kept'
        frozen = facts(learn)
        learn.unfreeze()
        found.append(learn.lr_find(num_it=6).losses)
        learn.fit_one_cycle(1, slice(1e-4, 1e-3))
        learn.save(tmp_path / device)
        learn.load(tmp_path / device)
        learn.fine_tune(1)
        return found, frozen, facts(learn), learn.validate()
    equal_on_both(work)


def test_predictions(tmp_path):
    def work(device):
        learn = learner(device)
        learn.fit_one_cycle(1)
        pictures = list(learn.dls.valid.pictures[:5])
        again = load_learner(learn.export(tmp_path / device), small_network(), device=device)
        assert places(again.model) == {device}
        evaluate(learn, show=False)
        return [one.predict(what).probabilities.tolist() for one in (learn, again) for what in (pictures, pictures[0])]
    equal_on_both(work)


@pytest.mark.parametrize('how', [{'min_scale': 0.5}, {'flip': False}], ids=str)
def test_other_pictures(how):
    def work(device):
        learn = learner(device, drawn_pets(n_train=2, n_valid=2, size=32, **how))
        learn.fine_tune(1)
        return facts(learn)
    equal_on_both(work)


def test_transforms_and_several_views():
    mixes = [mix(num_classes=12) for mix in (v2.MixUp, v2.CutMix)]
    def work(device):
        dls = drawn_pets(n_train=2, n_valid=2, size=32).with_transforms(v2.ColorJitter(.4), v2.RandomChoice(mixes))
        learn = learner(device, dls)
        learn.fine_tune(1)
        learn.dls.show_batch(4)
        return facts(learn), learn.validate(tta=True), learn.predict(dls.valid.pictures, tta=True).probabilities.tolist()
    equal_on_both(work)


@pytest.mark.parametrize('step', [training_step(clip=0.5), training_step(accumulate=2)], ids=str)
def test_losses_with_weights_and_other_steps(step):
    def work(device):
        loss = nn.CrossEntropyLoss(torch.linspace(1, 2, 12), label_smoothing=0.1)
        learn = learner(device, loss_func=loss, step=step)
        learn.fine_tune(1)
        return facts(learn)
    equal_on_both(work)


def test_previews_and_picker():
    def work(device):
        learn = learner(device)
        picker = pick_lr(learn, num_it=12, epochs=1)
        picker.preview(1e-2)
        learn.unfreeze()
        *_, run = PreviewTrainer(learn.model, learn.dls, epochs=1, seed=0).train(1e-3)
        assert not run.problem and places(learn.model) == {device}
        return run.recorder.losses
    equal_on_both(work)


# Plain modules and loaders

def test_loaders_on_the_cpu():
    "Those of PyTorch give batches there, wherever the model is."
    def work(device):
        pictures = drawn_pets(n_train=2, n_valid=2, size=32)
        sets = [TensorDataset(x.float() / 255, y) for x, y in ((part.pictures, part.labels) for part in (
            pictures.train, pictures.valid))]
        dls = Batches(*(DataLoader(one, 8) for one in sets))
        torch.manual_seed(0)
        body = create_body(small_network())
        model = nn.Sequential(body, create_head(body.num_features, 12, hidden=(8,))).to(device)
        features, labels = get_features(body, dls.valid)
        found = lr_find(model, dls, num_it=6, seed=0).losses
        recorder = fine_tune(model, dls, 1, seed=0, show=False)
        return found, recorder.losses, validate(model, dls.valid), features.tolist(), labels.tolist()
    equal_on_both(work)


def test_a_step_that_fails(batches):
    model = freeze(toy_twin()).to('meta')
    optimizer, before = create_optimizer(model), numbers(model)
    batch = [t.to('meta') for t in batches.train[0]]
    with pytest.raises(NotFinite, match='the loss'):
        guarded(train_step)(model, *batch, optimizer, lambda logits, y: F.cross_entropy(logits, y) * float('nan'))
    assert before == numbers(model)
