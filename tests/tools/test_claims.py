"The table of claims is of today's claims, was measured in time, and comes out again."
import json

import pytest

import finetune_teach.tools.command_line as command
from finetune_teach.tools.claims import (
    CLAIMS, CLAIMS_FILE, Claim, Measured, check_claims, claims_table, measured_claims, read_claims)

SAVED = read_claims()


def measured(pairs):
    return Measured('It holds', '01_pretrained_body', 'this', 'that', pairs, 1.0)


def test_the_saved_run_is_of_these_claims_with_three_seeds():
    assert [r[:4] for r in SAVED] == [claim[:4] for claim in CLAIMS] and len(SAVED) >= 12
    assert all(len(r.pairs) >= 3 for r in SAVED)


def test_claims_differ_and_name_notebooks(request):
    assert len({claim.sentence for claim in CLAIMS}) == len(CLAIMS)
    assert all((request.config.rootpath / 'nbs' / f'{claim.notebook}.ipynb').exists() for claim in CLAIMS)


@pytest.mark.parametrize('sentence', [
    'A pretrained body tells apart drawings it has never seen', 'The loss of an untrained head is ln C',
    'What is frozen stays the same to the last bit', 'A random head at a high rate destroys the body in one epoch',
    'The finder changes nothing', 'The head alone beats training from scratch'])
def test_what_was_saved_comes_out_again(sentence):
    claim, = [c for c in CLAIMS if c.sentence == sentence]
    saved, = [r for r in SAVED if r.sentence == sentence]
    now, = check_claims([claim], seeds=[0], show=False)
    assert now.held == saved.held
    assert now.pairs[0] == pytest.approx(saved.pairs[0], abs=0.08)


def test_a_claim_holds_only_if_it_does_for_every_seed():
    assert measured([(1, 2), (2, 2), (0, 0)]).held
    assert not measured([(1, 2), (3, 2), (1, 2)]).held


def test_the_table_says_what_did_not_hold():
    table = claims_table([measured([(0.25, 0.5), (0.2, 0.5)]), measured([(2, 1), (0, 1)])])
    yes, no = table.splitlines()[2:]
    assert '](01_pretrained_body.ipynb)' in yes and '0.23 (0.20 to 0.25)' in yes and yes.endswith('| yes |')
    assert no.endswith('| **no** |')


def test_each_seed_is_measured(capsys):
    seen = []
    def measure(seed):
        seen.append(seed)
        return seed, 1
    result, = check_claims([Claim('Seeds are small', '01_pretrained_body', 'seed', 'one', measure)], seeds=range(3))
    assert seen == [0, 1, 2] and result.pairs == [(0, 1), (1, 1), (2, 1)] and not result.held
    assert 'NOT HELD  Seeds are small' in capsys.readouterr().out


def test_command_writes_what_can_be_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, 'check_claims', lambda seeds: [measured([(0.5, 0.25)] * len(seeds))])
    assert command.main(['claims', '--seeds', '2', '--out', str(tmp_path / 'c.json')]) == 0
    assert '0 of 1 claims held with 2 seeds' in capsys.readouterr().out
    assert read_claims(tmp_path / 'c.json') == [measured([(0.5, 0.25)] * 2)]
    about = json.loads((tmp_path / 'c.json').read_text())
    assert about['threads'] >= 1 and about['torch']


def test_command_notices_a_missing_folder_before_measuring(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, 'check_claims', lambda seeds: pytest.fail('measured'))
    assert command.main(['claims', '--out', str(tmp_path / 'nowhere' / 'c.json')]) == 2
    assert 'no folder' in capsys.readouterr().err


def test_the_home_page_shows_the_saved_run(request):
    readme = (request.config.rootpath / 'README.md').read_text(encoding='utf-8')
    assert measured_claims(CLAIMS_FILE).replace('](', '](nbs/') in readme
