"""The fast ways compute what the plain ones do: packed products, the last block at the places that are asked for,
keys and values kept. The plain ways are written out here."""
import threading
from unittest import mock

import pytest
import torch

from maskgil.approximate import run_approximate
from maskgil.losses import MaskedObjective
from maskgil.models import load_model
from maskgil.sampling import next_logits, sample_ar, sample_mar
from maskgil.speed import LEAST_SHARE, SHORT, SPEEDS, ar_operations, mar_operations

SHAPE = dict(size='b', layers=3, heads=4, width=128, codebook_size=500, classes=10, grid=(8, 8))
KINDS = ['maskgil', 'maskgit-transformer']


def lively(kind, **changes):
    "A model whose predictions differ from place to place, as those of a trained one do."
    model = load_model(kind, **SHAPE | changes)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1: weight.copy_(torch.randn(weight.shape, generator=generator) / weight.shape[-1]**.5)
    return model


@pytest.fixture(scope='module')
def batch():
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(500, (6, 8, 8), generator=generator)
    hidden = torch.rand(6, 64, generator=generator) < torch.linspace(.1, .9, 6)[:, None] # a number of its own in each
    return tokens.masked_fill(hidden.view(6, 8, 8), 500), torch.arange(6), hidden


@pytest.mark.parametrize('changes', [{}, dict(recipe='released'), dict(qk_norm=True, post_norm=True)], ids=str)
@pytest.mark.parametrize('kind', KINDS)
def test_the_last_block_at_some_places(kind, changes, batch):
    if kind == 'maskgit-transformer' and changes: pytest.skip('it has one recipe')
    tokens, labels, hidden = batch
    model = lively(kind, **changes)
    with torch.no_grad(): everywhere, some = model.features(tokens, labels), model.features(tokens, labels, at=hidden)
    torch.testing.assert_close(some, everywhere[hidden])


def test_a_causal_model_has_no_places(batch):
    tokens, labels, hidden = batch
    with pytest.raises(ValueError, match='every place'):
        lively('llamagen').features(tokens.flatten(1) % 500, labels, at=hidden)


def test_gradients_of_the_last_block_at_some_places(batch):
    tokens, labels, hidden = batch
    model, objective = lively('maskgil', dropout=0.), MaskedObjective(500)
    made = dict(tokens=tokens, targets=tokens % 500, labels=labels, hidden=hidden, drop=labels < 2)

    class Plain: # all places, and a choice among them afterwards
        config, output = model.config, model.output
        def features(self, *given, at): return model.features(*given)[at]

    gradients = []
    for way in (model, Plain()):
        loss, _ = objective.loss(way, made)
        gradients.append([loss.detach(), *torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)])
    for fast, plain in zip(*gradients):
        if plain is not None: assert float((fast - plain).abs().max()) <= 1e-5 * float(plain.abs().max())


def drawn(sampler, model, packed, **options):
    with mock.patch('maskgil.products.PACKED_FROM', 0 if packed else 2**62):
        return torch.cat([sampler(model, torch.arange(10), (8, 8), cfg=2., seed=seed, dtype='float32', **options)
                          for seed in range(8)])


@pytest.mark.parametrize('kind, sampler, plain', [
    ('maskgil', sample_mar, {}), ('maskgit-transformer', sample_mar, {}),
    ('llamagen', sample_ar, dict(use_cache=False)),
])
def test_tokens_are_those_of_the_plain_way(kind, sampler, plain):
    model = lively(kind)
    fast = drawn(sampler, model, packed=True)
    assert len(fast.unique()) > 100, 'a model that draws one code proves nothing'
    if plain: reference = drawn(sampler, model, packed=False, **plain)
    else:
        own = model.logits
        def everywhere(tokens, labels, drop, at): return own(tokens, labels, drop)[at]
        with mock.patch.object(model, 'logits', everywhere): reference = drawn(sampler, model, packed=False)
    assert (fast == reference).double().mean() >= .999


@pytest.mark.parametrize('guidance', ['constant', 'late', 'early', 'ramp'])
def test_keeping_settled_tokens_is_close(guidance):
    "Nothing is kept where the window is as long as the drawing; the shorter it is, the more tokens differ."
    model = lively('maskgil')
    options = dict(steps=8, guidance=guidance)
    plain = drawn(sample_mar, model, packed=False, **options)
    assert torch.equal(drawn(sample_mar, model, False, reuse='settled', window=8, **options), plain)
    alike = [(drawn(sample_mar, model, False, reuse='settled', window=window, **options) == plain).double().mean()
             for window in (1, 4)]
    assert .2 < alike[0] < alike[1] < 1


def test_reuse_with_images_that_have_different_numbers_of_hidden_tokens():
    model, start = lively('maskgil'), torch.full((3, 8, 8), 500)
    start[1, :4], start[2, :7] = 3, 4
    finished = sample_mar(model, torch.arange(3), (8, 8), tokens=start, reuse='settled', precision='int8')
    assert (finished < 500).all() and (finished[1, :4] == 3).all() and (finished[2, :7] == 4).all()


def test_late_guidance_leaves_out_the_unconditional_pass():
    model, seen = lively('maskgil'), []
    own = model.logits
    def counted(tokens, *given, **options):
        seen.append(len(tokens))
        return own(tokens, *given, **options)
    with mock.patch.object(model, 'logits', counted):
        sample_mar(model, torch.arange(5), (8, 8), steps=8, cfg=3., guidance='late')
    assert seen == [5] * 4 + [10] * 4


