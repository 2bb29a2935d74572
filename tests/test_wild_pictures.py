"Files from strangers: each kind gets a picture, or a message that says what was wrong and what to do."
import io
import os
import random
import re
import socket
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features

from finetune_teach import pictures as P
from finetune_teach.engine.decoding import load_picture
from finetune_teach.engine.loaders import ImageLoaders
from finetune_teach.engine.messages import printable
from finetune_teach.engine.plots import show_pictures
from finetune_teach.pictures import ImageLoader, drawn_pets, image_files, image_folders

RED, BLUE = (200, 30, 30), (20, 40, 210)


def red(size=(60, 40), mode='RGB'):
    return Image.new('RGB', size, RED).convert(mode)


def noise(size=(90, 60), seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), np.uint8))


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


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


def unix_socket(path):
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket has to be short
    try: socket.socket(socket.AF_UNIX).bind(path.name)
    finally: os.chdir(here)


def sparse(path):
    with open(path, 'wb') as file:
        file.write(b'RIFF\0\0\0\0WEBP')
        file.truncate(3_000_000_000)


CUT = 'damaged or cut off: ...; copy it again'
NONE = ('not a picture, or of a kind that is not read: JPEG, PNG, GIF, BMP, WebP, TIFF, PPM, AVIF, JPEG 2000'
        " are; save others (iPhone's HEIC) as JPEG")


def big(width, height):
    return (f'too large: {width:,} x {height:,} pixels; more than 100,000,000, or 65,535 on a side, are not '
            'decoded, as they may fill the memory. Save it smaller, or leave it out')


# kind of file: (its name, a function that gives its bytes or makes it at a path, what it gets: a colour or a message)
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
    'three bytes of JPEG': ('a.jpg', lambda: b'\xff\xd8\xff', CUT),
    'cut JPEG': ('a.jpg', lambda: half(saved(noise(), 'JPEG')), CUT),
    'cut progressive JPEG': ('a.jpg', lambda: half(saved(noise(), 'JPEG', progressive=True)), CUT),
    'cut PNG': ('a.png', lambda: half(saved(noise(), 'PNG')), CUT),
    'cut GIF': ('a.gif', lambda: half(saved(noise(), 'GIF')), CUT),
    'cut BMP': ('a.bmp', lambda: half(saved(noise(), 'BMP')), CUT),
    'cut WebP': ('a.webp', lambda: half(saved(noise(), 'WEBP')), CUT),
    'cut TIFF': ('a.tif', lambda: half(saved(noise(), 'TIFF')), CUT),
    'cut TIFF, packed': ('a.tif', lambda: half(saved(noise(), 'TIFF', compression='tiff_lzw')), CUT),
    'cut AVIF': ('a.avif', lambda: half(saved(noise(), 'AVIF')), CUT),
    'cut JPEG 2000': ('a.jp2', lambda: saved(noise(), 'JPEG2000')[:60], CUT),
    'wrong checksum in PNG': ('a.png', lambda: patched(saved(red(), 'PNG'), 30, b'\0\0'), CUT),
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
    'bomb: PNG': ('a.png', lambda: bomb(), big(20_000, 20_000)),
    'bomb: PNG that only claims it': ('a.png', lambda: png(30_000, 30_000), big(30_000, 30_000)),
    'bomb: PNG of the largest size': ('a.png', lambda: png(2**31 - 1, 2**31 - 1), big(2**31 - 1, 2**31 - 1)),
    'bomb: just above the limit': ('a.png', lambda: png(10_000, 10_001), big(10_000, 10_001)),
    'bomb: JPEG': ('a.jpg', lambda: jpeg_of(65_500, 65_500), big(65_500, 65_500)),
    'bomb: progressive JPEG': ('a.jpg', lambda: jpeg_of(65_500, 65_500, progressive=True), big(65_500, 65_500)),
    'bomb: JPEG in 1,000 scans': ('a.jpg', lambda: many_scans(1000), 'too slow: a JPEG in 1,006 scans of '
                                  '4,000 x 4,000 pixels; save it anew, or leave it out'),
    'bomb: GIF': ('a.gif', lambda: gif_of(65_535, 65_535), big(65_535, 65_535)),
    'bomb: BMP': ('a.bmp', lambda: bmp_of(50_000, 50_000), big(50_000, 50_000)),
    'bomb: one long row': ('a.bmp', lambda: bmp_of(90_000_000, 1), big(90_000_000, 1)),
    'bomb: TIFF': ('a.tif', lambda: tiff_of(60_000, 60_000), big(60_000, 60_000)),
    'bomb: PPM': ('a.ppm', lambda: b'P6 50000 50000 255\n', big(50_000, 50_000)),
    'bomb: JPEG 2000': ('a.jp2', lambda: jpeg_2000_of(60_000, 60_000, False), big(60_000, 60_000)),
    'bomb: JPEG 2000, inside': ('a.jp2', lambda: jpeg_2000_of(60_000, 60_000, True), CUT),
    'bomb: WebP': ('a.webp', lambda: webp_of(16_384, 16_384), 'too large: more than 100,000,000 pixels; save it smaller, or leave it out'
                   ' | damaged or cut off: could not create decoder object; copy it again'), # Pillow 12
    '3 GB on the disk': ('a.webp', sparse, 'too large: 3.0 GB on the disk; is it a picture at all? Leave it out, or save it smaller'),
    # no files
    'folder': ('a.jpg', lambda path: path.mkdir(), 'a folder, not a file; if a link leads to it, remove the link'),
    'named pipe': ('a.jpg', lambda path: os.mkfifo(path), 'a named pipe, not a file; remove it'),
    'socket': ('a.jpg', unix_socket, 'a socket, not a file; remove it'),
    'device': ('a.jpg', linked('/dev/zero'), 'a device, not a file; remove it'),
    'file of the system': ('a.jpg', linked('/proc/kmsg'), 'not a picture: an empty file, 0 bytes; copy it again'),
    'link to itself': ('a.jpg', linked('a.jpg'), 'cannot be opened: ...; repair or remove it'),
    'link that leads nowhere': ('a.jpg', linked('gone'), 'a link that leads nowhere; remove it'),
    'link to a folder': ('a.jpg', linked('.'), 'a link to a folder that is read already; remove the link'),
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
            warnings.simplefilter('error', Image.DecompressionBombWarning)
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


