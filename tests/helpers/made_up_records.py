"Made-up runs of every study, in the form of real ones: for figures and reports before anything is trained."
import numpy as np
from PIL import Image

from maskgil.profiles import PROFILES, settings_of
from maskgil.records import Record, save_record

SIZES = ('b', 'l', 'xl', 'xxl')
TOKENIZERS = {'maskgit-vq': 64, 'chameleon-vq': 512, 'llamagen-vq': 1024, 'open-magvit2-vq': 16384} # codes
ARCHITECTURES = {'causal LLaMA': 'AR', 'bidirectional Transformer': 'MAR', 'bidirectional LLaMA': 'MAR'}
CHANGES = ('paper', 'class last', '1d rope', 'all tokens', 'mask logit', 'ramped guidance', 'released')
MINI, FLOOR = PROFILES['mini'], dict(fid_el0=dict(value=42., low=40., high=44., n=400, label='FID-EL0'))


def metric(value, label='FID-EL0', share=.04, n=400): return dict(value=float(value), low=float(value*(1 - share)), high=float(value*(1 + 1.2*share)), n=n, label=label)

def drawn(fid, n=400): # what an evaluation of images with this FID says
    return dict(fid_el0=metric(fid, n=n), kid_el0=metric(fid/150 - .2, 'KID-EL0'), is_el0=metric(900/fid + 8, 'IS-EL0'),
                precision_el0=metric(20/fid, 'precision-EL0'), recall_el0=metric(9/fid, 'recall-EL0'))

def curve(end, noise, cfg=MINI.cfg): # over epochs and guidance; `end` is the lowest FID
    return [dict(epoch=e, cfg=c, metrics=drawn(end*(1 + .5*(1 - e/MINI.epochs[-1])) + 12*(c - 2)**2 + noise())) for e in MINI.epochs for c in cfg]


def scaling(noise):
    for i, size in enumerate(SIZES): yield dict(size=size, recipe='paper'), dict(curve=curve((537, 532, 548, 475)[i], noise), untrained=drawn(900), floor=FLOOR, parameters=10**6*(i + 1), samples='sheet')

def tokenizers(noise):
    for i, (name, codes) in enumerate(TOKENIZERS.items()):
        yield dict(tokenizer=name, codebook_size=codes, stage='reconstruction'), dict(rfid_el0=metric(90 - 20*i + noise(), 'rFID-EL0'), psnr=metric(18 + i, 'PSNR (dB)'),
            codebook_usage_pct=dict(value=(44.3, 60., 100., 99.)[i], low=None, high=None, n=400, label='codebook usage (%)'), samples='sheet')
        for j, (architecture, paradigm) in enumerate(ARCHITECTURES.items()):
            yield (dict(tokenizer=name, paradigm=paradigm, architecture=architecture, stage='generation', recipe='paper'),
                   dict(curve=curve((430, 410, 400, 402 if j != 1 else 900)[i] + (20, 45, 0)[j], noise), untrained=drawn(950), floor=FLOOR))
    for name, codes in zip(TOKENIZERS, (1024, 8192, 16384, 262144)):
        for head in ('plain', 'sliced'):
            yield dict(stage='head', tokenizer=name, codebook_size=codes, head=head), dict(head_parameters=metric(768*codes, 'parameters', 0), head_seconds=metric(13*codes/16384*(1.2 if head == 'sliced' else 1), 'seconds'),
                head_memory_gib=metric(3.1*codes/16384 if head == 'plain' else .3*(codes/16384)**.5, 'GiB', 0))

def stability(noise):
    for norms, rate in dict(none=9e-4, qk=4e-4, post=1e-5, both=0.).items():
        stop = 4100 + int(100*noise()) if norms == 'none' else None
        steps = range(0, min(stop or 6001, 6001), 50)
        yield (dict(size='xxl', norms=norms), dict(diverged_at=stop, output_norm=metric(20*np.exp(rate*(stop or 6000)), 'output norm, last tenth'), history=[dict(step=s, loss=6 - s/3000 + .01*noise(), gradient_norm=1. + .1*noise(),
               output_norm=20*np.exp(rate*s) + .3*noise()) for s in steps]))

def steps(noise):
    for size in ('b', 'xl'):
        one = lambda s, order='confidence', n=400, fid=0.: dict(steps=s, order=order, schedule='arccos', images=n, cfg=2.,
            metrics=drawn((420 if size == 'b' else 400) + 200/s + .8*s + 9000*(1/n - 1/400) + fid + noise(), n) | dict(seconds_per_image=metric(.002*s, 'seconds per image')))
        yield dict(size=size, recipe='paper'), dict(curve=[*map(one, (1, 2, 4, 8, 16, 32, 64)), *(one(8, o, fid=f) for o, f in dict(random=40, halton=6, raster=90).items()), *(one(8, n=n) for n in (100, 200, 800))], floor=FLOOR)

def fusion(noise):
    one = lambda k: dict(ar_tokens=k, ar_share=k/64, mar_steps=8 if k < 64 else 0, cfg=2., metrics=drawn(400 + .06*(k - 32)**2 + noise()) | dict(seconds_per_image=metric(.01 + .004*k, 'seconds per image')))
    yield dict(size='b', recipe='paper'), dict(curve=[one(k) for k in (0, 16, 32, 48, 64)], floor=FLOOR, samples='sheet')

