"""What a person reads of the evaluations in a training, in the terminal and in the log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from segdeform.data import load_dataset
from segdeform.evaluation.evaluate import evaluate
from segdeform.segmenter import load
from segdeform.training.loop import train
from segdeform.training.run_folder import checkpoint_folders
from tests.training.conftest import ReporterThat, tiny_config


def test_each_evaluation_says_all_classes_and_which_are_lost(shapes: Path, tmp_path: Path) -> None:
    reporter = ReporterThat()
    # Six classes have no weight, so that two steps at a high rate leave none of them predicted.
    config = tiny_config(steps=2, eval_every=1, lr=0.1, class_weights=[1, 0, 0, 0, 0, 0, 0])
    train(config, shapes, tmp_path / "run", device="cpu", workers=0, reporter=reporter)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    last = [text for text in reporter.messages if "val mIoU" in text][-1]
    assert last.startswith(f"step 2: val mIoU {metrics['miou']:.4f} (ground everywhere: ")
    assert f"{metrics['constant_miou']:.4f})" in last
    present = [row for row in metrics["classes"] if row["iou"] is not None]
    assert len(present) > 2
    assert last.endswith(", ".join(f"{row['name']} {row['iou']:.3f}" for row in present))
    lost = [row["name"] for row in present if row["truth_pixels"] and not row["predicted_pixels"]]
    assert lost
    told = [text for text in reporter.messages if text.startswith("warning: class")]
    assert "never predicted" in told[-1] and all(f"{name} (" in told[-1] for name in lost)
    log = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    logged = [entry for line in log if (entry := json.loads(line))["kind"] == "val"]
    assert [entry["step"] for entry in logged] == [1, 2]
    assert logged[-1]["iou"] == pytest.approx({r["name"]: r["iou"] for r in metrics["classes"]})


def test_an_evaluation_on_the_way_is_that_of_the_file(shapes: Path, tmp_path: Path) -> None:
    """The scores of step 1 are those of its checkpoint, to the last pixel."""
    config = tiny_config(steps=2, eval_every=1, save_every=1, lr=0.1)
    train(config, shapes, tmp_path, device="cpu", workers=0, reporter=ReporterThat())
    log = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    first, last = (entry for entry in log if entry["kind"] == "val")
    for entry, folder in ((last, tmp_path), (first, checkpoint_folders(tmp_path)[1])):
        found = evaluate(load(folder, "cpu"), load_dataset("shapes", shapes, "val"))
        assert entry["miou"] == found.scores.miou, entry["step"]
