"Table 5 compares whole training steps: the count of a step is that of a real one, the same each time, at any batch."
import os

import pytest
import torch

from maskgil.bench import Bench
from maskgil.cells import step_batch, step_cell, step_row, STEP_OBJECTIVES, TrainingStep
from maskgil.losses import LOGITS_AT_ONCE
from maskgil.machines import counted_step, peak_bytes
from maskgil.models import model_config
from maskgil.profiles import PROFILES

os.environ['KINETO_LOG_LEVEL'] = '99' # the profiler writes of a missing GPU
SMOKE = Bench(PROFILES['smoke'], device='cpu')


@pytest.fixture(scope='module')
def config():
    return model_config('maskgil', 'b', layers=2, heads=4, width=128, codebook_size=4096, classes=10)


@pytest.mark.parametrize('head', STEP_OBJECTIVES)
def test_a_counted_step_holds_what_a_real_one_holds(config, head, monkeypatch):
    monkeypatch.setitem(LOGITS_AT_ONCE, 'cpu', LOGITS_AT_ONCE['gpu']) # what is counted is a GPU's step
    objective, images = STEP_OBJECTIVES[head](config.mask_id), 6
    counted = counted_step(config, objective, step_batch(config, images), bf16=False)
    step = TrainingStep(config, head, 'float32', 'cpu')
    step.gradients(1) # which are held, as they are counted
    taken = step.held() + peak_bytes(lambda: step.gradients(images))
    assert counted == pytest.approx(taken, rel=.15)
    assert counted == counted_step(config, objective, step_batch(config, images), bf16=False)


def test_the_memory_of_192_images_needs_no_memory():
    "The paper's step with the largest codebook, in seconds: logits of 192 images are far more than this machine has."
    large = model_config('maskgil', 'b', layers=2, codebook_size=2**18)
    plain, sliced = (counted_step(large, make(large.mask_id), step_batch(large, 192), True) / 2**30
                     for make in STEP_OBJECTIVES.values())
    logits = 192 * 163 * 2**18 * 4 / 2**30 # in float32
    assert plain > 2 * logits > 60 > 2 * sliced


def test_a_cell_says_how_its_numbers_were_found():
    found = step_cell(SMOKE, 4096, 'sliced')
    assert found['row'] == 'smoke-b' and found['images'] == 192 and found['images_at_once'] == 2
    assert found['step_memory_gib']['label'] == 'memory of a whole step, counted (GiB)'
    assert found['step_images_per_second']['label'].endswith(', in pieces of 2')
    memory = [step_cell(SMOKE, codes, head)['step_memory_gib']['value']
              for codes, head in ((512, 'plain'), (4096, 'plain'), (4096, 'sliced'))]
    assert memory[0] < memory[1] > memory[2] == found['step_memory_gib']['value']


def test_the_paper_s_model_is_taken_where_it_fits(monkeypatch):
    for gib, row in ((64, 'b'), (7, 'mini-b')):
        monkeypatch.setattr('maskgil.cells.device_memory', lambda device: gib)
        assert step_row(Bench(PROFILES['mini'], device='cpu'), 'b') == row
    assert step_row(SMOKE, 'b') == 'smoke-b'


def test_hidden_tokens_are_as_many_in_each_image():
    batch = step_batch(model_config('maskgil', 'b'), 3)
    assert batch['hidden'].sum(1).tolist() == [163] * 3 # 2/pi of 256
    assert ((batch['tokens'] == 16384).flatten(1) == batch['hidden']).all()
    assert torch.equal(batch['tokens'], step_batch(model_config('maskgil', 'b'), 3)['tokens'])
