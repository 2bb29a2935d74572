"Downloads from a server that cuts off and lies: whole files, or none and an error that says what to do."
import hashlib
import io
import os
import tarfile
import threading
from pathlib import Path

import pytest

from finetune_teach.engine import downloads
from finetune_teach.engine.downloads import download, download_archives

CONTENT = hashlib.shake_256(b'weights').digest(300_000)
DIGITS = hashlib.sha256(CONTENT).hexdigest()[:8]


@pytest.fixture
def url(web):
    web.files['/weights.pth'] = CONTENT
    return f'{web.url}/weights.pth'


def test_a_file_is_fetched_once_and_its_folders_are_made(web, url, tmp_path):
    path = tmp_path / 'new' / 'folder' / 'weights.pth'
    assert download(url, str(path), DIGITS) == download(url, path, DIGITS) == path
    assert path.read_bytes() == CONTENT and web.asked == ['/weights.pth']
    assert list(path.parent.iterdir()) == [path]


def test_home_is_written_with_a_tilde(url, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('USERPROFILE', str(tmp_path))
    assert download(url, '~/weights.pth') == tmp_path / 'weights.pth'


def fails(path, url, sha256=DIGITS, match=()):
    "Nothing is left behind, and the message says what could not be had, why, and what to do."
    with pytest.raises(OSError) as error:
        download(url, path, sha256)
    for part in (f'{url} could not be downloaded to {path}', 'same call tries again', 'put it there', *match):
        assert part in str(error.value)
    assert list(path.parent.iterdir()) == []


def test_what_the_server_does_not_have(web, tmp_path):
    fails(tmp_path / 'a', f'{web.url}/nothing', match=['404'])


def test_another_file(url, tmp_path):
    fails(tmp_path / 'a', url, '00000000', ['expected "00000000"', 'network wants a login'])


def test_a_cut(web, url, tmp_path):
    web.cut = 100_000
    fails(tmp_path / 'a', url, match=['it was cut'])
    web.cut = None
    assert download(url, tmp_path / 'a', DIGITS).read_bytes() == CONTENT


def test_no_network(tmp_path):
    fails(tmp_path / 'a', 'http://127.0.0.1:1/weights.pth', match=['refused'])


def test_ctrl_c_leaves_nothing(url, tmp_path, monkeypatch):
    def interrupted(self, *args):
        raise KeyboardInterrupt
    monkeypatch.setattr('http.client.HTTPResponse.read', interrupted)
    with pytest.raises(KeyboardInterrupt):
        download(url, tmp_path / 'a', DIGITS)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk(url, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr('shutil.move', full)
    fails(tmp_path / 'a', url, match=['No space left'])


def test_a_folder_that_cannot_be_written(url, tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('no folder')
    with pytest.raises(OSError, match='cannot be written .* Choose another folder'):
        download(url, tmp_path / 'file' / 'a')
    def refused(*args, **options):
        raise PermissionError(13, 'Permission denied')
    monkeypatch.setattr(Path, 'mkdir', refused)
    with pytest.raises(OSError, match='b cannot be written .*Permission denied'):
        download(url, tmp_path / 'b')


def test_several_at_once_do_no_harm(web, url, tmp_path):
    threads = [threading.Thread(target=download, args=(url, tmp_path / 'a', DIGITS)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (tmp_path / 'a').read_bytes() == CONTENT and len(list(tmp_path.iterdir())) == 1


# Archives

def archive(members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode='w:gz') as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


@pytest.fixture
def archives(web):
    "Two archives with three files; MD5 checksums by URL."
    web.files['/a.tar.gz'] = archive({'a/1': b'one', 'a/sub/2': b'two'})
    web.files['/b.tar.gz'] = archive({'b/3': b'three'})
    return {web.url + path: hashlib.md5(content).hexdigest() for path, content in web.files.items()}


def members(folder):
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob('*')
            if p.is_file() and p.suffix != '.gz' and p.name != '.lock'}


WHOLE = {'a/1': 'one', 'a/sub/2': 'two', 'b/3': 'three'}


def get(archives, folder):
    download_archives(archives, folder, lambda: members(folder) == WHOLE)
    return members(folder)


def fetched(web):
    "torchvision asks twice: for where the file is, and for the file."
    return [web.asked.count(path) // 2 for path in web.files]


def test_archives_are_fetched_once_and_unpacked(web, archives, tmp_path):
    folder = tmp_path / 'new' / 'data'
    assert get(archives, folder) == get(archives, folder) == WHOLE and fetched(web) == [1, 1]
    (folder / 'a' / '1').unlink()
    (folder / 'b' / '3').write_text('thr')
    assert get(archives, folder) == WHOLE and fetched(web) == [1, 1], 'unpacked again'
    assert sorted(p.name for p in folder.iterdir()) == ['.lock', 'a', 'a.tar.gz', 'b', 'b.tar.gz']
    assert folder.stat().st_mode == folder.parent.stat().st_mode, 'others may read it, too'


def test_half_an_archive_is_fetched_again(web, archives, tmp_path):
    web.cut = 50
    with pytest.raises(OSError, match='a.tar.gz.* could not be downloaded to .*it was cut.*tries again'):
        get(archives, tmp_path)
    web.cut = None
    assert get(archives, tmp_path) == WHOLE


def test_archives_without_a_network(tmp_path):
    with pytest.raises(OSError, match='127.0.0.1:1/a.tar.gz could not be downloaded to .*refused'):
        get({'http://127.0.0.1:1/a.tar.gz': '0' * 32}, tmp_path)


def test_an_archive_that_was_put_there_by_hand(web, archives, tmp_path):
    for path, content in web.files.items():
        (tmp_path / path[1:]).write_bytes(content)
    assert get(archives, tmp_path) == WHOLE and not web.asked


@pytest.mark.parametrize('owner, name, times', [(downloads, 'extract_archive', 2), (os, 'replace', 3)])
def test_an_interruption_while_unpacking_leaves_no_half_file(archives, tmp_path, monkeypatch, owner, name, times):
    original = getattr(owner, name)
    for last in range(times):
        done = []
        def until(*args):
            done.append(1)
            if len(done) > last:
                raise KeyboardInterrupt
            return original(*args)
        folder = tmp_path / str(last)
        monkeypatch.setattr(owner, name, until)
        with pytest.raises(KeyboardInterrupt):
            get(archives, folder)
        monkeypatch.setattr(owner, name, original)
        assert members(folder).items() < WHOLE.items()
        assert get(archives, folder) == WHOLE


def test_one_of_several_fetches_and_the_others_wait(web, archives, tmp_path):
    threads = [threading.Thread(target=get, args=(archives, tmp_path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert members(tmp_path) == WHOLE and fetched(web) == [1, 1]
