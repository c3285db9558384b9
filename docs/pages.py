"What has a page, where it is, and how prose links to it."
import html
import posixpath
import re
from dataclasses import dataclass, field
from pathlib import Path

CODE = re.compile(r'(`+)(.+?)\1(?!`)', re.S)                   # a code span
FENCE = re.compile(r'^( *)(`{3,}|~{3,}).*?^\1\2`*\s*?$', re.S | re.M) # a block of code
LINK = re.compile(r'(?<=\])\(([^()\s]+)\)')                    # the address of a link or an image
NOTEBOOK = re.compile(r'\bnbs/(\w+)(?:\.ipynb)?\b')            # a notebook in running text
HEADING = re.compile(r'^#{1,6} .*$', re.M)


@dataclass
class Site:
    "The addresses of pages, by what they are made from."
    sources: dict[str, str] = field(default_factory=dict) # a path in the repository -> a page, both relative
    texts: set[str] = field(default_factory=set)          # pages that are made from no such file
    names: dict[str, str] = field(default_factory=dict)   # `module`, `module.name` and `name` -> a page with an anchor

    @property
    def pages(self) -> set[str]: return {*self.sources.values(), *self.texts}

    def address(self, page: str, target: str) -> str: # relative to the folder of `page`, as Markdown wants it
        "From one page to another."
        path, _, anchor = target.partition('#')
        return posixpath.relpath(path, posixpath.dirname(page) or '.') + (f'#{anchor}' if anchor else '')

    def built_address(self, page: str, target: str) -> str:
        "The same in the built site, for HTML and notebooks."
        return re.sub(r'\.(md|ipynb)(?=#|$)', '.html', self.address(page, target))

    def notebook(self, stem: str) -> str: # '' if there is none
        "The page of a notebook."
        return self.sources.get(f'nbs/{stem}.ipynb', '')


def telling(name: str) -> bool:
    "Whether a bare name is no word of prose: `rope_table`, `MaskedObjective`, `SIZES`."
    return '_' in name or not (name.islower() or name.istitle())


def meant(site: Site, text: str) -> str: # a page, '' if it is no name of the library
    "What a code span names: a notebook, a module, a public name, or a call of one."
    if found := NOTEBOOK.fullmatch(text): return site.notebook(found[1])
    called = re.match(r'@?(?:maskgil\.)?([\w.]+)(\(?)', text)
    if not called or not called[2] and called.end() < len(text): return ''
    if called[2] or '.' in text or telling(called[1]): return site.names.get(called[1], '')
    return ''


def linked_code(site: Site, page: str, text: str, to) -> str: # Markdown
    "A code span, as a link if it names something that has another page."
    target = meant(site, text)
    return f'`{text}`' if target in ('', page) else f'[`{text}`]({to(page, target)})'


def relinked(site: Site, page: str, address: str, source: str, to) -> str: # ')' included
    "The address of a link to a file of the repository, as one to its page. Raises `LookupError` if there is none."
    path, _, anchor = address.partition('#')
    if '://' in address or not path: return f'({address})'
    if posixpath.normpath(posixpath.join(posixpath.dirname(page), path)) in site.pages: return f'({address})'
    beside = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    target = site.sources.get(beside) or site.sources.get(posixpath.normpath(path))
    if not target: raise LookupError(f'{source} links to {address}, which has no page and is no picture of the site')
    return f'({to(page, target)}{"#" + anchor if anchor else ""})'


def linked(
    site: Site,
    page: str, # where the text will be
    text: str, # Markdown
    source: str = '', # the file it is from: its links are relative to that, or to the repository
    built: bool = False, # whether links lead to the built pages, as in notebooks
) -> str:
    "Markdown whose links lead to pages, and whose names of code and notebooks are links."
    to = site.built_address if built else site.address
    kept: list[str] = [] # what no later step may touch

    def keep(made: str) -> str:
        kept.append(made)
        return f'\0{len(kept) - 1}\0'

    def named(found: re.Match) -> str:
        target = site.notebook(found[1])
        return f'[{found[0]}]({to(page, target)})' if target else found[0]

    text = FENCE.sub(lambda m: keep(m[0]), text)
    text = HEADING.sub(lambda m: keep(m[0]), text)
    text = re.sub(r'(?<=\[)`[^`\n]+`(?=\]\()', lambda m: keep(m[0]), text) # inside a link already
    text = CODE.sub(lambda m: keep(linked_code(site, page, m[2], to) if m[1] == '`' else m[0]), text)
    text = LINK.sub(lambda m: keep(relinked(site, page, m[1], source, to)), text)
    text = NOTEBOOK.sub(lambda m: keep(named(m)), text)
    while '\0' in text: text = re.sub(r'\0(\d+)\0', lambda m: kept[int(m[1])], text)
    return text


def prose(text: str) -> str: # Markdown
    "A comment or docstring, of which only code spans are markup."
    parts = re.split(r'(`[^`]+`)', text)
    return ''.join(part if i % 2 else re.sub(r'([*_|\[\]\\])', r'\\\1', html.escape(part, quote=False))
                   for i, part in enumerate(parts))


def told(table: list[str]) -> list[str]: # lines of Markdown
    "A table whose last column is prose."
    return ['', '<div class="told" markdown="1">', '', *table, '', '</div>', '']


def loose_lists(text: str) -> str:
    "Markdown in which a list has an empty line before it, and is indented by four: python-markdown needs both."
    made: list[str] = []
    fenced = False
    for line in text.split('\n'):
        if line.lstrip().startswith('```'): fenced = not fenced
        item = re.match(r'( *)([-*]|\d+\.) ', line)
        before = made[-1] if made else ''
        if item and not fenced and not item[1] and before.strip() and not re.match(r'( *)([-*]|\d+\.) | +\S', before):
            made.append('')
        made.append(line if fenced or not item else item[1] * 2 + line[len(item[1]):])
    return '\n'.join(made)


def write(folder: Path, page: str, text: str) -> None:
    "One page, in the folder that mkdocs reads."
    path = folder/page
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding='utf-8')
