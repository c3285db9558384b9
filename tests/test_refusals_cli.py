"Command line, notebook, environment, terminal: what comes from there is taken as meant, or refused in one line."
import base64, contextlib, io, os, re, signal, subprocess, sys, tarfile, time
from pathlib import Path
from unittest import mock

import nbformat
import pandas as pd
import pytest
from PIL import Image

from conftest import write_notebook
from maskgil import checks, cli, reproduce

ROOT = Path(__file__).resolve().parent.parent
PARAMETERS = """size: str = 'b'  # b | l | xxl | all: rows
data: str = ''  # a folder
checkpoint: str = ''  # a folder to save in
cfg: list[float] = []  # scales
epochs: list[int] = []  # of training
names: list[str] = []  # of anything
seed: int = 0  # of all
shift: int = 0  # by which all is moved
rate: float = 0.  # of learning
force: bool = False  # again"""
GUARD = 'from maskgil.cli import parameters\np = parameters(globals())\nprint(vars(p))'


@pytest.fixture
def given(project, monkeypatch):
    "papermill's own command line in this process, with a kernel that only notes what it would be given."
    import click, papermill.cli
    from click.testing import CliRunner
    write_notebook(project/'nbs'/'tiny.ipynb', PARAMETERS, GUARD)
    monkeypatch.chdir(project)
    monkeypatch.setattr(papermill.cli, 'INPUT_PIPED', False)
    for name in ('invoke', 'parse_args'): monkeypatch.setattr(click.Command, name, getattr(click.Command, name))
    cli.install()
    def run(*args, notebook='nbs/tiny.ipynb', **variables):
        seen = {}
        def noted(**options):
            seen.update(options, environment=dict(os.environ))
            return nbformat.v4.new_notebook()
        monkeypatch.setattr(papermill.cli, 'execute_notebook', noted)
        with mock.patch.dict(os.environ, variables):
            done = CliRunner().invoke(papermill.cli.papermill, [notebook, *map(str, args)])
        assert done.exit_code or seen, done.output
        assert not isinstance(done.exception, Exception) or isinstance(done.exception, SystemExit), done.exception
        return seen or done
    return run


def refused(done, *says):
    "A run that has ended before the kernel, in one line."
    assert not isinstance(done, dict), f"accepted: {done['parameters']}"
    assert done.exit_code in (1, 2)
    lines = done.output.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith('Error: '), done.output
    for word in says: assert word in lines[0], lines[0]


TEXTS = ['007', '1e3', '2012_06', '1_0', 'None', 'null', '~', 'yes', 'no', 'on', 'True', '0x1F', '2012-06-01', '1:30',
         '.5', '-3', 'inf', '[1, 2]', "it's", 'caf\xe9', ' two words ']

@pytest.mark.parametrize('text', TEXTS)
def test_a_text_stays_as_it_was_typed(given, text):
    meant = dict(checkpoint=os.path.expanduser(text))
    for option in ('-p', '-r'): assert given(option, 'checkpoint', text)['parameters'] == meant


@pytest.mark.parametrize('text', [t for t in TEXTS if t not in ('null', '~') and t[0] not in ' ['])
def test_a_text_from_yaml_stays_as_it_was_written(given, project, text):
    yaml = f'checkpoint: {text}\n'
    (project/'g.yaml').write_text(yaml, encoding='utf-8')
    for option in (('-y', yaml), ('-f', 'g.yaml'), ('-b', base64.b64encode(yaml.encode()).decode())):
        assert given(*option)['parameters'] == dict(checkpoint=text)


def test_null_is_no_text_unless_it_is_quoted(given):
    for nothing in ('null', '~', ''): refused(given('-y', f'data: {nothing}'), 'parameter data takes str, not None')
    assert given('-y', "checkpoint: 'null'")['parameters'] == dict(checkpoint='null')
    assert given('-y', '"checkpoint": "~x~"')['parameters'] == dict(checkpoint='~x~')