def test_the_limit_may_be_moved(tmp_path, monkeypatch):
    (tmp_path / 'a.png').write_bytes(saved(red((60, 40)), 'PNG'))
    monkeypatch.setattr(P, 'MAX_PIXELS', 2399)
    with pytest.raises(ValueError, match='60 x 40 pixels; more than 2,399'): load_picture(tmp_path / 'a.png', 8)
    assert load_picture(red((60, 40)), 8).shape == (3, 8, 8), 'a picture in memory is there already'
    monkeypatch.setattr(P, 'MAX_PIXELS', 2400)
    assert load_picture(tmp_path / 'a.png', 8).shape == (3, 8, 8)


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
            if 'memory to' in reason: result = f'memory: {number}'
        except BaseException as error: result = f'{type(error).__name__}: {error} ({number})'
        slowest = max(slowest, (time.process_time() - start, number))
        got[result] = got.get(result, 0) + 1
    peak, = [line for line in open('/proc/self/status') if line.startswith('VmHWM')]
    print(f'{slowest[0]:.2f} s for {slowest[1]}; {int(peak.split()[1]) / 1e6:.2f} GB at most')
    for result, n in sorted(got.items(), key=lambda item: -item[1]): print(f'{n:6} {result}')


def run_fuzz(folder, count):
    "Read so many broken files in other processes; returns what each said, and the files at which one died."
    said, died, first = [], [], 0
    while first < count:
        code = (f'import resource, sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); '
                'resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30)); '  # of these 1 GB for torch
                f'from test_wild_pictures import fuzz; fuzz({str(folder)!r}, {first}, {count})')
        done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=300,
                              errors='replace')
        said.append(done.stdout)
        if done.returncode == 0: break
        now = int((folder / 'now').read_text())
        died.append(f'file {now}: exit status {done.returncode}: {done.stderr[-500:]}')
        first = now + 1
    return said, died


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='memory cannot be asked here')
@pytest.mark.parametrize('count', [1000, pytest.param(30_000, marks=pytest.mark.slow)])
def test_broken_bytes_never_crash(tmp_path, count):
    "Each gives a picture or an error with its name; none takes more than 5 seconds or 3 GB."
    said, died = run_fuzz(tmp_path, count)
    print(f'{count} files, {len(died)} crashes', *said, sep='\n')
    assert not died
    first, *results = said[0].splitlines()
    seconds, gigabytes = (float(n) for n in re.match(r'([\d.]+) s for \d+; ([\d.]+) GB', first).groups())
    assert seconds < 5 and gigabytes < 3
    found = {text[7:]: int(text[:7]) for text in results}
    assert sum(found.values()) == count and found['a picture'] > count / 10
    assert set(found) <= {'a picture', 'damaged or cut off', 'not a picture', 'too large', 'too slow'}


