"A pipeline's folder: the hub's conventions, on the disk, from the hub, and what is said when there is none."
import json, shutil, subprocess, sys

import huggingface_hub, pytest, torch
from safetensors.torch import load_file, save_file

from maskgil import MaskGILPipeline
from maskgil.weights import CheckpointError, read_header
from maskgil.core import project_root
from maskgil.models import load_model
from maskgil.tokenizers import TOKENIZERS, load_tokenizer

TOKENIZER = 'smoke-llamagen-vq'
CODES = TOKENIZERS[TOKENIZER].codebook_size
METRICS = dict(fid_el0=dict(value=12.5, low=11., high=14., n=400, label='FID-EL0',
                            reference='openmoji-train a14fe4856d772200'))


@pytest.fixture(scope='module')
def pipe():
    model = load_model('maskgil', 'smoke-l', tokenizer=TOKENIZER, classes=3, grid=(4, 4))
    torch.nn.init.normal_(model.head.weight, std=.5, generator=torch.Generator().manual_seed(0))
    card = dict(name='A small one', license='mit', metrics=METRICS)
    return MaskGILPipeline(model, load_tokenizer(TOKENIZER), ['people', 'flags', 'food'], dict(steps=4, cfg=2.), card)


@pytest.fixture
def folder(pipe, tmp_path): return pipe.save_pretrained(tmp_path/'saved')


def load(folder): return MaskGILPipeline.from_pretrained(folder, device='cpu')


def same(one, other, labels=('flags', 2)):
    "Two pipelines draw the same pictures."
    pairs = zip(one(labels=labels, seed=1), other(labels=labels, seed=1), strict=True)
    return all(picture.tobytes() == again.tobytes() for picture, again in pairs)


def test_import_is_light():
    "A pipeline of classes needs no language model."
    asked = 'import maskgil.pipeline, sys; print("transformers" in sys.modules)'
    done = subprocess.run([sys.executable, '-c', asked], capture_output=True, text=True)
    assert done.stdout.strip() == 'False', done.stderr


def test_hub_conventions(pipe, folder):
    names = ['README.md', 'config.json', 'model.safetensors', 'tokenizer.safetensors']
    assert sorted(path.name for path in folder.iterdir()) == names
    assert json.loads((folder/'config.json').read_text())['model_type'] == 'maskgil'
    card = huggingface_hub.ModelCard.load(folder/'README.md').data
    result, = card.eval_results
    assert (card.library_name, card.license) == ('maskgil', 'mit')
    assert (result.metric_type, result.metric_value, result.dataset_type) == ('fid_el0', 12.5, 'openmoji-train')
    assert '| FID-EL0 | 12.5 | 11 to 14 | 400 |' in (folder/'README.md').read_text()
    assert same(pipe, load(folder))


def test_from_the_hub(pipe, folder, tmp_path, monkeypatch):
    "A repository is downloaded once and read from where it was put."
    asked = []
    def download(name, allow_patterns):
        asked.append((name, tuple(allow_patterns)))
        return str(shutil.copytree(folder, tmp_path/'snapshot'))
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
    assert same(pipe, load('someone/a-small-one'))
    assert asked == [('someone/a-small-one', ('*.json', '*.safetensors', '*.md'))]


def test_without_a_network(monkeypatch):
    def unreachable(*args, **options): raise huggingface_hub.errors.LocalEntryNotFoundError('Cannot reach the hub')
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', unreachable)
    advice = 'hf download someone/else --local-dir DIR.*give the folder DIR'
    with pytest.raises(FileNotFoundError, match=advice): MaskGILPipeline.from_pretrained('someone/else')


def test_half_precision(pipe, tmp_path):
    small = pipe.save_pretrained(tmp_path, dtype=torch.bfloat16)
    again = load(small)
    assert load_file(small/'model.safetensors')['head.weight'].dtype == torch.bfloat16
    assert torch.equal(again.model.head.weight, pipe.model.head.weight.bfloat16().float())
    assert again.tokenizer.fingerprint() == read_header(small/'tokenizer.safetensors')['fingerprint']


def test_factorised_codes(tmp_path):
    "Digits survive the way through JSON."
    model = load_model('maskgil', 'smoke-b', tokenizer=TOKENIZER, classes=2, grid=(4, 4), code_groups=(2, CODES // 2))
    torch.nn.init.normal_(model.head.weight)
    pipe = MaskGILPipeline(model, load_tokenizer(TOKENIZER), ['a', 'b'])
    again = load(pipe.save_pretrained(tmp_path))
    assert again.model.config == model.config and same(pipe, again, labels=[0, 1])


def test_files_without_a_header(pipe, folder):
    "As they were written before headers: plain tensors."
    for path in (folder/'model.safetensors', folder/'tokenizer.safetensors'):
        save_file(load_file(path), path, dict(format='pt'))
    assert same(pipe, load(folder))


def test_the_committed_checkpoint():
    pipe = load(project_root()/'checkpoints'/'openmoji-mini')
    image, = pipe(labels=['Flags'], steps=2)
    assert image.size == (32, 32) and len(pipe.classes) == 9


def test_refused(folder):
    weights = folder/'model.safetensors'
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(CheckpointError, match='damaged or truncated'): MaskGILPipeline.from_pretrained(folder)
    weights.unlink()
    missing = 'is not a saved pipeline: model.safetensors missing'
    with pytest.raises(FileNotFoundError, match=missing): MaskGILPipeline.from_pretrained(folder)
