"""Made-up runs of every study, in the form of real ones: for figures and reports before anything is trained.

A function for each study yields the parameters and the metrics of its records. It takes a source of noise, a function
that draws one standard normal number a call.
"""
import math

import numpy as np
from PIL import Image

from maskgil.profiles import PROFILES, settings
from maskgil.recipes import RUNGS, ladder
from maskgil.records import Record, save_record

MINI = PROFILES['mini']
EPOCHS, SCALES = MINI.training.epochs, MINI.evaluation.cfg

SIZES = ('b', 'l', 'xl', 'xxl')
CODES = {'maskgit-vq': 64, 'chameleon-vq': 512, 'llamagen-vq': 1024, 'open-magvit2-vq': 16384} # of small tokenizers
PUBLISHED_CODES = (1024, 8192, 16384, 262144)
ARCHITECTURES = {'causal LLaMA': 'AR', 'bidirectional Transformer': 'MAR', 'bidirectional LLaMA': 'MAR'}
CHANGES = ('paper', 'class last', '1d rope', 'all tokens', 'mask logit', 'ramped guidance', 'released')
FLOOR = dict(fid_el0=dict(value=42., low=40., high=44., n=400, label='FID-EL0'))


def metric(value, label='FID-EL0', share=.04, n=400): # share: of the value, that the interval reaches down
    return dict(value=float(value), low=float(value*(1 - share)), high=float(value*(1 + 1.2*share)), n=n, label=label)

def around(value, reach, label, n=400): # an interval of this reach on both sides
    return dict(value=value, low=value - reach, high=value + reach, n=n, label=label)

def drawn(fid, n=400):
    "What an evaluation of images with this FID says."
    return dict(
        fid_el0=metric(fid, n=n), kid_el0=metric(fid/150 - .2, 'KID-EL0'), is_el0=metric(900/fid + 8, 'IS-EL0'),
        precision_el0=metric(20/fid, 'precision-EL0'), recall_el0=metric(9/fid, 'recall-EL0'))

def curve(end, noise):
    "A point for each epoch and guidance scale; `end` is the lowest FID."
    fid = lambda epoch, scale: end*(1 + .5*(1 - epoch/EPOCHS[-1])) + 12*(scale - 2)**2 + noise()
    return [dict(epoch=epoch, cfg=scale, metrics=drawn(fid(epoch, scale))) for epoch in EPOCHS for scale in SCALES]


def scaling(noise):
    for i, size in enumerate(SIZES):
        points = curve((537, 532, 548, 475)[i], noise)
        metrics = dict(untrained=drawn(900), floor=FLOOR, parameters=10**6*(i + 1), samples='sheet')
        yield dict(size=size, recipe='paper'), dict(curve=points) | metrics


def tokenizers(noise):
    for i, (name, codes) in enumerate(CODES.items()):
        yield dict(tokenizer=name, codebook_size=codes, stage='reconstruction'), reconstructed(i, noise)
        for j, (architecture, paradigm) in enumerate(ARCHITECTURES.items()):
            base = 900 if (name, j) == ('open-magvit2-vq', 1) else (430, 410, 400, 402)[i] # poor on the Transformer
            place = dict(tokenizer=name, paradigm=paradigm, architecture=architecture, stage='generation')
            points = curve(base + (20, 45, 0)[j], noise)
            yield place | dict(recipe='paper'), dict(curve=points, untrained=drawn(950), floor=FLOOR)
    for name, codes in zip(CODES, PUBLISHED_CODES):
        for head in ('plain', 'sliced'):
            yield dict(stage='head', tokenizer=name, codebook_size=codes, head=head), head_costs(codes, head)

def reconstructed(i, noise): # i: the place of the tokenizer
    usage = dict(value=(44.3, 60., 100., 99.)[i], low=None, high=None, n=400, label='codebook usage (%)')
    return dict(rfid_el0=metric(90 - 20*i + noise(), 'rFID-EL0'), psnr=metric(18 + i, 'PSNR (dB)'),
                codebook_usage_pct=usage, samples='sheet')

def head_costs(codes, head):
    slower, gib = (1.2, .3*(codes/16384)**.5) if head == 'sliced' else (1, 3.1*codes/16384)
    return dict(
        head_parameters=metric(768*codes, 'parameters', 0),
        head_seconds=metric(13*codes/16384*slower, 'seconds'),
        head_memory_gib=metric(gib, 'GiB', 0))


