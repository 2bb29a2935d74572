"Each picture is decoded once, when it is first needed, and kept in memory or on the disk."
import copy
import gc
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import wait_until
from finetune_teach.engine import store as store_module
from finetune_teach.engine.decoding import load_file, load_picture, number_range
from finetune_teach.engine.store import PictureStore, Preparation, StoredPictures, _InMemory, _OnDisk
from finetune_teach.pictures import image_files, image_folders
from picture_files import all_batches, assert_same_batches, make_folder, says, scene

pytestmark = pytest.mark.filterwarnings('ignore:.*very unequal size:UserWarning')


@pytest.fixture
def pets(tmp_path): return make_folder(tmp_path / 'pets', dict(cat=10, dog=25, eel=2))


@pytest.fixture
def decoded(monkeypatch):
    "Which file was decoded at which size, in order."
    seen = []
    monkeypatch.setattr(store_module, 'load_file',
                        lambda path, size, *more: (seen.append((path, size)), load_file(path, size, *more))[1])
    return seen


def kinds(dls): return {how.size: type(kept) for how, kept in dls.train.pictures.store.sizes.items()}


def stored(files, memory=1., size=16):
    return StoredPictures(PictureStore(files, memory), torch.arange(len(files)), size)


def test_same_batches_from_memory_and_from_disk(pets):
    dls = [image_folders(pets, batch_size=8, min_scale=.5, memory=memory) for memory in (1, 0)]
    assert_same_batches(*dls)
    assert [kinds(d) for d in dls] == [{64: _InMemory}, {64: _OnDisk}]
    for part in (dls[0].train, dls[0].valid):
        for path, x in zip(part.files, part.pictures, strict=True): assert torch.equal(load_picture(path, 64), x)


def test_memory_is_the_limit(pets):
    needed = 37 * 3 * 64 * 64 / 1e9
    both = needed + 37 * 3 * 96 * 96 / 1e9  # pictures of another size are kept beside the first
    for memory, wanted in ((needed, [_InMemory, _OnDisk]), (.999 * needed, [_OnDisk, _OnDisk]),
                           (1.001 * both, [_InMemory, _InMemory]), (.999 * both, [_InMemory, _OnDisk])):
        dls = image_folders(pets, memory=memory)
        for size in (64, 96): next(iter(dls.with_preprocessing(size=size).train))
        assert list(kinds(dls).values()) == wanted


@pytest.mark.parametrize('memory', [1, 0])
def test_each_picture_is_decoded_once_when_it_is_needed(pets, decoded, memory):
    dls = image_folders(pets, memory=memory, batch_size=4)
    big = dls.with_preprocessing(size=96)
    assert big.size == 96 and dls.size == 64 and len(dls.train.labels) == 29 and repr(dls) and not decoded
    dls.show_batch(5)
    assert len(decoded) == 5 and {size for _, size in decoded} == {64}
    decoded.clear()
    next(iter(big.train))
    assert len(decoded) == 4 and {size for _, size in decoded} == {96}
    all_batches(big)
    all_batches(dls.with_preprocessing(size=96, mean=(0, 0, 0)))
    assert sorted(decoded) == sorted((path, 96) for path in dls.files)


@pytest.mark.parametrize('memory', [1, 0])
def test_stored_pictures_answer_like_a_tensor(pets, memory):
    files = image_folders(pets).files
    lazy = stored(files, memory)
    tensor = torch.stack([load_picture(file, 16) for file in files])
    assert lazy.shape == tensor.shape and len(lazy) == 37
    for key in (3, -1, np.int64(2), torch.tensor(4), slice(5, 20, 3), slice(None), [7, 0, 7], [],
                torch.tensor([9, 2]), np.array([1, 5]), torch.arange(37) % 5 == 0):
        assert torch.equal(lazy[key], tensor[key]) and lazy[key].dtype == torch.uint8
    index = torch.tensor([36, 0, 36, 12])
    assert torch.equal(lazy.index_select(0, index), tensor.index_select(0, index))
    assert all(map(torch.equal, lazy, tensor))
    for key in (37, -38, [40]):
        with pytest.raises(IndexError): lazy[key]
    lazy[0].zero_()
    assert torch.equal(lazy[0], tensor[0])  # what was given away is a copy
    for again in (copy.deepcopy(lazy), pickle.loads(pickle.dumps(lazy))):
        assert torch.equal(again[:], tensor) and again.store is not lazy.store and again.key() != lazy.key()
    assert lazy.key() == stored_again(lazy).key() != lazy.prepared(8).key()


