"A pipeline's folder: the hub's conventions, on the disk, from the hub, and what is said when there is none."
import json, shutil

import huggingface_hub, pytest, torch
from safetensors.torch import load_file, save_file

from maskgil import MaskGILPipeline
from maskgil.weights import CheckpointError, read_header
from maskgil.core import project_root
from maskgil.models import load_model
from maskgil.tokenizers import load_tokenizer

METRICS = dict(fid_el0=dict(value=12.5, low=11., high=14., n=400, label='FID-EL0', reference='openmoji-train a14fe4856d772200'))


@pytest.fixture(scope='module')
def pipe():
    model = load_model('maskgil', 'smoke-l', tokenizer='smoke-llamagen-vq', classes=3, grid=(4, 4))
    torch.nn.init.normal_(model.head.weight, std=.5, generator=torch.Generator().manual_seed(0))
    return MaskGILPipeline(model, load_tokenizer('smoke-llamagen-vq'), ['people', 'flags', 'food'], dict(steps=4, cfg=2.), dict(name='A small one', license='mit', metrics=METRICS))

@pytest.fixture
def folder(pipe, tmp_path): return pipe.save_pretrained(tmp_path/'saved')

def same(a, b): return [p.tobytes() for p in a(labels=['flags', 2], seed=1)] == [p.tobytes() for p in b(labels=['flags', 2], seed=1)]


def test_hub_conventions(pipe, folder):
    assert sorted(p.name for p in folder.iterdir()) == ['README.md', 'config.json', 'model.safetensors', 'tokenizer.safetensors']
    assert json.loads((folder/'config.json').read_text())['model_type'] == 'maskgil'
    card = huggingface_hub.ModelCard.load(folder/'README.md').data
    result, = card.eval_results
    assert (card.library_name, card.license, result.metric_type, result.metric_value, result.dataset_type) == ('maskgil', 'mit', 'fid_el0', 12.5, 'openmoji-train')
    assert '| FID-EL0 | 12.5 | 11 to 14 | 400 |' in (folder/'README.md').read_text()
    assert same(pipe, MaskGILPipeline.from_pretrained(folder, device='cpu'))


def test_from_the_hub(pipe, folder, tmp_path, monkeypatch):
    "A repository is downloaded once and read from where it was put."
    asked = []
    def download(name, allow_patterns):
        asked.append((name, tuple(allow_patterns)))
        return str(shutil.copytree(folder, tmp_path/'snapshot'))
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
    assert same(pipe, MaskGILPipeline.from_pretrained('someone/a-small-one', device='cpu'))
    assert asked == [('someone/a-small-one', ('*.json', '*.safetensors', '*.md'))]


def test_without_a_network(monkeypatch):
    def unreachable(*args, **options): raise huggingface_hub.errors.LocalEntryNotFoundError('Cannot reach the hub')
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', unreachable)
    with pytest.raises(FileNotFoundError, match='hf download someone/else --local-dir DIR.*give the folder DIR'): MaskGILPipeline.from_pretrained('someone/else')


def test_half_precision(pipe, tmp_path):
    small = pipe.save_pretrained(tmp_path, dtype=torch.bfloat16)
    again = MaskGILPipeline.from_pretrained(small, device='cpu')
    assert load_file(small/'model.safetensors')['head.weight'].dtype == torch.bfloat16
    assert torch.equal(again.model.head.weight, pipe.model.head.weight.bfloat16().float()) and again.tokenizer.fingerprint() == read_header(small/'tokenizer.safetensors')['fingerprint']


def test_factorised_codes(tmp_path):
    "Digits survive the way through JSON."
    model = load_model('maskgil', 'smoke-b', tokenizer='smoke-llamagen-vq', classes=2, grid=(4, 4), code_groups=(2, load_tokenizer('smoke-llamagen-vq').codebook_size // 2))
    torch.nn.init.normal_(model.head.weight)
    pipe = MaskGILPipeline(model, load_tokenizer('smoke-llamagen-vq'), ['a', 'b', 'c'][:2])
    again = MaskGILPipeline.from_pretrained(pipe.save_pretrained(tmp_path), device='cpu')
    assert again.model.config == model.config and [p.tobytes() for p in pipe(labels=[0, 1])] == [p.tobytes() for p in again(labels=[0, 1])]


def test_files_without_a_header(pipe, folder):
    "As they were written before headers: plain tensors."
    for name in ('model', 'tokenizer'): save_file(load_file(folder/f'{name}.safetensors'), folder/f'{name}.safetensors', dict(format='pt'))
    assert same(pipe, MaskGILPipeline.from_pretrained(folder, device='cpu'))


def test_the_committed_checkpoint():
    pipe = MaskGILPipeline.from_pretrained(project_root()/'checkpoints'/'openmoji-mini', device='cpu')
    image, = pipe(labels=['Flags'], steps=2)
    assert image.size == (32, 32) and len(pipe.classes) == 9


def test_refused(folder):
    (folder/'model.safetensors').write_bytes((folder/'model.safetensors').read_bytes()[:-50])
    with pytest.raises(CheckpointError, match='damaged or truncated'): MaskGILPipeline.from_pretrained(folder)
    (folder/'model.safetensors').unlink()
    with pytest.raises(FileNotFoundError, match='is not a saved pipeline: model.safetensors missing'): MaskGILPipeline.from_pretrained(folder)
