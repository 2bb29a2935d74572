"What the explorer computes is what Python computes; its call is the one that trains like this."
import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from conftest import CHROMIUM
from finetune_teach.engine.explorer import SOURCE
from finetune_teach.one_cycle import GROUP_NAMES, fine_tune_schedule
from finetune_teach.tools.explore_one_cycle import VIEW, explore_one_cycle, fine_tune_call, options_of


@pytest.mark.parametrize('options', [
    {}, {'freeze_epochs': 0}, {'freeze_epochs': 2, 'base_lr': 1e-2, 'lr_mult': 10, 'pct_start': 0.5, 'div': 3.0,
                               'div_final': 1e3, 'moms': (0.9, 0.8, 0.9)}], ids=['usual', 'not frozen', 'all'])
def test_schedule_and_call_are_those_of_fine_tune(make_learner, options):
    "The call below the explorer, when run, trains with the rates of its picture."
    learn = make_learner()
    explorer = explore_one_cycle(learn, epochs=2, **options)
    exec(fine_tune_call(**options_of(explorer.values)))
    wanted = fine_tune_schedule(len(learn.dls.train), 2, **options)
    frozen = options.get('freeze_epochs', 1) * len(learn.dls.train)
    assert len(wanted.lrs) == len(learn.recorder.lrs)
    for ours, theirs in [(wanted.lrs, learn.recorder.lrs), (wanted.moms, learn.recorder.moms)]:
        for i, (a, b) in enumerate(zip(ours, theirs)):
            assert a[2] == pytest.approx(b[2], rel=1e-9)
            assert np.isnan(a[:2]).all() if i < frozen else a == pytest.approx(b, rel=1e-9)


def test_an_unknown_control_is_an_error():
    with pytest.raises(TypeError, match='peak'):
        explore_one_cycle(peak=3)
    with pytest.raises(TypeError, match='peak'):
        explore_one_cycle().move(peak=3)


def mulberry(seed):
    "The page's random numbers."
    def product(a, b):
        return a * b & 0xFFFFFFFF
    while True:
        seed = seed + 0x6D2B79F5 & 0xFFFFFFFF
        t = product(seed ^ seed >> 15, 1 | seed)
        t = (t + product(t ^ t >> 7, 61 | t) & 0xFFFFFFFF) ^ t
        yield (t ^ t >> 14) / 2 ** 32


def trained(task, schedule):
    "Losses and error of the same head, trained with PyTorch."
    draw = mulberry(1)
    def normal(*shape):
        return torch.tensor([math.sqrt(-2 * math.log(1 - next(draw))) * math.cos(2 * math.pi * next(draw))
                             for _ in range(math.prod(shape))], dtype=torch.double).view(shape)
    def numbers(name, *shape):
        import base64
        return torch.tensor(np.frombuffer(base64.b64decode(task[name]), np.int8)).view(shape)
    width, hidden, classes, batch = (task[k] for k in ('width', 'hidden', 'classes', 'batch'))
    x, x_valid = (numbers(name, -1, width).double() * task['scale'] for name in ('train', 'valid'))
    y, y_valid = (numbers(name, -1).long() for name in ('labels', 'valid_labels'))
    head = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, classes)).double()
    with torch.no_grad():
        head[0].weight.copy_(normal(hidden, width) * math.sqrt(2 / width))
        head[2].weight.copy_(normal(classes, hidden) * 0.01)
        head[0].bias.zero_(), head[2].bias.zero_()
    weights, biases = [head[0].weight, head[2].weight], [head[0].bias, head[2].bias]
    optimizer = torch.optim.AdamW([{'params': weights, 'weight_decay': 0.01}, {'params': biases, 'weight_decay': 0}],
                                  betas=(0.9, 0.99), eps=1e-5)
    order, steps, losses = list(range(len(y))), len(y) // batch, []
    for t, (lr, mom) in enumerate(schedule):
        if t % steps == 0:
            for i in range(len(order) - 1, 0, -1):
                j = int(next(draw) * (i + 1))
                order[i], order[j] = order[j], order[i]
        for group in optimizer.param_groups:
            group.update(lr=lr, betas=(mom, 0.99))
        rows = order[t % steps * batch:(t % steps + 1) * batch]
        loss = nn.functional.cross_entropy(head(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, (head(x_valid).argmax(1) != y_valid).double().mean().item()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason='needs Chromium')
def test_the_page_computes_what_python_computes(tmp_path):
    playwright = pytest.importorskip('playwright.sync_api', reason='needs playwright')
    explorer = explore_one_cycle()
    (tmp_path / 'page.html').write_text(f'<meta charset="utf-8">{explorer.page()}', 'utf-8')
    several = [{}, {'freeze_epochs': 0, 'epochs': 7, 'pct_start': 0.05}, {'base_lr': 0.3, 'mom_low': 0.6},
               {'base_lr': 1.1e-5, 'lr_mult': 1, 'div': 1}, {'epochs': 2, 'freeze_epochs': 5, 'div_final': 30, 'pct_start': 0.95}]
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        page = browser.new_page()
        page.goto((tmp_path / 'page.html').as_uri())
        page.wait_for_function('globalThis.finetuneTeach?.apps.size')
        app = '[...finetuneTeach.apps.values()][0][0]'
        for changes in several:
            values = {**explorer.values, **changes}
            found = page.evaluate(f'values => {app}.schedule(values)', values)
            wanted = fine_tune_schedule(explorer.spec['data']['steps'], n_groups=len(GROUP_NAMES), **options_of(values))
            assert len(found) == len(wanted.lrs)
            for step, lrs, moms in zip(found, wanted.lrs, wanted.moms):
                for pair, lr, mom in zip(step, lrs, moms):
                    assert (pair is None and math.isnan(lr)) or pair == pytest.approx([lr, mom], rel=1e-6)
            ours = page.evaluate(f'values => {app}.train(values)', values)
            steps = len(ours['losses']) // (values['epochs'] + values['freeze_epochs'])
            head = fine_tune_schedule(steps, n_groups=1, **options_of(values))
            losses, error = trained(explorer.spec['data']['head'], [(lr, mom) for (lr,), (mom,) in zip(*head)])
            assert ours['losses'][:20] == pytest.approx(losses[:20], rel=1e-6)
            assert ours['error'] == pytest.approx(error, abs=0.01)
            page.evaluate(f'values => {app}.move(values)', values)
            assert eval(re.sub(r'learn\.fine_tune\((\d+)', r'dict(epochs=\1', page.locator('code').inner_text())) == {
                'epochs': values['epochs'], **{k: v for k, v in options_of(values).items() if k != 'epochs' and
                                               v != options_of(explorer.values)[k]}}
        browser.close()


def test_the_script_can_stand_in_a_page():
    for text in (SOURCE, VIEW, explore_one_cycle().page().split('<script type="module">')[1].rsplit('</script>', 1)[0]):
        assert '</script' not in text and '<!--' not in text
