"The lesson's lines; fine_tune to the bit and by fastai's numbers; what a learner refuses."
import math
import shutil
import urllib.request
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils.data import DataLoader
from torchvision import models, transforms

from conftest import Batches, changed, publish, same_bits, small_network, state
from finetune_teach.engine.drawing import draw_pet
from finetune_teach.engine.features import Loaders
from finetune_teach.engine.history import Recorder
from finetune_teach.engine.tiny_resnet import tiny_resnet
from finetune_teach.fine_tuning import Learner, fine_tune, fit_one_cycle
from finetune_teach.freezing import freeze, unfreeze
from finetune_teach.pictures import drawn_pets, image_folders
from finetune_teach.pretrained_body import create_body
from finetune_teach.random_head import create_head
from finetune_teach.tools.learners import load_learner, vision_learner
from finetune_teach.training_loop import accuracy, constant, error_rate, fit, get_logits


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


# Fine-tuning

def test_fine_tune_is_the_plain_functions(make_learner, pets):
    "The learner's, the plain one, and its two phases by hand: bit for bit."
    learn, plain, model = make_learner(), make_learner().model, make_learner().model
    learn.fine_tune(2)
    told = fine_tune(plain, pets, 2, seed=0, show=False)
    recorder = Recorder()
    fit_one_cycle(freeze(model), pets, 1, slice(2e-3), pct_start=0.99, recorder=recorder, seed=0, show=False)
    fit_one_cycle(unfreeze(model), pets, 2, slice(1e-5, 1e-3), pct_start=0.3, div=5, recorder=recorder, seed=0,
                  show=False)
    assert same_bits(state(learn.model), state(plain)) and same_bits(state(plain), state(model))
    for other in (told, recorder):
        assert other.losses == learn.recorder.losses and other.lrs == learn.recorder.lrs
        assert other.phases == learn.recorder.phases
    assert Learner.fine_tune.__qualname__ == 'Learner.fine_tune' and Learner.__mro__[1] is object, 'for help()'


@pytest.mark.parametrize('body', [
    nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8)), nn.Linear(4, 8)])
def test_any_network_and_pytorchs_own_loaders(body):
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    data = torch.utils.data.TensorDataset(x, x[:, :3].argmax(1))
    dls = Loaders(torch.utils.data.DataLoader(data, 8, shuffle=True), torch.utils.data.DataLoader(data, 8))
    model, firsts = nn.Sequential(body, nn.Linear(8, 3)), []
    def note(model, recorder):
        firsts.append(state(model[0]))
    before = state(model[0])
    recorder = fine_tune(model, dls, 30, 0.05, 2, lr_mult=5, metrics=accuracy, seed=1, show=False, callbacks=[note])
    assert same_bits(before, firsts[1]) and changed(firsts[1], firsts[2]) >= {n for n in before if 'weight' in n}
    assert [row['phase'] for row in recorder.history] == ['frozen'] * 2 + ['unfrozen'] * 30
    assert recorder.history[-1]['accuracy'] > 0.8


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


def test_fine_tune_hands_its_options_on(make_learner):
    learn = make_learner()
    learn.fine_tune(1, base_lr=1e-2, freeze_epochs=2, lr_mult=4, pct_start=0.5, div=10,
                    wd=0, moms=(0.9, 0.8, 0.9))
    n, lrs = len(learn.dls.train), learn.recorder.lrs
    assert [row['phase'] for row in learn.recorder.history] == ['frozen', 'frozen', 'unfrozen']
    assert [(p.name, round(p.start, 6)) for p in learn.recorder.phases] == [('frozen', 0), ('unfrozen', 2)]
    assert lrs[0] == pytest.approx((1e-3 / 25, 1e-3 / 25, 1e-2 / 25))
    assert lrs[2 * n] == pytest.approx((5e-3 / 4 / 10, 5e-3 / 2 / 10, 5e-3 / 10))
    assert learn.recorder.moms[0] == learn.recorder.moms[2 * n] == (0.9, 0.9, 0.9)
    assert min(learn.recorder.moms)[0] >= 0.8
    assert all(g['weight_decay'] == 0 for g in learn.optimizer.param_groups)


def test_from_scratch_warns(make_learner):
    learn = make_learner(arch=small_network, weights=None)
    with pytest.warns(UserWarning, match='from scratch'):
        learn.fine_tune(1)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        make_learner().fine_tune(1)


@pytest.mark.parametrize('call', [
    'fine_tune(0)', 'fine_tune(2.5)', 'fine_tune(1, base_lr=-1)', 'fine_tune(1, base_lr=float("nan"))',
    'fine_tune(1, lr_mult=0)', 'fine_tune(1, freeze_epochs=-1)', 'fit_one_cycle(0, 1e-3)',
    'fit_one_cycle(1, 0)', 'fit_one_cycle(1, [1e-3, 1e-3])', 'fit(-1, 1e-3)',
    'fit("3", 1e-3)', 'fit(1, -1e-3)', 'fit(1, "1e-3")', 'fine_tune(1, lr_max=1e-3)'])
