"The table of results, in a terminal and in a notebook."
from types import SimpleNamespace

import pytest

from finetune_teach.engine import table
from finetune_teach.engine.table import ResultsTable, in_notebook
from finetune_teach.training_loop import accuracy, constant, error_rate, fit


@pytest.fixture
def shown(monkeypatch):
    "The HTML that a notebook would show, again and again in one place; a second for each look at the clock."
    shown, clock = [], iter(range(1000))
    def display(html, display_id):
        assert not shown, 'one place'
        shown.append(html.data)
        return SimpleNamespace(update=lambda html: shown.append(html.data))
    monkeypatch.setattr(table, 'in_notebook', lambda: True)
    monkeypatch.setattr('IPython.display.display', display)
    monkeypatch.setattr(table.time, 'perf_counter', lambda: float(next(clock)))
    return shown


def test_the_table_in_a_terminal(toy, batches, capsys):
    recorder = fit(toy, batches, 3, constant(9, 0.01), metrics=[error_rate, accuracy, accuracy])
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ['epoch', 'train_loss', 'valid_loss', 'error_rate', 'accuracy', 'accuracy_2', 'time']
    assert len(rows) == 3
    for i, (line, row) in enumerate(zip(rows, recorder.history)):
        expected = [f'{row[name]:.6f}' for name in header.split()[1:-1]]
        assert line.split() == [str(i), *expected, '00:00']
    fit(toy, batches, 1, constant(3, 0.01), show=False)
    assert capsys.readouterr().out == '' and not in_notebook()


def test_the_table_in_a_notebook(shown):
    results = ResultsTable(['error_rate'])
    assert list(results.progress('abcd')) == list('abcd')
    results.add({'epoch': 0, 'train_loss': 1.5, 'valid_loss': 1.25, 'error_rate': 0.5, 'time': 61.0})
    assert [html[html.index('</table>') + 8:] for html in shown] == ['epoch 0: 75%', 'epoch 0: 100%', '']
    assert '<th>error_rate</th><th>time</th>' in shown[-1]
    assert '<td>1.250000</td><td>0.500000</td><td>01:01</td>' in shown[-1]
    hidden = ResultsTable([], show=False)
    assert list(hidden.progress('abcd')) == list('abcd')
    hidden.add({'epoch': 0, 'train_loss': 1.5, 'valid_loss': 1.25, 'time': 1.0})
    assert len(shown) == 3 and len(hidden.rows) == 1
