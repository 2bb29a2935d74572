"The style of figures."
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from finetune_teach.engine.plots import COLOURS, new_axes, rate_axis, show_pictures


def test_titles_of_several_lines_stay():
    texts = show_pictures(torch.zeros(2, 3, 8, 8), ['90% $a$,\nis in b', 7]).texts
    assert [text.get_text() for text in texts] == ['90% $a$,\nis in b', '7']
    assert not any(text.get_parse_math() for text in texts)


@pytest.mark.parametrize('pictures', [torch.full((5, 3, 8, 8), 255, dtype=torch.uint8), torch.ones(5, 3, 8, 8),
                                      [torch.full((3, 8, 8), 7.)] * 5])
def test_pictures_of_any_scale(pictures):
    axes = show_pictures(pictures, cols=2)
    assert (axes.images[0].get_array() == 1).all() and not axes.texts


def test_axes_have_one_style():
    left, right = new_axes(2, (5, 2))
    for ax in (left, right):
        assert [line.get_color() for line in ax.plot(np.eye(6))] == COLOURS and not ax.spines['top'].get_visible()
    figure = plt.figure()
    assert new_axes(figure=figure).figure is figure
    new_axes(2, gridspec_kw=dict(wspace=.5))


def test_rates_are_written_as_in_code():
    ax = new_axes()
    ax.plot([1e-5, 1], [1e-5, 1])
    rate_axis(ax, 'x')
    assert ax.get_xscale() == 'log' and ax.get_yscale() == 'linear'
    write = ax.xaxis.get_major_formatter()
    assert [write(lr, None) for lr in (1e-5, 1, 10)] == ['1e-5', '1e0', '1e1']
