"Which pictures are for validation: by chance, by groups, or as told; and names that look like series."
import contextlib
import os
import random
import re
from collections import Counter
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune_teach.engine.splits import group_split, name_series, part_named, random_split, series_warning
from finetune_teach.pictures import image_files, image_folders
from picture_files import make_folder, says, warned

pytestmark = pytest.mark.filterwarnings('ignore:.*very unequal size:UserWarning')
DATA = Path(__file__).resolve().parents[3] / 'shared' / 'data'


@pytest.fixture
def pets(tmp_path): return make_folder(tmp_path / 'pets', dict(cat=10, dog=25, eel=2))


def test_split_is_seeded_and_independent(pets):
    a = image_folders(pets).valid.files
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    before = torch.get_rng_state()
    assert image_folders(pets).valid.files == a
    assert (torch.get_rng_state() == before).all()
    assert image_folders(pets, seed=1).valid.files != a


def test_split_ignores_the_order_of_the_disk(pets, monkeypatch):
    wanted, iterdir = image_folders(pets).valid.files, Path.iterdir
    scandir = os.scandir
    class Backwards(list): # with it, or without
        def __enter__(self): return self
        def __exit__(self, *_): pass
    def backwards(folder='.'):
        with scandir(folder) as entries: return Backwards(sorted(entries, key=lambda e: e.name, reverse=True))
    monkeypatch.setattr(Path, 'iterdir', lambda self: reversed(sorted(iterdir(self))))
    monkeypatch.setattr(os, 'scandir', backwards)
    assert image_folders(pets).valid.files == wanted
    paths = list(pets.rglob('*.png'))
    random.Random(0).shuffle(paths)
    assert image_files(iter(paths), lambda p: p.parent.name).valid.files == wanted


def test_split_of_a_class_ignores_the_others(pets):
    cats = lambda dls: [p.name for p in dls.valid.files if p.name.startswith('cat')]
    wanted = cats(image_folders(pets))
    make_folder(pets, dict(ant=7))
    assert cats(image_folders(pets)) == wanted


@pytest.mark.parametrize('pct, wanted', [(.01, [1, 1, 1]), (.5, [5, 12, 1]), (.99, [9, 24, 1])])
def test_split_share(pets, pct, wanted):
    assert torch.bincount(image_folders(pets, valid_pct=pct).valid.labels).tolist() == wanted


LABELS = st.lists(st.integers(2, 9), min_size=1, max_size=6).flatmap(
    lambda counts: st.permutations([k for k, n in enumerate(counts) for _ in range(n)]))


@given(LABELS, st.floats(0.001, 0.999), st.integers(-2**63, 2**64 - 1))
def test_random_split(labels, valid_pct, seed):
    y = torch.tensor(labels)
    before = torch.get_rng_state()
    is_valid = random_split(y, valid_pct, seed)
    assert is_valid.dtype == torch.bool and len(is_valid) == len(y)
    for k in y.unique():
        n, total = int(is_valid[y == k].sum()), int((y == k).sum())
        assert 1 <= n < total and (abs(n - valid_pct * total) <= 0.5 or n in (1, total - 1))
    assert torch.equal(is_valid, random_split(y, valid_pct, seed)) and torch.equal(before, torch.get_rng_state())


def test_the_default_split_stays_what_it_was(pets):
    "Written down before groups and the rest were added."
    y = torch.tensor([0] * 12 + [1] * 7 + [2] * 30)
    assert random_split(y, .2, 42).nonzero()[:, 0].tolist() == [6, 8, 13, 19, 25, 27, 31, 34, 44]
    assert [p.name for p in image_folders(pets).valid.files] == [
        'cat_2.png', 'cat_6.png', 'dog_0.png', 'dog_10.png', 'dog_2.png', 'dog_24.png', 'dog_7.png', 'eel_0.png']


# ---- groups ----

@st.composite
def grouped(draw):
    "Labels and groups in which every class has two groups or more of its own."
    y, groups = [], []
    for k in range(draw(st.integers(1, 4))):
        for g in range(draw(st.integers(2, 12))):
            n = draw(st.integers(1, 6))
            y += [k] * n
            groups += [f'{k} {g}'] * n
    shared = draw(st.integers(0, 5))  # and some with pictures of any class
    for i in range(shared):
        y.append(draw(st.integers(0, max(y))))
        groups.append('shared')
    return y, groups


