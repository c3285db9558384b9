"Claims: each can come out each way, the paper's own numbers decide as computed here, a missing study is not fatal."
import dataclasses
import itertools
import math
import re

import numpy as np
import pandas as pd
import pytest

from maskgil import claims
from maskgil.claims import (
    ARCHITECTURES, CLAIMS, PAPER_SIZES, PAPER_TOKENIZERS, VERDICTS, Estimate, check_claims, claim_rows, decide,
    paper_inconsistencies, rows_at_best_guidance, verdict_of, verdicts,
)
from maskgil.models import SIZE_ROWS, register_size, SIZES
from maskgil.records import published, published_records, records
from maskgil.statistics import Point
from maskgil.tables import history_table, long_table
from maskgil.tokenizers import register_tokenizer, TOKENIZER_ROWS, TOKENIZERS

AR, TRANSFORMER, LLAMA = ARCHITECTURES
MEASURED = [key for key, row in CLAIMS.items() if row.kind == 'measured']
ON_HISTORIES = ('norm_grows_without_both', 'qk_norm_only_mitigates', 'both_norms_bound_it')


# ---------------------------------------------------------------------- made-up tables
# a point is a pair of coordinates and metrics

def table(study, points, source='yours', seeds=(0, 1, 2), spread=.001, half=.002, noise=0., **columns):
    """Rows for points; seeds lie `spread` apart, the same at all points, and `noise` at each; intervals reach `half` to
    each side; all as shares of the value."""
    random = np.random.default_rng(0)
    shared = dict(source=source, study=study, profile='mini', data='made up', part='curve', recipe='paper',
                  note='', key='', n=100.) | columns
    def row(at, family, value, i):
        measured = value*(1 + spread*(i - (len(seeds) - 1)/2) + noise*random.normal())
        return shared | at | dict(
            seed=seeds[i], family=family, metric=family, label=shared.get('label', family),
            value=measured, low=measured - half*value, high=measured + half*value)
    return pd.DataFrame([row(at, family, value, i) for at, metrics in points for family, value in metrics.items()
                         for i in range(len(seeds))])

def reconstruction(*rfids):
    points = [(dict(tokenizer=name, part='point'), dict(rfid=rfid)) for name, rfid in zip(PAPER_TOKENIZERS, rfids)]
    return table('tokenizers', points)

def usage(share):
    return table('tokenizers', [(dict(tokenizer=name, part='point'), dict(codebook_usage_pct=share))
                                for name in PAPER_TOKENIZERS])

def generation(fid, noise=0., **others):
    "Two epochs, two scales; the second of each is the better one."
    def metrics(name, model, epoch, cfg):
        found = dict(fid=fid(name, model) + 3*(4 - epoch) + 2*(cfg == 1))
        return found | {family: value(model) for family, value in others.items()}
    grid = itertools.product(PAPER_TOKENIZERS, ARCHITECTURES, (2., 4.), (1., 2.))
    points = [(dict(tokenizer=name, architecture=model, epoch=epoch, cfg=cfg), metrics(name, model, epoch, cfg))
              for name, model, epoch, cfg in grid]
    return table('tokenizers', points, noise=noise)

def scaling(fid, score=lambda size, cfg: 20., **columns):
    grid = itertools.product(PAPER_SIZES, (2., 4.), (1., 2., 3.))
    points = [(dict(size=size, epoch=epoch, cfg=cfg), {'fid': fid(size, epoch, cfg), 'is': score(size, cfg)})
              for size, epoch, cfg in grid]
    return table('scaling', points, **columns)

def timed(seconds):
    at = lambda system, batch: dict(size='b', system=system, batch=batch, part='point')
    return table('paradigms', [(at(system, batch), dict(seconds_per_image=seconds(system)))
                               for system in ('AR', 'MAR') for batch in (1, 16)])

def decoding(steps, order='confidence', images=400):
    return dict(size='b', steps=steps, order=order, schedule='arccos', images=images, cfg=2.)

def steps(fid): return table('steps', [(decoding(steps), dict(fid=fid(steps))) for steps in (2, 4, 8, 16, 32)])

def fusion(fid, seconds=lambda share: 1.):
    at = lambda share: dict(size='b', ar_tokens=64*share, ar_share=share, mar_steps=8 if share < 1 else 0, cfg=2.)
    return table('fusion', [(at(share), dict(fid=fid(share), seconds_per_image=seconds(share)))
                            for share in (0., .25, .5, .75, 1.)])

def head(**ratios):
    "Costs of the output layer of two codebooks; `ratios` says how much the larger one costs, by metric."
    at = lambda codes: dict(codebook_size=codes, head='plain', part='point')
    small, large = dict.fromkeys(ratios, 5.), {family: 5.*ratio for family, ratio in ratios.items()}
    return table('tokenizers', [(at(2**14), small), (at(2**18), large)])

