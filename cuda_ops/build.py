"""Builds the native libraries: the one place that knows compilers, flags and architectures.

`python -P -m cuda_ops.build` compiles beside this file what changed since the last build; the wheel
build does the same through `BuildOps`. Two libraries come out: `_C.so` (CPU kernels, needs
libtorch_cpu alone) and, where a CUDA compiler serves, `_C_cuda.so`. Both use LibTorch's stable
ABI for torch >= 2.10 and no Python symbol, so one build serves every Python and every such torch.

Environment:
    SEGDEFORM_CUDA        1: build the CUDA half or fail; 0: never; unset: when a CUDA compiler of
                          torch's major version is found (pip's, then CUDA_HOME's, then PATH's,
                          then that of /usr/local/cuda).
    SEGDEFORM_CUDA_ARCHS  compute capabilities, e.g. "80;90" (default: the GPU at hand or 80;90);
                          a release has "80;86;89;90;100;120+PTX". The newest comes with PTX at any
                          rate, for GPUs yet to come; "+PTX" asks for that of another one too.
    CXX                   the C++ compiler (default: the first found of g++, c++ and clang++).

This module imports torch only inside functions: an isolated `pip install .` runs it without torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools.command.build_ext import build_ext

PACKAGE = Path(__file__).resolve().parent
SOURCES = PACKAGE / "csrc"
USUAL_TOOLKIT = Path("/usr/local/cuda")
HOW_TO = "python -P -m cuda_ops.build"

Command = Sequence[str | Path]

TORCH_TARGET = "0x020a000000000000"  # 2.10, the oldest torch that the libraries run with
COMMON_FLAGS = ["-std=c++20", "-O3", "-DNDEBUG", f"-DTORCH_TARGET_VERSION={TORCH_TARGET}"]
CPU_FLAGS = [
    *COMMON_FLAGS,
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
    "-Wno-unknown-pragmas",
]


class BuildError(RuntimeError):
    """The libraries cannot be built; the text says what is missing and how to get it."""


def cxx_compiler() -> str:
    """Returns the C++ compiler's path.

    Raises:
        BuildError: if there is none, with the command that installs one.
    """
    for name in filter(None, [os.environ.get("CXX"), "g++", "c++", "clang++"]):
        if found := shutil.which(name):
            return found
    raise BuildError("no C++ compiler found; install one, e.g.: apt-get install g++")


def pip_cuda_compiler() -> Path | None:
    """Returns the nvcc that pip installed into this environment, if any."""
    site = Path(sysconfig.get_path("purelib"))
    return max(site.glob("nvidia/cu*/bin/nvcc"), default=None)


def nvcc_candidates() -> list[Path]:
    """Lists CUDA compilers: pip's, CUDA_HOME's, the one on PATH, and the toolkit's usual one."""
    candidates = [nvcc] if (nvcc := pip_cuda_compiler()) else []
    if home := os.environ.get("CUDA_HOME"):
        candidates.append(Path(home) / "bin" / "nvcc")
    if on_path := shutil.which("nvcc"):
        candidates.append(Path(on_path))
    candidates.append(USUAL_TOOLKIT / "bin" / "nvcc")
    return [path for path in candidates if path.exists()]


def nvcc_version(nvcc: Path) -> str:
    """Returns "13.2" and the like, or "" if the program does not answer."""
    try:
        text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    except OSError:
        return ""
    match = re.search(r"release (\d+\.\d+)", text)
    return match.group(1) if match else ""


def cuda_compiler() -> Path | None:
    """Returns the CUDA compiler that the rule in this module's text chooses, or None.

    Raises:
        BuildError: if SEGDEFORM_CUDA=1 and none serves.
    """
    import torch

    wanted = os.environ.get("SEGDEFORM_CUDA", "")
    if wanted not in ("", "0", "1"):
        raise BuildError(f"SEGDEFORM_CUDA is '{wanted}'; it takes 1, 0 or nothing")
    if wanted == "0":
        return None
    cuda = torch.version.cuda
    if cuda is not None:
        for nvcc in nvcc_candidates():
            if nvcc_version(nvcc).split(".")[0] == cuda.split(".")[0]:
                return nvcc
    if wanted == "1":
        if cuda is None:
            raise BuildError("SEGDEFORM_CUDA=1, but this torch was built without CUDA")
        packages = " ".join(f'"{name}=={cuda}.*"' for name in pip_cuda_packages())
        raise BuildError(
            f"SEGDEFORM_CUDA=1, but no CUDA {cuda.split('.')[0]} compiler was found; "
            f"install one: pip install {packages}"
        )
    return None


def pip_cuda_packages() -> tuple[str, ...]:
    """Names the PyPI packages that make up a CUDA compiler; all of torch's CUDA minor version."""
    return ("nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-crt", "nvidia-cuda-cccl")


