"""Execute the study notebooks with the records of the committed reference, and keep the outputs: `make notebooks`.
Nothing is trained: each notebook runs with `run=False`, in the profile that the report shows, without your runs."""
import argparse
import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbdev.clean import nbdev_clean

from maskgil.records import records
from maskgil.studies import STUDIES
from maskgil.tables import long_table, main_profile

ROOT = Path(__file__).resolve().parents[1]


def shown(path: Path) -> nbformat.NotebookNode:
    "The notebook with the outputs of a run that only looks."
    notebook = nbformat.read(path, as_version=4)
    looked_at = nbformat.from_dict(notebook)
    for cell in looked_at.cells:
        if 'parameters' in cell.metadata.get('tags', []):
            assert 'run: bool = True ' in cell.source, f'{path.name} declares no `run`'
            cell.source = cell.source.replace('run: bool = True ', 'run: bool = False')
    NotebookClient(looked_at, timeout=600, kernel_name='python3', resources=dict(metadata=dict(path=ROOT))).execute()
    for cell, seen in zip(notebook.cells, looked_at.cells):
        if cell.cell_type == 'code': cell.outputs = seen.outputs
    return notebook


def profile_shown(study: str) -> str:
    "The main profile of the reference: that with most seeds."
    return main_profile(long_table(records(study, ['reference']))) or 'mini'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('studies', nargs='*', default=list(STUDIES), help='all unless named')
    for name in parser.parse_args().studies:
        path = ROOT/'nbs'/f'{name}.ipynb'
        with tempfile.TemporaryDirectory() as nothing_of_yours:
            os.environ.update(MASKGIL_RESULTS=nothing_of_yours, MASKGIL_PROGRESS='off')
            os.environ['MASKGIL_PROFILE'] = profile_shown(name)
            nbformat.write(shown(path), path)
        nbdev_clean(path)
        print(f'{path.relative_to(ROOT)}: {path.stat().st_size / 1e3:.0f} kB')


if __name__ == '__main__': main()
