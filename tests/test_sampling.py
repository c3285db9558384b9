"Ingredients of masked sampling: plans, guidance and temperatures as published, orders, remasking."
import copy, math
from unittest import mock

import numpy as np
import pytest, torch

from maskgil.cells import STUDIED_ORDERS
from maskgil.drawing import Against, draw_tokens
from maskgil.models import load_model, rope_table
from maskgil.records import records
from maskgil.sampling import (
    AUTONAT, check_call, checkerboard_ranks, GUIDANCE, guidance_scales, halton_ranks, HIDDEN_SHARES, image_seeds,
    OPTIONS, ORDERS, remask_shares, remasking, sample_ar, sample_fusion, sample_mar, SCHEDULES, TEMPERATURES,
    unmask_plan,
)

LABELS, MASK = torch.tensor([0, 2, 1]), 12
STRATEGY = dict(schedule='autonat', guidance='autonat', cfg=2.616, temperature_schedule='autonat', temperature=1.,
                choice_schedule='autonat', choice_temperature=2.478, confidence_from='model')


def table(tokens, labels, drop):
    "Logits that depend on the place, the class, and what is known already."
    logits = torch.sin(torch.arange(16 * 12.).view(16, 12) * 7) * 2
    known = (tokens.flatten(1) != MASK).float().mean(1)
    return logits + (known + (~drop) * (labels - 1.))[:, None, None] * torch.linspace(-1, 1, 12)


def draw(labels=LABELS, **options):
    return sample_mar(table, labels, (4, 4), **dict(steps=6, cfg=2., codebook_size=MASK, dtype='float32') | options)


def steps_of(**options): # tokens after each step
    seen = []
    draw(on_step=lambda step, tokens: seen.append(tokens.flatten(1)), **options)
    return torch.stack(seen)


# Plans

def test_autonat_reveals_what_is_published():
    "Ratios in full from LeapLabTHU/ImprovedNAT ad964f9; its sampler rounds down what stays hidden."
    published = [.9531645174140464, .8795409806037042, .7940230737075623, .745995860948045, .6249785820461957,
                 .407321956652571, .260658917067054, 0]
    left = 256 - np.cumsum(unmask_plan(256, 8, 'autonat'))
    assert left.tolist() == [math.floor(256 * ratio) for ratio in published]
    assert np.allclose(AUTONAT['hidden'], published, atol=1e-5)


@pytest.mark.parametrize('steps', [5, 16, 64])
def test_autonat_between_its_steps(steps):
    left = 256 - np.cumsum(unmask_plan(256, steps, 'autonat'))
    shares = np.interp(np.arange(1, steps + 1) / steps, np.arange(9) / 8, [1, *AUTONAT['hidden']])
    assert np.abs(left - 256 * shares).max() <= 1


def test_the_exponential_schedule_begins_slowest():
    left = 4096 - np.cumsum(unmask_plan(4096, 16, 'exponential'))
    times = 1 - np.arange(1, 17) / 16
    assert np.abs(left - 4096 * (1 - np.exp(-5 * times)) / (1 - math.exp(-5))).max() <= 1
    for name in SCHEDULES: assert left[7] > 4096 - sum(unmask_plan(4096, 16, name)[:8]) # after half of the steps


@pytest.mark.parametrize('schedule', HIDDEN_SHARES)
def test_every_step_reveals_something(schedule):
    for tokens in (0, 1, 2, 7, 64, 255, 256, 1024):
        for steps in (1, 2, 3, 8, 63, 64, 200):
            plan = unmask_plan(tokens, steps, schedule)
            assert len(plan) == steps and sum(plan) == tokens and min(plan[:tokens], default=1) >= 1


# Guidance and temperatures

def test_published_guidance():
    w = np.array(guidance_scales(2.616, 8, 'autonat')) - 1
    assert np.allclose(w, [0, 0, 0, .9151, 1.6160, 1.1946, 1.3832, 1.2268], atol=1e-3)
    assert max(guidance_scales(5., 8, 'autonat')) == 5 and guidance_scales(1., 20, 'autonat') == [1.] * 20


@pytest.mark.parametrize('guidance', GUIDANCE)
@pytest.mark.parametrize('steps', [4, 8, 13])
def test_no_unconditional_pass_at_scale_1(guidance, steps):
    unguided = []
    def counting(tokens, labels, drop):
        unguided.append(int(drop.sum()))
        return table(tokens, labels, drop)
    sample_mar(counting, LABELS, (4, 4), steps, 3., guidance=guidance, codebook_size=MASK, dtype='float32')
    scales = guidance_scales(3., steps, guidance)
    assert [passes > 0 for passes in unguided] == [scale != 1 for scale in scales]
    assert 1 < max(scales) <= 3


