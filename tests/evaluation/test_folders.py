"""Two folders of label maps: against another implementation, and every wrong pair of them."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from segdeform.cli import main
from segdeform.errors import DataError, InterruptedByUserError, UsageError
from segdeform.evaluation.compare import compare
from segdeform.evaluation.evaluate import Evaluation
from segdeform.evaluation.folders import score_folders
from segdeform.evaluation.joined import read_side
from segdeform.evaluation.result import read_evaluation
from segdeform.files.manifest import sha256

SIZES = {"a/1": (13, 17), "a/2": (9, 30), "b": (21, 8)}


def write(path: Path, labels: NDArray[np.integer]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels).save(path)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Three masks of four classes with void pixels, and predictions that are right in most."""
    rng = np.random.default_rng(4)
    for name, size in SIZES.items():
        truth = rng.integers(0, 4, size).astype(np.uint8)
        said = np.where(rng.random(size) < 0.7, truth, rng.integers(0, 4, size)).astype(np.uint8)
        truth[rng.random(size) < 0.1] = 255
        write(tmp_path / "truth" / f"{name}.png", truth)
        write(tmp_path / "said" / f"{name}.png", said)
    return tmp_path / "truth", tmp_path / "said"


def pixels(folder: Path, ending: str = ".png") -> NDArray[np.uint8]:
    images = [np.asarray(Image.open(folder / f"{name}{ending}")).ravel() for name in sorted(SIZES)]
    return np.concatenate(images)


def scored(
    truth: Path, said: Path, classes: Path | None = None, mapped: bool = False
) -> Evaluation:
    return score_folders(truth, said, classes, mapped=mapped)[0]


def test_scores_are_those_of_sklearn(folders: tuple[Path, Path]) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    evaluation = scored(*folders)
    truth, said = (pixels(folder) for folder in folders)
    counted = truth != 255
    ious = metrics.jaccard_score(truth[counted], said[counted], average=None)
    assert evaluation.scores.iou == pytest.approx(ious, rel=1e-12)
    assert evaluation.to_json()["miou"] == pytest.approx(ious.mean(), rel=1e-12)
    assert evaluation.pictures == ("a/1", "a/2", "b")
    protocol = evaluation.protocol
    assert protocol["void_pixels"] == (~counted).sum() and protocol["pictures"] == 3
    assert protocol["prediction_values"] == "class indices"
    files = "".join(sha256(folders[1] / f"{name}.png") for name in sorted(SIZES))
    assert protocol["predictions_sha256"] == hashlib.sha256(files.encode()).hexdigest()


def test_the_command_writes_all_that_eval_writes(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth, said = map(str, folders)
    output = tmp_path / "result"
    (folders[0] / "classes.txt").write_text("road\ncar\nsky\ntree\n")
    write(folders[1] / "more.png", np.zeros((2, 2), np.uint8))
    assert main(["score", truth, said, "--output", str(output), "--json"]) == 0
    printed = capsys.readouterr()
    value = json.loads(printed.out)
    assert value == json.loads((output / "metrics.json").read_text())
    assert value["miou"] == scored(*folders).scores.miou
    assert [row["name"] for row in value["classes"]] == ["road", "car", "sky", "tree"]
    assert f"4 classes: {folders[0] / 'classes.txt'}" in printed.err
    assert "1 predictions without a mask are left out" in printed.err
    page = (output / "report.html").read_text()
    assert page.count("<article>") == 3 and "The picture" not in page
    again = compare(read_evaluation(output), read_evaluation(output))
    assert again.miou.change == 0
    shutil.copytree(output, tmp_path / "folds" / "0")
    shutil.copytree(output, tmp_path / "folds" / ".half-written")
    assert read_side(tmp_path / "folds").pictures == ("a/1", "a/2", "b")
    assert main(["score", truth, said]) == 0
    assert "mIoU" in capsys.readouterr().out


def test_suffixes_of_either_side_are_seen(folders: tuple[Path, Path]) -> None:
    expected = scored(*folders).matrix
    for folder, ending in zip(folders, ("_gt", "_pred"), strict=True):
        for path in list(folder.rglob("*.png")):
            path.rename(path.with_name(f"{path.stem}{ending}.png"))
        if ending == "_gt":
            np.testing.assert_array_equal(scored(*folders).matrix, expected)
        for path in list(folder.rglob("*.png")) if ending == "_gt" else ():
            path.rename(path.with_name(path.name.replace("_gt", "")))
    np.testing.assert_array_equal(scored(*folders).matrix, expected)


@pytest.mark.parametrize("mapped", [False, True])
def test_values_of_files_become_classes(folders: tuple[Path, Path], mapped: bool) -> None:
    expected = scored(*folders).matrix
    values = np.array([7, 40, 2, 0, *[9] * 251, 3], np.uint8)  # of classes 0 to 3, and of void
    for folder in folders if mapped else folders[:1]:
        for path in folder.rglob("*.png"):
            write(path, values[np.asarray(Image.open(path))])
    classes = folders[0].parent / "other.yaml"
    mapping = "{7: 0, 40: 1, 2: 2, 0: 3}"
    classes.write_text(f"names: [a, b, c, d]\nlabel_mapping: {mapping}\nvoid_id: 3\n")
    np.testing.assert_array_equal(scored(*folders, classes, mapped).matrix, expected)
    with pytest.raises(DataError, match=r"outside the 4 classes|without a class"):
        scored(*folders, classes, not mapped)
    if mapped:
        write(folders[1] / "b.png", np.full(SIZES["b"], 3, np.uint8))
        with pytest.raises(DataError, match=r"b\.png: holds pixels without a class"):
            scored(*folders, classes, mapped)


def test_what_predict_wrote_is_taken_as_it_lies(folders: tuple[Path, Path]) -> None:
    truth, said = folders
    output = said.parent / "output"
    (output / "overlays").mkdir(parents=True)
    said.rename(output / "masks")
    write(output / "overlays" / "b.png", np.zeros((5, 5), np.uint8))
    summary = {"format": "segdeform-prediction", "classes": ["w", "x", "y", "z"]}
    (output / "summary.json").write_text(json.dumps(summary))
    assert scored(truth, output).classes == ("w", "x", "y", "z")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda truth, said: (said / "b.png").unlink(), r"1 of 3 masks have no prediction.*b\.png"),
        (lambda truth, said: write(said / "b.png", np.zeros((8, 21), np.uint8)), r"b\.png: .*8x21"),
        (
            lambda truth, said: write(said / "b.png", np.full((21, 8), 255, np.uint8)),
            "no class|out",
        ),
        (lambda truth, said: write(said / "b.tif", np.zeros((21, 8), np.uint8)), "same name"),
        (lambda truth, said: (said / "b.png").write_bytes(b"no picture"), r"b\.png"),
        (lambda truth, said: Image.new("RGB", (8, 21)).save(said / "b.png"), r"b\.png.*RGB"),
    ],
)
def test_pairs_that_cannot_be_scored_are_named(
    folders: tuple[Path, Path], spoil: object, message: str
) -> None:
    (folders[0] / "classes.txt").write_text("a\nb\nc\nd\n")
    spoil(*folders)  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        scored(*folders)


