"What cannot be drawn, decoded, saved or loaded: refused at once, in one line, with nothing lost."
import dataclasses, html, json, math, os, re, shutil, subprocess, sys

import huggingface_hub
import numpy as np
import pytest, torch
from PIL import Image
from torch import nn

from maskgil import kept, MaskGILPipeline
from maskgil.core import file_digest, project_root, read_json, write_json
from maskgil.drawing import class_ids, decode_tokens, draw_tokens, picture_sheet, save_gif
from maskgil.encoders import check_captions, encode_captions, load_text_encoder
from maskgil.external import write_small_gemma
from maskgil.features import extract, needed_module
from maskgil.folder import in_markdown, load_pipeline_parts, model_card, prose
from maskgil.models import load_model, ModelConfig
from maskgil.pipeline import sample
from maskgil.reading import CheckpointError
from maskgil.sampling import check_call, check_options, image_seeds, sample_ar, sample_fusion, sample_mar
from maskgil.tokenizers import load_tokenizer, TokenizerConfig

TOKENIZER = 'smoke-llamagen-vq'
OPTIONS = dict(tokenizer=TOKENIZER, classes=3, grid=(4, 4))
LABELS = torch.tensor([0, 2])


def network(kind='maskgil', **changes):
    model = load_model(kind, 'smoke-b', **OPTIONS | changes)
    nn.init.normal_(model.head.weight, std=.5, generator=torch.Generator().manual_seed(0))
    return model


@pytest.fixture(scope='module')
def mar(): return network()


@pytest.fixture(scope='module')
def ar(): return network('llamagen')


@pytest.fixture(scope='module')
def tokenizer(): return load_tokenizer(TOKENIZER)


@pytest.fixture
def pipe(tokenizer): return MaskGILPipeline(network(), tokenizer, ['people', 'flags', 'food'], dict(steps=4, cfg=2.))


def never(*args): raise AssertionError('asked before everything was checked')


# Samplers

WRONG_OF_BOTH = [
    dict(cfg=math.nan), dict(cfg=math.inf), dict(cfg='3'), dict(cfg=None), dict(cfg=True), dict(cfg=1j),
    dict(cfg=1e300), dict(temperature=1e-300), dict(temperature=1e30),
    dict(temperature=-1.), dict(temperature=math.nan), dict(temperature='hot'), dict(top_k=-1), dict(top_k=5.),
    dict(top_k=True),
    dict(top_p=0), dict(top_p=1.1), dict(top_p=math.nan), dict(top_p=-.5), dict(dtype='int8'), dict(dtype=torch.int64),
    dict(dtype='float64'), dict(grid=(4,)), dict(grid=4), dict(grid='44'), dict(grid=(4, 0)), dict(grid=(4., 4)),
    dict(seed=.5), dict(seed=True), dict(seed='7'), dict(seed=[1]), dict(seed=[1, 2, 3]), dict(seed=[1, .5]),
    dict(seed=None),
    dict(first=.5), dict(temprature=1.)]
WRONG_OF_MAR = [
    dict(steps=0), dict(steps=-3), dict(steps=8.), dict(steps='8'), dict(steps=math.nan), dict(steps=True),
    dict(steps=None),
    dict(steps=10**9), dict(temperature=0), dict(order='spiral'), dict(schedule='cosin'), dict(guidance='rampe'),
    dict(order=None),
    dict(choice_temperature=math.nan), dict(choice_temperature=-1), dict(tokens=torch.zeros(2, 4, 5).long()),
    dict(tokens=torch.full((2, 4, 4), 999)), dict(tokens=torch.zeros(2, 4, 4)), dict(tokens=torch.full((2, 4, 4), -1)),
    dict(codebook_size=5)]
WRONG_OF_AR = [dict(length=17), dict(length=-1), dict(length=2.), dict(cfg_interval=-1), dict(cfg_interval=.5),
    dict(steps=4)]


@pytest.mark.parametrize('wrong', WRONG_OF_BOTH + WRONG_OF_MAR, ids=str)
def test_options_of_mar(wrong, mar, monkeypatch):
    monkeypatch.setattr(mar, 'logits', never)
    with pytest.raises(ValueError): sample_mar(mar, LABELS, **dict(grid=(4, 4)) | wrong)


@pytest.mark.parametrize('wrong', WRONG_OF_BOTH + WRONG_OF_AR, ids=str)
def test_options_of_ar(wrong, ar, monkeypatch):
    monkeypatch.setattr(ar, 'decode', never)
    with pytest.raises(ValueError): sample_ar(ar, LABELS, **dict(grid=(4, 4)) | wrong)


@pytest.mark.parametrize('wrong', [
    dict(ar_tokens=17), dict(ar_tokens=-1), dict(ar_tokens=4.), dict(mar_steps=0), dict(mar_steps=2.),
    dict(ar_cfg=math.nan),
    dict(mar_cfg='3'), dict(ar_options=dict(top_p=2)), dict(ar_options=dict(order='random')),
    dict(ar_options=dict(cfg=2.)),
    dict(mar_options=dict(temperature=0)), dict(mar_options=dict(schedule='no')), dict(mar_options=dict(tokens=None)),
    dict(grid=(0, 4)), dict(seed=[1]), dict(steps=4)], ids=str)
def test_options_of_fusion(wrong, ar, mar, monkeypatch):
    "Whatever is wrong with the second half is said before the first."
    monkeypatch.setattr(ar, 'decode', never)
    with pytest.raises(ValueError): sample_fusion(ar, mar, LABELS, **dict(grid=(4, 4), ar_tokens=4) | wrong)


