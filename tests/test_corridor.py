"One way through the house: no module imports from a later one, a name is defined once, and cells are short."
import ast, json, statistics
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT/'nbs').glob('[0-9][0-9]_*.ipynb'))


def exported(notebook: Path) -> list[str]:
    "The exported cells of a notebook."
    cells = json.loads(notebook.read_text(encoding='utf-8'))['cells']
    sources = [''.join(c['source']) for c in cells if c['cell_type'] == 'code']
    return [s for s in sources if s.lstrip().startswith('#| export')]


def order() -> dict[str, int]: # module -> its place
    "Modules in the order of their notebooks; a notebook may export a second module behind its own."
    names = []
    for notebook in NOTEBOOKS:
        names.append(notebook.stem[3:])
        for cell in exported(notebook):
            directive = cell.splitlines()[0].split()
            if len(directive) > 2 and directive[2] not in names: names.append(directive[2])
    return {name: i for i, name in enumerate(names)}


ORDER = order()


def imported(module: str) -> set[tuple[str, int]]: # modules of this package, and the lines
    "What a module imports from the package, inside functions too, and by name (`importlib`, `-m`)."
    tree, found = ast.parse((ROOT/'maskgil'/f'{module}.py').read_text(encoding='utf-8')), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            if node.level and not node.module: found |= {(a.name, node.lineno) for a in node.names}
            elif node.level: found.add((node.module.split('.')[0], node.lineno))
            elif node.module == 'maskgil': found |= {(a.name, node.lineno) for a in node.names}
            elif (node.module or '').startswith('maskgil.'): found.add((node.module.split('.')[1], node.lineno))
        elif isinstance(node, ast.Import):
            found |= {(a.name.split('.')[1], node.lineno) for a in node.names if a.name.startswith('maskgil.')}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith('maskgil.'):
            name = node.value[8:].partition(':')[0]
            if name in ORDER: found.add((name, node.lineno))
    return {(name, line) for name, line in found if name in ORDER}


def test_every_module_has_a_place():
    modules = {p.stem for p in (ROOT/'maskgil').glob('*.py')} - {'__init__', '_modidx'}
    assert modules == set(ORDER)


@pytest.mark.parametrize('module', ORDER)
def test_no_import_runs_back(module):
    back = {f'{name} (line {line})' for name, line in imported(module)
            if ORDER[name] > ORDER[module]}
    assert not back, f'{module} imports from later modules: {sorted(back)}'


def test_the_test_sees_an_arrow_back(tmp_path, monkeypatch):
    "Inside a function, and by name."
    package = tmp_path/'maskgil'
    package.mkdir()
    (package/'core.py').write_text("def f():\n    from maskgil.models import load_model\n"
                                   "    import importlib; importlib.import_module('maskgil.cli')\n")
    monkeypatch.setattr('test_corridor.ROOT', tmp_path)
    assert {name for name, _ in imported('core')} == {'models', 'cli'}


def test_one_name_one_thing():
    "No public name is defined by two modules; programs are all called main."
    homes = defaultdict(set)
    for notebook in NOTEBOOKS:
        for cell in exported(notebook):
            directive = cell.splitlines()[0].split()
            if len(directive) > 2: continue # a former name of another module
            for node in ast.parse(cell).body:
                names = [node.name] if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else []
                if isinstance(node, ast.Assign): names = [t.id for t in node.targets if isinstance(t, ast.Name)]
                if isinstance(node, ast.AnnAssign): names = [node.target.id]
                for name in names: homes[name].add(notebook.stem[3:])
    twice = {name: sorted(where) for name, where in homes.items()
             if len(where) > 1 and not name.startswith('_') and name != 'main'}
    assert not twice


def test_lines_and_cells():
    "No exported line over 120 characters, no cell over 60 lines, the median at most 12."
    sizes, long_lines, long_cells = [], [], []
    for notebook in NOTEBOOKS:
        for cell in exported(notebook):
            lines = cell.splitlines()
            sizes.append(len(lines))
            long_lines += [f'{notebook.stem}: {line[:80]}' for line in lines if len(line) > 120]
            if len(lines) > 60 and not is_table(cell): long_cells.append(f'{notebook.stem}: {lines[1]}')
    assert not long_lines
    assert not long_cells
    assert statistics.median(sizes) <= 12


def is_table(cell: str) -> bool:
    "Whether a cell holds data and no function."
    return not any(isinstance(n, (ast.FunctionDef, ast.ClassDef)) for n in ast.walk(ast.parse(cell)))
