"A plan without data or GPU; its operations are torch's."
import os, subprocess, sys, time
from pathlib import Path

import nbformat
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from maskgil.core import set_seed
from maskgil.models import build_model, model_config
from maskgil.planner import memory, step_flops, Setup
from maskgil.training import CausalObjective, MaskedObjective, Step

ROOT = Path(__file__).resolve().parent.parent


class Zeros:
    copies = 1
    def __init__(self, grid): self.grid = grid
    def batch(self, indices, copies): return torch.zeros(len(indices), *self.grid, dtype=torch.long), indices % 9


@pytest.mark.parametrize('kind, size, recipe', [('maskgil', 'mini-l', 'paper'), ('maskgil', 'mini-xxl', 'paper'), ('maskgil', 'mini-b', 'released'), ('llamagen', 'mini-b', 'paper'), ('maskgil', 'mini-xl', 'released')])
def test_planned_operations_are_counted_operations(kind, size, recipe):
    "A whole training step of 64 images, whose hidden tokens are near their mean."
    config = model_config(kind, size, recipe, 'mini-llamagen-vq', classes=9, grid=(8, 8))
    objective = CausalObjective() if config.causal else MaskedObjective(config.mask_id, 'masked' if recipe == 'paper' else 'all')
    batch, counter = objective.batch(Zeros(config.grid), torch.arange(64), set_seed(1)), FlopCounterMode(display=False)
    with counter: Step(build_model(config), objective, torch.float32)(batch)[0].backward()
    assert step_flops(config, 64, recipe) == pytest.approx(counter.get_total_flops(), rel=.05)


def test_memory_moves_the_right_way():
    config = model_config('maskgil', 'xxl')
    total = lambda *args, **options: memory(config, Setup(*args, **options))['total']
    assert total(8, 16) < total(8, 32) and total(8, 32, checkpointing=True) < total(8, 32) and total(8, 32, 'fsdp') < total(8, 32)
    assert total(8, 32, ema=True) - total(8, 32) == pytest.approx(4 * 1.411e9 / 2**30, rel=.02)


def test_the_plan_of_the_paper(tmp_path):
    "As one types it: XXL on ImageNet, here, in seconds."
    env = {k: v for k, v in os.environ.items() if not k.startswith('MASKGIL_') and k != 'IMAGENET'} | dict(MASKGIL_RESULTS=str(tmp_path/'results'))
    started = time.process_time(), time.monotonic()
    done = subprocess.run([Path(sys.executable).parent/'papermill', 'nbs/scaling.ipynb', tmp_path/'plan.ipynb', '-p', 'profile', 'paper', '-p', 'size', 'xxl', '-p', 'dry_run', 'True'],
                          cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    text = ''.join(o.text for c in nbformat.read(tmp_path/'plan.ipynb', 4).cells if c.cell_type == 'code' for o in c.outputs if o.output_type == 'stream')
    for word in ('xxl', '8xH100', '8xA100', 'GPU hours', 'disk, GiB', 'nothing was run', 'llm-foundry', '2,001,823'): assert word in text, word
    assert not (tmp_path/'results'/'runs').exists() and not (tmp_path/'results'/'checkpoints').exists()
