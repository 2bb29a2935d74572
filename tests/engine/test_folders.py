"Which files are listed, as what, and how they are split; no file is opened."
import contextlib
import io
import os
import random
import re
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_teach.engine import folders
from finetune_teach.engine.folders import label_all, label_function, number_classes, random_split
from finetune_teach.pictures import image_files, image_folders
from picture_files import make_folder, says, unix_socket, warned

pytestmark = pytest.mark.filterwarnings('ignore:.*very unequal size:UserWarning')


@pytest.fixture
def pets(tmp_path): return make_folder(tmp_path / 'pets', dict(cat=10, dog=25, eel=2))


def all_read(dls): return [*dls.train, *dls.valid]


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
    @contextlib.contextmanager
    def backwards(folder):
        with scandir(folder) as entries: yield sorted(entries, key=lambda e: e.name, reverse=True)
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


@pytest.mark.parametrize('present, used', [
    (['valid', 'val', 'test'], 'valid'), (['test', 'val'], 'val'), (['test'], 'test'),
    (['test', 'validation'], 'validation')])
def test_given_split(tmp_path, present, used):
    make_folder(tmp_path / 'train', dict(a=4, b=3))
    for i, name in enumerate(present):
        make_folder(tmp_path / name, dict(a=2, b=1), start=10 + 10 * i)
    dls = image_folders(tmp_path)
    assert len(dls.train.labels) == 7 and len(dls.valid.labels) == 3
    assert all(used in p.parts for p in dls.valid.files)
    assert all('train' in p.parts for p in dls.train.files)


def test_valid_may_lack_a_class(tmp_path):
    make_folder(tmp_path / 'train', dict(a=4, b=3))
    make_folder(tmp_path / 'valid', dict(b=2))
    dls = image_folders(tmp_path)
    assert dls.classes == ['a', 'b'] and dls.valid.labels.tolist() == [1, 1]


def test_valid_may_not_add_a_class(tmp_path):
    make_folder(tmp_path / 'train', dict(a=4, b=3))
    make_folder(tmp_path / 'valid', dict(a=2, Bees=2))
    says(image_folders, tmp_path, match=['Bees', 'none to train on', str(tmp_path)])


def test_train_without_valid(tmp_path):
    make_folder(tmp_path / 'train', dict(a=4, b=3))
    says(image_folders, tmp_path, match=['valid', str(tmp_path / 'train'), 'at random'])
    assert image_folders(tmp_path / 'train').classes == ['a', 'b']
    make_folder(tmp_path / 'vehicles', dict(train=4, plane=3))  # train may be a class
    assert image_folders(tmp_path / 'vehicles').classes == ['plane', 'train']


def test_valid_without_pictures(tmp_path):
    make_folder(tmp_path / 'train', dict(a=4, b=3))
    (tmp_path / 'valid' / 'a').mkdir(parents=True)
    says(image_folders, tmp_path, match=['no validation pictures', str(tmp_path)])
    shutil.rmtree(tmp_path / 'valid' / 'a')
    says(image_folders, tmp_path, match=['no folders', str(tmp_path / 'valid')])


def test_sub_folders_belong_to_the_class_above(pets):
    (pets / 'README.txt').write_text('not in a class folder')
    make_folder(pets / 'cat' / 'old', dict(very_old=3), start=100)
    dls = image_folders(pets)
    assert len(dls.files) == 37 + 3 and dls.classes == ['cat', 'dog', 'eel']


def test_linked_folder_and_home(pets, tmp_path, monkeypatch):
    (tmp_path / 'links').mkdir()
    for name in ('cat', 'dog'): (tmp_path / 'links' / name).symlink_to(pets / name)
    assert len(image_folders(tmp_path / 'links').files) == 35
    monkeypatch.setenv('HOME', str(tmp_path))
    assert len(image_folders('~/pets').files) == 37
    assert len(image_folders(str(pets)).files) == 37


def test_progress_while_looking_for_files(pets, monkeypatch):
    seen = []
    class Bar(folders.tqdm):
        def update(self, n=1):
            if 'looking' in self.desc: seen.append((n, self.delay))
            return super().update(n)
    monkeypatch.setattr(folders, 'tqdm', Bar)
    image_folders(pets)
    assert len(seen) == 37 and set(seen) == {(1, 2)}
    image_files(pets, '(.+)_')
    assert len(seen) == 2 * 37 + 3  # the three folders, too


