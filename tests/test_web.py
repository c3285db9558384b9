"The page that draws: its networks say what torch says, and its sampler in a browser draws Python's tokens."
import json, re, shutil, sys
from pathlib import Path

import pytest
import torch

from maskgil.sampling import halton_ranks, image_noise, image_seeds, ORDERS, sample_mar, unmask_plan
from maskgil.web import reference_model, unpacked, web_pipeline

for needed in ('onnx', 'onnxscript', 'onnxruntime', 'websocket'):
    pytest.importorskip(needed, reason=f"{needed} is not installed: pip install -e '.[dev]'")

from browser import browser, CHROMIUM, served # noqa: E402

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT/'docs'))
# Logits differ in their last bits, so a number that falls between two codes can choose the other one: in a picture of a
# hundred or so. These are far from that: they stay the same with noise on the logits, ten times what the difference is.
DRAWN = [ # label, options of `sample_mar`
    (0, dict(seed=1)),
    (1, dict(seed=1, cfg=1.0, steps=4)),
    (8, dict(seed=7, cfg=5.0, order='halton', steps=12)),
    (4, dict(seed=4, order='random', temperature=.7, choice_temperature=2.)),
    (7, dict(seed=12345, order='raster', steps=20)),
]


@pytest.fixture(scope='module')
def pipe(): return web_pipeline()


@pytest.fixture(scope='module')
def demo(tmp_path_factory): # yields the folder
    "The page without the theme around it, and what it loads."
    import demo_files
    folder = tmp_path_factory.mktemp('web')
    missing = demo_files.write_demo(folder/'assets'/'demo')
    text = (ROOT/'docs'/'text'/'try.md').read_text(encoding='utf-8')
    head = ('<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">')
    (folder/'try.html').write_text(head + text, encoding='utf-8')
    return folder, missing


@pytest.fixture(scope='module')
def page(demo):
    folder, missing = demo
    if not CHROMIUM: pytest.skip('there is no Chromium here: apt-get install chromium')
    if missing: pytest.skip(missing)
    with served(folder) as address, browser() as opened:
        opened.address = address
        opened.size(1400, 1000)
        opened.open(f'{address}/try.html')
        opened.until(READY)
        yield opened


READY = "document.getElementById('demo').hasAttribute('data-ready')"


def start_with_hole(pipe):
    "Tokens of a picture with nine of them hidden."
    tokens = sample_mar(pipe.model, torch.tensor([1]), (8, 8), seed=1, dtype='float32')
    tokens[:, 2:5, 3:6] = pipe.model.config.mask_id
    return tokens


def test_onnx_says_what_torch_says(pipe, demo):
    import onnxruntime
    session = lambda name: onnxruntime.InferenceSession(
        unpacked((demo[0]/'assets'/'demo'/f'{name}.bin').read_bytes(), halves=True))
    tokens, labels = start_with_hole(pipe).repeat(2, 1, 1), torch.tensor([1, 9])
    given = dict(tokens=tokens.flatten(1).int().numpy(), labels=labels.int().numpy())
    logits, = session('transformer').run(None, given)
    with torch.no_grad(): expected = pipe.model.logits(tokens, labels)
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-4)
    codes = tokens.clamp(max=1023)
    image, = session('decoder').run(None, dict(codes=codes.int().numpy()))
    expected = pipe.tokenizer.decode(codes, dtype='float32')
    torch.testing.assert_close(torch.from_numpy(image), expected, rtol=1e-3, atol=1e-3)


def test_all_that_is_loaded(demo):
    "Under 10 MB with 0.4 MB of the theme, which the page loads without its index."
    folder, missing = demo
    told = json.loads((folder/'assets'/'demo'/'demo.json').read_text())
    loaded = sum(file.stat().st_size for file in folder.rglob('*') if file.is_file())
    assert loaded < 9.5e6 and (missing or loaded > 5e6)
    for name, file in told['files'].items():
        assert (folder/'assets'/'demo'/file['file']).stat().st_size == file['bytes'], name
    assert len(told['names']) == len(told['classes']) == 9 and 'fox face' in told['names'][2]


