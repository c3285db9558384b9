"The output layer with a large codebook: memory bounded, loss and gradients those of the plain one."
import importlib.util

import pytest, torch
import torch.nn.functional as F

from maskgil.core import project_root
from maskgil.models import build_model, joint_logits, model_config
from maskgil.losses import CausalObjective, MaskedObjective, token_loss

spec = importlib.util.spec_from_file_location('benchmark', project_root()/'benchmarks'/'head.py')
benchmark = importlib.util.module_from_spec(spec)
spec.loader.exec_module(benchmark)


def relative(a, b): return ((a - b).abs().max() / b.abs().max()).item()


def gradients_of(losses, inputs):
    "Pairs: the gradients of two losses by each of the inputs."
    return zip(*(torch.autograd.grad(loss, inputs) for loss in losses))


def test_memory_does_not_grow_with_the_codebook():
    "16 times the codes at the same batch: beyond the weights and their gradient nothing may be added."
    cases = ('sliced', 2048), ('sliced', 32_768), ('plain', 32_768)
    small, large, plain = (benchmark.in_process('measure', kind, codes, 2048, 32) for kind, codes in cases)
    assert large['beyond'] < 1.3 * small['beyond'], (small, large)
    assert plain['beyond'] > 10 * large['beyond'], 'the reference makes all logits, so the measure sees them'


@pytest.mark.parametrize('codes, chunk', [(16_384, None), (1000, (64, 1000)), (1000, (33, 170)), (262_144, None)])
def test_loss_and_gradients_are_the_plain_ones(codes, chunk):
    shape = codes, 16 if codes > 100_000 else 200, 24
    found = benchmark.results(lambda f, w, t: token_loss(f, w, t, chunk=chunk)[0], *shape)
    exact = benchmark.results(benchmark.HEAD_LOSSES['plain'], *shape, torch.float64)
    for got, want in zip(found, exact): assert relative(got, want) < 1e-5


def test_bfloat16():
    "Under autocast the products are in bfloat16 and the sums in float32, as F.cross_entropy has them."
    features, weight, targets = benchmark.batch(3000, 100, 32)
    with torch.autocast('cpu', torch.bfloat16):
        whole, sliced = (token_loss(features, weight, targets, chunk=size)[0] for size in ((100, 3000), (30, 700)))
        plain = F.cross_entropy((features @ weight.T).float(), targets, label_smoothing=.1, reduction='sum')
    assert relative(whole, plain) < 1e-5 and relative(sliced, plain) < 1e-5
    a, b = (torch.autograd.grad(loss, weight)[0] for loss in (whole, plain))
    assert a.dtype == torch.float32 and relative(a, b) < .02


class Codes:
    "Eight images of random tokens, always the same."
    copies = 1

    def __len__(self): return 8

    def batch(self, indices, copies):
        tokens = torch.randint(64, (len(indices), 4, 4), generator=torch.Generator().manual_seed(1))
        return tokens, indices % 3


KINDS = [
    ('maskgil', (4, 16)), ('maskgil', (64,)), ('maskgil', ()),
    ('llamagen', (8, 8)), ('llamagen', ()),
    ('maskgit-transformer', ()),
]


def random_model(kind, groups):
    "A small model without dropout, all of its weights random."
    torch.manual_seed(0)
    size = dict(tokenizer='smoke-llamagen-vq', codebook_size=64, code_groups=groups, classes=3, grid=(4, 4))
    model = build_model(model_config(kind, 'smoke-l', **size, dropout=0., token_dropout=0.))
    for weight in model.parameters(): torch.nn.init.normal_(weight, std=.3)
    return model


def joint(model, batch, loss_on):
    "Logits of all codes, and the targets, of the tokens that are learned from."
    if model.config.causal:
        tokens = batch['tokens'].flatten(1)
        return model.logits(tokens[:, :-1], batch['labels'], batch['drop']).flatten(0, 1), tokens.flatten()
    at = batch['hidden'] if loss_on == 'masked' else torch.ones_like(batch['hidden'])
    return model.logits(batch['tokens'], batch['labels'], batch['drop'], at=at), batch['targets'].flatten(1)[at]


@pytest.mark.parametrize('kind, groups', KINDS)
@pytest.mark.parametrize('loss_on', ['masked', 'all'])
def test_objectives_are_the_joint_cross_entropy(kind, groups, loss_on):
    "Loss, right guesses and every gradient against F.cross_entropy on the logits of all codes."
    model = random_model(kind, groups)
    objective = CausalObjective(smoothing=.1) if model.config.causal else MaskedObjective(64, loss_on)
    batch = objective.batch(Codes(), torch.arange(8), torch.Generator().manual_seed(0))
    loss, logs = objective.loss(model, batch)
    logits, targets = joint(model, batch, loss_on)
    plain = F.cross_entropy(logits, targets, label_smoothing=.1, reduction='sum')
    assert logits.shape[-1] == 64 + model.config.mask_logit and relative(loss, plain) < 1e-5
    assert logs['accuracy'] == (logits.argmax(-1) == targets).sum()
    for got, want in gradients_of((loss, plain), list(model.parameters())):
        assert relative(got, want) < 1e-3 or want.abs().max() < 1e-5


def test_joint_probabilities_sum_to_one():
    p = joint_logits(torch.randn(3, 64 + 4096), (64, 4096)).softmax(-1)
    assert p.shape == (3, 262_144) and torch.allclose(p.sum(-1), torch.ones(3), atol=1e-5)
