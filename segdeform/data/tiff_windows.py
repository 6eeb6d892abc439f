"""TIFFs of any size, of which only the strips and tiles are decoded that a window meets.

Samples and colours are those of `image_io.read_image`, to the bit; what it reads by other rules is
left to it.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile
from PIL import ImageFile, TiffImagePlugin

from segdeform.data.bands import COMPRESSIONS, BandsFile, frame_count, with_channels
from segdeform.data.channels import Bands, refuse_bands, turned
from segdeform.data.depth import Samples, ValueRange
from segdeform.data.image_io import orientation, shown, told_failures
from segdeform.data.rasters import Box, Part, UInt8, box_of, stored_box
from segdeform.data.tiff_pages import JPEG, JPEG_COLOURS, SegmentCache, StoredPage, Values

_WITHOUT_PREDICTOR = (1, 32773)  # none, PackBits
# Photometric interpretations, and how many samples they have.
_WHITE_IS_ZERO, _GREY, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6
_SAMPLES = {_WHITE_IS_ZERO: 1, _GREY: 1, _RGB: 3, _PALETTE: 1, _YCBCR: 3}
# Of the pictures that Pillow reads: 8 bits, 16 of grey, and others whose black and white are given.
_BYTE, _SHORT, _RANGED = "u1", "u2", ("u2", "i2", "i4", "f4")


class TiffRaster:
    """The first picture of a TIFF, [H, W, C] upright, decoded where it is looked at.

    Threads may share it. The file stays open as long as it lives.
    """

    def __init__(
        self,
        path: Path,
        pages: Sequence[StoredPage],  # more than one where pages are channels, of a band each
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
        return np.ascontiguousarray(turned(self.stored(box), self.turn))

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
    if page.compression == JPEG:
        return byte and page.photometric in JPEG_COLOURS and page.planarconfig == 1
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
        cache = SegmentCache()
        read = [StoredPage(page, descriptor, cache) for page in pages]
        raster = TiffRaster(path, read, bands, colours, turn)
    except BaseException:
        os.close(descriptor)
        raise
    weakref.finalize(raster, os.close, descriptor)
    return raster
