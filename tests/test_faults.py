"The short form of `make faults`: whatever breaks, work comes out right or an error names the file."
import numpy as np
import pytest

from maskgil import faults
from maskgil.faults import Campaign, Found, FAULTS, READERS, WORKS, in_peace, make_noise, noise, picture_folder, tally

QUICK = ('caching tokens', 'making shards', 'writing a record', 'drawing samples', 'training a model')


@pytest.fixture(scope='module')
def campaign(tmp_path_factory):
    root = tmp_path_factory.mktemp('faults')
    pictures = picture_folder(root/'pictures')
    peace = {name: in_peace(WORKS[name], root/f'peace-{i}', pictures) for i, name in enumerate(QUICK)}
    return Campaign(root, pictures, peace, np.random.default_rng(0))


@pytest.mark.parametrize('fault', FAULTS)
def test_nothing_is_lost_or_wrong(campaign, fault):
    found = [f for name in QUICK for f in FAULTS[fault](campaign, name)]
    assert not [f for f in found if f.end in ('lost', 'wrong')]
    assert len(found) >= 3


@pytest.mark.parametrize('reader', READERS)
def test_noise_is_read_or_refused(reader):
    found = noise(reader, 60, seed=1)
    assert len(found) >= 20 # there are few ways to change a file of ten bytes
    assert not [f for f in found if f.end in ('lost', 'wrong')]


def test_what_is_lost_or_wrong_is_seen(campaign, monkeypatch):
    "The campaign can fail: work that forgets its half, and work that takes what it finds."
    def forgets(folder, pictures):
        if (folder/'begun').exists(): raise ValueError('begun before')
        for part in range(100): (folder/'begun').write_text(str(part))
        return 'all'
    def believes(folder, pictures):
        if not (folder/'number').exists(): (folder/'number').write_bytes(bytes(64))
        return (folder/'number').read_bytes().hex()
    monkeypatch.setitem(WORKS, 'forgets', forgets)
    monkeypatch.setitem(WORKS, 'believes', believes)
    def calm(name): return in_peace(WORKS[name], campaign.root/f'peace-{name}', campaign.pictures)
    peace = {name: calm(name) for name in ('forgets', 'believes')}
    own = campaign._replace(peace=peace)
    assert 'lost' in [f.end for _ in range(4) for f in faults.kills(own, 'forgets')]
    assert 'wrong' in [f.end for _ in range(4) for f in faults.flips(own, 'believes')]


def test_a_reader_that_dies_is_found(monkeypatch):
    import os, signal
    def dies(file): os.kill(os.getpid(), signal.SIGKILL)
    monkeypatch.setitem(READERS, 'images', READERS['images']._replace(read=dies))
    assert [f.end for f in noise('images', 5, 0)] == ['lost']


def test_a_sealed_file_that_is_believed_is_found(monkeypatch):
    monkeypatch.setitem(READERS, 'records', READERS['records']._replace(read=lambda file: file.read_bytes()))
    assert 'wrong' in [f.end for f in make_noise('records', 10, 0)]


def test_the_table_counts():
    rows = tally([Found('kill -9', 'x', 'right'), Found('kill -9', 'y', 'right'), Found('noise', 'z', 'refused')])
    assert rows == [dict(fault='kill -9', tried=2, right=2, refused=0, lost=0, wrong=0),
                    dict(fault='noise', tried=1, right=0, refused=1, lost=0, wrong=0)]
