"Published files are found by what is in them, under any name; their numbers are not read, and nothing in them is run."
import json, os

import pytest, torch
from safetensors.torch import save_file

from maskgil.bench import published_file
from maskgil.core import project_root, read_json
from maskgil.published import CHECKPOINTS, LAYOUTS
from maskgil.reading import CheckpointError
from maskgil.tokenizers import load_tokenizer
from maskgil.weights import checkpoint_files, identify, save_weights

GOLDENS = project_root()/'tests'/'goldens'
SYSTEMS = sorted(path.name.removesuffix('.keys.json') for path in GOLDENS.glob('*.keys.json'))


@pytest.fixture
def folder(tmp_path, monkeypatch, clean_cache):
    "An empty `MASKGIL_CHECKPOINTS`."
    path = tmp_path/'checkpoints'
    path.mkdir()
    monkeypatch.setenv('MASKGIL_CHECKPOINTS', str(path))
    return path


def write(path, system, **beside):
    "All names and shapes of a published file; a tensor is one number, seen many times, so the file is small."
    keys = read_json(GOLDENS/f'{system}.keys.json')
    state = {key: torch.zeros(1, dtype=getattr(torch, dtype)).expand(shape) for key, (shape, dtype) in keys.items()}
    nested = CHECKPOINTS[system].nested
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(beside | ({nested: state} if nested else state), path)
    return path


def marked(path, system):
    "The fewest tensors by which a file of safetensors is recognised."
    row = CHECKPOINTS[system]
    state = {key: torch.zeros(1) for key in LAYOUTS[row.layout].keys}
    save_file(state | {key: torch.zeros(shape) for key, shape in row.marks.items()}, path)
    return path


def test_each_system_is_found_under_a_foreign_name(folder):
    "In one folder, some in folders below it, as downloads of a repository leave them."
    made = {system: write(folder/('a/b' if i % 2 else '')/f'download-{i}{(".pt", ".ckpt", ".pth")[i % 3]}', system,
                          epoch=i, optimizer_states=[{'state': {0: {'exp_avg': torch.ones(3)}}}])
            for i, system in enumerate(SYSTEMS)}
    assert {system: published_file(system) for system in SYSTEMS} == made


def test_the_names_of_the_publishers(folder):
    "MaskGIL's files, which are announced only, have the names of LlamaGen's."
    made = {system: write(folder/CHECKPOINTS[system].file, system) for system in SYSTEMS
            if CHECKPOINTS[system].file and not system.startswith('maskgil')}
    assert {system: published_file(system) for system in made} == made and len(made) == 7


def test_a_name_that_fits_exactly_wins(folder):
    exact = folder/'llamagen-vq.pt'
    exact.write_bytes(b'whatever it holds')
    write(folder/'vq_ds16_c2i.pt', 'llamagen-vq')
    assert published_file('llamagen-vq') == exact


def test_of_several_the_published_name_or_a_question(folder, capsys):
    "vq_ds16_t2i.pt has the same names and shapes as vq_ds16_c2i.pt, and other numbers."
    text = write(folder/'vq_ds16_t2i.pt', 'llamagen-vq')
    assert published_file('llamagen-vq') == text and 'is published as vq_ds16_c2i.pt' in capsys.readouterr().err
    other = marked(folder/'other.safetensors', 'llamagen-vq')
    with pytest.raises(CheckpointError, match='holds 2 files of llamagen-vq: .*Rename the one you mean to') as refused:
        published_file('llamagen-vq')
    assert text.name in str(refused.value) and other.name in str(refused.value) and '\n' not in str(refused.value)
    published = write(folder/'vq_ds16_c2i.pt', 'llamagen-vq')
    assert published_file('llamagen-vq') == published


def test_files_of_the_same_shapes_are_told_by_their_names(folder):
    "gear-vq.pt has LlamaGen's shapes: neither is taken for the other."
    tuned = write(folder/'gear-vq.pt', 'llamagen-vq')
    assert published_file('gear-vq') == tuned
    with pytest.raises(FileNotFoundError, match='no file llamagen-vq'): published_file('llamagen-vq')
    plain = write(folder/'some.pt', 'llamagen-vq')
    assert (published_file('llamagen-vq'), published_file('gear-vq')) == (plain, tuned)


