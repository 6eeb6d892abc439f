"""Scores a model on a data set split, one picture at a time, and says exactly how."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from importlib.metadata import version
from typing import Any

import cv2
import numpy as np
import PIL
import torch
from numpy.typing import NDArray

import cuda_ops
from segdeform.callbacks import Progress, Stop
from segdeform.data.dataset import MAX_NARROW, Dataset, Labels, Sample, read_pair
from segdeform.data.depth import as_json
from segdeform.errors import (
    DataError,
    InterruptedByUserError,
    NotFiniteError,
    ResourceError,
)
from segdeform.evaluation import bootstrap
from segdeform.evaluation.bootstrap import Interval
from segdeform.evaluation.boundary import BOUNDARY_WIDTH
from segdeform.evaluation.confusion import Scores, mean, scores
from segdeform.evaluation.counts import (
    Column,
    Counts,
    PictureScores,
    Tally,
    class_sums,
    picture_scores,
    ratio,
)
from segdeform.evaluation.split import refuse_other_classes
from segdeform.files.atomic import json_number
from segdeform.inference import predict_labels
from segdeform.machine.pipeline import Behind, read_ahead, threads
from segdeform.machine.processes import ALONE, Processes
from segdeform.room import MOST_BYTES
from segdeform.segmenter import Segmenter
from segdeform.version import __version__

KeepLabels = Callable[[Sample, Labels], None]  # gets label maps [H, W]


@dataclass(frozen=True)
class Evaluation:
    """What was counted, and under which protocol."""

    classes: tuple[str, ...]
    pictures: tuple[str, ...]  # N names
    counts: Counts
    protocol: dict[str, Any]  # what the numbers depend on; the same run gives the same again
    timing: dict[str, Any]  # date, seconds
    official: dict[str, Any] | None = None  # what the benchmark's own scripts say

    @property
    def matrix(self) -> NDArray[np.int64]:  # [K, K] pixels, rows truth, columns prediction
        """The confusion matrix of all pictures."""
        return self.counts.matrix

    @cached_property
    def scores(self) -> Scores:
        """The scores of the confusion matrix."""
        return scores(self.matrix)

    @cached_property
    def picture_scores(self) -> PictureScores:
        """The scores of each picture alone."""
        return picture_scores(self.counts.rows, len(self.pictures))

    @cached_property
    def boundary_iou(self) -> tuple[float, ...]:
        """The boundary IoU of each class; NaN: absent."""
        rows, classes = self.counts.rows, len(self.classes)
        common = class_sums(rows, rows[:, Column.BOUNDARY_COMMON], classes)
        either = class_sums(rows, rows[:, Column.BOUNDARY_EITHER], classes)
        return tuple(float(value) for value in ratio(common, either))

    @cached_property
    def intervals(self) -> tuple[Interval, tuple[Interval, ...]]:
        """The bootstrap intervals of mIoU and of each class's IoU."""
        count = len(self.pictures)
        ious = bootstrap.resampled_ious(self.counts.rows, count, len(self.classes))
        of_classes = tuple(bootstrap.interval(column, count) for column in ious.T)
        return bootstrap.interval(bootstrap.mean_ious(ious), count), of_classes

    def to_json(self) -> dict[str, Any]:
        """Returns scores, per-class rows, matrix and protocol as JSON values; NaN becomes None.

        The matrix of more than 255 classes is three lists: truth, predicted, pixels of each cell
        that is not 0.

        The timing is left out: equal evaluations are equal files, whose hashes can be compared.
        """
        truth, predicted = self.matrix.sum(axis=1), self.matrix.sum(axis=0)
        of_miou, of_classes = self.intervals
        rows = [
            {
                "name": name,
                "iou": json_number(self.scores.iou[k]),
                "iou_interval": _listed(of_classes[k]),
                "boundary_iou": json_number(self.boundary_iou[k]),
                "f1": json_number(self.scores.f1[k]),
                "precision": json_number(self.scores.precision[k]),
                "recall": json_number(self.scores.class_accuracy[k]),
                "accuracy": json_number(self.scores.class_accuracy[k]),
                "truth_pixels": int(truth[k]),
                "predicted_pixels": int(predicted[k]),
            }
            for k, name in enumerate(self.classes)
        ]
        value = {
            "miou": json_number(self.scores.miou),
            "miou_interval": _listed(of_miou),
            "accuracy": json_number(self.scores.accuracy),
            "mean_accuracy": json_number(self.scores.mean_accuracy),
            "fw_iou": json_number(self.scores.fw_iou),
            "mean_f1": json_number(self.scores.mean_f1),
            "constant_miou": json_number(self.scores.constant_miou),
            "boundary_iou": json_number(mean(self.boundary_iou)),
            "classes": rows,
            "confusion_matrix": _matrix_json(self.matrix),
            "protocol": self.protocol,
        }
        return value if self.official is None else value | {"official": self.official}


