"Captions in parquet files: the same images and texts as in tar files, one image when it is asked for, flat memory."
import io

import numpy as np
import pytest
from PIL import Image

import maskgil.rows
import maskgil.text
from maskgil.rows import row_bytes
from maskgil.text import caption_folders, captioned_images, CaptionedFolder, image_source, list_captioned, Listing
from memory import peak_of

pa, pq = pytest.importorskip('pyarrow'), pytest.importorskip('pyarrow.parquet')
SHAPES = ((20, 40), (40, 20), (24, 24)) # height, width
TOLD = [(16, 32), (24, 24), (32, 16)]


def picture(i, kind='PNG'):
    h, w = SHAPES[i % 3]
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(i).integers(0, 256, (h, w, 3), dtype=np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def text_of(i): return f'caption number {i} of a picture that shows {"very " * (i % 7)}much'


def add_rows(path, count, first=0, group=7, struct=True, images=None, column='caption'):
    "A parquet file as Hugging Face datasets writes it, or with plain bytes."
    found = images or [picture(i, 'JPEG' if i % 2 else 'PNG') for i in range(first, first + count)]
    stored = [dict(bytes=image, path=f'{i}.png') for i, image in enumerate(found)] if struct else found
    kind = pa.struct([('bytes', pa.binary()), ('path', pa.string())]) if struct else pa.binary()
    columns = {'image': pa.array(stored, kind), column: [text_of(i) for i in range(first, first + count)]}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=group)
    return path


@pytest.mark.parametrize('struct', [True, False])
def test_rows_are_images_with_captions(tmp_path, clean_cache, struct):
    add_rows(tmp_path/'d'/'train-0.parquet', 20, struct=struct, column='caption' if struct else 'text')
    add_rows(tmp_path/'d'/'train-1.parquet', 11, first=20)
    add_rows(tmp_path/'d'/'validation-0.parquet', 5, first=31)
    images = captioned_images(tmp_path/'d')
    assert list(images.captions) == [text_of(i) for i in range(31)]
    assert list(captioned_images(tmp_path/'d', 'held-out').captions) == [text_of(i) for i in range(31, 36)]
    for i in (30, 0, 13, 20): # in any order
        stored = image_source(images.root, images.files[i]).read()
        assert stored == picture(i, 'JPEG' if i % 2 else 'PNG')
    assert images.subset([3, 1]).captions == [text_of(3), text_of(1)]


def test_shapes_are_told_alike_from_a_list_on_the_disk(tmp_path, clean_cache, monkeypatch):
    add_rows(tmp_path/'data'/'train.parquet', 60)
    def seen():
        return [(images.shape, list(images.captions), images.batch([0, 3])) for images in caption_folders(
            tmp_path/'data', TOLD)]
    whole = seen()
    monkeypatch.setattr(maskgil.text, 'LISTED_WHOLE', 7)
    stored = caption_folders(tmp_path/'data', TOLD)
    assert all(isinstance(images.files, Listing) for images in stored) and len(whole) == 3
    for (shape, captions, batch), (shape_too, captions_too, batch_too) in zip(whole, seen()):
        assert (shape, captions) == (shape_too, captions_too) and batch.equal(batch_too)


@pytest.mark.parametrize('ranks', [1, 2, 3])
def test_the_order_does_not_depend_on_ranks(tmp_path, clean_cache, ranks):
    "Each rank lists for itself and reads its share; together they have what one has."
    add_rows(tmp_path/'d'/'train-0.parquet', 16, group=5)
    alone = captioned_images(tmp_path/'d')
    pixels = CaptionedFolder(alone.root, alone.files, 8, 'all').batch(range(16))
    for rank in range(ranks):
        mine = captioned_images(tmp_path/'d')
        rows = list(range(16))[rank::ranks]
        part = CaptionedFolder(mine.root, mine.files, 8, 'all').subset(rows)
        assert mine.fingerprint == alone.fingerprint and part.batch(range(len(rows))).equal(pixels[rows])


def test_a_broken_row_is_named_and_left_out(tmp_path, clean_cache, capsys):
    images = [picture(i) for i in range(9)]
    images[3], images[5] = b'no image', None
    add_rows(tmp_path/'d'/'train.parquet', 9, images=images, group=4)
    found = captioned_images(tmp_path/'d')
    assert list(found.captions) == [text_of(i) for i in range(9) if i not in (3, 5)]
    said = capsys.readouterr().err
    assert 'train.parquet row 3' in said
    assert {item['name'] for item in found.left_out} == {'train.parquet row 3', 'train.parquet row 5'}


