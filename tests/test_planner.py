"A plan without data or GPU; tests/test_machines.py holds its operations and its memory against torch's."
import os, shlex, subprocess, sys
from collections import Counter
from pathlib import Path

import nbformat
import pytest

from maskgil.planner import all_cells, main, missing_table, paper_cells, plan, printed_grid
from maskgil.profiles import override, PROFILES, settings
from maskgil.records import published, Record, records, save_record
from maskgil.studies import defaults, STUDIES
from maskgil.versions import versions_of

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


# What is missing of the paper's tables

PAPER = PROFILES['paper']
PRINTED = {'Table 1': 4, 'Table 2': 4, 'Table 3': 4, 'Table 4': 36, 'Table 5': 4, 'Table 6': 72, 'Table 7': 72}


def metric(value): return dict(value=value, low=None, high=None, n=9, label='FID')


def scaling_record(size, **changes):
    "What the command for a size leaves behind: each scale at each epoch, and what Tables 2 and 3 want."
    names = ('fid', 'is', 'precision', 'recall')
    curve = [dict(epoch=epoch, cfg=cfg, metrics={name: metric(5.) for name in names})
             for epoch in PAPER.training.epochs for cfg in PAPER.evaluation.cfg]
    given = dict(settings=settings(PAPER), versions=versions_of(), key=size, seed=0) | changes
    metrics = dict(curve=curve, parameters=10**8)
    save_record(Record('scaling', 'paper', dict(size=size, recipe='paper'), metrics, **given))


def states(profile='paper'):
    table = missing_table(PROFILES[profile], figures=False)
    return {state: Counter(part.table) for state, part in table.groupby('state')}


def test_with_no_records_every_printed_cell_is_missing(capsys):
    assert Counter(cell.table for cell in paper_cells()) == PRINTED
    rows = {name: len(published(f'table{name[-1]}')) for name in PRINTED if name != 'Table 3'}
    assert rows == {name: n for name, n in PRINTED.items() if name != 'Table 3'} | {'Table 5': 2}
    main(['--missing'])
    said = capsys.readouterr().out
    for name, n in PRINTED.items(): assert f'{name}: 0 of {n}; {n} missing' in said, name
    assert '0 of 196 cells are measured and 2 of 13 figures drawn' in said # two are drawn from the code


