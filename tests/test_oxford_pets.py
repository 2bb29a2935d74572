"Oxford-IIIT Pet: photos are found, fetched and completed; the notebook runs where they are. Here they are drawings."
import hashlib
import io
import re
import tarfile
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from torchvision import models
from torchvision.datasets import OxfordIIITPet

from conftest import publish
from finetune_teach import oxford_pets as module
from finetune_teach.engine.drawing import draw_pet
from finetune_teach.oxford_pets import oxford_pets

NOTEBOOK = Path(__file__).parent.parent / 'nbs' / '12_oxford_pets.ipynb'


def draw_photos(root):
    "Fifteen drawings, laid out and named as torchvision keeps the photos."
    base = root / 'oxford-iiit-pet'
    (base / 'images').mkdir(parents=True)
    (base / 'annotations').mkdir()
    lines = {'trainval': [], 'test': []}
    for number, (breed, species) in enumerate({'Bengal': 1, 'Siamese': 1, 'pug': 2}.items(), 1):
        for i in range(5):
            draw_pet(breed, i).save(base / 'images' / f'{breed}_{i}.jpg')
            lines['test' if i > 2 else 'trainval'].append(f'{breed}_{i} {number} {species} 1')
    for part, text in lines.items():
        (base / 'annotations' / f'{part}.txt').write_text('\n'.join(text) + '\n')
    (base / 'images' / 'Bengal_100.mat').write_text('as in the original')
    return root


@pytest.fixture
def photos(tmp_path):
    return draw_photos(tmp_path)


@pytest.fixture
def archives(web, tmp_path, monkeypatch):
    "The drawings in two archives on a server."
    base, checksums = draw_photos(tmp_path / 'made') / 'oxford-iiit-pet', {}
    for name in ('images', 'annotations'):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode='w:gz') as tar:
            tar.add(base / name, name)
        web.files[f'/data/{name}.tar.gz'] = file.getvalue()
        checksums[f'{web.url}/data/{name}.tar.gz'] = hashlib.md5(file.getvalue()).hexdigest()
    monkeypatch.setattr(module, '_ARCHIVES', checksums)
    return web


# The function

def test_random_split(photos):
    dls = oxford_pets(photos)
    assert dls.classes == ['Bengal', 'Siamese', 'pug'] and len(dls.files) == 15
    assert torch.bincount(dls.valid.labels).tolist() == [1, 1, 1]
    assert all(p.name.startswith(dls.classes[y]) for p, y in zip(dls.train.files, dls.train.labels))


def test_official_split_and_other_options(photos):
    dls = oxford_pets(str(photos), split='official', size=32, batch_size=4)
    assert len(dls.train.labels) == 9 and dls.size == 32 and dls.train.batch_size == 4
    assert all(p.stem.endswith(('3', '4')) for p in dls.valid.files) and len(dls.valid.files) == 6
    for part, loader in (('trainval', dls.train), ('test', dls.valid)):
        assert set(OxfordIIITPet(photos, part)._images) == set(loader.files)
    with pytest.raises(ValueError, match="split='train': split must be 'random' or 'official'"):
        oxford_pets(photos, split='train')
    with pytest.raises(TypeError, match='sice'):
        oxford_pets(photos, sice=32)


def test_cats_vs_dogs(photos):
    dls = oxford_pets(photos, cats_vs_dogs=True)
    assert dls.classes == ['cat', 'dog']
    for p, y in zip(dls.files, [*dls.train.labels, *dls.valid.labels]):
        assert dls.classes[y] == ('dog' if p.name.startswith('pug') else 'cat')


def test_not_there(tmp_path, photos):
    with pytest.raises(FileNotFoundError) as error:
        oxford_pets(tmp_path / 'no')
    for part in ('download=True', 'images.tar.gz', str(tmp_path / 'no' / 'oxford-iiit-pet'), 'vgg/data/pets/ and'):
        assert part in str(error.value)
    (photos / 'oxford-iiit-pet' / 'annotations' / 'test.txt').unlink()
    with pytest.raises(FileNotFoundError, match='test.txt.*unpack them there'):
        oxford_pets(photos)


def test_some_are_missing(photos):
    for i in range(3):
        (photos / 'oxford-iiit-pet' / 'images' / f'Bengal_{i}.jpg').unlink()
    with pytest.raises(FileNotFoundError, match='3 of 15 photos are missing: .*Bengal_0.jpg.*download=True'):
        oxford_pets(photos)
    with pytest.warns(UserWarning, match='3 of 15'):
        dls = oxford_pets(photos, on_error='skip', size=32)
    assert len(dls.skipped) == 3 and len(dls.files) == 12