def stored_again(pictures): return StoredPictures(pictures.store, pictures.at.clone(), pictures.size)


def test_a_copy_of_loaders_shares_a_store_of_its_own(pets):
    dls = image_folders(pets, size=16)
    again = pickle.loads(pickle.dumps(dls))
    assert again.train.pictures.store is again.valid.pictures.store is not dls.train.pictures.store
    assert_same_batches(again, dls)


@pytest.mark.filterwarnings('ignore:.*fork.*:DeprecationWarning')
@pytest.mark.parametrize('memory', [1, 0])
def test_a_forked_process_reads_right_pictures(pets, memory):
    if 'fork' not in multiprocessing.get_all_start_methods(): pytest.skip('no fork')
    files = image_folders(pets).files
    lazy, tensor = stored(files, memory), torch.stack([load_picture(file, 16) for file in files])
    lazy[:20]
    def child(): os._exit(not torch.equal(lazy[:], tensor))
    process = multiprocessing.get_context('fork').Process(target=child)
    with lazy.store.lock: process.start()  # a lock that nobody gives back in the child
    mine = lazy[:]
    process.join(60)
    assert process.exitcode == 0 and torch.equal(mine, tensor)


@pytest.mark.parametrize('memory', [1, 0])
def test_unreadable_files_are_named_together_until_they_are_repaired(pets, decoded, memory):
    good = image_folders(pets)
    bad = good.train.files[0], good.valid.files[0]
    content = [path.read_bytes() for path in bad]
    for path in bad: path.write_bytes(b'no')
    dls = image_folders(pets, memory=memory, batch_size=8)
    for part in (dls.train, dls.valid):
        for _ in range(2):
            text = says(list, part, match=[*map(str, bad), '2 of 37 files cannot be read as pictures:', 'not a picture'])
            assert text.endswith("\nRepair or remove them, or leave them out with on_error='skip'.")
    assert len(decoded) < 37 + 2 * 8, 'the good ones were kept'
    for path, data in zip(bad, content): path.write_bytes(data)
    assert_same_batches(dls, image_folders(pets, batch_size=8))
    bad[1].unlink()
    text = says(list, dls.with_preprocessing(size=96).valid, match=f'{bad[1]}: no such file')
    assert text.endswith('\nPut them back, or load the pictures anew.')


@pytest.mark.parametrize('memory', [1, 0])
def test_an_interrupt_does_no_harm(pets, monkeypatch, memory):
    files = image_folders(pets).files
    lazy, calls = stored(files, memory), []
    def interrupted(path, *how):
        calls.append(path)
        if len(calls) == 20: raise KeyboardInterrupt
        return load_file(path, *how)
    monkeypatch.setattr(store_module, 'load_file', interrupted)
    with pytest.raises(KeyboardInterrupt): lazy[:]
    done = int(lazy.store.sizes[Preparation(16)].decoded.sum())
    assert done < 37 and torch.equal(lazy[:], torch.stack([load_picture(file, 16) for file in files]))


