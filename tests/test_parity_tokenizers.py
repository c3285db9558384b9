"The four published tokenizers at full size, in float32, against the outputs of the published implementations."
import argparse, os, time

import pytest, torch
from safetensors.torch import load_file, save_file

from maskgil.weights import CheckpointError, meta_state, read_header, read_weights, recognise, save_weights, unnest
from maskgil.checkpoints import convert_checkpoint, synthetic_weights
from maskgil.core import project_root, read_json
from maskgil.tokenizers import PUBLISHED, load_tokenizer

GOLDENS = project_root()/'tests'/'goldens'
TRAINING = {'loss.discriminator.main.0.weight': torch.ones(4, 3, 4, 4), 'loss.perceptual_loss.net.slice1.0.weight': torch.ones(4)}
WRAP = { # as each file is published: nested, with what else is in it
    'maskgit-vq': lambda w: {'epoch': 1, 'global_step': 2, 'state_dict': {**w, **TRAINING}, 'optimizer_states': [{'state': {0: {'exp_avg': torch.ones(3)}}}]},
    'chameleon-vq': lambda w: {'state_dict': {**w, **TRAINING}},
    'llamagen-vq': lambda w: {'model': w},
    'open-magvit2-vq': lambda w: {'state_dict': {**{k: torch.zeros_like(v) for k, v in w.items()}, **{f"model_ema.{k.replace('.', '')}": v for k, v in w.items()},
                                                 'model_ema.decay': torch.tensor(0.999), 'model_ema.num_updates': torch.tensor(7, dtype=torch.int32), **TRAINING}},
}

def keys(system): return read_json(GOLDENS/f'{system}.keys.json')

def write(folder, system, salt='', wrap=None):
    path = folder/f'{system}.ckpt'
    torch.save((wrap or WRAP[system])(synthetic_weights(keys(system), salt)), path)
    return path

def close(a, b): return ((a - b).abs().max() / b.abs().max()).item()

@pytest.fixture(scope='module', params=list(PUBLISHED))
def loaded(request, tmp_path_factory):
    path = write(tmp_path_factory.mktemp(request.param), request.param)
    yield load_tokenizer(request.param, checkpoint=path), load_file(GOLDENS/f'{request.param}.golden.safetensors')
    path.unlink()

def test_same_outputs(loaded):
    tokenizer, golden = loaded
    assert (tokenizer.encode(golden['image']) != golden['indices']).sum() <= 1
    assert close(tokenizer.decode(golden['indices'], clamp=False), golden['decoded']) < 1e-4
    assert close(tokenizer.decode(golden['indices']), golden['decoded'].clamp(-1, 1)) < 1e-4