def test_bad_numbers_are_said_before_any_training(make_learner, call):
    learn = make_learner()
    before = state(learn.model)
    with pytest.raises(TypeError if 'lr_max' in call else ValueError, match='base_lr' if 'lr_max' in call else None):
        eval(f'learn.{call}')
    if not call.startswith('fit('):
        with pytest.raises((TypeError, ValueError)):
            eval(call.replace('(', '(learn.model, learn.dls, '))
    assert same_bits(before, state(learn.model)) and learn.recorder.losses == []


# A learner

def test_rates_weight_decay_and_momenta_of_the_learner_or_of_one_call(make_learner):
    learn = make_learner(lr=5e-3, moms=(0.9, 0.7, 0.9), wd=0.2)
    learn.fit_one_cycle(1, wd=0.1)
    assert learn.recorder.lrs[0] == pytest.approx((2e-4,) * 3) and learn.recorder.moms[0] == (0.9,) * 3
    assert {g['weight_decay'] for g in learn.optimizer.param_groups} == {0, 0.1}
    learn.fit(1)
    assert learn.recorder.lrs[-1] == (5e-3,) * 3 and learn.recorder.moms[-1] == (0.9,) * 3
    assert {g['weight_decay'] for g in learn.optimizer.param_groups} == {0, 0.2}


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


def test_looking_fills_the_cache_and_changes_nothing(make_learner):
    "With or without a finder and a validation before: the same weights to the bit."
    def trained(look):
        learn = make_learner()
        if look:
            learn.lr_find(num_it=11), learn.validate(), learn.lr_find(seed=5)
            assert all(table.filled.any() for _, table, _ in learn.cache.tables.values())
        learn.fit_one_cycle(2, 1e-2)
        learn.validate()
        learn.fine_tune(1)
        return state(learn.model)
    assert same_bits(trained(look=True), trained(look=False))


def test_validate_frozen_and_unfrozen_is_the_same(make_learner):
    learn = make_learner(metrics=[error_rate, accuracy])
    learn.fit(1, 1e-2)
    frozen, row = learn.validate(), learn.recorder.history[-1]
    assert frozen._fields == ('valid_loss', 'error_rate', 'accuracy')
    assert frozen == pytest.approx([row['valid_loss'], row['error_rate'], row['accuracy']], rel=1e-5)
    learn.unfreeze()
    assert tuple(learn.validate()) == pytest.approx(tuple(frozen), abs=1e-5) and not learn.cache.tables


def test_validate_on_other_pictures(make_learner, pets):
    learn = make_learner()
    learn.fit(1, 1e-2)
    sketches = drawn_pets(n_train=1, n_valid=3, size=32, style='sketch')
    assert learn.validate(pets.valid) == learn.validate()
    assert learn.validate(sketches.valid) != learn.validate()
    learn.dls = sketches
    assert learn.validate() == learn.validate(sketches.valid)


@pytest.mark.parametrize('call', [
    lambda learn: learn.validate(), lambda learn: learn.summary(), lambda learn: learn.lr_find(),
    lambda learn: learn.fit(1), lambda learn: learn.fine_tune(1)])
def test_without_pictures_it_is_said(make_learner, call):
    learn = make_learner()
    learn.dls = None  # as `load_learner` gives it
    with pytest.raises(ValueError, match='loaded without pictures'):
        call(learn)


def test_plot_schedule_before_training(make_learner):
    learn = make_learner()
    rates, momenta = learn.recorder.plot_schedule(learn.one_cycle_schedule(3, slice(1e-6, 1e-4)))
    assert [line.get_label() for line in rates.get_lines()] == ['early body', 'late body', 'head']
    starts = [line.get_ydata()[0] for line in rates.get_lines()]
    assert starts == pytest.approx([4e-8, 4e-7, 4e-6])
    assert len(rates.get_lines()[0].get_xdata()) == 3 * len(learn.dls.train)
    assert momenta.get_lines()[0].get_ydata()[0] == 0.95
    assert learn.recorder.losses == []


def test_a_learner_of_plain_parts(pets):
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(create_body(small_network()), create_head(8, 12))
    learn = Learner(pets, model, metrics=accuracy, seed=0, device='cpu', show=False)
    learn.freeze()
    learn.fit_one_cycle(1, 1e-2)
    assert set(learn.recorder.history[0]) >= {'accuracy', 'valid_loss'}
    assert learn.predict(pets.valid.pictures[0]).label in pets.classes


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


