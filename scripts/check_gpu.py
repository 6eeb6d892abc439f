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
import platform
import signal
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpu.session import ENDINGS, Result, Session, passed, run_step
from gpu.steps import STEPS

NO_GPU, PART_FAILED = 2, 8


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


if __name__ == "__main__":
    sys.exit(main())