def test_rows_differ():
    for steps in (4, 8, 16):
        scales = {tuple(guidance_scales(3., steps, name)) for name in GUIDANCE}
        assert len(scales) == len(GUIDANCE)


def test_the_temperature_of_a_step():
    "A model that knows nothing but two codes shows by their ratio how hot it was drawn."
    def two(tokens, labels, drop): return torch.tensor([2., 0.]).expand(len(tokens), tokens[0].numel(), 2)
    seen = []
    options = dict(order='halton', temperature_schedule='autonat', temperature=.8, codebook_size=2, dtype='float32')
    sample_mar(two, torch.zeros(40).long(), (32, 32), 8, 1., on_step=lambda step, x: seen.append(x), **options)
    for step, x in enumerate(seen[1:], 1):
        new = x[(x != 2) & (seen[step - 1] == 2)]
        wanted = torch.sigmoid(torch.tensor(2 / TEMPERATURES['autonat'](.8, step, 7)))
        assert abs((new == 0).float().mean() - wanted) < .02


def test_the_order_can_look_at_the_model_itself():
    hot = dict(temperature=5., choice_temperature=0.)
    assert draw(confidence_from='model').equal(draw())
    assert not draw(confidence_from='model', **hot).equal(draw(**hot))


def test_the_published_strategy_draws(ar_and_mar):
    ar, mar = ar_and_mar
    assert (draw(steps=8, **STRATEGY) < MASK).all()
    alone = draw_tokens(mar, LABELS, grid=(4, 4), steps=8, **STRATEGY)
    batches = draw_tokens(mar, LABELS, batch_size=1, grid=(4, 4), steps=8, **STRATEGY)
    assert alone.equal(batches)
    strategy = {name: value for name, value in STRATEGY.items() if name != 'cfg'}
    fused = sample_fusion(ar, mar, LABELS, (4, 4), ar_tokens=4, mar_options=strategy | dict(remask=.1))
    assert fused.shape == (3, 4, 4)


@pytest.fixture(scope='module')
def ar_and_mar():
    made = [load_model(kind, 'smoke-b', classes=3, codebook_size=MASK, grid=(4, 4)) for kind in ('llamagen', 'maskgil')]
    for model in made: torch.nn.init.normal_(model.head.weight, std=.5, generator=torch.Generator().manual_seed(0))
    return made


# Order

@pytest.mark.parametrize('grid', [(4, 4), (5, 3), (1, 7), (16, 16)])
def test_checkerboard(grid):
    ranks, halton = checkerboard_ranks(grid), halton_ranks(grid)
    assert ranks.sort().values.equal(torch.arange(grid[0] * grid[1]))
    colour = torch.tensor([(i + j) % 2 for i in range(grid[0]) for j in range(grid[1])])
    assert colour[ranks.argsort()].diff().ge(0).all() # one colour, then the other
    for which in (0, 1): assert ranks[colour == which].argsort().equal(halton[colour == which].argsort())


def test_checkerboard_has_no_neighbours_in_the_first_half():
    for tokens in steps_of(order='checkerboard', steps=8):
        shown = (tokens != MASK).view(-1, 4, 4)
        if shown[0].sum() > 8: return
        assert not (shown[:, 1:] & shown[:, :-1]).any() and not (shown[:, :, 1:] & shown[:, :, :-1]).any()


# Remasking

def test_nothing_changes_without_remasking():
    for order in ORDERS: assert draw(order=order, remask=0).equal(draw(order=order))
    first = dict(order='halton', steps=8)
    plain, remasked = steps_of(**first), steps_of(remask=.3, **first)
    assert plain[0].equal(remasked[0]) and not plain.equal(remasked) # the same numbers, until something is hidden


@pytest.mark.parametrize('schedule', ['arccos', 'exponential'])
@pytest.mark.parametrize('remask', [.1, 1.])
def test_remasking_keeps_to_the_plan(schedule, remask):
    start = torch.full((3, 4, 4), MASK)
    start[1, :2], start[2, 3, 1:] = 5, 7
    seen = steps_of(tokens=start, remask=remask, schedule=schedule, steps=8)
    given = start.flatten(1) != MASK
    plan = torch.tensor([unmask_plan(int((~row).sum()), 8, schedule) for row in given])
    assert torch.stack([(x == MASK).sum(1) for x in seen], 1).equal(plan.sum(1, keepdim=True) - plan.cumsum(1))
    assert (seen[:, given] == start.flatten(1)[given]).all() and (seen[-1] != MASK).all()
    if remask == 1: assert ((seen[1:] == MASK) & (seen[:-1] != MASK)).any()


