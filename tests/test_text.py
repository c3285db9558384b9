"Text to image: every family of encoders, the paper profile in small, the pipeline with prompts, study and demo."
import dataclasses, json, os, resource, subprocess, sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from maskgil import MaskGILPipeline, external, jobs, text_study
from maskgil.core import fingerprint
from maskgil.drawing import known_tokens, outpaint
from maskgil.encoders import encode_captions, load_text_encoder, TextEncoder
from maskgil.models import load_model
from maskgil.profiles import override, PROFILES
from maskgil.records import records
from maskgil.scenes import combinations, held_out
from maskgil.text_study import dry_run, text_options, TextBench, train_stage
from maskgil.tokenizers import load_tokenizer

ROOT = Path(__file__).parents[1]
PAPERMILL = str(Path(sys.executable).parent/'papermill')
CAPTIONS = ['a red square', 'a blue square on the left', 'two green squares next to a red one', 'nothing']
SIZES = dict(
    t5=dict(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4),
    clip_text_model=dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                         max_position_embeddings=64),
)
SIZES['gemma'] = SIZES['gemma2'] = SIZES['clip_text_model'] | dict(num_key_value_heads=1, head_dim=8)


def save_encoder(path, family):
    "A text encoder of a family with random weights, in transformers' layout."
    import tokenizers, transformers
    words = ['<pad>', '<unk>', *sorted({word for caption in CAPTIONS for word in caption.split()})]
    vocabulary = {word: i for i, word in enumerate(words)}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, '<unk>'))
    core.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token='<pad>', unk_token='<unk>', model_max_length=16)
    tokenizer.save_pretrained(path)
    special = dict(pad_token_id=0, bos_token_id=1, eos_token_id=1)
    config = transformers.AutoConfig.for_model(family, vocab_size=len(words), **special, **SIZES[family])
    torch.manual_seed(0)
    classes = dict(gemma='GemmaModel', gemma2='Gemma2Model', t5='T5EncoderModel', clip_text_model='CLIPTextModel')
    getattr(transformers, classes[family])(config).save_pretrained(path)
    return path


@pytest.fixture(scope='module')
def gemma(tmp_path_factory): return save_encoder(tmp_path_factory.mktemp('encoders')/'tiny-gemma', 'gemma')


@pytest.mark.parametrize('family', ['gemma', 'gemma2', 't5', 'clip_text_model'])
def test_families(tmp_path, family):
    encoder = load_text_encoder(save_encoder(tmp_path/family, family))
    text = encoder.encode(CAPTIONS)
    assert text.shape == (4, 8, 32) and text.isfinite().all()
    assert (text != 0).any(-1).sum(1).tolist() == [len(c.split()) for c in CAPTIONS]
    for caption, features in zip(CAPTIONS, text): # no neighbour matters
        alone = encoder.encode([caption])[0]
        torch.testing.assert_close(alone, features[:len(caption.split())], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match='has 17 tokens, and .* reads at most 16'): encoder.encode(['red ' * 17])
    before_last = load_text_encoder(tmp_path/family, layer=-2)
    assert not torch.allclose(before_last.encode(CAPTIONS), text) and before_last.fingerprint() != encoder.fingerprint()


def test_there_is_one_loader():
    assert external.load_text_encoder is load_text_encoder and external.TextEncoder is TextEncoder
    text, mask = load_text_encoder('minilm')(['a cat', 'a cat next to a tree'])
    assert text.shape == (2, 8, 384) and mask.sum(1).tolist() == [4, 8] and (text[0, 4:] == 0).all()


def test_import_is_light():
    code = 'import maskgil.text, sys; print("transformers" in sys.modules)'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.strip() == 'False', done.stderr


