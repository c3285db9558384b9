"A plan without data or GPU; its operations and its memory are torch's."
import os, subprocess, sys
from pathlib import Path

import nbformat
import pytest
import torch
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode

from maskgil.core import set_seed
from maskgil.models import ModelConfig, build_model, model_config
from maskgil.machines import IN_PLACE, TrainingLayout, memory_per_rank, peak_bytes, step_flops
from maskgil.studies import STUDIES, defaults
from maskgil.planner import all_cells, plan
from maskgil.profiles import PROFILES
from maskgil.records import records
from maskgil.losses import CausalObjective, MaskedObjective
from maskgil.training import Step, TrainConfig, TrainState, make_batches, make_optimizer, train_step

ROOT = Path(__file__).resolve().parent.parent


class Tokens:
    copies = 1
    def __init__(self, config): self.config = config
    def __len__(self): return 64
    def batch(self, indices, copies): return (indices[:, None, None] + torch.zeros(self.config.grid).long()) % self.config.codebook_size, indices % self.config.classes


@pytest.mark.parametrize('kind, size, recipe', [('maskgil', 'mini-l', 'paper'), ('maskgil', 'mini-xxl', 'paper'), ('maskgil', 'mini-b', 'released'), ('llamagen', 'mini-b', 'paper'), ('maskgil', 'mini-xl', 'released')])
def test_planned_operations_are_counted_operations(kind, size, recipe):
    "A whole training step of 64 images, whose hidden tokens are near their mean."
    config = model_config(kind, size, recipe, 'mini-llamagen-vq', classes=9, grid=(8, 8))
    objective = CausalObjective() if config.causal else MaskedObjective(config.mask_id, 'masked' if recipe == 'paper' else 'all')
    batch, counter = objective.batch(Tokens(config), torch.arange(64), set_seed(1)), FlopCounterMode(display=False, custom_mapping=IN_PLACE)
    with counter: Step(build_model(config), objective, torch.float32)(batch)[0].backward()
    assert step_flops(config, 64, recipe) == pytest.approx(counter.get_total_flops(), rel=.05)


def held(config, images, **options):
    "The most that a real step of training allocates, the model included; the second step, when AdamW has its moments."
    accelerator, objective = Accelerator(cpu=True), CausalObjective() if config.causal else MaskedObjective(config.mask_id)
    settings = TrainConfig(2, batch_size=images, **options)
    batches = list(make_batches(objective, Tokens(config), settings))
    def learn():
        model = build_model(config).train()
        model.gradient_checkpointing = settings.gradient_checkpointing
        state = TrainState(model, make_optimizer(model, settings))
        for batch in batches: train_step(Step(model, objective, torch.float32), state, batch, settings, accelerator)
    return peak_bytes(learn) / 2**30


@pytest.mark.parametrize('images, checkpointing, changes', [(16, False, {}), (16, True, {}), (4, False, {}), (16, False, dict(qk_norm=True, post_norm=True)), (16, False, dict(kind='llamagen')), (8, False, dict(codebook_size=16384))])
def test_planned_memory_is_measured_memory(images, checkpointing, changes):
    config = ModelConfig(**dict(kind='maskgil', layers=4, heads=4, width=192, codebook_size=1024, classes=10, dropout=.1) | changes)
    planned = memory_per_rank(config, TrainingLayout(images=images, bf16=False, fused=False, checkpointing=checkpointing))['total']
    assert planned == pytest.approx(held(config, images, gradient_checkpointing=checkpointing), rel=.2)


def test_memory_moves_the_right_way():
    config = model_config('maskgil', 'xxl')
    total = lambda *args, **options: memory_per_rank(config, TrainingLayout(*args, **options))['total']
    assert total(8, 16) < total(8, 32) and total(8, 32, checkpointing=True) < total(8, 32) and total(8, 32, 'fsdp') < total(8, 32)
    assert total(8, 32, ema=True) - total(8, 32) == pytest.approx(4 * 1.411e9 / 2**30, rel=.02)


