"Which files are listed, and as what; no file is opened."
import contextlib
import io
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import pytest

from finetune_teach.engine import folders
from finetune_teach.pictures import image_files, image_folders
from picture_files import make_folder, says, unix_socket, warned

pytestmark = pytest.mark.filterwarnings('ignore:.*very unequal size:UserWarning')


@pytest.fixture
def pets(tmp_path): return make_folder(tmp_path / 'pets', dict(cat=10, dog=25, eel=2))


def all_read(dls): return [*dls.train, *dls.valid]


@pytest.mark.parametrize('present, used, test', [
    (['valid', 'test'], 'valid', 'test'), (['test', 'val'], 'val', 'test'), (['test'], 'test', None), (['validation'], 'validation', None),
    (['test', 'validation'], 'validation', 'test'), (['Dev', 'TESTING'], 'Dev', 'TESTING'), (['eval_set', 'test_images'], 'eval_set', 'test_images')])
@pytest.mark.parametrize('train', ['train', 'Train', 'TRAINING', 'training_set'])
def test_given_split(tmp_path, present, used, test, train):
    make_folder(tmp_path / train, dict(a=4, b=3))
    for i, name in enumerate(present):
        make_folder(tmp_path / name, dict(a=2, b=1), start=10 + 10 * i)
    dls, said = warned(image_folders, tmp_path)
    assert len(dls.train.labels) == 7 and len(dls.valid.labels) == 3 and not said
    assert all(used in p.parts for p in dls.valid.files)
    assert all(train in p.parts for p in dls.train.files)
    assert len(dls.files) == 7 + 3 * len(present) and dls.unlabelled == []
    if test is None:
        assert dls.test is None and (f'; validated on the folder {used}' in repr(dls)) == (used == 'test')
    else:
        assert all(test in p.parts for p in dls.test.files) and len(dls.test.labels) == 3
        assert '7 training, 3 validation and 3 test pictures' in repr(dls) and not dls.test.shuffle and not dls.test.flip


def test_the_test_part_is_like_the_valid_one(tmp_path):
    for i, part in enumerate(('train', 'valid', 'test')): make_folder(tmp_path / part, dict(a=4, b=3), start=10 * i)
    dls = image_folders(tmp_path).with_preprocessing(size=16, mean=(.1, .2, .3))
    assert dls.test.pictures.shape == (7, 3, 16, 16) and dls.test.mean == (.1, .2, .3)
    assert [y.tolist() for x, y in dls.test] == [[0] * 4 + [1] * 3]
    shutil.copy(tmp_path / 'train/a/a_0.png', tmp_path / 'test/b/b_20.png')
    _, said = warned(image_folders, tmp_path)
    assert len(said) == 1 and '1 of 7 test pictures are training pictures, too (1 of them under another class)' in said[0]
    make_folder(tmp_path / 'test', dict(c=1, d=2))
    says(image_folders, tmp_path, match=['test pictures of c, d', 'none to train on'])


def flat(folder, n=3):
    folder.mkdir(parents=True)
    for i in range(n): (folder / f'{i}.jpg').write_bytes(b'')


def test_files_without_a_class_are_told_and_can_be_predicted(tmp_path):
    pets = make_folder(tmp_path / 'train', dict(a=5, b=5))
    flat(tmp_path / 'test')
    dls, said = warned(image_folders, tmp_path)
    assert not said and repr(dls).endswith('; 3 files without a class in test: .unlabelled')
    assert dls.unlabelled == [tmp_path / 'test' / f'{i}.jpg' for i in range(3)] and dls.test is None
    assert dls.valid.files == image_folders(pets).valid.files
    assert dls.with_preprocessing(8).unlabelled == dls.unlabelled
    (tmp_path / 'valid').mkdir()
    for flat_too in (False, True):
        for i in range(2 * flat_too): (tmp_path / 'valid' / f'{i}.jpg').write_bytes(b'')
        dls, said = warned(image_folders, tmp_path)
        assert len(said) == 1 and 'valid has no folders of classes' in said[0] and 'at random' in said[0]
        assert dls.valid.files == image_folders(pets).valid.files and len(dls.unlabelled) == (5 if flat_too else 3)
    make_folder(tmp_path / 'test', dict(a=1))
    says(image_folders, tmp_path, match=['valid has no folders', 'test has', 'Fill or delete'])


