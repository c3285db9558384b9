"""The rows of `maskgil.speed` done by published code, from checkouts in one folder:

    FoundationVision/LlamaGen      as LlamaGen/
    synbol/MaskGIL                 as MaskGIL/
    valeoai/Halton-MaskGIT         as Halton-MaskGIT/

What is not there is left out; torch-fidelity is a package. Their code runs as it is, in the precision asked for.
"""
import ast
import contextlib
import importlib
import importlib.util
import math
import random
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F

Run = Callable[[], Any]
Prepare = Callable[[Path, torch.dtype, torch.device], Run]


@contextlib.contextmanager
def _on_path(*folders: Path) -> Iterator[None]:
    "Modules of a checkout find each other, and are forgotten afterwards, since the checkouts share names."
    before, known = list(sys.path), set(sys.modules)
    sys.path[:0] = map(str, folders)
    try: yield
    finally:
        sys.path[:] = before
        for name in set(sys.modules) - known:
            file = str(getattr(sys.modules[name], '__file__', ''))
            if file.startswith(tuple(map(str, folders))): del sys.modules[name]


def _module(file: Path, *folders: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f'peer_{file.stem}', file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module # dataclasses look their module up
    with _on_path(*folders): spec.loader.exec_module(module)
    return module


def _methods(file: Path, *names: str) -> dict[str, Callable]:
    "Some methods of a file's classes, without the imports of the file: its trainer needs packages that no row needs."
    known = dict(torch=torch, np=np, math=math, random=random, F=F, nn=torch.nn, tqdm=lambda items, **_: items)
    for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
        if isinstance(node, ast.FunctionDef) and node.name in names:
            exec(compile(ast.Module([node], []), str(file), 'exec'), known)
    return {name: known[name] for name in names}


def _mixed(run: Run, dtype: torch.dtype, device: torch.device) -> Run:
    def mixed():
        with torch.autocast(device.type, dtype): return run()
    return run if dtype == torch.float32 else mixed


def released_mar(root: Path, dtype: torch.dtype, device: torch.device, batch: int = 4, steps: int = 8) -> Run:
    "synbol/MaskGIL: Trainer/vit.py draws with Network/gpt.py."
    folder = root/'MaskGIL'
    model = _module(folder/'Network'/'gpt.py', folder).GPT_models['GPT-B']().to(device).eval()
    methods = _methods(folder/'Trainer'/'vit.py', 'sample', 'adap_sche')
    trainer = SimpleNamespace(
        vit=model, codebook_size=16384, patch_size=16, args=SimpleNamespace(device=device, mask_value=16384),
        ae=SimpleNamespace(decode_code=lambda code, shape: code))
    trainer.adap_sche = partial(methods['adap_sche'], trainer)
    labels = torch.arange(batch, device=device)
    return _mixed(lambda: methods['sample'](trainer, None, batch, labels, w=3, step=steps), dtype, device)


def released_step(root: Path, dtype: torch.dtype, device: torch.device, batch: int = 8) -> Run:
    "synbol/MaskGIL: what its training loop does with one batch."
    folder = root/'MaskGIL'
    model = _module(folder/'Network'/'gpt.py', folder).GPT_models['GPT-B']().to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(.9, .96), weight_decay=1e-5)
    code = torch.randint(16384, (batch, 16, 16), device=device)
    masked = torch.where(torch.rand(code.shape, device=device) < .6, 16384, code)
    labels, drop = torch.arange(batch, device=device), torch.rand(batch, device=device) < .1
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=.1)

    def run():
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype != torch.float32):
            loss = criterion(model(masked, labels, drop_label=drop).reshape(-1, 16385), code.view(-1))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
        optimizer.step()
        return float(loss)
    return run