def cuda_architectures() -> list[str]:
    """Returns compute capabilities without the dot, e.g. ["80", "90"]; "90+PTX" asks for PTX too.

    Raises:
        BuildError: if SEGDEFORM_CUDA_ARCHS names no capability.
    """
    import torch

    if text := os.environ.get("SEGDEFORM_CUDA_ARCHS"):
        found = [part.strip().replace(".", "") for part in re.split(r"[;, ]+", text) if part]
        wrong = [part for part in found if not re.fullmatch(r"\d{2,3}(\+PTX)?", part)]
        if wrong or not found:
            raise BuildError(f"SEGDEFORM_CUDA_ARCHS is '{text}'; it takes e.g. 80;90 or 90+PTX")
        return found
    if torch.cuda.is_available():
        return ["{}{}".format(*torch.cuda.get_device_capability())]
    return ["80", "90"]


def nvcc_flags(architectures: Sequence[str]) -> list[str]:
    """Machine code for each architecture, and PTX of the newest for GPUs yet to come."""
    flags = [
        *COMMON_FLAGS,
        "-DUSE_CUDA",
        "--expt-relaxed-constexpr",
        "--threads=0",  # architectures beside each other
        "-Xcompiler=-fPIC,-fvisibility=hidden",
    ]
    numbers = [a.removesuffix("+PTX") for a in architectures]
    flags += [f"-gencode=arch=compute_{a},code=sm_{a}" for a in numbers]
    with_ptx = {a.removesuffix("+PTX") for a in architectures if a.endswith("+PTX")}
    with_ptx.add(max(numbers, key=int))
    ptx = sorted(with_ptx, key=int)
    return [*flags, *(f"-gencode=arch=compute_{a},code=compute_{a}" for a in ptx)]


def _run(command: Command) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        shown = " ".join(map(str, command))
        raise BuildError(f"{shown}\n{done.stdout}{done.stderr}".rstrip())
    if done.stderr.strip():
        print(done.stderr.rstrip(), file=sys.stderr)


def _compile_all(jobs: Sequence[Command]) -> None:
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(_run, jobs))


def _link(command: Command, target: Path) -> None:
    """Links beside the target and renames, so that a running process keeps its old library."""
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    _run([*command, "-o", temporary])
    temporary.replace(target)


def cpu_sources() -> list[Path]:
    """Lists what `_C.so` is compiled from, headers apart."""
    return [SOURCES / "ops.cpp", *sorted((SOURCES / "cpu").glob("*.cpp"))]


def cuda_sources() -> list[Path]:
    """Lists what `_C_cuda.so` is compiled from, headers apart."""
    return sorted((SOURCES / "cuda").glob("*.cu"))


def source_digest(sources: Sequence[Path]) -> str:
    """Returns a sum over sources and headers: the same on every machine."""
    folders = {SOURCES} | {source.parent for source in sources}  # neither half reads the other's
    headers = sorted(p for f in folders for p in f.glob("*") if p.suffix in (".h", ".inl", ".cuh"))
    digest = hashlib.sha256()
    for path in [*sorted(sources), *headers]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _fingerprint(sources: Sequence[Path], command: Command) -> str:
    text = " ".join(map(str, command)) + source_digest(sources)
    return hashlib.sha256(text.encode()).hexdigest()


def _up_to_date(target: Path, fingerprint: str) -> bool:
    try:
        note = json.loads(target.with_suffix(".json").read_text())
    except (OSError, ValueError):  # never built, or damaged
        return False
    return target.exists() and isinstance(note, dict) and note.get("fingerprint") == fingerprint


def _finish(target: Path, fingerprint: str, sources: Sequence[Path], **facts: object) -> None:
    import torch

    facts |= {
        "fingerprint": fingerprint,
        "sources": source_digest(sources),
        "torch": torch.__version__,
    }
    target.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")


def _torch_paths() -> tuple[Path, Path]:
    import torch

    root = Path(torch.__file__).parent
    return root / "include", root / "lib"


def build_cpu(
    folder: Path,
    work: Path,
    more_flags: Sequence[str] = (),  # for the compiler and the linker
    more_sources: Sequence[Path] = (),
) -> Path:
    """Builds `folder/_C.so` unless it is up to date; returns its path."""
    return _build_for_host(folder / "_C.so", work, [*cpu_sources(), *more_sources], more_flags)


