"""Images a second of encoding and decoding with a published tokenizer's architecture, to put beside another's.

    python benchmarks/tokenizer_speed.py [--names llamagen-vq] [--images 4] [--size 256] [--rounds 3] [--threads 1]

Weights are random: they do not change the time. float32 unless --dtype says otherwise; the fastest of the rounds is
printed.
"""
import argparse, time

import torch

from maskgil.core import pick_device, pick_dtype
from maskgil.tokenizers import load_tokenizer, tokenizer_names


def best_seconds(work, rounds):
    times = []
    for _ in range(rounds + 1): # the first one warms up
        began = time.perf_counter()
        work()
        if torch.cuda.is_available(): torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times[1:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--names', nargs='+', default=tokenizer_names(), help='names of tokenizers.TOKENIZERS')
    parser.add_argument('--images', type=int, default=4)
    parser.add_argument('--size', type=int, default=256)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--dtype', default='float32')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device, dtype = pick_device(), pick_dtype(args.dtype)
    print(f'{device}, {dtype}, {args.threads} threads, {args.images} images of {args.size} px')
    for name in args.names:
        tokenizer = load_tokenizer(name, device=device)
        images = torch.rand(args.images, 3, args.size, args.size, device=device) * 2 - 1
        ids = tokenizer.encode(images, dtype=dtype)
        encode = args.images / best_seconds(lambda: tokenizer.encode(images, dtype=dtype), args.rounds)
        decode = args.images / best_seconds(lambda: tokenizer.decode(ids, dtype=dtype), args.rounds)
        print(f'{name:16} encode {encode:7.2f} images/s, decode {decode:7.2f} images/s', flush=True)


if __name__ == '__main__': main()