def history(none, qk, both, seeds=(0, 1, 2)):
    "Output norms that double this often between the second tenth of training and the last."
    rates = dict(none=none, qk=qk, both=both)
    rows = [dict(norms=norms, seed=seed, step=step, value=30*2**((rates[norms] + .05*(seed - 1))*step/80))
            for norms in rates for seed in seeds for step in range(0, 101, 2)]
    return pd.DataFrame(rows).assign(
        source='yours', study='stability', profile='mini', data='made up', name='output_norm', diverged_at=None)


# ---------------------------------------------------------------------- each claim can come out each way
# for each claim a table by x: 1 speaks for the claim, -1 against it, 0 for neither

rank = PAPER_SIZES.index
at_an_end = lambda name: name in ('maskgit-vq', 'open-magvit2-vq')
is_best = lambda name: name == 'llamagen-vq'
is_poor = lambda name, model: (name, model) == ('open-magvit2-vq', TRANSFORMER)
SCENARIOS = dict(
    rfid_falls=lambda x: reconstruction(*(50 - 10*x*i for i in range(4))),
    rfid_saturates=lambda x: reconstruction(100, 100 - 20*x, 100 - 40*x, 100 - 45*x),
    full_usage=lambda x: usage({1: 100, 0: 99.5, -1: 60}[x]),
    fid_falls_then_rises=lambda x: generation(lambda name, model: 50 + 10*x*at_an_end(name)),
    llamagen_vq_best=lambda x: generation(lambda name, model: 50 - 10*x*is_best(name)),
    magvit_poor_on_transformer=lambda x: generation(
        lambda name, model: 100 + 20*x if is_poor(name, model) else 50),
    mar_not_inferior=lambda x: generation(lambda name, model: 105 - 10*x if model == LLAMA else 100),
    mar_outperforms_somewhere=lambda x: generation(
        lambda name, model: 50 - 10*x*(model == LLAMA and (x < 0 or name == 'chameleon-vq'))),
    gap_to_ar_remains=lambda x: generation(lambda name, model: 50 + 10*x*(model == LLAMA and is_best(name))),
    llama_beats_transformer=lambda x: generation(lambda name, model: 50 - 10*x*(model == LLAMA)),
    precise_but_less_diverse=lambda x: generation(
        lambda name, model: 50, precision=lambda model: .6 + .1*x*(model == LLAMA),
        recall=lambda model: .6 - .1*x*(model == LLAMA), **{'is': lambda model: 20 + 5*x*(model == LLAMA)}),
    mar_is_faster=lambda x: timed(lambda system: 1 + .5*x*(system == 'AR')),
    better_up_to_xl=lambda x: scaling(lambda size, epoch, cfg: 50 - 10*x*rank(size)),
    marginal_beyond_xl=lambda x: scaling(lambda size, epoch, cfg: 100 - x*(0, 20, 40, 45)[rank(size)]),
    better_throughout_training=lambda x: scaling(lambda size, epoch, cfg: 50 - 10*x*rank(size) + epoch),
    better_with_training=lambda x: scaling(lambda size, epoch, cfg: 50 - 10*x*(epoch > 2)),
    guidance_best_at_2=lambda x: scaling(lambda size, epoch, cfg: 50 + 10*x*(cfg != 2)),
    guidance_hurts_beyond_2=lambda x: scaling(lambda size, epoch, cfg: 50 + 10*x*(cfg - 2)*(cfg > 2)),
    guidance_depends_on_size=lambda x: scaling(
        lambda size, epoch, cfg: 50 + 10*abs(x)*abs(cfg - (2 if x < 0 else 1 if size == 'b' else 3))),
    is_rises_with_guidance=lambda x: scaling(lambda size, epoch, cfg: 50, lambda size, cfg: 20 + 5*x*cfg),
    fid_of_3_71=lambda x: scaling(
        lambda size, epoch, cfg: 3.715 - .5*x, label='FID', data='ImageNet 256 px', profile='paper'),
    norm_grows_without_both=lambda x: history(1 + 2*x, 0, -2),
    qk_norm_only_mitigates=lambda x: history(3*x, 0, -3*x),
    both_norms_bound_it=lambda x: history(4, 4, 1 - 2*x),
    eight_steps_best=lambda x: steps(lambda steps: 50 + 10*x*(steps != 8)),
    more_steps_do_not_help=lambda x: steps(lambda steps: 50 + 10*x*(steps > 8)),
    fusion_is_convex=lambda x: fusion(lambda share: 50 + 20*x*abs(share - .5)),
    fusion_best_near_half=lambda x: fusion(lambda share: 50 + 20*x*abs(share - .5)),
    fusion_saves_time=lambda x: fusion(lambda share: 50, lambda share: 1 + x*(share - .5)),
    head_is_16_times_larger=lambda x: head(head_parameters={1: 16, 0: 15.5, -1: 8}[x]),
    head_costs_twice=lambda x: head(head_memory_gib={1: 2, 0: 2.5, -1: 4}[x]),
)


