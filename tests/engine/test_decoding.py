"Files from strangers: each kind gets a picture, or a message that says what was wrong and what to do."
import os
import random
import re
import struct
import subprocess
import sys
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features

from finetune_teach.engine import decoding
from finetune_teach.engine.decoding import PAD_COLOUR, is_wide, load_picture, number_range, open_image, to_8bit, usual_range, wide_numbers
from finetune_teach.engine.messages import printable
from picture_files import BLUE, GREEN, RED, noise, red, saved, says, scene, unix_socket, warned

MODES = ['1', 'L', 'P', 'RGB', 'RGBA', 'CMYK', 'YCbCr', 'HSV', 'LA', 'PA', 'RGBX', 'RGBa', 'La',
         'I', 'F', 'I;16', 'I;16B', 'I;16L']


def in_mode(mode):
    "The scene in any mode of Pillow."
    rgb = scene()
    grey = np.asarray(rgb.convert('L'))
    if mode.startswith('I;16'):
        kind = '>u2' if mode.endswith('B') else '<u2'
        wide = (grey.astype(np.uint16) * 257).astype(kind)
        return Image.frombytes(mode, rgb.size, wide.tobytes())
    if mode == 'I': return Image.fromarray(grey.astype(np.int32) * 257)
    if mode == 'PA': return rgb.convert('P').convert('PA')
    if mode == 'RGBa': return rgb.convert('RGBA').convert('RGBa')
    if mode == 'La': return rgb.convert('LA').convert('La')
    return rgb.convert(mode)


@pytest.mark.parametrize('mode', MODES)
def test_every_mode(mode):
    image = in_mode(mode)
    assert image.mode == mode
    x = load_picture(image, 30)
    assert x.shape == (3, 30, 30) and x.dtype == torch.uint8 and x.is_contiguous()
    middle = x[:, 15, 20].tolist()
    coloured = mode in ('P', 'PA') or mode.startswith(('RGB', 'CMYK', 'YC', 'HSV'))
    near = 12 if mode != '1' else 255
    grey = Image.new('RGB', (1, 1), GREEN).convert('L').getpixel((0, 0))
    wanted = GREEN if coloured else [grey] * 3
    assert max(abs(a - b) for a, b in zip(middle, wanted)) <= near
    assert coloured or middle[0] == middle[1] == middle[2]
    assert x[:, :, 0].float().mean() < 60  # the band on the left stays dark


@pytest.mark.parametrize('name, mode', [
    ('a.jpg', 'RGB'), ('a.jpg', 'L'), ('a.jpg', 'CMYK'), ('a.png', '1'), ('a.png', 'P'),
    ('a.png', 'LA'), ('a.png', 'RGBA'), ('a.png', 'I;16'), ('a.gif', 'P'), ('a.tif', 'F'),
    ('a.tif', 'I;16'), ('a.tif', 'CMYK'), ('a.bmp', 'RGB'), ('a.webp', 'RGB'), ('a.webp', 'RGBA'),
    ('a.ppm', 'RGB')])
def test_files(tmp_path, name, mode):
    if name.endswith('webp') and not features.check('webp'): pytest.skip('Pillow without WebP')
    in_mode(mode).save(tmp_path / name)
    direct, from_disk = load_picture(in_mode(mode), 32), load_picture(tmp_path / name, 32)
    assert (direct.float() - from_disk.float()).abs().mean() < 6
    assert (load_picture(str(tmp_path / name), 32) == from_disk).all()


@pytest.mark.parametrize('mode', ['RGBA', 'LA', 'P', 'PA'])
def test_transparent_becomes_white(tmp_path, mode):
    image = Image.new('RGBA', (20, 20), (0, 0, 0, 0))
    image.paste((*RED, 255), (10, 0, 20, 20))
    image = image.quantize(4) if mode == 'P' else image.convert(mode)
    if mode == 'PA': image.putalpha(Image.new('L', (20, 20), 0))
    x = load_picture(image, 20)
    assert (x[:, :, :5] == 255).all()
    if mode in ('RGBA', 'P'): assert x[:, 10, 15].tolist() == list(RED)
    if mode != 'PA':
        image.save(tmp_path / 'a.png')
        assert (load_picture(tmp_path / 'a.png', 20) == x).all()


def test_transparent_colour_in_png(tmp_path):
    Image.new('RGB', (8, 8), RED).save(tmp_path / 'a.png', transparency=RED)
    assert (load_picture(tmp_path / 'a.png', 8) == 255).all()


@pytest.mark.parametrize('orientation, method', [
    (1, None), (2, 'FLIP_LEFT_RIGHT'), (3, 'ROTATE_180'), (4, 'FLIP_TOP_BOTTOM'), (5, 'TRANSPOSE'),
    (6, 'ROTATE_90'), (7, 'TRANSVERSE'), (8, 'ROTATE_270')])
def test_exif_turns(tmp_path, orientation, method):
    image = scene((60, 40))
    stored = image if method is None else image.transpose(Image.Transpose[method])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / 'a.png', exif=exif)
    assert (load_picture(tmp_path / 'a.png', 20) == load_picture(image, 20)).all()


@pytest.mark.parametrize('values, wanted', [
    (np.array([[0, 65535]], np.uint16), [0, 255]), (np.array([[0, 257]], np.uint16), [0, 1]),
    (np.array([[0, 255]], np.int64), [0, 255]),
    (np.array([[0, 65535]], np.int32), [0, 255]),
    (np.array([[0, .5, 1]]), [0, 128, 255]), (np.array([[0., 51, 255]]), [0, 51, 255]),
    (np.array([[False, True]]), [0, 255]),
    (np.array([[0, 1]], np.uint8), [0, 1]), (np.array([[np.nan, 1]]), [0, 255]),
    (np.zeros((1, 2)), [0, 0])])
def test_number_types(values, wanted):
    assert to_8bit(values)[0].tolist() == wanted


