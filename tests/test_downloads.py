"Downloads from a server that cuts off, stalls and lies: whole files, or none and an error that says what to do."
import errno
import hashlib
import io
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.request import Request

import pytest
import torch
from PIL import Image
from torchvision import models

from conftest import publish, same_bits, small_network, state
from finetune_teach import downloads as D
from finetune_teach import pictures as P
from finetune_teach.downloads import download, has_checksum, unpack
from finetune_teach.engine.weights import fetch_weights, load_network, only_weights
from finetune_teach.pretrained_body import create_body

ROOT = Path(__file__).parent.parent
CONTENT = hashlib.shake_256(b'weights').digest(300_000)
OTHER = hashlib.shake_256(b'other weights').digest(300_000)


def sha256(content, digits=8):
    return 'sha256:' + hashlib.sha256(content).hexdigest()[:digits]


class Web:
    """A server on this computer. `plans` says what it does at each request; the last one is for all that follow.

    A plan: content; cut: bytes after which the connection ends; announce: a wrong length; ranges: does it know
    them; place: a wrong Content-Range; status: an error; to: a redirect; stall: seconds of silence after `cut`
    bytes; chunked, silent_length: no length is announced; slow: seconds for each 30,000
    bytes; hold: an event to wait for before the first one.
    """
    def __init__(self, **plan):
        self.plans, self.asked = [{'content': CONTENT, **plan}], []
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.1'

            def do_GET(self):
                first = self.headers.get('Range')
                web.asked.append((self.path, int(first[6:-1]) if first else 0))
                plan = web.plans.pop(0) if len(web.plans) > 1 else web.plans[0]
                self.close_connection = True
                try:
                    self.answer(web.asked[-1][1], **plan)
                except (BrokenPipeError, ConnectionResetError): # whoever asked has gone
                    pass

            def answer(self, start, content=CONTENT, cut=None, announce=None, ranges=True, place=None, status=None,
                       to=None, stall=0, chunked=False, silent_length=False, slow=0, hold=None):
                if isinstance(content, dict):
                    content = content.get(self.path)
                    status = status or (404 if content is None else None)
                if status:
                    self.send_response(status)
                    if to: self.send_header('Location', to)
                    self.send_header('Content-Length', '0')
                    return self.end_headers()
                start = start if ranges else 0
                if start and start >= len(content):
                    return self.answer(0, status=416)
                rest = content[start:]
                self.send_response(206 if start or place else 200)
                if start or place:
                    self.send_header('Content-Range', place or f'bytes {start}-{len(content) - 1}/{len(content)}')
                if chunked: self.send_header('Transfer-Encoding', 'chunked')
                elif not silent_length: self.send_header('Content-Length', len(rest) if announce is None else announce)
                self.end_headers()
                if hold: hold.wait(60)
                sent = rest if cut is None else rest[:cut]
                for i in range(0, len(sent), 30_000):
                    piece = sent[i:i + 30_000]
                    self.wfile.write(b'%x\r\n%s\r\n' % (len(piece), piece) if chunked else piece)
                    time.sleep(slow)
                if stall: web.gone.wait(stall)
                elif chunked and cut is None: self.wfile.write(b'0\r\n\r\n')

            def log_message(self, *args): pass

        self.gone = threading.Event()
        self.server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.root = f'http://127.0.0.1:{self.server.server_port}'
        self.url = self.root + '/weights.pth'
        threading.Thread(target=self.server.serve_forever, kwargs={'poll_interval': 0.02}, daemon=True).start()

    @property
    def starts(self):
        return [start for _, start in self.asked]

    def close(self):
        self.gone.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ('http_proxy', 'https_proxy', 'all_proxy', 'no_proxy'):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def web():
    servers = []
    def start(**plan):
        servers.append(Web(**plan))
        return servers[-1]
    yield start
    for server in servers: server.close()


@pytest.fixture
def waits(monkeypatch):
    "The seconds between tries, which do not pass."
    seconds = []
    monkeypatch.setattr(D, 'time', SimpleNamespace(sleep=seconds.append))
    return seconds


def get(server, path, checksum=sha256(CONTENT), **options):
    return download(server.url, path, checksum, progress=False, **options)


def fails(server, path, *match, error=OSError, checksum=sha256(CONTENT), kept=False, **options):
    "The download must fail, say so, and leave nothing but perhaps a part."
    with pytest.raises(error) as caught: get(server, path, checksum, **options)
    said = str(caught.value)
    for text in (server.url, str(path), 'in another way', *match): assert text in said, said
    assert not path.exists()
    assert [p.name for p in path.parent.iterdir()] == ([f'{path.name}.part'] if kept else [])
    assert (f'{path}.part' in said) is kept
    return said


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'cache' / 'weights.pth'


# A good server

