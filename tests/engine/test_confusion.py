"Which classes are taken for which: counted, written and drawn."
import math

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.figure import Figure

from finetune_teach.engine.confusion import (
    class_errors, confusion_matrix, confusion_text, error_text, errors_text, most_confused, pairs_text,
    plot_class_errors, plot_confusion, plot_most_confused, standard_error)

NAMES = ['cat', 'dog', 'emu', 'fox']
MATRIX = torch.tensor([[8, 2, 0, 0], [3, 97, 0, 0], [5, 0, 0, 0], [0, 0, 0, 0]])


def answers(matrix=MATRIX):
    "Logits and labels with this confusion matrix, in a random order."
    pairs = torch.tensor([(a, p) for a, row in enumerate(matrix.tolist()) for p, k in enumerate(row) for _ in range(k)])
    pairs = pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))]
    return torch.eye(len(matrix))[pairs[:, 1]], pairs[:, 0]


def test_rows_are_actual_and_columns_predicted():
    matrix = confusion_matrix(*answers())
    assert matrix.equal(MATRIX) and matrix.dtype == torch.int64


@pytest.mark.parametrize('logits, targets, told', [
    (torch.zeros(3, 1), torch.zeros(3).long(), '(3, 1)'), (torch.zeros(3, 2), torch.zeros(2).long(), '(2,)'),
    (torch.full((3, 2), math.nan), torch.zeros(3).long(), 'not finite'),
    (torch.zeros(3, 2), torch.tensor([0, 1, 2]), 'from 0 to 2'),
    (torch.zeros(3, 2), torch.tensor([0, 1, -1]), 'from -1 to 1'),
    (torch.zeros(3, 2), torch.zeros(3), 'whole numbers')])
def test_what_does_not_belong_together(logits, targets, told):
    with pytest.raises(ValueError) as caught:
        confusion_matrix(logits, targets)
    assert told in str(caught.value)


@pytest.mark.parametrize('function', [class_errors, most_confused, confusion_text, plot_confusion])
def test_each_class_needs_its_name(function):
    with pytest.raises(ValueError, match=r'\(4, 4\) and 2 names'):
        function(MATRIX, NAMES[:2])


def test_errors_of_classes():
    cat, dog, emu, fox = class_errors(MATRIX, NAMES)
    assert cat == ('cat', 10, 2, .2) and dog == ('dog', 100, 3, .03) and emu == ('emu', 5, 5, 1)
    assert fox[:3] == ('fox', 0, 0) and math.isnan(fox.error)


def test_most_confused_pairs_come_first_and_no_right_answer_is_among_them():
    assert most_confused(MATRIX, NAMES) == [
        ('emu', 'cat', 5, 1), ('dog', 'cat', 3, .03), ('cat', 'dog', 2, .2)]
    assert len(most_confused(MATRIX, NAMES, 1)) == 1 and most_confused(torch.eye(4).long(), NAMES) == []


def test_an_error_comes_with_its_doubt():
    assert standard_error(.5, 100) == .05
    assert error_text(50, 100) == '50.0% (50 of 100 wrong, ± 5.0% standard error)'
    assert 'up to 30.0%' in error_text(0, 10) and 'as low as 70.0%' in error_text(10, 10)
    assert 'up to 100.0%' in error_text(0, 1) and error_text(0, 0) == 'no pictures'


def test_texts():
    lines = errors_text(MATRIX, NAMES).splitlines()
    assert [line.split() for line in lines[1:4]] == [
        ['emu', '100.0%', '5', '5'], ['cat', '20.0%', '2', '10'], ['dog', '3.0%', '3', '100']]
    assert lines[4] == 'There are no pictures of 1 of the 4 classes.'
    head, *rows = confusion_text(MATRIX, NAMES).splitlines()
    assert head.split() == ['1', '2', '3', '4'] and rows[1].split() == ['2', 'dog', '3', '97', '.', '.']
    assert len({len(line) for line in (head, *rows)}) == 1
    assert pairs_text(MATRIX, NAMES, 1).strip() == '5 x emu taken for cat (100% of them)'
    assert 'no class' in pairs_text(torch.eye(4).long(), NAMES)
    text = errors_text(torch.eye(50).long(), [f'\x1b{i}' for i in range(50)])
    assert '10 more classes' in text and '\x1b' not in text


def labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


@pytest.mark.parametrize('n', [2, 12, 40])
def test_plots_name_every_class_whole_and_nothing_overlaps(n):
    names = [f'a $long$ name of breed {i}' for i in range(n)]
    matrix = 9 * torch.eye(n).long()
    matrix[0, 1] = matrix[1, 0] = 9
    axes = [plot_confusion(matrix, names), plot_class_errors(matrix, names), plot_most_confused(matrix, names)]
    assert labels(axes[0].xaxis) == labels(axes[0].yaxis) == names
    assert sorted(label.split('  ')[0] for label in labels(axes[1].yaxis)) == sorted(names)
    assert [text.get_text() for text in axes[0].texts] == ['9'] * (n + 2)
    for ax in axes:
        ax.figure.canvas.draw()
        renderer, inside = ax.figure.canvas.get_renderer(), ax.figure.bbox
        for axis in (ax.xaxis, ax.yaxis) if ax is axes[0] else [ax.yaxis]:
            boxes = [label.get_window_extent(renderer) for label in axis.get_ticklabels()]
            assert all(b.x0 >= 0 and b.y0 >= 0 and b.x1 <= inside.width + 1 and b.y1 <= inside.height + 1 for b in boxes)
            assert not any(one.overlaps(two) for one, two in zip(boxes, boxes[1:]))


def test_plots_of_very_many_classes_stay_small():
    names = [f'class {i}' for i in range(300)]
    matrix = torch.eye(300).long()
    ax = plot_confusion(matrix, names)
    assert max(ax.figure.get_size_inches()) < 12 and not ax.texts
    ax = plot_class_errors(matrix, names)
    assert len(ax.patches) == 60 and '60 highest' in ax.get_title()


def test_plots_into_a_figure_and_without_mistakes():
    figure = Figure()
    assert plot_confusion(MATRIX, NAMES, figure).figure is figure and not plt.get_fignums()
    assert 'No class' in plot_most_confused(torch.eye(4).long(), NAMES).get_title()