@given(grouped(), st.floats(.05, .6), st.integers(0, 2**40))
def test_a_group_is_on_one_side_and_a_class_on_both(both, valid_pct, seed):
    y, groups = both
    before = torch.get_rng_state()
    is_valid = group_split(torch.tensor(y), groups, valid_pct, seed, [*'abcd'], 'here')
    assert is_valid.dtype == torch.bool and len(is_valid) == len(y)
    sides = {(g, bool(v)) for g, v in zip(groups, is_valid)}
    assert len(sides) == len(set(groups))
    assert {(k, bool(v)) for k, v in zip(y, is_valid)} == {(k, v) for k in y for v in (False, True)}
    assert torch.equal(is_valid, group_split(torch.tensor(y), groups, valid_pct, seed, [*'abcd'], 'here'))
    assert torch.equal(before, torch.get_rng_state())


def test_about_the_share_of_each_class_is_held_out():
    rng = random.Random(0)
    groups = [g for g in range(300) for _ in range(rng.randint(1, 9))]
    kinds = [rng.randint(0, 3) for _ in range(300)]
    y = torch.tensor([kinds[g] for g in groups])
    for seed in range(5):
        is_valid = group_split(y, groups, .2, seed, [*'abcd'], 'here')
        for k in range(4): assert abs(is_valid[y == k].float().mean() - .2) < .01
    mixed = torch.tensor([rng.randint(0, 3) for _ in groups])  # a patient with pictures of all classes
    is_valid = group_split(mixed, groups, .2, 0, [*'abcd'], 'here')
    for k in range(4): assert abs(is_valid[mixed == k].float().mean() - .2) < .03


