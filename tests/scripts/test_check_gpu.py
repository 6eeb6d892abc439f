"""The check for a machine with a GPU, as far as a machine without one can run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import benchmark_cuda as benchmark
import check_gpu
import cuda_code
import pytest
import torch
from gpu import steps
from gpu.session import Result, Session, passed, run_step
from torch import Tensor

import cuda_ops
from cuda_ops import library, parity
from tests.cuda_ops.machine_code import cuobjdump

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"


def test_without_a_gpu_it_says_so_in_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", SCRIPTS / "check_gpu.sh", "--output", tmp_path / "report"],
        capture_output=True,
        text=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHON": sys.executable},
    )
    assert done.returncode == 2 and not done.stdout
    assert done.stderr == "check_gpu: torch sees no CUDA device here; nothing was checked\n"
    assert not (tmp_path / "report").exists()


# ---- nothing but torch is needed ----

BLOCK = """
import sys
class Absent:
    names = {"albumentations", "cityscapesscripts", "hypothesis", "onnx", "onnxruntime", "pydantic",
             "rich", "segdeform", "tensorboard", "torchvision", "typer", "yaml"}
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""


def with_torch_alone(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs Python as where segdeform's needs are not installed."""
    (folder / "sitecustomize.py").write_text(BLOCK)
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "SEGDEFORM_OPS": ""},
    )


