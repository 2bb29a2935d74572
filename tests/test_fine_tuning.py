"The learner: the lesson's lines, fine_tune, saving, predicting, and what it refuses."
import math
import pickle
import random
import urllib.request
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn
from torchvision import models

from conftest import changed, publish, same_bits, small_network, state
from finetune_teach.engine.history import Recorder
from finetune_teach.engine.tiny_resnet import tiny_resnet
from finetune_teach.fine_tuning import Learner
from finetune_teach.freezing import freeze, unfreeze
from finetune_teach.one_cycle import one_cycle
from finetune_teach.pictures import drawn_pets
from finetune_teach.pretrained_body import create_body
from finetune_teach.random_head import create_head
from finetune_teach.tools.learners import cnn_learner, load_learner, vision_learner
from finetune_teach.training_loop import accuracy, create_optimizer, error_rate, fit

# The lesson

LESSON = '''
dls = drawn_pets()                        # or image_folders(path), image_files(paths, label), oxford_pets(path, download=True)
learn = cnn_learner(dls, resnet34, metrics=error_rate)   # cnn_learner is vision_learner under its older name
learn.fine_tune(4)
learn.fit_one_cycle(3, 3e-3)
learn.unfreeze()
learn.lr_find()
learn.fit_one_cycle(6, lr_max=1e-5)
learn.fit_one_cycle(12, lr_max=slice(1e-6, 1e-4))
learn.recorder.plot_loss()
learn.save('stage-1'); learn.load('stage-1')
'''


def run_lesson(folder, monkeypatch, **names):
    "The lines as they stand, with few and small pictures; in `folder`, as they save a file."
    monkeypatch.chdir(folder)
    namespace = {}
    exec('from finetune_teach.all import *', namespace)
    few = partial(namespace['drawn_pets'], n_train=1, n_valid=1, size=32)
    namespace |= {'drawn_pets': few, **names}
    exec(LESSON, namespace)
    learn = namespace['learn']
    assert (folder / 'stage-1.safetensors').is_file()
    assert [row['phase'] for row in learn.recorder.history] == ['frozen'] + ['unfrozen'] * 25
    assert len(learn.recorder.losses) == 26 * len(learn.dls.train)
    assert learn.recorder.lrs[0] == pytest.approx((8e-6, 8e-6, 8e-5))
    assert learn.recorder.lrs[-12 * len(learn.dls.train)] == pytest.approx((4e-8, 4e-7, 4e-6))
    assert all(math.isfinite(loss) for loss in learn.recorder.losses)
    return learn


def test_the_lesson_with_tiny_resnet(tmp_path, monkeypatch):
    run_lesson(tmp_path, monkeypatch, resnet34=tiny_resnet)


@pytest.mark.slow
def test_the_lesson_with_resnet34_from_torchvisions_cache(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise AssertionError('the file lies in the cache')
    monkeypatch.setattr(urllib.request.OpenerDirector, 'open', no_network)
    published = models.resnet34()
    (tmp_path / 'checkpoints').mkdir()
    publish(published, models.ResNet34_Weights.DEFAULT, tmp_path / 'checkpoints', monkeypatch)
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path)
    try:
        learn = vision_learner(drawn_pets(n_train=2, n_valid=2, size=32), models.resnet34)
        assert torch.equal(learn.model[0].layer3[0].conv1.weight.cpu(), published.layer3[0].conv1.weight)
        learn = run_lesson(tmp_path, monkeypatch)
    finally:
        torch.hub.set_dir(before)
    assert learn.description['arch'] == 'resnet34'
    assert 'IMAGENET1K_V1' in learn.description['weights']


# Building a learner

def test_body_frozen_head_random(make_learner, pets):
    learn = make_learner()
    assert isinstance(learn.model, nn.Sequential) and len(learn.model) == 2
    assert {n[0] for n, p in learn.model.named_parameters() if p.requires_grad} == {'1'}
    assert learn.model[1][-1].out_features == len(pets.classes) == 12
    assert make_learner(weights=None, arch=tiny_resnet).model[0].conv1.weight.requires_grad
    assert cnn_learner is vision_learner


