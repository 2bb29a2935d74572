"What training writes down, and the pictures of it."
import matplotlib.pyplot as plt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import Batches
from finetune_teach.engine.history import Recorder, plot_schedule, predicted_labels, smooth
from finetune_teach.freezing import freeze, freeze_to, layer_groups, unfreeze
from finetune_teach.one_cycle import one_cycle
from finetune_teach.training_loop import accuracy, constant, create_optimizer, error_rate, fit


def train(model, batches, epochs=1, lr=0.01, **options):
    return fit(model, batches, epochs, constant(epochs * len(batches.train), lr), show=False, **options)


def test_recorder_of_three_phases(toy, batches):
    recorder, optimizer = Recorder(), create_optimizer(toy)
    for prepare, lr in [(freeze, 0.1), (freeze, 0.2), (unfreeze, 0.3), (lambda m: freeze_to(m, 1), 0.4)]:
        schedule = constant(6, [lr, 2 * lr, 3 * lr], mom=0.7)
        fit(prepare(toy), batches, 2, schedule, optimizer, recorder=recorder, show=False)
    assert recorder.positions == pytest.approx([i / 3 for i in range(1, 25)])
    assert [(p.name, p.start) for p in recorder.phases] == [('frozen', 0), ('unfrozen', pytest.approx(4)),
                                                            ('from group 1', pytest.approx(6))]
    assert recorder.lrs == [(lr, 2 * lr, 3 * lr) for lr in (0.1, 0.2, 0.3, 0.4) for _ in range(6)]
    assert recorder.moms == [(0.7, 0.7, 0.7)] * 24
    assert recorder.group_names == [g.name for g in layer_groups(toy)]
    keys = {'phase', 'epoch', 'position', 'train_loss', 'valid_loss', 'error_rate', 'time'}
    assert all(set(row) == keys for row in recorder.history)
    assert [row['epoch'] for row in recorder.history] == [0, 1] * 4
    phases = [row['phase'] for row in recorder.history]
    assert phases == ['frozen'] * 4 + ['unfrozen'] * 2 + ['from group 1'] * 2
    assert [row['position'] for row in recorder.history] == pytest.approx(list(range(1, 9)))


@pytest.mark.parametrize('seed', [0, -1, -2**63, 2**64 - 1])
def test_each_epoch_has_a_seed_of_its_own(seed):
    recorder = Recorder()
    seeds = [recorder.begin_epoch(seed) for _ in range(20)]
    assert len({seed, *seeds}) == 21 and all(-2**63 <= s < 2**64 for s in seeds)
    assert Recorder().begin_epoch(None) is None


def test_train_loss_weights_each_picture_alike(toy):
    torch.manual_seed(0)
    batches = Batches([(torch.randn(n, 4), torch.randint(3, (n,))) for n in (6, 2, 4)],
                      [(torch.randn(3, 4), torch.tensor([0, 1, 2]))])
    recorder = train(toy, batches)
    a, b, c = recorder.losses
    assert recorder.history[0]['train_loss'] == pytest.approx((6 * a + 2 * b + 4 * c) / 12, rel=1e-6)
    assert recorder.history[0]['train_loss'] != pytest.approx((a + b + c) / 3, rel=1e-6)


def test_answers_of_each_epoch_are_kept(pets, make_learner):
    learn = make_learner()
    learn.fit_one_cycle(2, 1e-2)
    recorder = learn.recorder
    assert len(recorder.answers) == len(recorder.history) == 2
    for answers, row in zip(recorder.answers, recorder.history):
        wrong = (answers.predicted != answers.actual).float().mean().item()
        assert wrong == pytest.approx(row['error_rate'])
        assert answers.actual.equal(pets.valid.labels)
    with torch.no_grad():
        logits = torch.cat([learn.model.eval()(x) for x, _ in pets.valid])
    assert recorder.answers[-1].confidence.tolist() == pytest.approx(logits.softmax(1).amax(1).tolist(), rel=1e-4)


