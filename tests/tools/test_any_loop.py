"The three loops of the page give the same losses, to the bit; the functions work on plain modules and plain loaders."
import copy
from pathlib import Path

import nbformat
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from conftest import Batches, same_bits, state
from finetune_teach.all import (
    accuracy, create_head, fine_tune, freeze, layer_groups, lr_find, one_cycle, spread_lrs, unfreeze)
from finetune_teach.engine.training_steps import training_step
from finetune_teach.training_loop import constant, create_optimizer, fit, set_rates

PAGE = Path(__file__).parents[2] / 'nbs' / 'tools' / 'any_loop.ipynb'


@pytest.fixture(scope='module')
def page():
    "What the cells of the page define, up to Lightning's loop."
    names = {}
    for cell in nbformat.read(PAGE, 4).cells:
        if cell.cell_type == 'code' and '%pip' not in cell.source:
            exec(compile(cell.source, cell.id, 'exec'), names)
    return names


def test_a_loop_of_your_own_gives_the_same_losses(page):
    assert len(page['ours']) == 18 and page['own'] == page['ours']
    assert page['ours'][0] > page['ours'][-1] > 0


def test_lightnings_loop_gives_the_same_losses(page):
    pytest.importorskip('lightning')
    assert page['theirs'] == page['ours']


class Plain(nn.Module):
    "Neither an `nn.Sequential` nor made for pictures."
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(4, 16), nn.BatchNorm1d(16)
        self.second, self.head = nn.Linear(16, 16), create_head(16, 3, hidden=(8,))

    def forward(self, x):
        return self.head(F.relu(self.second(F.relu(self.norm(self.first(x))))))


def plain():
    torch.manual_seed(0)
    return Plain()


def data(n):
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(n))
    return TensorDataset(x, x[:, :3].argmax(1))


@pytest.fixture
def loaders():
    return Batches(DataLoader(data(60), 12, shuffle=True), DataLoader(data(40), 40))


def test_a_plain_module_is_frozen_and_has_groups():
    model = plain()
    groups = layer_groups(model)
    assert [group.name for group in groups] == ['early body', 'late body', 'head']
    assert sum(len(group.parameters()) for group in groups) == len([*model.parameters()])
    freeze(model)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        name for name, _ in model.named_parameters() if name.startswith('head')]
    model.train()
    before = state(model)
    model(torch.randn(8, 4))
    assert torch.equal(model.norm.running_mean, before['norm.running_mean']), 'frozen, in training mode, too'
    assert all(p.requires_grad for p in unfreeze(model).parameters())


def test_a_plain_module_is_fine_tuned(loaders):
    model, twin = plain(), plain()
    before = state(model)
    finder = lr_find(freeze(model), loaders, num_it=20, seed=0)
    assert same_bits(state(model), before) and finder.valley > 0
    recorder = fine_tune(model, loaders, 8, base_lr=2e-2, metrics=accuracy, seed=0, show=False)
    again = fine_tune(twin, loaders, 8, base_lr=2e-2, metrics=accuracy, seed=0, show=False)
    assert recorder.losses == again.losses and len(recorder.losses) == 9 * 5
    assert recorder.history[-1]['accuracy'] > 0.6 > recorder.history[0]['accuracy']


@pytest.mark.parametrize('clip, accumulate', [(None, 1), (0.1, 1), (0.1, 2)])
def test_a_plain_loop_with_one_cycle_clipping_and_gathering(clip, accumulate):
    "To the bit with clipping; to rounding where gradients are gathered."
    model, twin, own = plain(), plain(), torch.Generator()
    train, valid = DataLoader(data(60), 12, generator=own), DataLoader(data(40), 40, generator=own)
    schedule = one_cycle(3 * len(train), spread_lrs(slice(1e-4, 1e-2), 3))
    torch.manual_seed(1)
    recorder = fit(model, Batches(train, valid), 3, schedule, show=False,
                   step=training_step(clip=clip, accumulate=accumulate))
    torch.manual_seed(1)
    optimizer, losses, rates = create_optimizer(twin), [], zip(*schedule)
    for _ in range(3):
        twin.train()
        batches = [*train]
        for i, ((x, y), (lrs, moms)) in enumerate(zip(batches, rates)):
            set_rates(optimizer, lrs, moms)
            loss = F.cross_entropy(twin(x), y)
            group = batches[i - i % accumulate:i - i % accumulate + accumulate]
            (loss / len(group)).backward()
            losses.append(loss.item())
            if i % accumulate == accumulate - 1 or i == len(batches) - 1:
                if clip:
                    nn.utils.clip_grad_norm_(twin.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()
    if accumulate == 1:
        assert recorder.losses == losses and same_bits(state(model), state(twin))
    assert recorder.losses == pytest.approx(losses, rel=1e-4)


def test_a_weighted_sampler_of_pytorch(loaders):
    "Rare classes more often: any sampler works, and a seed repeats it."
    labels = loaders.train.dataset.tensors[1]
    sampler = WeightedRandomSampler(1 / labels.bincount()[labels].float(), 60)
    dls = Batches(DataLoader(data(60), 12, sampler=sampler), loaders.valid)
    one, two = (fit(plain(), dls, 2, constant(10, 1e-3), seed=3, show=False).losses for _ in range(2))
    assert one == two and len(one) == 10


def test_a_copy_learns_on_alone(loaders):
    model = freeze(plain())
    twin = copy.deepcopy(model)
    fit(twin, loaders, 1, constant(5, 1e-2), show=False)
    assert same_bits(state(model), state(freeze(plain())))
