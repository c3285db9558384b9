"The report: three columns, what is missing said, one file that needs nothing else."
import dataclasses, re, time

import pytest

from maskgil import report, study
from maskgil.profiles import PROFILES, settings_of
from maskgil.records import Record, save_record

MINI = PROFILES['mini']


def metric(value, label='FID-EL0'): return dict(value=value, low=value*.9, high=value*1.1, n=1000, label=label)

def add_run(size, folder=None, seed=0, basis='measured', scale=1.):
    curve = [dict(epoch=e, cfg=c, metrics=dict(fid_el0=metric(scale*(37.5*MINI.epochs[-1]/e + 20*(c - 2)**2)), kid_el0=metric(.5/e, 'KID-EL0'), is_el0=metric(3 + c, 'IS-EL0')))
             for e in MINI.epochs for c in (MINI.cfg if e == MINI.epochs[-1] else [MINI.main_cfg])]
    return save_record(Record('scaling', 'mini', dict(size=size, recipe='paper'), dict(curve=curve, untrained=dict(fid_el0=metric(900.)), floor=dict(fid_el0=metric(15.))),
                              seed=seed, key=f'{size}{seed}', basis=basis, settings=settings_of(MINI), ended='2026-01-01'), folder)


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
    for path in (study.reference_dir()/'paper').glob('*.csv'): (reference/'paper'/path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(study, 'reference_dir', lambda: reference)
    for size in ('b', 'l', 'xl', 'xxl'): add_run(size, reference/'scaling', scale=2.)
    add_run('b'); add_run('xl')
    page, text = pages()
    assert 'Not run yet: l, xxl.' in text
    for head in ('paper: FID, ImageNet 256 px', 'reference: FID-EL0, OpenMoji 32 px', 'yours: FID-EL0, OpenMoji 32 px'): assert head in page and head in text
    row = next(line for line in text.splitlines() if line.startswith('|  | 100 % |'))
    assert row == '|  | 100 % | 5.645 at 2 | 75.0 [67.5, 82.5] at 2 | 37.5 [33.8, 41.2] at 2 |'
    for name in ('b0', 'xl0'): (tmp_path/'results'/'runs'/'scaling'/f'{name}.json').unlink() # deleting the runs leaves the other two columns
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
    start = time.monotonic()
    first = pages()
    assert time.monotonic() - start < 60
    assert pages() == first


def test_a_study_is_a_row(pages, monkeypatch):
    mine = dataclasses.replace(next(s for s in report.SECTIONS if s.study == 'scaling'), title='Scaling again', figures=(), tables=(report.Table('Costs', report.cost_table),))
    monkeypatch.setattr(report, 'SECTIONS', (*report.SECTIONS, mine))
    add_run('b')
    page, text = pages()
    assert '>Scaling again</h2>' in page and '### Costs' in text


def test_the_whole_paper(pages, tmp_path):
    "Records of every study: each table and figure of the paper has its place, every published number its cell, the scorecard comes first."
    import made_up_records
    made_up_records.write(tmp_path/'results'/'runs', basis='measured')
    start = time.monotonic()
    page, text = pages()
    assert time.monotonic() - start < 60
    for number in range(1, 11): assert f'Figure {number}' in text or f'Figures {number}' in text or f'Figure {number}a' in text, number
    for number in range(1, 8): assert f'Table {number}' in text or f'Tables {number}' in text, number
    assert text.index('What the paper claims') < text.index('Figure 2') and 'supported' in text and 'contradicted' in text
    for table in study.PUBLISHED:
        frame = study.published(table)
        for column in (c for c in study.PUBLISHED[table].metrics if c not in ('relative_resources', 'head_parameters')):
            for value in frame[column].dropna(): assert repr(float(value)) in text, (table, column, value)
    assert len(list((tmp_path/'reports'/'figures').glob('*.svg'))) >= 15
