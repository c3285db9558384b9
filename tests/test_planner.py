"A plan without data or GPU; tests/test_machines.py holds its operations and its memory against torch's."
import os, subprocess, sys
from pathlib import Path

import nbformat
import pytest

from maskgil.planner import all_cells, plan
from maskgil.profiles import PROFILES
from maskgil.records import records
from maskgil.studies import STUDIES, defaults

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize('profile', PROFILES)
def test_every_study_has_a_plan(profile):
    cells = all_cells(PROFILES[profile])
    table = plan(cells, ['8xH100']).loc['8xH100']
    assert len(table) > len(cells) and (table.hours >= 0).all() and (table.layout.dropna() != 'does not fit').all()
    assert table.loc['total', 'hours'] == pytest.approx(table.drop('total').hours.sum())


def test_every_study_has_a_notebook_that_reads_its_row():
    for name in STUDIES:
        text = (ROOT/'nbs'/f'{name}.ipynb').read_text()
        assert f"open_study('{name}', p)" in text and 'study.run()' in text
        assert defaults(name).dry_run is False and defaults(name).run is True


def printed(notebook):
    "What the cells of an executed notebook have printed."
    cells = [c for c in nbformat.read(notebook, 4).cells if c.cell_type == 'code']
    return ''.join(o.text for c in cells for o in c.outputs if o.output_type == 'stream')


def papermill(tmp_path, study, **parameters):
    "What a study prints, run in a folder that it must leave empty."
    results, copy = tmp_path/'results', tmp_path/'plan.ipynb'
    plain = {k: v for k, v in os.environ.items() if not k.startswith('MASKGIL_') and k != 'IMAGENET'}
    given = [part for name, value in parameters.items() for part in ('-p', name, str(value))]
    done = subprocess.run([Path(sys.executable).parent/'papermill', f'nbs/{study}.ipynb', copy, *given], cwd=ROOT,
                          env=plain | dict(MASKGIL_RESULTS=str(results)), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert not list(results.rglob('*.json')) and not (results/'checkpoints').exists()
    return printed(copy)


def test_the_plan_of_the_paper(tmp_path):
    "As one types it: XXL on ImageNet, here, in seconds."
    text = papermill(tmp_path, 'scaling', profile='paper', size='xxl', dry_run=True)
    columns = ('xxl', '8xH100', '8xA100', 'GPU hours', 'disk, GiB', 'llm-foundry', '2,001,823')
    for word in (*columns, 'nothing was run', '0 of 1 cells have a record'): assert word in text, word


def test_the_notebook_of_every_study(monkeypatch):
    "Their cells, one after the other, with dry_run: nothing needs ImageNet, and nothing runs."
    from IPython.core.interactiveshell import InteractiveShell
    from maskgil import notebook
    planned = []
    def note(study, profile, p):
        cells = [(profile, c) for c in STUDIES[study].grid(profile, p)]
        planned.append((study, profile.name, plan(cells, ['8xH100'])))
    monkeypatch.setattr(notebook, 'print_plan', note)
    shell = InteractiveShell.instance()
    try:
        for study in STUDIES:
            cells = [c for c in nbformat.read(ROOT/'nbs'/f'{study}.ipynb', 4).cells if c.cell_type == 'code']
            for profile in ('paper', 'mini'):
                injected = f'# Parameters\nprofile = {profile!r}\ndry_run = True\n'
                for source in [cells[0].source, injected, *(c.source for c in cells[1:])]:
                    shell.run_cell(source, store_history=True).raise_error()
    finally: InteractiveShell.clear_instance()
    assert [(s, p) for s, p, _ in planned] == [(s, p) for s in STUDIES for p in ('paper', 'mini')]
    of_tokenizers = planned[0][2]
    assert len(of_tokenizers) == 12 + 4 + 8 + 4 + 1 # generation, reconstruction, output layers, tokens, total
    assert not records(sources=['yours'])


def test_a_job_of_an_array(tmp_path):
    "What SLURM runs, with a papermill that prints its arguments."
    stub = tmp_path/'papermill'
    stub.write_text('#!/bin/sh\nfor a; do echo "<$a>"; done\n')
    stub.chmod(0o755)
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    grid = "nbs/departures.ipynb profile=paper 'change=class last,released' seed=0,1"
    env = os.environ | dict(PATH=path, MASKGIL_RESULTS=str(tmp_path/'results'), SLURM_ARRAY_TASK_ID='1', GRID=grid)
    done = subprocess.run(['bash', 'scripts/grid.sbatch'], cwd=ROOT, env=env, capture_output=True, text=True,
                          timeout=300)
    assert done.returncode == 0, done.stderr
    arguments = ['nbs/departures.ipynb', '-p', 'profile', 'paper', '-p', 'change', 'class last', '-p', 'seed', '1']
    assert done.stdout.splitlines()[1:] == [f'<{argument}>' for argument in arguments]
