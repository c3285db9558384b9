"`papermill nbs/NAME.ipynb` as people type it: in a terminal, in a pipe, without stdin, with mistakes."
import json, os, pty, resource, subprocess, sys
from pathlib import Path

import nbformat
import pytest

from conftest import write_notebook

PAPERMILL = str(Path(sys.executable).parent/'papermill')
PARAMETERS = """size: str = 'all'  # b | l | xl | xxl | all: rows of Table 2
cfg: list[float] = []  # guidance scales
steps: int = 0  # decoding steps
force: bool = False  # run again"""
GUARD = """from maskgil.cli import parameters
p = parameters(globals())
print(vars(p))"""
BODY = """import os
from pathlib import Path
if p.steps == 13: raise RuntimeError('unlucky')
path = Path(os.environ['MASKGIL_ROOT'])/'results'/'runs'/'tiny'/f'{p.size}.json'
path.parent.mkdir(parents=True, exist_ok=True)
path.write_text('{}')
print('record:', path)"""


@pytest.fixture
def study(project):
    return write_notebook(project/'nbs'/'tiny.ipynb', PARAMETERS, GUARD, BODY)


def plain_environment():
    "What a terminal has: no setting of the project."
    return {k: v for k, v in os.environ.items() if not k.startswith('MASKGIL_')}


def papermill(*args, cwd, stdin=subprocess.DEVNULL):
    return subprocess.run([PAPERMILL, *map(str, args)], cwd=cwd, env=plain_environment(), stdin=stdin,
                          capture_output=True, text=True, timeout=120)


def in_terminal(*args, cwd):
    "Run in a pseudo-terminal: stdin, stdout and stderr are one."
    main, other = pty.openpty()
    process = subprocess.Popen([PAPERMILL, *map(str, args)], cwd=cwd, env=plain_environment(), start_new_session=True,
                               stdin=other, stdout=other, stderr=other)
    os.close(other)
    text = b''
    while True:
        try: chunk = os.read(main, 4096)
        except OSError: break # the other end is closed
        if not chunk: break
        text += chunk
    os.close(main)
    return process.wait(timeout=120), text.decode()


def printed(nb_path):
    "What the guard printed in an executed copy."
    cells = [c for c in nbformat.read(nb_path, 4).cells if c.cell_type == 'code']
    return ''.join(o.text for c in cells for o in c.outputs if o.output_type == 'stream')


def processor_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def check_done(output, project, name='tiny-size=xxl.ipynb'):
    copy = project/'results'/'runs'/'tiny'/name
    assert f'executed copy: {copy}' in output
    assert f"record: {project/'results'/'runs'/'tiny'/'xxl.json'}" in output
    assert "'size': 'xxl'" in printed(copy)


def test_in_a_terminal(study, project):
    code, text = in_terminal('nbs/tiny.ipynb', '-p', 'size', 'xxl', cwd=project)
    assert code == 0, text
    check_done(text, project)


def test_piped_and_without_stdin(study, project):
    done = papermill('nbs/tiny.ipynb', '-p', 'size', 'xxl', cwd=project)
    assert done.returncode == 0, done.stderr
    check_done(done.stdout, project)
    assert not done.stdout.lstrip().startswith('{') # not the notebook


def test_stdin_is_a_pipe(study, project):
    before = study.read_text()
    done = papermill('nbs/tiny.ipynb', '-p', 'size', 'xxl', cwd=project, stdin=subprocess.PIPE)
    assert done.returncode == 0, done.stderr
    check_done(done.stdout, project)
    assert study.read_text() == before