def test_a_whole_file(web, path):
    server = web()
    assert get(server, str(path)) == path and path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ['weights.pth'], 'no part, no lock'
    assert get(server, path) == path and len(server.asked) == 1, 'it is there'
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize('plan', [{'chunked': True}, {'silent_length': True}, {'content': b''}])
def test_other_ways_to_send_it(web, path, plan):
    server = web(**plan)
    content = plan.get('content', CONTENT)
    assert get(server, path, sha256(content)).read_bytes() == content


def test_md5_and_no_checksum(web, path):
    server = web()
    get(server, path, 'md5:' + hashlib.md5(CONTENT).hexdigest())
    path.unlink()
    assert get(server, path, '').read_bytes() == CONTENT
    assert has_checksum(path, sha256(CONTENT, 64)) and not has_checksum(path, sha256(OTHER))


@pytest.mark.parametrize('checksum', ['f37072fd', 'sha256:', 'sha256:f370', 'crc32:f37072fd', 'sha256:F37072FD', 'md5:?'])
def test_a_checksum_that_is_none(web, path, checksum):
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    with pytest.raises(ValueError, match='at least eight') as error: get(web(), path, checksum)
    assert repr(checksum) in str(error.value)


def test_it_shows_progress(web, path, capsys):
    download(web().url, path, sha256(CONTENT))
    assert 'weights.pth: 100%' in capsys.readouterr().err


# Cuts

@pytest.mark.parametrize('cut', [0, 1, 1000, 65_536, 299_999])
def test_a_cut_connection_is_continued(web, path, waits, cut):
    server = web()
    server.plans.insert(0, {'cut': cut})
    assert get(server, path).read_bytes() == CONTENT
    assert server.starts == [0, cut] and waits == [1]


def test_many_cuts(web, path, waits):
    server = web(cut=70_000)
    assert get(server, path).read_bytes() == CONTENT
    assert server.starts == [0, 70_000, 140_000, 210_000, 280_000] and waits == [1, 2, 4, 8]


def test_too_many_cuts_leave_a_part_that_is_continued(web, path, waits):
    server = web(cut=50_000)
    said = fails(server, path, 'ended after 250,000 of 300,000 bytes', kept=True)
    assert said.count('The same call tries again') == 1
    server.plans = [{}]
    assert get(server, path).read_bytes() == CONTENT and server.starts[-1] == 250_000


def test_without_a_checksum_halves_are_not_put_together(web, path, waits):
    server = web()
    server.plans.insert(0, {'cut': 1000})
    assert get(server, path, '').read_bytes() == CONTENT and server.starts == [0, 0]


def test_what_cannot_be_continued_is_not_kept(web, path, waits):
    fails(web(cut=1000), path, 'ended after', checksum='')
    fails(web(cut=0), path, 'ended after 0 of 300,000 bytes')


def test_a_chunked_answer_that_is_cut(web, path, waits):
    server = web(chunked=True)
    server.plans.insert(0, {'chunked': True, 'cut': 60_000})
    assert get(server, path).read_bytes() == CONTENT and server.starts == [0, 60_000]


def test_a_cut_that_no_length_tells(web, path):
    fails(web(silent_length=True, cut=1000), path, 'was deleted', sha256(CONTENT))
    fails(web(silent_length=True), path, 'does not say how long', checksum='')


# Silence

def test_a_silent_server_is_given_up(web, path, waits):
    server, begun = web(cut=1000, stall=20), time.monotonic()
    fails(server, path, 'nothing came for 0.2 seconds', kept=True, timeout=0.2, retries=1)
    assert server.starts == [0, 1000] and time.monotonic() - begun < 5


def test_silence_once(web, path, waits):
    server = web()
    server.plans.insert(0, {'cut': 100_000, 'stall': 20})
    assert get(server, path, timeout=0.2).read_bytes() == CONTENT and server.starts == [0, 100_000]


def test_a_server_that_takes_the_call_and_says_nothing(path, waits):
    import socket
    with socket.create_server(('127.0.0.1', 0)) as silent:
        server = SimpleNamespace(url=f'http://127.0.0.1:{silent.getsockname()[1]}/weights.pth')
        fails(server, path, 'nothing came for 0.1 seconds', timeout=0.1, retries=1)
    assert waits == [1]


# Lies about length

def test_less_is_announced_than_sent(web, path):
    "The rest is not taken; the checksum tells that it is missing."
    fails(web(announce=299_000), path, 'was deleted', sha256(CONTENT))


def test_more_is_announced_than_sent(web, path, waits):
    server = web(announce=301_000, ranges=False)
    fails(server, path, 'ended after 300,000 of 301,000 bytes', kept=True, retries=1)


