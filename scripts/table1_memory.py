"""The memory of Table 1 (reconstruction of 50,000 images of 256 px), measured on fewer and drawn on along a line.

    python scripts/table1_memory.py                       # 2,500 and 5,000 images
    python scripts/table1_memory.py --tokenizer llamagen-vq --extractor inception # the real networks: for a GPU

Each count is measured in a process of its own, by the highest memory that the system ever saw it have. It reads JPEG
files, sends them through a tokenizer and a feature extractor and computes all metrics of the table. By default the
tokenizer has the published layout (16 x 16 tokens, 16,384 codes) and eight channels, and the extractor puts
out as many numbers as Inception and has no convolutions: what grows with the images is the same. What does not grow,
the weights of the published tokenizer and a batch on its way through it, is counted without data, and added.
"""
import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from maskgil.cells import images_through
from maskgil.features import EXTRACTORS, Extractor
from maskgil.machines import along_line, CountedBytes, without_data
from maskgil.metrics import reconstruction_metrics, Reference
from maskgil.shards import open_images
from maskgil.tokenizers import load_tokenizer, Tokenizer, TOKENIZERS

SIDE, WHOLE = 256, 50_000 # pixels; images of ImageNet's validation split
BATCH = images_through(SIDE) # of the tokenizer, as in the study
LIMIT = 8 # GiB
GIB = 2**30


def save_images(folder, count):
    "JPEG files of coloured blocks, below class folders."
    for i in range(count):
        path = folder/'val'/f'class-{i % 10}'/f'{i:06}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        blocks = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize((SIDE, SIDE)).save(path, quality=90)


def load_plain(device, weights):
    "Means of patches, projected at random to as many numbers as Inception puts out."
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(3 * 16 * 16, 2048 + 1008, generator=generator)
    def look(images):
        means = torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 16).flatten(1)
        return (means @ matrix).split([2048, 1008], -1)
    return look, 'projection'


def narrow_tokenizer(name):
    "A published layout with eight channels."
    row = TOKENIZERS[name]
    return Tokenizer(replace(row, channels=8, groups=8)).eval()


def measure(folder, given):
    "Everything Table 1 does with the images that are there; the most that this process ever held, in bytes."
    images = open_images(folder, 'test', SIDE, given.count)
    tokenizer = load_tokenizer(given.tokenizer) if given.tokenizer else narrow_tokenizer('llamagen-vq')
    began = time.perf_counter()
    reference = Reference.from_images(images, given.extractor)
    found = reconstruction_metrics(tokenizer, images, reference, bootstrap=given.bootstrap, batch_size=BATCH)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)
    return dict(count=len(images), peak=peak, seconds=time.perf_counter() - began, psnr=found['psnr']['value'])


def counted_batch(name='llamagen-vq'):
    "Weights of a published tokenizer and what it holds at the most for one batch, in bytes."
    row = TOKENIZERS[name]
    with without_data(), CountedBytes(0) as counted, torch.no_grad():
        tokenizer, side = Tokenizer(row), SIDE // row.downsample
        tokenizer.latents(torch.zeros(BATCH, 3, SIDE, SIDE))
        tokenizer.image(torch.zeros(BATCH, side, side, row.code_dim))
    return counted.peak


def run(count, folder, given):
    "One count, in a process of its own."
    options = ['--count', count, '--folder', folder, '--bootstrap', given.bootstrap, '--extractor', given.extractor]
    if given.tokenizer: options += ['--tokenizer', given.tokenizer]
    done = subprocess.run([sys.executable, __file__, *map(str, options)], capture_output=True, text=True)
    if done.returncode: sys.exit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def main(given):
    counts = (given.images // 2, given.images)
    with tempfile.TemporaryDirectory() as folder:
        save_images(Path(folder), given.images)
        found = [run(count, folder, given) for count in counts]
    for one in found:
        print(f"{one['count']:,} images: {one['peak'] / GIB:.2f} GiB at the most, {one['seconds']:.0f} s")
    growth = (found[1]['peak'] - found[0]['peak']) / (counts[1] - counts[0])
    batch = 0 if given.tokenizer else counted_batch()
    whole = along_line({one['count']: one['peak'] for one in found}, WHOLE) + batch
    print(f'growth: {growth / 1024:.1f} KiB an image')
    if batch: print(f'the published tokenizer and a batch of {BATCH} beside it, counted: {batch / GIB:.2f} GiB')
    print(f'{WHOLE:,} images: {whole / GIB:.2f} GiB, of {LIMIT} that are allowed')
    return whole < LIMIT * GIB


if __name__ == '__main__':
    EXTRACTORS['plain'] = Extractor(label='-plain', features=2048, logits=1008, components=None, splits=10,
                                    batch_size=64, load=load_plain, protocol='means of patches, projected')
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--images', type=int, default=5_000,
                        help='the larger of two counts; each should be above the 2,048 features')
    parser.add_argument('--tokenizer', default='', help='a name of TOKENIZERS; the narrow one if it is empty')
    parser.add_argument('--extractor', default='plain', help='plain, inception or el0')
    parser.add_argument('--bootstrap', type=int, default=200, help='replicates behind the intervals, as in the study')
    parser.add_argument('--count', type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument('--folder', help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.count: print(json.dumps(measure(given.folder, given)))
    else: sys.exit(not main(given))