def build_host_shim(
    folder: Path,
    work: Path,
    more_flags: Sequence[str] = (),  # for the compiler and the linker
    more_sources: Sequence[Path] = (),
) -> Path:
    """Builds `folder/_C_host_shim.so`: the CUDA kernels as host code, for tests alone.

    Its operators are those of `segdeform` in the namespace `segdeform_host_shim`, for CPU tensors.
    csrc/cuda/launch.h says how one source serves both. Leaves alone what is up to date.
    """
    sources = [SOURCES / "ops.cpp", *cuda_sources(), *more_sources]
    names = ["-DSEGDEFORM_HOST_SHIM", "-DSEGDEFORM_LIBRARY=segdeform_host_shim"]
    # Jumps between stacks are what the fortified longjmp refuses. Most of the time is compiling.
    flags = [*names, "-U_FORTIFY_SOURCE", "-O1", *more_flags]
    return _build_for_host(folder / "_C_host_shim.so", work, sources, flags)


def _build_for_host(
    target: Path, work: Path, sources: Sequence[Path], more_flags: Sequence[str]
) -> Path:
    include, lib = _torch_paths()
    cxx = cxx_compiler()
    compile_command: Command = [cxx, *CPU_FLAGS, *more_flags, "-isystem", include, "-x", "c++"]
    fingerprint = _fingerprint(sources, compile_command)
    if _up_to_date(target, fingerprint):
        return target
    objects = [work / f"{source.stem}.o" for source in sources]
    _compile_all(
        [
            [*compile_command, "-c", source, "-o", out]
            for source, out in zip(sources, objects, strict=True)
        ]
    )
    link: Command = [cxx, "-shared", *more_flags, *objects, f"-L{lib}", "-ltorch_cpu"]
    _link(link, target)
    _finish(target, fingerprint, sources, compiler=cxx)
    return target


def build_cuda(folder: Path, work: Path, nvcc: Path) -> Path:
    """Builds `folder/_C_cuda.so` unless it is up to date; returns its path."""
    import torch

    include, lib = _torch_paths()
    target = folder / "_C_cuda.so"
    sources = cuda_sources()
    architectures = cuda_architectures()
    compile_command: Command = [nvcc, *nvcc_flags(architectures), "-isystem", include]
    fingerprint = _fingerprint(sources, compile_command)
    if _up_to_date(target, fingerprint):
        return target
    objects = [work / f"{source.stem}.cu.o" for source in sources]
    _compile_all(
        [
            [*compile_command, "-c", source, "-o", out]
            for source, out in zip(sources, objects, strict=True)
        ]
    )
    link: list[str | Path] = [
        nvcc,
        "-shared",
        "-cudart=static",
        *objects,
        f"-L{lib}",
        "-ltorch_cpu",
        "-ltorch_cuda",
    ]
    if (pip_lib := nvcc.parent.parent / "lib").exists():  # pip's nvcc does not look there itself
        link.append(f"-L{pip_lib}")
    _link(link, target)
    _finish(
        target,
        fingerprint,
        sources,
        cuda=torch.version.cuda,
        nvcc=nvcc_version(nvcc),
        architectures=[a.removesuffix("+PTX") for a in architectures],
    )
    return target


def build(folder: Path = PACKAGE) -> list[Path]:
    """Builds what the environment asks for into `folder`; returns the libraries.

    Raises:
        BuildError: if a compiler is missing or fails, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as work:
            libraries = [build_cpu(folder, Path(work))]
            if nvcc := cuda_compiler():
                libraries.append(build_cuda(folder, Path(work), nvcc))
    except OSError as error:
        raise BuildError(f"cannot write the libraries: {error}") from error
    return libraries


class BuildOps(build_ext):
    """Builds the libraries for a wheel or an editable install; without torch, builds nothing."""

    def run(self) -> None:
        folder = PACKAGE if self.inplace else Path(self.build_lib).resolve() / "cuda_ops"
        try:
            import torch  # noqa: F401
        except ModuleNotFoundError:
            print(f"segdeform: no torch while building, so no native kernels; add them: {HOW_TO}")
            return
        try:
            build(folder)
        except BuildError as error:
            if os.environ.get("SEGDEFORM_CUDA") == "1":
                raise
            print(f"segdeform: native kernels were not built: {error}\nadd them later: {HOW_TO}")

    def get_outputs(self) -> list[str]:
        folder = PACKAGE if self.inplace else Path(self.build_lib) / "cuda_ops"
        return [str(p) for p in sorted(folder.glob("_C*")) if p.suffix in (".so", ".json")]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


def main() -> int:
    """Builds beside the sources and says what was built."""
    try:
        libraries = build()
    except BuildError as error:
        print(f"cuda_ops.build: {error}", file=sys.stderr)
        return 1
    for library in libraries:
        print(library)
    if len(libraries) == 1:
        print("CPU kernels only; SEGDEFORM_CUDA=1 asks for the CUDA half and says what it lacks")
    return 0


if __name__ == "__main__":
    sys.exit(main())
