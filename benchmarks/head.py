"""Memory of the output layer and its loss as the codebook grows, each in a process of its own.

    python benchmarks/head.py [--tokens 16384] [--width 768]

Peak memory above what the process holds before, for one forward and backward pass of a batch: weights, their gradient,
features and whatever the loss keeps. `plain` makes all logits at once (F.cross_entropy), `sliced` is training.token_loss.
"""
import argparse, json, subprocess, sys, threading, time

import psutil, torch
import torch.nn.functional as F


def peak(work):
    "Largest resident memory during `work`, above the start, in GiB."
    process, highest, done = psutil.Process(), 0, threading.Event()
    start = process.memory_info().rss
    def watch():
        nonlocal highest
        while not done.is_set():
            highest = max(highest, process.memory_info().rss)
            time.sleep(.002)
    thread = threading.Thread(target=watch)
    thread.start()
    began = time.perf_counter()
    work()
    seconds = time.perf_counter() - began
    done.set()
    thread.join()
    return (highest - start) / 2**30, seconds


def measure(kind, codes, tokens, width):
    from maskgil.training import token_loss
    def work():
        torch.manual_seed(0)
        head = torch.nn.Linear(width, codes, bias=False)
        features, targets = torch.randn(tokens, width, requires_grad=True), torch.randint(codes, (tokens,))
        loss = F.cross_entropy(head(features), targets, label_smoothing=.1, reduction='sum') if kind == 'plain' else token_loss(features, head, targets)[0]
        (loss / tokens).backward()
    return peak(work)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--tokens', type=int, default=16384)
    parser.add_argument('--width', type=int, default=768)
    parser.add_argument('--one', nargs=2, metavar=('KIND', 'CODES'), help='measure one and print JSON')
    args = parser.parse_args()
    if args.one: return print(json.dumps(measure(args.one[0], int(args.one[1]), args.tokens, args.width)))
    found = {}
    for kind, codes in (('plain', 16_384), ('sliced', 16_384), ('sliced', 262_144)):
        out = subprocess.run([sys.executable, __file__, '--tokens', str(args.tokens), '--width', str(args.width), '--one', kind, str(codes)], capture_output=True, text=True, check=True)
        found[kind, codes] = json.loads(out.stdout)
        print(f'{kind:6} {codes:7,} codes: {found[kind, codes][0]:6.2f} GiB, {found[kind, codes][1]:6.1f} s', flush=True)
    print(f"262,144 codes sliced / 16,384 codes plain: memory {found['sliced', 262_144][0] / found['plain', 16_384][0]:.2f}")


if __name__ == '__main__': main()
