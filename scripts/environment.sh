# Makes .venv with segdeform and its native libraries in it; sourced by demo.sh and test.sh.
# Done steps are skipped. PYTHON names the interpreter to use (3.11 to 3.14).

say() { printf '\033[1m==> %s\033[0m\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' \
        2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  fail "no Python 3.11 to 3.14 found; install one, e.g.: apt-get install python3.11 python3.11-venv"
}

# make_environment EXTRA: EXTRA is "" or "dev", the optional dependencies to bring.
make_environment() {
  local extra=$1 python
  if [ ! -x .venv/bin/pip ]; then
    python=$(find_python) || exit 1
    say "Making .venv with $("$python" --version)"
    rm -rf .venv
    "$python" -m venv .venv ||
      fail "Python's venv module is missing; install it, e.g.: apt-get install python3-venv"
  fi
  if ! command -v "${CXX:-g++}" >/dev/null && ! command -v c++ >/dev/null &&
      ! command -v clang++ >/dev/null; then
    [ "$extra" != dev ] || fail "no C++ compiler; install one, e.g.: apt-get install g++"
    say "No C++ compiler: torchvision's slower operator will serve (apt-get install g++ mends it)"
  fi

  local stamp=.venv/segdeform-requirements${extra:+-$extra} wanted
  wanted=$(requirements "$extra")
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    say "Installing dependencies (torch is about 5 GB with its CUDA libraries)"
    .venv/bin/pip install --quiet --disable-pip-version-check --upgrade "setuptools>=77" wheel
    # Apart from segdeform itself, whose build without isolation needs them all in place.
    echo "$wanted" >.venv/requirements.txt
    .venv/bin/pip install --quiet --disable-pip-version-check -r .venv/requirements.txt
    echo "$wanted" >"$stamp"
  fi
  if [ "${SEGDEFORM_CUDA:-}" = 1 ]; then
    bring_cuda_compiler
  elif [ -n "${want_cuda_compiler:-}" ]; then  # welcome, but nothing depends on it
    (bring_cuda_compiler) || say "Going on without a CUDA compiler"
  fi
  if [ -z "$(.venv/bin/pip list --editable --format=freeze 2>/dev/null | grep segdeform)" ]; then
    say "Installing segdeform and building its native libraries"
    .venv/bin/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
  fi
  .venv/bin/python -m cuda_ops.build ||
    { [ "$extra" != dev ] || exit 1; say "Going on with torchvision's operator"; }
}

# The dependencies of pyproject.toml, a line each.
requirements() {
  .venv/bin/python - "$1" <<'PYTHON'
import sys
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
print("\n".join(project["dependencies"] + project["optional-dependencies"].get(sys.argv[1], [])))
PYTHON
}

# The compiler of torch's own CUDA version, from pip.
bring_cuda_compiler() {
  local packages
  packages=$(.venv/bin/python - <<'PYTHON'
import torch

from cuda_ops import build

if torch.version.cuda and not build.pip_cuda_compiler():
    print(*(f"{name}=={torch.version.cuda}.*" for name in build.pip_cuda_packages()))
PYTHON
  ) || fail "cannot look for a CUDA compiler"
  if [ -n "$packages" ]; then
    say "Installing the CUDA compiler from pip"
    # shellcheck disable=SC2086  # one word a package
    .venv/bin/pip install --quiet --disable-pip-version-check $packages
  fi
}
