"A set of pictures that shows nothing, or too little, is a warning; a set that is meant to be so is not."
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from finetune_teach.engine.drawing import draw_pet
from finetune_teach.pictures import image_files, image_folders
from picture_files import make_folder, warned

REAL = Path(__file__).resolve().parents[3] / 'shared' / 'data'


@pytest.fixture(scope='module')
def dogs(): return [draw_pet('pug', i, size=80) for i in range(24)]


def folder(root, images, ending='png'):
    "The images in two classes, by turns."
    for i, image in enumerate(images):
        (root / 'ab'[i % 2]).mkdir(parents=True, exist_ok=True)
        image.save(root / 'ab'[i % 2] / f'{i}.{ending}')
    return root


def said_of(root, size=48, **options):
    "What is said until all pictures are decoded, once by each set; and its pictures."
    dls, said = warned(image_folders, root, size=size, **options)
    for _ in range(2): said += warned(lambda: [*dls.train, *dls.valid])[1]
    return [text for text in said if 'are training' not in text], dls


def sixteen(image, factor=16): return Image.fromarray(np.asarray(image.convert('L')).astype(np.uint16) * factor)


def marked(image, value):
    "The image with one pixel like no other, so that no two files are the same."
    image.putpixel((5, value), 40 + value)
    return image


# ---- what is meant to be so ----

