"The package as its users get it: light to import, whole as a wheel."
import os, subprocess, sys, time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def python(code, **env):
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=os.environ | env, cwd=env.get('cwd', ROOT.parent))
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_light():
    heavy = {'transformers', 'torchvision', 'seaborn', 'matplotlib', 'accelerate', 'torch_fidelity', 'nbdev', 'fastcore'}
    for module in ('maskgil', 'maskgil.cli', 'maskgil.core', 'maskgil.models', 'maskgil.pipeline'):
        loaded = python(f'import {module}, sys; print(*{{m.partition(".")[0] for m in sys.modules}} & {heavy})')
        assert not loaded, f'import {module} loads {loaded}'
    started = time.monotonic()
    python('import maskgil')
    assert time.monotonic() - started < 2


def test_wheel(tmp_path):
    "Build, install beside nothing of the checkout, import and sample."
    subprocess.run([sys.executable, '-m', 'build', '--wheel', '--outdir', tmp_path, ROOT], check=True, capture_output=True)
    wheel, = tmp_path.glob('maskgil-*.whl')
    subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--target', tmp_path/'site', wheel], check=True, capture_output=True)
    out = python("""
import torch, maskgil, maskgil.cli
from maskgil.models import load_model
from maskgil.sampling import sample_mar
model = load_model('maskgil', 'smoke-l', tokenizer='smoke-llamagen-vq', classes=9, grid=(8, 8))
print(maskgil.__file__); print(tuple(sample_mar(model, torch.tensor([1, 2]), (8, 8), steps=4).shape))
""", PYTHONPATH=str(tmp_path/'site'))
    assert out.splitlines() == [str(tmp_path/'site'/'maskgil'/'__init__.py'), '(2, 8, 8)']
