"""Results on the disk: complete or absent, checked when read, never in the place of other files."""

from __future__ import annotations

import csv
import errno
import json
from pathlib import Path

import numpy as np
import pytest

from segdeform.data.dataset import Dataset
from segdeform.errors import DataError, ResourceError, UsageError
from segdeform.evaluation import result as result_module
from segdeform.evaluation.evaluate import Evaluation, evaluate
from segdeform.evaluation.result import check_output, read_evaluation, write_evaluation
from tests.evaluation.conftest import segmenter


@pytest.fixture
def evaluation(dataset: Dataset) -> Evaluation:
    return evaluate(segmenter(), dataset)


def test_what_is_written_is_read(evaluation: Evaluation, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    write_evaluation(folder, evaluation, "<p>report</p>")
    found = read_evaluation(folder)
    assert found.metrics == json.loads(json.dumps(evaluation.to_json()))
    assert found.pictures == ("s/0", "s/1")
    assert found.classes == evaluation.classes
    np.testing.assert_array_equal(found.rows, evaluation.counts.rows)
    assert (folder / "report.html").read_text() == "<p>report</p>"


def test_tables_hold_the_scores(evaluation: Evaluation, tmp_path: Path) -> None:
    write_evaluation(tmp_path / "out", evaluation, "")
    with (tmp_path / "out" / "images.csv").open(newline="") as file:
        images = list(csv.DictReader(file))
    assert [row["picture"] for row in images] == ["s/0", "s/1"]
    for name in ("miou", "accuracy", "boundary_iou"):
        values = getattr(evaluation.picture_scores, name)
        assert [float(row[name]) for row in images] == values.tolist()
    assert [(row["height"], row["width"]) for row in images] == [("20", "30"), ("33", "12")]
    assert [(row["scored"], row["void"]) for row in images] == [("600", "0"), ("389", "7")]
    with (tmp_path / "out" / "classes.csv").open(newline="") as file:
        classes = list(csv.DictReader(file))
    whole = evaluation.to_json()["classes"]
    names = {"iou": "iou", "boundary_iou": "boundary_iou", "accuracy": "accuracy"}
    names |= {"f1": "f1", "precision": "precision", "recall": "recall"}
    names |= {"pixels": "truth_pixels", "predicted": "predicted_pixels"}
    for column, key in names.items():
        assert [float(row[column]) for row in classes[:2]] == [row[key] for row in whole[:2]]
    for k in range(2):
        assert [float(classes[k][side]) for side in ("iou_low", "iou_high")] == (
            whole[k]["iou_interval"]
        )
    assert classes[2]["iou"] == classes[2]["iou_low"] == ""
    assert classes[2]["class"] == "never"


def test_a_newer_result_takes_the_place_of_an_older(evaluation: Evaluation, tmp_path: Path) -> None:
    for text in ("old", "new"):
        write_evaluation(tmp_path / "out", evaluation, text)
    assert (tmp_path / "out" / "report.html").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == ["out"]


@pytest.mark.parametrize(
    "names", [["notes.txt"], ["manifest.json", "model.json"], ["metrics.json"]]
)
def test_other_files_are_not_replaced(
    evaluation: Evaluation, tmp_path: Path, names: list[str]
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in names:
        (folder / name).write_text("{}")
    with pytest.raises(UsageError, match="something else than an earlier evaluation"):
        write_evaluation(folder, evaluation, "")
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


def test_a_file_put_beside_a_result_is_kept(evaluation: Evaluation, tmp_path: Path) -> None:
    write_evaluation(tmp_path / "out", evaluation, "")
    (tmp_path / "out" / "thesis.txt").write_text("years")
    with pytest.raises(UsageError, match=r"thesis\.txt"):
        check_output(tmp_path / "out")
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UsageError, match="not a folder"):
        check_output(file)


def test_a_full_disk_leaves_the_older_result(
    evaluation: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_evaluation(tmp_path / "out", evaluation, "old")

    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(result_module.np, "save", full)
    with pytest.raises(ResourceError, match="No space left"):
        write_evaluation(tmp_path / "out", evaluation, "new")
    assert (tmp_path / "out" / "report.html").read_text() == "old"
    read_evaluation(tmp_path / "out")


@pytest.mark.parametrize("name", ["metrics.json", "counts.npy", "images.csv", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_is_found(evaluation: Evaluation, tmp_path: Path, name: str, damage: str) -> None:
    write_evaluation(tmp_path / "out", evaluation, "")
    path = tmp_path / "out" / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 4
    path.write_bytes(content[:20] if damage == "cut" else content)
    if damage == "remove":
        path.unlink()
    with pytest.raises(DataError, match="out"):
        read_evaluation(tmp_path / "out")


def test_a_folder_that_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="segdeform eval MODEL"):
        read_evaluation(tmp_path / "nowhere")
