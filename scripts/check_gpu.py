"""Checks the CUDA kernels on the GPU at hand and writes what it found as JSON and Markdown.

    bash scripts/check_gpu.sh [--output gpu-check] [--seconds 470] [--only tests benchmark]

Each step is a process of its own with a time limit; one that fails or hangs does not stop the
others. A library that cannot serve this GPU is built first. FOLDER/check.json and check.md are
written anew before and after every step, check.log holds what the steps print. Ended from outside
(Ctrl-C, `timeout`), the step at work ends too and the report says so. Needs torch alone: pytest,
torchvision, compute-sanitizer and segdeform's own needs are used where they are, and the report
says where they are not. Exit code: 0 all passed, 8 a step failed, 2 there is no GPU or no torch.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NO_GPU, PART_FAILED = 2, 8
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FAREWELL_SECONDS = 5  # for a step whose time is over to say what it found

# Fails unless this GPU runs every operator natively; prints the libraries' facts.
LIBRARY_PROBE = """
import json, sys, torch
from cuda_ops import library
try:
    from cuda_ops import build
    here = {"_C.so": build.cpu_sources(), "_C_cuda.so": build.cuda_sources()}
    here = {file: build.source_digest(sources) for file, sources in here.items()}
except ModuleNotFoundError:  # without setuptools nothing can be built anyway
    here = {}
halves = {h.file: {"loaded": h.loaded, "reason": h.reason, "build": h.build,
                   "other_sources": h.build.get("sources", here.get(h.file)) != here.get(h.file)
                                    and h.file in here}
          for h in (library.cpu_library, library.cuda_library)}
print(json.dumps(halves), flush=True)  # before what stderr gets at the end
lacking = [o for o in library.FALLBACKS if not library.has_kernel(o, "cuda")]
if lacking:
    sys.exit("no CUDA kernel of " + ", ".join(lacking) + ": " + library.cuda_library.reason)
image = torch.arange(12.0, device="cuda").reshape(3, 4)
value = torch.ops.segdeform.sample_points(image, torch.tensor([[1.5, 2.25]], device="cuda"))
sys.exit(0 if value.item() == 8.25 else f"the GPU computes {value.item()} instead of 8.25")
"""


@dataclass
class Result:
    """How a step ended."""

    name: str
    status: str = "passed"  # or failed, timed out, skipped, running, interrupted
    detail: str = ""
    seconds: float = 0
    data: Any = None


@dataclass
class Session:
    """What the steps share: where to write, until when to run, what happened so far."""

    output: Path
    work: Path
    deadline: float  # of time.monotonic()
    facts: dict[str, Any]
    results: list[Result] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)

    def run(
        self, name: str, command: Sequence[str | Path], limit: float, **environment: str
    ) -> tuple[Result, str]:
        """Runs a process and its children for `limit` seconds at most; returns what it printed."""
        began = time.monotonic()
        seconds = max(min(limit, self.deadline - began), 0)
        result = Result(name)
        paths = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep)
        with (self.output / "check.log").open("ab") as sink:
            sink.write(f"==> {name}: {' '.join(map(str, command))}\n".encode())
            sink.flush()
            start = sink.tell()
            process = None
            try:
                with endings_held():  # a process that is not known yet cannot be ended
                    process = subprocess.Popen(
                        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink,
                        start_new_session=True,
                        env=os.environ | {"PYTHONPATH": paths} | environment,
                    )  # fmt: skip
                if code := process.wait(seconds):
                    result.status, result.detail = "failed", f"exit code {code}"
            except subprocess.TimeoutExpired:
                result.status, result.detail = "timed out", f"after {seconds:.0f} s"
                say_farewell(process)
            finally:  # after Ctrl-C too; what a step started ends with it
                if process is not None:
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        text = (self.output / "check.log").read_bytes()[start:].decode(errors="replace")
        result.seconds = time.monotonic() - began
        if result.status != "passed":
            result.detail += f": {last_line(text)}"
        return result, text

    def add(self, result: Result) -> None:
        """Shows a result and writes the report with it."""
        self.results.append(result)
        line = f"{result.name}: {result.status}, {result.seconds:.0f} s"
        print(f"{line}  {result.detail}".rstrip(), flush=True)
        self.write()

    def write(self, running: str = "") -> None:
        """Writes the report, with the step that runs: all there is if this program is killed."""
        results = [*self.results, *([Result(running, "running")] if running else [])]
        report = {"facts": self.facts, "passed": passed(results)}
        report["steps"] = [asdict(r) for r in results]
        (self.output / "check.json").write_text(json.dumps(report, indent=1) + "\n")
        (self.output / "check.md").write_text(markdown(self.facts, results, self.tables))


@contextmanager
def endings_held() -> Iterator[None]:
    """Puts off Ctrl-C and the like until the block is done; children do not inherit that."""
    came: list[int] = []
    before = {s: signal.signal(s, lambda number, frame: came.append(number)) for s in ENDINGS}
    try:
        yield
    finally:
        for ending, handler in before.items():
            signal.signal(ending, handler)
    if came:
        raise KeyboardInterrupt


def say_farewell(process: subprocess.Popen[bytes]) -> None:
    """Interrupts a step as Ctrl-C does, and lets pytest and the like report so far."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(FAREWELL_SECONDS)