def test_the_share_that_is_hidden_again():
    "min(eta, (1 - alpha_s) / alpha_t), each settled token alike."
    plan = torch.tensor([[1000, 3000, 2000, 2000]]).expand(50, -1)
    drawn = (torch.arange(9000) >= 1000).expand(50, -1) # 1,000 are given
    for eta, wanted in ((.2, [.2, .2, .2, 0]), (.6, [.6, .6, .5, 0])):
        assert torch.allclose(remask_shares(plan, eta)[0, 1:], torch.tensor(wanted[1:]))
        again = remasking(plan, drawn, eta, image_seeds(0, 50))
        for step, share in list(enumerate(wanted))[1:]:
            settled = (torch.arange(9000) < 1000 + int(plan[0, :step].sum())).expand(50, -1)
            chosen = again(step, ~settled)
            assert not chosen[:, :1000].any() and not (chosen & ~settled).any()
            places = chosen[:, 1000:][settled[:, 1000:]].view(50, -1).float()
            assert abs(places.mean() - share) < .01
            assert (places.mean(0).std() - (share * (1 - share) / 50)**.5).abs() < .01 # no place is preferred


def test_remasking_does_not_depend_on_the_batch():
    whole = draw(remask=.4, steps=8, seed=5)
    for i in range(3): assert draw(LABELS[i:i + 1], remask=.4, steps=8, seed=5, first=i).equal(whole[i:i + 1])
    assert draw(remask=.4, steps=8, seed=image_seeds(5, 3)).equal(whole)


def test_remasking_repairs():
    "An image goes with the majority of its tokens; those drawn before there was one can be hidden again and mended."
    def majority(tokens, labels, drop):
        ones, zeros = [(tokens == code).flatten(1).sum(1) for code in (1, 0)]
        lean = 4. * (ones - zeros).sign()
        return torch.stack([-lean, lean], -1)[:, None].expand(-1, tokens[0].numel(), 2)
    def strays(**options): # the share of tokens that is against it
        x = sample_mar(majority, torch.zeros(200).long(), (8, 8), 16, 1., order='random', schedule='autonat',
                       codebook_size=2, dtype='float32', **options)
        ones = x.flatten(1).float().mean(1)
        return torch.minimum(ones, 1 - ones).mean().item()
    assert strays(remask=.5) < .5 * strays()


# What the caller need not know

@pytest.mark.parametrize('choice_schedule', ['fading', 'autonat'])
def test_a_random_order_without_strength(choice_schedule):
    "Strength scales noise beside a confidence; of an order that is nothing but noise it changes nothing."
    options = dict(order='random', steps=16, choice_schedule=choice_schedule)
    seen, noisy = (steps_of(choice_temperature=strength, **options) for strength in (0., 4.5))
    assert seen.equal(noisy)
    first = (seen[3] != MASK).int()
    assert not first[0].equal(first[1]) and not first[:, :4].all()


@pytest.mark.parametrize('guidance', GUIDANCE)
def test_more_steps_than_tokens(guidance):
    "Beyond one for each token nothing changes: guidance and noise run over the steps that are taken."
    options = dict(guidance=guidance, temperature_schedule='autonat', choice_schedule='autonat', order='confidence')
    exact = draw(steps=16, **options)
    for steps in (17, 300): assert draw(steps=steps, **options).equal(exact)


@pytest.mark.parametrize('guidance', GUIDANCE)
def test_holes_of_different_sizes_do_not_know_of_each_other(guidance):
    holes = torch.full((3, 4, 4), 5)
    for image, size in enumerate((2, 5, 11)): holes.view(3, 16)[image, :size] = MASK
    together = draw(steps=8, tokens=holes, guidance=guidance)
    for image in range(3):
        alone = draw(LABELS[image:image + 1], steps=8, tokens=holes[image:image + 1], guidance=guidance, first=image)
        assert alone.equal(together[image:image + 1])


def test_the_grid_is_the_models(ar_and_mar):
    ar, mar = ar_and_mar
    for drawn in (sample_ar(ar, LABELS), sample_mar(mar, LABELS, steps=2), sample_mar(mar, LABELS, None, 2),
                  sample_fusion(ar, mar, LABELS, ar_tokens=3, mar_steps=2)): assert drawn.shape == (3, 4, 4)
    assert sample_mar(mar, LABELS, (2, 6), 2).shape == (3, 2, 6)
    def even(tokens, labels, drop): return torch.zeros(len(tokens), tokens[0].numel(), 2)
    assert sample_mar(even, LABELS, steps=2, codebook_size=2).shape == (3, 16, 16)


