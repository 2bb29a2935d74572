"The table of claims is of today's claims, was measured in time, and comes out again."
import json

import pytest
import torch

import finetune_teach.tools.command_line as command
from finetune_teach.all import drawn_pets
from finetune_teach.tools.claims import (
    CLAIMS, CLAIMS_FILE, FAR, NEAR, Claim, Measured, at_most, check_claims, claims_table, common_claims, held_text,
    measured_claims, read_claims, recipe_claims)

SAVED = read_claims()


def measured(pairs, **more):
    return Measured('It holds', '01_pretrained_body', 'this', 'that', pairs, 1.0, **more)


def test_the_saved_run_is_of_these_claims_with_three_seeds():
    assert [r[:4] + r[6:] for r in SAVED] == [claim[:4] + claim[5:] for claim in CLAIMS] and len(SAVED) >= 12
    assert all(len(r.pairs) >= 3 for r in SAVED)


def test_claims_differ_and_name_notebooks_and_places(request):
    assert len({(claim.regime, claim.sentence) for claim in CLAIMS}) == len(CLAIMS)
    assert all((request.config.rootpath / 'nbs' / f'{claim.notebook}.ipynb').exists() for claim in CLAIMS)
    assert {claim.regime for claim in CLAIMS} == {'far', 'near'}


def test_recipes_are_measured_near_and_far_in_the_same_words():
    def words(claims):
        return [(c.sentence, c.less, c.more, c.rates, c.advice) for c in claims]
    assert words(recipe_claims(NEAR)) == words(recipe_claims(FAR))
    assert set(words(recipe_claims(FAR))) <= set(words(c for c in CLAIMS if c.regime == 'far'))


def test_what_did_not_hold_has_its_reason():
    assert [r.sentence for r in SAVED if held_text(r) == '**no**'] == []


@pytest.mark.parametrize('sentence', [
    'A pretrained body tells apart classes it has never seen', 'The loss of an untrained head is ln C',
    'What is frozen stays the same to the last bit', 'An epoch of all layers at 3e-3 destroys what a body knows',
    'The finder changes nothing', 'On another style of drawing, the head alone beats fine-tuning'])
def test_what_was_saved_comes_out_again(sentence):
    claim = [c for c in CLAIMS if c.sentence == sentence][-1] # near, where it was measured there
    saved = [r for r in SAVED if r.sentence == sentence][-1]
    now, = check_claims([claim], seeds=[0], show=False)
    assert now.pairs[0] == pytest.approx(saved.pairs[0], abs=0.08)


def test_a_claim_holds_only_if_it_does_for_every_seed():
    assert measured([(1, 2), (2, 2), (0, 0)]).held
    assert not measured([(1, 2), (3, 2), (1, 2)]).held


def test_two_ways_that_come_out_the_same_prove_nothing():
    assert not measured([(0, 0), (0.5, 0.5)]).held
    assert held_text(measured([(0, 0), (0, 0)])) == '**no**: neither makes an error'
    assert held_text(measured([(1, 1), (0, 0)])) == '**no**: they are equal'
    assert measured([(0, 0), (0, 0)])._replace(more='allowed').held


def test_the_table_says_where_and_why_not():
    table = claims_table([measured([(0.25, 0.5), (0.2, 0.5)], regime='near', rates='1e-3', why_not='it is cold'),
                          measured([(2, 1), (3, 1)], regime='far', why_not='it is hot'),
                          measured([(2, 1), (0, 1)], regime='far', why_not='it is hot')])
    yes, no, chance = table.splitlines()[2:]
    assert '](01_pretrained_body.ipynb) | near, 1e-3 |' in yes and '0.23 (0.20 to 0.25)' in yes and yes.endswith('| yes |')
    assert '| far |' in no and no.endswith('| **no**: it is hot |')
    assert chance.endswith('| **no**: 1 of 2 seeds, so it may be chance |')