def test_far_too_much_is_announced(web, path):
    fails(web(announce=10**15), path, '1,000,000,000,000,000 bytes are more than max_bytes=10,000,000,000')
    fails(web(announce=10**15), path, 'no room: 1,000,000,000,000,000 more bytes', max_bytes=1e18)


@pytest.mark.parametrize('plan', [{'chunked': True}, {'silent_length': True}])
def test_an_endless_answer(web, path, plan):
    fails(web(**plan), path, 'more than max_bytes=100,000', max_bytes=1e5)


@pytest.mark.parametrize('announce', ['-5', 'many'])
def test_nonsense_is_announced(web, path, announce):
    assert get(web(announce=announce), path).read_bytes() == CONTENT


# Ranges

def begin(path, content=CONTENT, size=100_000):
    path.parent.mkdir(exist_ok=True)
    Path(f'{path}.part').write_bytes(content[:size])


@pytest.mark.parametrize('plan, starts', [
    ({}, [100_000]),
    ({'ranges': False}, [100_000]),                                     # 200 and everything
    ({'place': 'bytes 50000-299999/300000'}, [100_000, 0]),             # another place
    ({'place': 'bytes 0-299999/*'}, [100_000, 0]),
    ({'place': 'nonsense'}, [100_000, 0]),
    ({'status': 416}, [100_000, 0]),
])
def test_servers_and_ranges(web, path, plan, starts):
    begin(path)
    server = web()
    server.plans.insert(0, plan)
    assert get(server, path).read_bytes() == CONTENT and server.starts == starts


def test_a_server_that_insists_on_a_wrong_place(web, path):
    fails(web(place='bytes 7-299999/300000'), path, 'answered 206')


def test_all_of_the_part_was_there_already(web, path):
    begin(path, size=len(CONTENT))
    server = web()
    assert get(server, path).read_bytes() == CONTENT and server.asked == []


@pytest.mark.parametrize('old', [OTHER, OTHER + OTHER])
def test_the_file_has_changed_since_the_last_time(web, path, old):
    begin(path, old, len(old) - 5)
    server = web()
    assert get(server, path).read_bytes() == CONTENT and server.starts[-1] == 0


def test_the_file_changes_between_two_tries(web, path, waits):
    server = web()
    server.plans.insert(0, {'content': OTHER, 'cut': 100_000})
    assert get(server, path).read_bytes() == CONTENT and server.starts == [0, 100_000, 0]


# PredictedLabels that are none

