"The documentation site: built from the notebooks as they are committed, whole, and without anything from elsewhere."
import ast, importlib, json, re, subprocess, sys
from pathlib import Path

import pytest

for needed in ('mkdocs', 'material', 'mkdocs_jupyter', 'latex2mathml', 'onnxscript'):
    pytest.importorskip(needed, reason="the extra `docs` is not installed: pip install -e '.[docs]'")

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT/'results'/'reference'
STUDIES = sorted(p for p in (ROOT/'nbs').glob('[a-z]*.ipynb') if p.stem not in ('index', 'report'))
LIBRARY = sorted((ROOT/'nbs').glob('[0-9][0-9]_*.ipynb'))
MODULES = sorted(p for p in (ROOT/'maskgil').glob('*.py') if not p.stem.startswith('_'))
sys.path.append(str(ROOT/'docs'))


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The built site; building fails at a warning of mkdocs."
    folder = tmp_path_factory.mktemp('docs')
    command = [sys.executable, ROOT/'docs'/'build.py', '--pages', folder/'pages', '--site', folder/'site']
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return folder/'site'


def cells_of(notebook):
    return json.loads(notebook.read_text(encoding='utf-8'))['cells']


def page_of(site, notebook):
    folder = 'library' if notebook in LIBRARY else 'studies'
    return (site/folder/f'{notebook.stem}.html').read_text(encoding='utf-8')


def test_links_lead_somewhere(site):
    from links import problems
    assert problems(site) == []


def test_a_dead_link_is_found(tmp_path):
    from links import problems
    (tmp_path/'there.html').write_text('<h1 id="here">x</h1>')
    (tmp_path/'style.css').write_text('''
        @import "https://example.org/font.css"; b { background: url(//example.org/x.png) }''')
    (tmp_path/'page.html').write_text('''
        <a href="there.html#here">fine</a> <a href="https://example.org">fine</a>
        <a href="gone.html">x</a> <a href="there.html#gone">x</a> <a href="#gone">x</a> <img src="gone.png">
        <script src="https://example.org/x.js"></script> <link rel="stylesheet" href="//example.org/x.css">
        <style>@font-face { src: url(https://example.org/x.woff) }</style>''')
    found = problems(tmp_path)
    assert len(found) == 9, found
    assert sum('example.org' in line for line in found) == 5, found


def test_nothing_comes_from_elsewhere(site):
    "Read once more, without the checker: no script, style, font or picture has an address with a host."
    for page in site.rglob('*.html'):
        text = page.read_text(encoding='utf-8')
        loads = re.findall(r'<(?:script|img|iframe|source)\b[^>]*\bsrc="?([^"\s>]+)', text)
        loads += re.findall(r'<link\b[^>]*\bhref="?([^"\s>]+)', text)
        assert not [load for load in loads if re.match(r'(https?:)?//', load)], page
        assert 'fonts.googleapis' not in text and 'fonts.gstatic' not in text, page


@pytest.mark.parametrize('notebook', [*STUDIES, *LIBRARY], ids=lambda p: p.stem)
def test_notebook_page(site, notebook):
    "Every picture of its outputs, every heading, and nothing that is hidden."
    text, cells = page_of(site, notebook), cells_of(notebook)
    outputs = [output.get('data', {}) for cell in cells for output in cell.get('outputs', [])]
    pictures = sum(any(kind.startswith('image/') for kind in data) for data in outputs)
    assert text.count('<img ') >= pictures
    assert not re.search(r'#\| *(export|hide|default_exp)', text)
    assert '$$' not in text
    shown = re.findall(r'<h[1-6] id="([^"]+)"', text)
    texts = '\n'.join(''.join(cell['source']) for cell in cells if cell['cell_type'] == 'markdown')
    written = re.findall(r'^#{1,6} ', re.sub(r'```.*?```', '', texts, flags=re.S), re.M)
    assert len(shown) == len(set(shown)) == len(written)


def test_start_page_is_the_front_page(site):
    "What comes before its first section: the figure and the lines of result."
    front = (ROOT/'README.md').read_text(encoding='utf-8').split('\n## ')[0]
    start = (site/'index.html').read_text(encoding='utf-8').partition('<article')[2].partition('id="two-commands"')[0]
    assert start.count('<img ') == len(re.findall(r'!\[', front))
    assert start.count('<li>') == len(re.findall(r'^- ', front, re.M))


@pytest.mark.parametrize('page', ['README.md', 'nbs/index.ipynb'])
def test_links_of_the_front_page_lead_somewhere(page):
    "From where the page lies: it is a notebook in nbs/, and README.md is made of it."
    text = (ROOT/page).read_text(encoding='utf-8')
    targets = {target for target in re.findall(r'\]\(([^)\s]+)\)', text) if '://' not in target and '{' not in target}
    assert len(targets) >= 6
    assert not [target for target in targets if not ((ROOT/page).parent/target).exists()]


def test_front_page_lists_every_notebook():
    front = (ROOT/'README.md').read_text(encoding='utf-8')
    lines = re.search(r'^nbs/ .*?(?=^maskgil/)', front, re.M | re.S)[0].splitlines()
    modules = [line[len('nbs/        5x to a page '):] for line in lines[:-1]]
    numbered = sorted((ROOT/'nbs').glob('[0-9]*.ipynb'))
    assert re.findall(r'\w+', ' '.join(modules)) == [notebook.stem.split('_', 1)[1] for notebook in numbered]
    count = {9: 'nine', 10: 'ten', 11: 'eleven', 12: 'twelve'}[len([n for n in STUDIES if n.stem != 'demo'])]
    assert f'{count} studies' in lines[-1]


