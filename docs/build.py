"""The documentation site: `python docs/build.py` writes pages from the notebooks, the modules and docs/text/ into
docs/pages/, has mkdocs build site/ from them, and checks every link. No notebook is executed."""
import argparse
import json
import logging
import re
import shutil
import sys
import time
from pathlib import Path

import demo_files
import links
import pages
import reference
from notebooks import CHAPTERS, Notebook, prepared
from pages import Site, linked, write

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
GUIDE = ('index.md', 'your-images.md', 'imagenet.md', 'weights.md', 'hub.md', 'extend.md') # texts, in this order
TRY = 'try.md' # the page that draws
COPIED = {'reports/README.md': 'report.md', 'CHANGELOG.md': 'changelog.md', 'CONTRIBUTING.md': 'contributing.md'}
NO_PAGE = ('index', 'report') # notebooks that write a page which is here as such
INCLUDE = re.compile(r'^<!-- (include|make) (\S+)(?:: (.+?))? -->$', re.M)


def read(path: str) -> str:
    "A file of the repository."
    return (ROOT/path).read_text(encoding='utf-8')


def section(markdown: str, title: str | None) -> str:
    "What stands under a heading of the second level, or before the first of them. Raises `LookupError`."
    parts = re.split(r'^## (.+)\n', markdown, flags=re.M)
    if title is None: return parts[0].strip()
    found = dict(zip(parts[1::2], parts[2::2]))
    if title not in found: raise LookupError(f'there is no section {title!r}, only {", ".join(found)}')
    return found[title].strip()


def checkpoint_table() -> str: # Markdown
    "A row for each published system."
    from maskgil.weights import CHECKPOINTS
    lines = ['| system, and the call that loads it | file, and where it is | length, and hash | |',
             '| --- | --- | --- | --- |']
    for name, row in CHECKPOINTS.items():
        file = ', '.join(f'`{part}`' for part in row.file.split(', ')) if row.file else 'not published'
        is_repository = re.fullmatch(r'[\w.-]+/[\w.-]+', row.where)
        where = f'[{row.where}](https://huggingface.co/{row.where})' if is_repository else pages.prose(row.where)
        system = f'**{name}**' + (f', {row.weights / 1e6:,.0f} million weights' if row.weights else '')
        place = '<br>'.join(filter(None, [file, where]))
        held = '<br>'.join(filter(None, [row.length, row.digest and f'`{row.digest}`']))
        lines.append(f'| {system}<br>{loader(row, name)} | {place} | {held} | {pages.prose(row.note)} |')
    return '\n'.join(pages.told(lines))


def loader(row, name: str) -> str: # Markdown
    "The call that loads a system."
    if row.kind == 'tokenizer': return f"`load_tokenizer('{name}')`"
    if row.kind == 'lumina-mgpt': return '`load_lumina_mgpt`'
    if row.kind == 'text-encoder': return '`load_text_encoder`'
    return f"`load_model('{row.kind}', '{row.size}')`"


MADE = {'checkpoints': checkpoint_table} # what a text may ask for


def guide_text(name: str, site: Site, page: str) -> str: # Markdown
    "A file of docs/text/, with the sections of other files and the tables that it asks for."
    def part(found: re.Match) -> str:
        kind, source, title = found.groups()
        if kind == 'make': return linked(site, page, MADE[source]())
        return linked(site, page, pages.loose_lists(section(read(source), title)), source)
    return INCLUDE.sub(part, linked(site, page, (HERE/'text'/name).read_text(encoding='utf-8')))


def site_map(notebooks: list[Notebook], library: dict[str, reference.Module]) -> Site:
    "Every page with what it is made from."
    site = Site(sources={'README.md': 'index.md', 'nbs/index.ipynb': 'index.md', 'nbs/report.ipynb': 'report.md',
                         'reports/index.html': 'report.md', **COPIED})
    site.texts |= {*GUIDE, TRY, 'library/index.md', 'studies/index.md', 'api/index.md'}
    for picture in (ROOT/'reports'/'figures').glob('*.png'):
        site.sources[f'reports/figures/{picture.name}'] = f'figures/{picture.name}'
    for picture in (HERE/'assets').glob('*.png'): site.sources[f'../assets/{picture.name}'] = f'assets/{picture.name}'
    for notebook in notebooks:
        folder = 'library' if notebook.chapter else 'studies'
        site.sources[f'nbs/{notebook.path.name}'] = f'{folder}/{notebook.stem}.ipynb'
    for module in library.values():
        page = f'api/{module.name}.md'
        site.names |= {module.name: page, f'maskgil.{module.name}': page}
        site.sources[f'maskgil/{module.name}.py'] = page
        for entry in module.entries:
            site.names[f'{module.name}.{entry.name}'] = f'{page}#{entry.name}'
            if entry.kind != 'alias': site.names[entry.name] = f'{page}#{entry.name}'
            for method in entry.methods: site.names[method.name] = f'{page}#{method.name}'
    return site


def write_texts(folder: Path, site: Site) -> None:
    "The guide from docs/text/, and the files of the repository that are pages."
    for name in (*GUIDE, TRY): write(folder, name, guide_text(name, site, name))
    for source, page in COPIED.items():
        made = linked(site, page, pages.loose_lists(read(source)), source)
        wide = '---\nhide: [navigation]\n---\n\n' if page == 'report.md' else ''
        write(folder, page, wide + made.replace('<details>', '<details markdown="1">'))
    shutil.copytree(HERE/'assets', folder/'assets')
    if missing := demo_files.write_demo(folder/'assets'/'demo'): print(missing)
    (folder/'figures').mkdir()
    for picture in (ROOT/'reports'/'figures').glob('*.png'): shutil.copy(picture, folder/'figures')


