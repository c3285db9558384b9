"The package as its users get it: light to import, whole as a wheel."
import os, shutil, subprocess, sys
from importlib import metadata
from pathlib import Path

import pytest
from PIL import Image

from clock import at_most

ROOT = Path(__file__).parents[1]
SOURCES = ('pyproject.toml', 'README.md', 'LICENSE', 'maskgil', 'nbs', 'results/reference', 'results/judge',
           'results/small-tokenizers', 'results/tasks', 'checkpoints')


def python(*arguments, cwd=ROOT.parent, **env):
    "What an interpreter prints, without the settings of the project."
    plain = {k: v for k, v in os.environ.items() if not k.startswith('MASKGIL_')}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=plain | env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout.strip()


HEAVY = {'transformers', 'torchvision', 'seaborn', 'matplotlib', 'accelerate', 'torch_fidelity', 'nbdev', 'fastcore'}

def test_import_is_light():
    for module in ('maskgil', 'maskgil.cli', 'maskgil.core', 'maskgil.models', 'maskgil.pipeline'):
        packages = '{name.partition(".")[0] for name in sys.modules}'
        loaded = python('-c', f'import {module}, sys; print(*{packages} & {HEAVY})')
        assert not loaded, f'import {module} loads {loaded}'
    with at_most(2): python('-c', 'import maskgil')


def isolation():
    "No second setuptools is downloaded where there is one as pyproject.toml asks for."
    try: found = metadata.version('setuptools')
    except metadata.PackageNotFoundError: return []
    return ['--no-isolation'] if int(found.partition('.')[0]) >= 77 else []


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    "A folder with the installed wheel, built from a copy, since an old `build/` would add to it."
    copy, wheels, site = (tmp_path_factory.mktemp(name) for name in ('copy', 'wheels', 'site'))
    for name in SOURCES:
        (copy/name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT/name).is_file(): shutil.copy(ROOT/name, copy/name)
        else: shutil.copytree(ROOT/name, copy/name, ignore=shutil.ignore_patterns('__pycache__', '.*'))
    python('-m', 'build', '--wheel', *isolation(), '--outdir', wheels, copy)
    wheel, = wheels.glob('maskgil-*.whl')
    python('-m', 'pip', 'install', '-q', '--no-deps', '--target', site, wheel)
    return site


@pytest.fixture
def empty(tmp_path):
    folder = tmp_path/'empty'
    folder.mkdir()
    return folder


@pytest.fixture
def outside(installed, empty):
    "An interpreter in an empty folder, with the wheel and its dependencies and no checkout."
    def run(*arguments): return python(*arguments, cwd=empty, PYTHONPATH=str(installed))
    return run


def test_a_wheel_saves_a_folder_for_diffusers(outside):
    out = outside('-c', """
from maskgil import MaskGILPipeline
from maskgil.models import load_model
from maskgil.tokenizers import load_tokenizer
model = load_model('maskgil', 'smoke-l', tokenizer='smoke-llamagen-vq', classes=9, grid=(8, 8))
folder = MaskGILPipeline(model, load_tokenizer('smoke-llamagen-vq')).save_pretrained('saved')
print('class MaskGILDiffusionPipeline' in (folder/'pipeline.py').read_text())
""")
    assert out == 'True'


def test_a_wheel_imports_and_samples(outside, installed):
    out = outside('-c', """
import torch, maskgil, maskgil.cli
from maskgil.models import load_model
from maskgil.sampling import sample_mar
model = load_model('maskgil', 'smoke-l', tokenizer='smoke-llamagen-vq', classes=9, grid=(8, 8))
print(maskgil.__file__); print(tuple(sample_mar(model, torch.tensor([1, 2]), (8, 8), steps=4).shape))
""")
    assert out.splitlines() == [str(installed/'maskgil'/'__init__.py'), '(2, 8, 8)']


def test_a_wheel_has_the_tables_of_the_paper(outside):
    rows = outside('-c', 'from maskgil.records import published; print(len(published("table7")))')
    assert rows == '72'


def test_a_wheel_shows_the_reference_beside_the_paper(outside):
    table_7 = outside('-m', 'maskgil.cli', 'table', '--title', 'Table 7, FID')
    assert '5.645' in table_7 and 'reference:' in table_7
    assert 'reference: none yet' not in table_7 and 'yours: none yet' in table_7


def test_a_wheel_has_the_judge_and_a_tokenizer_of_the_studies(outside):
    asked = "from maskgil.bench import published_file as f; from maskgil.judge import load_judge as j; "
    name, classes = outside('-c', f"{asked}print(f('midi-llamagen-vq').name, len(j().head.bias))").split()
    assert (name, classes) == ('midi-llamagen-vq.safetensors', '9')


def test_a_wheel_has_the_evaluation_tasks(outside):
    asked = 'from maskgil.tasks import read_task as r, task_names; print(*[r(name).version for name in task_names()])'
    assert outside('-c', asked).split() == ['1', '1']


def test_a_wheel_plans(outside):
    assert '8xH100' in outside('-m', 'maskgil.cli', 'plan', '--study', 'scaling')


def test_a_wheel_draws(outside, empty):
    "With the checkpoint that it brings; and nothing but the picture is written."
    outside('-m', 'maskgil.cli', 'sample', '--out', 'x.png')
    assert [path.name for path in empty.iterdir()] == ['x.png']
    sheet = Image.open(empty/'x.png').convert('RGB')
    assert len(sheet.getcolors(sheet.width * sheet.height)) > 100
