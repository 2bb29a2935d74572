"The notebook on Oxford-IIIT Pet runs where the photos and weights are: here a few drawings, and random weights."
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from torchvision import models

from conftest import publish
from finetune_teach.drawing import draw_pet

NOTEBOOK = Path(__file__).parent.parent / 'nbs' / '10_oxford_pets.ipynb'


@pytest.fixture
def photos(tmp_path):
    "Fifteen drawings, laid out and named as torchvision keeps the photos."
    base = tmp_path / 'oxford-iiit-pet'
    (base / 'images').mkdir(parents=True)
    (base / 'annotations').mkdir()
    lines = {'trainval': [], 'test': []}
    for number, (breed, species) in enumerate({'Bengal': 1, 'Siamese': 1, 'pug': 2}.items(), 1):
        for i in range(5):
            draw_pet(breed, i).save(base / 'images' / f'{breed}_{i}.jpg')
            lines['test' if i > 2 else 'trainval'].append(f'{breed}_{i} {number} {species} 1')
    for part, text in lines.items():
        (base / 'annotations' / f'{part}.txt').write_text('\n'.join(text) + '\n')
    return tmp_path


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
    NotebookClient(notebook, timeout=300, kernel_name='python3',
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
    assert 'The cells below will run.' in printed and 'Skipped' not in printed
    assert '12 training and 3 validation pictures of 32 x 32, 3 classes' in printed
    for name in 'AEGHI': # what the reader got, beside the published row
        assert f'your {name}: ' in printed
    assert 'missing' not in printed


def test_without_weights_the_photos_are_shown_and_training_is_skipped(photos, cache, tmp_path):
    printed = run(tmp_path, path=str(photos), size=32, long_runs=True)
    assert '12 training and 3 validation pictures' in printed
    assert 'The cells below will be skipped.' in printed and 'resnet34-b627a593.pth' in printed
    assert 'No runs of yours' in printed


def test_offline_it_says_what_is_missing(cache, tmp_path):
    printed = run(tmp_path, path=str(tmp_path / 'nowhere'))
    for part in ['images.tar.gz', 'download=True', 'resnet34-b627a593.pth', 'will be skipped',
                 'Skipped: needs the photos.', 'No runs of yours']:
        assert part in printed
