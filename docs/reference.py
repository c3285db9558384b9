"""The public names of a module with their comments (docments), read from its source without importing it."""
import ast
import io
import re
import tokenize
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterator

from pages import Site, linked, prose, told

VALUE_LINES = 14 # of a constant that are shown; the rest is in its notebook


@dataclass
class Parameter:
    "One parameter of a function, or one field of a dataclass."
    name: str
    type: str = ''
    default: str = ''
    comment: str = ''


@dataclass
class Entry:
    "One public name."
    name: str
    kind: str                     # function, class, value; or what decorates a method: property, classmethod, ...
    signature: str                # Python that is shown
    doc: str = ''
    parameters: list[Parameter] = field(default_factory=list)
    returned: Parameter | None = None
    bases: list[str] = field(default_factory=list)
    methods: list['Entry'] = field(default_factory=list)
    is_record: bool = False       # a class that is told by its fields
    line: int = 0
    notebook: str = ''            # stem
    cell: str = ''                # id


@dataclass
class Comments:
    "The comments of a file."
    lines: list[str]
    beside: dict[int, tuple[int, str]] # line -> column, text; behind code
    alone: dict[int, tuple[int, str]]  # the same for lines without code

    @classmethod
    def of(cls, source: str) -> 'Comments':
        "Every comment by its line."
        lines, beside, alone = source.splitlines(), {}, {}
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type != tokenize.COMMENT: continue
            row, column = token.start
            where = beside if lines[row - 1][:column].strip() else alone
            where[row] = column, token.string.lstrip('# ').strip()
        return cls(lines, beside, alone)

    def at(self, row: int) -> str:
        "The comment behind a line, with the lines that continue it below, in the same column."
        if row not in self.beside: return ''
        column, text = self.beside[row]
        while (below := self.alone.get(row + 1)) and below[0] == column: text, row = f'{text} {below[1]}', row + 1
        return text


def parameters(function: ast.FunctionDef, comments: Comments, bound: bool) -> list[Parameter]:
    "The parameters, each with the comment on its line."
    given = function.args
    plain = given.posonlyargs + given.args
    defaults: list[ast.expr | None] = [*[None] * (len(plain) - len(given.defaults)), *given.defaults]
    rows = [('', a, d) for a, d in zip(plain, defaults)]
    if given.vararg: rows.append(('*', given.vararg, None))
    rows += [('', a, d) for a, d in zip(given.kwonlyargs, given.kw_defaults)]
    if given.kwarg: rows.append(('**', given.kwarg, None))
    closing = signature_end(function, comments)
    made = []
    for stars, argument, default in rows[bound:]:
        last = max(node.end_lineno or 0 for node in (argument, default) if node)
        comment = '' if last == closing else comments.at(last)
        shown = [ast.unparse(node) if node else '' for node in (argument.annotation, default)]
        made.append(Parameter(stars + argument.arg, *shown, comment))
    return made


def signature_end(function: ast.FunctionDef, comments: Comments) -> int: # line
    "The line of the colon."
    if function.returns: return function.returns.end_lineno or 0
    row, first = function.lineno, function.body[0].lineno
    closings = [i for i in range(row, first + 1) if re.search(r'\)\s*:', comments.lines[i - 1])]
    return closings[0] if closings else row


def signature(name: str, function: ast.FunctionDef, bound: bool) -> str:
    "Names and defaults as one calls them; types are in the table."
    given = function.args
    plain = [a.arg for a in given.posonlyargs + given.args]
    missing = len(plain) - len(given.defaults)
    shown = plain[:missing] + [f'{a}={ast.unparse(d)}' for a, d in zip(plain[missing:], given.defaults)]
    shown = shown[bound:]
    if given.vararg: shown.append(f'*{given.vararg.arg}')
    elif given.kwonlyargs: shown.append('*')
    shown += [a.arg if d is None else f'{a.arg}={ast.unparse(d)}' for a, d in zip(given.kwonlyargs, given.kw_defaults)]
    if given.kwarg: shown.append(f'**{given.kwarg.arg}')
    return call(name, shown)


def call(name: str, arguments: list[str]) -> str:
    "On one line, or one argument a line."
    line = f'{name}({", ".join(arguments)})'
    return line if len(line) <= 100 else f'{name}(\n' + ''.join(f'    {a},\n' for a in arguments) + ')'


def decorators(node: ast.FunctionDef | ast.ClassDef) -> set[str]:
    "Names alone: `dataclass(frozen=True)` is `dataclass`."
    return {ast.unparse(d.func if isinstance(d, ast.Call) else d).split('.')[-1] for d in node.decorator_list}


