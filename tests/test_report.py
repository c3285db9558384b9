"The report: three columns, what is missing said, one file that needs nothing else."
import dataclasses, re

import made_up_records
import pandas as pd
import pytest

from clock import at_most

from maskgil import report, studies
from maskgil.figures import fid_over_images
from maskgil.findings import Evidence
from maskgil.profiles import PROFILES, settings
from maskgil.records import PAPER_TABLES, Record, published, reference_dir, save_record
from maskgil.versions import versions_of

MINI = PROFILES['mini']
EPOCHS, SCALES, MAIN = MINI.training.epochs, MINI.evaluation.cfg, MINI.evaluation.main_cfg


def metric(value, label='FID-EL0'): return dict(value=value, low=value*.9, high=value*1.1, n=1000, label=label)

def point(epoch, scale, times):
    fid = metric(times*(37.5*EPOCHS[-1]/epoch + 20*(scale - 2)**2))
    return dict(epoch=epoch, cfg=scale, metrics=dict(fid_el0=fid, kid_el0=metric(.5/epoch, 'KID-EL0'),
                                                     is_el0=metric(3 + scale, 'IS-EL0')))

def add_run(size, folder=None, seed=0, basis='measured', scale=1., versions=None):
    curve = [point(e, c, scale) for e in EPOCHS for c in (SCALES if e == EPOCHS[-1] else [MAIN])]
    metrics = dict(curve=curve, untrained=dict(fid_el0=metric(900.)), floor=dict(fid_el0=metric(15.)))
    record = Record('scaling', 'mini', dict(size=size, recipe='paper'), metrics, seed=seed, basis=basis,
                    key=f'{size}{seed}', settings=settings(MINI), ended='2026-01-01',
                    versions=versions_of() if versions is None else versions)
    return save_record(record, folder)


@pytest.fixture
def pages(tmp_path):
    def write(**options):
        page = report.write_report(folder=str(tmp_path/'reports'), **options)
        return page.read_text(), page.with_name('README.md').read_text()
    return write


def test_without_any_run(pages):
    page, text = pages()
    for content in (page, text):
        assert 'No run of yours yet' in content and 'papermill nbs/scaling.ipynb' in content
        for cell in ('9.8001', '3.9031', '169.3604', '237.9921'): assert cell in content
        assert 'yours: none yet' in content


