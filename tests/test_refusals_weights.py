"Files of weights that are not what they seem: each is refused by name, or read by the one rule for all kinds of file."
import argparse, gzip, json, os, pickle, re, shutil, struct, subprocess, sys, tarfile, zipfile

import numpy as np
import pytest, torch
from safetensors.torch import load_file, save_file
from torch import nn

from clock import at_most

from maskgil import weights
from maskgil.checkpoints import convert_checkpoint, synthetic_weights
from maskgil.core import check_real, check_whole, project_root, read_json
from maskgil.models import build_model, load_model, model_config, ModelConfig
from maskgil.reading import CheckpointError, is_average, leads_to_weights, plain_names, read_file, read_weights
from maskgil.tokenizers import load_tokenizer, Tokenizer, TokenizerConfig
from maskgil.weights import find_folder, read_header, save_weights, unwrapped

OPTIONS = dict(kind='maskgil', size='smoke-b', tokenizer='smoke-llamagen-vq', classes=3, grid=(4, 4))
TEXTS = OPTIONS | dict(text_width=6)
TOKENIZER = 'smoke-llamagen-vq'


def state_of(**changes): return load_model(**OPTIONS | changes).state_dict()


def plus(state, number): return {k: v + number for k, v in state.items()}


def prefixed(prefix, state): return {prefix + k: v for k, v in state.items()}


def load(path, **changes): return load_model(**OPTIONS | changes, checkpoint=path)


def same(model, state): return all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def refused(path, **changes):
    "The message, which names the file and comes at once."
    with at_most(5), pytest.raises((CheckpointError, OSError)) as error: load(path, **changes)
    assert os.path.basename(path) in str(error.value)
    return str(error.value)


# One rule for pickle and safetensors

PREFIXES = ['module.', '_orig_mod.', 'module._orig_mod.', '_orig_mod.module.', 'module.module.',
            '_fsdp_wrapped_module.', 'model.', 'model.module._orig_mod.', 'module.model.', 'net.',
            'state_dict.model.', 'generator.']


@pytest.mark.parametrize('prefix', PREFIXES)
@pytest.mark.parametrize('kind', ['pt', 'safetensors'])
@pytest.mark.parametrize('options', [{}, dict(text_width=6)], ids=['classes', 'texts'])
def test_prefixes(prefix, kind, options, tmp_path):
    state, path = state_of(**options), tmp_path/f'a.{kind}'
    named = prefixed(prefix, state)
    torch.save(named, path) if kind == 'pt' else save_file(named, path)
    assert same(load(path, **options), state)


@pytest.mark.parametrize('keys', [
    ['model'], ['module'], ['state_dict'], ['model_state_dict'], ['model', 'module'], ['state_dict', 'model'],
    ['network'], ['ema'], ['model_ema'], ['ema_state_dict'], ['state_dict_ema'], ['ema_model'], ['generator'],
    ['ema', 'module'],
    ['G_ema'], ['params_ema'], ['model', 'state_dict', 'module']])
@pytest.mark.parametrize('kind', ['pt', 'safetensors'])
def test_nests(keys, kind, tmp_path):
    state, path = state_of(), tmp_path/f'a.{kind}'
    if kind == 'safetensors': save_file(prefixed('.'.join(keys) + '.', state), path)
    else:
        content, optimizer = state, {'state': {0: {'exp_avg': torch.ones(2)}}}
        for key in reversed(keys): content = {key: content, 'epoch': 3, 'optimizer': optimizer}
        torch.save(content, path)
    assert same(load(path), state)


@pytest.mark.parametrize('raw, average', [
    ('model', 'ema'), ('model', 'model_ema'), ('state_dict', 'state_dict_ema'), ('model', 'ema_state_dict'),
    ('online_model', 'ema_model'), ('params', 'params_ema'), ('generator', 'generator_ema'), ('net', 'net-ema'),
    ('', 'ema'), ('', 'model_ema')])