def digits(i):
    image = Image.new('L', (28, 28))
    ImageDraw.Draw(image).text((4 + i % 9, 4 + i // 9), str(i), fill=255, font_size=14)
    return image


def lines(i):
    image = Image.new('1', (150, 150), 1)
    ImageDraw.Draw(image).line((10, 5 * i, 130, 100), fill=0, width=3)
    return image


def at_night(i):
    values = np.random.default_rng(i).gamma(1, 6, (80, 100, 3))
    values[30:36, 40:46] = 230
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def x_ray(i):
    y, x = np.mgrid[:120, :100]
    return Image.fromarray((20 + 150 * np.exp(-((y - 60) ** 2 + (x - 40 - i) ** 2) / 900)).astype(np.uint8))


@pytest.mark.parametrize('make', [digits, lines, at_night, x_ray, lambda i: Image.new('RGB', (9, 9), (10 * i, 0, 99)),
                                  lambda i: draw_pet('pug', i, size=60).resize((120, 80))])
def test_no_false_alarm(tmp_path, make): assert said_of(folder(tmp_path, map(make, range(24))))[0] == []


@pytest.mark.parametrize('style', ['paint', 'sketch'])
def test_no_false_alarm_for_drawn_pets(tmp_path, style):
    assert said_of(folder(tmp_path, (draw_pet('pug', i, style=style) for i in range(24))))[0] == []


@pytest.mark.parametrize('name', ['flowers_sample', 'cifar10_sample', 'oxford_pets_sample'])
@pytest.mark.parametrize('size', [32, 224])
def test_no_false_alarm_for_real_pictures(name, size):
    if not (REAL / name).is_dir(): pytest.skip(f'no {name} here')
    dls = (image_files(REAL / name / 'images', lambda p: str(p.name[0].isupper()), size=size) if 'pets' in name else
           image_folders(REAL / name, size=size))
    assert warned(lambda: [*dls.valid, next(iter(dls.train))])[1] == [] and dls.value_range is None


# ---- what is wrong ----

@pytest.mark.parametrize('name, change', [('black', lambda v: v // 16), ('white', lambda v: 240 + v // 17)])
def test_nothing_to_be_seen(tmp_path, dogs, name, change):
    (text,), dls = said_of(folder(tmp_path, [dog.point(change) for dog in dogs]))
    assert f'came out nearly {name}' in text and str(tmp_path) in text and '.show_batch()' in text
    assert '20 of 20' in text, 'said after the first epoch: not all have to be decoded'


def test_all_the_same_grey(tmp_path, dogs):
    (text,), _ = said_of(folder(tmp_path, [dog.point(lambda v: 120 + v // 32) for dog in dogs]))
    assert 'nearly of one and the same grey' in text


def test_half_of_the_pictures_may_be_dark(tmp_path, dogs):
    assert not said_of(folder(tmp_path, [dog.point(lambda v: v // 16) if i % 4 == 1 else dog for i, dog in enumerate(dogs)]))[0]


def test_copies(tmp_path, dogs):
    (text,), _ = said_of(folder(tmp_path, dogs[:4] * 6))
    assert 'pictures looked at are equal to others' in text and 'keep one of each' in text


def test_few_levels(tmp_path, dogs):
    far = [sixteen(dog) for dog in dogs]
    far[3] = Image.fromarray(np.where(np.arange(80) < 40, 65535, 0).astype(np.uint16)[None].repeat(80, 0))
    said, dls = said_of(folder(tmp_path, far))
    assert dls.value_range == (0, 65535) and len(said) == 1
    assert 'came out nearly black' in said[0] and 'value_range=(0.0, 65535.0)' in said[0]
    said, _ = said_of(tmp_path, value_range=(3000, 1e6))
    assert said[0].startswith('20 of 20') and 'nearly black' in said[0] and 'outside of value_range=(3000.0, 1000000.0)' in said[-1]
    root = folder(tmp_path / 'steep', [sixteen(dog.point(lambda v: v // 100), 2000) for dog in dogs])
    said, _ = said_of(root, 80, value_range=(0, 12_000))
    assert 'only a few levels of grey' in said[0]
    assert not said_of(root)[0], 'the scale of the set suits it'


# ---- crops ----

def test_what_crops_cut_away_is_said_once_with_its_share(tmp_path, dogs):
    root = folder(tmp_path, [marked(dog.resize((240, 80)), i) for i, dog in enumerate(dogs)])
    (text,), dls = said_of(root)
    assert "resize='crop' cuts away 67% of most pictures" in text and "'squeeze' or 'pad'" in text
    assert not warned(lambda: [*dls.with_preprocessing(size=32).train])[1], 'the size is fixed'
    for resize in ('crop', 'squeeze', 'pad'):
        said, dls = said_of(root, resize=resize)
        assert not said and dls.resize == dls.train.resize == resize
    free = image_folders(root)
    assert warned(lambda: [*free.train, *free.valid])[1] and not warned(lambda: [*free.with_preprocessing(size=32).train])[1]


# ---- bits ----

def test_files_of_8_bits_among_others(tmp_path, dogs):
    (text,), dls = said_of(folder(tmp_path, [sixteen(dog) if i % 3 else dog for i, dog in enumerate(dogs)]))
    assert 'have more than 8 bits' in text and 'the latter stay as they are' in text and str(dls.value_range) in text


def test_a_range_that_does_not_go_with_the_pictures(tmp_path, dogs):
    (text,), _ = said_of(folder(tmp_path / 'a', dogs), value_range=(0, 4095))
    assert text.startswith('value_range=(0.0, 4095.0) does nothing to these pictures')
    (text,), _ = said_of(folder(tmp_path / 'b', [sixteen(dog) for dog in dogs]), value_range=(0, 2000))
    assert 'of the numbers lie outside of value_range=(0.0, 2000.0)' in text
    assert not said_of(tmp_path / 'b', value_range=(0, 4095))[0]


def test_a_set_that_is_skipped_through_is_judged_as_a_whole(tmp_path, dogs):
    root = folder(tmp_path, [dog.point(lambda v: v // 16) for dog in dogs])
    (root / 'a' / 'notes.txt').write_text('a good dog')
    said, _ = said_of(root, on_error='skip')
    assert len(said) == 2 and '24 of 24 pictures looked at' in said[0] and '1 of 25 files' in said[1]


def test_too_few_say_nothing_yet(tmp_path):
    make_folder(tmp_path, dict(a=30, b=30))
    dls = image_folders(tmp_path, size=8, batch_size=4)
    store = dls.train.pictures.store
    for _ in zip(range(7), dls.train): assert len(store.kept(dls.train.pictures.how).looks) < 30
    list(dls.train)
    assert store.kept(dls.train.pictures.how).looks is None and torch.equal(dls.train.pictures[0], dls.train.pictures[0])
