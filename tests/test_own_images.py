"Somebody's own pictures: from a folder or a tar file to a model folder, with card, scores and samples."
import json, os, shutil, signal, subprocess, sys, tarfile, time

import numpy as np
import pytest
from PIL import Image

from maskgil import learn as own
from maskgil.core import cache_dir
from maskgil.pipeline import MaskGILPipeline
from maskgil.records import records


def picture(number: int, kind: str) -> Image.Image:
    "A stripe, its place and colour by the number, in any mode and size that a folder may hold."
    rng = np.random.default_rng(number)
    pixels = np.full((24 + number % 5, 20 + number % 3, 3), 230, np.uint8)
    at = rng.integers(2, 16)
    pixels[at:at + 4, :] = rng.integers(0, 160, 3)
    image = Image.fromarray(pixels if kind != 'tall' else pixels.transpose(1, 0, 2).copy())
    return image.convert(['RGB', 'RGBA', 'L', 'P'][number % 4])


def write_pictures(folder, count=86, kinds=('tall', 'wide')):
    for number in range(count):
        place = folder/kinds[number % len(kinds)]
        place.mkdir(parents=True, exist_ok=True)
        picture(number, kinds[number % len(kinds)]).save(place/f'{number:03}.png')
    return folder


@pytest.fixture
def quick(monkeypatch, clean_cache, tmp_path):
    "The shortest lengths, and a folder of its own to write in."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(own, 'EVALUATED', (12,))
    monkeypatch.setattr(own, 'TIMED_STEPS', 4)
    monkeypatch.setenv('MASKGIL_PROGRESS', 'off')


def asked(data, **options):
    own.learn(str(data), minutes=.001, size='b', **options)


def test_a_folder_of_classes_becomes_a_model(quick, tmp_path, capsys):
    folder = write_pictures(tmp_path/'stripes')
    Image.new('CMYK', (30, 20), (0, 200, 0, 0)).save(folder/'wide'/'cmyk.jpg')
    turned = Image.Exif()
    turned[0x0112] = 6
    picture(1, 'wide').convert('RGB').save(folder/'wide'/'turned.jpg', exif=turned)
    (folder/'wide'/'damaged.png').write_bytes(b'no picture')
    asked(folder, flip=False)
    said = capsys.readouterr()
    assert 'not mirrored' in said.out and '2 classes: tall, wide' in said.out, said.out
    assert 'damaged.png' in said.err
    model = tmp_path/'stripes-b'
    pipe = MaskGILPipeline.from_pretrained(model)
    assert pipe.classes == ('tall', 'wide') and pipe(labels=['wide'], seed=1)[0].size == (32, 32)
    card = (model/'README.md').read_text(encoding='utf-8')
    assert all(name in card for name in ('FID-EL0', 'KID-EL0', 'rFID-EL0', 'PSNR', 'license: unknown', 'cli learn'))
    assert all(Image.open(model/f'{name}.png').width > 300 for name in ('samples', 'rebuilt'))
    assert 'of the folder stripes; about a tenth, chosen by file name, was held out; 1 file could not be read.' in card
    assert card.count('](samples.png)') == card.count('](rebuilt.png)') == 1
    record, = records('learn', ['yours'])
    assert json.loads((model/'config.json').read_text())['card']['record'] == record.key
    before = (model/'model.safetensors').stat().st_mtime_ns
    asked(folder, flip=False)
    assert 'record exists' in capsys.readouterr().out
    assert (model/'model.safetensors').stat().st_mtime_ns == before
    assert (model/'README.md').read_text(encoding='utf-8') == card


def test_a_device_that_is_not_there_is_refused_before_a_picture_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    with pytest.raises(ValueError, match="device is 'cuda'"): asked(tmp_path/'nothing', device='cuda')


def test_all_that_is_left_out_is_named_where_the_user_has_it(quick, tmp_path, capsys):
    folder = tmp_path/'loose'
    write_pictures(folder)
    for path in folder.glob('*/*.png'): path.rename(folder/path.name)
    for kind in ('tall', 'wide'): (folder/kind).rmdir()
    for name in ('a.gif', 'b.png', 'c.png'): (folder/name).write_bytes(b'no picture')
    asked(folder, dry_run=True)
    said = capsys.readouterr().err
    assert 'loose: left out are 1 .gif' in said and '.cache' not in said and 'own/' not in said
    assert 'b.png: ' in said and 'c.png: ' in said, said


KILLED = '''
import sys
from maskgil import learn as own
own.EVALUATED, own.TIMED_STEPS = (12,), 4
own.learn(sys.argv[1], minutes=.001, size='b')
'''

