"Numbers of each stage: when they move, a version has to be raised; when they do not, every record stays valid."
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from golden_numbers import GOLDENS, NUMBERS, moved

from maskgil import reconstruction
from maskgil.profiles import PROFILES, decisive_settings
from maskgil.records import run_key
from maskgil.versions import STAGES, VERSIONS


def verdict(stage: str) -> str: # empty if all is well
    "What has to be done about a stage."
    golden = json.loads(GOLDENS.read_text())[stage]
    if golden['version'] != VERSIONS[stage]:
        return f"version {VERSIONS[stage]} of '{stage}' has no numbers yet: python tests/helpers/golden_numbers.py"
    if said := moved(NUMBERS[stage](), golden['numbers']):
        return (f"the behaviour of '{stage}' has changed: raise VERSIONS['{stage}'] from {VERSIONS[stage]} in "
                f"nbs/04_versions.ipynb, or mend it. {'; '.join(said)}")
    return ''


def test_every_stage_has_numbers(): assert set(NUMBERS) == set(STAGES)


@pytest.mark.parametrize('stage', STAGES)
def test_golden_numbers(stage): assert not verdict(stage)


@pytest.mark.parametrize('quantizer', ['vq', 'l2-vq', 'lfq'])
def test_a_loss_weight_names_the_version_to_raise(quantizer, monkeypatch):
    changed = replace(reconstruction.LOSSES[quantizer], commitment=reconstruction.LOSSES[quantizer].commitment * 1.5)
    monkeypatch.setitem(reconstruction.LOSSES, quantizer, changed)
    assert "raise VERSIONS['tokenizer']" in verdict('tokenizer')


def test_a_missing_golden_says_what_to_run(monkeypatch):
    monkeypatch.setitem(VERSIONS, 'sampling', VERSIONS['sampling'] + 1)
    assert 'python tests/helpers/golden_numbers.py' in verdict('sampling')


def key(**changes) -> str:
    given = dict(study='scaling', profile=PROFILES['mini'], parameters=dict(size='b'), seed=0, data_fingerprint='d')
    return run_key(**given | changes)


def test_a_version_is_part_of_the_key_of_the_studies_that_go_through_it(monkeypatch):
    through, beside = key(), key(stages=['model', 'sampling'])
    monkeypatch.setitem(VERSIONS, 'training', VERSIONS['training'] + 1)
    assert key() != through
    assert key(stages=['model', 'sampling']) == beside


def test_a_setting_with_its_default_is_no_part_of_the_key():
    assert 'training.ema' not in decisive_settings(PROFILES['paper'])
    assert 'training.ema' in decisive_settings(PROFILES['mini'])


def test_the_code_is_no_part_of_the_key(tmp_path):
    "A local variable of `fit` under another name: the same keys, from a copy of the package."
    package, root = tmp_path/'maskgil', Path(__file__).parents[1]
    shutil.copytree(root/'maskgil', package, ignore=shutil.ignore_patterns('__pycache__'))
    ask = ('from maskgil.studies import STUDIES, defaults, rows_of; from maskgil.bench import Bench, stage_folder; '
           'from maskgil.profiles import PROFILES; from maskgil.records import run_key; p = PROFILES["smoke"]; '
           'keys = [run_key(n, p, c.parameters, 0, "d", rows_of(p, c), s.stages, s.groups) '
           'for n, s in STUDIES.items() for c in s.grid(p, defaults(n))]; '
           'import maskgil; print(maskgil.__file__); '
           'print(len(keys), keys, stage_folder(Bench(p), "generators", ("data", "model", "training")))')
    def keys() -> str:
        done = subprocess.run([sys.executable, '-c', ask], cwd=tmp_path, capture_output=True, text=True,
                              env=os.environ | dict(PYTHONPATH=str(tmp_path), MASKGIL_ROOT=str(root)))
        assert done.returncode == 0, done.stderr
        imported, found = done.stdout.split('\n', 1)
        assert Path(imported).parent == package, 'this is not the copy'
        return found
    before = keys()
    loop = package/'training.py'
    renamed = re.sub(r'\blogbook\b', 'rows_and_bar', loop.read_text())
    assert renamed != loop.read_text()
    loop.write_text(renamed)
    assert keys() == before and int(before.split()[0]) > 30