def test_studies_show_figures(site):
    "Once they have outputs, pages of studies show pictures."
    from notebooks import Notebook
    with_outputs = [n for n in STUDIES if n.stem != 'demo' and Notebook.read(n).has_outputs()]
    if not with_outputs: pytest.skip('no study notebook has outputs yet')
    without = [n.stem for n in with_outputs if '<img ' not in page_of(site, n) and (REFERENCE/n.stem).exists()]
    assert not without, f'no picture on the pages of {without}'


@pytest.mark.parametrize('module', MODULES, ids=lambda p: p.stem)
def test_every_public_name_is_in_the_reference(site, module):
    text = (site/'api'/f'{module.stem}.html').read_text(encoding='utf-8')
    tree = ast.parse(module.read_text(encoding='utf-8'))
    public = [ast.literal_eval(node.value) for node in tree.body
              if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == '__all__']
    anchors = set(re.findall(r'<h2 [^>]*id="([^"]+)"', text))
    assert anchors == set(public[0] if public else [])


def test_reference_reads_docments(tmp_path):
    from reference import read_module
    (tmp_path/'thing.py').write_text('''"A module."
__all__ = ['SIZE', 'Row', 'draw']

# %% ../nbs/10_thing.ipynb #abc
SIZE = 3 # pixels

# %% ../nbs/10_thing.ipynb #def
@dataclass
class Row:
    "One row."
    name: str       # as studies call it
    width: int = 4  # d, a multiple
                    # of four

    @property
    def twice(self) -> int: return 2 * self.width

# %% ../nbs/10_thing.ipynb #ghi
def draw(
    a: Tensor, b: Tensor, # (b t d)
    *shapes: int,
    seed: int | None = None, # of the set
) -> Tensor: # (b h w)
    "Draw."
''')
    size, row, draw = read_module(tmp_path/'thing.py').entries
    assert size.signature == 'SIZE = 3 # pixels' and size.cell == 'abc'
    assert [(p.name, p.type, p.default, p.comment) for p in row.parameters] == [
        ('name', 'str', '', 'as studies call it'), ('width', 'int', '4', 'd, a multiple of four')]
    assert [(m.name, m.kind, m.returned.type) for m in row.methods] == [('Row.twice', 'property', 'int')]
    assert draw.signature == 'draw(a, b, *shapes, seed=None)'
    assert [p.comment for p in draw.parameters] == ['(b t d)', '(b t d)', '', 'of the set']
    assert (draw.returned.type, draw.returned.comment, draw.notebook) == ('Tensor', '(b h w)', '10_thing')


def test_the_page_that_draws(site):
    "It is there with what it loads, in the navigation, and without the index of the search, which is 3 MB."
    text = (site/'try.html').read_text(encoding='utf-8')
    assert 'id="demo-board"' in text and '__search' not in text.partition('<header')[2].partition('</header>')[0]
    assert 'name="search"' in (site/'index.html').read_text(encoding='utf-8')
    assert re.search(r'href="try.html"[^>]*>\s*Try it', (site/'index.html').read_text(encoding='utf-8'))
    loads = re.findall(r'<(?:script|link)\b[^>]*\b(?:src|href)="?([^"\s>]+\.(?:js|css|png))', text)
    loaded = {site/load for load in loads} | {*(site/'assets'/'demo').iterdir()}
    assert 5e6 < sum(file.stat().st_size for file in loaded) < 10e6


def test_published_files_are_listed(site):
    from maskgil.weights import CHECKPOINTS
    text = (site/'weights.html').read_text(encoding='utf-8')
    assert not [name for name in CHECKPOINTS if f'<strong>{name}</strong>' not in text]


def told_imports(text):
    "Names of modules and what is imported from them, wherever a text says so on one line."
    for module, names in re.findall(r'from (maskgil(?:\.\w+)*) import (\w+(?:, \w+)*)', text):
        yield from ((module, name) for name in names.split(', '))


def test_imports_that_texts_advise_can_be_made():
    "In messages of the library, in pages, and in README."
    texts = [node.value for p in (ROOT/'maskgil').glob('*.py') if p.stem != '_modidx' # its strings are its own
             for node in ast.walk(ast.parse(p.read_text()))
             if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    texts += [p.read_text() for p in [*ROOT.glob('*.md'), *(ROOT/'docs'/'text').glob('*.md')]]
    told = {found for text in texts for found in told_imports(text)}
    assert len(told) > 10 and ('maskgil.reading', 'convert_trusted') in told
    wrong = [(module, name) for module, name in told
             if not hasattr(importlib.import_module(module), name) and not (ROOT/'maskgil'/f'{name}.py').exists()]
    assert not wrong


def test_long_lines_of_code_fit():
    "120 characters of a monospace font beside both columns of a window of 1400 pixels; in a narrower one they scroll."
    style = (ROOT/'docs'/'assets'/'site.css').read_text(encoding='utf-8')
    code_size, side = (float(re.search(rf'--{name}: ([\d.]+)px', style)[1]) for name in ('code-size', 'side'))
    column = 1400 - 2 * (side + 12) - 2 * 14
    assert (120 * 0.602 + 2) * code_size <= column # its padding is one size on either side
    blocks = re.findall(r'([^{}]*\bpre\b[^{}]*)\{([^{}]*)\}', style)
    assert blocks and not [rule for rule in blocks if re.search(r'overflow(-x)?: *hidden', rule[1])]


def test_made_pages_are_ignored_by_git():
    if not (ROOT/'.git').exists(): pytest.skip('not a checkout')
    made = ['docs/pages/index.md', 'site/index.html']
    done = subprocess.run(['git', 'check-ignore', *made], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == made