@pytest.mark.parametrize('labels', [
    torch.tensor([0, 3]), torch.tensor([-1]), torch.tensor([0.]), torch.tensor([True]), torch.tensor(1),
    torch.zeros(2, 1).long(),
    [0, 1], 1, 'flags', torch.zeros(2, 3, 6)], ids=str)
def test_labels(labels, mar, ar):
    for sampler, model in ((sample_mar, mar), (sample_ar, ar)):
        with pytest.raises(ValueError, match='label'): sampler(model, labels, (4, 4))


def test_texts(tokenizer):
    reader = network(text_width=6)
    for text in (torch.zeros(2, 3, 5), torch.zeros(2, 6), torch.zeros(2, 3, 6).long(),
        torch.full((2, 3, 6), torch.nan), LABELS):
        with pytest.raises(ValueError, match='text'): sample_mar(reader, text, (4, 4))
    assert sample_mar(reader, torch.zeros(2, 3, 6), (4, 4), steps=2).shape == (2, 4, 4)


def test_paradigms(mar, ar):
    with pytest.raises(ValueError, match='see sample_mar'): sample_ar(mar, LABELS, (4, 4))
    with pytest.raises(ValueError, match='see sample_ar'): sample_mar(ar, LABELS, (4, 4))
    with pytest.raises(ValueError, match='see sample_'): sample_fusion(mar, ar, LABELS, (4, 4), ar_tokens=4)
    with pytest.raises(ValueError, match='says? its? codebook_size|say its codebook_size'):
        sample_mar(lambda tokens, labels, drop: torch.zeros(len(tokens), 16, 5), LABELS, (4, 4))


@pytest.mark.parametrize('empty', [torch.zeros(0).long(), LABELS[:0]])
def test_an_empty_batch(empty, mar, ar, tokenizer):
    for drawn in (sample_mar(mar, empty, (4, 4)), sample_ar(ar, empty, (4, 4)), draw_tokens(mar, empty),
                  sample_fusion(ar, mar, empty, (4, 4), ar_tokens=4)):
        assert drawn.shape == (0, 4, 4) and drawn.dtype == torch.long
    assert sample_ar(ar, empty, (4, 4), length=5).shape == (0, 5)
    assert decode_tokens(tokenizer, torch.zeros(0, 4, 4).long()).shape == (0, 3, 16, 16)
    assert tokenizer.encode(torch.zeros(0, 3, 16, 16)).shape == (0, 4, 4)


def test_numbers_of_numpy_are_numbers(mar, ar):
    plain = sample_mar(mar, LABELS, (4, 4), 2, 2., top_k=5, seed=3)
    other = sample_mar(mar, LABELS, np.array([4, 4]).tolist(), np.int64(2), np.float32(2), top_k=torch.tensor(5),
        seed=np.int64(3))
    assert plain.equal(other)
    assert sample_ar(ar, LABELS, torch.Size([4, 4]), np.float64(2.), temperature=np.int8(1)).shape == (2, 4, 4)


def test_seeds():
    for seed in (2**80, -1, -2**70, 0, np.uint8(3)): assert len(set(image_seeds(seed, 3))) == 3
    assert image_seeds(2**80, 1) != image_seeds(2**80 + 1, 1) != image_seeds(2**63, 1)
    for seeds in ([1, 2, 3], (1, 2, 3), range(1, 4), np.arange(1, 4), torch.arange(1, 4)):
        assert image_seeds(seeds, 3) == [1, 2, 3]


def test_the_same_check_long_before():
    assert check_options(steps=8, cfg=3) == dict(steps=8, cfg=3.)
    assert check_call(sample_mar, dict(steps=np.int64(8)), taken=('labels',)) == dict(steps=8)
    for options in (dict(steps=8.), dict(labels=LABELS), dict(no=1), dict(temperature=0)):
        with pytest.raises(ValueError): check_call(sample_mar, options, taken=('labels',))
    assert check_call(sample_ar, dict(temperature=0)) == dict(temperature=0)


# Numbers that are not finite

@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('cfg', [1., 3.])
def test_logits_that_are_not_finite(bad, cfg):
    "In one place of one weight, of either network, and of a network that goes wrong half-way."
    mar, ar = network(), network('llamagen')
    for model in (mar, ar): model.head.weight.data[7, 3] = bad
    with pytest.raises(ArithmeticError, match=f'maskgil: logits .* at step 1 of 4 .*float32, cfg {cfg:g}'):
        sample_mar(mar, LABELS, (4, 4), 4, cfg, dtype='float32')
    with pytest.raises(ArithmeticError, match='llamagen: logits that are not finite at token 1 of 16'):
        sample_ar(ar, LABELS, (4, 4), cfg)
    with pytest.raises(ArithmeticError, match='llamagen'): sample_fusion(ar, network(), LABELS, (4, 4), ar_tokens=3)
    with pytest.raises(ArithmeticError, match='maskgil'):
        sample_fusion(network('llamagen'), mar, LABELS, (4, 4), ar_tokens=3)


def test_a_guidance_that_overflows():
    model = network()
    model.head.weight.data *= 1e34
    sample_mar(model, LABELS, (4, 4), 4, 1., dtype='float32')
    with pytest.raises(ArithmeticError, match='cfg 1e\\+06'): sample_mar(model, LABELS, (4, 4), 4, 1e6, dtype='float32')


