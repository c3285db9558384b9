"What the paper's profile asks of a study: ranks that share its work, images as ImageNet has them, memory that is flat."
import gc, importlib.util, math, shutil
from argparse import Namespace
from dataclasses import replace

import pytest
import torch

from maskgil import bench as bench_module, cells, jobs, protocol
from maskgil.bench import Bench, train_model, wanted_labels
from maskgil.cells import by_image_count, fusion_cell, reconstruction_cell, stability_cell, steps_cell, timed_draw
from maskgil.core import project_root, weights_fingerprint
from maskgil.data import openmoji, to_rgb
from maskgil.features import extract, GrowingRows
from maskgil.machines import CountedBytes, HARDWARE, without_data
from maskgil.metrics import (
    bootstrap_counts, codebook_usage, evaluate, frechet_linearised, mean_and_covariance, psnr, Rebuilt, reconstruct,
    reconstruction_metrics, Reference,
)
from maskgil.models import load_model
from maskgil.planner import plan_cell
from maskgil.profiles import PROFILES, override
from maskgil.protocol import rule_effect, Subject
from maskgil.refusals import trained_configs, wrong_first_model
from maskgil.studies import defaults, rows_of, STUDIES
from maskgil.tokenizers import load_tokenizer, Tokenizer, TOKENIZERS
from maskgil.weights import save_weights

from test_jobs import save_photos

SMOKE = PROFILES['smoke']


def without_dropout(changes=None):
    "The smallest profile where ranks agree: each rank draws a dropout of its own."
    return override(replace(SMOKE, training=replace(SMOKE.training, dropout=0., dtype='float32')), changes or {})


@pytest.fixture
def photos(tmp_path, monkeypatch):
    "A folder of OpenMoji pictures with a training split alone, and a cache of its own."
    emoji = openmoji('train', limit=120)
    pixels = to_rgb(emoji.batch(range(120))).permute(0, 2, 3, 1).numpy() # b 3 h w -> b h w 3
    save_photos(tmp_path/'photos'/'train', pixels)
    monkeypatch.setenv('MASKGIL_CACHE', str(tmp_path/'cache'))
    return tmp_path/'photos'


def test_the_study_of_norms_trains_on_all_ranks(tmp_path, monkeypatch):
    found = {}
    for ranks in (1, 2):
        monkeypatch.setenv('MASKGIL_CACHE', str(tmp_path/f'cache-{ranks}'))
        monkeypatch.setenv('MASKGIL_PROCESSES', str(ranks))
        if ranks == 2: shutil.copytree(tmp_path/'cache-1', tmp_path/'cache-2', dirs_exist_ok=True)
        found[ranks] = stability_cell(Bench(without_dropout(), device='cpu'), 'both', 'b', tmp_path/f'work-{ranks}')
    assert (tmp_path/'work-2'/'config.json').exists() and not (tmp_path/'work-1'/'config.json').exists()
    for name in ('step', 'loss', 'output_norm'):
        one, two = ([row[name] for row in found[ranks]['history']] for ranks in (1, 2))
        assert two == pytest.approx(one, rel=1e-4), name


@pytest.mark.parametrize('ranks', [1, 2])
def test_a_training_that_diverges_on_ranks_is_a_result(tmp_path, monkeypatch, ranks):
    monkeypatch.setenv('MASKGIL_CACHE', str(tmp_path/'cache'))
    monkeypatch.setenv('MASKGIL_PROCESSES', str(ranks))
    plain = without_dropout()
    wild = Bench(replace(plain, training=replace(plain.training, stability_learning_rate=1e25)), device='cpu')
    found = stability_cell(wild, 'none', 'b', tmp_path/'work')
    assert 1 < found['diverged_at'] <= SMOKE.training.stability_steps
    assert len(found['history']) == found['diverged_at'] and math.isnan(found['history'][-1]['loss'])


def test_memory_is_looked_at_for_trainings_of_a_number_of_steps():
    study, paper = STUDIES['stability'], PROFILES['paper']
    cells = list(study.grid(paper, defaults('stability')))
    assert not trained_configs(paper, cells) and trained_configs(paper, cells, kept=False)


