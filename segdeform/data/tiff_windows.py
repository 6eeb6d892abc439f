"""TIFFs of any size, of which only the strips and tiles are decoded that a window meets.

Samples and colours are those of `image_io.read_image`, to the bit; what it reads by other rules is
left to it.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import tifffile
from PIL import ImageFile, TiffImagePlugin

from segdeform.data.bands import COMPRESSIONS, BandsFile, frame_count, with_channels
from segdeform.data.channels import Bands, refuse_bands, turned
from segdeform.data.depth import Samples, ValueRange
from segdeform.data.image_io import orientation, shown, told_failures
from segdeform.data.rasters import Box, Part, UInt8, box_of, read_into, stored_box
from segdeform.errors import UnsafeInputError

_CACHE = 1 << 28  # bytes of decoded strips and tiles that are kept
_LARGEST_SEGMENT = 1 << 26  # bytes, of a strip or tile, unpacked
_MOST_BYTES = 1 << 32  # of a strip or tile at all, unpacked
_ROWS_AT_ONCE = 2048  # of the picture, which a row of windows is thought to take at most
_JPEG = 7  # a compression
_WITHOUT_PREDICTOR = (1, 32773)  # none, PackBits
_NO_FRAMES = (0xC4, 0xC8, 0xCC)  # markers among those that begin a JPEG's picture
# Photometric interpretations, and how many samples they have.
_WHITE_IS_ZERO, _GREY, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6
_SAMPLES = {_WHITE_IS_ZERO: 1, _GREY: 1, _RGB: 3, _PALETTE: 1, _YCBCR: 3}
_JPEG_COLOURS = {_GREY: "GRAYSCALE", _RGB: "RGB", _YCBCR: "YCBCR"}
# Of the pictures that Pillow reads: 8 bits, 16 of grey, and others whose black and white are given.
_BYTE, _SHORT, _RANGED = "u1", "u2", ("u2", "i2", "i4", "f4")

Values = npt.NDArray[Any]  # [h, w, bands], as stored


class TiffRaster:
    """The first picture of a TIFF, [H, W, C] upright, decoded where it is looked at.

    Threads may share it. The file stays open as long as it lives.
    """

    def __init__(
        self,
        path: Path,
        pages: Sequence[_Page],  # more than one where pages are channels, of a band each
        bands: Sequence[int],  # of the file
        colours: _Colours,
        turn: int,  # EXIF orientation
    ) -> None:
        self._path, self._pages, self._colours, self.turn = path, pages, colours, turn
        # page -> its bands that are wanted, and which of ours they are
        self._wanted: dict[int, list[tuple[int, int]]] = {}
        for number, band in enumerate(bands):
            page, its = (band, 0) if len(pages) > 1 else (0, band)
            self._wanted.setdefault(page, []).append((its, number))
        self._bands = len(bands)
        self.stored_size = pages[0].height, pages[0].width
        size = self.stored_size[::-1] if turn >= 5 else self.stored_size
        self.shape = (*size, colours.channels(len(bands)))

    @property
    def is_cheap(self) -> bool:
        """Tells whether what a row of windows decodes fits the cache, so that none is done twice.

        Where it does not, the picture is better decoded once, `stored_rows` by `stored_rows`.
        """
        return all(page.is_cheap for page in self._pages)

    @property
    def is_deep(self) -> bool:
        """Tells whether its values have more than 8 bits."""
        return self._pages[0].dtype.itemsize > 1

    @property
    def stored_rows(self) -> int:
        """How many rows of the stored picture a strip or tile has."""
        return self._pages[0].rows

    def __getitem__(self, part: Part) -> UInt8:
        box = stored_box(box_of(part, self.shape), self.turn, self.stored_size)
        return turned(self.stored(box), self.turn)

    def stored(self, box: Box) -> UInt8:  # [h, w, C]
        """Reads a rectangle as it is stored, not turned. Raises as `read_image` does."""
        with told_failures(self._path):
            values = np.zeros((box.height, box.width, self._bands), self._pages[0].dtype)
            for page, wanted in self._wanted.items():
                self._pages[page].read(box, wanted, values)
            return self._colours.of(values)


class _Colours:
    """Makes 8-bit channels of stored values, by the rules of `read_image`."""

    def __init__(
        self,
        path: Path,
        white: int | None,
        value_range: ValueRange | None,
        bands: Bands | None,
        photometric: int,
        palette: UInt8 | None = None,  # [values, 3]
    ) -> None:
        self._path, self._white, self._range = path, white, value_range
        self._bands, self._inverted, self._palette = bands, photometric == _WHITE_IS_ZERO, palette

    def channels(self, stored: int) -> int:
        """Returns how many channels there are of so many stored bands."""
        if self._palette is not None and self._bands is not None:
            return len(self._bands)
        return 3 if self._bands is None else stored

    def of(self, values: Values) -> UInt8:  # [h, w, bands] -> [h, w, C]
        """Raises DataError where nobody knows what is white."""
        if self._palette is not None:
            rgb = self._palette[values[..., 0]]
            return rgb if self._bands is None else np.ascontiguousarray(rgb[..., self._bands])
        if self._inverted:
            values = 255 - values
        if values.dtype != np.uint8 or self._white != 255:
            grey = self._bands is None and values.shape[2] == 1  # one range, as of a grey picture
            samples = Samples(values[..., 0] if grey else values, self._white)
            values = shown(samples, self._path, self._range).reshape(values.shape)
        if self._bands is None and values.shape[2] == 1:
            values = np.repeat(values, 3, axis=2)
        return values


class _Page:
    """The stored values of one page."""

    def __init__(self, page: tifffile.TiffPage, descriptor: int, cache: _Cache) -> None:
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
            if page.compression == _JPEG:
                colours = _JPEG_COLOURS[page.photometric]
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


class _Cache:
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


def tiff_raster(
    image: ImageFile.ImageFile,
    path: Path,
    value_range: ValueRange | None = None,
    bands: Bands | None = None,
) -> TiffRaster | None:
    """Opens an opened picture once more, to be read in windows; None where it is of another kind.

    Raises BandsError where it has fewer bands, and what damaged headers do.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.fp is not None:
        if image.tell():  # another page
            return None
        source = with_channels(image) if bands is not None else None
        if source is None:
            return _of_pillows(image, path, value_range, bands)
        image = source
    if not isinstance(image, BandsFile) or image.plane or image.fp is None:
        return None
    if bands is not None and max(bands) >= image.every_band:
        refuse_bands(path, bands, image.every_band, frame_count(image))
    found = image.channels if bands is not None and image.channels else (image.page,)
    if not all(_is_known(page) for page in found):
        return None
    wanted = bands if bands is not None else (0, 1, 2) if image.bands > 2 else (0,)
    colours = _Colours(path, image.white, value_range, bands, _GREY)
    return _raster(image, path, found, wanted, colours, orientation(image))