def test_no_address_of_elsewhere_is_loaded():
    for file in (ROOT/'docs'/'demo').iterdir():
        assert not re.search(r'https?://', file.read_text(encoding='utf-8')), file


def test_a_site_without_npm_says_so(tmp_path, monkeypatch):
    import demo_files
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(OSError): demo_files.runtime(tmp_path/'cache')
    assert not [*tmp_path.rglob('*.bin')]


def test_another_package_is_refused(tmp_path, monkeypatch):
    "npm brings a file; its hash decides."
    import demo_files
    def bring(command, cwd, **options): (cwd/'x.tgz').write_bytes(b'something else')
    monkeypatch.setattr(demo_files.subprocess, 'run', bring)
    with pytest.raises(OSError, match='its hash is'): demo_files.runtime(tmp_path/'cache')


def test_unknown_size():
    with pytest.raises(ValueError, match='size'): reference_model('huge')


def test_random_numbers_and_plans(page):
    "torch's generator and seeds, the schedule for every number of tokens and steps that the page has, Halton's order."
    found = page.run('''(async () => {
        const random = await import('/assets/demo/random.js'), sampler = await import('/assets/demo/sampler.js')
        const upTo = most => Array.from({ length: most }, (_, i) => i + 1)
        const plans = upTo(64).map(n => upTo(32).map(steps => sampler.unmaskPlan(n, steps)))
        const noise = random.imageNoise(random.imageSeed(7, 3), 3, 500).map(step => [[...step.codes], [...step.order]])
        return { plans, noise, ranks: sampler.haltonRanks([8, 8]), orders: Object.keys(sampler.ORDERS),
                 seeds: [0, 1, 999999999].map(seed => random.imageSeed(seed)) }
    })()''')
    noise = image_noise(image_seeds(7, 1, 3), (3, 2, 500), torch.device('cpu'))[0]
    assert torch.equal(torch.tensor(found['noise']), noise)
    assert found['seeds'] == [image_seeds(seed, 1)[0] % 2**32 for seed in (0, 1, 999999999)]
    assert found['plans'] == [[unmask_plan(n, steps) for steps in range(1, 33)] for n in range(1, 65)]
    assert found['ranks'] == halton_ranks((8, 8)).tolist()
    assert {*found['orders']} == {*ORDERS} - {'checkerboard'} # which the page does not offer


def drawn_in_browser(page, label, options, start=None):
    "The tokens of the last step."
    in_javascript = lambda name: re.sub('_(.)', lambda m: m[1].upper(), name)
    given = json.dumps({in_javascript(name): value for name, value in options.items()})
    return page.run(f'''(async () => {{
        const {{ loadDescription, loadNetworks }} = await import('/assets/demo/networks.js')
        const {{ sampleMar }} = await import('/assets/demo/sampler.js')
        const base = new URL('/assets/demo/', location), told = await loadDescription(base)
        window.kept ??= await loadNetworks(told, base)
        const {{ codes, grid }} = told
        const model = {{ classes: told.classes.length, codes, grid, tokens: {json.dumps(start)} }}
        let last
        for await (const step of sampleMar(window.kept.ask, {label}, {{ ...model, ...{given} }})) last = step
        return [...last.tokens]
    }})()''')


@pytest.mark.parametrize('label, options', DRAWN, ids=range(len(DRAWN)))
def test_tokens_are_those_of_python(page, pipe, label, options):
    expected = sample_mar(pipe.model, torch.tensor([label]), (8, 8), dtype='float32', **options)
    assert drawn_in_browser(page, label, options) == expected.flatten().tolist()


def test_a_filled_hole_is_that_of_python(page, pipe):
    start = start_with_hole(pipe)
    expected = sample_mar(pipe.model, torch.tensor([1]), (8, 8), tokens=start, seed=9, dtype='float32')
    assert drawn_in_browser(page, 1, dict(seed=9), start.flatten().tolist()) == expected.flatten().tolist()
    assert torch.equal(expected[start < 1024], start[start < 1024])


