"The picture and the call of the explorer are those of fine_tune."
import re

import numpy as np
import pytest

from finetune_teach.one_cycle import fine_tune_schedule
from finetune_teach.tools.explore_one_cycle import explore_one_cycle


@pytest.mark.parametrize('options', [
    {}, {'freeze_epochs': 0}, {'freeze_epochs': 2, 'base_lr': 1e-2, 'lr_mult': 10, 'pct_start': 0.5, 'div': 3.0,
                               'div_final': 1e3, 'moms': (0.9, 0.8, 0.9)}], ids=['usual', 'not frozen', 'all'])
def test_schedule_and_call_are_those_of_fine_tune(make_learner, options):
    "The line below the explorer, when run, trains with the rates of its picture."
    learn = make_learner()
    explorer = explore_one_cycle(learn, epochs=2, **options)
    call = re.search(r'>(learn\..*)</code>', explorer.text(**explorer.values)).group(1)
    exec(call)
    wanted = fine_tune_schedule(len(learn.dls.train), 2, **options)
    frozen = options.get('freeze_epochs', 1) * len(learn.dls.train)
    assert len(wanted.lrs) == len(learn.recorder.lrs)
    for ours, theirs in [(wanted.lrs, learn.recorder.lrs), (wanted.moms, learn.recorder.moms)]:
        for i, (a, b) in enumerate(zip(ours, theirs)):
            assert a[2] == pytest.approx(b[2], rel=1e-9)
            assert np.isnan(a[:2]).all() if i < frozen else a == pytest.approx(b, rel=1e-9)


def test_the_call_names_only_what_is_unusual():
    explorer = explore_one_cycle()
    assert 'learn.fine_tune(4)<' in explorer.line.value
    explorer.controls['base_lr'].value = 0.0123456
    explorer.controls['epochs'].value = 7
    assert 'learn.fine_tune(7, base_lr=0.012)<' in explorer.line.value


def test_an_unknown_control_is_an_error():
    with pytest.raises(TypeError, match='peak'):
        explore_one_cycle(peak=3)
