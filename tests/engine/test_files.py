"A file is whole, or not there."
import os
from pathlib import Path

import pytest
import safetensors

from finetune_teach.engine.files import check_writable, whole_file


def test_a_file_is_new_or_as_before(tmp_path):
    path = tmp_path / 'deep' / 'a.txt'
    with whole_file(path) as aside:
        aside.write_text('one')
        assert not path.exists()
    for error in (SystemExit, KeyboardInterrupt, ValueError):
        with pytest.raises(error), whole_file(str(path)) as aside:
            aside.write_text('tw')
            raise error
        assert path.read_text() == 'one' and list(path.parent.iterdir()) == [path]
    with whole_file(path) as aside:
        aside.write_text('two')
    assert path.read_text() == 'two' and list(path.parent.iterdir()) == [path]


def test_what_a_killed_program_left_is_no_hindrance(tmp_path):
    (tmp_path / '.a.txt.part').mkdir()
    (tmp_path / '.a.txt.part' / 'a.txt').write_text('half')
    with whole_file(tmp_path / 'a.txt') as aside:
        assert not aside.exists()
        aside.write_text('whole')
    assert [p.name for p in tmp_path.iterdir()] == ['a.txt']


@pytest.mark.parametrize('error', [OSError('no space left on device'), safetensors.SafetensorError('no space left')])
@pytest.mark.parametrize('older, told', [(True, 'The older file is still there'), (False, 'Nothing was written')])
def test_a_disk_that_is_full(tmp_path, error, older, told):
    if older:
        (tmp_path / 'a').touch()
    with pytest.raises(OSError, match=f'a cannot be written: no space left.*{told}. Make room'), whole_file(tmp_path / 'a'):
        raise error
    assert (tmp_path / 'a').exists() is older


def test_whether_a_file_can_be_written_is_told_without_writing_it(tmp_path):
    (tmp_path / 'file').write_text('mine')
    check_writable(tmp_path / 'file')
    check_writable(tmp_path / 'new')
    for path, told in [(tmp_path / 'file' / 'a', 'cannot be written'), (tmp_path, 'it is a folder')]:
        with pytest.raises(OSError, match=told):
            check_writable(path)
    assert (tmp_path / 'file').read_text() == 'mine' and [p.name for p in tmp_path.iterdir()] == ['file']


@pytest.mark.skipif(os.name != 'posix', reason='permissions as on POSIX')
def test_others_may_read_it_as_any_file(tmp_path):
    Path(tmp_path / 'usual').touch()
    with whole_file(tmp_path / 'ours') as aside:
        aside.touch(mode=0o600)
    assert (tmp_path / 'ours').stat().st_mode == (tmp_path / 'usual').stat().st_mode