@pytest.mark.parametrize('status', [408, 429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(web, path, waits, status):
    server = web()
    server.plans[:0] = [{'status': status}] * 2
    assert get(server, path).read_bytes() == CONTENT and waits == [1, 2]


@pytest.mark.parametrize('status', [401, 403, 404, 410, 501])
def test_a_file_that_is_not_there_is_not(web, path, waits, status):
    server = web(status=status)
    fails(server, path, f'HTTP Error {status}')
    assert len(server.asked) == 1 and waits == []


def test_an_answer_without_a_file(web, path):
    fails(web(status=204), path, 'answered 204')


def test_a_busy_server_for_long(web, path, waits):
    server = web(status=503)
    fails(server, path, 'HTTP Error 503')
    assert len(server.asked) == 5 and waits == [1, 2, 4, 8]


def test_something_else_arrives(web, path):
    server = web(content=b'<html>Welcome to the hotel! Please log in.</html>')
    fails(server, path, 'was deleted', 'login', sha256(CONTENT))
    assert len(server.asked) == 1


def test_no_server(web, path, waits):
    server = web()
    server.close()
    fails(server, path, 'refused')
    assert waits == [], 'being offline is said at once'


def test_no_such_name(path, waits):
    fails(SimpleNamespace(url='http://no-such-computer.invalid/weights.pth'), path, 'urlopen error')
    assert waits == []


# Where a server points to

def test_a_redirect_is_followed(web, path):
    server, other = web(), web(cut=50_000)
    server.plans = [{'status': 302, 'to': other.url}]
    other.plans.append({})
    begin(path, size=1000)
    assert get(server, path, pause=0).read_bytes() == CONTENT and other.starts == [1000, 51_000]


def test_a_redirect_to_a_file_or_another_protocol(web, path, tmp_path):
    secret = tmp_path / 'secret'
    secret.write_bytes(CONTENT)
    for to in (secret.as_uri(), 'ftp://127.0.0.1/weights.pth', 'data:,weights', 'gopher://127.0.0.1/'):
        server = web(status=302, to=to)
        fails(server, path, to.split(':')[0] + ':')
        assert len(server.asked) == 1


def test_a_circle(web, path):
    server = web()
    server.plans = [{'status': 302, 'to': server.url}]
    fails(server, path, 'infinite loop')


def test_no_way_from_https_to_http():
    def follow(old, new):
        return D.OnlyWeb().redirect_request(Request(old), None, 302, 'Found', {}, new)
    assert follow('http://a/x', 'https://a/x').full_url == 'https://a/x'
    assert follow('http://a/x', 'http://b/x') and follow('https://a/x', 'https://b/x')
    for new in ('http://a/x', 'ftp://a/x'):
        with pytest.raises(OSError, match='not safe'): follow('https://a/x', new)


@pytest.mark.parametrize('url', ['file:///etc/passwd', 'ftp://127.0.0.1/x', '/etc/passwd', 'weights.pth', ''])
def test_only_addresses_of_the_web(path, url):
    with pytest.raises(ValueError, match='https://') as error: download(url, path)
    assert url in str(error.value) and not path.parent.exists()


# Proxies

def test_a_proxy_is_used(web, path, monkeypatch):
    proxy = web()
    monkeypatch.setenv('http_proxy', proxy.root)
    download('http://weights.invalid/models/weights.pth', path, sha256(CONTENT), progress=False)
    assert proxy.asked == [('http://weights.invalid/models/weights.pth', 0)] and path.read_bytes() == CONTENT


def test_no_proxy_is_respected(web, path, monkeypatch):
    server, proxy = web(), web(status=403)
    monkeypatch.setenv('http_proxy', proxy.root)
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    get(server, path)
    assert proxy.asked == [] and len(server.asked) == 1


# The disk

Space = namedtuple('Space', 'total used free')


def test_too_little_room_is_said_before(web, path, monkeypatch):
    monkeypatch.setattr(D.shutil, 'disk_usage', lambda folder: Space(10**6, 10**6 - 1234, 1234))
    begin(path, size=1000)
    fails(web(), path, '299,000 more bytes are needed', '1,234 are free', kept=True)


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EDQUOT])
def test_the_disk_gets_full(web, path, monkeypatch, waits, number):
    class Full(io.FileIO):
        def write(self, data):
            if self.tell() > 100_000: raise OSError(number, os.strerror(number))
            return super().write(data)
    monkeypatch.setattr(D, 'open', lambda file, mode: Full(file, mode.replace('b', '')), raising=False)
    said = fails(web(), path, 'no room', 'are needed', str(path.parent), kept=True)
    assert waits == [] and int(re.search(r'room: ([\d,]+)', said)[1].replace(',', '')) <= 200_000
    monkeypatch.undo()
    assert get(web(), path).read_bytes() == CONTENT


def test_a_folder_that_cannot_be_written_to(web, tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('not a folder')
    with pytest.raises(OSError, match='cannot be written to'): get(web(), tmp_path / 'file' / 'weights.pth')
    def denied(*args, **options): raise PermissionError(errno.EACCES, 'Permission denied', args[0])
    monkeypatch.setattr(os, 'open', denied)
    with pytest.raises(OSError, match='cannot be written to .*Permission denied.*Choose another'):
        get(web(), tmp_path / 'weights.pth')


# What lies there already

@pytest.mark.parametrize('content', [b'', CONTENT[:-1], CONTENT + b'\0', OTHER])
def test_another_file_is_neither_used_nor_deleted(web, path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    server = web()
    with pytest.raises(ValueError, match='Delete it') as error: get(server, path)
    assert str(path) in str(error.value) and path.read_bytes() == content and server.asked == []


# Interrupts and other processes

SCRIPT = '''
import sys
try:
    download(sys.argv[1], sys.argv[2], sys.argv[3], progress=False, pause=0.05)
except KeyboardInterrupt:
    sys.exit('interrupted')
'''


def start(server, path, checksum=sha256(CONTENT)):
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), *sys.path]),
                   'PYTHONUNBUFFERED': '1'}
    return subprocess.Popen([sys.executable, '-c', SCRIPT, server.url, str(path), checksum], env=environment,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_part(path, size):
    part, deadline = Path(f'{path}.part'), time.monotonic() + 60
    while not part.exists() or part.stat().st_size < size:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform == 'win32', reason='signals of Unix')
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_ended_in_the_middle(web, path, number):
    server = web()
    server.plans.insert(0, {'cut': 120_000, 'stall': 60})
    process = start(server, path)
    wait_for_part(path, 120_000)
    process.send_signal(number)
    assert process.wait(30) != 0 and not path.exists()
    if number == signal.SIGINT: assert process.stderr.read() == 'interrupted\n'
    assert Path(f'{path}.part').read_bytes() == CONTENT[:120_000]
    assert get(server, path).read_bytes() == CONTENT and server.starts == [0, 120_000]
    assert [p.name for p in path.parent.iterdir()] == ['weights.pth']


