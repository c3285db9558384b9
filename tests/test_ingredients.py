"Ingredients of later recipes: each does what its source says, and none of them moves what was there before."
import dataclasses, math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open

from maskgil import MaskGILPipeline, cells, jobs, sampling
from maskgil.bench import Bench, changed_config, planned_training, train_model, training_cost
from maskgil.core import fields_told, read_json
from maskgil.data import TokenSet
from maskgil.jobs import Job
from maskgil.losses import MASK_RATIOS, MaskedObjective, hide_tokens, mean_ratio
from maskgil.machines import HARDWARE, TrainingLayout, choose_layout, hidden_share, memory_per_rank, step_flops
from maskgil.models import ModelConfig, load_model, model_config, parameter_count, training_flops
from maskgil.planner import plan_cell
from maskgil.preflight import block_matrices, state_bytes, training_identity
from maskgil.profiles import PROFILES
from maskgil.resuming import load_one_file, save_one_file
from maskgil.studies import Cell
from maskgil.tokenizers import load_tokenizer
from maskgil.training import MuonAndAdamW, TrainConfig, first_state, fit, make_optimizer

TINY = dict(kind='maskgil', size='smoke-b', tokenizer='smoke-llamagen-vq', classes=9, grid=(4, 4), codebook_size=16)
MUON = TrainConfig(8, 10, 1e-2, warmup_steps=2, decay='cosine', ema=.9, optimizer='muon')
CPU = dict(device='cpu', dtype='float32', log_every=1)


def model(**changes): return load_model(**TINY | changes)


def tokens():
    rng = np.random.default_rng(0)
    return TokenSet(rng.integers(0, 16, (60, 1, 4, 4)).astype(np.uint16), np.arange(60) % 9, dict(codebook_size=16))


def train(folder=None, config=MUON, stop=None, made=None, **options):
    made = made or model()
    def listen(state, row):
        if state.step == stop: raise KeyboardInterrupt
    fit(made, MaskedObjective(16), tokens(), config, folder, on_log=listen, **CPU | options)
    return made


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


# nothing that was there has another name

BEFORE = dict(
    config='steps batch_size learning_rate betas weight_decay warmup_steps decay clip ema seed',
    model='kind layers heads width codebook_size classes text_width grid causal class_first mask_logit rope qk_norm '
          'post_norm dropout token_dropout code_groups',
)


def test_defaults_are_in_no_name():
    "A field that came later would be in the identity of checkpoints that were written before it."
    identity = training_identity(TrainConfig(8), model(), MaskedObjective(16))
    assert set(identity['settings']) == set(BEFORE['config'].split())
    assert set(identity['model']) == {*BEFORE['model'].split(), 'network', 'shapes'}
    assert set(fields_told(model().config)) == set(BEFORE['model'].split())
    changed = training_identity(MUON, model(null='mask'), MaskedObjective(16))
    assert changed['settings']['optimizer'] == 'muon' and changed['model']['null'] == 'mask'


def test_what_is_written_at_the_defaults_is_what_was_written(tmp_path):
    "A header and a folder that an earlier version could read."
    pipe = MaskGILPipeline(model(codebook_size=256), load_tokenizer('smoke-llamagen-vq'), list('abcdefghi'))
    folder = pipe.save_pretrained(tmp_path)
    with safe_open(folder/'model.safetensors', 'pt') as f: assert 'null' not in f.metadata()['config']
    assert set(read_json(folder/'config.json')['model']) == set(BEFORE['model'].split())


def bench_of_nothing():
    "A bench whose tokens are noise, and which makes nothing else."
    profile = PROFILES['smoke']
    bench, rng = Bench(profile), np.random.default_rng(0)
    side, count = profile.data.resolution // bench.row.downsample, 4 * profile.training.batch_size
    held = rng.integers(0, bench.row.codebook_size, (count, 1, side, side)).astype(np.uint16)
    manifest = dict(codebook_size=bench.row.codebook_size, tokenizer='none')
    bench.tokens = TokenSet(held, np.arange(count) % 3, manifest)
    bench.images = SimpleNamespace(fingerprint='none', classes=('a', 'b', 'c'), labels=bench.tokens.labels)
    return bench


