"The reference's models give the reference's numbers again, and other models do not."
import dataclasses

import pytest
import torch

from maskgil import bench as bench_module
from maskgil.bench import committed_file, train_model
from maskgil.models import load_model
from maskgil.profiles import PROFILES, settings
from maskgil.records import Record
from maskgil.remeasure import bench_of, cell_of, keep_models, measured_again, side_by_side
from maskgil.studies import STUDIES
from maskgil.weights import save_weights


@pytest.fixture
def record(tmp_path, monkeypatch):
    "One cell of the study of sizes in the smallest profile, trained and measured, whose model is kept."
    monkeypatch.setenv('MASKGIL_CACHE', str(tmp_path/'cache'))
    monkeypatch.setattr(bench_module, 'REFERENCE_MODELS', (str(tmp_path/'models'), 'models'))
    made = Record('scaling', 'smoke', dict(size='b', recipe='paper'), {}, seed=0, settings=settings(PROFILES['smoke']))
    metrics = STUDIES['scaling'].run(bench_of(made), cell_of(made), tmp_path)
    return dataclasses.replace(made, metrics=metrics, source='reference')


def test_the_same_model_gives_the_same_numbers(record):
    with pytest.raises(FileNotFoundError, match='do not come with the code'): measured_again(record)
    [file] = keep_models(record)
    assert file.stat().st_size < 200_000
    again = measured_again(record)
    found = side_by_side([record], [again])
    assert len(found) > 20 and found.within.all()
    assert {'recognition', 'fid_el0'} <= set(found.metric) and 'seconds_per_image' not in set(found.metric)
    assert not again.metrics['history'][1:] # nothing was trained


def test_another_model_does_not(record):
    keep_models(record)
    bench = bench_of(record)
    trained = train_model(bench, 'b')
    other = load_model(**trained.options, seed=7)
    torch.manual_seed(0)
    for weight in other.parameters(): weight.data.normal_()
    save_weights(committed_file(trained), other, dtype=torch.bfloat16)
    assert not side_by_side([record], [measured_again(record)]).within.all()


def test_a_step_that_was_not_kept_is_refused(record):
    keep_models(record)
    bench = dataclasses.replace(bench_of(record), committed=True)
    trained = train_model(bench, 'b')
    trained.steps[0] = 1
    with pytest.raises(ValueError, match='epoch 0 were not committed'): trained.at(0)