def evaluate(
    segmenter: Segmenter,
    dataset: Dataset,
    *,
    boundary_width: float = BOUNDARY_WIDTH,
    keep: KeepLabels | None = None,
    peers: Processes = ALONE,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Evaluation:
    """Predicts every picture of a split and compares it with its mask at the mask's size.

    `boundary_width` is that of the bands of boundary IoU, of the picture's diagonal. `keep(sample,
    labels)` gets every label map, [H, W]. Several processes share the pictures and all return the
    same. `progress(done, total)` is called after each picture, `stop()` before each window.

    Raises:
        DataError: other classes than the model's, a picture or mask that cannot be used.
        NotFiniteError, ResourceError: naming the picture.
        InterruptedByUserError: after a stop.
        PeerLostError: another process failed or is lost.
    """
    refuse_other_classes(segmenter.classes, dataset)
    started, date = time.perf_counter(), datetime.now(UTC)
    tally = Tally(len(dataset.classes), boundary_width)

    def counted(sample: Sample, counting: Future[None]) -> None:
        try:
            counting.result()
        except DataError as error:
            raise DataError(f"{sample.image}: {error}") from error

    # The next picture is read, and the one before counted, while the network is at work.
    with threads(1) as reader, threads(1) as counter:
        behind = Behind(counter, counted, depth=1)
        own = range(peers.rank, len(dataset), peers.size)
        pairs = read_ahead(reader, own, partial(read_pair, dataset), depth=1)

        def score(index: int) -> None:
            sample, reading = dataset.samples[index], next(pairs)[1]
            image, truth = reading.result()
            labels = predict_sample(segmenter, sample, image, stop)
            behind.submit(sample, partial(tally.add, index, truth, labels))
            if keep is not None:
                keep(sample, labels)

        share_pictures(len(dataset), score, peers, progress, stop)
        with peers.in_step():
            behind.finish()
    counts = tally.gather(peers)
    return Evaluation(
        classes=dataset.classes,
        pictures=tuple(sample.name for sample in dataset.samples),
        counts=counts,
        protocol=_protocol(segmenter, dataset, counts, boundary_width),
        timing={
            "date": date.isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - started, 3),
            "pictures": len(dataset),
            "processes": peers.size,
        },
    )


def share_pictures(
    total: int,
    work: Callable[[int], None],
    peers: Processes,
    progress: Progress | None,
    stop: Stop | None,
) -> None:
    """Calls `work(index)` for every picture, each in one of the processes, which keep in step.

    So a failure or the loss of one process ends all of them within a picture's time, and a stop
    within that of a window, where `work` ends in InterruptedByUserError when `stop()` says so.
    """
    interrupted, done = False, 0
    for first in range(0, total, peers.size):
        if peers.anyone(interrupted or (stop is not None and stop())):
            raise _stopped(done, total)
        with peers.in_step():
            if (index := first + peers.rank) < total:
                try:
                    work(index)
                except InterruptedByUserError:
                    # Told to the others as a wish, not as a failure: they end in the same way.
                    interrupted = True
        if not interrupted:
            done = min(first + peers.size, total)
            if progress is not None:
                progress(done, total)
    if peers.anyone(interrupted):
        raise _stopped(done, total)