def test_a_stage_has_the_name_it_had():
    bench = bench_of_nothing()
    def folder(*given, **options): return planned_training(bench, 'b', *given, **options)[0].folder
    plain = folder()
    assert plain == folder(config={}) == folder('maskgil', 'paper', None, None)
    others = [folder(config=dict(optimizer='muon')), folder(config=dict(ema=.999)), folder(null='mask'),
              folder(training=dict(schedule='beta'))]
    assert len({plain, *others}) == 5


# mask ratios

def test_beta_is_the_distribution():
    "Quantiles against draws of torch, moments against a + b = 15."
    u = (torch.arange(200_000, dtype=torch.float64) + .5) / 200_000
    share = MASK_RATIOS['beta'](u)
    assert share.mean() == pytest.approx(12 / 15, abs=1e-6)
    assert share.var() == pytest.approx(12 * 3 / (15**2 * 16), rel=1e-4)
    torch.manual_seed(0)
    drawn, points = torch.distributions.Beta(12., 3.).sample((200_000,)), torch.linspace(.02, .98, 25)
    torch.testing.assert_close(share.float().quantile(points), drawn.quantile(points), atol=2e-3, rtol=0)
    assert MASK_RATIOS['beta'](torch.tensor([0., 1.])).tolist() == [1., 0.]


@pytest.mark.parametrize('name', ['truncated', 'truncated-time', 'beta', *sampling.SCHEDULES])
def test_the_mean_is_what_is_hidden(name):
    "And the flops of a step are of as many tokens."
    hidden = hide_tokens(torch.zeros(20_000, 4, 4).long(), 9, torch.Generator().manual_seed(0), name)[1]
    assert mean_ratio(name) == pytest.approx(float(hidden.float().mean()), abs=.01)
    config, share = model_config('maskgil', 'mini-b', tokenizer='mini-llamagen-vq'), mean_ratio(name)
    assert step_flops(config, 4, training=dict(schedule=name)) == training_flops(config, 4, predicted=share)
    assert hidden_share('all', name) == 1


def test_ratios_share_the_random_stream():
    "Another ratio, the same noise: of two ratios the larger hides all that the smaller hides."
    grid = torch.zeros(500, 4, 4).long()
    hidden = {name: hide_tokens(grid, 9, torch.Generator().manual_seed(0), name)[1]
              for name in ('arccos', 'truncated', 'truncated-time')}
    assert (hidden['arccos'] <= hidden['truncated']).all()
    assert (hidden['truncated'] <= hidden['truncated-time']).all()
    assert MASK_RATIOS['truncated'](torch.ones(1)) == pytest.approx(.2)
    assert MASK_RATIOS['truncated-time'](torch.ones(1)) == pytest.approx(math.acos(.8) / (math.pi / 2))


def test_the_papers_ratio_is_as_it_was():
    assert hidden_share() == 2 / math.pi
    hidden = hide_tokens(torch.zeros(9, 4, 4).long(), 9, torch.Generator().manual_seed(0))[1]
    generator = torch.Generator().manual_seed(0)
    share = torch.arccos(torch.rand(9, 1, generator=generator)) / (math.pi / 2)
    assert hidden.equal(torch.rand(9, 16, generator=generator) < share)


def test_a_ratio_is_a_row(monkeypatch):
    monkeypatch.setitem(MASK_RATIOS, 'half', lambda u: torch.full_like(u, .5))
    monkeypatch.setitem(sampling.SCHEDULES, 'cubic', lambda r: 1 - r**3) # what samples by it may learn by it
    assert mean_ratio('half') == .5 and mean_ratio('cubic') == pytest.approx(.75, abs=1e-6)
    assert MaskedObjective(9, schedule='cubic') and 'half' not in sampling.SCHEDULES
    with pytest.raises(ValueError, match="Did you mean 'truncated'"): MaskedObjective(9, schedule='trunkated')


# the mask as null condition