def test_each_seed_is_measured(capsys):
    seen = []
    def measure(seed):
        seen.append(seed)
        return seed, 1
    result, = check_claims([Claim('Seeds are small', '01_pretrained_body', 'seed', 'one', measure)], seeds=range(3))
    assert seen == [0, 1, 2] and result.pairs == [(0, 1), (1, 1), (2, 1)] and not result.held
    assert 'NOT HELD  Seeds are small' in capsys.readouterr().out


def test_at_most_takes_as_many_of_each_class():
    loader = drawn_pets(n_train=3, n_valid=4, size=32).valid
    few = at_most(loader, 30)
    assert sorted(few.labels.bincount().tolist()) == [2] * 6 + [3] * 6 and at_most(loader, 99) is loader
    drawn = {(label, picture.sum().item()) for label, picture in zip(loader.labels.tolist(), loader.pictures)}
    assert {(label, picture.sum().item()) for label, picture in zip(few.labels.tolist(), few.pictures)} <= drawn
    assert torch.equal(at_most(loader, 30).pictures, few.pictures), 'the same each time'


def test_every_way_has_as_many_epochs(monkeypatch):
    from finetune_teach.tools import claims
    epochs = {}
    def count(name, total):
        return lambda *args, **options: epochs.setdefault(name, total(args, options))
    monkeypatch.setattr(claims, 'fine_tune', count('fine_tune', lambda a, o: o['epochs'] + o.get('freeze_epochs', 1)))
    monkeypatch.setattr(claims, 'fit_one_cycle', count('one-cycle', lambda a, o: a[2]))
    monkeypatch.setattr(claims, 'fit', count('constant', lambda a, o: a[2]))
    for way in ('fine_tune', 'no frozen epoch', 'same rate', 'head', 'constant', 'all at once', 'from scratch'):
        claims._train(FAR, 0, way, 1e-3)
        assert set(epochs.values()) == {5}, way
        epochs.clear()


def test_command_writes_what_can_be_read(tmp_path, monkeypatch, capsys):
    def check_claims(seeds, results):
        results.append(measured([(0.5, 0.25)] * len(seeds)))
    monkeypatch.setattr(command, 'check_claims', check_claims)
    assert command.main(['claims', '--seeds', '2', '--out', str(tmp_path / 'c.json')]) == 0
    assert '0 of 1 claims held with 2 seeds' in capsys.readouterr().out
    assert read_claims(tmp_path / 'c.json') == [measured([(0.5, 0.25)] * 2)]
    about = json.loads((tmp_path / 'c.json').read_text())
    assert about['threads'] >= 1 and about['torch']


def test_ctrl_c_keeps_what_was_measured(tmp_path, monkeypatch, capsys):
    def measure(seed):
        raise KeyboardInterrupt
    claims = [Claim('It is', '01_pretrained_body', 'one', 'two', lambda seed: (1, 2)),
              Claim('It lasts', '01_pretrained_body', 'one', 'two', measure)]
    monkeypatch.setattr(command, 'check_claims', lambda **options: check_claims(claims, **options))
    assert command.main(['claims', '--out', str(tmp_path / 'c.json')]) == 130
    said = capsys.readouterr()
    assert '1 of 1 claims held with 3 seeds' in said.out and said.err == 'finetune-teach: stopped\n'
    assert [r.sentence for r in read_claims(tmp_path / 'c.json')] == ['It is']


def test_command_notices_a_missing_folder_before_measuring(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, 'check_claims', lambda **options: pytest.fail('measured'))
    assert command.main(['claims', '--out', str(tmp_path / 'nowhere' / 'c.json')]) == 2
    assert 'no folder' in capsys.readouterr().err


def test_the_home_page_shows_the_saved_run(request):
    readme = (request.config.rootpath / 'README.md').read_text(encoding='utf-8')
    assert measured_claims(CLAIMS_FILE).replace('](', '](nbs/') in readme


def test_no_claim_that_is_advice_lacks_a_rate_or_a_place():
    for claim in (*common_claims(FAR), *recipe_claims(FAR)):
        assert claim.regime == 'far' and (claim.rates or claim.notebook == '01_pretrained_body')