@pytest.mark.parametrize('values, value_range, wanted', [
    (np.array([[0, 4095]], np.uint16), (0, 4095), [0, 255]), (np.array([[0, 4095, 9000]], np.uint16), (0, 4095), [0, 255, 255]),
    (np.array([[-1., 0, 1]]), (-1, 1), [0, 128, 255]), (np.array([[-5, 5]], np.int16), (-10, 10), [64, 191]),
    (np.array([[0, 1.2]], np.float32), (0, 1.2), [0, 255]), (np.array([[2**31 - 511, 2**31 - 1]], np.int32), (2**31 - 511, 2**31 - 1), [0, 255]),
    (np.array([[2**31 - 256]], np.int32), (2**31 - 511, 2**31 - 1), [128]), (np.array([[7, 200]], np.uint8), (0, 4095), [7, 200]),
    (np.array([[np.nan, np.inf, -np.inf]]), (10, 20), [0, 255, 0])])
def test_a_given_scale(values, value_range, wanted): assert to_8bit(values, value_range)[0].tolist() == wanted


@pytest.mark.parametrize('values', [np.array([[0, 1e6]]), np.array([[-1., 1]]), np.array([[0, 1.2]]), np.array([[-3., 200]]),
                                    np.array([[-1, 5]]), np.array([[0, 70_000]])])
def test_what_nobody_can_know_is_an_error_that_names_the_numbers(values):
    says(to_8bit, values, match=['its numbers go from', f'{values.max():.6g}', 'value_range=(black, white)'])


def test_rounding_does_no_harm(): assert usual_range(np.array([-1e-7, 1.0000002])) == (0, 1) and usual_range(np.array([np.nan])) == (0, 1)


def test_arrays_and_tensors():
    array = np.asarray(scene())
    wanted = load_picture(scene(), 24)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    for source in (array, tensor, tensor / 255, tensor.double(), (tensor / 255).requires_grad_()):
        assert (load_picture(source, 24).int() - wanted.int()).abs().max() <= 1
    grey = array[:, :, 1]
    as_tensor = torch.from_numpy(grey.copy())
    for same in (grey[:, :, None], as_tensor, as_tensor[None]):
        assert (load_picture(same, 24) == load_picture(grey, 24)).all()
    half = (tensor / 255).to(torch.bfloat16)
    assert (load_picture(half, 24).int() - wanted.int()).abs().max() <= 2


@pytest.mark.parametrize('bad', [np.zeros((3, 8, 9)), torch.zeros(8, 9, 3), np.zeros(5), None, 3,
                                 np.zeros((0, 4)), torch.zeros(2, 3, 4, 4), np.array([['a']])])
def test_no_picture_at_all(bad): says(load_picture, bad, 8, match=['no picture', 'height x width'])


def test_size_and_crop():
    wide = Image.new('RGB', (300, 100), RED)
    wide.paste(BLUE, (100, 0, 200, 100))
    for image in (wide, wide.transpose(Image.Transpose.ROTATE_90)):
        mean = load_picture(image, 50).float().mean((1, 2))
        assert (mean - torch.tensor(BLUE)).abs().max() < 2
    for size in (1, 7, 224): assert load_picture(scene((5, 9)), size).shape == (3, size, size)
    for size in (0, -3, 2.5, None, True): says(load_picture, wide, size, match=['size', repr(size)])


@pytest.mark.parametrize('size', [8, 60, 100, 240, 500])
def test_jpeg_shortcut_is_faithful(tmp_path, size, monkeypatch):
    seen = []
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (25, 32, 3), dtype=np.uint8)).resize((960, 750))
    image.save(tmp_path / 'a.jpg', quality=95)
    original = decoding.to_square
    monkeypatch.setattr(decoding, 'to_square', lambda im, *how: (seen.append(im.size), original(im, *how))[1])
    quick = load_picture(tmp_path / 'a.jpg', size)
    assert min(seen[0]) >= min(size, 750)
    with Image.open(tmp_path / 'a.jpg') as full: slow = load_picture(full.convert('RGB'), size)
    assert (quick.float() - slow.float()).abs().mean() < 3


def test_a_picture_in_hand_is_not_changed():
    image = Image.new('RGBA', (30, 20), (9, 9, 9, 100))
    kept = image.copy()
    load_picture(image, 8)
    assert image == kept


# ---- more than 8 bits ----

def wide_png(values, colour=2):
    "A PNG with 16 bits for each number."
    rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in values)
    return png(*values.shape[1::-1], 16, colour, rows)


def wide_tiff(values, order='<'):
    "A TIFF with 16 bits for each of three colours."
    height, width, _ = values.shape
    fields = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, 8 + 2 + 12 * 9 + 4), (259, 3, 1, 1), (262, 3, 1, 2),
              (273, 4, 1, 8 + 2 + 12 * 9 + 4 + 6), (277, 3, 1, 3), (278, 4, 1, height), (279, 4, 1, values.size * 2)]
    def entry(tag, kind, n, value):
        return struct.pack(f'{order}HHI', tag, kind, n) + (struct.pack(f'{order}HH', value, 0) if kind == 3 and n == 1 else struct.pack(f'{order}I', value))
    head = {'<': b'II*\0', '>': b'MM\0*'}[order] + struct.pack(f'{order}IH', 8, 9)
    return (head + b''.join(entry(*f) for f in fields) + bytes(4) + struct.pack(f'{order}HHH', 16, 16, 16)
            + values.astype(f'{order}u2').tobytes())


def twelve_bits(shape=(5, 7, 3), seed=0): return np.random.default_rng(seed).integers(0, 4096, shape).astype(np.uint16)


def numbers_in(path):
    with open(path, 'rb') as file:
        image = open_image(file)
        return wide_numbers(image, file) if is_wide(image) else None