@pytest.mark.parametrize('name, text, value', [
    *(('cfg', t, [1.5, 2.0]) for t in ('1.5,2', '[1.5, 2]', '(1.5, 2)', '1.5 2', '[1.5,2.0]', ' 1.5 , 2 ', '[1.5 2]',
                                       '1.5,2,')),
    *(('cfg', t, []) for t in ('', '[]', '()', ' ')), ('cfg', '2', [2.0]), ('cfg', '(2,)', [2.0]),
    ('cfg', '1e1', [10.0]),
    ('epochs', '[2, 4]', [2, 4]), ('epochs', '2.0,4e0', [2, 4]), ('names', 'a,b', ['a', 'b']),
    ('names', '[1e3, 007]', ['1e3', '007']),
    ('names', '["a, b", \'c\']', ['a, b', 'c']), ('names', 'a photo, of it', ['a photo', 'of it']),
    *(('force', t, True) for t in ('True', 'true', 'TRUE', 'yes', 'on', '1')),
    *(('force', t, False) for t in ('False', 'false', 'no', 'Off', '0')),
    ('shift', '8.0', 8), ('shift', '1e3', 1000), ('shift', '-1', -1), ('shift', '9007199254740993', 2**53 + 1),
    ('shift', str(2**63 - 1), 2**63 - 1), ('shift', '0x1F', 31), ('rate', '1e-4', 1e-4), ('rate', '3', 3.0),
    ('size', 'XXL', 'xxl'), ('size', ' Xxl', 'xxl'), ('size', 'ALL', 'all'),
])
def test_what_was_meant(given, name, text, value):
    seen = given('-p', name, text)['parameters'][name]
    assert seen == value and type(seen) is type(value)


@pytest.mark.parametrize('name, text, says', [
    *(('seed', t, 'takes int') for t in ('', 'eight', '8.5', 'nan', 'inf', '1,5', 'True', '1e30', '9'*20, str(2**63),
                                         'None', '[8]')),
    *(('rate', t, 'a number, such as 1.5') for t in ('', 'nan', '-inf', '1e999', '1,5', 'fast')),
    *(('force', t, 'True or False') for t in ('', 'maybe', '2', 'None')),
    *(('cfg', t, 'such as 1.5,2') for t in ('a', '1,,2', ',', '[1', '1;2', '[[1]]', '1,nan', '{1: 2}')),
    ('epochs', '1.5', 'such as 2,4'), ('size', 'huge', 'choose one of b, l, xxl, all'), ('size', '', 'choose one of'),
    ('size', 'xxxl', "Did you mean 'xxl'?"), ('sizee', 'b', "Did you mean 'size'?"),
    ('SEED', '1', "Did you mean 'seed'?"),
    ('size=xxl', 'x', 'two words, size xxl'), ('size', '\x1b[31m', r'\x1b[31m'), ('size', 'x' * 5000, '...'),
])
def test_what_cannot_be_meant(given, project, name, text, says):
    refused(given('-p', name, text), says, name.partition('=')[0])
    assert not (project/'results').exists()


def test_of_two_values_of_one_name_the_last_counts(given, project):
    assert given('-p', 'size', 'l', '-p', 'size', 'xxl')['parameters'] == dict(size='xxl')
    (project/'g.json').write_text('{"size": "l", "cfg": [1, 2.5], "force": true, "seed": 10}')
    assert given('-f', 'g.json', '-p', 'seed', '7')['parameters'] == dict(size='l', cfg=[1., 2.5], force=True, seed=7)


@pytest.mark.parametrize('args, says', [
    (('-y', 'size'), '-y has no lines'), (('-y', '[1]'), '-y has no lines'), (('-y', 'a: [1'), '-y is not YAML'),
    (('-y', 'seed: 1\nseed: 2'), 'two values for seed'), (('-y', 'seed: 1\n---\nseed: 2'), '-y is not YAML'),
    (('-y', 'seed: {a: 1}'), 'parameter seed takes int'), (('-y', 'cfg: [[1]]'), 'parameter cfg takes'),
    (('-y', 'checkpoint: !!python/object/apply:os.system [ls]'), 'parameter checkpoint takes str'),
    (('-y', 'checkpoint: [a]'), 'parameter checkpoint takes str'), (('-y', '3: 4'), "unknown parameter '3'"),
    (('-b', '@@'), '-b is not base64'), (('-b', base64.b64encode(b'\xff\xfe\xfa').decode()), '-b is not YAML'),
    (('-f', 'absent.yaml'), 'absent.yaml'), (('-f', 'nbs'), 'nbs'), (('-f', 'latin.yaml'), 'latin.yaml'),
    (('-p', 'size=l', '-p', 'seed=1'), 'two words, size l'), (('-p', 'size=l'), '-p NAME VALUE'),
    (('size', 'l'), '-p NAME VALUE'), (('xxl',), '-p NAME VALUE'), (('--cwd', 'absent'), 'absent'),
    (('absent/a.ipynb',), 'absent'), (('-k', 'absent'), 'python3'), (('nbs',), 'nbs'), (('/proc/a.ipynb',), '/proc'),
])
def test_mistakes_of_a_command_line(given, project, args, says):
    (project/'latin.yaml').write_bytes(b'data: caf\xe9')
    refused(given(*args), says)
    assert not (project/'results').exists()


