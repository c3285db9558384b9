"""The rehearsal is the paper's profile with smaller counts, and its files are read as published ones are.
`make rehearsal` runs it."""
import json, os, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SMALLER = { # settings that are sizes and counts, or follow from them
    'name', 'data.resolution', 'training.epochs', 'training.study_epochs', 'training.batch_size',
    'training.stability_steps', 'evaluation.cfg', 'evaluation.steps', 'evaluation.images', 'evaluation.step_grid',
    'evaluation.sample_counts', 'evaluation.speed_batches', 'evaluation.head', 'text.caption_tokens', 'text.budgets',
    'text.stage_images', 'text.stage_batch', 'text.probe_images', 'text.judged_images', 'text.bucket_images',
    'text.bucket_reference'}

SETTINGS = '''
import json
import rehearsal
from maskgil.profiles import PROFILES, settings
paper = settings(PROFILES['paper'])
names = [name for name in PROFILES if name.startswith('rehearsal')]
print(json.dumps({name: sorted(k for k, v in settings(PROFILES[name]).items() if v != paper[k]) for name in names}))
'''
FILES = '''
import json, sys
from pathlib import Path
import rehearsal
from maskgil.models import load_model
from maskgil.tokenizers import TOKENIZER_ROWS, load_tokenizer
from maskgil.reading import read_weights
from maskgil.published import recognise
made = {name: rehearsal.write_published(Path(sys.argv[1]), name) for name in (*TOKENIZER_ROWS, 'llamagen-gpt-b')}
print(json.dumps({name: recognise(read_weights(file)) for name, file in made.items()}))
for name in TOKENIZER_ROWS: assert load_tokenizer(name, checkpoint=made[name]).codebook_size >= 1024
load_model('llamagen', 'b', checkpoint=made['llamagen-gpt-b'])
'''


def run(code, *words):
    plain = {k: v for k, v in os.environ.items() if not k.startswith('MASKGIL_')}
    env = plain | dict(PYTHONPATH=f"{ROOT}{os.pathsep}{ROOT/'scripts'}", OMP_NUM_THREADS='1')
    command = [sys.executable, '-c', code, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope='module')
def changed(): return run(SETTINGS)


@pytest.mark.parametrize('name', ['rehearsal', 'rehearsal-shortest'])
def test_nothing_but_sizes_and_counts_differs(changed, name):
    assert set(changed[name]) <= SMALLER


def test_all_classes_are_looked_at_by_the_quick_extractor(changed):
    assert set(changed['rehearsal-classes']) <= SMALLER | {'evaluation.extractor'}


def test_its_files_are_told_as_published_ones(tmp_path):
    found = run(FILES, tmp_path)
    assert len(found) == 5 and all(name == told for name, told in found.items())