def test_missing_and_wrong_folders(tmp_path, pets):
    gone = tmp_path / 'gone'
    for function in (image_folders, lambda p: image_files(p, '(.)')):
        says(function, gone, error=FileNotFoundError, match=[str(gone), 'no such folder'])
        says(function, pets / 'cat' / 'cat_0.png', match=['cat_0.png', 'is a file', 'lies in'])
    (tmp_path / 'empty').mkdir()
    says(image_folders, tmp_path / 'empty', match=[str(tmp_path / 'empty'), 'image_files'])
    says(image_files, tmp_path / 'empty', '(.)', match=[str(tmp_path / 'empty'), 'no pictures'])
    says(image_files, [], '(.)', match='no pictures')
    says(image_folders, pets / 'cat', match=[str(pets / 'cat'), 'one folder for', 'image_files'])
    (pets / 'ant').mkdir()
    says(image_folders, pets, match=[str(pets / 'ant'), 'no pictures', 'delete'])


# ---- what else lies in folders ----

@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='no pipes in folders')
def test_what_is_no_file_is_named_with_the_others(pets):
    os.mkfifo(pets / 'cat' / 'pipe.jpg')
    unix_socket(pets / 'dog' / 'socket')
    (pets / 'dog' / 'zero.png').symlink_to('/dev/zero')
    text = says(all_read, image_folders(pets))
    assert '3 of 40 files' in text and 'pipe.jpg: a named pipe' in text
    assert 'socket: a socket' in text and 'zero.png: a device' in text
    says(all_read, image_files(pets, lambda path: path.parent.name, memory=0), match='3 of 40')
    os.mkfifo(pets.parent / 'pipe')
    says(image_folders, pets.parent / 'pipe', match='cannot be read: Not a directory')


def test_links_in_circles(pets):
    "Each folder is read once, and what leads back is named."
    (pets / 'cat' / 'again').symlink_to('.')
    (pets / 'cat' / 'deep' / 'er').mkdir(parents=True)
    (pets / 'cat' / 'deep' / 'er' / 'up').symlink_to('../..')
    (pets / 'all').symlink_to('.')
    (pets / 'lost').symlink_to('gone')
    (pets / 'dog' / 'one').symlink_to('two')
    (pets / 'dog' / 'two').symlink_to('one')
    wanted = {'again': 'a link to a folder', 'up': 'a link to a folder', 'all': 'a link to a folder',
              'lost': 'a link that leads nowhere', 'one': 'Too many levels', 'two': 'Too many levels'}
    with pytest.warns(UserWarning, match='6 of 43 files'): dls = image_folders(pets, on_error='skip', size=8)
    reasons = {path.name: reason for path, reason in dls.skipped}
    assert reasons.keys() == wanted.keys() and all(wanted[name] in reasons[name] for name in wanted)
    assert dls.classes == ['cat', 'dog', 'eel'] and len(dls.files) == 37
    assert len(warned(image_files, pets, lambda path: 'ab'['0' in path.stem], on_error='skip', size=8)[0].files) == 37


def test_links_cannot_multiply(tmp_path):
    "Twenty folders, each with two links to the next one: a million ways to the last."
    make_folder(tmp_path / 'pets', dict(cat=3, dog=3))
    for i in range(20):
        (tmp_path / f'{i}').mkdir()
        if i:
            for name in 'ab': (tmp_path / f'{i - 1}' / name).symlink_to(tmp_path / f'{i}')
    (tmp_path / 'pets' / 'cat' / 'many').symlink_to(tmp_path / '0')
    dls, _ = warned(image_folders, tmp_path / 'pets', on_error='skip', size=8)
    assert len(dls.files) == 6 and len(dls.skipped) == 19


def as_nobody(function):
    "What a function returns in a process without root's rights; text."
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.getuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            text = function()
        except BaseException as error: text = f'{type(error).__name__}: {error}'
        os.write(writing, text.encode('utf-8', 'backslashreplace'))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe: text = pipe.read()
    os.waitpid(child, 0)
    return text