def test_two_processes_fetch_it_once(web, path):
    server, hold = web(), threading.Event()
    server.plans.insert(0, {'hold': hold})
    processes = [start(server, path)]
    while not server.asked: time.sleep(0.02)
    processes += [start(server, path) for _ in range(2)]
    for waiting in processes[1:]: assert 'waiting for it' in waiting.stdout.readline()
    hold.set()
    assert [p.wait(60) for p in processes] == [0, 0, 0], [p.stderr.read() for p in processes]
    assert len(server.asked) == 1 and path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ['weights.pth']


@pytest.mark.skipif(sys.platform == 'win32', reason='signals of Unix')
def test_who_waits_goes_on_where_the_other_was_killed(web, path):
    server = web()
    server.plans.insert(0, {'cut': 120_000, 'stall': 60})
    first = start(server, path)
    wait_for_part(path, 120_000)
    second = start(server, path)
    time.sleep(0.5)
    first.kill()
    assert second.wait(60) == 0, second.stderr.read()
    assert path.read_bytes() == CONTENT and server.starts == [0, 120_000]


# Anything

def at_random(chance):
    "What a server may do at one request."
    plan = {}
    if chance.random() < 0.6: plan['cut'] = chance.randrange(len(CONTENT) + 1)
    if chance.random() < 0.2: plan['content'] = chance.choice([OTHER, OTHER * 2, b'', b'<html>'])
    if chance.random() < 0.2: plan['announce'] = chance.choice([0, 1, len(CONTENT) - 1, len(CONTENT) + 1, 10**7, -1])
    if chance.random() < 0.2: plan['ranges'] = False
    if chance.random() < 0.1: plan['place'] = chance.choice(['bytes 0-9/10', 'bytes 5-9/300000', '?', 'bytes 1-2/1'])
    if chance.random() < 0.1: plan['status'] = chance.choice([204, 404, 416, 500, 503])
    if chance.random() < 0.2: plan[chance.choice(['chunked', 'silent_length'])] = True
    if chance.random() < 0.1: plan['stall'] = 5
    return plan


def test_whatever_a_server_does_a_file_is_whole_or_not_there(web, path, waits):
    server, results = web(), []
    for seed in range(300):
        chance = random.Random(seed)
        server.plans = [at_random(chance) for _ in range(chance.randrange(1, 12))]
        for _ in range(3): # calls, one after the other
            try:
                get(server, path, timeout=0.05)
            except OSError as error:
                assert str(path) in str(error) and not path.exists()
            results.append(path.exists())
        server.plans = [{}]
        assert get(server, path).read_bytes() == CONTENT, seed
        assert [p.name for p in path.parent.iterdir()] == ['weights.pth'], seed
        path.unlink()
    assert 100 < sum(results) < 800, 'both happen often'


# Archives

def archive(path, members, kind='w:gz'):
    "members: name to content, or to a `TarInfo` for something that is not an ordinary file."
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, kind) as file:
        for name, content in members.items():
            entry = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            entry.name = name
            if isinstance(content, bytes): entry.size = len(content)
            file.addfile(entry, io.BytesIO(content) if isinstance(content, bytes) else None)
    return path


def special(kind, target=''):
    entry = tarfile.TarInfo()
    entry.type, entry.linkname = kind, str(target)
    return entry


