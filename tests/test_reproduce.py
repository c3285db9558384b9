"All studies in the smoke profile, as `make reproduce` runs them; what is deleted is run again and nothing else."
import json, os, resource, signal, subprocess, sys, time

import psutil
import pytest

from maskgil import sampling
from maskgil.bench import Bench
from maskgil.cells import generation_cell
from maskgil.profiles import PROFILES
from maskgil.records import Record
from maskgil.reproduce import jobs
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


def test_a_schedule_is_a_row(monkeypatch, tmp_path):
    "tests/test_extend.py does the same for a tokenizer, a size and a study."
    monkeypatch.setenv('MASKGIL_CACHE', str(tmp_path))
    monkeypatch.setitem(sampling.SCHEDULES, 'cubic', lambda r: 1 - r**3)
    made = generation_cell(Bench(PROFILES['smoke']), 'b', untrained=False, sampling=dict(schedule='cubic'))
    table = long_table([Record('mine', 'smoke', dict(size='b'), made)])
    assert (table.family == 'fid').any() and table.value.notna().all()