# Pictures meet the model by name, and as it was trained

BREEDS = 'beagle', 'husky', 'pug'


@pytest.fixture
def photos(tmp_path):
    "A function that draws a folder of photos: breeds, how many of each, the first seed."
    def draw(name, breeds=BREEDS, n=6, start=0):
        for breed in breeds:
            (tmp_path / name / breed).mkdir(parents=True)
            for i in range(n):
                draw_pet(breed, start + i, size=40).save(tmp_path / name / breed / f'{breed}{start + i}.png')
        return tmp_path / name
    return draw


@pytest.fixture
def trained(photos, make_learner):
    "A learner of three breeds, trained on 32 pixels until it tells some of them apart."
    learn = make_learner(image_folders(photos('photos'), size=32, batch_size=6), hidden=())
    learn.unfreeze()
    learn.fit_one_cycle(4, 1e-2)
    return learn


def error_by_name(learn, folder):
    files = sorted(folder.rglob('*.png'))
    return sum(learn.predict(file).label != file.parent.name for file in files) / len(files)


@pytest.mark.parametrize('breeds', [BREEDS, ('husky', 'pug'), ('pug',)])
def test_a_test_folder_in_which_classes_are_missing(trained, photos, breeds):
    "Its labels are other numbers than the model's; a folder of one class is a test set as well."
    folder = photos('test', breeds, start=100)
    assert trained.validate(folder).error_rate == pytest.approx(error_by_name(trained, folder))
    assert trained.validate(str(folder)) == trained.validate(folder)
    if len(breeds) > 1:
        loader = image_folders(folder, size=32).valid
        right = [trained.predict(f).label == f.parent.name for f in loader.files]
        assert trained.validate(loader).error_rate == pytest.approx(1 - sum(right) / len(right))


def test_classes_in_another_order(trained, photos):
    "As loaders of other people have them, with a data set of torchvision in it."
    data = torchvision.datasets.ImageFolder(photos('test', start=100), transforms.Compose([
        transforms.Resize(32), transforms.ToTensor(), transforms.Normalize(trained.dls.mean, trained.dls.std)]))
    plain = trained.validate(DataLoader(data, 4))
    data.classes = data.classes[::-1]
    data.targets = data.imgs = None
    data.samples = [(path, 2 - k) for path, k in data.samples]
    assert trained.validate(DataLoader(data, 4)) == plain


def test_a_class_that_the_model_does_not_know(trained, photos):
    folder = photos('test', ('pug', 'Siamese', 'husky'), start=100) # as many as the model has
    for pictures in (folder, image_folders(folder, size=32).valid):
        with pytest.raises(ValueError, match='does not know: Siamese. It knows beagle, husky, pug'):
            trained.validate(pictures)
    with pytest.raises(ValueError, match='does not know: Siamese'):
        trained.dls = image_folders(folder)
    with pytest.raises(ValueError, match='holds several sets of pictures: give one of them, for instance .valid'):
        trained.validate(trained.dls)


def test_a_folder_with_a_split_is_tested_on_what_is_held_out(trained, photos):
    photos('split/train'), photos('split/valid', start=50)
    root = photos('split/test', start=100).parent
    assert trained.validate(root) == trained.validate(root / 'test') != trained.validate(root / 'valid')
    shutil.rmtree(root / 'test')
    assert trained.validate(root) == trained.validate(root / 'valid')


def test_pictures_exchanged_for_others(trained, photos):
    "With fewer classes, named in another order: the model's numbers stay; size and device, too."
    trained.dls = image_folders(photos('more', ('pug', 'husky'), start=200))
    assert trained.dls.classes == list(BREEDS) and trained.dls.size == 32
    assert {BREEDS[k] for k in trained.dls.train.labels.tolist()} == {'husky', 'pug'}
    assert all(BREEDS[k] == f.parent.name for k, f in zip(trained.dls.valid.labels.tolist(), trained.dls.valid.files))
    trained.fit(1, 1e-3)
    assert trained.description['classes'] == list(BREEDS)


def test_predict_goes_on_with_the_size_last_trained_with(trained, photos, tmp_path):
    "Small pictures first, larger ones later: the answers are those of the table."
    larger = image_folders(tmp_path / 'photos', size=40, batch_size=6)
    before = trained.predict(larger.valid.files[0]).probabilities
    trained.dls = larger
    assert trained.predict(larger.valid.files[0]).probabilities.equal(before) # nothing was trained yet
    trained.fit(1, 1e-3)
    exported = load_learner(trained.export(tmp_path / 'm'), small_network(), device='cpu')
    for learn in (trained, exported):
        assert learn.description['size'] == 40
        logits, _ = get_logits(learn.model, trained.dls.valid)
        for row, file in zip(logits, larger.valid.files):
            assert learn.predict(file).probabilities.allclose(row.softmax(0), atol=1e-5)


