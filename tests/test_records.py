"Records: whole or absent, skipped, forced, interrupted; and the paper's tables to the digit."
import errno, hashlib, json, math, os, re, signal, subprocess, sys
from pathlib import Path

import pandas as pd
import pytest

from maskgil import findings, records as module
from maskgil.profiles import PROFILES, override, settings
from maskgil.records import (
    PAPER_TABLES, Record, promote, published, read_record, record_name, records, reference_dir, run_cell, run_key,
)
from maskgil.studies import STUDIES
from maskgil.tables import as_text, compare, long_table, over_seeds
from maskgil.versions import STAGES

MINI = PROFILES['mini']
SHA256 = dict( # of the tables as transcribed from the paper; table 5 from its text, since the table is missing
    table5='f9ead8df6cca0746a584743bd4d58d06ac18340f585dacadb1f01e8b2fcfa6af',
    table1='3f39d3c83c2ba67261edd880671dd1ccc79ddbdfd2f8667ba82482d36e44de40',
    table3='a2efd4778db7917c94c0eca6e5ab790635584c0ba8771f1cf1bb3337dd2da151', # not transcribed: each row is cited
    table2='9cf2ff5708336a58ef2a5c2a517788d0b2f9216266b77496e3b5a2add5fdf1b9',
    table4='96892fe0424f637efd99f2158b7e7191d6eed3196bfd6562237cff99702eb180',
    table6='e39714d0d4155bff891da8de52d866015da82b6c113ba777f5802bd715595074',
    table7='767fd08b03ed845f6b955765fac50f290b1ed7206449a405515746bc5f074fcd',
)


def metric(value): return dict(value=value, low=value - 1, high=value + 1, n=100, label='FID-EL0')
def cell(function, force=False, **parameters):
    return run_cell('demo', MINI, parameters or dict(size='b'), function, device='cpu', force=force, basis='simulated')
def files(folder): return sorted(p.name for p in Path(folder).rglob('*') if p.is_file())


def test_a_record_that_exists_is_not_run_again(own_results, capsys):
    calls = []
    def function(folder): calls.append(1); return dict(fid_el0=metric(9.))
    first = cell(function)
    assert cell(function) == first and len(calls) == 1
    assert 'record exists' in capsys.readouterr().out
    assert cell(function, force=True).key == first.key and len(calls) == 2
    assert cell(function, size='l').key != first.key and len(calls) == 3
    Path(first.path).unlink() # deleting one record reruns that one only
    cell(function); cell(function, size='l')
    assert len(calls) == 4


def test_a_record_says_all_that_is_needed(own_results):
    record = cell(lambda folder: dict(fid_el0=metric(9.), tokens_seen=640, training_flops=1e9))
    assert set(record.provenance) >= {'git', 'packages', 'device', 'device_name', 'threads', 'python'}
    assert set(record.provenance['git']) == {'commit', 'dirty'}
    assert record.tokens_seen == 640 and record.training_flops == 1e9 and 'tokens_seen' not in record.metrics
    assert record.wall_seconds >= 0 and record.peak_memory_gib > 0 and record.dtype in ('float32', 'bfloat16')
    assert record.started <= record.ended and record.settings['training.epochs'] == [2, 4, 8]
    assert record.profile == 'mini' and record.basis == 'simulated' and set(record.versions) == set(STAGES)
    assert Path(record.path).name == f'size=b,seed=0,profile=mini-{record.key}.json'


def test_an_error_leaves_no_record_and_keeps_the_checkpoint(own_results):
    def interrupted(folder):
        (folder/'step').write_text('7')
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): cell(interrupted)
    assert files(own_results/'runs') == []
    assert cell(lambda folder: dict(seen=(folder/'step').read_text())).metrics['seen'] == '7'
    assert cell(lambda folder: dict(seen=(folder/'step').exists()), force=True).metrics['seen'] is False


