"Breeds that do not exist: the same again, unlike the twelve, drawn in both styles."
import random

import numpy as np
import pytest

from finetune_teach.engine.drawing import BREEDS, FURS, STYLES, draw_pet, draw_pets
from finetune_teach.engine.made_up_breeds import (
    CHOICES, LENGTHS, MOST_BREEDS, SWITCHES, differences, made_up_breeds)


def test_they_are_the_same_again():
    before = random.getstate()
    breeds = made_up_breeds()
    assert len(breeds) >= 200 and breeds == made_up_breeds()
    assert made_up_breeds(30) == breeds[:30] != made_up_breeds(30, seed=1)
    assert random.getstate() == before


def test_none_is_one_of_the_twelve():
    breeds = made_up_breeds(MOST_BREEDS)
    assert not {b.name for b in breeds} & {b.name for b in BREEDS}
    assert min(differences(made, real) for made in breeds for real in BREEDS) >= 2


def test_no_two_are_alike():
    breeds = made_up_breeds(MOST_BREEDS)
    assert len({b.name for b in breeds}) == MOST_BREEDS
    assert len({tuple(getattr(b, p) for p in (*CHOICES, *SWITCHES)) for b in breeds}) == MOST_BREEDS


def test_they_are_made_of_the_same_parts():
    breeds = made_up_breeds()
    for part, values in CHOICES.items():
        assert {getattr(b, part) for b in breeds} == set(values)
        assert {getattr(b, part) for b in BREEDS} == set(values), 'and nothing of the twelve is left out'
    for part in LENGTHS:
        known = [getattr(b, part) for b in BREEDS]
        assert all(min(known) <= getattr(b, part) <= max(known) for b in breeds)
    for b in breeds:
        assert b.name[0].isupper() == (b.species == 'cat') == (b.whiskers > 0)


def test_more_than_there_are():
    with pytest.raises(ValueError, match='n=801 breeds are more than the parts give: take 800 at most'):
        made_up_breeds(MOST_BREEDS + 1)


@pytest.mark.parametrize('style', STYLES)
def test_each_can_be_drawn(style):
    breeds = [next(b for b in made_up_breeds() if b.fur == fur) for fur in FURS]
    pictures, labels = draw_pets(2, 5, 32, breeds, style)
    assert pictures.shape == (2 * len(FURS), 32, 32, 3) and labels.max() == len(FURS) - 1
    assert len({p.tobytes() for p in pictures}) == len(pictures)
    assert (pictures == draw_pets(2, 5, 32, breeds, style)[0]).all()


def test_a_breed_or_its_name():
    for breed in BREEDS[:2]:
        assert (np.asarray(draw_pet(breed, 3)) == np.asarray(draw_pet(breed.name, 3))).all()
