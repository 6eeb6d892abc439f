"""Scores of more than 255 classes: the same integers, in a bounded memory, on readable pages."""

from __future__ import annotations

import base64
import csv
import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from segdeform.cli import main
from segdeform.errors import DataError
from segdeform.evaluation.boundary import boundary_counts
from segdeform.evaluation.confusion import class_pairs, confusion_matrix
from segdeform.evaluation.counts import Column, Tally
from segdeform.evaluation.evaluate import Evaluation
from segdeform.evaluation.examples import draw_examples
from segdeform.evaluation.folders import label_pair, score_folders
from segdeform.machine.processes import ALONE

IGNORED = 65535


def random_pair(
    seed: int, shape: tuple[int, int], classes: int, used: int
) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Returns truth and prediction of `used` classes of `classes`, in blocks, 70% of them right."""
    rng = np.random.default_rng(seed)
    some = rng.choice(classes, used, replace=False).astype(np.uint16)
    blocks = rng.choice(some, (-(-shape[0] // 4), -(-shape[1] // 4)))
    truth = np.kron(blocks, np.ones((4, 4), np.uint16))[: shape[0], : shape[1]]
    said = np.where(rng.random(shape) < 0.7, truth, rng.choice(some, shape)).astype(np.uint16)
    truth[rng.random(shape) < 0.1] = IGNORED
    return truth, said


def naive(truth: NDArray[np.uint16], said: NDArray[np.uint16], classes: int) -> NDArray[np.int64]:
    matrix = np.zeros((classes, classes), np.int64)
    for t, p in zip(truth.ravel().tolist(), said.ravel().tolist(), strict=True):
        if t != IGNORED:
            matrix[t, p] += 1
    return matrix


@pytest.mark.parametrize(("classes", "used"), [(256, 40), (300, 300), (1000, 5), (1500, 900)])
def test_equals_a_naive_count(classes: int, used: int) -> None:
    truth, said = random_pair(classes, (37, 53), classes, used)
    truth[0, :3] = 255  # a class
    expected = naive(truth, said, classes)
    np.testing.assert_array_equal(confusion_matrix(truth, said, classes), expected)
    present, counts = class_pairs(truth, said, classes)
    assert len(present) <= used + 1, "cells of classes that the picture does not show"
    np.testing.assert_array_equal(expected[np.ix_(present, present)], counts)


@pytest.mark.parametrize("value", [300, 65534, 65535])
def test_a_value_that_is_no_class_is_named(value: int) -> None:
    truth, said = random_pair(0, (9, 7), 300, 20)
    said[5, 3] = value
    with pytest.raises(DataError, match=rf"prediction holds {value} at \(5, 3\)"):
        confusion_matrix(truth, said, 300)


def test_counts_are_those_of_the_same_labels_in_8_bits() -> None:
    narrow, wide = Tally(200, 0.05), Tally(1000, 0.05)
    for picture, shape in enumerate([(31, 47), (64, 20)]):
        truth, said = random_pair(picture, shape, 200, 60)
        large = np.where(truth == IGNORED, truth, 4 * truth + 3).astype(np.uint16)
        wide.add(picture, large, 4 * said + 3)
        small = np.where(truth == IGNORED, 255, truth).astype(np.uint8)
        narrow.add(picture, small, said.astype(np.uint8))
    few, many = narrow.gather(ALONE), wide.gather(ALONE)
    expected = few.rows.copy()
    expected[:, Column.CLASS] = 4 * expected[:, Column.CLASS] + 3
    np.testing.assert_array_equal(many.rows, expected)
    assert expected[:, Column.BOUNDARY_COMMON].any()
    np.testing.assert_array_equal(many.matrix[3:803:4, 3:803:4], few.matrix)
    assert many.matrix.sum() == few.matrix.sum()
    np.testing.assert_array_equal(many.void, few.void)


def test_bands_are_of_class_255_too() -> None:
    labels = np.full((20, 20), 255, np.uint16)
    labels[:, 10:] = 256
    common, either = boundary_counts(labels, labels, 300, 0.01)
    assert common[255] == common[256] > 0
    np.testing.assert_array_equal(common, either)


def test_a_thousand_classes_take_one_matrix() -> None:
    pairs = [random_pair(seed, (150, 200), 1000, 90) for seed in range(4)]
    tracemalloc.start()
    try:
        tally = Tally(1000, 0.02)
        for picture, pair in enumerate(pairs):
            tally.add(picture, *pair)
        counts = tally.gather(ALONE)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert counts.matrix.nbytes == 8_000_000
    # Beside it some tables of 65536 entries, and the pictures' own pixels: no second matrix.
    assert peak < 8_000_000 + 4_500_000
    expected = sum(naive(*pair, 1000) for pair in pairs)
    np.testing.assert_array_equal(counts.matrix, expected)


def test_more_classes_than_a_matrix_is_for_are_refused() -> None:
    with pytest.raises(DataError, match=r"10001 classes: up to 10000 .* 800 MB"):
        Tally(10_001, 0.02)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Masks of 16 bits, one of 8, and predictions; `classes.txt` beside names 300 classes."""
    (tmp_path / "classes.txt").write_text("".join(f"c{index}\n" for index in range(300)))
    for index, shape in enumerate([(33, 20), (17, 41), (24, 24)]):
        truth, said = random_pair(index, shape, 300, 80)
        if index == 2:  # of the low classes alone; 255 is one
            truth = np.minimum(truth, 255).astype(np.uint8)
            truth[3] = 255
        for folder, labels in (("truth", truth), ("said", said)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(labels).save(tmp_path / folder / f"{index}.png")
    return tmp_path / "truth", tmp_path / "said"


def pixels(folder: Path) -> NDArray[np.uint16]:
    images = [np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]
    return np.concatenate([image.astype(np.uint16).ravel() for image in images])


def test_scores_of_folders_are_those_of_sklearn(folders: tuple[Path, Path]) -> None:
    metrics: Any = pytest.importorskip("sklearn.metrics")
    evaluation, _ = score_folders(*folders)
    truth, said = map(pixels, folders)
    counted = truth != IGNORED
    expected = metrics.confusion_matrix(truth[counted], said[counted], labels=range(300))
    np.testing.assert_array_equal(evaluation.matrix, expected)
    present = sorted({*truth[counted], *said[counted]})
    ious = metrics.jaccard_score(truth[counted], said[counted], average=None, labels=present)
    assert evaluation.scores.miou == pytest.approx(ious.mean(), rel=1e-12)
    assert evaluation.protocol["label_space"]["ignored"] == IGNORED
    cells = evaluation.to_json()["confusion_matrix"]
    again = np.zeros((300, 300), np.int64)
    again[cells["truth"], cells["predicted"]] = cells["pixels"]
    np.testing.assert_array_equal(again, expected)
    assert min(cells["pixels"]) > 0


def test_what_is_written_stays_readable(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "result"
    assert main(["score", *map(str, folders), "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    assert "The 40 classes of the lowest IoU, of 300" in shown
    assert len(shown.splitlines()) < 60
    page = (output / "report.html").read_text()
    assert "Of 300 classes no matrix can be drawn" in page and "What is taken for what" in page
    assert 'aria-label="Confusion matrix' not in page
    assert page.count(" → <bdi>") == 30, "the costliest mistakes"
    with (output / "classes.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 300
    assert main(["compare", str(output), str(output)]) == 0
    shown = capsys.readouterr().out
    assert "The 40 classes that changed most, of 300" in shown
    assert "mIoU" in shown and len(shown.splitlines()) < 60


def test_pictures_of_the_report_are_in_the_colours_of_the_classes(
    folders: tuple[Path, Path],
) -> None:
    evaluation, dataset = score_folders(*folders)
    examples = draw_examples(
        evaluation, dataset.palette, lambda index: (None, *label_pair(dataset, index, False))
    )
    example = next(example for example in examples if example.name == "0")
    truth = np.array(Image.open(folders[0] / "0.png"))
    said = np.array(Image.open(folders[1] / "0.png"))
    colours = np.full((IGNORED + 1, 3), 224, np.uint8)
    colours[:300] = dataset.palette
    np.testing.assert_array_equal(drawn(example.truth), colours[truth])
    np.testing.assert_array_equal(drawn(example.prediction), colours[said])
    unscored = (drawn(example.errors) == 255).all(axis=2)
    np.testing.assert_array_equal(unscored, truth == IGNORED)


def drawn(uri: str) -> NDArray[np.uint8]:
    content = base64.b64decode(uri.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def test_up_to_255_classes_the_page_and_the_json_are_whole(tmp_path: Path) -> None:
    """The matrix stays a list of rows, drawn with a row a class."""
    for folder in ("truth", "said"):
        (tmp_path / folder).mkdir()
        labels = np.arange(255, dtype=np.uint8).reshape(15, 17)
        Image.fromarray(labels).save(tmp_path / folder / "a.png")
    output = tmp_path / "result"
    arguments = ["score", str(tmp_path / "truth"), str(tmp_path / "said")]
    assert main([*arguments, "--output", str(output)]) == 0
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["confusion_matrix"] == np.eye(255, dtype=int).tolist()
    page = (output / "report.html").read_text()
    assert 'aria-label="Confusion matrix' in page and page.count('class="hit" fill') == 255


def test_without_a_list_nobody_knows_what_255_means(folders: tuple[Path, Path]) -> None:
    (folders[0].parent / "classes.txt").unlink()
    with pytest.raises(DataError, match=r"values up to 65535; more than 255 classes need a list"):
        score_folders(*folders)


def test_a_prediction_needs_a_class_in_every_pixel(folders: tuple[Path, Path]) -> None:
    path = folders[1] / "0.png"
    labels = np.array(Image.open(path))
    labels[4, 4] = IGNORED
    Image.fromarray(labels).save(path)
    with pytest.raises(DataError, match=r"0\.png: label 65535 at row 4, column 4"):
        score_folders(*folders)
    with pytest.raises(DataError, match=r"0\.png: holds pixels without a class \(65535\)"):
        score_folders(*folders, mapped=True)


def test_a_list_of_too_many_classes_is_refused(folders: tuple[Path, Path]) -> None:
    many = folders[0].parent / "many.txt"
    many.write_text("".join(f"c{index}\n" for index in range(10_001)))
    with pytest.raises(DataError, match="up to 10000"):
        score_folders(*folders, many)


def test_what_was_never_predicted_is_cut_with_a_count(folders: tuple[Path, Path]) -> None:
    from segdeform.evaluation.verdict import never_predicted, score_line, warnings

    evaluation: Evaluation = score_folders(folders[0], all_of_class_7(folders[1]))[0]
    (line,) = warnings(evaluation)
    lost = len(never_predicted(evaluation))
    assert lost > 80 and f"and {lost - 5} more were never predicted" in line
    assert len(line) < 400 and len(score_line(evaluation)) < 250


def all_of_class_7(folder: Path) -> Path:
    for path in folder.iterdir():
        Image.fromarray(np.full_like(np.array(Image.open(path)), 7)).save(path)
    return folder