def test_black_and_white_masks_are_not_scored_as_if_white_were_void(
    folders: tuple[Path, Path],
) -> None:
    truth, said = folders
    for path in truth.rglob("*.png"):
        write(path, np.where(np.asarray(Image.open(path)) == 1, 255, 0).astype(np.uint8))
    with pytest.raises(DataError, match=r"only 0 and 255, which.*label_mapping: {0: 0"):
        scored(truth, said)
    classes = truth.parent / "two.yaml"
    classes.write_text("names: [a, b, c, d]\nlabel_mapping: {0: 0, 255: 1}\n")
    assert scored(truth, said, classes).protocol["void_pixels"] == 0
    classes.unlink()
    for path in said.rglob("*.png"):
        write(path, np.zeros_like(np.asarray(Image.open(path))))
    assert scored(truth, said).classes == ("class_0",)  # nobody says that there is a second one


def test_exchanged_folders_and_whole_data_sets_are_told(folders: tuple[Path, Path]) -> None:
    truth, said = folders
    output = said.parent / "output"
    output.mkdir()
    said.rename(output / "masks")
    (output / "summary.json").write_text('{"format": "segdeform-prediction"}')
    with pytest.raises(UsageError, match="is what predict wrote"):
        scored(output, truth)
    data = truth.parent / "set"
    data.mkdir()
    (data / "data.yaml").write_text("names: [a]\ntrain: x.txt\n")
    with pytest.raises(DataError, match="it is a data set: give its folder of masks"):
        scored(data, output)


def test_folders_that_are_not_there_or_empty(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        scored(folders[0], tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "empty" / "b.jpg")
    with pytest.raises(DataError, match=r"no label map.*1 pictures of other kinds"):
        scored(folders[0], tmp_path / "empty")
    with pytest.raises(InterruptedByUserError, match="1 of 3"):
        stops = iter([False, True])
        score_folders(*folders, stop=lambda: next(stops))


def test_a_class_list_lies_up_to_two_folders_above(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    truth = tmp_path / "set" / "val" / "masks"
    truth.parent.mkdir(parents=True)
    folders[0].rename(truth)
    (tmp_path / "classes.txt").write_text("one\n")
    assert scored(truth, folders[1]).classes[0] == "class_0"  # three above is somebody else's
    (tmp_path / "set" / "classes.txt").write_text("a\nb\nc\nd\n")
    assert scored(truth, folders[1]).classes == ("a", "b", "c", "d")


def test_classes_that_only_predictions_hold_are_counted_too(tmp_path: Path) -> None:
    write(tmp_path / "truth" / "x.png", np.eye(3, dtype=np.uint8))
    write(tmp_path / "said" / "x.png", 4 * np.eye(3, dtype=np.uint8))
    assert len(scored(tmp_path / "truth", tmp_path / "said").classes) == 5
