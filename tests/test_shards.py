"A folder of 2,000 images with three damaged ones becomes the same tokens whatever happens on the way."
import hashlib, io, json, os, signal, subprocess, sys, time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from maskgil.core import fingerprint
from maskgil.shards import Encoding, encode, encode_shards, open_images, open_source, skipped_images

SIZE, SHARDS = 16, dict(shard_size=128, batch_size=16, workers=1, device='cpu')
DAMAGED = {'n01/0007.JPEG': 'truncated', 'n05/0123.JPEG': 'empty', 'n09/0199.JPEG': 'text'}


class Patches:
    "Mean colours of 4 x 4 patches as tokens; a pause or a stop on the way."
    codebook_size = 70_000 # more than 16 bits hold

    def __init__(self, stop=None, pause=0.): self.stop, self.pause, self.seen = stop, pause, 0

    def fingerprint(self): return 'patches'

    def encode(self, x):
        self.seen += len(x)
        if self.stop and self.seen > self.stop: raise KeyboardInterrupt
        time.sleep(self.pause)
        levels = (F.avg_pool2d((x + 1) / 2, 4) * 40).round().long()
        return 1000 + levels[:, 0] * 1681 + levels[:, 1] * 41 + levels[:, 2]


def encoding(**options): return Encoding(Patches(**options), SIZE, 'flip')


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp('imagenet')/'train', np.random.default_rng(0)
    for c in range(10):
        (root/f'n{c:02}').mkdir(parents=True)
        for i in range(200):
            pixels = rng.integers(0, 256, (6, 5, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
            Image.fromarray(pixels).save(root/f'n{c:02}'/f'{i:04}.JPEG')
    for (name, _), data in zip(DAMAGED.items(), (lambda f: f.read_bytes()[:-40], lambda f: b'', lambda f: b'a text')): (root/name).write_bytes(data(root/name))
    return root.parent


def content(folder): return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir()) if p.suffix == '.npy'}


def test_interrupted_twice(photos, tmp_path):
    source = open_source(photos)
    assert len(source) == 2000
    whole = encode_shards(source, encoding(), tmp_path/'whole', **SHARDS)

    code = f'''import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_shards as t
t.encode_shards(t.open_source({str(photos)!r}), t.encoding(pause=.02), {str(tmp_path/'parts')!r}, **t.SHARDS)'''
    process = subprocess.Popen([sys.executable, '-c', code])
    deadline = time.monotonic() + 300
    while not (tmp_path/'parts'/'shards'/'00001.json').exists(): # killed in the middle of a shard
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(.02)
    process.send_signal(signal.SIGKILL); process.wait()
    made = len(list((tmp_path/'parts'/'shards').glob('*.json')))
    assert 2 <= made < 16

    with pytest.raises(KeyboardInterrupt): encode_shards(source, encoding(stop=1000), tmp_path/'parts', **SHARDS)
    assert made < len(list((tmp_path/'parts'/'shards').glob('*.json'))) < 16 and not (tmp_path/'parts'/'tokens.npy').exists()
    last = encoding()
    parts = encode_shards(source, last, tmp_path/'parts', **SHARDS)

    assert 0 < last.tokenizer.seen < 3994 - 1000
    assert content(tmp_path/'parts') == content(tmp_path/'whole') and set(content(tmp_path/'whole')) == {'tokens.npy', 'labels.npy'}
    assert len(parts) == 1997 and parts.copies == 2 and parts.tokens.dtype == np.uint32 and parts.tokens.max() > 2**16
    assert [s['name'] for s in skipped_images(parts)] == list(DAMAGED) == [s['name'] for s in skipped_images(whole)]
    assert np.bincount(parts.labels).tolist() == [200, 199, 200, 200, 200, 199, 200, 200, 200, 199]
    assert np.array_equal(parts.tokens[:, 0, :, ::-1], parts.tokens[:, 1]) or (parts.tokens[:, 0, :, ::-1] != parts.tokens[:, 1]).mean() < .01 # mirrored


def test_parquet(photos, tmp_path):
    "As the Hugging Face hub writes it: bytes and a label, class names in the schema, the split in the file name."
    pa, pq = pytest.importorskip('pyarrow'), pytest.importorskip('pyarrow.parquet')
    files = sorted(photos.rglob('*.JPEG'))[170:260]
    rows = [dict(image=dict(bytes=f.read_bytes(), path=f.name), label=int(f.parent.name[1:])) for f in files]
    names = dict(info=dict(features=dict(label=dict(names=[f'n{c:02}' for c in range(10)]))))
    for part, split in enumerate(('train', 'train', 'validation')):
        table = pa.Table.from_pylist(rows[part * 30:part * 30 + 30]).replace_schema_metadata({'huggingface': json.dumps(names)})
        pq.write_table(table, tmp_path/f'{split}-0000{part}.parquet', row_group_size=7)
    source = open_source(tmp_path)
    assert (type(source).__name__, len(source), len(open_source(tmp_path, 'test')), source.classes[3]) == ('ParquetSource', 60, 30, 'n03')
    assert [r.data for r in source.read(5, 40)] == [f.read_bytes() for f in files[5:40]] # across row groups and files
    images = open_images(tmp_path, size=16) # across row groups, and the damaged one left out
    assert (len(images), images.labels[:40].tolist()) == (60, [r.label for r in source.read(0, 40)]) and images.batch([3, 4, 9]).shape == (3, 3, 16, 16)
    tokens = encode_shards(source, encoding(), tmp_path/'tokens', **SHARDS)
    assert len(tokens) == 59 and 'truncated' in skipped_images(tokens)[0]['reason'] and skipped_images(tokens)[0]['name'].startswith('train-00001.parquet:1:0')
    assert np.array_equal(tokens.tokens, encode_shards(open_source(photos), encoding(), tmp_path/'folder', **SHARDS).tokens[170:229])


def test_the_command(photos, tmp_path, capsys):
    "Several processes are started in tests/test_train.py."
    encode(str(photos), 'smoke-llamagen-vq', str(tmp_path/'tokens'), size=16, shard_size=500, device='cpu')
    said = capsys.readouterr().out
    assert '1,997 images, 1 copies' in said and '3 images skipped' in said
    assert len(json.loads((tmp_path/'tokens'/'manifest.json').read_text())['skipped']) == 3