@pytest.mark.parametrize('library', [False, True])
@pytest.mark.parametrize('kind', ['png', 'png with alpha', 'tif <', 'tif >'])
def test_all_16_bits_of_each_colour_are_read(tmp_path, monkeypatch, kind, library):
    if library: monkeypatch.setattr('PIL.TiffImagePlugin.READ_LIBTIFF', True)  # as for packed ones
    values = twelve_bits((5, 7, 4 if 'alpha' in kind else 3))
    data = wide_tiff(values, kind[-1]) if 'tif' in kind else wide_png(values, 6 if 'alpha' in kind else 2)
    (tmp_path / 'a').write_bytes(data)
    assert (numbers_in(tmp_path / 'a') == values).all()
    x = load_picture(tmp_path / 'a', 5, value_range=(0, 4095), resize='squeeze')
    if 'alpha' not in kind: assert (x - load_picture(to_8bit(values, (0, 4095)), 5, resize='squeeze')).abs().max() == 0


@pytest.mark.parametrize('white', [255, 1023, 4095, 65535])
@pytest.mark.parametrize('plain', [False, True])
def test_a_pgm_file_keeps_its_numbers(tmp_path, white, plain):
    values = np.random.default_rng(0).integers(0, white + 1, (6, 8)).astype('>u2' if white > 255 else 'u1')
    body = ' '.join(map(str, values.reshape(-1))).encode() if plain else values.tobytes()
    (tmp_path / 'a.pgm').write_bytes(b'P%d 8 6 %d\n' % (2 if plain else 5, white) + body)
    found = numbers_in(tmp_path / 'a.pgm')
    assert found is None if white == 255 else (found == values).all()


def test_a_sideways_picture_of_16_bits_is_turned(tmp_path):
    values = np.zeros((40, 20), np.uint16)
    values[:10] = 60_000
    Image.fromarray(values).save(tmp_path / 'a.png', exif=turned(6))
    assert load_picture(tmp_path / 'a.png', 20, 'squeeze')[0, 10, [0, 10, 13, 16, 19]].tolist() == [0, 0, 0, 233, 233]


@pytest.mark.parametrize('data, wanted', [
    (lambda: saved(Image.fromarray(np.r_[np.full(9998, 500), 3, 65535].reshape(100, 100).astype(np.uint16)), 'PNG'), (500, 500)),
    (lambda: saved(Image.fromarray(np.linspace(-2, 3, 10_000, dtype=np.float32).reshape(100, 100)), 'TIFF'), (-1.995, 2.995)),
    (lambda: saved(Image.fromarray(np.array([[np.nan, 1, 2, np.inf]], np.float32)), 'TIFF'), (1, 2)),
    (lambda: saved(Image.fromarray(np.array([[-7, 9]], np.int32)), 'TIFF'), (-7, 9)),
    (lambda: wide_png(np.full((4, 4, 4), [5, 6, 7, 65535]), 6), (5, 7)),
    (lambda: saved(Image.fromarray(np.full((4, 4), np.nan, np.float32)), 'TIFF'), None),
    (lambda: saved(red(), 'PNG'), None), (lambda: saved(red(), 'JPEG'), None), (lambda: saved(red(), 'TIFF'), None),
    (lambda: b'', None), (lambda: b'no picture', None), (lambda: half(saved(noise(), 'TIFF')), None)])
def test_the_range_of_a_file(tmp_path, data, wanted):
    (tmp_path / 'a').write_bytes(data())
    found = number_range(tmp_path / 'a')
    assert found == wanted if wanted is None else np.allclose(found, wanted, atol=1e-3)
    assert number_range(tmp_path / 'not there') is None


def test_one_picture_that_does_not_go_with_its_scale_is_said(tmp_path):
    values = twelve_bits((40, 40))
    Image.fromarray(values).save(tmp_path / 'a.png')
    for source in (tmp_path / 'a.png', values, torch.from_numpy(values.astype(np.int32)), Image.fromarray(values)):
        assert any('nearly black' in text for text in warned(load_picture, source, 8)[1])
        assert any('nearly black' in text for text in warned(load_picture, source, 8, value_range=(0, 2**30))[1])
        x, said = warned(load_picture, source, 8, value_range=(0, 4095))
        assert not said and 100 < x.float().mean() < 155
        assert any('outside of value_range=(0.0, 2000.0)' in text for text in warned(load_picture, source, 8, value_range=[0, 2000])[1])
    for source in (red(), np.asarray(red())):
        assert any('does nothing to a picture of 8 bits' in text for text in warned(load_picture, source, 8, value_range=(0, 4095))[1])
        assert not warned(load_picture, source, 8)[1]
    assert any('nearly black' in text for text in warned(load_picture, values / 4095, 8, value_range=(0, 4095))[1])


def test_numbers_without_a_usual_scale_in_a_file(tmp_path):
    Image.fromarray(np.array([[0, 1.2]], np.float32)).save(tmp_path / 'a.tif')
    says(load_picture, tmp_path / 'a.tif', 4, match=['a.tif: its numbers go from 0 to 1.2', 'value_range'])
    assert load_picture(tmp_path / 'a.tif', 4, 'squeeze', (0, 1.2))[0, 0].tolist() == [0, 64, 191, 255]


# ---- squares ----

def test_crop_squeeze_and_pad():
    image = Image.new('RGB', (300, 100), RED)
    image.paste(BLUE, (100, 0, 200, 100))
    for turn in (False, True):
        whole = image.transpose(Image.Transpose.ROTATE_90) if turn else image
        crop, squeezed, padded = (load_picture(whole, 30, how).permute(*((0, 2, 1) if turn else (0, 1, 2))) for how in ('crop', 'squeeze', 'pad'))
        assert crop.equal(load_picture(whole, 30).permute(*((0, 2, 1) if turn else (0, 1, 2))))
        assert (crop[:, 15, 15] == torch.tensor(BLUE)).all() and (crop[0] < 50).all()
        assert squeezed[:, :, 3].T.tolist() == [list(RED)] * 30 and squeezed[:, :, 15].T.tolist() == [list(BLUE)] * 30
        assert padded[:, 15, 3].tolist() == list(RED) and padded[:, 15, 15].tolist() == list(BLUE)
        assert padded[:, :9].flatten(1).T.unique(dim=0).tolist() == [list(PAD_COLOUR)] == padded[:, 21:].flatten(1).T.unique(dim=0).tolist()
    for how in ('squeeze', 'pad'): assert load_picture(red((1, 20_000)), 8, how).shape == (3, 8, 8)
    square = noise((60, 60))
    assert load_picture(square, 20, 'pad').equal(load_picture(square, 20)) and load_picture(square, 20, 'squeeze').equal(load_picture(square, 20))


