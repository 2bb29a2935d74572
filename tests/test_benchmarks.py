"The comparison writes what it measured, and reports a side that fails. No test checks a time."
import importlib.util
import json
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / 'benchmarks'))
import compare  # noqa: E402
import gpu  # noqa: E402
import same_results  # noqa: E402

from finetune_teach.engine.batches import SpecLoader  # noqa: E402

HAS_FASTAI = importlib.util.find_spec('fastai') is not None
HAS_TIMM = importlib.util.find_spec('timm') is not None


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "The command with as little as it takes; its exit code, its results, its folder."
    out = tmp_path_factory.mktemp('results')
    code = compare.main(['--fastai', sys.executable, '--networks', 'tiny_resnet', '--pictures', '32',
                         '--only', 'frozen', 'unfrozen', 'crops', '--rounds', '2', '--threads', '1',
                         '--out', str(out), *['--timm'] * HAS_TIMM])
    return code, json.loads((out / 'results.json').read_text()), out


def test_ours_and_the_bare_loop_are_measured(run):
    _, results, _ = run
    rows = {row['row']: row for row in results['rows']}
    crops = rows.pop('unfrozen epoch, random crops')
    assert list(rows) == ['first frozen epoch', 'second frozen epoch', 'unfrozen epoch']
    assert 'bare loop' not in crops['numbers'] and min(crops['numbers']['finetune_teach']) > 0
    for row in rows.values():
        for side in ('finetune_teach', 'bare loop'):
            assert len(row['numbers'][side]) == 2 and min(row['numbers'][side]) > 0
        pairs = zip(row['numbers']['finetune_teach'], row['numbers']['bare loop'])
        low, high = sorted(ours / bare for ours, bare in pairs)
        assert row['ratios']['bare loop'] == {'median': (low + high) / 2, 'low': low, 'high': high}
    assert {'torch', 'finetune_teach'} <= results['versions']['finetune_teach'].keys()


def test_table_and_picture_are_written(run):
    _, results, out = run
    text = (out / 'results.md').read_text()
    assert '## tiny_resnet at 64 pixels' in text and '| unfrozen epoch |' in text
    assert f"**{results['rows'][-2]['ratios']['bare loop']['median']:.2f}**" in text
    assert str(out.parent) not in text
    assert (out / 'results.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.skipif(not HAS_TIMM, reason='timm is not installed')
def test_timm_trains_unfrozen_only(run):
    _, results, _ = run
    rows = {row['row'] for row in results['rows'] if min(row['numbers'].get('timm', [0])) > 0}
    assert rows == {'unfrozen epoch', 'unfrozen epoch, random crops'}


@pytest.mark.parametrize('ours, theirs, row, told', [
    ([1.], [3.2], 'unfrozen epoch', '2.2 s saved'), ([.15], [.2], 'validation', 'nothing'),
    ([2.], [1.], 'import', '1.0 s lost'), ([800.], [1000.], 'peak memory, first batch', '200 MB less'),
    ([1.], [], 'import', '')])
def test_what_is_noticed(ours, theirs, row, told):
    made, = compare.make_rows({('part', row): {'finetune_teach': ours, 'fastai': theirs}})
    assert compare.notice(made) == told


@pytest.mark.skipif(HAS_FASTAI, reason='here fastai does not fail')
def test_a_side_that_fails_is_reported_and_the_others_go_on(run):
    code, results, out = run
    assert code == 1
    assert any('fastai' in failure and 'No module named' in failure for failure in results['failures'])
    assert '## Failed' in (out / 'results.md').read_text()


@pytest.mark.skipif(not HAS_FASTAI, reason='fastai is not installed')
def test_fastai_is_measured(run):
    code, results, _ = run
    assert code == 0 and all(row['ratios']['fastai'] for row in results['rows'])


@pytest.mark.parametrize('code, message', [
    ('import sys; sys.exit("no memory left")', 'ended during.*no memory left'),
    ('import time; time.sleep(60)', 'no answer to prepare within 1 seconds'),
    ('print(\'{"error": "it does not fit"}\'); input()', 'it does not fit')])
def test_a_worker_that_dies_hangs_or_complains_is_noticed(code, message):
    start = time.time()
    worker = compare.Worker([sys.executable, '-c', code], timeout=1 if 'sleep' in code else 30)
    with pytest.raises(compare.WorkerFailed, match=f'(?s){message}'):
        worker.ask('prepare')
    worker.close()
    assert time.time() - start < 30


def test_a_missed_goal_is_marked():
    sides = {'finetune_teach': [2., 3.], 'fastai': [4., 4.], 'bare loop': [1., 1.]}
    row, = compare.make_rows({('resnet18', 'unfrozen epoch'): sides})
    assert row['ratios']['fastai'] == {'median': .625, 'low': .5, 'high': .75}
    assert compare.ratio_text(row, 'fastai').endswith('goal 0.65')
    assert compare.ratio_text(row, 'bare loop').endswith('goal 0.85: missed')


def test_own_photos_are_split_and_linked(tmp_path):
    for name in ('cat', 'dog'):
        (tmp_path / 'photos' / name).mkdir(parents=True)
        for i in range(25):
            (tmp_path / 'photos' / name / f'{i}.JPG').write_bytes(b'')
    folder = compare.arrange(compare.own_photos(tmp_path / 'photos'), tmp_path / 'split', 40, 16)
    counts = [len(list((folder / part / name).iterdir()))
              for part in ('train', 'valid') for name in ('cat', 'dog')]
    assert counts == [16, 16, 8, 8], 'a full batch to train, classes evenly'
    with pytest.raises(SystemExit, match='50 photos'):
        compare.arrange(compare.own_photos(tmp_path / 'photos'), tmp_path / 'more', 64, 16)


def test_the_plain_way_is_plain(make_learner):
    "What the fast ways are compared with keeps no feature and has its weights in the usual order."
    learn = make_learner()
    same_results.plain(learn)
    learn.fit(1)
    assert not isinstance(learn.dls.train, SpecLoader)
    assert all(p.is_contiguous() for p in learn.model.parameters())
    assert not all(p.is_contiguous() for p in make_learner().model.parameters())


def test_ways_are_trained_alike(pets):
    runs = [same_results.error(pets, change, lambda learn: learn.fit_one_cycle(2, 1e-2), 0)
            for change in same_results.WAYS.values()]
    assert max(runs) - min(runs) < .1 and max(runs) < 11 / 12


def test_the_one_for_a_gpu_runs_without_one(capsys):
    gpu.main('--arch resnet18 --device cpu --batches 1 --batch-size 4 --side 32 --rounds 1 --precision fp32'.split())
    lines = capsys.readouterr().out.splitlines()
    table = [line.split(' | ') for line in lines if line.startswith('| fp32')]
    assert [row[0] for row in table] == [f'| fp32, {side}' for side in ('finetune_teach', 'bare loop', 'bare loop, channels-last')]
    assert table[0][2] == '1.00 |' and all(float(row[2][:-2]) > 0 for row in table)
    assert [line.split(' | ')[0] for line in lines[-3:]] == ['| first epoch', '| second epoch', '| finder']