def halton(root: Path, dtype: torch.dtype, device: torch.device, batch: int = 4, steps: int = 8) -> Run:
    "valeoai/Halton-MaskGIT: its sampler on a Transformer of the same width, depth and codes."
    folder = root/'Halton-MaskGIT'
    network = _module(folder/'Network'/'transformer.py', folder)
    model = network.Transformer(16, 768, 16384, 12, 12, 3072).to(device).eval()
    sampler = _module(folder/'Sampler'/'halton_sampler.py', folder).HaltonSampler(w=2, step=steps)
    trainer = SimpleNamespace(
        vit=model, input_size=16,
        args=SimpleNamespace(device=device, mask_value=16384, codebook_size=16384),
        autocast=torch.autocast(device.type, torch.bfloat16, enabled=dtype != torch.float32),
        ae=SimpleNamespace(decode_code=lambda code, *_: code.float()))
    labels = torch.arange(batch, device=device)
    return lambda: sampler(trainer, None, batch, labels, verbose=False)


def llamagen_ar(root: Path, dtype: torch.dtype, device: torch.device, batch: int = 4) -> Run:
    "FoundationVision/LlamaGen: generate.py, whose model is converted to the precision, as its scripts do."
    folder = root/'LlamaGen'
    parts = folder/'autoregressive'/'models'
    model = _module(parts/'gpt.py', folder).GPT_models['GPT-B'](block_size=256).to(device, dtype).eval()
    generate = _module(parts/'generate.py', folder).generate
    labels = torch.arange(batch, device=device)
    return lambda: generate(model, labels, 256, cfg_scale=2., top_k=0, temperature=1., top_p=1., sample_logits=True)


def llamagen_vq(root: Path, dtype: torch.dtype, device: torch.device, direction: str = 'decode', batch: int = 4) -> Run:
    "FoundationVision/LlamaGen: the tokenizer that all rows use."
    folder = root/'LlamaGen'
    made = _module(folder/'tokenizer'/'tokenizer_image'/'vq_model.py', folder)
    model = made.VQ_models['VQ-16'](codebook_size=16384, codebook_embed_dim=8).to(device).eval()
    images = torch.zeros(batch, 3, 256, 256, device=device)
    ids = torch.zeros(batch * 256, dtype=torch.long, device=device)

    @torch.inference_mode()
    def run(): return model.encode(images) if direction == 'encode' else model.decode_code(ids, [batch, 8, 16, 16])
    return _mixed(run, dtype, device)


def fidelity_fid(root: Path, dtype: torch.dtype, device: torch.device, images: int = 2000, width: int = 2048) -> Run:
    "torch-fidelity: the distance from features that are there."
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    one, other = (torch.randn(images, width, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    return lambda: fid_statistics_to_metric(
        fid_features_to_statistics(one), fid_features_to_statistics(other), verbose=False)


PEERS: dict[str, dict[str, tuple[str, Prepare]]] = { # row of SPEEDS -> name -> checkout or '', what does it
    'MAR B, 8 steps, batch 4': {
        'released MaskGIL': ('MaskGIL', released_mar), 'Halton-MaskGIT': ('Halton-MaskGIT', halton)},
    'MAR B, 8 steps, batch 16': {'released MaskGIL': ('MaskGIL', partial(released_mar, batch=16))},
    'MAR B, 32 steps, Halton order, batch 4': {'Halton-MaskGIT': ('Halton-MaskGIT', partial(halton, steps=32))},
    'AR B, batch 4': {'LlamaGen': ('LlamaGen', llamagen_ar)},
    'AR B, batch 16': {'LlamaGen': ('LlamaGen', partial(llamagen_ar, batch=16))},
    'training step B, batch 8': {'released MaskGIL': ('MaskGIL', released_step)},
    'LlamaGen-VQ encoder, batch 4': {'LlamaGen': ('LlamaGen', partial(llamagen_vq, direction='encode'))},
    'LlamaGen-VQ decoder, batch 4': {'LlamaGen': ('LlamaGen', llamagen_vq)},
    'FID of 2,000 images': {'torch-fidelity': ('', fidelity_fid)},
}


def available(root: Path) -> dict[str, dict[str, Prepare]]:
    "What can be prepared from the checkouts in a folder."
    checkouts = {checkout for rivals in PEERS.values() for checkout, _ in rivals.values()}
    there = {checkout for checkout in checkouts if (root/checkout).is_dir()}
    if there == {''}: raise FileNotFoundError(f"{root} has no checkout of {', '.join(sorted(checkouts - {''}))}")
    return {row: {name: partial(prepare, root) for name, (checkout, prepare) in rivals.items() if checkout in there}
            for row, rivals in PEERS.items()}
