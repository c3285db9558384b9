"The three published transformers at full size, in float32, against the outputs of the published implementations."
import os

import pytest, torch
from safetensors.torch import load_file

from clock import at_most

from maskgil.reading import CheckpointError
from maskgil.weights import read_header
from maskgil.checkpoints import convert_checkpoint, synthetic_weights
from maskgil.core import project_root, read_json
from maskgil.models import load_model
from maskgil.sampling import sample_ar

GOLDENS = project_root()/'tests'/'goldens'
SYSTEMS = { # system -> kind, the key its weights lie under, options
    'maskgil-b':             ('maskgil', 'model_state_dict', dict(recipe='released')),
    'llamagen-gpt-b':        ('llamagen', 'model', {}),
    'maskgit-transformer-b': ('maskgit-transformer', 'model_state_dict', dict(tokenizer='maskgit-vq')),
}


def keys(system): return read_json(GOLDENS/f'{system}.keys.json')
def golden(system): return load_file(GOLDENS/f'{system}.golden.safetensors')
def relative_error(ours, theirs): return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    "Each system's checkpoint, as it is published."
    folder = tmp_path_factory.mktemp('models')
    paths = {system: folder/f'{system}.pt' for system in SYSTEMS}
    for system, (_, nested, _) in SYSTEMS.items():
        torch.save({nested: synthetic_weights(keys(system)), 'epoch': 1}, paths[system])
    yield paths
    for path in folder.iterdir(): path.unlink()


def load(files, system, **changes):
    kind, _, options = SYSTEMS[system]
    return load_model(kind, 'b', checkpoint=files[system], **options | changes)


@pytest.mark.parametrize('system', ['maskgil-b', 'maskgit-transformer-b'])
def test_masked_logits(files, system):
    expected = golden(system)
    model = load(files, system)
    with torch.no_grad(): logits = model.logits(expected['tokens'], expected['labels'], expected['drop'].bool())
    assert relative_error(logits[:, ::32], expected['logits']) < 1e-4
    assert relative_error(logits.logsumexp(-1), expected['logsumexp']) < 1e-4
    assert (logits.argmax(-1) != expected['argmax']).sum() <= 2


def test_causal_logits_and_greedy_tokens(files):
    expected, model = golden('llamagen-gpt-b'), load(files, 'llamagen-gpt-b')
    with torch.no_grad(): logits = model.logits(expected['tokens'], expected['labels'])
    for name, rows in dict(logits_first=slice(0, 2), logits_mid=slice(127, 129), logits_last=slice(255, 256)).items():
        assert relative_error(logits[:, rows], expected[name]) < 1e-4
    assert (logits.argmax(-1) != expected['argmax']).sum() <= 2
    greedy = dict(cfg=4.0, temperature=0, dtype='float32')
    for use_cache, length in ((True, 64), (False, 16)): # without a cache every token recomputes its past, so fewer
        tokens = sample_ar(model, expected['greedy_labels'], length=length, use_cache=use_cache, **greedy)
        assert torch.equal(tokens, expected['greedy_cfg4_tokens'][:, :length])


def test_converted(files, tmp_path):
    path = convert_checkpoint(files['maskgil-b'], 'maskgil-b', tmp_path/'ours.safetensors')
    ours, theirs = load_model('maskgil', 'b', checkpoint=path, recipe='released'), load(files, 'maskgil-b')
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters()))
    assert read_header(path)['system'] == 'maskgil'
    with pytest.raises(CheckpointError, match='class_first is False in the file, True asked for'):
        load_model('maskgil', 'b', checkpoint=path)


# What must not be loaded. A tensor of one repeated zero has a shape but no size, so these files are small.

class Code:
    def __reduce__(self): return os.system, ('touch must-not-exist',)


def zeros(*shape): return torch.zeros(()).expand(*shape)


def saved(path, content):
    torch.save(content, path)
    return path


def hollow(folder, system, **changes):
    "A checkpoint of a system without its numbers."
    weights = {key: zeros(*shape) for key, (shape, _) in (keys(system) | changes).items()}
    return saved(folder/f'{system}.pt', {SYSTEMS[system][1]: weights})