def test_orders_are_found_once():
    "Every step asks for the order of its grid."
    grid = (7, 9)
    expected = halton_ranks(grid)
    with mock.patch('maskgil.sampling.halton', side_effect=AssertionError('found again')):
        assert halton_ranks(grid).equal(expected) and checkerboard_ranks([7, 9]).shape == (63,)
    halton_ranks(grid).zero_()
    assert halton_ranks(grid).equal(expected)


def test_labels_and_tokens_in_bytes(ar_and_mar):
    bert = load_model('maskgit-transformer', 'smoke-b', classes=3, codebook_size=MASK, grid=(4, 4))
    for model, sample in zip((*ar_and_mar, bert), (sample_ar, sample_mar, sample_mar)):
        for kind in (torch.uint8, torch.int8, torch.int32):
            assert sample(model, LABELS.to(kind)).equal(sample(model, LABELS))
        tokens = torch.arange(3 * 12).view(3, 12) % MASK if model.config.causal else torch.full((3, 4, 4), MASK)
        assert model.logits(tokens.to(torch.uint8), LABELS.to(torch.uint8)).equal(model.logits(tokens, LABELS))


def test_torchs_default_precision_does_not_matter(ar_and_mar):
    ar, mar = ar_and_mar
    def drawn(): return sample_mar(mar, LABELS, steps=3), sample_ar(ar, LABELS), sample_mar(mar, LABELS, remask=.3)
    expected = drawn()
    torch.set_default_dtype(torch.float64)
    try: rope_table.cache_clear(); found = drawn()
    finally: torch.set_default_dtype(torch.float32)
    for one, other in zip(found, expected, strict=True): assert one.equal(other)


@pytest.mark.parametrize('kind', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('which', [0, 1])
def test_weights_in_half_precision(which, kind, ar_and_mar):
    model, sample = copy.deepcopy(ar_and_mar[which]).to(kind), (sample_ar, sample_mar)[which]
    for dtype in ('auto', kind): assert sample(model, LABELS, dtype=dtype).shape == (3, 4, 4)
    with pytest.raises(ValueError, match=r'in float32: see model.float\(\)'): sample(model, LABELS, dtype='float32')


# Refusals

@pytest.mark.parametrize('option', [dict(reuse='settled'), dict(precision='int8')], ids=str)
def test_a_refusal_says_what_the_model_is(option, ar_and_mar):
    mar = ar_and_mar[1]
    with pytest.raises(ValueError, match='not maskgil, compiled'): sample_mar(torch.compile(mar), LABELS, **option)
    steered = Against(mar, torch.zeros(1, 1, 1))
    with pytest.raises(ValueError, match='not maskgil, steered away'): sample_mar(steered, LABELS, **option)


@pytest.mark.parametrize('wrong, said', [
    (dict(schedule='autonad'), "'autonat'"), (dict(schedule='exp'), 'exponential'),
    (dict(guidance='intervall'), "'interval'"), (dict(order='checkers'), 'checkerboard'),
    (dict(temperature_schedule='autonta'), 'choose one of constant, autonat'),
    (dict(choice_schedule='none'), 'choose one of fading, autonat'),
    (dict(confidence_from='logits'), 'choose one of drawn, model'),
    (dict(remask=-.1), 'remask must be a finite number'), (dict(remask=1.1), 'remask'), (dict(remask=None), 'remask'),
    (dict(remask=.1, reuse='settled'), "choose remask=0 or reuse='none'"), (dict(on_step=3), 'on_step is a function')],
    ids=str)
def test_what_is_refused(wrong, said):
    def never(*args): raise AssertionError('asked before everything was checked')
    with pytest.raises(ValueError, match=said): sample_mar(never, LABELS, (4, 4), codebook_size=MASK, **wrong)
    with pytest.raises(ValueError, match=said): check_call(sample_mar, wrong)


def test_every_option_has_a_rule():
    assert OPTIONS.keys() >= {'on_step', 'remask', 'choice_schedule', 'confidence_from', 'temperature_schedule'}
    assert check_call(sample_mar, dict(remask=0, reuse='settled')) == dict(remask=0., reuse='settled')


def test_the_steps_study_keeps_its_orders():
    "A new order is an option of the sampler, not a cell more of a study that has records."
    kept = records('steps', ['reference'], profile='mini')
    assert kept
    for record in kept: assert {point['order'] for point in record.metrics['curve']} == set(STUDIED_ORDERS)