@pytest.mark.parametrize('notebook, says', [
    ('nbs/tny.ipynb', "Did you mean 'tiny.ipynb'?"), ('tiny.ipynb', 'Did you mean nbs/tiny.ipynb?'),
    ('elsewhere/tiny', 'Did you mean nbs/tiny.ipynb?'), ('nbs/cut.ipynb', 'no notebook, or is damaged'),
    ('nbs/untagged.ipynb', 'the tag `parameters`'), ('nbs/edited.ipynb',
                                                     'line 2 of the parameters cell of nbs/edited.ipynb'),
    ('nbs/foreign.ipynb', "no kernel 'of-somebody'"),
])
def test_a_notebook_that_is_no_study(given, project, notebook, says):
    text = (project/'nbs'/'tiny.ipynb').read_text()
    (project/'nbs'/'cut.ipynb').write_text(text[:300])
    (project/'nbs'/'untagged.ipynb').write_text(text.replace('"parameters"', '"other"'))
    write_notebook(project/'nbs'/'edited.ipynb', "size: str = 'b'\nseed = 3", GUARD)
    (project/'nbs'/'foreign.ipynb').write_text(text.replace('"name": "python3"', '"name": "of-somebody"'))
    refused(given(notebook=notebook), says)


def test_a_copy_elsewhere_is_a_study_too(given, project, tmp_path):
    (tmp_path/'a').mkdir()
    copy = tmp_path/'a'/'b.ipynb'
    copy.write_text((project/'nbs'/'tiny.ipynb').read_text())
    seen = given('-p', 'checkpoint', '007', notebook=str(copy))
    assert seen['parameters'] == dict(checkpoint='007')
    assert seen['output_path'] == str(project/'results'/'runs'/'b'/'b-checkpoint=007.ipynb')
    refused(given('-p', 'sizee', 'l', notebook=str(copy)), "Did you mean 'size'?")


def test_braces_in_a_path_are_no_parameters(given, tmp_path, project):
    root = tmp_path/'br{a}ce'
    project.rename(root)
    os.chdir(root)
    seen = given(notebook=str(root/'nbs'/'tiny.ipynb'))
    assert [seen[k].format() for k in ('input_path', 'output_path')] == \
        [str(root/'nbs'/'tiny.ipynb'), str(root/'results'/'runs'/'tiny'/'tiny.ipynb')]


# Folders

def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (8, 8)).save(path)


def test_a_kernel_in_another_folder_opens_what_was_looked_at(given, project):
    picture(project/'pictures'/'cat'/'1.png')
    (project/'mine.py').touch()
    seen = given('-p', 'data', 'pictures', '-p', 'checkpoint', 'out', '--cwd', 'nbs', MASKGIL_CACHE='c', IMAGENET='i',
                 MASKGIL_EXTEND='mine.py,json', MASKGIL_RESULTS='~/r', HOME=str(project/'home'))
    assert seen['parameters'] == dict(data=str(project/'pictures'), checkpoint=str(project/'out'))
    expected = dict(MASKGIL_CACHE='c', MASKGIL_RESULTS='home/r', IMAGENET='i', MASKGIL_ROOT='')
    for name, place in expected.items(): assert seen['environment'][name] == str(project/place)
    assert seen['environment']['MASKGIL_EXTEND'] == f"{project/'mine.py'},json"
    assert Path(seen['output_path']).is_relative_to(project/'home'/'r')
    refused(given('-p', 'data', '../pictures', '--cwd', 'nbs'), str(project.parent/'pictures'))


def test_here_a_relative_path_stays_as_it_is(given, project):
    "The run's key holds it."
    picture(project/'2012_06'/'cat'/'1.png')
    seen = given('-p', 'data', '2012_06', '-p', 'checkpoint', '~/x', HOME='/home/fox')
    assert seen['parameters'] == dict(data='2012_06', checkpoint='/home/fox/x')
    assert seen['output_path'].endswith('tiny-data=2012_06-checkpoint=__x-' + seen['output_path'][-14:])


@pytest.mark.parametrize('name, says', [('a.parquet', ''), ('a.tar', ''), ('a.zip', 'neither .parquet nor .tar'),
                                        ('empty', 'is empty'), ('absent', 'there is no'),
                                        ('caf\udce9', 'is not UTF-8')])
