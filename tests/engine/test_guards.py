"Whatever goes wrong in a step: the model is as before, and the message says what to do."
import copy
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from conftest import Batches, everything, same_bits, state
from finetune_teach.engine.guards import BatchTooLarge, NotFinite, guarded
from finetune_teach.engine.history import Recorder
from finetune_teach.engine.training_steps import training_step
from finetune_teach.pictures import drawn_pets
from finetune_teach.training_loop import constant, create_optimizer, error_rate, fit, train_step

NAN, INF = float('nan'), float('inf')


def train(model, batches, epochs=1, **options):
    return fit(model, batches, epochs, constant(epochs * len(batches.train), 0.01), show=False, **options)


def raising(error):
    def function(*args):
        raise error
    return function


class Broken(torch.autograd.Function):
    "Changes nothing; the error is raised where its gradient is asked for."
    @staticmethod
    def forward(ctx, x, error):
        ctx.error = error
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        raise ctx.error


def root_at_zero(logits, targets):  # 0, but its slope is infinite
    return F.cross_entropy(logits, targets) + (logits * 0).abs().sum().sqrt()


# One step, whole or not at all

FAULTS = {  # what is done to a model and its optimiser; the loss function
    'nan': lambda model, optimizer, error: lambda logits, y: F.cross_entropy(logits, y) * NAN,
    'infinite': lambda model, optimizer, error: lambda logits, y: F.cross_entropy(logits, y) * INF,
    'gradient': lambda model, optimizer, error: root_at_zero,
    'forward': lambda model, optimizer, error: model[0].register_forward_hook(raising(error)) and F.cross_entropy,
    'loss': lambda model, optimizer, error: raising(error),
    'backward': lambda model, optimizer, error: model[0][0].register_forward_hook(
        lambda module, inputs, output: Broken.apply(output, error)) and F.cross_entropy,
    'optimizer': lambda model, optimizer, error: optimizer.register_step_pre_hook(raising(error)) and F.cross_entropy,
}


@pytest.mark.parametrize('fault, error', [(fault, NotFinite()) for fault in ('nan', 'infinite', 'gradient')] + [
    (fault, error) for fault in ('forward', 'loss', 'backward', 'optimizer')
    for error in (RuntimeError('on purpose'), KeyboardInterrupt(), MemoryError())], ids=repr)
def test_a_step_that_fails_is_undone(toy, batches, fault, error):
    optimizer, step = create_optimizer(toy), guarded(train_step)
    train_step(toy, *batches.train[0], optimizer, F.cross_entropy)
    loss_func = FAULTS[fault](toy, optimizer, error)
    before, hooks = everything(toy, optimizer), len(optimizer._optimizer_step_pre_hooks)
    with pytest.raises(type(error)):
        step(toy, *batches.train[1], optimizer, loss_func)
    after = everything(toy, optimizer)
    assert same_bits(before['state'], after['state']) and same_bits(before['memory'], after['memory'])
    assert all(p.grad is None for p in toy.parameters()), 'nothing leaks into the next step'
    assert len(optimizer._optimizer_step_pre_hooks) == hooks


class Bank(nn.Module):
    "Keeps what it saw: a buffer that is another, longer tensor after each step."
    def __init__(self):
        super().__init__()
        self.register_buffer('seen', torch.zeros(0, 3))

    def forward(self, x):
        self.seen = torch.cat([self.seen, x.detach()])
        return x


def test_buffers_that_are_replaced(toy, batches):
    "Each step goes back to those of its own beginning."
    model, step = nn.Sequential(toy, Bank()), guarded(train_step)
    optimizer = create_optimizer(model)
    for batch in batches.train:
        step(model, *batch, optimizer, F.cross_entropy)
    assert len(model[1].seen) == 15
    model[1].forward = lambda x: setattr(model[1], 'seen', model[1].seen + 1) or x
    before = state(model)
    with pytest.raises(NotFinite):
        step(model, *batches.train[0], optimizer, FAULTS['nan'](model, optimizer, None))
    assert same_bits(before, state(model))


def test_finite_numbers_with_infinite_squares():
    "A gradient of 1e30 is a finite one."
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 1e-30)
    guarded(train_step)(model, torch.full((1, 1), 1e30), None, optimizer, lambda logits, _: logits.sum())
    assert model.weight.grad.item() == pytest.approx(1e30)


def test_infinite_squares_would_spoil_the_memory_of_adam(toy, batches):
    "It divides by their root, for ever. Finite losses and gradients are no less told."
    optimizer, step = create_optimizer(toy), guarded(train_step)
    step(toy, *batches.train[0], optimizer, F.cross_entropy)
    before = everything(toy, optimizer)
    with pytest.raises(NotFinite, match='the square of the loss or of the gradient is no longer'):
        step(toy, *batches.train[1], optimizer, lambda logits, y: F.cross_entropy(logits, y) * 1e25)
    after = everything(toy, optimizer)
    assert same_bits(before['state'], after['state']) and same_bits(before['memory'], after['memory'])