def test_a_folder_without_held_out_images_has_a_floor(photos):
    "The download of ILSVRC has a flat folder of validation images, without classes."
    (photos/'val').mkdir()
    shutil.copy(next(photos.glob('train/*/*')), photos/'val')
    bench = Bench(override(SMOKE, {'data.source': str(photos), 'data.limit': 100}), device='cpu')
    assert bench.floor['fid_el0']['value'] > 0
    with pytest.raises(FileNotFoundError, match='val/ holds pictures and no class folders'): reconstruction_cell(bench)


class Blur:
    "A tokenizer with four codes that keeps the mean of each picture."
    codebook_size = 4
    def encode(self, images): return (images.mean((1, 2, 3)) * 2 + 2).long().clamp(0, 3)[:, None, None]
    def decode(self, ids): return (ids[:, :, :, None].float() / 2 - .75).permute(0, 3, 1, 2).expand(-1, 3, SIDE, SIDE)

SIDE = 64


class Endless:
    "Images that are made when they are asked for; it notes how many at a time."
    name, split, classes = 'made', 'test', ('one',)
    def __init__(self, count): self.count, self.asked = count, []
    def __len__(self): return self.count
    def batch(self, rows):
        self.asked.append(rows.stop - rows.start)
        return torch.arange(rows.start, rows.stop)[:, None, None, None].expand(-1, 3, SIDE, SIDE).to(torch.uint8)


def test_reconstruction_holds_a_batch_of_images_however_many_there_are():
    def held(count): # bytes at the most, beyond what is there before
        images = Endless(count)
        rebuilt = Rebuilt(Blur(), images, 50)
        most = max(sum(t.untyped_storage().nbytes() for t in gc.get_objects() if type(t) is torch.Tensor
                       and t.dtype != torch.float32 and t.ndim == 4) for _ in rebuilt)
        assert len(torch.cat(rebuilt.ratios)) == rebuilt.counts.sum() == count and max(images.asked) == 50
        return most
    assert held(2000) <= 1.2 * held(200)


def test_one_pass_measures_what_two_did(photos):
    images = openmoji('test', limit=90)
    tokenizer = load_tokenizer('smoke-llamagen-vq', seed=0)
    reference = Reference.from_images(images, 'el0')
    other = Reference.from_images(openmoji('train', limit=90), 'el0', components_from=reference)
    found = reconstruction_metrics(tokenizer, images, reference, bootstrap=5, others=dict(adm=other))
    originals, rebuilt, ids = reconstruct(tokenizer, images)
    assert found['psnr']['value'] == pytest.approx(float(psnr(originals, rebuilt).mean()))
    assert found['usage'] == codebook_usage(ids, tokenizer.codebook_size)['usage']
    again = evaluate(extract(rebuilt), other, 5, 0, ['fid'])
    assert found['rfid_adm_el0']['value'] == pytest.approx(again['fid_el0']['value'], rel=1e-4)


def test_table_1_of_many_held_out_images_needs_no_tokens(photos, monkeypatch):
    "The paper reports usage over validation images; with few of them the training images tell."
    shutil.copytree(photos/'train', photos/'val')
    bench = Bench(override(SMOKE, {'data.source': str(photos)}), device='cpu')
    few = reconstruction_cell(bench)['codebook_usage_pct']
    monkeypatch.setattr(cells, 'USAGE_IMAGES', 50)
    monkeypatch.setattr(Bench, 'tokens', property(lambda bench: pytest.fail('tokens of the training images')))
    many = reconstruction_cell(replace(bench))['codebook_usage_pct']
    assert few['n'] == many['n'] == 96 and 0 < many['value'] <= 100


@pytest.fixture
def trained_once(tmp_path, monkeypatch):
    "A cache for each number of ranks, with one tokenizer and the same models in both."
    def use(ranks):
        monkeypatch.setenv('MASKGIL_CACHE', str(tmp_path/f'cache-{ranks}'))
        monkeypatch.setenv('MASKGIL_PROCESSES', str(ranks))
        if ranks == 2: shutil.copytree(tmp_path/'cache-1', tmp_path/'cache-2', dirs_exist_ok=True)
        grid = {'evaluation.cfg': [2.], 'evaluation.step_grid': [4], 'evaluation.sample_counts': [32, 63]}
        return Bench(without_judge(grid), device='cpu')
    return use