def test_a_seed_decides_the_head_and_touches_no_generator(make_learner):
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    expected = torch.rand(1).item(), random.random(), np.random.rand()
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    one, two, other = make_learner(seed=1), make_learner(seed=1), make_learner(seed=2)
    assert same_bits(state(one.model), state(two.model))
    assert same_bits(state(one.model[0]), state(other.model[0]))
    assert not torch.equal(one.model[1][2].weight, other.model[1][2].weight)
    assert (torch.rand(1).item(), random.random(), np.random.rand()) == expected


def test_arch_by_builder_name_or_ready_network(pets, make_learner):
    by_name = make_learner(arch='tiny_resnet')
    assert same_bits(state(by_name.model), state(make_learner(arch=tiny_resnet).model))
    network = small_network()
    learn = make_learner(arch=network)
    learn.fit(1, 0.1)
    learn.unfreeze()
    learn.fit(1, 0.1)
    assert same_bits(state(network), state(small_network())), 'the network itself stays as it was'


@pytest.mark.parametrize('builder', [small_network, partial(small_network, seed=3), lambda: small_network()])
def test_any_function_is_a_builder(make_learner, builder):
    learn = make_learner(arch=builder, weights=None)
    learn.fit(1, 1e-3)
    assert learn.model[0].conv1.weight.requires_grad


def test_unknown_names(make_learner):
    with pytest.raises(ValueError, match="unknown arch 'resnet35'.*resnet34"):
        make_learner(arch='resnet35')
    with pytest.raises(ValueError, match="no weights 'V7'.*TINY_IMAGENET"):
        make_learner(arch=tiny_resnet, weights='V7')


def test_pictures_that_are_too_small(pets):
    with pytest.raises(ValueError, match='vit_b_32.*32x32.*size=224'):
        vision_learner(pets, 'vit_b_32', weights=None, device='cpu')


class OwnHead(nn.Module):
    def __init__(self, n_in, n_out):
        super().__init__()
        self.layer = nn.Linear(n_in, n_out)

    def forward(self, x):
        return self.layer(x)


def test_own_head(make_learner):
    head = OwnHead(8, 12)
    learn = make_learner(head=head)
    assert learn.model[1] is head
    before = state(head)
    learn.fine_tune(1)
    assert changed(before, state(head)) == {'layer.weight', 'layer.bias'}


@pytest.mark.parametrize('head, told', [(nn.Linear(9, 12), '8 features'), (nn.Linear(8, 11), '12 classes')])
def test_head_of_wrong_width(make_learner, head, told):
    with pytest.raises(ValueError, match=told):
        make_learner(head=head)


def test_metrics_one_several_none(make_learner):
    for metrics, names in [(accuracy, ['accuracy']), ([accuracy, error_rate], ['accuracy', 'error_rate']),
                           (None, []), ([], [])]:
        learn = make_learner(metrics=metrics)
        learn.fit(1, 1e-3)
        assert list(learn.recorder.history[0])[5:-1] == names
        assert len(learn.validate()) == 1 + len(names)


# Training

def test_fine_tune_equals_hand_written_steps(make_learner):
    "Freeze, one cycle, halve, unfreeze, one cycle: bit for bit."
    learn, twin = make_learner(), make_learner()
    learn.fine_tune(2)
    base_lr = 2e-3
    twin.freeze()
    twin.fit_one_cycle(1, slice(base_lr), pct_start=0.99)
    base_lr /= 2
    twin.unfreeze()
    twin.fit_one_cycle(2, slice(base_lr / 100, base_lr), pct_start=0.3, div=5)
    assert same_bits(state(learn.model), state(twin.model))
    assert learn.recorder.losses == twin.recorder.losses and learn.recorder.lrs == twin.recorder.lrs


def test_fine_tune_equals_the_plain_functions(make_learner, pets):
    learn, model = make_learner(), make_learner().model
    learn.fine_tune(2)
    n, recorder = len(pets.train), Recorder()
    first = one_cycle(n, [2e-4, 2e-4, 2e-3], div=25, pct_start=0.99)
    fit(freeze(model), pets, 1, first, create_optimizer(model), recorder=recorder, seed=0, show=False)
    second = one_cycle(2 * n, [1e-5, 1e-4, 1e-3], div=5, pct_start=0.3)
    fit(unfreeze(model), pets, 2, second, create_optimizer(model), recorder=recorder, seed=0, show=False)
    assert same_bits(state(learn.model), state(model))
    assert learn.recorder.losses == recorder.losses


