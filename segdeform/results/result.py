"""What a network says of one picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeform.data.channels import shown_colours
from segdeform.data.rasters import Raster
from segdeform.results.facts import class_pixels
from segdeform.results.overlay import Color, Labels, Picture, overlay


@dataclass(frozen=True)
class Result:
    """Labels of a picture, and what can be made of them; `np.asarray(result)` are the labels."""

    labels: Labels  # [H, W] class numbers
    image: Raster  # [H, W, C], as the network knows it
    classes: tuple[str, ...]
    palette: tuple[Color, ...]
    source: Path | None = None  # the file that it was read from

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.labels, dtype=dtype, copy=copy)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the picture, pixels."""
        return self.labels.shape[0], self.labels.shape[1]

    def shares(self) -> dict[str, float]:
        """Returns the share of the pixels of every class that occurs, in the order of classes."""
        pairs = zip(self.classes, class_pixels(self.labels, len(self.classes)), strict=True)
        return {name: int(count) / self.labels.size for name, count in pairs if count}

    def overlay(self) -> Picture:
        """Draws the picture tinted in the classes' colours, uint8 [H, W, 3]."""
        return overlay(shown_colours(self.image[:, :]), self.labels, self.palette)
