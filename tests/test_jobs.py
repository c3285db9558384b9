"A job of several processes: one of them dies, the error says so, and the next start goes on."
import dataclasses, os, shutil, signal, threading, time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from maskgil.core import read_json, write_json
from maskgil.data import TokenSet, openmoji, to_rgb
from maskgil.models import load_model
from maskgil.losses import MaskedObjective
from maskgil.training import TrainConfig, fit
from maskgil.jobs import Job, check_job, launch, run_job, where_it_stands

TINY = dict(kind='maskgil', size='smoke-b', tokenizer='smoke-llamagen-vq', classes=9, grid=[4, 4], codebook_size=16)


@pytest.fixture
def job(tmp_path):
    "Stripes, and the smallest model."
    labels = np.random.default_rng(0).integers(0, 9, 90)
    columns = (labels[:, None, None, None] + np.arange(4)) % 16
    np.save(tmp_path/'labels.npy', labels)
    np.save(tmp_path/'tokens.npy', columns.repeat(4, 2).astype(np.uint16))
    write_json(tmp_path/'manifest.json', dict(tokenizer='none', codebook_size=16))
    return Job(
        str(tmp_path/'run'), TINY | dict(dropout=0.1), dict(steps=100, batch_size=16, learning_rate=1e-2),
        tokens=str(tmp_path), device='cpu', dtype='float32', log_every=20, save_seconds=.2, trackers=[],
    )


def rank(number):
    "The process of a rank that this one started."
    for p in psutil.Process().children(recursive=True):
        try:
            if p.environ().get('RANK') == str(number): return p
        except psutil.Error: pass # it has just ended


def test_a_rank_is_killed(job):
    long, failed = dataclasses.replace(job, train=job.train | dict(steps=100_000)), []
    def run():
        try: launch(long, processes=2)
        except RuntimeError as e: failed.append(str(e))
    thread = threading.Thread(target=run)
    thread.start()
    deadline = time.monotonic() + 300
    while not (Path(job.folder)/'checkpoint.safetensors').exists():
        assert thread.is_alive() and time.monotonic() < deadline, failed
        time.sleep(.05)
    os.kill(rank(1).pid, signal.SIGKILL)
    thread.join(300)
    told, = failed
    assert told.startswith('rank 1 was killed by SIGKILL; the same call goes on from step ')
    assert rank(0) is None
    step = int(where_it_stands(Path(job.folder)).split()[-1])

    class Stop(Exception): pass # the rest need not be trained: the first step after the checkpoint is enough
    seen = []
    def stop(state, row):
        seen.append(row['step'])
        raise Stop
    model, data = load_model(**long.model | dict(grid=(4, 4))), TokenSet.load(long.tokens)
    with pytest.raises(Stop):
        fit(model, MaskedObjective(16), data, TrainConfig(**long.train), long.folder,
            device='cpu', dtype='float32', log_every=1, on_log=stop)
    assert seen == [step + 1]


def test_tensorboard(job):
    pytest.importorskip('tensorboard')
    drawable = job.model | dict(codebook_size=64) # all codes of the tokenizer
    run_job(dataclasses.replace(job, trackers=['default'], norms_every=20, samples_every=100, model=drawable))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(Path(job.folder)/'maskgil'))
    events.Reload()
    wanted = {'loss', 'gradient_norm', 'images_per_second', 'weights/block 0', 'outputs/block 0'}
    assert wanted <= set(events.Tags()['scalars'])
    assert [event.step for event in events.Scalars('loss')] == [20, 40, 60, 80, 100]
    assert events.Tags()['images']


@pytest.mark.parametrize('changes, said', [
    (dict(trackers=['tensorbord']), "Did you mean 'tensorboard'?"),
    (dict(tokens='', images=''), 'either tokens or images'),
    (dict(strategy='dpd'), "Did you mean 'ddp'?"),
])
def test_mistakes(job, changes, said):
    with pytest.raises(ValueError, match=said): run_job(check_job(dataclasses.asdict(job) | changes))