def test_fine_tunes_schedule_is_fastais(make_learner):
    "Ten batches an epoch, three groups; the numbers are what fastai 2.8.12 used in fine_tune(2)."
    learn = make_learner(drawn_pets(n_train=10, n_valid=1, size=32, batch_size=12))
    learn.fine_tune(2)
    lrs, moms = learn.recorder.lrs, learn.recorder.moms
    assert len(learn.dls.train) == 10 and len(lrs) == 30
    fastais = {0: (8e-06, 8e-06, 8e-05), 1: (1.2793172512e-05, 1.2793172512e-05, 1.2793172512e-04),
               9: (1.9611132270e-04, 1.9611132270e-04, 1.9611132270e-03), 10: (2e-06, 2e-05, 2e-04),
               15: (9.4641014903e-06, 9.4641014903e-05, 9.4641014903e-04), 16: (1e-05, 1e-04, 1e-03),
               29: (1.2545927477e-07, 1.2545927477e-06, 1.2545927477e-05)}
    for i, expected in fastais.items():
        assert lrs[i] == pytest.approx(expected, rel=1e-5), i
    fastais = {0: 0.95, 1: 0.947503555982954, 9: 0.8520253527580594, 10: 0.95, 11: 0.9433012709694448,
               16: 0.85, 29: 0.9487463947162089}
    for i, expected in fastais.items():
        assert moms[i] == pytest.approx((expected,) * 3, rel=1e-6), i


def phases(learn):
    return [(p.name, p.start) for p in learn.recorder.phases]


def test_fine_tune_hands_its_options_on(make_learner):
    learn = make_learner()
    learn.fine_tune(1, base_lr=1e-2, freeze_epochs=2, lr_mult=4, pct_start=0.5, div=10,
                    wd=0, moms=(0.9, 0.8, 0.9))
    n, lrs = len(learn.dls.train), learn.recorder.lrs
    assert [row['phase'] for row in learn.recorder.history] == ['frozen', 'frozen', 'unfrozen']
    assert phases(learn) == [('frozen', 0), ('unfrozen', pytest.approx(2))]
    assert lrs[0] == pytest.approx((1e-3 / 25, 1e-3 / 25, 1e-2 / 25))
    assert lrs[2 * n] == pytest.approx((5e-3 / 4 / 10, 5e-3 / 2 / 10, 5e-3 / 10))
    assert learn.recorder.moms[0] == learn.recorder.moms[2 * n] == (0.9, 0.9, 0.9)
    assert min(learn.recorder.moms)[0] >= 0.8
    assert all(g['weight_decay'] == 0 for g in learn.optimizer.param_groups)


def test_no_frozen_epochs(make_learner):
    learn = make_learner()
    learn.fine_tune(1, freeze_epochs=0)
    assert [row['phase'] for row in learn.recorder.history] == ['unfrozen']
    assert learn.recorder.lrs[0] == pytest.approx((2e-6, 2e-5, 2e-4))


def test_weight_decay_of_one_call_only(make_learner):
    learn = make_learner(wd=0.2)
    learn.fit_one_cycle(1, 1e-3, wd=0.1)
    assert {g['weight_decay'] for g in learn.optimizer.param_groups} == {0, 0.1}
    learn.fit(1, 1e-3)
    assert {g['weight_decay'] for g in learn.optimizer.param_groups} == {0, 0.2}


def test_default_rates_and_moms(make_learner):
    learn = make_learner(lr=5e-3, moms=(0.9, 0.7, 0.9))
    learn.fit_one_cycle(1)
    assert learn.recorder.lrs[0] == pytest.approx((2e-4,) * 3) and learn.recorder.moms[0] == (0.9,) * 3
    learn.fit(1)
    assert learn.recorder.lrs[-1] == (5e-3,) * 3 and learn.recorder.moms[-1] == (0.9,) * 3


