"""What the ranks of tests/test_distributed.py do: `training_on_ranks.py FOLDER RANKS:JOB,JOB ...`, one group of ranks after the other.

The ranks are forked from one process that has imported everything; their places are in the environment, as torchrun sets them."""
import contextlib, dataclasses, os, shutil, socket, sys, time
from pathlib import Path

import torch

from maskgil.core import write_json
from maskgil.data import ImageSet
from maskgil.models import load_model
from maskgil.reconstruction import LossConfig, TokenizerObjective
from maskgil.tokenizers import load_tokenizer
from maskgil.losses import MaskedObjective
from maskgil.training import NotFinite, TrainConfig, fit
from maskgil.reconstruction import ReconstructionObjective

FOLDER = Path(sys.argv[1])
CONFIG = TrainConfig(50, batch_size=16, learning_rate=1e-3, warmup_steps=5, ema=.9)
CPU = dict(device='cpu', dtype='float32', log_every=1)


class Tokens:
    "Tokens of no image: row i is i*7 plus the column."
    copies = 2

    def __len__(self): return 50

    def batch(self, indices, copies):
        return (indices[:, None, None] * 7 + copies[:, None, None] + torch.arange(4)).expand(-1, 4, -1) % 64, indices % 9


def train(folder=None, data=None, save_seconds=1e9, **options):
    model = load_model('maskgil', 'smoke-xxl', tokenizer='smoke-llamagen-vq', classes=9, grid=(4, 4), codebook_size=64, dropout=0.)
    config = dataclasses.replace(CONFIG, **options.pop('config', {}))
    return fit(model, MaskedObjective(64), data or Tokens(), config, folder, save_seconds=save_seconds, **CPU, **options)


def pictures(n=64):
    "Two-coloured squares."
    g = torch.Generator().manual_seed(0)
    images = torch.randint(256, (n, 3, 2, 2), generator=g, dtype=torch.uint8).repeat_interleave(16, 2).repeat_interleave(16, 3).numpy()
    return ImageSet(images, torch.zeros(n).long().numpy(), [''] * n, ('all',), torch.ones(n).bool().numpy(), 'squares', 'squares')


def train_tokenizer():
    "With everything that lives outside the model: codes redrawn, a discriminator."
    tokenizer = load_tokenizer('smoke-llamagen-vq')
    losses = LossConfig(adversarial=.1, adversarial_start=3, first_codes=5, refresh_every=5)
    objective = ReconstructionObjective(TokenizerObjective(tokenizer.config, losses))
    history = fit(tokenizer, objective, pictures(), TrainConfig(20, 16, 2e-3, seed=1), **CPU)
    state = tokenizer.state_dict() | {f'adversary.{k}': v for k, v in objective.losses.adversary.net.state_dict().items()}
    return history, [float(v.double().abs().sum()) for v in state.values()]


def stop_at_25(state, row):
    "As a gradient that is not finite would: all ranks at one step."
    if state.step == 25: raise NotFinite('stopped')


def half(strategy, folder):
    with contextlib.suppress(NotFinite): train(folder, strategy=strategy, on_log=stop_at_25)


def rest(strategy):
    "The half-way checkpoint, in a folder of this number of ranks."
    folder = FOLDER/f"{strategy}-rest-{os.environ.get('WORLD_SIZE', 1)}"
    if os.environ.get('RANK', '0') == '0': shutil.copytree(FOLDER/f'{strategy}-half', folder.with_suffix('.new')).rename(folder)
    while not folder.exists(): time.sleep(.01)
    return folder


JOBS = {
    'ddp': lambda: train(),
    'fsdp': lambda: train(strategy='fsdp'),
    'accumulated': lambda: train(config=dict(accumulate=2)),
    'ddp-half': lambda: half('ddp', FOLDER/'ddp-half'),
    'fsdp-half': lambda: half('fsdp', FOLDER/'fsdp-half'),
    'ddp-rest': lambda: train(rest('ddp'), milestones=[50]),
    'fsdp-rest': lambda: train(rest('fsdp'), strategy='fsdp', milestones=[50]),
    'tokenizer': train_tokenizer,
}

def group(ranks, jobs):
    "Fork the ranks, wait for them, and end if one fails."
    with socket.socket() as s:
        s.bind(('localhost', 0))
        port = s.getsockname()[1]
    children = []
    for rank in range(ranks):
        if child := os.fork(): children.append(child); continue
        if ranks > 1: os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), MASTER_ADDR='localhost', MASTER_PORT=str(port))
        for job in jobs: write_json(FOLDER/f'{job}-{ranks}-{rank}.json', JOBS[job]())
        sys.stdout.flush()
        os._exit(0)
    if any(os.waitpid(child, 0)[1] for child in children): sys.exit(f'a rank of {ranks} failed in {jobs}')


if __name__ == '__main__':
    import accelerate, torch.distributed.checkpoint, torch.distributed.fsdp # before the fork, once for all
    torch.set_num_threads(1)
    for spec in sys.argv[2:]:
        ranks, _, jobs = spec.partition(':')
        group(int(ranks), jobs.split(','))
