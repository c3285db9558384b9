"A pipeline's folder: the hub's conventions, on the disk, from the hub, and what is said when there is none."
import json, shutil, subprocess, sys
from dataclasses import replace

import huggingface_hub, pytest, torch
from PIL import Image
from safetensors.torch import load_file, save_file

from maskgil import MaskGILPipeline
from maskgil.folder import complete_folder
from maskgil.drawing import decode_tokens, known_tokens, outpaint, picture_sheet
from maskgil.pipeline import save_picture
from maskgil.reading import CheckpointError
from maskgil.weights import read_header
from maskgil.core import project_root
from maskgil.models import load_model
from maskgil.tokenizers import TOKENIZERS, Tokenizer, load_tokenizer

TOKENIZER = 'smoke-llamagen-vq'
CODES = TOKENIZERS[TOKENIZER].codebook_size
METRICS = dict(fid_el0=dict(value=12.5, low=11., high=14., n=400, label='FID-EL0',
                            reference='openmoji-train a14fe4856d772200'))


@pytest.fixture(scope='module')
def pipe():
    model = load_model('maskgil', 'smoke-l', tokenizer=TOKENIZER, classes=3, grid=(4, 4))
    torch.nn.init.normal_(model.head.weight, std=.5, generator=torch.Generator().manual_seed(0))
    card = dict(name='A small one', license='mit', metrics=METRICS, datasets=['ILSVRC/imagenet-1k'])
    return MaskGILPipeline(model, load_tokenizer(TOKENIZER), ['people', 'flags', 'food'], dict(steps=4, cfg=2.), card)


def test_pictures_are_decoded_in_float32(pipe):
    tokens = torch.randint(CODES, (3, 4, 4), generator=torch.Generator().manual_seed(0))
    plain = decode_tokens(pipe.tokenizer, tokens)
    with torch.autocast('cpu', torch.bfloat16): assert decode_tokens(pipe.tokenizer, tokens).equal(plain)


def test_transparent_is_white(pipe, tmp_path):
    "Wherever a picture comes in or goes out: kept, on a canvas, on a sheet, in a file without transparency."
    clear, white = Image.new('RGBA', (16, 16), (0, 0, 0, 0)), Image.new('RGB', (16, 16), 'white')
    clear.paste((200, 0, 0, 255), (0, 0, 8, 8))
    white.paste((200, 0, 0), (0, 0, 8, 8))
    few = Image.new('P', (16, 16), 0)
    few.putpalette([0, 0, 0, 200, 0, 0])
    few.paste(1, (0, 0, 8, 8))
    few.info['transparency'] = 0 # a colour of the palette
    nothing = Image.new('L', (16, 16), 0)
    for given in (clear, few):
        assert known_tokens(given, nothing, pipe.tokenizer).equal(known_tokens(white, nothing, pipe.tokenizer))
        assert outpaint(given, 24, 24)[0].tobytes() == outpaint(white, 24, 24)[0].tobytes()
        assert picture_sheet([given]).tobytes() == picture_sheet([white]).tobytes()
        save_picture(given, tmp_path/'x.bmp')
        assert Image.open(tmp_path/'x.bmp').convert('RGB').tobytes() == white.tobytes()


def test_tokens_in_batches(pipe):
    "What is given belongs to its image, whatever the batches."
    start = torch.full((3, 4, 4), CODES)
    for i in range(3): start[i, i] = i
    for name in ('tokens', 'start'):
        whole, parts = (pipe.draw([0, 1, 2], batch_size=size, **{name: start}) for size in (3, 2))
        assert whole.equal(parts) and whole[start < CODES].equal(start[start < CODES])
    with pytest.raises(ValueError, match='give one of them'): pipe.draw([0, 1, 2], tokens=start, start=start)


