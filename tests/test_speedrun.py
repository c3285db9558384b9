"The speedrun: seconds to a fixed number, two entries side by side, a log of records."
import dataclasses

import pytest

from maskgil import speedrun as race
from maskgil.records import records
from maskgil.report import newest_of, race_blocks
from maskgil.speedrun import ENTRIES, log_of, speedrun, timed_run
from maskgil.recipes import ladder
from maskgil.profiles import PROFILES


@pytest.fixture
def short(monkeypatch):
    "All entries train for two epochs."
    for name, entry in ENTRIES.items(): monkeypatch.setitem(ENTRIES, name, dataclasses.replace(entry, epochs=2))


def test_entries_are_rows_of_the_ladder():
    "Each is held against an earlier one, and only the first against none."
    names = [*ENTRIES]
    for i, (name, entry) in enumerate(ENTRIES.items()):
        assert entry.recipe in ladder() and (entry.faster_than in names[:i] if i else not entry.faster_than)


def test_two_entries_are_run_and_told(short, capsys):
    "Any image is near enough here: both meet the target at the first look."
    record = speedrun('ours', seeds=[0, 1], profile='smoke', target=1e6, every=2)
    runs = record.metrics['runs']
    assert [*runs] == ['paper', 'ours'] and [*runs['ours']] == ['0', '1']
    for of in runs.values():
        for run in of.values():
            assert run['step'] == 2 and len(run['looks']) == 1 and 0 < run['seconds'] == run['looks'][0]['seconds']
    log = log_of(newest_of('speedrun', ['yours']))
    assert log.entry.tolist() == ['paper', 'ours'] and log.met.tolist() == ['2 of 2', '2 of 2']
    assert 0 < float(log.p[1]) < 1 and log.p[0] == ''
    assert 'ours, seed 1' in capsys.readouterr().out
    kinds = [block[0] for block in race_blocks(['yours'])]
    assert kinds == ['heading', 'text', 'table']


def test_a_target_that_is_not_met_has_no_seconds(short):
    "All looks are kept, in order, and the clock goes forward."
    found = timed_run(PROFILES['smoke'], ENTRIES['paper'], seed=0, target=1e-9, every=2)
    assert found['seconds'] is None and found['step'] is None
    steps, seconds = ([look[part] for look in found['looks']] for part in ('step', 'seconds'))
    assert steps == sorted({*steps}) and len(steps) > 1 and seconds == sorted(seconds)


def test_the_same_seed_gives_the_same_curve(short):
    "Only the seconds differ."
    one, two = (timed_run(PROFILES['smoke'], ENTRIES['ours'], seed=3, target=1e-9, every=3) for _ in range(2))
    assert [look['kid'] for look in one['looks']] == [look['kid'] for look in two['looks']]


def test_nothing_is_reported_where_nothing_ran():
    assert not list(race_blocks(['yours'])) and not records('speedrun', ['yours'])


@pytest.mark.parametrize('given, said', [
    (dict(entry='theirs'), 'paper, ours'), (dict(profile='tiny'), 'smoke'), (dict(seeds=[]), 'seeds is empty'),
    (dict(target=0.), 'target is 0'), (dict(every=0), 'every')])
def test_bad_arguments_are_refused_before_training(given, said, monkeypatch):
    monkeypatch.setattr(race, 'timed_run', None) # nobody calls it
    with pytest.raises(ValueError, match=said): speedrun(**given)
