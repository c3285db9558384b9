import os, shutil, sys
from pathlib import Path

# side by side, two tests would each take all cores; before torch is imported, and for the processes that tests start
if 'PYTEST_XDIST_WORKER' in os.environ: os.environ.setdefault('OMP_NUM_THREADS', '1')

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT/'tests'/'helpers'))


# the campaign of faults forks, which a process that has trained can't; then the longest, so that two end together
FIRST = ['test_faults', 'test_notebooks', 'test_report', 'test_reproduce', 'test_extend', 'test_text']


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: FIRST.index(item.path.stem) if item.path.stem in FIRST else len(FIRST))


@pytest.fixture(autouse=True)
def own_results(tmp_path, monkeypatch):
    "No test writes into the checkout's results; the cache is shared, since it holds only what can be made again."
    monkeypatch.setenv('MASKGIL_RESULTS', str(tmp_path/'results'))
    monkeypatch.delenv('MASKGIL_PROFILE', raising=False)
    monkeypatch.delenv('IMAGENET', raising=False)
    return tmp_path/'results'


@pytest.fixture
def clean_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('MASKGIL_CACHE', str(tmp_path/'cache'))
    return tmp_path/'cache'


@pytest.fixture
def project(tmp_path, monkeypatch):
    "A project root of its own: the settings of this one and an empty nbs/."
    for name in ('MASKGIL_RESULTS', 'MASKGIL_ROOT'): monkeypatch.delenv(name, raising=False)
    root = tmp_path/'project'
    (root/'nbs').mkdir(parents=True)
    shutil.copy(ROOT/'settings.ini', root)
    return root


def write_notebook(path, *cells):
    "A notebook of code cells; the first is the parameters cell."
    new = nbformat.v4.new_code_cell
    nb = nbformat.v4.new_notebook(cells=[new(cells[0], metadata=dict(tags=['parameters'])), *map(new, cells[1:])])
    nb.metadata = dict(kernelspec=dict(display_name='python3', language='python', name='python3'))
    nbformat.write(nb, path)
    return path
