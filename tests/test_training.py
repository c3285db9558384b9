"A training run survives being killed, and ends with the bits it would have had."
import os, signal, subprocess, sys, time
from pathlib import Path

from safetensors.torch import load_file

SCRIPT = Path(__file__).parent/'helpers'/'training_to_kill.py'


def test_kill_and_resume(tmp_path):
    whole, killed = tmp_path/'whole', tmp_path/'killed'
    subprocess.run([sys.executable, SCRIPT, whole, tmp_path/'whole.safetensors'], check=True, capture_output=True)

    process = subprocess.Popen([sys.executable, SCRIPT, killed, tmp_path/'killed.safetensors', '0.1'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (killed/'checkpoint.safetensors').exists():
        assert process.poll() is None and time.monotonic() < deadline, 'no checkpoint appeared'
        time.sleep(.02)
    time.sleep(.3)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path/'killed.safetensors').exists(), 'it was killed too late for the test to mean anything'

    subprocess.run([sys.executable, SCRIPT, killed, tmp_path/'killed.safetensors'], check=True, capture_output=True)
    for pair in (('whole.safetensors', 'killed.safetensors'), ('whole/weights-40.safetensors', 'killed/weights-40.safetensors')):
        a, b = (load_file(tmp_path/name) for name in pair)
        assert a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a), pair