def test_the_whole_step_tells_what_a_training_costs():
    "Where it was measured; the output layer alone tells it otherwise."
    judged = lambda **ratios: verdict_of(CLAIMS['head_costs_twice'], head(**ratios), 'yours').verdict
    assert judged(head_memory_gib=13) == 'contradicted'
    assert judged(head_memory_gib=13, step_memory_gib=2.2) == 'supported'


def test_every_measured_claim_has_a_scenario():
    assert list(SCENARIOS) == MEASURED


@pytest.mark.parametrize('x, expected', [(1, 'supported'), (-1, 'contradicted'), (0, 'inconclusive')])
@pytest.mark.parametrize('key', SCENARIOS)
def test_each_way(key, x, expected):
    found = verdict_of(CLAIMS[key], SCENARIOS[key](x), 'yours')
    assert found.verdict == expected, found
    assert found.low <= found.effect <= found.high
    assert found.seeds == 3 and '3 seeds' in found.says
    assert f'{found.effect:+.3g}'.replace('-', '−') in found.says and not re.search(r'-[\d.]', found.says)


@pytest.mark.parametrize('key', SCENARIOS)
def test_one_seed_and_point_values(key):
    rows = SCENARIOS[key](1)
    first = rows[rows.seed == 1]
    one = verdict_of(CLAIMS[key], first, 'yours')
    assert one.verdict == 'supported' and one.seeds == 1
    if key in ON_HISTORIES: return # a history has no interval of its own
    assert ', one seed' in one.says
    bare = first.assign(source='paper', profile='paper', low=math.nan, high=math.nan, seed=None)
    point = verdict_of(CLAIMS[key], bare, 'paper')
    assert (point.verdict, point.low, point.high, point.seeds) == ('supported', None, None, 0)
    assert 'point values, no interval' in point.says


@pytest.mark.parametrize('key', SCENARIOS)
def test_without_its_study_or_with_half_of_it(key):
    row, rows = CLAIMS[key], SCENARIOS[key](1)
    for source in ('reference', 'paper'): assert verdict_of(row, rows, source).verdict == 'no data'
    assert verdict_of(row, rows[:0], 'yours').verdict == 'no data'
    varied = ('tokenizer', 'system', 'size', 'norms', 'steps', 'ar_share', 'codebook_size')
    arm = next(column for column in varied if column in rows and rows[column].nunique() > 1)
    for value in rows[arm].unique():
        found = verdict_of(row, rows[rows[arm] == value], 'yours')
        assert found.verdict in VERDICTS and found.says.endswith('.')
    one_less = [verdict_of(row, rows[rows[arm] != value], 'yours').verdict for value in rows[arm].unique()]
    needs_few = ('head_is_16_times_larger', 'head_costs_twice', 'more_steps_do_not_help', 'fusion_best_near_half')
    assert 'no data' in one_less or key in needs_few


def test_noise_decides_between_inconclusive_and_supported():
    fid = lambda name, model: 50 - is_best(name)
    quiet, loud = (verdict_of(CLAIMS['llamagen_vq_best'], generation(fid, noise), 'yours') for noise in (.0001, .05))
    assert [quiet.verdict, loud.verdict] == ['supported', 'inconclusive']


def test_the_scale_is_chosen_for_all_seeds_together():
    fids = {1.: 50., 2.: 49.}
    rows = table('scaling', [(dict(size='b', epoch=4., cfg=cfg), dict(fid=fid)) for cfg, fid in fids.items()])
    rows.loc[(rows.cfg == 1) & (rows.seed == 0), 'value'] = 48. # the best of all rows, but not on average
    best = rows_at_best_guidance(rows)
    assert set(best.cfg) == {2.} and len(best) == 3


def test_metrics_without_fid_are_kept():
    without = table('fusion', [(dict(ar_share=0., cfg=2.), dict(seconds_per_image=1.))])
    with_fid = table('fusion', [(dict(ar_share=1., cfg=2.), dict(fid=9., seconds_per_image=2.))])
    rows = pd.concat([without, with_fid])
    best = rows_at_best_guidance(rows)
    assert set(best.family) == {'fid', 'seconds_per_image'} and len(best) == len(rows)


