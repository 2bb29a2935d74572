"Which advice holds for a folder of one's own."
import pytest
from test_claims import measured

import finetune_teach.tools.command_line as command
from finetune_teach.all import draw_pet, drawn_pets
from finetune_teach.tools import own_claims
from finetune_teach.tools.claims import Claim, Place, read_claims
from finetune_teach.tools.own_claims import advice_table, expected_minutes, few_pictures, folder_claims, verdict


@pytest.fixture
def folder(tmp_path):
    for breed in ('Siamese', 'pug', 'beagle'):
        (tmp_path / 'photos' / breed).mkdir(parents=True)
        for i in range(5):
            draw_pet(breed, seed=i, size=48).save(tmp_path / 'photos' / breed / f'{i}.png')
    return tmp_path / 'photos'


@pytest.fixture
def two_claims(monkeypatch):
    "A quick claim, and the first on recipes."
    all_of_them = own_claims.own_claims
    monkeypatch.setattr(own_claims, 'own_claims', lambda place: all_of_them(place)[:1] + all_of_them(place)[-1:])


def test_a_folder_is_measured(folder, two_claims, capsys, tmp_path):
    out = tmp_path / 'c.json'
    assert command.main(['claims', str(folder), '--size', '32', '--seeds', '1', '--out', str(out)]) == 0
    said = capsys.readouterr().out
    for text in ('3 classes', 'Measured with 12 training and 3 validation pictures', 'minutes', 'Ctrl-C',
                 '(photos, 1e-3 each)', 'For these pictures:', 'begin with a frozen epoch', 'of 2 claims held with 1 seeds'):
        assert text in said
    results = read_claims(out)
    assert [r.regime for r in results] == ['photos', 'photos']


@pytest.mark.parametrize('name, n_classes', [('cifar10_sample', 10), ('flowers_sample', 5)])
def test_photos(name, n_classes, request, two_claims, capsys):
    data = request.config.rootpath.parent / 'shared' / 'data' / name
    if not data.is_dir():
        pytest.skip(f'no {data}')
    results = folder_claims(data, size=64, seeds=[0], most=30)
    assert f'{n_classes} classes' in (said := capsys.readouterr().out)
    assert 'Measured with 30 training and 30 validation pictures of them (most=30)' in said
    random, pretrained = results[0].pairs[0]
    assert random <= pretrained


def test_pictures_are_the_same_for_every_seed_and_any_class_has_one():
    dls = few_pictures(drawn_pets(n_train=2, n_valid=3, size=32), 5)
    assert dls.train.labels.tolist() == dls.valid.labels.tolist() == list(range(12))
    assert len(few_pictures(dls, 99).train.labels) == 12


def test_loaders_are_measured_as_they_are_and_another_body_sets_its_size(two_claims, capsys):
    results = folder_claims(drawn_pets(n_train=2, n_valid=2, size=32, cats_vs_dogs=True), 'drawn_resnet', seeds=[0], show=False)
    assert len(results) == 2 and capsys.readouterr().out == ''


def test_ctrl_c_shows_the_advice_so_far(folder, monkeypatch, capsys):
    def interrupted(seed):
        raise KeyboardInterrupt
    first = Claim('It is', '01_pretrained_body', 'one', 'two', lambda seed: (1, 2), 'photos', advice='do it')
    monkeypatch.setattr(own_claims, 'own_claims', lambda place: [first, first._replace(measure=interrupted)])
    assert command.main(['claims', str(folder), '--size', '32']) == 130
    said = capsys.readouterr()
    assert said.out.count('  yes        do it\n') == 1 and '1 of 1 claims held' in said.out
    assert said.err == 'finetune-teach: stopped\n'


def test_a_wrong_folder_is_said(tmp_path, capsys):
    for arguments, told in [([str(tmp_path / 'none')], 'none'), ([str(tmp_path)], str(tmp_path)),
                            (['--arch', 'resnet18'], 'FOLDER'), ([str(tmp_path), '--arch', 'resnet43'], 'resnet34')]:
        assert command.main(['claims', *arguments]) == 2
        assert told in capsys.readouterr().err


def test_verdicts():
    for pairs, expected in [([(1, 2), (1, 2)], 'yes'), ([(2, 1), (2, 1)], 'no'), ([(0, 0), (0, 0)], 'no matter'),
                            ([(2, 1), (1, 2)], 'unclear'), ([(1, 1), (1, 2)], 'unclear')]:
        assert verdict(measured(pairs)) == expected
    assert advice_table([measured([(2, 1)], advice='jump'), measured([(2, 1)])]).splitlines()[1:] == ['  no         jump']


def test_time_grows_with_pictures_rates_and_seeds(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(own_claims.time, 'perf_counter', lambda: next(clock))
    dls = drawn_pets(n_train=2, n_valid=2, size=32, batch_size=12)
    place = Place('photos', 'drawn_resnet', lambda: dls, rates=(1e-3,))
    one = expected_minutes(place, 1)
    assert one > 0 and expected_minutes(place, 3) == pytest.approx(3 * one)
