"""TIFFs of bands: aerial and microscope pictures whose layout Pillow does not know or reads wrong.

Pillow takes four bands for premultiplied colours, five for damage, and keeps 8 bits of 16; tifffile
gives the bands as they are stored. The first three are red, green and blue, whatever the others say
of themselves; a TIFF of one or two bands is grey. Pages of one file are bands only where the file
says that they are channels (ImageJ, OME and tifffile do); else they are a stack, read by its first.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image, ImageFile, TiffImagePlugin

from segdeform.data.depth import to_8_bits
from segdeform.errors import DataError, UnsafeInputError

logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)  # our own lines tell of damage

_MAX_SEGMENT = 1 << 32  # bytes, of a strip or tile, unpacked
_MAX_PAGES = 100_000  # of a stack; beyond it, they are not counted further
_REDUCED_OR_MASK = 0b101  # bits of NewSubfileType: overviews and masks are no pages
# Tags.
_SUBFILE, _BITS, _PHOTOMETRIC = 254, 258, 262
_DESCRIPTION, _ORIENTATION, _SAMPLES, _PLANES = 270, 274, 277, 284
_COMPRESSION, _STRIPS, _TILES = 259, 273, 324
_GREY, _RGB = 1, 2  # photometric interpretations; others (palettes, CMYK, JPEG's) are Pillow's
# None, LZW, deflate, PackBits, deflate, LZMA, Zstandard: of imagecodecs' many decoders the only
# ones that ever see a byte of an input; they stop at the size that the header asks for.
COMPRESSIONS = {1, 5, 8, 32773, 32946, 34925, 50000}
_WHO_NAMES_AXES = {"imagej", "ome", "shaped"}  # tifffile's names of who says what pages are
# Scale and tie points, their matrix, and the keys of a GeoTIFF.
_GEOREFERENCE = (33550, 33922, 34264, 34735)
_ALPHA = {1, 2}  # what an extra band says of itself, premultiplied or not; else it is any
_EXTRAS = 338


class BandsFile(ImageFile.ImageFile):
    """A TIFF opened by tifffile, for whoever handles pictures of Pillow."""

    format = "TIFF"
    format_description = "TIFF of bands"

    def _open(self) -> None:
        try:
            assert self.fp is not None
            self.fp.seek(0)
            # A file that names others, as OME's can, is read alone.
            page = tifffile.TiffFile(self.fp, _multifile=False).pages[0]
        except (tifffile.TiffFileError, RuntimeError) as error:
            raise ValueError(str(error)) from error
        self.group = 0  # of pages that are channels, the picture
        self.plane = 0  # of a stack that is stored as one page
        self._take(page)

    def _take(self, page: object) -> None:
        assert isinstance(page, tifffile.TiffPage)
        self.page = page
        self._im = None
        self._size = page.imagewidth, page.imagelength
        self._mode = "RGB" if page.samplesperpixel > 2 else "L"
        self.info.pop("exif", None)
        self._exif = None
        turn = page.tags.get(_ORIENTATION)
        if turn is not None and isinstance(turn.value, int) and 1 <= turn.value <= 8:
            exif = Image.Exif()
            exif[_ORIENTATION] = turn.value
            self.info["exif"] = exif.tobytes()

    def seek(self, frame: int) -> None:
        """Turns to another page of the file, all of them counted. Raises EOFError, ValueError."""
        try:
            self._take(self.page.parent.pages[frame].aspage())
        except (tifffile.TiffFileError, RuntimeError) as error:
            raise ValueError(str(error)) from error
        except IndexError as error:
            raise EOFError(f"there is no page {frame}") from error

    def seek_group(self, group: int) -> None:
        """Turns to another picture of a file whose pages are channels."""
        self.group = group
        self.__dict__.pop("channels", None)
        self._take(self.channels[0])

    def load(self) -> Any:
        """Decodes the bands into an 8-bit picture; deeper ones are only read by `samples`."""
        if self._im is None:
            self.im = Image.fromarray(to_8_bits(self.samples(), 0, self.white or 65535)).im
        return super(ImageFile.ImageFile, self).load()

    @property
    def bands(self) -> int:
        """How many bands the first page has, read or not."""
        return self.page.samplesperpixel

    @cached_property
    def channels(self) -> tuple[tifffile.TiffPage, ...]:
        """The pages that are channels of one picture, of a time and depth; none unless the file
        says so."""
        try:
            series = self.page.parent.series[0]
            outer = series.axes[:-2]
            known = series.axes[-2:] == "YX" and "C" in outer and self.bands == 1
            count = math.prod(series.shape[:-2])
            if not known or series.kind not in _WHO_NAMES_AXES or not 1 < count <= _MAX_PAGES:
                return ()
            numbers = np.arange(count).reshape(series.shape[:-2])
            groups = np.moveaxis(numbers, outer.index("C"), -1).reshape(
                -1, series.shape[outer.index("C")]
            )
            found = [series.pages[int(number)] for number in groups[self.group]]
            pages = tuple(page.aspage() for page in found if page is not None)
        except MemoryError:
            raise
        except Exception:  # metadata of any kind, which nobody has to understand
            return ()
        alike = (self.page.shape, self.page.dtype)
        return pages if all((page.shape, page.dtype) == alike for page in pages) else ()

    @property
    def groups(self) -> int:
        """How many pictures the pages make where they are channels, of times and depths."""
        return math.prod(self.page.parent.series[0].shape[:-2]) // len(self.channels)

    @property
    def every_band(self) -> int:
        """How many bands there are to choose from, those in pages of their own included."""
        return len(self.channels) or self.bands

    @property
    def white(self) -> int | None:
        """The value of full brightness: of 10 or 12 declared bits their highest one."""
        if self.page.dtype is None or self.page.dtype.kind != "u" or self.page.dtype.itemsize > 2:
            return None
        bits = self.page.bitspersample
        return (1 << bits) - 1 if isinstance(bits, int) and 0 < bits <= 16 else None

    def refuse_unknown(self, path: object) -> None:
        """Raises DataError for what tifffile does not read either, or nobody knows as a picture."""
        _refuse_unknown(self.page, path)

    def samples(self, bands: Sequence[int] | None = None) -> npt.NDArray[Any]:
        """Decodes the first band [H, W], the first three [H, W, 3], or those given, [H, W, C].

        Raises ValueError, LookupError for bands that there are not.
        """
        if bands is not None and self.channels:
            for band in bands:
                _refuse_unknown(self.channels[band], self.filename)
            planes = {band: _decoded(self.channels[band], [0])[..., 0] for band in set(bands)}
            return np.stack([planes[band] for band in bands], axis=2)
        if bands is None:
            values = self._decoded([0, 1, 2] if self.bands > 2 else [0])
            return values if self.bands > 2 else values[..., 0]
        return self._decoded(bands)

    def _decoded(self, bands: Sequence[int]) -> npt.NDArray[Any]:  # [H, W, C]
        if self.plane:
            return _plane(self.page, self.plane)[..., list(bands)]
        return _decoded(self.page, bands)


def _refuse_unknown(page: tifffile.TiffPage, path: object) -> None:
    known = (
        page.photometric in (_GREY, _RGB)
        and page.compression in COMPRESSIONS
        and page.dtype is not None
        and page.dtype.kind in "uif"
        and page.imagedepth == 1
    )
    if not known:
        kinds = (page.photometric, page.compression)
        named = ", ".join(str(getattr(kind, "name", kind)) for kind in kinds)
        raise DataError(
            f"{path}: a TIFF of {page.samplesperpixel} bands of {page.dtype}, {named}, is not "
            "read here; save it as RGB or grey of 8 or 16 bits, plain or compressed by LZW, "
            "deflate or Zstandard"
        )


def _decoded(page: tifffile.TiffPage, bands: Sequence[int]) -> npt.NDArray[Any]:  # [H, W, C]
    """Decodes bands of one page, strip by strip. Raises ValueError."""
    _refuse_cut(page)
    height, width = page.imagelength, page.imagewidth
    values = np.zeros((height, width, len(bands)), page.dtype)
    wanted: dict[int, list[int]] = {}  # band -> its channels
    for channel, band in enumerate(bands):
        wanted.setdefault(band, []).append(channel)
    chosen = slice(len(bands)) if list(bands) == list(range(len(bands))) else list(bands)
    try:
        for segment, (plane, _, top, left, _), _ in _segments(page):
            planes = page.planarconfig == 2
            if planes and plane not in wanted:
                continue
            rows, columns = segment.shape[1:3]
            inside = segment[0, : height - top, : width - left]
            place = slice(top, top + rows), slice(left, left + columns)
            if planes:
                values[(*place, wanted[plane])] = inside
            else:
                values[place] = inside[..., chosen]
    except (tifffile.TiffFileError, RuntimeError) as error:  # RuntimeError: imagecodecs'
        raise ValueError(str(error)) from error
    return values


def _plane(page: tifffile.TiffPage, number: int) -> npt.NDArray[Any]:  # [H, W, C]
    """Reads a plane of a stack that ImageJ stores behind its first one. Raises ValueError."""
    _refuse_cut(page)
    shape = page.imagelength, page.imagewidth, page.samplesperpixel
    if number >= whole_planes(page):
        raise ValueError(f"cut off before plane {number}")
    assert page.dtype is not None
    dtype, count = page.dtype.newbyteorder(page.parent.byteorder), math.prod(shape)
    offset = page.dataoffsets[0] + number * count * dtype.itemsize
    values = page.parent.filehandle.read_array(dtype, count, offset)
    return np.asarray(values).reshape(shape).astype(page.dtype, copy=False)


def whole_planes(page: tifffile.TiffPage) -> int:
    """Counts the planes of a stack that ImageJ stores as one page, as far as the file reaches."""
    told = _planes(page.description)
    size = math.prod((page.imagelength, page.imagewidth, page.samplesperpixel))
    size *= page.dtype.itemsize if page.dtype is not None else 0
    if told < 2 or not size or page.compression != 1 or page.planarconfig != 1:
        return 1
    return max(1, min(told, (page.parent.filehandle.size - page.dataoffsets[0]) // size))


def _segments(page: tifffile.TiffPage) -> Iterator[tuple[Any, Any, Any]]:
    """Decodes strips or tiles; tifffile's own iterator takes those around a hole for neighbours."""
    file = page.parent.filehandle
    for index in range(math.prod(page.chunked)):
        offset, length = page.dataoffsets[index], page.databytecounts[index]
        if offset and length:
            file.seek(offset)
            yield page.decode(file.read(length), index)


