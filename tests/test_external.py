"Lumina-mGPT and a text encoder, as small networks of transformers' own classes in the published layout."
import json, os, subprocess, sys

import pytest, torch
from safetensors.torch import load_file, save_file

from maskgil.encoders import load_text_encoder, weight_files
from maskgil.external import load_lumina_mgpt, write_small_gemma, write_small_lumina
from maskgil.reading import CheckpointError
from maskgil.sampling import sample_ar, sample_fusion

PROMPTS = ['a red cat', 'the flag']


@pytest.fixture(scope='module')
def lumina_folder(tmp_path_factory): return write_small_lumina(tmp_path_factory.mktemp('lumina'))

@pytest.fixture(scope='module')
def gemma_folder(tmp_path_factory): return write_small_gemma(tmp_path_factory.mktemp('gemma'))

@pytest.fixture
def copy(tmp_path):
    "A folder's copy in one file of weights, its configuration and weights changed."
    def make(folder, config=lambda c: c, weights=lambda w: w):
        state = {k: v for file in weight_files(folder) for k, v in load_file(file).items()}
        save_file({k: v.contiguous() for k, v in weights(state).items()}, tmp_path/'model.safetensors')
        (tmp_path/'config.json').write_text(json.dumps(config(json.loads((folder/'config.json').read_text()))))
        for name in ('tokenizer.json', 'tokenizer_config.json'): (tmp_path/name).write_text((folder/name).read_text())
        return tmp_path
    return make


def without(name):
    "A change of weights: one is missing."
    return lambda weights: {k: v for k, v in weights.items() if k != name}

def truncate(file): file.write_bytes(file.read_bytes()[:-100])


def test_importing_loads_none_of_it():
    heavy = {'transformers', 'tokenizers', 'huggingface_hub'}
    code = ('import maskgil, maskgil.external, maskgil.pipeline, sys; '
            f"print(*{heavy} & {{m.partition('.')[0] for m in sys.modules}})")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == ''


def test_published_configuration(lumina_folder, copy):
    "As Lumina-mGPT's code wrote it in 2024: another class, fields that transformers has renamed since, its own ones."
    def old(config):
        config.pop('rope_parameters'); config.pop('dtype', None)
        return config | dict(
            architectures=['ChameleonXLLMXForConditionalGeneration'], rope_theta=10000.0, rope_scaling=None,
            torch_dtype='float32', z_loss_weight=1e-5, mask_image_logits=False, dropout=0.05)
    new = load_lumina_mgpt(lumina_folder, grid=(4, 4))
    published = load_lumina_mgpt(copy(lumina_folder, old), grid=(4, 4))
    tokens = torch.randint(64, (2, 5))
    with torch.no_grad():
        ours, theirs = (model.logits(tokens, model.describe(PROMPTS)) for model in (new, published))
    assert torch.equal(ours, theirs)


def test_norms_of_a_model_trained_on_several_devices(lumina_folder, copy):
    "34B has a row of QK-Norm for each of its devices; one row for each head is what transformers itself saves."
    def first_norm(rows):
        scale = torch.arange(1, rows + 1)[:, None]
        def repeat(weights):
            norm = lambda k: '_norm.' in k and 'self_attn' in k
            return {k: v.repeat(rows, 1) * scale if norm(k) else v for k, v in weights.items()}
        model = load_lumina_mgpt(copy(lumina_folder, weights=repeat))
        return model.network.model.layers[0].self_attn.q_norm.weight
    norm = first_norm(rows=2)
    assert norm.shape == (4, 8) and torch.equal(norm[0], norm[1])
    assert torch.allclose(norm[2], 2 * norm[0]) and torch.equal(norm[2], norm[3])
    norm = first_norm(rows=4)
    assert torch.allclose(norm[3], 4 * norm[0])


def test_precision(lumina_folder, gemma_folder, copy):
    "The files' own unless another is asked for."
    def config(c): return c | dict(dtype='bfloat16')
    def weights(w): return {k: v.bfloat16() for k, v in w.items()}
    half = copy(lumina_folder, config, weights)
    assert load_lumina_mgpt(half).network.dtype == torch.bfloat16
    assert load_lumina_mgpt(half, dtype='float32').network.dtype == torch.float32
    model = load_lumina_mgpt(half, grid=(2, 4))
    tokens = sample_ar(model, model.describe(PROMPTS), (2, 4), cfg=3., dtype='bfloat16')
    assert tokens.shape == (2, 2, 4) and tokens.max() < 64
    assert load_text_encoder(gemma_folder, dtype='bfloat16').network.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="Did you mean 'float32'"): load_text_encoder(gemma_folder, dtype='flot32')


def test_fusion_with_a_model_that_reads_text(lumina_folder):
    "The labels are text features; Lumina-mGPT knows them by what `describe` was told."
    lumina, text = load_lumina_mgpt(lumina_folder, grid=(4, 4)), torch.randn(2, 3, 6)
    uniform = lambda tokens, labels, drop: torch.zeros(len(tokens), 16, 64)
    greedy = dict(temperature=0, dtype='float32')
    fused = sample_fusion(lumina, uniform, lumina.describe(PROMPTS, text), (4, 4), ar_tokens=8, mar_steps=2,
                          ar_cfg=3., mar_cfg=1., codebook_size=64, ar_options=greedy)
    alone = sample_ar(lumina, lumina.describe(PROMPTS), (4, 4), cfg=3., **greedy, length=8)
    assert torch.equal(fused.flatten(1)[:, :8], alone) and fused.max() < 64


LUMINA_REFUSED = {
    'missing weight': '1 missing: model.norm.weight',
    'another width':  r'\(64,\) is needed|64\) is needed',
    'another system': 'is a language-model of another size, you asked for lumina-mgpt',
    'truncated':      'damaged or truncated',
    'no tokenizer':   'tokenizer.json missing',
}

@pytest.mark.parametrize('case', LUMINA_REFUSED)
def test_lumina_refused(case, lumina_folder, gemma_folder, copy):
    change = {}
    if case == 'missing weight': change = dict(weights=without('model.norm.weight'))
    if case == 'another width': change = dict(config=lambda c: c | dict(hidden_size=64))
    folder = copy(gemma_folder if case == 'another system' else lumina_folder, **change)
    if case == 'truncated': truncate(folder/'model.safetensors')
    if case == 'no tokenizer': (folder/'tokenizer.json').unlink()
    with pytest.raises((CheckpointError, FileNotFoundError), match=LUMINA_REFUSED[case]): load_lumina_mgpt(folder)


@pytest.mark.parametrize('case, message', [
    ('missing weight', 'lacks weights of GemmaModel: layers.1.mlp.up_proj.weight'),
    ('truncated', 'damaged or truncated'),
])
def test_text_encoder_refused(case, message, gemma_folder, copy):
    weights = without('model.layers.1.mlp.up_proj.weight') if case == 'missing weight' else dict
    folder = copy(gemma_folder, weights=weights)
    if case == 'truncated': truncate(folder/'model.safetensors')
    with pytest.raises(CheckpointError, match=message): load_text_encoder(folder)