def inside(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*') if not p.is_dir())


def test_unpacking(tmp_path, capsys):
    file = archive(tmp_path / 'a.tar.gz', {'images': special(tarfile.DIRTYPE), 'images/a.jpg': b'A', 'b.txt': b'B'})
    (tmp_path / 'to' / 'images').mkdir(parents=True)
    (tmp_path / 'to' / 'images' / 'a.jpg').write_bytes(b'half')
    (tmp_path / 'to' / 'images' / 'mine.jpg').write_bytes(b'mine')
    unpack(file, tmp_path / 'to')
    assert inside(tmp_path / 'to') == ['b.txt', 'images/a.jpg', 'images/mine.jpg']
    assert (tmp_path / 'to' / 'images' / 'a.jpg').read_bytes() == b'A'
    assert (tmp_path / 'to' / 'images' / 'mine.jpg').read_bytes() == b'mine', 'other files stay'
    assert '3 files' in capsys.readouterr().err


@pytest.mark.parametrize('members', [
    {'../evil': b'x'}, {'a/../../../evil': b'x'},
    {'link': special(tarfile.SYMTYPE, '/etc/passwd')}, {'up': special(tarfile.SYMTYPE, '..'), 'up/evil': b'x'},
    {'hard': special(tarfile.LNKTYPE, '../../secret')}, {'pipe': special(tarfile.FIFOTYPE)},
    {'device': special(tarfile.CHRTYPE)},
], ids=lambda members: next(iter(members)))
def test_a_hostile_archive(tmp_path, members):
    file = archive(tmp_path / 'in' / 'a.tar.gz', {'good.txt': b'good', **members})
    with pytest.raises(ValueError, match='cannot be unpacked') as error: unpack(file, tmp_path / 'to', progress=False)
    assert str(file) in str(error.value) and 'Delete it' in str(error.value)
    assert inside(tmp_path) == ['in/a.tar.gz'], 'nothing of it, anywhere'


def test_an_absolute_name_stays_inside(tmp_path):
    unpack(archive(tmp_path / 'a.tar.gz', {str(tmp_path / 'evil'): b'x'}), tmp_path / 'to', progress=False)
    assert not (tmp_path / 'evil').exists() and len(inside(tmp_path / 'to')) == 1


def test_a_damaged_archive(tmp_path):
    file = archive(tmp_path / 'in' / 'a.tar.gz', {f'{i}.txt': os.urandom(5000) for i in range(5)})
    whole = file.read_bytes()
    for content in (b'', b'nonsense' * 100, whole[:-1000], whole[:10_000], whole[:9]):
        file.write_bytes(content)
        with pytest.raises(ValueError, match='cannot be unpacked'): unpack(file, tmp_path / 'to', progress=False)
        assert inside(tmp_path) == ['in/a.tar.gz']


def test_no_room_while_unpacking(tmp_path, monkeypatch):
    def full(*args): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(D, 'take_out', full)
    with pytest.raises(OSError, match='could not be unpacked into .*No space left'):
        unpack(archive(tmp_path / 'a.tar.gz', {'a': b'x'}), tmp_path / 'to')


# torchvision's weights

@pytest.fixture
def cache(tmp_path):
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path / 'hub')
    (tmp_path / 'hub' / 'checkpoints').mkdir(parents=True)
    yield tmp_path / 'hub' / 'checkpoints'
    torch.hub.set_dir(before)


WEIGHTS = models.SqueezeNet1_1_Weights.DEFAULT


@pytest.fixture
def published(cache, tmp_path, monkeypatch, web):
    "squeezenet1_1 with random weights, as torchvision's file on a server; the cache is empty."
    network = models.squeezenet1_1()
    file = publish(network, WEIGHTS, tmp_path, monkeypatch)
    server = web(content=file.read_bytes())
    monkeypatch.setattr(WEIGHTS.value, 'url', f'{server.root}/models/{file.name}')
    return SimpleNamespace(network=network, server=server, cached=cache / file.name, content=file.read_bytes())


def test_weights_are_fetched_once(published, cache, capfd):
    for _ in range(2):
        assert same_bits(state(load_network('squeezenet1_1')), state(published.network))
    assert published.server.asked == [(f'/models/{published.cached.name}', 0)]
    assert [p.name for p in cache.iterdir()] == [published.cached.name]
    assert capfd.readouterr().err.count('100%') == 1


def test_weights_after_cuts(published, waits):
    published.server.plans[:0] = [{'content': published.content, 'cut': 2_000_000}] * 2
    assert same_bits(state(load_network('squeezenet1_1')), state(published.network))
    assert published.server.starts == [0, 2_000_000, 4_000_000]


@pytest.mark.parametrize('plan, match', [({'status': 404}, 'HTTP Error 404'), ({'status': 503}, 'HTTP Error 503'),
                                         ({'content': OTHER}, 'was deleted'), ({'cut': 1000}, 'ended after')])
def test_weights_that_do_not_come(published, waits, plan, match):
    published.server.plans = [{'content': published.content, **plan}]
    with pytest.raises(FileNotFoundError, match=match) as error: create_body('squeezenet1_1')
    for part in (str(WEIGHTS), str(published.cached), 'weights=None', 'tiny_resnet'): assert part in str(error.value)
    assert not published.cached.exists()


def test_weights_of_your_own_in_the_cache(published):
    torch.save(models.squeezenet1_1().state_dict(), published.cached)
    with pytest.raises(ValueError, match='checksum') as error: create_body('squeezenet1_1')
    for part in (str(WEIGHTS), str(published.cached), 'Delete it', 'pass as `arch`'): assert part in str(error.value)


class Bomb:
    def __init__(self, target): self.target = str(target)
    def __reduce__(self): return Path.touch, (Path(self.target),)


def bomb(folder):
    return {'classifier.1.weight': Bomb(folder / 'code was run')}


def zip_of_one_file(content): # torch.hub takes such a file out and reads it
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as z: z.writestr('weights.pth', content)
    return file.getvalue()


def saved(value, **options):
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def old_tar(folder): # the format before 2017
    path = archive(folder / 'old.tar', {'sys_info': pickle.dumps({}), 'storages': pickle.dumps(Bomb(folder / 'code was run')),
                                        'tensors': pickle.dumps(0), 'pickle': pickle.dumps(bomb(folder))}, 'w')
    return path.read_bytes()