def test_data_are_looked_at_first(given, project, name, says):
    for file in ('a.parquet', 'a.tar', 'a.zip', 'caf\udce9'): (project/file).touch()
    (project/'caf\udce9').unlink()
    picture(project/'caf\udce9'/'cat'/'1.png')
    (project/'empty').mkdir()
    done = given('-p', 'data', name)
    if says: refused(done, says)
    else: assert done['parameters'] == dict(data=name)


@pytest.mark.parametrize('variables, says', [
    (dict(MASKGIL_RESULTS='/proc/results'), 'MASKGIL_RESULTS'),
    (dict(MASKGIL_RESULTS='settings.ini'), 'MASKGIL_RESULTS'),
    (dict(MASKGIL_CACHE='settings.ini'), 'MASKGIL_CACHE'),
    (dict(MASKGIL_PROFILE='foo'), 'auto, smoke, mini, midi, paper'),
    (dict(MASKGIL_PROFILE='Paper'), "perhaps 'paper'"), (dict(MASKGIL_PROCESSES='x'), 'a whole number'),
    (dict(MASKGIL_PROCESSES='-1'), 'a whole number'), (dict(MASKGIL_PROGRESS='/nowhere/x'), "'off'"),
    (dict(MASKGIL_EXTEND='absent.py'), 'there is no absent.py'), (dict(MASKGIL_ROOT='/nowhere'), 'an existing folder'),
    (dict(MASKGIL_CHECKPOINTS='/nowhere'), 'an existing folder'),
    (dict(MASKGIL_INCEPTION='/nowhere'), 'an existing file'),
])
def test_variables_without_sense(given, variables, says):
    refused(given(**variables), says, *variables)


def test_the_variable_names_a_profile_of_ones_own(tmp_path):
    "Which rows a file adds is known once it is read; then `resolve_profile` refuses what is none."
    own = dict(MASKGIL_PROFILE='mine', MASKGIL_EXTEND=str(tmp_path/'rows.py'))
    (tmp_path/'rows.py').touch()
    assert checks.check_variables(own) == []
    with pytest.raises(checks.ParameterError, match='auto, smoke, mini, midi, paper'):
        checks.check_variables(dict(MASKGIL_PROFILE='mine'))


def test_a_command_knows_a_profile_of_ones_own(tmp_path):
    "publish, which does not read the studies, too."
    rows = 'from dataclasses import replace\nfrom maskgil.profiles import PROFILES\n'
    (tmp_path/'rows.py').write_text(rows + "PROFILES['mine'] = replace(PROFILES['smoke'], name='mine')\n")
    env = os.environ | dict(MASKGIL_EXTEND=str(tmp_path/'rows.py'), MASKGIL_RESULTS=str(tmp_path/'results'))
    command = [sys.executable, '-m', 'maskgil.cli', 'publish', '--size', 'b', '--profile', 'mine']
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode and 'no run to publish' in done.stderr and 'unknown profile' not in done.stderr


def test_a_misspelt_variable_is_a_warning():
    with contextlib.redirect_stderr(io.StringIO()) as said, mock.patch.dict(os.environ, MASKGIL_RESULT='/x'):
        checks.settle_variables()
    warning = 'the variable MASKGIL_RESULT means nothing to maskgil. Did you mean MASKGIL_RESULTS?'
    assert said.getvalue() == f'warning: {warning}\n'


def test_every_variable_is_in_the_table():
    read = {name for path in (ROOT/'maskgil').glob('*.py') for name in re.findall(r'MASKGIL_[A-Z]+', path.read_text())}
    assert read == set(checks.VARIABLES)
    from maskgil.profiles import PROFILES
    assert checks.VARIABLES['MASKGIL_PROFILE'][0].split(' | ') == ['auto', *PROFILES]


def test_a_full_disk_is_found_first(given):
    with mock.patch('shutil.disk_usage', return_value=mock.Mock(free=2**22)):
        refused(given(), 'only 4 MiB are free', 'MASKGIL_RESULTS')


def test_results_and_cache_only_matter_to_a_run(given, project, tmp_path):
    write_notebook(project/'nbs'/'tiny.ipynb', PARAMETERS + '\nrun: bool = True\ndry_run: bool = False', GUARD)
    refused(given(MASKGIL_CACHE='/proc/c'), 'MASKGIL_CACHE')
    for option in ('run', 'False'), ('dry_run', 'yes'): given('-p', *option, MASKGIL_CACHE='/proc/c')
    refused(given(tmp_path/'mine.ipynb', MASKGIL_RESULTS='/proc/r'), 'MASKGIL_RESULTS')
    assert given(tmp_path/'mine.ipynb', '-p', 'run', 'False',
                 MASKGIL_RESULTS='/proc/r')['output_path'] == str(tmp_path/'mine.ipynb')


