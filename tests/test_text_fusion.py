"Lumina-mGPT begins the pictures of texts: a small instance of transformers' own class, from its folder to a figure."
import dataclasses

import matplotlib.figure
import pytest

from maskgil import bench as benches, text_study
from maskgil.checks import ParameterError
from maskgil.external import check_lumina, write_small_gemma, write_small_lumina
from maskgil.notebook import open_study
from maskgil.planner import plan
from maskgil.processes import Place
from maskgil.profiles import override, PROFILES
from maskgil.published import CHECKPOINTS
from maskgil.records import run_key
from maskgil.sampling import sample_ar
from maskgil.studies import defaults, rows_of, STUDIES
from maskgil.tables import data_label
from maskgil.text_study import (
    Asked, beginning_of, draw_sets, lumina_beginning, text_pipeline, TextBench, train_stage,
)

CODES = 128 # of the small tokenizer
STUDY = STUDIES['text_to_image']
SMALL = override(PROFILES['smoke'], {
    'text.tokenizer': 'chameleon-vq', 'tokenizer.steps': 2, 'tokenizer.batch_size': 8, 'evaluation.steps': 2,
    'evaluation.cfg': [2.], 'text.budgets': [4, 16], 'text.scenes': [72, 70], 'text.stage_images': [16, 8],
    'text.stage_batch': [8, 4], 'text.probe_images': 12, 'text.judged_images': 6, 'text.bucket_images': 6})


@pytest.fixture(scope='module')
def lumina(tmp_path_factory): return write_small_lumina(tmp_path_factory.mktemp('lumina'), CODES)

@pytest.fixture
def bench(lumina, clean_cache):
    return TextBench(SMALL, device='cpu', fusion='lumina', lumina=str(lumina))

@pytest.fixture
def asked(monkeypatch):
    "The cells of the notebook's parameters, where the small profile is the one that applies."
    monkeypatch.setitem(PROFILES, 'small', dataclasses.replace(SMALL, name='small'))
    def cells(profile='small', **given):
        monkeypatch.setenv('MASKGIL_PROFILE', profile)
        p = defaults('text_to_image', **given)
        return list(STUDY.grid(STUDY.profile(p), p))
    return cells


def test_from_a_published_folder_to_a_figure(asked, lumina, clean_cache, monkeypatch):
    "Real pictures of OpenMoji; Lumina draws a quarter, half and all of the tokens, and no AR model is trained."
    monkeypatch.setattr(text_study, 'trained_ar', None) # nobody calls it
    asked() # the profile is there
    study = open_study('text_to_image', defaults('text_to_image', fusion='lumina', lumina=str(lumina)))
    record, = study.run()
    points = {point['ar_share']: point['metrics'] for point in record.metrics['curve'] if 'ar_share' in point}
    assert list(points) == [.25, .5, 1.]
    for metrics in points.values():
        assert {'found_caption', 'seconds_per_image'} <= metrics.keys() and metrics['seconds_per_image']['value'] > 0
    begun = record.metrics['protocol']['begun_by']
    assert (begun['system'], begun['cfg'], begun['top_k']) == ('Lumina-mGPT', 4., 2000)
    assert record.metrics['ar_flops'] is None and len(record.rows['lumina_files']) > 1
    assert [held['label'] for held in record.metrics['fusion_held'][::6]] == ['0% AR', '25% AR', '50% AR', '100% AR']
    assert data_label(record) == 'OpenMoji 32 px, small profile, Lumina-mGPT'
    table = study.table('When AR begins the picture')
    assert len(table) == 3 and any('Lumina-mGPT' in head for head in table)
    assert isinstance(study.figure('fusion-of-texts'), matplotlib.figure.Figure)
    assert text_pipeline(study.bench).ar is None # what is published stays where it is


def test_pictures_begin_with_what_lumina_draws(bench, lumina, monkeypatch):
    "The prompts are the captions, in every batch, and the seeds those of the pictures."
    monkeypatch.setattr(text_study, 'LUMINA_AT_ONCE', 2)
    first, model = beginning_of(bench), train_stage(bench, 0).model
    captions, grid = ['a red cat', 'the flag', 'a blue dog'], (4, 4)
    drawing = text_study.drawing_of(bench, model, first, dtype='float32')
    tokens = drawing.tokens(captions, grid, 8)
    alone = lumina_beginning(lumina).model
    for i, caption in enumerate(captions):
        ours = sample_ar(alone, alone.describe([caption]), grid, 4., 2000, length=8, first=i, dtype='float32')
        assert tokens[i].flatten()[:8].equal(ours[0]), caption
    assert tokens.max() < CODES and not tokens.equal(drawing.tokens(captions[::-1], grid, 8))


@pytest.mark.parametrize('ranks, blocks', [
    (1, ['0-0-3.npy', '1-0-2.npy']), (2, ['0-0-2.npy', '0-2-3.npy', '1-0-2.npy'])])
