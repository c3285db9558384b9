"What a training takes: the operations and the memory that are planned are torch's."
import pytest
import torch
from accelerate import Accelerator

from maskgil.core import set_seed
from maskgil.models import ModelConfig, build_model, model_config
from maskgil.losses import CausalObjective, MaskedObjective
from maskgil.resuming import TrainState
from maskgil.training import Step, TrainConfig, make_batches, make_optimizer, train_step
from maskgil.machines import TrainingLayout, counted_flops, memory_per_rank, peak_bytes, step_flops


class Tokens:
    "Tokens of no image, on a model's grid."
    copies = 1
    def __init__(self, config): self.config = config
    def __len__(self): return 64
    def batch(self, indices, copies):
        tokens = indices[:, None, None] + torch.zeros(self.config.grid, dtype=torch.long)
        return tokens % self.config.codebook_size, indices % self.config.classes


@pytest.mark.parametrize('kind, size, recipe', [
    ('maskgil', 'mini-l', 'paper'),
    ('maskgil', 'mini-xxl', 'paper'),
    ('maskgil', 'mini-b', 'released'),
    ('llamagen', 'mini-b', 'paper'),
    ('maskgil', 'mini-xl', 'released'),
])
def test_planned_operations_are_counted_operations(kind, size, recipe):
    "A whole training step of 64 images, whose hidden tokens are near their mean."
    config = model_config(kind, size, recipe, 'mini-llamagen-vq', classes=9, grid=(8, 8))
    loss_on = 'masked' if recipe == 'paper' else 'all'
    objective = CausalObjective() if config.causal else MaskedObjective(config.mask_id, loss_on)
    batch = objective.batch(Tokens(config), torch.arange(64), set_seed(1))
    step = Step(build_model(config), objective, torch.float32)
    counted = counted_flops(lambda: step(batch)[0].backward())
    assert step_flops(config, 64, recipe) == pytest.approx(counted, rel=.05)


def held(config, images, **options):
    "The most that a real training allocates, the model included: in its second step, when AdamW has its moments."
    accelerator = Accelerator(cpu=True)
    objective = CausalObjective() if config.causal else MaskedObjective(config.mask_id)
    settings = TrainConfig(2, batch_size=images, **options)
    batches = list(make_batches(objective, Tokens(config), settings))
    def learn():
        model = build_model(config).train()
        model.gradient_checkpointing = settings.gradient_checkpointing
        state, step = TrainState(model, make_optimizer(model, settings)), Step(model, objective, torch.float32)
        for batch in batches: train_step(step, state, batch, settings, accelerator)
    return peak_bytes(learn) / 2**30


@pytest.mark.parametrize('images, checkpointing, changes', [
    (16, False, {}),
    (16, True, {}),
    (4, False, {}),
    (16, False, dict(qk_norm=True, post_norm=True)),
    (16, False, dict(kind='llamagen')),
    (8, False, dict(codebook_size=16384)),
])
def test_planned_memory_is_measured_memory(images, checkpointing, changes):
    base = dict(kind='maskgil', layers=4, heads=4, width=192, codebook_size=1024, classes=10, dropout=.1)
    config = ModelConfig(**base | changes)
    layout = TrainingLayout(images=images, bf16=False, fused=False, checkpointing=checkpointing)
    measured = held(config, images, gradient_checkpointing=checkpointing)
    assert memory_per_rank(config, layout)['total'] == pytest.approx(measured, rel=.2)


def test_memory_moves_the_right_way():
    config = model_config('maskgil', 'xxl')
    def total(*layout, **options): return memory_per_rank(config, TrainingLayout(*layout, **options))['total']
    assert total(8, 16) < total(8, 32)
    assert total(8, 32, checkpointing=True) < total(8, 32)
    assert total(8, 32, 'fsdp') < total(8, 32)
    assert total(8, 32, ema=True) - total(8, 32) == pytest.approx(4 * 1.411e9 / 2**30, rel=.02)
