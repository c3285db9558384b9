"""What holds on a GPU: the CPU's numbers in float32, bfloat16 close to them, compiled blocks equal to plain ones, the
same draw twice, and the memory that the planner says. `PROOF_DEVICE=cpu` runs the same code where there is no GPU."""
import os, socket, subprocess, sys
from pathlib import Path
from types import SimpleNamespace

import pytest, torch

from maskgil.cells import WatchedObjective
from maskgil.core import read_json
from maskgil.data import TokenSet
from maskgil.features import extract, write_synthetic_inception
from maskgil.gpu import GPU_WORKS
from maskgil.jobs import block_norms
from maskgil.losses import CausalObjective, MaskedObjective
from maskgil.machines import TrainingLayout, memory_per_rank
from maskgil.models import load_model
from maskgil.sampling import sample_ar, sample_fusion, sample_mar
from maskgil.tokenizers import load_tokenizer
from maskgil.training import TrainConfig, first_state, fit, make_accelerator, place_model, train_step

ROOT = Path(__file__).resolve().parent.parent
DEVICE = torch.device(os.environ.get('PROOF_DEVICE', 'cuda'))
on_a_gpu = pytest.mark.skipif(DEVICE.type == 'cuda' and not torch.cuda.is_available(), reason='there is no GPU')
real = pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU')
SHAPE = dict(size='b', layers=3, heads=4, width=128, codebook_size=500, classes=10, grid=(8, 8))
KINDS = ['maskgil', 'maskgit-transformer', 'llamagen']
LABELS = torch.arange(6)


def lively(kind, **changes):
    "A model whose predictions differ from place to place, as those of a trained one do."
    model = load_model(kind, **SHAPE | dict(dropout=0.) | changes)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1: weight.copy_(torch.randn(weight.shape, generator=generator) / weight.shape[-1]**.5)
    return model


def token_set(count=48, codes=500, grid=(8, 8)):
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(codes, (count, 1, *grid), generator=generator)
    return TokenSet(tokens.numpy(), (torch.arange(count) % 10).numpy(), {})


def objective_of(model):
    return CausalObjective() if model.config.causal else MaskedObjective(model.config.mask_id)


@pytest.fixture(autouse=True)
def plain_float32():
    "Products in float32 without TF32, and no graph of another test."
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch._dynamo.reset()
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


# As on the CPU

def logits(kind, device, dtype='float32'):
    model, tokens = lively(kind).to(device), token_set(6).tokens[:, 0]
    tokens = torch.from_numpy(tokens).to(device)
    if model.config.causal: tokens = tokens.flatten(1)[:, :-1]
    products = torch.autocast(device.type, torch.bfloat16, enabled=dtype == 'bfloat16')
    with torch.no_grad(), products: return model.logits(tokens, LABELS.to(device)).float().cpu()


@on_a_gpu
@pytest.mark.parametrize('kind', KINDS)
def test_logits_are_those_of_the_cpu(kind):
    torch.testing.assert_close(logits(kind, DEVICE), logits(kind, torch.device('cpu')), rtol=1e-3, atol=1e-3)


@on_a_gpu
@pytest.mark.parametrize('kind', KINDS)
def test_bfloat16_is_near(kind):
    fine, coarse = logits(kind, torch.device('cpu')), logits(kind, DEVICE, 'bfloat16')
    assert (fine - coarse).abs().max() < .1 * fine.abs().max()


DRAWS = {
    'mar':    lambda device, **o: sample_mar(lively('maskgil').to(device), LABELS.to(device), (8, 8), 4, **o),
    'halton': lambda device, **o: sample_mar(lively('maskgil').to(device), LABELS.to(device), (8, 8), 8,
                                             order='halton', **o),
    'ar':     lambda device, **o: sample_ar(lively('llamagen').to(device), LABELS.to(device), (8, 8), **o),
    'fusion': lambda device, **o: sample_fusion(lively('llamagen').to(device), lively('maskgil').to(device),
                                                LABELS.to(device), (8, 8), 32, 4, ar_options=o, mar_options=o),
}

