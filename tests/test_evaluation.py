"The images of a set do not depend on who draws them; files are ADM's; every rule of measuring moves FID the right way."
import json, os, subprocess, sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

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
    pipe = MaskGILPipeline(model, load_tokenizer('smoke-llamagen-vq'), [f'class {i}' for i in range(8)])
    return pipe.save_pretrained(tmp_path_factory.mktemp('pipeline'))


def start(options, out, rank, ranks):
    "The program, as one of some ranks."
    given = (options | dict(out=out)).items()
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in given]
    place = dict(RANK=str(rank), WORLD_SIZE=str(ranks), OMP_NUM_THREADS='1', MASKGIL_PROGRESS='off')
    return subprocess.Popen([sys.executable, '-m', 'maskgil.evaluation', *flags], env=os.environ | place,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_one_rank_and_three(saved, tmp_path):
    "400 images in processes of their own, to the bit; then the metrics and ADM's file."
    real = to_rgb(openmoji('train').batch(range(100))).permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path/'reference.npz', arr_0=real)
    options = dict(checkpoint=saved, reference=tmp_path/'reference.npz', count=400, steps=4, batch_size=20, block=40,
                   extractor='el0', dtype='float32', device='cpu', bootstrap=20, npz=tmp_path/'samples.npz')
    for name, ranks in (('one', 1), ('three', 3)):
        for process in [start(options, tmp_path/name, rank, ranks) for rank in range(ranks)]:
            text, _ = process.communicate(timeout=900)
            assert process.returncode == 0, text
    one, three = ({path.name: path.read_bytes() for path in (tmp_path/name).glob('*.npy')} for name in ('one', 'three'))
    assert len(one) == 4 * 10 and one == three
    found = json.loads((tmp_path/'three'/'metrics.json').read_text())
    assert found == json.loads((tmp_path/'one'/'metrics.json').read_text())
    assert set(found['metrics']) == {f'{metric}_el0' for metric in ('fid', 'kid', 'is', 'precision', 'recall')}
    assert found['protocol']['per_class'] == [50, 50] and found['protocol']['count'] == 400
    layout = {'arr_0': ((400, 32, 32, 3), np.dtype('uint8')), 'arr_1': ((400,), np.dtype('int64'))}
    assert npz_layout(tmp_path/'samples.npz') == layout
    with np.load(tmp_path/'samples.npz') as f:
        assert f['arr_1'].tolist() == balanced_labels(8, 400).tolist()
        assert np.array_equal(f['arr_0'][:40], np.load(tmp_path/'one'/'00000-images.npy'))


def test_another_batch_size(saved, capsys):
    model = MaskGILPipeline.from_pretrained(saved, device='cpu').model
    labels, settings = balanced_labels(8, 192), dict(steps=8, cfg=3., dtype='float32')
    seven, many = (draw_range(model, labels, 0, 192, size, **settings) for size in (7, 64))
    same = seven == many
    with capsys.disabled(): print(f'\nbatches of 7 and of 64: {same.sum()} of {same.numel()} tokens are the same')
    assert same.float().mean().item() >= .999 and (seven != seven[0]).any()


# --- the rules of the protocol study, on images made so that the sign of each effect is known ---

TRAIN, HELD = openmoji('train', limit=700), openmoji('test')


def pictures(images, rows): return to_float(to_rgb(images.batch(rows)))
def fixed(images): return lambda labels, seeds, **options: images[:len(labels)]
def change(subject, name): return rule_effect(subject, name, replicates=30)


def reference_of(images, name='train', components_from=None): # of the first 300 of an image set
    return Reference.from_features(extract(to_rgb(images.batch(range(300)))), name, '', components_from)


def statistics(images):
    "The reference of pictures in floating point."
    rounded = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Reference.from_features(extract(rounded), 'images', '')


def subject_that(draw, n=150, reference=None, other=None, labels=None):
    reference = reference or reference_of(TRAIN)
    labels = torch.from_numpy(np.sort(TRAIN.labels[:n])) if labels is None else labels
    return Subject(draw, labels, reference, other or reference, device='cpu')