def test_features_are_computed_once(gemma, tmp_path, monkeypatch):
    encoder = load_text_encoder(gemma)
    path, whole = tmp_path/'texts.npy', encode_captions(encoder, CAPTIONS, tmp_path/'whole.npy')
    calls = []
    def failing(self, captions, **options):
        calls.append(len(captions))
        if len(calls) == 3: raise KeyboardInterrupt
        return real(self, captions, **options)
    real = TextEncoder.texts
    monkeypatch.setattr(TextEncoder, 'texts', failing)
    with pytest.raises(KeyboardInterrupt): encode_captions(encoder, CAPTIONS, path, rows=3)
    resumed = encode_captions(encoder, CAPTIONS * 2, path, rows=3)
    assert (resumed.values == whole.values).all() and len(resumed) == len(CAPTIONS)
    seen = len(calls)
    encode_captions(encoder, CAPTIONS, path)
    assert len(calls) == seen # found, not computed


def test_held_out_combinations_are_not_trained_on(clean_cache):
    bench = TextBench(PROFILES['smoke'])
    def kept_out(images): return [any(held_out(*c) for c in combinations(s, images.vocabulary)) for s in images.scenes]
    for stage in (0, 1):
        for images in bench.sets(stage): assert not any(kept_out(images))
        for images in bench.sets(stage, 'held-out', 20): assert all(kept_out(images))


@pytest.fixture
def folder(tmp_path):
    "Images of several shapes with captions."
    sizes, colours = [(40, 20), (24, 24), (20, 40)], ['red', 'blue', 'green', 'white']
    for i in range(36):
        Image.new('RGB', sizes[i % 3], colours[i % 4]).save(tmp_path/f'{i:02}.png')
        (tmp_path/f'{i:02}.txt').write_text(CAPTIONS[i % 4])
    return tmp_path


def changed(profile, **groups):
    "The profile with other values in some of its groups."
    return dataclasses.replace(profile, **{name: dataclasses.replace(getattr(profile, name), **fields)
                                           for name, fields in groups.items()})

def small_paper(folder, gemma):
    "The paper's row with its sizes made small: the same data, encoder family, stages and objectives."
    return changed(
        dataclasses.replace(PROFILES['paper'], prefix='smoke-'), data=dict(source=str(folder)),
        tokenizer=dict(steps=1, batch_size=8), evaluation=dict(extractor='el0', steps=2),
        text=dict(encoder=str(gemma), budgets=(16, 36), max_ratio=2.5, stage_images=(8, 8), stage_batch=(4, 4)))

def weights_of(model): return fingerprint(*(w.detach() for w in model.state_dict().values()))


def test_a_step_of_the_paper_profile(folder, gemma, clean_cache, monkeypatch):
    bench = TextBench(small_paper(folder, gemma), device='cpu')
    assert [len(data.grids) for data in bench.data] == [1, 3]
    assert [len(data) for data in bench.data] == [36, 36]
    started = []
    real = jobs.fit
    def fit(model, *args, **options):
        started.append(weights_of(model))
        return real(model, *args, **options)
    monkeypatch.setattr(jobs, 'fit', fit)
    first, second = train_stage(bench, 0), train_stage(bench, 1)
    ended = weights_of(first.model)
    assert len(started) == 2 and started[0] != ended == started[1] # the second stage begins where the first ended
    assert weights_of(second.model) != ended
    config = second.model.config
    assert second.history[-1]['step'] == 2 and config.text_width == 32 and config.qk_norm and config.post_norm
    images = text_study.draw_texts(bench, second.model, ['a red square', None], (16, 32))
    assert images.shape == (2, 3, 16, 32)


@pytest.mark.parametrize('live', [True, False])
def test_both_stages_on_two_processes(live, folder, gemma, tmp_path_factory, monkeypatch):
    "The losses of one, whether captions are read live or before. Dropout is off, since each rank draws its own."
    losses = {}
    for ranks in (1, 2):
        monkeypatch.setenv('MASKGIL_CACHE', str(tmp_path_factory.mktemp('cache')))
        monkeypatch.setenv('MASKGIL_PROCESSES', str(ranks))
        profile = changed(small_paper(folder, gemma), text=dict(live_captions=live),
                          training=dict(dtype='float32', dropout=0.))
        bench = TextBench(profile, device='cpu')
        losses[ranks] = [row['loss'] for stage in (0, 1) for row in train_stage(bench, stage).history]
        assert (train_stage(bench, 1).folder/'record.json').exists() == (ranks == 2)
    assert losses[2] == pytest.approx(losses[1], rel=1e-5)