@on_a_gpu
@pytest.mark.parametrize('name', DRAWS)
def test_draws_are_those_of_the_cpu(name):
    "A number that rounds the other way may change one token, and then what is drawn after it: most pictures agree."
    ours, theirs = (DRAWS[name](device, dtype='float32').cpu() for device in (DEVICE, torch.device('cpu')))
    assert (ours == theirs).flatten(1).all(1).float().mean() >= .5
    assert (ours == theirs).float().mean() > .8


@on_a_gpu
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('name', DRAWS)
def test_the_same_draw_twice(name, dtype):
    one, other = (DRAWS[name](DEVICE, dtype=dtype) for _ in range(2))
    assert torch.equal(one, other)


@on_a_gpu
def test_a_cache_changes_no_token():
    model = lively('llamagen').to(DEVICE)
    one, other = (sample_ar(model, LABELS.to(DEVICE), (8, 8), dtype='float32', use_cache=use, length=16)
                  for use in (True, False))
    assert (one == other).float().mean() > .95


@on_a_gpu
def test_a_tokenizer():
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    here, there = (load_tokenizer('smoke-llamagen-vq', device=device) for device in (DEVICE, 'cpu'))
    ids, expected = here.encode(images.to(DEVICE)).cpu(), there.encode(images)
    assert (ids == expected).float().mean() > .98
    torch.testing.assert_close(here.decode(expected.to(DEVICE)).cpu(), there.decode(expected), rtol=1e-3, atol=1e-3)


