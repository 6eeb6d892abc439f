#!/usr/bin/env bash
# Builds the wheel with GPU code for every supported architecture and shows what it holds.
#   bash scripts/build_release.sh [FOLDER]       (default: dist/)
# The compiler comes from pip; no GPU is needed. Needs the .venv of scripts/test.sh.
#
# This is for Linux on x86-64. A wheel for another processor or system is built on it, by
#   SEGDEFORM_CUDA=0 python -m pip wheel --no-build-isolation --no-deps --wheel-dir dist .
# Linux on AArch64 has the NEON kernels by that (scripts/check_neon.sh runs them under qemu). So should
# macOS on arm64, with clang++ of Xcode's command line tools: no OpenMP is needed, for the kernels
# run on the threads of torch's own library, which is loaded before ours. Neither was run there yet.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh

folder=${1:-dist}
architectures="80 86 89 90 100 120" # Ampere, Ada, Hopper, Blackwell; PTX of the last for later ones
python=$PWD/.venv/bin/python
[ -x "$python" ] || fail "no .venv; make it: bash scripts/test.sh"
export SEGDEFORM_CUDA=1 SEGDEFORM_CUDA_ARCHS=$architectures
bring_cuda_compiler

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# A copy: setuptools would leave its build folder in the sources, and take old files out of it.
cp -r cuda_ops segdeform configs pyproject.toml README.md LICENSE "$work"
rm -f "$work"/cuda_ops/_C*

say "Building for sm_${architectures// /, sm_} and PTX"
began=$SECONDS
"$python" -m pip wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps \
  --wheel-dir "$work/wheel" "$work"
echo "built in $((SECONDS - began)) s"

say "What it holds"
"$python" -m zipfile -e "$work"/wheel/*.whl "$work/contents"
for library in "$work"/contents/cuda_ops/_C*.so; do
  echo "$(basename "$library"): $(($(stat -c %s "$library") / 1024)) KiB"
done
# shellcheck disable=SC2086  # one word an architecture
"$python" scripts/cuda_code.py "$work/contents/cuda_ops/_C_cuda.so" \
  --require $architectures --ptx "${architectures##* }"
mkdir -p "$folder"
for wheel in "$work"/wheel/*.whl; do
  cp "$wheel" "$folder"
  echo "$folder/$(basename "$wheel"): $(($(stat -c %s "$wheel") / 1024)) KiB"
done