@pytest.mark.parametrize('options', [dict(resize='fit'), dict(resize=None), dict(resize=3), dict(value_range=(1, 1)), dict(value_range=4095),
                                     dict(value_range=(5, 2)), dict(value_range=()), dict(value_range=(0, np.nan)), dict(value_range='ab'),
                                     dict(max_pixels=0), dict(max_pixels=1e6)])
def test_options_that_make_no_sense(options):
    (name, value), = options.items()
    says(load_picture, red(), 8, match=f'{name}={value!r}', **options)


# ---- files of each kind ----

def half(data): return data[:len(data) // 2]


def frames(n, size=(8, 8)):
    "A red picture, and many blue ones that differ a little."
    return Image.new('RGB', size, RED), [Image.new('RGB', size, (20, 40, i % 256)) for i in range(n - 1)]


def animated(n, kind, **options):
    first, rest = frames(n)
    return saved(first, kind, save_all=True, append_images=rest, **options)


def turned(value):
    "EXIF data with an orientation."
    if value == 'up': return b'Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x03\0\0\0up\0\0\0\0\0\0'
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def sideways(kind):
    "Red above, blue below; stored sideways, with a note how to turn it."
    image = red((40, 40))
    image.paste(BLUE, (0, 20, 40, 40))
    options = dict(lossless=True) if kind == 'WEBP' else {}
    return saved(image.transpose(Image.Transpose.ROTATE_90), kind, exif=turned(6), **options)


def png(width, height, depth=8, colour=0, pixels=b''):
    "A PNG that claims a size."
    def chunk(name, data):
        return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
    header = struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(pixels)) + chunk(b'IEND', b'')