def _refuse_cut(page: tifffile.TiffPage) -> None:
    """Refuses strips and tiles larger than any picture's, or outside of the file."""
    pixels = page.imagewidth * min(page.rowsperstrip or 1, page.imagelength)
    if page.is_tiled:
        pixels = page.tilewidth * page.tilelength
    size = pixels * page.samplesperpixel * (page.dtype.itemsize if page.dtype else 1)
    if size > _MAX_SEGMENT:
        raise UnsafeInputError(f"{page.parent.filename}: a strip or tile unpacks to {size} bytes")
    wanted = math.prod(page.chunked)
    if min(len(page.dataoffsets), len(page.databytecounts)) < wanted:
        raise ValueError(f"{len(page.dataoffsets)} of {wanted} strips or tiles are listed")
    end = page.parent.filehandle.size
    for offset, length in zip(page.dataoffsets, page.databytecounts, strict=False):
        if length and offset + length > end:
            raise ValueError(f"cut off: strips reach to byte {offset + length} of {end}")


def holds_bands(image: TiffImagePlugin.TiffImageFile) -> bool:
    """Tells whether a TIFF that Pillow would read is of the kinds that it reads wrong."""
    tags = image.tag_v2
    kind = tags.get(_PHOTOMETRIC)
    if kind not in (_GREY, _RGB):
        return False
    samples, bits = tags.get(_SAMPLES, 1), tags.get(_BITS, (1,))
    plain = samples == 1 if kind == _GREY else samples == 3 and max(bits) <= 8
    return not plain or tags.get(_PLANES, 1) != 1 or _has_holes(image)