def test_unfreezing_keeps_the_optimizer_and_empties_its_memory(make_learner):
    learn = make_learner()
    optimizer = learn.optimizer
    learn.fit(1, 1e-3)
    assert len(optimizer.state) == len(list(learn.model[1].parameters()))
    learn.unfreeze()
    assert learn.optimizer is optimizer and not optimizer.state
    learn.fit(1, 1e-3)
    assert len(optimizer.state) == len(list(learn.model.parameters()))
    learn.fit(1, 1e-3, reset_opt=True)
    assert {int(s['step']) for s in optimizer.state.values()} == {len(learn.dls.train)}


def test_train_bn_as_fastai(make_learner):
    learn = make_learner(train_bn=True)
    before = state(learn.model[0])
    learn.fit(1, 1e-2)
    norms = {f'{name}.{key}' for name, m in learn.model[0].named_modules() if isinstance(m, nn.BatchNorm2d)
             for key in m.state_dict()}
    assert changed(before, state(learn.model[0])) == norms


def test_freeze_to(make_learner):
    learn = make_learner()
    learn.freeze_to(1)
    before = state(learn.model[0])
    learn.fit(1, 1e-2)
    moved = changed(before, state(learn.model[0]))
    assert moved and all(name.startswith(('layer3', 'layer4')) for name in moved)
    assert learn.recorder.history[0]['phase'] == 'from group 1'
    with pytest.raises(ValueError, match='3 layer groups'):
        learn.freeze_to(3)


def test_from_scratch_warns(make_learner):
    learn = make_learner(arch=small_network, weights=None)
    with pytest.warns(UserWarning, match='from scratch'):
        learn.fine_tune(1)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        make_learner().fine_tune(1)


def test_lr_max_for_fine_tune(make_learner):
    learn = make_learner()
    with pytest.raises(TypeError, match='base_lr'):
        learn.fine_tune(1, lr_max=1e-3)
    assert learn.recorder.losses == []


@pytest.mark.parametrize('call', [
    'fine_tune(0)', 'fine_tune(2.5)', 'fine_tune(1, base_lr=-1)', 'fine_tune(1, base_lr=float("nan"))',
    'fine_tune(1, lr_mult=0)', 'fine_tune(1, freeze_epochs=-1)', 'fit_one_cycle(0, 1e-3)',
    'fit_one_cycle(1, 0)', 'fit_one_cycle(1, [1e-3, 1e-3])', 'fit(-1, 1e-3)',
    'fit("3", 1e-3)', 'fit(1, -1e-3)', 'fit(1, "1e-3")'])
def test_bad_numbers_are_said_before_any_training(make_learner, call):
    learn = make_learner()
    before = state(learn.model)
    with pytest.raises(ValueError):
        eval(f'learn.{call}')
    assert same_bits(before, state(learn.model)) and learn.recorder.losses == []


def test_ctrl_c_in_the_middle_of_fine_tune(make_learner, pets):
    calls = []
    def stop(logits, targets):
        calls.append(len(calls))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return error_rate(logits, targets)
    learn = make_learner(metrics=stop)
    with pytest.raises(KeyboardInterrupt):
        learn.fine_tune(3)  # in its second unfrozen epoch
    recorder = learn.recorder
    assert [row['phase'] for row in recorder.history] == ['frozen', 'unfrozen']
    for per_step in (recorder.losses, recorder.lrs, recorder.moms, recorder.positions):
        assert len(per_step) == 3 * len(pets.train)
    recorder.plot_loss(), recorder.plot_metrics(), recorder.plot_schedule()
    assert learn.predict(pets.valid.pictures[0]).label in pets.classes
    learn.fit_one_cycle(1, 1e-3)
    assert len(recorder.history) == 3 and recorder.position == pytest.approx(4)


def test_a_loss_of_ones_own(make_learner):
    learn = make_learner(loss_func=nn.CrossEntropyLoss(label_smoothing=0.1))
    learn.fit(1, 1e-3)
    plain = make_learner()
    plain.fit(1, 1e-3)
    assert learn.recorder.losses[0] != plain.recorder.losses[0]


# Looking changes nothing

