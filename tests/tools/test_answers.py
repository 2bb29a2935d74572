"""Folded answers: what a cell of an answer prints, shows, draws and warns of comes out once, below a line to click on."""
import re
import warnings

import matplotlib.pyplot as plt
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import HTML, display
from IPython.utils.capture import capture_output

from finetune_teach.tools.answers import answer


@pytest.fixture(autouse=True)
def shell():
    yield InteractiveShell.instance()
    InteractiveShell.clear_instance()


@pytest.fixture
def shown(capsys):
    "What a block inside `answer` shows: HTML and text."
    def show(block, text='Yes: `x` < 3.'):
        with capture_output(stdout=False, stderr=False) as caught:
            with answer(text):
                block()
        (output,) = caught.outputs
        assert capsys.readouterr() == ('', '')
        return output.data['text/html'], output.data['text/plain']
    return show


def test_words_come_first_and_are_text(shown):
    page, plain = shown(lambda: print('1 < 2 & 3'))
    assert page.startswith('<details><summary>Answer</summary>') and page.rstrip().endswith('</details>')
    assert '<p>Yes: <code>x</code> &lt; 3.</p><pre>1 &lt; 2 &amp; 3\n</pre>' in page
    assert plain == 'Answer: Yes: `x` < 3.\n1 < 2 & 3'


def test_warnings_are_told_without_a_place_and_go_no_further(shown):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        page, plain = shown(lambda: warnings.warn('careful', RuntimeWarning))
    assert 'RuntimeWarning: careful' in page and '.py' not in page + plain


def test_tables_and_figures_are_in_it_and_figures_are_closed(shown):
    before = plt.get_fignums()
    def block():
        display(HTML('<table id="t"></table>'))
        plt.figure(figsize=(1, 1))
    page, _ = shown(block)
    assert '<table id="t">' in page and re.search('<img [^>]*alt="Yes: `x` &lt; 3."', page)
    assert plt.get_fignums() == before


def test_nothing_to_show_is_no_empty_box(shown):
    assert '<pre>' not in shown(lambda: None)[0]


def test_an_error_comes_out():
    with pytest.raises(ZeroDivisionError), answer('never'):
        1 / 0
