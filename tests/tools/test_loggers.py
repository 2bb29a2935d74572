"Loggers: what the tools get, also over two trainings and after an error."
import csv
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from finetune_teach.tools.loggers import CSVLogger, Logger, MLflowLogger, TensorBoardLogger, WandbLogger


def rows(path):
    with open(path, newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


def full_disk(model, recorder):
    raise OSError('the disk is full')


@pytest.fixture
def stopped(make_learner):
    "A function: `fine_tune` with a logger, and then a training that an error ends after its first step."
    def train(logger):
        learn = make_learner()
        learn.fine_tune(1, callbacks=[logger])
        with pytest.raises(OSError):
            learn.fit(1, 1e-3, callbacks=[SimpleNamespace(after_step=full_disk), logger])
        return learn
    return train


def test_a_function_gets_all_steps_and_epochs(make_learner):
    learn, logged, few = make_learner(), [], []
    learn.fine_tune(1, callbacks=[Logger(lambda values, step: logged.append((step, values))),
                                  Logger(lambda values, step: few.append(step), every=4)])
    steps = [(step, values) for step, values in logged if 'loss' in values]
    assert [step for step, _ in steps] == list(range(1, 7))
    assert [values['loss'] for _, values in steps] == learn.recorder.losses
    assert [values['lr/head'] for _, values in steps] == [lrs[-1] for lrs in learn.recorder.lrs]
    epochs = [(step, values['valid_loss'], values['error_rate']) for step, values in logged if 'loss' not in values]
    assert epochs == [(3 * k, row['valid_loss'], row['error_rate']) for k, row in enumerate(learn.recorder.history, 1)]
    assert few == [3, 4, 6], 'the fourth step, and the epochs'


def test_one_rate_for_all_groups_is_called_lr(toy, batches):
    from finetune_teach.training_loop import constant, fit
    logged = []
    fit(toy, batches, 1, constant(3, 0.01), show=False, callbacks=[Logger(lambda values, step: logged.append(values))])
    assert [set(values) for values in logged[:3]] == [{'loss', 'lr'}] * 3


def test_only_the_first_process_logs(make_learner, monkeypatch, tmp_path):
    monkeypatch.setattr('finetune_teach.tools.loggers.world', lambda: SimpleNamespace(rank=1, size=2))
    logged = []
    make_learner().fit(1, 1e-3, callbacks=[Logger(lambda values, step: logged.append(values)), CSVLogger(tmp_path / 'a.csv'),
                                           TensorBoardLogger(tmp_path / 'runs')])
    assert not logged and not list(tmp_path.iterdir())


def test_csv_holds_the_history(stopped, tmp_path):
    learn = stopped(CSVLogger(tmp_path / 'epochs.csv', tmp_path / 'steps.csv'))
    found = rows(tmp_path / 'epochs.csv')
    assert [row['phase'] for row in found] == ['frozen', 'unfrozen']
    assert [float(row['valid_loss']) for row in found] == [row['valid_loss'] for row in learn.recorder.history]
    steps = rows(tmp_path / 'steps.csv')
    assert len(steps) == 7, 'also the step before the error'
    assert [float(row['loss']) for row in steps] == learn.recorder.losses
    assert float(steps[0]['lr_2']) == learn.recorder.lrs[0][2] and float(steps[0]['mom_0']) == learn.recorder.moms[0][0]


def test_csv_of_a_resumed_training_is_whole(make_learner, tmp_path):
    def run(callbacks):
        make_learner(checkpoint=tmp_path / 'run').fit(3, 1e-3, callbacks=[CSVLogger(tmp_path / 'a.csv'), *callbacks])
    stops = SimpleNamespace(after_step=lambda model, recorder: len(recorder.steps) == 5 and full_disk(model, recorder))
    with pytest.raises(OSError):
        run([stops])
    assert len(rows(tmp_path / 'a.csv')) == 1
    run([])
    assert [row['epoch'] for row in rows(tmp_path / 'a.csv')] == ['0', '1', '2']


def test_csv_of_other_metrics_has_a_column_for_each(make_learner, tmp_path):
    from finetune_teach.training_loop import accuracy
    learn = make_learner()
    for _ in range(2):
        learn.fit(1, 1e-3, callbacks=[CSVLogger(tmp_path / 'a.csv')])
        learn.metrics = [accuracy]
    one, two = rows(tmp_path / 'a.csv')
    assert one['accuracy'] == '' == two['error_rate'] and one['error_rate'] and two['accuracy']


def test_a_file_that_cannot_be_written_stops_nothing_halfway(make_learner, tmp_path):
    learn = make_learner()
    (tmp_path / 'a.csv').mkdir()
    with pytest.raises(OSError, match='a.csv'):
        learn.fit(1, 1e-3, callbacks=[CSVLogger(tmp_path / 'a.csv')])
    assert not learn.recorder.steps


def test_tensorboard_draws_one_curve(stopped, tmp_path):
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    learn = stopped(TensorBoardLogger(tmp_path))
    events = accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert {'loss', 'lr/head', 'valid_loss', 'error_rate'} <= set(events.Tags()['scalars'])
    loss = events.Scalars('loss')
    assert [event.step for event in loss] == list(range(1, 7)), 'the error came before the seventh was logged'
    assert [event.value for event in loss] == pytest.approx(learn.recorder.losses[:6], rel=1e-6)
    assert [event.step for event in events.Scalars('valid_loss')] == [3, 6]


def test_another_training_in_the_same_folder_takes_the_place_of_the_first(make_learner, tmp_path):
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    for seed in 0, 1:
        learn = make_learner(seed=seed)
        learn.fit(1, 1e-2, callbacks=[TensorBoardLogger(tmp_path)])
    loss = accumulator.EventAccumulator(str(tmp_path)).Reload().Scalars('loss')
    assert [event.value for event in loss] == pytest.approx(learn.recorder.losses, rel=1e-6)


@pytest.fixture
def stand_in(monkeypatch):
    "A function that puts a module in the place of a library."
    def put(name, **functions):
        module = ModuleType(name)
        vars(module).update(functions)
        monkeypatch.setitem(sys.modules, name, module)
    return put


def test_wandb_goes_on_with_its_run(stopped, stand_in):
    begun, logged, ended = [], [], []
    def init(**options):
        begun.append(options)
        return SimpleNamespace(id='x7', log=lambda values, step: logged.append((step, values)),
                               finish=lambda exit_code: ended.append(exit_code))
    stand_in('wandb', init=init)
    learn = stopped(WandbLogger(project='pets', mode='offline'))
    again = {'project': 'pets', 'mode': 'offline', 'id': 'x7', 'resume': 'allow'}
    assert begun == [{'project': 'pets', 'mode': 'offline'}, again, again] and ended == [0, 0, 1]
    assert [values['loss'] for _, values in logged if 'loss' in values] == learn.recorder.losses[:6]
    assert [step for step, _ in logged] == [1, 2, 3, 3, 4, 5, 6, 6], 'steps never go back: wandb would leave them out'


def test_mlflow_goes_on_with_its_run(stopped, stand_in):
    begun, logged, ended = [], [], []
    def start_run(**options):
        begun.append(options)
        return SimpleNamespace(info=SimpleNamespace(run_id='x7'))
    stand_in('mlflow', start_run=start_run, end_run=ended.append,
             log_metrics=lambda metrics, step: logged.append((step, metrics)))
    learn = stopped(MLflowLogger(run_name='first'))
    assert begun == [{'run_name': 'first'}, {'run_id': 'x7'}, {'run_id': 'x7'}]
    assert ended == ['FINISHED', 'FINISHED', 'FAILED']
    assert [metrics['valid_loss'] for _, metrics in logged if 'loss' not in metrics] == [
        row['valid_loss'] for row in learn.recorder.history]


@pytest.mark.slow
def test_the_real_wandb(make_learner, tmp_path, monkeypatch):
    pytest.importorskip('wandb')
    monkeypatch.setenv('WANDB_SILENT', 'true')
    make_learner().fine_tune(1, callbacks=[WandbLogger(project='pets', mode='offline', dir=str(tmp_path))])
    assert len(list(Path(tmp_path).rglob('*.wandb'))) == 2


@pytest.mark.slow
def test_the_real_mlflow(make_learner, tmp_path, monkeypatch):
    mlflow = pytest.importorskip('mlflow')
    monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')
    mlflow.set_tracking_uri((tmp_path / 'runs').as_uri())
    learn = make_learner()
    learn.fine_tune(1, callbacks=[logger := MLflowLogger(run_name='first')])
    client, run = mlflow.MlflowClient(), logger.options['run_id']
    assert client.get_run(run).info.status == 'FINISHED'
    assert [metric.value for metric in client.get_metric_history(run, 'loss')] == learn.recorder.losses
    assert [metric.step for metric in client.get_metric_history(run, 'valid_loss')] == [3, 6]


@pytest.mark.parametrize('kind, name', [(WandbLogger, 'wandb'), (MLflowLogger, 'mlflow'),
                                        (TensorBoardLogger, 'torch.utils.tensorboard')])
def test_what_is_not_installed_is_named(make_learner, monkeypatch, kind, name):
    monkeypatch.setitem(sys.modules, name, None)
    learn = make_learner()
    with pytest.raises(ImportError, match=f'pip install {name.rsplit(".", 1)[-1]}'):
        learn.fit(1, 1e-3, callbacks=[kind()])
    assert not learn.recorder.steps
