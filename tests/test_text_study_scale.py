"Text to image on a folder as it comes: shapes that are rare, one caption of a shape, many rows, several ranks."
import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

import maskgil.text
from maskgil import text_study
from maskgil.profiles import override, PROFILES
from maskgil.text_study import (
    candidates, check_texts, largest_shape, measured_sets, rows_of_shapes, shape_floor, shapes_of, square_of, text_card,
    text_cell, TextBench,
)

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
