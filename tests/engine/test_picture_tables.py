"Labels, parts and groups of pictures that stand in a table."
import os

import numpy as np
import pytest
import torch

from finetune_teach.engine.picture_tables import Table, table_parts
from finetune_teach.pictures import image_folders, image_table
from picture_files import make_folder, says, warned

pytestmark = pytest.mark.filterwarnings('ignore:.*very unequal size:UserWarning')


@pytest.fixture
def pets(tmp_path): return make_folder(tmp_path / 'pets', dict(cat=10, dog=12))


def rows_of(pets):
    return [dict(file=p.relative_to(pets).as_posix(), label=p.parent.name, animal=f'{p.parent.name} {p.stem[-1]}',
                 split='valid' if p.stem.endswith(('0', '1')) else 'train', held=p.stem.endswith(('0', '1')))
            for p in sorted(pets.rglob('*.png'))]


def as_csv(path, rows, delimiter=',', encoding='utf-8', quote='', end='\n'):
    lines = [delimiter.join(rows[0]), *(delimiter.join(f'{quote}{v}{quote}' for v in row.values()) for row in rows)]
    path.write_text(end.join(lines) + end, encoding=encoding, newline='')
    return path


class Frame:
    "Like a DataFrame: columns, and the values of each."
    def __init__(self, rows): self.rows, self.columns = rows, list(rows[0])
    def __getitem__(self, name): return np.array([row[name] for row in self.rows])


@pytest.mark.parametrize('form', [dict(), dict(delimiter=';'), dict(delimiter='\t'), dict(delimiter='|'), dict(encoding='utf-8-sig'),
                                  dict(quote='"'), dict(end='\r\n'), dict(delimiter=', '), dict(end='\n\n')], ids=str)
def test_kinds_of_csv(pets, form):
    dls, said = warned(image_table, as_csv(pets / 'labels.csv', rows_of(pets), **form))
    (pets / 'labels.csv').unlink()
    assert not said and dls.train.files == image_folders(pets).train.files and dls.classes == ['cat', 'dog']


def test_other_tables(pets):
    rows, wanted = rows_of(pets), image_folders(pets).valid.files
    for table in (rows, tuple(rows), Frame(rows)):
        dls = image_table(table, folder=pets)
        assert dls.valid.files == wanted and dls.classes == ['cat', 'dog']
    full = [row | dict(file=pets / row['file']) for row in rows]
    assert image_table(full).valid.files == wanted
    assert image_table([{'a b': row['file'], 1: row['label']} for row in full], 'a b', 1).valid.files == wanted


def test_real_dataframes(pets):
    pandas = pytest.importorskip('pandas')
    frame = pandas.DataFrame(rows_of(pets))
    frame['kind'] = [0 if label == 'cat' else 1 for label in frame['label']]
    assert image_table(frame, folder=pets).valid.files == image_folders(pets).valid.files
    frame['kind'] = frame['kind'].where(frame.index > 1)  # a gap makes floats of whole numbers
    says(image_table, frame, label='kind', folder=pets, match=['no label to 2 of 22', 'row 0 (cat_0.png)'])
    assert image_table(frame[2:], label='kind', folder=pets, groups='animal', split=None).classes == ['0', '1']
    assert len(image_table(frame, folder=pets, split='held').valid.labels) == 6
    frame['kind'] = frame['kind'].astype('Int64')
    says(image_table, frame, label='kind', folder=pets, match='no label to 2 of 22')


def test_paths_start_at_the_folder_of_the_csv_or_at_another(pets, tmp_path, monkeypatch):
    rows = rows_of(pets)
    table = as_csv(tmp_path / 'labels.csv', rows)
    text = says(image_table, table, match=['22 of 22 files are not there', str(tmp_path / 'cat' / 'cat_0.png'), 'Paths start at', 'folder='])
    assert len(image_table(table, folder=pets).files) == 22
    monkeypatch.chdir(pets)
    assert len(image_table(rows).files) == 22 and len(image_table('../labels.csv', folder='.').files) == 22
    (pets / 'dog' / 'dog_3.png').unlink()
    says(image_table, rows, match=['1 of 22 files are not there', os.path.join('dog', 'dog_3.png')])
    assert len(warned(image_table, rows, on_error='skip', size=8)[0].files) == 21
    short = [row | dict(file=row['file'][:-4]) for row in rows]
    says(image_table, short, match=['cat_0', 'There is cat_0.png', 'lack their ending'])


