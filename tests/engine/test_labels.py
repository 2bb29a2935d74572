"What may be a label, and in which order the classes stand."
import enum
import math
import re
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_teach.engine.labels import (
    are_numbers, label_all, label_text, name_pattern, number_classes, ordered_classes, tell_classes)
from finetune_teach.pictures import drawn_pets, image_files, image_folders
from picture_files import make_folder, says

pytestmark = pytest.mark.filterwarnings('ignore:.*very unequal size:UserWarning')


@pytest.fixture
def pets(tmp_path): return make_folder(tmp_path / 'pets', dict(cat=10, dog=25, eel=2))


class Kind(str, enum.Enum):
    CAT = 'cat'


class Number(enum.IntEnum):
    ONE = 1


@pytest.mark.parametrize('value, text', [
    ('cat', 'cat'), (np.str_('cat'), 'cat'), (Kind.CAT, 'cat'), (Number.ONE, '1'), (3, '3'), (-2, '-2'), (0, '0'),
    (True, 'True'), (np.bool_(False), 'False'), (torch.tensor(True), 'True'), (np.int64(3), '3'), (np.uint8(3), '3'),
    (torch.tensor(3), '3'), (np.array(3), '3'), (3.0, '3'), (np.float32(3), '3'), (torch.tensor(3.), '3'),
    (None, None), ('', None), (' \n', None), (math.nan, None), (np.float32('nan'), None), (torch.tensor(math.nan), None)],
    ids=repr)
def test_what_a_label_may_be(value, text): assert label_text(value) == text


class NAType: # stands in for that of pandas, whose truth is an error
    def __bool__(self): raise TypeError('boolean value of NA is ambiguous')
    __eq__ = __ne__ = lambda self, other: self


def test_pandas_gap_is_a_missing_label(): assert label_text(NAType()) is None


SEVERAL = [['cat', 'dog'], ['cat'], ('cat',), {'cat'}, frozenset('ab'), {'cat': 1}, [], np.array([0, 1]), np.array(['a']),
           torch.tensor([1.]), range(3)]
OTHERS = [(2.5, 'regression'), (math.inf, 'regression'), (np.float32(.1), 'regression'), (torch.tensor(.5), 'regression'),
          (Path('a/b'), 'add .name'), (b'cat', '.decode()'), (bytearray(b'a'), '.decode()'), (1j, 'a complex'),
          (Decimal('1.5'), 'a Decimal'), (object(), 'a object'), (enum.Enum('E', 'A').A, 'a E')]


@pytest.mark.parametrize('value, why', [(v, 'one class here') for v in SEVERAL] + OTHERS)
def test_what_is_no_label_names_the_file_and_why(pets, value, why):
    text = says(image_files, pets, lambda path: value if path.name == 'dog_3.png' else path.name[:3], match=['dog_3.png', why])
    assert 'object at' not in text and 'So it is' not in text
    assert ('BCEWithLogitsLoss' in text) == (why == 'one class here')
    assert 'for 37 of 37 files' in says(image_files, pets, lambda path: value)


def test_a_list_or_a_table_is_no_label_function(pets):
    for label in (['cat'] * 37, ('cat',), {'cat_1.png': 'cat'}, np.array(['cat'])):
        says(image_files, pets, label, match=['neither', 'image_table'])
    says(image_files, pets, b'(cat)', match=["label=b'(cat)'", 'neither'])


# ---- the order of the classes ----

@pytest.mark.parametrize('labels, classes', [
    ('10 2 0 1', '0 1 2 10'), ('1 -1 -10 0 5', '-10 -1 0 1 5'), ('10 02 01', '01 02 10'), ('2 002 1', '1 002 2'),
    ('1.5 10 0.5 2', '0.5 1.5 2 10'), ('10.0 2.0', '2.0 10.0'), ('10 9 none', '10 9 none'), ('b10 b9', 'b10 b9'),
    ('dog Cat cat', 'Cat cat dog'), ('1e3 20', '1e3 20'), ('10 \u0663', '10 \u0663'), ('0x10 2', '0x10 2')])
def test_order(labels, classes):
    assert ordered_classes(labels.split()) == classes.split()
    assert number_classes(labels.split()) [0] == classes.split()


@given(st.lists(st.integers(), min_size=1), st.randoms())
def test_whole_numbers_stand_in_their_order(numbers, chance):
    labels = [str(n) for n in numbers]
    chance.shuffle(labels)
    assert [int(name) for name in ordered_classes(labels)] == sorted(set(numbers)) and are_numbers(labels)


