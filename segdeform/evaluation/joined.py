"""Several results as one: the folds of a cross-validation, each picture scored once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segdeform.errors import DataError
from segdeform.evaluation.counts import Column, class_sums, ratio, union
from segdeform.evaluation.result import METRICS, Result, read_evaluation
from segdeform.files.atomic import json_number

_OF_PICTURES = ("names_sha256", "labels_sha256")


def read_side(folder: Path) -> Result:
    """Reads a result, or all that lie side by side in FOLDER as one. Raises DataError."""
    if (folder / METRICS).is_file() or not folder.is_dir():
        return read_evaluation(folder)
    parts = sorted(path.parent for path in folder.glob(f"*/{METRICS}"))
    parts = [path for path in parts if not path.name.startswith(".")]
    if not parts:
        return read_evaluation(folder)  # it says what is missing, or finds a half-replaced one
    return joined([read_evaluation(path) for path in parts], folder)


def joined(results: Sequence[Result], folder: Path) -> Result:
    """Counts the pictures of several results as those of one, in the order of their names.

    The scores are those of all pixels together, not means of the results' scores. Raises DataError
    where classes differ, or a picture is in two of them.
    """
    first = results[0]
    where: dict[str, Result] = {}
    for result in results:
        if result.classes != first.classes:
            raise DataError(f"{first.folder} and {result.folder} have other classes")
        for name in result.pictures:
            if name in where:
                raise DataError(
                    f"{where[name].folder} and {result.folder} both have the picture {name}: only "
                    "results of other pictures, as of folds, can be joined"
                )
            where[name] = result
    pictures = tuple(sorted(where))
    index = {name: number for number, name in enumerate(pictures)}
    parts = []
    for result in results:
        rows = result.rows.copy()
        numbers = np.array([index[name] for name in result.pictures], np.int64)
        rows[:, Column.PICTURE] = numbers[rows[:, Column.PICTURE]]
        parts.append(rows)
    rows = np.concatenate(parts)
    rows = rows[np.lexsort((rows[:, Column.CLASS], rows[:, Column.PICTURE]))]
    count = len(first.classes)
    ious = ratio(
        class_sums(rows, rows[:, Column.CORRECT], count), class_sums(rows, union(rows), count)
    )
    present = ious[~np.isnan(ious)]
    metrics = {
        "miou": float(present.mean()) if present.size else None,
        "classes": [
            {"name": name, "iou": json_number(iou)}
            for name, iou in zip(first.classes, ious.tolist(), strict=True)
        ],
        "protocol": _protocol([result.protocol for result in results]),
    }
    return Result(folder, metrics, pictures, rows)


def _protocol(protocols: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns what all say alike, and lists of the rest; the digests of the pictures as one."""
    ordered = sorted(protocols, key=lambda protocol: str(protocol["names_sha256"]))
    keys = dict.fromkeys(key for protocol in ordered for key in protocol)
    whole = {key: _as_one([protocol.get(key) for protocol in ordered]) for key in keys}
    for key in _OF_PICTURES:
        text = " ".join(str(protocol[key]) for protocol in ordered)
        whole[key] = hashlib.sha256(text.encode()).hexdigest()
    return whole


def _as_one(values: Sequence[Any]) -> Any:
    if all(value == values[0] for value in values):
        return values[0]
    if all(isinstance(value, Mapping) for value in values):
        keys = dict.fromkeys(key for value in values for key in value)
        return {key: _as_one([value.get(key) for value in values]) for key in keys}
    return list(values)