def test_split_column(pets):
    rows = rows_of(pets)
    for words in (['train', 'valid'], ['Train', 'VAL'], [False, True], ['False', 'True'], [0, 1], ['0', '1'], [0., 1.],
                  [np.bool_(False), np.bool_(True)], ['training', 'validation'], ['train', 'dev']):
        table = [row | dict(part=words[row['held']]) for row in rows]
        dls = image_table(table, split='part', folder=pets)
        assert {p.stem[-1] for p in dls.valid.files} == {'0', '1'} and len(dls.files) == 22 and dls.test is None
    three = [row | dict(part=['train', 'valid', 'test'][i % 3]) for i, row in enumerate(rows)]
    dls = image_table(three, split='part', folder=pets)
    assert [len(part.labels) for part in (dls.train, dls.valid, dls.test)] == [8, 7, 7]
    two = [row | dict(part=['train', 'test'][i % 2]) for i, row in enumerate(rows)]
    dls = image_table(two, split='part', folder=pets)
    assert len(dls.valid.labels) == 11 and 'validated on what column part calls test' in repr(dls)
    assert image_table(rows, is_valid='held', folder=pets).valid.files == image_table(rows, split='held', folder=pets).valid.files
    says(image_table, rows, is_valid='held', split='held', folder=pets, match='not both')
    says(image_table, rows, is_valid=lambda p: True, split='held', folder=pets, match='not both')
    says(image_table, [row | dict(split='train') for row in rows], split='split', folder=pets, match='no validation pictures')


@pytest.mark.parametrize('values, wanted', [
    (['train', 'vaild'], ['vaild in 1 of 2', 'must say train']), (['train', None], ['nothing in 1 of 2']), ([0, 2], ['2 in 1']),
    ([[1], 0], ['[1] in 1']), ([.5, 1], ['0.5']), (['a', 'b', 'a'], ['a, b in 3 of 3'])])
def test_wrong_words_for_parts(values, wanted):
    says(table_parts, Table({'split': values}, [], 'here', None), 'split', match=["column 'split'", *wanted])


def test_groups_and_is_valid(pets):
    rows = rows_of(pets)
    for groups in ('animal', lambda path: f'{path.parent.name} {path.stem[-1]}', [row['animal'] for row in rows]):
        dls = image_table(rows, groups=groups, folder=pets)
        sides = [{(p.parent.name, p.stem[-1]) for p in part.files} for part in (dls.train, dls.valid)]
        assert not sides[0] & sides[1] and len(dls.files) == 22
    for is_valid in (lambda p: p.stem.endswith(('0', '1')), [row['held'] for row in rows]):
        assert image_table(rows, is_valid=is_valid, folder=pets).valid.files == image_table(rows, split='split', folder=pets).valid.files
    back = rows[::-1]  # a list belongs to the rows
    dls = image_table(back, is_valid=[row['held'] for row in back], folder=pets)
    assert dls.valid.files == image_table(rows, split='split', folder=pets).valid.files
    says(image_table, rows, groups='person', folder=pets, match=["no column 'person'", "'animal'"])
    says(image_table, [row | dict(animal=None) for row in rows], groups='animal', folder=pets, match=['no group to 22 of 22', 'row 0'])
    rows[0]['animal'] = rows[5]['animal']
    says(image_table, rows, groups='animal', split='split', folder=pets, match=['1 of 19 groups are in more than one part', 'cat 5'])


def test_rows_that_disagree(pets):
    rows = rows_of(pets)
    assert len(image_table(rows + rows, folder=pets).files) == 22
    for change, wanted in ((dict(label='dog'), "another label: 'cat' and 'dog'"), (dict(split='train'), 'another part'), (dict(animal='x'), 'another group')):
        again = rows + [rows[0] | dict(file='./cat/../' + rows[0]['file']) | change]
        says(image_table, again, split='split', groups='animal', folder=pets, match=['cat_0.png is in row 0 and row 22', wanted])