def stability(noise):
    for norms, rate in dict(none=9e-4, qk=4e-4, post=1e-5, both=0.).items():
        stop = 4100 + int(100*noise()) if norms == 'none' else None # where it diverges
        last = metric(20*np.exp(rate*(stop or 6000)), 'output norm, last tenth')
        history = [logged(step, rate, noise) for step in range(0, min(stop or 6001, 6001), 50)]
        yield dict(size='xxl', norms=norms), dict(diverged_at=stop, output_norm=last, history=history)

def logged(step, rate, noise):
    return dict(step=step, loss=6 - step/3000 + .01*noise(), gradient_norm=1. + .1*noise(),
                output_norm=20*np.exp(rate*step) + .3*noise())


def steps(noise):
    for size, best in dict(b=420, xl=400).items():
        def point(steps, order='confidence', images=400, worse=0.):
            fid = best + 200/steps + .8*steps + 9000*(1/images - 1/400) + worse + noise()
            metrics = drawn(fid, images) | dict(seconds_per_image=metric(.002*steps, 'seconds per image'))
            return dict(steps=steps, order=order, schedule='arccos', images=images, cfg=2., metrics=metrics)
        points = [point(steps) for steps in (1, 2, 4, 8, 16, 32, 64)]
        points += [point(8, order, worse=worse) for order, worse in dict(random=40, halton=6, raster=90).items()]
        points += [point(8, images=images) for images in (100, 200, 800)]
        yield dict(size=size, recipe='paper'), dict(curve=points, floor=FLOOR)


def fusion(noise):
    def point(tokens): # of 64, that AR draws
        metrics = drawn(400 + .06*(tokens - 32)**2 + noise())
        metrics |= dict(seconds_per_image=metric(.01 + .004*tokens, 'seconds per image'))
        return dict(ar_tokens=tokens, ar_share=tokens/64, mar_steps=8 if tokens < 64 else 0, cfg=2., metrics=metrics)
    points = [point(tokens) for tokens in (0, 16, 32, 48, 64)]
    yield dict(size='b', recipe='paper'), dict(curve=points, floor=FLOOR, samples='sheet')


def paradigms(noise):
    for i, size in enumerate(SIZES):
        for system in ('AR', 'MAR'):
            for batch in (1, 2, 4, 8, 16, 32, 64, 128):
                per_image = .40/batch + .003 if system == 'AR' else .05/batch + .009
                seconds = (1 + i)*per_image*(1 + .02*noise())
                flops, passes = (2e9*(i + 1), 64) if system == 'AR' else (16e9*(i + 1), 8)
                yield dict(size=size, system=system, batch=batch), dict(
                    seconds_per_image=metric(seconds, 'seconds per image', .08),
                    images_per_second=metric(1/seconds, 'images per second', .08),
                    flops_per_image=metric(flops, 'FLOP per image', 0),
                    forward_passes=metric(passes, 'forward passes', 0))


def departures(noise):
    for change, fid in zip(CHANGES, (430, 436, 470, 455, 430.5, 415, 520)):
        yield dict(size='b', change=change), dict(curve=curve(fid, noise), untrained=drawn(900), floor=FLOOR)


def recipe(noise):
    worth = {rung: -.02*(1 + i) for i, rung in enumerate(RUNGS)} # of log FID
    for name, rungs in ladder().items():
        fid = 430 * math.exp(sum(worth[rung] for rung in rungs))
        yield dict(size='b', rung=name), dict(curve=curve(fid, noise), floor=FLOOR)


def protocol(noise):
    rules = {
        'JPEG, quality 75':                 ('file', 30.),
        'each image stretched min to max':  ('file', 9.),
        'classes drawn at random':          ('set', .3),
        'guidance ramps up':                ('sampler', -12.),
    }
    def point(rule, kind, change):
        metrics = dict(fid_change_el0=around(change + .1*noise(), 1., 'change of FID-EL0'))
        return dict(rule=rule, kind=kind, who='somebody', metrics=metrics)
    points = [point(rule, kind, change) for rule, (kind, change) in rules.items()]
    yield dict(checkpoint='made-up'), dict(fid_el0=metric(420), floor=FLOOR, curve=points)


