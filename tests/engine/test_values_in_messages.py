"Names and values in messages; warnings point at the caller."
import warnings
from pathlib import Path

import pytest

from finetune_teach.engine.messages import check, few, is_whole, printable, short, warn


@pytest.mark.parametrize('name, shown', [
    ('a b', 'a b'), ('a\tb', r'a\tb'), ('\u200b', r'\u200b'), ('\xa0', r'\xa0'), ('\ue000', r'\ue000'),
    ('C:\\new', 'C:\\new'), ('\U0001f468\u200d\U0001f469', '\U0001f468\u200d\U0001f469'), (7, '7'),
    (Path('x'), 'x'), ('\x9b31m', r'\x9b31m'), ('\u2028', r'\u2028')])
def test_printable(name, shown):
    assert printable(name) == shown
    printable(name).encode('utf-8')


def test_few_and_short():
    assert few('abc', 3) == 'a, b, c' and few('abcd', 3) == 'a, b, c, ... 1 more' and few(['a\nb']) == r'a\nb'
    assert short('x') == "'x'" and short('x' * 58) == repr('x' * 58) and short('x' * 59) == "'" + 'x' * 59 + '...'


def test_check_and_is_whole():
    check(True, 'n', 0, 'positive')
    with pytest.raises(ValueError, match="n='a': n must be positive"): check(False, 'n', 'a', 'positive')
    assert [n for n in (1, 0, -1, True, 1.0, '1', None, 3) if is_whole(n) and not isinstance(n, str)] == [1, 3]


def test_warnings_point_at_the_caller():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        warn('mind the gap')
        warn(None)
    assert [str(w.message) for w in said] == ['mind the gap'] and said[0].filename == __file__
