"Studies, metrics and records: what is refused before it is used, and what is never lost or mixed up."
import dataclasses, json, os, re, shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from clock import at_most

from maskgil import bench as bench_module, records as records_module, refusals
from maskgil.bench import Bench, check_real_images, measure, published_file
from maskgil.checks import ParameterError
from maskgil.claims import CLAIMS, NoData, check_claims, decide, estimate, exactly, verdict_of
from maskgil.core import DamagedFile, read_json, write_json
from maskgil.evaluation import (
    SampleSet, check_drawn, check_sampler, check_target, draw_blocks, read_features, write_npz,
)
from maskgil.features import Features, extract
from maskgil.findings import Evidence, gather_evidence, lost_sentence, mixed_sentence, protocol_table, with_caveats
from maskgil.metrics import (
    SHARE, Reference, evaluate, frechet_distance, images_read, interval, load_statistics, psnr, reconstruct,
    repeated_images, said_images,
)
from maskgil.models import load_model
from maskgil.profiles import PROFILES, RANGES, check_numbers, override, settings, wrong_settings
from maskgil.records import (
    Record, latest, moment, once, promote, read_record, record_file, record_path, records, run_cell, save_record,
    wrong_files,
)
from maskgil.studies import STUDIES, Cell, content_of, defaults, files_of, given_settings, rows_of
from maskgil.tables import compare, long_table
from maskgil.tokenizers import load_tokenizer

SMOKE, MINI, PAPER = (PROFILES[name] for name in ('smoke', 'mini', 'paper'))


def metric(value, **more): return dict(value=value, low=None, high=None, n=100, label='FID-EL0') | more
def record_of(key='0123456789abcdef', metrics=None, **fields):
    return Record('demo', 'mini', fields.pop('parameters', dict(size='b')), metrics or dict(fid_el0=metric(9.)), 0,
                  key=key, **fields)
def run(function=lambda folder: dict(fid_el0=metric(9.)), **options):
    return run_cell('demo', MINI, dict(size='b'), function, device='cpu', **options)


# --- values, before anything else ---

@pytest.mark.parametrize('setting, values', {
    'evaluation.steps': (-1, 8.5, '8', True, 10**9, float('nan')),
    'evaluation.images': (1, 4, -64, 2.5),
    'evaluation.cfg': ((-1.,), (float('inf'),), (2., 2.), 2.5, ('a',)),
    'training.epochs': ((0,), (4, 2), (2, 2), (1.5,), 7, ((1,),)),
    'training.learning_rate': (-1e-3, float('nan'), 100., '1e-4'),
    'training.dropout': (1., -.1), 'training.ema': (1., 2),
    'training.batch_size': (-3, 1.), 'data.resolution': (7, -32, 32.), 'data.copies': (-1,),
    'evaluation.step_grid': ((0, 4), (4, 4), (-1,)), 'evaluation.sample_counts': ((4,), (100, 100)),
    'evaluation.head': ((1,), (1, 2, 3), (1, 0)), 'text.budgets': ((1, 2, 3), (1, -1)), 'text.max_ratio': (.5,),
    'evaluation.extractor': (3,), 'evaluation.balanced': (1, 'yes'), 'text.vocabulary': ((('a',),), (('a', -1),), 'a'),
}.items())
def test_a_setting_has_a_type_and_a_range(setting, values):
    for value in values:
        with pytest.raises(ParameterError) as refused: override(MINI, {setting: value})
        assert setting in str(refused.value) and '\n' not in str(refused.value)
        with pytest.raises(ParameterError, match='^a_name is '): override(MINI, {setting: value}, {setting: 'a_name'})


def test_every_number_of_a_profile_has_a_range():
    flat = {f'{group}.{name}': value for group in ('data', 'tokenizer', 'training', 'evaluation', 'text')
            for name, value in vars(getattr(PAPER, group)).items()}
    numbers = {name for name, value in flat.items() if isinstance(value, (int, float)) and not isinstance(value, bool)
               or isinstance(value, tuple) and name != 'text.vocabulary'}
    assert numbers == set(RANGES)
    assert all(wrong_settings(profile) == [] for profile in PROFILES.values())


def test_what_was_right_is_still_right():
    given = {'evaluation.images': 20, 'evaluation.cfg': [1, 2.5], 'training.epochs': [3], 'data.limit': 0}
    changed = override(MINI, given)
    assert changed.evaluation.images == 20 and changed.evaluation.cfg == (1, 2.5) and changed.data.limit == 0
    assert override(MINI, {'evaluation.steps': np.int64(4)}).evaluation.steps == 4
    off = override(MINI, {'training.ema': 0., 'training.warmup_steps': 0, 'evaluation.judged': False})
    assert (off.training.ema, off.training.warmup_steps, off.evaluation.judged) == (0., 0, False)


def test_a_zero_among_a_notebooks_parameters_is_the_profiles():
    for study in STUDIES.values():
        p = defaults(study.name, profile='smoke')
        assert given_settings(study.settings, p) == {}
        assert study.profile(p) == study.at_stage(study.trained_with(SMOKE), p)
    p = defaults('scaling', profile='smoke', eval_images=20, steps=0)
    assert given_settings(STUDIES['scaling'].settings, p) == {'evaluation.images': 20}


@pytest.mark.parametrize('slip', [dict(seed=-1), dict(seed=2**63), dict(seed=.5), dict(eval_images=4),
                                  dict(steps=[4, 0]), dict(epochs=[-2]), dict(cfg=float('inf')), dict(batches=[0]),
                                  dict(learning_rate=-1.)])
def test_numbers_of_a_notebook_are_looked_at_without_torch(slip):
    with pytest.raises(ParameterError, match=f'^{next(iter(slip))} is '): check_numbers(slip)