@pytest.mark.parametrize('folders, files, wanted', [
    (['train/a', 'train/b', 'valid/a', 'val/a'], [], ['valid', 'val', 'same part']),
    (['train/a', 'training/a', 'valid/a'], [], ['train', 'training', 'same part']),
    (['train/a', 'train/b', 'training'], [], ['none called valid']),
    (['valid/a', 'test/a'], [], ['valid', 'none called train']),
    (['training', 'testing'], ['training/cat.1.jpg', 'testing/1.jpg'], ['without a folder for each class', 'image_files(', 'image_table']),
    (['train'], ['train/cat.1.jpg', 'train/dog.1.jpg'], ['without a folder for each class']),
    (['cat', 'dog', 'test'], ['test/1.jpg'], ['is test a class', 'parent.name']),
    (['cat', 'train/x', 'dog'], [], ['none called valid']),
    ([f'fold{i}/{c}' for i in range(5) for c in 'ab'], [], ['fold1', 'cross-validation', "is_valid=lambda path: 'fold0'"])])
def test_what_may_be_a_split_is_asked_about(tmp_path, folders, files, wanted):
    for name in folders: (tmp_path / name).mkdir(parents=True, exist_ok=True)
    for name in [*files, *(f'{name}/0.jpg' for name in folders if '/' in name)]: (tmp_path / name).write_bytes(b'')
    says(image_folders, tmp_path, match=[str(tmp_path), *wanted])


def test_what_is_no_split_is_not_asked_about(tmp_path):
    make_folder(tmp_path / 'one', {'train': 3, 'plane': 3, 'fold1': 3, 'fold2': 3, 'part': 3})
    dls, said = warned(image_folders, tmp_path / 'one')
    assert len(dls.classes) == 5 and not said
    for i, kind in enumerate(('indoor', 'outdoor')): make_folder(tmp_path / 'two' / kind, dict(cat=3, dog=3), start=10 * i)
    dls, said = warned(image_folders, tmp_path / 'two')
    assert dls.classes == ['indoor', 'outdoor'] and len(said) == 1 and 'each of these has folders cat, dog' in said[0]
    for i, part in enumerate(('train', 'valid', 'more')): make_folder(tmp_path / 'three' / part, dict(cat=3, dog=3), start=10 * i)
    (tmp_path / 'three' / 'models').mkdir()
    dls, said = warned(image_folders, tmp_path / 'three')
    assert len(dls.files) == 12 and len(said) == 1 and 'more beside them is not used' in said[0]


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
    says(image_folders, pets, match=[str(pets / 'ant'), 'no pictures', 'delete it'])
    (pets / 'bee').mkdir()
    says(image_folders, pets, match=[str(pets / 'ant'), str(pets / 'bee'), 'delete them'])


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


def test_files_are_listed_without_a_look_at_each(tmp_path, monkeypatch):
    looks, stat = [], os.stat
    monkeypatch.setattr(os, 'stat', lambda path, **more: (looks.append(path), stat(path, **more))[1])
    def listed(n):
        for i in range(n):
            for name in 'ab':
                (tmp_path / name).mkdir(exist_ok=True)
                (tmp_path / name / f'{i}.jpg').touch()
        looks.clear()
        assert len(folders.list_class_folders(tmp_path).files) == 2 * n
        return len(looks)
    assert listed(1) == listed(200)


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
    with pytest.warns(UserWarning): says(image_folders, tmp_path / 'odd', on_error='skip', size=8, match='one picture in')


# ---- paths given ----

def test_a_path_given_twice_counts_once(pets):
    paths = list(pets.rglob('*.png'))
    assert len(image_files(paths * 2, r'(.+)_').files) == 37


def test_missing_paths(pets):
    paths = [*pets.rglob('*.png'), pets / 'cat_99.png']
    says(all_read, image_files(paths, r'(.+)_'), match=['cat_99.png', 'no such file', '1 of 38', 'Put them back'])