def test_figure_10_leaves_out_other_orders_and_sample_counts():
    other = table('steps', [(decoding(8, order='halton'), dict(fid=1.)), (decoding(16, images=800), dict(fid=1.))])
    rows = pd.concat([SCENARIOS['eight_steps_best'](1), other])
    assert verdict_of(CLAIMS['eight_steps_best'], rows, 'yours').verdict == 'supported'


# ---------------------------------------------------------------------- what the paper does not have

@pytest.fixture
def fifth():
    "A fifth tokenizer and a fifth size, registered: with more codes and layers than any other."
    tables = (TOKENIZER_ROWS, TOKENIZERS, SIZE_ROWS, SIZES)
    before = [dict(rows) for rows in tables]
    tokenizer, size = TOKENIZER_ROWS['open-magvit2-vq'], SIZE_ROWS['xxl']
    more_codes = dataclasses.replace(tokenizer.published, codebook_size=2**19)
    more_layers = dataclasses.replace(size.published, layers=64)
    register_tokenizer(dataclasses.replace(tokenizer, name='fifth-vq', published=more_codes))
    register_size(dataclasses.replace(size, name='zz', published=more_layers))
    yield
    for rows, old in zip(tables, before): rows.clear(); rows.update(old)

def rows_of_a_fifth(rows, **changes):
    "The rows of the largest again, for a tokenizer and a size that the paper does not have, far from the others."
    found = [rows[:0]]
    if 'tokenizer' in rows:
        largest = rows[rows.tokenizer == 'open-magvit2-vq']
        found.append(largest.assign(tokenizer='fifth-vq', codebook_size=2**19))
    if 'size' in rows: # 'xxl' comes last in the alphabet too
        largest = rows[rows['size'] == rows['size'].dropna().max()]
        found.append(largest.assign(size='zz'))
    fifth = pd.concat(found)
    far = {column: fifth[column]/7 for column in ('value', 'low', 'high') if column in fifth}
    return fifth.assign(**far, **changes)

OTHERWISE = [ # what else may set the rows of a fifth apart
    {}, dict(epoch=77.), dict(cfg=9.), dict(data='other'), dict(profile='paper'), dict(steps=8., ar_share=.5)]

@pytest.fixture(scope='module')
def committed():
    "Points and histories of the committed reference and the paper, and what they say."
    kept = records(sources=['paper', 'reference'])
    points, logged = long_table(kept), history_table(kept)
    return points, logged, verdicts(points, logged)

@pytest.mark.parametrize('changes', [{}, dict(epoch=77.), dict(data='other', profile='paper')], ids=str)
def test_a_fifth_tokenizer_or_size_changes_no_verdict(committed, fifth, changes):
    *tables, before = committed
    mixed = [pd.concat([rows, rows_of_a_fifth(rows, **changes)]) for rows in tables]
    assert all(len(more) > len(rows) for more, rows in zip(mixed, tables))
    pd.testing.assert_frame_equal(verdicts(*mixed), before)

@pytest.mark.parametrize('x', [1, -1, 0])
@pytest.mark.parametrize('key', SCENARIOS)
def test_a_fifth_changes_no_scenario(fifth, key, x):
    rows = SCENARIOS[key](x)
    if key in ON_HISTORIES: rows = rows.assign(size='xxl')
    alone = verdict_of(CLAIMS[key], rows, 'yours')
    for changes in OTHERWISE:
        assert verdict_of(CLAIMS[key], pd.concat([rows, rows_of_a_fifth(rows, **changes)]), 'yours') == alone

def test_a_run_of_nothing_but_a_fifth_is_no_data(fifth):
    rows = rows_of_a_fifth(SCENARIOS['better_up_to_xl'](1))
    assert verdict_of(CLAIMS['better_up_to_xl'], rows, 'yours').says == 'No record of the study scaling.'


# ---------------------------------------------------------------------- intervals

@pytest.mark.parametrize('block', [0., 1., 30.])
def test_intervals_hold_the_truth(block):
    "Five points and three seeds, each of which moves all points; from the table, as a claim sees them."
    random, held, experiments = np.random.default_rng(3), 0, 400
    for _ in range(experiments):
        values = block*random.normal(size=(3, 1)) + random.normal(size=(3, 5))
        rows = [dict(seed=seed, steps=steps, family='fid', label='FID', value=values[seed, steps],
                     low=values[seed, steps] - 1.96, high=values[seed, steps] + 1.96)
                for seed in range(3) for steps in range(5)]
        fid = [claims.at(pd.DataFrame(rows), steps=steps) for steps in (0, 4)]
        low, high = (fid[0] - fid[1]).interval()
        held += low <= 0 <= high
    assert .92 < held/experiments < .98