def test_fetched_once(archives, tmp_path):
    dls = oxford_pets(tmp_path, download=True)
    assert len(dls.files) == 15 and len(OxfordIIITPet(tmp_path, 'test')) == 6, 'torchvision finds them, too'
    asked = len(archives.asked)
    assert oxford_pets(tmp_path, download=True).files == oxford_pets(tmp_path).files == dls.files
    assert len(archives.asked) == asked


@pytest.mark.parametrize('lost', ['images/Bengal_0.jpg', 'annotations/test.txt', 'images', 'annotations'])
def test_half_a_folder_is_completed(archives, tmp_path, lost):
    oxford_pets(tmp_path, download=True)
    (tmp_path / 'oxford-iiit-pet' / lost).rename(tmp_path / 'away')
    with pytest.raises(FileNotFoundError, match='download=True'):
        oxford_pets(tmp_path)
    asked = len(archives.asked)
    assert len(oxford_pets(tmp_path, download=True).files) == 15 and len(archives.asked) == asked


def test_after_a_cut(archives, tmp_path):
    archives.cut = 700
    with pytest.raises(OSError, match='images.tar.gz, .*annotations.tar.gz could not be downloaded.*tries again'):
        oxford_pets(tmp_path, download=True)
    archives.cut = None
    assert len(oxford_pets(tmp_path, download=True).files) == 15


def test_photos_in_a_folder_that_cannot_be_written(photos, monkeypatch):
    monkeypatch.setattr(module, 'download_archives', None)
    assert len(oxford_pets(photos, download=True).files) == 15


def test_the_archives_are_torchvisions():
    assert tuple(module._ARCHIVES.items()) == OxfordIIITPet._RESOURCES


# The notebook

@pytest.fixture
def cache(tmp_path, monkeypatch):
    "torchvision's cache in the notebook's process, empty."
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    folder = tmp_path / 'torch' / 'hub' / 'checkpoints'
    folder.mkdir(parents=True)
    return folder


def run(folder, urls={}, **settings):
    "Execute the notebook with other settings, and weights elsewhere; returns what it printed."
    notebook = nbformat.read(NOTEBOOK, 4)
    cell = next(cell for cell in notebook.cells if cell.source.startswith('path = '))
    for name in settings:
        assert f'{name} = ' in cell.source, 'no such setting'
    cell.source += ''.join(f'\n{name} = {value!r}' for name, value in settings.items())
    for weights, url in urls.items():
        cell.source += f'\nimport torchvision; torchvision.models.{weights}.value.url = {url!r}'
    NotebookClient(notebook, timeout=900, kernel_name='python3',
                   resources={'metadata': {'path': folder}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get('outputs', [])]
    return ''.join(output.text for output in outputs if output.output_type == 'stream')


def test_with_photos_and_weights_every_cell_runs(photos, cache, tmp_path, monkeypatch):
    urls = {}
    for network, weights in [(models.resnet34(), models.ResNet34_Weights.DEFAULT),
                             (models.resnet50(), models.ResNet50_Weights.IMAGENET1K_V1)]:
        publish(network, weights, cache, monkeypatch)
        urls[str(weights)] = weights.url
    printed = run(tmp_path, urls, path=str(photos), size=32, long_runs=True)
    assert 'The runs below will start.' in printed
    assert '12 training and 3 validation pictures of 32 x 32, 3 classes' in printed
    for name in 'AEGHI': # what the reader got, beside the published row
        assert f'your {name}: ' in printed
    assert 'missing' not in printed
    assert 'your B: ' in printed and len(re.findall('agrees with|differs from', printed.split('will start.')[1])) == 6


def test_without_weights_the_photos_are_shown_and_training_is_skipped(photos, cache, tmp_path):
    printed = run(tmp_path, path=str(photos), size=32, long_runs=True)
    assert '12 training and 3 validation pictures' in printed
    assert 'The runs below will be skipped' in printed and 'resnet34-b627a593.pth' in printed
    assert 'your A: ' not in printed


def test_offline_it_says_what_is_missing(cache, tmp_path):
    printed = run(tmp_path, path=str(tmp_path / 'nowhere'))
    for part in ['images.tar.gz', 'download=True', 'resnet34-b627a593.pth', 'will be skipped']:
        assert part in printed
    assert printed.count('skipped') == 1 and 'your A: ' not in printed, 'said once'
