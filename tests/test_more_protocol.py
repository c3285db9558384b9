"sFID, distances in features of DINOv2, CMMD, and evaluations that are files."
import json

import numpy as np
import pytest
import torch
from PIL import Image

from maskgil.checks import ParameterError
from maskgil.evaluation import adm_reference, check_target, evaluate_checkpoint
from maskgil.features import extract, Features, load_extractor, normalised, write_synthetic_inception
from maskgil.metrics import Reference, evaluate, frechet_distance, mean_and_covariance
from maskgil.models import load_model
from maskgil.pipeline import MaskGILPipeline
from maskgil.tasks import read_task
from maskgil.tokenizers import load_tokenizer


def pictures(count, seed=0):
    return torch.randint(0, 256, (count, 3, 16, 16), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.fixture(scope='module')
def inception(tmp_path_factory):
    return write_synthetic_inception(tmp_path_factory.mktemp('inception')/'weights.pth')


def test_spatial_features_are_those_of_the_layer_that_adm_names(inception):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    images = pictures(6)
    seen = extract(images, 'inception-spatial', device='cpu', weights=inception)
    assert seen.features.shape == (6, 7 * 17 * 17) and seen.logits.shape == (6, 0)
    net = FeatureExtractorInceptionV3('inception-v3-compat', ['768'], feature_extractor_weights_path=str(inception))
    inputs = [] # of the block: its first branch is what TensorFlow calls mixed_6/conv
    net.Mixed_6d.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    with torch.inference_mode():
        net(images)
        layer = net.Mixed_6d.branch1x1(inputs[0])
    assert layer.shape == (6, 192, 17, 17)
    assert torch.allclose(seen.features, layer[:, :7].flatten(1), atol=1e-6)


def test_sfid_is_a_frechet_distance_to_what_adm_calls_mu_s(tmp_path):
    mean, cov = np.full(7 * 17 * 17, 2.), np.eye(7 * 17 * 17)
    np.savez(tmp_path/'adm.npz', mu=np.zeros(2048), sigma=np.eye(2048), mu_s=mean, sigma_s=cov)
    reference = adm_reference(tmp_path/'adm.npz', 'inception-spatial', 'cpu')
    assert torch.equal(reference.mean, torch.from_numpy(mean))
    real, drawn = (torch.randn(20, 6, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    small = [Features(features, torch.zeros(20, 0), 'inception-spatial') for features in (real, drawn)]
    found = evaluate(small[1], Reference.from_features(small[0], 'some', 'some'), 0)
    assert list(found) == ['sfid'] and found['sfid']['label'] == 'sFID'
    directly = frechet_distance(*mean_and_covariance(drawn.double()), *mean_and_covariance(real.double()))
    assert found['sfid']['value'] == pytest.approx(float(directly), abs=1e-6)


def small_network(folder, kind):
    "A transformer of the real class, with random weights."
    import transformers
    torch.manual_seed(0)
    shape = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, patch_size=14)
    if kind == 'dinov2': network = transformers.Dinov2Model(transformers.Dinov2Config(image_size=56, **shape))
    else:
        config = transformers.CLIPVisionConfig(image_size=28, projection_dim=12, intermediate_size=32, **shape)
        network = transformers.CLIPVisionModelWithProjection(config)
    network.save_pretrained(folder)
    return network.eval()


def test_a_distance_in_features_of_dinov2(tmp_path, clean_cache, monkeypatch):
    network, real, drawn = small_network(tmp_path/'dino', 'dinov2'), pictures(9), pictures(8, 1)
    monkeypatch.setenv('MASKGIL_DINO', str(tmp_path/'dino'))
    load_extractor.cache_clear()
    with torch.inference_mode():
        directly = [network(normalised(images, 224, 'imagenet')).last_hidden_state[:, 0] for images in (real, drawn)]
    seen = extract(drawn, 'dinov2', device='cpu')
    assert torch.allclose(seen.features, directly[1], atol=1e-5)
    found = evaluate(seen, Reference.from_images(real, 'dinov2', device='cpu'), 0)
    assert list(found) == ['fd_dinov2', 'kid_dinov2', 'precision_dinov2', 'recall_dinov2']
    (mean1, cov1), (mean2, cov2) = (mean_and_covariance(f.double()) for f in directly)
    assert found['fd_dinov2']['value'] == pytest.approx(float(frechet_distance(mean1, cov1, mean2, cov2)), abs=1e-4)
    assert found['fd_dinov2']['label'] == 'FD-DINOv2'


def test_cmmd_is_the_direct_formula_on_embeddings_of_clip(tmp_path, clean_cache):
    network, real, drawn = small_network(tmp_path/'clip', 'clip'), pictures(9), pictures(8, 1)
    def embedded(images):
        with torch.inference_mode(): out = network(normalised(images, 28, 'clip')).image_embeds.double()
        return out / out.norm(dim=1, keepdim=True)
    def near(a, b): return float(torch.exp(-torch.cdist(a, b).square() / (2 * 10**2)).mean())
    x, y = embedded(drawn), embedded(real)
    reference = Reference.from_images(real, 'clip', device='cpu', weights=tmp_path/'clip')
    found = evaluate(extract(drawn, 'clip', device='cpu', weights=tmp_path/'clip'), reference, 20)
    assert list(found) == ['cmmd'] and found['cmmd']['label'] == 'CMMD'
    assert found['cmmd']['value'] == pytest.approx(1000 * (near(x, x) + near(y, y) - 2 * near(x, y)), abs=1e-3)
    assert found['cmmd']['low'] <= found['cmmd']['value'] <= found['cmmd']['high']


@pytest.mark.parametrize('name,variable', [('dinov2', 'MASKGIL_DINO'), ('clip', 'MASKGIL_CLIP')])
def test_a_network_that_is_not_there_is_named(name, variable, monkeypatch, tmp_path):
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(FileNotFoundError, match=variable): load_extractor(name)
    with pytest.raises(FileNotFoundError, match='no config.json'): load_extractor(name, weights=tmp_path)


def test_statistics_of_inception_are_no_reference_for_clip(tmp_path):
    np.savez(tmp_path/'adm.npz', mu=np.zeros(2048), sigma=np.eye(2048))
    for name, says in (('clip', 'expected arr_0'), ('inception-spatial', 'expected mu_s and sigma_s, or arr_0')):
        with pytest.raises(ValueError, match=says): check_target(str(tmp_path/'adm.npz'), name, '', True, 0)
        with pytest.raises(ValueError, match=says): adm_reference(tmp_path/'adm.npz', name, 'cpu')


TASK = '''
version: 3
about: stripes
classes: 2
resolution: 32
count: 12
seeds: [5, 6]
reference: {images: %s, split: train}
metrics: {el0: [fid, precision], clip: [cmmd]}
bootstrap: 10
'''


@pytest.fixture
def task(tmp_path, monkeypatch, clean_cache):
    "A task file, a folder of pictures that it names, and a model without training."
    small_network(tmp_path/'clip', 'clip')
    monkeypatch.setenv('MASKGIL_CLIP', str(tmp_path/'clip'))
    load_extractor.cache_clear()
    for number in range(80):
        file = tmp_path/'real'/'ab'[number % 2]/f'{number}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pictures(1, number)[0].permute(1, 2, 0).numpy()).save(file)
    (tmp_path/'stripes.yaml').write_text(TASK % (tmp_path/'real'))
    tokenizer = load_tokenizer('smoke-llamagen-vq', seed=0)
    model = load_model('maskgil', size='smoke-b', tokenizer='smoke-llamagen-vq', classes=2, grid=(8, 8), seed=0)
    MaskGILPipeline(model, tokenizer, ['a', 'b']).save_pretrained(tmp_path/'model')
    return str(tmp_path/'stripes.yaml')


def test_an_evaluation_by_a_file_names_it(task, tmp_path):
    asked = dict(checkpoint=str(tmp_path/'model'), out=str(tmp_path/'out'), steps=1, device='cpu', batch_size=6,
                 block=6)
    evaluate_checkpoint(task=task, **asked)
    for seed in (5, 6):
        found = json.loads((tmp_path/'out'/f'seed-{seed}'/'metrics.json').read_text())
        assert found['task'] == read_task(task).card() and found['task']['version'] == 3
        assert list(found['metrics']) == ['fid_el0', 'precision_el0', 'cmmd']
        assert found['protocol']['seeds'].endswith(f'from seed {seed} and its index in the set')
        assert 'CLIPVisionModelWithProjection' in found['also']['clip']['weights']
    with pytest.raises(ValueError, match='leave out seed'): evaluate_checkpoint(task=task, seed=3, **asked)
    with pytest.raises(ValueError, match='openmoji-32-450'): evaluate_checkpoint(task='openmoji', **asked)
    with pytest.raises(ValueError, match='9 classes at 32 pixels'): evaluate_checkpoint(task='openmoji-32-450', **asked)
    with pytest.raises(ValueError, match='1000 classes'): evaluate_checkpoint(task='imagenet-256-50k', **asked)


def test_a_missing_reference_is_refused_before_anything_is_drawn(task, tmp_path):
    text = TASK.replace('{images: %s, split: train}', '{file: nothing.npz}')
    (tmp_path/'other.yaml').write_text(text)
    with pytest.raises(FileNotFoundError, match='MASKGIL_CHECKPOINTS'):
        evaluate_checkpoint(str(tmp_path/'model'), str(tmp_path/'out'), task=str(tmp_path/'other.yaml'), device='cpu')
    assert not (tmp_path/'out').exists()


@pytest.mark.parametrize('text', [
    'made: 2026-13-45', 'a: ' + '['*3000, 'a: [', '? [a]\n: b', '\xff', '- 1', '', '1: 2'])
def test_a_file_that_is_no_task_is_one_clear_line(text, tmp_path):
    (tmp_path/'odd.yaml').write_bytes(text.encode('latin-1'))
    with pytest.raises(ParameterError, match='odd.yaml') as refused: read_task(str(tmp_path/'odd.yaml'))
    assert '\n' not in str(refused.value)