def test_half_precision_that_overflows():
    model = network()
    model.head.weight.data *= 1e6
    with pytest.raises(ArithmeticError, match='products in float16'):
        sample_mar(model, LABELS, (4, 4), 4, dtype='float16')


def test_a_later_step():
    asked = []
    def breaks(tokens, labels, drop):
        asked.append(1)
        return torch.full((len(tokens), 16, 5), math.nan if len(asked) == 3 else 0.)
    with pytest.raises(ArithmeticError, match='breaks: logits that are not finite at step 3 of 4'):
        sample_mar(breaks, LABELS, (4, 4), 4, 1., codebook_size=5)


def test_a_function_may_rule_codes_out():
    def never_two(tokens, labels, drop): return torch.tensor([0., 0, -math.inf]).expand(len(tokens), 16, 3)
    assert (sample_mar(never_two, LABELS, (4, 4), 4, 1., codebook_size=3) < 2).all()
    def nothing(tokens, labels, drop): return torch.full((len(tokens), 16, 3), -math.inf)
    with pytest.raises(ArithmeticError): sample_mar(nothing, LABELS, (4, 4), 4, 1., codebook_size=3)


@pytest.mark.parametrize('where', ['layers.0.feed_forward.down.weight', 'token_embedding.weight', 'norm.weight'])
def test_no_pictures_of_nan(where, pipe, tmp_path):
    pipe.model.get_parameter(where).data.flatten()[-1] = math.nan # of the mask
    for draw in (pipe, pipe.draw, lambda **options: pipe.animate(tmp_path/'a.gif', **options)):
        with pytest.raises(ArithmeticError, match='step 1 of 2'): draw(labels=[0, 1], steps=2)
    with pytest.raises(ArithmeticError): pipe.sheet(1, steps=2)
    assert not list(tmp_path.iterdir())


def test_decoders_and_encoders_of_nan(tokenizer, tmp_path):
    broken = load_tokenizer(TOKENIZER)
    broken.decoder.conv_out.bias.data[0] = math.inf
    broken.encoder.conv_out.bias.data[0] = math.nan
    with pytest.raises(FloatingPointError, match='decoder gave pixels'): broken.decode(torch.zeros(1, 4, 4).long())
    with pytest.raises(FloatingPointError, match='decoder gave pixels'):
        broken.decode(torch.zeros(1, 4, 4).long(), clamp=False)
    with pytest.raises(FloatingPointError, match='encoder gave values'): broken.encode(torch.zeros(1, 3, 16, 16))


# Tokenizers, models, features

@pytest.mark.parametrize('images, says', [
    (torch.full((1, 3, 16, 16), math.nan), 'not finite'), (torch.full((1, 3, 16, 16), math.inf), 'not finite'),
    (torch.rand(1, 3, 16, 16) * 255, 'data.to_float'), (torch.rand(1, 3, 16, 16) * -255, 'pixels in'),
    (torch.zeros(1, 3, 16, 16).byte(), 'data.to_float'), (torch.zeros(3, 16, 16), '(b 3 H W)'),
    (torch.zeros(1, 1, 16, 16), '(b 3'),
    (torch.zeros(1, 3, 18, 16), 'multiples of 4'), (torch.zeros(1, 3, 0, 16), 'multiples'),
    (np.zeros((1, 3, 16, 16)), 'ndarray')])
def test_images(images, says, tokenizer):
    with pytest.raises((ValueError, TypeError), match=re.escape(says)): tokenizer.encode(images)


@pytest.mark.parametrize('ids', [
    torch.full((1, 4, 4), 256), torch.full((1, 4, 4), -1), torch.zeros(1, 4, 4), torch.zeros(1, 4, 4).bool(),
    torch.zeros(4, 4).long(),
    [[[0]]]])
def test_ids(ids, tokenizer):
    with pytest.raises((ValueError, TypeError), match='ids'): tokenizer.decode(ids)


def test_a_little_beyond_is_an_image(tokenizer):
    tokenizer.encode(torch.randn(2, 3, 16, 16).half().float())


@pytest.mark.parametrize('kind', ['maskgil', 'llamagen', 'maskgit-transformer'])
def test_questions_to_a_model(kind):
    model = load_model(kind, 'smoke-b', **OPTIONS)
    tokens = torch.zeros(2, 5).long() if model.config.causal else torch.zeros(2, 4, 4).long()
    largest = model.config.mask_id - model.config.causal
    model.logits(tokens + largest, torch.tensor([0, 3])) # the null class is one more
    for wrong in (tokens + largest + 1, tokens - 1, tokens.float(), tokens.bool()):
        with pytest.raises(ValueError, match='tokens'): model.logits(wrong, LABELS)
    for wrong in (torch.tensor([0, 4]), torch.tensor([-1, 0]), LABELS.float(), LABELS[:, None], [0, 1]):
        with pytest.raises(ValueError, match='labels'): model(tokens, wrong)


def test_a_compiled_model_is_not_cut_in_pieces(mar):
    compiled = torch.compile(mar, backend='eager', fullgraph=True)
    tokens = torch.zeros(2, 4, 4).long()
    torch.testing.assert_close(compiled(tokens, LABELS), mar(tokens, LABELS))