def full_disk(*args, **kwargs): raise OSError(errno.ENOSPC, 'No space left on device')

@pytest.mark.parametrize('where, name', [(os, 'replace'), (os, 'fsync'), (Path, 'write_bytes')])
def test_a_full_disk_leaves_nothing(own_results, monkeypatch, where, name):
    monkeypatch.setattr(where, name, full_disk)
    with pytest.raises(OSError, match='No space left'): cell(lambda folder: dict(fid_el0=metric(9.)))
    assert files(own_results/'runs') == []


def test_a_full_disk_keeps_the_old_record(own_results, monkeypatch):
    old = cell(lambda folder: dict(fid_el0=metric(9.)))
    monkeypatch.setattr(os, 'replace', full_disk)
    with pytest.raises(OSError): cell(lambda folder: dict(fid_el0=metric(1.)), force=True)
    assert files(own_results/'runs') == [f'{record_name(old)}.json']
    assert read_record(old.path).metrics['fid_el0']['value'] == 9.


def test_a_full_disk_for_a_file_of_the_record(own_results, monkeypatch):
    def function(folder):
        (folder/'sheet.png').write_bytes(b'x')
        return dict(samples=folder/'sheet.png')
    monkeypatch.setattr(module.shutil, 'copyfile', full_disk)
    with pytest.raises(OSError): cell(function)
    assert files(own_results/'runs') == []


def test_killed_while_running(own_results):
    code = '''import sys, time
from maskgil.profiles import PROFILES
from maskgil.records import run_cell
def forever(folder): print('ready', flush=True); time.sleep(60)
run_cell('demo', PROFILES['mini'], {}, forever, device='cpu')'''
    process = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(signal.SIGKILL); process.wait()
    assert files(own_results/'runs') == []


def test_the_key_holds_all_that_changes_the_number():
    base = dict(study='scaling', profile=MINI, parameters=dict(size='b'), seed=0, data_fingerprint='d',
                rows=dict(size=1), stages=['data'], groups=['training'])
    longer = override(MINI, {'training.epochs': [9]})
    changes = dict(study='steps', profile=longer, parameters=dict(size='l'), seed=1, data_fingerprint='e',
                   rows=dict(size=2), stages=['data', 'model'], groups=['training', 'evaluation'])
    keys = {run_key(**base | {k: v}) for k, v in changes.items()} | {run_key(**base)}
    assert len(keys) == len(changes) + 1


def test_a_record_of_a_former_time_is_read(tmp_path):
    "Flat settings, a hash of the code, a file named by its key: as they were written before versions."
    flat = dict(data='openmoji', resolution=32, epochs=[2, 4, 8], steps=8, eval_images=400, text_size='l')
    curve = [dict(epoch=8, cfg=2., metrics=dict(fid_el0=metric(490.)))]
    former = dict(study='scaling', profile='mini', parameters=dict(size='b', recipe='paper'), seed=1,
                  key='056a6b599dea37fe', metrics=dict(curve=curve), code_version='86a3a44e', settings=flat)
    path = tmp_path/'056a6b599dea37fe.json'
    path.write_text(json.dumps(former))
    record = read_record(path)
    assert record.settings['training.epochs'] == [2, 4, 8] and record.settings['evaluation.images'] == 400
    assert module.outdated(record) == ['all']
    row = long_table([record]).iloc[0]
    assert (row.share, row.data) == (1., 'OpenMoji 32 px')


def test_the_committed_reference_is_read_and_listed():
    found = records(sources=['reference'])
    assert len(found) >= 117 and all(Path(r.path).name.endswith(f'-{r.key}.json') for r in found)
    index = pd.read_csv(reference_dir()/'index.csv')
    assert set(index.key) == {r.key for r in found}
    assert all((reference_dir()/file).is_file() for file in index.file)