def test_batch_size_and_shape_do_not_matter(loaded):
    tokenizer, golden = loaded
    assert (tokenizer.encode(golden['image'][1:]) != golden['indices'][1:]).sum() <= 1
    for size in ((16, 16), (32, 80)):
        images = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))*2 - 1
        ids = tokenizer.encode(images)
        assert ids.shape == (1, size[0]//16, size[1]//16) and ids.dtype == torch.int64
        out = tokenizer.decode(ids)
        assert out.shape == images.shape and out.isfinite().all()

def test_bfloat16(loaded):
    "Rounding moves some tokens of random weights, never the order of magnitude of an image."
    tokenizer, golden = loaded
    ids = tokenizer.encode(golden['image'], dtype='bfloat16')
    assert ids.shape == golden['indices'].shape and (ids == golden['indices']).float().mean() > 0.3
    out = tokenizer.decode(golden['indices'], dtype='bfloat16', clamp=False)
    assert out.dtype == torch.float32 and close(out, golden['decoded']) < 0.1

def test_another_salt_is_another_tokenizer(tmp_path):
    golden = load_file(GOLDENS/'chameleon-vq.golden.safetensors')
    tokenizer = load_tokenizer('chameleon-vq', checkpoint=write(tmp_path, 'chameleon-vq', salt='other'))
    assert (tokenizer.encode(golden['image']) != golden['indices']).any()

def test_plain_weights_are_used_where_there_is_no_average(tmp_path):
    "A file without `model_ema.` keys, as a converter would write it."
    weights = synthetic_weights(keys('open-magvit2-vq'))
    save_file(weights, tmp_path/'w.safetensors')
    tokenizer = load_tokenizer('open-magvit2-vq', checkpoint=tmp_path/'w.safetensors')
    assert torch.equal(tokenizer.encoder.conv_in.weight, weights['encoder.conv_in.weight'])

def test_converted_file_is_the_same_tokenizer(tmp_path):
    source = write(tmp_path, 'chameleon-vq')
    out = convert_checkpoint(source, 'chameleon-vq', tmp_path/'ours.safetensors')
    assert read_header(out)['fingerprint'] == load_tokenizer('chameleon-vq', checkpoint=out).fingerprint()
    assert all(torch.equal(a, b) for a, b in zip(load_tokenizer('chameleon-vq', checkpoint=source).parameters(), load_tokenizer('chameleon-vq', checkpoint=out).parameters()))

@pytest.mark.parametrize('prefix', ['module.', '_orig_mod.', 'module._orig_mod.'])
def test_prefixes(prefix):
    state = {f'{prefix}{k}': v for k, v in meta_state(keys('llamagen-vq')).items()}
    assert recognise(unnest({'state_dict': state})) == 'llamagen-vq'

# What must not be loaded

class Code:
    def __reduce__(self): return os.system, ('touch must-not-exist',)

def hollow(folder, system, nested='state_dict', **changes):
    "Full shapes, a few kilobytes."
    torch.save({nested: {k: torch.zeros(()).expand(*shape) for k, (shape, _) in (keys(system) | changes).items()}}, folder/f'{system}.ckpt')
    return folder/f'{system}.ckpt'

def cut(path, share=0.6):
    path.write_bytes(path.read_bytes()[:int(path.stat().st_size*share)])
    return path

def with_code(folder):
    torch.save({'state_dict': Code()}, folder/'code.ckpt')
    return folder/'code.ckpt'

def missing_key(folder):
    state = {k: torch.zeros(()).expand(*shape) for k, (shape, _) in keys('llamagen-vq').items() if k != 'encoder.conv_in.bias'}
    torch.save({'model': state}, folder/'missing.pt')
    return folder/'missing.pt'

def own(folder, name):
    return save_weights(folder/f'{name}.safetensors', load_tokenizer(name))

BAD = {
    'truncated pickle':      (lambda d: cut(write(d, 'llamagen-vq')), 'llamagen-vq', 'truncated'),
    'truncated safetensors': (lambda d: cut(own(d, 'smoke-llamagen-vq')), 'smoke-llamagen-vq', 'truncated'),
    'empty file':            (lambda d: (d/'e.pt').write_bytes(b'') and None or d/'e.pt', 'llamagen-vq', '0 bytes'),
    'text':                  (lambda d: (d/'t.pt').write_text('not weights') and d/'t.pt', 'llamagen-vq', 'no checkpoint'),
    'code':                  (with_code, 'maskgit-vq', 'weights_only=False'),
    'another tokenizer':     (lambda d: hollow(d, 'maskgit-vq'), 'llamagen-vq', 'is a maskgit-vq file, you asked for llamagen-vq'),
    'the same layout':       (lambda d: hollow(d, 'maskgit-vq'), 'chameleon-vq', 'is a maskgit-vq file, you asked for chameleon-vq'),
    'a model':               (lambda d: hollow(d, 'maskgil-b', 'model_state_dict'), 'maskgit-vq', 'is a maskgil-b file, you asked for maskgit-vq'),
    'another size':          (lambda d: hollow(d, 'chameleon-vq', **{'quantize.embedding.weight': ([16384, 256], 'float32')}), 'chameleon-vq', 'quantize.embedding.weight is (16384, 256), (8192, 256) is needed'),
    'a missing key':         (missing_key, 'llamagen-vq', '1 missing: encoder.conv_in.bias'),
    'an unexpected key':     (lambda d: hollow(d, 'llamagen-vq', **{'encoder.more.weight': ([3], 'float32')}), 'llamagen-vq', '1 unexpected: encoder.more.weight'),
    'ours, another row':     (lambda d: own(d, 'smoke-llamagen-vq'), 'smoke-maskgit-vq', 'is a smoke-llamagen-vq file, you asked for smoke-maskgit-vq'),
    'unknown':               (lambda d: save_file({'conv1.weight': torch.ones(3)}, d/'u.safetensors') or d/'u.safetensors', 'llamagen-vq', 'no system we know'),
}

@pytest.mark.parametrize('case', BAD)
def test_refused(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, name, message = BAD[case]
    path = make(tmp_path)
    started = time.perf_counter()
    with pytest.raises(CheckpointError) as error: load_tokenizer(name, checkpoint=path)
    assert time.perf_counter() - started < 5
    assert message in str(error.value) and path.name in str(error.value)
    assert not (tmp_path/'must-not-exist').exists()

def test_missing_file():
    with pytest.raises(FileNotFoundError, match='nowhere.pt'): load_tokenizer('llamagen-vq', checkpoint='nowhere.pt')

def test_training_file_of_llamagen(tmp_path):
    "Its command-line arguments are values, not code."
    torch.save({'model': {'a': torch.ones(1)}, 'args': argparse.Namespace(lr=1e-4, model='VQ-16')}, tmp_path/'t.pt')
    assert list(read_weights(tmp_path/'t.pt')) == ['a']

def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    import maskgil.checkpoints as c
    path = own(tmp_path, 'smoke-llamagen-vq')
    before = path.read_bytes()
    def full(tensors, file, metadata):
        file.write_bytes(b'half')
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(c, 'save_file', full)
    with pytest.raises(OSError, match='No space'): save_weights(path, load_tokenizer('smoke-llamagen-vq', seed=1))
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