def test_one_run_borrows_from_the_reference():
    "With the seeds of the reference a lone run decides what it would decide with them; without it, its images alone."
    lone, reference = steps(lambda count: 50 + 10*(count != 8)), steps(lambda count: 50 + 10*(count != 8))
    lone = lone[lone.seed == 0]
    noise = np.random.default_rng(0).normal(0, 8, len(reference))
    reference = reference.assign(source='reference', value=reference.value + noise)
    alone = verdict_of(CLAIMS['eight_steps_best'], lone, 'yours')
    both = verdict_of(CLAIMS['eight_steps_best'], pd.concat([reference, lone]), 'yours')
    assert (alone.verdict, both.verdict) == ('supported', 'inconclusive') and alone.effect == both.effect
    assert 'one seed with the spread of the reference' in both.says and 'of the reference' not in alone.says
    assert both.high - both.low > 5*(alone.high - alone.low)
    other = verdict_of(CLAIMS['eight_steps_best'], pd.concat([reference.assign(data='other data'), lone]), 'yours')
    assert other == alone


@pytest.mark.parametrize('need, wrong', [(all, 'contradicted'), (any, 'supported')])
def test_many_effects_of_nothing_are_rarely_taken_for_something(need, wrong):
    random, experiments = np.random.default_rng(4), 1000
    effects_of = lambda values: [Estimate(value, ((Point({0: value}, 1.), 1.),)) for value in values]
    found = [decide(effects_of(values), need).verdict for values in random.normal(size=(experiments, 12))]
    assert found.count(wrong)/experiments < .05
    alone = [any(value < -1.96 for value in values) for values in random.normal(size=(experiments, 12))]
    assert sum(alone)/experiments > .15 # without the correction


def test_arithmetic_of_estimates():
    def of(text, values, begin=0): # begin: of the seeds
        return Estimate(np.mean(values), ((Point(dict(enumerate(values, begin))), 1.),), 'FID', text)
    a, b, far = of('a 10', [8., 10., 12.]), of('b 4', [3.5, 4., 4.5]), of('b 4', [3.5, 4., 4.5], begin=3)
    assert ((a - 2*b).value, (a - 2*b).text, (a - 2*b).unit) == (2., 'a 10 − 2 × b 4', 'FID')
    assert (a - 2*b).variance == pytest.approx(1/3) and (a - 2*b).dof == 2 # seed by seed: 1, 2, 3
    apart = a - 2*far # Welch
    assert apart.variance == pytest.approx(4/3 + 1/3)
    assert apart.dof == pytest.approx((5/3)**2/((4/3)**2 + (1/3)**2)*2)
    ratio = a/far
    assert ratio.value == 2.5 and ratio.variance == pytest.approx((4/3 + 2.5**2*.25/3)/16)
    assert (a + Estimate(1., ((Point({}), 1.),))).variance is None
    assert (a - claims.exactly(3.)).variance == a.variance and (a - claims.exactly(3.)).seeds == 3
    assert (a - a).variance == 0


# ---------------------------------------------------------------------- the paper's own numbers

@pytest.fixture(scope='module')
def paper(): return long_table(published_records())

PAPER = dict( # verdict, effect
    rfid_falls=('supported', .51),
    rfid_saturates=('supported', 10.79 + 4.03 - 8.34 - 4.54),
    full_usage=('supported', .5),
    fid_falls_then_rises=('supported', 7.1548 - 6.1397),
    llamagen_vq_best=('supported', 8.5408 - 8.4767),
    magvit_poor_on_transformer=('supported', math.log(32.896/9.915/2)),
    mar_not_inferior=('supported', math.log(1.05*8.7525/7.9954)),
    mar_outperforms_somewhere=('supported', 9.5125 - 7.1548),
    gap_to_ar_remains=('contradicted', 6.1397 - 6.8314),
    llama_beats_transformer=('supported', 8.5408 - 6.6765),
    precise_but_less_diverse=('no data', None),
    mar_is_faster=('no data', None),
    better_up_to_xl=('supported', 4.3718 - 3.9442),
    marginal_beyond_xl=('supported', 4.3718 + 3.7199 - 2*3.9442),
    better_throughout_training=('supported', 4.0185 - 3.9031),
    better_with_training=('supported', 4.6997 - 3.7199),
    guidance_best_at_2=('supported', 4.0854 - 4.0185),
    guidance_hurts_beyond_2=('supported', 4.6372 - 4.0185),
    guidance_depends_on_size=('supported', 4.2015 - 3.7199),
    is_rises_with_guidance=('supported', 274.9196 - 255.3847),
    fid_of_3_71=('contradicted', 3.715 - 3.7199),
    xxl_ends_at_300=('supported', None),
    norm_grows_without_both=('no data', None),
    qk_norm_only_mitigates=('no data', None),
    both_norms_bound_it=('no data', None),
    eight_steps_best=('no data', None),
    more_steps_do_not_help=('no data', None),
    fusion_is_convex=('no data', None),
    fusion_best_near_half=('no data', None),
    fusion_saves_time=('no data', None),
    head_is_16_times_larger=('supported', 16.5 - 201.32/12.58),
    head_costs_twice=('no data', None),
    parameters_of_table_2=('supported', None),
    about_100m_each=('contradicted', 200 - 488.376576),
    full_usage_by_lookup_free=('contradicted', None),
    table_1_on_validation_set=('contradicted', .5 + 1.17 - 4.03),
    all_trained_on_imagenet=('contradicted', None),
    maskgit_vq_is_maskgits=('contradicted', None),
    batch_of_256=('contradicted', None),
    fusion_uses_llamagen=('inconclusive', None),
    always_8_steps=('contradicted', None),
    rope_is_2d=('contradicted', None),
    loss_on_hidden_tokens=('contradicted', None),
    class_comes_first=('contradicted', None),
    xxl_has_both_norms=('contradicted', None),
)

