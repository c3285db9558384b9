"""Train one small tokenizer of 2 million weights on OpenMoji at 32 px: longer than the mini profile does, and with a
perceptual and an adversarial loss. An interrupted run goes on.

    python scripts/small_tokenizer.py llamagen-vq --folder results/checkpoints/llamagen-vq
"""
import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1') # two runs side by side: one thread each is faster than two

import numpy as np
import torch

from maskgil.data import to_float, to_rgb
from maskgil.metrics import Reference, evaluate, extract
from maskgil.drawing import decode_tokens
from maskgil.reconstruction import LOSSES, ReconstructionObjective, TokenizerObjective
from maskgil.shards import open_images
from maskgil.tokenizers import TOKENIZER_ROWS, TOKENIZERS, load_tokenizer
from maskgil.training import TrainConfig, fit, load_milestone
from maskgil.weights import save_weights


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('tokenizer', choices=TOKENIZER_ROWS)
    parser.add_argument('--folder', type=Path, required=True, help='for checkpoints, milestones and what they reach')
    parser.add_argument('--steps', type=int, default=10_000, help='of 32 images')
    parser.add_argument('--perceptual', type=float, default=.2, help='weight of the perceptual loss')
    parser.add_argument('--adversarial', type=float, default=.02, help='weight of the discriminator; 0 leaves it out')
    parser.add_argument('--begin', type=Path, help='weights to begin with, in place of random ones')
    return parser.parse_args()


def measure(tokenizer, images, reference: Reference) -> dict: # metric -> value, low, high; and codes in use
    "How far reconstructions are from the real images."
    codes = torch.cat([tokenizer.encode(batch) for batch in to_float(to_rgb(images)).split(64)])
    found = evaluate(extract(decode_tokens(tokenizer, codes), 'el0'), reference, seed=0)
    rounded = {name: [round(float(row[part]), 3) for part in ('value', 'low', 'high')] for name, row in found.items()}
    return rounded | dict(codes_in_use=int(codes.unique().numel()))


def main() -> None:
    chosen = arguments()
    name = f'midi-{chosen.tokenizer}'
    config = TOKENIZERS[name]
    tokenizer = load_tokenizer(name, chosen.begin, seed=0)
    losses = replace(LOSSES[config.quantizer], perceptual=chosen.perceptual, adversarial=chosen.adversarial,
                     adversarial_start=1500 if chosen.adversarial else 0, refresh_every=50)
    objective = ReconstructionObjective(TokenizerObjective(config, losses), background=False)
    train, test = (open_images('openmoji', split, 32, None) for split in ('train', 'test'))
    schedule = TrainConfig(chosen.steps, 32, 1.5e-3, warmup_steps=200, decay='cosine', weight_decay=0., ema=.999)
    milestones = [chosen.steps * part // 4 for part in (1, 2, 3, 4)]
    fit(tokenizer, objective, train, schedule, chosen.folder, milestones, 'cpu', save_seconds=120, name=name)

    reference = Reference.from_images(train, 'el0')
    held_out = Reference.from_images(test, 'el0', components_from=reference)
    some = np.sort(np.random.default_rng(0).permutation(len(train))[:500])
    for step in milestones:
        load_milestone(tokenizer, chosen.folder, step)
        reached = dict(train=measure(tokenizer, train.batch(some), reference),
                       test=measure(tokenizer, test.batch(slice(0, len(test))), held_out))
        print(step, json.dumps(reached), flush=True)
        given = {key: str(value) for key, value in vars(chosen).items() if key != 'folder'} # which is of this machine
        made = dict(steps=step, arguments=given, reached=reached)
        last = step == milestones[-1]
        path = chosen.folder/(f'{name}.safetensors' if last else f'{name}-{step}.safetensors')
        save_weights(path, tokenizer, made, torch.bfloat16)
    print(f'{path}: studies read it from MASKGIL_CHECKPOINTS={path.parent}, before the one in results/small-tokenizers')


if __name__ == '__main__': main()
