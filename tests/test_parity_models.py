"The three published transformers at full size, in float32, against the outputs of the published implementations."
import os, time

import pytest, torch
from safetensors.torch import load_file

from maskgil.weights import CheckpointError, read_header
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
def close(a, b): return ((a - b).abs().max() / b.abs().max()).item()

@pytest.fixture(scope='module')
def files(tmp_path_factory):
    "Each system's checkpoint, as it is published."
    folder = tmp_path_factory.mktemp('models')
    for system, (_, nested, _) in SYSTEMS.items(): torch.save({nested: synthetic_weights(keys(system)), 'epoch': 1}, folder/f'{system}.pt')
    yield {system: folder/f'{system}.pt' for system in SYSTEMS}
    for file in folder.iterdir(): file.unlink()

def load(files, system, **changes):
    kind, _, options = SYSTEMS[system]
    return load_model(kind, 'b', checkpoint=files[system], **options | changes)

@pytest.mark.parametrize('system', ['maskgil-b', 'maskgit-transformer-b'])
def test_masked_logits(files, system):
    g = golden(system)
    with torch.no_grad(): logits = load(files, system).logits(g['tokens'], g['labels'], g['drop'].bool())
    assert close(logits[:, ::32], g['logits']) < 1e-4
    assert close(logits.logsumexp(-1), g['logsumexp']) < 1e-4
    assert (logits.argmax(-1) != g['argmax']).sum() <= 2

def test_causal_logits_and_greedy_tokens(files):
    g, model = golden('llamagen-gpt-b'), load(files, 'llamagen-gpt-b')
    with torch.no_grad(): logits = model.logits(g['tokens'], g['labels'])
    for name, rows in dict(logits_first=slice(0, 2), logits_mid=slice(127, 129), logits_last=slice(255, 256)).items():
        assert close(logits[:, rows], g[name]) < 1e-4
    assert (logits.argmax(-1) != g['argmax']).sum() <= 2
    for cache in (True, False): # without it every token recomputes its past, so fewer
        n = 64 if cache else 16
        tokens = sample_ar(model, g['greedy_labels'], cfg=4.0, temperature=0, dtype='float32', length=n, use_cache=cache)
        assert torch.equal(tokens, g['greedy_cfg4_tokens'][:, :n])

def test_converted(files, tmp_path):
    out = convert_checkpoint(files['maskgil-b'], 'maskgil-b', tmp_path/'ours.safetensors')
    ours, theirs = load_model('maskgil', 'b', checkpoint=out, recipe='released'), load(files, 'maskgil-b')
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters())) and read_header(out)['system'] == 'maskgil'
    with pytest.raises(CheckpointError, match='class_first is False in the file, True asked for'): load_model('maskgil', 'b', checkpoint=out)

# What must not be loaded. A tensor of one repeated zero has a shape but no size, so these files are small.

class Code:
    def __reduce__(self): return os.system, ('touch must-not-exist',)

def hollow(folder, system, **changes):
    path = folder/f'{system}.pt'
    torch.save({SYSTEMS[system][1]: {k: torch.zeros(()).expand(*shape) for k, (shape, _) in (keys(system) | changes).items()}}, path)
    return path

def cut(path):
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    return path

def written(path, content):
    torch.save(content, path)
    return path

RELEASED = dict(recipe='released')
BAD = { # what is wrong -> the file, what is asked for, the message
    'another system':     (lambda d: hollow(d, 'maskgil-b'), ('llamagen', 'b', {}), 'is a maskgil-b file, you asked for llamagen-gpt-b'),
    'and the other way':  (lambda d: hollow(d, 'llamagen-gpt-b'), ('maskgil', 'b', {}), 'is a llamagen-gpt-b file, you asked for maskgil-b'),
    'another size':       (lambda d: hollow(d, 'maskgil-b'), ('maskgil', 'l', RELEASED), 'is a maskgil-b file, you asked for maskgil-l'),
    'a size of ours':     (lambda d: hollow(d, 'maskgil-b'), ('maskgil', 'smoke-l', RELEASED), 'is a maskgil-b file, you asked for maskgil with 2 layers of width 32'),
    'another depth':      (lambda d: hollow(d, 'maskgit-transformer-b'), ('maskgit-transformer', 'besnier', dict(tokenizer='maskgit-vq')), 'you asked for maskgit-transformer-besnier'),
    'the other recipe':   (lambda d: hollow(d, 'maskgil-b'), ('maskgil', 'b', {}), "load it with recipe='released'"),
    'other codes':        (lambda d: hollow(d, 'maskgil-b'), ('maskgil', 'b', RELEASED | dict(tokenizer='chameleon-vq')), 'token_embedding.weight is (16385, 768), (8193, 768) is needed'),
    'one head for two':   (lambda d: hollow(d, 'llamagen-gpt-b'), ('llamagen', 'b', dict(code_groups=(128, 128))), 'head.weight is (16384, 768), (256, 768) is needed'),
    'an unexpected key':  (lambda d: hollow(d, 'llamagen-gpt-b', extra=([3], 'float32')), ('llamagen', 'b', {}), '1 unexpected: extra'),
    'truncated':          (lambda d: cut(hollow(d, 'maskgil-b')), ('maskgil', 'b', RELEASED), 'truncated'),
    'empty':              (lambda d: (d/'e.pt').write_bytes(b'') or d/'e.pt', ('maskgil', 'b', RELEASED), '0 bytes'),
    'code':               (lambda d: written(d/'c.pt', {'model': Code()}), ('llamagen', 'b', {}), 'weights_only=False'),
    'a tokenizer':        (lambda d: written(d/'t.pt', {'model': {'encoder.conv_blocks.0.res.0.norm1.weight': torch.zeros(128), 'quantize.embedding.weight': torch.zeros(()).expand(16384, 8)}}), ('llamagen', 'b', {}), 'is a llamagen-vq file'),
    'a language model':   (lambda d: written(d/'g.pt', {'model.embed_tokens.weight': torch.zeros(()).expand(256000, 2048), 'model.layers.0.mlp.gate_proj.weight': torch.zeros(()).expand(16384, 2048),
                                                        'model.layers.17.mlp.gate_proj.weight': torch.zeros(()).expand(16384, 2048)}), ('llamagen', 'b', {}), 'is a gemma-2b file'),
}

@pytest.mark.parametrize('case', BAD)
def test_refused(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, (kind, size, options), message = BAD[case]
    path = make(tmp_path)
    started = time.perf_counter()
    with pytest.raises(CheckpointError) as error: load_model(kind, size, checkpoint=path, **options)
    assert time.perf_counter() - started < 5
    assert message in str(error.value) and path.name in str(error.value)
    assert not (tmp_path/'must-not-exist').exists()