@pytest.mark.parametrize('study, given, said', [
    ('scaling', dict(eval_images=3), 'eval_images is 3'), ('scaling', dict(steps=-1), 'steps is -1'),
    ('scaling', dict(epochs=[0]), r'epochs is \[0\]'), ('scaling', dict(epochs=[4, 2]), 'larger than the one before'),
    ('scaling', dict(seed=2**63 - 1), 'seed is 9'), ('scaling', dict(seed=-1), 'seed is -1'),
    ('departures', dict(cfg=[2., 2.]), 'no two alike'), ('steps', dict(steps=[0, 4]), r'steps is \[0, 4\]'),
    ('stability', dict(learning_rate=-1.), 'learning_rate is -1'),
    ('paradigms', dict(batches=[0]), r'batches is \[0\]'),
    ('tokenizers', dict(eval_images=2), 'eval_images is 2'), ('fusion', dict(cfg=-2.), 'cfg is -2'),
    ('protocol', dict(checkpoint='/nowhere'), 'no saved pipeline in'),
    ('text_to_image', dict(stage_images=[5, 5]), 'stage 1 has batches of'),
    ('text_to_image', dict(stage_images=[500]), r'stage_images is \[500\]'),
    ('text_to_image', dict(encoder='minilmm'), 'minilmm'),
])
def test_a_study_refuses_before_its_first_step(study, given, said, clean_cache, monkeypatch):
    def never(*args, **options): raise AssertionError('something was made')
    for name in ('trained_tokenizer', 'encoded_tokens', 'open_images', 'fit_on_all'):
        monkeypatch.setattr(bench_module, name, never)
    p = defaults(study, profile='smoke', **given)
    with at_most(20), pytest.raises((ValueError, OSError), match=said) as refused: STUDIES[study].profile(p)
    assert '\n' not in str(refused.value)
    assert not list(clean_cache.rglob('*.safetensors')) if clean_cache.exists() else True


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(ParameterError) as refused:
        STUDIES['scaling'].profile(defaults('scaling', profile='smoke', eval_images=3, steps=-2, epochs=[0]))
    assert all(f'{name} is ' in str(refused.value) for name in ('eval_images', 'steps', 'epochs'))


def test_a_plan_is_made_anywhere_and_says_what_is_missing(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv('MASKGIL_CHECKPOINTS', str(tmp_path/'none'))
    p = defaults('scaling', profile='paper', dry_run=True)
    assert STUDIES['scaling'].profile(p).name == 'paper'
    said = capsys.readouterr().out
    assert "before it can run here: data is 'imagenet'" in said and 'no file llamagen-vq' in said
    p.dry_run = False
    with pytest.raises(ParameterError, match="data is 'imagenet', and there is no"): STUDIES['scaling'].profile(p)
    p.run = False # a look at the records that are there
    assert STUDIES['scaling'].profile(p).name == 'paper'
    p.dry_run, p.steps = True, -1
    with pytest.raises(ParameterError, match='steps is -1'): STUDIES['scaling'].profile(p)


def test_folders_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path/'file').write_text('')
    monkeypatch.setenv('MASKGIL_RESULTS', str(tmp_path/'file'/'results'))
    with pytest.raises(ParameterError, match='cannot be written .*MASKGIL_RESULTS'):
        STUDIES['scaling'].profile(defaults('scaling', profile='smoke'))
    monkeypatch.setenv('MASKGIL_RESULTS', str(tmp_path/'results'))
    monkeypatch.setenv('MASKGIL_CACHE', str(tmp_path/'file'/'cache'))
    with pytest.raises(ParameterError, match='cannot be written .*MASKGIL_CACHE'):
        STUDIES['scaling'].profile(defaults('scaling', profile='smoke'))


def test_a_full_disk_and_a_missing_package(monkeypatch):
    cells = [Cell({}, {}, 'xxl')]
    monkeypatch.setattr(refusals.shutil, 'disk_usage', lambda path: SimpleNamespace(free=10**6))
    assert 'GiB are free' in refusals.wrong_disk(PAPER, cells)
    assert refusals.wrong_disk(PAPER, [dataclasses.replace(cells[0], steps=0)]) == '' # trains nothing
    found = refusals.importlib.util.find_spec
    without = lambda name: None if name == 'torch_fidelity' else found(name)
    monkeypatch.setattr(refusals.importlib.util, 'find_spec', without)
    assert refusals.missing_packages(MINI, ['metrics'], []) == [
        'the package torch-fidelity is missing, for the Inception Score: pip install torch-fidelity']
    assert refusals.missing_packages(MINI, ['training'], []) == []


def test_gpus_that_are_too_small(monkeypatch):
    monkeypatch.setattr(refusals, 'pick_device', lambda *args: torch.device('cuda'))
    monkeypatch.setattr(refusals, 'pick_dtype', lambda *args: torch.bfloat16)
    monkeypatch.setattr(refusals, 'this_machine', lambda: dataclasses.replace(refusals_machine(), memory=2.))
    cells = [Cell({}, {}, 'b'), Cell({}, {}, 'xxl')]
    found = refusals.wrong_memory(PAPER, cells)
    assert len(found) == 2 and 'GiB of 2.0' in found[0]


def refusals_machine():
    from maskgil.machines import HARDWARE
    return HARDWARE['1xA100']