def function_entry(node: ast.FunctionDef, comments: Comments, owner: str = '') -> Entry:
    "A function, or a method of `owner`."
    marks = decorators(node)
    kind = next((k for k in ('property', 'cached_property', 'classmethod', 'staticmethod') if k in marks),
                'method' if owner else 'function')
    bound = bool(owner) and kind != 'staticmethod'
    is_value = kind in ('property', 'cached_property')
    comment, type_ = comments.at(signature_end(node, comments)), ast.unparse(node.returns) if node.returns else ''
    one_line = node.body[0].lineno == signature_end(node, comments)
    returned = Parameter('', type_, '', '' if one_line and not node.returns else comment)
    return Entry(
        f'{owner}.{node.name}' if owner else node.name, kind.replace('cached_', ''),
        node.name if is_value else signature(node.name, node, bound),
        ast.get_docstring(node) or '', [] if is_value else parameters(node, comments, bound),
        returned if type_ not in ('', 'None') or returned.comment else None, line=node.lineno)


def class_entry(node: ast.ClassDef, comments: Comments) -> Entry:
    "A class with what it is made from, and its public methods."
    methods = [m for m in node.body if isinstance(m, ast.FunctionDef)]
    bases = [ast.unparse(b) for b in node.bases]
    doc = ast.get_docstring(node) or ''
    entry = Entry(node.name, 'class', f'class {node.name}', doc, bases=bases, line=node.lineno)
    has_fields = 'dataclass' in decorators(node) or {'NamedTuple', 'TypedDict'} & {b.split('.')[-1] for b in bases}
    made = next((m for m in methods if m.name == '__init__'), None)
    if made:
        entry.parameters, entry.signature = parameters(made, comments, True), signature(node.name, made, True)
    elif has_fields:
        fields = [f for f in node.body if isinstance(f, ast.AnnAssign) and isinstance(f.target, ast.Name)]
        entry.parameters = [
            Parameter(ast.unparse(f.target), ast.unparse(f.annotation), ast.unparse(f.value) if f.value else '',
                      comments.at(f.end_lineno or 0)) for f in fields]
        given = [p.name + (f'={p.default}' if p.default else '') for p in entry.parameters]
        entry.signature, entry.is_record = call(node.name, given), True
    shown = [m for m in methods if not m.name.startswith('_') or m.name == '__call__']
    entry.methods = [function_entry(m, comments, node.name) for m in shown]
    return entry


def value_entry(name: str, node: ast.Assign | ast.AnnAssign, comments: Comments) -> Entry:
    "A constant: the lines that define it, as they are written."
    lines = [line[node.col_offset:] for line in comments.lines[node.lineno - 1:node.end_lineno]]
    left_out = len(lines) - VALUE_LINES
    if left_out > 1: lines = [*lines[:VALUE_LINES], f'    ...  # {left_out} more lines']
    return Entry(name, 'value', '\n'.join(lines), line=node.lineno)


def alias_entry(name: str, node: ast.ImportFrom) -> Entry:
    "A name that is imported here and exported again."
    module = (node.module or '').removeprefix('maskgil.')
    original = next(a.name for a in node.names if name == (a.asname or a.name))
    shown, same = f'from maskgil.{module} import {original}', f'The same as `{module}.{original}`.'
    return Entry(name, 'alias', shown, same, line=node.lineno)


def definitions(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    "What a module defines, also under a condition."
    for node in body:
        yield node
        for inner in ('body', 'orelse', 'handlers', 'finalbody'):
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)): yield from definitions(getattr(node, inner, []))


def named(node: ast.stmt) -> list[str]:
    "The names that a statement defines."
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)): return [node.name]
    if isinstance(node, ast.AnnAssign): return [ast.unparse(node.target)] if node.value else []
    if isinstance(node, ast.ImportFrom): return [a.asname or a.name for a in node.names]
    if not isinstance(node, ast.Assign): return []
    return [n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)]


def exported(tree: ast.Module) -> list[str]:
    "`__all__`."
    for node in tree.body:
        if isinstance(node, ast.Assign) and named(node) == ['__all__']: return ast.literal_eval(node.value)
    return []


@dataclass
class Module:
    "One module of the library."
    name: str
    doc: str
    entries: list[Entry]
    notebook: str # stem; of its first cell


