"Text to image on a folder as it comes: shapes that are rare, one caption of a shape, many rows, several ranks."
import dataclasses, io, tarfile

import numpy as np
import pytest
import torch
from PIL import Image

import maskgil.encoders
import maskgil.text
from maskgil import text_study
from maskgil.core import write_json
from maskgil.kept import save_array
from maskgil.preflight import data_identity
from maskgil.profiles import override, PROFILES
from maskgil.data import encode_tokens, TokenSet
from maskgil.encoders import JoinedTexts, LiveText, store_texts
from maskgil.text import (
    caption_folders, Captioned, CaptionedFolder, epoch_batches, list_captioned, Listing, permuted, streamed_batch,
    TextTokens,
)
from maskgil.text_study import (
    candidates, check_texts, largest_shape, measured_sets, rows_of_shapes, shape_floor, shapes_of, square_of, text_card,
    text_cell, TextBench,
)
from memory import peak_of

WIDE, SQUARE, TALL = (20, 40), (24, 24), (40, 20) # height, width


def add_images(folder, number, shape, captions):
    "Some images of a shape; the captions are used in turn."
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(number):
        stem, (h, w) = f'{h_w(shape)}-{i:03}', shape
        pixels = np.random.default_rng(i).integers(0, 256, (h, w, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder/f'{stem}.png')
        (folder/f'{stem}.txt').write_text(captions[i % len(captions)])


def h_w(shape): return 'x'.join(map(str, shape))


COLOURS = [f'a {colour} picture' for colour in 'red green blue white black pink brown grey'.split()]


@pytest.fixture
def folder(tmp_path):
    "No square images but three, which have one caption; and of the tall held-out ones there is one."
    add_images(tmp_path/'data'/'train', 70, WIDE, COLOURS)
    add_images(tmp_path/'data'/'train', 90, TALL, COLOURS[:5])
    add_images(tmp_path/'data'/'val', 5, WIDE, COLOURS)
    add_images(tmp_path/'data'/'val', 1, TALL, ['a tall picture'])
    return tmp_path/'data'


def bench_of(folder, **changes):
    "The paper's row with its sizes made small."
    small = {
        'data.source': str(folder), 'tokenizer.steps': 1, 'tokenizer.batch_size': 8, 'evaluation.extractor': 'el0',
        'evaluation.steps': 2, 'evaluation.cfg': (1.5,), 'text.encoder': 'minilm', 'text.budgets': (16, 36),
        'text.max_ratio': 2.5, 'text.stage_images': (8, 8), 'text.stage_batch': (4, 4), 'text.probe_images': 60,
        'text.judged_images': 12, 'text.bucket_images': 80, 'text.bucket_reference': 160}
    profile = dataclasses.replace(PROFILES['paper'], prefix='smoke-')
    return TextBench(override(profile, small | changes), device='cpu')


def test_a_folder_with_rare_shapes_is_measured(folder, clean_cache, tmp_path, capsys):
    "From images to a record: it used to be refused, or to stop after both trainings."
    add_images(folder/'train', 3, SQUARE, ['a square picture'])
    bench = bench_of(folder)
    maskgil.text.say.cache_clear()
    found = text_cell(bench, tmp_path)
    assert 'stage 2: distances need 65 real pictures of a shape, so they are left out for 24x24 (3)' \
        in capsys.readouterr().err
    measured = {point['pixels']: point['metrics']['fid_el0']['n'] for point in found['curve'] if 'pixels' in point}
    assert measured == {'16x16': 80, '16x32': 70, '32x16': 80}
    floor = found['floor']['fid_el0']
    assert floor['n'] == floor['n_reference'] == 45 and 'train-32x16' in floor['reference']
    assert found['protocol']['reference']['rare'] == {'stage 2': ['24x24 (3)']}
    assert {held['label'] for held in found['samples_held']} == {'16 x 32', '32 x 16'}
    assert found['samples'].exists() and found['stages'].exists()
    card = text_card(bench, found['curve']) # also of guidance at 1.5 alone
    assert 'license' not in card and 'attribution' not in card and 'emoji' not in str(card).lower()
    assert card['metrics']['found_caption']['reference'] == 'data, held-out'
    assert 'as learned from data, images with captions' in card['description']


def test_the_floor_needs_no_square(folder, clean_cache):
    bench = bench_of(folder)
    check_texts(bench)
    assert square_of(bench.profile, 1) not in [images.shape for images in bench.sets(1)]
    assert shape_floor(bench)['fid_el0']['n'] == 45 # half of what there is, not of what was asked for


@pytest.mark.parametrize('name', ['smoke', 'mini', 'midi'])
def test_the_floor_of_openmoji_is_the_square(name):
    bench = TextBench(PROFILES[name])
    sets = measured_sets(bench, 1).sets
    assert [images.shape for images in sets] == shapes_of(bench.profile, 1)
    assert largest_shape(sets).shape == square_of(bench.profile, 1)


def test_a_shape_with_one_caption_asks_among_the_others(folder, clean_cache):
    wide, tall = text_study.judged_sets(bench_of(folder), 1)
    assert set(tall.captions) == {'a tall picture'}
    with pytest.raises(ValueError): candidates(tall, 'caption') # alone, there is nothing to choose from
    (right, *others), = candidates(tall, 'caption', beside=[*wide.captions, *tall.captions])
    assert right == 'a tall picture' and len(others) == 9 and set(others) <= set(wide.captions)


def test_candidates_of_openmoji_are_as_before():
    "Where a shape has enough captions, those of other shapes change nothing."
    images = TextBench(PROFILES['mini']).sets(1, 'held-out', 24, seed=1, template='full')
    beside = [caption for other in images for caption in other.captions]
    for question in text_study.QUESTIONS:
        assert candidates(images[0], question) == candidates(images[0], question, beside=beside)


def test_what_cannot_be_measured_is_refused_before_training(folder, clean_cache):
    with pytest.raises(ValueError, match=r'no shape of stage 2 has 65 real pictures.*16x32 \(60\)'):
        check_texts(bench_of(folder, **{'data.limit': 60}))
    for file in (folder/'val').glob('*.txt'): file.write_text('the same')
    with pytest.raises(ValueError, match='no two different captions among the held-out images of stage 1'):
        check_texts(bench_of(folder))


def test_the_rows_that_are_shown_are_those_that_exist(folder, clean_cache, monkeypatch):
    "Held-out images of none of the widest, the squarest and the tallest shape."
    for file in (folder/'val').iterdir(): file.unlink()
    add_images(folder/'val', 5, (30, 20), COLOURS)
    bench = bench_of(folder, **{'text.budgets': (16, 144), 'text.max_ratio': 4.})
    monkeypatch.setattr(text_study, 'draw_texts',
                        lambda bench, model, captions, shape: torch.zeros(len(captions), 3, *shape, dtype=torch.uint8))
    shown, = rows_of_shapes(bench, ['model'], 4, 6)
    assert shown.label not in map(h_w, text_study.wide_square_tall(shapes_of(bench.profile, 1)))
    assert len(shown.captions) == len(shown.pictures) == 4


def test_a_source_is_listed_once(folder, clean_cache, monkeypatch):
    calls = dict(list_part=0, _by_shape=0)
    def counted(name, real):
        def call(*args):
            calls[name] += 1
            return real(*args)
        return call
    for name in calls: monkeypatch.setattr(maskgil.text, name, counted(name, getattr(maskgil.text, name)))
    bench = bench_of(folder)
    for _ in range(2):
        check_texts(bench)
        for stage in (0, 1): bench.sets(stage, count=5, seed=7), bench.sets(stage, 'held-out')
    assert bench.images.fingerprint
    assert calls == dict(list_part=2, _by_shape=5) # a part; a stage of a part, and the squares of the tokenizer
    assert [len(images) for images in bench.sets(1)] == [70, 90] and bench.sets(1)[0] is bench.sets(1)[0]


@pytest.mark.parametrize('ranks', [1, 2])
def test_all_ranks_encode(ranks, folder, clean_cache, monkeypatch):
    "Two processes make shards of each shape: the tokens of one, and where all are made no process is started."
    started, real = [], text_study.run_here
    def run_here(module, arguments, processes):
        started.append((module, processes))
        real(module, arguments, processes)
    monkeypatch.setattr(text_study, 'run_here', run_here)
    monkeypatch.setenv('MASKGIL_PROCESSES', str(ranks))
    bench = bench_of(folder)
    again = TextBench(bench.profile, device='cpu')
    again.tokenizer = bench.tokenizer
    for stage, data in enumerate(bench.data):
        for images, part in zip(bench.sets(stage), data.parts):
            alone = encode_tokens(bench.tokenizer, images, device='cpu')
            assert (part.tokens == alone.tokens).all() and part.manifest['images'] == alone.manifest['images']
    assert len(again.data) == 2 and started == ([('maskgil.text_study', 2)] if ranks == 2 else [])


def test_an_image_that_vanishes_stops_the_encoding(folder, clean_cache):
    "Its place among the captions would be lost."
    bench = bench_of(folder)
    images, tokenizer = bench.sets(1)[0], bench.tokenizer
    (folder/'train'/images.files[3].file).write_bytes(b'no image any more')
    with pytest.raises(RuntimeError, match='20x40-003.png could be read before and now cannot .*: the same command'):
        text_study.shape_tokens(images, tokenizer, 'cpu')


# --- many rows ---

class Reader:
    "A text encoder that does not read."
    width, source = 4, 'reader'
    def texts(self, captions, cut=False): return [torch.full((1 + len(c) % 3, 4), float(len(c))) for c in captions]
    def tokenize(self, captions, cut=False): return [[0] * (1 + len(c) % 3) for c in captions]
    def fingerprint(self): return 'reader'


def fake_tokens(folder, count, side):
    "A finished token cache of one shape."
    save_array(folder/'tokens.npy', np.arange(count * side**2, dtype=np.uint16).reshape(count, 1, side, side))
    save_array(folder/'labels.npy', np.zeros(count, np.int64))
    write_json(folder/'manifest.json', dict(tokenizer='t', images='i', grid=[side, side]))
    return TokenSet.load(folder)


def text_of(i): return f'caption number {i} of a picture that shows {"very " * (i % 7)}much'


def stored_texts(folder, count):
    "Tokens of two shapes with captions on a disk, and where another process finds them."
    counts = (count * 3 // 4, count - count * 3 // 4)
    parts = [fake_tokens(folder/f'part-{i}', n, side) for i, (n, side) in enumerate(zip(counts, (2, 3)))]
    texts = [store_texts(folder/f'texts-{i}', map(text_of, range(n * i, n * i + n))) for i, n in enumerate(counts)]
    data = TextTokens(parts, texts, LiveText(Reader(), JoinedTexts(texts)))
    return data, data.stored(folder)


def test_a_rank_holds_no_captions(tmp_path, monkeypatch):
    "Ten times the rows take no more memory; a list of the captions alone would take three megabytes."
    monkeypatch.setattr(maskgil.encoders, 'load_text_encoder', lambda *args: Reader())
    monkeypatch.setattr(maskgil.text, 'SHUFFLED_WHOLE', 1000)
    monkeypatch.setattr(maskgil.encoders, 'LENGTHS', 64)
    peaks = []
    for count in (2_000, 20_000):
        data, folder = stored_texts(tmp_path/str(count), count)
        def rank():
            loaded = TextTokens.load(folder)
            data_identity(loaded), loaded.features.lengths
            for step in range(0, 1000, 50): loaded.batch(loaded.batch_indices(step, 16, len(loaded), 0))
        peaks.append(peak_of(rank))
        loaded = TextTokens.load(folder)
        assert data_identity(loaded) == data_identity(data) and list(loaded.features.captions) == list(
            data.features.captions)
        rows = loaded.batch_indices(7, 16, len(loaded), 0)
        for ours, theirs in zip(data.batch(rows), loaded.batch(rows)): assert ours.equal(theirs)
    block = 15_000 * 8 # of labels: their content is looked at in blocks, of 65,536 rows at most
    assert peaks[1] < peaks[0] + block + 50_000, peaks


def test_the_order_is_a_function_of_step_and_seed(monkeypatch):
    "The same on each rank and after a resumption; in an epoch no image comes twice."
    counts, size = (20_000, 333, 5), 16
    order = [streamed_batch(counts, size, 3, epoch=2, place=place) for place in range(1250 + 20 + 1)]
    seen = torch.cat([rows for rows in order if rows[0] < 20_333])
    assert len(seen) == len(seen.unique()) == 20_000 + 320
    for number, rows in enumerate(order): # each batch of one shape
        assert len(set(np.searchsorted([20_000, 20_333], rows.numpy(), side='right'))) == 1, number
    assert order[700].equal(streamed_batch(counts, size, 3, epoch=2, place=700))
    assert not order[700].equal(streamed_batch(counts, size, 4, epoch=2, place=700))
    assert sorted(permuted(np.arange(333), 333, 9)) == list(range(333))


def test_a_few_images_keep_the_order_they_had(tmp_path):
    data, _ = stored_texts(tmp_path, 100)
    assert data.batch_indices(9, 16, 100, 5).equal(epoch_batches((75, 25), 16, 5, 1)[9 - 5])


def add_tar(path, count, shapes=((2, 2),)):
    "A tar file of pictures and captions."
    pictures = []
    for h, w in shapes:
        buffer = io.BytesIO()
        Image.new('RGB', (w, h)).save(buffer, 'PNG')
        pictures.append(buffer.getvalue())
    with tarfile.open(path, 'w', format=tarfile.USTAR_FORMAT) as tar:
        for i in range(count):
            for suffix, content in (('png', pictures[i % len(pictures)]), ('txt', text_of(i).encode())):
                member = tarfile.TarInfo(f'{i:07}.{suffix}')
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def test_a_long_list_lies_on_the_disk(tmp_path, clean_cache, monkeypatch):
    monkeypatch.setattr(maskgil.text, 'LISTED_WHOLE', 500)
    monkeypatch.setattr('os.cpu_count', lambda: 1) # threads that read files, each with a buffer of a megabyte
    peaks = []
    for count in (1_000, 6_000):
        (tmp_path/str(count)).mkdir()
        for first in range(0, count, 100): add_tar(tmp_path/str(count)/f'{first:07}.tar', 100) # read one at a time
        def look():
            files = list_captioned(tmp_path/str(count))
            images = CaptionedFolder(tmp_path/str(count), files, 1, 'many')
            assert isinstance(files, Listing) and len(files) == count and images.captions[-1] == text_of(99)
            assert images.fingerprint and images.stamp()
        peaks.append(peak_of(look))
    of_sets = 5_000 * 9 # eight bytes for a label, and whether it may be flipped
    as_texts = 500_000 # what the captions alone would take
    assert peaks[1] < peaks[0] + of_sets + as_texts/2, peaks
    assert not list((clean_cache/'listings').iterdir()) # nothing is left behind


def test_shapes_are_told_alike_from_a_list_on_the_disk(tmp_path, clean_cache, monkeypatch):
    (tmp_path/'data').mkdir()
    add_tar(tmp_path/'data'/'train.tar', 60, [(20, 40), (40, 20), (24, 24)])
    def seen(folders):
        return [(images.shape, list(images.captions), images.batch([0, 3]), images.read_from) for images in folders]
    shapes = [(16, 32), (24, 24), (32, 16)]
    whole = seen(caption_folders(tmp_path/'data', shapes))
    monkeypatch.setattr(maskgil.text, 'LISTED_WHOLE', 7)
    stored = caption_folders(tmp_path/'data', shapes)
    assert all(isinstance(images.files, Listing) for images in stored)
    for (*ours, one), (*theirs, other) in zip(
            [(a, b, d, c) for a, b, c, d in whole], [(a, b, d, c) for a, b, c, d in seen(stored)]):
        assert ours == theirs and one.equal(other)
    part = stored[0].subset([2, 0])
    assert part.captions[0] == stored[0].captions[2] and isinstance(part.files[0], Captioned)
    assert text_study.some_of(stored[0], 3, 0).fingerprint == text_study.some_of(stored[0], 3, 0).fingerprint