def test_int8_is_close_and_leaves_the_model_as_it_was(batch):
    tokens, labels, hidden = batch
    model = lively('maskgil')
    from maskgil.products import ready_products
    with torch.no_grad():
        exact = model.logits(tokens, labels, at=hidden)
        with ready_products(model, 64, torch.device('cpu'), torch.float32, 'int8'):
            rough = model.logits(tokens, labels, at=hidden)
        again = model.logits(tokens, labels, at=hidden)
    assert torch.equal(again, exact)
    error = (rough - exact).std() / exact.std()
    assert 0 < error < .05, f'{error:.3f} of the spread of logits'


def test_the_short_bench_has_floors():
    assert {*SHORT} == {*LEAST_SHARE} and all(.3 < share < 1 for share in LEAST_SHARE.values())
    same = 'training step of mini XXL, batch 32'
    assert SHORT[same] is SPEEDS[same]


def test_operations_of_a_drawing():
    config = load_model('maskgil', **SHAPE).config
    of = [mar_operations(config, 4, steps=steps) for steps in (1, 4, 8)] # the first step has fewer images
    assert 2 * of[0] < of[1] < 8 * of[0] and 1.5 * of[1] < of[2] < 2.5 * of[1]
    assert ar_operations(config, 8) == pytest.approx(2 * ar_operations(config, 4))


@pytest.mark.parametrize('asked, said', [
    (dict(choices=['MAR, int4']), 'MAR, int8'), (dict(seeds=1), '2 seeds'), (dict(seeds=-1), 'seeds'),
    (dict(images=3), 'images'), (dict(batches=[0]), 'batches'), (dict(add=True, images=77), 'no record'),
], ids=str)
def test_prices_refuse_before_they_draw(asked, said):
    with mock.patch('maskgil.approximate.count_operations', side_effect=AssertionError('it has begun')):
        with pytest.raises(ValueError, match=said): run_approximate(**asked)


# Other products belong to one drawing

@pytest.mark.parametrize('options, packed', [(dict(precision='int8'), False), ({}, True)], ids=str)
def test_other_products_are_of_one_thread(options, packed):
    "While one thread draws with other products, the network is what it was to the others, and afterwards to all."
    model, tokens, labels = lively('maskgil'), torch.full((2, 8, 8), 500), torch.arange(2)
    inside, asked, answers = threading.Event(), threading.Event(), []
    def wait(step, x):
        inside.set()
        assert asked.wait(60)
    def draw(): answers.append(sample_mar(model, labels, steps=2, dtype='float32', on_step=wait, **options))
    with torch.no_grad(), mock.patch('maskgil.products.PACKED_FROM', 0 if packed else 2**62):
        before, alone = model.logits(tokens, labels), sample_mar(model, labels, steps=2, dtype='float32', **options)
        thread = threading.Thread(target=draw)
        thread.start()
        assert inside.wait(60) and 'forward' in vars(model.head)
        during = model.logits(tokens, labels)
        assert sample_mar(model, labels, steps=2, dtype='float32', **options).equal(alone) # and ends first
        asked.set()
        thread.join()
    assert during.equal(before) and answers[0].equal(alone) and 'forward' not in vars(model.head)


def test_products_within_products():
    "The inner ones end, the outer ones go on."
    from maskgil.products import other_products
    layer, x = torch.nn.Linear(2, 2), torch.ones(1, 2)
    with other_products([layer], lambda _: lambda x: 'outer'):
        with other_products([layer], lambda _: lambda x: 'inner'): assert layer(x) == 'inner'
        assert layer(x) == 'outer'
    assert isinstance(layer(x), torch.Tensor)


@pytest.mark.parametrize('kind', KINDS)
def test_checkpointed_blocks_have_the_same_gradients(kind, batch):
    tokens, labels, hidden = batch
    model, gradients, blocks = lively(kind, dropout=0.).train(), [], []
    for recompute in (False, True):
        model.gradient_checkpointing = recompute
        with mock.patch('maskgil.models.checkpoint', side_effect=torch.utils.checkpoint.checkpoint) as again:
            model.logits(tokens, labels, at=hidden).square().sum().backward()
        blocks.append(again.call_count)
        gradients.append([weight.grad.clone() for weight in model.parameters() if weight.grad is not None])
        model.zero_grad()
    assert blocks == [0, 3] and all(one.equal(other) for one, other in zip(*gradients, strict=True))
    with pytest.raises(ValueError, match='True or False'): model.gradient_checkpointing = 'no'


@pytest.mark.parametrize('kind', KINDS)
def test_places_have_one_form(kind, batch):
    tokens, labels, hidden = batch
    model = lively(kind)
    assert model.logits(tokens, labels, at=hidden.view_as(tokens)).equal(model.logits(tokens, labels, at=hidden))
    for wrong in (hidden.long(), hidden[:, :-1], hidden[:3], hidden.view(6, 4, 16), hidden.T, [True]):
        with pytest.raises(ValueError, match='at is a tensor of bool'): model.logits(tokens, labels, at=wrong)


def test_without_a_cache_the_grid_is_the_one_asked_for():
    model = lively('llamagen')
    tokens, labels = torch.arange(20).expand(2, 20), torch.arange(2)
    cache = model.new_cache(labels, 40, torch.float32)
    with torch.no_grad():
        for token in (None, *tokens.split(1, 1)): cached = model.decode(token, labels, None, cache, (4, 16))
        plain = next_logits(model, tokens, labels, None, None, (4, 16))
        of_own_grid = next_logits(model, tokens, labels, None, None, (8, 8))
    torch.testing.assert_close(plain, cached, atol=1e-4, rtol=1e-4)
    assert (plain - of_own_grid).abs().max() > 1e-2