def test_logits_that_are_no_classes_have_no_answers():
    assert predicted_labels(torch.zeros(4, 1, 2), torch.zeros(4, dtype=torch.long)) is None
    assert predicted_labels(torch.zeros(4, 2), torch.zeros(4, 2)) is None
    assert predicted_labels(torch.zeros(4, 2), torch.zeros(4)) is None


# Smooth lines


@given(st.lists(st.floats(-1e6, 1e6), max_size=60), st.floats(0, 0.999))
def test_smooth_stays_between_the_values_so_far(values, beta):
    result = smooth(values, beta)
    assert len(result) == len(values)
    for i, value in enumerate(result):
        assert min(values[:i + 1]) - 1e-6 <= value <= max(values[:i + 1]) + 1e-6
    assert smooth([1.0, 2.0], beta=0.5) == pytest.approx([1, (0.5 * 1 + 1 * 2) / 1.5])


# Pictures of all this

def test_plot_loss(toy, batches):
    recorder = train(freeze(toy), batches, 2)
    train(unfreeze(toy), batches, 3, recorder=recorder)
    ax = recorder.plot_loss()
    lines = {line.get_label(): line for line in ax.get_lines()}
    assert list(lines['training'].get_xdata()) == recorder.positions
    assert list(lines['validation'].get_xdata()) == pytest.approx([1, 2, 3, 4, 5])
    assert list(lines['validation'].get_ydata()) == [row['valid_loss'] for row in recorder.history]
    assert any(list(line.get_ydata()) == recorder.losses for line in ax.get_lines()), 'the raw losses too'
    marks = [line.get_xdata()[0] for line in ax.get_lines() if list(line.get_ydata()) == [0, 1]]
    assert marks == pytest.approx([0, 2])
    assert {text.get_text().strip() for text in ax.texts} == {'frozen', 'unfrozen'}


def test_plot_metrics(toy, batches):
    recorder = train(toy, batches, 3, metrics=[error_rate, accuracy])
    lines = {line.get_label(): line for line in recorder.plot_metrics().get_lines()}
    for name in ('error_rate', 'accuracy'):
        assert list(lines[name].get_ydata()) == [row[name] for row in recorder.history]
    assert 'valid_loss' not in lines and 'time' not in lines
    _, (first, second) = plt.subplots(1, 2)
    assert recorder.plot_loss(first) is first and recorder.plot_metrics(second) is second


def test_plot_schedule_shows_every_group(toy, batches):
    recorder = Recorder()
    fit(toy, batches, 2, one_cycle(6, [1e-4, 1e-3, 1e-2]), recorder=recorder, show=False)
    rates, momenta = recorder.plot_schedule()
    assert [line.get_label() for line in rates.get_lines()] == recorder.group_names
    for i, (rate, momentum) in enumerate(zip(rates.get_lines(), momenta.get_lines(), strict=True)):
        assert list(rate.get_xdata()) == recorder.positions
        assert list(rate.get_ydata()) == [lrs[i] for lrs in recorder.lrs]
        assert list(momentum.get_ydata()) == [moms[i] for moms in recorder.moms]
    assert rates.get_yscale() == 'log', 'else the small rates could not be seen'


def test_plot_schedule_before_training():
    with pytest.raises(ValueError, match='nothing was trained yet.*one_cycle_schedule'):
        Recorder().plot_schedule()
    schedule = one_cycle(30, [1e-4, 1e-2])
    rates, _ = Recorder(group_names=['body', 'head']).plot_schedule(schedule)
    assert [line.get_label() for line in rates.get_lines()] == ['body', 'head']
    assert list(rates.get_lines()[1].get_ydata()) == [lrs[1] for lrs in schedule.lrs]
    assert len(plot_schedule(one_cycle(30, 1e-3))[0].get_lines()) == 1
