"""A finished run as a table and as a picture, both from its log."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segdeform.training import curves
from segdeform.training.curves import picture, read_log, table
from segdeform.training.loop import train
from segdeform.training.run_folder import holds_run
from tests.training.conftest import ReporterThat, tiny_config

OPTIONS: dict[str, Any] = {"device": "cpu", "workers": 0}
CLASSES = ('a "b", c', "_under", "Bäume")
ENTRIES: list[dict[str, Any]] = [
    {"step": 5, "kind": "train", "loss": 1.5, "learning_rate": 0.01, "images_per_second": 3.25},
    {
        "step": 7,
        "kind": "val",
        "miou": 0.25,
        "accuracy": 0.5,
        "iou": dict(zip(CLASSES, (0.5, None, 0.0), strict=True)),
    },
    {"step": 9, "kind": "val", "miou": None, "accuracy": None},  # as earlier versions wrote it
]


def test_a_row_for_each_entry_with_an_empty_cell_for_what_is_not() -> None:
    header, *rows = csv.reader(io.StringIO(table(ENTRIES, CLASSES)))
    assert header[:2] == ["step", "kind"] and header[-3:] == [f"IoU {name}" for name in CLASSES]
    cells = [dict(zip(header, row, strict=True)) for row in rows]
    assert cells[0]["loss"] == "1.5" and cells[0]["images_per_second"] == "3.25"
    assert cells[0]["miou"] == "" and cells[0]["loader_wait"] == ""
    assert (cells[1]["miou"], cells[1]['IoU a "b", c'], cells[1]["IoU _under"]) == (
        "0.25",
        "0.5",
        "",
    )
    assert cells[1]["IoU Bäume"] == "0.0" and cells[1]["loss"] == ""
    assert set(cells[2].values()) == {"9", "val", ""}


@pytest.mark.parametrize("count", [1, 3, 30])
def test_a_picture_of_any_number_of_classes(count: int) -> None:
    classes = [f"class {k}" for k in range(count)]
    entries = [
        {"step": step, "kind": "train", "loss": 1 / step, "learning_rate": 0.1} for step in (1, 2)
    ] + [
        {"step": step, "kind": "val", "miou": 0.1 * step, "iou": dict.fromkeys(classes, 0.3)}
        for step in (1, 2, 3)
    ]
    content = picture(entries, classes)
    assert content == picture(entries, classes)
    with Image.open(io.BytesIO(content)) as drawn:
        pixels = np.asarray(drawn.convert("RGB")).astype(int)
    assert pixels.shape == (550, 1320, 3)
    # The loss is drawn in blue, on the left; mIoU in black, on the right.
    blue = (np.abs(pixels - (0x1F, 0x77, 0xB4)).max(2) < 30)[:, :660]
    assert blue.sum() > 200
    # It falls: the first of its pixels lie higher than the last.
    rows, columns = np.nonzero(blue[40:380])
    assert rows[columns.argmin()] < rows[columns.argmax()]
    black = (pixels.max(2) < 40)[60:490, 700:1130]
    assert black.sum() > 300
    assert picture([], classes)  # a log without anything


def test_a_run_leaves_both_and_overwrite_removes_them(shapes: Path, tmp_path: Path) -> None:
    config = tiny_config(steps=3, eval_every=2)
    train(config, shapes, tmp_path, reporter=ReporterThat(), **OPTIONS)
    entries = read_log(tmp_path / "log.jsonl")
    rows = list(csv.DictReader((tmp_path / "results.csv").open(encoding="utf-8")))
    assert [(int(row["step"]), row["kind"]) for row in rows] == [
        (entry["step"], entry["kind"]) for entry in entries
    ]
    scores = json.loads((tmp_path / "metrics.json").read_text())
    assert float(rows[-1]["miou"]) == scores["miou"]
    assert float(rows[-1]["IoU ground"]) == scores["classes"][0]["iou"]
    with Image.open(tmp_path / "curves.png") as drawn:
        drawn.load()
    (tmp_path / "results.csv").write_text("old")
    train(config, shapes, tmp_path, overwrite=True, reporter=ReporterThat(), **OPTIONS)
    assert (tmp_path / "results.csv").read_text() != "old" and holds_run(tmp_path)


def test_what_cannot_be_drawn_ends_no_run(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> bytes:
        raise RuntimeError("no font")

    monkeypatch.setattr(curves, "picture", fails)
    reporter = ReporterThat()
    train(tiny_config(steps=1), shapes, tmp_path, reporter=reporter, **OPTIONS)
    assert any("curves.png was not written: no font" in m for m in reporter.messages)
    assert (tmp_path / "results.csv").exists() and not (tmp_path / "curves.png").exists()
    assert (tmp_path / "metrics.json").exists()
    (tmp_path / "log.jsonl").write_text('{"step": 3, "ki')
    curves.write_curves(tmp_path, ["a"], reporter.message)
    assert "results.csv was not written" in reporter.messages[-1]
