"A file is whole, or not there."
import pytest

from finetune_teach.engine.files import check_writable, whole_file


def test_a_file_is_new_or_as_before(tmp_path):
    path, left = tmp_path / 'deep' / 'a.txt', tmp_path / 'deep' / '.a.txt.part' / 'a.txt'
    left.parent.mkdir(parents=True)
    left.write_text('half, by a program that was killed')
    with whole_file(path) as aside:
        aside.write_text('one')
        assert not path.exists()
    assert path.stat().st_mode & 0o444 == path.parent.stat().st_mode & 0o444, 'others may read it as usual'
    for error in (SystemExit, KeyboardInterrupt, ValueError):
        with pytest.raises(error), whole_file(str(path)) as aside:
            aside.write_text('tw')
            raise error
        assert path.read_text() == 'one' and list(path.parent.iterdir()) == [path]
    with whole_file(path) as aside:
        aside.write_text('two')
    assert path.read_text() == 'two' and list(path.parent.iterdir()) == [path]


def test_whether_a_file_can_be_written_is_told_without_writing_it(tmp_path):
    (tmp_path / 'file').write_text('mine')
    check_writable(tmp_path / 'file')
    check_writable(tmp_path / 'new')
    for path, told in [(tmp_path / 'file' / 'a', 'cannot be written'), (tmp_path, 'it is a folder')]:
        with pytest.raises(OSError, match=told):
            check_writable(path)
    assert (tmp_path / 'file').read_text() == 'mine' and [p.name for p in tmp_path.iterdir()] == ['file']
