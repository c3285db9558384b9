"What the paper's profile asks of a study: ranks that share its work, images as ImageNet has them, memory that is flat."
import math, shutil
from dataclasses import replace

import pytest

from maskgil.bench import Bench
from maskgil.cells import stability_cell
from maskgil.data import openmoji, to_rgb
from maskgil.profiles import PROFILES, override
from maskgil.refusals import trained_configs
from maskgil.studies import defaults, STUDIES

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
