"""The comparison from end to end, tiny, and what it draws against what the operator reads."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import detection_table
import numpy as np
import pytest
import torch
from detection.average_precision import Found
from detection.comparison import markdown
from detection.detector import ARMS, Arm, build_detector
from detection.drawing import draw_detector, sampling_places
from detection.scenes import shapes_scenes
from detection.training import Recipe, score, train
from PIL import Image
from typer.testing import CliRunner

from cuda_ops import deform_roi_pool
from segdeform.errors import UsageError

SCRIPT = Path(__file__).parents[2] / "scripts" / "experiments" / "detection_table.py"
TINY = ["--steps", "3", "--batch", "2", "--train", "4", "--val", "2", "--size", "64"]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("table") / "out"
    command = [sys.executable, str(SCRIPT), "--output", str(output), *TINY, "--seeds", "2"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return output


def test_the_table_holds_every_run(first: Path) -> None:
    facts = json.loads((first / "table.json").read_text())
    assert [row["arm"] for row in facts["arms"]] == ["plain", "deformable"]
    for row in facts["arms"]:
        assert [run["seed"] for run in row["runs"]] == [0, 1]
        values = [run["ap"] for run in row["runs"]]
        assert row["ap"]["mean"] == pytest.approx(sum(values) / 2)
        assert all(0 <= value <= 1 for value in values)
        assert row["ap"]["low"] <= row["ap"]["mean"] <= row["ap"]["high"]
    plain, deformable = facts["arms"]
    # 49 bins of 64 channels through two layers of 256 to two offsets a bin, with biases.
    more = (49 * 64 + 1) * 256 + 257 * 256 + 257 * 98
    assert deformable["parameters"] - plain["parameters"] == more
    assert {"command", "date", "processor", "settings"} <= facts.keys()
    text = (first / "table.md").read_text()
    assert text == markdown(facts)
    assert "| RoIAlign |" in text and "*deformable RoI pooling - RoIAlign*" in text


@pytest.fixture
def one_thread() -> Iterator[None]:
    """What the script sets is put back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def call(output: Path, *more: str) -> Any:
    """Runs the script's command in this process."""
    return CliRunner().invoke(detection_table.app, ["--output", str(output), *TINY, *more])


def test_a_rerun_does_only_what_is_missing_and_the_same(first: Path, one_thread: None) -> None:
    kept = {path: path.read_bytes() for path in first.glob("*-seed*.json")}
    (first / "deformable-seed1.json").unlink()
    result = call(first, "--seeds", "2")
    assert result.exit_code == 0, result.output
    trained = {line.split(":")[0] for line in result.stderr.splitlines() if "AP50" in line}
    assert trained == {"deformable-seed1"}
    assert {path: path.read_bytes() for path in kept} == kept


def test_results_of_other_settings_are_refused(first: Path, one_thread: None) -> None:
    before = (first / "table.json").read_bytes()
    error = call(first, "--rate", "0.1").exception
    assert isinstance(error, UsageError) and "was begun with recipe" in str(error)
    assert (first / "table.json").read_bytes() == before


def test_unknown_arms_are_named(tmp_path: Path, one_thread: None) -> None:
    error = call(tmp_path / "out", "--arms", "plain,bent").exception
    assert isinstance(error, UsageError) and "--arms bent: it is one of plain" in str(error)
    assert not (tmp_path / "out").exists()


def test_arms_of_a_seed_start_alike() -> None:
    models = {arm: build_detector(arm, 6, 64, seed=3) for arm in ARMS}
    common = {
        "plain": models["deformable"].state_dict(),
        "rfcn": models["rfcn-deformable"].state_dict(),
    }
    for arm, other in common.items():
        own = models[arm].state_dict()  # type: ignore[index]
        added = other.keys() - own.keys()
        assert added and all("offset_" in name for name in added)
        assert all(torch.equal(value, other[name]) for name, value in own.items())
    shared = [name for name in common["plain"] if name.startswith(("backbone", "rpn"))]
    assert all(torch.equal(common["plain"][name], common["rfcn"][name]) for name in shared)


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_learns(arm: Arm) -> None:
    scenes = shapes_scenes("train", 1, 64)
    model = build_detector(arm, 6, 64, seed=0)
    losses = train(model, scenes, Recipe(6, 1, 1e-3, 0.1), 0, lambda _: None)
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


@pytest.mark.parametrize("arm", ARMS)
def test_the_mean_way_of_a_bin_is_measured(arm: Arm) -> None:
    scenes = shapes_scenes("val", 1, 64)
    model = build_detector(arm, 6, 64, seed=0)
    pool = model.roi_heads.box_roi_pool
    assert score(model, scenes, 6).shift == (0 if "deformable" in arm else None)
    if "deformable" in arm:  # every bin by (3, 4) tenths of the box
        parts = [pool.offset_fc[-1]] if arm == "deformable" else [
            pool.scores.offset_maps, pool.changes.offset_maps
        ]  # fmt: skip
        for part in parts:
            x_first = torch.tensor([3.0, 4.0]).repeat_interleave(49)
            torch.nn.init.zeros_(part.weight)
            part.bias.data = x_first.repeat(len(part.bias) // 98)
        # Maps end at the picture's border, beyond which there is nothing to pool.
        assert score(model, scenes, 6).shift == pytest.approx(0.5, rel=0.1)


def test_places_drawn_are_places_read() -> None:
    """A picture whose value is its own x (or y) gives, pooled, the mean of the places read."""
    box = np.array([11.0, 7.5, 43.0, 40.0], np.float32)
    offset = np.random.default_rng(0).normal(0, 1, (2, 3, 4)).astype(np.float32)
    places = sampling_places(box, offset, 0.1, 2)
    assert places.shape == (3, 4, 4, 2)
    scale, size = 0.25, 16
    centres = (torch.arange(size, dtype=torch.float32) + 0.5) / scale  # in image pixels
    ramps = torch.stack([centres.expand(size, size), centres[:, None].expand(size, size)])[None]
    roi = torch.tensor([[0.0, *box.tolist()]])
    read = deform_roi_pool(ramps, roi, torch.from_numpy(offset)[None], (3, 4), scale, 2, 0.1)
    np.testing.assert_allclose(places.mean(2).transpose(2, 0, 1), read[0].numpy(), rtol=1e-5)


def test_the_drawing_shows_boxes_and_moved_bins(monkeypatch: pytest.MonkeyPatch) -> None:
    (scene,) = shapes_scenes("val", 1, 96)
    model = build_detector("deformable", 6, 96, seed=0).eval()
    pool = model.roi_heads.box_roi_pool
    found = Found(scene.boxes, scene.labels, np.linspace(0.9, 0.6, len(scene.boxes)))
    monkeypatch.setattr("detection.drawing.find", lambda *_: found)
    names = [str(k) for k in range(1, 7)]
    fixed = draw_detector(model, [scene], names)
    torch.nn.init.constant_(pool.offset_fc[-1].bias, 1.0)
    moved = draw_detector(model, [scene], names)
    assert isinstance(fixed, Image.Image) and isinstance(moved, Image.Image)
    before, after = np.asarray(fixed).astype(int), np.asarray(moved).astype(int)
    middle = before.shape[1] // 2
    assert np.array_equal(before[:, :middle], after[:, :middle])
    assert (before[:, middle:] != after[:, middle:]).any(2).sum() > 500
    monkeypatch.setattr("detection.drawing.find", lambda *_: Found(np.zeros((0, 4)), [], []))
    assert draw_detector(model, [scene], names) is None