def test_many_threads_may_read_at_once(pets, decoded):
    lazy = stored(image_folders(pets).files)
    threads = [threading.Thread(target=lazy.__getitem__, args=(slice(None),)) for _ in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(decoded) == 37


def test_temporary_file_goes_with_its_last_user(pets, tmp_path, monkeypatch):
    folder = tmp_path / 'temporary'
    folder.mkdir()
    monkeypatch.setattr(tempfile, 'tempdir', str(folder))
    files = []
    def walk():
        dls = image_folders(pets, memory=0)
        list(dls.train)
        files.append(dls.train.pictures.store.sizes[Preparation(64)].file)
        return dls.valid
    used = walk()
    gc.collect()
    assert not files[0].closed and len(list(used))  # validation pictures are in the same file
    used = None
    gc.collect()
    assert files[0].closed
    def fail():
        kept = walk()
        raise KeyError(len(kept))
    with pytest.raises(KeyError): fail()
    gc.collect()
    assert files[1].closed and not list(folder.iterdir())


def test_full_disk(pets, monkeypatch):
    lazy = image_folders(pets, memory=0).train.pictures
    full = type('Full', (), dict(seek=lambda *a: 0, write=lambda self, data: 5, close=lambda self: None))
    with monkeypatch.context() as patch:
        patch.setattr(lazy.store.kept(Preparation(64)), 'file', full())
        says(lambda: lazy[:4], error=OSError, match=['no space', tempfile.gettempdir()])
    assert torch.equal(lazy[:1][0], load_picture(lazy.store.files[lazy.at[0]], 64))  # nothing half done
    usage = shutil.disk_usage(tempfile.gettempdir())._replace(free=10**5)
    monkeypatch.setattr(shutil, 'disk_usage', lambda folder: usage)
    says(list, image_folders(pets, memory=0).train, match=['37 pictures', 'TMPDIR', tempfile.gettempdir()])
    assert len(list(image_folders(pets).train)) == 1  # needs no disk


# ---- one scale for the set ----

def wide_folder(root, white=4000, n=12, plain=0):
    "Two classes of pictures whose brightest numbers grow from file to file up to `white`; some of 8 bits."
    rng = np.random.default_rng(0)
    for i in range(n):
        (root / 'ab'[i % 2]).mkdir(parents=True, exist_ok=True)
        values = rng.integers(100, white * (i + 1) // n + 1, (20, 30)).astype(np.uint16)
        Image.fromarray((values // 16).astype(np.uint8) if i < plain else values).save(root / 'ab'[i % 2] / f'{i}.png')
    return root


@pytest.fixture
def looked_for(monkeypatch):
    "The files whose numbers were looked at for a scale."
    seen = []
    monkeypatch.setattr(store_module, 'number_range', lambda path, **more: (seen.append(path), number_range(path, **more))[1])
    return seen


@pytest.mark.parametrize('memory', [1, 0])
def test_all_files_of_more_than_8_bits_share_one_scale(tmp_path, looked_for, memory):
    dls = image_folders(wide_folder(tmp_path), size=16, memory=memory)
    assert not looked_for
    x = torch.cat([dls.valid.pictures[:], dls.train.pictures[:]])
    assert sorted(looked_for) == sorted(dls.files), 'each once'
    ends = [number_range(path) for path in dls.files]
    scale = min(low for low, _ in ends), max(high for _, high in ends)
    assert dls.value_range == dls.train.value_range == dls.valid.value_range == scale and 3800 < scale[1] <= 4000
    for path, picture in zip(dls.valid.files + dls.train.files, x, strict=True):
        assert torch.equal(load_picture(path, 16, value_range=scale), picture)
    brightest = [int(load_picture(path, 16, value_range=scale).max()) for path in sorted(dls.files, key=lambda p: int(p.stem))]
    assert brightest[0] < 30 and brightest[-1] > 200, 'dark files stay darker than bright ones'
    list(dls.with_preprocessing(size=8).train)
    assert len(looked_for) == 12


def test_the_scale_can_be_asked_before_anything_is_decoded(tmp_path, decoded, looked_for):
    dls = image_folders(wide_folder(tmp_path / 'wide'))
    assert dls.value_range[1] > 3800 and not decoded and len(looked_for) == 12
    dls = image_folders(make_folder(tmp_path / 'plain', dict(a=9, b=9)))
    assert dls.value_range is None and not decoded and len(looked_for) == 12 + 18
    other = image_folders(tmp_path / 'plain')
    all_batches(other)
    assert other.value_range is None and len(looked_for) == 12 + 18, 'whoever has decoded all knows'


def test_a_given_scale_is_used_and_nothing_is_looked_for(tmp_path, looked_for):
    dls = image_folders(wide_folder(tmp_path), size=16, value_range=[0, 4095])
    x = dls.train.pictures[:]
    assert dls.value_range == (0., 4095.) and not looked_for
    for path, picture in zip(dls.train.files, x): assert torch.equal(load_picture(path, 16, value_range=(0, 4095)), picture)
    key = image_folders(tmp_path).with_preprocessing(value_range=(0, 2000))
    assert key.value_range == (0, 2000) and dls.with_preprocessing(value_range=(0, 2000)).value_range == (0, 4095)


def test_unreadable_and_constant_files_do_not_matter_for_the_scale(tmp_path):
    wide_folder(tmp_path)
    scale = image_folders(tmp_path).value_range
    (tmp_path / 'a' / 'bad.png').write_bytes(b'no')
    Image.fromarray(np.full((5, 5), np.nan, np.float32)).save(tmp_path / 'a' / 'nothing.tif')
    with pytest.warns(UserWarning): dls = image_folders(tmp_path, on_error='skip', size=16)
    assert dls.value_range == scale and len(dls.files) == 13
    assert dls.train.pictures.store.own_range() == scale
    for path in tmp_path.rglob('*.*'): path.unlink()
    for i in range(8): Image.fromarray(np.full((5, 5), 7, np.uint16)).save(tmp_path / 'ab'[i % 2] / f'{i}.png')
    dls = image_folders(tmp_path, size=8)
    assert dls.value_range == (7, 8) and not dls.train.pictures[:].any()
    for i in range(8): Image.fromarray(np.full((5, 5), np.nan, np.float32)).save(tmp_path / 'ab'[i % 2] / f'{i}.png', 'TIFF')
    dls = image_folders(tmp_path, size=8)
    assert not dls.train.pictures[:].any() and dls.value_range is None


@pytest.mark.parametrize('again', [copy.deepcopy, lambda pictures: pickle.loads(pickle.dumps(pictures))])
def test_copies_find_the_same_scale(tmp_path, again):
    files = image_folders(wide_folder(tmp_path)).files
    one = StoredPictures(PictureStore(files, max_pixels=10_000), torch.arange(12), 8, 'pad', (0, 3000))
    other = again(one)
    assert other.how == one.how == Preparation(8, 'pad', (0., 3000.)) and other.store.max_pixels == 10_000 and torch.equal(one[:], other[:])
    free = stored(files)
    assert torch.equal(again(free)[:], free[:]) and again(free).value_range == free.value_range


@pytest.mark.filterwarnings('ignore:.*fork.*:DeprecationWarning')
def test_a_forked_process_finds_the_same_scale(tmp_path):
    if 'fork' not in multiprocessing.get_all_start_methods(): pytest.skip('no fork')
    files = image_folders(wide_folder(tmp_path)).files
    lazy, wanted = stored(files), stored(files)[:]
    process = multiprocessing.get_context('fork').Process(target=lambda: os._exit(not torch.equal(lazy[:], wanted)))
    with lazy.store.lock: process.start()
    process.join(60)
    assert process.exitcode == 0


# ---- what makes one decoding differ from another ----

def test_each_preparation_is_decoded_and_kept_apart(tmp_path, decoded):
    files = image_folders(wide_folder(tmp_path)).files
    one = StoredPictures(PictureStore(files), torch.arange(12), 8)
    others = [one, one.prepared(resize='squeeze'), one.prepared(resize='pad'), one.prepared(value_range=(0, 9000)), one.prepared(9)]
    pictures = [some[:] for some in others]
    assert len({some.key() for some in others}) == 5 and one.prepared().key() == one.key() and len(one.store.sizes) == 5
    for i, some in enumerate(others):
        wanted = torch.stack([load_picture(f, some.size, some.resize, some.value_range) for f in files])
        assert torch.equal(pictures[i], wanted) and torch.equal(some[:], wanted)
    assert not any(torch.equal(pictures[0], other) for other in pictures[1:4])
    assert len(decoded) <= 5 * 12 + 12  # before the scale was known, the first were looked at in vain
    assert one.store.gb_in_memory() * 1e9 == 12 * 3 * (4 * 64 + 81)


def test_max_pixels_is_for_all_files(tmp_path):
    pets = make_folder(tmp_path, dict(a=4, b=4))
    text = says(lambda: list(image_folders(pets, max_pixels=107).train), match=['8 of 8 files', '12 x 9 pixels', 'max_pixels=108'])
    assert 'image_folders' in text and len(list(image_folders(pets, max_pixels=108).train)) == 1
    assert len(list(image_files(pets, lambda p: p.parent.name, max_pixels=108, resize='pad').train)) == 1


@pytest.mark.parametrize('options', [dict(resize='fit'), dict(value_range=(1, 0)), dict(max_pixels=-1)])
def test_options_are_checked_at_once(tmp_path, options):
    (name, value), = options.items()
    says(image_folders, make_folder(tmp_path, dict(a=4, b=4)), match=f'{name}={value!r}', **options)


PEAK = '''
import sys
import torch
from finetune_teach.pictures import image_folders
torch.set_num_threads(1)
def peak():  # not getrusage: it counts what the parent process had
    line, = [line for line in open('/proc/self/status') if line.startswith('VmHWM')]
    return int(line.split()[1]) * 1024 / 1e6
def epoch(memory):
    dls = image_folders(sys.argv[1], memory=memory, size=96, batch_size=8)
    for part in (dls.train, dls.valid):
        for x, y in part: pass
start = peak()
epoch(.01)
from_disk = peak()
epoch(1)
print(start, from_disk, peak())
'''


def test_peak_memory_stays_within_the_budget(tmp_path):
    "1,200 pictures, 33 MB: from disk with a budget of 10 MB, then all in memory."
    if not Path('/proc/self/status').exists(): pytest.skip('peak memory cannot be asked here')
    scene((60, 40)).save(tmp_path / 'one.jpg')
    content = (tmp_path / 'one.jpg').read_bytes()
    for name in 'abcd':
        (tmp_path / 'set' / name).mkdir(parents=True)
        for i in range(300): (tmp_path / 'set' / name / f'{i}.jpg').write_bytes(content)
    done = subprocess.run([sys.executable, '-c', PEAK, tmp_path / 'set'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    start, from_disk, in_memory = map(float, done.stdout.split())
    assert from_disk - start < 10 + 15  # the budget, and what a batch and the libraries need
    assert 33 < in_memory - start < 33 + 25  # the bound can fail; and nothing is held twice


# ---- decoding ahead ----

@pytest.fixture
def photos(tmp_path): return make_folder(tmp_path / 'photos', dict(a=300, b=300))


@pytest.mark.parametrize('memory', [1, 0])
def test_the_next_batches_are_decoded_while_one_is_used(photos, decoded, memory):
    dls = image_folders(photos, size=8, batch_size=32, memory=memory, valid_pct=.1)
    order = [spec.index for spec in seeded(dls.train)]
    torch.manual_seed(3)
    batches = iter(dls.train)
    next(batches)
    time.sleep(.1)
    assert len(decoded) == len(order[0]), 'whoever wants one batch gets one'
    next(batches)
    soon = {dls.train.files[i] for i in torch.cat(order[:2 + 1 + store_module.AHEAD // 32])}
    wait_until(lambda: len(decoded) == len(soon))
    time.sleep(.1)
    assert {path for path, _ in decoded} == soon, 'so many, and no more'
    assert not dls.train.pictures.store.coming.threads, 'nothing to do, no threads'
    for _ in batches: pass
    list(dls.train)
    assert sorted(decoded) == sorted((path, 8) for path in dls.train.files), 'each once'


def seeded(loader):
    torch.manual_seed(3)
    return list(loader.specs())


@pytest.mark.parametrize('memory', [1, 0])
def test_epochs_are_equal_to_the_bit_with_and_without(photos, memory, monkeypatch):
    one, two = (image_folders(photos, size=8, memory=memory, min_scale=.5) for _ in range(2))
    monkeypatch.setattr(StoredPictures, 'ahead', lambda self, batches: iter(batches))
    without = all_batches(one)
    monkeypatch.undo()
    assert all(map(torch.equal, without, all_batches(two))) and len(without) > 60


@pytest.mark.parametrize('memory', [1, 0])
@pytest.mark.parametrize('how', ['interrupt', 'leave'])
def test_whoever_leaves_an_epoch_leaves_nothing_behind(photos, decoded, memory, how):
    dls, before = image_folders(photos, size=8, memory=memory), threading.active_count()
    store = dls.train.pictures.store
    try:
        for n, _ in enumerate(dls.train):
            if n == 2 and how == 'leave': break
            if n == 2: raise KeyboardInterrupt
    except KeyboardInterrupt: pass
    assert not len(store.coming)
    wait_until(lambda: threading.active_count() <= before)
    kept = store.sizes[dls.train.pictures.how]
    assert len(decoded) == int(kept.decoded.sum()) < 480, 'what was decoded ahead is kept'
    assert_same_batches(dls, image_folders(photos, size=8))
    done = [path for path, _ in decoded]
    assert max(done.count(path) for path in dls.files) == 2, 'once in each of both'


def test_an_unreadable_file_is_told_when_its_batch_comes(photos):
    dls = image_folders(photos, size=8, batch_size=8)
    order = [spec.index for spec in seeded(dls.train)]
    bad = [dls.train.files[order[n][0]] for n in (3, 20)]
    for path in bad: path.write_bytes(b'no')
    torch.manual_seed(3)
    batches = iter(dls.train)
    for _ in range(3): next(batches)
    says(next, batches, match=['2 of 600 files cannot be read', *map(str, bad)])
    assert not len(dls.train.pictures.store.coming)


@pytest.mark.filterwarnings('ignore:.*fork.*:DeprecationWarning')
def test_a_process_may_fork_in_the_middle_of_an_epoch(photos):
    if 'fork' not in multiprocessing.get_all_start_methods(): pytest.skip('no fork')
    dls, wanted = image_folders(photos, size=8), image_folders(photos, size=8)
    wanted = [x for x, _ in (torch.manual_seed(1), list(wanted.train))[1]]
    torch.manual_seed(1)
    batches = iter(dls.train)
    mine = [next(batches)[0] for _ in range(3)]
    def child():
        os._exit(not all(map(torch.equal, [x for x, _ in batches], wanted[3:])))
    process = multiprocessing.get_context('fork').Process(target=child)
    with dls.train.pictures.store.coming.lock: process.start()
    mine += [x for x, _ in batches]
    process.join(60)
    assert process.exitcode == 0 and all(map(torch.equal, mine, wanted))


def test_one_bar_for_an_epoch(photos, monkeypatch):
    bars = []
    class Bar:
        def __init__(self, desc, total, unit, leave, delay, disable=False):
            self.n, self.total, self.shown, self.text = 0, total, not disable, (desc, unit, leave, delay)
            bars.append(self)
        def update(self, n=1): self.n += n
        def __enter__(self): return self
        def __exit__(self, *_): pass
    monkeypatch.setattr(store_module, 'tqdm', Bar)
    dls = image_folders(photos, size=8)
    list(dls.train)
    bar, = [bar for bar in bars if bar.shown]
    assert (bar.n, bar.total) == (480, 480) and bar.text == ('reading pictures', ' pictures', False, 2)
    list(dls.train)
    assert len([bar for bar in bars if bar.shown]) == 1
    dls.with_preprocessing(16), image_folders(photos, size=16, on_error='skip')
    assert [bar.total for bar in bars if bar.shown] == [480, 600]