def test_rows_without_a_text_are_counted(tmp_path, clean_cache, capsys):
    stored = pa.array([picture(i) for i in range(3)], pa.binary())
    (tmp_path/'d').mkdir()
    pq.write_table(pa.table(dict(image=stored, caption=['one', None, ' '])), tmp_path/'d'/'a.parquet')
    assert [file.caption for file in list_captioned(tmp_path/'d')] == ['one']
    assert '2 image(s) without a text' in capsys.readouterr().err


@pytest.mark.parametrize('columns, says', [
    (dict(image=['a'], caption=['b']), r'an image column \(image, jpg.*columns are image \(string\), caption'),
    (dict(image=[b'a'], label=[3]), r'a caption column \(caption, text, prompt\).*columns are image \(binary\), label'),
])
def test_missing_columns_are_named(tmp_path, clean_cache, columns, says):
    (tmp_path/'d').mkdir()
    pq.write_table(pa.table(columns), tmp_path/'d'/'a.parquet')
    with pytest.raises(ValueError, match=f'a.parquet: {says}'): list_captioned(tmp_path/'d')


def test_damage_and_mixtures_are_refused(tmp_path, clean_cache):
    file = add_rows(tmp_path/'d'/'a.parquet', 9)
    (tmp_path/'d'/'a.tar').touch()
    with pytest.raises(ValueError, match='holds a.tar and a.parquet'): list_captioned(tmp_path/'d')
    (tmp_path/'d'/'a.tar').unlink()
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(OSError, match='a.parquet is damaged or cut short'): list_captioned(tmp_path/'d')


def test_other_rows_are_another_data_set(tmp_path, clean_cache):
    add_rows(tmp_path/'d'/'a.parquet', 12)
    images = captioned_images(tmp_path/'d')
    some = images.subset([0, 1])
    assert len({images.fingerprint, some.fingerprint, images.subset([1, 0]).fingerprint}) == 3
    assert images.stamp() != some.stamp()


def test_without_the_package_one_line_says_what_to_do(tmp_path, clean_cache, monkeypatch):
    add_rows(tmp_path/'d'/'a.parquet', 2)
    monkeypatch.setitem(__import__('sys').modules, 'pyarrow.parquet', None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install pyarrow, or pip install .maskgil\[scale\]'):
        list_captioned(tmp_path/'d')


def test_memory_does_not_grow_with_the_rows(tmp_path, clean_cache, monkeypatch):
    "A list on the disk, and of the images a row group or two: six times the rows take no more."
    monkeypatch.setattr(maskgil.text, 'LISTED_WHOLE', 500)
    monkeypatch.setattr('os.cpu_count', lambda: 1)
    image, peaks = picture(0), []
    for count in (1_000, 6_000):
        folder = tmp_path/str(count)
        for first in range(0, count, 500):
            add_rows(folder/f'{first:07}.parquet', 500, first, 100, images=[image] * 500)
        def look():
            before, most = pa.default_memory_pool().bytes_allocated(), 0
            files = list_captioned(folder)
            assert isinstance(files, Listing) and len(files) == count and files[-1].caption == text_of(count - 1)
            images = CaptionedFolder(folder, files, 1, 'many')
            for row in range(0, count, count // 40):
                assert image_source(folder, files[row]).read() == image
                most = max(most, pa.default_memory_pool().bytes_allocated())
            assert images.fingerprint
            return max(0, most - before) # pyarrow's own
        maskgil.rows._images.cache_clear()
        peaks.append(peak_of(look))
    assert peaks[1] < peaks[0] + 5_000 * 9 + 5_000 * len(image) / 20, (peaks, len(image))


def test_a_group_is_read_once_for_its_neighbours(tmp_path, clean_cache):
    file = add_rows(tmp_path/'d'/'a.parquet', 30, group=10)
    maskgil.rows._images.cache_clear()
    for row in range(30): assert row_bytes(file, row) == picture(row, 'JPEG' if row % 2 else 'PNG')
    assert maskgil.rows._images.cache_info().misses == 3