def test_a_home_that_is_missing(tmp_path):
    with mock.patch.dict(os.environ, HOME='/proc/nobody', JUPYTER_RUNTIME_DIR=''):
        made = cli.folders_for_jupyter()
        assert Path(made['JUPYTER_RUNTIME_DIR']).is_dir() and made['HOME'] == made['IPYTHONDIR']
    with mock.patch.dict(os.environ, HOME=str(tmp_path), JUPYTER_RUNTIME_DIR=''): assert cli.folders_for_jupyter() == {}


# The kernel and the terminal

@pytest.fixture
def papermill(project):
    plain = {k: v for k, v in os.environ.items() if not k.startswith('MASKGIL_')}
    def run(*cells, **variables):
        write_notebook(project/'nbs'/'tiny.ipynb', "size: str = 'b'  # b | l", *cells)
        log = project/'log.txt'
        log.write_text('job 4711 on node17\n')
        with open(log, 'a') as out:
            code = subprocess.run([Path(sys.executable).parent/'papermill', 'nbs/tiny.ipynb'], cwd=project, stdout=out,
                                  env=plain | variables, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL).returncode
        return code, log.read_bytes()
    return run

BAR = "from maskgil.core import progress\nfor _ in progress(range(3), desc='training'): pass"

@pytest.mark.parametrize('cell, says, code', [
    ('import os, signal; os.kill(os.getpid(), signal.SIGKILL)',
     ('was killed', 'memory', 'goes on from here', 'cell 3'), 138),
    ('import ctypes; ctypes.string_at(0)', ('SIGSEGV', 'goes on from here', 'cell 3'), 138),
    ("raise OSError('no caf\xe9\\n\\x1b[31mhere')", (r' \x1b[31mhere (cell 3 of', 'Error: OSError: no caf',
                                                     'traceback is in'), 1),
])
def test_a_log_keeps_its_lines_and_gets_one_more(papermill, project, cell, says, code):
    "In a terminal that knows ASCII alone, with a log that a scheduler has begun."
    ascii_only = dict(PYTHONIOENCODING='ascii', NO_COLOR='1', TERM='dumb')
    done, log = papermill(GUARD, cell, **ascii_only)
    text = log.decode()
    assert done == code and text.startswith('job 4711')
    for unwanted in ('Traceback', '\r', '\0'): assert unwanted not in text
    last = text.splitlines()[-1]
    for word in (*says, str(project/'results'/'runs'/'tiny'/'tiny.ipynb')): assert word in last


def test_a_bar_leaves_the_log_alone(papermill):
    done, log = papermill(GUARD, BAR)
    assert done == 0 and log.startswith(b'job 4711') and b'Input Notebook' in log
    for unwanted in (b'\0', b'\r', b'training'): assert unwanted not in log


def test_how_a_run_ended():
    options = dict(input_path='nbs/a.ipynb', output_path='/absent/a.ipynb', start_timeout=60)
    dead = type('DeadKernelError', (RuntimeError,), {})('Kernel died')
    assert 'ended with exit code 3 in cell ? of nbs/a.ipynb: the same command' in cli.explained(dead, [3], options)[0]
    late = cli.explained(RuntimeError("Kernel didn't respond in 60 seconds"), [], options)
    assert late[0].startswith('the kernel did not start: it did not answer in 60 s (--start-timeout)') and late[1] == 1
    assert 'ended with exit code 1' in cli.explained(RuntimeError('Kernel died before replying'), [1], options)[0]
    assert '/absent/a.ipynb' in cli.explained(OSError('No space left on device'), [], options)[0]


def test_a_terminal_is_a_terminal(tmp_path):
    import pty
    code = 'import maskgil.cli; open(3, "w").write(maskgil.cli.terminal())'
    def said(stderr):
        command = ['bash', '-c', f"exec 3>{tmp_path/'said'}; {sys.executable} -c '{code}'"]
        subprocess.run(command, stderr=stderr, check=True)
        return (tmp_path/'said').read_text()
    main, other = pty.openpty()
    assert said(other) == os.ttyname(other)
    os.close(main), os.close(other)
    with open(tmp_path/'log', 'w') as log: assert said(log) == said(subprocess.PIPE) == 'off'


# A parameters cell edited by hand

def in_jupyter(*cells):
    "The value of `p` after some cells of a session, or the last error."
    from IPython.core.interactiveshell import InteractiveShell
    shell = InteractiveShell()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for cell in cells: done = shell.run_cell(cell, store_history=True)
    return f'{type(error).__name__}: {error}' if (error := done.error_in_exec) else vars(shell.user_ns['p'])

