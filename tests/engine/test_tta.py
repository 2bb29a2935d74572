"Test-time augmentation: the mean by hand, in predict, in validate and as a module of its own."
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.transforms import v2

from conftest import assert_unchanged, everything
from finetune_teach.engine.prediction import predict
from finetune_teach.engine.tta import TTA, mirrored, with_tta
from finetune_teach.training_loop import accuracy, validate


@pytest.fixture
def learn(make_learner):
    learn = make_learner()
    learn.fit(2, 1e-2)
    return learn


@torch.no_grad()
def mean_by_hand(model, x, *views):
    model.eval()
    return torch.stack([model(view).softmax(1) for view in (x, *views)]).mean(0)


def test_predict_gives_the_mean_over_both_images(learn, pets):
    pictures = pets.valid.pictures
    x = torch.cat([x for x, _ in pets.valid])
    mean = mean_by_hand(learn.model, x, x.flip(-1))
    found = learn.predict(pictures, tta=True)
    assert torch.allclose(found.probabilities, mean, atol=1e-6)
    assert not torch.allclose(learn.predict(pictures).probabilities, mean, atol=1e-3)
    one = learn.predict(pictures[3], tta=True)
    assert torch.allclose(one.probabilities, mean[3], atol=1e-6) and one.label == pets.classes[mean[3].argmax()]
    turned = learn.predict(pictures.flip(-1), tta=True)
    assert torch.allclose(turned.probabilities, mean, atol=1e-6), 'left and right do not matter any more'


def test_views_of_your_own(learn, pets):
    x = torch.cat([x for x, _ in pets.valid])
    zoom = v2.Compose([v2.CenterCrop(24), v2.Resize(32)])
    mean = mean_by_hand(learn.model, x, x.flip(-1), zoom(x))
    found = learn.predict(pets.valid.pictures, tta=[v2.functional.hflip, zoom])
    assert torch.allclose(found.probabilities, mean, atol=1e-6)


@pytest.mark.parametrize('frozen', [True, False])
def test_validate_with_it(learn, pets, frozen):
    learn.freeze() if frozen else learn.unfreeze()
    x, y = (torch.cat(part) for part in zip(*pets.valid))
    plain = learn.validate()
    before = everything(learn.model, learn.optimizer)
    found = learn.validate(tta=True)
    assert_unchanged(before, everything(learn.model, learn.optimizer))
    mean = mean_by_hand(learn.model, x, x.flip(-1))
    assert found.valid_loss == pytest.approx(F.nll_loss(mean.log(), y).item(), abs=1e-5)
    assert found.error_rate == pytest.approx(1 - accuracy(mean, y)) and found != plain
    assert learn.validate(pets.valid, tta=True) == found == learn.validate(tta=[mirrored])
    assert validate(TTA(learn.model), pets.valid)[0] == pytest.approx(found.valid_loss, abs=1e-5)


def test_probabilities_that_are_nearly_0_stay_finite():
    model = TTA(nn.Flatten(), views=[lambda x: -x])
    logits = model(torch.tensor([[-500., 0, 500], [0, 0, 0]]))
    assert logits.isfinite().all() and torch.allclose(logits.softmax(1)[1], torch.full((3,), 1 / 3))
    assert logits.exp()[0].tolist() == pytest.approx([0.5, 0, 0.5])


def test_not_asked_for(learn):
    assert with_tta(learn.model, False) is learn.model and with_tta(learn.model, []) is learn.model


@pytest.mark.parametrize('tta', ['mirror', 4, None, [1]])
def test_what_are_no_views(learn, pets, tta):
    with pytest.raises(ValueError, match='tta='):
        predict(learn.model, pets.valid.pictures[0], learn.description, tta=tta)
