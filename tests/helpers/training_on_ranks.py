"""What the ranks of tests/test_distributed.py do, one group of ranks after the other.

    python training_on_ranks.py FOLDER RANKS:JOB,JOB ...

The ranks are forked from one process that has imported everything; their places are in the environment, as torchrun
sets them."""
import contextlib, dataclasses, importlib, os, shutil, socket, sys, time
from pathlib import Path

import torch

from maskgil.core import write_json
from maskgil.data import ImageSet
from maskgil.models import load_model
from maskgil.tokenizers import load_tokenizer
from maskgil.losses import MaskedObjective
from maskgil.reconstruction import LossConfig, ReconstructionObjective, TokenizerObjective
from maskgil.training import NotFinite, TrainConfig, fit

FOLDER = Path(sys.argv[1])
CONFIG = TrainConfig(50, batch_size=16, learning_rate=1e-3, warmup_steps=5, ema=.9)
CPU = dict(device='cpu', dtype='float32', log_every=1)
SLOW_TO_IMPORT = ('accelerate', 'torch.distributed.checkpoint', 'torch.distributed.fsdp') # `fit` does it when called


class Tokens:
    "Tokens of no image: row i is i*7, plus the number of the copy, plus the column."
    copies = 2

    def __len__(self): return 50

    def batch(self, indices, copies):
        first = indices * 7 + copies # (b,)
        rows = (first[:, None, None] + torch.arange(4)) % 64 # (b 1 w)
        return rows.expand(-1, 4, -1), indices % 9


def train(folder=None, save_seconds=1e9, **options):
    size = dict(tokenizer='smoke-llamagen-vq', classes=9, grid=(4, 4), codebook_size=64)
    model = load_model('maskgil', 'smoke-xxl', **size, dropout=0.)
    config = dataclasses.replace(CONFIG, **options.pop('config', {}))
    return fit(model, MaskedObjective(64), Tokens(), config, folder, save_seconds=save_seconds, **CPU, **options)


def pictures(count=64):
    "Four squares of one colour each."
    generator = torch.Generator().manual_seed(0)
    colours = torch.randint(256, (count, 3, 2, 2), generator=generator, dtype=torch.uint8)
    images = colours.repeat_interleave(16, 2).repeat_interleave(16, 3).numpy()
    labels, flippable = torch.zeros(count).long().numpy(), torch.ones(count).bool().numpy()
    return ImageSet(images, labels, [''] * count, ('all',), flippable, 'squares', 'squares')


def train_tokenizer():
    "With everything that lives outside the model: codes redrawn, a discriminator."
    tokenizer = load_tokenizer('smoke-llamagen-vq')
    losses = LossConfig(adversarial=.1, adversarial_start=3, first_codes=5, refresh_every=5)
    objective = ReconstructionObjective(TokenizerObjective(tokenizer.config, losses))
    history = fit(tokenizer, objective, pictures(), TrainConfig(20, 16, 2e-3, seed=1), **CPU)
    discriminator = objective.losses.adversary.net
    weights = [*tokenizer.state_dict().values(), *discriminator.state_dict().values()]
    return history, [float(weight.double().abs().sum()) for weight in weights]


def stop_at_25(state, row):
    "As a gradient that is not finite would: all ranks at one step."
    if state.step == 25: raise NotFinite('stopped')


def half(strategy, folder):
    with contextlib.suppress(NotFinite): train(folder, strategy=strategy, on_log=stop_at_25)


def rest(strategy):
    "The half-way checkpoint, in a folder of this number of ranks."
    folder = FOLDER/f"{strategy}-rest-{os.environ.get('WORLD_SIZE', 1)}"
    if os.environ.get('RANK', '0') == '0':
        shutil.copytree(FOLDER/f'{strategy}-half', folder.with_suffix('.new')).rename(folder)
    while not folder.exists(): time.sleep(.01)
    return folder


JOBS = {
    'ddp': lambda: train(),
    'fsdp': lambda: train(strategy='fsdp'),
    'accumulated': lambda: train(config=dict(accumulate=2)),
    'muon': lambda: train(config=dict(steps=20, optimizer='muon')),
    'ddp-half': lambda: half('ddp', FOLDER/'ddp-half'),
    'fsdp-half': lambda: half('fsdp', FOLDER/'fsdp-half'),
    'ddp-rest': lambda: train(rest('ddp'), milestones=[50]),
    'fsdp-rest': lambda: train(rest('fsdp'), strategy='fsdp', milestones=[50]),
    'tokenizer': train_tokenizer,
}


def free_port():
    with socket.socket() as s:
        s.bind(('localhost', 0))
        return s.getsockname()[1]


def run_as(rank, ranks, jobs, port):
    "What one forked process does."
    place = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=ranks, MASTER_ADDR='localhost', MASTER_PORT=port)
    if ranks > 1: os.environ.update({name: str(value) for name, value in place.items()})
    for job in jobs: write_json(FOLDER/f'{job}-{ranks}-{rank}.json', JOBS[job]())
    sys.stdout.flush()


def group(ranks, jobs):
    "Fork the ranks, wait for them, and end if one fails."
    port, children = free_port(), []
    for rank in range(ranks):
        if child := os.fork(): children.append(child); continue
        run_as(rank, ranks, jobs, port)
        os._exit(0)
    if any(os.waitpid(child, 0)[1] for child in children): sys.exit(f'a rank of {ranks} failed in {jobs}')


if __name__ == '__main__':
    for module in SLOW_TO_IMPORT: importlib.import_module(module) # before the fork, once for all
    torch.set_num_threads(1)
    for spec in sys.argv[2:]:
        ranks, _, jobs = spec.partition(':')
        group(int(ranks), jobs.split(','))