AGAIN = 'from maskgil.checks import check_current\ncheck_current(p)'
CELL = "size: str = 'l'  # b | l\nsteps: int = 2"
ASKED = 'from maskgil.cli import parameters\np = parameters(globals())'

@pytest.mark.parametrize('cells, said', [
    ((CELL, ASKED), dict(size='l', steps=2)), ((CELL + "\nprint('hello')", ASKED), dict(size='l', steps=2)),
    (('# a note\nimport os\n' + CELL, ASKED), dict(size='l', steps=2)),
    ((CELL.replace("'l'", "'L'"), ASKED), dict(size='l', steps=2)),
    ((CELL, ASKED, CELL.replace('= 2', '= 3'), ASKED), dict(size='l', steps=3)), # run twice
    ((CELL, 'n: int = 3', ASKED), dict(size='l', steps=2)), # something tried out
    ((CELL, "size = 'b'", ASKED), dict(size='b', steps=2)),
    ((CELL.replace('size: str', 'size'), ASKED), 'line 1 of the parameters cell'),
    ((CELL + '\nfor i in range(3): steps += i', ASKED), 'line 3 of the parameters cell'),
    ((CELL + '\nmore: dict = {}', ASKED), 'parameter more is declared as dict'),
    ((CELL.replace("'l'", '5'), ASKED), 'parameter size takes str, not 5'),
    ((CELL.replace('= 2', "= 'two'"), ASKED), "parameter steps takes int, not 'two'"),
    ((ASKED,), 'run the cell tagged parameters first'), (('size = 3', ASKED), 'run the cell tagged parameters first'),
    ((CELL, ASKED, 'p.seed'), 'the parameters cell does not declare seed, only size, steps'),
    (('# Parameters\nsteps = 9', CELL, ASKED), 'the tag `parameters`'),
    ((CELL, '# Parameters\nsteps = 9', ASKED), dict(size='l', steps=9)),
    ((CELL, ASKED, CELL.replace('= 2', '= 3'), AGAIN), 'steps changed'),
    ((CELL, ASKED, 'steps = 5', AGAIN), dict(size='l', steps=2)),
])
def test_a_cell_edited_by_hand(cells, said):
    seen = in_jupyter(*cells)
    if isinstance(said, dict): assert seen == said
    else: assert isinstance(seen, str) and said in seen, seen


# Programs

@pytest.mark.parametrize('command, code, says', [
    ('', 2, 'choose one of sample, learn, plan'), ('sampel', 2, "Did you mean 'sample'?"),
    ('--steps 3', 2, "unknown command '--steps'"),
    ('plan --study scalling', 1, "Did you mean 'scaling'?"), ('plan --studdy scaling', 2, "Did you mean '--study'?"),
    ('plan --profile papper', 1, "Did you mean 'paper'?"), ('plan --machines 9xH100', 1, 'choose one of'),
    ('plan study=scaling', 2, 'write --study scaling'), ('plan scaling', 2, 'belongs to no option'),
    ('plan --machines []', 1, 'no machine'),
    ('table --title Table', 1, 'choose one of'), ('table --profile big', 1, 'choose one of'),
    ('index --source x', 1, 'choose one of'),
    ('reproduce --lanes -1', 1, 'lanes is -1'), ('reproduce --lanes two', 2, 'takes int'),
    ('reproduce --seed -1', 1, 'seed is -1'),
    ('reproduce --force maybe', 2, 'True or False'), ('reproduce --profile huge', 1, 'choose one of'),
    ('report --profile big', 1, 'choose one of'), ('report --profile', 2, 'expected one argument'),
    ('report --reference perhaps', 2, 'True or False'),
    ('publish --size huge', 1, 'choose one of'), ('publish --profile big', 1, 'choose one of'),
    ('promote --study s', 1, 'choose one of'),
])
def test_a_wrong_command_is_one_line(command, code, says, capsys, own_results):
    with pytest.raises(SystemExit) as end: cli.main(command.split())
    line = capsys.readouterr().err.strip() or str(end.value.code)
    assert (end.value.code if isinstance(end.value.code, int) else 1) == code
    assert says in line and '\n' not in line and 'Traceback' not in line
    assert not list(own_results.rglob('*.json'))


def program(*command, **options):
    options = dict(capture_output=True, text=True, stdin=subprocess.DEVNULL) | options
    plain = {k: v for k, v in os.environ.items() if not k.startswith('MASKGIL_')}
    return subprocess.run([sys.executable, *command], env=plain | options.pop('env', {}), **options)


