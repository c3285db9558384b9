"A fifth tokenizer, a fifth size and a tenth study, added as rows: plan, reproduce, tables, claims, report, front page."
import json, os, shutil, subprocess, sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent

ROWS = '''
from dataclasses import replace
from maskgil.models import Size, SizeRow, register_size
from maskgil.profiles import PROFILES
from maskgil.studies import COST, STUDIES, Cell, Study, Table, register_study
from maskgil.tokenizers import TOKENIZERS, TokenizerRow, register_tokenizer

register_tokenizer(TokenizerRow('fifth-vq', 'Fifth-VQ', '#cc79a7', published=TOKENIZERS['chameleon-vq'],
                                small=dict(quantizer='vq', codebook_size=48, code_dim=16)))
PROFILES['my'] = replace(PROFILES['smoke'], name='my')
wide = Size(1, 4, 64)
register_size(SizeRow('wide', 'Wide', '#56b4e9', published=Size(16, 12, 768), small={'mini-': wide, 'smoke-': wide}))

def grid(profile, p):
    yield Cell(dict(size='wide', mine='yes'), {}, 'wide', images=profile.evaluation.images)

def run(bench, cell, folder):
    from maskgil.cells import generation_cell
    return generation_cell(bench, cell.size, folder=folder, sheet=False, untrained=False)

scaling = STUDIES['scaling']
first_rows = Table('Of the tenth', lambda evidence: evidence.table[['size', 'family', 'value']].head(4))
register_study(Study('tenth', 'A tenth study', 'beyond the paper', 'Is it seen?', grid, run,
                     figures=scaling.figures[:1], tables=(first_rows, COST)))
'''

PARAMETERS = """profile: str = 'auto'      # auto | smoke | mini | midi | paper | PROFILE_ROWS
data: str = ''             # replaces the profile's data
seed: int = 0              # of weights, data order and samples
force: bool = False        # run again even if the record exists
run: bool = True           # False shows the records there are, and runs nothing
dry_run: bool = False      # print what it would take"""


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    "A copy of the project with one more notebook, and a file of rows."
    root = tmp_path_factory.mktemp('extended')
    for name in ('nbs', 'results/reference', 'checkpoints/openmoji-mini'): shutil.copytree(ROOT/name, root/name)
    shutil.copy(ROOT/'settings.ini', root)
    (root/'mine.py').write_text(ROWS)
    code = nbformat.v4.new_code_cell
    cells = [code(PARAMETERS, metadata=dict(tags=['parameters'])),
             code('from maskgil.cli import parameters\np = parameters(globals())'),
             code("from maskgil.notebook import open_study\nstudy = open_study('tenth', p)\nstudy.run()"),
             code("study.table('Of the tenth')")]
    metadata = dict(kernelspec=dict(display_name='python3', language='python', name='python3'))
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), root/'nbs'/'tenth.ipynb')
    return root


def run(project, *command):
    plain = {k: v for k, v in os.environ.items() if not k.startswith('MASKGIL_')}
    ours = dict(MASKGIL_EXTEND=str(project/'mine.py'), MASKGIL_ROOT=str(project), MASKGIL_PROGRESS='off')
    done = subprocess.run([sys.executable, *command], cwd=project, env=plain | ours | dict(OMP_NUM_THREADS='1'),
                          capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope='module')
def runs(project):
    "The new rows, run as `reproduce` starts them: the jobs that name them, in the smoke profile."
    ask = ('import json; from maskgil.profiles import PROFILES; from maskgil.reproduce import jobs; '
           'print(json.dumps(sum(jobs(PROFILES["smoke"]), [])))')
    every_job = json.loads(run(project, '-c', ask))
    mine = [(study, arguments) for study, arguments in every_job
            if study == 'tenth' or 'fifth-vq' in arguments.values() or 'wide' in arguments.values()]
    size, study, tokenizer = sorted(mine, key=str)
    assert size == ('scaling', dict(size='wide')) and study == ('tenth', {})
    assert tokenizer == ('tokenizers', dict(tokenizer='fifth-vq'))
    start = (f'from maskgil.reproduce import run_all; failed = run_all({mine!r}, profile="smoke"); '
             'assert not failed, failed')
    run(project, '-c', start)
    return project


def test_the_plan_has_them(project):
    said = run(project, '-m', 'maskgil.planner', 'profile=smoke')
    for name in ('tenth wide yes', 'scaling wide paper', 'fifth-vq'): assert name in said


def test_table_1_the_claims_and_the_report_have_them(runs):
    run(runs, '-m', 'maskgil.cli', 'report', '--profile', 'smoke')
    text = (runs/'reports'/'yours'/'README.md').read_text()
    table_1 = text[text.index('### Table 1'):].split('\n\n')[1]
    ours = next(line for line in table_1.splitlines() if 'Fifth-VQ' in line)
    assert ours.count('[') == 1 and ours.count('–') >= 3 # an rFID of ours, none of the paper
    assert '## A tenth study' in text and 'Of the tenth' in text and '| Wide |' in text
    assert text.index('What the paper claims') < text.index('A tenth study')
    assert '![' in text[text.index('## A tenth study'):] # its figure


def test_the_claims_are_those_of_the_paper(runs):
    "Five tokenizers and five sizes in the table: every claim has a verdict, and those of the paper are as before."
    ask = ('from maskgil.claims import check_claims; from maskgil.records import records; '
           'from maskgil.tables import history_table, long_table; found = records(); '
           'card = check_claims(long_table(found), history_table(found), "smoke"); '
           'print(card.paper.value_counts().to_dict(), card.yours.notna().all())')
    with_rows = run(runs, '-c', ask)
    assert 'True' in with_rows
    alone = subprocess.run([sys.executable, '-c', ask.replace('records()', "records(sources=['paper'])", 1)], cwd=ROOT,
                           capture_output=True, text=True)
    assert with_rows.split('}')[0] == alone.stdout.split('}')[0]


def test_the_tables_of_a_study_have_them(runs):
    generation = ('--study', 'tokenizers', '--title', 'Generation', '--profile', 'smoke')
    said = run(runs, '-m', 'maskgil.cli', 'table', *generation)
    assert said.count('Fifth-VQ') == 3 # under each architecture


def test_the_index_has_them(project):
    said = run(project, '-c', 'from maskgil.studies import studies_table; print(studies_table().to_string())')
    assert 'papermill nbs/tenth.ipynb' in said


def test_a_notebook_takes_a_profile_of_ones_own(project):
    said = run(project, '-m', 'papermill', 'nbs/scaling.ipynb', '-p', 'profile', 'my', '-p', 'size', 'b', '-p',
               'dry_run', 'True')
    copy, = (project/'results'/'runs'/'scaling').glob('*profile=my*.ipynb')
    assert copy.name in said and 'profile my: as asked' in copy.read_text()


def test_a_name_that_is_no_row_is_refused_with_the_rows(project):
    env = os.environ | dict(MASKGIL_EXTEND=str(project/'mine.py'))
    misspelt = ('papermill', 'nbs/scaling.ipynb', '-p', 'size', 'wode')
    done = subprocess.run([sys.executable, '-m', *misspelt], cwd=project, env=env, capture_output=True, text=True,
                          stdin=subprocess.DEVNULL)
    assert done.returncode and "choose one of b, l, xl, xxl, all, wide. Did you mean 'wide'?" in done.stderr
    assert 'Traceback' not in done.stderr