MEMORY = '''
import resource, sys, warnings
from multiprocessing.pool import ThreadPool
def peak():
    with open('/proc/self/status') as status: line, = [line for line in status if line.startswith('VmHWM')]
    return int(line.split()[1]) / 1e6
warnings.simplefilter('error')
load_picture(sys.argv[2], 8)
start = peak()
with ThreadPool(6) as pool: pool.map(lambda _: load_picture(sys.argv[1], 8), range(6), chunksize=1)
print(peak() - start)
'''


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='memory cannot be asked here')
def test_large_pictures_are_decoded_one_at_a_time(tmp_path):
    "Six threads, each with a picture as large as may be, that needs over 1 GB for a moment."
    (tmp_path / 'a.png').write_bytes(png(10_000, 10_000, 8, 0, bytes(10_001 * 10_000)))
    (tmp_path / 'b.png').write_bytes(saved(red(), 'PNG'))
    done = subprocess.run([sys.executable, '-c', MEMORY, tmp_path / 'a.png', tmp_path / 'b.png'],
                          capture_output=True, text=True)
    assert done.returncode == 0 and float(done.stdout) < 2.5, done.stdout + done.stderr


# ---- folders ----

def folder_of(root, counts, size=(12, 9)):
    "Folders of pictures, all different."
    seed = 0
    for name, n in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            seed += 1
            noise(size, seed).save(root / name / f'{i}.png')
    return root


@pytest.fixture
def pets(tmp_path): return folder_of(tmp_path / 'pets', dict(cat=5, dog=5))


def warned(function, *args, **options):
    "The result of a call, and the texts it warns of."
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        result = function(*args, **options)
    assert all(warning.filename == __file__ for warning in said), 'they point at the caller'
    return result, [str(warning.message) for warning in said]


def refused(function, *args, **options):
    with pytest.raises((ValueError, FileNotFoundError)) as caught: function(*args, **options)
    assert all(line.isprintable() for line in str(caught.value).splitlines())
    return str(caught.value)


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='no pipes in folders')
def test_what_is_no_file_is_named_with_the_others(pets):
    os.mkfifo(pets / 'cat' / 'pipe.jpg')
    unix_socket(pets / 'dog' / 'socket')
    (pets / 'dog' / 'zero.png').symlink_to('/dev/zero')
    text = refused(image_folders, pets)
    assert '3 of 13 files' in text and 'pipe.jpg: a named pipe' in text
    assert 'socket: a socket' in text and 'zero.png: a device' in text
    dls, said = warned(image_folders, pets, on_error='skip')
    assert len(dls.files) == 10 and len(dls.skipped) == 3 and len(said) == 1
    assert '3 of 13' in refused(image_files, pets, lambda path: path.parent.name)
    with pytest.raises(ValueError, match='pipe.jpg: a named pipe'):
        lazy = image_folders(pets, memory=0)
        list(lazy.train), list(lazy.valid)
    os.mkfifo(pets.parent / 'pipe')
    assert 'cannot be read: Not a directory' in refused(image_folders, pets.parent / 'pipe')


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
    assert '6 of 16 files' in refused(image_folders, pets)
    dls, _ = warned(image_folders, pets, on_error='skip')
    reasons = {path.name: reason for path, reason in dls.skipped}
    assert reasons.keys() == wanted.keys() and all(wanted[name] in reasons[name] for name in wanted)
    assert dls.classes == ['cat', 'dog'] and len(dls.files) == 10
    assert len(warned(image_files, pets, lambda path: 'ab'[path.stem in '01'], on_error='skip')[0].files) == 10