@pytest.mark.parametrize('kind', ['pt', 'safetensors'])
def test_the_average_is_taken_and_said(raw, average, kind, tmp_path, capsys):
    state, path = state_of(), tmp_path/f'a.{kind}'
    averaged = plus(state, 1)
    flat = prefixed(raw + '.' if raw else '', state) | prefixed(average + '.', averaged)
    if kind == 'safetensors': save_file(flat, path)
    else: torch.save(({raw: state} if raw else state) | {average: averaged, 'steps': 5}, path)
    assert same(load(path), averaged)
    said = capsys.readouterr().err
    assert str(path) in said and f"took '{average}'" in said and 'average=False' in said
    model = load(path, average=False)
    assert same(model, state) and model.weights_taken == raw
    assert read_file(path)[1]['weights'] == average
    assert load(path).weights_taken == average
    load(path)
    assert capsys.readouterr().err.count("took '" + average) <= 1 # once


def test_averages_without_dots(tmp_path):
    "Open-MAGVIT2, and Lightning modules of the latent diffusion family, which have their names under 'model.'."
    state = state_of()
    averages = {f"model_ema.{key.replace('.', '')}": v + 1 for key, v in state.items()}
    averages['model_ema.decay'] = torch.tensor(1.)
    for name, prefix in (('plain', ''), ('lightning', 'model.')):
        for kind in ('pt', 'safetensors'):
            path, content = tmp_path/f'{name}.{kind}', prefixed(prefix, state) | averages
            torch.save({'state_dict': content}, path) if kind == 'pt' else save_file(content, path)
            assert same(load(path), plus(state, 1)) and same(load(path, average=False), state)
    del averages['model_ema.normweight']
    torch.save({'state_dict': state | averages}, tmp_path/'gap.pt')
    assert 'has no average of 1 weights: norm.weight' in refused(tmp_path/'gap.pt')


def test_what_nobody_can_decide(tmp_path):
    state = state_of()
    for name, content in dict(
            two_averages={'model': state, 'ema': state, 'ema_slow': state, 'model_ema': state},
            two_sets={'model': state, 'generator': state},
            average_only={'ema': state}).items():
        torch.save(content, tmp_path/f'{name}.pt')
    assert "2 averages ('ema', 'model_ema')" in refused(tmp_path/'two_averages.pt')
    assert "2 sets of weights ('model', 'generator')" in refused(tmp_path/'two_sets.pt')
    assert 'average only' in refused(tmp_path/'average_only.pt', average=False)
    save_file(state | prefixed('_orig_mod.', plus(state, 1)), tmp_path/'twice.safetensors')
    assert "'_orig_mod." in (said := refused(tmp_path/'twice.safetensors')) and ' are both ' in said
    save_file(state | prefixed('module.', plus(state, 1)), tmp_path/'mixed.safetensors')
    assert 'unexpected: module.' in refused(tmp_path/'mixed.safetensors')


def test_names_of_nests():
    others = ('optimizer', 'discriminator', 'optimizer_state_dict', 'loss', '', None, 3, 'd')
    assert not any(map(leads_to_weights, others))
    assert is_average('model.ema') and not is_average('ema.online_model') and not is_average('model')
    assert plain_names({'encoder._orig_mod.a': 1, 'b': 2}) == {'encoder.a': 1, 'b': 2}
    assert plain_names({}) == {}


def test_transformers_prefix_is_a_name(tmp_path):
    "In a language model 'model.' belongs to the name, in each shard too."
    save_file({'model.layers.7.mlp.up_proj.weight': torch.ones(2)}, tmp_path/'shard.safetensors')
    assert list(read_weights(tmp_path/'shard.safetensors')) == ['model.layers.7.mlp.up_proj.weight']


def test_a_published_average_is_converted(tmp_path, capsys):
    "LlamaGen's training file: the average, as in its own script, and the header says so."
    keys = read_json(project_root()/'tests'/'goldens'/'llamagen-vq.keys.json')
    small = {k: v for k, v in synthetic_weights(keys).items()}
    torch.save({'model': small, 'ema': {k: v * 2 for k, v in small.items()}, 'args': argparse.Namespace(lr=1.)},
               tmp_path/'vq.pt')
    ours = convert_checkpoint(tmp_path/'vq.pt', 'llamagen-vq', tmp_path/'vq.safetensors')
    assert read_header(ours)['weights'] == 'ema' and "took 'ema'" in capsys.readouterr().err
    assert torch.equal(load_file(ours)['encoder.conv_in.weight'], small['encoder.conv_in.weight'] * 2)


