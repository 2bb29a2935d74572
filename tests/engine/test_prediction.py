"New pictures, from wherever they come and however many, are prepared as those of the training."
import csv
import io
import os
import threading
import warnings
from glob import glob
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from picture_files import noise, saved, warned
from torch import nn

from finetune_teach.engine import prediction
from finetune_teach.engine.prediction import Predictions, csv_columns, predict

ABOUT = dict(size=8, mean=[.5] * 3, std=[.2] * 3, classes=['cat', 'dog', 'emu'])


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 3), nn.Dropout(.5))


@pytest.fixture
def folder(tmp_path):
    "Seven pictures, one of them in a folder below, and files that systems leave."
    (tmp_path / 'pets' / 'more').mkdir(parents=True)
    for i in range(7):
        noise(seed=i).save(tmp_path / 'pets' / ('more' if i == 6 else '') / f'{i}.png')
    for junk in ('.hidden', 'Thumbs.db'):
        (tmp_path / 'pets' / junk).write_bytes(b'junk')
    return tmp_path / 'pets'


def arrays(n=5, height=12, width=20):
    return np.random.default_rng(0).integers(0, 255, (n, height, width, 3), np.uint8)


def same(one, two):
    return torch.allclose(one.probabilities, two.probabilities, atol=1e-5, rtol=0)


# One picture

def test_predict_from_path_image_and_array(make_learner, pets, tmp_path):
    learn = make_learner()
    learn.fit(1, 1e-2)
    picture = pets.valid.pictures[5].permute(1, 2, 0).numpy()
    Image.fromarray(picture).save(tmp_path / 'pet.png')
    content = (tmp_path / 'pet.png').read_bytes()
    read_before = io.BytesIO(content)
    read_before.read()
    with open(tmp_path / 'pet.png', 'rb') as file:
        answers = [learn.predict(image) for image in (
            tmp_path / 'pet.png', str(tmp_path / 'pet.png'), Image.fromarray(picture), picture,
            pets.valid.pictures[5], pets.valid.pictures[5] / 255, picture / 255, picture.transpose(2, 0, 1),
            content, bytearray(content), memoryview(content), read_before, file, Image.open(io.BytesIO(content)))]
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


def test_bytes_of_a_photo_are_read_as_its_file_is(model, tmp_path):
    "Also where a large JPEG is decoded smaller."
    content = saved(noise((900, 700)), 'JPEG')
    (tmp_path / 'a.jpg').write_bytes(content)
    assert predict(model, content, ABOUT).probabilities.equal(predict(model, tmp_path / 'a.jpg', ABOUT).probabilities)


def test_a_shape_that_fits_two_layouts_is_read_by_its_kind(model):
    picture = torch.arange(27, dtype=torch.uint8).reshape(3, 3, 3) * 9
    first = predict(model, picture, ABOUT)
    assert same(first, predict(model, picture.permute(1, 2, 0).numpy(), ABOUT))
    assert not same(first, predict(model, picture.numpy(), ABOUT))


def test_dropout_is_off_and_modes_come_back(model):
    model.train()
    one, two = (predict(model, arrays(), ABOUT) for _ in range(2))
    assert one.probabilities.equal(two.probabilities) and all(m.training for m in model.modules())


@pytest.mark.parametrize('image, told', [
    (b'', 'no bytes'), (b'\xff\xd8 no picture', 'not a picture'), (saved(noise(), 'PNG')[:500], 'cut off'),
    (io.StringIO('text'), 'open(path, "rb")'), (np.zeros(5), 'ndarray 5'), (np.zeros((2, 5, 5, 7)), '2 x 5 x 5 x 7'),
    (np.full((9, 9, 3), -1.5), 'normalised'), (torch.full((2, 3, 9, 9), -1.5), 'normalised'),
    (np.full((9, 9, 3), np.nan), 'NaN'), ({'a': noise()}, 'as a list'), (None, 'NoneType'), ([], 'empty'),
    (iter([]), 'empty'), (torch.zeros(0, 3, 8, 8), 'empty'), (Image.open(io.BytesIO(saved(noise(), 'PNG')[:500])), 'cut')])
def test_what_is_no_picture_is_said(model, image, told):
    with pytest.raises(ValueError) as caught:
        predict(model, image, ABOUT)
    assert told in str(caught.value) and 'link' not in str(caught.value)