def test_chance_chooses_the_groups():
    y, groups = torch.zeros(100, dtype=torch.long), [i // 2 for i in range(100)]
    times = Counter()
    for seed in range(200): times.update({g for g, v in zip(groups, group_split(y, groups, .2, seed, ['a'], 'x')) if v})
    assert len(times) == 50 and min(times.values()) > 15 and max(times.values()) < 75, 'each 40 times, about'


def test_a_class_of_one_group(tmp_path):
    pets = make_folder(tmp_path, dict(cat=6, dog=6, eel=4))
    animal = lambda path: 'tom' if path.name.startswith('eel') else path.stem[-1]
    text = says(image_folders, pets, groups=animal, match=['all pictures of eel are of one group', "single='train'", 'is_valid='])
    dls, said = warned(image_folders, pets, groups=animal, single='train')
    assert set(dls.valid.labels.tolist()) == {0, 1} and not said
    assert {p.stem[-1] for p in dls.valid.files}.isdisjoint(p.stem[-1] for p in dls.train.files if 'eel' not in p.name)


def test_groups_that_cannot_be_split():
    y, groups = torch.tensor([0, 0, 1, 1, 2, 2]), [*'ababcc']
    with pytest.raises(ValueError, match='all pictures of z are of one group'): group_split(y, groups, .2, 0, [*'xyz'], 'here')
    y, groups = torch.tensor([0, 1, 0, 2, 1, 2]), [*'aabbcc']  # each class in two of three
    text = says(group_split, y, groups, .2, 0, [*'xyz'], 'here', match=['no choice of whole groups', 'one side only', 'is_valid='])


def test_few_groups_hold_out_another_share(pets):
    dls, said = warned(image_folders, pets, groups=lambda path: int(path.stem[-1]) % 2)
    assert len(said) == 2 and 'of the pictures are held out, not 20%: the groups are too few' in said[0]


@pytest.mark.parametrize('groups', [r'_(\d)', re.compile(r'(\d)\.'), lambda p: p.stem[-1], lambda p: np.int64(int(p.stem[-1])),
                                    lambda p: p.with_stem(p.stem[-1])])
def test_ways_to_say_groups(pets, groups):
    (pets / 'eel' / 'eel_1.png').rename(pets / 'eel' / 'eel_7.png')
    for dls in (image_folders(pets, groups=groups), image_files(pets, '([a-z]+)', groups=groups)):
        sides = [{groups(p) if callable(groups) else re.search(groups, p.name)[1] for p in part.files} for part in (dls.train, dls.valid)]
        assert sides[0].isdisjoint(sides[1]) and len(dls.files) == 37 and len(set(dls.valid.labels.tolist())) == 3
    with pytest.warns(UserWarning, match='cannot be read') if callable(groups) else contextlib.nullcontext():
        if callable(groups): (pets / 'dog' / 'dog_3.png').write_bytes(b'no')
        again = image_folders(pets, groups=groups, on_error='skip', size=8)
    assert len(again.files) == 37 - callable(groups)


@pytest.mark.parametrize('groups, wanted', [
    ('(', ["groups='('", 'neither']), (r'\d', ['0 groups', 'the patient', '(?:...)']), (5, ['groups=5', 'a function of the path']),
    (lambda p: None, ['no group to 37 of 37', 'cat_0.png']), (lambda p: [1], ['cat_0.png', 'groups= gives a list']),
    (lambda p: {}['a'], ['cat_0.png', 'groups function', 'KeyError']), (r'(1\d)', ['no group to 27 of 37', 'a name of its own']),
    ([1, 2], ['groups= has 2 values', '37 files']), (dict(a=1), ['groups=', 'a function of the path'])])
def test_wrong_groups(pets, groups, wanted):
    for options in (dict(), dict(is_valid=lambda p: '1' in p.name)):
        says(image_folders, pets, groups=groups, match=wanted, **options)


def test_groups_are_checked_in_a_split_that_is_given(tmp_path):
    make_folder(tmp_path / 'train', dict(a=4, b=3))
    make_folder(tmp_path / 'valid', dict(a=2, b=2), start=3)
    says(image_folders, tmp_path, groups=r'(\d)\.', match=['1 of 5 groups are in more than one part', ': 3.', str(tmp_path)])
    assert len(warned(image_folders, tmp_path, groups=lambda p: str(p))[0].files) == 11
    says(image_files, tmp_path, '^(.)', is_valid=lambda p: 'valid' in p.parts, groups=r'(\d)\.', match='1 of 5 groups')


# ---- is_valid ----

def test_ways_to_say_is_valid(pets):
    files = sorted(pets.rglob('*.png'))
    odd = [int(p.stem[-1]) % 2 == 1 for p in files]
    wanted = [p for p, v in zip(files, odd) if v]
    for is_valid in (lambda p: int(p.stem[-1]) % 2 == 1, lambda p: np.bool_(int(p.stem[-1]) % 2), odd, np.array(odd), torch.tensor(odd),
                     [int(v) for v in odd], tuple(odd)):
        for dls in (image_folders(pets, is_valid=is_valid), image_files(pets, '([a-z]+)', is_valid=is_valid)):
            assert dls.valid.files == wanted and len(dls.files) == 37
    order = list(range(37)) * 2  # a list belongs to the paths as they were given
    random.Random(0).shuffle(order)
    dls = image_files([files[i] for i in order], '([a-z]+)', is_valid=[odd[i] for i in order])
    assert dls.valid.files == wanted
    odd_twice = [odd[i] for i in order]
    odd_twice[order.index(0)] ^= True
    says(image_files, [files[i] for i in order], '([a-z]+)', is_valid=odd_twice, match=['cat_0.png', 'given twice', 'is_valid'])


@pytest.mark.parametrize('is_valid, wanted', [
    ([True], ['is_valid= has 1 values', '37 files']), (lambda p: None, ['cat_0.png', 'gives nothing here', 'True']),
    (lambda p: 'valid', ['a str', 'True (for validation)']), (lambda p: re.search('c', p.name), ['a Match']), (.2, ['is_valid=0.2']),
    (lambda p: True, ['no file for training', 'True for all 37']), (lambda p: False, ['no file for validation', 'False for all 37']),
    ([2] * 37, ['a int']), ('valid', ["is_valid='valid'", 'function of the path']), ({1, 2}, ['a list'])])
def test_wrong_is_valid(pets, is_valid, wanted):
    says(image_folders, pets, is_valid=is_valid, match=wanted)
    says(image_files, pets, '([a-z]+)', is_valid=is_valid, match=wanted)


def test_is_valid_of_a_split_that_is_given(tmp_path):
    for i, part in enumerate(('train', 'valid')): make_folder(tmp_path / part, dict(a=4, b=3), start=10 * i)
    says(image_folders, tmp_path, is_valid=lambda p: True, match=['split already', str(tmp_path)])


@pytest.mark.parametrize('name, part', [('train', 0), ('Training Set', 0), ('VAL', 1), ('validation-data', 1), ('dev', 1), ('Eval', 1),
    ('test_images', 2), ('Testing', 2), ('trains', None), ('testament', None), ('valley', None), ('cat', None), ('', None), ('set', None)])
def test_names_of_parts(name, part): assert part_named(name) == part


# ---- names that look like series ----

def listing(pattern, **counts):
    return [Path('root', label, pattern.format(c=label, i=i, k=k, j=1000 + 7 * i + k, h=blake2b(f'{label}{i}{k}'.encode(), digest_size=6).hexdigest()))
            for label, (n, m) in counts.items() for i in range(n) for k in range(m)]


ORDINARY = {'Kaggle cats and dogs': '{c}.{j}.jpg', 'a camera': 'IMG_{j:04}.JPG', 'another': 'DSC0{j}.JPG', 'its folder': '100_{j}.JPG',
            'pets': '{c}_{j}.jpg', 'flowers': 'image_0{j}.jpg', 'numbers': '{j}.png', 'ImageNet': 'n01440764_{j}.JPEG',
            'birds': 'Black_Footed_Albatross_{j}_{h}.jpg', 'hashes': '{h}.jpg', 'Flickr': '{j}_{h}_n.jpg', 'VOC': '2008_00{j}.jpg',
            'CIFAR': 'camion_s_00{j}.png', 'Windows': '{c} ({j}).jpg', 'skin': 'ISIC_002{j}.jpg', 'EuroSAT': '{c}_{j}.jpg',
            'a person': 'person_{j}.jpg', 'a scan': 'scan{j}.png', 'frames of pictures': 'frameless_{j}.jpg', 'COCO': '00000{j}.jpg'}


@pytest.mark.parametrize('pattern', ORDINARY.values(), ids=ORDINARY.keys())
def test_ordinary_names_are_no_series(pattern):
    files = listing(pattern, cat=(40, 3), dog=(30, 3))
    assert series_warning(files, [p.parent.name for p in files], 'here') is None


def test_many_kinds_of_ordinary_names_in_two_classes():
    "Breeds as dogs and cats; ImageNet's classes as kinds; the many words of CIFAR's classes."
    for names in (['Abyssinian', 'Bengal', 'beagle', 'pug'], ['n01440764', 'n01443537', 'n02085620'], ['camion_s', 'wagon_s', 'auto_s'],
                  ['2007', '2008', '2009'], ['100', '101', '102']):
        files = [Path('pets', f'{name}_{j:04}.jpg') for name in names for j in range(20)]
        assert name_series(files, ['x'] * len(files)) is None, names


SERIES = {'chest x-rays': ('person{i}_bacteria_{k}.jpeg', r'(person\d+)'), 'letters': ('img_{i:03}_{k}.jpg', None),
          'patients': ('patient{i}_{k}.jpg', r'(patient\d+)'), 'retina': ('{i}_left.jpeg', None), 'a burst': ('IMG_{i:04}_BURST00{k}.jpg', r'(.+)_(?:BURST\d+)\.'),
          'copies': ('IMG_{i:04} ({k}).jpg', None), 'slices': ('case-{i:03}-slice-{k}.png', r'(case-\d+)'), 'frames': ('video{i}_frame{k}.jpg', r'(video\d+)'),
          'expressions': ('S{i:03}_001_{k:08}.png', r'(.+)_\d+\.'), 'phone': ('IMG_202103{i:02}_{j}.jpg', r'(.+)_\d+\.'),
          'Roboflow': ('{i}_jpg.rf.{h}.jpg', r'^(.+)\.rf\.'), 'a subject': ('sub-{i:02}_run-{k}.png', r'(sub-\d+)')}


@pytest.mark.parametrize('pattern, wanted', SERIES.values(), ids=SERIES.keys())
def test_series_are_found_and_the_advice_works(pattern, wanted, tmp_path):
    files = listing(pattern, cat=(9, 3), dog=(8, 3))
    if '{i}_left' in pattern: files = [Path(str(p).replace('left', side)) for p in files for side in ('left', 'right')]
    if pattern.startswith('img'): files = [p.with_stem(p.stem[:-1] + 'abc'[int(p.stem[-1])]) for p in files]
    files = sorted(set(files))
    for p in files:
        (tmp_path / p.parent.name).mkdir(exist_ok=True)
        (tmp_path / p.parent.name / p.name).write_bytes(str(p).encode())
    dls, said = warned(image_folders, tmp_path)
    found = [text for text in said if 'look like pictures of one thing' in text]
    assert len(found) == 1 and str(tmp_path) in found[0]
    groups = eval(re.search(r"groups=(.*)\. If they", found[0])[1])
    assert wanted is None or groups == wanted
    again, said = warned(image_folders, tmp_path, groups=groups)
    assert not [text for text in said if 'look like' in text] and len(again.files) == len(files)
    sides = [{re.search(groups, p.name)[1] for p in part.files} for part in (again.train, again.valid)]
    assert not sides[0] & sides[1] and len(sides[0]) > 3 and len(sides[1]) > 1


def test_the_advice_works_where_some_names_are_others():
    xrays = [Path('x', f'person{i}_virus_{k}.jpeg') for i in range(30) for k in range(3)] + [Path('x', f'IM-{i:04}-0001.jpeg') for i in range(40)]
    names, groups = name_series(xrays, ['sick'] * 90 + ['well'] * 40)
    found = [re.search(eval(groups), path.name)[1] for path in xrays]
    assert len(set(found)) == 70 and groups == repr(r'(?i)^(.*?person\d+|.+)')
    copies = [Path(f'IMG_{i:04}{c}.jpg') for i in range(20) for c in ('', '(1)', '(2)')]
    names, groups = name_series(copies, ['a'] * 60)
    found = [re.search(eval(groups), path.name)[1] for path in copies]
    assert len(set(found)) == 20 and found[0] == 'IMG_0000'


def test_numbered_folders_in_a_class_are_series():
    files = [Path('root', label, f'patient{i}', f'{k}.jpg') for label in ('sick', 'well') for i in range(5) for k in range(4)]
    names, groups = name_series(files, [p.parts[1] for p in files])
    assert names[0] == str(Path('patient0', '0.jpg')) and eval(groups)(files[0]) == 'patient0'
    assert name_series([Path('root', *p.parts[1:2], 'old', p.parts[2] + p.name) for p in files if p.name == '0.jpg'], ['a'] * 10) is None
    birds = [Path('root', f'001.Albatross', f'{k}.jpg') for k in range(40)]
    assert name_series(birds, ['001.Albatross'] * 40) is None


def test_frames_of_one_video_have_their_own_advice():
    files = [Path('root', label, f'frame{i:04}.jpg') for label in ('walk', 'run') for i in range(200)]
    text = series_warning(files, [p.parent.name for p in files], 'here')
    assert 'frame0000.jpg look like pictures of a video' in text and 'last part of each video with is_valid=' in text
    files = [Path('root', 'frame', f'frame_{i:04}.jpg') for i in range(200)]
    assert series_warning(files, ['frame'] * 200, 'here') is None


def test_nothing_is_said_where_the_split_is_given(tmp_path):
    files = listing('person{i}_bacteria_{k}.jpeg', cat=(9, 3), dog=(8, 3))
    for p in files:
        (tmp_path / p).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / p).write_bytes(str(p).encode())
    label = lambda path: path.parent.name
    assert len(warned(image_files, tmp_path, label)[1]) == 1
    for options in (dict(groups=r'(person\d+)'), dict(is_valid=lambda p: 'person1_' in p.name), dict(groups=lambda path: path)):
        assert not warned(image_files, tmp_path, label, **options)[1]


@pytest.mark.skipif(not DATA.exists(), reason=f'no test data at {DATA}')
@pytest.mark.parametrize('name', ['cifar10_sample', 'flowers_sample', 'oxford_pets_sample'])
def test_real_names_are_no_series(name):
    files = [p for p in (DATA / name).rglob('*.jp*g')]
    for label in (lambda p: p.parent.name, lambda p: p.name[0].isupper(), lambda p: p.name.rsplit('_', 1)[0]):
        assert series_warning(files, [str(label(p)) for p in files], 'here') is None