@pytest.mark.parametrize('kind', ['maskgil', 'maskgit-transformer'])
def test_the_mask_stands_in_for_a_dropped_class(kind):
    with_class, with_mask = (model(kind=kind, null=null) for null in ('class', 'mask'))
    assert parameter_count(with_class) - parameter_count(with_mask) == with_mask.config.width
    for weight in with_mask.parameters(): torch.nn.init.normal_(weight, std=.05)
    hidden, labels = torch.full((3, 4, 4), 16), torch.tensor([1, 5, 9]) # the last asks for the null class
    dropped = with_mask.logits(hidden, labels, torch.tensor([True, False, False]))
    torch.testing.assert_close(dropped[0], dropped[2])
    assert not torch.allclose(dropped[0], dropped[1])
    named = with_mask.logits(hidden, torch.tensor([1, 5, 1]))
    torch.testing.assert_close(named[1], dropped[1])
    mask = with_mask.token_embedding.weight.detach()[16]
    with torch.no_grad(): with_mask.condition.embedding.weight[1] = mask # a class that looks like the mask
    torch.testing.assert_close(with_mask.logits(hidden, torch.tensor([1, 5, 1]))[0], dropped[0])


def test_its_gradient_reaches_the_mask():
    made = model(null='mask').train()
    torch.nn.init.normal_(made.head.weight)
    made.logits(torch.zeros(2, 4, 4).long(), torch.tensor([1, 2]), torch.tensor([True, True])).square().sum().backward()
    assert made.token_embedding.weight.grad[16].abs().sum() > 0 # there is no hidden token
    assert not made.condition.embedding.weight.grad.any()


def test_digits_of_codes_have_one_mask():
    made = model(null='mask', code_groups=(2, 8))
    torch.nn.init.normal_(made.head.weight)
    assert made.logits(torch.full((1, 4, 4), 16), torch.tensor([3]), torch.tensor([True])).isfinite().all()


def test_guidance_and_a_saved_pipeline(tmp_path):
    made = model(codebook_size=256, classes=3, null='mask')
    torch.nn.init.normal_(made.head.weight, std=.5)
    torch.nn.init.normal_(made.condition.embedding.weight)
    pipe = MaskGILPipeline(made, load_tokenizer('smoke-llamagen-vq'), ['a', 'b', 'c'])
    again = MaskGILPipeline.from_pretrained(pipe.save_pretrained(tmp_path), device='cpu')
    assert again.model.config.null == 'mask' and same_weights(again.model, made)
    def drawn(of, cfg): return [p.tobytes() for p in of(labels=['a', 2], seed=1, steps=4, cfg=cfg)]
    assert drawn(pipe, 3.) == drawn(again, 3.) != drawn(pipe, 1.)


def half_hidden(): return torch.tensor([[[3] * 4] * 2 + [[16] * 4] * 2])

def images_apart(sees): # features (n d) of half hidden tokens, and of the same where the mask looks otherwise
    made = model(sees=sees).eval()
    for weight in made.parameters(): torch.nn.init.normal_(weight, std=.3)
    before = made.features(half_hidden(), torch.tensor([1]))[0].detach()
    made.token_embedding.weight.data[16] += 1
    return before, made.features(half_hidden(), torch.tensor([1]))[0].detach()


def test_settled_tokens_do_not_see_the_mask():
    "Hidden ones do, and see what is settled too."
    before, after = images_apart('settled')
    torch.testing.assert_close(before[:8], after[:8])
    assert (before[8:] - after[8:]).abs().amax(1).min() > .01
    before, after = images_apart('all')
    assert (before - after).abs().amax(1).min() > .01


def test_what_is_settled_apart_trains_draws_and_reads_texts():
    two = dict(layers=2) # what a settled token has seen matters from the second layer on
    made = train(made=model(sees='settled', **two))
    drawn = sampling.sample_mar(made, torch.tensor([1, 2]), (4, 4), steps=3, cfg=2., seed=0)
    assert drawn.max() < 16 and not same_weights(made, train(made=model(**two)))
    texts = model(sees='settled', text_width=8)
    torch.nn.init.normal_(texts.head.weight)
    padded = torch.randn(1, 3, 8) * torch.tensor([1., 1, 0])[:, None]
    assert texts.logits(half_hidden(), padded).isfinite().all()


def test_what_is_settled_apart_keeps_nothing_of_a_step():
    with pytest.raises(ValueError, match="sees='all'"):
        sampling.sample_mar(model(sees='settled'), torch.tensor([1]), (4, 4), steps=3, reuse='settled', seed=0)


