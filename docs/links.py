"Whether the built pages hold together: every link and anchor leads somewhere, and nothing is fetched from elsewhere."
import posixpath
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

LOADS = { # element -> the attribute by which a page makes the browser fetch something
    'script': 'src', 'link': 'href', 'img': 'src', 'iframe': 'src', 'source': 'src', 'video': 'src', 'audio': 'src',
    'embed': 'src', 'object': 'data', 'use': 'href',
}
ELSEWHERE = re.compile(r'(https?:)?//')
STYLE_LOADS = re.compile(r'@import\s+[\'"]([^\'"]+)|url\(\s*[\'"]?([^\'")]+)')


class Page(HTMLParser):
    "What one page links to, loads, and can be linked by."
    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.links: list[str] = []   # of `a`
        self.loads: list[str] = []
        self.styles: list[str] = []  # what stands in style elements and attributes
        self.anchors: set[str] = set()
        self.images = 0
        self.inside = ''
        self.feed(text)

    def handle_starttag(self, tag: str, attributes) -> None:
        given = {name: value or '' for name, value in attributes}
        self.inside = tag
        self.anchors |= {given[name] for name in ('id', 'name') if given.get(name)}
        if given.get('style'): self.styles.append(given['style'])
        if tag == 'a' and 'href' in given: self.links.append(given['href'])
        if tag == 'img': self.images += 1
        if tag in LOADS and given.get(LOADS[tag]): self.loads.append(given[LOADS[tag]])

    def handle_data(self, data: str) -> None:
        if self.inside == 'style': self.styles.append(data)


def style_loads(style: str) -> list[str]:
    "What a style sheet fetches."
    return [found[0] or found[1] for found in STYLE_LOADS.findall(style)]


def resolved(page: str, address: str) -> str: # relative to the site
    "The file that an address on a page names."
    path = unquote(address.partition('#')[0].partition('?')[0])
    if not path: return page
    return posixpath.normpath(path.lstrip('/') if path[0] == '/' else posixpath.join(posixpath.dirname(page), path))


def problems(site: Path) -> list[str]: # a line each
    "Dead links and anchors, files that are missing, and what is fetched from elsewhere."
    pages = {path.relative_to(site).as_posix(): Page(path.read_text(encoding='utf-8')) for path in site.rglob('*.html')}
    found = []
    for name, page in sorted(pages.items()):
        loads = page.loads + [load for style in page.styles for load in style_loads(style)]
        for address in loads:
            if ELSEWHERE.match(address): found.append(f'{name} fetches {address}')
            elif not address.startswith('data:') and not (site/resolved(name, address)).is_file():
                found.append(f'{name} lacks {address}')
        for address in page.links:
            if ELSEWHERE.match(address) or address.startswith(('mailto:', 'data:')): continue
            target = resolved(name, address)
            anchor = unquote(address.partition('#')[2])
            if not (site/target).is_file(): found.append(f'{name} links to {address}, which is not there')
            elif anchor and target in pages and anchor not in pages[target].anchors:
                found.append(f'{name} links to {address}, an anchor that is not there')
    for path in site.rglob('*.css'):
        for address in style_loads(path.read_text(encoding='utf-8')):
            if ELSEWHERE.match(address): found.append(f'{path.relative_to(site)} fetches {address}')
    return list(dict.fromkeys(found))
