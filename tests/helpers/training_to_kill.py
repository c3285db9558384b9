"""Train a small model on synthetic tokens; the test kills it in the middle.

    python training_to_kill.py FOLDER OUT [PAUSE]

FOLDER is for the checkpoint, OUT for the last weights, PAUSE for the seconds that a batch takes."""
import sys, time
from pathlib import Path

import torch
from safetensors.torch import save_file

from maskgil.models import load_model
from maskgil.losses import MaskedObjective
from maskgil.training import TrainConfig, fit

folder, out, pause = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else 0.


class Tokens:
    "Row i of an image is i*7, plus the number of its copy, plus the column."
    copies = 2

    def __len__(self): return 50

    def batch(self, indices, copies):
        time.sleep(pause)
        first = indices * 7 + copies # (b,)
        rows = (first[:, None, None] + torch.arange(4)) % 64 # (b 1 w)
        return rows.expand(-1, 4, -1), indices % 9


torch.set_num_threads(1)
model = load_model('maskgil', 'smoke-xxl', tokenizer='smoke-llamagen-vq', classes=9, grid=(4, 4), codebook_size=64)
config = TrainConfig(80, batch_size=16, learning_rate=3e-3, warmup_steps=5, ema=.9)
fit(model, MaskedObjective(64), Tokens(), config, folder, milestones=[40], device='cpu', save_seconds=.2)
save_file({k: v.contiguous() for k, v in model.state_dict().items()}, out)
