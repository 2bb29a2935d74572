"How a learner trains: numbers come back, code is asked for."
import json
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from finetune_teach.engine.settings import restore_settings, settings_of
from finetune_teach.training_loop import accuracy, create_optimizer, error_rate, train_step

KNOWN = {f.__name__: f for f in (F.cross_entropy, accuracy, error_rate, create_optimizer, train_step)}


def learner(**changed):
    usual = dict(lr=1e-3, wd=0.01, moms=(0.95, 0.85, 0.95), seed=None, train_bn=False, loss_func=F.cross_entropy,
                 metrics=[error_rate], opt_func=create_optimizer, step=train_step)
    return SimpleNamespace(**usual | changed)


def back(learn, **given):
    settings = json.loads(json.dumps(settings_of(learn)))
    return restore_settings(settings, KNOWN, given, 'a.safetensors')


def test_numbers_come_back_of_any_kind():
    found = back(learner(lr=slice(1e-5, 1e-3), wd=np.float32(0.5), moms=(0.9, 0.8, 0.9), seed=np.int64(3), train_bn=True))
    assert found['lr'] == [1e-5, 1e-3] and found['wd'] == 0.5 and found['moms'] == [0.9, 0.8, 0.9]
    assert found['seed'] == 3 and found['train_bn'] is True


def test_known_code_comes_back_without_a_word():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        found = back(learner(metrics=[accuracy, error_rate]))
        assert found['metrics'] == [accuracy, error_rate] and found['loss_func'] is F.cross_entropy
        assert back(learner(metrics=[]))['metrics'] == []
        assert restore_settings({}, KNOWN, {'wd': 1}, 'a file of before') == {'wd': 1}
        loss = back(learner(loss_func=nn.CrossEntropyLoss(torch.tensor([1., 3]), label_smoothing=0.1)))['loss_func']
    logits, y = torch.tensor([[1., 2], [0, 3]]), torch.tensor([0, 1])
    assert loss(logits, y) == F.cross_entropy(logits, y, torch.tensor([1., 3]), label_smoothing=0.1)


def test_other_code_is_asked_for():
    class Focal(nn.Module):
        pass
    def steps_off(logits, targets): pass
    learn = learner(loss_func=Focal(), metrics=[accuracy, steps_off], opt_func=torch.optim.SGD)
    told = r'trained with loss_func Focal and metrics steps_off and opt_func SGD: .*load_learner\(\.\.\., loss_func='
    with pytest.warns(UserWarning, match=told):
        found = back(learn)
    assert not {'loss_func', 'metrics', 'opt_func'} & found.keys()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        given = dict(loss_func=F.nll_loss, metrics=accuracy, opt_func=torch.optim.SGD, wd=3)
        found = back(learn, **given)
    assert found.items() >= given.items()
