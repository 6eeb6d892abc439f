"""The steps of a check: each starts a process, and judges how it ended and what it printed."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpu.session import ROOT, Result, Session, last_line

PROBE = Path(__file__).with_name("probe.py")


def check_library(session: Session) -> Result:
    """Loads the library that is there, or builds one for this GPU."""
    probe = [sys.executable, PROBE]
    result, text = session.run("library", probe, 60)
    result.data = halves_of(text)
    why = result.detail
    if result.status == "passed":
        if not any(half["other_sources"] for half in result.data.values()):
            return result
        why = "built from other sources than these"
    build = [sys.executable, "-P", "-m", "cuda_ops.build"]
    built, _ = session.run("library", build, 240, SEGDEFORM_CUDA="1")
    if built.status != "passed":
        if result.status == "passed":  # what there is serves, and the report says what it is
            result.detail = f"{why}, and not built anew: {built.detail}"
            return result
        built.detail, built.data = f"{why}; not built: {built.detail}", result.data
        return built
    result, text = session.run("library", probe, 60)
    result.data = halves_of(text)
    result.detail = f"built in {built.seconds:.0f} s, since {why}; {result.detail}".rstrip("; ")
    return result


def halves_of(text: str) -> dict[str, Any]:
    """Finds what probe.py prints about the two libraries, among torch's warnings."""
    line = next((line for line in text.splitlines() if line.startswith('{"_C')), "{}")
    found: dict[str, Any] = json.loads(line)
    return found


def check_parity(session: Session) -> Result:
    """Compares the kernels with the definition in float64."""
    rows = session.work / "parity.json"
    command = [sys.executable, ROOT / "scripts" / "parity.py", "--json", rows]
    result, text = session.run("parity", command, 90)
    result.detail = last_line(text) if result.status != "timed out" else result.detail
    result.data = json.loads(rows.read_text()) if rows.exists() else None
    return result


def cuda_test_files() -> list[Path]:
    """Lists the test files that have tests for a GPU; the others may need what is not there."""
    folder = ROOT / "tests" / "cuda_ops"
    return [p for p in sorted(folder.glob("test_*.py")) if "mark.cuda" in p.read_text()]


def check_tests(session: Session) -> Result:
    """Runs the tests that need a GPU."""
    if find_spec("pytest") is None:
        return Result("tests", "skipped", "pytest is not installed")
    # Without the project's strict options: an older pytest may not know all settings.
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider",
               "-o", "addopts=-ra", *cuda_test_files()]  # fmt: skip
    result, text = session.run("tests", command, 200)
    if result.status == "passed" and not re.search(r"\b[1-9]\d* passed", last_line(text)):
        result.status = "failed"
    if result.status != "timed out":
        result.detail = last_line(text)
    return result


def check_benchmark(session: Session) -> Result:
    """Measures the speed beside cuDNN and torchvision."""
    rows, table = session.work / "benchmark.json", session.work / "benchmark.md"
    command = [sys.executable, ROOT / "scripts" / "benchmark_cuda.py", "--seconds", "80",
               "--json", rows, "--markdown", table]  # fmt: skip
    result, _ = session.run("benchmark", command, 120)
    result.data = json.loads(rows.read_text()) if rows.exists() else None
    if table.exists():
        session.tables.append(table.read_text())
    return result


def sanitizer() -> str | None:
    """Returns NVIDIA's checker of device memory, if it is installed."""
    folders = [os.environ.get("PATH", "")]
    if home := os.environ.get("CUDA_HOME"):
        folders.append(str(Path(home) / "bin"))
    folders.append("/usr/local/cuda/bin")
    return shutil.which("compute-sanitizer", path=os.pathsep.join(folders))


def check_with(tool: str) -> Callable[[Session], Result]:
    """Makes the step that runs the small comparisons under a tool of compute-sanitizer."""

    def check(session: Session) -> Result:
        program = sanitizer()
        if program is None:
            return Result(tool, "skipped", "compute-sanitizer is not installed")
        command = [program, "--tool", tool, "--error-exitcode", "97",
                   "--kernel-regex", "kns=segdeform",
                   sys.executable, ROOT / "scripts" / "parity.py", "--small"]  # fmt: skip
        # Without torch's pools each tensor is an allocation of its own, whose ends are watched.
        result, text = session.run(tool, command, 75, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
        if "Device not supported" in text:
            return Result(tool, "skipped", "compute-sanitizer does not support this device",
                          result.seconds)  # fmt: skip
        if summary := re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", text):
            result.detail = summary[-1]
        elif result.status == "passed":
            result.status, result.detail = "failed", "compute-sanitizer wrote no summary"
        return result

    return check


def check_step(session: Session) -> Result:
    """Measures a training step of DeepLabV3+ with deformable layers against one without."""
    rows = session.work / "step.json"
    command = [sys.executable, ROOT / "scripts" / "benchmark_step.py", "voc", "--layers", "0", "3",
               "--device", "cuda", "--repeats", "10", "--json", rows]  # fmt: skip
    result, text = session.run("training step", command, 90)
    if result.status == "failed" and (lacking := re.search(r"No module named .*", text)):
        return Result(result.name, "skipped", lacking.group(0), result.seconds)
    if rows.exists():
        result.data = json.loads(rows.read_text())
        result.detail = last_line(text)
    return result


STEPS: dict[str, Callable[[Session], Result]] = {
    "library": check_library,
    "parity": check_parity,
    "tests": check_tests,
    "benchmark": check_benchmark,
    "memcheck": check_with("memcheck"),
    "racecheck": check_with("racecheck"),
    "step": check_step,
}
