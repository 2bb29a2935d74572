"Scrubbing through a run: losses, confidence and mistakes of each epoch."
import base64
import io
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from conftest import CHROMIUM
from finetune_teach.engine.history import PredictedLabels, Recorder
from finetune_teach.engine.mistakes import mistakes_in
from finetune_teach.tools.explore_overfitting import (
    explore_overfitting, mistake_pictures, plot_epoch)


@pytest.fixture
def trained(make_learner):
    learn = make_learner()
    learn.fit_one_cycle(3, 1e-2)
    return learn


def test_pictures_are_those_of_the_mistakes(trained, pets):
    pictures = mistake_pictures(trained.recorder, pets.valid)
    for answers in trained.recorder.answers:
        for mistake in mistakes_in(answers, 6):
            picture = pets.valid.pictures[mistake.place][None] / 255
            assert torch.allclose(pictures[mistake.place], picture[0], atol=1e-5), 'small already'
    smaller = mistake_pictures(trained.recorder, pets.valid, 20)
    for place, picture in smaller.items():
        wanted = F.interpolate(pets.valid.pictures[place][None] / 255, (20, 20), mode='bilinear', antialias=True)
        assert torch.allclose(picture, wanted[0], atol=1e-5)


def test_explorer_of_a_run(trained):
    explorer = explore_overfitting(trained)
    assert explorer.values == {'epoch': 1, 'number': '', 'sure': ''}, 'it begins at the start'
    whole = explorer.still()
    explorer.move(epoch=3)
    assert explorer.still() == whole, 'in print, the whole run'
    explorer.move(epoch=2)
    assert explorer.still() != whole
    data = explorer.spec['data']
    trained.fit_one_cycle(1, 1e-2)
    explorer.move(epoch=3)
    assert explorer.still() == whole and len(data['epochs']) == 3, 'the run is that of then'


def test_what_the_page_shows_is_what_the_recorder_holds(trained, pets):
    data = explore_overfitting(trained).spec['data']
    assert data['n'] == 36 and data['classes'] == list(pets.classes)
    for shown, row, answers in zip(data['epochs'], trained.recorder.history, trained.recorder.answers, strict=True):
        wrong = answers.predicted != answers.actual
        assert (shown['train'], shown['valid']) == pytest.approx((row['train_loss'], row['valid_loss']), rel=1e-3)
        assert shown['wrong'] == wrong.sum() and shown['accuracy'] == pytest.approx(1 - wrong.float().mean().item(), abs=1e-3)
        assert shown['sure'] == pytest.approx(answers.confidence[wrong].mean().item(), rel=1e-3)
        assert [sum(kind) for kind in shown['counts']] == [36 - wrong.sum(), wrong.sum()]
        tenth = sum(0.2 <= c < 0.3 for c in answers.confidence[wrong].tolist())
        assert shown['counts'][1][2] == tenth
        for (place, *numbers), mistake in zip(shown['mistakes'], mistakes_in(answers, 6), strict=True):
            assert numbers == [mistake.predicted, mistake.actual, pytest.approx(mistake.confidence, rel=1e-3)]
            file = base64.b64decode(data['pictures'][place].split(',')[1])
            pixels = torch.tensor(np.asarray(Image.open(io.BytesIO(file)))).float().mean((0, 1))
            assert torch.allclose(pixels, pets.valid.pictures[mistake.place].float().mean((1, 2)), atol=3), 'its picture'


def of_losses(*losses):
    "A run with these validation losses."
    answers = PredictedLabels(torch.tensor([0, 1, 0, 1]), torch.tensor([.9, .8, .7, .6]), torch.tensor([0, 1, 1, 0]))
    rows = [{'position': i + 1.0, 'train_loss': 0.5, 'valid_loss': loss} for i, loss in enumerate(losses)]
    return Recorder(rows, answers=[answers] * len(losses))


@pytest.mark.parametrize('losses, turn', [((3, 2, 1), 3), ((3, 1, 2), 2), ((1, 2), 1), ((2, 1, 1.01), 3), ((1,), 1),
                                          ((1, math.nan, 2), 1), ((3, 1, math.nan), 3), ((math.inf, 2, 1), 3)])
def test_from_where_the_loss_rises(make_learner, losses, turn):
    learn = make_learner()
    learn.recorder, learn.dls.valid = of_losses(*losses), [(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 1, 0]))]
    data = explore_overfitting(learn).spec['data']
    assert data['turn'] == turn
    assert [epoch['valid'] for epoch in data['epochs']] == [loss if math.isfinite(loss) else None for loss in losses]


def test_many_pictures_are_made_smaller():
    from finetune_teach.tools.explore_overfitting import _as_urls
    pictures = {i: torch.rand(3, 96, 96) for i in range(100)}
    urls = _as_urls(pictures)
    assert sum(map(len, urls.values())) < 240_000 and list(urls) == list(pictures)
    few = _as_urls({7: pictures[7]})
    file = io.BytesIO(base64.b64decode(few[7].removeprefix('data:image/jpeg;base64,')))
    assert Image.open(file).size == (96, 96)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason='needs Chromium')