def bomb(side=20_000):
    "A PNG with one bit for each pixel, and all of them there."
    packer = zlib.compressobj(9)
    rows = b''.join(packer.compress(bytes(1 + side // 8)) for _ in range(side)) + packer.flush()
    data = png(side, side, 1)
    at = data.index(b'IDAT') - 4
    body = b'IDAT' + rows
    return data[:at] + struct.pack('>I', len(rows)) + body + struct.pack('>I', zlib.crc32(body)) + data[-12:]


def patched(data, at, new): return data[:at] + new + data[at + len(new):]


def jpeg_of(width, height, **options):
    "A small JPEG whose header says another size."
    data = saved(red((16, 16)), 'JPEG', **options)
    at = max(data.find(b'\xff\xc0'), data.find(b'\xff\xc2')) + 5
    return patched(data, at, struct.pack('>HH', height, width))


def bmp_of(width, height): return patched(saved(red(), 'BMP'), 18, struct.pack('<ii', width, height))


def gif_of(width, height):
    data = saved(red(), 'GIF')
    return patched(data, 6, struct.pack('<HH', width, height))


def tiff_of(width, height):
    data = saved(red(), 'TIFF')
    for tag, value in ((256, width), (257, height)):  # as a type of four bytes
        at = next(i for i in range(8, len(data)) if data[i:i + 4] in (struct.pack('<HH', tag, 3), struct.pack('<HH', tag, 4)))
        data = patched(data, at, struct.pack('<HHII', tag, 4, 1, value))
    return data


def webp_of(width, height):
    canvas = struct.pack('<I', width - 1)[:3] + struct.pack('<I', height - 1)[:3]
    body = b'WEBPVP8X' + struct.pack('<I', 10) + bytes([2, 0, 0, 0]) + canvas
    return b'RIFF' + struct.pack('<I', len(body)) + body


def jpeg_2000_of(width, height, inside):
    "JPEG 2000 says its size twice."
    data = saved(red((16, 16)), 'JPEG2000')
    at = data.index(b'\xff\x4f\xff\x51') + 8 if inside else data.index(b'ihdr') + 4
    return patched(data, at, struct.pack('>II', width, height))


def many_scans(times):
    "A JPEG that goes over its 4,000 x 4,000 pixels again and again."
    data = saved(Image.new('L', (4000, 4000), 128), 'JPEG', progressive=True)
    at = data.rindex(b'\xff\xda')
    return data[:-2] + data[at:-2] * times + data[-2:]


def linked(where):
    def link(path):
        if where[0] == '/' and not os.path.exists(where): raise OSError(f'no {where}')
        path.symlink_to(where)
    return link


def sparse(path):
    with open(path, 'wb') as file:
        file.write(b'RIFF\0\0\0\0WEBP')
        file.truncate(3_000_000_000)


CUT = 'damaged or cut off: ...; copy it again'
TIFF = ('a TIFF that is damaged, or of a kind that is not read (64 bits for each number, for instance); copy it again, or '
        'save it with 8 or 16 bits')
NONE = ('not a picture, damaged at its beginning, or of a kind that is not read: JPEG, PNG, GIF, BMP, WebP, TIFF, PPM, AVIF, '
        "JPEG 2000 are; copy it again, or save others (iPhone's HEIC) as JPEG")
BIG = ('too large: ... pixels; more than 89,478,485 in all are not decoded, as they may fill the memory; save it smaller, '
       'leave it out, or allow load_picture or image_folders more with max_pixels=...')
LONG = 'too large: 70,000 x 1 pixels; more than 65,535 on a side are not decoded; save it smaller, or leave it out'


KINDS = {
    # pictures that are a little unusual
    'JPEG': ('a.jpg', lambda: saved(red(), 'JPEG'), RED),
    'progressive JPEG': ('a.jpg', lambda: saved(red(), 'JPEG', progressive=True), RED),
    'CMYK JPEG': ('a.jpg', lambda: saved(red(mode='CMYK'), 'JPEG'), RED),
    'CMYK TIFF': ('a.tif', lambda: saved(red(mode='CMYK'), 'TIFF'), RED),
    '16 bits of grey, PNG': ('a.png', lambda: saved(Image.fromarray(np.full((9, 9), 51400, np.uint16)), 'PNG'), (200,) * 3),
    '16 bits of grey, TIFF': ('a.tif', lambda: saved(Image.fromarray(np.full((9, 9), 51400, np.uint16)), 'TIFF'), (200,) * 3),
    '16 bits of each colour': ('a.png', lambda: png(1, 1, 16, 2, b'\0' + struct.pack('>HHH', 51400, 7710, 7710)), RED),
    'numbers with a point': ('a.tif', lambda: saved(Image.fromarray(np.full((9, 9), 200, np.float32)), 'TIFF'), (200,) * 3),
    'black and white': ('a.png', lambda: saved(Image.new('1', (9, 9), 1), 'PNG'), (255,) * 3),
    'palette': ('a.png', lambda: saved(red().quantize(4), 'PNG'), RED),
    'all transparent': ('a.png', lambda: saved(Image.new('RGBA', (9, 9)), 'PNG'), (255,) * 3),
    'one pixel, PNG': ('a.png', lambda: saved(red((1, 1)), 'PNG'), RED),
    'one pixel, JPEG': ('a.jpg', lambda: saved(red((1, 1)), 'JPEG'), RED),
    'one pixel, GIF': ('a.gif', lambda: saved(red((1, 1)), 'GIF'), RED),
    '1 x 20,000, PNG': ('a.png', lambda: saved(red((1, 20_000)), 'PNG'), RED),
    '20,000 x 1, PNG': ('a.png', lambda: saved(red((20_000, 1)), 'PNG'), RED),
    '1 x 20,000, JPEG': ('a.jpg', lambda: saved(red((1, 20_000)), 'JPEG'), RED),
    '20,000 x 1, JPEG': ('a.jpg', lambda: saved(red((20_000, 1)), 'JPEG'), RED),
    'GIF of 3,000 pictures': ('a.gif', lambda: animated(3000, 'GIF'), RED),
    'WebP of 300 pictures': ('a.webp', lambda: animated(300, 'WEBP', lossless=True), RED),
    'PNG of 1,000 pictures': ('a.png', lambda: animated(1000, 'PNG'), RED),
    'TIFF of 100 pages': ('a.tif', lambda: animated(100, 'TIFF'), RED),
    'two pictures in a JPEG (MPO)': ('a.jpg', lambda: animated(2, 'MPO'), RED),
    'JPEG called .png': ('a.png', lambda: saved(red(), 'JPEG'), RED),
    'PNG called .txt': ('a.txt', lambda: saved(red(), 'PNG'), RED),
    'GIF without an ending': ('a', lambda: saved(red(), 'GIF'), RED),
    'AVIF': ('a.avif', lambda: saved(red(), 'AVIF'), RED),
    'JPEG 2000': ('a.jp2', lambda: saved(red(), 'JPEG2000'), RED),
    'more after the end': ('a.jpg', lambda: saved(red(), 'JPEG') + bytes(100_000), RED),
    'EXIF: nonsense': ('a.jpg', lambda: saved(red(), 'JPEG', exif=b'Exif\0\0MM\0*' + bytes(range(200, 255))), RED),
    'EXIF: 64 kB': ('a.jpg', lambda: saved(red(), 'JPEG', exif=b'Exif\0\0II*\0\x08\0\0\0' + b'\xff' * 65_000), RED),
    'EXIF: orientation 9': ('a.jpg', lambda: saved(red(), 'JPEG', exif=turned(9)), RED),
    'EXIF: orientation is text': ('a.jpg', lambda: saved(red(), 'JPEG', exif=turned('up')), RED),
    'EXIF: sideways JPEG': ('a.jpg', lambda: sideways('JPEG'), 'upright'),
    'EXIF: sideways PNG': ('a.png', lambda: sideways('PNG'), 'upright'),
    'EXIF: sideways WebP': ('a.webp', lambda: sideways('WEBP'), 'upright'),
    'EXIF: sideways TIFF': ('a.tif', lambda: sideways('TIFF'), 'upright'),
    'colour profile: nonsense': ('a.jpg', lambda: saved(red(), 'JPEG', icc_profile=b'no profile'), RED),
    'name with spaces': (' a  b .jpg', lambda: saved(red(), 'JPEG'), RED),
    'name with emoji': ('\U0001f436.jpg', lambda: saved(red(), 'JPEG'), RED),
    'name with a new line': ('a\nb.jpg', lambda: saved(red(), 'JPEG'), RED),
    'name that is no UTF-8': ('a\udcff.jpg', lambda: saved(red(), 'JPEG'), RED),
    'link to a picture': ('a.jpg', lambda path: ((path.parent / 'b').write_bytes(saved(red(), 'PNG')), path.symlink_to('b')), RED),
    # damaged
    'nothing in it': ('a.jpg', lambda: b'', 'not a picture: an empty file, 0 bytes; copy it again'),
    'one byte': ('a.jpg', lambda: b'\xff', NONE),
    'three bytes of JPEG': ('a.jpg', lambda: b'\xff\xd8\xff', NONE),
    'cut JPEG': ('a.jpg', lambda: half(saved(noise(), 'JPEG')), CUT),
    'cut progressive JPEG': ('a.jpg', lambda: half(saved(noise(), 'JPEG', progressive=True)), CUT),
    'cut PNG': ('a.png', lambda: half(saved(noise(), 'PNG')), CUT),
    'cut GIF': ('a.gif', lambda: half(saved(noise(), 'GIF')), CUT),
    'cut BMP': ('a.bmp', lambda: half(saved(noise(), 'BMP')), CUT),
    'cut WebP': ('a.webp', lambda: half(saved(noise(), 'WEBP')), CUT),
    'cut TIFF': ('a.tif', lambda: half(saved(noise(), 'TIFF')), CUT),
    'cut TIFF, packed': ('a.tif', lambda: half(saved(noise(), 'TIFF', compression='tiff_lzw')), TIFF),
    'cut AVIF': ('a.avif', lambda: half(saved(noise(), 'AVIF')), f'{CUT} | {NONE}'),
    'cut JPEG 2000': ('a.jp2', lambda: saved(noise(), 'JPEG2000')[:60], CUT),
    'wrong checksum in PNG': ('a.png', lambda: patched(saved(red(), 'PNG'), 30, b'\0\0'), NONE),
    'zeros instead of a file': ('a.jpg', lambda: bytes(5000), NONE),
    # no pictures
    'text': ('notes.txt', lambda: b'a good dog', NONE),
    'web page called .jpg': ('a.jpg', lambda: b'<!DOCTYPE html><title>404</title>', NONE),
    'SVG': ('a.svg', lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>', NONE),
    'PDF': ('a.pdf', lambda: b'%PDF-1.4\n', NONE),
    'HEIC': ('a.heic', lambda: b'\0\0\0\x18ftypheic\0\0\0\0mif1heic', NONE),
    'EPS, which is a program': ('a.eps', lambda: b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n', NONE),
    'EPS called .jpg': ('a.jpg', lambda: saved(red(), 'EPS'), NONE),
    # larger than they look
    'bomb: PNG': ('a.png', lambda: bomb(), BIG),
    'bomb: PNG that only claims it': ('a.png', lambda: png(30_000, 30_000), BIG),
    'bomb: PNG of the largest size': ('a.png', lambda: png(2**31 - 1, 2**31 - 1), BIG),
    'bomb: just above the limit': ('a.png', lambda: png(10_000, 8_948), BIG),
    'bomb: JPEG': ('a.jpg', lambda: jpeg_of(65_500, 65_500), BIG),
    'bomb: progressive JPEG': ('a.jpg', lambda: jpeg_of(65_500, 65_500, progressive=True), BIG),
    'bomb: JPEG in 1,000 scans': ('a.jpg', lambda: many_scans(1000), 'too slow: a JPEG in 1,006 scans of '
                                  '4,000 x 4,000 pixels; save it anew, or leave it out'),
    'bomb: GIF': ('a.gif', lambda: gif_of(65_535, 65_535), BIG),
    'bomb: BMP': ('a.bmp', lambda: bmp_of(50_000, 50_000), BIG),
    'bomb: one long row': ('a.bmp', lambda: bmp_of(90_000_000, 1), BIG),
    'one longer row': ('a.bmp', lambda: bmp_of(70_000, 1), LONG),
    'bomb: TIFF': ('a.tif', lambda: tiff_of(60_000, 60_000), BIG),
    'bomb: PPM': ('a.ppm', lambda: b'P6 50000 50000 255\n', BIG),
    'bomb: JPEG 2000': ('a.jp2', lambda: jpeg_2000_of(60_000, 60_000, False), BIG),
    'bomb: JPEG 2000, inside': ('a.jp2', lambda: jpeg_2000_of(60_000, 60_000, True), CUT),
    'bomb: WebP': ('a.webp', lambda: webp_of(16_384, 16_384), BIG +
                   ' | damaged or cut off: could not create decoder object; copy it again'), # Pillow 12
    '3 GB on the disk': ('a.webp', sparse, 'too large: 3.0 GB on the disk; is it a picture at all? Leave it out, save it smaller, or '
                         'allow load_picture or image_folders more with max_pixels=375000001'),
    # no files
    'folder': ('a.jpg', lambda path: path.mkdir(), 'a folder, not a file; give the files in it, or the path of one of them'),
    'named pipe': ('a.jpg', lambda path: os.mkfifo(path), 'a named pipe, not a file; leave it out'),
    'socket': ('a.jpg', unix_socket, 'a socket, not a file; leave it out'),
    'device': ('a.jpg', linked('/dev/zero'), 'a device, not a file; leave it out'),
    'file of the system': ('a.jpg', linked('/proc/kmsg'), 'not a picture: an empty file, 0 bytes; copy it again'),
    'link to itself': ('a.jpg', linked('a.jpg'), 'cannot be opened: ...; repair or remove it'),
    'link that leads nowhere': ('a.jpg', linked('gone'), 'a link that leads nowhere; remove it'),
    'link to a folder': ('a.jpg', linked('.'), 'a link to a folder, not a file; give the files in that folder, or, if '
                       'they are among the others already, remove the link'),
    'nothing there': ('a.jpg', lambda path: None, 'no such file'),
    'broken, with an escape sequence': ('\x1b[31m.jpg', lambda: b'?', NONE),
}
assert len(KINDS) >= 80


def make(kind, folder):
    "Write a file of that kind; returns its path and what it gets."
    name, content, wanted = KINDS[kind]
    feature = dict(avif='avif', jp2='jpg_2000', webp='webp').get(name.rpartition('.')[2])
    if feature and not features.check(feature): pytest.skip(f'Pillow without {feature}')
    path = folder / name
    try:
        if content.__code__.co_argcount: content(path)
        else: path.write_bytes(content())
    except (OSError, UnicodeError, AttributeError) as error: pytest.skip(f'not to be had on this system: {error}')
    return path, wanted


def fits(text, pattern):
    return any(re.fullmatch('.+'.join(map(re.escape, one.split('...'))), text) for one in pattern.split(' | '))


@pytest.mark.filterwarnings('ignore:Corrupt EXIF')
@pytest.mark.parametrize('kind', KINDS)
def test_each_kind_gets_a_picture_or_a_message(tmp_path, kind):
    path, wanted = make(kind, tmp_path)
    start = time.process_time()
    if isinstance(wanted, str) and wanted != 'upright':
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)
            with pytest.raises((ValueError, FileNotFoundError)) as caught: load_picture(path, 32)
        name, text = printable(path), str(caught.value)
        assert text.startswith(f'{name}: ') and fits(text[len(name) + 2:], wanted), text
        assert text.isprintable()
    else:
        x = load_picture(path, 32)
        assert x.dtype == torch.uint8 and x.shape == (3, 32, 32)
        colours = {(16, 4): RED, (16, 28): BLUE} if wanted == 'upright' else {(16, 16): wanted}
        for (column, row), colour in colours.items():
            assert np.abs(x[:, row, column].numpy().astype(int) - colour).max() <= 12
    assert time.process_time() - start < 3


def test_the_limit_is_pillows(tmp_path, monkeypatch):
    (tmp_path / 'a.png').write_bytes(saved(red((60, 40)), 'PNG'))
    for limit, fine in ((2399, False), (1000, False), (2400, True), (None, True)):
        monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', limit)
        with warnings.catch_warnings():
            warnings.simplefilter('error')  # Pillow's own warning is a refusal like its error
            if fine: assert load_picture(tmp_path / 'a.png', 8).shape == (3, 8, 8)
            else: says(load_picture, tmp_path / 'a.png', 8, match=f'more than {limit:,} in all')
        assert load_picture(red((60, 40)), 8).shape == (3, 8, 8), 'a picture in memory is there already'


def test_the_limit_moves_where_the_message_says(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
    for kind in ('PNG', 'JPEG', 'TIFF', 'GIF', 'PPM', 'BMP'):
        (tmp_path / 'a').write_bytes(saved(red((60, 40)), kind))
        monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1200)  # Pillow itself would warn
        with pytest.warns(Image.DecompressionBombWarning):
            text = says(load_picture, tmp_path / 'a', 8, match='60 x 40 pixels; more than 1,200 in all')
        most = int(re.search(r'max_pixels=(\d+)', text)[1])
        monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)  # Pillow itself refuses
        says(load_picture, tmp_path / 'a', 8, match=['2,400 pixels; more than 100 in all', f'max_pixels={most}'])
        assert load_picture(tmp_path / 'a', 8, max_pixels=most).shape == (3, 8, 8)
        with pytest.warns(Image.DecompressionBombWarning):
            says(load_picture, tmp_path / 'a', 8, max_pixels=most - 1, match=f'max_pixels={most}')
        assert Image.MAX_IMAGE_PIXELS == 100, "Pillow's limit is what it was"
    with ThreadPoolExecutor(4) as pool: list(pool.map(lambda i: load_picture(tmp_path / 'a', 8, max_pixels=2400 + i), range(40)))
    assert Image.MAX_IMAGE_PIXELS == 100
    sparse(tmp_path / 'b')
    most = int(re.search(r'max_pixels=(\d+)', says(load_picture, tmp_path / 'b', 8, match='3.0 GB'))[1])
    assert 'not a picture' in says(load_picture, tmp_path / 'b', 8, max_pixels=most) or features.check('webp')


@pytest.mark.parametrize('error, words', [
    (OSError(24, 'Too many open files', 'a.jpg'), 'close some'), (OSError('decoder libtiff not available'), 'save it anew'),
    (OSError('Unsupported BMP compression'), 'save it anew'), (OSError('broken data stream'), 'damaged or cut off: broken data stream'),
    (MemoryError(), 'not enough memory')])
def test_causes_are_not_mistaken_for_damage(error, words): assert words in decoding.why_unreadable(error)


def test_a_plug_in_may_read_heif(tmp_path, monkeypatch):
    "Packages that read HEIF for Pillow register it under this name."
    (tmp_path / 'a.heic').write_bytes(b'????ftypheic')
    monkeypatch.setitem(Image.OPEN, 'HEIF', (lambda file, name: red(), lambda start: start[4:12] == b'ftypheic'))
    assert load_picture(tmp_path / 'a.heic', 8)[:, 4, 4].tolist() == list(RED)


# ---- bytes of all kinds ----

def originals():
    "Small good files of every kind that is read."
    grey, rgb = noise((23, 17)).convert('L'), noise((23, 17))
    rgba = rgb.copy()
    rgba.putalpha(grey)
    files = [saved(rgb, 'JPEG'), saved(rgb, 'JPEG', progressive=True, exif=turned(6)), saved(rgb.convert('CMYK'), 'JPEG'),
             saved(grey, 'JPEG', restart_marker_rows=1), animated(2, 'MPO'),
             saved(rgb, 'PNG'), saved(rgba, 'PNG', exif=turned(3)), saved(rgb.quantize(16), 'PNG', bits=4, transparency=2),
             saved(in_16_bits(grey), 'PNG'), animated(3, 'PNG'),
             saved(rgb, 'GIF'), animated(3, 'GIF', disposal=2, transparency=0), saved(grey, 'GIF', interlace=1),
             saved(rgb, 'BMP'), saved(grey, 'BMP'), saved(rgb.convert('1'), 'BMP'), run_lengths(),
             saved(rgb, 'TIFF'), saved(rgb, 'TIFF', compression='tiff_lzw', exif=turned(5)),
             saved(rgba, 'TIFF', compression='tiff_deflate'), saved(rgb, 'TIFF', compression='jpeg'),
             saved(grey.convert('1'), 'TIFF', compression='group4'), saved(in_16_bits(grey), 'TIFF'),
             saved(grey.convert('F'), 'TIFF'), saved(rgb, 'TIFF', compression='packbits', big_tiff=True),
             saved(rgb, 'PPM'), b'P3 2 2 99 ' + b'7 ' * 12]
    for feature, options in dict(webp=[dict(), dict(lossless=True), dict(exif=turned(8))], avif=[dict()], jpg_2000=[dict()]).items():
        kind = dict(jpg_2000='JPEG2000').get(feature, feature.upper())
        if features.check(feature): files += [saved(rgba, kind, **each) for each in options]
    return files


def in_16_bits(grey): return Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)


def run_lengths():
    "A BMP whose rows are runs."
    pixels = b'\x05\x01\0\x03\1\2\3\0\0\0' * 5 + b'\0\1'
    header = struct.pack('<IiiHHIIiiII', 40, 8, 5, 1, 8, 1, len(pixels), 0, 0, 256, 0)
    return b'BM' + struct.pack('<IHHI', 1078 + len(pixels), 0, 0, 1078) + header + bytes(range(256)) * 4 + pixels


def mutant(number, files):
    "File `number`: one of the good ones, broken at random."
    chance = random.Random(number)
    kind = number % len(files)
    data = bytearray(files[kind])
    def place(): return chance.randrange(min(len(data), chance.choice((40, 200, 10**9))) or 1)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        if not data: break
        at, way = place(), chance.randrange(8)
        if way == 0: data[at] ^= 1 << chance.randrange(8)
        elif way == 1: data[at] = chance.choice((0, 255, chance.randrange(256)))
        elif way == 2: del data[at:]
        elif way == 3: del data[at:at + chance.randrange(1, 40)]
        elif way == 4: data[at:at] = data[at:at + chance.randrange(1, 400)] * chance.choice((1, 1, 50))
        elif way == 5:  # a part of another file
            other = files[chance.choice((kind, chance.randrange(len(files))))]
            start = chance.randrange(len(other))
            data[at:at + chance.randrange(200)] = other[start:start + chance.randrange(200)]
        else:  # a length, an offset, a size or a count that is not true
            form = chance.choice(('<H', '>H', '<I', '>I', '<Q'))
            top = 256 ** struct.calcsize(form)
            value = chance.choice((0, 1, 255, 9000, 60_000, top // 2 - 1, top // 2, top - 1, top - 2)) % top
            data[at:at + struct.calcsize(form)] = struct.pack(form, value)
    if data[:4] == b'\x89PNG' and chance.random() < .8: data = right_checksums(data)
    return bytes(data)


def right_checksums(data):
    "A PNG whose checksums are right again, so that what is wrong is found later."
    at = 8
    while at + 12 <= len(data):
        length, = struct.unpack('>I', data[at:at + 4])
        if at + 12 + length > len(data): break
        data[at + 8 + length:at + 12 + length] = struct.pack('>I', zlib.crc32(data[at + 4:at + 8 + length]))
        at += 12 + length
    return data


def fuzz(folder, first, last):
    "Read the broken files `first` to `last`; run in a process of its own. A line for each kind of result."
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    files, path, got, slowest = originals(), Path(folder) / 'a', {}, (0, 0)
    for number in range(first, last):
        Path(folder, 'now').write_text(str(number))
        path.write_bytes(mutant(number, files))
        start = time.process_time()
        try:
            x = load_picture(path, 16)
            fine = x.dtype == torch.uint8 and x.shape == (3, 16, 16)
            result = 'a picture' if fine else f'{x.dtype} {tuple(x.shape)}'
        except ValueError as error:
            named, reason = str(error).startswith(f'{path}: '), str(error)[len(f'{path}: '):]
            result = re.split('[:;,]', reason)[0] if named else f'no name: {error}'
            if reason.startswith('its numbers go from') or reason.startswith('a TIFF that is damaged'):
                result = reason[:14]
            if 'memory to' in reason: result = f'memory: {number}'
        except BaseException as error: result = f'{type(error).__name__}: {error} ({number})'
        slowest = max(slowest, (time.process_time() - start, number))
        got[result] = got.get(result, 0) + 1
    peak, = [line for line in open('/proc/self/status') if line.startswith('VmHWM')]
    print(f'{slowest[0]:.2f} s for {slowest[1]}; {int(peak.split()[1]) / 1e6:.2f} GB at most')
    for result, n in sorted(got.items(), key=lambda item: -item[1]): print(f'{n:6} {result}')


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='memory cannot be asked here')
@pytest.mark.parametrize('count', [700, pytest.param(8000, marks=pytest.mark.slow)])
def test_broken_bytes_never_crash(tmp_path, count):
    "Each gives a picture or an error with its name; none takes more than 5 seconds or 3 GB."
    code = ('import resource, sys; sys.path[:0] = sys.argv[1:3]; '
            'resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30)); '  # of these 1 GB for torch
            'from test_decoding import fuzz; fuzz(sys.argv[3], 0, int(sys.argv[4]))')
    here = Path(__file__).parent
    done = subprocess.run([sys.executable, '-c', code, here, here.parent, tmp_path, str(count)], capture_output=True,
                          text=True, timeout=300, errors='replace')
    assert done.returncode == 0, f'file {(tmp_path / "now").read_text()}: {done.stderr[-500:]}'
    first, *results = done.stdout.splitlines()
    seconds, gigabytes = (float(n) for n in re.match(r'([\d.]+) s for \d+; ([\d.]+) GB', first).groups())
    assert seconds < 5 and gigabytes < 3
    found = {text[7:]: int(text[:7]) for text in results}
    assert sum(found.values()) == count and found['a picture'] > count / 10
    assert set(found) <= {'a picture', 'damaged or cut off', 'not a picture', 'too large', 'too slow',
                          'a TIFF that is', 'its numbers go', 'stored in a way that is not read'}


def test_large_pictures_are_decoded_one_at_a_time(tmp_path, monkeypatch):
    inside, most = [], []
    def slow(image, size, resize):
        inside.append(image.size)
        most.append(len(inside))
        time.sleep(.02)
        return torch.tensor(inside.pop())
    monkeypatch.setattr(decoding, 'to_square', slow)
    for side, alone in ((6000, True), (600, False)):
        (tmp_path / 'a.png').write_bytes(png(side, side))
        most.clear()
        with ThreadPoolExecutor(6) as pool: list(pool.map(lambda _: load_picture(tmp_path / 'a.png', 8), range(6)))
        assert (max(most) == 1) == alone
