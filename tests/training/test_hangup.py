"""A training whose terminal goes away, as when a connection breaks."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from segdeform.config.loading import dump_config
from segdeform.training.checkpoint import newest
from tests.training.conftest import tiny_config


def _own_terminal() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it would be ignored
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.mark.slow
def test_a_lost_terminal_saves(shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(dump_config(tiny_config(steps=100_000)))
    words = [sys.executable, "-m", "segdeform", "train", str(tmp_path / "config.yaml")]
    words += ["--data", str(shapes), "--output", str(tmp_path / "run"), "--workers", "0"]
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    child = subprocess.Popen(
        words, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, preexec_fn=_own_terminal
    )
    os.close(theirs)
    shown = b""
    while b"loss" not in shown:  # the bar of a step
        shown += os.read(ours, 10_000)
    os.close(ours)
    assert child.wait(100) == 75
    found = newest(tmp_path / "run", warn=pytest.fail)
    assert found is not None and found.step > 0
