"What the explorer shows is what was recorded, and what was recorded comes out again."
import base64

import numpy as np
import pytest
import torch

from conftest import CHROMIUM, open_explorer
from finetune_teach.tools import melt_filters as room
from finetune_teach.tools.melt_filters import (
    MELTED_FILE, RATES, after_an_epoch, filter_numbers, melt_filters, read_melting, record_melting, what_body_knows)


def numbers(text):
    return np.frombuffer(base64.b64decode(text), np.int8)


def test_the_record_is_whole():
    found = read_melting()
    assert found['rates'] == RATES and len(found['after']) == len(RATES) == 15
    assert all(numbers(text).shape == (32 * 3 * 7 * 7,) for text in [found['before'], *found['after']])
    for part in (found['knows'], found['right']):
        assert all(len(row) == 3 and 0 <= min(row) and max(row) <= 1 for kind in ('trained', 'frozen') for row in part[kind])
    assert all(row == found['knows']['before'] for row in found['knows']['frozen']), 'frozen is frozen'
    assert len(MELTED_FILE.read_text()) < 120_000


@pytest.mark.parametrize('k, seed', [(4, 0), (9, 1)])
def test_it_comes_out_again(k, seed):
    found, threads = read_melting(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        learn = after_an_epoch(RATES[k], seed)
        assert what_body_knows(learn, seed) == pytest.approx(found['knows']['trained'][k][seed], abs=0.04)
        assert 1 - learn.validate().error_rate == pytest.approx(found['right']['trained'][k][seed], abs=0.04)
        if seed == 0:
            assert np.abs(filter_numbers(learn.model).ravel().astype(int) - numbers(found['after'][k])).max() <= 3
    finally:
        torch.set_num_threads(threads)
    assert (filter_numbers(after_an_epoch(None).model).ravel() == numbers(found['before'])).all()


def test_record_writes_what_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(room, 'what_body_knows', lambda learn, seed=0: 0.5)
    threads = torch.get_num_threads()
    record_melting(tmp_path / 'melted.json', rates=[1e-4], n_seeds=1)
    torch.set_num_threads(threads)
    found = read_melting(tmp_path / 'melted.json')
    assert found.keys() == read_melting().keys() and found['rates'] == [1e-4]
    assert found['after'] == [read_melting()['after'][4]] or np.abs(
        numbers(found['after'][0]).astype(int) - numbers(read_melting()['after'][4])).max() <= 3


def test_still_pictures_follow_the_controls():
    explorer = melt_filters()
    stills = [explorer.still()]
    for values in ({'guess': 1e-3}, {'lr': 1e-2}, {'frozen': True}):
        explorer.move(**values)
        stills.append(explorer.still())
    assert len(set(stills)) == 4


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason='needs Chromium')
def test_the_page_shows_what_python_has(browser, tmp_path):
    found = read_melting()
    page = open_explorer(browser, melt_filters(), tmp_path, reduced_motion='reduce')
    assert not page.locator('.big').is_visible() and not page.get_by_role('slider').first.is_visible()
    page.get_by_role('button', name='1e-2').click()
    app = '[...finetuneTeach.apps.values()][0][0]'
    assert page.evaluate(f'{app}.state') == {'lr': 1e-2, 'frozen': False, 'guess': 1e-2}
    pixels = '''() => [...finetuneTeach.apps.values()][0][0].host.shadowRoot.querySelectorAll('canvas').values()
        .map(c => [...c.getContext('2d').getImageData(0, 0, 7, 7).data]).toArray()'''
    for lr, frozen, kind, k in [(1e-5, False, 'trained', 0), (3.2e-3, False, 'trained', 10),
                                (9e-4, False, 'trained', 8), (3.2e-2, True, 'frozen', 14)]:
        page.evaluate(f'o => {app}.move(o)', {'lr': lr, 'frozen': frozen})
        shown = page.locator('.big').inner_text()
        assert int(shown.split('\u202f')[0]) == round(100 * np.mean(found['knows'][kind][k]) + 1e-9)
        assert f'names {np.mean(found["right"][kind][k]) * 100 + 1e-9:.0f}\u202f%' in page.get_by_role('status').inner_text()
        wanted = numbers(found['before'] if frozen else found['after'][k]).reshape(32, 3, 49).transpose(0, 2, 1)
        drawn = np.array(page.evaluate(pixels)).reshape(32, 49, 4)
        assert np.abs(drawn[..., :3] - 127.5 * (1 + wanted / 127)).max() <= 1 and (drawn[..., 3] == 255).all()
        call = page.locator('code').inner_text()
        assert ('unfreeze' in call) != frozen
    page.close()