HOSTILE = {
    'zip': lambda folder: saved(bomb(folder)),
    'older': lambda folder: saved(bomb(folder), _use_new_zipfile_serialization=False),
    'plain pickle': lambda folder: pickle.dumps(bomb(folder)),
    'zip in a zip': lambda folder: zip_of_one_file(saved(bomb(folder))),
    'older in a zip': lambda folder: zip_of_one_file(saved(bomb(folder), _use_new_zipfile_serialization=False)),
    'tar': old_tar,
}


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('named', [True, False], ids=['right digits', 'no digits'])
@pytest.mark.parametrize('kind', HOSTILE)
def test_a_hostile_file_in_the_cache(cache, tmp_path, monkeypatch, kind, named):
    content = HOSTILE[kind](tmp_path)
    name = f'squeezenet1_1-{sha256(content)[7:]}.pth' if named else 'squeezenet1_1.pth'
    monkeypatch.setattr(WEIGHTS.value, 'url', f'http://127.0.0.1:1/{name}')
    (cache / name).write_bytes(content)
    with pytest.raises(ValueError) as error: create_body('squeezenet1_1')
    said = str(error.value)
    assert str(cache / name) in said and 'Delete it' in said and 'more than weights' in said
    assert not (tmp_path / 'code was run').exists()


def test_the_bombs_are_real(tmp_path):
    for make in list(HOSTILE.values())[:2]:
        (tmp_path / 'bomb').write_bytes(make(tmp_path))
        torch.load(tmp_path / 'bomb', weights_only=False)
        (tmp_path / 'code was run').unlink()


def test_older_files_and_those_without_digits_are_read(cache, monkeypatch):
    network = models.squeezenet1_1()
    monkeypatch.setattr(WEIGHTS.value, 'url', 'http://127.0.0.1:1/squeezenet1_1.pth')
    (cache / 'squeezenet1_1.pth').write_bytes(saved(network.state_dict(), _use_new_zipfile_serialization=False))
    assert same_bits(state(load_network('squeezenet1_1')), state(network))


def test_every_published_file_has_digits():
    for name in models.list_models(module=models):
        for weights in models.get_model_weights(name):
            assert re.search(r'-[0-9a-f]{8,}\.pth$', weights.url), weights


def test_only_weights_leaves_the_environment_as_it_was(monkeypatch):
    force, never = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'
    for values in ({}, {force: '0'}, {never: '1'}):
        for name in (force, never):
            monkeypatch.setenv(name, values[name]) if name in values else monkeypatch.delenv(name, raising=False)
        before = dict(os.environ)
        with pytest.raises(KeyError), only_weights():
            assert os.environ[force] == '1' and never not in os.environ
            raise KeyError
        assert dict(os.environ) == before


def test_the_builder_in_tiny_resnet_asks_nobody(monkeypatch):
    monkeypatch.setattr(D, 'ask', None)
    assert load_network('tiny_resnet') and load_network(small_network())


# Oxford-IIIT Pet

@pytest.fixture
def pets(web, tmp_path, monkeypatch):
    "A few pictures in two archives as the real ones are laid out, on a server."
    images, lists = {}, {'trainval': '', 'test': ''}
    for k, breed in enumerate(['Abyssinian', 'yorkshire_terrier']):
        for i in range(6):
            file = io.BytesIO()
            Image.new('RGB', (30, 20), (40 * i, 90 * k, 90)).save(file, 'jpeg')
            images[f'images/{breed}_{i}.jpg'] = file.getvalue()
            lists['test' if i > 3 else 'trainval'] += f'{breed}_{i} {k + 1} {k + 1} 1\n'
    images['images/Abyssinian_5.mat'] = b'as in the original'
    notes = {f'annotations/{name}.txt': text.encode() for name, text in lists.items()}
    notes |= {'annotations/README': 'Brüssel'.encode(), 'annotations/trimaps/._Abyssinian_0.png': b'x'}
    made = {name: archive(tmp_path / 'made' / f'{name}.tar.gz', members).read_bytes()
            for name, members in (('images', images), ('annotations', notes))}
    server = web(content={f'/data/{name}.tar.gz': content for name, content in made.items()})
    monkeypatch.setattr(P, 'PETS_URL', server.root + '/')
    monkeypatch.setattr(P, 'PETS_MD5', {name: hashlib.md5(content).hexdigest() for name, content in made.items()})
    return SimpleNamespace(server=server, root=tmp_path / 'pets', folder=tmp_path / 'pets' / 'oxford-iiit-pet')


def files_asked(pets):
    return [Path(path).name for path, _ in pets.server.asked]


