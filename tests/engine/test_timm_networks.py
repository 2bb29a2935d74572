"Networks of timm by name, and one of each of its families: cut, its layer groups, or the reason why not."
import copy
import sys

import pytest
import torch
from torch import nn

from finetune_teach.engine.networks import last_layers
from finetune_teach.engine.weights import find_builder, find_weights, load_network, preprocessing_of
from finetune_teach.freezing import layer_groups
from finetune_teach.pretrained_body import create_body
from finetune_teach.tools.learners import load_learner, vision_learner

timm = pytest.importorskip('timm')


# By name

def test_a_name(pets, tmp_path):
    learn = vision_learner(pets, 'timm/test_resnet', weights=None, hidden=(8,), device='cpu', show=False)
    assert learn.description['arch'] == 'timm/test_resnet' and learn.model[0].num_features == 96
    again = load_learner(learn.export(tmp_path / 'mine'), device='cpu')
    x = next(iter(pets.valid))[0]
    with torch.no_grad():
        assert torch.equal(learn.model.eval()(x), again.model.eval()(x))


def test_weights_by_tag():
    builder = find_builder('timm/convnext_atto')
    weights = find_weights(builder, 'DEFAULT')
    assert str(weights) == 'timm/convnext_atto.d2_in1k' and find_weights(builder, 'd2_in1k') == weights
    assert find_weights(builder, weights) is weights and find_weights(builder, None) is None
    about = preprocessing_of('timm/vit_base_patch16_clip_224', 'openai')
    assert about.size == 224 and about.mean[0] == pytest.approx(0.4815, abs=1e-4), "CLIP's own, not ImageNet's"
    with pytest.raises(ValueError, match=r"no weights 'd3'; there are \['d2_in1k'\]"):
        find_weights(builder, 'd3')


def test_weights_are_asked_of_timm(monkeypatch):
    asked = []
    monkeypatch.setattr(timm, 'create_model', lambda name, **options: asked.append((name, options)) or nn.Identity())
    load_network('timm/convnext_atto')
    load_network('timm/convnext_atto', None)
    assert asked == [('convnext_atto.d2_in1k', {'pretrained': True}), ('convnext_atto', {'pretrained': False})]


def test_a_name_that_timm_does_not_have():
    with pytest.raises(ValueError, match=r"unknown arch 'timm/convnext_ato'.*'timm/convnext_atto'"):
        find_builder('timm/convnext_ato')


# One of each family, its smallest, with random weights. Some know one size of pictures only.

FAMILIES = """test_vit test_nfnet test_resnet test_coatnet test_vit_relpos starnet_s050 dla46x_c mobilevit_xxs edgenext_xx_small
lcnet_035 repghostnet_050 efficientvit_m0 ghostnet_050 regnetx_002 cspnext_tiny xcit_nano_12_p8_224 cs3darknet_focus_s
efficientvit_b0 efficientformerv2_s0 pvt_v2_b0 convnext_atto_rms fasternet_t0 lcnetv2_small inception_next_atto rexnet_100
pit_ti_224 efficientnet_b0 hardcorenas_b repvit_m1 eva02_tiny_patch14_224 convit_tiny deit_tiny_patch16_224 coat_lite_tiny
gmlp_ti16_224 hgnetv2_b0 swiftformer_s shvit_s1 vit_tiny_r_s16_p8_224 efficientvim_m1 mambaout_femto levit_128s densenet121
crossvit_9_240 iformer_m dpn48b byobnet:test_byobnet visformer_tiny cpubone_b0_bfrobust eca_botnext26ts_256 resnest14d
csatv2 fastvit_t8 legacy_seresnet18 resnetv2_18 gcvit_xxtiny cait_xxs24_224 skresnet18 tiny_vit_5m_224 efficientformer_l1
hrnet_w18_small lowformer_b0 nest_tiny convmixer_768_32 vitamin_small_224 eca_vovnet39b legacy_xception tnt_s_legacy_patch16_224
inception_v3 rdnet_tiny twins_svt_small mvitv2_tiny res2net50_14w_8s xception41 volo_d1_224 caformer_s18 sequencer2d_s
hiera_tiny_224 swin_tiny_patch4_window7_224 davit_tiny focalnet_tiny_srf deit_tiny_distilled_patch16_224""".split()
FAMILIES = [name.split(':')[-1] for name in FAMILIES]
NOT = {'efficientvim_m1': 'only if they get equally many features', # the sum of the logits of two bodies
       'crossvit_9_240': 'only if they get equally many features', # the mean of those of two
       'volo_d1_224': 'is followed by others'} # half of the highest auxiliary logit is added; cut= says it by hand
QUICK = {'test_vit', 'test_resnet', 'test_nfnet', 'test_coatnet', 'efficientvit_m0', 'repvit_m1', 'levit_128s', 'lcnet_035',
         'deit_tiny_distilled_patch16_224', 'crossvit_9_240', 'inception_next_atto', 'eva02_tiny_patch14_224'}


def smallest_pictures(net):
    for side in (64, 96, 128, net.pretrained_cfg['input_size'][-1]):
        x = torch.randn(2, 3, side, side, dtype=torch.float64)
        try:
            net.eval()(x)
            return x
        except (RuntimeError, AssertionError, ValueError):
            pass


@torch.no_grad()
def row(name):
    """What comes of a network: names that went, width, side of the pictures, layer groups; or the reason why not.

    In doubles: with random weights some of them let rounding grow to more than a ten-thousandth in float32.
    """
    net = timm.create_model(name).double()
    x = smallest_pictures(net)
    try:
        layers = last_layers(net)
        body = create_body(net, x=x)
    except ValueError as error:
        return str(error)
    features, got = body.eval()(x), []
    for layer in layers.values():
        layer.register_forward_pre_hook(lambda layer, inputs: got.append(inputs[0].flatten(1)))
    net(x)
    left = {n for n, _ in net.named_parameters() if not n.startswith(tuple(f'{layer}.' for layer in layers))}
    assert {n for n, _ in body.named_parameters()} == left, 'nothing else went'
    assert features.shape == (2, body.num_features)
    for wanted in [sum(got) / len(got)] if got else []: # two heads of distilled networks may get different ones
        assert torch.allclose(features, wanted, atol=1e-8 * wanted.abs().max()), 'what the last layers get'
    bare = copy.deepcopy(net)
    bare.reset_classifier(0)
    assert last_layers(bare) == {} and create_body(bare, x=x).num_features == bare.eval()(x).shape[1], 'num_classes=0'
    groups = layer_groups(nn.Sequential(body, nn.Linear(2, 2)))
    return ' + '.join(layers) or 'a body', body.num_features, x.shape[-1], [len(g.modules) for g in groups]


@pytest.mark.parametrize('name', [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
                                  for name in FAMILIES])
def test_a_family(name):
    found = row(name)
    assert isinstance(found, str) == (name in NOT)
    if name in NOT:
        assert NOT[name] in found
    else:
        assert len(found[3]) == 3


def test_the_list_is_long():
    families = {timm.create_model.__globals__['model_entrypoint'](name).__module__ for name in FAMILIES}
    assert len(families) >= 60 and len(FAMILIES) - len(NOT) >= 60


if __name__ == '__main__': # the table: python tests/engine/test_timm_networks.py [NAME ...]
    for name in sys.argv[1:] or FAMILIES:
        print(name, row(name), sep='\t', flush=True)