def write_notebooks(folder: Path, site: Site, notebooks: list[Notebook]) -> None:
    "A page for each notebook, and one that lists those of the library and one the studies."
    for notebook in notebooks:
        page = site.sources[f'nbs/{notebook.path.name}']
        write(folder, page, json.dumps(prepared(notebook, page, site, folder)))
    page = 'library/index.md'
    lines = ['# The library as a book', '', guide_text('library.md', site, page)]
    for chapter, about in CHAPTERS.values():
        of_it = [n for n in notebooks if n.chapter == chapter]
        if of_it: lines += ['', f'## {chapter}', '', f'{about.capitalize()}.', '', *listing(of_it, site, page)]
    write(folder, page, '\n'.join(lines))
    page, studies = 'studies/index.md', [n for n in notebooks if not n.chapter]
    lines = ['# The studies', '', guide_text('studies.md', site, page), '', *listing(studies, site, page)]
    write(folder, page, '\n'.join(lines))


def listing(notebooks: list[Notebook], site: Site, page: str) -> list[str]: # lines of Markdown
    "A table of notebooks."
    rows = [(n, site.address(page, site.sources[f'nbs/{n.path.name}'])) for n in notebooks]
    lines = [f'| [{n.title}]({to}) | {linked(site, page, n.summary, "nbs/")} |' for n, to in rows]
    return pages.told(['| notebook | tells |', '| --- | --- |', *lines])


def write_reference(folder: Path, site: Site, library: dict[str, reference.Module]) -> None:
    "A page for each module, and one that lists them."
    page = 'api/index.md'
    lines = ['# API reference', '', guide_text('api.md', site, page), '',
             '| module | what it is for | names |', '| --- | --- | --- |']
    for module in ordered(library):
        write(folder, f'api/{module.name}.md', reference.module_page(module, site, f'api/{module.name}.md'))
        doc = pages.prose(module.doc).replace('\n', ' ')
        lines.append(f'| [{module.name}]({module.name}.md) | {linked(site, page, doc)} | {len(module.entries)} |')
    write(folder, page, '\n'.join(lines))


def ordered(library: dict[str, reference.Module]) -> list[reference.Module]:
    "In the order of the notebooks."
    return sorted(library.values(), key=lambda module: (module.notebook, module.name))


def navigation(site: Site, notebooks: list[Notebook], library: dict[str, reference.Module]) -> list:
    "Sections and pages, as mkdocs takes them."
    page = lambda n: site.sources[f'nbs/{n.path.name}']
    names = [chapter for chapter, _ in CHAPTERS.values()]
    chapters = {c: [page(n) for n in notebooks if n.chapter == c] for c in names}
    modules: dict[str, list[str]] = {c: [] for c in names}
    for module in ordered(library): modules[CHAPTERS[module.notebook[0]][0]].append(f'api/{module.name}.md')
    part = lambda sections: [{name: found} for name, found in sections.items() if found]
    return [
        {'Guide': list(GUIDE)},
        {'Try it': [TRY]},
        {'Library': ['library/index.md', *part(chapters)]},
        {'Studies': ['studies/index.md', *(page(n) for n in notebooks if not n.chapter)]},
        {'API': ['api/index.md', *part(modules)]},
        {'Report': ['report.md']},
        {'Project': ['changelog.md', 'contributing.md']},
    ]


def place(path: Path) -> tuple[int, str]:
    "The order of notebooks: the library by number, studies as on the front page, then the rest."
    if path.stem[0].isdigit(): return -2, path.stem
    named = read('README.md').find(f'(nbs/{path.name})')
    return (named, '') if named >= 0 else (sys.maxsize, path.stem)


def write_pages(folder: Path) -> list: # the navigation
    "Everything that mkdocs reads."
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    paths = sorted((ROOT/'nbs').glob('*.ipynb'), key=place)
    found = [Notebook.read(path) for path in paths if path.stem not in NO_PAGE]
    library = reference.read_library(ROOT/'maskgil')
    site = site_map(found, library)
    write_texts(folder, site)
    write_notebooks(folder, site, found)
    write_reference(folder, site, library)
    return navigation(site, found, library)


def build(folder: Path, out: Path, nav: list) -> None:
    "What `mkdocs build --strict` does. Raises `mkdocs.exceptions.Abort` at a warning."
    from mkdocs.commands.build import build as build_site
    from mkdocs.config import load_config
    logging.basicConfig(level=logging.WARNING, format='%(levelname)s %(message)s')
    config = load_config(str(HERE/'mkdocs.yml'), docs_dir=str(folder), site_dir=str(out), nav=nav, strict=True)
    config.plugins.on_startup(command='build', dirty=False)
    try: build_site(config)
    finally: config.plugins.on_shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--pages', type=Path, default=HERE/'pages', help='folder for what mkdocs reads')
    parser.add_argument('--site', type=Path, default=ROOT/'site', help='folder for the site')
    given = parser.parse_args()
    started = time.monotonic()
    nav = write_pages(given.pages.resolve())
    build(given.pages.resolve(), given.site.resolve(), nav)
    found = links.problems(given.site)
    if found: sys.exit('\n'.join([f'{len(found)} problems in {given.site}:', *found]))
    count = len(list(given.site.rglob('*.html')))
    print(f'{given.site}/index.html: {count} pages in {time.monotonic() - started:.0f} s, every link leads somewhere')


if __name__ == '__main__': main()