def test_looking_changes_nothing(make_learner, pets):
    runs = []
    for look in (False, True):
        learn = make_learner()
        learn.seed = None  # from now on the global generators decide
        torch.manual_seed(2)
        learn.fit(1, 1e-3)
        learn.model.train()
        learn.model[0].layer3.eval()
        modes = [m.training for m in learn.model.modules()]
        if look:
            learn.lr_find(num_it=8)
            learn.validate(), learn.summary(), learn.predict(pets.valid.pictures[0])
            learn.recorder.plot_loss(), learn.recorder.plot_metrics(), learn.recorder.plot_schedule()
            pets.show_batch()
            assert [m.training for m in learn.model.modules()] == modes
        learn.fit(1, 1e-3)
        runs.append((learn.recorder.losses, state(learn.model)))
    assert runs[0][0] == runs[1][0] and same_bits(runs[0][1], runs[1][1])


def test_validate_is_what_the_last_epoch_said(make_learner):
    learn = make_learner(metrics=[error_rate, accuracy])
    learn.fit(1, 1e-2)
    result, row = learn.validate(), learn.recorder.history[-1]
    assert result._fields == ('valid_loss', 'error_rate', 'accuracy')
    assert result == pytest.approx([row['valid_loss'], row['error_rate'], row['accuracy']], rel=1e-5)


def test_validate_on_other_pictures(make_learner, pets):
    learn = make_learner()
    learn.fit(1, 1e-2)
    sketches = drawn_pets(n_train=1, n_valid=3, size=32, style='sketch')
    assert learn.validate(pets.valid) == learn.validate()
    assert learn.validate(sketches.valid) != learn.validate()
    learn.dls = sketches
    assert learn.validate() == learn.validate(sketches.valid)


def test_predict_from_path_image_and_array(make_learner, pets, tmp_path):
    learn = make_learner()
    learn.fit(1, 1e-2)
    picture = pets.valid.pictures[5].permute(1, 2, 0).numpy()
    Image.fromarray(picture).save(tmp_path / 'pet.png')
    answers = [learn.predict(image) for image in (tmp_path / 'pet.png', str(tmp_path / 'pet.png'),
                                                  Image.fromarray(picture), picture)]
    x, _ = next(iter(pets.valid))
    expected = learn.model.eval()(x)[5].softmax(0)
    for label, probabilities in answers:
        assert torch.allclose(probabilities, expected, atol=1e-5)
        assert probabilities.shape == (12,) and probabilities.sum().item() == pytest.approx(1)
        assert label == pets.classes[int(expected.argmax())]


def test_predict_takes_photos_of_any_size(make_learner):
    answer = make_learner().predict(Image.new('L', (300, 100)))
    assert answer.probabilities.isfinite().all()


def test_predict_names_a_missing_file(make_learner):
    with pytest.raises(FileNotFoundError, match='no_such_pet.jpg'):
        make_learner().predict('no_such_pet.jpg')


def test_plot_schedule_before_training(make_learner):
    learn = make_learner()
    rates, momenta = learn.recorder.plot_schedule(learn.one_cycle_schedule(3, slice(1e-6, 1e-4)))
    assert [line.get_label() for line in rates.get_lines()] == ['early body', 'late body', 'head']
    starts = [line.get_ydata()[0] for line in rates.get_lines()]
    assert starts == pytest.approx([4e-8, 4e-7, 4e-6])
    assert len(rates.get_lines()[0].get_xdata()) == 3 * len(learn.dls.train)
    assert momenta.get_lines()[0].get_ydata()[0] == 0.95
    assert learn.recorder.losses == []


def test_plots_keep_all_phases(make_learner):
    learn = make_learner()
    learn.fine_tune(1)
    learn.fit_one_cycle(1, 1e-4)
    steps = 3 * len(learn.dls.train)
    assert len(learn.recorder.plot_loss().get_lines()[0].get_xdata()) == steps
    assert len(learn.recorder.plot_schedule()[0].get_lines()) == 3
    assert len(learn.recorder.plot_schedule()[0].get_lines()[0].get_xdata()) == steps
    assert list(learn.recorder.plot_metrics().get_lines()[0].get_xdata()) == pytest.approx([1, 2, 3])


# Saving and loading

def moments(learn):
    memory = learn.optimizer.state_dict()['state']
    return {f'{i}.{k}': v.clone() for i, tensors in memory.items() for k, v in tensors.items()}


def learns(learn):
    return [p.requires_grad for p in learn.model.parameters()]