@pytest.mark.parametrize('module, says', [('planner', 'usage'), ('reproduce', '--lanez'), ('report', '--lanez'),
                                          ('cli', '--lanez')])
def test_each_program_says_its_own_name(module, says):
    done = program('-m', f'maskgil.{module}', *([] if module == 'planner' else ['--lanez']))
    assert done.returncode in (1, 2) and done.stderr.count('\n') == 1
    assert says in done.stderr and f'maskgil.{module}' in done.stderr


def test_a_reader_that_has_seen_enough():
    def shell(line): return subprocess.run(['bash', '-c', line], capture_output=True, text=True)
    done = shell(f'{sys.executable} -m maskgil.cli variables | head -c 5')
    assert done.stderr == '' and done.stdout.startswith('MASKG')
    full = shell(f'{sys.executable} -m maskgil.cli variables > /dev/full')
    assert full.returncode == 1 and 'No space left' in full.stderr and 'Traceback' not in full.stderr


@pytest.mark.parametrize('environment', [dict(PYTHONIOENCODING='ascii'), dict(LC_ALL='C', PYTHONUTF8='0',
                                                                              PYTHONCOERCECLOCALE='0')])
def test_any_text_can_be_printed(environment):
    code = '''
import sys
from maskgil.checks import run_function
def f():
    print('caf\\xe9 \\u2713 \\udce9')
    print('\\u2713', file=sys.stderr)
    raise ValueError('caf\\xe9')
run_function(f, [])
'''
    done = program('-c', code, env=environment, text=False)
    assert done.returncode == 1 and done.stdout.startswith(b'caf')
    assert done.stderr.splitlines()[-1].startswith(b'ValueError: caf')
    assert b'Traceback' not in done.stderr


def test_a_traceback_is_for_who_asks():
    code = 'from maskgil.checks import run_function\ndef f(): [].x\nrun_function(f, [])'
    done = program('-c', code)
    assert done.returncode == 1 and done.stderr.count('\n') == 1 and 'MASKGIL_DEBUG' in done.stderr
    assert 'Traceback' in program('-c', code, env=dict(MASKGIL_DEBUG='1')).stderr


# The planner

def test_a_plan_counts_what_is_there(tmp_path):
    from maskgil.planner import images_and_classes
    from maskgil.profiles import PROFILES, override
    def of(path): return images_and_classes(override(PROFILES['paper'], {'data.source': str(path)}))
    import pyarrow as pa, pyarrow.parquet as pq
    png = io.BytesIO(); Image.new('RGB', (8, 8)).save(png, 'PNG')
    rows = [dict(bytes=png.getvalue(), path=None)] * 3
    for name, labels in (('train-0', [0, 1, 2]), ('validation-0', [0, 1, 0])):
        pq.write_table(pa.table(dict(image=rows, label=labels)), tmp_path/f'{name}.parquet')
    assert of(tmp_path)[0] == 3 and of(tmp_path/'train-0.parquet')[0] == 3
    (tmp_path/'tars').mkdir()
    with tarfile.open(tmp_path/'tars'/'train-0.tar', 'w') as tar:
        for i in range(2):
            for suffix, data in (('png', png.getvalue()), ('cls', str(i).encode())):
                info = tarfile.TarInfo(f'{i}.{suffix}'); info.size = len(data); tar.addfile(info, io.BytesIO(data))
    assert of(tmp_path/'tars')[0] == 2
    for i in range(4): picture(tmp_path/'photos'/'train'/'ab'[i % 2]/f'{i}.png')
    assert of(tmp_path/'photos') == (4, 2)
    assert of(tmp_path/'absent') == (1_281_167, 1_000)


# reproduce

def test_a_job_says_how_it_ended(monkeypatch, own_results, capsys):
    ends = dict(well='pass', error='print("Error: caf\\xe9 \\x1b[31m"); exit(1)',
                killed='import os; os.kill(os.getpid(), 9)',
                wordless='exit(3)')
    def started(study, parameters, threads):
        log, out = reproduce.own_log(own_results, study)
        with out: process = subprocess.Popen([sys.executable, '-c', ends[study]], stdout=out)
        return reproduce.CellProcess(study, process, log, log.with_suffix('.bar'), time.monotonic())
    own_results.mkdir()
    monkeypatch.setattr(reproduce, 'start', started)
    assert sorted(reproduce.run_all([(name, {}) for name in ends], lanes=4)) == ['error', 'killed', 'wordless']
    said = {line.partition(':')[0]: line for line in capsys.readouterr().out.splitlines()}
    assert 'done in 0:0' in said['well'] and 'killed by SIGKILL' in said['killed'] and 'exit code 3' in said['wordless']
    assert r'FAILED (Error: café \x1b[31m), see ' in said['error'] and said['error'].endswith('error.log')