def test_the_order_is_told_and_the_same_everywhere(tmp_path):
    pets = make_folder(tmp_path, {str(k): 3 for k in range(11)})
    dls = image_folders(pets)
    assert dls.classes == [str(k) for k in range(11)] and '11 classes (in order of number: 0, 1, 2, ... 8 more)' in repr(dls)
    assert all(dls.classes[y] == file.parent.name for y, file in zip(dls.train.labels, dls.train.files))
    unread = image_folders(pets, on_error='skip')
    assert 'not read yet, 11 classes (in order of number: 0, 1, 2' in repr(unread) and unread.classes == dls.classes
    assert unread.train.files == dls.train.files and unread.classes == dls.classes
    by_name = image_files(pets, lambda path: int(path.parent.name))
    assert by_name.classes == dls.classes and torch.equal(by_name.train.labels, dls.train.labels)
    assert '12 classes (Bengal' in repr(drawn_pets(1, 1, size=8)) and tell_classes(['a']) == '1 classes (a)'


# ---- functions and patterns ----

@pytest.mark.parametrize('label', [r'(.+)_\d+', re.compile(r'^([a-z]+)_'), lambda p: p.parent.name])
def test_labels(pets, label):
    dls = image_files(pets, label)
    assert dls.classes == ['cat', 'dog', 'eel']
    assert dls.valid.files == image_folders(pets).valid.files
    assert image_files((str(p) for p in pets.rglob('*.png')), label).files == dls.files


def test_labels_become_text(pets):
    dls = image_files(pets, lambda p: p.name.startswith('cat'))
    assert dls.classes == ['False', 'True']
    assert image_files(pets, lambda p: int(p.stem[-1]) % 3).classes == ['0', '1', '2']


@pytest.mark.parametrize('label', [r'.+_\d+', r'(.+)_(\d+)', re.compile('x')])
def test_one_group_exactly(pets, label):
    says(image_files, pets, label, match=['groups', 'exactly one'])


@pytest.mark.parametrize('label', ['(', 3, None])
def test_neither_function_nor_pattern(pets, label):
    says(image_files, pets, label, match=[repr(label), 'neither'])


def test_unmatched_files_are_named(pets):
    wanted = ['2 of 37', 'eel_0.png', 'eel_1.png', 'other paths']
    text = says(image_files, pets, r'(cat|dog)_', match=wanted)
    assert 'cat_0' not in text
    says(image_files, pets, lambda p: None, match=['37 of 37', '32 more'])
    says(image_files, pets, r'(x*)', match='37 of 37')  # an empty label is none


def test_failing_label_function_names_the_file(pets):
    wanted = ['cat_1.png', 'KeyError', 'label function']
    says(image_files, pets, lambda p: dict(cat_0='a')[p.stem], match=wanted)


NUMBERS = st.one_of(st.floats(), st.integers(), st.booleans(), st.floats(width=32).map(np.float32),
                    st.floats().map(np.float64), st.fractions(), st.sampled_from([10**400, -10**400, 5e-324, 1.7e308]))
PATTERNS = st.one_of(st.text('ab01._-()[]{}+*?^$|\\dw,<>:=!P', max_size=12), st.text(max_size=6),
                     st.binary(max_size=6), NUMBERS, st.none(),
                     st.sampled_from(['(a{99999999999})', '(' * 90 + ')' * 90, '(?P<x>a)(?P=y)', '(?<=a*)(b)', '(a)']))
NAMES = st.lists(st.text(min_size=1, max_size=10).filter(lambda name: name not in ('.', '..') and
                                                         not set(name) & set('/\\\0')), max_size=4)


@settings(max_examples=300)
@given(PATTERNS, NAMES)
@pytest.mark.filterwarnings('ignore:Possible:FutureWarning', 'ignore::DeprecationWarning')
def test_any_pattern_gives_labels_that_stand_in_the_names_or_a_value_error(pattern, names):
    files = [Path(name) for name in names]
    try:
        labels = label_all(files, pattern)
    except ValueError as error:
        assert len(str(error)) > 20
    else:
        assert len(labels) == len(files)
        assert all(label and label in path.name for label, path in zip(labels, files))


@given(st.one_of(st.text(), NUMBERS, st.none(), st.lists(st.integers())), NAMES.filter(bool))
def test_whatever_a_label_function_gives(value, names):
    files = [Path(name) for name in names]
    try:
        labels = label_all(files, lambda path: value)
    except ValueError as error:
        missing = value is None or value != value or isinstance(value, str) and not value.strip()
        assert ('gives no label' if missing else 'the label is') in str(error)
        assert missing or isinstance(value, list) or not isinstance(value, (int, float)) or math.isinf(value) or value % 1
    else:
        assert len(labels) == len(files) and len(set(labels)) == 1
        assert labels[0] == value if isinstance(value, str) else labels[0] in (str(value), str(int(value)))
    def fails(path):
        raise KeyError(path)
    with pytest.raises(ValueError, match='KeyError'):
        label_all(files, fails)


@given(NAMES.filter(bool))
def test_a_pattern_finds_what_it_was_made_for(names):
    for name in names:
        assert name_pattern(f'^({re.escape(name)})$', 'label', 'x')(Path(name)) == name


@given(st.lists(st.text(), min_size=1))
def test_numbers_of_classes(labels):
    classes, y = number_classes(labels)
    assert set(classes) == set(labels) and len(classes) == len(set(labels)) and [classes[k] for k in y] == labels
    assert are_numbers(classes) or classes == sorted(classes)