def text_to_image(noise):
    shares = {'text': .5, 'nothing': .1, 'real': .7, 'seen': .55, 'class': .2}
    scale = lambda name: {} if name == 'real' else dict(cfg=2.) # real pictures are not drawn
    told = [dict(stage=2, told=name, metrics=found(share)) | scale(name) for name, share in shares.items()]
    shapes = [dict(stage=stage, pixels=pixels, cfg=2., metrics=distances(400 + 10*noise()))
              for stage, pixels in ((1, '32x32'), (2, '32x72'), (2, '48x48'))]
    timed = lambda share: found(.5 + .1*share) | dict(seconds_per_image=metric(.01 + .1*share, 'seconds per image'))
    fusion = [dict(stage=2, told='text', cfg=2., ar_share=share, metrics=timed(share)) for share in (.25, .5, 1.)]
    sheets = dict(samples='sheet', stages='sheet', fusion='sheet')
    held = {f'{name}_held': pictures() for name in sheets}
    yield dict(size='xl', encoder='minilm'), dict(curve=told + shapes + fusion, floor=FLOOR) | sheets | held

def found(share): # how often the judge finds what it looks for
    easier = dict(caption=.1, emoji=0., background=.2)
    metric_of = lambda what: around(share + easier[what], .05, f'{what} found among 10', n=300)
    return {f'found_{what}': metric_of(what) for what in easier}

def distances(fid):
    return {name: value for name, value in drawn(fid, 100).items() if name[:3] in ('fid', 'kid')}

def pictures(): # where each one of a sheet lies: x, y, width, height
    shapes = ((24, 40, 0), (32, 72, 24), (40, 24, 56), (72, 32, 96)) # height, width, top
    caption = lambda row, h, w: f'a picture of {h} x {w} pixels on a blue background' if row % 2 else ''
    return [dict(row=row, label=f'{h} x {w}', caption=caption(row, h, w), box=[column*72, top, w, h])
            for row, (h, w, top) in enumerate(shapes) for column in range(4)]


STUDIES = dict(
    text_to_image=text_to_image, scaling=scaling, tokenizers=tokenizers, stability=stability, steps=steps,
    fusion=fusion, paradigms=paradigms, departures=departures, recipe=recipe,
    protocol=protocol)
COSTS = dict(dtype='bfloat16', wall_seconds=90., peak_memory_gib=1.5, tokens_seen=10**7, training_flops=3e14)

def made_up(source='yours', studies=STUDIES, seeds=(0, 1, 2), basis='simulated'):
    "Records of `studies`, as if they had been read."
    records = []
    for study in studies:
        for seed in seeds:
            noise = np.random.default_rng([seed, len(source), len(study)]).standard_normal
            for i, (parameters, metrics) in enumerate(STUDIES[study](noise)):
                records.append(Record(
                    study, 'mini', parameters, metrics, seed, basis, f'{study}-{i}-{seed}', settings(MINI),
                    source=source, ended=f'2026-01-0{seed + 1}T00:00:00+00:00', **COSTS))
    return records


def write(folder, **options):
    "Save them below a folder, each sheet of samples as a file beside its record."
    saved = made_up(**options)
    for record in saved:
        (folder/record.study).mkdir(parents=True, exist_ok=True)
        for name in [name for name, value in record.metrics.items() if value == 'sheet']:
            rows = dict(fusion=len(record.metrics.get('curve', [])), tokenizers=2).get(record.study, 9)
            record.metrics[name] = f'{record.key}-{name}.png'
            sheet(rows, record.seed).save(folder/record.study/record.metrics[name])
        save_record(record, folder/record.study)
    return saved

def sheet(rows, seed=0, columns=12, side=32):
    "A picture of coloured discs, a row for each class."
    rng, (y, x) = np.random.default_rng(seed), np.mgrid[:side, :side] - side/2
    disc = ((x**2 + y**2) < (side*.38)**2)[..., None]
    tiles = [np.where(disc, rng.integers(40, 250, 3), 255) for _ in range(rows*columns)]
    pixels = np.vstack([np.hstack(tiles[row*columns:(row + 1)*columns]) for row in range(rows)]).astype('uint8')
    return Image.fromarray(pixels).resize((2*side*columns, 2*side*rows), 0)