def _has_holes(image: TiffImagePlugin.TiffImageFile) -> bool:
    """Tells whether strips or tiles of a sparse file are left out, for which Pillow reads others.

    They are zeros.
    """
    tags = image.tag_v2
    offsets = tags.get(_TILES, tags.get(_STRIPS, ()))
    known = tags.get(_COMPRESSION, 1) in COMPRESSIONS and min(tags.get(_BITS, (1,))) >= 8
    return known and isinstance(offsets, tuple) and 0 in offsets


def with_channels(image: TiffImagePlugin.TiffImageFile) -> BandsFile | None:
    """Opens a TIFF that Pillow reads, not decoded yet, once more where its pages are channels."""
    if not image.tag_v2.next or image.fp is None:
        return None
    try:
        bands = BandsFile(image.fp, str(image.filename))
    except (OSError, ValueError, TypeError, LookupError, SyntaxError):
        return None
    return bands if bands.channels else None


def unread_bands(image: Image.Image) -> tuple[int, int] | None:
    """Returns how many bands a file has, and how many are read unless others are asked for.

    None where all are read, or what is not read is a declared alpha.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        channels = with_channels(image)
        return (channels.every_band, 1) if channels else None
    if not isinstance(image, BandsFile):
        return None
    extras = image.page.tags.valueof(_EXTRAS, ())
    alpha = sum(kind in _ALPHA for kind in (extras if isinstance(extras, tuple) else (extras,)))
    read = 3 if image.bands > 2 else 1
    return (image.every_band, read) if image.channels or image.bands - alpha > read else None


def channel_pages(image: Image.Image) -> int:
    """Counts the pages that make one picture: of a file whose pages are channels, all of these."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bands = with_channels(image)
    else:
        bands = image if isinstance(image, BandsFile) else None
    return max(1, len(bands.channels)) if bands else 1