@pytest.mark.parametrize('content', [
    lambda s: {'model': s, 'best': np.float64(3.5)},
    lambda s: {'model': prefixed('module.', s), 'path': pickle.Pickler, 'ema': plus(s, 1)},
    lambda s: build_model(model_config(**OPTIONS))], ids=['numpy', 'a class and an average', 'a module'])
def test_the_recipe_leads_to_a_file_that_loads(content, tmp_path):
    "Names with quotes and spaces included."
    torch.manual_seed(0)
    folder = tmp_path/'it\'s "here" $(touch x)'
    folder.mkdir()
    path, state = folder/'last step.ckpt', state_of()
    torch.save(content(state), path)
    message = refused(path)
    assert 'would run code' in message
    recipe = message.split('  python ', 1)[1]
    done = subprocess.run(['bash', '-c', f'{sys.executable} {recipe}'], capture_output=True, text=True, cwd=tmp_path,
                          env=os.environ | dict(PYTHONPATH=str(project_root())))
    assert done.returncode == 0, done.stderr
    assert load(path.with_suffix('.safetensors')) and not (tmp_path/'x').exists()


# What a file is

def written(path, content):
    path.write_bytes(content)
    return path


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "A good file of each kind."
    folder = tmp_path_factory.mktemp('whole')
    torch.save({'model': state_of()}, folder/'good.pt')
    save_weights(folder/'good.safetensors', load_model(**OPTIONS))
    return folder


