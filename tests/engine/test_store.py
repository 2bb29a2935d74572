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
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune_teach.engine import store as store_module
from finetune_teach.engine.decoding import load_file, load_picture
from finetune_teach.engine.store import PictureStore, Preparation, StoredPictures, _InMemory, _OnDisk
from finetune_teach.pictures import image_folders
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
