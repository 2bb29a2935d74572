"Runs that were recorded: read, chosen, summed up; and a recording that goes on after a stop."
import json

import pytest
import torch
from PIL import Image

from finetune_teach.tools import recorded_runs
from finetune_teach.tools.recipes import RECIPES, VARIANTS
from finetune_teach.tools.recorded_runs import (
    GUESS, PHOTOS, RUNS_FILE, Run, best_rate, cat_or_dog, errors_by, good_rates, pictures_of, planned,
    planned_variants, read_runs, record, runs_of, select, some_photos)


def run(**changes):
    return Run(*('drawings', 'drawn_resnet', 64, 5, 'fine_tune', 1e-3, 5, 0, .1, 240, 1.))._replace(**changes)


def test_the_recorded_runs_are_those_that_were_planned():
    recorded = [r[:8] for r in read_runs()]
    first = [r for seed in range(3) for photos in (False, True) for r in planned(seed, photos)]
    assert recorded == first + [r for seed in range(3) for r in planned_variants(seed)]


def test_the_recorded_runs_are_numbers_alone():
    for line in RUNS_FILE.read_text().splitlines():
        row = json.loads(line)
        assert set(row) == set(Run._fields) and 0 <= row['error'] <= 1 and row['n_valid'] > 0
        assert row['recipe'] in [*RECIPES, *VARIANTS, 'probe'] and '/' not in row['task'] + row['body']


@pytest.mark.parametrize('task, folder', [
    ('drawings', ''), ('CIFAR-10', 'cifar10_sample'), ('flowers', 'flowers_sample'), ('cats and dogs', 'oxford_pets_sample')])
def test_what_guessing_comes_to(task, folder, request):
    photos = request.config.rootpath.parent / 'shared' / 'data' / folder
    if folder and not photos.exists():
        pytest.skip('needs the photos')
    labels = torch.as_tensor(pictures_of(task, PHOTOS.get(task, 2), 64, 0, photos).valid.labels)
    assert GUESS[task] == pytest.approx(1 - labels.bincount().max().item() / len(labels))
    assert {r.n_valid for r in read_runs() if r.task == task} == {len(labels)}


def test_summaries():
    runs = [run(rate=r, seed=s, error=e + s / 100) for r, e in ((1e-2, .3), (1e-3, .1), (3e-3, .13)) for s in (0, 1)]
    assert errors_by(runs, 'rate') == {1e-3: [.1, .11], 3e-3: [.13, .14], 1e-2: [.3, .31]}
    assert best_rate(runs) == (1e-3, [.1, .11]) and good_rates(runs) == [1e-3, 3e-3]
    assert good_rates(runs, .01) == [1e-3] and select(runs, rate=1e-2, seed=1) == [runs[1]]


def test_recording_goes_on_after_a_stop(tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(recorded_runs, 'final_error', lambda *a, **k: trained.append(a) or .25)
    wanted = runs_of('drawings', 'drawn_resnet', 1, 0, (1e-3,), size=32)
    record(wanted[:2], tmp_path / 'runs.jsonl')
    record(wanted, tmp_path / 'runs.jsonl')
    assert len(trained) == len(wanted) == 5
    assert [r[:8] for r in read_runs(tmp_path / 'runs.jsonl')] == wanted


def test_a_run_is_what_the_recipe_gives(tmp_path):
    wanted = runs_of('drawings', 'drawn_resnet', 1, 0, (1e-3,), ['head only'], 32, 1)
    record(wanted, tmp_path / 'a')
    record(wanted, tmp_path / 'b')
    (a,), (b,) = (read_runs(tmp_path / name) for name in 'ab')
    assert a._replace(seconds=0) == b._replace(seconds=0) and a.n_valid == 240


@pytest.fixture
def folder(tmp_path):
    for part, n in (('train', 6), ('valid', 4)):
        for k, name in enumerate(('a', 'b')):
            (tmp_path / 'photos' / part / name).mkdir(parents=True)
            for i in range(n):
                Image.new('RGB', (32, 32), (40 * i, 100 * k, 20 * n)).save(
                    tmp_path / 'photos' / part / name / f'{i}.jpg')
    return tmp_path / 'photos'


def test_the_seed_chooses_photos(folder):
    first, again, other = (some_photos(folder, 3, 2, 32, seed) for seed in (0, 0, 1))
    assert list(first.train.files) == list(again.train.files) != list(other.train.files)
    assert len(first.train.labels) == 6 and len(first.valid.labels) == 4 and first.classes == ['a', 'b']
    assert {f.parent.parent.name for f in first.valid.files} == {'valid'}
    assert {f.parent.parent.name for f in first.train.files} == {'train'}


def test_without_a_valid_folder_others_validate(folder):
    dls = some_photos(folder / 'train', 2, 9, 32, 0)
    assert len(dls.train.labels) == 4 and len(dls.valid.labels) == 8
    assert not set(dls.train.files) & set(dls.valid.files)


def test_cats_and_dogs_by_their_names(folder):
    assert cat_or_dog(folder / 'Bengal_1.jpg') == 'cat' and cat_or_dog(folder / 'pug_2.jpg') == 'dog'
