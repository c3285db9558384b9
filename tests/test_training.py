"A training run survives being killed, and ends with the bits it would have had."
import os, random, signal, subprocess, sys, time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).parent/'helpers'/'training_to_kill.py'
WEIGHTS_AT_40 = 'weights-40.safetensors'


def train(folder, out):
    "Train to the end, from the checkpoint if there is one."
    subprocess.run([sys.executable, SCRIPT, folder, out], check=True, capture_output=True)


def kill_after_a_checkpoint(folder, out, seconds=.3):
    "Start a slow training, and kill it some time after a checkpoint that is newer than the one it begins with."
    path = folder/'checkpoint.safetensors'
    def written(): return path.stat().st_mtime_ns if path.exists() else 0
    slowly, at_first = [sys.executable, SCRIPT, folder, out, '0.1'], written()
    process = subprocess.Popen(slowly, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while written() == at_first:
        assert process.poll() is None and time.monotonic() < deadline, 'no checkpoint appeared'
        time.sleep(.02)
    time.sleep(seconds)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists(), 'it was killed too late for the test to mean anything'


def assert_same_weights(path, other):
    a, b = load_file(path), load_file(other)
    assert a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a), (path, other)


def test_kill_and_resume(tmp_path):
    "Three kills at moments that no run of this test shares."
    whole, killed = tmp_path/'whole', tmp_path/'killed'
    whole_end, killed_end = tmp_path/'whole.safetensors', tmp_path/'killed.safetensors'
    train(whole, whole_end)
    for _ in range(3): kill_after_a_checkpoint(killed, killed_end, random.uniform(0, .5))
    train(killed, killed_end)
    assert_same_weights(whole_end, killed_end)
    assert_same_weights(whole/WEIGHTS_AT_40, killed/WEIGHTS_AT_40)


class Pictures:
    "Sixteen images of noise."
    flippable = np.ones(16, dtype=bool)
    def __len__(self): return 16
    def batch(self, indices):
        noise = torch.randint(256, (16, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        return noise[indices]


@pytest.mark.parametrize('adversarial', [0., .1])
def test_a_tokenizer_resumes_to_the_same_bits(tmp_path, adversarial):
    "Its weights are laid out channels last, and so must be the moments that a checkpoint gives back."
    from dataclasses import replace
    from maskgil.reconstruction import LOSSES, ReconstructionObjective, TokenizerObjective
    from maskgil.tokenizers import load_tokenizer
    from maskgil.training import TrainConfig, fit
    losses = replace(LOSSES['l2-vq'], first_codes=2, refresh_every=3, adversarial=adversarial)
    def trained(folder, stop_at=None):
        made = load_tokenizer('smoke-llamagen-vq', seed=0)
        def stop(state, row):
            if state.step == stop_at: raise KeyboardInterrupt
        objective = ReconstructionObjective(TokenizerObjective(made.config, losses))
        config = TrainConfig(8, 8, 1e-3, seed=0)
        fit(made, objective, Pictures(), config, folder, device='cpu', dtype='float32', log_every=1, on_log=stop)
        return made.state_dict()
    whole = trained(tmp_path/'whole')
    with pytest.raises(KeyboardInterrupt): trained(tmp_path/'stopped', stop_at=4)
    resumed = trained(tmp_path/'stopped')
    assert all(whole[k].equal(resumed[k]) for k in whole)