@pytest.mark.parametrize('group', [-1, 1, 0])
def test_save_and_load(make_learner, tmp_path, group):
    learn = make_learner()
    learn.freeze_to(group)
    learn.fit(1, 1e-2)
    path = learn.save(tmp_path / 'deeper' / 'stage-1')
    assert path == tmp_path / 'deeper' / 'stage-1.safetensors' and path.is_file()
    assert [p.name for p in path.parent.iterdir()] == [path.name], 'nothing else is left there'
    other = make_learner(seed=9)
    assert other.load(tmp_path / 'deeper' / 'stage-1') is other
    assert same_bits(state(learn.model), state(other.model))
    assert same_bits(moments(learn), moments(other)) and moments(other)
    assert learns(learn) == learns(other)
    before = state(other.model[0])
    other.fit(1, 1e-2)
    moved = changed(before, state(other.model[0]))
    assert bool(moved) is (group != -1), 'frozen still means frozen to the bit'
    assert ('conv1.weight' in moved) is (group == 0)


@pytest.mark.parametrize('group', [-1, 0])
def test_training_goes_on_as_if_nothing_had_been_saved(make_learner, tmp_path, group):
    learn, twin = make_learner(seed=None), make_learner(seed=9)
    learn.freeze_to(group)
    learn.fit(1, 1e-2)
    learn.save(tmp_path / 'half')
    twin.seed = None
    twin.load(tmp_path / 'half')
    for each in (learn, twin):
        torch.manual_seed(4)
        each.fit(2, 1e-2)
    assert same_bits(state(learn.model), state(twin.model))
    assert learn.recorder.losses[-2 * len(learn.dls.train):] == twin.recorder.losses


def test_saving_and_loading_in_between_changes_nothing(make_learner, tmp_path):
    runs = []
    for save in (False, True):
        learn = make_learner()
        learn.fine_tune(1)
        if save:
            learn.save(tmp_path / 'between')
            learn.load(tmp_path / 'between')
        learn.fit_one_cycle(1, 1e-2)
        runs.append((learn.recorder.losses, state(learn.model)))
    assert runs[0][0] == runs[1][0] and same_bits(runs[0][1], runs[1][1])


def test_load_goes_back(make_learner, tmp_path):
    learn = make_learner()
    learn.fit(1, 1e-2)
    saved = state(learn.model)
    learn.save(tmp_path / 'a')
    learn.unfreeze()
    learn.fit(1, 1e-2)
    learn.load(tmp_path / 'a')
    assert same_bits(saved, state(learn.model))
    assert learns(learn) == learns(make_learner())


def test_load_without_the_optimizer(make_learner, tmp_path):
    learn = make_learner()
    learn.fit(1, 1e-2)
    learn.save(tmp_path / 'a')
    learn.load(tmp_path / 'a', with_opt=False)
    assert moments(learn) == {}


def test_save_replaces_and_names_may_have_dots(make_learner, tmp_path):
    learn = make_learner()
    path = learn.save(tmp_path / 'v1.2')
    assert path.name == 'v1.2.safetensors' == learn.save(path).name
    learn.fit(1, 1e-2)
    learn.save(tmp_path / 'v1.2')
    other = make_learner()
    other.load(tmp_path / 'v1.2')
    assert same_bits(state(learn.model), state(other.model))
    assert len(list(tmp_path.iterdir())) == 1


class Memory:
    "Everything of a learner that a load could change."
    def __init__(self, learn):
        self.learn, self.before = learn, (state(learn.model), moments(learn), learns(learn),
                                          [m.training for m in learn.model.modules()])

    def check(self):
        learn, (weights, memory, learning, modes) = self.learn, self.before
        assert same_bits(weights, state(learn.model)) and same_bits(memory, moments(learn))
        assert learning == learns(learn) and modes == [m.training for m in learn.model.modules()]


def saved_by(tmp_path, make_learner, *args, **options):
    return make_learner(*args, **options).save(tmp_path / 'model')


def other_arch(tmp_path, make_learner):
    return saved_by(tmp_path, make_learner, arch=tiny_resnet)

def other_classes(tmp_path, make_learner):
    dls = drawn_pets(n_train=1, n_valid=1, size=32, cats_vs_dogs=True)
    return saved_by(tmp_path, make_learner, dls)

