"""Train one of the two small models that price the approximate options: 1.6 million weights on 8x8 tokens of OpenMoji,
through the trained LlamaGen row. An interrupted run goes on.

    python scripts/small_model.py maskgil --folder FOLDER
"""
import argparse
import os
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1') # two runs side by side: one thread each is faster than two

import torch

from maskgil.approximate import PRICED_MODEL, priced_tokenizer
from maskgil.data import encode_tokens
from maskgil.losses import CausalObjective, MaskedObjective
from maskgil.models import load_model
from maskgil.shards import open_images
from maskgil.training import TrainConfig, fit, load_milestone
from maskgil.weights import save_weights

DROPOUT = {'maskgil': .05, 'llamagen': .1}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('kind', choices=DROPOUT)
    parser.add_argument('--folder', type=Path, required=True, help='for checkpoints and the weights')
    parser.add_argument('--steps', type=int, default=3600, help='of 64 images, over which the learning rate falls')
    parser.add_argument('--take', type=int, default=1800, help='the step whose averaged weights are written')
    return parser.parse_args()


def main() -> None:
    chosen = arguments()
    images = open_images('openmoji', 'train', 32, None)
    tokens = encode_tokens(priced_tokenizer(), images, copies=4, seed=0, device='cpu', shift=0, background=False)
    model = load_model(chosen.kind, dropout=DROPOUT[chosen.kind], seed=0, **PRICED_MODEL)
    causal = model.config.causal
    objective = CausalObjective() if causal else MaskedObjective(model.config.mask_id)
    schedule = TrainConfig(chosen.steps, 64, 2e-3, warmup_steps=100, decay='cosine', ema=.999)
    fit(model, objective, tokens, schedule, chosen.folder, [chosen.take], 'cpu', 'float32', name=chosen.kind,
        save_seconds=120)
    load_milestone(model, chosen.folder, chosen.take)
    made = dict(step=chosen.take, of=chosen.steps, images=chosen.take * schedule.batch_size,
                tokenizer=PRICED_MODEL['tokenizer'])
    save_weights(chosen.folder/f'{chosen.kind}.safetensors', model, made, torch.bfloat16)


if __name__ == '__main__': main()
