"""Memory of the output layer and its loss as the codebook grows, each case in a process of its own.

    python benchmarks/head.py [--tokens 4096] [--width 256] [--codes 16384 262144]

One forward and backward pass over a batch of tokens. `plain` makes all logits at once (F.cross_entropy), `sliced` is
losses.token_loss. The peak of the resident memory above the start has two parts. The weights of the head and their
gradient grow with the codebook whatever the loss does: 2 v d numbers. What is beyond them is features, logits and their
gradients, and that is what slicing bounds. Both are printed, and for both whether the large codebook stays within 1.3
times the small one. Losses and gradients are compared with F.cross_entropy in float64 on the large codebook.
"""
import argparse, json, os, subprocess, sys
from pathlib import Path

import torch

from maskgil.cells import HEAD_LOSSES, memory_peak

BOUND = 1.3
GIVE_BACK = dict(MALLOC_MMAP_THRESHOLD_='131072') # glibc returns a freed matrix at once, so the peak is what was in use


def batch(codes, tokens, width):
    torch.manual_seed(0)
    weight = torch.randn(codes, width).mul_(.02).requires_grad_()
    return torch.randn(tokens, width, requires_grad=True), weight, torch.randint(codes, (tokens,))


def measure(kind, codes, tokens, width):
    "Bytes in total, bytes beyond the weights and their gradient, and seconds of one pass."
    def work(codes=codes, tokens=tokens):
        features, weight, targets = batch(codes, tokens, width)
        HEAD_LOSSES[kind](features, weight, targets).backward()
    work(codes=4096, tokens=64) # libraries and threads are loaded before the start
    total, seconds = memory_peak(work, torch.device('cpu'))
    return dict(total=total, beyond=total - 2 * 4 * codes * width, seconds=seconds)


def results(loss, codes, tokens, width, dtype=torch.float32):
    "A loss and its gradients by features and weights."
    features, weight, targets = batch(codes, tokens, width)
    value = loss(*(x.to(dtype) for x in (features, weight)), targets)
    value.backward()
    return value.detach(), features.grad, weight.grad


def compare(codes, tokens, width):
    "Largest errors of the sliced loss and its gradients, relative to the largest value of the plain ones in float64."
    found = results(HEAD_LOSSES['sliced'], codes, tokens, width)
    exact = results(HEAD_LOSSES['plain'], codes, tokens, width, torch.float64)
    named = zip(('loss', 'features', 'weights'), found, exact)
    return {name: ((a - b).abs().max() / b.abs().max()).item() for name, a, b in named}


def in_process(function, *arguments):
    "The result of one of the functions above, run in a fresh process."
    code = f'import head, json; print(json.dumps(head.{function}(*{arguments!r})))'
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get('PYTHONPATH', '')])
    environment = os.environ | GIVE_BACK | dict(PYTHONPATH=path)
    done = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def as_row(kind, codes, measured):
    "One line of the table."
    parts = measured['total'], measured['total'] - measured['beyond'], measured['beyond']
    sizes = ''.join(f'{size / 2**20:7.0f} MB' for size in parts)
    return f"{kind:6} {codes:9,} codes  {sizes}  {measured['seconds']:6.1f} s"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--tokens', type=int, default=4096, help='16 images of 256')
    parser.add_argument('--width', type=int, default=256)
    parser.add_argument('--codes', type=int, nargs=2, default=[16_384, 262_144], metavar=('SMALL', 'LARGE'))
    args = parser.parse_args()
    small, large = args.codes
    print(f'{args.tokens:,} tokens of width {args.width}, float32, {torch.get_num_threads()} threads')
    print(f'{"":23}     total   weights    beyond', flush=True)
    found = {}
    for kind, codes in (('plain', small), ('sliced', small), ('sliced', large)):
        found[kind, codes] = in_process('measure', kind, codes, args.tokens, args.width)
        print(as_row(kind, codes, found[kind, codes]), flush=True)
    for part, reference in (('beyond', 'sliced'), ('total', 'plain'), ('total', 'sliced')):
        ratio = found['sliced', large][part] / found[reference, small][part]
        what = 'beyond the weights' if part == 'beyond' else 'in total'
        verdict = f"{'within' if ratio <= BOUND else 'NOT within'} {BOUND}"
        print(f'{what}: {large:,} codes sliced / {small:,} codes {reference} = {ratio:.2f}, {verdict}')
    errors = in_process('compare', large, 256, args.width)
    named = ', '.join(f'{name} {error:.0e}' for name, error in errors.items())
    print(f'relative error against F.cross_entropy in float64, on 256 tokens: {named}')


if __name__ == '__main__': main()