def test_labels_that_are_none(pets):
    rows = rows_of(pets)
    table = as_csv(pets / 'labels.csv', [row | dict(label=' ' if i in (2, 5) else row['label']) for i, row in enumerate(rows)])
    says(image_table, table, match=["column 'label' gives no label to 2 of 22", 'line 4 (cat_2.png), line 7 (cat_5.png)', 'leave these rows out'])
    says(image_table, [row | dict(label=['a', 'b']) for row in rows], folder=pets, match=['row 0 (cat_0.png)', 'one class here', 'BCEWithLogitsLoss'])
    says(image_table, [row | dict(label=.5) for row in rows], folder=pets, match=['row 0 (cat_0.png)', 'regression'])
    says(image_table, [row | dict(label=str(i + .5)) for i, row in enumerate(rows)], folder=pets, match=['Is this number', 'regression'])
    assert image_table([row | dict(label=torch.tensor(i % 11)) for i, row in enumerate(rows)], folder=pets).classes == [str(i) for i in range(11)]
    _, said = warned(image_table, [row | dict(label='nan' if i % 2 else 'cat') for i, row in enumerate(rows)], folder=pets)
    assert 'where a label is missing: nan 11' in said[0]


def test_wrong_tables(pets, tmp_path):
    rows = rows_of(pets)
    says(image_table, tmp_path / 'none.csv', match=['none.csv', 'cannot be read', 'The path starts at'])
    says(image_table, tmp_path, match='cannot be read')
    (tmp_path / 'empty.csv').write_text('\n')
    says(image_table, tmp_path / 'empty.csv', match='this table is empty')
    says(image_table, as_csv(tmp_path / 'one.csv', rows[:1]).rename(tmp_path / 'two.csv'), label='breed', match=["no column 'breed'", "'file', 'label'"])
    (tmp_path / 'head.csv').write_text('file,label\n')
    says(image_table, tmp_path / 'head.csv', match='no rows')
    (tmp_path / 'twice.csv').write_text('file,label,label\na.jpg,b,c\n')
    says(image_table, tmp_path / 'twice.csv', match="2 columns are called 'label'")
    (tmp_path / 'more.csv').write_text('file,label\na.jpg,b\na,b.jpg,b\n')
    says(image_table, tmp_path / 'more.csv', match=['more.csv, line 3: 3 values', '2 columns', 'in quotes'])
    (tmp_path / 'latin.csv').write_bytes('file,label\ncaf\xe9.jpg,b\n'.encode('latin-1'))
    says(image_table, tmp_path / 'latin.csv', match=['not UTF-8', 'CSV UTF-8'])
    (tmp_path / 'wide.csv').write_bytes('file,label\na.jpg,b\n'.encode('utf-16'))
    says(image_table, tmp_path / 'wide.csv', match='not UTF-8')
    (tmp_path / 'quote.csv').write_text('file,label\n"a.jpg,b\n' + 'x' * 140000)
    says(image_table, tmp_path / 'quote.csv', match=['quote.csv, line', 'quote missing'])
    for table in (5, None, [1, 2], {'file': ['a']}): says(image_table, table, match=['wanted is the path of a csv file', 'DataFrame'])
    says(image_table, [], match='no rows')
    says(image_table, rows, label='breed', folder=pets, match=['row 0', "no column 'breed'"])
    says(image_table, [row | dict(file=None if i == 3 else row['file']) for i, row in enumerate(rows)], folder=pets, match=['names no file in 1 of 22', 'row 3'])
    with pytest.raises(TypeError, match='bs'): image_table(rows, folder=pets, bs=3)


def test_names_with_commas_and_line_ends(pets):
    (pets / 'cat' / 'cat_0.png').rename(pets / 'cat' / 'a, "b".png')
    (pets / 'labels.csv').write_text('label,file\n' + ''.join('%s,"%s"\n' % (p.parent.name, p.relative_to(pets).as_posix().replace('"', '""'))
                                                             for p in pets.rglob('*.png')))
    assert len(image_table(pets / 'labels.csv').files) == 22


