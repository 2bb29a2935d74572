"A model and pictures meet by name, whatever the loaders are."
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, Subset, TensorDataset

from finetune_teach.engine.features import Loaders
from finetune_teach.engine.loaders import ImageLoader
from finetune_teach.engine.matching import class_names, class_numbers, match, match_classes, match_sets, renumber
from finetune_teach.pictures import drawn_pets

OURS = ['beagle', 'husky', 'pug']


def plain(labels, classes=None, subset=False):
    "A DataLoader; its data set says the classes, as torchvision's do."
    data = TensorDataset(torch.zeros(len(labels), 3, 8, 8), torch.tensor(labels))
    if classes:
        data.classes = classes
    return DataLoader(Subset(data, range(len(labels))) if subset else data, batch_size=2)


def own(labels, classes):
    return ImageLoader(torch.zeros(len(labels), 3, 8, 8, dtype=torch.uint8), torch.tensor(labels), classes=classes)


def labels_of(loader):
    return torch.cat([y for x, y in loader]).tolist()


def test_names_are_found_wherever_they_are():
    assert class_names(own([0], ['pug'])) == ['pug']
    for subset in (False, True):
        assert class_names(plain([0, 1], ['husky', 'pug'], subset)) == ['husky', 'pug']
    assert class_names(plain([0])) is None and class_names([(1, 2)]) is None and class_names(None) is None


@pytest.mark.parametrize('theirs, labels, wanted', [
    (['husky', 'pug'], [0, 1, 1], [1, 2, 2]),                # one class is missing: every number is another
    (['pug', 'husky', 'beagle'], [0, 1, 2], [2, 1, 0]),      # another order
    (['beagle', 'husky', 'pug', 'zebra'], [0, 2], [0, 2])])  # a class more, but no picture of it
def test_labels_become_the_models(theirs, labels, wanted):
    assert renumber(torch.tensor(labels), theirs, OURS).tolist() == wanted
    for loader in (own(labels, theirs), plain(labels, theirs), plain(labels, theirs, subset=True)):
        assert labels_of(match_classes(loader, OURS)) == wanted
    assert len(match_classes(plain(labels, theirs), OURS)) == len(plain(labels))


def test_a_name_that_the_model_does_not_know():
    for loader in (own([0, 1], ['pug', 'zebra']), plain([0, 1], ['pug', 'zebra'])):
        with pytest.raises(ValueError, match='does not know: zebra. It knows beagle, husky, pug') as error:
            list(match_classes(loader, OURS))
        assert 'pug,' not in str(error.value).split('It knows')[0]
    assert class_numbers(['Pug'], OURS).tolist() == [-1] # capital letters count


@pytest.mark.parametrize('labels', [[0, 3], [-1, 0]])
def test_numbers_without_names_have_to_make_sense(labels):
    with pytest.raises(ValueError, match='the model has 3 classes, numbers 0 to 2'):
        list(match_classes(plain(labels), OURS))
    assert labels_of(match_classes(plain([0, 2]), OURS)) == [0, 2]


def test_what_fits_already_stays_as_it_is():
    loader, loaders = own([0, 1], OURS), Loaders(plain([0], OURS), plain([1], OURS))
    assert match_classes(loader, OURS) is loader and match_classes(loader, None) is loader
    assert match_sets(loaders, OURS) is loaders and match(None, {}) is None
    pets = drawn_pets(1, 1)
    assert pets.with_classes(pets.classes) is pets and pets.with_classes(None) is pets


def test_sets_of_loaders_of_any_kind():
    "An own class, a tuple with names; and a validation folder in which a class is missing."
    parts = plain([0, 1, 2], OURS), plain([0, 1], ['beagle', 'pug'])
    for loaders in (SimpleNamespace(train=parts[0], valid=parts[1], note='mine'), Loaders(*parts)):
        matched = match(loaders, {'classes': OURS})
        assert labels_of(matched.train) == [0, 1, 2] and labels_of(matched.valid) == [0, 2]
        assert labels_of(loaders.valid) == [0, 1]
    assert match(SimpleNamespace(train=parts[0], valid=parts[1], note='mine'), {'classes': OURS}).note == 'mine'
    pets = drawn_pets(1, 1)
    turned = pets.with_classes(pets.classes[::-1])
    assert turned.classes == turned.train.classes == pets.classes[::-1] and pets.classes == sorted(pets.classes)
    assert turned.valid.labels.tolist() == [11 - k for k in pets.valid.labels.tolist()]
