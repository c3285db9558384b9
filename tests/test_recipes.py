"By which switches the released code differs from the paper here: exactly these, no more and no fewer."
import dataclasses
from types import SimpleNamespace

import pytest, torch

from maskgil.bench import Bench
from maskgil.data import EVALUATION_RECIPES, stretch_to_uint8, to_uint8
from maskgil.models import RECIPES, SIZES, load_model, model_config
from maskgil.drawing import decode_tokens
from maskgil.recipes import our_changes
from maskgil.sampling import SAMPLING_RECIPES, sample_mar
from maskgil.studies import defaults, STUDIES
from maskgil.tokenizers import load_tokenizer
from maskgil.losses import TRAINING_RECIPES, MaskedObjective

SWITCHES = { # part -> switch -> the paper's value and the released code's
    'model': dict(class_first=(True, False), rope=('2d', '1d-released'), mask_logit=(False, True),
                  qk_norm=(True, False), post_norm=(True, False)),
    'training': dict(loss_on=('masked', 'all')),
    'sampling': dict(guidance=('constant', 'ramp')),
    'evaluation': dict(stretch=(False, True)),
}


def difference(paper, released): return {k: (paper[k], released[k]) for k in paper if paper[k] != released[k]}


def model_difference(size):
    return difference(*(dataclasses.asdict(model_config('maskgil', size, recipe)) for recipe in ('paper', 'released')))


def test_every_switch():
    tables = dict(training=TRAINING_RECIPES, sampling=SAMPLING_RECIPES, evaluation=EVALUATION_RECIPES)
    found = {part: difference(table['paper'], table['released']) for part, table in tables.items()}
    assert {'model': model_difference('xxl')} | found == SWITCHES
    for table in (RECIPES, *tables.values()): assert set(table) == {'paper', 'released'}


@pytest.mark.parametrize('size', ['b', 'l', 'xl'])
def test_norms_differ_for_xxl_only(size):
    assert set(model_difference(size)) == {'class_first', 'rope', 'mask_logit'} and not SIZES[size].qk_norm


# Each switch is read by the code that it names.

LABELS, TOKENS = torch.tensor([0, 2]), torch.randint(64, (2, 4, 4), generator=torch.Generator().manual_seed(0))


def test_training_switch():
    nothing_hidden = dict(tokens=TOKENS, targets=TOKENS, labels=LABELS, drop=None,
                          hidden=torch.zeros(2, 16, dtype=torch.bool))
    counts = {recipe: MaskedObjective(64, **row).count(nothing_hidden) for recipe, row in TRAINING_RECIPES.items()}
    assert counts == {'paper': 1, 'released': 32}


def test_sampling_switch():
    model = load_model('maskgil', 'smoke-l', recipe='released', tokenizer='smoke-llamagen-vq',
                       codebook_size=64, classes=3, grid=(4, 4))
    torch.nn.init.normal_(model.head.weight, std=.5, generator=torch.Generator().manual_seed(0))
    paper, released = (sample_mar(model, LABELS, (4, 4), cfg=6., dtype='float32', **SAMPLING_RECIPES[recipe])
                       for recipe in ('paper', 'released'))
    assert not torch.equal(paper, released) and released.max() < 64


def test_evaluation_switch():
    tokenizer = load_tokenizer('smoke-llamagen-vq')
    paper, released = (decode_tokens(tokenizer, TOKENS, **EVALUATION_RECIPES[recipe])
                       for recipe in ('paper', 'released'))
    with torch.no_grad(): raw = tokenizer.decode(TOKENS, clamp=False)
    assert torch.equal(paper, to_uint8(raw)) and torch.equal(released, stretch_to_uint8(raw))
    assert released.flatten(1).amin(1).eq(0).all() and released.flatten(1).amax(1).eq(255).all()


def ours_of(study, **given):
    "The cells of a study by our recipe, in the smoke profile, and by the paper's."
    p = defaults(study, profile='smoke', **given)
    profile = STUDIES[study].profile(p)
    return profile, [[*STUDIES[study].grid(profile, vars_of(p, recipe=recipe))] for recipe in ('ours', 'paper')]

def vars_of(p, **given): return SimpleNamespace(**vars(p) | given)


@pytest.mark.parametrize('study, sizes', [('scaling', dict(size='b')), ('steps', {})])
def test_any_study_of_a_recipe_can_be_run_with_ours(study, sizes):
    "What ours changes stands in the cell; its model is planned apart from the paper's."
    profile, (ours, paper) = ours_of(study, **sizes)
    assert ours[0].changes == our_changes(profile.training) and not paper[0].changes
    assert ours[0].parameters['recipe'] == 'ours' and ours[0].variant != paper[0].variant
    assert ours[0].recipe == 'paper', 'the rows of the tables are those of the paper'


def test_scaling_by_our_recipe_trains_and_draws_by_it(tmp_path):
    "Another training than the paper's, and the card names the temperature."
    profile, (ours, paper) = ours_of('scaling', size='b')
    bench = Bench(profile, device='cpu')
    made, usual = (STUDIES['scaling'].run(bench, cells[0], tmp_path/name)
                   for name, cells in dict(ours=ours, paper=paper).items())
    assert made['history'] != usual['history'] and made['training_flops'] == usual['training_flops']
    drawing = our_changes(profile.training)['sampling']
    assert drawing and drawing.items() <= made['protocol']['sampler'].items()