@pytest.mark.parametrize('changes, said', [
    (dict(null='masc'), "Did you mean 'mask'"), (dict(null='mask', causal=True), 'AR has no mask'),
    (dict(null='mask', text_width=8), 'texts a null caption'), (dict(sees='hidden'), 'settled'),
    (dict(sees='settled', causal=True), 'to AR nothing is hidden'),
])
def test_a_model_that_cannot_be(changes, said):
    with pytest.raises(ValueError, match=said):
        ModelConfig('maskgil', layers=1, heads=1, width=8, codebook_size=4, **changes)


def test_weights_of_the_other_null_are_refused(tmp_path):
    train(tmp_path, TrainConfig(1, 10), milestones=[1])
    from maskgil.training import load_milestone
    with pytest.raises(ValueError, match='null'): load_milestone(model(null='mask'), tmp_path, 1)


# Muon

def test_muon_resumes_to_the_same_bits(tmp_path):
    "Stopped twice; with warm-up, a decay, an average and pieces of a batch."
    config = dataclasses.replace(MUON, accumulate=2)
    whole = train(tmp_path/'whole', config)
    for step in (3, 6):
        with pytest.raises(KeyboardInterrupt): train(tmp_path/'stopped', config, stop=step)
    assert same_weights(whole, train(tmp_path/'stopped', config))


def test_a_checkpoint_holds_both_optimizers(tmp_path):
    made, identity = model(), dict(of='a test')
    state = first_state(made, None, MUON)
    made.logits(torch.full((9, 4, 4), 16), torch.arange(9)).square().mean().backward()
    with torch.no_grad():
        for weight in made.parameters(): weight.grad = torch.randn_like(weight)
    state.optimizer.step()
    matrices, everything = len(block_matrices(made)), len(list(made.parameters()))
    held = [name.split('.', 2)[2] for name in state.tensors() if name.startswith('optimizer.')]
    assert held.count('momentum_buffer') == matrices
    assert held.count('exp_avg') == held.count('exp_avg_sq') == everything - matrices
    save_one_file(state, tmp_path/'checkpoint.safetensors', identity)
    again = first_state(model(seed=1), None, MUON)
    load_one_file(again, tmp_path/'checkpoint.safetensors', identity)
    before, after = state.tensors(), again.tensors()
    assert before.keys() == after.keys() and all(before[name].equal(after[name]) for name in before)
    for group in again.optimizer.param_groups: group['lr'] = .5 # as `update_weights` does
    assert isinstance(again.optimizer, MuonAndAdamW)
    assert [part.param_groups[0]['lr'] for part in again.optimizer.parts] == [.5, .5]
    wrote = (tmp_path/'checkpoint.safetensors').stat().st_size
    assert wrote == pytest.approx(state_bytes(made, MUON)[0], rel=.2)
    assert state_bytes(made, MUON)[0] < state_bytes(made, dataclasses.replace(MUON, optimizer='adamw'))[0]


def test_each_weight_has_one_optimizer():
    made = model()
    groups = [group['params'] for group in make_optimizer(made, MUON).param_groups]
    assert sorted(map(id, sum(groups, []))) == sorted(map(id, made.parameters()))
    names = {id(weight): name for name, weight in made.named_parameters()}
    by_muon = {names[id(weight)].split('.', 2)[2] for weight in groups[0]}
    assert by_muon == {'attention.qkv.weight', 'attention.out.weight', 'feed_forward.gate.weight',
                       'feed_forward.up.weight', 'feed_forward.down.weight'}


def test_muon_learns():
    rows = []
    config = dataclasses.replace(MUON, steps=30, learning_rate=3e-3)
    def listen(state, row): rows.append(row['loss'])
    data = tokens()
    data.tokens[:] = (data.labels % 4)[:, None, None, None] # all tokens say the class
    fit(model(dropout=0.), MaskedObjective(16), data, config, on_log=listen, **CPU)
    assert rows[-1] < .7 * rows[0]


def test_muon_is_refused_where_it_cannot_be(monkeypatch, tmp_path):
    monkeypatch.setattr('maskgil.training.train_step', lambda *a: pytest.fail('a step was taken'))
    with pytest.raises(ValueError, match="'fsdp' slices them"): train(tmp_path, strategy='fsdp')
    with pytest.raises(ValueError, match="Did you mean 'muon'"):
        train(tmp_path, dataclasses.replace(MUON, optimizer='moun'))
    bare = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match='this model has none'): make_optimizer(bare, MUON)
    monkeypatch.delattr(torch.optim, 'Muon')
    with pytest.raises(ValueError, match=r'needs torch 2\.9 or later, and this is'): train(tmp_path)
    assert not list(tmp_path.glob('*.safetensors'))