def save_photos(folder, pixels):
    "Three classes, image after image."
    for i, image in enumerate(pixels):
        (folder/f'c{i % 3}').mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder/f'c{i % 3}'/f'{i}.png')


def test_encoding_in_every_step(job, tmp_path):
    "The released code's way, and pieces that fit."
    save_photos(tmp_path/'photos', [np.full((40, 32, 3), 10 * i, np.uint8) for i in range(24)])
    model = dict(kind='maskgil', size='smoke-b', tokenizer='smoke-llamagen-vq', classes=3, grid=[8, 8])
    online = dataclasses.replace(
        job, tokens='', images=str(tmp_path/'photos'), resolution=32, model=model,
        train=dict(steps=4, batch_size=12), images_at_once=5, log_every=1,
    )
    history = run_job(online)
    assert len(history) == 4 and all(np.isfinite(row['loss']) for row in history)
    assert read_json(Path(job.folder)/'record.json')['images'] == 48


def test_a_study_on_two_processes(tmp_path, monkeypatch):
    "The same cell alone and on two ranks: shards, training, samples and metrics. Dropout is off: a rank draws its own."
    from maskgil.bench import Bench
    from maskgil.cells import generation_cell, reconstruction_cell
    from maskgil.profiles import PROFILES
    emoji = openmoji('train', limit=120)
    pixels = to_rgb(emoji.batch(range(120))).permute(0, 2, 3, 1).numpy() # b 3 h w -> b h w 3
    for split in ('train', 'val'): save_photos(tmp_path/'photos'/split, pixels)
    np.savez(tmp_path/'adm.npz', arr_0=pixels)
    smoke, replace = PROFILES['smoke'], dataclasses.replace
    profile = replace(
        smoke,
        data=replace(smoke.data, source=str(tmp_path/'photos'), limit=0, variants='flip', copies=2),
        training=replace(smoke.training, dropout=0., dtype='float32'),
        evaluation=replace(smoke.evaluation, balanced=True, adm_reference='adm.npz', images=60, cfg=(2.,)),
    )
    monkeypatch.setenv('MASKGIL_CHECKPOINTS', str(tmp_path))
    caches, cells = {ranks: tmp_path/f'cache-{ranks}' for ranks in (1, 2)}, {}
    for ranks, cache in caches.items():
        monkeypatch.setenv('MASKGIL_CACHE', str(cache))
        monkeypatch.setenv('MASKGIL_PROCESSES', str(ranks))
        if ranks == 2: shutil.copytree(caches[1]/'tokenizers', cache/'tokenizers') # one tokenizer for both
        cells[ranks] = generation_cell(Bench(profile, device='cpu'), 'b', untrained=False)

    one, two = cells[1], cells[2]
    assert [row['loss'] for row in two['history']] == pytest.approx([row['loss'] for row in one['history']], rel=1e-5)
    for key, metric in one['curve'][0]['metrics'].items():
        assert two['curve'][0]['metrics'][key]['value'] == pytest.approx(metric['value'], rel=.02, abs=.02), key
    assert two['protocol']['per_class'] == [20, 20] and two['protocol']['extractor']['name'] == 'el0'
    assert one['codebook'] == two['codebook']
    shards = [next((cache/'tokens').glob('*/tokens.npy')).read_bytes() for cache in caches.values()]
    assert shards[0] == shards[1]
    assert one['curve'][0]['metrics']['fid_el0']['reference'].startswith('adm')

    rebuilt = reconstruction_cell(Bench(profile, device='cpu'))
    assert rebuilt['rfid_el0']['value'] > 0 and rebuilt['rfid_adm_el0']['label'] == 'rFID-EL0 against adm'
    folder, = (caches[2]/'samples').iterdir()
    assert not list(folder.glob('*.npy')) and (folder/'metrics.json').exists()
