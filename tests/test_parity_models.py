"The three published transformers at full size, in float32, against the outputs of the published implementations."
import pytest, torch
from safetensors.torch import load_file

from maskgil.checkpoints import CheckpointError, convert, read_header, synthetic_weights
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
    out = convert(files['maskgil-b'], 'maskgil-b', tmp_path/'ours.safetensors')
    ours, theirs = load_model('maskgil', 'b', checkpoint=out, recipe='released'), load(files, 'maskgil-b')
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters())) and read_header(out)['system'] == 'maskgil'
    with pytest.raises(CheckpointError, match='class_first is False in the file, True asked for'): load_model('maskgil', 'b', checkpoint=out)

@pytest.mark.parametrize('system, kind, size, options, message', [
    ('maskgil-b', 'llamagen', 'b', {}, 'is a maskgil-b file, you asked for llamagen-gpt-b'),
    ('llamagen-gpt-b', 'maskgil', 'b', {}, 'is a llamagen-gpt-b file, you asked for maskgil-b'),
    ('maskgil-b', 'maskgil', 'l', dict(recipe='released'), 'is a maskgil-b file, you asked for maskgil-l'),
    ('maskgil-b', 'maskgil', 'mini-l', dict(recipe='released'), 'is a maskgil-b file, you asked for maskgil with 2 layers of width 192'),
    ('maskgil-b', 'maskgil', 'b', {}, "load it with recipe='released'"),
    ('maskgil-b', 'maskgil', 'b', dict(recipe='released', tokenizer='chameleon-vq'), r'token_embedding.weight is \(16385, 768\), \(8193, 768\) is needed'),
])
def test_refused(files, system, kind, size, options, message):
    with pytest.raises(CheckpointError, match=message): load_model(kind, size, checkpoint=files[system], **options)
