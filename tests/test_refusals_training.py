"What a training refuses, when it does, and what it says; and that nothing from around it changes what is learned."
import dataclasses, json, math, os, signal, subprocess, sys, threading, time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from maskgil import jobs
from maskgil.core import DamagedFile, fingerprint, read_json, write_json
from maskgil.data import TokenSet
from maskgil.jobs import Job, check_handed_over, check_job, in_place, launch, read_job, write_job
from maskgil.kept import save_array
from maskgil.losses import CausalObjective, MaskedObjective, WatchedObjective, token_loss
from maskgil.models import load_model
from maskgil.preflight import alone_in, data_identity, differences, sample_identity, training_identity
from maskgil.processes import device_count, left_to_others, local_device, place, run_here
from maskgil.reconstruction import LOSSES, LossConfig, ReconstructionObjective, TokenizerObjective
from maskgil.resuming import before, last_step
from maskgil.tokenizers import load_tokenizer
from maskgil.training import NotFinite, TrainConfig, fit, load_milestone, make_batches, start_from

TINY = dict(kind='maskgil', size='smoke-b', tokenizer='smoke-llamagen-vq', classes=9, grid=(4, 4), codebook_size=16)
CONFIG = TrainConfig(8, 10, 1e-2)
CPU = dict(device='cpu', dtype='float32', log_every=1)


def model(**changes): return load_model(**TINY | changes)


def tokens(images=60, classes=9, codes=16, side=4, seed=0, **manifest):
    rng = np.random.default_rng(seed)
    return TokenSet(rng.integers(0, codes, (images, 1, side, side)).astype(np.uint16), np.arange(images) % classes,
                    dict(codebook_size=codes) | manifest)


def stop_at(step):
    def stop(state, row):
        if state.step == step: raise KeyboardInterrupt
    return stop


def train(folder, stop=None, config=CONFIG, objective=None, data=None, made=None, **options):
    made, options = made or model(), CPU | options
    if stop: options['on_log'] = stop_at(stop)
    fit(made, objective or MaskedObjective(16), tokens() if data is None else data, config, folder, **options)
    return made


def stopped(folder, **options):
    with pytest.raises(KeyboardInterrupt): train(folder, 4, **options)