def test_links_cannot_multiply(tmp_path):
    "Twenty folders, each with two links to the next one: a million ways to the last."
    folder_of(tmp_path / 'pets', dict(cat=3, dog=3))
    for i in range(20):
        (tmp_path / f'{i}').mkdir()
        if i:
            for name in 'ab': (tmp_path / f'{i - 1}' / name).symlink_to(tmp_path / f'{i}')
    (tmp_path / 'pets' / 'cat' / 'many').symlink_to(tmp_path / '0')
    dls, _ = warned(image_folders, tmp_path / 'pets', on_error='skip')
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
    pets = folder_of(open_folder / 'pets', dict(cat=5, dog=5, eel=5))
    os.chmod(pets / 'cat' / '0.png', 0)
    os.chmod(pets / 'dog', 0)
    try:
        text = as_nobody(lambda: refused(image_folders, pets))
        denied = 'Permission denied: you may not read it; change its permissions, or leave it out'
        assert f'2 of 11 files' in text and f'0.png: {denied}' in text and f'dog: {denied}' in text
        text = as_nobody(lambda: repr(warned(image_folders, pets, on_error='skip')[0]))
        assert '7 training and 2 validation' in text, text
        os.chmod(pets, 0)
        text = as_nobody(lambda: refused(image_folders, pets))
        assert text == f'{pets}: this folder cannot be read: Permission denied; give a folder that you may read'
        os.chmod(pets, 0o444)  # its names may be read, but nothing in it
        assert 'Permission denied' in as_nobody(lambda: refused(image_folders, pets))
        text = as_nobody(lambda: refused(image_folders, pets / 'cat'))
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
    dls, said = warned(image_folders, pets)
    assert len(dls.files) == 10 and dls.classes == ['cat', 'dog'] and not said


# ---- names ----

ODD = ['two words', ' before', '\U0001f436 dog', 'two\nlines', '\x1b[31mred\x1b[0m', '$x', 'a_$b$', '$\\frac{$',
       'caf\xe9', '\u202etfel', '<b>bold', '{x}', '%s', "'", '"', '#', 'no\udcffutf', '-rf', '~', 'CON', 'x' * 200]


def test_odd_names_everywhere(tmp_path):
    "As folders and files: they load, show, and fail with messages of one printable line for each file."
    import matplotlib.pyplot as plt
    names = ODD
    try: folder_of(tmp_path / 'odd', dict.fromkeys(names, 2), size=(8, 8))
    except (OSError, UnicodeError): pytest.skip('not all names are possible here')
    for name in names: os.rename(tmp_path / 'odd' / name / '0.png', tmp_path / 'odd' / name / f'{name}.png')
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
    for name in names: (tmp_path / 'odd' / name / f'{name}.png').write_bytes(b'no')
    text = refused(image_folders, tmp_path / 'odd')
    assert len(text.splitlines()) == 1 + 5 + 2
    text.encode('utf-8')
    with pytest.warns(UserWarning):
        refused(image_folders, tmp_path / 'odd', on_error='skip')  # one picture of each class