def _of_pillows(
    image: TiffImagePlugin.TiffImageFile,
    path: Path,
    value_range: ValueRange | None,
    bands: Bands | None,
) -> TiffRaster | None:
    """Opens what Pillow reads otherwise, where it is sure to give the same."""
    assert image.fp is not None
    try:
        source = BandsFile(image.fp, str(path))
    except (OSError, ValueError, TypeError, LookupError, SyntaxError):
        return None
    page = source.page
    if not _is_as_pillow_reads(page, value_range):
        return None
    palette = None
    if page.photometric == _PALETTE:
        if page.colormap is None or page.colormap.shape != (3, 256):
            return None
        palette = np.ascontiguousarray((page.colormap >> 8).astype(np.uint8).T)
    count = 3 if palette is not None else page.samplesperpixel
    if bands is not None and max(bands) >= count:
        refuse_bands(path, bands, count, frame_count(image))
    wanted = (0,) if palette is not None else bands or tuple(range(count))
    colours = _Colours(path, source.white, value_range, bands, page.photometric, palette)
    return _raster(source, path, (page,), wanted, colours, orientation(image))


def _is_known(page: tifffile.TiffPage) -> bool:
    kinds = page.compression in COMPRESSIONS and page.photometric in (_GREY, _RGB)
    return kinds and page.imagedepth == 1 and page.dtype is not None and page.dtype.kind in "uif"


def _is_as_pillow_reads(page: tifffile.TiffPage, value_range: ValueRange | None) -> bool:
    """Tells whether tifffile gives the samples that Pillow does."""
    if page.dtype is None or page.imagedepth != 1 or page.fillorder != 1:
        return False
    if page.samplesperpixel != _SAMPLES.get(page.photometric):
        return False
    if page.photometric == _WHITE_IS_ZERO and page.planarconfig != 1:  # which Pillow leaves as is
        return False
    if page.bitspersample != 8 * page.dtype.itemsize:
        return False
    if page.predictor != 1 and page.compression in _WITHOUT_PREDICTOR:  # libtiff leaves it out
        return False
    lengths = zip(page.dataoffsets, page.databytecounts, strict=False)
    if any(offset and not length for offset, length in lengths):  # Pillow does not look at them
        return False
    byte = page.dtype.str[1:] == _BYTE
    if page.compression == _JPEG:
        return byte and page.photometric in _JPEG_COLOURS and page.planarconfig == 1
    if page.compression not in COMPRESSIONS or page.photometric == _YCBCR:
        return False
    if byte:
        return True
    allowed = (_SHORT,) if value_range is None else _RANGED
    return page.photometric == _GREY and page.dtype.str[1:] in allowed


def _raster(
    image: BandsFile,
    path: Path,
    pages: Sequence[tifffile.TiffPage],
    bands: Sequence[int],
    colours: _Colours,
    turn: int,
) -> TiffRaster:
    assert image.fp is not None
    descriptor = os.dup(image.fp.fileno())
    try:
        cache = _Cache()
        read = [_Page(page, descriptor, cache) for page in pages]
        raster = TiffRaster(path, read, bands, colours, turn)
    except BaseException:
        os.close(descriptor)
        raise
    weakref.finalize(raster, os.close, descriptor)
    return raster