def test_a_file_of_another_size(trained, photos, tmp_path, make_learner):
    "What `load` brings is used as it was trained."
    saved = trained.save(tmp_path / 'm')
    learn = make_learner(image_folders(tmp_path / 'photos', size=40, batch_size=6), hidden=())
    with pytest.warns(UserWarning, match='trained on pictures with size 32, here it is 40. predict goes on as in the file'):
        learn.load(saved)
    file = learn.dls.valid.files[0]
    assert learn.predict(file).probabilities.equal(trained.predict(file).probabilities)


def test_a_loaded_learner_trains_as_before(photos, tmp_path, make_learner):
    dls = image_folders(photos('photos'), size=32, batch_size=6)
    learn = make_learner(dls, wd=0.5, lr=3e-3, moms=(0.9, 0.8, 0.9), seed=5, train_bn=True, metrics=[accuracy, error_rate],
                         loss_func=nn.CrossEntropyLoss(torch.tensor([1., 2, 4]), label_smoothing=0.1))
    learn.fit(1)
    again = load_learner(learn.save(tmp_path / 'm'), small_network(), device='cpu')
    again.dls, again.show = dls, False
    assert (again.wd, again.lr, again.moms, again.seed, again.train_bn) == (0.5, 3e-3, [0.9, 0.8, 0.9], 5, True)
    assert again.validate() == learn.validate()
    learn.load(tmp_path / 'm')
    for one in (learn, again):
        one.recorder.epochs_begun = 1
        one.fit(1)
    assert same_bits(state(learn.model), state(again.model))


def test_code_in_a_loaded_learner_is_asked_for(photos, tmp_path, make_learner):
    def focal(logits, targets): return F.cross_entropy(logits, targets) ** 2
    make_learner(image_folders(photos('photos'), size=32), loss_func=focal).save(tmp_path / 'm')
    with pytest.warns(UserWarning, match=r'trained with loss_func focal: code.*load_learner\(\.\.\., loss_func=\.\.\.\)'):
        load_learner(tmp_path / 'm', small_network())
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert load_learner(tmp_path / 'm', small_network(), loss_func=focal).loss_func is focal


def test_plain_loaders_and_a_plain_model(photos, tmp_path):
    "They do not say how pictures are prepared: so it is asked for, and goes into the file."
    data = torchvision.datasets.ImageFolder(photos('photos'), transforms.Compose([
        transforms.Resize(32), transforms.ToTensor()]))
    loaders = Batches(DataLoader(data, 4), DataLoader(data, 4))
    model = nn.Sequential(create_body(small_network()), create_head(8, 3, ()))
    learn = Learner(loaders, model, device='cpu', show=False)
    learn.fit(1, 1e-3)
    file = data.samples[0][0]
    with pytest.raises(ValueError, match=r'this model does not know size, mean, std .* preprocessing=dict\('):
        learn.predict(file)
    with pytest.raises(ValueError, match=r'm.safetensors does not know size, mean, std'):
        load_learner(learn.save(tmp_path / 'm'), small_network(), create_head(8, 3, ()))
    as_it_was = dict(size=32, mean=[0, 0, 0], std=[1, 1, 1])
    known = Learner(loaders, model, device='cpu', preprocessing=as_it_was)
    row = get_logits(model, loaders.valid)[0][0].softmax(0)
    assert known.predict(file).probabilities.allclose(row, atol=1e-5)
    for saved, options in ((learn, {'preprocessing': as_it_was}), (known, {})):
        again = load_learner(saved.save(tmp_path / 'm'), small_network(), create_head(8, 3, ()), device='cpu', **options)
        assert again.predict(file).probabilities.equal(known.predict(file).probabilities)


def test_a_validation_folder_with_fewer_classes_of_plain_loaders(photos):
    "torchvision numbers each folder by itself; here both are numbered as the training set is."
    change = transforms.Compose([transforms.Resize(32), transforms.ToTensor()])
    train = torchvision.datasets.ImageFolder(photos('photos'), change)
    valid = torchvision.datasets.ImageFolder(photos('valid', ('husky', 'pug'), start=50), change)
    model = nn.Sequential(create_body(small_network()), create_head(8, 3, ()))
    loaders = Batches(DataLoader(train, 4), DataLoader(valid, 4))
    recorder = fit(model, loaders, 1, constant(5, 1e-3), show=False)
    logits, numbers = get_logits(model, loaders.valid)
    assert recorder.history[0]['valid_loss'] == pytest.approx(F.cross_entropy(logits, numbers + 1).item())
    assert Learner(loaders, model, device='cpu').validate().valid_loss == recorder.history[0]['valid_loss']