def is_georeferenced(image: Image.Image) -> bool:
    """Tells whether a TIFF says where on earth its pixels lie."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return any(tag in image.tag_v2 for tag in _GEOREFERENCE)
    return isinstance(image, BandsFile) and any(tag in image.page.tags for tag in _GEOREFERENCE)


def frame_count(image: Image.Image) -> int:
    """Counts the pictures in a file: frames, pages, the planes of an ImageJ stack.

    Overviews and masks of a TIFF are no pictures of their own.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        if not image.tag_v2.next:
            return _planes(image.tag_v2.get(_DESCRIPTION))
        with tifffile.TiffFile(str(image.filename)) as file:
            return _pages(file)
    if isinstance(image, BandsFile):
        return _pages(image.page.parent)
    return int(getattr(image, "n_frames", 1))


def _pages(file: tifffile.TiffFile) -> int:
    first = file.pages[0]
    assert isinstance(first, tifffile.TiffPage)
    return max(1, len(picture_pages(file)), _planes(first.description))


def picture_pages(file: tifffile.TiffFile) -> list[int]:
    """Lists the pages of a file that are pictures, the first in any case."""
    found = []
    for number, page in enumerate(file.pages):
        if number >= _MAX_PAGES:
            break
        kind = page.tags.valueof(_SUBFILE, 0) if isinstance(page, tifffile.TiffPage) else 0
        if not (isinstance(kind, int) and kind & _REDUCED_OR_MASK):
            found.append(number)
    return [0, *found] if found[:1] != [0] else found


def _planes(description: object) -> int:
    """Returns what ImageJ writes where it stores a stack as one page."""
    if not isinstance(description, str) or not description.startswith("ImageJ="):
        return 1
    found = [line for line in description.splitlines() if line.startswith("images=")]
    return int(found[0][7:]) if found and found[0][7:].isdecimal() else 1