@pytest.mark.parametrize('name', ['custom', TOKENIZER, '`x`|<b>'])
def test_a_tokenizer_that_is_no_row(name, pipe, tmp_path):
    config = replace(TOKENIZERS[TOKENIZER], channels=16)
    own = MaskGILPipeline(pipe.model, Tokenizer(config, name), pipe.classes, pipe.defaults)
    folder = own.save_pretrained(tmp_path/'own')
    again = load(folder)
    assert again.tokenizer.config == config and again.tokenizer.name == name and same(own, again)
    assert '<b>' not in (folder/'README.md').read_text().split('---')[2]
    assert 'tokenizer_config' not in json.loads((pipe.save_pretrained(tmp_path/'row')/'config.json').read_text())


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
    names = ['README.md', 'config.json', 'model.safetensors', 'model_index.json', 'pipeline.py',
             'scheduler_config.json', 'tokenizer.safetensors']
    assert sorted(path.name for path in folder.iterdir()) == names
    assert json.loads((folder/'config.json').read_text())['model_type'] == 'maskgil'
    card = huggingface_hub.ModelCard.load(folder/'README.md').data
    result, = card.eval_results
    assert (card.library_name, card.license, card.pipeline_tag) == ('maskgil', 'mit', 'unconditional-image-generation')
    assert card.tags == ['maskgil', 'masked-autoregressive', TOKENIZER] and card.datasets == ['ILSVRC/imagenet-1k']
    assert (result.metric_type, result.metric_value, result.dataset_type) == ('fid_el0', 12.5, 'openmoji-train')
    written = (folder/'README.md').read_text()
    for part in ('| FID-EL0 | 12.5 | 11 to 14 | 400 |', 'Measured against openmoji-train a14fe4856d772200',
                 'Licence: mit.', 'Data sets: ILSVRC/imagenet-1k.'): assert part in written, part
    assert same(pipe, load(folder))


def test_from_the_hub(pipe, folder, tmp_path, monkeypatch):
    "A repository is downloaded once and read from where it was put."
    asked = []
    def download(name, revision, allow_patterns):
        asked.append((name, revision, tuple(allow_patterns)))
        return str(shutil.copytree(folder, tmp_path/'snapshot'))
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
    assert same(pipe, MaskGILPipeline.from_pretrained('someone/a-small-one', device='cpu', revision='v1'))
    assert asked == [('someone/a-small-one', 'v1', ('*.json', '*.safetensors', '*.md'))] # nothing that runs
    with pytest.raises(ValueError, match='revision is of a repository'):
        MaskGILPipeline.from_pretrained(folder, revision='v1')


class Hub:
    "What `HfApi` is asked to do, and a copy of the folder that it is given."
    def __init__(self, place, error=None): self.place, self.error, self.asked = place, error, []

    def __call__(self, token=None): # as the class is called
        self.asked.append(token)
        return self

    def create_repo(self, name, private, exist_ok):
        if self.error: raise self.error
        self.asked.append((name, private, exist_ok))
        return huggingface_hub.RepoUrl(f'https://huggingface.co/me/{name}')

    def upload_folder(self, repo_id, folder_path, commit_message):
        self.asked.append((repo_id, commit_message))
        shutil.copytree(folder_path, self.place)
        return f'https://huggingface.co/{repo_id}/commit/1'


def test_to_the_hub_and_back(pipe, tmp_path, monkeypatch):
    hub = Hub(tmp_path/'there')
    monkeypatch.setattr(huggingface_hub, 'HfApi', hub)
    where = pipe.push_to_hub('a-small-one', private=True, commit_message='a first one', token='hf_x')
    assert where == 'https://huggingface.co/me/a-small-one/commit/1'
    assert hub.asked == ['hf_x', ('a-small-one', True, True), ('me/a-small-one', 'a first one')]
    assert same(pipe, load(hub.place)) and (hub.place/'model_index.json').is_file()


def test_a_hub_that_cannot_be_reached(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, 'HfApi', Hub(tmp_path, OSError('no route to host')))
    with pytest.raises(ConnectionError, match='did not take me/it .*no route to host.*`hf upload me/it DIR`'):
        pipe.push_to_hub('me/it')
    with pytest.raises(ValueError, match='owner/name'): pipe.push_to_hub('https://huggingface.co/me/it')


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


def test_a_folder_from_before_diffusers(pipe, folder):
    "It loads; completing it adds what today's have, and leaves weights and configuration alone."
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name in ('model_index.json', 'scheduler_config.json', 'pipeline.py'): (folder/name).unlink()
    assert same(pipe, load(folder))
    complete_folder(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole


@pytest.mark.parametrize('name', ['openmoji-mini', 'openmoji-mini-text'])
def test_the_committed_folders_are_complete(name, tmp_path):
    "Their cards and what diffusers reads are what today's code writes."
    there = project_root()/'checkpoints'/name
    again = complete_folder(shutil.copytree(there, tmp_path/name))
    assert {path.name: path.read_bytes() for path in again.iterdir()} == {
        path.name: path.read_bytes() for path in there.iterdir()}


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
