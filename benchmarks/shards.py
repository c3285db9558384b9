"""How fast tokens are read, and what a second process brings to encoding.

    python benchmarks/shards.py [--images 96] [--tokenizer llamagen-vq] [--size 256]

Reading: batches through training.make_batches from a token set on disk, against the images the mini model of each size
learns from in the same time. Encoding: python -m maskgil.shards in one process and in two, each on one thread, as whole
commands; the published tokenizer at its published size, with random weights, on which its cost does not depend. Needs a
machine with nothing else to do.
"""
import argparse, os, subprocess, sys, tempfile, time
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from PIL import Image

from maskgil.core import pick_device, pick_dtype, write_json
from maskgil.data import TokenSet
from maskgil.tokenizers import TOKENIZERS
from maskgil.models import load_model
from maskgil.losses import MaskedObjective
from maskgil.resuming import TrainState
from maskgil.training import Step, TrainConfig, make_batches, make_optimizer, train_step

CODES = TOKENIZERS['mini-llamagen-vq'].codebook_size


def token_set(folder, images=100_000, codes=CODES, grid=(8, 8)):
    rng = np.random.default_rng(0)
    np.save(folder/'tokens.npy', rng.integers(0, codes, (images, 2, *grid), dtype=np.uint16))
    np.save(folder/'labels.npy', rng.integers(0, 9, images))
    write_json(folder/'manifest.json', dict(tokenizer='none', codebook_size=codes))
    return TokenSet.load(folder)


def reading(tokens, batch, steps=60):
    "Images a second, made into batches with tokens hidden."
    batches = make_batches(MaskedObjective(CODES), tokens, TrainConfig(steps + 5, batch_size=batch))
    for _ in range(5): next(batches)
    started = time.perf_counter()
    for _ in batches: pass
    return steps * batch / (time.perf_counter() - started)


def learning(size, tokens, batch, steps=6):
    "Images a second of whole training steps."
    device, dtype = pick_device(), pick_dtype()
    accelerator = Accelerator(cpu=device.type == 'cpu')
    shape = dict(classes=9, grid=(8, 8), dropout=0.)
    model = load_model('maskgil', f'mini-{size}', tokenizer='mini-llamagen-vq', device=device, **shape).train()
    config, objective = TrainConfig(steps + 2, batch_size=batch), MaskedObjective(CODES)
    state, module = TrainState(model, make_optimizer(model, config)), Step(model, objective, dtype)
    batches = list(make_batches(objective, tokens, config))
    for i, b in enumerate(batches):
        if i == 2: started = time.perf_counter()
        train_step(module, state, b, config, accelerator)
    return steps * batch / (time.perf_counter() - started)


def encoding(folder, photos, processes, tokenizer, size, shard):
    "Seconds for all photos."
    given = {
        'data': photos, 'tokenizer': tokenizer, 'out': folder, 'split': 'all', 'size': size, 'shard-size': shard,
        'workers': 1, 'device': 'cpu', 'processes': processes,
    }
    arguments = [str(word) for name, value in given.items() for word in (f'--{name}', value)]
    command = [sys.executable, '-m', 'maskgil.shards', *arguments]
    quiet = os.environ | dict(OMP_NUM_THREADS='1', MASKGIL_PROGRESS='off')
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=quiet)
    return time.perf_counter() - started


def save_photos(folder, count, size):
    "Coloured squares as JPEG files, in one class."
    rng = np.random.default_rng(0)
    (folder/'a').mkdir(parents=True)
    for i in range(count):
        coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse.repeat(size // 8, 0).repeat(size // 8, 1)).save(folder/'a'/f'{i:05}.jpeg')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=int, default=96)
    parser.add_argument('--tokenizer', default='llamagen-vq')
    parser.add_argument('--size', type=int, default=256)
    parser.add_argument('--shard-size', type=int, default=4)
    parser.add_argument('--batch', type=int, default=32)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work/'set').mkdir()
        tokens = token_set(work/'set')
        read = reading(tokens, args.batch)
        for size in ('b', 'xxl'):
            learned = learning(size, tokens, args.batch)
            speeds = f'tokens are read at {read:,.0f} images/s, mini-{size} learns from {learned:,.0f}'
            print(f'{speeds}: {read / learned:.0f} times', flush=True)
        save_photos(work/'photos', args.images, args.size)
        def timed(processes):
            into = work/f'by-{processes}'
            return encoding(into, work/'photos', processes, args.tokenizer, args.size, args.shard_size)
        one, two = timed(1), timed(2)
        print(f'encoding {args.images} images: {one:.1f} s in one process, {two:.1f} s in two, '
              f'{one / two:.2f} times as fast')


if __name__ == '__main__': main()