def same_weights(a, b): return all(x.equal(y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


def one_line(error):
    said = str(error.value)
    assert '\n' not in said and len(said) < 700, said
    return said


# identity

def relabelled():
    data = tokens()
    data.labels[3] = (data.labels[3] + 1) % 9
    return data


def retokened():
    data = tokens()
    data.tokens[59, 0, 3, 3] ^= 1
    return data


@pytest.mark.parametrize('changes, named', [
    (dict(data=relabelled()), 'data.labels'),
    (dict(data=retokened()), 'data.tokens'),
    (dict(data=tokens(tokenizer='another')), 'data.tokenizer'),
    (dict(objective=MaskedObjective(16, 'all')), 'objective.loss_on'),
    (dict(objective=MaskedObjective(16, smoothing=.2)), 'objective.smoothing'),
    (dict(objective=MaskedObjective(16, class_dropout=0.)), 'objective.class_dropout'),
    (dict(made=model(rope='1d-released')), 'model.rope'),
    (dict(made=model(dropout=.3)), 'model.dropout'),
    (dict(made=model(class_first=False)), 'model.class_first'),
    (dict(dtype='bfloat16'), 'dtype'),
    (dict(config=dataclasses.replace(CONFIG, weight_decay=.1)), 'settings.weight_decay'),
    (dict(config=dataclasses.replace(CONFIG, clip=.5)), 'settings.clip'),
])
def test_a_checkpoint_of_another_training_is_refused_by_name(tmp_path, changes, named):
    stopped(tmp_path)
    kept = (tmp_path/'checkpoint.safetensors').read_bytes()
    with pytest.raises(ValueError, match=f'other settings, data or another model.*{named}') as e:
        train(tmp_path, **changes)
    assert str(tmp_path/'checkpoint.safetensors') in one_line(e) and 'give another folder' in str(e.value)
    assert (tmp_path/'checkpoint.safetensors').read_bytes() == kept


def test_what_is_only_for_memory_goes_on(tmp_path):
    stopped(tmp_path)
    train(tmp_path, config=dataclasses.replace(CONFIG, accumulate=5, gradient_checkpointing=True))
    assert last_step(tmp_path) == 8


def test_weights_to_begin_with_are_part_of_a_training(tmp_path):
    for name, seed in (('a', 1), ('b', 2)): train(tmp_path/name, milestones=[8], made=model(seed=seed))
    def begun(name): return start_from(model(), tmp_path/name/'weights-8.safetensors')
    stopped(tmp_path/'run', made=begun('a'))
    with pytest.raises(ValueError, match='start: '): train(tmp_path/'run', made=begun('b'))
    with pytest.raises(ValueError, match='start: .* fresh weights here'): train(tmp_path/'run')
    train(tmp_path/'run', made=begun('a'))


def tokenizer_identity(losses=LossConfig(), ranks=1, accumulate=1, seed=0):
    made = load_tokenizer('smoke-llamagen-vq', seed=0)
    objective = ReconstructionObjective(TokenizerObjective(made.config, losses, seed))
    return training_identity(TrainConfig(8, accumulate=accumulate), made, objective, ranks=ranks)


@pytest.mark.parametrize('field, value', [
    ('perceptual', .1), ('adversarial', .1), ('commitment', .5), ('entropy', .02), ('first_codes', 7),
    ('adversarial_start', 3), ('reconstruction', 'l1'),
])
def test_every_weight_of_a_tokenizers_loss_counts(field, value):
    found = differences(tokenizer_identity(), tokenizer_identity(dataclasses.replace(LossConfig(), **{field: value})))
    assert any(text.startswith(f'objective.losses.{field}:') for text in found)


def test_the_division_of_a_batch_counts_where_it_changes_the_loss():
    entropy = LossConfig(entropy=.02)
    assert differences(tokenizer_identity(entropy, 2), tokenizer_identity(entropy, 4))
    assert not differences(tokenizer_identity(entropy, 2, 2), tokenizer_identity(entropy, 4, 1))
    assert not differences(tokenizer_identity(ranks=2), tokenizer_identity(ranks=4))
    judged = LossConfig(adversarial=.1)
    assert differences(tokenizer_identity(judged), tokenizer_identity(judged, seed=1))


class Custom:
    "Data of a person's own."
    copies = 1
    def __init__(self, shift=0): self.shift = shift
    def __len__(self): return 40
    def batch(self, indices, copies): return (indices[:, None, None] + self.shift).expand(-1, 4, 4) % 16, indices % 9


def test_data_that_nobody_knows_are_sampled_without_a_trace():
    torch.manual_seed(3)
    state, arrays = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert data_identity(Custom()) == data_identity(Custom()) != data_identity(Custom(1))
    assert torch.get_rng_state().equal(state) and (np.random.get_state()[1] == arrays).all()
    assert sample_identity([1, 2])['content'].startswith('not looked at')


def test_a_part_of_tokens_on_a_disk_is_not_the_whole(tmp_path):
    whole = tokens()
    save_array(tmp_path/'tokens.npy', whole.tokens)
    save_array(tmp_path/'labels.npy', whole.labels)
    write_json(tmp_path/'manifest.json', whole.manifest)
    there = TokenSet.load(tmp_path)
    part = TokenSet(there.tokens[:30], there.labels[:30], there.manifest)
    assert data_identity(there) == data_identity(whole) != data_identity(part)


def strip_header(path): save_file(load_file(path), path, dict(settings='0123', step='4', history='[]'))


def test_a_checkpoint_of_an_earlier_version_is_refused(tmp_path):
    stopped(tmp_path)
    strip_header(tmp_path/'checkpoint.safetensors')
    with pytest.raises(ValueError, match='earlier version') as e: train(tmp_path)
    assert 'checkpoint.safetensors' in one_line(e)


# milestones

def test_milestones_of_a_training_that_was_deleted_are_refused(tmp_path):
    train(tmp_path, milestones=[4])
    for path in tmp_path.glob('checkpoint*'): path.unlink()
    with pytest.raises(ValueError, match='weights-4.safetensors was made with other settings'):
        train(tmp_path, config=dataclasses.replace(CONFIG, seed=1), milestones=[4])


@pytest.mark.parametrize('strategy', ['ddp', 'fsdp'])
def test_an_interrupt_right_after_a_milestones_step_loses_nothing(tmp_path, strategy):
    whole, cut = tmp_path/'whole', tmp_path/'cut'
    train(whole, milestones=[4, 8], strategy=strategy)
    with pytest.raises(KeyboardInterrupt): train(cut, 4, milestones=[4, 8], strategy=strategy)
    assert not (cut/'weights-4.safetensors').exists(), 'the interrupt came late for this test'
    train(cut, milestones=[4, 8], strategy=strategy)
    for name in ('weights-4', 'weights-8'):
        a, b = (load_file(folder/f'{name}.safetensors') for folder in (whole, cut))
        assert all(a[k].equal(b[k]) for k in a)


def test_a_milestone_that_can_no_longer_be_made_is_refused_at_once(tmp_path):
    stopped(tmp_path)
    with pytest.raises(ValueError, match='weights-2.safetensors is not there') as e: train(tmp_path, milestones=[2])
    assert str(tmp_path/'checkpoint.safetensors') in one_line(e)


@pytest.mark.parametrize('change, said', [
    (lambda path: path.rename(path.with_name('weights-5.safetensors')), 'weights of step 8: it was renamed'),
    (lambda path: path.write_bytes(path.read_bytes()[:-9]), 'damaged or cut'),
    (lambda path: path.write_bytes(path.read_bytes()[:-1] + b'!'), 'its checksum is another'),
    (lambda path: path.unlink(), 'kept are the weights of steps none'),
])
def test_a_milestone_is_checked_when_it_is_read(tmp_path, change, said):
    train(tmp_path, milestones=[8])
    change(tmp_path/'weights-8.safetensors')
    step = 5 if 'renamed' in said else 8
    with pytest.raises((ValueError, OSError), match=said) as e: load_milestone(model(), tmp_path, step)
    assert str(tmp_path) in one_line(e)


@pytest.mark.parametrize('other, said', [(dict(rope='1d-released'), 'rope'), (dict(class_first=False), 'class_first'),
                                         (dict(classes=12), 'classes')])
def test_weights_are_not_given_to_another_model(tmp_path, other, said):
    train(tmp_path, milestones=[8])
    with pytest.raises(ValueError, match=said) as e: load_milestone(model(**other), tmp_path, 8)
    one_line(e)
    with pytest.raises(ValueError): start_from(model(**other), tmp_path/'weights-8.safetensors')
    start_from(model(dropout=.3, grid=(8, 8)), tmp_path/'weights-8.safetensors') # what a second stage may change


# damage

def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize('place', [-5, 3, 40, 'cut', 'checksum'])
def test_a_damaged_checkpoint_is_named_and_the_one_before_goes_on(tmp_path, place):
    whole = train(tmp_path/'whole')
    stopped(tmp_path/'run', save_seconds=0)
    path = tmp_path/'run'/'checkpoint.safetensors'
    assert before(path).exists()
    if place == 'cut': path.write_bytes(path.read_bytes()[:1000])
    else: flip(path, path.read_bytes().index(b'checksum') + 3 if place == 'checksum' else place)
    with pytest.warns(UserWarning, match=r'checkpoint\.safetensors.*goes on from step [23]'):
        resumed = train(tmp_path/'run')
    assert same_weights(whole, resumed)


def test_two_damaged_checkpoints_are_refused_with_the_way_out(tmp_path):
    stopped(tmp_path, save_seconds=0)
    for path in (tmp_path/'checkpoint.safetensors', tmp_path/'checkpoint-before.safetensors'): flip(path, -5)
    with pytest.raises(DamagedFile, match='delete both to start again') as e: train(tmp_path)
    for name in ('checkpoint.safetensors', 'checkpoint-before.safetensors'): assert str(tmp_path/name) in one_line(e)


@pytest.mark.parametrize('harm', ['flip', 'missing file', 'missing folder', 'pointer'])
def test_parts_are_checked_and_the_ones_before_go_on(tmp_path, harm):
    whole = train(tmp_path/'whole', strategy='fsdp')
    stopped(tmp_path/'run', strategy='fsdp', save_seconds=0)
    pointer = tmp_path/'run'/'checkpoint.json'
    parts = tmp_path/'run'/read_json(pointer)['parts']
    part = max(parts.iterdir(), key=lambda p: p.stat().st_size)
    if harm == 'flip': flip(part, -50)
    if harm == 'missing file': part.unlink()
    if harm == 'missing folder': parts.rename(tmp_path/'elsewhere')
    if harm == 'pointer': flip(pointer, 30)
    with pytest.warns(UserWarning, match='goes on from step [23]'): resumed = train(tmp_path/'run', strategy='fsdp')
    assert same_weights(whole, resumed)
    assert len(list((tmp_path/'run').glob('parts-*'))) <= 2


def test_the_time_between_two_names_of_a_checkpoint(tmp_path):
    "A file system without links: a kill may find only the checkpoint before."
    whole = train(tmp_path/'whole')
    stopped(tmp_path/'run', save_seconds=0)
    (tmp_path/'run'/'checkpoint.safetensors').unlink()
    assert same_weights(whole, train(tmp_path/'run'))


# not finite

class Bad(MaskedObjective):
    "A loss that is not finite at step 5; its gradient may be."
    finite_gradient = True
    def loss(self, model, batch):
        loss, logs = super().loss(model, batch)
        if self.step != 5: return loss, logs
        return (loss + torch.tensor(math.nan).detach() if self.finite_gradient else loss * math.nan), logs


class Worse(Bad): finite_gradient = False


@pytest.mark.parametrize('objective, said', [(Bad, 'the loss of step 5'), (Worse, 'the gradient of step 5')])
def test_a_loss_that_is_not_finite_never_reaches_the_weights(tmp_path, objective, said):
    with pytest.raises(NotFinite, match=said): train(tmp_path, objective=objective(16))
    assert last_step(tmp_path) == 5
    assert all(t.isfinite().all() for t in load_file(tmp_path/'checkpoint.safetensors').values())


@pytest.mark.parametrize('ema, seconds', [(0., 1e9), (.9, 0)])
def test_weights_that_overflow_are_never_kept(tmp_path, ema, seconds):
    "A finite gradient and a rate beyond reason: the step itself breaks the weights."
    config = dataclasses.replace(CONFIG, learning_rate=1e38, weight_decay=0., warmup_steps=0, ema=ema)
    config = dataclasses.replace(config, learning_rate=3e38)
    with pytest.raises(NotFinite): train(tmp_path, config=config, milestones=range(1, 9), save_seconds=seconds)
    for path in tmp_path.glob('*.safetensors'):
        assert all(t.isfinite().all() for t in load_file(path).values()), path


def test_the_last_step_is_looked_at_too():
    with pytest.raises(NotFinite, match='after step 1'):
        train(None, config=TrainConfig(1, 10, 3e38, weight_decay=10.))


def test_a_diverged_training_is_no_start_and_no_result(tmp_path):
    spoilt = model()
    with torch.no_grad(): spoilt.layers[0].attention.qkv.weight[0, 0] = math.nan
    save_file({k: v.contiguous() for k, v in spoilt.state_dict().items()}, tmp_path/'weights-3.safetensors')
    with pytest.raises(ValueError, match='not finite'): load_milestone(model(), tmp_path, 3)
    with pytest.raises(ValueError, match='not finite'): start_from(model(), tmp_path/'weights-3.safetensors')
    with pytest.raises(ValueError, match='weights to begin with are not finite'): train(None, made=spoilt)


class NaNImages:
    flippable = np.zeros(16, dtype=bool)
    def __len__(self): return 16
    def batch(self, indices): return torch.zeros(len(indices), 3, 32, 32, dtype=torch.uint8)


def test_images_and_discriminators_that_are_not_finite(monkeypatch):
    from maskgil import reconstruction
    made = load_tokenizer('smoke-llamagen-vq', seed=0)
    def run(losses=LossConfig()):
        objective = ReconstructionObjective(TokenizerObjective(made.config, losses))
        fit(made, objective, NaNImages(), TrainConfig(2, 4), **CPU)
    run(LossConfig(adversarial=.1))
    monkeypatch.setattr(reconstruction, 'hinge', lambda real, fake: (real.sum() + fake.sum()) * math.nan)
    with pytest.raises(NotFinite, match='discriminator'): run(LossConfig(adversarial=.1))
    monkeypatch.setattr(reconstruction, 'augment', lambda images, *a, **o: images.float() / 0)
    with pytest.raises(ValueError, match='the batch of step 0: images are not finite'): run()


# refused first

@pytest.mark.parametrize('changes, said', [
    (dict(data=tokens(classes=12)), 'labels up to 11'),
    (dict(data=TokenSet(tokens().tokens, tokens().labels - 1, {})), 'a label of -1'),
    (dict(data=tokens(codes=64)), 'codebook of 64'),
    (dict(data=TokenSet(tokens(codes=64).tokens, tokens().labels, {})), 'codes from 0 to 63'),
    (dict(data=tokens(side=8)), 'grids of'),
    (dict(data=tokens(images=0)), 'no image'),
    (dict(data=TokenSet(tokens().tokens, tokens().labels[:50], {})), 'for 50 labels'),
    (dict(data=tokens(images=9)), 'larger than the data'),
    (dict(objective=MaskedObjective(15)), 'hides tokens under the id 15'),
    (dict(objective=CausalObjective()), 'not by CausalObjective'),
    (dict(made=model(text_width=24)), 'text features of width 24'),
    (dict(config=TrainConfig(0)), 'steps must be'),
    (dict(config=TrainConfig(8., 10)), 'steps must be a whole number'),
    (dict(config=TrainConfig(8, 10, accumulate=3)), 'does not divide'),
    (dict(config=TrainConfig(8, 10, learning_rate=math.nan)), 'learning_rate must be'),
    (dict(config=TrainConfig(8, 10, betas=(.9, 1.))), 'a beta must be'),
    (dict(config=TrainConfig(8, 10, betas=.9)), 'betas takes two numbers'),
    (dict(config=TrainConfig(8, 10, weight_decay=-1.)), 'weight_decay must be'),
    (dict(config=TrainConfig(8, 10, ema=1.)), 'ema must be'),
    (dict(config=TrainConfig(8, 10, warmup_steps=-1)), 'warmup_steps must be'),
    (dict(config=TrainConfig(8, 10, decay='cosin')), "Did you mean 'cosine'"),
    (dict(config=TrainConfig(8, 10, seed=-1)), 'seed must be'),
    (dict(milestones=[4, 9]), 'a milestone must be'),
    (dict(strategy='dpd'), "Did you mean 'ddp'"),
    (dict(dtype='float12'), 'unknown dtype'),
    (dict(dtype='float16'), "choose 'bfloat16' or 'float32'"),
    (dict(dtype=torch.float16), 'no loss scaling'),
    (dict(device='cuda:99'), 'torch sees'),
    (dict(objective=WatchedObjective(16), made=model(kind='maskgit-transformer')), 'no output_norm'),
    (dict(log_every=0), 'log_every must be'),
    (dict(save_seconds=-1.), 'save_seconds must be'),
])
def test_refused_before_the_first_step(tmp_path, changes, said, monkeypatch):
    monkeypatch.setattr('maskgil.training.train_step', lambda *a: pytest.fail('a step was taken'))
    with pytest.raises(ValueError, match=said) as e: train(tmp_path/'run', **changes)
    one_line(e)
    assert not list(tmp_path.glob('run/*.safetensors'))


@pytest.mark.parametrize('options, said', [
    (dict(smoothing=2.), 'smoothing'), (dict(class_dropout=math.nan), 'class_dropout'), (dict(loss_on='alll'), "'all'"),
    (dict(schedule='arcos'), "'arccos'"), (dict(mask_id=0), 'mask_id'),
])
def test_an_objective_is_checked_when_it_is_made(options, said):
    with pytest.raises(ValueError, match=said): MaskedObjective(**dict(mask_id=16) | options)


def test_tokens_that_are_no_grids_are_refused():
    class Flat(Custom):
        def batch(self, indices, copies):
            found, labels = super().batch(indices, copies)
            return found.flatten(1), labels
    for objective in (MaskedObjective(16), CausalObjective()):
        with pytest.raises(ValueError, match='expected .images height width.'):
            next(make_batches(objective, Flat(), CONFIG))


@pytest.mark.parametrize('wrong', [-100, 16])
@pytest.mark.parametrize('groups', [(), (4, 4)])
def test_targets_outside_the_codebook_are_refused(wrong, groups):
    features, targets = torch.randn(5, 8), torch.tensor([0, 15, wrong, 3, 4])
    weight = torch.randn(sum(groups) or 16, 8)
    token_loss(features, weight, targets.clamp(0, 15), groups=groups)
    with pytest.raises(ValueError, match='and the codes from 0 to 15'):
        token_loss(features, weight, targets, groups=groups)


def test_a_listener_changes_nothing_of_the_training(tmp_path):
    def disturb(state, row):
        state.model.eval()
        torch.rand(3)
    heard = train(tmp_path/'heard', made=model(dropout=.2), on_log=disturb)
    assert same_weights(heard, train(tmp_path/'alone', made=model(dropout=.2)))


def test_a_training_starts_from_the_average(tmp_path):
    averaged = train(tmp_path, config=dataclasses.replace(CONFIG, ema=.9))
    held = load_file(tmp_path/'checkpoint.safetensors')
    begun = start_from(model(), tmp_path/'checkpoint.safetensors')
    assert same_weights(begun, averaged)
    raw = start_from(model(), tmp_path/'checkpoint.safetensors', average=False)
    for name, weight in raw.state_dict().items(): assert weight.equal(held[f'model.{name}'])
    assert not same_weights(raw, begun)


def test_a_label_that_appears_late_is_refused_with_its_step():
    class Late(Custom):
        def batch(self, indices, copies):
            found, labels = super().batch(indices, copies)
            return found, labels + 100 * (indices == 39)
    batches = make_batches(MaskedObjective(16), Late(), CONFIG, model=model())
    with pytest.raises(ValueError, match=r'the batch of step \d have labels up to'): list(batches)


def test_folders_that_cannot_hold_a_training(tmp_path, monkeypatch):
    (tmp_path/'file').touch()
    with pytest.raises(OSError, match='cannot be written') as e: train(tmp_path/'file'/'run')
    assert str(tmp_path/'file'/'run') in one_line(e)
    small = type('usage', (), dict(free=1000))
    monkeypatch.setattr('shutil.disk_usage', lambda path: small)
    with pytest.raises(OSError, match='GiB free') as e: train(tmp_path/'run', milestones=[8])
    assert str(tmp_path/'run') in one_line(e)


def test_a_folder_stays_where_it_is_when_the_process_moves(tmp_path, monkeypatch):
    (tmp_path/'here').mkdir(), (tmp_path/'there').mkdir()
    monkeypatch.chdir(tmp_path/'here')
    def move(state, row): os.chdir(tmp_path/'there')
    train('run', on_log=move, save_seconds=0, milestones=[8])
    assert (tmp_path/'here'/'run'/'weights-8.safetensors').exists() and not list((tmp_path/'there').iterdir())
    monkeypatch.setenv('HOME', str(tmp_path))
    train('~/mine')
    assert last_step(tmp_path/'mine') == 8


def test_files_are_as_the_umask_says(tmp_path):
    mask = os.umask(0o077)
    try: train(tmp_path/'run', milestones=[8])
    finally: os.umask(mask)
    assert {oct(path.stat().st_mode & 0o077) for path in (tmp_path/'run').iterdir()} == {'0o0'}


def test_one_training_in_a_folder_at_a_time(tmp_path, capsys):
    holding, free = threading.Event(), threading.Event()
    def hold():
        with alone_in(tmp_path):
            holding.set()
            free.wait(20)
    thread = threading.Thread(target=hold)
    thread.start()
    holding.wait(20)
    with pytest.raises(OSError, match=f'in use, process {os.getpid()}'):
        with alone_in(tmp_path, wait=False): pass
    threading.Timer(.3, free.set).start()
    train(tmp_path) # waits
    assert free.is_set() and f'waiting for process {os.getpid()}' in capsys.readouterr().err
    thread.join()


# surroundings

@pytest.fixture
def variables(monkeypatch):
    "An environment with these variables of launchers and no others."
    def put(**given):
        for name in list(os.environ):
            if name.startswith(('SLURM', 'OMPI', 'PMI', 'MV2', 'JSM')) or name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'):
                monkeypatch.delenv(name)
        for name, value in given.items(): monkeypatch.setenv(name, value)
    return put


BATCH = dict(SLURM_JOB_ID='1', SLURM_PROCID='0', SLURM_LOCALID='0', SLURM_NTASKS='4')

@pytest.mark.parametrize('given, expected', [
    ({}, (0, 1)),
    (dict(RANK='2', WORLD_SIZE='4'), (2, 4)),
    (BATCH | dict(SLURM_STEP_ID='4294967291'), (0, 1)),
    (BATCH, (0, 1)),
    (BATCH | dict(SLURM_STEP_ID='4294967290', SLURM_STEP_NUM_TASKS='4'), (0, 1)),
    (BATCH | dict(SLURM_STEP_ID='0', SLURM_STEP_NUM_TASKS='1'), (0, 1)),
    (BATCH | dict(SLURM_STEP_ID='0', SLURM_PROCID='3', SLURM_STEP_NUM_TASKS='4'), (3, 4)),
    (BATCH | dict(RANK='7', WORLD_SIZE='8', SLURM_STEP_NUM_TASKS='1'), (7, 8)),
    (dict(OMPI_COMM_WORLD_RANK='1', OMPI_COMM_WORLD_SIZE='2', SLURM_PROCID='0', SLURM_STEP_NUM_TASKS='1'), (1, 2)),
    (dict(PMI_RANK='1', PMI_SIZE='3'), (1, 3)),
    (dict(JSM_NAMESPACE_RANK='5', JSM_NAMESPACE_SIZE='6'), (5, 6)),
    (dict(RANK='', WORLD_SIZE=''), (0, 1)),
])
def test_where_a_process_stands(variables, given, expected):
    variables(**given)
    assert place() == expected
    if expected[1] > 1: assert place().launcher[0] in str(place()) and place().launcher[1] in left_to_others('shards')


@pytest.mark.parametrize('given', [
    dict(RANK='4', WORLD_SIZE='4'), dict(RANK='x', WORLD_SIZE='4'), dict(RANK='0', WORLD_SIZE='0'), dict(RANK='1'),
    dict(WORLD_SIZE='3'), dict(RANK='-1', WORLD_SIZE='2'), dict(SLURM_PROCID='2', SLURM_NTASKS='4'),
    dict(OMPI_COMM_WORLD_RANK='0', OMPI_COMM_WORLD_SIZE='1.5'),
])
def test_an_environment_without_sense_is_refused_by_name(variables, given):
    variables(**given)
    with pytest.raises(ValueError) as e: place()
    assert next(iter(given)) in one_line(e) or [*given][-1] in str(e.value)


@pytest.mark.parametrize('given', [dict(RANK='0', WORLD_SIZE='4'), dict(PMI_RANK='0', PMI_SIZE='4'),
                                   dict(SLURM_PROCID='0', SLURM_STEP_NUM_TASKS='4'), dict(LOCAL_RANK='first')])
def test_a_training_does_not_start_as_one_of_many_that_cannot_meet(variables, given, tmp_path):
    variables(**given)
    with pytest.raises(ValueError) as e: train(tmp_path/'run')
    assert [*given][0] in one_line(e) and not (tmp_path/'run').exists()


@pytest.mark.parametrize('text', ['0', '-1', 'two', '1.5'])
def test_a_number_of_processes_that_is_none(monkeypatch, text):
    monkeypatch.setenv('MASKGIL_PROCESSES', text)
    with pytest.raises(ValueError, match=f'MASKGIL_PROCESSES={text}'): device_count()


def test_a_gpu_that_is_not_there():
    with pytest.raises(ValueError, match='torch sees'): local_device('cuda:99')


LOUD = dict(ACCELERATE_GRADIENT_ACCUMULATION_STEPS='4', ACCELERATE_MIXED_PRECISION='bf16', ACCELERATE_USE_FSDP='true',
            ACCELERATE_DYNAMO_BACKEND='inductor', ACCELERATE_USE_DEEPSPEED='true', ACCELERATE_USE_MEGATRON_LM='true',
            ACCELERATE_USE_PARALLELISM_CONFIG='true', OMPI_COMM_WORLD_SIZE='1', LOCAL_RANK='0', FSDP_VERSION='2')

def test_nothing_that_accelerate_reads_changes_a_number(tmp_path):
    "In processes of their own: accelerate keeps what it has read for as long as a process lives."
    program = ('import sys, json; sys.path.insert(0, sys.argv[1]); from test_refusals_training import *; '
               'print(json.dumps(fit(model(dropout=0.), MaskedObjective(16), tokens(), CONFIG, **CPU)))')
    def run(**extra):
        env, command = os.environ | dict(MASKGIL_PROGRESS='off') | extra, [sys.executable, '-c', program]
        done = subprocess.run([*command, Path(__file__).parent], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout.splitlines()[-1]), done.stderr
    (quiet, _), (loud, said) = run(), run(**LOUD)
    assert quiet == loud
    for name in ('ACCELERATE_MIXED_PRECISION=bf16', 'ACCELERATE_USE_DEEPSPEED=true'): assert name in said


# processes

def test_a_rank_that_dies_ends_the_others_and_is_named(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv('PYTHONPATH', f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    (tmp_path/'dies.py').write_text(
        'import os, signal, sys, time; how = sys.argv[1]\n'
        'if os.environ["RANK"] == "1":\n'
        '    if how == "kill": os.kill(os.getpid(), signal.SIGKILL)\n'
        '    if how == "error": raise ValueError("no such thing: x.png")\n'
        '    sys.exit(7)\n'
        'time.sleep(600)')
    expected = dict(kill='was killed by SIGKILL', error='ValueError: no such thing: x.png', code='code 7')
    for how, said in expected.items():
        began = time.monotonic()
        with pytest.raises(RuntimeError, match=f'process 1 of 3 .*{said}') as e: run_here('dies', [how], 3)
        assert time.monotonic() - began < 30 and 'start again' in one_line(e)
        assert not [p for p in psutil.Process().children(recursive=True) if 'dies' in ' '.join(p.cmdline())]


def stripes_on_disk(folder):
    data = tokens()
    for name in ('tokens', 'labels'): save_array(folder/f'{name}.npy', getattr(data, name))
    write_json(folder/'manifest.json', data.manifest)


def job_in(place, **changes):
    stripes_on_disk(place)
    options = {name: list(value) if isinstance(value, tuple) else value for name, value in TINY.items()}
    given = dict(folder=str(place/'run'), model=options, train=dict(steps=4, batch_size=10), tokens=str(place),
                 device='cpu', dtype='float32', trackers=[])
    return Job(**given | changes)


def test_ranks_end_with_the_process_that_has_launched_them(tmp_path):
    job = job_in(tmp_path, train=dict(steps=100_000, batch_size=10), save_seconds=.2)
    program = ('import sys; from maskgil.jobs import *; job = read_job(sys.argv[1]); '
               'launch(job, processes=2)')
    launcher = subprocess.Popen([sys.executable, '-c', program, write_job(job, tmp_path/'job.json')])
    deadline = time.monotonic() + 120
    while last_step(tmp_path/'run') is None:
        assert launcher.poll() is None and time.monotonic() < deadline
        time.sleep(.1)
    left = psutil.Process(launcher.pid).children(recursive=True)
    assert len(left) >= 3 # torchrun and two ranks
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.wait()
    _, alive = psutil.wait_procs(left, timeout=60)
    assert not alive
    with alone_in(tmp_path/'run', wait=False): pass


def test_what_an_earlier_run_has_left_is_not_this_ones(tmp_path, monkeypatch):
    folder = tmp_path/'run'
    folder.mkdir()
    write_json(folder/'record.json', dict(history=[dict(loss=0.)]))
    (folder/'log.txt').write_text('maskgil.jobs: ValueError: an old story\n')
    monkeypatch.setattr(jobs, '_run_ranks', lambda job, ranks, log: 0)
    with pytest.raises(FileNotFoundError): launch(job_in(tmp_path), 1)
    def fail(job, ranks, log):
        with log.open('a') as file: return bool(file.write('maskgil.jobs: OSError: new\n'))
    monkeypatch.setattr(jobs, '_run_ranks', fail)
    with pytest.raises(RuntimeError, match='OSError: new') as e: launch(job_in(tmp_path), 1)
    assert 'old story' not in str(e.value) and str(folder/'log.txt') in one_line(e)


class Variant(MaskedObjective): pass


@pytest.mark.parametrize('changes, said', [
    (dict(objective=Variant(16)), 'Variant cannot be handed'),
    (dict(options=TINY | dict(rope='1d-released')), 'rope'),
    (dict(milestones=[3]), 'has to be among the milestones'),
])
def test_what_other_processes_would_not_train_is_refused(changes, said):
    given = dict(model=model(), options=TINY, objective=MaskedObjective(16), config=CONFIG, milestones=[8], start='')
    check_handed_over(**given)
    with pytest.raises(ValueError, match=said): check_handed_over(**given | changes)


def test_part_of_a_token_set_is_not_trained_on_as_the_whole(tmp_path):
    job = job_in(tmp_path)
    there = TokenSet.load(tmp_path)
    part = TokenSet(there.tokens[:30], there.labels[:30], there.manifest)
    jobs.job_data(dataclasses.replace(job, content=fingerprint(data_identity(there))), None)
    with pytest.raises(ValueError, match='others than those'):
        jobs.job_data(dataclasses.replace(job, content=fingerprint(data_identity(part))), None)


# programs

@pytest.mark.parametrize('text, said', [
    (None, 'No such file'), ('{"folder": ', 'not valid JSON'), ('[1, 2]', 'takes names with values'),
    ('\x00', 'not valid JSON'),
    ('{}', 'needs folder, model, train'), ('{"foldr": "x"}', "Did you mean 'folder'"),
    ('{"folder": 3, "model": {}, "train": {}}', 'folder of a job takes str'),
    ('{"folder": "x", "model": {}, "train": {"steps": "9"}, "tokens": "t"}', 'steps of train takes int'),
    ('{"folder": "x", "model": {}, "train": {"steps": true}, "tokens": "t"}', 'steps of train takes int'),
    ('{"folder": "x", "model": {"kind": "maskgil", "grid": [4]}, "train": {"steps": 9}, "tokens": "t"}', 'grid of'),
    ('{"folder": "x", "model": {"kind": "maskgil", "seed": 1}, "train": {"steps": 9}, "tokens": "t"}', "'seed'"),
    ('{"folder": "x", "model": {"size": "b"}, "train": {"steps": 9}, "tokens": "t"}', 'model needs a kind'),
    ('{"folder": "x", "model": {"kind": "maskgil"}, "train": {}, "tokens": "t"}', 'train needs steps'),
    ('{"folder": "x", "model": {"kind": "maskgil"}, "train": {"steps": 9}, "tokens": "t"}', 'no finished tokens'),
    ('{"folder": "x", "model": {"kind": "maskgil"}, "train": {"steps": 9}, "images": "t"}', 'images: there is no'),
])
def test_a_configuration_is_refused_in_one_line(tmp_path, capsys, text, said, variables):
    variables()
    if text is not None: (tmp_path/'c.json').write_text(text)
    with pytest.raises(SystemExit) as e: jobs.main(str(tmp_path/'c.json'))
    err = capsys.readouterr().err
    assert e.value.code == 1 and said in err and err.count('\n') == 1 and err.startswith('maskgil.jobs: ')
    assert not (tmp_path/'x').exists()


@pytest.mark.parametrize('changes, said', [
    (dict(model=dict(TINY, dropout=1.5)), 'dropout'), (dict(model=dict(TINY, layers=0)), 'layers'),
    (dict(trackers=['wandbb']), "Did you mean 'wandb'"), (dict(device='gpu'), "unknown device 'gpu'"),
    (dict(dtype='float16'), 'is not for training'),
    (dict(images_at_once=-1), 'images_at_once'), (dict(samples_every=-1), 'samples_every'),
    (dict(samples_every=5, model=dict(TINY, codebook_size=1000)), 'has 1000 codes'),
    (dict(samples_every=5, model=dict(TINY, tokenizer='llamagen-vq')), 'would have random weights'),
    (dict(start='gone.safetensors'), 'start: there is no'), (dict(objective=dict(mask_id=3)), "'mask_id'"),
    (dict(objective=dict(smoothing='much')), 'smoothing of objective'), (dict(milestones=[5]), 'a milestone'),
])
def test_a_job_is_refused_before_anything_is_read(tmp_path, monkeypatch, changes, said, variables):
    variables()
    monkeypatch.setattr(jobs, 'load_model', lambda **o: pytest.fail('a model was made'))
    monkeypatch.setattr(jobs, 'job_data', lambda *a: pytest.fail('data were read'))
    with pytest.raises((ValueError, OSError), match=said) as e: jobs.run_job(job_in(tmp_path, **changes))
    one_line(e)


def test_the_program_says_one_line_and_shows_more_when_asked(tmp_path):
    def run(**extra):
        return subprocess.run([sys.executable, '-m', 'maskgil.train', 'absent.json'], cwd=tmp_path, capture_output=True,
                              text=True, env=os.environ | extra)
    done, debugged = run(), run(MASKGIL_DEBUG='1')
    assert done.returncode == 1 and 'Traceback' not in done.stderr and 'absent.json' in done.stderr.splitlines()[-1]
    assert debugged.returncode and 'Traceback' in debugged.stderr


def test_paths_of_a_job_are_where_they_were(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path/'home'))
    job = job_in(tmp_path, folder='run', tokens='~/tokens')
    again = read_job(write_job(job))
    assert (again.folder, again.tokens) == (str(tmp_path/'run'), str(tmp_path/'home'/'tokens'))
    assert in_place(again, Path('/')) == again and check_job(dataclasses.asdict(again)) == again


# the discriminator

def test_a_discriminator_sees_every_micro_batch():
    class Squares(NaNImages):
        def batch(self, indices): return (indices * 15)[:, None, None, None].expand(-1, 3, 32, 32).to(torch.uint8)
    losses = dataclasses.replace(LOSSES['l2-vq'], adversarial=.1, first_codes=2, refresh_every=3)
    def trained(accumulate):
        made = load_tokenizer('smoke-llamagen-vq', seed=0)
        objective = ReconstructionObjective(TokenizerObjective(made.config, losses))
        fit(made, objective, Squares(), TrainConfig(2, 8, 1e-3, accumulate=accumulate), **CPU)
        return torch.cat([p.detach().flatten() for p in objective.losses.adversary.net.parameters()])
    assert (trained(1) - trained(4)).abs().max() < 1e-4