@pytest.fixture(scope='module')
def same():
    "The generator is the reference, exactly: its FID is 0, and every change of a file is for the worse."
    images = pictures(TRAIN, range(150))
    return subject_that(fixed(images), reference=statistics(images))


@pytest.mark.parametrize('name', [
    'bytes truncated, not rounded', 'JPEG, quality 95', 'JPEG, quality 75', 'bilinear resize',
    'nearest-neighbour resize', 'extractor in bfloat16', 'equal seeds on 8 ranks', 'half as many images',
])
def test_a_perfect_generator_gets_worse(same, name):
    if name.startswith('bytes'): # halves of a grey level, which rounding undoes and truncation does not
        images = pictures(TRAIN, range(150))
        same = subject_that(fixed(images - .49 / 127.5), reference=statistics(images))
    assert rule_effect(same, name, 0)['value'] > 1e-3


def test_stronger_jpeg_is_worse(same):
    assert change(same, 'JPEG, quality 75')['low'] > change(same, 'JPEG, quality 95')['high']


@pytest.mark.parametrize('generated, real, sign', [(.4, .4, 1), (.4, 1., -1)])
def test_stretching_hurts_pale_images_and_helps_images_that_are_too_pale(generated, real, sign):
    reference = statistics(real * pictures(TRAIN, range(300)))
    subject = subject_that(fixed(generated * pictures(HELD, range(150))), reference=reference)
    effect = change(subject, 'each image stretched min to max')
    assert sign * effect['value'] > 0 and effect['low'] * effect['high'] > 0


def by_class(labels, seeds, **options):
    "An emoji of each class."
    rows = [np.flatnonzero(TRAIN.labels == label) for label in range(9)]
    return pictures(TRAIN, [rows[label][seed % len(rows[label])] for label, seed in zip(labels.tolist(), seeds)])


def test_class_balance_counts():
    effect = change(subject_that(by_class, n=200), 'classes equally often')
    assert effect['low'] > 0
    drawn = change(subject_that(by_class, n=200), 'classes drawn at random')
    assert abs(drawn['value']) < effect['value'] # right on average


def test_training_images_are_nearer_to_training_images():
    train = reference_of(TRAIN)
    held_out = reference_of(HELD, 'held out', train)
    subject = subject_that(fixed(pictures(TRAIN, range(150))), reference=train, other=held_out)
    assert change(subject, 'held-out images as reference')['low'] > 0


def logits_of_two_kinds(tokens, labels, drop): # (b 1 2), (b,), (b,) -> (b 2 2)
    "A model of two tokens that agree: three in four are of the first kind, half without the condition."
    conditional, unconditional = torch.tensor([.75, .25]).log(), torch.tensor([.5, .5]).log()
    first = torch.where(drop[:, None, None], unconditional, conditional).expand(len(tokens), 2, 2)
    known = tokens.flatten(1)
    kind = known.where(known < 2, -1).amax(1) # -1 where both are masked
    certain = F.one_hot(kind.clamp(min=0), 2)[:, None] * 60. - 60
    return torch.where((kind >= 0)[:, None, None], certain, first)


def test_guidance():
    "A model that knows the data: three in four images are common. Any guidance is too much, and a ramp is less of it."
    kinds = [pictures(TRAIN, np.flatnonzero(TRAIN.labels == label)[:60]) for label in (1, 8)] # people, flags
    settings = dict(order='raster', codebook_size=2, dtype='float32')
    def draw(labels, seeds, cfg, guidance='constant'):
        tokens = sample_mar(logits_of_two_kinds, labels, (1, 2), 2, cfg, guidance=guidance, seed=seeds, **settings)
        first, second = tokens.flatten(1).T
        assert (first == second).all()
        return torch.stack([kinds[kind][seed % len(kinds[kind])] for kind, seed in zip(first.tolist(), seeds)])
    real = torch.cat([kinds[0].repeat(3, 1, 1, 1), kinds[1]])
    subject = subject_that(draw, labels=torch.zeros(240).long(), reference=statistics(real))
    assert change(subject, 'scale read as w, s = 1 + w')['value'] > 0
    assert change(subject, 'guidance ramps up')['value'] < 0


def test_every_rule_has_a_sign_here():
    text = Path(__file__).read_text()
    assert all(f"'{name}'" in text for name in RULES)