def test_pets_end_to_end(pets):
    dls = P.oxford_pets(pets.root, download=True)
    assert len(dls.files) == 12 and dls.classes == ['Abyssinian', 'yorkshire_terrier']
    assert P.oxford_pets(pets.root, download=True).files == P.oxford_pets(pets.root).files == dls.files
    assert files_asked(pets) == ['images.tar.gz', 'annotations.tar.gz'], 'once'
    assert sorted(p.name for p in pets.folder.iterdir()) == ['annotations', 'annotations.tar.gz', 'images', 'images.tar.gz']


def test_pets_are_where_torchvision_looks(pets):
    from torchvision.datasets import OxfordIIITPet
    P.oxford_pets(pets.root, download=True)
    assert len(OxfordIIITPet(pets.root, 'trainval')) == 8 and len(OxfordIIITPet(pets.root, 'test')) == 4


def test_the_checksums_are_torchvisions():
    from torchvision.datasets import OxfordIIITPet
    ours = [(f'{P.PETS_URL}data/{name}.tar.gz', md5) for name, md5 in P.PETS_MD5.items()]
    assert ours == list(OxfordIIITPet._RESOURCES)


def test_pets_after_a_cut(pets, waits):
    pets.server.plans.insert(0, {**pets.server.plans[0], 'cut': 700})
    assert len(P.oxford_pets(pets.root, download=True).files) == 12
    assert pets.server.starts == [0, 700, 0]


@pytest.mark.parametrize('lost', ['images/Abyssinian_0.jpg', 'annotations/test.txt', 'images', 'annotations'])
def test_half_a_folder_is_completed(pets, lost):
    P.oxford_pets(pets.root, download=True)
    (pets.folder / lost).rename(pets.root / 'away')
    with pytest.raises(FileNotFoundError, match='download=True'): P.oxford_pets(pets.root)
    assert len(P.oxford_pets(pets.root, download=True).files) == 12
    assert len(files_asked(pets)) == 2, 'the archives are still there'


def test_interrupted_while_unpacking(pets, monkeypatch):
    "At each file, as if Ctrl-C were pressed there: first while it is taken out, then while it is moved."
    extract, replace, tried = tarfile.TarFile.extract, Path.replace, 0
    for owner, name, original, count in ((tarfile.TarFile, 'extract', extract, 13), (Path, 'replace', replace, 13)):
        for last in range(0, count, 3):
            done = []
            def until(self, *args, **options):
                if 'tar.gz.part' not in str(self): done.append(1)
                if len(done) > last: raise KeyboardInterrupt
                return original(self, *args, **options)
            monkeypatch.setattr(owner, name, until)
            with pytest.raises(KeyboardInterrupt): P.oxford_pets(pets.root, download=True)
            monkeypatch.setattr(owner, name, original)
            with pytest.raises(FileNotFoundError, match='download=True'): P.oxford_pets(pets.root)
            assert not list(pets.folder.glob('*.unpacking'))
            assert len(P.oxford_pets(pets.root, download=True).files) == 12
            for photo in (pets.folder / 'images').iterdir(): photo.unlink()
            tried += 1
    assert tried == 10 and len(files_asked(pets)) == 2


def test_four_processes_want_the_pets(pets):
    "Threads stand for them: each has a lock of its own."
    pets.server.plans[0]['slow'] = 0.2
    found, threads = [], []
    for _ in range(4):
        threads.append(threading.Thread(target=lambda: found.append(P.oxford_pets(pets.root, download=True))))
        threads[-1].start()
    for thread in threads: thread.join(60)
    assert [len(dls.files) for dls in found] == [12] * 4 and len(files_asked(pets)) == 2


@pytest.mark.parametrize('members, match', [
    ({'images/a.jpg': b'x', '../evil': b'x'}, 'outside'), ({'images': special(tarfile.SYMTYPE, '/')}, 'link')])
def test_a_hostile_archive_of_pets(pets, tmp_path, monkeypatch, members, match):
    content = archive(tmp_path / 'made' / 'evil.tar.gz', members).read_bytes()
    pets.server.plans[0]['content']['/data/images.tar.gz'] = content
    monkeypatch.setitem(P.PETS_MD5, 'images', hashlib.md5(content).hexdigest())
    with pytest.raises(ValueError, match=match): P.oxford_pets(pets.root, download=True)
    assert [p.name for p in pets.folder.iterdir()] == ['images.tar.gz'] and not list(tmp_path.glob('**/evil'))


def test_archives_that_are_others(pets):
    pets.server.plans[0]['content']['/data/images.tar.gz'] = OTHER
    with pytest.raises(FileNotFoundError, match='was deleted'): P.oxford_pets(pets.root, download=True)
    assert list(pets.folder.iterdir()) == []
    (pets.folder / 'images.tar.gz').write_bytes(OTHER) # as torchvision leaves it after a cut
    with pytest.raises(ValueError, match='Delete it'): P.oxford_pets(pets.root, download=True)