@pytest.fixture(scope='module')
def printed_verdicts(paper): return verdicts(paper).query("source == 'paper'").set_index('key')

@pytest.mark.parametrize('key', [key for key, row in CLAIMS.items() if 'paper' in row.judged_on])
def test_published_numbers(printed_verdicts, key):
    found, (expected, effect) = printed_verdicts.loc[key], PAPER[key]
    assert found.verdict == expected, found.says
    if effect is None: assert pd.isna(found.effect), found.says
    else: assert found.effect == pytest.approx(effect, abs=1e-9), found.says


def test_chameleon_is_nearly_level_on_the_transformer(paper):
    "At 200 epochs: behind LlamaGen-VQ at the best scale of each, ahead of it at the scale 3."
    rows = paper[(paper.architecture == TRANSFORMER) & (paper.epoch == 200) & (paper.family == 'fid')]
    fid = rows.pivot(index='cfg', columns='tokenizer', values='value')
    assert fid['chameleon-vq'].min() - fid['llamagen-vq'].min() == pytest.approx(.0641)
    assert fid['chameleon-vq'][3.] < fid['llamagen-vq'][3.]


@pytest.mark.parametrize('key, figure', [
    ('eight_steps_best', 'Figure 10'), ('fusion_is_convex', 'Figure 9'), ('fusion_saves_time', 'Figure 8'),
    ('both_norms_bound_it', 'Figure 5c')])
def test_a_drawing_has_no_numbers(printed_verdicts, key, figure):
    assert 'not extracted' in printed_verdicts.says[key] and figure in printed_verdicts.says[key]


# ---------------------------------------------------------------------- the scorecard

def test_scorecard_has_three_columns_and_says_why(paper):
    reference = SCENARIOS['better_up_to_xl'](1).assign(source='reference')
    points = pd.concat([paper, SCENARIOS['llamagen_vq_best'](-1), reference])
    card = check_claims(points, SCENARIOS['both_norms_bound_it'](1))
    sources, reasons = ['paper', 'reference', 'yours'], ['says_paper', 'says_reference', 'says_yours']
    assert list(card.index) == list(CLAIMS)
    assert card.loc['llamagen_vq_best', sources].tolist() == ['supported', 'no data', 'contradicted']
    assert card.loc['better_up_to_xl', sources].tolist() == ['supported', 'supported', 'no data']
    assert card.loc['both_norms_bound_it', sources].tolist() == ['no data', 'no data', 'supported']
    measured, rest = card[card.kind == 'measured'], card[card.kind.isin(['paper', 'system'])]
    assert set(measured[sources].values.ravel()) <= set(VERDICTS) and (measured[reasons] != '').all(axis=None)
    assert set(rest[['reference', 'yours']].values.ravel()) == {'–'}
    assert (rest.says_paper != '').all() and (rest.command == '').all()
    studies = ('tokenizers', 'paradigms', 'scaling', 'stability', 'steps', 'fusion')
    assert set(measured.command) == {f'papermill nbs/{study}.ipynb' for study in studies}


@pytest.mark.parametrize('ours, verdict', [(60., 'supported'), (69., 'supported'), (72., 'contradicted')])
def test_a_claim_of_our_own_is_judged_as_the_others_are(ours, verdict):
    points = [(dict(size='b', rung=rung, epoch=4., cfg=cfg), dict(fid=fid + 5*(cfg == 1)))
              for rung, fid in (('paper', 100.), ('ours', ours)) for cfg in (1., 2.)]
    row = CLAIMS['ours_is_30_percent_better']
    assert row.judged_on == ('reference', 'yours') and row.command == 'papermill nbs/recipe.ipynb'
    found = verdict_of(row, table('recipe', points), 'yours')
    assert found.verdict == verdict and found.effect == pytest.approx(math.log(.7*100/ours), abs=1e-3), found.says


