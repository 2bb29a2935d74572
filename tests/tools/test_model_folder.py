"The folder for a hub: its files come back as a learner, its card tells what was measured."
import json

import pytest
import torch
from PIL import Image

from conftest import small_network, state, same_bits
from finetune_teach.engine.drawing import draw_pet
from finetune_teach.engine.prediction import prepare_picture
from finetune_teach.pictures import image_folders
from finetune_teach.tools.learners import load_learner
from finetune_teach.tools.model_folder import model_card, to_folder


def test_the_folder_gives_the_learner_back(make_learner, tmp_path):
    learn = make_learner()
    learn.fit(1, 1e-2)
    before = state(learn.model), [m.training for m in learn.model.modules()]
    folder = to_folder(learn, tmp_path / 'pets')
    assert sorted(f.name for f in folder.iterdir()) == [
        'README.md', 'config.json', 'model.safetensors', 'preprocessor_config.json']
    config = json.loads((folder / 'config.json').read_text('utf-8'))
    assert list(config['id2label'].values()) == learn.description['classes'] == list(config['label2id'])
    assert config['mean'] == learn.description['mean'] and config['size'] == 32
    assert same_bits(state(load_learner(folder / 'model', small_network(), device='cpu').model), before[0])
    assert same_bits(state(learn.model), before[0]) and [m.training for m in learn.model.modules()] == before[1]


@pytest.fixture
def folders(tmp_path):
    for i, breed in enumerate(['pug', 'Bengal'] * 5):
        (tmp_path / 'photos' / breed).mkdir(parents=True, exist_ok=True)
        draw_pet(breed, seed=i, size=128).resize((192, 128)).save(tmp_path / 'photos' / breed / f'{i}.png')
    return tmp_path / 'photos'


@pytest.mark.parametrize('how, far', [('squeeze', 0.1), ('crop', 3)])
def test_transformers_prepares_pictures_alike(how, far, folders, make_learner, tmp_path):
    transformers = pytest.importorskip('transformers')
    learn = make_learner(image_folders(folders, size=32, resize=how))
    processor = transformers.AutoImageProcessor.from_pretrained(to_folder(learn, tmp_path / 'mine'))
    path = next(folders.rglob('*.png'))
    theirs = processor(Image.open(path), return_tensors='pt')['pixel_values'][0]
    mean, std = (torch.tensor(learn.description[key]).view(3, 1, 1) for key in ('mean', 'std'))
    assert theirs.shape == (3, 32, 32)
    assert ((theirs * std + mean) * 255 - prepare_picture(path, learn.description)).abs().mean() < far


def test_no_processor_of_transformers_pads(folders, make_learner, tmp_path):
    folder = to_folder(make_learner(image_folders(folders, size=32)), tmp_path / 'mine')
    assert (folder / 'preprocessor_config.json').exists()
    to_folder(make_learner(image_folders(folders, size=32, resize='pad')), folder)
    assert not (folder / 'preprocessor_config.json').exists()


def test_the_card_counts_pictures_and_mistakes(make_learner):
    learn = make_learner()
    learn.fit(2, 1e-2)
    card, classes = model_card(learn), learn.description['classes']
    rows = {name: line.split(' | ')[1:4] for line in card.splitlines() for name in classes if line.startswith(f'| {name} |')}
    assert {name: row[:2] for name, row in rows.items()} == {name: ['4', '3'] for name in classes}
    wrong = round(learn.validate().error_rate * 36)
    assert sum(int(row[2]) for row in rows.values()) == wrong and f'({wrong} of 36 wrong' in card
    assert card.startswith('---\nlibrary_name: ') and f'| torch | {torch.__version__.split("+")[0]}' in card
    assert card.count('| frozen |') == 2, 'an epoch on each line'


def test_a_learner_without_pictures_or_training_says_so(make_learner, tmp_path):
    loaded = load_learner(make_learner().export(tmp_path / 'a'), small_network())
    card = model_card(loaded)
    assert 'without its pictures' in card and 'It was not trained.' in card