def without_judge(changes):
    "Without the judge, for which images are drawn in one process, as without one on a GPU."
    profile = without_dropout(changes)
    return replace(profile, evaluation=replace(profile.evaluation, judged=False, balanced=True, images=63))


def test_samples_are_drawn_on_all_ranks_and_not_drawn_again(tmp_path, trained_once, monkeypatch):
    "One set of a masked model, one that an AR model begins, and subsets of the first, as in the paper's profile."
    found = {}
    for ranks in (1, 2):
        bench = trained_once(ranks)
        mar, ar = (train_model(bench, 'b', kind).model for kind in ('maskgil', 'llamagen'))
        given = dict(mar_steps=2, ar_tokens=20, ar_cfg=2., mar_cfg=2.)
        labels = wanted_labels(bench)
        found[ranks] = [timed_draw(bench, mar, labels, steps=2), timed_draw(bench, mar, labels, ar, **given),
                                *(point['metrics'] for point in by_image_count(bench, mar, steps=2))]
    assert not (tmp_path/'cache-1'/'samples').exists() and len(list((tmp_path/'cache-2'/'samples').iterdir())) == 2
    for one, two in zip(found[1], found[2], strict=True):
        assert one.keys() == two.keys()
        for name in ('fid_el0', 'kid_el0'):
            assert two[name]['value'] == pytest.approx(one[name]['value'], rel=.02, abs=.02), name
            assert one[name]['n'] == two[name]['n']
    monkeypatch.setattr(bench_module, 'draw_on_all', lambda *given, **options: pytest.fail('drawn again'))
    assert timed_draw(bench, mar, labels, steps=2)['fid_el0'] == found[2][0]['fid_el0']


def test_classes_are_equally_many_where_the_profile_says_so(trained_once):
    bench = trained_once(1)
    card = steps_cell(bench, 'b')['protocol']
    assert card['per_class'] == [7, 7] and card['classes'] == 9


def test_a_plan_counts_what_ar_draws_for_fusion():
    study, profile = STUDIES['fusion'], PROFILES['mini']
    ar, mar = study.grid(profile, defaults('fusion'))
    assert ar.passes == 4.5 * profile.evaluation.images
    assert mar.passes == 8 * profile.evaluation.images * profile.evaluation.steps
    machine = HARDWARE['1xA100']
    assert plan_cell(profile, ar, machine, trained=True)['hours'] > 0


def test_a_training_plans_on_the_memory_that_is_free(tmp_path, monkeypatch):
    "A kernel that holds other things leaves less than the whole of a GPU."
    monkeypatch.setattr(jobs, 'free_memory', lambda device: .001)
    monkeypatch.setenv('MASKGIL_CACHE', str(tmp_path))
    monkeypatch.setenv('MASKGIL_PROCESSES', '2')
    with pytest.raises(ValueError, match='GiB of 0.0 free on each of 2'): train_model(Bench(SMOKE, device='cpu'), 'b')


def test_fusion_begins_with_a_published_model(tmp_path, trained_once, monkeypatch):
    "The file is found, named by the record and by the key; another size than the published ones is refused at once."
    monkeypatch.setenv('MASKGIL_CHECKPOINTS', str(tmp_path/'files'))
    bench = trained_once(1)
    study = STUDIES['fusion']
    grid = lambda **given: [*study.grid(bench.profile, defaults('fusion', size='b', **given))]
    trained, published = grid()[-1], grid(ar='published')[-1]
    assert 'ar' not in trained.parameters and 'no file' in wrong_first_model(bench.profile, published)
    ar = load_model(**bench.model_options('b', 'llamagen'), seed=5)
    for weight in ar.parameters(): weight.data.normal_(std=.1)
    save_weights(tmp_path/'files'/'llamagen-gpt-b.safetensors', ar)
    assert not wrong_first_model(bench.profile, published)
    assert rows_of(bench.profile, published)['ar_file'] and 'ar_file' not in rows_of(bench.profile, trained)
    found = fusion_cell(bench, 'b', shares=1, ar='published')
    assert found['protocol']['begun_by'] == weights_fingerprint(ar)
    assert found['protocol']['begun_by'] != fusion_cell(bench, 'b', shares=1)['protocol']['begun_by']
    wrong = defaults('fusion', size='xl', ar='published')
    with pytest.raises(ValueError, match='choose one of b, l'): list(study.grid(bench.profile, wrong))