def test_an_empty_table_is_no_error():
    card = check_claims(long_table([]))
    assert set(card[card.kind == 'measured'][['paper', 'reference', 'yours']].values.ravel()) == {'no data'}


def test_evidence_is_one_profile_one_recipe_one_data_set():
    row, good, bad = CLAIMS['better_up_to_xl'], SCENARIOS['better_up_to_xl'](1), SCENARIOS['better_up_to_xl'](-1)
    elsewhere = [dict(profile='smoke'), dict(recipe='released'), dict(data='photos'), dict(study='steps')]
    mixed = pd.concat([*(bad.assign(**place) for place in elsewhere), good])
    assert verdict_of(row, mixed, 'yours').verdict == 'supported'
    assert verdict_of(row, mixed, 'yours', 'smoke').verdict == 'contradicted'
    assert len(claim_rows(row, mixed, 'yours')) == len(good)
    assert verdict_of(row, good.assign(recipe='released'), 'yours').verdict == 'no data'


def test_rows_that_cannot_be_told_apart_are_an_error():
    row, rows = CLAIMS['better_up_to_xl'], SCENARIOS['better_up_to_xl'](1)
    twice = pd.concat([rows.assign(dropout=0.), rows.assign(dropout=.1)])
    with pytest.raises(ValueError, match='several rows of one seed, which differ in dropout'):
        verdict_of(row, twice, 'yours')
    with pytest.raises(ValueError, match="Did you mean 'yours'?"):
        verdict_of(row, rows, 'your')


def test_a_loss_that_is_no_number():
    bounded, grows = CLAIMS['both_norms_bound_it'], CLAIMS['norm_grows_without_both']
    rows = SCENARIOS['both_norms_bound_it'](1)
    is_lost = (rows.norms == 'both') & (rows.seed == 2)
    lost = verdict_of(bounded, rows.assign(diverged_at=np.where(is_lost, 60, None)), 'yours')
    assert lost.verdict == 'contradicted'
    assert lost.says == 'With both norms the loss stopped being finite in 1 of 3 runs. In the profile mini.'
    nan = pd.concat([rows, rows[rows.norms == 'none'].assign(name='loss', value=None)])
    assert verdict_of(grows, nan, 'yours').says.startswith('Without norms the loss stopped being finite in 3 of 3')
    assert verdict_of(bounded, nan, 'yours').verdict == 'supported'
    few = verdict_of(bounded, rows[rows.step == 100], 'yours')
    assert few.says == "Nothing logged in the second tenth of training with norms 'both'."


def test_only_fid_on_imagenet_can_be_held_against_3_71():
    row, rows = CLAIMS['fid_of_3_71'], SCENARIOS['fid_of_3_71'](1)
    assert verdict_of(row, rows.assign(label='FID-EL0'), 'yours').verdict == 'no data'
    elsewhere = verdict_of(row, rows.assign(data='ImageNet 64 px'), 'yours')
    assert elsewhere.verdict == 'cannot be shown here' and 'these are ImageNet 64 px' in elsewhere.says


def reached(untrained, through, precision):
    "What a setting gives at all: an untrained model, and real images through the tokenizer."
    real = dict(fid=through, precision=precision)
    points = [(dict(part='untrained'), dict(fid=untrained)), (dict(part='through'), real)]
    return table('scaling', points)

@pytest.mark.parametrize('key, within, beyond', [
    ('magvit_poor_on_transformer', (650, 30, .7), (90, 60, .7)),
    ('precise_but_less_diverse', (650, 30, .7), (650, 30, .08)),
])
def test_what_the_setting_cannot_reach_is_not_held_against_a_claim(key, within, beyond):
    row, rows = CLAIMS[key], SCENARIOS[key](-1)
    verdict = lambda *reach: verdict_of(row, pd.concat([rows, reached(*reach)]), 'yours')
    assert verdict(*within).verdict == 'contradicted'
    assert verdict(*beyond).verdict == 'cannot be shown here'
    assert any(f'{number:g}' in verdict(*beyond).says for number in beyond) # says with which number
    other = pd.concat([rows, reached(*beyond).assign(source='reference')]) # of another source: says nothing of this one
    assert verdict_of(row, other, 'yours').verdict == 'contradicted'

def test_classes_are_judged_by_a_judge_where_there_is_one():
    row, rows = CLAIMS['is_rises_with_guidance'], SCENARIOS['is_rises_with_guidance'](1)
    judged = rows[rows.family == 'is'].assign(family='recognition', value=lambda found: -found.value)
    assert verdict_of(row, rows, 'yours').verdict == 'supported'
    assert verdict_of(row, pd.concat([rows, judged]), 'yours').verdict == 'contradicted'


