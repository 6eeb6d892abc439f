"""Scores a model on a data set split, one picture at a time, and says exactly how."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import cuda_ops
import segdeform
from segdeform.atomic import write_json
from segdeform.data.dataset import IGNORE, Dataset, read_pair
from segdeform.errors import DataError, InterruptedByUserError, NotFiniteError, ResourceError
from segdeform.evaluation.confusion import Scores, confusion_matrix, scores
from segdeform.inference import AUTOMATIC_TILE, WHOLE_LIMIT, predict_labels
from segdeform.segmenter import Segmenter


@dataclass(frozen=True)
class Evaluation:
    """What was counted, and under which protocol."""

    classes: tuple[str, ...]
    matrix: NDArray[np.int64]  # [K, K] pixels, rows truth, columns prediction
    scores: Scores
    protocol: dict[str, Any]  # what the numbers depend on; the same run gives the same again
    timing: dict[str, Any]  # date, seconds

    def to_json(self) -> dict[str, Any]:
        """Returns scores, per-class rows, matrix and protocol as JSON values; NaN becomes None.

        The timing is left out: equal evaluations are equal files, whose hashes can be compared.
        """
        truth, predicted = self.matrix.sum(axis=1), self.matrix.sum(axis=0)
        rows = [
            {
                "name": name,
                "iou": _number(self.scores.iou[k]),
                "accuracy": _number(self.scores.class_accuracy[k]),
                "truth_pixels": int(truth[k]),
                "predicted_pixels": int(predicted[k]),
            }
            for k, name in enumerate(self.classes)
        ]
        return {
            "miou": _number(self.scores.miou),
            "accuracy": _number(self.scores.accuracy),
            "mean_accuracy": _number(self.scores.mean_accuracy),
            "fw_iou": _number(self.scores.fw_iou),
            "classes": rows,
            "confusion_matrix": self.matrix.tolist(),
            "protocol": self.protocol,
        }


def evaluate(
    segmenter: Segmenter,
    dataset: Dataset,
    *,
    progress: Callable[[int, int], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Evaluation:
    """Predicts every picture of a split and compares it with its mask at the mask's size.

    `progress(done, total)` is called after each picture; `stop()` is asked before each. Raises
    DataError (other classes than the model's, a picture or mask that cannot be used),
    NotFiniteError and ResourceError naming the picture, InterruptedByUserError after a stop.
    """
    _refuse_other_classes(segmenter.classes, dataset)
    started, date = time.perf_counter(), datetime.now(UTC)
    count = len(dataset.classes)
    matrix = np.zeros((count, count), np.int64)
    void = 0
    for index, sample in enumerate(dataset.samples):
        if stop is not None and stop():
            raise InterruptedByUserError(
                f"evaluation stopped after {index} of {len(dataset)} pictures; nothing was written"
            )
        image, truth = read_pair(dataset, index)
        try:
            labels = predict_labels(segmenter.model, image, segmenter.options, segmenter.device)
            matrix += confusion_matrix(truth, labels, count)
        except (DataError, NotFiniteError, ResourceError) as error:
            raise type(error)(f"{sample.image}: {error}") from error
        void += int((truth == IGNORE).sum())
        if progress is not None:
            progress(index + 1, len(dataset))
    return Evaluation(
        classes=dataset.classes,
        matrix=matrix,
        scores=scores(matrix),
        protocol=_protocol(segmenter, dataset, void),
        timing={
            "date": date.isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - started, 3),
            "pictures": len(dataset),
        },
    )


def write_metrics(folder: Path, evaluation: Evaluation) -> Path:
    """Writes timing.json, then metrics.json, each atomically; returns the path of metrics.json."""
    write_json(folder / "timing.json", evaluation.timing)
    path = folder / "metrics.json"
    write_json(path, evaluation.to_json())
    return path


def _protocol(segmenter: Segmenter, dataset: Dataset, void: int) -> dict[str, Any]:
    """States all that the numbers depend on, and nothing that differs between equal runs."""
    names = "".join(f"{sample.name}\n" for sample in dataset.samples)
    return {
        "dataset": dataset.name,
        "root": dataset.root.resolve().name,
        "split": dataset.split,
        "pictures": len(dataset),
        "names_sha256": hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest(),
        "void_pixels": void,
        "resolution": "every picture at its own size, labels compared at the mask's size",
        "miou": "mean over the classes present in truth or prediction; void pixels not counted",
        "inference": segmenter.options.model_dump(mode="json")
        | {"tiled_above_pixels": WHOLE_LIMIT, "automatic_tile": AUTOMATIC_TILE},
        "model_sha256": segmenter.info["sha256"],
        "device": str(segmenter.device),
        "threads": torch.get_num_threads(),
        "deform_conv2d": cuda_ops.backend(torch.device(segmenter.device).type),
        "versions": {
            "segdeform": segdeform.__version__,
            "torch": str(torch.__version__),
            "torchvision": version("torchvision"),
        },
    }


def _refuse_other_classes(classes: tuple[str, ...], dataset: Dataset) -> None:
    """Raises DataError unless the model's classes are the data set's, in the same order."""
    theirs = dataset.classes
    if classes == theirs:
        return
    pairs = zip(classes, theirs, strict=False)
    first = next((k for k, (a, b) in enumerate(pairs) if a != b), min(len(classes), len(theirs)))
    raise DataError(
        f"the model knows {len(classes)} classes and data set '{dataset.name}' has {len(theirs)}; "
        f"they part at class {first}: {_name(classes, first)} against {_name(theirs, first)}. "
        "Evaluate on the data set that the model was trained for"
    )


def _name(classes: tuple[str, ...], index: int) -> str:
    return f"'{classes[index]}'" if index < len(classes) else "none"


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