@pytest.fixture
def open_folder():
    "A folder that everybody can reach: those of pytest are its user's alone."
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.mark.skipif(not hasattr(os, 'fork') or sys.platform == 'darwin', reason='no rights to drop')
@pytest.mark.filterwarnings('ignore:.*fork:DeprecationWarning')
def test_what_may_not_be_read(open_folder):
    pets = make_folder(open_folder / 'pets', dict(cat=5, dog=5, eel=5))
    os.chmod(pets / 'cat' / 'cat_0.png', 0)
    os.chmod(pets / 'dog', 0)
    try:
        text = as_nobody(lambda: says(all_read, image_folders(pets)))
        denied = 'Permission denied: you may not read it; change its permissions, or leave it out'
        assert f'2 of 11 files' in text and f'cat_0.png: {denied}' in text and f'dog: {denied}' in text
        text = as_nobody(lambda: repr(warned(image_folders, pets, on_error='skip', size=8)[0]))
        assert '7 training and 2 validation' in text, text
        os.chmod(pets, 0)
        text = as_nobody(lambda: says(image_folders, pets))
        assert text == f'{pets}: this folder cannot be read: Permission denied; give a folder that you may read'
        os.chmod(pets, 0o444)  # its names may be read, but nothing in it
        assert 'Permission denied' in as_nobody(lambda: says(image_folders, pets))
        text = as_nobody(lambda: says(image_folders, pets / 'cat', error=(ValueError, FileNotFoundError)))
        assert 'cannot be read: Permission denied' in text or 'no such folder' in text
    finally:
        for path in (pets, pets / 'dog'): os.chmod(path, 0o755)


def test_what_systems_leave_everywhere(pets):
    for name in ('._0.png', '.DS_Store', 'Thumbs.db', 'thumbs.db', 'Desktop.ini', 'Icon\r'):
        (pets / 'cat' / name).write_bytes(b'no picture')
    for name in ('__MACOSX', '@eaDir', '$RECYCLE.BIN', 'lost+found', '.git', '.Trash-1000'):
        (pets / name / 'cat').mkdir(parents=True)
        (pets / name / 'cat' / '._0.png').write_bytes(b'no picture')
        (pets / name / 'x.png').write_bytes(b'no picture')
    dls = image_folders(pets)
    assert len(dls.files) == 37 and dls.classes == ['cat', 'dog', 'eel']


# ---- names ----

ODD = ['two words', ' before', '\U0001f436 dog', 'two\nlines', '\x1b[31mred\x1b[0m', '$x', 'a_$b$', '$\\frac{$',
       'caf\xe9', '\u202etfel', '<b>bold', '{x}', '%s', "'", '"', '#', 'no\udcffutf', '-rf', '~', 'CON', 'x' * 200]


def test_odd_names_everywhere(tmp_path):
    "As folders and files: they load, show, and fail with messages of one printable line for each file."
    import matplotlib.pyplot as plt
    names = ODD
    try:
        for k, name in enumerate(names):
            make_folder(tmp_path / 'odd', {name: 2}, size=(8, 8), start=10 * k)
    except (OSError, UnicodeError): pytest.skip('not all names are possible here')
    dls, said = warned(image_folders, tmp_path / 'odd')
    assert dls.classes == sorted(names) and not said and repr(dls).isprintable()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of glyphs that the font does not have
        axes = dls.show_batch(30)
        axes.figure.savefig(io.BytesIO(), format='png')
        axes.figure.savefig(io.BytesIO(), format='svg')
    texts = {text.get_text() for text in axes.texts}
    assert {'$x', 'a_$b$', r'two\nlines', r'\x1b[31mred\x1b[0m', r'\u202etfel', r'no\udcffutf'} <= texts
    plt.close('all')
    for name in names: (tmp_path / 'odd' / name).joinpath(f'{name}_{10 * names.index(name)}.png').write_bytes(b'no')
    text = says(all_read, image_folders(tmp_path / 'odd'))
    assert len(text.splitlines()) == 1 + 5 + 2
    text.encode('utf-8')
    with pytest.warns(UserWarning): says(image_folders, tmp_path / 'odd', on_error='skip', size=8, match='one picture of')


# ---- labels and splits ----

@pytest.mark.parametrize('label', [r'(.+)_\d+', re.compile(r'^([a-z]+)_'), lambda p: p.parent.name])
def test_labels(pets, label):
    dls = image_files(pets, label)
    assert dls.classes == ['cat', 'dog', 'eel']
    assert dls.valid.files == image_folders(pets).valid.files
    assert image_files((str(p) for p in pets.rglob('*.png')), label).files == dls.files