def test_the_page_asks_first_and_then_tells_what_happened(make_learner, tmp_path):
    playwright = pytest.importorskip('playwright.sync_api', reason='needs playwright')
    learn = make_learner()
    learn.fit_one_cycle(5, 1e-2)
    explorer = explore_overfitting(learn)
    data = explorer.spec['data']
    data['turn'] = 2  # as if the loss had risen from there on
    (tmp_path / 'page.html').write_text(f'<meta charset="utf-8">{explorer.page()}', 'utf-8')
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        page = browser.new_context(reduced_motion='reduce').new_page()
        problems = []
        page.on('pageerror', lambda error: problems.append(str(error)))
        page.goto((tmp_path / 'page.html').as_uri())
        page.wait_for_function('globalThis.finetuneTeach?.apps.size')
        handle, state = page.get_by_role('slider', name='Epoch', exact=True), '[...finetuneTeach.apps.values()][0][0].state'
        def check(number):
            shown = data['epochs'][number - 1]
            certain = shown['counts'][1][9]
            bigs = page.locator('.big').all_inner_texts()
            assert bigs == [str(shown['wrong']), f"{math.floor(100 * shown['sure'] + 0.5)}\u202f%", str(certain)]
            assert handle.get_attribute('aria-valuetext') == (
                f"after {number} of 5 epochs, validation loss {shown['valid']:.2f}")
            faces = page.locator('.faces figure:visible').all()
            assert len(faces) == len(shown['mistakes'])
            for face, (picture, answer, label, sure) in zip(faces, shown['mistakes']):
                words = face.inner_text().replace('\n', ' ')
                assert words == (f"said {data['classes'][answer]}, {math.floor(100 * sure + 0.5)}\u202f% sure "
                                 f"is {data['classes'][label]}")
                assert face.locator('img').get_attribute('src') == data['pictures'][picture]
        check(1)
        for number in (2, 2, 2):  # not further, before one has guessed
            handle.press('ArrowRight')
            check(number)
        page.get_by_label('more', exact=True).check()
        assert page.evaluate(f'{state}.epoch') == 2, 'both are asked'
        page.get_by_label('surer').check()
        page.wait_for_timeout(100)
        check(5)
        wrong, late = (data['epochs'][i]['wrong'] for i in (1, 4))
        chance = 2 * math.sqrt(wrong * (36 - wrong) / 36)
        word = 'About as many' if abs(late - wrong) < chance else 'More' if late > wrong else 'Fewer'
        change = data['epochs'][4]['sure'] - data['epochs'][1]['sure']
        surer = 'as sure' if abs(change) < 0.02 else 'surer' if change > 0 else 'less sure'
        assert page.locator('h3:visible').inner_text() == f'{word} wrong answers, and the model is {surer} of them'
        assert page.get_by_text('You said: more, and surer.').is_visible()
        for number in (4, 3, 2, 1):
            handle.press('ArrowLeft')
            check(number)
        assert problems == []
        browser.close()


def test_plot_of_an_epoch(trained, pets):
    pictures = mistake_pictures(trained.recorder, pets.valid)
    losses, accuracy, histogram, shown = plot_epoch(trained.recorder, 2, pets.classes, pictures)
    assert [len(line.get_xdata()) for line in losses.lines] == [3, 2, 1] * 2, 'whole, up to here, here'
    assert list(accuracy.lines[0].get_ydata()) == pytest.approx([
        (a.predicted == a.actual).float().mean().item() for a in trained.recorder.answers])
    right = int((trained.recorder.answers[1].predicted == trained.recorder.answers[1].actual).sum())
    labels = [t.get_text() for t in histogram.get_legend().get_texts()]
    assert labels == [f'{right} right', f'{36 - right} wrong']
    surest = mistakes_in(trained.recorder.answers[1], 6)[0]
    words = ' '.join(shown.texts[0].get_text().split()) # the lines are short
    assert words == (f'{pets.classes[surest.predicted]}? {surest.confidence:.0%} sure; is '
                     f'{pets.classes[surest.actual]}').replace('_', ' ')


def test_names_of_classes_are_drawn_as_they_are(trained, pets):
    "No formula, no line break; a name that is no UTF-8 has other letters for what it is not."
    pictures, names = mistake_pictures(trained.recorder, pets.valid), ['$\\frac{$', 'a\nb', '\udcff']
    axes = plot_epoch(trained.recorder, 2, [names[i % 3] for i in range(12)], pictures)
    axes[0].figure.canvas.draw()
    assert {t.get_text().count('\n') for t in axes[3].texts} == {2}


def test_a_run_without_mistakes_is_drawn(pets):
    actual = torch.arange(12)
    answers = PredictedLabels(actual, torch.full((12,), 0.9), actual)
    row = {'position': 1.0, 'train_loss': 0.1, 'valid_loss': 0.2}
    axes = plot_epoch(Recorder([row], answers=[answers]), 1, pets.classes, {})
    assert 'No wrong answers' in axes[3].get_title()


def test_nothing_to_scrub_through(make_learner):
    with pytest.raises(ValueError, match='train first'):
        explore_overfitting(make_learner())


def test_other_validation_pictures_are_noticed(trained, pets):
    shuffled = list(pets.valid)[::-1]
    with pytest.raises(ValueError, match='shuffled'):
        mistake_pictures(trained.recorder, shuffled)