def test_all_ranks_draw_and_go_on(ranks, blocks, bench, tmp_path, monkeypatch):
    "What is drawn in blocks, by one or two, is what is drawn at once; after an interruption, what is missing."
    first, model = beginning_of(bench), train_stage(bench, 0).model
    asked = [Asked(['a red cat', 'the flag', 'a blue dog'], (16, 16)), Asked(['the cat', 'a dog'], (8, 32))]
    whole = draw_sets(bench, model, asked, first=first, share=.5, dtype='float32')
    drawn, real = [], text_study.save_array
    def noted(path, array):
        drawn.append(path.name)
        return real(path, array)
    def run_here(module, arguments, processes):
        for rank in range(processes):
            monkeypatch.setattr(text_study, 'place', lambda rank=rank: Place(rank, ranks))
            text_study.do_share(arguments[1])
    monkeypatch.setattr(text_study, 'save_array', noted)
    monkeypatch.setattr(text_study, 'run_here', run_here)
    monkeypatch.setenv('MASKGIL_PROCESSES', str(ranks))
    bench.work = tmp_path
    shared = draw_sets(bench, model, asked, first=first, share=.5, dtype='float32')
    assert all(ours.equal(theirs) for ours, theirs in zip(whole, shared))
    assert sorted(drawn) == blocks
    next(tmp_path.rglob(blocks[1])).unlink()
    draw_sets(bench, model, asked, first=first, share=.5, dtype='float32')
    assert drawn[len(blocks):] == blocks[1:2]


def test_a_cell_of_lumina(asked, lumina, tmp_path):
    "A record of its own, with the files in its key; as it was where nothing is asked."
    (trained,), (draws, cell) = asked(), asked(fusion='lumina', lumina=str(lumina))
    assert trained.parameters == dict(size='xl', encoder='minilm') and trained.arguments == {}
    assert cell.parameters == draws.parameters == trained.parameters | dict(fusion='lumina')
    assert cell.arguments == dict(fusion='lumina', lumina=str(lumina))
    assert len(rows_of(SMALL, cell)['lumina_files']) > 1 and 'lumina_files' not in rows_of(SMALL, trained)
    key = lambda cell: run_key('text_to_image', SMALL, cell.parameters, 0, rows=rows_of(SMALL, cell))
    before = key(cell)
    other = asked(fusion='lumina', lumina=str(write_small_lumina(tmp_path/'other', CODES, seed=1)))[-1]
    assert before == key(cell) and len({before, key(other), key(trained)}) == 3


def test_a_plan_counts_what_lumina_draws():
    "And no training of an AR model: the other row is that of MaskGIL's two stages alone."
    draws, trains = STUDY.grid(PROFILES['paper'], defaults('text_to_image', fusion='lumina'))
    row = plan([(PROFILES['paper'], draws)], ['8xH100']).iloc[0]
    assert row.model == 'lumina-mgpt-7b' and 7e9 < row.parameters < 7.1e9 and 30 < row.gib < 40
    assert row.images == 3 * 17 * 295 and row.training_flops == 0
    assert row.hours * 8 * 989e12 * .4 * 3600 == pytest.approx(2 * 1.75 * 17 * 295 * 16e12, rel=.2)
    assert trains.columns is None and trains.steps is None


def test_what_cannot_begin_is_refused_before_training(asked, lumina, tmp_path, monkeypatch):
    monkeypatch.setenv('MASKGIL_CHECKPOINTS', str(tmp_path/'none'))
    def refused(match, **given):
        with pytest.raises(ParameterError, match=match) as error: asked(**given)
        assert '\n' not in str(error.value)
    refused('chameleon-vq, and texts of the profile smoke have llamagen-vq: .* fusion trained', profile='smoke',
            fusion='lumina')
    refused("there is no .*nowhere", fusion='lumina', lumina='/nowhere')
    refused('give lumina, a folder or a repository of the hub such as Alpha-VLLM/Lumina-mGPT-7B-512', fusion='lumina')
    refused('is a language-model of another size, you asked for lumina-mgpt', fusion='lumina',
            lumina=str(write_small_gemma(tmp_path/'gemma')))
    refused('words for 64 image codes, and the tokenizer has 128', fusion='lumina',
            lumina=str(write_small_lumina(tmp_path/'other')))
    refused('choose fusion lumina', lumina=str(lumina))
    refused('fusion', fusion='luminna')


def test_a_repository_is_looked_at_without_its_weights(lumina, monkeypatch):
    wanted = []
    def snapshot_download(name, revision, allow_patterns):
        wanted.append(allow_patterns)
        return str(lumina)
    monkeypatch.setattr('huggingface_hub.snapshot_download', snapshot_download)
    assert check_lumina('Alpha-VLLM/Lumina', CODES) == lumina
    assert not any('safetensors' in pattern for pattern in wanted[0])


def test_lumina_is_found_by_its_content(lumina, tmp_path, monkeypatch):
    "In any folder of MASKGIL_CHECKPOINTS."
    monkeypatch.setenv('MASKGIL_CHECKPOINTS', str(tmp_path))
    monkeypatch.setenv('MASKGIL_CACHE', str(tmp_path/'.cache'))
    row = CHECKPOINTS['lumina-mgpt-7b']
    marks = {'model.layers.0.self_attn.q_norm.bias': (1, 8)}
    monkeypatch.setitem(CHECKPOINTS, 'lumina-mgpt-7b', dataclasses.replace(row, marks=marks))
    (tmp_path/'downloaded').symlink_to(lumina)
    assert benches.published_lumina() == tmp_path/'downloaded'