def test_titles_of_several_lines_stay():
    texts = show_pictures(torch.zeros(2, 3, 8, 8), ['90% $a$,\nis in b', 7]).texts
    assert [text.get_text() for text in texts] == ['90% $a$,\nis in b', '7']
    assert not any(text.get_parse_math() for text in texts)


@pytest.mark.parametrize('name, shown', [
    ('a b', 'a b'), ('a\tb', r'a\tb'), ('\u200b', r'\u200b'), ('\xa0', r'\xa0'), ('\ue000', r'\ue000'),
    ('C:\\new', 'C:\\new'), ('\U0001f468\u200d\U0001f469', '\U0001f468\u200d\U0001f469'), (7, '7'),
    (Path('x'), 'x'), ('\x9b31m', r'\x9b31m'), ('\u2028', r'\u2028')])
def test_printable(name, shown):
    assert printable(name) == shown
    printable(name).encode('utf-8')


# ---- the same picture on both sides ----

def given_split(root):
    folder_of(root / 'train', dict(cat=6, dog=6))
    seed = 100
    for name in ('cat', 'dog'):
        (root / 'valid' / name).mkdir(parents=True)
        for i in range(3):
            seed += 1
            noise((12, 9), seed).save(root / 'valid' / name / f'v{i}.png')
    return root


def test_duplicates_are_found_and_reported(tmp_path):
    root = given_split(tmp_path / 'pets')
    dls, said = warned(image_folders, root)
    assert not said and dls.duplicates() == []
    train, valid = root / 'train', root / 'valid'
    (valid / 'cat' / 'v0.png').write_bytes((train / 'cat' / '1.png').read_bytes())
    with Image.open(train / 'cat' / '2.png') as image: image.save(valid / 'cat' / 'v1.bmp')  # the same pixels
    (valid / 'dog' / 'v2.png').unlink()
    (valid / 'dog' / 'v2.png').symlink_to(train / 'cat' / '3.png')
    os.link(train / 'dog' / '4.png', valid / 'dog' / 'linked.png')
    with Image.open(train / 'dog' / '5.png') as image: image.resize((24, 18)).save(valid / 'dog' / 'resized.png')
    dls, said = warned(image_folders, root)
    wanted = {'cat/v0.png': 'cat/1.png', 'cat/v1.bmp': 'cat/2.png', 'dog/v2.png': 'cat/3.png',
              'dog/linked.png': 'dog/4.png'}
    assert dict(dls.duplicates()) == {valid / v: train / t for v, t in wanted.items()}
    assert said == [
        f'{root}: 4 of 9 validation pictures are training pictures, too (1 of them under another class): '
        f'{Path("valid/cat/v0.png")} = {Path("train/cat/1.png")}, '
        f'{Path("valid/cat/v1.bmp")} = {Path("train/cat/2.png")}, '
        f'{Path("valid/dog/linked.png")} = {Path("train/dog/4.png")}, ... 1 more. Their answers have been told, '
        'so the validation error will look too good. Delete one file of each pair; .duplicates() lists all pairs']
    lazy, said = warned(image_folders, root, memory=0)
    assert not said, 'nothing is looked at before it is asked for'
    del wanted['cat/v1.bmp']  # as a file it is another one
    assert dict(lazy.duplicates()) == {valid / v: train / t for v, t in wanted.items()}
    assert (lazy.train.pictures.numbers < 0).all(), 'nothing was decoded for it'
    (train / 'cat' / '1.png').unlink()
    assert len(lazy.duplicates()) == 2


def test_duplicates_of_ones_own_tensors_are_places():
    x = torch.arange(6 * 3 * 4 * 4).view(6, 3, 4, 4).remainder(251).to(torch.uint8)
    part = lambda at: ImageLoader(x[at], torch.zeros(len(at), dtype=torch.long))
    dls = ImageLoaders(part([0, 1, 2, 2]), part([5, 2, 0, 2]), ['a', 'b'])
    assert dls.duplicates() == [(1, 2), (2, 0), (3, 2)]


