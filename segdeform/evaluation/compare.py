"""Two evaluations of the same pictures: by how much they differ, and whether that is noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeform.config.dotted import dotted
from segdeform.errors import DataError
from segdeform.evaluation import bootstrap
from segdeform.evaluation.bootstrap import Interval
from segdeform.evaluation.counts import picture_scores
from segdeform.evaluation.result import Result
from segdeform.files.atomic import json_number

# What a comparison is about to find out, or what cannot change a score by itself.
_EXPECTED_TO_DIFFER = {"model_sha256", "root", "predictions", "predictions_sha256"}


@dataclass(frozen=True)
class Difference:
    """One score of A and of B; NaN: not there."""

    name: str
    first: float
    second: float
    interval: Interval  # of second - first

    @property
    def change(self) -> float:
        """What B has more than A."""
        return self.second - self.first

    @property
    def clear(self) -> bool:
        """Whether the interval leaves 0 out: the change can be told from noise."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return {
            "name": self.name,
            "a": json_number(self.first),
            "b": json_number(self.second),
            "change": json_number(self.change),
            "interval": None if self.interval is None else list(self.interval),
            "clear": self.clear,
        }


@dataclass(frozen=True)
class Comparison:
    """How result B differs from result A."""

    pictures: int
    miou: Difference
    classes: tuple[Difference, ...]
    images: tuple[Difference, ...]  # mIoU of single pictures, the largest loss first
    protocol: dict[str, tuple[Any, Any]]  # what else differs, dotted keys

    def to_json(self) -> dict[str, Any]:
        """Returns all of it as JSON values."""
        return {
            "pictures": self.pictures,
            "miou": self.miou.to_json(),
            "classes": [difference.to_json() for difference in self.classes],
            "images": [
                {"name": image.name, "a": json_number(image.first), "b": json_number(image.second)}
                | {"change": json_number(image.change)}
                for image in self.images
            ],
            "protocol": {key: list(values) for key, values in self.protocol.items()},
            "uncertainty": bootstrap.describe() | {"paired": True},
        }


def compare(first: Result, second: Result) -> Comparison:
    """Compares two results picture by picture.

    The bootstrap is paired: each resample takes the same pictures from both, so that what makes a
    picture hard for both cancels out.

    Raises:
        DataError: other pictures, masks or classes.
    """
    _refuse_other_data(first, second)
    count = len(first.pictures)
    ious = [bootstrap.resampled_ious(r.rows, count, len(r.classes)) for r in (first, second)]
    means = [bootstrap.mean_ious(values) for values in ious]
    classes = []
    for k, name in enumerate(first.classes):
        a, b = (_float(r.metrics["classes"][k]["iou"]) for r in (first, second))
        interval = bootstrap.interval(ious[1][:, k] - ious[0][:, k], count)
        classes.append(Difference(name, a, b, interval))
    return Comparison(
        pictures=count,
        miou=Difference(
            "mIoU",
            _float(first.metrics["miou"]),
            _float(second.metrics["miou"]),
            bootstrap.interval(means[1] - means[0], count),
        ),
        classes=tuple(classes),
        images=_images(first, second),
        protocol=_other_protocol(first.protocol, second.protocol),
    )


def _images(first: Result, second: Result) -> tuple[Difference, ...]:
    a, b = (picture_scores(r.rows, len(r.pictures)).miou for r in (first, second))
    order: NDArray[np.intp] = np.argsort(b - a, kind="stable")  # NaN last
    return tuple(
        Difference(first.pictures[k], float(a[k]), float(b[k]), None)
        for k in order
        if _scored(a[k], b[k])
    )


def _scored(*values: Any) -> bool:
    return not any(np.isnan(value) for value in values)


def _refuse_other_data(first: Result, second: Result) -> None:
    between = f"{first.folder} and {second.folder}"
    if first.classes != second.classes:
        raise DataError(f"{between} have other classes: they cannot be compared")
    a, b = first.protocol, second.protocol
    if a["names_sha256"] != b["names_sha256"] or first.pictures != second.pictures:
        shared = len(set(first.pictures) & set(second.pictures))
        raise DataError(
            f"{between} are of other pictures ({len(first.pictures)} and {len(second.pictures)}, "
            f"{shared} in both): evaluate both on the same split"
        )
    if a["labels_sha256"] != b["labels_sha256"]:
        raise DataError(f"{between} were scored by other masks of the same pictures")


def _other_protocol(first: Any, second: Any) -> dict[str, tuple[Any, Any]]:
    """Finds the differing values of two protocols."""
    # Earlier versions computed in float32 and did not tell.
    a, b = (dotted({"precision": "fp32"} | protocol) for protocol in (first, second))
    keys = sorted((a.keys() | b.keys()) - _EXPECTED_TO_DIFFER)
    return {key: (a.get(key), b.get(key)) for key in keys if a.get(key) != b.get(key)}


def _float(value: float | None) -> float:
    return float("nan") if value is None else value
