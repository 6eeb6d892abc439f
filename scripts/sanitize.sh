#!/usr/bin/env bash
# Builds the CPU kernels with AddressSanitizer and UndefinedBehaviorSanitizer, proves on planted bugs
# that both watch, and runs the kernels' tests under them; the CUDA kernels too, as host code.
# Needs the .venv of scripts/test.sh and g++.
#   bash scripts/sanitize.sh [PYTEST ARGUMENTS]
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\033[1m==> %s\033[0m\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python=$PWD/.venv/bin/python
[ -x "$python" ] || fail "no .venv; make it: bash scripts/test.sh"
cp -r cuda_ops tests pyproject.toml "$work"
rm -f "$work"/cuda_ops/_C*.so "$work"/cuda_ops/_C*.json
cp scripts/planted_bugs.cpp "$work"

say "Building with sanitizers"
cd "$work"
"$python" - <<'PYTHON'
from pathlib import Path

from cuda_ops import build

flags = ["-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all",
         "-fsanitize=address,undefined,float-cast-overflow"]
objects = Path("objects")
objects.mkdir()
print(build.build_cpu(build.PACKAGE, objects, flags, [Path("planted_bugs.cpp").resolve()]))
PYTHON

compiler=${CXX:-g++}
export LD_PRELOAD="$("$compiler" -print-file-name=libasan.so) $("$compiler" -print-file-name=libubsan.so)"
# Python and torch leave memory behind on purpose, and that is not what is looked for.
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=0:exitcode=97 UBSAN_OPTIONS=print_stacktrace=1
export OMP_WAIT_POLICY=passive

say "Planted bugs must be caught"
for bug in "0 heap-buffer-overflow" "1 signed.integer.overflow"; do
  read -r kind name <<<"$bug"
  if "$python" -c "import cuda_ops, torch; torch.ops.segdeform.plant_bug($kind)" \
      >planted.log 2>&1; then
    cat planted.log
    fail "planted bug $kind was not caught: the sanitizers are not on"
  fi
  grep -q "$name" planted.log || { cat planted.log; fail "planted bug $kind ended otherwise"; }
  echo "caught: $name"
done

say "Tests of the kernels"
# Compiled graphs would run the C++ compiler itself under the sanitizers.
"$python" -m pytest -q -p no:cacheprovider -k "not compile" "$@" tests/cuda_ops/test_deform*.py \
  tests/cuda_ops/test_labels.py tests/cuda_ops/test_packing.py
say "Tests of the CUDA kernels as host code"
export SEGDEFORM_SHIM_FLAGS="-g -fno-omit-frame-pointer -fno-sanitize-recover=all
  -fsanitize=address,undefined,float-cast-overflow"
"$python" -m pytest -q -p no:cacheprovider "$@" tests/cuda_ops/test_cuda*_kernels.py
say "Clean"
