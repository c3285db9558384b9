"Notebooks as readers want them: what is hidden left out, pictures as files, links to pages."
import base64
import html
import json
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pages import Site, linked

DIRECTIVE = re.compile(r'^[ \t]*#\|[ \t]*([\w-]+)(?:[: \t]+(.*))?\n?', re.M)
CHAPTERS = { # first digit of a notebook's number -> the chapter, and what it is about
    '0': ('Base', 'what everything else stands on'),
    '1': ('Models', 'networks, their published weights, and how they draw'),
    '2': ('Training', 'losses, the loop, many machines'),
    '3': ('Measuring', 'what is said of pictures'),
    '4': ('Studies', 'profiles, records, and the cells of a study'),
    '5': ('To a page', 'from numbers to claims, figures and the report'),
}


@dataclass
class Notebook:
    "One notebook, before it is prepared."
    path: Path
    cells: list[dict[str, Any]]

    @classmethod
    def read(cls, path: Path) -> 'Notebook':
        "From its file."
        return cls(path, json.loads(path.read_text(encoding='utf-8'))['cells'])

    @property
    def stem(self) -> str: return self.path.stem

    @property
    def chapter(self) -> str: # '' for a study
        "The name of its chapter."
        return CHAPTERS[self.stem[0]][0] if self.stem[0].isdigit() else ''

    @property
    def title(self) -> str:
        "Its first heading."
        return self.stated(r'^# (.+)$') or self.stem

    @property
    def summary(self) -> str:
        "The quote below the heading: what it is about."
        return self.stated(r'^> (.+)$')

    @property
    def module(self) -> str: # '' if it exports none
        "The module it defines."
        sources = (text_of(c) for c in self.cells if c['cell_type'] == 'code')
        return next((m[1] for s in sources if (m := re.search(r'^#\| *default_exp (\S+)', s, re.M))), '')

    def stated(self, pattern: str) -> str:
        "What the first text cell says."
        first = next((text_of(c) for c in self.cells if c['cell_type'] == 'markdown'), '')
        found = re.search(pattern, first, re.M)
        return found[1].strip() if found else ''

    def has_outputs(self) -> bool: return any(c.get('outputs') for c in self.cells)


def text_of(cell: dict[str, Any]) -> str:
    "The source of a cell, or the text of a stream."
    return ''.join(cell.get('source', cell.get('text', '')))


def prepared(notebook: Notebook, page: str, site: Site, folder: Path) -> dict[str, Any]: # JSON
    "What mkdocs-jupyter renders; pictures are written below `folder`, where the pages are."
    cells, heading = [], notebook.title
    for cell in notebook.cells:
        source = text_of(cell)
        if cell['cell_type'] == 'markdown':
            headings = re.findall(r'^#+ (.+)$', source, re.M)
            heading = headings[-1] if headings else heading
            cells.append(text_cell(cell['id'], linked(site, page, source, f'nbs/{notebook.path.name}', built=True)))
            if len(cells) == 1 and (note := about(notebook, page, site)): cells.append(text_cell('about', note))
        elif cell['cell_type'] == 'code' and (shown := code_cell(cell)):
            pictures = Pictures(folder, page, f'{notebook.stem}-{cell["id"]}', heading)
            shown['outputs'] = [pictures.shown(output) for output in cell.get('outputs', [])]
            cells.append(shown)
    kernel = dict(name='python3', display_name='Python 3', language='python')
    return dict(cells=cells, metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)


def text_cell(name: str, source: str) -> dict[str, Any]:
    "A cell of Markdown."
    return dict(cell_type='markdown', id=name, metadata={}, source=source)


def about(notebook: Notebook, page: str, site: Site) -> str: # Markdown
    "Where the reference of a library notebook is."
    target = site.names.get(notebook.module, '')
    if not target: return ''
    return (f'<p class="nb-about">Module <a href="{site.built_address(page, target)}"><code>maskgil.{notebook.module}'
            '</code></a>. Code with a line on its left is the library, the rest shows what it does.</p>')


def code_cell(cell: dict[str, Any]) -> dict[str, Any] | None:
    "The cell without its directives; None if it is hidden or holds nothing else."
    source = text_of(cell)
    directives = {m[1]: (m[2] or '').strip() for m in DIRECTIVE.finditer(source)}
    source = DIRECTIVE.sub('', source).strip('\n')
    tags = list(cell.get('metadata', {}).get('tags', []))
    if directives.get('echo') == 'false' or 'hide-input' in tags: source = ''
    if {'hide', 'default_exp'} & set(directives) or directives.get('include') == 'false': return None
    if not source and not cell.get('outputs'): return None
    if {'export', 'exports', 'exporti'} & set(directives): tags.append('export')
    if 'export' in tags and only_imports(source): tags.append('imports')
    shown = dict(cell_type='code', id=cell['id'], execution_count=None, outputs=[])
    return shown | dict(metadata=dict(tags=tags), source=source)


def only_imports(source: str) -> bool:
    "Whether a cell does nothing but import."
    plain = re.sub(r'\([^)]*\)', '()', source)
    return all(re.match(r'(from|import)\b|$|#', line.strip()) for line in plain.splitlines())


@dataclass
class Pictures:
    "The outputs of one cell, with the pictures in them as files."
    folder: Path  # of all pages
    page: str
    name: str     # begins the names of the files
    heading: str  # above the cell; what the picture is of
    count: int = 0

    def shown(self, output: dict[str, Any]) -> dict[str, Any]:
        "An output whose pictures are files and whose tables scroll."
        data = output.get('data', {})
        kind = next((k for k in ('image/svg+xml', 'image/png', 'image/jpeg', 'text/html') if k in data), '')
        if not kind: return output
        content = ''.join(data[kind])
        made = tidy_table(content) if kind == 'text/html' else self.image(kind, content)
        return dict(output_type='display_data', metadata={}, data={'text/html': made})

    def image(self, kind: str, content: str) -> str: # HTML
        "Write a picture beside the page."
        suffix = {'image/svg+xml': 'svg', 'image/png': 'png', 'image/jpeg': 'jpg'}[kind]
        raw = content.encode() if suffix == 'svg' else base64.b64decode(content)
        self.count += 1
        relative = f'images/{self.name}-{self.count}.{suffix}'
        path = self.folder/Path(self.page).parent/relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
        size = ' width="{}" height="{}"'.format(*struct.unpack('>II', raw[16:24])) if suffix == 'png' else ''
        plain = html.escape(re.sub(r'[`*$]', '', self.heading))
        return f'<img src="{relative}" alt="{plain}"{size} loading="lazy">'


def tidy_table(content: str) -> str: # HTML
    "A table of pandas without its styles and without numbers of rows, in a box that scrolls."
    content = re.sub(r'<style.*?</style>', '', content, flags=re.S)
    content = re.sub(r' (border="\d+"|style="text-align: right;")', '', content)
    if '<table' not in content: return content
    index = re.findall(r'<tr>\s*<th>([^<]*)</th>', content.partition('<tbody>')[2])
    is_counted = index and index == [str(i) for i in range(len(index))]
    if is_counted: content = re.sub(r'(<tr>\s*)<th>[^<]*</th>', r'\1', content)
    return f'<div class="nb-table">{content}</div>'
