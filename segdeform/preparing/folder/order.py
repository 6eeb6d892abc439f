"""What `segdeform prepare folder` was asked for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from segdeform.errors import UsageError

_WIDEST = 1000  # pixels
Mode = Literal["refer", "copy", "link"]


@dataclass(frozen=True)
class Order:
    """Pictures and masks, and how a data set is to be made of them. Raises UsageError."""

    output: Path
    images: Path | None = None
    masks: Path | None = None
    pairs: Path | None = None  # a list of pairs
    mask_name: str | None = None  # NAME_mask
    split: float = 0.2  # share of the pictures to validate on
    test: float = 0.0  # share that is kept for the end
    group_by: str | None = None  # regular expression
    folds: int = 0
    classes: str | None = None  # names with commas, or a file
    values: str | None = None  # 0:background,255:crack
    threshold: int | None = None  # grey from which on a blurred mask is white
    partial: bool = False  # of annotations: pixels of no shape are not scored
    keep_empty: bool = False  # pictures without a mask or an annotation are background
    line_width: float | None = None  # pixels; of annotations: how wide lines are drawn
    seed: int = 0
    mode: Mode = "refer"
    workers: int = 2

    def __post_init__(self) -> None:
        if not 0 < self.split < 1:
            raise UsageError(f"--split {self.split:g}: the share to validate on, between 0 and 1")
        if not 0 <= self.test < 1 or self.split + self.test >= 1:
            raise UsageError(f"--test {self.test:g}: with --split, a share below 1 of the pictures")
        if self.line_width is not None and not 0 < self.line_width <= _WIDEST:
            raise UsageError(f"--line-width {self.line_width:g}: pixels, up to {_WIDEST}")
        if self.keep_empty and self.pairs is not None:
            raise UsageError("--keep-empty: a list of pairs has no pictures without a mask")
        if self.folds == 1 or self.folds < 0:
            raise UsageError(f"--folds {self.folds}: two or more, or 0 for none")

    def arguments(self) -> dict[str, Any]:
        """Returns what the result depends on, as JSON values."""
        paths = {"images": self.images, "masks": self.masks, "pairs": self.pairs}
        return {
            **{key: path and os.path.abspath(path) for key, path in paths.items()},  # noqa: PTH100
            "mask_name": self.mask_name,
            "split": self.split,
            "test": self.test,
            "group_by": self.group_by,
            "folds": self.folds,
            "classes": self.classes,
            "values": self.values,
            "threshold": self.threshold,
            # What is not asked for is left out: earlier records do not hold it.
            **({"partial": True} if self.partial else {}),
            **({"keep_empty": True} if self.keep_empty else {}),
            **({"line_width": self.line_width} if self.line_width is not None else {}),
            "seed": self.seed,
            "files": self.mode,
        }
