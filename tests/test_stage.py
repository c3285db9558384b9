"Weak to strong: the second stage of the study of scaling goes on from the weights of the first."
from dataclasses import replace

import pytest
import torch

from maskgil import cells as cells_module, planner
from maskgil.bench import Bench, draw_tokens, last_weights, planned_training, train_model
from maskgil.cells import began_with, generation_curve
from maskgil.checks import ParameterError
from maskgil.findings import gather_evidence
from maskgil.machines import HARDWARE
from maskgil.models import load_model
from maskgil.planner import all_cells, both_stages, commands, has_record, plan, second_stage_lines
from maskgil.profiles import override, PROFILES, second_stage, settings
from maskgil.records import Record, records, run_key, save_record
from maskgil.report import study_blocks
from maskgil.reproduce import planned_jobs
from maskgil.studies import default_cells, defaults, rows_of, second_cells, STUDIES
from maskgil.training import start_from
from maskgil.versions import versions_of

SCALING = STUDIES['scaling']


def at_512(profile):
    "A profile at its second stage, and the cells there."
    return second_cells(SCALING, PROFILES[profile])


def test_a_stage_is_one_of_two():
    with pytest.raises(ParameterError, match="unknown stage '1024': choose one of 256, 512"):
        defaults('scaling', stage='1024')
    assert defaults('scaling').stage == '256' and defaults('scaling', stage='512').stage == '512'
    alone = replace(PROFILES['smoke'], second=None)
    with pytest.raises(ParameterError, match='smoke has no second stage: choose one of smoke, mini, midi, paper'):
        SCALING.at_stage(alone, defaults('scaling', stage='512'))
    assert second_cells(SCALING, alone) == (alone, [])


def test_parameters_change_the_stage_that_is_asked_for():
    profile = SCALING.profile(defaults('scaling', profile='mini', stage='512', epochs=[1], run=False))
    assert (profile.data.resolution, profile.training.epochs) == (64, (1,))
    assert profile.first == PROFILES['mini']


@pytest.mark.parametrize('name', ['smoke', 'mini', 'midi', 'paper'])
def test_a_first_stage_is_as_it_was(name):
    profile = PROFILES[name]
    assert not any('second' in setting or 'first' in setting for setting in settings(profile))
    at, cells = default_cells(SCALING, profile)
    assert at == profile
    assert [c.parameters for c in cells] == [dict(size=s, recipe='paper') for s in ('b', 'l', 'xl', 'xxl')]
    assert not any('stage' in c.arguments or c.study for c in cells)
    changed = replace(profile, second=replace(profile.second, epochs=(7,)))
    key = lambda at: run_key('scaling', at, cells[0].parameters, 0, rows=dict(first_stage=1))
    assert key(changed) == key(profile)


def test_keys_of_the_reference_are_found_again():
    held = [r for r in records('scaling', ['reference'], profile='midi') if r.versions]
    cells = {str(c.parameters): c for c in default_cells(SCALING, PROFILES['midi'])[1]}
    assert held
    for r in held:
        rows = rows_of(PROFILES['midi'], cells[str(r.parameters)])
        assert r.key == run_key('scaling', PROFILES['midi'], r.parameters, r.seed, r.data_fingerprint, rows,
                                SCALING.stages, SCALING.groups), r.path


def test_a_second_stage_is_another_run_for_another_first_one():
    at, cells = at_512('mini')
    longer = replace(at, first=override(at.first, {'training.epochs': [2, 4, 16]}))
    assert rows_of(at, cells[0]) != rows_of(longer, cells[0])
    assert rows_of(at.first, cells[0]).keys() == rows_of(at, cells[0]).keys() - {'first'}


def test_it_starts_from_the_last_weights_of_the_first_stage(monkeypatch):
    tiny = override(PROFILES['smoke'], {'data.limit': 40, 'tokenizer.steps': 2, 'training.warmup_steps': 1})
    bench = Bench(second_stage(tiny), device='cpu')
    trained, first = train_model(bench, 'b'), train_model(bench.first, 'b')
    assert (first.model.config.grid, trained.model.config.grid) == ((8, 8), (16, 16))
    assert bench.tokenizer.fingerprint() == bench.first.tokenizer.fingerprint()
    assert trained.start == last_weights(first) and trained.folder != first.folder
    last, begun = first.at(1).state_dict(), {k: v.clone() for k, v in trained.at(0).state_dict().items()}
    assert all(torch.equal(last[name], begun[name]) for name in last)
    draw = lambda model: draw_tokens(model, torch.arange(4), seed=0, steps=2, cfg=2.)
    other = start_from(load_model(**trained.options, seed=5), trained.start)
    assert torch.equal(draw(trained.at(0)), draw(other.eval()))
    assert any(not torch.equal(begun[name], weight) for name, weight in trained.at(1).state_dict().items())
    monkeypatch.setattr(cells_module, 'measure_drawn', lambda *given, **options: {})
    assert [(p['epoch'], p['cfg']) for p in generation_curve(bench, trained)] == [(0, 1.), (0, 2.), (1, 1.), (1, 2.)]
    said = began_with(bench, trained)
    assert (said['grid'], said['start']['resolution'], said['start']['epochs']) == ([16, 16], 32, 1)
    longer = second_stage(override(tiny, {'training.epochs': [2]}))
    assert planned_training(Bench(longer, device='cpu'), 'b')[0].folder != trained.folder


