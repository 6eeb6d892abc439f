"""Building, loading and falling back: what a user's machine may lack."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cuda_ops
from cuda_ops import build, library

PACKAGE = Path(cuda_ops.__file__).parent

native = pytest.mark.skipif(
    os.environ.get("SEGDEFORM_OPS") == "torchvision", reason="the native library is set aside"
)


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        cwd=environment.get("PWD"),
    )


@native
@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")
@pytest.mark.parametrize("name", ["_C.so", "_C_cuda.so"])
def test_library_uses_the_stable_abi_alone(name: str) -> None:
    path = PACKAGE / name
    if not path.exists() and name == "_C_cuda.so" and os.environ.get("SEGDEFORM_CUDA") != "1":
        pytest.skip("the CUDA half was not asked for (SEGDEFORM_CUDA=1)")
    symbols = subprocess.run(
        ["nm", "-D", "-u", "-C", path], capture_output=True, text=True, check=True
    ).stdout
    unstable = [s for s in symbols.splitlines() if any(n in s for n in (" at::", " c10::", " Py"))]
    assert "aoti_torch" in symbols and not unstable


@native
@pytest.mark.skipif(
    os.environ.get("SEGDEFORM_CUDA") != "1", reason="the CUDA half was not asked for"
)
def test_cuda_half_loads_without_a_gpu() -> None:
    assert library.cuda_library.loaded, library.cuda_library.reason
    for operator in ("sample_points", "deform_conv2d", "deform_conv2d_backward"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"segdeform::{operator}", "CUDA")
    assert cuda_ops.backend("cuda") == "native"
    facts = library.cuda_library.build
    image = (PACKAGE / "_C_cuda.so").read_bytes()
    for architecture in facts["architectures"]:
        assert f"sm_{architecture}".encode() in image


@pytest.mark.cuda
def test_sample_points_on_a_gpu_agrees_with_the_reference() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    image = torch.randn(7, 9)
    points = torch.rand(500, 2) * torch.tensor([11.0, 13.0]) - 2
    y, x = points.T.reshape(2, 1, 1, 1, 1, -1)
    expected = cuda_ops.reference.bilinear_sample(image[None, None], y, x).flatten()
    ours = torch.ops.segdeform.sample_points(image.cuda(), points.cuda())
    torch.testing.assert_close(ours.cpu(), expected)


FALLBACK = """
import warnings, torch
warnings.simplefilter("always")
with warnings.catch_warnings(record=True) as caught:
    import cuda_ops
    from cuda_ops import reference
    torch.manual_seed(0)
    x, w = torch.randn(1, 4, 6, 5, requires_grad=True), torch.randn(3, 4, 3, 3)
    offset, mask = torch.randn(1, 18, 6, 5), torch.rand(1, 9, 6, 5)
    offset[0, 3, 2, 2] = float("nan")
    for _ in range(2):
        y = cuda_ops.deform_conv2d(x, offset, w, padding=1, mask=mask)
torch.testing.assert_close(
    y, reference.deform_conv2d(x, offset, w, padding=1, mask=mask), equal_nan=True)