def test_a_batch_that_is_only_gathered_is_looked_at_and_its_group_forgotten(toy, batches):
    inner, optimizer = training_step(accumulate=3), create_optimizer(toy)
    step, before = guarded(inner), state(toy)
    step(toy, *batches.train[0], optimizer, F.cross_entropy)
    with pytest.raises(NotFinite, match='the loss'):
        step(toy, *batches.train[1], optimizer, FAULTS['nan'](toy, optimizer, None))
    assert not inner.gathered and same_bits(before, state(toy))


class Operations(TorchDispatchMode):
    "Counts what a device is asked for, and how often it is waited for; looking from another side costs nothing."
    def __enter__(self):
        self.asked, self.waits = 0, 0
        return super().__enter__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.asked += not function.is_view
        self.waits += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize('optimizer_of', [create_optimizer, lambda model: torch.optim.AdamW(model.parameters(), fused=False)],
                         ids=['can skip a move', 'cannot'])
def test_guarding_a_large_network_costs_no_more_than_a_small_one(batches, optimizer_of):
    "On a GPU each operation costs time, however small it is."
    more = []
    for blocks in (2, 20):
        model = nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)) for _ in range(blocks)])
        optimizer, counts = optimizer_of(model), []
        for step in train_step, guarded(train_step):
            step(model, *batches.train[0], optimizer, F.cross_entropy)
            with Operations() as done:
                step(model, *batches.train[1], optimizer, F.cross_entropy)
            counts.append(done)
        plain, safe = counts
        assert safe.waits == plain.waits + 1
        skips = len(optimizer.param_groups) if optimizer_of is create_optimizer else 0 # counts of moves may go back
        more.append(safe.asked - plain.asked - skips)
    assert more[0] == more[1] <= 9