@pytest.mark.parametrize('name, content, says', [
    ('empty.pt', lambda b: b'', '0 bytes'),
    ('empty.safetensors', lambda b: b'', '0 bytes'),
    ('short.safetensors', lambda b: b'\x08\x00', 'truncated'),
    ('lfs.safetensors', lambda b: b'version https://git-lfs.github.com/spec/v1\noid sha256:4d\n', 'git lfs pull'),
    ('page.ckpt', lambda b: b'\xef\xbb\xbf\n<!DOCTYPE html><title>Sign in</title>', 'web page'),
    ('error.pt', lambda b: b'{"error": "gated repository"}', 'a text in JSON'),
    ('a.pt.gz', lambda b: gzip.compress(b), 'gunzip'),
    ('a.pt', lambda b: gzip.compress(b), 'gunzip'),
    ('model.bin', lambda b: b'GGUF' + b, 'GGUF'),
    ('model.pt', lambda b: b'\x89HDF\r\n' + b, 'HDF5'),
    ('a.safetensors', lambda b: b, 'is a pickle, not a file of safetensors: rename it to a.pt'),
    ('cut.pt', lambda b: b[:len(b) // 2], 'truncated'),
    ('noise.pt', lambda b: bytes(range(256)) * 40, 'no checkpoint'),
    ('noise.safetensors', lambda b: bytes(range(256)) * 40, 'truncated'),
    ('text.pt', lambda b: b'weights? ' * 9, 'no checkpoint')])
def test_what_is_no_checkpoint(name, content, says, whole, tmp_path):
    assert says in refused(written(tmp_path/name, content((whole/'good.pt').read_bytes())))


def test_content_decides_and_not_the_ending(whole, tmp_path):
    path = shutil.copy(whole/'good.safetensors', tmp_path/'good.pt')
    assert same(load(path), state_of())


def test_archives_of_others(whole, tmp_path):
    with tarfile.open(tmp_path/'a.pt', 'w') as archive: archive.add(whole/'good.pt', 'good.pt')
    assert 'tar archive' in refused(tmp_path/'a.pt')
    with zipfile.ZipFile(tmp_path/'b.pt', 'w') as archive: archive.write(whole/'good.pt', 'good.pt')
    assert 'zip archive, not a checkpoint' in refused(tmp_path/'b.pt')
    with zipfile.ZipFile(whole/'good.pt') as old, zipfile.ZipFile(tmp_path/'c.pt', 'w', zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist(): new.writestr(entry.filename, old.read(entry))
    assert 'zipped again' in refused(tmp_path/'c.pt')


@pytest.mark.parametrize('share', [.3, .6, .9])
@pytest.mark.parametrize('name', ['good.pt', 'good.safetensors'])
def test_one_bit(name, share, whole, tmp_path):
    "A bit that turned over, in the middle of the weights: torch and safetensors themselves would not notice."
    content = bytearray((whole/name).read_bytes())
    content[int(len(content) * share)] ^= 16
    refused(written(tmp_path/name, bytes(content)))


def test_one_bit_in_a_file_without_a_checksum(tmp_path):
    "Older files of ours have a fingerprint."
    for name in ('model', 'tokenizer'):
        source = project_root()/'checkpoints'/'openmoji-mini'/f'{name}.safetensors'
        assert 'checksum' not in read_header(source)
        read_weights(source)
        content = bytearray(source.read_bytes())
        content[-1000] ^= 1
        with pytest.raises(CheckpointError, match='another fingerprint'):
            read_weights(written(tmp_path/'old.safetensors', bytes(content)))


def test_a_pickle_without_checksums_is_read(tmp_path):
    before = torch.serialization.get_crc32_options()
    try:
        torch.serialization.set_crc32_options(False)
        torch.save({'model': state_of()}, tmp_path/'a.pt')
    finally: torch.serialization.set_crc32_options(before)
    assert same(load(tmp_path/'a.pt'), state_of())


# A header of gigabytes, and other headers

def safetensors_file(path, header, data=b'', length=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return written(path, struct.pack('<Q', len(header) if length is None else length) + header + data)


def entry(shape, start, end, dtype='F32'): return dict(dtype=dtype, shape=shape, data_offsets=[start, end])


ONE = json.dumps(entry([1], 0, 4))


@pytest.mark.parametrize('header, data, length, says', [
    (b'{}', b'', 2**63, '100,000,000'), (b'{}', b'', 2**40, 'truncated'), (b'{}', b'', 3, 'truncated'),
    (b'{' + b' ' * 20, b'', None, 'no list of tensors'), (b'[' * 5000, b'', None, 'damaged'),
    (b'{"a": \xff}', b'', None, 'damaged'),
    (f'{{"a": {ONE}, "a": {ONE}}}'.encode(), bytes(4), None, "'a' comes twice"),
    (dict(a=entry([2], 0, 8), b=entry([2], 4, 12)), bytes(12), None, 'damaged'), # they overlap
    (dict(a=entry([1], 0, 4)), bytes(12), None, 'damaged'), (dict(a=entry([1], 0, 4)), b'', None, 'damaged'),
    (dict(a=entry([2**62, 8], 0, 4)), bytes(4), None, 'damaged'), (dict(a=entry([1], 4, 0)), bytes(4), None, 'damaged'),
    (dict(a=entry([1], 0, 4, 'F99')), bytes(4), None, 'damaged'), (dict(a=3), bytes(4), None, 'damaged')])
def test_headers(header, data, length, says, tmp_path):
    assert says in refused(safetensors_file(tmp_path/'a.safetensors', header, data, length))
    with pytest.raises(CheckpointError): read_header(tmp_path/'a.safetensors')


@pytest.mark.parametrize('config', ['', '3', '{', '[' * 5000, 'null'])
def test_a_damaged_configuration(config, tmp_path):
    save_file(state_of(), tmp_path/'a.safetensors', dict(config=config, library='maskgil 0.1.0'))
    assert 'configuration in its header is damaged' in refused(tmp_path/'a.safetensors')


def test_fields_of_other_versions(tmp_path):
    path = save_weights(tmp_path/'a.safetensors', load_model(**OPTIONS))
    header = read_header(path)
    config = json.loads(header['config'])
    def with_config(changed):
        save_file(load_file(path), tmp_path/'b.safetensors', dict(system='maskgil', config=json.dumps(changed)))
        return tmp_path/'b.safetensors'
    assert 'fields that this version does not know: colour' in refused(with_config(config | dict(colour=3)))
    older = {k: v for k, v in config.items() if k != 'rope'} # it meant what is the default now
    assert load(with_config(older))
    assert "rope is '2d' in the file, '2d-zero' asked for" in refused(with_config(older), rope='2d-zero')


@pytest.mark.parametrize('length', [0x8b1f, 0x7b, 0x7b0a, 0x685a42]) # of a gzip, of a text in JSON, of bzip2
def test_a_length_that_looks_like_another_format(length, tmp_path):
    header = json.dumps(dict(a=entry([1], 0, 4))).encode()
    safetensors_file(tmp_path/'a.safetensors', header.ljust(length), bytes(4))
    assert list(read_weights(tmp_path/'a.safetensors')) == ['a']


def test_metadata_of_others(tmp_path):
    "A header with an entry config is not ours for that."
    save_file(state_of(), tmp_path/'a.safetensors', dict(config='yolo', library='another 1.0'))
    assert same(load(tmp_path/'a.safetensors'), state_of())


# Pickles with code or bombs

class Runs:
    def __init__(self, function, *arguments): self.call = function, arguments
    def __reduce__(self): return self.call


@pytest.mark.parametrize('function, arguments', [
    (os.system, ('touch must-not-exist',)), (eval, ('open("must-not-exist", "w")',)),
    (subprocess.run, (['touch', 'must-not-exist'],)), (torch.load, ('x',)), (getattr, ('x', 'upper'))])
@pytest.mark.parametrize('legacy', [False, True])
def test_code(function, arguments, legacy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = {'model': state_of(), 'more': Runs(function, *arguments)}
    torch.save(content, 'a.ckpt', _use_new_zipfile_serialization=not legacy)
    assert 'would run code' in refused(tmp_path/'a.ckpt')
    (tmp_path/'b.pt').write_bytes(pickle.dumps(content['more']))
    refused(tmp_path/'b.pt')
    assert not (tmp_path/'must-not-exist').exists()


def test_memory(tmp_path):
    "Objects and tensors that claim more than there is."
    torch.save({'model': state_of(), 'x': Runs(torch.Tensor, 10**13)}, tmp_path/'a.pt')
    refused(tmp_path/'a.pt')
    vast = state_of() | {'norm.weight': torch.zeros(1).expand(10**12)}
    torch.save({'model': vast}, tmp_path/'b.pt')
    assert 'norm.weight is (1000000000000,), (24,) is needed' in refused(tmp_path/'b.pt')
    deep = state_of()
    for _ in range(200): deep = {'model': deep}
    torch.save(deep, tmp_path/'c.pt')
    refused(tmp_path/'c.pt')
    save_file({'model.' * 3000 + 'x': torch.ones(2)}, tmp_path/'d.safetensors')
    refused(tmp_path/'d.safetensors')


def test_what_is_no_dictionary(tmp_path):
    contents = ([torch.ones(2)], torch.ones(2), 3, {'epoch': 3}, {3: torch.ones(2)}, {'model': {}}, {'model': None})
    for content in contents:
        torch.save(content, tmp_path/'a.pt')
        assert re.search('not a dictionary of weights|holds no weights', refused(tmp_path/'a.pt'))


# Numbers that are no weights

@pytest.mark.parametrize('change, says', [
    (lambda w: w.clone().fill_(torch.nan), 'not finite'), (lambda w: w / 0, 'not finite'),
    (lambda w: (w + 1).double() * 1e300, 'not finite'), # beyond float32
    (lambda w: w.half() * torch.inf, 'not finite'),
    (lambda w: w.int(), 'torch.int32 where floating-point'), (lambda w: w.to(torch.int8), 'torch.int8 where'),
    (lambda w: w.bool(), 'torch.bool where'), (lambda w: w.to(torch.complex64), 'torch.complex64 where'),
    (lambda w: w.to_sparse(), 'to_dense'), (lambda w: w.to('meta'), 'meta device'),
    (lambda w: torch.quantize_per_tensor(w, .1, 0, torch.qint8), 'dequantize'),
    (lambda w: w[:-1], 'is needed'), (lambda w: w[None], 'is needed')])
def test_weights_that_cannot_be_used(change, says, tmp_path):
    state = state_of()
    torch.save({'model': state | {'head.weight': change(state['head.weight'])}}, tmp_path/'a.pt')
    message = refused(tmp_path/'a.pt')
    assert says in message and 'head.weight' in message


@pytest.mark.parametrize('kind', [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float64])
def test_precisions_become_float32(kind, tmp_path):
    torch.save({k: v.to(kind) for k, v in state_of().items()}, tmp_path/'a.pt')
    assert {p.dtype for p in load(tmp_path/'a.pt').parameters()} == {torch.float32}


def test_float8_that_is_not_finite(tmp_path):
    state = {k: v.to(torch.float8_e5m2) for k, v in state_of().items()}
    state['norm.weight'] = torch.full((24,), torch.nan).to(torch.float8_e5m2)
    save_file(state, tmp_path/'a.safetensors')
    assert 'norm.weight has 24 numbers of 24 that are not finite' in refused(tmp_path/'a.safetensors')


# Several files, folders, the hub

def test_shards(tmp_path):
    state = state_of()
    halves = [dict(list(state.items())[i::2]) for i in range(2)]
    files = [f'model-0000{i + 1}-of-00002.safetensors' for i in range(2)]
    for name, half in zip(files, halves): save_file(half, tmp_path/name)
    index = tmp_path/'model.safetensors.index.json'
    def with_map(weight_map):
        index.write_text(json.dumps(dict(weight_map=weight_map)))
        return index
    complete = {key: name for name, half in zip(files, halves) for key in half}
    assert same(load(with_map(complete)), state)
    for elsewhere in ('../a.safetensors', '/etc/passwd', 'a/b.safetensors', 'a\\b.safetensors', '', '..'):
        assert re.search('elsewhere', refused(with_map(complete | dict(x=elsewhere))))
    assert 'missing' in refused(with_map(complete | dict(x='model-00003.safetensors')))
    for wrong in ([], 3, {'a': 3}): assert 'no index of weights' in refused(with_map(wrong))
    index.write_text('{')
    refused(index)
    save_file(state, tmp_path/files[1])
    with pytest.raises(CheckpointError, match=f'{files[1]} has weights that another file'): load(with_map(complete))


def test_a_pickled_index(tmp_path):
    state = state_of()
    torch.save(state, tmp_path/'pytorch_model-1.bin')
    index = tmp_path/'pytorch_model.bin.index.json'
    index.write_text(json.dumps(dict(weight_map={key: 'pytorch_model-1.bin' for key in state})))
    assert same(load(index), state)


def test_folders(whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert 'give the file in it, not the folder (there: good.pt, good.safetensors)' in refused(whole)
    with pytest.raises(FileNotFoundError, match=str(tmp_path/'nowhere.pt')): read_weights('nowhere.pt')
    with pytest.raises(FileNotFoundError, match='is a file: give the folder'): find_folder(whole/'good.pt')
    for path in ('./a', 'a/b/c', '', '/no/such', '~/no such'):
        with pytest.raises(FileNotFoundError, match=r'neither a folder \(there is no /'): find_folder(path)


def test_a_relative_name_says_where_it_looked(tmp_path, monkeypatch):
    import huggingface_hub
    def unreachable(*args, **options): raise OSError('no network')
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', unreachable)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f'there is no {tmp_path}/checkpoints/mini.*no network'):
        find_folder('checkpoints/mini')


# What we write

def test_wrapped_networks_are_saved_as_themselves(tmp_path):
    model = load_model(**OPTIONS)
    inside = load_model(**OPTIONS)
    inside.layers[0] = torch.compile(inside.layers[0])
    for wrapped in (torch.compile(model), nn.DataParallel(model), nn.DataParallel(torch.compile(model)), inside):
        path = save_weights(tmp_path/'a.safetensors', wrapped)
        assert same(load(path), model.state_dict())
    assert unwrapped(nn.DataParallel(torch.compile(model))) is model


def test_nan_is_not_saved(tmp_path):
    model, path = load_model(**OPTIONS), tmp_path/'a.safetensors'
    save_weights(path, model)
    before = path.read_bytes()
    nn.init.constant_(model.norm.weight, torch.nan)
    with pytest.raises(CheckpointError, match='norm.weight'): save_weights(path, model)
    assert path.read_bytes() == before


def test_files_that_were_saved_from_a_compiled_model(tmp_path):
    "As they were written before names were cleaned."
    path = save_weights(tmp_path/'a.safetensors', load_model(**OPTIONS))
    header = {k: v for k, v in read_header(path).items() if k in ('config', 'system', 'library')}
    save_file(prefixed('_orig_mod.', load_file(path)), tmp_path/'b.safetensors', header)
    assert same(load(tmp_path/'b.safetensors'), state_of())


# Configurations

@pytest.mark.parametrize('change', [
    dict(layers=0), dict(layers=2.), dict(layers='2'), dict(width=float('nan')), dict(heads=5), dict(codebook_size=-1),
    dict(classes=True), dict(classes=-1), dict(grid=(4,)), dict(grid=(4, 0)), dict(grid=(4., 4)),
    dict(dropout=float('nan')), dict(dropout=1.5), dict(causal='false'), dict(causal=1), dict(qk_norm=None),
    dict(text_width=3.5), dict(rope='3d'),
    dict(code_groups=(2, 2.)), dict(colour=3), dict(kind='gpt')])
def test_configurations_of_models(change):
    with pytest.raises(ValueError) as error: load_model(**OPTIONS | change)
    assert str(next(iter(change))) in str(error.value) or 'heads' in str(error.value)


@pytest.mark.parametrize('change', [
    dict(codebook_size=16.), dict(codebook_size=0), dict(multipliers=()), dict(multipliers=(1, '2')),
    dict(projected='no'),
    dict(quantizer='fsq'), dict(down='pool'), dict(up='pool'), dict(widen='no'), dict(groups=True)])
def test_configurations_of_tokenizers(change):
    whole = dict(quantizer='vq', codebook_size=16, code_dim=8, channels=32, multipliers=(1, 2))
    Tokenizer(TokenizerConfig(**whole))
    with pytest.raises(ValueError): Tokenizer(TokenizerConfig(**whole | change))


def test_lists_are_tuples():
    config = ModelConfig('maskgil', 1, 2, 16, 8, grid=[4, 4], code_groups=[2, 4])
    assert (config.grid, config.code_groups) == ((4, 4), (2, 4)) and hash(config)


NO_NUMBERS = [True, np.bool_(True), torch.tensor(True), None, float('nan'), 1j]


@pytest.mark.parametrize('value', [*NO_NUMBERS, 8., '8', [8], torch.tensor(8.)])
def test_whole_numbers(value):
    with pytest.raises(ValueError, match='steps must be a whole number'): check_whole('steps', value)


@pytest.mark.parametrize('value', [*NO_NUMBERS, '3', -float('inf'), [1., 2.], torch.ones(2), 10**400])
def test_finite_numbers(value):
    with pytest.raises(ValueError, match='cfg must be a finite number'): check_real('cfg', value)


def test_numbers_of_numpy_and_torch():
    for value in (8, np.int64(8), np.uint8(8), torch.tensor(8), np.array(8)):
        assert type(check_whole('steps', value)) is int
    for value in (3, 3., np.float32(3), np.int8(3), torch.tensor(3.)):
        assert type(check_real('cfg', value)) is float


def test_a_tokenizer_file_with_an_average(tmp_path):
    tokenizer = load_tokenizer(TOKENIZER)
    state = tokenizer.state_dict()
    torch.save({'model': state, 'ema': plus(state, 1)}, tmp_path/'a.pt')
    taken = load_tokenizer(TOKENIZER, checkpoint=tmp_path/'a.pt')
    assert same(taken, plus(state, 1)) and taken.weights_taken == 'ema'
    assert same(load_tokenizer(TOKENIZER, checkpoint=tmp_path/'a.pt', average=False), state)
    assert weights.recognise(state) == 'own-tokenizer of another size'
