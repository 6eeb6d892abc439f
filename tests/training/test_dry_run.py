"""A dry run tells what a training would take, and leaves every folder as it was."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from segdeform.cli import main
from segdeform.config.loading import dump_config
from segdeform.errors import InterruptedByUserError, UsageError
from segdeform.training import dry_run as rehearsals
from segdeform.training.dry_run import dry_run, lines
from segdeform.training.loop import train
from segdeform.training.pace import Pace
from tests.training.conftest import ReporterThat, tiny_config


def _snapshot(root: Path) -> dict[str, tuple[str, int]]:
    return {
        str(path.relative_to(root)): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
            path.stat().st_mtime_ns,
        )
        for path in [root, *root.rglob("*")]
    }


def test_writes_nothing_and_later_weights_are_the_same(shapes: Path, tmp_path: Path) -> None:
    place = tmp_path / "runs"
    place.mkdir()
    config, hears = tiny_config(), {"workers": 0, "reporter": ReporterThat()}
    data, empty = _snapshot(shapes), _snapshot(place)
    told = dry_run(config, shapes, place / "deep" / "run", **hears)  # type: ignore[arg-type]
    assert (_snapshot(shapes), _snapshot(place)) == (data, empty)
    assert (told["first_step"], told["steps"], told["data"]["train"]["pictures"]) == (0, 4, 4)
    assert len(told["network"]["deformable_layers"]) == 2
    assert all(len(line) <= 100 for line in lines(told))

    for run in ("one", "two"):
        if run == "two":
            dry_run(config, shapes, place / run, **hears)  # type: ignore[arg-type]
        train(config, shapes, place / run, **hears)  # type: ignore[arg-type]
    one, two = (place / run / "model" / "model.safetensors" for run in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    written = (place / "one" / "checkpoints" / "step-00000004").glob("*.safetensors")
    size = sum(path.stat().st_size for path in written)
    assert told["disk"]["checkpoint_bytes"] == pytest.approx(size, rel=0.03)  # and their headers

    before = _snapshot(place)
    with pytest.raises(UsageError, match="already holds a run"):
        dry_run(config, shapes, place / "one", **hears)  # type: ignore[arg-type]
    dry_run(config, shapes, place / "one", overwrite=True, **hears)  # type: ignore[arg-type]
    told = dry_run(config, shapes, place / "one", resume=True, **hears)  # type: ignore[arg-type]
    assert told["finished"]
    assert _snapshot(place) == before


def test_too_little_room_is_refused_as_the_run_would_be(
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By the command, whose exit code scripts look at; an interruption is told as what it is."""
    (tmp_path / "c.yaml").write_text(dump_config(tiny_config(steps=2)))
    words = ["train", str(tmp_path / "c.yaml"), "--data", str(shapes), "--dry-run"]
    words += ["--output", str(tmp_path / "run"), "--workers", "0", "--device", "cpu"]
    pace = Pace(0.5, 2.0, 0.1, 3.0)
    monkeypatch.setattr(rehearsals, "try_out", lambda *arguments: pace)
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["time"]["seconds"] == pytest.approx(2 * 0.5 + 2.0 + 0.1)
    usage = SimpleNamespace(free=told["disk"]["needed_bytes"] - 1)
    monkeypatch.setattr(rehearsals.shutil, "disk_usage", lambda place: usage)
    assert main(words) == 7
    out, err = capsys.readouterr()
    assert "needed" in out and "without --dry-run it starts" not in out
    assert main([*words, "--profile"]) == 2 and "give one of them" in capsys.readouterr().err
    assert err.strip().splitlines()[-1].endswith("or make room")

    def interrupted(*arguments: object) -> Pace:
        raise InterruptedByUserError("saved at step 3: continue with --resume")

    monkeypatch.setattr(rehearsals, "try_out", interrupted)
    assert main(words) == 130
    assert "nothing is to be resumed" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