def test_dry_run_of_the_smoke_profile():
    plan = dry_run(PROFILES['smoke'])
    assert plan.groupby('stage').size().tolist() == [1, 3] and (plan.activations_mib > 0).all()
    first = plan[plan.stage == 1].iloc[0]
    assert first.tokens == 16 and first.pixels == '16x16'


@pytest.fixture(scope='module')
def pipe(gemma):
    "An untrained pipeline whose output layer says something."
    profile = override(PROFILES['smoke'], {'text.tokenizer': 'chameleon-vq', 'text.encoder': str(gemma)})
    mar, ar = (load_model(**text_options(profile, 1, 32, ar=ar)) for ar in (False, True))
    for m in (mar, ar): torch.nn.init.normal_(m.head.weight, std=.5, generator=torch.Generator().manual_seed(0))
    return MaskGILPipeline(
        mar, load_tokenizer('smoke-chameleon-vq'), defaults=dict(steps=4, cfg=2., dtype='float32'), ar=ar,
        text_encoder=str(gemma), buckets=[(4, 4), (4, 8), (6, 6), (8, 4)])


def same(a, b): return [x.tobytes() for x in a] == [x.tobytes() for x in b]


def test_prompts(pipe):
    options = dict(height=16, width=32, seed=1)
    a = pipe(prompts=CAPTIONS[:2], **options)
    assert [x.size for x in a] == [(32, 16)] * 2
    together, apart = (pipe.draw(prompts=CAPTIONS[:2], **options, batch_size=size) for size in (64, 1))
    assert together.equal(apart) # a picture does not depend on the batch
    assert not same(a[:1], pipe(prompts=CAPTIONS[2:3], **options))
    assert same(pipe(prompts='a red square'), pipe(prompts=['a red square']))
    assert pipe(prompts='a red square')[0].size == (24, 24) and pipe(prompts=[]) == []
    unconditional = pipe(prompts=[None, None], seed=3)
    assert same(unconditional, pipe(prompts=[None, None], cfg=1., seed=3)) # nothing to be guided by


@pytest.mark.parametrize('ar_tokens', [0, 10, 36])
def test_negative_prompts(pipe, ar_tokens):
    options = dict(prompts='a red square', ar_tokens=ar_tokens)
    plain, away = pipe(**options), pipe(**options, negative_prompt='a blue square')
    assert not same(plain, away)
    assert same(away, pipe(**options, negative_prompt='a blue square'))
    # the text itself as what to stay away from: guidance has nowhere to go
    itself = options | dict(negative_prompt='a red square')
    assert same(pipe(**itself), pipe(**itself, cfg=5.))


@pytest.mark.parametrize('options, says', [
    (dict(prompts=['']), 'a text that is not empty'),
    (dict(prompts=['a cat', '  ']), 'a text that is not empty'),
    (dict(prompts=[3]), 'a text that is not empty'),
    (dict(prompts='red ' * 20), 'has 20 tokens, and tiny-gemma reads at most 16'),
    (dict(prompts='red', negative_prompt='red ' * 20), 'has 20 tokens'),
    (dict(prompts='red', height=-16), '-16x24 pixels do not fit'),
    (dict(prompts='red', height=0, width=16), '0x16 pixels do not fit'),
    (dict(prompts='red', height=18, width=16), 'multiples of 4'),
    (dict(prompts='red', height=8, width=64), 'at most 2 times the other'),
    (dict(prompts='red', height=256, width=256), '16 to 36 tokens'),
    (dict(prompts='red', negative_prompt='blue', cfg=1.), 'cfg is 1'),
    (dict(prompts='red', ar_tokens=37), 'between 0 and 36'),
    (dict(labels=[0]), 'this model reads texts: give prompts'),
    (dict(labels=[0], prompts='red'), 'either labels or prompts'),
    (dict(), 'either labels or prompts'),
])
def test_mistakes_are_named(pipe, options, says):
    with pytest.raises(ValueError) as e: pipe(**options)
    assert says in str(e.value)