def test_the_plan_has_both_stages(monkeypatch):
    at, cells = at_512('paper')
    table = plan(both_stages(at, cells[0]), ['8xH100']).loc['8xH100']
    assert list(table.index) == ['b at 256 px', 'b paper 512', 'tokens of llamagen-vq',
                                 'tokens of llamagen-vq at 512 px', 'total']
    first, second = (row for _, row in table.iloc[:2].iterrows())
    assert first['steps'] == 2_001_823 and first['images'] == 0
    assert second['steps'] == round(80 * 1_281_167 / 256) and second['tokens'] == second['steps'] * 256 * 32 * 32
    assert second['images'] == (4 + 4 + 4) * 50_000 # before training, and after two epochs, at four scales
    monkeypatch.setattr(planner, 'STUDIES', dict(scaling=SCALING))
    assert [c.study for _, c in all_cells(PROFILES['paper'])] == 4 * [''] + 4 * ['weak_to_strong']


@pytest.mark.parametrize('name', ['mini', 'paper'])
def test_it_is_run_where_it_is_asked_for(monkeypatch, name):
    monkeypatch.setattr(planner, 'records', lambda *where, **of: [])
    asked = [job for job, _ in planned_jobs(PROFILES[name], HARDWARE['8xH100'], studies=['scaling'])]
    assert asked == [('scaling', dict(size=size)) for size in ('b', 'l', 'xl', 'xxl')]
    assert sum(line.endswith('-p stage 512') for line in second_stage_lines(PROFILES[name])) == 4


def made_up(stage, size='b'):
    "A record of a stage."
    metric = lambda value: dict(value=value, low=value - 1, high=value + 1, n=8, label='FID-EL0')
    point = lambda epoch, cfg, value: dict(epoch=epoch, cfg=cfg, metrics=dict(fid_el0=metric(value)))
    found = dict(curve=[point(0, 1., 90.), point(0, 2., 80.), point(2, 1., 60.), point(2, 2., 70.)], grid=[16, 16],
                 start=dict(resolution=32))
    of = at_512('mini')[0] if stage == '512' else PROFILES['mini']
    study, named = ('weak_to_strong', dict(stage='512')) if stage == '512' else ('scaling', {})
    parameters = dict(size=size, recipe='paper') | named
    return save_record(Record(study, 'mini', parameters, found, 0, key=f'k{stage}{size}', settings=settings(of),
                              versions=versions_of(), tokens_seen=6400 * 256))


def test_records_of_the_stages_are_told_apart():
    left = lambda **given: [line.partition(' -p ')[2] for line in commands('nbs/scaling.ipynb', dict(size='b') | given)]
    made_up('512')
    assert left(stage='512') == [] and len(left(stage='256')) == len(left()) == 1
    assert not has_record('scaling', dict(size='b')) and gather_evidence('scaling', sources=['yours']).records == []
    made_up('256')
    assert left(stage='256,512') == left() == [] and len(gather_evidence('scaling', sources=['yours']).records) == 1


def test_the_report_has_rows_of_its_own(tmp_path):
    study = replace(SCALING, figures=())
    def blocks():
        gathered = {name: gather_evidence(name, sources=['yours']) for name in ('scaling', 'weak_to_strong')}
        return [block[:4] for block in study_blocks(study, gathered, tmp_path)]
    said = [block[1] for block in blocks() if block[0] == 'missing']
    assert 'Weak to strong: not run yet. `papermill nbs/scaling.ipynb -p stage 512` runs it.' in said
    made_up('512')
    shown = {block[1]: block[2] for block in blocks() if block[0] == 'table'}
    assert not any('Weak to strong' in block[1] for block in blocks() if block[0] == 'missing')
    table = shown['Weak to strong']
    assert list(table['images seen there']) == ['0', '6,400'] and list(table.guidance) == ['2', '1']
    assert list(table['FID']) == ['80.0 [79.0, 81.0]', '60.0 [59.0, 61.0]'] and set(table.grid) == {'16 x 16'}
    assert set(table.resolution) == {'64 px, after 32 px'}