def test_from_another_folder(study, project, tmp_path):
    done = papermill(study, '-p', 'size', 'xxl', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    check_done(done.stdout, project)


def test_explicit_output_is_honoured(study, project, tmp_path):
    done = papermill(study, tmp_path/'mine.ipynb', '-p', 'size', 'xxl', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "'size': 'xxl'" in printed(tmp_path/'mine.ipynb')
    assert not list((project/'results'/'runs'/'tiny').glob('*.ipynb'))


def test_output_to_stdout(study, project):
    done = papermill('nbs/tiny.ipynb', '-', cwd=project)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)['nbformat'] == 4


@pytest.mark.parametrize('args', [
    ('-p', 'size', 'xxl', '-p', 'cfg', '1.5,3'),
    ('-r', 'size', 'xxl', '-r', 'cfg', '1.5,3'),
    ('-y', '{size: xxl, cfg: [1.5, 3]}'),
    ('-f', 'given.yaml'),
])
def test_every_way_to_pass_parameters(study, project, args):
    (project/'given.yaml').write_text('size: xxl\ncfg: [1.5, 3]\n')
    done = papermill('nbs/tiny.ipynb', *args, cwd=project)
    assert done.returncode == 0, done.stderr
    check_done(done.stdout, project, 'tiny-size=xxl-cfg=1.5,3.0.ipynb')


@pytest.mark.parametrize('args, says', [
    (('-p', 'sizee', 'xxl'), "unknown parameter 'sizee': choose one of size, cfg, steps, force. Did you mean 'size'?"),
    (('-p', 'size', 'xxxl'), "unknown size 'xxxl': choose one of b, l, xl, xxl, all. Did you mean 'xxl'?"),
    (('-p', 'steps', 'eight'), "parameter steps takes int, not 'eight'"),
    (('-y', '{steps: [1]}'), "parameter steps takes int, not ['1']"),
])
def test_a_mistake_is_one_clear_error(study, project, args, says):
    before = processor_seconds()
    done = papermill('nbs/tiny.ipynb', *args, cwd=project)
    seconds = processor_seconds() - before # whatever else the machine does
    assert done.returncode != 0
    assert says in done.stderr
    assert 'Traceback' not in done.stderr
    assert not (project/'results').exists()
    assert seconds < 5


def test_a_mistake_with_an_explicit_output(study, project, tmp_path):
    done = papermill(study, tmp_path/'mine.ipynb', '-p', 'sizee', 'xxl', cwd=tmp_path)
    assert done.returncode != 0 and "unknown parameter 'sizee'" in done.stderr
    assert not (tmp_path/'mine.ipynb').exists()


def test_a_misspelt_study(study, project):
    done = papermill('nbs/tny.ipynb', '-p', 'size', 'xxl', cwd=project)
    assert done.returncode != 0 and "Did you mean 'tiny.ipynb'?" in done.stderr


def test_an_error_in_a_cell_is_one_line(study, project):
    done = papermill('nbs/tiny.ipynb', '-p', 'steps', '13', cwd=project)
    copy = project/'results'/'runs'/'tiny'/'tiny-steps=13.ipynb'
    assert done.returncode == 1
    assert 'Error: RuntimeError: unlucky' in done.stderr and str(copy) in done.stderr
    assert 'Traceback' not in done.stderr
    assert copy.exists() and not list(copy.parent.glob('*.json'))


def test_the_guard_inside_the_kernel(study, project):
    "papermill's Python interface does not go through its command."
    code = f"import papermill; papermill.execute_notebook({str(study)!r}, None, dict(sizee='xxl'), progress_bar=False)"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "unknown parameter 'sizee': choose one of size, cfg, steps, force." in done.stderr


def test_help_lists_the_parameters(study, project):
    done = papermill('--help-notebook', 'nbs/tiny.ipynb', cwd=project)
    assert done.returncode == 0, done.stderr
    declared = ('size: str', 'cfg: list[float]', 'steps: int', 'force: bool', 'rows of Table 2')
    for name in declared: assert name in done.stdout


def test_other_projects_are_left_alone(tmp_path):
    (tmp_path/'nbs').mkdir()
    write_notebook(tmp_path/'nbs'/'other.ipynb', 'size = 1', 'print(size)')
    code, text = in_terminal('nbs/other.ipynb', cwd=tmp_path)
    assert code == 2 and 'OUTPUT_PATH' in text
    done = papermill('nbs/other.ipynb', '-p', 'unknown', '1', cwd=tmp_path)
    assert done.returncode == 0 and json.loads(done.stdout)['nbformat'] == 4
