"""A few small numbers of each stage's behaviour. `python tests/helpers/golden_numbers.py` writes them to
tests/goldens/behaviour.json; do that after raising a version in nbs/04_versions.ipynb, and never without."""
import json, os
from pathlib import Path
from types import SimpleNamespace
from typing import Callable

import numpy as np
import torch

os.environ.setdefault('MASKGIL_PROGRESS', 'off') # no bars between the numbers

GOLDENS = Path(__file__).parents[1]/'goldens'/'behaviour.json'
Numbers = dict[str, float]


def pictures(count: int = 8) -> torch.Tensor: # (b 3 32 32) in [-1, 1]
    "Smooth colours, the same on every machine."
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing='ij')
    shifts = torch.linspace(0, 3, count)[:, None, None]
    channels = [torch.sin(3 * rows + shifts), torch.cos(2 * columns - shifts), torch.sin(rows * columns * 4 + shifts)]
    return torch.stack(channels, 1)


def data() -> Numbers:
    from maskgil.data import augment, openmoji, to_rgb
    train, test = openmoji('train', 32), openmoji('test', 32)
    some = train.batch(range(0, 320, 40))
    flippable = train.flippable[np.arange(0, 320, 40)]
    augmented = augment(some, flippable, torch.Generator().manual_seed(0), shift=2)
    return dict(train_images=len(train), test_images=len(test), label_sum=int(train.labels.sum()),
                mean_byte=float(to_rgb(some).float().mean()), augmented_mean=float(augmented.mean()),
                augmented_deviation=float(augmented.std()))


def tokenizer() -> Numbers:
    from dataclasses import replace
    from maskgil.reconstruction import LOSSES, TokenizerObjective
    from maskgil.tokenizers import load_tokenizer, tokenizer_names
    found: Numbers = {}
    for name in tokenizer_names()[:4]:
        made = load_tokenizer(f'smoke-{name}', seed=0)
        ids = made.encode(pictures())
        found[f'{name} distinct codes'] = len(ids.unique())
        found[f'{name} decoded mean'] = float(made.decode(ids).mean())
        found[f'{name} decoded deviation'] = float(made.decode(ids).std())
        plain = TokenizerObjective(made.config)(made, pictures(), 0)[0].detach()
        everything = replace(LOSSES[made.config.quantizer], perceptual=.5, adversarial=.1, reconstruction='l1')
        all_terms = TokenizerObjective(made.config, everything)(made, pictures(), 0)[0].detach()
        found |= {f'{name} loss': float(plain), f'{name} loss with every term': float(all_terms)}
    return found


def model() -> Numbers:
    from maskgil.models import load_model
    found: Numbers = {}
    tokens, labels = torch.arange(2 * 64).view(2, 8, 8) % 256, torch.tensor([1, 5])
    small = dict(tokenizer='smoke-llamagen-vq', classes=9, grid=(8, 8), seed=0)
    for kind, recipe in (('maskgil', 'paper'), ('maskgil', 'released'), ('llamagen', 'paper'),
                         ('maskgit-transformer', 'paper')):
        made = load_model(kind, 'smoke-xxl', recipe=recipe, **small)
        inputs = tokens.flatten(1)[:, :-1] if kind == 'llamagen' else tokens
        with torch.no_grad(): features = made.features(inputs, labels, torch.tensor([False, True]))
        weights = torch.linspace(-1, 1, features.shape[-1])
        found[f'{kind} {recipe} features'] = float((features * weights).mean())
        found[f'{kind} {recipe} deviation'] = float(features.std())
        found[f'{kind} {recipe} parameters'] = sum(p.numel() for p in made.parameters())
    return found


def sampling() -> Numbers:
    from maskgil.sampling import sample_ar, sample_mar
    table = torch.sin(torch.arange(16 * 12.).view(16, 12) * 7) * 2 # logits of 12 codes at 16 places
    labels, found = torch.tensor([0, 1, 2]), {}
    place = torch.arange(1, 17)
    for change in (dict(), dict(order='halton'), dict(order='random'), dict(guidance='ramp'), dict(schedule='linear')):
        def masked(x, y, drop): return (table + (~drop)[:, None, None] * (y[:, None, None] - 1.) * .1).float()
        drawn = sample_mar(masked, labels, (4, 4), steps=4, cfg=2., codebook_size=12, seed=3, dtype='float32', **change)
        found[' '.join(['mar', *change.values()])] = int((drawn.flatten(1) * place).sum())
    def causal(x, y, drop): return table[:x.shape[1] + 1].expand(len(x), -1, -1)
    for change in (dict(), dict(top_k=3), dict(top_p=.8), dict(temperature=.5)):
        drawn = sample_ar(causal, labels, (4, 4), cfg=1., seed=3, dtype='float32', **change)
        found[' '.join(['ar', *change])] = int((drawn.flatten(1) * place).sum())
    return found


