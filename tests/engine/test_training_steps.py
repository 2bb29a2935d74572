"Steps that clip and gather: what they equal, and that a group happens whole or not at all."
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conftest import Batches, assert_unchanged, everything, same_bits, state, toy_twin
from finetune_teach.engine.guards import NotFinite
from finetune_teach.engine.history import Recorder
from finetune_teach.engine.training_steps import training_step
from finetune_teach.training_loop import constant, create_optimizer, fit


def plain(dtype=torch.float64):
    "A network in which no picture depends on the others of its batch."
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)).to(dtype)


def loaders(sizes, n=19):
    "The same pictures, in batches of these sizes."
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (n,), generator=generator)
    return Batches(list(zip(x.split(sizes), y.split(sizes))), [(x, y)])


def trained(sizes, epochs=2, **options):
    model, dls = plain(), loaders(sizes)
    recorder = fit(model, dls, epochs, constant(epochs * len(dls.train), 0.01), show=False, **options)
    return model, recorder


@pytest.mark.parametrize('small, large, accumulate', [
    ([2] * 8 + [3], [8, 8, 3], 4), ([5, 3, 4, 1, 6], [8, 5, 6], 2), ([6, 6, 7], [19], 8)])
def test_gathered_batches_equal_a_large_one(small, large, accumulate):
    "Also where batches differ in size, and the epoch ends within a group."
    gathered, recorder = trained(small, step=training_step(accumulate=accumulate))
    whole, _ = trained(large)
    assert len(recorder.losses) == 2 * len(small)
    for one, two in zip(gathered.parameters(), whole.parameters()):
        assert torch.allclose(one, two, atol=1e-12)
    assert not torch.allclose(gathered[0].weight, trained(small)[0][0].weight, atol=1e-4)


def test_a_step_with_nothing_to_do_is_the_plain_one_to_the_bit():
    one, two = trained([5, 5, 9], step=training_step()), trained([5, 5, 9])
    assert same_bits(state(one[0]), state(two[0])) and one[1].losses == two[1].losses
    assert repr(training_step(clip=1.0, accumulate=4)) == 'training_step(clip=1.0, accumulate=4)'


def test_clipping_is_that_of_torch_and_leaves_short_gradients_alone():
    model, twin = plain(), plain()
    x, y = loaders([19]).train[0]
    step = training_step(clip=0.1)
    step(model, 100 * x, y, torch.optim.SGD(model.parameters(), 0.1), F.cross_entropy)
    optimizer = torch.optim.SGD(twin.parameters(), 0.1)
    F.cross_entropy(twin(100 * x), y).backward()
    before = state(twin)
    assert nn.utils.clip_grad_norm_(twin.parameters(), 0.1) > 0.1
    optimizer.step()
    assert same_bits(state(model), state(twin))
    moved = sum((before[k] - t).square().sum() for k, t in state(model).items()).sqrt()
    assert moved == pytest.approx(0.01)
    assert same_bits(state(trained([19], step=training_step(clip=1e6))[0]), state(trained([19])[0]))


def test_gathered_gradients_are_clipped_as_one():
    one, two = (trained(sizes, 1, step=training_step(clip=0.01, accumulate=k))[0]
                for sizes, k in (([4, 4, 4, 7], 4), ([19], 1)))
    assert all(torch.allclose(p, q, atol=1e-12) for p, q in zip(one.parameters(), two.parameters()))


@pytest.mark.parametrize('broken', [2, 3])
@pytest.mark.parametrize('clip', [None, 0.5])
def test_a_group_that_fails_is_undone_as_a_whole(broken, clip):
    "Weights, optimiser and the statistics of batch norm are those before its first batch."
    generator = torch.Generator().manual_seed(0)
    xs = [torch.randn(5, 4, generator=generator) for _ in range(4)]
    xs[broken][0, 0] = torch.inf
    dls = Batches([(x, torch.arange(5) % 3) for x in xs], [(xs[0], torch.arange(5) % 3)])
    model = toy_twin()
    optimizer, step = create_optimizer(model), training_step(clip=clip, accumulate=2)
    states = {0: state(model)}
    class Notes:
        def after_step(self, model, recorder):
            states[len(recorder.steps)] = state(model)

        def __call__(self, model, recorder):
            pass

    with pytest.raises(NotFinite):
        fit(model, dls, 1, constant(4, 1e-2), optimizer, show=False, callbacks=[Notes()], step=step)
    assert same_bits(state(model), states[2]) and not same_bits(states[2], states[0])
    assert all(p.grad is None for p in model.parameters())
    good = Batches(dls.train[:2], dls.valid)
    twin, other = copy.deepcopy((model, optimizer))
    fit(model, good, 1, constant(2, 1e-2), optimizer, show=False, step=step)
    fit(twin, good, 1, constant(2, 1e-2), other, show=False, step=training_step(clip=clip, accumulate=2))
    assert same_bits(state(model), state(twin)), 'nothing of the lost group is left'


def test_a_gradient_that_is_no_number_is_found_in_spite_of_clipping():
    class Steep(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * torch.inf

    model, dls = plain(), loaders([19])
    before = state(model)
    with pytest.raises(NotFinite, match='the gradient'):
        fit(model, dls, 1, constant(1, 0.1), loss_func=lambda x, y: F.cross_entropy(Steep.apply(x), y), show=False,
            step=training_step(clip=1.0, accumulate=2))
    assert same_bits(before, state(model))


def test_a_learner_takes_a_step_and_all_that_trains_uses_it(make_learner, tmp_path):
    used = []
    class Noting:
        def __init__(self):
            self.inner = training_step(clip=0.5, accumulate=2)

        def begin_epoch(self, n_batches):
            used.append(n_batches)
            self.inner.begin_epoch(n_batches)

        def __call__(self, *arguments):
            return self.inner(*arguments)

    from finetune_teach.tools.lr_picker import pick_lr
    learn = make_learner(step=Noting(), checkpoint=tmp_path / 'run')
    learn.fit(2, 1e-2)
    assert used == [3, 3]
    before = everything(learn.model, learn.optimizer)
    learn.lr_find(num_it=8)
    pick_lr(learn, epochs=1, num_it=8)
    assert used[2:] == [None, None, 3]
    assert_unchanged(before, everything(learn.model, learn.optimizer))


def test_a_training_with_gathered_gradients_is_resumed_to_the_bit(make_learner, tmp_path):
    def learner(**options):
        return make_learner(**{'step': training_step(clip=1.0, accumulate=2), **options})
    whole = learner()
    whole.fit(3, 1e-2)
    with pytest.raises(KeyboardInterrupt):
        learner(checkpoint=tmp_path / 'run').fit(3, 1e-2, callbacks=[Stops()])
    second = learner(checkpoint=tmp_path / 'run')
    second.fit(3, 1e-2)
    assert_unchanged(everything(whole.model, whole.optimizer), everything(second.model, second.optimizer))
    with pytest.raises(ValueError, match='step was training_step.clip=1.0, accumulate=2., now it is the default'):
        make_learner(checkpoint=tmp_path / 'run').fit(3, 1e-2)


class Stops:
    "Ctrl-C in the second epoch."
    def after_step(self, model, recorder: Recorder):
        if len(recorder.history) == 1:
            raise KeyboardInterrupt

    def __call__(self, model, recorder):
        pass


@pytest.mark.parametrize('options', [{'clip': 0}, {'clip': -1.0}, {'clip': float('nan')}, {'clip': '1'},
                                     {'accumulate': 0}, {'accumulate': 1.5}, {'accumulate': True}])
def test_options_that_make_no_step(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        training_step(**options)