def test_published_files_are_opened(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('MASKGIL_CHECKPOINTS', str(tmp_path))
    (tmp_path/'llamagen-vq.pt').write_bytes(b'no checkpoint')
    assert 'llamagen-vq' in refusals.wrong_checkpoint('llamagen-vq')
    (tmp_path/'llamagen-vq.safetensors').write_bytes(b'{}')
    assert published_file('llamagen-vq').suffix == '.safetensors'
    assert re.search(r'llamagen-vq.safetensors is read, and not .*llamagen-vq.pt', capsys.readouterr().out)
    cells = [Cell({}, {}, 'b'), Cell({}, {}, 'b', tokenizer='maskgit-vq'),
             Cell({}, {}, 'b', tokenizer='chameleon-vq', steps=0)]
    lines = [line for line in refusals.wrong_surroundings(PAPER, cells, ['tokenizer']) if line]
    assert any('no file maskgit-vq' in line for line in lines) and not any('chameleon' in line for line in lines)


# --- images ---

def bench_of(labels, classes=3, profile=SMOKE):
    made = Bench(profile)
    made.images = SimpleNamespace(labels=np.array(labels), classes=('a', 'b', 'c')[:classes], name='x')
    return made


@pytest.mark.parametrize('labels, said', [([], 'no training images'), ([0, 1, -1], 'outside 0 to 2, such as -1'),
                                          ([0, 3], 'such as 3'), ([0] * 64, 'at least 65')])
def test_images_that_no_study_can_be_made_of(labels, said):
    with pytest.raises(ValueError, match=said): check_real_images(bench_of(labels))


def test_equally_many_of_each_class():
    equal = dataclasses.replace(SMOKE, evaluation=dataclasses.replace(SMOKE.evaluation, balanced=True))
    with pytest.raises(ValueError, match='eval_images is 64: .* multiple of 3'):
        check_real_images(bench_of([0, 1, 2] * 40, profile=equal))


def test_few_pictures_are_refused_before_the_tokenizer(tmp_path, own_results, clean_cache, monkeypatch):
    from PIL import Image
    for split in ('train', 'val'):
        for i in range(6):
            (tmp_path/'d'/split/'cat').mkdir(parents=True, exist_ok=True)
            Image.new('RGB', (40, 40), (i * 20, 90, 90)).save(tmp_path/'d'/split/'cat'/f'{i}.png')
    study = STUDIES['scaling']
    profile = study.profile(p := defaults('scaling', profile='smoke', size='b', data=str(tmp_path/'d')))
    cell = next(iter(study.grid(profile, p)))
    with pytest.raises(ValueError, match='has 6 training images'):
        study.run(Bench(profile), cell, tmp_path)
    assert not list(clean_cache.rglob('weights-*'))


def test_which_images_were_read():
    told = dict(split='validation', images=50_000, skipped=2, source='imagenet')
    said = said_images(images_read(SimpleNamespace(read_from=told)))
    assert said == '50,000 images of validation, 2 skipped (imagenet)'
    real = torch.randint(0, 255, (70, 3, 32, 32), dtype=torch.uint8)
    held = dict(name='imagenet', fingerprint='f', __len__=lambda self: 70, batch=lambda self, rows: real[rows])
    made, plain = type('Images', (), held | dict(read_from=told))(), type('Images', (), held)()
    reference = Reference.from_images(made)
    again = Reference.from_images(plain) # from the cache; what is said of it is not part of what it is
    assert reference.card['read_from'] == told and again.card['read_from']['images'] == 70
    assert reference.fingerprint == again.fingerprint


# --- metrics ---

def seen_of(n, seed=0, **changes):
    numbers = torch.randn(n, 2280, generator=torch.Generator().manual_seed(seed)).abs()
    return dataclasses.replace(Features(numbers[:, :1280], numbers[:, 1280:], 'el0'), **changes)

REFERENCE = Reference.from_features(seen_of(90, 1), 'real', '')


def spoilt(kind, value):
    seen = seen_of(20)
    getattr(seen, kind)[7, 3] = value
    return seen


@pytest.mark.parametrize('seen, said', [
    (spoilt('features', float('nan')), 'features of 1 of 20 images are not finite.*number 7'),
    (spoilt('features', float('inf')), 'not finite'), (spoilt('logits', float('-inf')), 'logits of 1 of 20'),
    (seen_of(4), '4 images are too few'),
    (seen_of(20, features=torch.ones(20, 64)), 'have 64 features, and the reference real takes 1280'),
    (seen_of(20, logits=torch.ones(19, 1000)), '19 logits of 20'),
    (seen_of(20, features=torch.ones(20, 1280).half()), 'in float16'),
    (seen_of(20, extractor='inception'), 'cannot be compared'), (seen_of(20, extractor='dino'), 'cannot be compared'),
])
def test_features_that_would_still_give_a_number(seen, said):
    with pytest.raises(ValueError, match=said): evaluate(seen, REFERENCE, bootstrap=2)


@pytest.mark.parametrize('options, said', [
    (dict(metrics=['sfid']), "unknown metric of el0 'sfid'"), (dict(metrics=['cmmd']), "unknown metric of el0 'cmmd'"),
    (dict(bootstrap=-1), 'bootstrap is -1'), (dict(bootstrap='200'), "bootstrap is '200'"),
    (dict(bootstrap=1), 'bootstrap is 1: '),
])
def test_what_an_extractor_is_not_measured_by(options, said):
    with pytest.raises(ValueError, match=said): evaluate(seen_of(20), REFERENCE, **options)


@pytest.mark.parametrize('extractor, said', [('el0', '64 principal components'), ('dinov2', 'no published statistics'),
                                             ('dino', "Did you mean 'dinov2'"), ('inception', '1280 features')])
def test_statistics_that_another_number_would_be_made_of(tmp_path, extractor, said):
    np.savez(tmp_path/'some.npz', mu=np.zeros(1280), sigma=np.eye(1280))
    with pytest.raises(ValueError, match=said): Reference.from_statistics(tmp_path/'some.npz', extractor)


def test_an_interval_of_a_share_is_of_shares():
    shares = torch.tensor([.005, 0., 0., .03, .01]) # replicates lie above the value
    assert interval(shares)['low'] < 0 and interval(1 - shares)['high'] > 1
    assert interval(shares, bounds=SHARE)['low'] == 0 and interval(1 - shares, bounds=SHARE)['high'] == 1
    seen = seen_of(60)
    for name in ('precision', 'recall'):
        found, = evaluate(seen, REFERENCE, bootstrap=50, metrics=[name]).values()
        assert 0 <= found['low'] <= found['value'] <= found['high'] <= 1


def test_what_surrounds_a_measurement_does_not_change_it(tmp_path):
    images = torch.randint(0, 256, (70, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    seen, tokenizer = extract(images), load_tokenizer('smoke-llamagen-vq')
    def measured():
        reference = Reference.from_features(seen, 'some', '') # whose kernel mean is computed once
        return extract(images).features, evaluate(seen, reference, 3), reconstruct(tokenizer, images[:8])[1]
    plain = measured()
    with torch.autocast('cpu', torch.bfloat16): surrounded = measured()
    assert plain[0].equal(surrounded[0]) and plain[1] == surrounded[1] and plain[2].equal(surrounded[2])
    assert Reference.from_images(images, path=tmp_path/'r.safetensors').name == 'images'


@pytest.mark.parametrize('what', ['folder', [Image.new('RGB', (8, 8))], 3])
def test_what_is_no_images_is_not_measured(what):
    with pytest.raises(ValueError, match='metrics take'): extract(what)


def test_a_file_of_samples_is_of_bytes_of_one_size(tmp_path):
    block = np.full((2, 8, 8, 3), 9, np.uint8)
    for blocks in ([], [block / 255], [block, block[:, :4]], [block[..., :1]]):
        with pytest.raises(ValueError, match='images'): write_npz(tmp_path/'x.npz', blocks, [0, 1, 2, 3])
    assert not list(tmp_path.iterdir())


def test_names_that_would_be_answered_as_if_there_were_nothing():
    for ask, said in ((lambda: records('scalling'), "Did you mean 'scaling'"),
                      (lambda: records(sources=['papers']), "Did you mean 'paper'"),
                      (lambda: check_claims(long_table([]), profile='minni'), "Did you mean 'mini'"),
                      (lambda: compare(long_table([]), profile='minni'), "Did you mean 'mini'"),
                      (lambda: exactly(3.).interval(95), 'level must be')):
        with pytest.raises(ValueError, match=said): ask()
    for name in (*STUDIES, 'speedrun', 'learn'): records(name, ['yours'])


def test_a_reference_of_spoilt_images():
    with pytest.raises(ValueError, match='not finite, of the reference real'):
        Reference.from_features(spoilt('features', float('nan')), 'real', '')


def test_repeated_images_are_said():
    seen = seen_of(40)
    twice = seen[torch.arange(40) % 20]
    assert repeated_images(twice.features) == 20 and repeated_images(seen.features) == 0
    with pytest.warns(UserWarning, match='20 of 40 images look like'): evaluate(twice, REFERENCE, bootstrap=0)


@pytest.mark.parametrize('mean, cov, said', [
    ([0.], [[-1.]], 'negative variance'), ([float('nan')], [[1.]], 'not finite'),
    ([0.], [[float('inf')]], 'not finite'),
    ([0., 0.], [[1., 2.], [2., 1.]], 'negative variance'), ([0., 0.], [[1., .5], [0., 1.]], 'not symmetric'),
    ([0., 0.], [[1.]], 'shapes'), ([[0.]], [[1.]], 'shapes'),
])
def test_no_distance_to_what_is_no_gaussian(mean, cov, said):
    width = len(cov)
    with pytest.raises(ValueError, match=said): frechet_distance([0.] * width, np.eye(width), mean, cov)


def test_a_generator_that_always_draws_the_same_has_a_distance():
    "All variance is rounding then, of either sign."
    one = Features(REFERENCE.features[:1].repeat(40, 1), REFERENCE.logits[:1].repeat(40, 1), 'el0')
    with pytest.warns(UserWarning, match='39 of 40 images'): found = evaluate(one, REFERENCE, bootstrap=20)
    assert found['fid_el0']['value'] > 0


@pytest.mark.parametrize('held, said', [
    (dict(mu=np.ones(3), sigma=np.full((3, 3), np.nan)), 'sigma cannot be used'), (dict(mu=np.ones(3)), 'holds mu'),
    (dict(mu=np.ones((3, 1)), sigma=np.eye(3)), 'expected'), (dict(mu=np.full(3, np.inf), sigma=np.eye(3)), 'mu has'),
    (dict(mu=np.ones(3), sigma=-np.eye(3)), 'negative variance'), (dict(mu=np.ones(3), sigma=np.eye(4)), 'expected'),
    (dict(mu=np.array(['a', 'b']), sigma=np.eye(2)), 'cannot be read'),
    (dict(mu=np.array([dict()]), sigma=np.eye(1)), 'cannot be read'), # a pickle
])
def test_files_of_statistics(held, said, tmp_path):
    np.savez(tmp_path/'adm.npz', **held)
    with pytest.raises(ValueError, match=said) as refused: load_statistics(tmp_path/'adm.npz')
    assert 'adm.npz' in str(refused.value)


@pytest.mark.parametrize('damage', [
    lambda b: b[:len(b) // 2], lambda b: b'', lambda b: b[:400] + bytes([b[400] ^ 16]) + b[401:]])
def test_damaged_statistics_are_named(damage, tmp_path):
    np.savez(tmp_path/'adm.npz', mu=np.ones(64), sigma=np.eye(64))
    (tmp_path/'adm.npz').write_bytes(damage((tmp_path/'adm.npz').read_bytes()))
    with pytest.raises(ValueError, match='adm.npz'): load_statistics(tmp_path/'adm.npz')


def test_a_reference_file_is_what_it_says(tmp_path):
    path = REFERENCE.save(tmp_path/'r.safetensors')
    images = torch.randint(0, 255, (70, 3, 32, 32), dtype=torch.uint8)
    with pytest.raises(ValueError, match='is of other images or another'): Reference.from_images(images, path=path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match='r.safetensors'): Reference.load(path)


def test_components_of_another_split_are_not_found(tmp_path):
    images = torch.randint(0, 255, (70, 3, 32, 32), dtype=torch.uint8)
    own = Reference.from_images(images, path=tmp_path/'own')
    with pytest.raises(ValueError, match='another: components'):
        Reference.from_images(images, path=tmp_path/'own', components_from=REFERENCE)
    assert Reference.from_images(images, path=tmp_path/'own').fingerprint == own.fingerprint


def test_the_extractor_is_exact_whatever_surrounds_it(tmp_path):
    images = torch.randint(0, 255, (70, 3, 32, 32), dtype=torch.uint8)
    exact = Reference.from_images(images, path=tmp_path/'exact', device='cpu')
    with torch.autocast('cpu', torch.bfloat16):
        inside = Reference.from_images(images, path=tmp_path/'inside', device='cpu')
    assert torch.equal(exact.features, inside.features)


def test_pictures_of_another_size_or_kind(monkeypatch):
    for images in (torch.zeros(8, 3, 64, 64).byte(), torch.zeros(8, 3, 32, 32), torch.zeros(8, 1, 32, 32).byte()):
        with pytest.raises(ValueError, match='bytes of 32 x 32 pixels'): measure(Bench(SMOKE), images)
    with pytest.raises(ValueError, match='equally many bytes'):
        psnr(torch.zeros(1, 3, 8, 8).byte(), torch.zeros(4, 3, 8, 8).byte())


# --- drawing ---

@pytest.mark.parametrize('causal, options', [
    (False, dict(steps=0)), (False, dict(steps=2.5)), (False, dict(cfg=float('nan'))), (False, dict(order='spiral')),
    (False, dict(schedule='linear-ish')), (False, dict(guidance='none')), (False, dict(temperature=0.)),
    (False, dict(top_p=1.5)), (False, dict(top_k=-1)), (False, dict(dtype='float12')), (False, dict(step=8)),
    (True, dict(steps=8)), (True, dict(cfg=float('inf'))), (True, dict(temperature=-1.)),
])
def test_options_of_a_sampler(causal, options):
    with pytest.raises(ValueError): check_sampler(causal, options)


@pytest.mark.parametrize('labels', [[0, 8], [-1], [.5], [], [[1, 2]], [True]])
def test_labels_that_are_no_classes(labels):
    with pytest.raises(ValueError): check_drawn(torch.tensor(labels), 8)


@pytest.fixture(scope='module')
def samples():
    model = load_model('maskgil', 'smoke-b', tokenizer='smoke-llamagen-vq', classes=8, grid=(8, 8))
    options = dict(steps=2, dtype='float32')
    return SampleSet(model, load_tokenizer('smoke-llamagen-vq'), torch.arange(8).repeat(3), options, batch_size=4,
                     block=8, extractor='el0')


def test_a_set_is_told_by_all_that_decides_it(samples, tmp_path):
    assert draw_blocks(samples, tmp_path, 'cpu', 0, 1, False)
    class_last = load_model('maskgil', 'smoke-b', tokenizer='smoke-llamagen-vq', classes=8, grid=(8, 8),
                            class_first=False)
    class_last.load_state_dict(samples.model.state_dict())
    changes = [dict(model=class_last), dict(options=samples.options | dict(dtype='bfloat16')), dict(seed=1),
               dict(labels=samples.labels.flip(0)), dict(options=samples.options | dict(order='random'))]
    for change in changes:
        with pytest.raises(ValueError, match='of something else'):
            draw_blocks(dataclasses.replace(samples, **change), tmp_path, 'cpu', 0, 1, False)


def test_a_set_that_is_not_whole_is_not_measured(samples, tmp_path):
    draw_blocks(samples, tmp_path, 'cpu', 0, 3, False)
    with pytest.raises(FileNotFoundError, match='lacks features of 2 of 3 blocks'): read_features(tmp_path)
    draw_blocks(samples, tmp_path, 'cpu', 0, 1, False)
    whole = read_features(tmp_path).features
    np.save(tmp_path/'00003-features.npy', whole.numpy()) # of a larger set, once
    assert len(read_features(tmp_path)) == len(samples.labels)
    (tmp_path/'set.json').unlink()
    with pytest.raises(ValueError, match='set.json, which says of what, is missing'):
        draw_blocks(samples, tmp_path, 'cpu', 0, 1, False)


@pytest.mark.parametrize('kind', ['features', 'logits', 'tokens'])
def test_a_damaged_block_is_drawn_again(samples, tmp_path, kind):
    draw_blocks(samples, tmp_path, 'cpu', 0, 1, False)
    path = tmp_path/f'00001-{kind}.npy'
    before = path.read_bytes()
    path.write_bytes(before[:150] + bytes([before[150] ^ 1]) + before[151:])
    with pytest.warns(UserWarning, match='drawn again'): draw_blocks(samples, tmp_path, 'cpu', 0, 1, False)
    assert path.read_bytes() == before
    path.unlink()
    draw_blocks(samples, tmp_path, 'cpu', 0, 1, False)
    assert path.read_bytes() == before


def test_the_target_is_looked_at_first(tmp_path):
    np.savez(tmp_path/'narrow.npz', mu=np.zeros(3), sigma=np.eye(3))
    np.savez(tmp_path/'other.npz', pictures=np.zeros(3))
    given = dict(reference='', extractor='el0', npz='', keep_images=True, bootstrap=10)
    for change, said in ((dict(reference=str(tmp_path/'narrow.npz')), 'has 1280 features'),
                         (dict(reference=str(tmp_path/'other.npz')), 'expected mu and sigma'),
                         (dict(reference=str(tmp_path/'none.npz')), 'there is no file'),
                         (dict(npz='x.npz', keep_images=False), 'keep_images'),
                         (dict(npz=str(tmp_path)), 'names a folder'),
                         (dict(extractor='resnet'), 'choose one of'), (dict(bootstrap=-1), 'bootstrap is -1')):
        with pytest.raises((ValueError, OSError), match=said): check_target(**given | change)


# --- records ---

def test_a_number_that_is_not_finite_is_said(own_results, capsys):
    curve = [dict(epoch=1, metrics=dict(fid_el0=metric(float('nan'))))]
    made = run(lambda folder: dict(curve=curve, history=[dict(loss=float('inf'))]))
    assert 'not finite, and stored as null: curve.0.metrics.fid_el0.value' in capsys.readouterr().out
    run()
    assert 'not finite when it was measured' in capsys.readouterr().out
    found = Evidence([made], pd.DataFrame())
    assert made.key in lost_sentence(found)
    assert with_caveats(lambda evidence: 1 / 0)(found).startswith('No record has a finite')


def test_a_record_of_the_past_of_the_future_and_of_another_hand(own_results):
    path = save_record(record_of())
    stored = read_json(path)
    write_json(path, stored | dict(colour='blue'))
    assert read_record(path).unknown == ['colour'] and records('demo')[0].unknown == ['colour']
    assert 'unknown field colour' in records_module.index_table(records('demo')).older[0]
    write_json(path, {k: v for k, v in stored.items() if k in ('study', 'profile', 'parameters', 'metrics')})
    assert read_record(path).key == ''
    path.write_text(json.dumps(stored | dict(checksum='0' * 16)))
    with pytest.raises(DamagedFile, match='checksum'): read_record(path)
    path.write_text(path.read_text()[:300])
    with pytest.raises(DamagedFile, match=path.name): records('demo')


@pytest.mark.parametrize('change', [dict(parameters=[]), dict(metrics=None), dict(study=3), dict(seed='0'),
                                    dict(basis='guessed'), dict(settings='openmoji'), dict(ended=20200101),
                                    dict(files=['a.png'])])
def test_fields_of_the_wrong_type(own_results, change):
    path = save_record(record_of())
    write_json(path, read_json(path) | change)
    with pytest.raises(ValueError, match=f'{path.name} is not a record'): read_record(path)


def test_a_flipped_bit_anywhere_in_a_record(own_results):
    path = save_record(record_of())
    whole, same = path.read_bytes(), read_record(path)
    silent = []
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:])
        try: found = read_record(path)
        except (ValueError, OSError): continue
        if dataclasses.replace(found, unknown=[]) != same: silent.append(at)
    assert not silent


def test_hidden_files_links_and_other_folders(own_results):
    path = save_record(record_of())
    (path.parent/f'._{path.name}').write_bytes(b'\x00\x05\x16\x07') # of a Mac
    assert len(records('demo')) == 1
    (path.parent/'link.json').symlink_to(path.parent/'gone')
    with pytest.raises(OSError): records('demo')
    (path.parent/'link.json').unlink()
    (own_results/'runs'/'other').mkdir()
    shutil.copy(path, own_results/'runs'/'other'/path.name)
    with pytest.raises(ValueError, match="a record of the study 'demo'"): records()


def test_two_records_of_one_key(own_results):
    made = run()
    shutil.copy(made.path, Path(made.path).with_name(f'copy-{made.key}.json'))
    with pytest.raises(ValueError, match='2 records in .* keep one of'): run()
    assert record_path(own_results/'runs'/'demo', made.key[1:]) is None # the end of a key is no key


def test_a_record_that_is_removed_while_others_are_read(own_results, monkeypatch):
    paths = [save_record(record_of(key=f'{i:016}')) for i in range(3)]
    read = records_module.read_json
    def racing(path, *look):
        paths[2].unlink(missing_ok=True)
        return read(path, *look)
    monkeypatch.setattr(records_module, 'read_json', racing)
    assert len(records('demo')) == 2


def test_a_clock_that_was_set_back(own_results, monkeypatch):
    first = run()
    monkeypatch.setattr(records_module.time, 'time_ns', lambda: 1_000)
    second = run(seed=0, data_fingerprint='other') # the same cell of other images
    assert second.written == first.written + 1
    assert [r.key for r in latest(records('demo'))] == [second.key]
    assert [r.key for r in latest(reversed(records('demo')))] == [second.key]


def test_a_damaged_neighbour_costs_no_result(own_results):
    save_record(record_of()).write_text('{"stu')
    assert run().metrics['fid_el0']['value'] == 9.


def test_equal_times_have_an_order(own_results):
    at = dict(ended='2020-01-01T00:00:00+00:00')
    for key in ('f' * 16, 'a' * 16): save_record(record_of(key, **at))
    assert [r.key[0] for r in records('demo')] == ['a', 'f']
    assert [r.key[0] for r in latest(records('demo'))] == ['f']
    assert moment(record_of(**at)) < moment(record_of(ended='2020-01-01T00:00:01+00:00'))
    assert moment(record_of(ended='?')) == 0


def with_sheet(content=b'picture'):
    def function(folder):
        (folder/'sheet.png').write_bytes(content)
        return dict(fid_el0=metric(9.), samples=folder/'sheet.png')
    return function


def test_a_picture_beside_a_record_is_known(own_results, capsys):
    made = run(with_sheet())
    sheet = record_file(made, 'samples')
    assert sheet.read_bytes() == b'picture' and wrong_files(made) == []
    sheet.write_bytes(b'pictura')
    with pytest.warns(UserWarning, match='damaged or was changed'): assert record_file(made, 'samples') is None
    run(with_sheet())
    assert 'force makes it again' in capsys.readouterr().out
    sheet.unlink()
    with pytest.warns(UserWarning, match='is gone'): assert record_file(made, 'samples') is None


def test_a_record_names_no_file_elsewhere(own_results):
    made = run()
    made.metrics['samples'] = '../../../etc/passwd'
    assert record_file(made, 'samples') is None


def test_a_forced_run_that_is_stopped_leaves_the_old_picture(own_results, monkeypatch):
    old = run(with_sheet())
    save = records_module.save_record
    monkeypatch.setattr(records_module, 'save_record', lambda record: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt): run(with_sheet(b'another'), force=True)
    assert record_file(read_record(old.path), 'samples').read_bytes() == b'picture'
    monkeypatch.setattr(records_module, 'save_record', save)
    new = run(with_sheet(b'another'), force=True)
    assert record_file(new, 'samples').read_bytes() == b'another'
    assert len(list(Path(new.path).parent.glob('*.png'))) == 1


def test_once_keeps_what_json_does_not_have(tmp_path):
    made = []
    def make(): made.append(1); return dict(fid=float('nan'), rows=[float('-inf'), dict(n=1)])
    assert str(once(tmp_path, make, epoch=1)) == str(once(tmp_path, make, epoch=1)) == str(make()) and len(made) == 2
    path = next(tmp_path.glob('*.json'))
    path.write_bytes(path.read_bytes().replace(b'"n": 1', b'"n": 3'))
    with pytest.raises(DamagedFile, match=path.name): once(tmp_path, make, epoch=1)


def test_once_of_another_precision(tmp_path, monkeypatch):
    assert once(tmp_path, lambda: dict(x=1), epoch=1) == dict(x=1)
    monkeypatch.setattr(records_module, 'pick_dtype', lambda *args: torch.float16)
    assert once(tmp_path, lambda: dict(x=2), epoch=1) == dict(x=2)


@pytest.fixture
def reference_project(project, monkeypatch):
    monkeypatch.setenv('MASKGIL_ROOT', str(project))
    (project/'results'/'reference'/'paper').mkdir(parents=True)
    return project/'results'/'reference'


def test_promote_that_is_stopped_loses_nothing(reference_project, monkeypatch):
    run(with_sheet())
    promote('demo')
    run(with_sheet(b'new'), data_fingerprint='other')
    copy = shutil.copyfile
    calls = []
    def stopped(*args):
        calls.append(1)
        if len(calls) == 2: raise KeyboardInterrupt
        return copy(*args)
    monkeypatch.setattr(records_module.shutil, 'copyfile', stopped)
    with pytest.raises(KeyboardInterrupt): promote('demo')
    assert len(records('demo', ['reference'])) == 1 and not wrong_files(records('demo', ['reference'])[0])
    monkeypatch.setattr(records_module.shutil, 'copyfile', copy)
    promote('demo')
    assert [r.data_fingerprint for r in records('demo', ['reference'])] == ['other']


def test_promote_refuses_what_is_damaged_lost_or_unknown(reference_project):
    made = run(with_sheet())
    record_file(made, 'samples').write_bytes(b'other')
    with pytest.raises(ValueError, match='nothing was promoted.*damaged'): promote('demo')
    run(lambda folder: dict(fid_el0=metric(float('nan'))), force=True)
    with pytest.raises(ValueError, match='not finite: fid_el0'): promote('demo')
    with pytest.raises(ValueError, match="study 'demmo'.*there are records of demo"): promote('demmo')
    with pytest.raises(ValueError, match='unknown profile'): promote('demo', 'maxi')
    assert not list(reference_project.rglob('*.json'))


def test_promote_keeps_pictures_of_the_first_seed(reference_project):
    "Also where a reference has them of all: they go, and no record names one that is not there."
    seeds = [run(with_sheet(), seed=seed) for seed in range(3)]
    promote('demo')
    shutil.copyfile(seeds[1].path, reference_project/'demo'/Path(seeds[1].path).name) # as it was committed before
    sheet = record_file(seeds[1], 'samples')
    shutil.copyfile(sheet, reference_project/'demo'/sheet.name)
    promote('demo')
    held = records('demo', ['reference'])
    assert [bool(record_file(r, 'samples')) for r in sorted(held, key=lambda r: r.seed)] == [True, False, False]
    assert not any(wrong_files(r) for r in held) and len(list(reference_project.rglob('*.png'))) == 1
    assert all(r.metrics['fid_el0'] == seeds[0].metrics['fid_el0'] for r in held)


def test_promote_keeps_other_profiles(reference_project):
    run()
    promote('demo')
    run_cell('demo', SMOKE, dict(size='b'), lambda folder: dict(fid_el0=metric(1.)), device='cpu')
    promote('demo', 'smoke')
    assert {r.profile for r in records('demo', ['reference'])} == {'mini', 'smoke'}


# --- identity ---

def test_files_are_part_of_a_key(tmp_path, monkeypatch):
    monkeypatch.setenv('MASKGIL_CHECKPOINTS', str(tmp_path))
    cell, none = Cell({}, {}, 'b'), files_of(PAPER, Cell({}, {}, 'b'))
    assert none == dict(reference_file='made from training images')
    (tmp_path/'llamagen-vq.pt').write_bytes(b'one')
    (tmp_path/PAPER.evaluation.adm_reference).write_bytes(b'adm')
    first = files_of(PAPER, cell)
    (tmp_path/'llamagen-vq.pt').write_bytes(b'two')
    (tmp_path/PAPER.evaluation.adm_reference).write_bytes(b'another')
    second = files_of(PAPER, cell)
    assert all(first[name] != second[name] for name in ('tokenizer_file', 'reference_file'))
    assert 'tokenizer_file' not in files_of(PAPER, dataclasses.replace(cell, steps=0)) # reads none
    assert files_of(MINI, cell) == {} and set(rows_of(MINI, cell)) == {'tokenizer', 'tokenizer_losses', 'size'}


def test_both_ends_of_a_large_file(tmp_path):
    path = tmp_path/'large'
    for change in (0, 3 * 2**20 - 1):
        content = bytearray(3 * 2**20)
        path.write_bytes(content)
        before = content_of(path, whole=False)
        content[change] = 1
        path.write_bytes(content)
        os.utime(path, ns=(1, change + 2))
        assert content_of(path, whole=False) != before


def test_the_images_are_named_in_the_record(own_results, monkeypatch):
    study = STUDIES['stability']
    bench = Bench(SMOKE)
    bench.images = SimpleNamespace(labels=np.zeros(90, int), classes=('a',), name='x', fingerprint='f',
                                   identity='times', read_from=dict(split='train', images=90, skipped=1, source='x'))
    made = dataclasses.replace(study, run=lambda bench, cell, folder: dict(fid_el0=metric(1.)))
    from maskgil.studies import _prepared
    record = run(lambda folder: _prepared(made)(bench, Cell({}, {}), folder))
    assert record.provenance['data_identity'] == 'times' and 'provenance' not in record.metrics
    assert record.provenance['data_read'] == '90 images of train, 1 skipped (x)' and record.provenance['git']


# --- claims and findings ---

@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_no_verdict_from_a_number_that_is_none(value):
    rows = pd.DataFrame([dict(seed=0, value=1., low=.5, high=1.5), dict(seed=1, value=value, low=.5, high=1.5)])
    rows = rows.assign(family='fid', label='FID')
    with pytest.raises(NoData, match='x is not finite with seed 1'): estimate(rows, 'x')
    with pytest.raises(NoData, match='not finite'): decide([exactly(value, 'x')])
    with pytest.raises(NoData): decide([])
    with pytest.raises(NoData, match='divides by zero'): exactly(1.) / exactly(0.)


def test_every_claim_on_empty_tables():
    columns = 'study source profile data seed family value low high part epoch cfg label'.split()
    empty = pd.DataFrame(columns=columns)
    for row in CLAIMS.values():
        if not row.study: continue
        verdict = verdict_of(row, empty, 'yours')
        assert verdict.verdict == 'no data' and verdict.says, row.key


def test_every_claim_on_lost_numbers(made_up):
    "Every value of a whole run is NaN: no claim is supported or contradicted."
    table = made_up.assign(value=float('nan'))
    for row in CLAIMS.values():
        if row.kind == 'measured' and row.study not in ('', 'stability'):
            assert verdict_of(row, table, 'yours').verdict == 'no data', row.key


@pytest.fixture(scope='module')
def made_up():
    "One row of each study, as `tables.long_table` has it."
    from maskgil.records import published_records
    from maskgil.tables import long_table
    return long_table(published_records()).assign(source='yours', profile='paper')


def test_runs_of_different_settings_are_named(own_results):
    for key, images, size in (('a' * 16, 400, 'b'), ('b' * 16, 100, 'l')):
        held = settings(override(MINI, {'evaluation.images': images}))
        save_record(record_of(key, parameters=dict(size=size), settings=held))
    said = mixed_sentence(gather_evidence('demo'))
    assert 'evaluation.images 400 (aaaaaaaaaaaaaaaa) and 100 (bbbbbbbbbbbbbbbb)' in said


def test_the_cards_are_a_table(own_results):
    read = '50,000 images of validation, 0 skipped'
    for key, count in (('a' * 16, 400), ('b' * 16, 400), ('c' * 16, 300)):
        card = dict(count=count, reference=dict(read=read), extractor=dict(name='el0', weights='w'))
        save_record(record_of(key, dict(fid_el0=metric(9.), protocol=card), parameters=dict(size=key[0])))
    table = protocol_table(gather_evidence('demo'))
    assert table.reference.tolist() == [read] * 2
    assert table.measured.tolist() == ['400 images drawn', '300 images drawn']


def test_tokens_need_room(monkeypatch):
    monkeypatch.setattr(bench_module.shutil, 'disk_usage', lambda path: SimpleNamespace(free=100))
    with pytest.raises(OSError, match='tokens of 9,000,000 images need'):
        check_real_images(bench_of(np.zeros(9_000_000, int)), measured=False)


def test_the_reference_has_no_caveats():
    for study in STUDIES:
        evidence = gather_evidence(study, sources=('paper', 'reference'))
        assert lost_sentence(evidence) == mixed_sentence(evidence) == '', study


def test_a_finding_of_a_partly_lost_run(own_results):
    good = dict(curve=[dict(epoch=8, cfg=2., metrics=dict(fid_el0=metric(30.)))])
    lost = dict(curve=[dict(epoch=8, cfg=2., metrics=dict(fid_el0=metric(float('nan'))))])
    for size, metrics in (('b', good), ('l', lost)):
        cell = dict(size=size, recipe='paper')
        save_record(Record('scaling', 'mini', cell, metrics, 0, key=size * 16, settings=settings(MINI)))
    evidence = gather_evidence('scaling', sources=['yours'])
    said = STUDIES['scaling'].finding(evidence)
    assert 'Not finite, and left out: curve.0.metrics.fid_el0 of record llllllllllllllll' in said
    assert all(table.make(evidence) is not None for table in STUDIES['scaling'].tables[2:3])
