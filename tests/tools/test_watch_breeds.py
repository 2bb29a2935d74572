"What the explorer shows is what was recorded, and what was recorded comes out again."
import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from conftest import CHROMIUM, assert_unchanged, everything, open_explorer
from finetune_teach.pictures import drawn_pets
from finetune_teach.tools.learners import vision_learner
from finetune_teach.tools.watch_breeds import (
    BREEDS_FILE, Watcher, answers_of, breed_places, picture_places, picture_sheet, places_of, read_breeds, record_breeds,
    watch_breeds, watched_run)


def test_places():
    places = breed_places(12)
    assert torch.allclose(places.norm(dim=1), torch.ones(12)) and places.sum(0).norm() < 1e-5
    assert (picture_places(100 * torch.eye(12), nn.Identity()) - places).norm() < 1e-5
    assert picture_places(torch.zeros(3, 12), nn.Identity()).norm() < 1e-6


def test_the_record_is_whole():
    found = read_breeds()
    places, answers, labels = places_of(found), answers_of(found), np.array(found['labels'])
    assert places.shape == (76, 120, 2) and answers.shape == (76, 120) and len(found['classes']) == 12
    assert np.hypot(*places.T).max() <= 1.0001 and answers.max() < 12
    assert (np.bincount(labels) == 10).all() and found['frozen'] == found['per_epoch'] == 15
    assert (places[:16] == places[0]).all() and (places[16] != places[15]).any(), 'frozen, and then not'
    wrong = (answers != labels).mean(1)
    assert wrong[0] > 0.8 and wrong[75] < wrong[15] - 0.2
    home = breed_places(12).numpy()[labels]
    assert np.hypot(*(places[75] - home).T).mean() < np.hypot(*(places[0] - home).T).mean() - 0.2, 'they come apart'
    assert len(BREEDS_FILE.read_text()) < 300_000


@pytest.mark.slow
def test_it_comes_out_again():
    found, threads = read_breeds(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        learn, watcher = watched_run()
    finally:
        torch.set_num_threads(threads)
    answers = torch.stack(watcher.answers).numpy()
    assert (answers[:16] != answers_of(found)[:16]).mean() < 0.02
    wrong = (answers != np.array(found['labels'])).mean(1)
    assert wrong[-1] == pytest.approx((answers_of(found)[-1] != np.array(found['labels'])).mean(), abs=0.05)
    again = picture_places(watcher.features[-1], learn.model[1].eval()).numpy()
    assert np.abs(again - places_of(found)[-1]).mean() < 0.1


def test_before_training_it_is_the_same():
    found, (learn, watcher) = read_breeds(), watched_run(epochs=0)
    assert (watcher.answers[0].numpy() == answers_of(found)[0]).mean() > 0.97
    assert watcher.labels.tolist() == found['labels'] and list(learn.dls.classes) == found['classes']
    sheets = [Image.open(io.BytesIO(base64.b64decode(url.split(',')[1]))) for url in
              (found['sprite'], picture_sheet(learn.dls.valid.pictures))]
    assert sheets[0].size == sheets[1].size == (480, 576)
    assert np.abs(np.subtract(*(np.asarray(sheet, int) for sheet in sheets))).mean() < 2


def test_watching_changes_nothing():
    learn = vision_learner(drawn_pets(n_train=2, n_valid=1, size=32), seed=0, show=False)
    before = everything(learn.model, learn.optimizer)
    Watcher(learn)
    assert_unchanged(before, everything(learn.model, learn.optimizer))


def test_record_writes_what_is_read(tmp_path):
    threads = torch.get_num_threads()
    record_breeds(tmp_path / 'breeds.json', epochs=0, size=32)
    torch.set_num_threads(threads)
    found = read_breeds(tmp_path / 'breeds.json')
    assert found.keys() == read_breeds().keys() and places_of(found).shape == (1, 120, 2)


def test_still_pictures_follow_the_controls():
    explorer = watch_breeds()
    stills = [explorer.still()]
    for values in ({'guess': 'no'}, {'step': 40}, {'picture': 7}):
        explorer.move(**values)
        stills.append(explorer.still())
    assert len(set(stills)) == 4


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason='needs Chromium')
def test_the_page_shows_what_python_has(browser, tmp_path):
    found = read_breeds()
    places, answers, labels = places_of(found), answers_of(found), np.array(found['labels'])
    page = open_explorer(browser, watch_breeds(), tmp_path, reduced_motion='reduce')
    assert not page.locator('.big').is_visible()
    page.get_by_role('button', name='no').click()
    app = '[...finetuneTeach.apps.values()][0][0]'
    drawn = '''() => [...[...finetuneTeach.apps.values()][0][0].host.shadowRoot.querySelectorAll('.dots circle')]
        .slice(0, -1).map(c => [Number(c.getAttribute('cx')), Number(c.getAttribute('cy')), c.getAttribute('class')])'''
    names = breed_places(12).numpy()
    for step in (0, 15, 16, 40, 75):
        page.evaluate(f'o => {app}.move(o)', {'step': step, 'picture': step})
        shown = page.evaluate(drawn)
        assert [c[2] == 'wrong' for c in shown] == (answers[step] != labels).tolist()
        at = np.array([c[:2] for c in shown])
        assert np.abs((at - 200) / 142 * [1, -1] - places[step]).max() < 0.002
        wrong = (answers[step] != labels).mean()
        assert page.locator('.big').inner_text() == f'{int(100 * wrong + 0.5)}\u202f%'
        said = page.locator('.shown p').inner_text()
        assert found['classes'][labels[step]].replace('_', ' ') in said
        assert ('but called' in said) == (answers[step][step] != labels[step])
    texts = page.evaluate('''() => [...[...finetuneTeach.apps.values()][0][0].host.shadowRoot
        .querySelectorAll('.stage svg text')].map(t => [t.textContent, t.querySelector('tspan').getAttribute('x'),
        [...t.querySelectorAll('tspan')].reduce((a, e) => a + e.getAttribute('y') / t.childElementCount, 0)])''')
    for (text, x, y), name, place in zip(texts, found['classes'], names):
        assert text == name.replace('_', '')
        assert [float(x), y - 4] == pytest.approx([200 + 158 * place[0], 200 - 162 * place[1]], abs=0.1)
    page.close()