def read_module(path: Path) -> Module:
    "The entries in the order of their definition. Raises `LookupError` where `__all__` names what is not there."
    source = path.read_text(encoding='utf-8')
    tree, comments = ast.parse(source), Comments.of(source)
    public = exported(tree)
    entries: dict[str, Entry] = {}
    for node in definitions(tree.body):
        for name in named(node):
            if name not in public or name in entries: continue
            if isinstance(node, ast.FunctionDef): entries[name] = function_entry(node, comments)
            elif isinstance(node, ast.ClassDef): entries[name] = class_entry(node, comments)
            elif isinstance(node, ast.ImportFrom): entries[name] = alias_entry(name, node)
            elif isinstance(node, (ast.Assign, ast.AnnAssign)): entries[name] = value_entry(name, node, comments)
    lost = [name for name in public if name not in entries]
    if lost: raise LookupError(f'{path.name} exports {", ".join(lost)}, and does not define it')
    # nbdev writes where each cell comes from
    cells = [(row, *found.groups()) for row, line in enumerate(comments.lines, 1)
             if (found := re.match(r'# %% \S*?(\w+)\.ipynb #(\S+)', line))]
    for entry in entries.values():
        before = [cell for cell in cells if cell[0] < entry.line]
        if before: _, entry.notebook, entry.cell = before[-1]
    stated = re.search(r'File to edit: \S*?(\w+)\.ipynb', source)
    notebook = cells[0][1] if cells else stated[1] if stated else ''
    return Module(path.stem, ast.get_docstring(tree) or '', list(entries.values()), notebook)


def read_library(folder: Path) -> dict[str, Module]: # without what begins with an underscore
    "Every public module."
    return {path.stem: read_module(path) for path in sorted(folder.glob('*.py')) if not path.stem.startswith('_')}


def code(text: str) -> str:
    "A code span, whatever is in it."
    ticks = '``' if '`' in text else '`'
    return f'{ticks}{text}{ticks}' if text else ''


def type_code(type_: str, site: Site, page: str) -> str: # Markdown
    "A type, as a link if it is one of the library's."
    target = site.names.get(type_, '')
    return f'[`{type_}`]({site.address(page, target)})' if target and type_[0].isupper() else code(type_)


def parameter_table(rows: list[Parameter], what: str, site: Site, page: str) -> list[str]: # lines of Markdown
    "Name, type, default and comment; columns that would be empty are left out."
    columns = [(what, lambda p: f'<code>{prose(p.name)}</code>'), ('type', lambda p: type_code(p.type, site, page)),
               ('default', lambda p: code(p.default)), ('meaning', lambda p: prose(p.comment))]
    cells = [[show(row) for _, show in columns] for row in rows]
    held = [i for i in range(len(columns)) if not i or any(line[i] for line in cells)]
    lines = [[columns[i][0] for i in held], ['---'] * len(held), *([line[i] for i in held] for line in cells)]
    return told([f'| {" | ".join(line)} |' for line in lines])


def entry_lines(entry: Entry, site: Site, page: str, level: int = 2) -> list[str]: # of Markdown
    "One name of the reference."
    where = site.notebook(entry.notebook)
    shown = entry.name.split('.')[-1] if level > 2 else entry.name
    lines = [f'{"#" * level} `{shown}` {{ #{entry.name} .api-{entry.kind} }}', '']
    facts = [entry.kind]
    if entry.bases: facts.append('of ' + ', '.join(code(b) for b in entry.bases))
    if where: facts.append(f'[{entry.notebook}]({site.address(page, f"{where}#cell-{entry.cell}")})')
    if level == 2: lines += [' · '.join(facts), '{ .api-facts }', '']
    if entry.kind != 'property': lines += ['```python', entry.signature, '```', '']
    if entry.doc: lines += [prose(entry.doc), '']
    what = 'field' if entry.is_record else 'parameter'
    if entry.parameters: lines += parameter_table(entry.parameters, what, site, page)
    if entry.returned:
        parts = [type_code(entry.returned.type, site, page), prose(entry.returned.comment)]
        word = 'Is' if entry.kind == 'property' else 'Returns'
        lines += [f'**{word}** ' + ' – '.join(part for part in parts if part), '']
    for method in entry.methods: lines += entry_lines(method, site, page, level + 1)
    return lines


def module_page(module: Module, site: Site, page: str) -> str: # Markdown
    "The reference of one module."
    lines = [f'# {module.name}', '', prose(module.doc), '']
    notebook = site.notebook(module.notebook)
    if notebook:
        link = f'[{module.notebook}]({site.address(page, notebook)})'
        lines += [f'The notebook that defines and shows it: {link}.', '']
    if not module.entries: lines += ['It has no public names of its own.', '']
    for entry in module.entries: lines += entry_lines(entry, site, page)
    return linked(site, page, '\n'.join(lines))
