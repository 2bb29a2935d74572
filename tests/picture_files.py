"Folders of small pictures, broken files, and what their tests ask."
import io
import os
import socket
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

GREEN, RED, BLUE = (0, 160, 40), (200, 30, 30), (20, 40, 210)


def scene(size=(90, 60), colour=GREEN):
    "A picture with a dark band on the left, so that turning and mirroring show."
    image = Image.new('RGB', size, colour)
    image.paste((0, 0, 0), (0, 0, size[0] // 3, size[1]))
    return image


def make_folder(root, counts, size=(12, 9), start=0):
    "Folders of tiny pictures, all different: {class: how many}."
    rng = np.random.default_rng(start)
    for name, n in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            pixels = rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f'{name}_{start + i}.png')
    return root


def says(function, *args, error=ValueError, match=(), **options):
    "The call must fail, and its message hold every one of `match`."
    with pytest.raises(error) as caught: function(*args, **options)
    assert all(line.isprintable() for line in str(caught.value).splitlines())
    for text in [match] if isinstance(match, str) else match: assert text in str(caught.value)
    return str(caught.value)


def warned(function, *args, **options):
    "The result of a call, and the texts it warns of; they point at the file of the caller."
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        result = function(*args, **options)
    assert not [w for w in said if 'finetune_teach' in Path(w.filename).parts], 'they point at the caller'
    return result, [str(warning.message) for warning in said]


def all_batches(dls, seed=5):
    "All batches of two epochs, and the state of chance afterwards."
    torch.manual_seed(seed)
    batches = [b for _ in range(2) for part in (dls.train, dls.valid) for b in part]
    return [t for b in batches for t in b] + [torch.get_rng_state()]


def assert_same_batches(one, two):
    for a, b in zip(all_batches(one), all_batches(two), strict=True): assert torch.equal(a, b)


def red(size=(60, 40), mode='RGB'):
    return Image.new('RGB', size, RED).convert(mode)


def noise(size=(90, 60), seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), np.uint8))


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def bomb(path):
    "A PNG that claims 30,000 x 30,000 pixels."
    Image.new('1', (8, 8)).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack('>II', 30000, 30000)
    data[29:33] = struct.pack('>I', zlib.crc32(bytes(data[12:29])))
    path.write_bytes(data)


def break_files(folder):
    "One bad file of each kind, {name: what the reason must say}."
    good = folder / 'good.jpg'
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8)).save(good)
    for ending in ('jpg', 'png', 'gif', 'bmp', 'tif'):
        with Image.open(good) as image: image.save(folder / f'cut.{ending}')
        data = (folder / f'cut.{ending}').read_bytes()
        (folder / f'cut.{ending}').write_bytes(data[:len(data) // 2])
    (folder / 'notes.txt').write_text('a good dog')
    (folder / 'empty.jpg').write_bytes(b'')
    bomb(folder / 'bomb.png')
    good.unlink()
    return {'cut.jpg': 'cut off', 'cut.png': 'cut off', 'cut.gif': 'cut off', 'cut.bmp': 'cut off',
            'cut.tif': '', 'notes.txt': 'not a picture', 'empty.jpg': 'not a picture',
            'bomb.png': 'too large'}


def unix_socket(path):
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket has to be short
    try: socket.socket(socket.AF_UNIX).bind(path.name)
    finally: os.chdir(here)
