"The images of a set do not depend on who draws them; the files are ADM's; every rule of measuring moves FID the right way."
import json, os, subprocess, sys
from pathlib import Path

import numpy as np
import pytest
import torch

from maskgil.data import openmoji, to_float, to_rgb
from maskgil.evaluation import balanced_labels, draw_range, npz_layout
from maskgil.metrics import Reference
from maskgil.features import extract
from maskgil.models import load_model
from maskgil.pipeline import MaskGILPipeline
from maskgil.protocol import RULES, Subject, rule_effect
from maskgil.sampling import sample_mar
from maskgil.tokenizers import load_tokenizer


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    "A small model that prefers some codes, as a pipeline on disk."
    model = load_model('maskgil', 'smoke-l', tokenizer='smoke-llamagen-vq', classes=8, grid=(8, 8))
    torch.nn.init.normal_(model.head.weight, std=.5, generator=torch.Generator().manual_seed(0))
    return MaskGILPipeline(model, load_tokenizer('smoke-llamagen-vq'), [f'class {i}' for i in range(8)]).save_pretrained(tmp_path_factory.mktemp('pipeline'))


def test_one_rank_and_three(saved, tmp_path):
    "400 images in processes of their own, to the bit; then the metrics and ADM's file."
    real = to_rgb(openmoji('train').batch(range(100))).permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path/'reference.npz', arr_0=real)
    command = [sys.executable, '-m', 'maskgil.evaluation', '--checkpoint', saved, '--reference', tmp_path/'reference.npz', '--count', '400', '--steps', '4', '--batch-size', '20',
               '--block', '40', '--extractor', 'el0', '--dtype', 'float32', '--device', 'cpu', '--bootstrap', '20', '--npz', tmp_path/'samples.npz']
    place = lambda rank, ranks: os.environ | dict(RANK=str(rank), WORLD_SIZE=str(ranks), OMP_NUM_THREADS='1', MASKGIL_PROGRESS='off')
    start = lambda out, rank, ranks: subprocess.Popen(list(map(str, [*command, '--out', tmp_path/out])), env=place(rank, ranks), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for group in ([start('one', 0, 1)], [start('three', r, 3) for r in range(3)]):
        for process in group:
            text, _ = process.communicate(timeout=900)
            assert process.returncode == 0, text
    one, three = ({p.name: p.read_bytes() for p in sorted((tmp_path/d).glob('*.npy'))} for d in ('one', 'three'))
    assert len(one) == 4 * 10 and one == three
    found = json.loads((tmp_path/'three'/'metrics.json').read_text())
    assert found == json.loads((tmp_path/'one'/'metrics.json').read_text())
    assert set(found['metrics']) == {f'{m}_el0' for m in ('fid', 'kid', 'is', 'precision', 'recall')}
    assert found['protocol']['per_class'] == [50, 50] and found['protocol']['count'] == 400
    assert npz_layout(tmp_path/'samples.npz') == {'arr_0': ((400, 32, 32, 3), np.dtype('uint8')), 'arr_1': ((400,), np.dtype('int64'))}
    with np.load(tmp_path/'samples.npz') as f:
        assert f['arr_1'].tolist() == balanced_labels(8, 400).tolist()
        assert np.array_equal(f['arr_0'][:40], np.load(tmp_path/'one'/'00000-images.npy'))


def test_another_batch_size(saved, capsys):
    model = MaskGILPipeline.from_pretrained(saved, device='cpu').model
    labels = balanced_labels(8, 192)
    seven, many = (draw_range(model, labels, 0, 192, size, steps=8, cfg=3., dtype='float32') for size in (7, 64))
    same = (seven == many).float().mean().item()
    with capsys.disabled(): print(f'\nbatches of 7 and of 64: {(seven == many).sum()} of {seven.numel()} tokens are the same')
    assert same >= .999 and (seven != seven[0]).any()


# --- the rules of the protocol study, on images made so that the sign of each effect is known ---

TRAIN, HELD = openmoji('train', limit=700), openmoji('test')
pictures = lambda images, rows: to_float(to_rgb(images.batch(rows)))


def bench(draw, n=150, reference=None, other=None, labels=None):
    reference = reference or Reference.from_features(extract(to_rgb(TRAIN.batch(range(300)))), 'train', '')
    labels = torch.from_numpy(np.sort(TRAIN.labels[:n])) if labels is None else labels
    return Subject(draw, labels, reference, other or reference, device='cpu')


def fixed(images): return lambda labels, seeds, **options: images[:len(labels)]
def change(b, name): return rule_effect(b, name, replicates=30)
def statistics(images): return Reference.from_features(extract(((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)), 'images', '')


@pytest.fixture(scope='module')
def same():
    "The generator is the reference, exactly: its FID is 0, and every change of a file is for the worse."
    images = pictures(TRAIN, range(150))
    return bench(fixed(images), reference=statistics(images))


@pytest.mark.parametrize('name', ['bytes truncated, not rounded', 'JPEG, quality 95', 'JPEG, quality 75', 'bilinear resize', 'nearest-neighbour resize', 'extractor in bfloat16', 'equal seeds on 8 ranks', 'half as many images'])
def test_a_perfect_generator_gets_worse(same, name):
    if name.startswith('bytes'): # halves of a grey level, which rounding undoes and truncation does not
        images = pictures(TRAIN, range(150))
        same = bench(fixed(images - .49 / 127.5), reference=statistics(images))
    assert rule_effect(same, name, 0)['value'] > 1e-3


def test_stronger_jpeg_is_worse(same): assert change(same, 'JPEG, quality 75')['low'] > change(same, 'JPEG, quality 95')['high']


@pytest.mark.parametrize('generated, real, sign', [(.4, .4, 1), (.4, 1., -1)])
def test_stretching_hurts_pale_images_and_helps_images_that_are_too_pale(generated, real, sign):
    b = bench(fixed(generated * pictures(HELD, range(150))), reference=statistics(real * pictures(TRAIN, range(300))))
    effect = change(b, 'each image stretched min to max')
    assert sign * effect['value'] > 0 and effect['low'] * effect['high'] > 0


def by_class(labels, seeds, **options):
    "An emoji of each class."
    order = [np.flatnonzero(TRAIN.labels == c) for c in range(9)]
    return pictures(TRAIN, [order[c][s % len(order[c])] for c, s in zip(labels.tolist(), seeds)])


def test_class_balance_counts():
    effect = change(bench(by_class, n=200), 'classes equally often')
    assert effect['low'] > 0
    drawn = change(bench(by_class, n=200), 'classes drawn at random')
    assert abs(drawn['value']) < effect['value'] # right on average


def test_training_images_are_nearer_to_training_images():
    train = Reference.from_features(extract(to_rgb(TRAIN.batch(range(300)))), 'train', '')
    held = Reference.from_features(extract(to_rgb(HELD.batch(range(300)))), 'held out', '', train)
    assert change(bench(fixed(pictures(TRAIN, range(150))), reference=train, other=held), 'held-out images as reference')['low'] > 0


def test_guidance():
    "A model that knows the data: three in four images are common, the rest rare. Any guidance is too much, and a ramp is less of it."
    kinds = [pictures(TRAIN, np.flatnonzero(TRAIN.labels == c)[:60]) for c in (1, 8)] # people, flags
    p_c, p_u = torch.tensor([.75, .25]), torch.tensor([.5, .5])
    def model(x, y, drop): # two tokens that agree
        known, first = x.flatten(1), torch.where(drop[:, None, None], p_u.log(), p_c.log()).expand(len(x), 2, 2)
        kind = known.where(known < 2, -1).amax(1)
        return torch.where((kind >= 0)[:, None, None], torch.nn.functional.one_hot(kind.clamp(min=0), 2)[:, None] * 60. - 60, first)
    def draw(labels, seeds, cfg, guidance='constant'):
        tokens = sample_mar(model, labels, (1, 2), 2, cfg, guidance=guidance, order='raster', seed=seeds, codebook_size=2, dtype='float32').flatten(1)
        assert (tokens[:, 0] == tokens[:, 1]).all()
        return torch.stack([kinds[k][s % len(kinds[k])] for k, s in zip(tokens[:, 0].tolist(), seeds)])
    real = torch.cat([kinds[0].repeat(3, 1, 1, 1), kinds[1]])
    b = bench(draw, labels=torch.zeros(240).long(), reference=statistics(real))
    assert change(b, 'scale read as w, s = 1 + w')['value'] > 0 and change(b, 'guidance ramps up')['value'] < 0


def test_every_rule_has_a_sign_here():
    text = Path(__file__).read_text()
    assert all(f"'{name}'" in text for name in RULES)
