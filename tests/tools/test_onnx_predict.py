"Answers from an ONNX file without PyTorch and without the package: the same as `predict` gives."
import inspect
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import small_network
from finetune_teach.engine.drawing import draw_pet
from finetune_teach.engine.prediction import prepare_picture
from finetune_teach.pictures import drawn_pets, image_folders
from finetune_teach.tools import onnx_predict
from finetune_teach.engine.export import to_onnx
from finetune_teach.tools.learners import vision_learner
from finetune_teach.tools.onnx_predict import prepare

PHOTOS = Path(__file__).resolve().parents[3] / 'shared' / 'data' / 'flowers_sample'
ABOUT = {'size': 32, 'mean': [0.485, 0.456, 0.406], 'std': [0.229, 0.224, 0.225], 'resize': 'crop', 'value_range': None}


def large(mode='RGB', size=(301, 200)):
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BOX).convert(mode)


def turned(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    large().save(path, exif=exif)


def sixteen_bits(path):
    values = np.random.default_rng(0).integers(0, 4096, (40, 60), np.uint16)
    Image.fromarray(values).save(path)


PICTURES = {
    'a.jpg': lambda path: large().save(path), 'turned.jpg': turned, 'grey.jpg': lambda path: large('L').save(path),
    'cmyk.jpg': lambda path: large('CMYK').save(path), 'see_through.png': lambda path: large('RGBA').save(path),
    'palette.gif': lambda path: large('P').save(path, transparency=3), 'line.png': lambda path: large('1').save(path),
    'tiny.png': lambda path: large(size=(3, 70)).save(path), 'wide.png': sixteen_bits}


@pytest.mark.filterwarnings('ignore:value_range', 'ignore:a picture came out nearly black')
@pytest.mark.parametrize('name', PICTURES)
@pytest.mark.parametrize('how', [{}, {'resize': 'squeeze'}, {'resize': 'pad', 'size': 31}, {'value_range': [0, 4095]}],
                         ids=str)
def test_pictures_are_prepared_as_predict_does(name, how, tmp_path):
    about, path = ABOUT | how, tmp_path / name
    PICTURES[name](path)
    mean, std = (torch.tensor(about[key]).view(3, 1, 1) for key in ('mean', 'std'))
    expected = (prepare_picture(path, about).float() / 255 - mean) / std
    found = prepare(path, about)
    assert found.dtype == np.float32 and found.shape == (1, *expected.shape)
    assert np.allclose(found[0], expected.numpy(), atol=1e-6)
    with open(path, 'rb') as file:
        assert (prepare(file, about) == found).all()


def test_an_image_in_memory_is_taken_as_it_is():
    image = draw_pet('Bengal', seed=0, size=50)
    assert np.allclose(prepare(image, ABOUT | {'mean': [0] * 3, 'std': [1] * 3})[0] * 255, prepare_picture(image, ABOUT))


def answers_elsewhere(file, photos, folder):
    "What the room's code alone says, where neither PyTorch nor the package can be imported."
    code = ("import sys; sys.modules['torch'] = sys.modules['torchvision'] = sys.modules['finetune_teach'] = None\n"
            f'{inspect.getsource(onnx_predict)}\n'
            'for label, probabilities in onnx_predict(sys.argv[1], sys.argv[2:]):\n'
            '    print(json.dumps([label, probabilities.tolist()]))')
    done = subprocess.run([sys.executable, '-c', code, file, *map(str, photos)], cwd=folder, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check_answers(learn, photos, tmp_path):
    for name in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(name)
    found = answers_elsewhere(to_onnx(learn, tmp_path / 'model.onnx'), photos, tmp_path)
    expected = learn.predict(photos, show=False)
    assert len(found) == len(expected) == len(photos)
    assert [label for label, _ in found] == expected.labels and len(set(expected.labels)) > 1
    return np.abs(np.array([p for _, p in found]) - expected.probabilities.numpy()).max()


def test_the_answers_are_those_of_predict_without_pytorch(tmp_path):
    learn = vision_learner(drawn_pets(n_train=8, n_valid=4, size=32), small_network(), seed=0, hidden=(8,), device='cpu',
                           show=False)
    learn.fit_one_cycle(3, 1e-2)
    photos = [tmp_path / f'{i}.jpg' for i in range(12)]
    for i, path in enumerate(photos):
        draw_pet(learn.description['classes'][i], seed=i, size=150).save(path)
    assert check_answers(learn, photos, tmp_path) < 1e-5


@pytest.mark.slow
@pytest.mark.skipif(not PHOTOS.is_dir(), reason='the photos are not here')
@pytest.mark.parametrize('arch', ['tiny_resnet', 'efficientnet_lite0'])
def test_fifty_photos(arch, tmp_path):
    pytest.importorskip('efficientnet_lite_pytorch')
    learn = vision_learner(image_folders(PHOTOS, size=64), arch, seed=0, device='cpu', show=False)
    learn.fit_one_cycle(1, 3e-3)
    photos = sorted((PHOTOS / 'valid').rglob('*.jpg'))[::6]
    assert len(photos) == 50
    assert check_answers(learn, photos, tmp_path) < 1e-5