def _stopped(done: int, total: int) -> InterruptedByUserError:
    return InterruptedByUserError(
        f"evaluation stopped after {done} of {total} pictures; nothing was written"
    )


def predict_sample(
    segmenter: Segmenter,
    sample: Sample,
    image: NDArray[np.uint8],  # [H, W, C]
    stop: Stop | None = None,
) -> Labels:  # [H, W]
    """Predicts the label map of a picture; errors name its file.

    Raises InterruptedByUserError after a stop, which is asked for before each window.
    """
    try:
        return predict_labels(segmenter.model, image, segmenter.options, segmenter.device, stop)
    except (DataError, NotFiniteError, ResourceError) as error:
        raise type(error)(f"{sample.image}: {error}") from error


def counting_protocol(dataset: Dataset, counts: Counts, boundary_width: float) -> dict[str, Any]:
    """States what the numbers depend on beside the network, nothing that differs between runs."""
    return {
        "dataset": dataset.name,
        "root": dataset.root.resolve().name,
        "split": dataset.split,
        "pictures": len(dataset),
        "names_sha256": dataset.names_sha256(),
        "labels_sha256": counts.truth_sha256,
        "label_space": _label_space(dataset),
        **_reading(dataset),
        "void_pixels": int(counts.void.sum()),
        "resolution": "every picture at its own size, labels compared at the mask's size",
        "miou": "mean over the classes present in truth or prediction; void pixels not counted",
        "boundary_width": f"{boundary_width:g} of the diagonal",
        "uncertainty": bootstrap.describe(),
        "versions": {
            "segdeform": __version__,
            "numpy": np.__version__,
            "opencv": cv2.__version__,
            "pillow": PIL.__version__,
        },
    }


def _protocol(
    segmenter: Segmenter, dataset: Dataset, counts: Counts, boundary_width: float
) -> dict[str, Any]:
    """States all that the numbers depend on."""
    protocol = counting_protocol(dataset, counts, boundary_width)
    device = segmenter.device.type
    runtime = segmenter.info.get("runtime")  # of an exported model
    protocol = protocol if runtime is None else protocol | {"runtime": runtime}
    return protocol | {
        "inference": segmenter.options.model_dump(mode="json") | {"whole_up_to_bytes": MOST_BYTES},
        "precision": segmenter.precision,
        "training_crop": segmenter.info.get("crop"),
        "model_sha256": segmenter.info["sha256"],
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "threads": torch.get_num_threads(),
        "deform_conv2d": cuda_ops.backend(device),
        "versions": protocol["versions"]
        | {"torch": str(torch.__version__), "torchvision": version("torchvision")},
    }


def _reading(dataset: Dataset) -> dict[str, Any]:
    """Says how the values of picture files became channels, where that is not as usual."""
    given: dict[str, Any] = {}
    if dataset.value_range is not None:
        given["value_range"] = as_json(dataset.value_range)
    if dataset.bands is not None:
        given["bands"] = list(dataset.bands)
    return given


def _label_space(dataset: Dataset) -> dict[str, Any]:
    """Says how the values of mask files became the classes that are scored."""
    mapping = dataset.label_map
    return {
        "classes": len(dataset.classes),
        "ignored": dataset.ignore,
        "masks": "train ids" if dataset.name == "cityscapes" else "class indices",
        "void_values": sorted(dataset.void),
        "label_mapping": None
        if mapping is None
        else {str(value): label for value, label in sorted(mapping.items())},
    }


def _matrix_json(matrix: NDArray[np.int64]) -> list[list[int]] | dict[str, list[int]]:
    """Returns the rows of a matrix; of more than 255 classes, of which most pairs never occur, the
    cells that are not 0, row by row."""
    if len(matrix) <= MAX_NARROW:
        rows: list[list[int]] = matrix.tolist()
        return rows
    truth, predicted = np.nonzero(matrix)
    return {
        "truth": truth.tolist(),
        "predicted": predicted.tolist(),
        "pixels": matrix[truth, predicted].tolist(),
    }


def _listed(interval: Interval) -> list[float] | None:
    return None if interval is None else list(interval)