def paradigms(noise):
    for i, size in enumerate(SIZES):
        for system in ('AR', 'MAR'):
            for batch in (1, 2, 4, 8, 16, 32, 64, 128):
                seconds = (1 + i)*((.40/batch + .003) if system == 'AR' else (.05/batch + .009))*(1 + .02*noise())
                yield dict(size=size, system=system, batch=batch), dict(seconds_per_image=metric(seconds, 'seconds per image', .08), images_per_second=metric(1/seconds, 'images per second', .08),
                    flops_per_image=metric(2e9*(i + 1)*(1 if system == 'AR' else 8), 'FLOP per image', 0), forward_passes=metric(64 if system == 'AR' else 8, 'forward passes', 0))

def departures(noise):
    for i, change in enumerate(CHANGES): yield dict(size='b', change=change), dict(curve=curve((430, 436, 470, 455, 430.5, 415, 520)[i], noise), untrained=drawn(900), floor=FLOOR)

def protocol(noise):
    rules = {'JPEG, quality 75': ('file', 30.), 'each image stretched min to max': ('file', 9.), 'classes drawn at random': ('set', .3), 'guidance ramps up': ('sampler', -12.)}
    change = lambda v: dict(value=v, low=v - 1., high=v + 1., n=400, label='change of FID-EL0')
    yield dict(checkpoint='made-up'), dict(fid_el0=metric(420), floor=FLOOR, curve=[dict(rule=r, kind=k, who='somebody', metrics=dict(fid_change_el0=change(v + .1*noise()))) for r, (k, v) in rules.items()])

def text_to_image(noise):
    found = lambda share, n=300: {f'found_{q}': dict(value=share + d, low=share + d - .05, high=share + d + .05, n=n, label=f'{q} found among 10') for q, d in dict(caption=.1, emoji=0., background=.2).items()}
    told = [dict(stage=2, told=t, metrics=found(v), **dict(cfg=2.) if t != 'real' else {}) for t, v in dict(text=.5, nothing=.1, real=.7, seen=.55).items()] + [dict(stage=2, told='class', cfg=2., metrics=found(.2))]
    held = [dict(row=row, label=f'{h} x {w}', caption=f'a picture of {h} x {w} pixels on a blue background' if row % 2 else '', box=[i*72, top, w, h])
            for row, (h, w, top) in enumerate(((24, 40, 0), (32, 72, 24), (40, 24, 56), (72, 32, 96))) for i in range(4)]
    shapes = [dict(stage=s, pixels=p, cfg=2., metrics={k: v for k, v in drawn(400 + 10*noise(), 100).items() if k[:3] in ('fid', 'kid')}) for s, p in ((1, '32x32'), (2, '32x72'), (2, '48x48'))]
    fusion = [dict(stage=2, told='text', cfg=2., ar_share=s, metrics=found(.5 + .1*s) | dict(seconds_per_image=metric(.01 + .1*s, 'seconds per image'))) for s in (.25, .5, 1.)]
    yield dict(size='xl', encoder='minilm'), dict(curve=told + shapes + fusion, floor=FLOOR, samples='sheet', stages='sheet', fusion='sheet', samples_held=held, stages_held=held, fusion_held=held)

STUDIES = dict(text_to_image=text_to_image, scaling=scaling, tokenizers=tokenizers, stability=stability, steps=steps, fusion=fusion, paradigms=paradigms, departures=departures, protocol=protocol)


def made_up(source='yours', studies=STUDIES, seeds=(0, 1, 2), basis='simulated'):
    "Records of `studies`, as if they had been read."
    found = []
    for study in studies:
        for seed in seeds:
            rng = np.random.default_rng([seed, len(source), len(study)])
            found += [Record(study, 'mini', p, m, seed, basis, f'{study}-{i}-{seed}', settings_of(MINI), source=source, ended=f'2026-01-0{seed + 1}T00:00:00+00:00', dtype='bfloat16',
                             wall_seconds=90., peak_memory_gib=1.5, tokens_seen=10**7, training_flops=3e14) for i, (p, m) in enumerate(STUDIES[study](rng.standard_normal))]
    return found

def write(folder, **options):
    "Save them below a folder, each sheet of samples as a file beside its record."
    saved = made_up(**options)
    for r in saved:
        for name in [k for k, v in r.metrics.items() if v == 'sheet']:
            r.metrics[name] = f'{r.key}-{name}.png'
            (folder/r.study).mkdir(parents=True, exist_ok=True)
            sheet(dict(fusion=len(r.metrics.get('curve', [])), tokenizers=2).get(r.study, 9), r.seed).save(folder/r.study/r.metrics[name])
        save_record(r, folder/r.study)
    return saved

def sheet(rows, seed=0, columns=12, side=32):
    "A picture of coloured discs, a row for each class."
    rng, (y, x) = np.random.default_rng(seed), np.mgrid[:side, :side] - side/2
    disc = ((x**2 + y**2) < (side*.38)**2)[..., None]
    tiles = [np.where(disc, rng.integers(40, 250, 3), 255) for _ in range(rows*columns)]
    return Image.fromarray(np.vstack([np.hstack(tiles[i*columns:(i + 1)*columns]) for i in range(rows)]).astype('uint8')).resize((2*side*columns, 2*side*rows), 0)