def test_records_of_three_sources(project, monkeypatch):
    monkeypatch.setenv('MASKGIL_ROOT', str(project))
    made = run_cell('demo', MINI, dict(size='b'), lambda folder: dict(fid_el0=metric(9.)), device='cpu')
    assert [r.source for r in records('demo')] == ['yours']
    (project/'results'/'reference'/'paper').mkdir(parents=True) # a checkout that has a reference
    promote('demo')
    found = records('demo', ['reference', 'yours'])
    assert [(r.source, r.key) for r in found] == [('reference', made.key), ('yours', made.key)]
    Path(made.path).unlink()
    assert [r.source for r in records('demo', ['reference', 'yours'])] == ['reference']


@pytest.mark.parametrize('table', PAPER_TABLES)
def test_published_tables_to_the_digit(table):
    path = reference_dir()/'paper'/PAPER_TABLES[table].file
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SHA256[table]
    as_printed, frame = pd.read_csv(path, dtype=str, keep_default_na=False), published(table)
    assert len(as_printed) == len(frame)
    for column in PAPER_TABLES[table].metrics:
        assert ['' if pd.isna(v) else repr(v) for v in frame[column]] == as_printed[column].tolist()


def test_published_records_keep_their_place():
    found = records('scaling', ['paper'])
    assert len(found) == 72 and {r.basis for r in found} == {'published'} and {r.table for r in found} == {'Table 7'}
    assert all(r.row for r in found)
    noted = [r for r in found if r.note]
    assert noted[0].row == 'size b, epochs 200, cfg 3.0' and 'Table 6' in noted[0].note


def test_table_3_is_cited():
    "Its rows are not transcribed: each says which file it is from, at which commit, or that the paper's text has it."
    found = records('systems', ['paper'])
    assert {r.basis for r in found} == {'published'} and {r.table for r in found} == {'Table 3'}
    cited = {r.parameters['model']: r.provenance['cited'] for r in found}
    of_others = {model: said for model, said in cited.items() if not model.startswith('MaskGIL')}
    assert all(re.search(r'README.md at [0-9a-f]{12}', said) for said in of_others.values())
    assert {'RQTransformer', 'LlamaGen-XXL', 'MaskGIT', 'MAGE ViT-B'} <= {*of_others} # the four that the text names
    assert len(cited) - len(of_others) == 4
    assert all(math.isfinite(m['value']) for r in found for m in r.metrics.values())


def test_table_3_has_ours_beside_the_others():
    table = findings.systems_table(findings.gather_evidence('scaling'))
    lines = {(row.model, row['from'].split(',')[0]): row for _, row in table.iterrows()}
    assert lines['MaskGIT', 'valeoai/Maskgit-pytorch'].precision == '0.8'
    assert lines['LlamaGen-XXL', 'FoundationVision/LlamaGen'].FID == '2.34'
    ours = table[table['from'].str.startswith('Reference run')]
    assert [*ours.model] == ['MaskGIL-B', 'MaskGIL-L', 'MaskGIL-XL', 'MaskGIL-XXL'] and not (ours.recall == '–').any()
    assert any(t.title == 'Table 3, beside other systems' for t in STUDIES['scaling'].tables)


def test_units_of_two_data_sets_are_never_mixed():
    curve = [dict(epoch=MINI.training.epochs[-1], cfg=2.0, metrics=dict(fid_el0=metric(30.)))]
    run = Record('scaling', 'mini', dict(size='b'), dict(curve=curve), seed=0, basis='simulated',
                 settings=settings(MINI))
    both = pd.concat([long_table(records('scaling', ['paper'])), long_table([run])])
    side = as_text(compare(over_seeds(both)))
    assert list(side) == ['paper: FID, ImageNet 256 px', 'reference: none yet', 'yours: FID-EL0, OpenMoji 32 px']
    assert side.loc[('b', '100 %', 2.0)].tolist() == ['5.645', '–', '30.0 [29.0, 31.0]']
    assert side.loc[('xl', '100 %', 2.5)].tolist() == ['3.9031', '–', '–']