def other_names_of_classes(tmp_path, make_learner):
    dls = drawn_pets(n_train=1, n_valid=1, size=32)
    dls.classes = [f'breed {i}' for i in range(12)]
    return saved_by(tmp_path, make_learner, dls)

def other_head_width(tmp_path, make_learner):
    return saved_by(tmp_path, make_learner, hidden=(9,))

def other_head_depth(tmp_path, make_learner):
    return saved_by(tmp_path, make_learner, hidden=())

def damaged_file(tmp_path, make_learner):
    path = saved_by(tmp_path, make_learner)
    path.write_bytes(b'\xff' * 64 + path.read_bytes()[64:])
    return path

def cut_off(tmp_path, make_learner):
    path = saved_by(tmp_path, make_learner)
    path.write_bytes(path.read_bytes()[:-100])
    return path

def empty(tmp_path, make_learner):
    (tmp_path / 'model.safetensors').write_bytes(b'')
    return tmp_path / 'model.safetensors'

def foreign(tmp_path, make_learner):
    path = tmp_path / 'model.safetensors'
    safetensors.torch.save_file({'weight': torch.zeros(3)}, path, {'format': 'pt'})
    return path

def foreign_with_our_number(tmp_path, make_learner):
    path = tmp_path / 'model.safetensors'
    safetensors.torch.save_file({'weight': torch.zeros(3)}, path, {'format': '1'})
    return path

def pickled(tmp_path, make_learner):
    path = tmp_path / 'model.safetensors'
    torch.save(make_learner().model.state_dict(), path)
    return path

def memory_of_another_shape(tmp_path, make_learner):
    learn = make_learner()
    learn.fit(1, 1e-2)
    path = learn.save(tmp_path / 'model')
    with safetensors.safe_open(path, 'pt') as file:
        tensors, about = {k: file.get_tensor(k) for k in file.keys()}, file.metadata()
    key = next(k for k in tensors if k.endswith('.exp_avg'))
    safetensors.torch.save_file({**tensors, key: torch.zeros(3)}, path, about)
    return path


@pytest.mark.parametrize('make, told', [
    (other_arch, 'arch.*tiny_resnet.*TinyResNet'), (other_classes, "classes.*'cat'"),
    (other_names_of_classes, 'classes'), (other_head_width, 'tensors differ.*1\\.'),
    (other_head_depth, 'tensors differ.*1\\.'),
    (damaged, 'damaged'), (cut_off, 'damaged'), (empty, 'damaged'),
    (foreign, 'not written by finetune_teach'), (foreign_with_our_number, ''), (pickled, 'damaged'),
    (memory_of_another_shape, '')], ids=lambda v: getattr(v, '__name__', ''))
def test_load_refuses(make_learner, tmp_path, make, told):
    path = make(tmp_path, make_learner)
    learn = make_learner(seed=5)
    learn.fit(1, 1e-2)
    memory = Memory(learn)
    with pytest.raises(ValueError, match=f'(?s){told}') as error:
        learn.load(path)
    assert str(path) in str(error.value), 'says which file'
    memory.check()
    learn.fit(1, 1e-2)


def test_load_of_a_missing_file(make_learner, tmp_path):
    learn = make_learner()
    learn.save(tmp_path / 'stage-1')
    memory = Memory(learn)
    with pytest.raises(FileNotFoundError, match='stage-2.*stage-1') as error:
        learn.load(tmp_path / 'stage-2')
    assert str(tmp_path) in str(error.value)
    memory.check()


class Evil:
    "Runs code where it is unpickled."
    def __reduce__(self):
        return Path.write_text, (Path('stolen'), 'stolen')


def test_no_code_in_a_file_is_run(make_learner, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('model.safetensors').write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match='damaged'):
        make_learner().load('model')
    assert not Path('stolen').exists()


def test_a_failed_save_keeps_the_older_file(make_learner, tmp_path, monkeypatch):
    learn = make_learner()
    path = learn.save(tmp_path / 'a')
    before = path.read_bytes()
    def full(tensors, name, about):
        Path(name).write_bytes(b'half a file')
        raise OSError('no space left on device')
    monkeypatch.setattr(safetensors.torch, 'save_file', full)
    with pytest.raises(OSError, match='no space'):
        learn.save(tmp_path / 'a')
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ['a.safetensors']