@on_a_gpu
def test_features(tmp_path):
    file = write_synthetic_inception(tmp_path/'inception.pth')
    images = torch.randint(256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    here, there = (extract(images, 'inception', device=device, weights=str(file)).features
                   for device in (DEVICE, 'cpu'))
    assert (here - there).abs().max() < 1e-3 * there.abs().max()


# Training

def trained(kind='maskgil', steps=6, watch=None, dtype='float32', **options):
    "A short training; the losses, the model, and what `watch` says of the model at each step."
    model, seen = lively(kind, qk_norm=True, post_norm=True), []
    def listen(state, row): seen.append(watch(state.model) if watch else None)
    history = fit(model, objective_of(model), token_set(), TrainConfig(steps, 8, 1e-3), device=DEVICE, dtype=dtype,
                  log_every=1, on_log=listen, **options)
    return [row['loss'] for row in history], model, seen


@on_a_gpu
@pytest.mark.parametrize('kind', ['maskgil', 'llamagen'])
def test_training_twice_is_the_same(kind):
    (one, model, _), (other, again, _) = trained(kind), trained(kind)
    assert one == pytest.approx(other, rel=1e-6)
    for mine, theirs in zip(model.parameters(), again.parameters()):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@on_a_gpu
def test_bfloat16_learns_as_float32():
    fine, coarse = trained()[0], trained(dtype='bfloat16')[0]
    assert coarse == pytest.approx(fine, rel=.03)


@on_a_gpu
def test_compiled_blocks_learn_as_plain_ones_and_norms_are_seen():
    "Jobs compile their blocks on a GPU, and hooks outside them watch norms: the first at every logged step."
    from torch._dynamo.utils import counters
    counters.clear()
    plain, _, norms = trained(watch=block_norms)
    assert not counters['stats'].get('unique_graphs')
    compiled, _, seen = trained(watch=block_norms, compile=True)
    graphs = counters['stats']['unique_graphs']
    assert 1 <= graphs <= 4, f'{graphs} graphs for 3 blocks that are alike'
    assert compiled == pytest.approx(plain, rel=1e-3)
    assert len(seen) == len(norms) == 6
    for ours, expected in zip(seen, norms): assert ours == pytest.approx(expected, rel=.01)


@on_a_gpu
@pytest.mark.parametrize('checkpointing', [False, True])
def test_the_output_norm_is_seen_outside_compiled_blocks(checkpointing):
    "What the study of stability notes at every step."
    rows = {}
    for compile in (False, True):
        model = lively('maskgil')
        objective = WatchedObjective(model.config.mask_id)
        fit(model, objective, token_set(), TrainConfig(4, 8, 1e-3, gradient_checkpointing=checkpointing),
            device=DEVICE, dtype='float32', compile=compile)
        rows[compile] = [row['output_norm'] for row in objective.rows]
    assert len(rows[True]) == 4 and rows[True] == pytest.approx(rows[False], rel=1e-3)


@pytest.fixture
def one_rank():
    "A process group of one rank."
    import torch.distributed as dist
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    backend = 'nccl' if DEVICE.type == 'cuda' else 'gloo'
    if DEVICE.type == 'cuda': torch.cuda.set_device(0)
    dist.init_process_group(backend, f'tcp://localhost:{port}', rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def stepped(wrap, steps=4):
    "Losses and weights after a few steps, the model wrapped otherwise than `fit` does for one rank."
    from maskgil.training import full_tensor
    model, config = lively('maskgil'), TrainConfig(steps, 8, 1e-3)
    objective, accelerator = MaskedObjective(500), make_accelerator(DEVICE)
    step_module = wrap(place_model(model, objective, config, accelerator, 'float32', 'ddp', False))
    state, losses = first_state(model, objective, config), []
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        batch = objective.batch(token_set(), torch.arange(8), generator)
        losses.append(float(train_step(step_module, state, batch, config, accelerator)['loss']))
        state.step += 1
    return losses, [full_tensor(weight.detach()).cpu() for weight in model.parameters()]


def ddp(step_module):
    return torch.nn.parallel.DistributedDataParallel(step_module)


def fsdp(step_module):
    "As `training.wrap_fsdp` does for several ranks."
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    mesh = init_device_mesh(DEVICE.type, (1,))
    for module in (*step_module.model.layers, step_module): fully_shard(module, mesh=mesh)
    return step_module


@on_a_gpu
@pytest.mark.parametrize('wrap', [ddp, fsdp])
def test_one_rank_learns_as_none(wrap, one_rank):
    (losses, weights), (expected, plain) = stepped(wrap), stepped(lambda step_module: step_module)
    assert losses == pytest.approx(expected, rel=1e-5)
    for mine, theirs in zip(weights, plain): torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@real
@pytest.mark.parametrize('size, images', [('b', 32), ('l', 16)])
def test_a_step_holds_what_the_planner_says(size, images):
    model = load_model('maskgil', size)
    layout, config = TrainingLayout(1, images), TrainConfig(10, images)
    planned = memory_per_rank(model.config, layout)['total']
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    objective, accelerator = MaskedObjective(model.config.mask_id), make_accelerator(DEVICE)
    step_module = place_model(model, objective, config, accelerator, 'bfloat16', 'ddp', False)
    state = first_state(model, objective, config)
    data = token_set(images, 16384, (16, 16))
    for step in range(3):
        batch = objective.batch(data, torch.arange(images), torch.Generator().manual_seed(step))
        train_step(step_module, state, batch, config, accelerator)
        state.step += 1
    assert torch.cuda.max_memory_allocated() / 2**30 == pytest.approx(planned, rel=.15)


# The proof itself

def test_the_tiny_form_of_the_proof(tmp_path):
    "On any machine: a record for each work, and a second call that makes none again."
    env = os.environ | dict(MASKGIL_RESULTS=str(tmp_path/'results'), OMP_NUM_THREADS='1', MASKGIL_PROGRESS='off')
    works = ['not compiled', 'MAR B', 'AR B', 'VQ encoder']
    command = [sys.executable, '-m', 'maskgil.gpu', '--tiny', 'true', '--device', 'cpu', '--works', ','.join(works)]
    for _ in range(2):
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    assert 'images a second' not in done.stdout # the second call measured nothing
    files = sorted((tmp_path/'results'/'runs'/'gpu').glob('*.json'))
    held = [SimpleNamespace(**read_json(file)) for file in files]
    assert len(held) >= 4 and {record.parameters['work'] for record in held} <= set(GPU_WORKS)
    for record in held:
        assert (record.study, record.profile, record.basis) == ('gpu', 'smoke', 'measured')
        assert record.metrics['images_per_second']['value'] > 0 and record.provenance['device_name']