def cut(path):
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    return path


def emptied(path):
    path.write_bytes(b'')
    return path


TOKENIZER = {'encoder.conv_blocks.0.res.0.norm1.weight': torch.zeros(128), 'quantize.embedding.weight': zeros(16384, 8)}
LANGUAGE_MODEL = {'model.embed_tokens.weight': zeros(256000, 2048)} | {
    f'model.layers.{layer}.mlp.gate_proj.weight': zeros(16384, 2048) for layer in (0, 17)}

ASKED = { # what is asked for -> arguments of load_model
    'maskgil-b':                   ('maskgil', 'b', dict(recipe='released')),
    'maskgil-l':                   ('maskgil', 'l', dict(recipe='released')),
    'a small maskgil':             ('maskgil', 'smoke-l', dict(recipe='released')),
    'maskgil-b of the paper':      ('maskgil', 'b', {}),
    'maskgil-b of chameleon':      ('maskgil', 'b', dict(recipe='released', tokenizer='chameleon-vq')),
    'llamagen-gpt-b':              ('llamagen', 'b', {}),
    'llamagen-gpt-b in digits':    ('llamagen', 'b', dict(code_groups=(128, 128))),
    'maskgit-transformer-besnier': ('maskgit-transformer', 'besnier', dict(tokenizer='maskgit-vq')),
}

BAD = { # what is wrong -> the file, what is asked for, the message
    'another system':    (lambda d: hollow(d, 'maskgil-b'), 'llamagen-gpt-b',
                          'is a maskgil-b file, you asked for llamagen-gpt-b'),
    'and the other way': (lambda d: hollow(d, 'llamagen-gpt-b'), 'maskgil-b of the paper',
                          'is a llamagen-gpt-b file, you asked for maskgil-b'),
    'another size':      (lambda d: hollow(d, 'maskgil-b'), 'maskgil-l',
                          'is a maskgil-b file, you asked for maskgil-l'),
    'a size of ours':    (lambda d: hollow(d, 'maskgil-b'), 'a small maskgil',
                          'is a maskgil-b file, you asked for maskgil with 2 layers of width 32'),
    'another depth':     (lambda d: hollow(d, 'maskgit-transformer-b'), 'maskgit-transformer-besnier',
                          'you asked for maskgit-transformer-besnier'),
    'the other recipe':  (lambda d: hollow(d, 'maskgil-b'), 'maskgil-b of the paper',
                          "load it with recipe='released'"),
    'other codes':       (lambda d: hollow(d, 'maskgil-b'), 'maskgil-b of chameleon',
                          'token_embedding.weight is (16385, 768), (8193, 768) is needed'),
    'one head for two':  (lambda d: hollow(d, 'llamagen-gpt-b'), 'llamagen-gpt-b in digits',
                          'head.weight is (16384, 768), (256, 768) is needed'),
    'an unexpected key': (lambda d: hollow(d, 'llamagen-gpt-b', extra=([3], 'float32')), 'llamagen-gpt-b',
                          '1 unexpected: extra'),
    'truncated':         (lambda d: cut(hollow(d, 'maskgil-b')), 'maskgil-b', 'truncated'),
    'empty':             (lambda d: emptied(d/'e.pt'), 'maskgil-b', '0 bytes'),
    'code':              (lambda d: saved(d/'c.pt', {'model': Code()}), 'llamagen-gpt-b', 'weights_only=False'),
    'a tokenizer':       (lambda d: saved(d/'t.pt', {'model': TOKENIZER}), 'llamagen-gpt-b', 'is a llamagen-vq file'),
    'a language model':  (lambda d: saved(d/'g.pt', LANGUAGE_MODEL), 'llamagen-gpt-b', 'is a gemma-2b file'),
}


@pytest.mark.parametrize('case', BAD)
def test_refused(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, asked, message = BAD[case]
    path, (kind, size, options) = make(tmp_path), ASKED[asked]
    with at_most(5), pytest.raises(CheckpointError) as error: load_model(kind, size, checkpoint=path, **options)
    assert message in str(error.value) and path.name in str(error.value)
    assert not (tmp_path/'must-not-exist').exists()