# From the file alone

@pytest.mark.parametrize('hidden', [(8,), (), (6, 5)])
def test_load_learner(pets, tmp_path, hidden):
    learn = vision_learner(pets, tiny_resnet, weights=None, hidden=hidden, seed=0, device='cpu', show=False)
    learn.fit(1, 1e-2)
    learn.save(tmp_path / 'pets')
    again = load_learner(tmp_path / 'pets', device='cpu')
    assert same_bits(state(learn.model), state(again.model)) and learns(learn) == learns(again)
    picture = pets.valid.pictures[0]
    one, two = learn.predict(picture), again.predict(picture)
    assert one.label == two.label and torch.equal(one.probabilities, two.probabilities)


def test_load_learner_with_parts_of_ones_own(make_learner, tmp_path):
    make_learner(head=OwnHead(8, 12)).save(tmp_path / 'own')
    with pytest.raises(ValueError, match='TinyResNet.*arch='):
        load_learner(tmp_path / 'own', head=OwnHead(8, 12))
    with pytest.raises(ValueError, match='head='):
        load_learner(tmp_path / 'own', small_network())
    again = load_learner(tmp_path / 'own', small_network(seed=5), OwnHead(8, 12), device='cpu')
    assert same_bits(state(again.model[0]), state(make_learner().model[0]))


def test_load_learner_refuses(make_learner, tmp_path):
    with pytest.raises(FileNotFoundError, match='nothing'):
        load_learner(tmp_path / 'nothing')
    with pytest.raises(ValueError, match='damaged'):
        load_learner(cut_off(tmp_path, make_learner))


# A learner around a model of one's own

def test_learner_of_plain_parts(pets, tmp_path):
    def build():
        torch.manual_seed(0)
        model = nn.Sequential(create_body(small_network()), create_head(8, 12))
        return Learner(pets, model, metrics=accuracy, seed=0, device='cpu', show=False)
    learn = build()
    learn.freeze()
    learn.fit_one_cycle(1, 1e-2)
    assert set(learn.recorder.history[0]) >= {'accuracy', 'valid_loss'}
    answer = learn.predict(pets.valid.pictures[0])
    assert answer.label in pets.classes
    learn.save(tmp_path / 'plain')
    other = build()
    other.load(tmp_path / 'plain')
    assert same_bits(state(learn.model), state(other.model))


# On a GPU

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_on_a_gpu(make_learner, pets, tmp_path):
    learn = make_learner(device='cuda')
    before, generator = state(learn.model[0]), torch.cuda.get_rng_state()
    learn.fit(1, 1e-2)
    assert same_bits(before, state(learn.model[0]))
    learn.lr_find(num_it=10)
    assert torch.equal(torch.cuda.get_rng_state(), generator)
    learn.fine_tune(1)
    learn.save(tmp_path / 'a')
    answer = learn.predict(pets.valid.pictures[0])
    assert answer.probabilities.device.type == 'cpu'
    assert {p.device.type for p in learn.model.parameters()} == {'cuda'}
    other = make_learner(device='cpu')
    other.load(tmp_path / 'a')
    again = other.predict(pets.valid.pictures[0])
    assert torch.allclose(again.probabilities, answer.probabilities, atol=1e-2)
    other.fit(1, 1e-3)
    make_learner(device='cuda').load(tmp_path / 'a').fit(1, 1e-3)


@pytest.mark.parametrize('call', [lambda learn: learn.validate(), lambda learn: learn.summary(),
                                  lambda learn: learn.lr_find(), lambda learn: learn.fit(1)])
def test_without_pictures_it_is_said(make_learner, tmp_path, call):
    learn = load_learner(make_learner().save(tmp_path / 'one'), arch=small_network())
    with pytest.raises(ValueError, match='loaded without pictures'):
        call(learn)


def test_validate_frozen_and_unfrozen_is_the_same(make_learner):
    learn = make_learner()
    frozen = learn.validate()
    learn.unfreeze()
    assert tuple(learn.validate()) == pytest.approx(tuple(frozen), abs=1e-5)
