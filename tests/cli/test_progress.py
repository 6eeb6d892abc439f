"""How far a command is, told to a stderr that is a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from segdeform.cli import progress
from segdeform.cli.progress import progress_bars
from tests.cli.conftest import Command


class Clock:
    """Stands still until it is told otherwise."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_lines_come_now_and_then_and_say_what_is_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    with progress_bars() as show:
        for done in range(1, 61):
            show("evaluating", done, 500)
            clock.now += 0.5
        show("unpacking", 1, 10**9)
        clock.now += 11
        show("unpacking", 5 * 10**8, 10**9)
    assert capsys.readouterr().err.splitlines() == [
        "evaluating: 21/500, 0:03:48 left",  # 10 s for 21: 228 s for 479
        "evaluating: 41/500, 0:03:44 left",
        "unpacking: 50%, 0:00:11 left",
    ]


@pytest.mark.parametrize("name", ["eval", "predict", "explain", "check"])
def test_commands_tell_a_log_file_how_far_they_are(
    command: Command,
    run: Path,
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    monkeypatch.setattr(progress, "_SECONDS", 0.0)
    words: dict[str, tuple[object, ...]] = {
        "eval": (run, "--data", shapes, "--threads", 1),
        "predict": (run, shapes / "val" / "images", "--output", tmp_path / "p"),
        "explain": (run, "--data", shapes, "--output", tmp_path / "e"),
        "check": (shapes,),
    }
    step = {"eval": "evaluating", "predict": "predicting", "explain": "measuring"}
    ended = command(name, *words[name])
    assert ended.code == 0
    total = 8 if name == "check" else 2
    lines = [line for line in ended.err.splitlines() if line.startswith(step.get(name, "checking"))]
    assert lines[-1] == f"{step.get(name, 'checking')}: {total}/{total}, 0:00:00 left"