def pixel_of_board(page, row, column):
    "Red, green, blue in the middle of a square."
    return page.run(f'''(() => {{
        const board = document.getElementById('demo-board'), side = board.width / 8
        const x = ({column} + .5) * side, y = ({row} + .5) * side
        return [...board.getContext('2d').getImageData(x, y, 1, 1).data].slice(0, 3)
    }})()''')


def test_what_it_says_for_python_is_what_it_shows(page, pipe):
    "The lines below the picture, run, and the same pixel of every square."
    lines = page.run("document.getElementById('demo-python').textContent")
    assert lines.count('web_pipeline()') == 1
    found = dict(pipe=pipe)
    exec(lines.replace('pipe = web_pipeline()', ''), found)
    for row in range(8):
        for column in range(8):
            expected = found['picture'].getpixel((4 * column + 2, 4 * row + 2))
            shown = pixel_of_board(page, row, column)
            assert max(abs(a - b) for a, b in zip(shown, expected)) <= 2, (row, column)


def choose(page, name, value):
    page.run(f'''(() => {{
        const input = document.getElementById('demo-{name}')
        input.value = '{value}'
        for (const kind of ['input', 'change']) input.dispatchEvent(new Event(kind, {{ bubbles: true }}))
    }})()''')


def test_the_page_as_a_person_uses_it(page):
    "Steps, scrubbing, a class by its emoji, a hole by pointer and by keys; nothing from elsewhere, no error."
    text = lambda name: page.run(f"document.getElementById('demo-{name}').textContent")
    is_off = lambda name: page.run(f"document.getElementById('demo-{name}').disabled")
    wait = lambda: page.until(f"{READY} && document.getElementById('demo-draw').textContent === 'Draw another'")
    assert text('step') == 'step 8 of 8' and page.run("document.querySelectorAll('#demo-film button').length") == 8
    choose(page, 'time', 0)
    assert text('step') == 'start' and pixel_of_board(page, 4, 4) == [220, 214, 226] # hidden
    choose(page, 'steps', 5) # draws anew
    wait()
    assert text('step') == 'step 5 of 5' and 'steps=5' in text('python')
    choose(page, 'search', 'fox f')
    page.run("document.querySelector('#demo-found button').click()")
    wait()
    assert "labels=['Animals & Nature']" in text('python') and is_off('fill')
    page.run("document.getElementById('demo-board').scrollIntoView({ block: 'center' })")
    box = page.run('''(({ x, y, width }) => [x, y, width / 8])(
        document.getElementById('demo-board').getBoundingClientRect())''')
    at = lambda row, column: (box[0] + (column + .5) * box[2], box[1] + (row + .5) * box[2])
    page.mouse('mousePressed', *at(2, 2))
    for column in (3, 4): page.mouse('mouseMoved', *at(2, column))
    page.mouse('mouseReleased', *at(2, 4), buttons=0)
    for key in ('ArrowDown', 'ArrowRight', ' '): page.key(key) # from the first square
    assert '4 of 64 squares' in text('said') and not is_off('fill')
    seed = page.run("document.getElementById('demo-seed').value")
    page.key('Enter')
    wait()
    assert text('step') == 'step 4 of 4' and text('python').count('1024') == 4 + 1 # and in the comment
    assert page.run("document.getElementById('demo-seed').value") == str(int(seed) + 1)
    assert text('fill') == 'Fill it again'
    assert page.complaints() == []
    assert not [r for r in page.requests() if not r.startswith((page.address, 'data:', 'blob:', 'about:'))]


def test_it_fits_a_phone(page):
    page.size(390, 844, phone=True)
    try: assert page.run('document.documentElement.scrollWidth') <= 390
    finally: page.size(1400, 1000)


def test_a_missing_file_is_told_in_words(page, demo, tmp_path):
    folder = demo[0]
    shutil.copytree(folder, tmp_path/'site')
    (tmp_path/'site'/'assets'/'demo'/'decoder.bin').unlink()
    with served(tmp_path/'site') as address, browser() as opened:
        opened.open(f'{address}/try.html')
        opened.until("document.getElementById('demo').dataset.state === 'failed'")
        said = opened.run("document.getElementById('demo-message').textContent")
    assert said == 'It does not work here: /assets/demo/decoder.bin is not there (404).'
