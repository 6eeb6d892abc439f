"""Pictures of any size, of which a part can be had at a time."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt


class Raster(Protocol):
    """A picture [H, W, C] whose parts are read when they are asked for; arrays are such."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W, C)."""

    def __getitem__(self, part: tuple[slice, slice], /) -> npt.NDArray[np.uint8]:
        """Reads rows and columns, [h, w, C]."""
