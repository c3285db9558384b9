"By which switches the released code differs from the paper here: exactly these, no more and no fewer."
import dataclasses

import torch

from maskgil.data import to_uint8
from maskgil.data import EVALUATION_RECIPES, stretch_to_uint8
from maskgil.models import RECIPES, SIZES, load_model, model_config
from maskgil.pipeline import decode_tokens
from maskgil.sampling import SAMPLING_RECIPES, sample_mar
from maskgil.tokenizers import load_tokenizer
from maskgil.losses import TRAINING_RECIPES, MaskedObjective

SWITCHES = { # part -> switch -> the paper's value and the released code's
    'model': dict(class_first=(True, False), rope=('2d', '1d-released'), mask_logit=(False, True), qk_norm=(True, False), post_norm=(True, False)),
    'training': dict(loss_on=('masked', 'all')),
    'sampling': dict(guidance=('constant', 'ramp')),
    'evaluation': dict(stretch=(False, True)),
}


def difference(paper, released): return {k: (paper[k], released[k]) for k in paper if paper[k] != released[k]}


def test_every_switch():
    models = [dataclasses.asdict(model_config('maskgil', 'xxl', recipe)) for recipe in ('paper', 'released')]
    found = {'model': difference(*models)} | {part: difference(table['paper'], table['released']) for part, table in
             dict(training=TRAINING_RECIPES, sampling=SAMPLING_RECIPES, evaluation=EVALUATION_RECIPES).items()}
    assert found == SWITCHES
    assert all(set(table) == {'paper', 'released'} for table in (RECIPES, TRAINING_RECIPES, SAMPLING_RECIPES, EVALUATION_RECIPES))


def test_norms_differ_for_xxl_only():
    for size in ('b', 'l', 'xl'):
        changed = difference(*(dataclasses.asdict(model_config('maskgil', size, recipe)) for recipe in ('paper', 'released')))
        assert set(changed) == {'class_first', 'rope', 'mask_logit'} and not SIZES[size].qk_norm


def test_switches_do_what_they_say():
    "Each one is read by the code that it names."
    labels, tokens = torch.tensor([0, 2]), torch.randint(64, (2, 4, 4), generator=torch.Generator().manual_seed(0))
    model = load_model('maskgil', 'smoke-l', recipe='released', tokenizer='smoke-llamagen-vq', codebook_size=64, classes=3, grid=(4, 4))
    torch.nn.init.normal_(model.head.weight, std=.5, generator=torch.Generator().manual_seed(0))
    batch = dict(tokens=tokens, targets=tokens, labels=labels, hidden=torch.zeros(2, 16, dtype=torch.bool), drop=None)
    counts = {recipe: MaskedObjective(64, **TRAINING_RECIPES[recipe]).count(batch) for recipe in TRAINING_RECIPES}
    assert counts == {'paper': 1, 'released': 32}
    drawn = {recipe: sample_mar(model, labels, (4, 4), cfg=6., dtype='float32', **SAMPLING_RECIPES[recipe]) for recipe in SAMPLING_RECIPES}
    assert not torch.equal(drawn['paper'], drawn['released']) and drawn['released'].max() < 64
    tokenizer = load_tokenizer('smoke-llamagen-vq')
    pictures = {recipe: decode_tokens(tokenizer, tokens, **EVALUATION_RECIPES[recipe]) for recipe in EVALUATION_RECIPES}
    with torch.no_grad(): raw = tokenizer.decode(tokens, clamp=False)
    assert torch.equal(pictures['paper'], to_uint8(raw)) and torch.equal(pictures['released'], stretch_to_uint8(raw))
    assert pictures['released'].flatten(1).amin(1).eq(0).all() and pictures['released'].flatten(1).amax(1).eq(255).all()