def test_a_job_is_refused_too(tmp_path):
    job = Job(str(tmp_path/'run'), dict(TINY), dict(steps=2, batch_size=10, optimizer='muon'), tokens=str(tmp_path),
              strategy='fsdp', device='cpu')
    (tmp_path/'tokens.npy').touch()
    with pytest.raises(ValueError, match="'fsdp' slices them"): jobs.run_job(job)


def test_memory_of_muon():
    config = model_config('maskgil', 'xl')
    def held(optimizer): return memory_per_rank(config, TrainingLayout(8, 32, optimizer=optimizer))
    spared = held('adamw')['moments'] - held('muon')['moments']
    assert .45 < spared / held('adamw')['moments'] < .5
    assert memory_per_rank(config, TrainingLayout(8, 32, hidden=.8))['busiest'] >= held('adamw')['busiest']
    small = dataclasses.replace(HARDWARE['8xA100'], memory=held('adamw')['weights'] * 4)
    assert choose_layout(config, small, 256)[0].strategy == 'fsdp'
    found = choose_layout(config, small, 256, optimizer='muon')[0]
    assert found is None or found.strategy == 'ddp'


# a cell that changes its training

CHANGES = dict(optimizer='muon', decay='cosine', ema=.99, warmup_steps=2, learning_rate=2e-3)


def test_a_cell_changes_its_training(monkeypatch, tmp_path):
    monkeypatch.setenv('MASKGIL_CACHE', str(tmp_path))
    bench, given = bench_of_nothing(), dict(training=dict(schedule='beta'), config=CHANGES)
    _, _, config = planned_training(bench, 'b', **given)
    assert {name: getattr(config, name) for name in CHANGES} == CHANGES
    trained = train_model(bench, 'b', **given, null='mask')
    last = trained.history[-1]
    assert last['step'] == config.steps and last['learning_rate'] < CHANGES['learning_rate'] # it decays
    assert trained.schedule == 'beta'
    flops = training_flops(trained.model.config, last['images'], predicted=mean_ratio('beta'))
    assert training_cost(trained)['training_flops'] == flops


def test_a_cell_of_a_study_hands_them_on(monkeypatch):
    asked = []
    monkeypatch.setattr(cells, 'train_model', lambda *given, **changes: asked.append((given, changes)))
    given = dict(model=dict(null='mask'), training=dict(schedule='beta'), config=CHANGES)
    with pytest.raises(AttributeError): cells.generation_cell(bench_of_nothing(), 'b', **given) # nothing was trained
    (*_, training, config), changes = asked[0]
    assert (training, config, changes) == (given['training'], CHANGES, given['model'])


@pytest.mark.parametrize('changes, said', [
    (dict(optimiser='muon'), "Did you mean 'optimizer'"), (dict(steps=5), 'choose one of learning_rate'),
    (dict(batch_size=5), 'choose one of learning_rate'), (dict(seed=5), 'choose one of learning_rate'),
    (dict(decay='cosin'), "Did you mean 'cosine'"), (dict(ema=1.5), 'ema must be'),
])
def test_what_a_cell_cannot_change(changes, said):
    with pytest.raises(ValueError, match=said): changed_config(TrainConfig(10), changes)


def test_a_list_from_json_is_betas():
    assert changed_config(TrainConfig(10), dict(betas=[.9, .95])).betas == (.9, .95)


def test_a_plan_knows_the_changes():
    profile, hardware = PROFILES['paper'], HARDWARE['8xH100']
    plain = Cell({}, {}, 'b', images=1000)
    assert plan_cell(profile, plain, hardware) == plan_cell(profile, dataclasses.replace(plain, changes={}), hardware)
    changes = dict(model=dict(null='mask'), training=dict(schedule='beta'), config=CHANGES)
    row, changed = (plan_cell(profile, c, hardware) for c in (plain, dataclasses.replace(plain, changes=changes)))
    assert row['parameters'] - changed['parameters'] == 768
    assert changed['training_flops'] > row['training_flops']