def test_a_job_that_writes_nothing_is_named(monkeypatch, own_results, capsys):
    own_results.mkdir()
    monkeypatch.setattr(reproduce, 'QUIET', .6)
    def started(study, parameters, threads):
        process = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(2)'])
        return reproduce.CellProcess(study, process, own_results/'a.log', own_results/'a.bar', time.monotonic())
    monkeypatch.setattr(reproduce, 'start', started)
    assert reproduce.run_all([('slow', {})]) == []
    said, bar = capsys.readouterr()
    assert said.count('nothing new') == 1 and str(own_results/'a.log') in said
    assert bar.count('cells') <= 2 # in a file; it had a line for each half second


def test_who_is_in_a_hurry_interrupts_twice():
    deaf = 'import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print(flush=True); time.sleep(60)'
    process = subprocess.Popen([sys.executable, '-c', deaf], start_new_session=True, stdout=subprocess.PIPE)
    process.stdout.readline()
    job, began = reproduce.CellProcess('deaf', process, Path('a'), Path('b'), 0.), time.monotonic()
    pressed = iter([None, KeyboardInterrupt(), KeyboardInterrupt()])
    def hurried(seconds, wait=time.sleep):
        if error := next(pressed, None): raise error
        wait(seconds)
    with mock.patch.object(reproduce.time, 'sleep', hurried): reproduce.stop([job], patience=20)
    assert process.wait() == -signal.SIGKILL and time.monotonic() - began < 10


def test_two_commands_keep_two_logs(tmp_path):
    holder = subprocess.Popen([sys.executable, '-c', 'import time; print(1, flush=True); time.sleep(60)'],
                              stdout=(first := reproduce.own_log(tmp_path, 'job'))[1])
    first[1].close() # the process that writes there has the lock
    path, out = reproduce.own_log(tmp_path, 'job')
    out.close()
    holder.kill(), holder.wait()
    assert [first[0].name, path.name] == ['job.log', 'job.1.log']
    again, out = reproduce.own_log(tmp_path, 'job')
    out.close()
    assert again == first[0] and again.read_bytes() == b''


# Names from elsewhere

EVIL = ['<script>alert(1)</script>', '"><img src=x onerror=alert(1)>', '[x](javascript:alert(1))', '\x1b]0;title\x07',
        'a|b\n# head',
        '\u202etxt.exe', '![x](http://x)', '[a][b]']

@pytest.mark.parametrize('name', EVIL)
def test_a_name_stays_text_in_the_report(name, tmp_path):
    from maskgil.report import html_renderers, to_html, to_markdown
    frame = pd.DataFrame({name: [name, 'supported: ' + name]})
    Image.new('RGB', (2, 2)).save(tmp_path/'f.png'), (tmp_path/'f.svg').write_text('<svg/>')
    blocks = [('title', name), ('text', name), ('contents', [name]), ('heading', name, name), ('finding', name),
              ('missing', name),
              ('table', name, frame, name, False), ('table', name, frame, name, True), ('figure', 'f', name, name)]
    assert {kind for kind, *_ in blocks} == set(html_renderers(tmp_path))
    page, text = to_html(blocks, tmp_path), to_markdown(blocks)
    for made in (page, text):
        assert '\x1b' not in made and '\x07' not in made and '\u202e' not in made
        assert not re.search(r'<(script|img src=x)', made)
    assert not re.search(r'\]\((javascript|http)', text) and '\n# head' not in text and '[a][b]' not in text
    assert not re.search(r'alt="[^"]*"(?!>)', page)


def test_a_name_stays_text_on_the_terminal(own_results, capsys):
    from maskgil.notebook import show_table
    from maskgil.profiles import PROFILES, settings
    from maskgil.records import Record, save_record
    fid = dict(value=3., low=2., high=4., n=9, label='FID-EL0')
    curve = [dict(epoch=PROFILES['mini'].training.epochs[-1], cfg=2.0, metrics=dict(fid_el0=fid))]
    held = settings(PROFILES['mini']) | {'data.source': '/d/\x1b[2Jphotos'}
    save_record(Record('scaling', 'mini', dict(size='\x1b[31mred', recipe='paper'), dict(curve=curve), seed=0, key='k',
                       settings=held))
    show_table('scaling', 'Table 7, FID')
    said = capsys.readouterr().out
    assert '\x1b' not in said and r'\x1b[31mred' in said and r'\x1b[2Jphotos' in said
