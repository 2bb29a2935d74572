"""The table on the page of engine/networks: which networks of three libraries are cut, and how. Each row is tried.

Print it, and write it into the page (some minutes): `python tests/engine/test_table_of_networks.py`.
"""
import sys
import warnings
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

import nbformat
import pytest
import torch
import torchvision
from torch import nn

sys.path[:0] = [str(Path(__file__).parents[1])] # of conftest.py, where this runs as a script

from test_networks import CLASSIFIERS, loses_only_its_last_layers, tiny
from test_pretrained_body import ARCHS, meta, published_parameters

from finetune_teach.engine.networks import last_layers
from finetune_teach.freezing import layer_groups
from finetune_teach.pretrained_body import create_body

PAGE, CELL = Path(__file__).parents[2] / 'nbs' / 'engine' / 'networks.ipynb', 'netw0020'
HEADS = ['family', 'networks', 'that work', 'last layer, or why not', 'features', 'parts in each layer group']


def parts(body):
    "How many parts of a body are in each layer group, as text."
    return ' + '.join(str(len(group.modules)) for group in layer_groups(nn.Sequential(body, nn.Linear(2, 2))))


def span(values):
    "The first and the last of some values, as text."
    return str(values[0]) if values[0] == values[-1] else f'{values[0]} to {values[-1]}'


def torchvision_rows():
    "A row for each family; its networks are built with random weights on the meta device, which takes no memory."
    families = defaultdict(list)
    for arch in sorted(ARCHS, key=published_parameters):
        families[torchvision.models.get_model_builder(arch).__module__.rpartition('.')[2]].append(arch)
    for family, archs in sorted(families.items()):
        found = []
        for arch in archs:
            with meta(), warnings.catch_warnings():
                warnings.simplefilter('ignore') # of old ways to initialise
                net = torchvision.models.get_model(arch, weights=None)
                body = create_body(arch, weights=None)
            assert len(last_layers(net)) == 1
            found.append((*last_layers(net), body.num_features, parts(body)))
        last, features, groups = zip(*found)
        yield (family, span(archs), f'{len(found)} of {len(archs)}', ', '.join(dict.fromkeys(last)),
               span(sorted(features)), span(sorted(groups, key=lambda text: int(text.split()[0]))))


def timm_row(name):
    "The row of one of timm's networks, the smallest of its family, with random weights."
    import timm
    from test_timm_networks import row
    family = timm.create_model.__globals__['model_entrypoint'](name).__module__.rpartition('.')[2]
    found = row(name)
    if isinstance(found, str):
        return family, name, '0 of 1', found.partition(': ')[0].partition('. ')[0], '', ''
    last, features, _, groups = found
    return family, name, '1 of 1', last, str(features), ' + '.join(map(str, groups))


def transformers_row(name):
    "The row of one of transformers' networks, as small as it can be."
    net = tiny(name, **CLASSIFIERS[name])
    layers, features = loses_only_its_last_layers(net)
    family = type(net).__module__.split('.')[-2]
    last = ' + '.join(layer.removeprefix('network.') for layer in layers)
    return family, name, '1 of 1', last, str(features), parts(create_body(net))


def section(library, rows):
    "One library's table."
    rows = [tuple(map(str, row)) for row in rows]
    tried, work = ([int(row[2].split(' of ')[place]) for row in rows] for place in (1, 0))
    lines = [HEADS, ['---'] * len(HEADS), *rows]
    return [f'### {library} {version(library)}', '', f'{sum(work)} of {sum(tried)} networks, {sum(map(bool, work))} of '
            f'{len(rows)} rows.', '', *(f'| {" | ".join(cells)} |' for cells in lines), '']


INTRODUCTION = (
    'Written by `python tests/engine/test_table_of_networks.py`, with random weights. The networks of timm are the smallest '
    'of each family, those of transformers small ones of its classes. A part is a block of a '
    '[layer group](../03_freezing.ipynb): early body + late body + head. Where a network is cut at two layers, its answer is '
    'the mean of two heads. For one that does not work the error says what to do.')


def table():
    "The whole table, in Markdown."
    from test_timm_networks import FAMILIES
    return '\n'.join(['## Which networks', '', INTRODUCTION, '', *section('torchvision', torchvision_rows()),
                      *section('timm', map(timm_row, FAMILIES)),
                      *section('transformers', map(transformers_row, CLASSIFIERS))]).strip()


def recorded():
    "Versions of the libraries, and rows by network, that stand on the page."
    versions, rows = {}, defaultdict(dict)
    for line in next(cell.source for cell in nbformat.read(PAGE, 4).cells if cell.id == CELL).splitlines():
        if line.startswith('### '):
            library, versions[library] = line[4:].split()
        elif line.startswith('| ') and not line.startswith(('| family', '| ---')):
            row = tuple(line.removeprefix('| ').removesuffix(' |').split(' | '))
            rows[library][row[1]] = row
    return versions, rows


def check_row(library, row):
    "A row of the page is as it comes out; with another version of the library, only whether it works."
    versions, rows = recorded()
    there, here = rows[library][row[1]], tuple(map(str, row))
    assert (there == here) if versions[library] == version(library) else (there[2] == here[2])


def test_the_table_is_long():
    _, rows = recorded()
    counts = {library: [row[2].split(' of ') for row in of_it.values()] for library, of_it in rows.items()}
    work = {library: sum(int(done) for done, _ in of_it) for library, of_it in counts.items()}
    assert work['torchvision'] >= 80 and len({row[0] for row in rows['timm'].values() if row[2][0] == '1'}) >= 60
    assert work['transformers'] >= 10
    assert all(int(of) == int(done) for done, of in counts['torchvision'] + counts['transformers'])


@pytest.mark.slow
def test_rows_of_torchvision():
    for row in torchvision_rows():
        check_row('torchvision', row)


@pytest.mark.parametrize('name', CLASSIFIERS)
def test_rows_of_transformers(name):
    check_row('transformers', transformers_row(name))


def test_rows_of_timm_that_are_quick():
    pytest.importorskip('timm')
    from test_timm_networks import FAMILIES, QUICK
    assert set(recorded()[1]['timm']) == set(FAMILIES)
    for name in QUICK:
        check_row('timm', timm_row(name))


@pytest.mark.slow
def test_rows_of_timm():
    pytest.importorskip('timm')
    from test_timm_networks import FAMILIES, QUICK
    for name in set(FAMILIES) - QUICK:
        check_row('timm', timm_row(name))


if __name__ == '__main__':
    notebook = nbformat.read(PAGE, 4)
    cell = next(cell for cell in notebook.cells if cell.id == CELL)
    cell.source = table()
    print(cell.source)
    nbformat.write(notebook, PAGE)