def test_equal_hashes_are_not_enough(monkeypatch):
    monkeypatch.setattr(P, 'hash', lambda data: 0, raising=False)
    x = torch.arange(2 * 3 * 4 * 4).view(2, 3, 4, 4).to(torch.uint8)
    assert P.same_pictures(x[:1], x[1:]) == {} and P.same_pictures(x[:1], x[:1]) == {0: 0}


def test_looking_for_duplicates_is_quick():
    "20,000 pictures; also if they are all the same, as a pair each would be a hundred million."
    x = torch.randint(256, (20_000, 3, 64, 64), dtype=torch.uint8)
    for pictures, n in ((x, 0), (torch.zeros_like(x), 10_000)):
        start = time.process_time()
        found = P.same_pictures(pictures[:10_000], pictures[10_000:])
        assert time.process_time() - start < 0.8 and len(found) == n


def test_drawn_pets_have_no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for style in ('paint', 'sketch'): assert drawn_pets(3, 3, style=style).duplicates() == []
        drawn_pets(2, 30, size=4)


# ---- classes ----

@pytest.mark.parametrize('one, two', [
    ('Cat', 'cat'), ('cat', 'cat '), ('two words', 'two  words'), ('caf\xe9', 'cafe\u0301'), ('STRASSE', 'stra\xdfe'),
    ('cat', 'ca\u200bt'), ('\uff23at', 'Cat')])
def test_names_that_look_alike(tmp_path, one, two):
    folder_of(tmp_path / 'pets', {one: 2, two: 2, 'dog': 2})
    if len(list((tmp_path / 'pets').iterdir())) < 3: pytest.skip('the same name on this system')
    dls, said = warned(image_folders, tmp_path / 'pets')
    first, second = sorted([one, two])
    assert len(dls.classes) == 3 and said == [
        f'{tmp_path / "pets"}: names of classes that differ only in capital letters, spaces or in how accents are '
        f'stored: {first!a} and {second!a}. If they are one class, give them one name; if they are meant to differ, '
        'all is well']


def test_letters_may_be_meant():
    labels = [c for c in 'ABCDEFGHabcdefgh' for _ in range(3)]
    text = P.say_alike(labels, 'letters')
    assert "'A' and 'a', 'B' and 'b'" in text and '... 3 more' in text
    assert not P.say_alike(['cat', 'dog', 'cats', 'c at', 'caf\xe9', 'cafe'], 'x')


def test_a_thousand_classes(tmp_path):
    data = saved(red((8, 8)), 'BMP')
    for i in range(1000):
        (tmp_path / f'class {i}').mkdir()
        for k in range(3):  # another first pixel in each
            (tmp_path / f'class {i}' / f'{k}.bmp').write_bytes(patched(data, 54, struct.pack('<HB', i, k)))
    start = time.process_time()
    dls, said = warned(image_folders, tmp_path, size=8)
    assert time.process_time() - start < 5 and not said
    assert len(dls.classes) == 1000 and len(dls.train.labels) == 2000 and len(dls.valid.labels) == 1000
    assert dls.valid.labels.unique().numel() == 1000 and len(repr(dls)) < 200
    x, y = next(iter(dls.train))
    assert x.shape == (32, 3, 8, 8) and y.max() < 1000


def test_unequal_classes_are_reported(tmp_path):
    folder_of(tmp_path, {'dog': 40, 'cat': 12, 'an\neel': 4})
    dls, said = warned(image_folders, tmp_path)
    assert said == [
        f'{tmp_path}: the classes are of very unequal size: dog 40, cat 12, an\\neel 4 pictures. Who always answers '
        'dog is right for 71% of all, so do not trust the error rate of all pictures: look at the error of each class, '
        'and add pictures to the small ones']
    (tmp_path / 'dog' / '0.png').unlink()
    assert not warned(image_folders, tmp_path)[1], '39 is less than ten times 4'
    text = P.say_unequal([f'{i:02}' for i in range(1, 31) for _ in range(i)], 'x')
    assert '30 30, 29 29, 28 28, 03 3, 02 2, 01 1 pictures (largest and smallest).' in text
