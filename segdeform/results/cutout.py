"""One class of a picture, cut out along its labels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from segdeform.data.channels import shown_colours
from segdeform.data.rasters import Raster
from segdeform.results.overlay import Labels

_ROWS = 256


def cutout(image: Raster, labels: Labels, label: int) -> NDArray[np.uint8]:  # [H, W, 4]
    """Returns RGBA: the picture where the class is, transparent black elsewhere."""
    return np.concatenate(list(cutout_rows(image, labels, label)))


def cutout_rows(image: Raster, labels: Labels, label: int) -> Iterator[NDArray[np.uint8]]:
    """Yields `cutout` in strips of rows, [h, W, 4]."""
    for top in range(0, len(labels), _ROWS):
        part = labels[top : top + _ROWS]
        pixels = shown_colours(image[top : top + len(part), :])
        alpha = np.where(part == label, np.uint8(255), np.uint8(0))[..., None]
        yield np.concatenate([pixels & alpha, alpha], 2)
