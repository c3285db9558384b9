"The notebooks are the source: they run, they are clean, and maskgil/ is what they export."
import ast, filecmp, json, os, re, shutil, subprocess, sys
from pathlib import Path

import pytest

from maskgil.studies import STUDIES

ROOT = Path(__file__).parents[1]
LIBRARY = sorted((ROOT/'nbs').glob('[0-9][0-9]_*.ipynb'))
BIN = Path(sys.executable).parent


def run(*command, cwd):
    done = subprocess.run([BIN/command[0], *command[1:]], cwd=cwd, capture_output=True, text=True,
                          env={k: v for k, v in os.environ.items() if not k.startswith('MASKGIL_')})
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    "A copy of the project, to export into and to clean."
    folder = tmp_path_factory.mktemp('project')
    made_again = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints')
    for name in ('nbs', 'maskgil'): shutil.copytree(ROOT/name, folder/name, ignore=made_again)
    for name in ('settings.ini', 'README.md'): shutil.copy(ROOT/name, folder)
    return folder


@pytest.mark.parametrize('notebook', LIBRARY, ids=lambda p: p.stem)
def test_runs(notebook):
    run('nbdev_test', '--path', notebook, '--n_workers', '0', cwd=ROOT)


def test_export_is_in_sync(copy):
    for module in (copy/'maskgil').glob('*.py'):
        if module.name != '__init__.py': module.unlink()
    run('nbdev_export', cwd=copy)
    modules = [p.name for p in (ROOT/'maskgil').glob('*.py')]
    _, different, missing = filecmp.cmpfiles(ROOT/'maskgil', copy/'maskgil', modules, shallow=False)
    differ = different + missing
    assert not differ, f'run nbdev_export: {differ} differ from what the notebooks export'


def test_notebooks_are_clean(copy):
    run('nbdev_clean', cwd=copy)
    changed = [p.name for p in (ROOT/'nbs').glob('*.ipynb') if p.read_bytes() != (copy/'nbs'/p.name).read_bytes()]
    assert not changed, f'run nbdev_clean: it changes {changed}'


def test_parameters_keep_their_tag(copy):
    "papermill would silently run the defaults without it."
    for study in STUDIES: assert '"parameters"' in (copy/'nbs'/f'{study}.ipynb').read_text(), study

def as_module(notebook: Path) -> str:
    "The code of a notebook, as mypy reads it."
    cells = json.loads(notebook.read_text())['cells']
    code = '\n\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'code')
    return re.sub(r'^(\s*)[%!].*$', r'\1pass', code, flags=re.M) + '\n'


def wrong_calls(folder: Path, sources: dict[str, str]) -> list[str]: # name of a module -> its code
    "Names that the library does not have, and arguments that its functions do not take."
    for name, source in sources.items(): (folder/f'{name}.py').write_text(source)
    done = subprocess.run([sys.executable, '-m', 'mypy', *(str(folder/f'{n}.py') for n in sources)], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if re.search(r'Module "maskgil|call-arg|name-defined', line)]


def test_what_runs_beside_the_library_calls_it_as_it_is(tmp_path):
    "Studies, pages, scripts and benchmarks: a renamed function is found before any of them runs."
    notebooks = {f'nb_{p.stem}': as_module(p) for p in (ROOT/'nbs').glob('[!0-9]*.ipynb')}
    scripts = {f'{folder}_{p.stem}': p.read_text() for folder in ('scripts', 'benchmarks')
               for p in (ROOT/folder).glob('*.py')}
    assert len(notebooks) > len(STUDIES) and scripts
    assert not (wrong := wrong_calls(tmp_path, notebooks | scripts)), '\n'.join(wrong)


def test_a_name_that_is_gone_is_seen(tmp_path):
    code = 'from maskgil.report import write_report, no_such_name\nwrite_report(no_such_argument=1)\n'
    assert len(wrong_calls(tmp_path, {'nb_wrong': code})) == 2


def shown_value(source):
    "What a cell ends in, if that is a value and no test of one."
    last = ast.parse(source).body[-1]
    if not isinstance(last, ast.Expr): return ''
    called = ast.unparse(last.value.func) if isinstance(last.value, ast.Call) else ''
    return '' if re.match('test_|torch.testing', called) else ast.unparse(last)


def test_what_is_shown_has_an_output():
    "A cell that ends in a value was executed, and no cell marker ended up inside a cell."
    missing = []
    for notebook in LIBRARY:
        for cell in json.loads(notebook.read_text())['cells']:
            source = ''.join(cell['source'])
            assert not re.search(r'^# %+ ?(\[|$)', source, re.M), f'{notebook.name}: {source}'
            if cell['cell_type'] != 'code' or source.lstrip().startswith('#|') or cell['outputs']: continue
            if value := shown_value(source): missing.append(f'{notebook.name}: {value}')
    assert not missing, f'execute and save: {missing}'


def test_no_output_names_a_folder_of_the_machine_it_ran_on():
    "Nor is a warning kept: what is printed is the same wherever the notebook runs."
    found = []
    for notebook in ROOT.glob('nbs/*.ipynb'):
        for cell in json.loads(notebook.read_text())['cells']:
            for output in cell.get('outputs', []):
                text = json.dumps(output)
                if output.get('name') == 'stderr' or re.search('/tmp/|/home/|/root/|/Users/', text):
                    found.append(f'{notebook.name}: {text[:200]}')
    assert not found, found
