"A model is tested in one line."
from dataclasses import replace

import pytest
import torch

from finetune_teach.all import draw_pet, error_rate, get_logits
from finetune_teach.tools import testing
from finetune_teach.tools.learners import load_learner, vision_learner
from finetune_teach.tools.testing import ClassReport, evaluate


@pytest.fixture(scope='module')
def learn(pets):
    learn = vision_learner(pets, seed=0, device='cpu', show=False)
    learn.fit(2, 1e-2)
    return learn


def draw(folder, *breeds, n=3, seed=50):
    for breed in breeds:
        (folder / breed).mkdir(parents=True)
        for i in range(n):
            draw_pet(breed, seed=seed + i, size=40).save(folder / breed / f'{i}.png')
    return folder


def test_the_report_of_the_validation_pictures(learn, pets):
    modes = [m.training for m in learn.model.modules()]
    report = evaluate(learn)
    assert report.error == pytest.approx(learn.validate().error_rate)
    assert report.confusion.sum() == 36 and report.mean_error == pytest.approx(report.error), 'as many of each class'
    assert [m.training for m in learn.model.modules()] == modes
    assert report.classes == pets.classes and report.pictures is pets.valid.pictures
    text = repr(report)
    wrong = round(36 * report.error)
    assert text.startswith(f'36 pictures of 12 classes: error {report.error:.1%} ({wrong} of 36 wrong, ± ')
    assert all(name in text for name in pets.classes) and 'Answers (a row' in text


def test_mistakes_are_shown_with_their_pictures(learn, pets, monkeypatch):
    report, shown = evaluate(learn), []
    monkeypatch.setattr(testing, 'show_pictures', lambda pictures, titles, *more: shown.append((pictures, titles)))
    report.plot_mistakes(3)
    (pictures, titles), mistakes = shown[0], report.top_mistakes(3)
    assert pictures.equal(pets.valid.pictures[[m.place for m in mistakes]])
    assert all(f'is {pets.classes[m.actual]}' in t for m, t in zip(mistakes, titles))
    assert all(pets.valid.labels[m.place] == m.actual != m.predicted for m in mistakes)
    report.pictures = None
    with pytest.raises(ValueError, match='no pictures'):
        report.plot_mistakes()


def test_everything_is_drawn_in_a_notebook(learn, monkeypatch):
    import matplotlib.pyplot as plt
    evaluate(learn)
    assert not plt.get_fignums()
    monkeypatch.setattr(testing, 'in_notebook', lambda: True)
    evaluate(learn, show=False)
    assert not plt.get_fignums()
    evaluate(learn)
    assert len(plt.get_fignums()) == 4


def test_no_mistake_at_all(pets):
    y = pets.valid.labels
    report = ClassReport(torch.eye(12)[y], y, pets.classes, pictures=pets.valid.pictures)
    assert report.plot_mistakes() is None and report.most_confused() == [] and 'up to 8.3%' in repr(report)
    report.plot()


def test_many_classes_are_told_by_pairs():
    names = [f'breed {i}' for i in range(13)]
    y = torch.arange(13)
    report = ClassReport(torch.eye(13)[y.roll(1)], y, names)
    assert 'Most confused' in repr(report) and '1 x breed 0 taken for breed 12' in repr(report)
    with pytest.raises(ValueError, match='12 names'):
        ClassReport(torch.eye(13)[y], y, names[:12])


def test_training_pictures_are_taken_as_they_are(learn, pets):
    "Their loader shuffles and mirrors."
    assert pets.train.shuffle and pets.train.flip
    plain = replace(pets.train, shuffle=False, flip=False)
    report = evaluate(learn, pets.train)
    with testing.modes_kept(learn.model):
        logits, targets = get_logits(learn.model.eval(), plain)
    assert report.logits.equal(logits) and report.targets.equal(targets) and targets.equal(pets.train.labels)


def test_any_loader_of_batches(learn, pets):
    report = evaluate(learn, [*pets.valid])
    assert report.logits.equal(evaluate(learn).logits) and report.files is None and report.pictures is None
    report.plot()


# A labelled folder

def test_a_folder_is_matched_by_names(learn, pets, tmp_path):
    "Folders of classes are few, and in another order; a saved model knows them as well."
    folder = draw(tmp_path / 'photos', 'pug', 'Bengal')
    (folder / 'beagle').mkdir()
    (folder / '.hidden').mkdir()
    again = load_learner(learn.export(tmp_path / 'a'), device='cpu')
    for some in (learn, again):
        report = evaluate(some, folder)
        logits, targets, files, classes = report.logits, report.targets, report.files, report.classes
        assert [classes[k] for k in targets] == [f.parent.name for f in files] == ['Bengal'] * 3 + ['pug'] * 3
        for row, file in zip(logits, files):
            assert torch.allclose(row.softmax(0), some.predict(file).probabilities, atol=1e-5)
    report = evaluate(again, folder)
    assert report.error == pytest.approx(error_rate(logits, targets))
    assert report.files == files and 'no pictures of 10 of the 12' in repr(report)
    if report.error:
        assert str(files[report.top_mistakes(1)[0].place]) in repr(report)
    report.plot()


def test_the_part_for_testing_is_found(learn, tmp_path):
    draw(tmp_path / 'train', 'pug', 'Bengal', n=1)
    assert {f.parent.parent for f in evaluate(learn, tmp_path / 'train').files} == {tmp_path / 'train'}
    draw(tmp_path / 'valid', 'pug', n=1)
    assert {f.parent.parent for f in evaluate(learn, tmp_path).files} == {tmp_path / 'valid'}
    draw(tmp_path / 'test', 'pug', n=1)
    assert {f.parent.parent for f in evaluate(learn, tmp_path).files} == {tmp_path / 'test'}


def test_a_class_may_be_called_test(learn, tmp_path):
    again = load_learner(learn.export(tmp_path / 'a'))
    again.description['classes'][3] = 'test'
    draw(tmp_path / 'photos', 'pug', n=1)
    (tmp_path / 'photos' / 'pug').rename(tmp_path / 'photos' / 'test')
    assert evaluate(again, tmp_path / 'photos').targets.tolist() == [3]


def test_a_class_that_the_model_does_not_know(learn, tmp_path):
    folder = draw(tmp_path / 'photos', 'pug', n=1)
    (folder / 'pug').rename(folder / 'Pug')
    with pytest.raises(ValueError, match=r'(?s)photos: .*does not know: Pug. It knows .*pug'):
        evaluate(learn, folder)


def test_folders_without_pictures_and_with_broken_ones(learn, tmp_path):
    (tmp_path / 'pug').mkdir()
    with pytest.raises(ValueError, match='no pictures'):
        evaluate(learn, tmp_path)
    (tmp_path / 'pug' / 'a.jpg').write_bytes(b'no picture')
    with pytest.raises(ValueError, match='(?s)1 of 1 files.*a.jpg'):
        evaluate(learn, tmp_path)
    with pytest.raises(FileNotFoundError, match='nowhere'):
        evaluate(learn, tmp_path / 'nowhere')


def test_a_model_without_a_description_and_a_learner_without_pictures(learn, tmp_path):
    again = load_learner(learn.export(tmp_path / 'a'))
    with pytest.raises(ValueError, match='loaded without pictures'):
        evaluate(again)
    again.description = {}
    with pytest.raises(ValueError, match='does not know classes, size, mean, std'):
        evaluate(again, tmp_path)