def test_nothing_is_waited_for_between_the_gradients_and_the_move(toy, batches):
    "A GPU would have nothing to do meanwhile."
    waited, waits = [], torch.ops.aten._local_scalar_dense.default
    class Waits(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            waited.append(function) if function in (waits, torch.ops.aten._fused_adamw_.default) else None
            return function(*args, **(kwargs or {}))
    optimizer, step = create_optimizer(toy), guarded(train_step)
    with Waits():
        step(toy, *batches.train[0], optimizer, F.cross_entropy)
    assert waited[-1] == waited[-2] == waits and waits not in waited[:-2] and len(waited) > 2


def test_two_moves_in_a_step(toy, batches):
    "The first is seen before the second, whatever the second's numbers are."
    def twice(model, x, y, optimizer, loss_func):
        for factor in (NAN, 1):
            optimizer.zero_grad()
            (loss_func(model(x), y) * factor).backward()
            optimizer.step()
    optimizer, before = create_optimizer(toy), state(toy)
    with pytest.raises(NotFinite, match='the gradient'):
        guarded(twice)(toy, *batches.train[0], optimizer, F.cross_entropy)
    assert same_bits(before, state(toy)) and not hasattr(optimizer, 'found_inf')


def test_a_bad_batch_names_its_pictures(pets, make_learner):
    learn = make_learner(copy.copy(pets))
    for name in ('train', 'valid'):  # as if they had come from files
        loader = copy.copy(getattr(learn.dls, name))
        loader.files = [f'{name}/{i}.jpg' for i in range(len(loader.labels))]
        setattr(learn.dls, name, loader)
    learn.unfreeze()
    order = []
    def loss(logits, y):
        order.append(learn.dls.train.latest.index.tolist())
        return F.cross_entropy(logits, y) * (NAN if len(order) == 2 else 1)
    learn.loss_func = loss
    with pytest.raises(NotFinite, match=r'(?s)loss \(nan\) is no longer a finite number at step 2 of epoch 0, rates '
                                        r'0.001, .*NaN in pictures or labels.*This batch was made of:') as error:
        learn.fit(1, 1e-3)
    named = re.findall(r'train/(\d+).jpg', str(error.value))
    assert [int(n) for n in named] == order[1] and len(named) == 16


def test_pictures_without_files_are_numbered(make_learner):
    learn = make_learner()
    learn.loss_func = root_at_zero
    with pytest.raises(NotFinite, match=r'the gradient is.*This batch was made of the pictures \d+, \d+'):
        learn.fit_one_cycle(1, 1e-3)


def test_a_batch_of_one_picture(make_learner):
    dls = drawn_pets(n_train=1, n_valid=1, size=32, batch_size=1)
    with pytest.raises(ValueError, match='batch of one picture. Make the loaders with another batch_size'):
        make_learner(dls).fit(1, 1e-3)


# Too little memory

class Greedy(nn.Module):
    "Stands for a network that has memory for `most` pictures only."
    def __init__(self, most, error):
        super().__init__()
        self.linear, self.most, self.error = nn.Linear(4, 3), most, error

    def forward(self, x):
        if self.training and len(x) > self.most:
            raise self.error
        return self.linear(x)


OUT_OF_MEMORY = MemoryError()

@pytest.mark.parametrize('error, most, told', [
    (OUT_OF_MEMORY, 31, '16 do: make the loaders with batch_size=16'),
    (OUT_OF_MEMORY, 1, 'Nor do two: take smaller pictures'),
    (torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB'), 4, 'batch_size=4'),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 4, 'batch_size=4'),
    (RuntimeError('DefaultCPUAllocator: not enough memory'), 4, 'batch_size=4'),
    (RuntimeError('MPS backend out of memory'), 4, 'batch_size=4'),
    (RuntimeError('std::bad_alloc'), 4, 'batch_size=4')], ids=str)
def test_too_little_memory_names_a_batch_that_fits(error, most, told):
    x, y = torch.randn(32, 4), torch.randint(3, (32,))
    model = nn.Sequential(Greedy(most, error), nn.Linear(3, 3))
    before = state(model)
    with pytest.raises(BatchTooLarge, match='32 pictures at once do not fit into the memory of cpu') as raised:
        train(model, Batches([(x, y)], [(x[:2], y[:2])]))
    assert told in str(raised.value)
    assert same_bits(before, state(model)) and all(p.grad is None for p in model.parameters())


def test_another_error_while_smaller_batches_are_tried():
    class Worse(Greedy):
        def forward(self, x):
            if len(x) == 16:
                raise RuntimeError('something else')
            return super().forward(x)
    x, y = torch.randn(32, 4), torch.randint(3, (32,))
    with pytest.raises(RuntimeError, match='something else'):
        train(nn.Sequential(Worse(4, OUT_OF_MEMORY), nn.Linear(3, 3)), Batches([(x, y)], [(x[:2], y[:2])]))


def test_too_little_memory_while_features_are_computed(make_learner):
    def full(module, inputs):
        if len(inputs[0]) > 8:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
    learn = make_learner()
    learn.model[0].conv1.register_forward_pre_hook(full)
    before = state(learn.model)
    with pytest.raises(BatchTooLarge, match='batch_size of half'):
        learn.fit(1, 1e-3)
    assert same_bits(before, state(learn.model))


TOO_LARGE = 'from finetune_teach.training_loop import constant, fit' '''
import resource, torch
from torch import nn
torch.set_num_threads(1)
model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1)),
                      nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2)))
x, y = torch.randn(64, 3, 128, 128), torch.zeros(64, dtype=torch.long)
class Dls: train, valid = [(x, y)], [(x[:2], y[:2])]
now = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 600_000_000, -1))
try:
    fit(model, Dls, 1, constant(1, 0.01), show=False)
except MemoryError as error:
    print(error)
    n = int(str(error).split('batch_size=')[1].split('.')[0])
    Dls.train = [(x[:n], y[:n])]
    fit(model, Dls, 1, constant(1, 0.01), show=False)
    print('fits')
'''

@pytest.mark.skipif(sys.platform != 'linux', reason='limits memory as Linux does')
def test_memory_that_really_ends():
    done = subprocess.run([sys.executable, '-c', TOO_LARGE], text=True, capture_output=True, timeout=200)
    assert 'batch_size=' in done.stdout and 'fits' in done.stdout, done.stdout + done.stderr


# Ctrl-C

def pressing(function, n):
    "`function`; Ctrl-C is pressed in its nth call."
    calls = []
    def pressed(*args):
        calls.append(1)
        if len(calls) == n:
            signal.raise_signal(signal.SIGINT)
        return function(*args)
    return pressed


@pytest.mark.parametrize('option, steps, rows', [('loss_func', 2, 0), ('metrics', 3, 1), ('callbacks', 3, 1)])
def test_ctrl_c_waits_for_the_step(toy, batches, option, steps, rows):
    "Pressed in the second step, in the validation, in a callback: what was begun is done."
    value = {'loss_func': pressing(F.cross_entropy, 2), 'metrics': [pressing(error_rate, 1)],
             'callbacks': [pressing(lambda *args: None, 1)]}[option]
    recorder, handler, generator = Recorder(), signal.getsignal(signal.SIGINT), torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        train(toy, batches, 3, recorder=recorder, seed=3, **{option: value})
    assert len(recorder.steps) == steps and len(recorder.history) == rows
    assert signal.getsignal(signal.SIGINT) is handler and torch.equal(torch.get_rng_state(), generator)


def test_a_second_ctrl_c_stops_at_once(toy, batches):
    recorder, reached = Recorder(), []
    def loss(logits, y):
        signal.raise_signal(signal.SIGINT)
        reached.append('after the first')
        signal.raise_signal(signal.SIGINT)
        reached.append('after the second')
    before = state(toy)
    with pytest.raises(KeyboardInterrupt):
        train(toy, batches, loss_func=loss, recorder=recorder)
    assert reached == ['after the first'] and not recorder.steps and same_bits(before, state(toy))


def test_other_threads_have_no_ctrl_c(toy, batches):
    with ThreadPoolExecutor() as pool:
        assert len(pool.submit(train, toy, batches).result().history) == 1