def test_features_take_bytes():
    for images in (torch.zeros(2, 3, 8, 8), np.zeros((2, 3, 8, 8)), torch.zeros(3, 8, 8).byte(),
        torch.zeros(2, 1, 8, 8).byte()):
        with pytest.raises(ValueError, match='uint8'): extract(images, device='cpu')
    for size in (0, -1, 2.5, '2'):
        with pytest.raises(ValueError, match='batch_size'):
            extract(torch.zeros(2, 3, 8, 8).byte(), batch_size=size, device='cpu')


def test_features_that_are_not_finite(monkeypatch):
    from maskgil import features
    def look(images): return torch.full((len(images), 1280), math.nan), torch.zeros(len(images), 1000)
    monkeypatch.setattr(features, 'load_extractor', lambda *args: (look, 'these'))
    with pytest.raises(FloatingPointError, match='el0: features that are not finite, in batch 1'):
        extract(torch.zeros(2, 3, 32, 32).byte(), device='cpu')


def test_other_weights_have_another_name(tmp_path, monkeypatch):
    "A package of the same version with another file in it."
    from maskgil import features
    file = features.el0_file()
    assert file_digest(file) == features.EL0_DIGEST
    usual = features._load_el0(torch.device('cpu'), None)[1]
    other = tmp_path/'other.pth'
    torch.save({k: v for k, v in torch.load(file, weights_only=True).items()}, other)
    monkeypatch.setattr(features, 'el0_file', lambda: other)
    assert usual in (said := features._load_el0(torch.device('cpu'), None)[1]) and said != usual


def test_packages_that_are_not_there():
    for module in ('no_such_package', 'no_such_package.inside'):
        with pytest.raises(ModuleNotFoundError, match='FID needs the package no-such: pip install no-such'):
            needed_module(module, 'no-such', 'FID')


# Prompts and encoders

@pytest.mark.parametrize('prompts', [
    [''], ['  \n'], ['a cat', '\t'], [3], [b'a cat'], [['a cat']], [None], 'a cat', ['a \x1b[31mred cat'],
    ['a\x00cat'], ['\ud800'],
    ['\u200b'], ['\u202e'], [float('nan')]], ids=ascii)
def test_prompts_that_are_none(prompts):
    with pytest.raises(ValueError) as error: check_captions(prompts)
    assert '\x1b' not in str(error.value) and len(str(error.value)) < 200


def test_prompts_in_any_script():
    check_captions(['a fox\r\non a red background', 'a\tb', 'e\u0301'])
    check_captions(['🦊 on 🟥', '👩‍👩‍👧', '红色背景上的狐狸', 'ثعلب'])


def test_the_fingerprint_of_an_encoder_is_its_content(tmp_path):
    folder = write_small_gemma(tmp_path/'gemma')
    encoder = load_text_encoder(folder, length=3) # shorter than any sentence to try it with
    before, again = encoder.fingerprint(), load_text_encoder(folder, length=3).fingerprint()
    assert before == again and encoder.fingerprint() == before
    encoder.encode(['a red cat']) # what was asked for last does not count
    encoder.texts(['a red blue cat dog flag'], cut=True)
    assert encoder.fingerprint() == before
    last = list(encoder.network.parameters())[-3]
    last.data.view(-1)[-1] += 1e-3
    assert encoder.fingerprint() != before
    assert load_text_encoder(folder, length=4).fingerprint() != before != load_text_encoder(folder, length=3,
        layer=1).fingerprint()
    words = read_json(folder/'tokenizer.json')
    vocabulary = words['model']['vocab']
    vocabulary['dog'], vocabulary['flag'] = vocabulary['flag'], vocabulary['dog']
    (folder/'tokenizer.json').write_text(json.dumps(words))
    assert load_text_encoder(folder, length=3).fingerprint() != before


def test_encoders_that_cannot_be_used(tmp_path):
    folder = write_small_gemma(tmp_path/'gemma')
    def with_file(name, content):
        broken = shutil.copytree(folder, tmp_path/'broken', dirs_exist_ok=True)
        (broken/name).write_bytes(content)
        return broken
    for content in (b'', b'{', b'[]', b'{"model_type": "no-such"}', b'{"model_type": "gemma", "hidden_size": "x"}',
                    b'{"model_type": "x", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}'):
        broken = with_file('config.json', content)
        (broken/'evil.py').write_text('open("must-not-exist", "w")')
        with pytest.raises((ValueError, OSError), match='broken'): load_text_encoder(broken)
        assert not os.path.exists('must-not-exist')
    with_file('config.json', (folder/'config.json').read_bytes())
    with pytest.raises((ValueError, OSError), match='broken'): load_text_encoder(with_file('tokenizer.json', b'{}'))
    index = json.dumps(dict(weight_map=dict(a='../gemma/model.safetensors'))).encode()
    with pytest.raises(CheckpointError, match='names a file elsewhere'):
        load_text_encoder(with_file('model.safetensors.index.json', index))


def test_an_encoder_of_nan(tmp_path):
    from safetensors.torch import load_file, save_file
    folder = write_small_gemma(tmp_path/'gemma')
    file = sorted(folder.glob('model*.safetensors'))[0]
    state = load_file(file)
    next(iter(state.values())).view(-1)[0] = math.nan
    save_file(state, file, dict(format='pt'))
    with pytest.raises(CheckpointError, match='gemma: the weight .* not finite'): load_text_encoder(folder)