@pytest.mark.parametrize('profile', PROFILES)
def test_every_study_has_a_plan(profile):
    cells = all_cells(PROFILES[profile])
    table = plan(cells, ['8xH100']).loc['8xH100']
    assert len(table) > len(cells) and (table.hours >= 0).all() and (table.layout.dropna() != 'does not fit').all()
    assert table.loc['total', 'hours'] == pytest.approx(table.drop('total').hours.sum())
    studies = {p.stem: p.read_text() for p in (ROOT/'nbs').glob('[a-z]*.ipynb') if 'run_cell(' in p.read_text()}
    assert all(defaults(s).dry_run is False for s in studies)
    assert {s for s, text in studies.items() if 'print_plan(' in text} == {*STUDIES}


def papermill(tmp_path, study, *parameters):
    env = {k: v for k, v in os.environ.items() if not k.startswith('MASKGIL_') and k != 'IMAGENET'} | dict(MASKGIL_RESULTS=str(tmp_path/'results'))
    done = subprocess.run([Path(sys.executable).parent/'papermill', f'nbs/{study}.ipynb', tmp_path/'plan.ipynb', *(x for p in parameters for x in ('-p', *p))],
                          cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path/'results').rglob('*.json')) and not (tmp_path/'results'/'checkpoints').exists()
    return ''.join(o.text for c in nbformat.read(tmp_path/'plan.ipynb', 4).cells if c.cell_type == 'code' for o in c.outputs if o.output_type == 'stream')


def test_the_plan_of_the_paper(tmp_path):
    "As one types it: XXL on ImageNet, here, in seconds."
    text = papermill(tmp_path, 'scaling', ('profile', 'paper'), ('size', 'xxl'), ('dry_run', 'True'))
    for word in ('xxl', '8xH100', '8xA100', 'GPU hours', 'disk, GiB', 'nothing was run', 'llm-foundry', '2,001,823', '0 of 1 cells have a record'): assert word in text, word


def test_the_notebook_of_every_study(capsys, monkeypatch):
    "Their cells, one after the other, with dry_run: nothing needs ImageNet, and nothing runs."
    from IPython.core.interactiveshell import InteractiveShell
    from maskgil import planner
    monkeypatch.setattr(planner, 'print_plan', lambda study, profile, p: said.append((study, profile.name, plan([(profile, c) for c in STUDIES[study](profile, p)], ['8xH100']))))
    said, shell = [], InteractiveShell.instance()
    try:
        for study in STUDIES:
            for profile in ('paper', 'mini'):
                cells = [c for c in nbformat.read(ROOT/'nbs'/f'{study}.ipynb', 4).cells if c.cell_type == 'code']
                for cell in [cells[0].source, f'# Parameters\nprofile = {profile!r}\ndry_run = True\n', *(c.source for c in cells[1:])]: shell.run_cell(cell, store_history=True).raise_error()
    finally: InteractiveShell.clear_instance()
    assert [(s, p) for s, p, _ in said] == [(s, p) for s in STUDIES for p in ('paper', 'mini')]
    assert len(said[2][2]) == 12 + 4 + 8 + 4 + 1 # generation, reconstruction, output layers, tokens, total
    assert not records(sources=['yours'])


def test_a_job_of_an_array(tmp_path):
    "What SLURM runs, with a papermill that prints its arguments."
    stub = tmp_path/'papermill'
    stub.write_text('#!/bin/sh\nfor a; do echo "<$a>"; done\n')
    stub.chmod(0o755)
    env = os.environ | dict(PATH=f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}", MASKGIL_RESULTS=str(tmp_path/'results'), SLURM_ARRAY_TASK_ID='1',
                            GRID="nbs/departures.ipynb profile=paper 'change=class last,released' seed=0,1")
    done = subprocess.run(['bash', 'scripts/grid.sbatch'], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == ['<nbs/departures.ipynb>', '<-p>', '<profile>', '<paper>', '<-p>', '<change>', '<class last>', '<-p>', '<seed>', '<1>']
