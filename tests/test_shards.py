"A folder of 2,000 images with three damaged ones becomes the same tokens whatever happens on the way."
import hashlib, json, signal, subprocess, sys, time
from pathlib import Path

import numpy as np
import pytest
import torch.nn.functional as F
from PIL import Image

from maskgil.shards import Encoding, encode, encode_shards, open_images, open_source, skipped_images

SIZE, SHARDS = 16, dict(shard_size=128, batch_size=16, workers=1, device='cpu')
DAMAGED = { # a file, and what becomes of its bytes
    'n01/0007.JPEG': lambda data: data[:-40],
    'n05/0123.JPEG': lambda data: b'',
    'n09/0199.JPEG': lambda data: b'a text',
}


class Patches:
    "Mean colours of 4 x 4 patches as tokens; a pause or a stop on the way."
    codebook_size = 70_000 # more than 16 bits hold

    def __init__(self, stop=None, pause=0.): self.stop, self.pause, self.seen = stop, pause, 0

    def fingerprint(self): return 'patches'

    def encode(self, images):
        self.seen += len(images)
        if self.stop and self.seen > self.stop: raise KeyboardInterrupt
        time.sleep(self.pause)
        levels = (F.avg_pool2d((images + 1) / 2, 4) * 40).round().long()
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
    for name, damage in DAMAGED.items(): (root/name).write_bytes(damage((root/name).read_bytes()))
    return root.parent


def content(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob('*.npy'))}


def shards_made(folder): return len(list((folder/'shards').glob('*.json')))


def test_interrupted_twice(photos, tmp_path):
    source = open_source(photos)
    assert len(source) == 2000
    whole = encode_shards(source, encoding(), tmp_path/'whole', **SHARDS)

    code = f'''import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_shards as test
source = test.open_source({str(photos)!r})
test.encode_shards(source, test.encoding(pause=.02), {str(tmp_path/'parts')!r}, **test.SHARDS)'''
    process = subprocess.Popen([sys.executable, '-c', code])
    deadline = time.monotonic() + 300
    while not (tmp_path/'parts'/'shards'/'00001.json').exists(): # killed in the middle of a shard
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(.02)
    process.send_signal(signal.SIGKILL); process.wait()
    made = shards_made(tmp_path/'parts')
    assert 2 <= made < 16

    with pytest.raises(KeyboardInterrupt): encode_shards(source, encoding(stop=1000), tmp_path/'parts', **SHARDS)
    assert made < shards_made(tmp_path/'parts') < 16
    assert not (tmp_path/'parts'/'tokens.npy').exists()
    last = encoding()
    parts = encode_shards(source, last, tmp_path/'parts', **SHARDS)

    assert 0 < last.tokenizer.seen < 3994 - 1000
    assert content(tmp_path/'parts') == content(tmp_path/'whole')
    assert set(content(tmp_path/'whole')) == {'tokens.npy', 'labels.npy'}
    assert len(parts) == 1997 and parts.copies == 2
    assert parts.tokens.dtype == np.uint32 and parts.tokens.max() > 2**16
    for tokens in (parts, whole): assert [image['name'] for image in skipped_images(tokens)] == list(DAMAGED)
    assert np.bincount(parts.labels).tolist() == [200, 199, 200, 200, 200, 199, 200, 200, 200, 199]
    mirrored = parts.tokens[:, 0, :, ::-1]
    assert (mirrored != parts.tokens[:, 1]).mean() < .01 # but for rounding


def test_parquet(photos, tmp_path):
    "As the Hugging Face hub writes it: bytes and a label, class names in the schema, the split in the file name."
    pa, pq = pytest.importorskip('pyarrow'), pytest.importorskip('pyarrow.parquet')
    files = sorted(photos.rglob('*.JPEG'))[170:260]
    rows = [dict(image=dict(bytes=f.read_bytes(), path=f.name), label=int(f.parent.name[1:])) for f in files]
    names = dict(info=dict(features=dict(label=dict(names=[f'n{c:02}' for c in range(10)]))))
    schema = {'huggingface': json.dumps(names)}
    for part, split in enumerate(('train', 'train', 'validation')):
        table = pa.Table.from_pylist(rows[part * 30:part * 30 + 30]).replace_schema_metadata(schema)
        pq.write_table(table, tmp_path/f'{split}-0000{part}.parquet', row_group_size=7)
    source = open_source(tmp_path)
    assert (type(source).__name__, len(source), len(open_source(tmp_path, 'test'))) == ('ParquetSource', 60, 30)
    assert source.classes[3] == 'n03'
    assert [raw.data for raw in source.read(5, 40)] == [f.read_bytes() for f in files[5:40]] # across groups and files
    images = open_images(tmp_path, size=16)
    assert (len(images), images.labels[:40].tolist()) == (60, [raw.label for raw in source.read(0, 40)])
    assert images.batch([3, 4, 9]).shape == (3, 3, 16, 16) # across row groups

    tokens = encode_shards(source, encoding(), tmp_path/'tokens', **SHARDS)
    damaged = skipped_images(tokens)[0]
    assert len(tokens) == 59 and 'truncated' in damaged['reason']
    assert damaged['name'].startswith('train-00001.parquet:1:0')
    from_files = encode_shards(open_source(photos), encoding(), tmp_path/'folder', **SHARDS)
    assert np.array_equal(tokens.tokens, from_files.tokens[170:229])


def test_the_command(photos, tmp_path, capsys):
    "Several processes are started in tests/test_jobs.py."
    encode(str(photos), 'smoke-llamagen-vq', str(tmp_path/'tokens'), size=16, shard_size=500, device='cpu')
    said = capsys.readouterr().out
    assert '1,997 images, 1 copies' in said and '3 images skipped' in said
    assert len(json.loads((tmp_path/'tokens'/'manifest.json').read_text())['skipped']) == 3