def test_damaged_features_are_found(tmp_path):
    encoder = load_text_encoder(write_small_gemma(tmp_path/'gemma'))
    features = encode_captions(encoder, ['a red cat', 'the flag'], tmp_path/'texts.npy')
    from maskgil.text import open_features
    content = bytearray((tmp_path/'texts.npy').read_bytes())
    content[-150] ^= 1
    origin = features.origin(tmp_path)
    del features
    (tmp_path/'texts.npy').write_bytes(content)
    with pytest.raises(ValueError, match='is not as it was written'): open_features(origin, ('a red cat', 'the flag'))


# Requests to a pipeline

@pytest.mark.parametrize('request_, says', [
    (dict(labels=[3]), '0 to 2'), (dict(labels=[-1]), '0 to 2'), (dict(labels=[1.7]), 'whole number'),
    (dict(labels=[True]), 'whole'),
    (dict(labels=[None]), 'whole number'), (dict(labels='flag'), "Did you mean 'flags'?"),
    (dict(labels=['²']), 'unknown class'),
    (dict(labels=[0], steps=2.), 'steps must be'), (dict(labels=[0], cfg='high'), 'cfg must be'),
    (dict(labels=[0], no=1), 'option'),
    (dict(labels=[0], seed=[1, 2]), '2 seeds for 1'), (dict(labels=[0], seed=.5), 'seed must be'),
    (dict(labels=[0], batch_size=0), 'batch_size'),
    (dict(labels=[0], batch_size=2.), 'batch_size'), (dict(labels=[0], height=16.5), 'height'),
    (dict(labels=[0], height=math.nan), 'height'),
    (dict(labels=[0], ar_tokens=2.), 'ar_tokens'), (dict(labels=[0], prompts=['a']), 'either'),
    (dict(prompts=[3]), 'reads no texts'),
    (dict(labels=[0], image='a.png', mask='b.png'), 'image'), (dict(labels=[], steps=0), 'steps must be'),
    (dict(labels=[0], negative_prompt='a'), 'negative prompt'), (dict(labels=[0], on_step=3), 'on_step is a function'),
    (dict(labels=[0, 1], tokens=torch.full((1, 4, 4), 256)), 'for each of 2 images, not for 1')])
def test_requests(request_, says, pipe, monkeypatch):
    monkeypatch.setattr(pipe.model, 'logits', never)
    with pytest.raises(ValueError, match=re.escape(says)): pipe(**request_)


def test_requests_that_are_fine(pipe):
    "One label alone, names that look like numbers, seeds for each image, in any batch."
    assert len(pipe(labels='flags')) == len(pipe(labels=1)) == len(pipe(labels=np.array([1]))) == 1
    assert pipe.draw([0, 1, 2], seed=[5, 6, 7], batch_size=2).equal(pipe.draw([0, 1, 2], seed=(5, 6, 7)))
    assert class_ids(['10', '2', 2, '0'], ['0', '1', '10', '2']).tolist() == [2, 3, 2, 0]
    unnamed = MaskGILPipeline(pipe.model, pipe.tokenizer)
    assert len(unnamed(labels=[2], steps=1)) == 1 and unnamed.sheet(1, steps=1)
    with pytest.raises(ValueError): unnamed(labels=[3])


def test_sheets_and_animations(pipe, tmp_path):
    picture = Image.new('RGB', (8, 8))
    picture_sheet([picture], ['狐狸 🦊 \x1b[31m \u202e'])
    for options in (dict(columns=0), dict(columns=2.), dict(scale=0), dict(captions=['a', 'b'])):
        with pytest.raises(ValueError): picture_sheet([picture], **options)
    with pytest.raises(ValueError): save_gif([], tmp_path/'a.gif')
    with pytest.raises(ValueError, match='ending'): pipe.animate(tmp_path/'a.png', labels=[0])


# The program that draws

@pytest.mark.parametrize('options, says', [
    (dict(columns=0), 'columns'), (dict(columns=-2), 'columns'), (dict(columns=10**9), 'columns'),
    (dict(steps=-3), 'steps'),
    (dict(cfg=math.nan), 'cfg'), (dict(seed=.5), 'seed'), (dict(prompt='  '), 'not empty'),
    (dict(prompt='a\x1b[1m'), 'control'),
    (dict(out='a.xyz'), "ending of 'a.xyz'"), (dict(out='a.psd'), 'choose one of'), (dict(out='.'), 'is a folder'),
    (dict(out=''), 'is a folder'),
    (dict(out='a.txt/b.png'), 'a.txt is a file'), (dict(checkpoint='./nowhere'), 'neither a folder')])
def test_sample_refuses_before_it_loads(options, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'a.txt').touch()
    if 'checkpoint' not in options: monkeypatch.setattr(MaskGILPipeline, 'from_pretrained', never)
    with pytest.raises((ValueError, OSError), match=re.escape(says)): sample(**options)
    assert [path.name for path in tmp_path.iterdir()] == ['a.txt']


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write anywhere')
def test_a_folder_that_is_read_only(tmp_path, monkeypatch, pipe):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match='read-only'): sample(out=str(tmp_path/'a.png'))
    with pytest.raises(OSError, match=str(tmp_path)): pipe.save_pretrained(tmp_path/'a')


@pytest.mark.parametrize('name, magic', [
    ('a.png', b'\x89PNG'), ('a.JPG', b'\xff\xd8'), ('b.jpeg', b'\xff\xd8'), ('a.webp', b'RIFF'),
    ('new/folder/a.bmp', b'BM'), ('a.tiff', b'II')])