def test_labels_become_text(pets):
    dls = image_files(pets, lambda p: p.name.startswith('cat'))
    assert dls.classes == ['False', 'True']
    assert image_files(pets, lambda p: int(p.stem[-1]) % 3).classes == ['0', '1', '2']


def test_a_path_given_twice_counts_once(pets):
    paths = list(pets.rglob('*.png'))
    assert len(image_files(paths * 2, r'(.+)_').files) == 37


@pytest.mark.parametrize('label', [r'.+_\d+', r'(.+)_(\d+)', re.compile('x')])
def test_one_group_exactly(pets, label):
    says(image_files, pets, label, match=['groups', 'exactly one'])


@pytest.mark.parametrize('label', ['(', 3, None])
def test_neither_function_nor_pattern(pets, label):
    says(image_files, pets, label, match=[repr(label), 'neither'])


def test_unmatched_files_are_named(pets):
    wanted = ['2 of 37', 'eel_0.png', 'eel_1.png', 'other paths']
    text = says(image_files, pets, r'(cat|dog)_', match=wanted)
    assert 'cat_0' not in text
    says(image_files, pets, lambda p: None, match=['37 of 37', '32 more'])
    says(image_files, pets, r'(x*)', match='37 of 37')  # an empty label is none


def test_failing_label_function_names_the_file(pets):
    wanted = ['cat_1.png', 'KeyError', 'label function']
    says(image_files, pets, lambda p: dict(cat_0='a')[p.stem], match=wanted)


def test_missing_paths(pets):
    paths = [*pets.rglob('*.png'), pets / 'cat_99.png']
    says(all_read, image_files(paths, r'(.+)_'), match=['cat_99.png', 'no such file', '1 of 38', 'Put them back'])


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


NUMBERS = st.one_of(st.floats(), st.integers(), st.booleans(), st.floats(width=32).map(np.float32),
                    st.floats().map(np.float64), st.fractions(), st.sampled_from([10**400, -10**400, 5e-324, 1.7e308]))
PATTERNS = st.one_of(st.text('ab01._-()[]{}+*?^$|\\dw,<>:=!P', max_size=12), st.text(max_size=6),
                     st.binary(max_size=6), NUMBERS, st.none(),
                     st.sampled_from(['(a{99999999999})', '(' * 90 + ')' * 90, '(?P<x>a)(?P=y)', '(?<=a*)(b)', '(a)']))
NAMES = st.lists(st.text(min_size=1, max_size=10).filter(lambda name: name not in ('.', '..') and
                                                         not set(name) & set('/\\\0')), max_size=4)


@settings(max_examples=300)
@given(PATTERNS, NAMES)
@pytest.mark.filterwarnings('ignore:Possible:FutureWarning', 'ignore::DeprecationWarning')
def test_any_pattern_gives_labels_that_stand_in_the_names_or_a_value_error(pattern, names):
    files = [Path(name) for name in names]
    try:
        labels = label_all(files, pattern)
    except ValueError as error:
        assert len(str(error)) > 20
    else:
        assert len(labels) == len(files)
        assert all(label and label in path.name for label, path in zip(labels, files))


@given(st.one_of(st.text(), NUMBERS, st.none(), st.lists(st.integers())), NAMES.filter(bool))
def test_whatever_a_label_function_gives(value, names):
    files = [Path(name) for name in names]
    try:
        labels = label_all(files, lambda path: value)
    except ValueError as error:
        assert 'gives no label' in str(error) and (value is None or value == '')
    else:
        assert labels == [str(value)] * len(files)
    def fails(path):
        raise KeyError(path)
    with pytest.raises(ValueError, match='KeyError'):
        label_all(files, fails)


@given(NAMES.filter(bool))
def test_a_pattern_finds_what_it_was_made_for(names):
    for name in names:
        assert label_function(f'^({re.escape(name)})$')(Path(name)) == name


@given(st.lists(st.text(), min_size=1))
def test_numbers_of_classes(labels):
    classes, y = number_classes(labels)
    assert classes == sorted(set(labels)) and [classes[k] for k in y] == labels