class Rows:
    "Sixty-four images of 4x4 tokens, each row of one colour."
    copies = 1
    def __len__(self): return 64
    def batch(self, indices, copy_indices=0):
        labels = torch.as_tensor(indices) % 9
        return ((labels[:, None, None] + torch.arange(4)[:, None]) % 16).expand(-1, 4, 4).clone(), labels


def training() -> Numbers:
    from maskgil.losses import CausalObjective, MaskedObjective
    from maskgil.models import load_model
    from maskgil.reconstruction import ReconstructionObjective, TokenizerObjective
    from maskgil.tokenizers import load_tokenizer
    from maskgil.training import TrainConfig, fit
    config = TrainConfig(4, 16, 1e-2, warmup_steps=2, decay='cosine', ema=.9, seed=0)
    found: Numbers = {}
    for kind in ('maskgil', 'llamagen', 'maskgit-transformer'):
        made = load_model(kind, 'smoke-b', tokenizer='smoke-llamagen-vq', classes=9, grid=(4, 4), codebook_size=16,
                          dropout=0., token_dropout=0., seed=0)
        objective = CausalObjective() if kind == 'llamagen' else MaskedObjective(made.config.mask_id)
        history = fit(made, objective, Rows(), config, device='cpu', dtype='float32', log_every=1)
        found[f'{kind} first loss'], found[f'{kind} last loss'] = history[0]['loss'], history[-1]['loss']
        found[f'{kind} weights'] = float(sum(p.detach().square().sum() for p in made.parameters()))
    images = SimpleNamespace(flippable=np.ones(8, bool), batch=lambda i: ((pictures()[i] + 1) * 127.5).to(torch.uint8))
    class Images:
        flippable = images.flippable
        def __len__(self): return 8
        def batch(self, i): return images.batch(i)
    made = load_tokenizer('smoke-llamagen-vq', seed=0)
    history = fit(made, ReconstructionObjective(TokenizerObjective(made.config), background=False), Images(),
                  TrainConfig(4, 8, 1e-3, seed=0), device='cpu', dtype='float32', log_every=1)
    return found | {'tokenizer first loss': history[0]['loss'], 'tokenizer last loss': history[-1]['loss']}


def metrics() -> Numbers:
    from maskgil.data import to_uint8
    from maskgil.features import Features, extract
    from maskgil.metrics import Reference, evaluate
    seen = extract(to_uint8(pictures()), 'el0', device='cpu')
    found: Numbers = {'el0 features': float(seen.features.mean()), 'el0 deviation': float(seen.features.std())}
    draw = lambda seed, shift: torch.randn(400, 80, generator=torch.Generator().manual_seed(seed)) + shift
    real, made = (Features(draw(s, m), draw(s, m)[:, :40], 'el0') for s, m in ((0, 0.), (1, .1)))
    reference = Reference.from_features(real, 'golden', 'golden')
    for name, metric in evaluate(made, reference, seed=0).items():
        found |= {f'{name} {part}': metric[part] for part in ('value', 'low', 'high')}
    return found


NUMBERS: dict[str, Callable[[], Numbers]] = dict(
    data=data, tokenizer=tokenizer, model=model, sampling=sampling, training=training, metrics=metrics)


def moved(now: Numbers, then: Numbers, tolerance: float = 2e-3) -> list[str]:
    "Numbers that differ by more than rounding."
    said = [f'{k}: {then[k]:.6g} was, {v:.6g} is' for k, v in now.items()
            if k in then and abs(v - then[k]) > tolerance * max(1e-2, abs(then[k]))]
    return said + [f'{k} is new' for k in now.keys() - then.keys()] + [f'{k} is gone' for k in then.keys() - now.keys()]


if __name__ == '__main__':
    from maskgil.versions import VERSIONS
    found = {stage: dict(version=VERSIONS[stage], numbers=compute()) for stage, compute in NUMBERS.items()}
    GOLDENS.write_text(json.dumps(found, indent=1) + '\n')
    print(f'written: {GOLDENS}')
