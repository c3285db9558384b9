"All studies in the smoke profile, as `make reproduce` runs them; what is deleted is run again and nothing else."
import json, os, resource, signal, subprocess, sys, time
from pathlib import Path

import psutil
import pytest

from maskgil import sampling
from maskgil.bench import Bench
from maskgil.cells import generation_cell
from maskgil.profiles import PROFILES
from maskgil.records import Record
from maskgil.machines import HARDWARE
from maskgil import reproduce as reproduce_module
from maskgil.claims import CLAIMS
from maskgil.remeasure import differences_file
from maskgil.reproduce import Clock, choose_levels, decide_open_claims, jobs, run_all, undecided
from maskgil.statistics import SEED_LOOKS
from maskgil.tables import long_table

REPRODUCE = ('maskgil.cli', 'reproduce', '--profile', 'smoke')
CELLS = dict( # records of each study
    departures=7, fusion=1, paradigms=4, protocol=1, scaling=4, stability=4, steps=1, text_to_image=1,
    tokenizers=4 + 12 + 8) # reconstruction, generation, output layers


def processor_seconds():
    "Of all processes that have ended below this one."
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def environment_in(folder):
    "Results and cache in a folder, and no other setting of the project."
    plain = {k: v for k, v in os.environ.items() if not k.startswith('MASKGIL_')}
    return plain | dict(MASKGIL_RESULTS=str(folder/'results'), MASKGIL_CACHE=str(folder/'cache'))


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp('smoke')
    environment = environment_in(folder)
    def run(*command):
        spent = processor_seconds()
        done = subprocess.run([sys.executable, '-m', *command], env=environment, capture_output=True, text=True,
                              stdin=subprocess.DEVNULL)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout, processor_seconds() - spent
    out, seconds = run(*REPRODUCE)
    return folder/'results', run, out, seconds


def records(folder): return {p: json.loads(p.read_text()) for p in (folder/'runs').glob('*/*.json')}


def test_every_study_leaves_records(results):
    folder, _, out, seconds = results
    found = [r['study'] for r in records(folder).values()]
    assert {s: found.count(s) for s in sorted(set(found))} == CELLS
    assert out.count(': done in') == sum(map(len, jobs(PROFILES['smoke'])))
    assert seconds < 560 # nine studies take 280 of two cores, whatever else those do meanwhile


def test_a_deleted_record_is_run_again_and_no_other(results):
    folder, run, *_ = results
    before = {p: p.stat().st_mtime_ns for p in records(folder)}
    gone = next(p for p, r in records(folder).items() if r['study'] == 'scaling' and r['parameters']['size'] == 'l')
    gone.unlink()
    run('papermill', 'nbs/scaling.ipynb', '-p', 'profile', 'smoke')
    after = {p: p.stat().st_mtime_ns for p in records(folder)}
    assert after.keys() == before.keys()
    assert [p for p in after if after[p] != before[p]] == [gone]


def hear_ctrl_c(): signal.signal(signal.SIGINT, signal.SIG_DFL) # also where the tests run in the background


def papermills(environment):
    "The processes that `reproduce` has started with this environment."
    def started_here(process):
        command, variables = process.info['cmdline'] or [], process.info['environ'] or {}
        return 'papermill' in command and variables.get('MASKGIL_RESULTS') == environment['MASKGIL_RESULTS']
    return [process for process in psutil.process_iter(['cmdline', 'environ']) if started_here(process)]


def within_half_a_minute(what):
    "Whether something comes true."
    for _ in range(300):
        if what(): return True
        time.sleep(.1)
    return False


