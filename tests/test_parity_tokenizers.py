"The published tokenizers at full size, in float32, against the outputs of the published implementations."
import argparse, os

import pytest, torch
from safetensors.torch import load_file, save_file

from clock import at_most

from maskgil import kept
from maskgil.checkpoints import convert_checkpoint, synthetic_weights
from maskgil.core import project_root, read_json
from maskgil.published import meta_state, recognise
from maskgil.reading import CheckpointError, one_set, read_weights
from maskgil.tokenizers import load_tokenizer, TOKENIZER_ROWS, TOKENIZERS
from maskgil.weights import read_header, save_weights

GOLDENS = project_root()/'tests'/'goldens'


# The files as they are published: nested, with what else is in them

DISCARDED = {
    'loss.discriminator.main.0.weight': torch.ones(4, 3, 4, 4),
    'loss.perceptual_loss.net.slice1.0.weight': torch.ones(4),
}


def maskgit_file(state):
    moments = {'state': {0: {'exp_avg': torch.ones(3)}}}
    return {'epoch': 1, 'global_step': 2, 'state_dict': state | DISCARDED, 'optimizer_states': [moments]}


def with_average(state):
    "The weights that count are the average; the plain ones are of no use here."
    plain = {key: torch.zeros_like(value) for key, value in state.items()}
    average = {f"model_ema.{key.replace('.', '')}": value for key, value in state.items()}
    counters = {
        'model_ema.decay': torch.tensor(0.999),
        'model_ema.num_updates': torch.tensor(7, dtype=torch.int32)}
    return {'state_dict': plain | average | counters | DISCARDED}


AS_PUBLISHED = {
    'maskgit-vq': maskgit_file,
    'chameleon-vq': lambda state: {'state_dict': state | DISCARDED},
    'llamagen-vq': lambda state: {'model': state},
    'open-magvit2-vq': with_average,
    'open-magvit2-vq-16384': with_average,
    'ibq-16384': with_average,
}


def keys(system): return read_json(GOLDENS/f'{system}.keys.json')


def write(folder, system, salt=''):
    path = folder/f'{system}.ckpt'
    torch.save(AS_PUBLISHED[system](synthetic_weights(keys(system), salt)), path)
    return path


def error(found, expected): return ((found - expected).abs().max() / expected.abs().max()).item()


# The same outputs

@pytest.fixture(scope='module', params=list(AS_PUBLISHED))
def loaded(request, tmp_path_factory):
    system = request.param
    path = write(tmp_path_factory.mktemp(system), system)
    yield load_tokenizer(system, checkpoint=path), load_file(GOLDENS/f'{system}.golden.safetensors')
    path.unlink()


def test_same_outputs(loaded):
    tokenizer, golden = loaded
    assert (tokenizer.encode(golden['image']) != golden['indices']).sum() <= 1
    assert error(tokenizer.decode(golden['indices'], clamp=False), golden['decoded']) < 1e-4
    assert error(tokenizer.decode(golden['indices']), golden['decoded'].clamp(-1, 1)) < 1e-4


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
    assert out.dtype == torch.float32 and error(out, golden['decoded']) < 0.1


def test_every_tokenizer_of_the_comparison_is_compared(): assert {*TOKENIZER_ROWS} <= {*AS_PUBLISHED}


@pytest.mark.parametrize('codes, system', [(1024, 'maskgit-vq'), (8192, 'chameleon-vq'), (262144, 'ibq-262144')])
def test_ibq_is_told_from_what_has_as_many_codes(codes, system, tmp_path):
    "Names are taming's, and so is the shape of the codebook; there are more blocks."
    table = {'quantize.embedding.weight': [codes, 256]}
    path = hollow('ibq-16384', **table)(tmp_path)
    assert recognise(read_weights(path)) == f'ibq-{codes}'
    if system == f'ibq-{codes}': return
    with pytest.raises(CheckpointError, match=f'is a ibq-{codes} file, you asked for {system}'):
        load_tokenizer(system, checkpoint=path)


def test_gear_is_what_it_was_trained_from(tmp_path):
    "A file of GEAR's stages: the weights, their average, which is taken, and a discriminator."
    state = {key: torch.zeros(()).expand(*shape) for key, (shape, _) in keys('llamagen-vq').items()}
    average = {key: value + 1 for key, value in state.items()}
    path = tmp_path/'gear-vq.pt'
    torch.save({'vq': state, 'vq_ema': average, 'discriminator': DISCARDED, 'steps': 3}, path)
    tokenizer = load_tokenizer('gear-vq', checkpoint=path)
    assert tokenizer.weights_taken == 'vq_ema' and tokenizer.config == TOKENIZERS['llamagen-vq']
    assert tokenizer.encoder.conv_in.weight.unique().tolist() == [1.]
    raw = load_tokenizer('gear-vq', checkpoint=path, average=False)
    assert raw.encoder.conv_in.weight.unique().tolist() == [0.]
    with pytest.raises(CheckpointError, match='is a llamagen-vq file, you asked for gear-ibq'):
        load_tokenizer('gear-ibq', checkpoint=path)


def test_another_salt_is_another_tokenizer(tmp_path):
    golden = load_file(GOLDENS/'chameleon-vq.golden.safetensors')
    other = write(tmp_path, 'chameleon-vq', salt='other')
    tokenizer = load_tokenizer('chameleon-vq', checkpoint=other)
    assert (tokenizer.encode(golden['image']) != golden['indices']).any()


