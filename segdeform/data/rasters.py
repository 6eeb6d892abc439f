"""Pictures of any size, of which a part can be had at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from segdeform.errors import DataError, ResourceError
from segdeform.files.atomic import write_error

UInt8 = npt.NDArray[np.uint8]
Part = tuple[slice, slice]


class Raster(Protocol):
    """A picture [H, W, C] whose parts are read when they are asked for; arrays are such."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W, C)."""

    def __getitem__(self, part: Part, /) -> UInt8:
        """Reads rows and columns, [h, w, C]."""


class Box(NamedTuple):
    """A rectangle of pixels; bottom and right are those after the last."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left


def box_of(part: Part, shape: tuple[int, ...]) -> Box:
    """Returns what slices mean of a picture of a shape, as of arrays. Raises IndexError."""
    (top, bottom, down), (left, right, across) = (
        piece.indices(size) for piece, size in zip(part, shape[:2], strict=True)
    )
    if (down, across) != (1, 1):
        raise IndexError("a raster is read in rectangles: slices without a step")
    return Box(top, max(top, bottom), left, max(left, right))


# Which EXIF orientations mirror the rows, and which the columns, before 5 to 8 exchange them.
_ROWS_MIRRORED, _COLUMNS_MIRRORED = frozenset((3, 4, 6, 7)), frozenset((2, 3, 7, 8))


def stored_box(upright: Box, orientation: int, stored_size: tuple[int, int]) -> Box:
    """Returns where a rectangle of the upright picture lies in the stored one, [H, W]."""
    top, bottom, left, right = upright
    if orientation >= 5:
        top, bottom, left, right = left, right, top, bottom
    return _mirrored(Box(top, bottom, left, right), orientation, stored_size)


def upright_box(stored: Box, orientation: int, stored_size: tuple[int, int]) -> Box:
    """Returns where a rectangle of the stored picture, [H, W], lies in the upright one."""
    top, bottom, left, right = _mirrored(stored, orientation, stored_size)
    return Box(left, right, top, bottom) if orientation >= 5 else Box(top, bottom, left, right)


def _mirrored(box: Box, orientation: int, size: tuple[int, int]) -> Box:
    top, bottom, left, right = box
    if orientation in _ROWS_MIRRORED:
        top, bottom = size[0] - bottom, size[0] - top
    if orientation in _COLUMNS_MIRRORED:
        left, right = size[1] - right, size[1] - left
    return Box(top, bottom, left, right)


class PartOfRaster:
    """A rectangle of another raster, as a picture of its own."""

    def __init__(self, whole: Raster, top: int, left: int, height: int, width: int) -> None:
        """Raises DataError where it does not lie in the picture."""
        size = whole.shape[:2]
        if min(top, left) < 0 or min(height, width) < 1:
            raise DataError(f"no part of a picture: {height}x{width} pixels at {top}, {left}")
        if top + height > size[0] or left + width > size[1]:
            raise DataError(
                f"a part of {height}x{width} pixels at row {top}, column {left} does not lie in a "
                f"picture of {size[0]}x{size[1]}"
            )
        self._whole, self._top, self._left = whole, top, left
        self.shape = (height, width, *whole.shape[2:])

    def __getitem__(self, part: Part) -> UInt8:
        top, bottom, left, right = box_of(part, self.shape)
        rows = slice(self._top + top, self._top + bottom)
        return self._whole[rows, self._left + left : self._left + right]


class FileRaster:
    """A decoded picture in an unnamed temporary file, which goes with the process or before.

    It is read and written, not mapped: pages of a map count as memory of the process.
    """

    def __init__(self, shape: tuple[int, int, int], scratch: Path | None = None) -> None:
        """Takes the room on the disk of `scratch`, by default the system's temporary folder.

        Raises ResourceError where the disk is full, UsageError where it cannot be written.
        """
        self.shape = shape
        self._folder = scratch
        try:
            self._file = TemporaryFile(dir=scratch, buffering=0)  # noqa: SIM115, lives on
            os.posix_fallocate(self._file.fileno(), 0, shape[0] * shape[1] * shape[2])
        except OSError as error:
            raise write_error(scratch or Path("temporary folder"), error) from error

    def __getitem__(self, part: Part) -> UInt8:
        box, channels = box_of(part, self.shape), self.shape[2]
        pixels = np.empty((box.height, box.width, channels), np.uint8)
        for at, row in self._rows(box, pixels):
            if not read_into(self._file.fileno(), row, at):
                raise ResourceError("the temporary file of a picture was cut short")
        return pixels

    def put(self, top: int, left: int, pixels: UInt8) -> None:  # [h, w, C]
        """Writes a rectangle. Raises ResourceError."""
        pixels = np.ascontiguousarray(pixels)
        box = Box(top, top + pixels.shape[0], left, left + pixels.shape[1])
        try:
            for start, row in self._rows(box, pixels):
                rest, at = row.data, start
                while rest.nbytes:
                    written = os.pwrite(self._file.fileno(), rest, at)
                    rest, at = rest[written:], at + written
        except OSError as error:
            raise write_error(self._folder or Path("temporary folder"), error) from error

    def _rows(self, box: Box, pixels: UInt8) -> Iterator[tuple[int, UInt8]]:
        """Pairs what lies together in the file with its memory: rows, or all where they touch."""
        _, width, channels = self.shape
        first = (box.top * width + box.left) * channels
        if not pixels.size:
            return
        for number, line in enumerate(pixels.reshape(1 if box.width == width else box.height, -1)):
            yield first + number * width * channels, line


def read_into(descriptor: int, goal: npt.NDArray[Any], at: int) -> bool:
    """Fills an array with bytes of a file, from any thread; False where it ends before."""
    left = goal.reshape(-1).view(np.uint8).data
    while left.nbytes:
        count = os.preadv(descriptor, [left], at)
        if count == 0:
            return False
        left, at = left[count:], at + count
    return True