def test_a_tar_file_becomes_a_model_and_a_killed_run_goes_on(quick, tmp_path, capsys):
    flat = tmp_path/'flat'
    flat.mkdir()
    for number in range(86): picture(number, 'wide').save(flat/f'{number:03}.png')
    with tarfile.open(tmp_path/'pebbles.tar', 'w') as tar: tar.add(flat, 'some/pebbles')
    running = subprocess.Popen([sys.executable, '-c', KILLED, 'pebbles.tar'], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, env=os.environ | dict(OMP_NUM_THREADS='1'))
    trained: list = []
    while not trained and running.poll() is None:
        time.sleep(.05)
        trained = list((cache_dir()/'tokenizers').glob('*/weights-*.safetensors'))
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert trained and not (tmp_path/'pebbles-b').exists(), 'it was over before it could be killed'
    before = trained[0].stat().st_mtime_ns
    asked('pebbles.tar')
    assert '1 class: pebbles' in capsys.readouterr().out
    assert trained[0].stat().st_mtime_ns == before, 'the tokenizer was trained again'
    assert MaskGILPipeline.from_pretrained('pebbles-b').classes == ('pebbles',)


def test_a_dry_run_says_how_long_and_trains_nothing(quick, tmp_path, capsys):
    folder = write_pictures(tmp_path/'stripes')
    asked(folder, dry_run=True)
    first = capsys.readouterr().out
    assert 'in all about' in first and not (cache_dir()/'tokenizers').exists()
    asked(folder, dry_run=True)
    assert capsys.readouterr().out == first, 'the same command chooses the same lengths'


def test_classes_and_texts_of_tar_files(quick, tmp_path):
    source = write_pictures(tmp_path/'source', count=4)
    with tarfile.open(tmp_path/'numbered.tar', 'w') as tar:
        for number, file in enumerate(sorted(source.rglob('*.png'))):
            (tmp_path/'sample.json').write_text(json.dumps(dict(label=number % 2, caption=f'stripe {number}')))
            tar.add(file, f'{number}.png')
            tar.add(tmp_path/'sample.json', f'{number}.json')
    folder = own.own_folder(tmp_path/'numbered.tar')
    assert own.image_folder(folder).classes == ('0', '1') and own.captioned_share(folder) == 1
    with tarfile.open(tmp_path/'split.tar', 'w') as tar:
        for split in ('train', 'val'): tar.add(source, f'photos/{split}')
    folder = own.class_layout(own.own_folder(tmp_path/'split.tar'))
    assert len(own.image_folder(folder, split='train')) == len(own.image_folder(folder, split='test')) == 4


def test_parquet_becomes_class_folders(quick, tmp_path):
    parquet = pytest.importorskip('pyarrow.parquet')
    import pyarrow
    source = write_pictures(tmp_path/'source', count=6)
    rows = [dict(image=dict(bytes=file.read_bytes(), path=file.name), label=file.parent.name)
            for file in sorted(source.rglob('*.png'))]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path/'rows.parquet')
    found = own.image_folder(own.class_layout(own.own_folder(tmp_path/'rows.parquet')))
    assert (found.classes, len(found)) == (('tall', 'wide'), 6)


def wrong(tmp_path, name):
    "A folder of each kind that nothing can be learned from."
    folder = tmp_path/name
    if name == 'few': return write_pictures(folder, count=20)
    if name == 'none': return folder
    folder.mkdir()
    if name == 'damaged':
        for number in range(90): (folder/f'{number}.jpg').write_bytes(b'no picture')
    if name == 'texts': (folder/'notes.txt').write_text('nothing to see')
    if name == 'both':
        write_pictures(folder, count=4)
        with tarfile.open(folder/'more.tar', 'w') as tar: tar.add(folder/'tall', 'tall')
    if name == 'file.txt': return shutil.copyfile(__file__, folder/'file.txt')
    return folder


@pytest.mark.parametrize('name,says', [
    ('none', ['nothing at', '.parquet']), ('empty', ['holds no pictures', '.jpg', '.tar']),
    ('texts', ['holds no pictures', 'in one folder a class']), ('few', ['to learn from', 'at least 65 and 5']),
    ('damaged', ['none of', 'could be read']), ('both', ['more.tar', 'meant']), ('file.txt', ['one file'])])
def test_what_cannot_be_learned_from_is_named(quick, tmp_path, name, says):
    with pytest.raises((ValueError, OSError)) as error: asked(wrong(tmp_path, name))
    assert all(part in str(error.value) for part in says), error.value
    assert not (cache_dir()/'tokenizers').exists()


def test_captions_that_are_not_there(quick, tmp_path):
    with pytest.raises(ValueError, match='no picture of .* has a caption.*txt'):
        asked(write_pictures(tmp_path/'stripes'), captions='yes')


def test_pictures_with_captions_make_a_model_of_texts(quick, tmp_path, capsys):
    "As far as a plan; the training is that of the text study, which `test_text_study_scale` holds."
    folder = write_pictures(tmp_path/'stripes')
    for file in folder.rglob('*.png'): file.with_suffix('.txt').write_text(f'a stripe in a {file.parent.name} picture')
    asked(folder, dry_run=True)
    said = capsys.readouterr().out
    assert 'pictures with captions' in said and 'model mini-b of texts' in said, said
    with pytest.raises(ValueError, match='auto, yes, no'): asked(folder, captions='maybe')
    profile = own.text_profile(folder, 'b', images=720)
    assert profile.text.stage_images == (560, 160) and not any(profile.text.ar_images)
