"Layer groups by name or by a function: of torchvision's, timm's and transformers' networks; kept in files."
import copy

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from conftest import changed, same_bits, small_network, state
from finetune_teach.engine.given_groups import give_groups, given_groups
from finetune_teach.freezing import freeze_to, layer_groups, phase_name
from finetune_teach.pretrained_body import create_body
from finetune_teach.tools.layer_decay import block_groups
from finetune_teach.tools.learners import load_learner
from test_networks import TRANSFORMER, tiny

PARTS = ['conv1', 'bn1', 'layer1', 'layer2', 'layer3', 'layer4']
GROUPS = [PARTS[:2], PARTS[2:4], PARTS[4:5], PARTS[5:]]


def names_of(model):
    "The parameters of each group, by name."
    names = {id(p): name for name, p in model.named_parameters()}
    return [{names[id(p)] for p in group.parameters()} for group in layer_groups(model)]


@pytest.fixture
def model():
    return nn.Sequential(create_body(small_network()), nn.Linear(8, 3))


def test_names_are_those_of_the_network_itself(model):
    give_groups(model, GROUPS)
    assert [g.name for g in layer_groups(model)] == ['group 0', 'group 1', 'group 2', 'group 3', 'head']
    for group, names in zip(GROUPS, names_of(model)):
        assert names == {n for n, _ in model.named_parameters() if n.removeprefix('0.').split('.')[0] in group}
    assert names_of(model)[-1] == {'1.weight', '1.bias'}
    assert [len(modules) for _, modules, _ in given_groups(model)] == [2, 2, 1, 1, 1]


def test_a_layer_may_stand_for_its_name(model):
    expected = names_of(give_groups(copy.deepcopy(model), GROUPS))
    ways = {'modules': lambda net: [[getattr(net, n) for n in group] for group in GROUPS],
            'parameters': lambda net: [[p for n in group for p in getattr(net, n).parameters()] for group in GROUPS],
            'a list of lists': lambda net: [[PARTS[:2]], [PARTS[2:4]], 'layer3', net.layer4]}
    for groups in ways.values():
        assert names_of(give_groups(model, groups)) == expected
        assert [len(modules) for _, modules, _ in given_groups(model)] == [2, 2, 1, 1, 1], 'modules, so statistics freeze'


def test_frozen_to_the_bit_between_them(model):
    give_groups(model, GROUPS)
    before = state(freeze_to(model, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.5)
    model.train()(torch.randn(4, 3, 32, 32)).sum().backward()
    optimizer.step()
    moved = {name.removeprefix('0.').split('.')[0] for name in changed(before, model.state_dict())}
    assert moved == {'layer3', 'layer4', '1'} and phase_name(model) == 'from group 2'


def test_a_plain_network_names_its_head_too():
    net = give_groups(small_network(), [PARTS, ['fc']])
    assert [g.name for g in layer_groups(net)] == ['group 0', 'head'] and names_of(net)[1] == {'fc.weight', 'fc.bias'}


def test_a_name_is_no_beginning_of_another():
    net = nn.Sequential(*[nn.Linear(2, 2) for _ in range(12)])
    give_groups(net, [[str(i)] for i in range(12)])
    assert [len(group.parameters()) for group in layer_groups(net)] == [2] * 12


def test_blocks_of_transformers():
    vit = tiny('ViTForImageClassification', **TRANSFORMER)
    model = nn.Sequential(create_body(vit), nn.Linear(32, 2))
    blocks = ['vit.embeddings', *[n for n, m in vit.named_modules() if type(m).__name__ == 'ViTLayer'], 'vit.layernorm']
    assert len(blocks) == 5
    give_groups(model, [blocks[:2], blocks[2:]])
    assert model.group_names == [[f'0.network.{name}' for name in blocks[:2]],
                                 [f'0.network.{name}' for name in blocks[2:]], ['1']]


@pytest.mark.parametrize('groups, message', [
    ([PARTS[:5]], 'of ResNet, layer4.0.conv1, layer4.0.bn1, .* more would be in none of the groups'),
    ([PARTS, ['layer2.0.conv1']], 'of ResNet, layer2.0.conv1 would be in the groups twice'),
    ([[*PARTS, 'layer2']], 'twice'),
    ([PARTS[:5], [], PARTS[5:]], 'one of them is empty'),
    ([PARTS, ['fc']], "has no layer 'fc' with parameters. In it are conv1, bn1, layer1, layer2, layer3, ... 1 more"),
    ([PARTS, ['layer']], "no layer 'layer'"),
    ([PARTS, ['']], "no layer ''"),
    ([PARTS, [nn.Linear(1, 1)]], 'no layer Linear')])
def test_what_is_wrong_is_named(groups, message):
    model = nn.Sequential(create_body(resnet18, None), nn.Linear(512, 2))
    with pytest.raises(ValueError, match=message):
        give_groups(model, groups)
    assert len(layer_groups(model)) == 3, 'nothing was given'


def test_a_learner_and_its_file(make_learner, tmp_path):
    learn = make_learner(groups=GROUPS)
    assert {group['layer_group'] for group in learn.optimizer.param_groups} == {0, 1, 2, 3, 4}
    learn.freeze_to(-2)
    learn.fit_one_cycle(1, [1e-5, 1e-4, 1e-3, 1e-2, 1e-1])
    assert {len(lrs) for lrs in learn.recorder.lrs} == {5}
    again = load_learner(learn.save(tmp_path / 'mine'), small_network(), device='cpu')
    assert names_of(again.model) == names_of(learn.model) and same_bits(state(learn.model), state(again.model))
    twins = dict(zip(learn.model.parameters(), again.model.parameters()))
    memory = {p: values['exp_avg'] for p, values in learn.optimizer.state.items()}
    assert memory and all(torch.equal(again.optimizer.state[twins[p]]['exp_avg'], value) for p, value in memory.items())


def test_a_file_with_other_groups(make_learner, tmp_path):
    saved = make_learner(groups=GROUPS).save(tmp_path / 'mine')
    with pytest.raises(ValueError, match='has other groups'):
        make_learner().load(saved)
    make_learner(groups=GROUPS).load(saved)


def test_all_of_the_package_takes_them(make_learner):
    learn = make_learner(groups=block_groups)
    assert [line[:7] for line in learn.summary().splitlines()[1:-1]] == [
        f'group {i}' for i in (0, 0, 1, 2, 3, 4)] + ['head   ']
    assert len(learn.lr_find(num_it=6, show=False).lrs) == 6
    learn.fine_tune(1)
    assert [group.name for group in layer_groups(learn.model)] == learn.recorder.group_names
