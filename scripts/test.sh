#!/usr/bin/env bash
# Installs segdeform with its development tools, then runs lint, types and all tests.
#   bash scripts/test.sh [PYTEST ARGUMENTS]
# The CUDA half is compiled too, for one architecture, with a compiler from pip; no GPU is needed.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh

export SEGDEFORM_CUDA=${SEGDEFORM_CUDA:-1} SEGDEFORM_CUDA_ARCHS=${SEGDEFORM_CUDA_ARCHS:-90}
make_environment dev

say "Lint"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
find cuda_ops/csrc -name '*.cpp' -o -name '*.h' -o -name '*.inl' -o -name '*.cu' -o -name '*.cuh' |
  xargs .venv/bin/clang-format --dry-run --Werror
say "Types"
.venv/bin/mypy
say "Tests"
.venv/bin/python -m pytest "$@"