def last_line(text: str) -> str:
    """Returns the last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it printed nothing"


def passed(results: list[Result]) -> bool:
    """Says whether no step failed; a skipped one tells why and does not count."""
    return all(r.status in ("passed", "skipped") for r in results)


def markdown(facts: dict[str, Any], results: list[Result], tables: list[str]) -> str:
    """Formats the report."""
    verdict = "passed" if passed(results) else "FAILED"
    lines = [f"# CUDA kernels on {facts['device']}: {verdict}", ""]
    lines += [", ".join(f"{key}: {value}" for key, value in facts.items()), ""]
    lines += ["| step | result | seconds | |", "|---|---|---|---|"]
    for r in results:
        detail = r.detail.replace("|", "/")
        lines.append(f"| {r.name} | {r.status} | {r.seconds:.0f} | {detail} |")
    for table in tables:
        lines += ["", table.strip()]
    return "\n".join(lines) + "\n"


# ---- the steps ----


def check_library(session: Session) -> Result:
    """Loads the library that is there, or builds one for this GPU."""
    probe = [sys.executable, "-c", LIBRARY_PROBE]
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
    """Finds what LIBRARY_PROBE prints about the two libraries, among torch's warnings."""
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


def driver() -> str:
    """Returns the NVIDIA driver's version, or "unknown"."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else "unknown"


def machine() -> dict[str, Any] | None:
    """Describes the GPU and the software; None where torch sees no GPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory GiB": round(properties.total_memory / 2**30, 1),
        "driver": driver(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def main() -> int:
    """Runs the steps; returns the exit code that this module's text promises."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("gpu-check"))
    parser.add_argument("--seconds", type=float, default=470, help="for everything")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS), metavar="STEP")
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    if find_spec("torch") is None:
        print(f"check_gpu: {sys.executable} has no torch; nothing was checked", file=sys.stderr)
        return NO_GPU
    facts = machine()
    if facts is None:
        print("check_gpu: torch sees no CUDA device here; nothing was checked", file=sys.stderr)
        return NO_GPU
    output = options.output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    (output / "check.log").unlink(missing_ok=True)
    for ending in ENDINGS:  # the steps are to end, too
        signal.signal(ending, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as work:
        session = Session(output, Path(work), deadline, facts)
        for name in (name for name in STEPS if name in options.only):
            began = time.monotonic()
            session.write(running=name)
            try:
                session.add(run_step(name, STEPS[name], session))
            except KeyboardInterrupt:
                session.add(Result(name, "interrupted", "", time.monotonic() - began))
                break
    print(f"report: {output / 'check.md'}")
    return 0 if passed(session.results) else PART_FAILED


def run_step(name: str, step: Callable[[Session], Result], session: Session) -> Result:
    """Runs a step unless there is no library or no time left for it."""
    library = next((r for r in session.results if r.name == "library"), None)
    if library is not None and library.status != "passed":
        return Result(name, "skipped", "there is no CUDA library")
    if session.deadline - time.monotonic() < 10:
        return Result(name, "timed out", "no time was left to start it")
    return step(session)


if __name__ == "__main__":
    sys.exit(main())