def test_system_claims_follow_the_rows_of_the_library(monkeypatch):
    verdict_of = lambda key: CLAIMS[key].check(None).verdict
    released = dict(rope='2d', class_first=True, qk_norm=True, post_norm=True)
    monkeypatch.setitem(claims.RECIPES, 'released', released)
    for key in ('rope_is_2d', 'class_comes_first', 'xxl_has_both_norms'): assert verdict_of(key) == 'supported'
    millions = dict(b=111., l=343., xl=775., xxl=1500.)
    monkeypatch.setattr(claims, 'counted', lambda kind, size='b', tokenizer='': millions[size])
    assert verdict_of('parameters_of_table_2') == 'contradicted'
    assert verdict_of('about_100m_each') == 'supported'
    lookup_free = {name: claims.TOKENIZERS['open-magvit2-vq'] for name in PAPER_TOKENIZERS}
    monkeypatch.setattr(claims, 'TOKENIZERS', lookup_free)
    assert verdict_of('full_usage_by_lookup_free') == 'supported'


# ---------------------------------------------------------------------- where the paper disagrees with itself

@pytest.fixture(scope='module')
def odd(): return paper_inconsistencies()

def test_what_disagrees(odd):
    def has(kind, *texts):
        rows = odd[odd.kind == kind]
        return any(all(text in said for text in texts) for said in rows.stated + ' ' + rows.found)
    assert has('two tables', '6.9971', '7.4975') and has('two tables', '244.6256', '244.6756')
    assert (odd.kind == 'two tables').sum() == 2
    assert has('same digits', '5.6713', 'epoch 300', 'epoch 400') and has('same digits', '3.8788', 'CFG 3.0', 'CFG 2.5')
    assert has('same digits', '285.9541', '305.9541') and has('same digits', '326.2475', '296.2475')
    assert has('text on sizes', '3.71 FID', '3.7199')
    at_2 = odd[odd.stated.str.contains('best FID at CFG = 2.0')]
    assert [re.search(r'epoch (\d+)', found)[1] for found in at_2.found] == ['100', '200', '300']
    assert has('text on sizes', 'consistently', '4.0522', '4.0185')
    assert has('text on tokenizers', 'superior choice', 'chameleon-vq', TRANSFORMER, 'CFG 3.0', '8.5408', '8.9188')
    assert has('text on tokenizers', 'not inferior', 'epoch 50', '12.5828 against 9.8846')
    assert has('text on tokenizers', 'gap remains', 'epoch 200')
    assert has('worse with training', '5.2318', '5.5923')


def test_every_number_found_is_printed_in_a_table(odd):
    columns = [published(name)[metric] for name in ('table4', 'table6', 'table7') for metric in ('fid', 'is')]
    cells = {str(value) for column in columns for value in column}
    cells |= {f'{value:g}' for column in columns for value in column if value == round(value, 4)}
    for row in odd.itertuples():
        for number in re.findall(r'\d+\.\d{3,}', f'{row.stated} {row.found}'): assert number in cells


def repaired_table_7(rows):
    "FID falls with size, with training and towards scale 2, each number once; so for IS."
    def fid(size, epoch, cfg):
        at_the_end = {'B': 9., 'L': 7., 'XL': 5., 'XXL': 3.71}[size]
        to_come = 0 if (size, epoch) == ('XXL', 300) else (400 - epoch)*.002
        return at_the_end + to_come + abs(cfg - 2)*.31 + .003*(cfg > 2)
    fids = [fid(*place) for place in zip(rows['size'], rows.epochs, rows.cfg)]
    scores = [100 + epoch*.37 + cfg*11.1173 + i*1e-4 for i, (epoch, cfg) in enumerate(zip(rows.epochs, rows.cfg))]
    return rows.assign(fid=fids, **{'is': scores})

def test_repaired_tables_have_nothing_to_report(monkeypatch):
    "Each search finds nothing where there is nothing."
    table_6, table_7 = published('table6'), repaired_table_7(published('table7'))
    of_b = table_6[(table_6.tokenizer == 'LlamaGen-VQ') & (table_6.architecture == LLAMA)]
    agreed = table_7[table_7['size'] == 'B'].merge(of_b, on=['epochs', 'cfg'], suffixes=('', '_6'))[[*table_6]]
    monkeypatch.setattr(claims, 'published', dict(table4=published('table4'), table6=agreed, table7=table_7).get)
    assert list(claims.text_on_sizes()) == []
    assert list(claims.two_tables()) == []
    assert not [stated for stated, _ in claims.same_digits() if stated.startswith('Table 7: FID')]
