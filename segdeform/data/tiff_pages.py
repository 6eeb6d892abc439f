"""The strips and tiles of a TIFF's page: those that a rectangle meets are read or decoded."""

from __future__ import annotations

import math
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import tifffile

from segdeform.data.rasters import Box, read_into
from segdeform.errors import UnsafeInputError

JPEG = 7  # a compression
JPEG_COLOURS = {1: "GRAYSCALE", 2: "RGB", 6: "YCBCR"}  # of photometric interpretations
_CACHE = 1 << 28  # bytes of decoded strips and tiles that are kept
_LARGEST_SEGMENT = 1 << 26  # bytes, of a strip or tile, unpacked
_MOST_BYTES = 1 << 32  # of a strip or tile at all, unpacked
_ROWS_AT_ONCE = 2048  # of the picture, which a row of windows is thought to take at most
_NO_FRAMES = (0xC4, 0xC8, 0xCC)  # markers among those that begin a JPEG's picture

Values = npt.NDArray[Any]  # [h, w, bands], as stored


class StoredPage:
    """The stored values of one page."""

    def __init__(self, page: tifffile.TiffPage, descriptor: int, cache: SegmentCache) -> None:
        assert page.dtype is not None
        self._page, self._descriptor, self._cache = page, descriptor, cache
        self.height, self.width, self.dtype = page.imagelength, page.imagewidth, page.dtype
        self._planes = page.planarconfig == 2 and page.samplesperpixel > 1
        self.rows = page.tilelength if page.is_tiled else min(page.rowsperstrip, self.height)
        self._columns = page.tilewidth if page.is_tiled else self.width
        self._down = math.ceil(self.height / self.rows)
        self._across = math.ceil(self.width / self._columns)
        self._samples = 1 if self._planes else page.samplesperpixel
        self._pixel = self._samples * self.dtype.itemsize  # bytes
        self._tables = page.jpegtables
        self._as_stored = (
            not page.is_tiled
            and page.compression == 1
            and page.predictor == 1
            and page.fillorder == 1
            and page.bitspersample == 8 * self.dtype.itemsize
        )
        self._refuse_cut()

    def _refuse_cut(self) -> None:
        """Raises ValueError where strips or tiles are missing, or lie outside of the file."""
        page, end = self._page, os.fstat(self._descriptor).st_size
        size = self.rows * self._columns * self._pixel
        if size > _MOST_BYTES and not self._as_stored:
            raise UnsafeInputError(
                f"{page.parent.filename}: a strip or tile unpacks to {size} bytes"
            )
        count = self._down * self._across * (page.samplesperpixel if self._planes else 1)
        if min(len(page.dataoffsets), len(page.databytecounts)) < count:
            raise ValueError(f"{len(page.dataoffsets)} of {count} strips or tiles are listed")
        offsets, lengths = (
            np.array(numbers[:count], np.uint64)
            for numbers in (page.dataoffsets, page.databytecounts)
        )
        if ((lengths > end) | (offsets > end) | (offsets + lengths > end)).any():
            raise ValueError(f"cut off: strips or tiles reach beyond byte {end}")
        if self._as_stored:
            rows = np.full(self._down, self.rows, np.uint64)
            rows[-1] = self.height - (self._down - 1) * self.rows
            needed = np.resize(rows * np.uint64(self.width * self._pixel), count)
            if ((lengths < needed) & (offsets > 0)).any():
                raise ValueError("cut off: strips hold fewer rows than they say")

    @property
    def is_cheap(self) -> bool:
        """Tells whether windows can be read without decoding much for each."""
        row = self._columns * self._pixel
        strips_fit = self._page.is_tiled or row * _ROWS_AT_ONCE <= _CACHE
        return self._as_stored or (strips_fit and row * self.rows <= _LARGEST_SEGMENT)

    def read(self, box: Box, wanted: Sequence[tuple[int, int]], values: Values) -> None:
        """Fills in bands, (its number, that in `values`), of a rectangle; holes are left alone."""
        planes: dict[int, list[tuple[int, int]]] = {}
        for band, number in wanted:
            plane, sample = (band, 0) if self._planes else (0, band)
            planes.setdefault(plane, []).append((sample, number))
        blocks = self._stored_blocks if self._as_stored else self._decoded_blocks
        for plane, found in planes.items():
            for top, left, block in blocks(plane, box):
                height, width = block.shape[:2]
                goal = values[top - box.top :, left - box.left :][:height, :width]
                for sample, number in found:
                    goal[..., number] = block[..., sample]

    def _stored_blocks(self, plane: int, box: Box) -> Iterator[tuple[int, int, Values]]:
        """Reads the rows of strips that are not packed, those of a rectangle alone."""
        top = box.top
        dtype = self.dtype.newbyteorder(self._page.parent.byteorder)
        while top < box.bottom:
            strip, inside = divmod(top, self.rows)
            bottom = min(box.bottom, (strip + 1) * self.rows)
            offset = self._page.dataoffsets[plane * self._down + strip]
            if offset:
                block = np.empty((bottom - top, box.width, self._samples), dtype)
                row = self.width * self._pixel
                at = offset + inside * row + box.left * self._pixel
                lines = block.reshape(1 if box.width == self.width else len(block), -1)
                for number, line in enumerate(lines):
                    if not read_into(self._descriptor, line, at + number * row):
                        raise ValueError("cut off while it was read")
                yield top, box.left, block
            top = bottom

    def _decoded_blocks(self, plane: int, box: Box) -> Iterator[tuple[int, int, Values]]:
        """Decodes the strips or tiles that a rectangle meets; yields what lies in it."""
        for down in range(box.top // self.rows, math.ceil(box.bottom / self.rows)):
            for across in range(box.left // self._columns, math.ceil(box.right / self._columns)):
                segment = self._segment((plane * self._down + down) * self._across + across)
                if segment is None:
                    continue
                first_row, first_column = down * self.rows, across * self._columns
                top, left = max(box.top, first_row), max(box.left, first_column)
                inside = segment[top - first_row :, left - first_column :]
                yield top, left, inside[: box.bottom - top, : box.right - left]

    def _segment(self, index: int) -> Values | None:
        """Returns a decoded strip or tile, [h, w, samples], cut to the picture; None for a hole."""
        offset, length = self._page.dataoffsets[index], self._page.databytecounts[index]
        if not (offset and length):
            return None
        key = (id(self), index)
        segment = self._cache.get(key)
        if segment is None:
            packed = np.empty(length, np.uint8)
            if not read_into(self._descriptor, packed, offset):
                raise ValueError("cut off while it was read")
            segment = self._decode(packed.tobytes(), index)
            self._cache.put(key, segment)
        return segment

    def _decode(self, packed: bytes, index: int) -> Values:
        page, place = self._page, index % (self._down * self._across)
        height = min(self.rows, self.height - place // self._across * self.rows)
        width = min(self._columns, self.width - place % self._across * self._columns)
        try:
            if page.compression == JPEG:
                colours = JPEG_COLOURS[page.photometric]
                rows, columns = _jpeg_size(packed)
                if rows > self.rows or columns > self._columns:
                    raise ValueError(f"a strip or tile of {rows}x{columns} pixels is too large")
                shown = "RGB" if colours == "YCBCR" else colours
                values = imagecodecs.jpeg8_decode(
                    packed, tables=self._tables, colorspace=colours, outcolorspace=shown
                )
                values = values.reshape(*values.shape[:2], -1)
            else:
                found = page.decode(packed, index)[0]
                assert found is not None
                values = found[0]
        except (tifffile.TiffFileError, RuntimeError) as error:  # RuntimeError: imagecodecs'
            raise ValueError(str(error)) from error
        if values.shape[0] < height or values.shape[1] < width or values.shape[2] != self._samples:
            raise ValueError(f"a strip or tile of {values.shape} lacks pixels")
        return values[:height, :width]


def _jpeg_size(packed: bytes) -> tuple[int, int]:
    """Returns the (H, W) in the header of a JPEG, before memory is taken. Raises ValueError."""
    at = 2
    while at + 9 <= len(packed):
        marker, length = packed[at + 1], int.from_bytes(packed[at + 2 : at + 4])
        if 0xC0 <= marker <= 0xCF and marker not in _NO_FRAMES:
            height, width = packed[at + 5 : at + 7], packed[at + 7 : at + 9]
            return int.from_bytes(height), int.from_bytes(width)
        at += 2 + length
    raise ValueError("a strip or tile is no JPEG")


class SegmentCache:
    """Keeps what was decoded last, up to a number of bytes; threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, int], Values] = OrderedDict()
        self._bytes = 0

    def get(self, key: tuple[int, int]) -> Values | None:
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            return found

    def put(self, key: tuple[int, int], values: Values) -> None:
        if values.base is not None:  # not more than what is counted
            values = values.copy()
        with self._lock:
            if key in self._kept:  # by another thread
                return
            self._kept[key] = values
            self._bytes += values.nbytes
            while self._bytes > _CACHE:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
