"""What an evaluation leaves on the disk, and how it is read again.

metrics.json  scores, per-class rows, confusion matrix, protocol; equal runs write equal bytes
timing.json   date and seconds
classes.csv   one row a class
images.csv    one row a picture
counts.npy    int64 [R, 7], the pixels of each class in each picture (`counts.Column`)
report.html   the same for a person, with the worst and best pictures; needs no network
manifest.json SHA-256 of all these
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segdeform.errors import DataError, ModelError, UsageError
from segdeform.evaluation.counts import Column, Rows
from segdeform.files.atomic import json_number, write_error, write_json, write_text
from segdeform.files.manifest import MANIFEST, find_folder, replacing_folder, verify_manifest

if TYPE_CHECKING:
    from segdeform.evaluation.evaluate import Evaluation

METRICS, COUNTS, IMAGES, REPORT = "metrics.json", "counts.npy", "images.csv", "report.html"
LABEL_MAPS = "labelIds"  # subfolder with the label maps that official scripts read


def write_metrics(
    folder: Path, evaluation: Evaluation, others: Mapping[str, Evaluation] | None = None
) -> Path:
    """Writes timing.json, then metrics.json, each atomically; returns the path of metrics.json.

    `others` are of further splits, whose scores stand under `other_splits` by their names.
    """
    write_json(folder / "timing.json", evaluation.timing)
    path, metrics = folder / METRICS, evaluation.to_json()
    if others:
        metrics["other_splits"] = {name: other.to_json() for name, other in others.items()}
    write_json(path, metrics)
    return path


def write_evaluation(
    folder: Path, evaluation: Evaluation, report: str, label_maps: Path | None = None
) -> None:
    """Writes a whole result, which takes the place of a former one when it is complete.

    `label_maps` is a folder on the same disk that moves into the result.

    Raises:
        UsageError: the folder holds something else, or cannot be written.
        ResourceError: the disk is full.
    """
    check_output(folder)
    with replacing_folder(folder.resolve()) as new:
        write_metrics(new, evaluation)
        write_text(new / "classes.csv", _csv(_class_rows(evaluation)))
        write_text(new / IMAGES, _csv(_image_rows(evaluation)))
        np.save(new / COUNTS, evaluation.counts.rows, allow_pickle=False)
        write_text(new / REPORT, report)
        if label_maps is not None:
            label_maps.rename(new / LABEL_MAPS)


def check_output(folder: Path) -> None:
    """Raises UsageError where `folder` is neither new, nor empty, nor an earlier result alone."""
    folder = folder.resolve()
    try:
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder} is not a folder; choose another --output")
        names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    except OSError as error:
        raise write_error(folder, error) from error
    if not names:
        return
    foreign = names - {LABEL_MAPS, MANIFEST, METRICS, *_listed(folder)}
    if not {MANIFEST, METRICS} <= names or foreign:
        found = ", ".join(sorted(foreign or names)[:3])
        raise UsageError(
            f"{folder} holds something else than an earlier evaluation ({found}); "
            "choose another --output"
        )


def _listed(folder: Path) -> set[str]:
    try:
        return set(json.loads((folder / MANIFEST).read_bytes())["files"])
    except (OSError, ValueError, TypeError, KeyError):
        return set()


@dataclass(frozen=True)
class Result:
    """A result read from its folder."""

    folder: Path
    metrics: dict[str, Any]
    pictures: tuple[str, ...]  # N names
    rows: Rows

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return tuple(row["name"] for row in self.metrics["classes"])

    @property
    def protocol(self) -> dict[str, Any]:
        """What the numbers depend on."""
        protocol: dict[str, Any] = self.metrics["protocol"]
        return protocol


def read_evaluation(folder: Path) -> Result:
    """Reads what `eval --output` wrote; every file is checked by its SHA-256.

    Raises:
        DataError: it is missing, damaged, or no result of an evaluation.
    """
    folder = find_folder(folder)
    if not (folder / METRICS).is_file() or not (folder / COUNTS).is_file():
        raise DataError(
            f"{folder}: holds no result of an evaluation; "
            f"make one: segdeform eval MODEL --data ROOT --output {folder}"
        )
    try:
        verify_manifest(folder, (METRICS, COUNTS, IMAGES))
        metrics = json.loads((folder / METRICS).read_bytes())
        with (folder / IMAGES).open(encoding="utf-8", newline="") as file:
            pictures = tuple(row["picture"] for row in csv.DictReader(file))
        rows = np.load(folder / COUNTS, allow_pickle=False)
        result = Result(folder, metrics, pictures, rows)
        sound = (
            rows.dtype == np.int64
            and rows.shape[1:] == (len(Column),)
            and result.protocol["pictures"] == len(pictures)
            and len(result.classes) > rows[:, Column.CLASS].max(initial=0)
            and len(pictures) > rows[:, Column.PICTURE].max(initial=0)
        )
    except ModelError as error:
        raise DataError(str(error)) from error
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise DataError(f"{folder}: the result cannot be read ({error}); evaluate again") from error
    if not sound:
        raise DataError(f"{folder}: the files of the result do not fit together; evaluate again")
    return result


def _class_rows(evaluation: Evaluation) -> Iterable[Sequence[Any]]:
    yield (
        *("class", "iou", "iou_low", "iou_high", "boundary_iou"),
        *("f1", "precision", "recall", "accuracy", "pixels", "predicted"),
    )
    for row in evaluation.to_json()["classes"]:
        low, high = row["iou_interval"] or (None, None)
        keys = ("boundary_iou", "f1", "precision", "recall", "accuracy")
        scores = (row["iou"], low, high, *(row[key] for key in keys))
        yield row["name"], *scores, row["truth_pixels"], row["predicted_pixels"]


def _image_rows(evaluation: Evaluation) -> Iterable[Sequence[Any]]:
    yield "picture", "miou", "accuracy", "boundary_iou", "height", "width", "scored", "void"
    scores, counts = evaluation.picture_scores, evaluation.counts
    columns = (scores.miou, scores.accuracy, scores.boundary_iou)
    for index, name in enumerate(evaluation.pictures):
        height, width = (int(side) for side in counts.sizes[index])
        void = int(counts.void[index])
        values = [json_number(float(column[index])) for column in columns]
        yield name, *values, height, width, height * width - void, void


def _csv(rows: Iterable[Sequence[Any]]) -> str:
    """Formats rows as CSV; None is an empty field, a float is written so that it reads back."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