def test_the_study_of_protocols_holds_some_pictures_at_a_time(monkeypatch, tmp_path):
    "The same effects, whether pictures are drawn and kept in one piece or in many."
    monkeypatch.setenv('MASKGIL_CACHE', str(tmp_path))
    images = openmoji('train', limit=240)
    reference, labels = Reference.from_images(images, 'el0'), torch.as_tensor(images.labels[:160])
    asked = []
    def draw(labels, seeds, cfg, **options): # pictures of a seed and a class
        asked.append(len(labels))
        noise = [torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(noise) * 2 - 1 + labels[:, None, None, None] / 20
    found = {}
    for at_once in (500, 50):
        monkeypatch.setattr(protocol, 'AT_ONCE', at_once)
        subject = Subject(draw, labels, reference, reference, device='cpu')
        rules = ('JPEG, quality 75', 'classes equally often')
        found[at_once] = [rule_effect(subject, name, 2)['value'] for name in rules]
    assert max(asked[:2]) == 160 and set(asked[2:]) == {50, 10}
    assert found[50] == pytest.approx(found[500], rel=1e-3, abs=1e-2)


def test_a_reference_is_made_of_some_of_many_images(monkeypatch):
    monkeypatch.setattr(bench_module, 'REFERENCE_IMAGES', 90)
    images = openmoji('train', limit=200)
    chosen = bench_module.for_reference(images)
    assert len(chosen) == 90 and set(chosen.labels) == set(images.labels)


def test_a_batch_through_a_tokenizer_leaves_room():
    "Of 256 px 64 pictures took 8.4 GiB in the published layout, more than all of Table 1 may; counted without data."
    def held(images): # bytes beside the weights
        row = TOKENIZERS['llamagen-vq']
        with without_data(), CountedBytes(0) as counted, torch.no_grad():
            tokenizer = Tokenizer(row)
            weights = counted.now
            tokenizer.image(torch.zeros(images, row.code_dim, 16, 16).movedim(1, -1))
        return counted.peak - weights
    assert cells.images_through(256) == 32 and cells.images_through(32) == 64
    assert held(32) < 5 * 2**30 < held(64)


def test_the_script_of_table_1_reads_a_line(tmp_path, monkeypatch, capsys):
    "Two counts, each in a process of its own: what grows is drawn on to 50,000 images."
    spec = importlib.util.spec_from_file_location('table1_memory', project_root()/'scripts'/'table1_memory.py')
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, 'save_images', lambda folder, count: None)
    monkeypatch.setattr(script, 'counted_batch', lambda: 4 * 2**30)
    def given(images): return Namespace(images=images, tokenizer='', extractor='plain', bootstrap=2)
    for growth, fits in ((2**14, True), (2**17, False)): # bytes an image
        monkeypatch.setattr(script, 'run', lambda count, folder, given: dict(
            count=count, peak=2**30 + growth * count, seconds=1.))
        assert script.main(given(1000)) is fits
    assert '50,000 images: 5.76 GiB, of 8' in capsys.readouterr().out


def test_the_distance_of_many_images_is_made_of_blocks():
    "Its influences in float64 took 64 KiB an image, of 50,000 images 3 GiB; block by block they are the same."
    z, other = (torch.randn(300, 12, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (0, 1))
    given = (bootstrap_counts(300, 5, 0), *mean_and_covariance(other))
    whole = frechet_linearised(z, *given)
    assert torch.allclose(frechet_linearised(z, *given, rows=64), whole, rtol=1e-12)
    assert torch.equal(frechet_linearised(z, *given, rows=300), whole)


def test_what_is_kept_of_a_batch_pins_no_memory():
    "A small tensor of each batch, kept for itself, lay between two large ones that could not be used again."
    rows, asked = GrowingRows(), []
    for n in (3, 5000, 64, 9000): rows.add(torch.full((n, 2), float(n))); asked.append(rows.held.data_ptr())
    assert len(set(asked)) == 3 # in one tensor, which doubles
    whole = rows.whole()
    assert len(whole) == 14_067 and whole.untyped_storage().nbytes() == whole.nbytes
    assert whole[:3].eq(3).all() and whole[-9000:].eq(9000).all()