def test_the_ending_is_the_format(name, magic, tmp_path, capsys):
    sample(out=str(tmp_path/name), columns=1, steps=1)
    assert (tmp_path/name).read_bytes().startswith(magic) and 'samples: ' in capsys.readouterr().out


# Folders

def test_a_folder_is_whole_or_as_it_was(pipe, tmp_path, monkeypatch):
    "Whichever write fails, and whether the folder is new or not."
    old, new = pipe.save_pretrained(tmp_path/'saved'), tmp_path/'new'
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    real = kept.save_file
    for fails_at in range(2):
        calls = []
        def full(*args, **options):
            calls.append(1)
            if len(calls) > fails_at: raise OSError(28, 'No space left on device')
            return real(*args, **options)
        monkeypatch.setattr(kept, 'save_file', full)
        for folder in (old, new):
            calls.clear()
            with pytest.raises(OSError, match=f'{folder} cannot be written: No space'): pipe.save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before and not new.exists()


KILLED = '''
import os, sys
from maskgil import MaskGILPipeline, pipeline
pipe = MaskGILPipeline.from_pretrained(sys.argv[1], device='cpu')
pipe.defaults = dict(steps=3, cfg=5.)
pipe.model.head.weight.data += 1
left = int(sys.argv[2])
def dying(call):
    def wrapped(*args, **options):
        global left
        left -= 1
        if left < 0: os._exit(9)
        return call(*args, **options)
    return wrapped
os.replace, os.rename = dying(os.replace), dying(os.rename)
pipeline.os.replace = os.replace
pipe.save_pretrained(sys.argv[1])
'''


@pytest.mark.parametrize('moment', [2, 3, 4, 6]) # before .new becomes .saved, and while files take their places
def test_killed_while_saving(moment, pipe, tmp_path):
    "Between any two renames the folder is the old one or the new one, and saving again repairs it."
    folder = pipe.save_pretrained(tmp_path/'saved')
    environment = os.environ | dict(PYTHONPATH=str(project_root()))
    subprocess.run([sys.executable, '-c', KILLED, str(folder), str(moment)], env=environment, check=False)
    again = MaskGILPipeline.from_pretrained(folder, device='cpu')
    is_new = again.defaults == dict(steps=3, cfg=5.)
    assert is_new == (moment > 3) and torch.equal(again.model.head.weight, pipe.model.head.weight + is_new)
    pipe.save_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == ['README.md', 'config.json', 'model.safetensors',
        'model_index.json', 'pipeline.py', 'scheduler_config.json', 'tokenizer.safetensors']
    assert MaskGILPipeline.from_pretrained(folder, device='cpu').defaults == pipe.defaults


def test_places_that_are_taken(pipe, tmp_path):
    (tmp_path/'file').touch()
    with pytest.raises(NotADirectoryError, match='is a file: give a folder'): pipe.save_pretrained(tmp_path/'file')
    (tmp_path/'config.json').write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match='holds a model of another kind .llama.'): pipe.save_pretrained(tmp_path)
    with pytest.raises((ValueError, OSError)): MaskGILPipeline.from_pretrained(tmp_path)
    (tmp_path/'config.json').unlink()
    (tmp_path/'model_index.json').write_text('{"_class_name": "StableDiffusionPipeline"}') # which has no config.json
    with pytest.raises(ValueError, match='another kind .StableDiffusionPipeline.'): pipe.save_pretrained(tmp_path)


def test_an_older_ar_model_does_not_stay(pipe, tmp_path):
    pipe.ar = network('llamagen')
    assert (pipe.save_pretrained(tmp_path/'a')/'ar.safetensors').is_file()
    pipe.ar = None
    assert not (pipe.save_pretrained(tmp_path/'a')/'ar.safetensors').exists()


@pytest.mark.parametrize('wrap', [torch.compile, nn.DataParallel, lambda m: nn.DataParallel(torch.compile(m))])
def test_wrapped_networks(wrap, pipe, tmp_path):
    wrapped = MaskGILPipeline(wrap(pipe.model), pipe.tokenizer, pipe.classes, pipe.defaults)
    again = MaskGILPipeline.from_pretrained(wrapped.save_pretrained(tmp_path/'a'), device='cpu')
    assert torch.equal(again.model.head.weight, pipe.model.head.weight)


def test_what_could_not_be_loaded_is_not_saved(pipe, tmp_path):
    pipe.model.adapter = nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match='the model is not what its configuration says'):
        pipe.save_pretrained(tmp_path/'a')
    assert not (tmp_path/'a').exists()


def changed(folder, **changes):
    settings = read_json(folder/'config.json')
    write_json(folder/'config.json', settings | changes)
    return folder


def model_with(folder, **changes): return dict(model=read_json(folder/'config.json')['model'] | changes)


