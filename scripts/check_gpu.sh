#!/usr/bin/env bash
# Checks the CUDA kernels on this machine's GPU: library, parity, tests, speed, memory checkers.
#   bash scripts/check_gpu.sh [--output FOLDER] [--seconds 470] [--only STEP...]
# Needs an NVIDIA GPU and a Python with torch >= 2.10; nothing is installed. PYTHON names another
# interpreter than .venv's or python3. Exit code: 0 all passed, 8 a step failed, 2 no GPU or torch.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-}
if [ -z "$python" ]; then
  python=python3
  [ ! -x .venv/bin/python ] || python=.venv/bin/python
fi
exec "$python" scripts/check_gpu.py "$@"