def test_an_error_tells_what_is_there(folder):
    with pytest.raises(FileNotFoundError, match='no file maskgit-vq .*no file of weights.*MASKGIL_CHECK'):
        published_file('maskgit-vq')
    write(folder/'a.pt', 'llamagen-vq')
    torch.save({'model': {'conv1.weight': torch.zeros(64, 3)}}, folder/'b.pth')
    (folder/'c.ckpt').write_bytes(b'<!DOCTYPE html>')
    (folder/'adm.npz').write_bytes(b'images')
    with pytest.raises(FileNotFoundError) as refused: published_file('maskgit-vq')
    said = str(refused.value)
    for part in (str(folder), 'a.pt (llamagen-vq)', 'b.pth (no system we know, its keys are conv1.weight',
                 'c.ckpt (unreadable: is a web page'):
        assert part in said, part
    assert 'adm.npz' not in said and '\n' not in said


def test_nothing_is_run_and_nothing_is_read(folder, monkeypatch):
    class Payload:
        def __reduce__(self): return os.system, (f'touch {folder}/ran',)
    torch.save({'model': Payload()}, folder/'evil.pt')
    torch.save({'model': Payload()}, folder/'old.pt', _use_new_zipfile_serialization=False)
    write(folder/'good.pt', 'llamagen-vq')
    asked, load = [], torch.load
    monkeypatch.setattr(torch, 'load', lambda *args, **given: asked.append(given) or load(*args, **given))
    assert published_file('llamagen-vq').name == 'good.pt'
    assert not (folder/'ran').exists() and 'would run code' in identify(folder/'evil.pt')
    assert all(given['weights_only'] and given['map_location'] == 'meta' for given in asked)
    assert [given['mmap'] for given in asked] == [True, True, False, True] # evil, good, old, which is no zip file, evil


def test_an_answer_is_kept_until_the_file_changes(folder, monkeypatch):
    path = write(folder/'x.pt', 'llamagen-vq')
    assert identify(path) == 'llamagen-vq'
    load, read = torch.load, []
    monkeypatch.setattr(torch, 'load', lambda *args, **given: read.append(args) or load(*args, **given))
    assert identify(path) == 'llamagen-vq' and not read
    write(path, 'maskgit-vq')
    assert identify(path) == 'maskgit-vq' and len(read) == 1


def test_a_file_of_ours_is_found_by_its_header(folder):
    tokenizer = load_tokenizer('smoke-llamagen-vq', seed=3)
    save_weights(folder/'mine.safetensors', tokenizer)
    found = published_file('smoke-llamagen-vq')
    assert found.name == 'mine.safetensors'
    assert load_tokenizer('smoke-llamagen-vq', checkpoint=found).fingerprint() == tokenizer.fingerprint()


def test_the_files_of_an_index_are_one_system(folder):
    marks = CHECKPOINTS['gemma-2b'].marks | {'model.layers.0.mlp.gate_proj.weight': (16, 2)}
    parts = {f'model-{i}.safetensors': {key: torch.zeros(shape, dtype=torch.float8_e4m3fn)}
             for i, (key, shape) in enumerate(marks.items()) if key != 'model.embed_tokens.weight'}
    torch.save({'model.embed_tokens.weight': torch.zeros(1).expand(256_000, 2048)}, folder/'model-0.bin')
    for name, state in parts.items(): save_file(state, folder/name)
    named = {key: name for name, state in parts.items() for key in state} | {'model.embed_tokens.weight': 'model-0.bin'}
    (folder/'model.safetensors.index.json').write_text(json.dumps(dict(weight_map=named)))
    assert [path.name for path in checkpoint_files(folder)] == ['model.safetensors.index.json']
    assert published_file('gemma-2b').name == 'model.safetensors.index.json'
