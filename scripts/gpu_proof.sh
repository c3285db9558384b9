#!/usr/bin/env bash
# What one GPU does with the published sizes: the CUDA tests, then a record for each piece of work. At most eight minutes
# on one H100; downloads nothing, writes into results/ and .cache/ of this checkout, and goes on where it stopped.
#
#     scripts/gpu_proof.sh [--tiny true]     --tiny runs the smallest sizes on any machine and says nothing about speed
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} MASKGIL_PROGRESS=off HF_HUB_OFFLINE=1
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$PWD/.cache/inductor}
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$PWD/.cache/triton}

failed=0
passed=.cache/gpu/tests-passed # of this commit, on this machine
here="$(git rev-parse HEAD 2>/dev/null || echo none) $(hostname)"
if [ "$(cat "$passed" 2>/dev/null)" != "$here" ]; then
  "$python" -m pytest -q --maxfail=5 tests/test_cuda.py -k 'not tiny' || failed=1
  if [ "$failed" = 0 ]; then mkdir -p "$(dirname "$passed")" && echo "$here" >"$passed"; fi
fi
"$python" -m maskgil.gpu "$@" || failed=1
exit "$failed"
