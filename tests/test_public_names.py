"Names that programs of others use stay, with their arguments."
import inspect

import pytest
import torch


def arguments(function) -> list[str]: return list(inspect.signature(function).parameters)


def test_tokenizers():
    from maskgil.tokenizers import TOKENIZERS, load_tokenizer
    published = ['maskgit-vq', 'chameleon-vq', 'llamagen-vq', 'open-magvit2-vq']
    assert all(name in TOKENIZERS and f'mini-{name}' in TOKENIZERS for name in published)
    tokenizer = load_tokenizer('smoke-llamagen-vq', checkpoint=None)
    ids = tokenizer.encode(torch.zeros(2, 3, 32, 32))
    assert (ids.dtype, tuple(ids.shape)) == (torch.int64, (2, 8, 8)) and tokenizer.decode(ids).shape == (2, 3, 32, 32)
    assert tokenizer.codebook_size == 256 and tokenizer.downsample == 4


def test_models():
    from maskgil.models import SIZES, load_model
    assert all(name in SIZES for name in ('b', 'l', 'xl', 'xxl'))
    assert arguments(load_model)[:5] == ['kind', 'size', 'checkpoint', 'recipe', 'tokenizer']
    options = dict(size='smoke-b', tokenizer='smoke-llamagen-vq', classes=9, grid=(4, 4))
    labels, drop = torch.tensor([0, 1]), torch.tensor([False, True])
    for recipe in ('paper', 'released'):
        mar = load_model('maskgil', recipe=recipe, **options)
        tokens = torch.full((2, 4, 4), 256)
        assert mar.logits(tokens, labels, drop=drop).shape in [(2, 16, 256), (2, 16, 257)]
    assert load_model('llamagen', **options).logits(torch.zeros(2, 3, dtype=torch.long), labels).shape == (2, 4, 256)
    assert load_model('maskgit-transformer', **options).logits(tokens, labels, drop=None).shape == (2, 16, 257)


def test_samplers():
    from maskgil.sampling import sample_ar, sample_fusion, sample_mar
    assert arguments(sample_mar)[:5] == ['model', 'labels', 'grid', 'steps', 'cfg']
    assert set(arguments(sample_ar)) >= {'model', 'labels', 'grid', 'cfg', 'top_k', 'top_p', 'temperature'}
    assert arguments(sample_fusion)[:6] == ['ar', 'mar', 'labels', 'grid', 'ar_tokens', 'mar_steps']


def test_the_pipeline():
    from maskgil import MaskGILPipeline
    assert callable(MaskGILPipeline.from_pretrained) and callable(MaskGILPipeline.save_pretrained)


@pytest.mark.parametrize('names', [
    'maskgil.study: PROFILES, run_cell, records, published, long_table, over_seeds, best_guidance, compare, promote',
    'maskgil.experiment: Bench, generation_cell, train_model, reconstruction_cell',
    'maskgil.training: MaskedObjective, CausalObjective, TrainConfig, TrainState, fit, load_milestone',
    'maskgil.cli: parameters', 'maskgil.train: run_program', 'maskgil.checkpoints: convert_checkpoint',
    'maskgil.planner: plan, commands', 'maskgil.text: list_captioned, caption_folders, load_text_encoder, scene_set',
    'maskgil.weights: CHECKPOINTS, CheckpointError, read_weights',
    'maskgil.pipeline: class_ids, draw_tokens, decode_tokens, save_gif',
    'maskgil.shards: open_source, TarSource', 'maskgil.data: TokenSet, image_folder, read_image, fill_array',
])
def test_modules_that_were_cut(names):
    import importlib
    module, _, wanted = names.partition(': ')
    assert not [n for n in wanted.split(', ') if not hasattr(importlib.import_module(module), n)]
