"""A dry run tells what a training would take, and leaves every folder as it was."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from segdeform.errors import UsageError
from segdeform.training.dry_run import dry_run, lines
from segdeform.training.loop import train
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
