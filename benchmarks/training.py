"""Training speed of the mini models as a share of what a large matrix product reaches, side by side in one run.

    python benchmarks/training.py [--sizes b l xl xxl] [--batch 64] [--rounds 5] [--threads 1]

A training step is everything: hiding tokens, forward, loss, backward, clipping, AdamW. Its operations are counted by
`models.training_flops`, which agrees with torch's own counter (see nbs/24_machines.ipynb). Steps and matrix products
alternate, so a busy machine slows both; the median of the ratios is printed. `make reproduce` trains two models
at a time with one thread each, so one thread is the default here.
"""
import argparse, statistics, time

import torch
import torch.nn.functional as F
from accelerate import Accelerator

from maskgil.core import pick_device, pick_dtype
from maskgil.models import attention, load_model, training_flops
from maskgil.losses import MaskedObjective, token_loss
from maskgil.resuming import TrainState
from maskgil.training import Step, TrainConfig, make_batches, make_optimizer, train_step


class RandomTokens:
    "Tokens of no image."
    copies = 1
    def __init__(self, codes, grid): self.tokens = torch.randint(codes, (4096, *grid))
    def __len__(self): return len(self.tokens)
    def batch(self, indices, copies): return self.tokens[indices], indices % 9


def seconds(work, times):
    started = time.perf_counter()
    for _ in range(times): work()
    if torch.cuda.is_available(): torch.cuda.synchronize()
    return (time.perf_counter() - started) / times


def product(device, dtype, n=2048):
    a, b = torch.randn(2, n, n, device=device).to(dtype)
    return lambda: a @ b, 2 * n**3


def time_training(size, batch, rounds, device, dtype, accelerator):
    "Print how close a model's training comes to a matrix product."
    matmul, matmul_flops = product(device, dtype)
    shape = dict(classes=9, grid=(8, 8), dropout=0.)
    model = load_model('maskgil', f'mini-{size}', tokenizer='mini-llamagen-vq', device=device, **shape).train()
    config, objective = TrainConfig(10**6, batch_size=batch), MaskedObjective(model.config.mask_id)
    step_module, optimizer = accelerator.prepare(Step(model, objective, dtype), make_optimizer(model, config))
    state = TrainState(model, optimizer)
    batches = make_batches(step_module.objective, RandomTokens(model.config.codebook_size, (8, 8)), config)
    def step(): train_step(step_module, state, next(batches), config, accelerator)
    flops = training_flops(model.config, batch, predicted=2 / torch.pi)
    seconds(step, 2), seconds(matmul, 2)
    speeds = [(flops / seconds(step, 4), matmul_flops / seconds(matmul, 4)) for _ in range(rounds)]
    ratio, (trained, multiplied) = statistics.median(a / b for a, b in speeds), speeds[-1]
    speed = f'{trained / 1e9:5.0f} of {multiplied / 1e9:5.0f} GFLOP/s'
    print(f'mini-{size:4} {batch * trained / flops:6.0f} images/s  {speed}  ratio {ratio:.0%}', flush=True)


def time_ratio(first, second, rounds):
    "The median of how much longer the first takes than the second."
    seconds(first, 2), seconds(second, 2)
    return statistics.median(seconds(first, 3) / seconds(second, 3) for _ in range(rounds))


def time_attention(device, dtype, rounds):
    "Print what torch's fused attention takes beside ours."
    q, k, v = (torch.randn(64, 6, 65, 48, dtype=dtype, device=device, requires_grad=True) for _ in range(3))
    def plain(): attention(q, k, v).sum().backward()
    def fused(): F.scaled_dot_product_attention(q, k, v).sum().backward()
    print(f'attention forward and backward, fused / as trained: {time_ratio(fused, plain, rounds):.1f}')


def time_output_layer(device, dtype, rounds):
    "Print what all logits at once take beside slices of them."
    head = torch.nn.Linear(288, 1024, bias=False, device=device)
    features = torch.randn(2600, 288, device=device, requires_grad=True)
    targets = torch.randint(1024, (2600,), device=device)
    def whole(): F.cross_entropy(head(features).float(), targets, label_smoothing=.1, reduction='sum').backward()
    def sliced(): token_loss(features, head.weight, targets)[0].backward()
    with torch.autocast(device.type, dtype): ratio = time_ratio(whole, sliced, rounds)
    print(f'output layer and smoothed loss, F.cross_entropy / as trained: {ratio:.1f}')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--sizes', nargs='+', default=['b', 'l', 'xl', 'xxl'])
    parser.add_argument('--batch', type=int, default=64)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--threads', type=int, default=1, help='0 leaves it to torch')
    args = parser.parse_args()
    if args.threads: torch.set_num_threads(args.threads)
    device, dtype = pick_device(), pick_dtype()
    print(f'{device}, {dtype}, {torch.get_num_threads()} threads')
    accelerator = Accelerator(cpu=device.type == 'cpu')
    for size in args.sizes: time_training(size, args.batch, args.rounds, device, dtype, accelerator)
    time_attention(device, dtype, args.rounds)
    time_output_layer(device, dtype, args.rounds)


if __name__ == '__main__': main()
