"""Runs the steps of a check as processes with time limits, and writes the report."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FAREWELL_SECONDS = 5  # for a step whose time is over to say what it found


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


def run_step(name: str, step: Callable[[Session], Result], session: Session) -> Result:
    """Runs a step unless there is no library or no time left for it."""
    library = next((r for r in session.results if r.name == "library"), None)
    if library is not None and library.status != "passed":
        return Result(name, "skipped", "there is no CUDA library")
    if session.deadline - time.monotonic() < 10:
        return Result(name, "timed out", "no time was left to start it")
    return step(session)
