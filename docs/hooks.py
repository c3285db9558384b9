"What mkdocs is told beyond its configuration: plain notebooks, formulas as MathML, one table of contents."
import html
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.structure.toc import get_toc
from mkdocs_jupyter.config import settings
from mkdocs_jupyter.utils import slugify
from nbconvert.exporters.templateexporter import default_filters

PIECES = re.compile( # code and tags, which stay as they are, or a formula
    r'<(pre|code)\b.*?</\1>|<[^>]*>|'
    r'\$\$(?P<block>.+?)\$\$|'
    r'\$(?P<inline>[^\s$](?:[^$]*[^\s$])?)\$(?P<after>[,.;:)]*)', re.S)
WORD = re.compile(r'\\mathrm\{(\w{2,})\}') # otherwise letter by letter
SHORT = re.compile(r'<td>(?=[^<]{1,28}</td>)') # a number with its interval stays on one line
LONG = re.compile(r'<td>(?=[^<]{60,}</td>)')
VERDICT = re.compile(r'<td>(supported|contradicted|inconclusive)(?:: (.*?))?</td>', re.S)
TITLES = re.compile(r'<h([1-6])\b([^>]*)>(.*?)</h\1>', re.S)


def formula(latex: str, display: str) -> str: # MathML
    "One formula, which browsers draw by themselves."
    return convert(WORD.sub(r'\\text{\1}', html.unescape(latex)), display=display)


def mathml(text: str) -> str: # HTML
    "HTML in which `$...$` and `$$...$$` outside of code became formulas."
    def replaced(found: re.Match) -> str:
        if found['block']: return f'<span class="formula">{formula(found["block"].strip(), "block")}</span>'
        if not found['inline']: return found[0]
        return f'<span class="formula-inline">{formula(found["inline"], "inline")}{found["after"]}</span>'
    return PIECES.sub(replaced, text)


def on_config(config):
    "mkdocs-jupyter takes the templates of this folder, which need one filter more."
    settings.templates_dir = str(Path(config.config_file_path).parent/'theme')
    default_filters['mathml'] = mathml
    return config


SEARCH = re.compile( # the button and the field of the header
    r'<label class="md-header__button md-icon" for="__search">.*?</label>\s*'
    r'<div class="md-search".*?(?=\s*</nav>\s*</header>)', re.S)


def on_post_page(output: str, page, config) -> str:
    "The page that draws has no search: its index, 3 MB, would be a quarter of what is loaded."
    return SEARCH.sub('', output) if page.file.src_path == 'try.md' else output


def on_page_content(content: str, page, config, files) -> str:
    "Notebooks get code blocks and headings as other pages have them; verdicts in the report get a colour."
    if page.file.src_path == 'report.md': content = VERDICT.sub(r'<td class="verdict \1"><b>\1</b>\2</td>', content)
    content = LONG.sub('<td class="long">', SHORT.sub('<td class="short">', content))
    if not page.file.src_path.endswith('.ipynb'): return content
    content = re.sub(r'<div class="highlight-ipynb[^"]*">', '<div class="highlight">', content)
    content = re.sub(r'<pre>(?:<span></span>)?(?!<code)(.*?)</pre>', code_block, content, flags=re.S)
    content, page.toc = headings(content)
    return content


def code_block(found: re.Match) -> str:
    "Source with an element around it that has a button to copy."
    return f'<pre><code>{found[1].rstrip()}\n</code></pre>'


def headings(content: str): # HTML, and the table of contents
    "Headings with an id each, and the contents that name them."
    seen: dict[str, int] = {}
    root: dict = dict(level=0, children=[])
    path = [root]

    def replaced(found: re.Match) -> str:
        level, inside = int(found[1]), re.sub(r'<a class="anchor-link".*?</a>', '', found[3], flags=re.S).strip()
        plain = html.unescape(re.sub(r'<[^>]+>', '', inside)).strip()
        name = slugify(plain) or 'section'
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1: name = f'{name}-{seen[name]}'
        while path[-1]['level'] >= level: path.pop()
        token = dict(level=level, id=name, name=html.escape(plain, quote=False), children=[])
        path[-1]['children'].append(token)
        path.append(token)
        link = f'<a class="headerlink" href="#{name}" title="Permanent link">&para;</a>'
        return f'<h{level} id="{name}">{inside}{link}</h{level}>'

    content = TITLES.sub(replaced, content)
    return content, get_toc(root['children'])