def test_a_model_that_cannot_answer_says_so(model):
    with pytest.raises(ValueError, match='size, mean'):
        predict(model, noise(), {'classes': ['a', 'b']})
    with pytest.raises(ValueError, match='do not belong together'):
        predict(model, noise(), ABOUT | {'classes': ['a', 'b']})
    broken = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    nn.init.constant_(broken[1].weight, float('nan'))
    with pytest.raises(ValueError, match='for the picture: its weights'):
        predict(broken, noise(), ABOUT)
    with pytest.raises(ValueError, match='for the picture 0: its weights'):
        predict(broken, [noise()], ABOUT)


# Many

def test_many_are_answered_as_one_by_one(model, folder):
    alone = [predict(model, p, ABOUT) for p in sorted(folder.rglob('*.png'))]
    paths = sorted(folder.rglob('*.png'))
    content = [p.read_bytes() for p in paths]
    for source in (folder, str(folder), paths, tuple(paths), sorted(glob(f'{folder}/**/*.png', recursive=True)),
                   (p for p in paths), np.array([str(p) for p in paths]), np.array(paths), content,
                   map(io.BytesIO, content), [Image.open(p) for p in paths], map(Image.open, paths)):
        for batch_size in (1, 3, 64):
            many = predict(model, source, ABOUT, batch_size)
            if hasattr(source, '__next__'):
                source = [p for p in paths]  # it is empty now
            assert len(many) == 7 and all(map(same, many, alone)) and many.labels == [a.label for a in alone]
    assert predict(model, folder, ABOUT).files == paths
    assert predict(model, content, ABOUT).files == [*range(7)]


def test_batches_of_arrays_and_tensors(model):
    pictures = arrays()
    alone = [predict(model, picture, ABOUT) for picture in pictures]
    tensor = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    for batch in (pictures, tensor, pictures.transpose(0, 3, 1, 2), tensor.permute(0, 2, 3, 1), tensor / 255,
                  tensor.double(), pictures / 255, [*pictures], [*tensor], tensor.bfloat16()):
        assert all(map(same, predict(model, batch, ABOUT), alone))


def test_one_scale_holds_for_all_pictures_of_an_array(model):
    "A black one among numbers from 0 to 255 stays black."
    pictures = arrays().astype(np.float32)
    pictures[2] = 1
    assert same(predict(model, pictures, ABOUT)[2], predict(model, np.ones((12, 20, 3), np.uint8), ABOUT))


def test_the_same_image_many_times(model, folder):
    with Image.open(folder / '0.png') as image:
        many = predict(model, [image] * 40, ABOUT)
    assert (many.probabilities == many.probabilities[0]).all()


def test_a_generator_is_never_all_in_memory(model, monkeypatch):
    alive, most, lock = 0, 0, threading.Lock()
    class Picture(bytes):
        def __new__(cls, data):
            nonlocal alive, most
            with lock:
                alive += 1
                most = max(most, alive)
            return super().__new__(cls, data)

        def __del__(self):
            nonlocal alive
            with lock:
                alive -= 1
    monkeypatch.setattr(os, 'cpu_count', lambda: 2)
    content = saved(noise((9, 9)), 'PNG')
    many = predict(model, (Picture(content) for _ in range(500)), ABOUT, batch_size=8)
    assert len(many) == 500 and most <= 10


def test_all_unreadable_pictures_are_named_at_once(model, folder):
    (folder / 'notes.txt').write_text('a good dog')
    (folder / 'zero.jpg').write_bytes(b'')
    with pytest.raises(ValueError, match='(?s)2 of 9 files.*notes.txt: not a picture.*zero.jpg: .*empty.*skip'):
        predict(model, folder, ABOUT, batch_size=2)
    many, said = warned(predict, model, folder, ABOUT, on_error='skip', batch_size=2)
    assert len(many) == 7 and [p.name for p, _ in many.skipped] == ['notes.txt', 'zero.jpg']
    assert len(said) == 1 and 'left out; .skipped' in said[0] and '2 skipped' in repr(many)
    assert many.places == [0, 1, 2, 3, 4, 5, 6] and all(f in many.files for f in folder.glob('*.png'))
    many, said = warned(predict, model, [b'', noise(), None], ABOUT, on_error='skip')
    assert many.files == many.places == [1] and 'picture 0: not a picture' in said[0] and 'picture 2' in said[0]
    with pytest.raises(ValueError, match='1 of 1 files'), warnings.catch_warnings():
        warnings.simplefilter('error')
        predict(model, [b''], ABOUT, on_error='skip')