def test_inpainting_keeps_tokens(pipe):
    image = pipe(prompts='nothing', seed=5)[0]
    mask = Image.new('L', image.size, 0)
    mask.paste(255, (9, 3, 20, 17))
    known = known_tokens(image, mask, pipe.tokenizer)
    kept = known != pipe.tokenizer.codebook_size
    assert 0 < kept.sum() < 36
    drawn = pipe.draw(prompts=CAPTIONS, image=image, mask=mask)
    for x in drawn: assert x[kept[0]].equal(known[kept])
    assert not drawn[0].equal(drawn[2]) and (drawn < pipe.tokenizer.codebook_size).all()
    black = Image.new('L', image.size, 0)
    assert pipe.draw(prompts='nothing', image=image, mask=black).equal(pipe.tokenizer.encode(pixels_of(image)))
    canvas, mask = outpaint(pipe(prompts='nothing', height=16, width=16)[0], 16, 32, left=0)
    assert pipe(prompts='nothing', image=canvas, mask=mask)[0].size == (32, 16)
    with pytest.raises(ValueError, match='masked decoding'):
        pipe(prompts='nothing', image=canvas, mask=mask, ar_tokens=4)


def pixels_of(image):
    import numpy as np
    from maskgil.data import to_float
    return to_float(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None])


def test_animation_and_saving(pipe, tmp_path):
    frames = Image.open(pipe.animate(tmp_path/'steps.gif', prompts=['a red square', 'nothing'], steps=3, scale=2))
    assert frames.n_frames == 3
    again = MaskGILPipeline.from_pretrained(pipe.save_pretrained(tmp_path/'saved'), device='cpu')
    for options in (dict(), dict(ar_tokens=12), dict(negative_prompt='nothing')):
        assert same(pipe(prompts=CAPTIONS[:2], **options), again(prompts=CAPTIONS[:2], **options))
    assert again.buckets == pipe.buckets and 'text-to-image' in (tmp_path/'saved'/'README.md').read_text()
    with pytest.raises(ValueError, match='give the text encoder'): MaskGILPipeline(pipe.model, pipe.tokenizer)


def papermill(notebook, *args, **env):
    env = {k: v for k, v in os.environ.items() if not k.startswith('MASKGIL_')} | env
    command = [PAPERMILL, str(ROOT/'nbs'/notebook), *map(str, args)]
    return subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=env)


def test_study(tmp_path):
    "The smoke profile from images to a record, and a pipeline that the demo opens."
    env = dict(MASKGIL_RESULTS=str(tmp_path/'results'), MASKGIL_CACHE=str(tmp_path/'cache'))
    saved = tmp_path/'pipeline'
    done = papermill('text_to_image.ipynb', '-p', 'profile', 'smoke', '-p', 'checkpoint', saved, **env)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    path, = (tmp_path/'results'/'runs'/'text_to_image').glob('*.json')
    record = json.loads(path.read_text())
    told = {(c['stage'], c['told']) for c in record['metrics']['curve'] if 'told' in c}
    assert {(2, t) for t in ('text', 'class', 'nothing', 'seen', 'real')} | {(1, 'text')} <= told
    for point in record['metrics']['curve']:
        for name, metric in point['metrics'].items():
            assert metric['n'] == 24
            if name != 'seconds_per_image': assert metric['low'] <= metric['value'] <= metric['high']
    assert {c['pixels'] for c in record['metrics']['curve'] if 'pixels' in c} == {'16x16', '16x32', '24x24', '32x16'}
    for name in ('samples', 'stages', 'fusion'):
        sheet = Image.open(path.with_name(record['metrics'][name]))
        for held in record['metrics'][f'{name}_held']:
            left, top, width, height = held['box']
            assert left + width <= sheet.width and top + height <= sheet.height and held['label']
    assert sum(f.stat().st_size for f in saved.iterdir()) < 2**20

    pytest.importorskip('ipywidgets')
    done = papermill('demo.ipynb', tmp_path/'demo.ipynb', '-p', 'checkpoint', saved, **env)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert 'image/png' in (tmp_path/'demo.ipynb').read_text()


