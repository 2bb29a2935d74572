"Scrubbing through a run: losses, confidence and mistakes of each epoch."
import pytest
import torch
import torch.nn.functional as F

from finetune_teach.engine.history import PredictedLabels, Recorder
from finetune_teach.overfitting import mistakes_in
from finetune_teach.tools import explore_overfitting as module
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
            wanted = F.interpolate(picture, (100, 100), mode='bilinear', antialias=True)[0]
            assert torch.allclose(pictures[mistake.place], wanted, atol=1e-5)


def test_explorer_of_a_run(trained):
    explorer = explore_overfitting(trained)
    assert explorer.values == {'epoch': 3} and (explorer.controls['epoch'].min, explorer.controls['epoch'].max) == (1, 3)
    last = bytes(explorer.pictures[0].widget.value)
    explorer.controls['epoch'].value = 1
    first = bytes(explorer.pictures[0].widget.value)
    assert first != last
    trained.fit_one_cycle(1, 1e-2)
    explorer.controls['epoch'].value = 3
    assert bytes(explorer.pictures[0].widget.value) == last, 'the run is that of then'
    explorer.controls['epoch'].value = 1
    assert bytes(explorer.pictures[0].widget.value) == first and explorer.error.value == ''


def test_answers_are_counted_once_and_not_at_every_move(trained, monkeypatch):
    explorer = explore_overfitting(trained)
    monkeypatch.setattr(module, '_count', None)
    before = bytes(explorer.pictures[0].widget.value)
    explorer.controls['epoch'].value = 1
    assert explorer.error.value == '' and bytes(explorer.pictures[0].widget.value) != before


def test_plot_of_an_epoch(trained, pets):
    pictures = mistake_pictures(trained.recorder, pets.valid)
    losses, histogram, shown = plot_epoch(trained.recorder, 2, pets.classes, pictures)
    assert len(losses.get_legend_handles_labels()[0][0].get_xdata()) == 2
    right = int((trained.recorder.answers[1].predicted == trained.recorder.answers[1].actual).sum())
    labels = [t.get_text() for t in histogram.get_legend().get_texts()]
    assert labels == [f'{right} right', f'{36 - right} wrong']
    surest = mistakes_in(trained.recorder.answers[1], 6)[0]
    assert shown.texts[0].get_text() == (f'{pets.classes[surest.predicted]:.15} {surest.confidence:.0%},\n'
                                         f'is {pets.classes[surest.actual]:.15}')


def test_names_of_classes_are_drawn_as_they_are(trained, pets):
    "No formula, no line break; a name that is no UTF-8 has other letters for what it is not."
    pictures, names = mistake_pictures(trained.recorder, pets.valid), ['$\\frac{$', 'a\nb', '\udcff']
    axes = plot_epoch(trained.recorder, 2, [names[i % 3] for i in range(12)], pictures)
    axes[0].figure.canvas.draw()
    assert {t.get_text().count('\n') for t in axes[2].texts} == {1}


def test_a_run_without_mistakes_is_drawn(pets):
    actual = torch.arange(12)
    answers = PredictedLabels(actual, torch.full((12,), 0.9), actual)
    row = {'position': 1.0, 'train_loss': 0.1, 'valid_loss': 0.2}
    axes = plot_epoch(Recorder([row], answers=[answers]), 1, pets.classes, {})
    assert 'No mistakes' in axes[0].figure.texts[0].get_text()


def test_nothing_to_scrub_through(make_learner):
    with pytest.raises(ValueError, match='train first'):
        explore_overfitting(make_learner())


def test_other_validation_pictures_are_noticed(trained, pets):
    shuffled = list(pets.valid)[::-1]
    with pytest.raises(ValueError, match='shuffled'):
        mistake_pictures(trained.recorder, shuffled)
