"""Evaluation of small data sets whose right scores are known."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from segdeform.data.dataset import Dataset
from segdeform.errors import DataError, InterruptedByUserError, NotFiniteError
from segdeform.evaluation.boundary import boundary_counts
from segdeform.evaluation.evaluate import evaluate
from segdeform.evaluation.result import write_metrics
from tests.evaluation.conftest import Output, Threshold, segmenter


def count_by_hand(dataset: Dataset) -> list[list[int]]:
    matrix = [[0] * 3 for _ in range(3)]
    for sample in dataset.samples:
        assert sample.mask is not None
        image, mask = Image.open(sample.image), Image.open(sample.mask)
        for pixel, label in zip(
            np.asarray(image).reshape(-1, 3), np.asarray(mask).flat, strict=True
        ):
            if label != 255:
                matrix[label][int(pixel[0] > 127)] += 1
    return matrix


@pytest.mark.parametrize("options", [{}, {"tile": 8}, {"flip": True}, {"tile": 8, "overlap": 0.5}])
def test_matrix_equals_a_count_by_hand(dataset: Dataset, options: dict[str, Any]) -> None:
    steps: list[tuple[int, int]] = []
    result = evaluate(
        segmenter(**options), dataset, progress=lambda done, total: steps.append((done, total))
    )
    assert result.matrix.tolist() == count_by_hand(dataset)
    assert result.matrix.sum() == 20 * 30 + 33 * 12 - 7
    wrong = result.matrix.sum() - np.trace(result.matrix)
    assert wrong == 5
    assert result.scores.accuracy == pytest.approx(1 - wrong / result.matrix.sum())
    assert steps == [(1, 2), (2, 2)]


def test_metrics_file_states_the_protocol(dataset: Dataset, tmp_path: Path) -> None:
    trained = segmenter(tile=8)
    trained.info["crop"] = [48, 64]
    result = evaluate(trained, dataset)
    path = write_metrics(tmp_path / "out" / "eval", result)
    value = json.loads(path.read_text())
    assert value["miou"] == result.scores.miou
    assert value["classes"][2] == {
        "name": "never",
        "iou": None,
        "iou_interval": None,
        "boundary_iou": None,
        "f1": None,
        "precision": None,
        "recall": None,
        "accuracy": None,
        "truth_pixels": 0,
        "predicted_pixels": 0,
    }
    assert value["classes"][0]["truth_pixels"] == sum(count_by_hand(dataset)[0])
    assert value["confusion_matrix"] == count_by_hand(dataset)
    protocol = value["protocol"]
    assert protocol["dataset"] == "tiny"
    assert protocol["pictures"] == 2
    assert protocol["void_pixels"] == 7
    assert protocol["names_sha256"] == hashlib.sha256(b"s/0\ns/1\n").hexdigest()
    assert protocol["inference"]["tile"] == 8
    assert protocol["inference"]["whole_up_to_bytes"] == 2_415_919_104
    assert protocol["training_crop"] == [48, 64]
    assert protocol["model_sha256"] == "abc"
    assert protocol["versions"]["torch"] == torch.__version__
    assert str(tmp_path.parent) not in path.read_text()


def test_every_number_of_the_metrics_is_what_its_name_says(dataset: Dataset) -> None:
    """Each by a formula of its own, from a matrix in which no two of them are equal."""
    samples = []
    for sample in dataset.samples:
        assert sample.mask is not None
        image = np.asarray(Image.open(sample.image)).copy()
        labels = np.asarray(Image.open(sample.mask)).copy()
        image[8:], labels[8:] = 0, 0  # a wide area, unlike the stripes above it,
        labels[14:19, 1:9] = 1  # with a wide mistake,
        labels[2:5, 4:9] = 2  # and some of the class that the network never says
        Image.fromarray(image).save(sample.image)
        Image.fromarray(labels).save(sample.mask)
        samples.append((image[:, :, 0] > 127, labels))
    value = evaluate(segmenter(), dataset, boundary_width=0.05).to_json()
    matrix = np.array(count_by_hand(dataset), float)
    right, truth, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    iou = right / (truth + predicted - right)
    assert value["miou"] == pytest.approx(iou.mean())
    assert value["accuracy"] == pytest.approx(right.sum() / matrix.sum())
    assert value["mean_accuracy"] == pytest.approx((right / truth).mean())
    assert value["fw_iou"] == pytest.approx((truth / truth.sum()) @ iou)
    bands = np.zeros((2, 3))
    for prediction, labels in samples:
        bands += boundary_counts(labels, prediction.astype(np.uint8), 3, 0.05)
    boundary = bands[0] / bands[1]
    assert value["boundary_iou"] == pytest.approx(boundary.mean())
    assert value["protocol"]["boundary_width"] == "0.05 of the diagonal"
    for k, row in enumerate(value["classes"]):
        assert row["iou"] == pytest.approx(iou[k])
        assert row["boundary_iou"] == pytest.approx(boundary[k])
        assert row["accuracy"] == row["recall"] == pytest.approx(right[k] / truth[k])
        assert row["f1"] == pytest.approx(2 * iou[k] / (1 + iou[k]))
        if predicted[k]:
            assert row["precision"] == pytest.approx(right[k] / predicted[k])
        assert (row["truth_pixels"], row["predicted_pixels"]) == (truth[k], predicted[k])
    assert value["mean_f1"] == pytest.approx((2 * iou / (1 + iou)).mean())
    assert value["constant_miou"] == pytest.approx(truth.max() / truth.sum() / 3)
    scalars = ("miou", "accuracy", "mean_accuracy", "fw_iou", "boundary_iou", "mean_f1")
    assert (
        len({round(value[key], 9) for key in (*scalars, "constant_miou")}) == 7
    )  # so that none can stand for another


class ByWidth(nn.Module):
    """Calls every pixel of a window light where the window is narrower than 10 pixels."""

    def forward(self, images: Tensor) -> Output:
        light = torch.full_like(images[:, :1], 1.0 if images.shape[3] < 10 else -1.0)
        return Output(torch.cat([-light, light, torch.full_like(light, -9)], 1))


def test_pictures_go_through_the_network_as_the_options_say(dataset: Dataset) -> None:
    for options, predicted in (({}, 0), ({"tile": 8}, 1), ({"scales": (0.2,)}, 1)):
        matrix = evaluate(segmenter(ByWidth(), **options), dataset).matrix
        assert matrix[:, predicted].sum() == matrix.sum(), options


@pytest.mark.parametrize("change", ["value", "place", "shape"])
def test_other_masks_have_another_digest(dataset: Dataset, change: str) -> None:
    """By it two results are told to be of the same truth."""
    before = evaluate(segmenter(), dataset).protocol["labels_sha256"]
    sample = dataset.samples[1]
    assert sample.mask is not None
    labels = np.asarray(Image.open(sample.mask)).copy()
    image = np.asarray(Image.open(sample.image)).copy()
    if change == "value":
        labels[3, 3] ^= 1
    elif change == "place":
        labels[3, [3, 4]] = labels[3, [4, 3]]
        assert labels[3, 3] != labels[3, 4]
    else:
        labels, image = labels.reshape(11, 36), image.reshape(11, 36, 3)
    Image.fromarray(labels).save(sample.mask)
    Image.fromarray(image).save(sample.image)
    assert evaluate(segmenter(), dataset).protocol["labels_sha256"] != before


def test_equal_evaluations_are_equal_files(dataset: Dataset, tmp_path: Path) -> None:
    first, second = (write_metrics(tmp_path / x, evaluate(segmenter(), dataset)) for x in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert json.loads((tmp_path / "a" / "timing.json").read_text())["seconds"] >= 0


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("dark", "light"), "3 classes and data set 'tiny' has 2.*class 2: 'never' against none"),
        (("light", "dark", "never"), "part at class 0: 'dark' against 'light'"),
    ],
)
def test_other_class_lists_are_refused(
    dataset: Dataset, classes: tuple[str, ...], message: str
) -> None:
    other = dataclasses.replace(dataset, classes=classes, palette=dataset.palette[: len(classes)])
    with pytest.raises(DataError, match=message):
        evaluate(segmenter(), other)


@pytest.mark.parametrize(("after", "done"), [(1, 0), (2, 1), (3, 1)])
def test_stop_is_asked_before_each_picture_and_each_window(
    dataset: Dataset, after: int, done: int
) -> None:
    """The network sees nothing more; the last picture's end does not pass over a stop."""
    seen: list[int] = []

    class Counting(Threshold):
        def forward(self, images: Tensor) -> Output:
            seen.append(1)
            return super().forward(images)

    tiled = segmenter(Counting(), tile=20, overlap=0.0)  # two windows a picture
    with pytest.raises(InterruptedByUserError, match=f"after {done} of 2 pictures"):
        evaluate(tiled, dataset, stop=lambda: len(seen) >= after)
    assert len(seen) == after
    assert evaluate(tiled, dataset, stop=lambda: False).counts.rows.size


class NotANumber(nn.Module):
    def forward(self, images: Tensor) -> Output:
        return Output(images * float("nan"))


def test_errors_name_the_picture(dataset: Dataset) -> None:
    with pytest.raises(NotFiniteError, match=r"0\.png: the network's output"):
        evaluate(segmenter(NotANumber()), dataset)
    dataset.samples[1].image.write_bytes(b"")
    with pytest.raises(DataError, match=r"1\.png"):
        evaluate(segmenter(), dataset)


def test_what_cannot_be_counted_is_told_with_its_picture(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: Any) -> None:
        raise DataError("cannot be counted")

    monkeypatch.setattr("segdeform.evaluation.evaluate.Tally.add", refuse)
    with pytest.raises(DataError, match=r"\.png: cannot be counted"):
        evaluate(segmenter(), dataset)