@pytest.mark.parametrize('changes, says', [
    (dict(colour=3), 'does not know: colour'), (dict(tokenizer='../../vq'), 'unknown tokenizer in'),
    (dict(tokenizer=3), 'tokenizer missing'), (dict(tokenizer_config=3), 'tokenizer_config missing'),
    (dict(tokenizer_config=dict(quantizer='vq', code_dim=8)), 'tokenizer_config: '),
    (dict(tokenizer_config=dict(colour=8)), 'unknown field in'),
    (dict(tokenizer='smoke-maskgit-vq'), 'smoke-maskgit-vq'), (dict(classes='abc'), 'classes missing'),
    (dict(classes=['a']), '1 names of classes'),
    (dict(classes=['a', 'b', 3]), 'a list of texts'), (dict(classes=['a', 'b', 'a']), 'its name twice'),
    (dict(defaults=dict(steps=0)), 'steps'),
    (dict(defaults=dict(cfg=None)), 'cfg'), (dict(defaults=dict(model='x')), 'option of the sampler'),
    (dict(defaults=[]), 'defaults missing'),
    (dict(defaults=dict(tokens=[[0]])), 'option of the sampler'), (dict(buckets=[[4]]), 'pairs'),
    (dict(buckets=[[4, '4']]), 'width'),
    (dict(buckets=[[0, 4]]), 'height'), (dict(ar=3), 'ar missing'),
    (dict(model_type='llama'), 'another kind of model: llama'), (dict(card=[]), 'card missing'),
    (dict(card=dict(metrics=dict(a=dict(value='x')))), 'value of the metric a'),
    (dict(card=dict(name=3)), 'name of a card'), (dict(model=None), 'model missing'),
    (dict(text_encoder='/etc'), 'outside the folder: /etc'), (dict(text_encoder='../gemma'), 'outside'),
    (dict(text_encoder='~/gemma'), 'outside'),
    (dict(text_encoder='a/../../b'), 'outside'), (dict(text_encoder=3), 'text_encoder missing'),
    (dict(fingerprints=dict(model='0' * 16)), 'not the file that was saved')])
def test_configurations_of_folders(changes, says, pipe, tmp_path):
    folder = changed(pipe.save_pretrained(tmp_path/'a'), **changes)
    with pytest.raises((ValueError, OSError), match=re.escape(says)) as error:
        MaskGILPipeline.from_pretrained(folder, device='cpu')
    assert str(folder) in str(error.value)


@pytest.mark.parametrize('changes, says', [
    (dict(width=48), 'does not fit|you asked for'), (dict(width=24.), 'width must be'),
    (dict(kind='gpt'), 'unknown kind in'), (dict(colour=3), 'unknown field in'),
    (dict(dropout=float('1e999') if False else 2), 'dropout'), (dict(causal='false'), 'causal'),
    (dict(rope='3d'), 'rope'), (dict(classes=4), 'you asked for'),
    (dict(qk_norm=True), 'you asked for'), (dict(grid=[4]), 'grid')])
def test_configurations_of_models(changes, says, pipe, tmp_path):
    folder = pipe.save_pretrained(tmp_path/'a')
    changed(folder, **model_with(folder, **changes))
    with pytest.raises(ValueError, match=says) as error: MaskGILPipeline.from_pretrained(folder, device='cpu')
    assert str(folder) in str(error.value)


def test_missing_and_older_entries(pipe, tmp_path):
    folder = pipe.save_pretrained(tmp_path/'a')
    settings = read_json(folder/'config.json')
    older = {k: v for k, v in settings.items() if k in ('model', 'tokenizer', 'classes', 'defaults', 'card')}
    write_json(folder/'config.json', older)
    assert MaskGILPipeline.from_pretrained(folder, device='cpu').classes == pipe.classes
    for name in ('model', 'tokenizer'):
        write_json(folder/'config.json', {k: v for k, v in older.items() if k != name})
        with pytest.raises(ValueError, match=f'{name} missing'): MaskGILPipeline.from_pretrained(folder)
    for content in ('', '{', '[]', '3', '{"model": {}}'):
        (folder/'config.json').write_text(content)
        with pytest.raises(ValueError, match='config.json'): MaskGILPipeline.from_pretrained(folder)


def test_a_configuration_that_was_edited_says_so(pipe, tmp_path):
    folder = pipe.save_pretrained(tmp_path/'a')
    text = (folder/'config.json').read_text()
    (folder/'config.json').write_text(text.replace('"steps": 4', '"steps": 6'))
    with pytest.raises(ValueError, match='remove its entry "checksum"'): MaskGILPipeline.from_pretrained(folder)


@pytest.mark.parametrize('name', ['config.json', 'model.safetensors', 'tokenizer.safetensors'])
def test_links_that_leave_the_folder(name, pipe, tmp_path):
    folder = pipe.save_pretrained(tmp_path/'a')
    outside = shutil.move(folder/name, tmp_path/f'outside-{name}')
    (folder/name).symlink_to(outside)
    with pytest.raises(CheckpointError, match=f'{name} is a link to .*outside'): MaskGILPipeline.from_pretrained(folder)
    (folder/name).unlink()
    shutil.move(outside, folder/f'real-{name}')
    (folder/name).symlink_to(f'real-{name}') # inside
    MaskGILPipeline.from_pretrained(folder, device='cpu')
    (tmp_path/'b').symlink_to(folder) # the folder itself may be reached through a link
    MaskGILPipeline.from_pretrained(tmp_path/'b', device='cpu')


def test_the_cache_of_the_hub_is_links(pipe, tmp_path, monkeypatch):
    "As huggingface_hub lays it out."
    repository = tmp_path/'hub'/'models--a--b'
    blobs, snapshot = repository/'blobs', repository/'snapshots'/'0123'
    blobs.mkdir(parents=True), snapshot.mkdir(parents=True)
    for file in pipe.save_pretrained(tmp_path/'a').iterdir():
        shutil.move(file, blobs/file.name)
        (snapshot/file.name).symlink_to(f'../../blobs/{file.name}')
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', lambda *args, **options: str(snapshot))
    assert MaskGILPipeline.from_pretrained('a/b', device='cpu').classes == pipe.classes