def test_each_command_makes_the_cells_it_is_named_for():
    "By the grid of the notebook with just those arguments, at the epochs and scales of the profile."
    table = missing_table(PAPER, figures=False)
    cells = {(cell.table, cell.row): cell for cell in paper_cells()}
    for command, rows in table.groupby('command'):
        program, notebook, *given = shlex.split(command)
        study = STUDIES[Path(notebook).stem]
        assert program == 'papermill' and (ROOT/notebook).is_file() and given[::3] == ['-p'] * (len(given)//3)
        p = defaults(study.name, **dict(zip(given[1::3], given[2::3])))
        assert p.profile == 'paper'
        at = study.trained_with(PAPER)
        made = [cell.parameters for cell in study.grid(at, p)]
        for key in zip(rows.table, rows.row):
            cell = cells[key]
            assert any(cell.where.items() <= parameters.items() for parameters in made), (command, cell)
            assert cell.share is None or cell.share * at.training.epochs[-1] in at.training.epochs
            assert cell.cfg is None or at.evaluation.every_scale and cell.cfg in at.evaluation.cfg


def test_a_record_takes_its_cells_from_the_list(capsys):
    scaling_record('b')
    assert states()['measured'] == {'Table 2': 1, 'Table 3': 1, 'Table 7': 20}
    assert states()['missing']['Table 7'] == 52 and states()['missing']['Table 4'] == 36
    scaling_record('xxl')
    assert states()['measured'] == {'Table 2': 2, 'Table 3': 2, 'Table 7': 32} # the paper prints 12 of XXL
    main(['--missing', 'profile=paper'])
    said = capsys.readouterr().out
    assert 'Table 7: 32 of 72; 40 missing' in said
    assert '-p size l\n' in said and '-p size b\n' not in said and '-p size xxl\n' not in said

def test_a_profile_may_lack_what_the_paper_printed():
    "smoke measures once, at guidance 1 and 2."
    found = states('smoke')
    ends = {'Table 4': 4, 'Table 6': 8, 'Table 7': 3} # of XXL the paper prints no end of the training
    assert found['missing'] == dict(PRINTED) | ends
    assert found['missing'] + found['not in this profile'] == PRINTED


def test_what_does_not_count():
    "Another recipe, a simulated run, an older version, a number that is not there."
    scaling_record('b', basis='simulated')
    assert 'measured' not in states()
    scaling_record('b', versions=dict(versions_of(), model=0))
    assert states()['older'] == {'Table 2': 1, 'Table 3': 1, 'Table 7': 20} and 'measured' not in states()
    curve = [dict(epoch=50, cfg=3., metrics=dict(fid=metric(5.)) | {'is': metric(None)}),
             dict(epoch=50, cfg=2., metrics=dict(fid=metric(5.)) | {'is': metric(9.)})]
    made = dict(settings=settings(PAPER), versions=versions_of(), seed=0)
    save_record(Record('scaling', 'paper', dict(size='l', recipe='paper'), dict(curve=curve), key='1', **made))
    save_record(Record('scaling', 'paper', dict(size='xl', recipe='released'), dict(curve=curve), key='2', **made))
    assert states()['measured'] == {'Table 7': 1}


def test_cells_of_the_other_studies():
    "Reconstruction, generation at the epochs of the shorter training, the output layer, and the whole step."
    made = dict(settings=settings(override(PAPER, {'training.epochs': list(PAPER.training.study_epochs)})), seed=0,
                versions=versions_of())
    at, cells = printed_grid(STUDIES['tokenizers'], PAPER)
    for i, cell in enumerate(cells):
        metrics = dict(
            reconstruction=dict(rfid=metric(2.), codebook_usage_pct=metric(99.)),
            generation=dict(curve=[dict(epoch=epoch, cfg=cfg, metrics=dict(fid=metric(5.)) | {'is': metric(9.)})
                                   for epoch in at.training.epochs for cfg in at.evaluation.cfg]),
            head=dict(head_parameters=metric(1e7), head_seconds=metric(1.)),
            step=dict(step_memory_gib=metric(20.)))[cell.parameters['stage']]
        save_record(Record('tokenizers', 'paper', cell.parameters, metrics, key=str(i), **made))
    assert states()['measured'] == {name: PRINTED[name] for name in ('Table 1', 'Table 4', 'Table 5', 'Table 6')}


def test_table_5_wants_the_output_layer_and_the_whole_step(capsys):
    "What the paper says of GPUs is of whole trainings; a layer alone does not stand for them."
    main(['--missing', 'profile=mini'])
    said = capsys.readouterr().out
    for name in ('llamagen-vq', 'open-magvit2-vq'):
        for stage in ('head', 'step'): assert f'-p profile mini -p tokenizer {name} -p stage {stage}\n' in said
    made = dict(settings=settings(PAPER), versions=versions_of(), seed=0)
    where = dict(stage='head', tokenizer='llamagen-vq', codebook_size=16384, head='plain')
    costs = dict(head_parameters=metric(1e7), head_memory_gib=metric(1.))
    save_record(Record('tokenizers', 'paper', where, costs, key='1', **made))
    assert states()['measured'] == {'Table 5': 1}


def test_missing_is_asked_for_in_one_way():
    for wrong in (['--missing', 'nbs/scaling.ipynb'], ['--missing', '--all'], ['--missing', 'profile=a', 'profile=b']):
        with pytest.raises(ValueError, match='usage'): main(wrong)
    with pytest.raises(ValueError, match="Did you mean 'paper'"): main(['--missing', 'profile=papper'])