def test_plain_weights_are_used_where_there_is_no_average(tmp_path):
    "A file without `model_ema.` keys, as a converter would write it."
    plain = synthetic_weights(keys('open-magvit2-vq'))
    save_file(plain, tmp_path/'plain.safetensors')
    tokenizer = load_tokenizer('open-magvit2-vq', checkpoint=tmp_path/'plain.safetensors')
    assert torch.equal(tokenizer.encoder.conv_in.weight, plain['encoder.conv_in.weight'])


def test_converted_file_is_the_same_tokenizer(tmp_path):
    source = write(tmp_path, 'chameleon-vq')
    ours = convert_checkpoint(source, 'chameleon-vq', tmp_path/'ours.safetensors')
    published, converted = (load_tokenizer('chameleon-vq', checkpoint=file) for file in (source, ours))
    assert read_header(ours)['fingerprint'] == converted.fingerprint()
    assert all(map(torch.equal, published.parameters(), converted.parameters()))


@pytest.mark.parametrize('prefix', ['module.', '_orig_mod.', 'module._orig_mod.'])
def test_prefixes(prefix):
    state = {f'{prefix}{key}': value for key, value in meta_state(keys('llamagen-vq')).items()}
    assert recognise(one_set({'state_dict': state})[0]) == 'llamagen-vq'

# What must not be loaded

class Code:
    def __reduce__(self): return os.system, ('touch must-not-exist',)


def hollow(system, nested='state_dict', without=(), **changes):
    "A file of full shapes and a few kilobytes."
    def make(folder):
        shapes = {key: shape for key, (shape, _) in keys(system).items() if key not in without} | changes
        path = folder/f'{system}.ckpt'
        torch.save({nested: {key: torch.zeros(()).expand(*shape) for key, shape in shapes.items()}}, path)
        return path
    return make


def own(name):
    return lambda folder: save_weights(folder/f'{name}.safetensors', load_tokenizer(name))


def truncated(make, share=0.6):
    def cut(folder):
        path = make(folder)
        path.write_bytes(path.read_bytes()[:int(path.stat().st_size*share)])
        return path
    return cut


def holding(content):
    "A file with these bytes."
    def make(folder):
        (folder/'file.pt').write_bytes(content)
        return folder/'file.pt'
    return make


def code(folder):
    torch.save({'state_dict': Code()}, folder/'code.ckpt')
    return folder/'code.ckpt'


def unknown(folder):
    save_file({'conv1.weight': torch.ones(3)}, folder/'unknown.safetensors')
    return folder/'unknown.safetensors'


BAD = { # how the file is made, what it is loaded as, what the message says
    'truncated pickle': (
        truncated(lambda folder: write(folder, 'llamagen-vq')), 'llamagen-vq', 'truncated'),
    'truncated safetensors': (
        truncated(own('smoke-llamagen-vq')), 'smoke-llamagen-vq', 'truncated'),
    'empty file': (
        holding(b''), 'llamagen-vq', '0 bytes'),
    'text': (
        holding(b'not weights'), 'llamagen-vq', 'no checkpoint'),
    'code': (
        code, 'maskgit-vq', 'weights_only=False'),
    'another tokenizer': (
        hollow('maskgit-vq'), 'llamagen-vq', 'is a maskgit-vq file, you asked for llamagen-vq'),
    'the same layout': (
        hollow('maskgit-vq'), 'chameleon-vq', 'is a maskgit-vq file, you asked for chameleon-vq'),
    'a model': (
        hollow('maskgil-b', 'model_state_dict'), 'maskgit-vq', 'is a maskgil-b file, you asked for maskgit-vq'),
    'another size': (
        hollow('chameleon-vq', **{'quantize.embedding.weight': [16384, 256]}), 'chameleon-vq',
        'quantize.embedding.weight is (16384, 256), (8192, 256) is needed'),
    'a missing key': (
        hollow('llamagen-vq', 'model', without=('encoder.conv_in.bias',)), 'llamagen-vq',
        '1 missing: encoder.conv_in.bias'),
    'an unexpected key': (
        hollow('llamagen-vq', **{'encoder.more.weight': [3]}), 'llamagen-vq', '1 unexpected: encoder.more.weight'),
    'ours, another row': (
        own('smoke-llamagen-vq'), 'smoke-maskgit-vq', 'is a smoke-llamagen-vq file, you asked for smoke-maskgit-vq'),
    'unknown': (
        unknown, 'llamagen-vq', 'no system we know'),
}


@pytest.mark.parametrize('case', BAD)
def test_refused(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, name, message = BAD[case]
    path = make(tmp_path)
    with at_most(5), pytest.raises(CheckpointError) as refused: load_tokenizer(name, checkpoint=path)
    assert message in str(refused.value) and path.name in str(refused.value)
    assert not (tmp_path/'must-not-exist').exists()


def test_missing_file():
    with pytest.raises(FileNotFoundError, match='nowhere.pt'): load_tokenizer('llamagen-vq', checkpoint='nowhere.pt')


def test_training_file_of_llamagen(tmp_path):
    "Its command-line arguments are values, not code."
    arguments = argparse.Namespace(lr=1e-4, model='VQ-16')
    torch.save({'model': {'a': torch.ones(1)}, 'args': arguments}, tmp_path/'training.pt')
    assert list(read_weights(tmp_path/'training.pt')) == ['a']


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = own('smoke-llamagen-vq')(tmp_path)
    before = path.read_bytes()

    def full(tensors, file, metadata):
        file.write_bytes(b'half')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(kept, 'save_file', full)
    with pytest.raises(OSError, match='No space'): save_weights(path, load_tokenizer('smoke-llamagen-vq', seed=1))
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