def test_files_of_two_pipelines(pipe, tmp_path):
    "Tokenizers of one shape with other weights: the pictures would be noise."
    a = pipe.save_pretrained(tmp_path/'a')
    pipe.tokenizer = load_tokenizer(TOKENIZER, seed=9)
    b = pipe.save_pretrained(tmp_path/'b')
    shutil.copy(b/'tokenizer.safetensors', a)
    with pytest.raises(CheckpointError, match='tokenizer.safetensors is not the file that was saved with'):
        MaskGILPipeline.from_pretrained(a)


def test_the_text_encoder_is_the_one_it_was_saved_with(tmp_path, tokenizer):
    gemma = write_small_gemma(tmp_path/'gemma')
    reader = network(text_width=24)
    pipe = MaskGILPipeline(reader, tokenizer, text_encoder=str(gemma), defaults=dict(steps=2))
    folder = pipe.save_pretrained(tmp_path/'saved')
    drawn = pipe.draw(prompts=['a red cat'])
    assert MaskGILPipeline.from_pretrained(folder, device='cpu').draw(prompts=['a red cat']).equal(drawn)
    moved = shutil.move(gemma, tmp_path/'moved')
    with pytest.raises(OSError, match='gemma'):
        MaskGILPipeline.from_pretrained(folder, device='cpu')(prompts=['a red cat'])
    elsewhere = MaskGILPipeline.from_pretrained(folder, 'cpu', moved)
    assert elsewhere.draw(prompts=['a red cat']).equal(drawn)
    write_small_gemma(gemma, seed=1)
    for given in ('', tmp_path/'gemma'):
        other = MaskGILPipeline.from_pretrained(folder, 'cpu', given)
        with pytest.raises(ValueError, match='is not the one that this model was saved with'):
            other(prompts=['a red cat'])
    again = elsewhere.save_pretrained(tmp_path/'again') # what was known stays known
    assert read_json(again/'config.json')['text_encoder'] == str(moved)


# The model card

EVIL = ['<script>alert(1)</script>', 'a | b', 'two\nlines', '\x1b[31mred', '```', '---\nlicense: x',
    '[x](javascript:y)', '\u202eabc', 'ok']


@pytest.mark.parametrize('text', EVIL, ids=ascii)
def test_the_card_holds_no_code(text, tokenizer):
    metrics = {text: dict(value=1., low=0., high=2., n=3, label=text, reference=text)}
    card = dict(name=text, description=text, attribution=text, license=text, metrics=metrics)
    pipe = MaskGILPipeline(network(), tokenizer, [text, 'b', 'c'], card=card)
    written = model_card(pipe)
    assert '<script' not in written.split('\n---\n', 1)[1].replace(repr(text),
        '') and '\x1b' not in written and '\u202e' not in written
    head = huggingface_hub.ModelCard(written).data
    assert head.library_name == 'maskgil' and len(head.eval_results) == 1
    rows = [line for line in written.splitlines() if line.startswith('| ') and line.count(' 1 |')]
    assert len(rows) == 1 and len(re.findall(r'(?<!\\)\|', rows[0])) == 5
    assert not re.search(r'(?<!\\)\]\(javascript', re.sub('(?s)```python.*?```', '', written.split('\n---\n', 1)[1]))
    lines = written.split('\n---\n', 1)[1].splitlines()
    assert [line for line in lines if line.startswith('```')] == ['```python', '```'] * 2 and '---' not in lines


def test_ordinary_texts_stay_as_they_are():
    for text in ('MaskGIL mini-xxl on OpenMoji', 'Smileys & Emotion'): assert html.unescape(in_markdown(text)) == text
    text = 'Trained by `papermill nbs/scaling.ipynb` on [OpenMoji](https://openmoji.org).\n\n*Two* paragraphs.'
    assert prose(text) == text


def test_class_names_on_a_terminal(pipe, tmp_path, capsys, monkeypatch):
    pipe.classes = ('a\x1b[31m', 'b\r', 'c\u202e')
    folder = pipe.save_pretrained(tmp_path/'a')
    sample(str(folder), str(tmp_path/'a.png'), columns=1, steps=1)
    said = capsys.readouterr().out
    assert '\x1b' not in said and '\r' not in said and '\u202e' not in said and '\\x1b[31m' in said


@pytest.mark.parametrize('wrong, says', [
    (dict(code_kernel=2), 'is even'), (dict(attention_levels=(9,)), r'\[9\] do not exist: the levels are 0 to 4'),
    (dict(middle='x'), "spelt with 'r' and 'a'"), (dict(middle=('r',)), 'spelt with'),
    (dict(decoder_blocks=(1, 1)), '2 numbers for 5 levels'), (dict(encoder_blocks=()), '0 numbers')], ids=str)
def test_layouts_of_tokenizers(wrong, says):
    with pytest.raises(ValueError, match=says): TokenizerConfig('vq', 16, 8, **wrong)


def test_names_of_models():
    with pytest.raises(ValueError, match="Did you mean 'paper'?"): load_model('llamagen', 'smoke-b', recipe='paperr')
    assert next(load_model('maskgil', 'smoke-b', device='auto', **OPTIONS).parameters()).device.type in ('cpu', 'cuda')


def test_the_committed_pipelines_load():
    for name in ('openmoji-mini', 'openmoji-mini-text'):
        parts = load_pipeline_parts(project_root()/'checkpoints'/name)
        assert isinstance(parts['model'].config, ModelConfig) and dataclasses.asdict(parts['tokenizer'].config)
