"One group for each block, and rates that decay from block to block: the same as timm's."
import pytest
from torch import nn
from torchvision.models import VisionTransformer, resnet18

from finetune_teach.engine.given_groups import give_groups
from finetune_teach.freezing import layer_groups
from finetune_teach.pretrained_body import create_body
from finetune_teach.tools.layer_decay import block_groups, lr_decay


def scales(network, groups=block_groups, decay=0.75):
    "By name, what share of the head's rate each parameter gets; the head's are called head."
    body = create_body(network)
    model = give_groups(nn.Sequential(body, nn.Linear(body.num_features, 3)), groups)
    names = {id(p): n.removeprefix('0.') for n, p in model.named_parameters()}
    names |= {id(p): f'head.{n}' for n, p in model[1].named_parameters()}
    return {names[id(p)]: rate for group, rate in zip(layer_groups(model), lr_decay(1.0, model, decay), strict=True)
            for p in group.parameters()}


def scales_of_timm(network, decay=0.75):
    from timm.optim import param_groups_layer_decay
    names = {id(p): n for n, p in network.named_parameters()}
    groups = param_groups_layer_decay(network, layer_decay=decay)
    return {names[id(p)]: group['lr_scale'] for group in groups for p in group['params']}


@pytest.mark.parametrize('name, options', [
    ('vit_tiny_patch16_224', {'depth': 4}), ('vit_tiny_patch16_224', {}), ('deit_tiny_patch16_224', {}),
    ('vit_tiny_patch16_224', {'global_pool': 'avg', 'class_token': False}), ('eva02_tiny_patch14_224', {})])
def test_as_in_timm(name, options):
    timm = pytest.importorskip('timm')
    network = timm.create_model(name, num_classes=3, **options)
    theirs, ours = scales_of_timm(network), scales(network)
    for name in {'fc_norm.weight', 'fc_norm.bias'} & theirs.keys(): # for timm a part of the head, here of the body
        assert (ours.pop(name), theirs.pop(name)) == (0.75, 1)
    assert theirs.keys() == ours.keys() and ours == pytest.approx(theirs)
    depth = options.get('depth', 12)
    assert min(ours.values()) == pytest.approx(0.75 ** (depth + 1)) and ours['blocks.0.attn.proj.weight'] == pytest.approx(
        0.75 ** depth)


def test_groups_of_timm_for_a_network_of_convolutions():
    "timm's are single blocks, those of the course stages. timm's can be given; its head.norm belongs to the body here."
    timm = pytest.importorskip('timm')
    network = timm.create_model('convnext_atto', num_classes=3)
    def theirs(net):
        return timm.models.group_parameters(net, net.group_matcher()).values()
    inside = {n: s for n, s in scales_of_timm(network).items() if not n.startswith('head')}
    ours = scales(network, theirs)
    assert {n: ours[n] for n in inside} == pytest.approx({n: 0.75 * s for n, s in inside.items()})
    assert ours['head.norm.weight'] == 0.75 * scales_of_timm(network)['head.norm.weight'] == 0.75
    assert len(set(scales(network).values())) < len(set(inside.values()))


def test_other_libraries():
    assert len({*scales(resnet18(weights=None)).values()}) == 6, 'conv1 with bn1, four stages, head'
    found = scales(VisionTransformer(32, 16, num_layers=12, num_heads=2, hidden_dim=8, mlp_dim=8))
    assert found['encoder.pos_embedding'] == found['class_token'] == found['conv_proj.weight'] == 0.75 ** 13
    assert found['encoder.ln.weight'] == found['encoder.layers.encoder_layer_11.ln_1.weight'] == 0.75


def test_the_rates_reach_the_optimiser(make_learner):
    learn = make_learner(groups=block_groups)
    learn.unfreeze()
    rates = lr_decay(1e-2, learn.model, 0.5)
    assert rates[-1] == 1e-2 and rates[0] == 1e-2 / 2 ** (len(rates) - 1)
    learn.fit(1, rates)
    assert {group['layer_group']: group['lr'] for group in learn.optimizer.param_groups} == dict(enumerate(rates))


def test_fine_tune_with_the_same_decay(make_learner):
    "Its `slice` has equal steps, so `lr_mult` says it as well."
    learn = make_learner(groups=block_groups)
    learn.fine_tune(1, 1e-2, lr_mult=0.75 ** (1 - len(layer_groups(learn.model))))
    last = learn.recorder.lrs[-1]
    assert [low / high for low, high in zip(last, last[1:])] == pytest.approx([0.75] * (len(last) - 1))