@pytest.mark.parametrize('how', [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_nothing_running(how, tmp_path):
    environment = environment_in(tmp_path)
    run = subprocess.Popen([sys.executable, '-m', *REPRODUCE], env=environment, stdin=subprocess.DEVNULL,
                           stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=hear_ctrl_c)
    assert within_half_a_minute(lambda: papermills(environment))
    run.send_signal(how)
    said = run.communicate(timeout=60)[1] # two times twenty seconds, should the first signal be lost
    assert 'the same command goes on' in said
    assert run.returncode == 130 and within_half_a_minute(lambda: not papermills(environment))


FAST = HARDWARE['1xA100']


@pytest.mark.parametrize('seconds', [100, 150, 10_000])
def test_levels_fit_their_time(monkeypatch, tmp_path, seconds):
    monkeypatch.setenv('MASKGIL_RESULTS', str(tmp_path))
    levels, whole = choose_levels(PROFILES['mini'], 2, FAST, seconds), choose_levels(PROFILES['mini'], 2, FAST)
    assert levels.again_seconds + levels.jobs_seconds <= seconds
    assert len(levels.jobs) == len(whole.jobs) if seconds > 1000 else len(levels.jobs) < len(whole.jobs)
    assert levels.all_jobs_seconds == pytest.approx(whole.jobs_seconds)


def test_what_was_measured_again_is_not_done_twice(monkeypatch, tmp_path):
    monkeypatch.setenv('MASKGIL_RESULTS', str(tmp_path))
    first = choose_levels(PROFILES['mini'], 2, FAST).again
    assert len({record.key for record in first}) == len(first) >= 4
    differences_file().parent.mkdir()
    differences_file().write_text(f'key,value\n{first[0].key},1.0\n')
    assert choose_levels(PROFILES['mini'], 2, FAST).again == first[1:]
    assert not choose_levels(PROFILES['smoke'], 2, FAST).again # it has no reference of its own


def test_nothing_starts_when_the_time_is_over(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv('MASKGIL_RESULTS', str(tmp_path))
    over = Clock(end=time.monotonic() - 1)
    assert run_all([('scaling', dict(size='b')), ('steps', {})], clock=over) == []
    assert 'no time is left for scaling size=b, steps' in capsys.readouterr().out
    assert not list(tmp_path.glob('runs/logs/*'))


class Slow:
    "A job that ends at once, and took three times what was planned."
    log = bar = Path('none')
    quiet, returncode, planned = False, 0, 0.

    def __init__(self, study, parameters, threads): self.name, self.process = study, self
    def poll(self): return 0
    def age(self): return 3 * self.planned
    def silence(self): return 0.
    def report(self): return f'{self.name}: done'
    def progress(self): return ''


def test_a_job_that_no_longer_fits_gives_way_to_a_shorter_one(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv('MASKGIL_RESULTS', str(tmp_path))
    monkeypatch.setattr(reproduce_module, 'start', Slow)
    takes = dict(steps=20., fusion=50., departures=30.) # three times: 150 and 90
    clock = Clock(takes, 1, time.monotonic() + 100)
    assert run_all([(study, {}) for study in takes], clock=clock) == []
    assert clock.pace() == 3
    said = capsys.readouterr().out
    assert 'steps: done' in said and 'departures: done' in said and 'no time is left for fusion' in said


def test_jobs_that_share_the_machine_are_planned_longer():
    takes = dict(steps=20.)
    assert Clock(takes, 2).planned(('steps', {})) == 2 * Clock(takes, 1).planned(('steps', {})) == 40


def test_open_claims_get_seeds_and_decided_ones_do_not(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv('MASKGIL_RESULTS', str(tmp_path))
    first, read, ran = SEED_LOOKS[0], reproduce_module.records, []
    looked_at_once = lambda **asked: [record for record in read(**asked) if record.seed in range(first)]
    monkeypatch.setattr(reproduce_module, 'records', looked_at_once)
    run = lambda profile, seed, lanes, minutes, studies: ran.append((seed, studies))
    monkeypatch.setattr(reproduce_module, 'reproduce', run)
    profile = PROFILES['mini']
    found = undecided(profile)
    assert not undecided(profile, first) and found
    assert all(CLAIMS[key].study == study for study, keys in found.items() for key in keys)
    decide_open_claims('mini', dry_run=True)
    assert not ran
    decide_open_claims('mini') # no run adds a record, so that the claims are open at each look
    assert ran == [(seed, list(found)) for look in SEED_LOOKS[1:] for seed in range(look)]
    said = capsys.readouterr().out
    for look in SEED_LOOKS[1:]:
        assert all(f'{study}: {look} seeds for {", ".join(keys)}' in said for study, keys in found.items())


def test_a_schedule_is_a_row(monkeypatch, tmp_path):
    "tests/test_extend.py does the same for a tokenizer, a size and a study."
    monkeypatch.setenv('MASKGIL_CACHE', str(tmp_path))
    monkeypatch.setitem(sampling.SCHEDULES, 'cubic', lambda r: 1 - r**3)
    made = generation_cell(Bench(PROFILES['smoke']), 'b', untrained=False, sampling=dict(schedule='cubic'))
    table = long_table([Record('mine', 'smoke', dict(size='b'), made)])
    assert (table.family == 'fid').any() and table.value.notna().all()