@pytest.mark.parametrize('args, says', [
    (('-p', 'profile', 'paper'), 'the profile paper needs images with captions'),
    (('-p', 'profile', 'smoke', '-p', 'encoder', 'minlm'), "Did you mean 'minilm'?"),
    (('-p', 'encodr', 'minilm'), "Did you mean 'encoder'?"),
])
def test_study_mistakes(tmp_path, args, says):
    env = dict(MASKGIL_RESULTS=str(tmp_path/'results'), MASKGIL_CACHE=str(tmp_path/'cache'))
    done = papermill('text_to_image.ipynb', *args, **env)
    assert done.returncode and says in done.stderr, done.stderr[-2000:]


def test_the_paper_profile_as_a_plan(tmp_path):
    "The command of the notebook, at the smallest size; nbs/46_text_study plans XL."
    env = dict(MASKGIL_RESULTS=str(tmp_path/'results'), MASKGIL_CACHE=str(tmp_path/'cache'))
    options = ('-p', 'profile', 'paper', '-p', 'size', 'b', '-p', 'dry_run', 'True')
    done = papermill('text_to_image.ipynb', tmp_path/'plan.ipynb', *options, **env)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    text = (tmp_path/'plan.ipynb').read_text()
    words = 'parameters; weights, gradients and moments', 'GiB', 'EFLOP', 'hours of one H100', '256x256', '512x512'
    for said in words: assert said in text, said
    assert not list((tmp_path/'results').glob('runs/*/*.json')) # a plan is no run


CHECKPOINT = ROOT/'checkpoints'/'openmoji-mini-text'


def test_the_committed_checkpoint(tmp_path):
    "At most 12 MB, and a picture from a sentence in seconds, import and loading included."
    assert sum(f.stat().st_size for f in CHECKPOINT.iterdir()) <= 12e6
    code = '\n'.join((
        'from maskgil import MaskGILPipeline',
        f'pipe = MaskGILPipeline.from_pretrained({str(CHECKPOINT)!r})',
        "picture, = pipe(prompts=['a red apple on a blue background'], height=32, width=72)",
        "picture.save('drawn.png')"))
    # seconds of a core: seven on a quiet machine; a loaded one stretches them by a half
    used = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    started, env = used(), os.environ | dict(PYTHONPATH=str(ROOT))
    subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env=env, check=True, stdin=subprocess.DEVNULL)
    assert used() - started < 12
    assert Image.open(tmp_path/'drawn.png').size == (72, 32)


def test_the_committed_record():
    "Held-out combinations are found better than by chance, and better than by the baselines."
    record = next(r for r in records('text_to_image', ['reference']) if r.profile == 'mini' and r.seed == 0)
    assert record.basis == 'measured'
    def at(told):
        described = [(c.get('told'), c['stage'], c.get('ar_share'), c.get('cfg', 2.)) for c in record.metrics['curve']]
        return record.metrics['curve'][described.index((told, 2, None, 2.))]['metrics']['found_caption']
    assert at('text')['low'] > .1
    assert at('text')['low'] > max(at('class')['high'], at('nothing')['high'])


# --- the judge of captions ---

def test_the_judge_finds_what_real_pictures_show():
    "Backgrounds too, whose colours a network for photographs hardly sees."
    bench = TextBench(PROFILES['mini'])
    [seen], [held] = (bench.sets(0, part, count, seed=seed, template='full')[:1]
                      for part, count, seed in (('train', 500, 2), ('held-out', 60, 1)))
    pictures = lambda images: text_study.seen_for_captions(images.batch(slice(0, len(images))), 'cpu')
    judge = text_study.fit_judge(pictures(seen), bench.embed(seen.captions))
    shown = pictures(held)
    for question, least in dict(caption=.9, emoji=.85, background=.85).items():
        asked = [caption for row in text_study.candidates(held, question) for caption in row]
        options = bench.embed(asked).unflatten(0, (len(held), -1))
        assert judge.right(shown, options).float().mean() > least, question