def test_a_relative_path_is_named_once(model, folder, monkeypatch):
    monkeypatch.chdir(folder)
    Path('notes.txt').write_text('a good dog')
    with pytest.raises(ValueError, match=r'\n  \./notes\.txt: not a picture'):
        predict(model, ['./0.png', './notes.txt'], ABOUT)


def test_folders_without_files_and_batches_of_a_loader(model, tmp_path, pets):
    (tmp_path / '.hidden').touch()
    with pytest.raises(ValueError, match='no files in here'):
        predict(model, tmp_path, ABOUT)
    with pytest.raises(ValueError, match=r'evaluate\(learn, loader\)'):
        predict(model, pets.valid, ABOUT)


def test_options_are_checked(model):
    for options in ({'batch_size': 0}, {'on_error': 'ignore'}):
        with pytest.raises(ValueError, match=next(iter(options))):
            predict(model, noise(), ABOUT, **options)


def test_a_bar_appears_only_where_it_is_wanted(model, monkeypatch):
    bars = []
    class Bar(prediction.tqdm):
        def __init__(self, *args, **options):
            bars.append(options)
            super().__init__(*args, **options)
    monkeypatch.setattr(prediction, 'tqdm', Bar)
    predict(model, arrays(), ABOUT)
    predict(model, arrays(), ABOUT, show=False)
    assert [b['delay'] for b in bars] == [2, 2] and [b['disable'] for b in bars] == [None, True]


# The table

def test_rows_slices_and_columns(model):
    many = predict(model, arrays(15), ABOUT)
    row = many[-1]
    assert row.file == 14 and row.label == many.labels[14] and row.probabilities.equal(many.probabilities[14])
    assert isinstance(many[2:4], Predictions) and many[2:4].files == [2, 3] and len(many[99:]) == 0
    assert [r.label for r in many] == many.labels and many.confidences.equal(many.probabilities.amax(1))
    assert many.probabilities.dtype == torch.float32 and many.probabilities.shape == (15, 3)
    with pytest.raises(IndexError):
        many[15]
    lines = repr(many).splitlines()
    assert lines[0] == 'Predictions: 15 pictures, 3 classes' and lines[-1] == '  ... 5 more' and len(lines) == 12
    assert max(map(len, repr(Predictions(['a/' * 99], torch.ones(1, 1), ['x'], [0])).splitlines())) < 80


def test_csv_gives_all_back(model, tmp_path):
    odd = ['a,b "c".png', '=1+1.png', '@x.png', '-1.png', ' +x.png', 'ä\n.png', 'bad\udcff.png', 7]
    classes = ['file', '-5', '=SUM(A1)']
    many = Predictions(odd, torch.rand(8, 3), classes, [*range(8)])
    many.to_csv(tmp_path / 'answers.csv')
    with open(tmp_path / 'answers.csv', encoding='utf-8', newline='') as file:
        head, *rows = csv.reader(file)
    assert head == ['file', 'label', 'file_2', '-5', "'=SUM(A1)"]
    assert [os.path.normpath(r[0]) for r in rows] == [*odd[:6], 'bad\\udcff.png', '7']
    assert not [r[0] for r in rows if r[0].strip()[0] in '=+-@']
    assert torch.tensor([[float(p) for p in r[2:]] for r in rows]).equal(many.probabilities)
    assert [r[1].lstrip("'") for r in rows] == many.labels
    assert [p.name for p in tmp_path.iterdir()] == ['answers.csv']


def test_heads_of_columns_are_all_different():
    assert csv_columns(['file', 'file_2', 'label']) == ['file', 'label', 'file_3', 'file_2', 'label_2']


def test_csv_into_a_folder_that_is_none(model, tmp_path):
    with pytest.raises(OSError, match='cannot be written'):
        predict(model, arrays(), ABOUT).to_csv(tmp_path)