def test_three_columns_and_what_is_missing(pages, tmp_path, monkeypatch):
    reference = tmp_path/'reference'
    (reference/'paper').mkdir(parents=True)
    for path in (reference_dir()/'paper').glob('*.csv'): (reference/'paper'/path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr('maskgil.records.reference_dir', lambda: reference)
    for size in ('b', 'l', 'xl', 'xxl'): add_run(size, reference/'scaling', scale=2.)
    add_run('b'); add_run('xl')
    page, text = pages()
    assert 'Not run yet: l paper, xxl paper.' in text and '-p size l` runs one' in text
    for head in ('paper: FID, ImageNet 256 px', 'reference: FID-EL0, OpenMoji 32 px', 'yours: FID-EL0, OpenMoji 32 px'):
        assert head in page and head in text
    row = next(line for line in text.splitlines() if line.startswith('|  | 100 % |'))
    assert row == '|  | 100 % | 5.645 at 2 | 75.0 [67.5, 82.5] at 2 | 37.5 [33.8, 41.2] at 2 |'
    for path in (tmp_path/'results'/'runs'/'scaling').glob('*.json'): path.unlink() # the other two columns stay
    page, text = pages()
    assert 'yours: none yet' in text and 'reference: FID-EL0' in text and 'No run of yours yet' in text


def test_simulated_records_are_left_out(pages):
    add_run('b', basis='simulated')
    assert 'No run of yours yet' in pages()[1]


def test_one_file_that_needs_nothing_else(pages):
    add_run('b')
    page, text = pages()
    assert not re.search(r'(src|href)="(?!data:|#)', page) and '@import' not in page and '<script' not in page
    assert page.count('<img') == text.count('![') >= 2 and 'name="viewport"' in page # the same pictures as in README.md


def test_same_records_same_bytes_and_soon(pages):
    add_run('b')
    with at_most(60): first = pages()
    assert pages() == first


def test_a_study_is_a_row(pages, monkeypatch):
    costs = studies.Table('Costs', studies.cost_table)
    mine = dataclasses.replace(studies.STUDIES['scaling'], title='Scaling again', figures=(), tables=(costs,))
    monkeypatch.setitem(studies.STUDIES, 'scaling', mine)
    add_run('b')
    page, text = pages()
    assert '>Scaling again</h2>' in page and '### Costs' in text
    assert '| b0 |' in text # the key of the record, beside what it took


def test_records_of_an_older_version_are_named(pages):
    add_run('b', versions=versions_of() | dict(training=0))
    add_run('l', versions={})
    text = pages()[1]
    unknown = "so it is not known whether today's code gives the same numbers (scaling 1)."
    assert f'Your run: 1 record was made by an older version of training, {unknown}' in text
    assert f'Your run: 1 record was made before versions of the code were written into records, {unknown}' in text


def test_a_run_of_ones_own_is_rendered_beside_the_committed_page(tmp_path, monkeypatch):
    add_run('b')
    assert report.write_report() == tmp_path/'reports'/'yours'/'index.html'
    page = report.write_report(reference=True)
    assert page == tmp_path/'reports'/'index.html' and '37.5 [33.8' not in page.read_text()


def test_the_whole_paper(pages, tmp_path):
    "Every table and figure of the paper has its place, every published number its cell, the scorecard comes first."
    made_up_records.write(tmp_path/'results'/'runs', basis='measured')
    with at_most(60): page, text = pages()
    others = r'(\d+, |\d+ and |\da and )*' # named before it: 'Figures 8 and 9'
    for n in range(1, 11): assert re.search(rf'Figures? {others}{n}\b|Figures? {n}a', text), n
    for n in range(1, 8): assert f'Table {n}' in text or f'Tables {n}' in text, n
    assert text.index('What the paper claims') < text.index('Figure 2')
    assert 'supported' in text and 'contradicted' in text
    for name, table in PAPER_TABLES.items():
        frame = published(name)
        for column in set(table.metrics) - {'relative_resources', 'head_parameters'}:
            for value in frame[column].dropna(): assert repr(float(value)) in text, (name, column, value)
    assert len(list((tmp_path/'reports'/'figures').glob('*.svg'))) >= 15


def test_what_lacks_is_counted_in_the_profile_of_its_stage():
    study = studies.STUDIES['tokenizers']
    of = lambda profile, stage: [cell.parameters for cell in report.grid_of(study, profile)
                                 if cell.parameters['stage'] == stage]
    made = [*((p, 'midi') for p in of('midi', 'reconstruction')), *((p, 'mini') for p in of('mini', 'generation')[1:])]
    held = [Record('tokenizers', profile, parameters, {}, source='reference') for parameters, profile in made]
    without = report.cells_without_record(study, Evidence(held, pd.DataFrame()), 'reference')
    stages = [cell.parameters['stage'] for cell in without]
    assert stages.count('reconstruction') == 0 and stages.count('generation') == 1
    assert stages.count('head') == len(of('mini', 'head'))


def test_what_a_gpu_did():
    "Its section is there when such records are, and a run of the tiny form is none."
    metrics = dict(images_per_second=metric(150., 'images a second'), images=metric(64., 'images at a time'),
                   share_of_peak=metric(.5, 'share of the peak'))
    save_record(Record('gpu', 'smoke', dict(work='MAR B, 8 steps, decoded'), metrics, key='t', ended='2026-01-01'))
    assert not list(report.gpu_blocks())
    seen = dict(provenance=dict(device_name='NVIDIA H100', threads=8), ended='2026-01-02')
    for work in ('MAR L, 8 steps, decoded', 'training step B'):
        save_record(Record('gpu', 'paper', dict(work=work), metrics, key=work[:3], **seen))
    assert ('heading', report.ON_A_GPU, '`scripts/gpu_proof.sh`') in report.gpu_blocks()
    text = report.to_markdown(list(report.gpu_blocks()))
    assert 'NVIDIA H100' in text and '| 150 |' in text and '| 50% |' in text
    assert text.index('training step B') < text.index('MAR L') # in the order of the proof


def test_a_figure_of_one_number_of_images():
    "An empty table is no figure."
    row = dict(source='yours', data='x', part='curve', size='b', steps=4., order='confidence', images=10., cfg=2.,
               images_of=10., metric='fid', family='fid', label='FID', value=1., low=.5, high=2., study='steps',
               profile='mine', seeds=1)
    assert fid_over_images(pd.DataFrame([row])) is None