@pytest.mark.skipif(not library.cpu_library.loaded, reason="the native library is set aside")
def test_parity_runs_with_torch_alone(tmp_path: Path) -> None:
    rows = tmp_path / "rows.json"
    command = (SCRIPTS / "parity.py", "--device", "cpu", "--small", "--json", rows)
    done = with_torch_alone(tmp_path, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    operators = {row["operator"] for row in json.loads(rows.read_text())}
    assert operators == set(library.FALLBACKS)


@pytest.mark.parametrize("name", ["check_gpu", "benchmark_cuda"])
def test_programs_start_with_torch_alone(name: str, tmp_path: Path) -> None:
    done = with_torch_alone(tmp_path, SCRIPTS / f"{name}.py", "--help")
    assert done.returncode == 0, done.stderr


def test_gpu_tests_are_collected_with_torch_and_pytest_alone(tmp_path: Path) -> None:
    files = steps.cuda_test_files()
    assert files
    collect = ("-m", "pytest", "-q", "-m", "cuda", "--collect-only", "-p", "no:hypothesispytest")
    done = with_torch_alone(tmp_path, *collect, "-o", "addopts=", *files)
    assert done.returncode == 0, done.stdout + done.stderr
    for file in files:
        assert f"{file.name}::" in done.stdout
    done = with_torch_alone(tmp_path, *collect, "-o", "addopts=", "tests/cuda_ops")
    assert done.returncode == 0, done.stdout + done.stderr


# ---- the parts of the program ----


def test_a_wrong_kernel_fails_the_parity(monkeypatch: pytest.MonkeyPatch) -> None:
    case = parity.CASES[0]
    assert parity.compare(case, torch.float64, "cpu").difference < 1e-12
    right = cuda_ops.deform_conv2d

    def wrong(*operands: Tensor, **more: Any) -> Tensor:
        return right(*operands, **more) * (1 + 1e-7)

    monkeypatch.setitem(parity.OPERATORS, "deform_conv2d", wrong)
    outcome = parity.compare(case, torch.float64, "cpu")
    assert not outcome.good and outcome.difference == pytest.approx(1e-7, rel=1e-3)
    monkeypatch.setitem(parity.OPERATORS, "deform_conv2d", lambda **t: right(**t) * float("nan"))
    assert parity.compare(case, torch.float64, "cpu").difference == float("inf")


def test_a_failed_step_stops_no_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails(session: Any) -> Any:
        return session.run("parity", [sys.executable, "-c", "print('a | b'); exit(3)"], 60)[0]

    def works(session: Any) -> Any:
        session.tables.append("| speed |\n")
        return session.run("tests", [sys.executable, "-c", "print('fine')"], 60)[0]

    three = {"parity": fails, "tests": works, "memcheck": lambda s: Result("m", "skipped")}
    monkeypatch.setattr(check_gpu, "STEPS", three)
    monkeypatch.setattr(check_gpu, "machine", lambda: {"device": "a GPU", "torch": "2.x"})
    monkeypatch.setattr(sys, "argv", ["check_gpu", "--output", str(tmp_path)])
    assert check_gpu.main() == 8
    report = json.loads((tmp_path / "check.json").read_text())
    assert [s["status"] for s in report["steps"]] == ["failed", "passed", "skipped"]
    assert not report["passed"] and report["facts"]["device"] == "a GPU"
    page = (tmp_path / "check.md").read_text()
    assert "FAILED" in page and "exit code 3: a / b" in page and "| speed |" in page
    assert "fine" in (tmp_path / "check.log").read_text()

    monkeypatch.setattr(sys, "argv", ["check_gpu", "--output", str(tmp_path), "--only", "tests"])
    assert check_gpu.main() == 0


def ended(process: str, seconds: float = 30) -> bool:
    """Whether a process is gone or waits for its parent to notice, after a while at the latest."""
    state = Path(f"/proc/{process}/stat")
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if state.read_text().rpartition(")")[2].split()[0] in ("Z", "X"):
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


def test_a_step_that_hangs_is_killed_with_what_it_started(tmp_path: Path) -> None:
    session = Session(tmp_path, tmp_path, time.monotonic() + 600, {"device": "a GPU"})
    child = tmp_path / "child"
    result, _ = session.run("hangs", ["bash", "-c", f"sleep 600 & echo $! >{child}; wait"], 1)
    assert result.status == "timed out" and not passed([result])
    assert ended(child.read_text().strip())


def test_a_step_whose_time_is_over_says_what_it_found(tmp_path: Path) -> None:
    session = Session(tmp_path, tmp_path, time.monotonic() + 600, {"device": "a GPU"})
    code = "trap 'echo 3 failed, 20 passed; exit 2' INT; sleep 600 & wait"
    result, text = session.run("tests", ["bash", "-c", code], 3)
    assert result.status == "timed out" and result.detail == "after 3 s: 3 failed, 20 passed"
    assert text == "3 failed, 20 passed\n"
    assert (tmp_path / "check.log").read_text().endswith(f"{code}\n{text}")


ENDED_FROM_OUTSIDE = """
import sys, pathlib
sys.path.insert(0, sys.argv.pop(1))
import check_gpu
def hangs(session):
    command = ["bash", "-c", f"sleep 600 & echo $! >{session.output}/child; echo begun; wait"]
    return session.run("parity", command, 500)[0]
check_gpu.machine = lambda: {"device": "a GPU"}
check_gpu.STEPS = {"library": lambda s: check_gpu.Result("library"), "parity": hangs,
                   "tests": lambda s: check_gpu.Result("tests")}
sys.exit(check_gpu.main())
"""


def test_ended_from_outside_it_ends_the_step_and_says_so(tmp_path: Path) -> None:
    program = [sys.executable, "-c", ENDED_FROM_OUTSIDE, str(SCRIPTS), "--output", str(tmp_path),
               "--only", "library", "parity"]  # fmt: skip
    process = subprocess.Popen(program, stdout=subprocess.PIPE, text=True)
    log, child = tmp_path / "check.log", tmp_path / "child"
    while process.poll() is None and not (log.exists() and "\nbegun" in log.read_text()):
        time.sleep(0.05)
    assert '"running"' in (tmp_path / "check.json").read_text()  # were it killed outright
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 8 and "parity: interrupted" in output
    assert ended(child.read_text().strip())
    report = json.loads((tmp_path / "check.json").read_text())
    assert [s["status"] for s in report["steps"]] == ["passed", "interrupted"]
    assert not report["passed"] and "FAILED" in (tmp_path / "check.md").read_text()


class Answers:
    """A session whose processes end as told, in turn."""

    def __init__(self, *answers: tuple[str, str]) -> None:
        self.answers = list(answers)
        self.commands: list[list[str]] = []

    def run(self, name: str, command: Any, limit: float, **environment: str) -> tuple[Any, str]:
        self.commands.append([str(c) for c in command])
        status, text = self.answers.pop(0)
        return Result(name, status, "no GPU code" if status == "failed" else ""), text


def test_a_library_that_does_not_serve_is_built_anew() -> None:
    halves = '{"_C_cuda.so": {"loaded": true, "other_sources": false}}\n'
    good = Answers(("passed", halves))
    assert steps.check_library(good).data["_C_cuda.so"]["loaded"] and len(good.commands) == 1
    mended = Answers(("failed", halves), ("passed", "_C_cuda.so"), ("passed", halves))
    result = steps.check_library(mended)
    assert result.status == "passed" and "built in 0 s, since no GPU code" in result.detail
    assert mended.commands[1][1:] == ["-P", "-m", "cuda_ops.build"]
    hopeless = Answers(("failed", "Traceback"), ("failed", "no compiler"))
    assert steps.check_library(hopeless).status == "failed" and len(hopeless.commands) == 2
    stale = "a warning of torch's\n" + halves.replace("false", "true")
    renewed = Answers(("passed", stale), ("passed", "_C_cuda.so"), ("passed", halves))
    result = steps.check_library(renewed)
    assert result.status == "passed" and "since built from other sources" in result.detail
    kept = Answers(("passed", stale), ("failed", "no compiler"))
    result = steps.check_library(kept)
    assert result.status == "passed" and result.data["_C_cuda.so"]["other_sources"]
    assert "built from other sources than these, and not built anew" in result.detail


def test_a_checker_of_memory_must_say_that_it_looked(monkeypatch: pytest.MonkeyPatch) -> None:
    step = steps.check_with("racecheck")
    monkeypatch.setattr(steps, "sanitizer", lambda: None)
    assert step(Answers()).status == "skipped"
    monkeypatch.setattr(steps, "sanitizer", lambda: "compute-sanitizer")
    summary = "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"
    looked = Answers(("passed", summary))
    assert step(looked).status == "passed" and "racecheck" in looked.commands[0]
    assert step(Answers(("passed", "32 of 32 passed\n"))).status == "failed"
    assert step(Answers(("failed", summary))).status == "failed"
    refused = ("failed", "========= Error: Device not supported\n")
    assert step(Answers(refused)).status == "skipped"


def test_without_time_or_library_no_step_starts(tmp_path: Path) -> None:
    session = Session(tmp_path, tmp_path, time.monotonic() - 1, {"device": "a GPU"})
    assert run_step("tests", pytest.fail, session).status == "timed out"
    session.results.append(Result("library", "failed"))
    assert run_step("tests", pytest.fail, session).status == "skipped"


def test_benchmark_compares_all_contestants(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(range(1, 10_000))
    called = []

    def timer(call: Any) -> float:
        called.append(call())
        return float(next(times))

    monkeypatch.setattr(benchmark, "device_time", timer)
    memory = {"extra_mib": 2.0, "workspace_mib": 1.0}
    monkeypatch.setattr(benchmark, "extra_memory", lambda call: dict(memory))
    row = benchmark.Row(2, 6, 4, (5, 6), "fp32", dilation=2)
    result = benchmark.measure(lambda backward: benchmark.conv_calls(row, backward, "cpu"), 0)
    ours, conv = result["forward"]["ours"], result["forward"]["conv"]
    assert ours["median_ms"] == conv["median_ms"] + 1  # timed in turn, 5 times, without time left
    assert ours["repeats"] == 5
    grads = [t for t in called if isinstance(t, tuple)]
    assert {len(t) for t in grads} == {2, 4}  # conv: image, weight; ours: offset and mask too
    lines = benchmark.conv_table([{"name": row.name} | result])
    assert len(lines) == 4 and all(line.count("|") == lines[1].count("|") for line in lines)
    rois = benchmark.measure(lambda backward: benchmark.roi_calls(backward, "cpu", 3), 0)
    assert len(benchmark.roi_table(rois)) == 5
    monkeypatch.setattr(benchmark, "device_time", lambda call: 0.5 if call() is not None else 0)
    can = benchmark.ceilings("cpu", mib=1, side=8)
    assert can == dict.fromkeys(benchmark.CEILINGS, 0) | {
        "copy TB/s": pytest.approx(2 * 2**20 / 0.5e-3 / 1e12),
        "bf16 TFLOP/s": pytest.approx(2 * 8**3 / 0.5e-3 / 1e12),
    }
    failed = benchmark.measure(lambda backward: {"ours": lambda: torch.ones(2) @ torch.ones(3)}, 0)
    assert "size" in failed["forward"]["error"]


def test_benchmark_sweeps_the_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "SEGDEFORM_CUDA_WORKSPACE"
    calls = {"ours": lambda: os.environ[name], "conv": pytest.fail}
    monkeypatch.setattr(benchmark, "conv_calls", lambda row, backward, device: calls)
    monkeypatch.setattr(benchmark, "extra_memory", lambda call: {})
    monkeypatch.setattr(benchmark, "device_time", lambda call: int(call()) / 2**20)
    row = benchmark.SWEPT[0]
    for before in (None, "12345"):
        if before:
            monkeypatch.setenv(name, before)
        found = benchmark.measure(lambda backward: benchmark.workspace_calls(row, backward), 0)
        assert os.environ.get(name) == before
    assert {k: v["median_ms"] for k, v in found["forward"].items()} == {
        "64": 64, "192": 192, "640": 640,
    }  # fmt: skip
    lines = benchmark.workspace_table([{"name": row.name} | found])
    assert len(lines) == 4 and all(line.count("|") == lines[0].count("|") for line in lines)
    assert lines[3].endswith("| forward+backward | 64.000 | 192.000 | 640.000 |")


# ---- what a library holds ----


needs_cuda_half = pytest.mark.skipif(
    not (ROOT / "cuda_ops" / "_C_cuda.so").exists(), reason="the CUDA half is not built"
)


@needs_cuda_half
@pytest.mark.skipif(cuobjdump() is None, reason="cuobjdump is not installed")
def test_gpu_code_is_what_cuobjdump_lists() -> None:
    half = ROOT / "cuda_ops" / "_C_cuda.so"
    program = str(cuobjdump())
    for kind, option, ending in (
        (cuda_code.MACHINE_CODE, "--list-elf", "cubin"),
        (cuda_code.PTX, "--list-ptx", "ptx"),
    ):
        listed = subprocess.run([program, option, half], capture_output=True, text=True).stdout
        theirs = [line.split(".")[-2] for line in listed.splitlines() if line.endswith(ending)]
        ours = [f"sm_{c.architecture}" for c in cuda_code.read_code(half) if c.kind == kind]
        assert theirs and sorted(ours) == sorted(theirs)


@needs_cuda_half
def test_missing_gpu_code_is_named(tmp_path: Path) -> None:
    half = ROOT / "cuda_ops" / "_C_cuda.so"
    found = cuda_code.read_code(half)
    newest = max(c.architecture for c in found if c.kind == cuda_code.PTX)
    assert cuda_code.missing(found, [newest, 35], [newest, 36]) == ["sm_35", "PTX of compute_36"]
    data = bytearray(half.read_bytes())
    begin, _ = next(cuda_code.containers(bytes(data)))
    data[begin] = 9
    damaged = tmp_path / "damaged.so"
    damaged.write_bytes(data)
    with pytest.raises(ValueError, match="unknown kind"):
        cuda_code.read_code(damaged)
