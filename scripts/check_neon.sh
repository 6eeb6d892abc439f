#!/usr/bin/env bash
# Builds the CPU kernels for AArch64 with a cross compiler and runs their tests under qemu: for those
# who change them without such a processor. It tells whether results are right, not how fast.
# Downloads some 250 MB once: torch, torchvision and what the tests need from PyPI, Python and its
# libraries from Debian; nothing is installed. Python and torch start slowly under qemu: minutes.
#   apt-get install g++-aarch64-linux-gnu qemu-user       (Debian or Ubuntu with Python 3.11 for arm64)
#   bash scripts/check_neon.sh [PYTEST ARGUMENTS]         (default: the tests that tell most)
# SEGDEFORM_NEON_CACHE names the folder of the downloads; default: ~/.cache/segdeform-neon.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\033[1m==> %s\033[0m\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

for program in aarch64-linux-gnu-g++ qemu-aarch64 apt-get dpkg; do
  command -v "$program" >/dev/null ||
    fail "no $program; on Debian: apt-get install g++-aarch64-linux-gnu qemu-user"
done
python=$PWD/.venv/bin/python
[ -x "$python" ] || python=$(command -v python3)
cache=${SEGDEFORM_NEON_CACHE:-$HOME/.cache/segdeform-neon}
torch=2.10.0 torchvision=0.25.0 # the oldest that serve; their wheels for AArch64 are without CUDA
mkdir -p "$cache"

if [ ! -e "$cache/root/complete" ]; then
  say "Fetching Python for arm64"
  rm -rf "$cache/root" "$cache/apt"
  mkdir -p "$cache/root" "$cache/apt/lists/partial" "$cache/apt/archives/partial"
  touch "$cache/apt/status"
  cat >"$cache/apt/apt.conf" <<CONF
APT::Architecture "arm64";
APT::Architectures {"arm64";};
APT::Sandbox::User "";
Dir::State "$cache/apt";
Dir::State::status "$cache/apt/status";
Dir::State::lists "$cache/apt/lists";
Dir::Cache "$cache/apt";
CONF
  APT_CONFIG=$cache/apt/apt.conf apt-get -q=2 update
  APT_CONFIG=$cache/apt/apt.conf apt-get -q=2 -y --no-install-recommends --download-only install \
    python3.11 libstdc++6 libgomp1
  for package in "$cache"/apt/archives/*.deb; do dpkg -x "$package" "$cache/root"; done
  touch "$cache/root/complete"
fi

if [ ! -e "$cache/site/complete" ]; then
  say "Fetching torch $torch for AArch64"
  rm -rf "$cache/site" "$cache/wheels"
  "$python" -m pip download --quiet --disable-pip-version-check --only-binary=:all: --no-deps \
    --platform manylinux_2_28_aarch64 --platform manylinux2014_aarch64 --python-version 3.11 \
    --dest "$cache/wheels" "torch==$torch" "torchvision==$torchvision" numpy pillow sympy mpmath \
    networkx jinja2 markupsafe filelock typing_extensions fsspec setuptools pytest hypothesis \
    pluggy iniconfig packaging pygments attrs sortedcontainers
  for wheel in "$cache"/wheels/*.whl; do "$python" -m zipfile -e "$wheel" "$cache/site"; done
  touch "$cache/site/complete"
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r cuda_ops tests pyproject.toml "$work"
rm -f "$work"/cuda_ops/_C*.so "$work"/cuda_ops/_C*.json
cd "$work"

# Without PYTHONDONTWRITEBYTECODE the second start is faster.
emulated() {
  QEMU_LD_PREFIX=$cache/root PYTHONHOME=$cache/root/usr PYTHONPATH=$cache/site \
    OMP_WAIT_POLICY=passive qemu-aarch64 "$cache/root/usr/bin/python3.11" "$@"
}

say "Building as on AArch64, with $(aarch64-linux-gnu-g++ -dumpfullversion) of g++"
SEGDEFORM_CUDA=0 CXX=aarch64-linux-gnu-g++ emulated -m cuda_ops.build
aarch64-linux-gnu-objdump -d --no-show-raw-insn cuda_ops/_C.so >code.txt
grep -qE 'fmla.*v[0-9]+\.4s, v[0-9]+\.4s, v[0-9]+\.s\[3\]' code.txt ||
  fail "no product by a lane: the NEON kernels are not in the library"

say "Tests of the kernels"
if [ $# = 0 ]; then
  chosen="every_instruction_set or same_bits or golden or drawn or nan_coordinate"
  chosen+=" or far_coordinate or threads_change or integer_offset"
  set -- -k "$chosen" tests/cuda_ops/test_deform_conv2d.py tests/cuda_ops/test_labels.py \
    tests/cuda_ops/test_deform_roi_pool.py
fi
emulated -m pytest -q -p no:cacheprovider "$@"
say "Right on AArch64, as far as qemu tells"
