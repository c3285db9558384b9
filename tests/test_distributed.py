"Several processes learn what one learns; what they leave behind, any number of processes goes on from."
import os, subprocess, sys
from pathlib import Path

import pytest

from maskgil.core import read_json

SCRIPT = Path(__file__).parent/'helpers'/'training_on_ranks.py'
JOBS = [ # one process that goes on from the half-way checkpoints of two comes after these two
    '2:ddp,fsdp,accumulated,muon,ddp-half,fsdp-half,tokenizer',
    '1:ddp,muon,tokenizer,ddp-rest,fsdp-rest',
    '4:ddp-rest,fsdp-rest',
]


def losses(history): return [row['loss'] for row in history]


def furthest(found, expected):
    "The largest relative difference between the losses of two runs."
    return max(abs(x - y) / abs(y) for x, y in zip(losses(found), losses(expected), strict=True))


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "One process; two; and one and four that go on from the half-way checkpoints of the two."
    folder = tmp_path_factory.mktemp('ranks')
    env = os.environ | dict(OMP_NUM_THREADS='1', MASKGIL_PROGRESS='off')
    command = [sys.executable, SCRIPT, folder, *JOBS]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    return lambda job, ranks, rank=0: read_json(folder/f'{job}-{ranks}-{rank}.json')


@pytest.mark.parametrize('job', ['ddp', 'fsdp', 'accumulated'])
def test_two_ranks_learn_as_one(made, job):
    whole = made('ddp', 1)
    assert len(whole) == 50 and losses(whole)[-1] < .85 * losses(whole)[0]
    assert furthest(made(job, 2), whole) < 1e-5
    assert made(job, 2, 0) == made(job, 2, 1)


def test_two_ranks_learn_as_one_by_muon(made):
    "Its products are in bfloat16, in which a rounding of a gradient is seen."
    whole = made('muon', 1)
    assert furthest(made('muon', 2), whole) < 1e-3
    assert made('muon', 2, 0) == made('muon', 2, 1) # the ranks agree to the bit


@pytest.mark.parametrize('strategy', ['ddp', 'fsdp'])
@pytest.mark.parametrize('ranks', [1, 4])
def test_a_checkpoint_of_two_ranks_resumes_on(made, strategy, ranks):
    found = made(f'{strategy}-rest', ranks)
    assert losses(found)[:25] == losses(made(strategy, 2))[:25], 'it did not resume'
    assert furthest(found, made('ddp', 1)) < 1e-5


def test_a_tokenizer_with_redrawn_codes_and_a_discriminator(made):
    (whole, _), (first, weights), (_, others) = made('tokenizer', 1), made('tokenizer', 2), made('tokenizer', 2, 1)
    assert weights == others, 'the ranks differ'
    assert furthest(first[:11], whole[:11]) < 1e-5 # two redraws; later a rounding changes which code is nearest
