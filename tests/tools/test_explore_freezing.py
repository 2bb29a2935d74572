"What a step costs with each number of frozen groups, and the explorer of it."
import math

import torch
from torch import nn

from conftest import WithoutPlans, same_bits, small_network, state
from finetune_teach.pretrained_body import create_body
from finetune_teach.random_head import create_head
from finetune_teach.tools.explore_freezing import (
    StepCost, explore_freezing, plot_freezing, step_cost)


def test_costs_of_a_step(pets):
    model = nn.Sequential(create_body(small_network()), create_head(8, 12, hidden=(8,)))
    before, generator = state(model), torch.get_rng_state()
    x, y = next(iter(WithoutPlans(pets.valid)))
    costs = [step_cost(model, x, y, n) for n in range(3)]
    assert same_bits(before, state(model)) and generator.equal(torch.get_rng_state())
    assert costs[0].learns == sum(p.numel() for p in model.parameters())
    assert costs[2].learns == sum(p.numel() for p in model[1].parameters())
    assert costs[0].kept > costs[1].kept > costs[2].kept > 0
    assert all(c.seconds > 0 for c in costs) and costs[2].reused < costs[2].seconds
    assert math.isnan(costs[0].reused) and math.isnan(costs[1].reused)


def test_explorer_of_freezing(pets, make_learner):
    learn = make_learner()
    explorer = explore_freezing(learn)
    assert explorer.values == {'n': 2} and [name for name, _ in explorer.controls['n'].options] == [
        'early body', 'late body', 'head']
    pictures = set()
    for n in range(3):
        explorer.controls['n'].value = n
        pictures.add(bytes(explorer.pictures[0].widget.value))
    assert len(pictures) == 3
    assert explore_freezing(learn.model, pets).values == {'n': 2}, 'a model with loaders will do'


def test_plot_of_freezing_names_layers_and_costs(make_learner):
    model = make_learner().model
    costs = [StepCost(100, 2**20, 0.1, math.nan), StepCost(50, 2**19, 0.05, math.nan), StepCost(9, 10, 0.02, 0.001)]
    texts = [t.get_text() for t in plot_freezing(model, costs, 1).texts]
    assert {'conv1', 'layer1', 'layer4', 'Linear', 'from head', '100 ms', '1.0 MB'} <= set(texts)
    assert '20 ms, 1.0 with cached features' in texts