y.nansum().backward()
print(cuda_ops.backend("cpu"), [str(c.message) for c in caught if "deform" in str(c.message)])
"""


def test_torchvision_serves_on_request_without_a_warning() -> None:
    done = run_python(FALLBACK, SEGDEFORM_OPS="torchvision")
    assert done.stdout.strip() == "torchvision []", done.stderr


def test_torchvision_serves_where_the_library_is_missing(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "cuda_ops", ignore=shutil.ignore_patterns("*.so", "csrc"))
    done = run_python(FALLBACK, PYTHONPATH=str(tmp_path), PWD=str(tmp_path), SEGDEFORM_OPS="")
    assert done.stdout.startswith("torchvision ["), done.stderr
    assert done.stdout.count("python -P -m cuda_ops.build") == 1  # one warning, with the mend


def test_a_damaged_library_does_not_stop_a_user(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "cuda_ops", ignore=shutil.ignore_patterns("*.so", "csrc"))
    (tmp_path / "cuda_ops" / "_C.so").write_bytes(b"\x7fELF not quite")
    done = run_python(FALLBACK, PYTHONPATH=str(tmp_path), PWD=str(tmp_path), SEGDEFORM_OPS="")
    assert done.stdout.startswith("torchvision ["), done.stderr
    assert "does not load" in done.stdout


def test_an_unknown_backend_is_refused() -> None:
    done = run_python("import cuda_ops", SEGDEFORM_OPS="fastest")
    assert "SEGDEFORM_OPS is 'fastest'" in done.stderr


def test_rule_for_the_cuda_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.version, "cuda", "77.3")
    monkeypatch.setenv("SEGDEFORM_CUDA", "0")
    assert build.cuda_compiler() is None
    monkeypatch.setenv("SEGDEFORM_CUDA", "")
    assert build.cuda_compiler() is None  # none of that major version
    monkeypatch.setenv("SEGDEFORM_CUDA", "1")
    with pytest.raises(build.BuildError, match=r'pip install "nvidia-cuda-nvcc==77\.3\.\*"'):
        build.cuda_compiler()
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 77.1, V77.1.99'\n")
    nvcc.chmod(0o755)
    monkeypatch.setattr(build, "USUAL_TOOLKIT", tmp_path)
    assert build.cuda_compiler() == nvcc
    monkeypatch.setattr(build, "USUAL_TOOLKIT", tmp_path / "nothing")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert build.cuda_compiler() == nvcc
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(build.BuildError, match="without CUDA"):
        build.cuda_compiler()
    monkeypatch.setenv("SEGDEFORM_CUDA", "yes")
    with pytest.raises(build.BuildError, match="'yes'"):
        build.cuda_compiler()


def test_architectures_and_ptx(monkeypatch: pytest.MonkeyPatch) -> None:
    def code(text: str) -> list[str]:
        monkeypatch.setenv("SEGDEFORM_CUDA_ARCHS", text)
        flags = build.nvcc_flags(build.cuda_architectures())
        return [f.split(",code=")[1] for f in flags if f.startswith("-gencode")]

    assert code("80;9.0") == ["sm_80", "sm_90", "compute_90"]
    assert code("80 86 120") == ["sm_80", "sm_86", "sm_120", "compute_120"]
    assert code("80;86;89;90;100;120+PTX")[-2:] == ["sm_120", "compute_120"]
    assert code("80+PTX, 90") == ["sm_80", "sm_90", "compute_80", "compute_90"]
    with pytest.raises(build.BuildError, match="'hopper'"):
        code("hopper")


def test_a_missing_cxx_compiler_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(build.BuildError, match="apt-get install g"):
        build.cxx_compiler()


def test_operators_are_defined_by_their_name_also_with_the_oldest_torch(tmp_path: Path) -> None:
    # torch 2.10's macro takes its first argument as text, newer ones expand it before.
    header = tmp_path / "torch" / "csrc" / "stable" / "library.h"
    header.parent.mkdir(parents=True)
    header.write_text("#define STABLE_TORCH_LIBRARY(ns, m) DEFINED_IN(#ns)\n")
    command = [build.cxx_compiler(), "-E", "-P", "-isystem", tmp_path, build.SOURCES / "ops.cpp"]
    for flags, name in (([], "segdeform"), (["-DSEGDEFORM_LIBRARY=other"], "other")):
        done = subprocess.run([*command, *flags], capture_output=True, text=True, check=True)
        assert f'DEFINED_IN("{name}")' in done.stdout


def test_an_up_to_date_library_is_not_built_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def compile_nothing(jobs: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(build, "_compile_all", compile_nothing)
    assert build.build_cpu(PACKAGE, tmp_path) == PACKAGE / "_C.so"
    with pytest.raises(AssertionError, match="compiled again"):
        build.build_cpu(tmp_path, tmp_path)


@native
def test_a_library_says_which_sources_it_was_built_from(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    noted = library.cpu_library.build["sources"]
    assert noted == build.source_digest(build.cpu_sources()) != build.source_digest([])
    copy = tmp_path / "csrc"
    shutil.copytree(build.SOURCES, copy)
    monkeypatch.setattr(build, "SOURCES", copy)
    assert build.source_digest(build.cpu_sources()) == noted
    cuda = build.source_digest(build.cuda_sources())
    change(copy / "cuda" / "launch.h")
    assert build.source_digest(build.cpu_sources()) == noted
    assert build.source_digest(build.cuda_sources()) != cuda
    change(copy / "geometry.h")
    assert build.source_digest(build.cpu_sources()) != noted


def change(path: Path) -> None:
    path.write_text(path.read_text() + "// changed\n")


WITHOUT_TORCH = """
import importlib.util, sys
sys.modules["torch"] = None
spec = importlib.util.spec_from_file_location("cuda_ops.build", sys.argv[1])
module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
from setuptools import Distribution, Extension
extension = Extension("cuda_ops._C", ["ops.cpp"])
command = module.BuildOps(Distribution({"ext_modules": [extension]}))
command.build_lib = sys.argv[2]
command.finalize_options(); command.run()
print(command.get_outputs())
"""


def test_a_build_without_torch_succeeds_and_says_how_to_go_on(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(PACKAGE / "build.py"), str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "python -P -m cuda_ops.build" in done.stdout and done.stdout.strip().endswith("[]")
