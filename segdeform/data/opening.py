"""Pictures of any size, opened so that a part can be had at a time.

Small ones are arrays. TIFFs are read in windows. Others are decoded once, into a file, and what the
decoder held is freed before anybody asks for a part.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ImageFile

from segdeform.data.channels import Bands, band_samples, to_rgb, turned
from segdeform.data.depth import Samples, ValueRange
from segdeform.data.georeference import Georeference, georeference
from segdeform.data.image_io import (
    deep_samples,
    opened,
    orientation,
    pixels_of,
    refuse_size,
    shown,
    upright_size,
)
from segdeform.data.rasters import Box, FileRaster, Raster, UInt8, stored_box, upright_box
from segdeform.data.tiff_windows import TiffRaster, tiff_raster

_WHOLE = 2**24  # pixels, up to which a picture is an array in any case
_IN_MEMORY = 2**26  # pixels, up to which one that is decoded whole is an array
_STRIP = 2**22  # pixels copied at a time


class OpenPicture(NamedTuple):
    """The pixels of a picture, upright, and where they lie on a map, if it says so."""

    pixels: Raster  # [H, W, C] uint8
    place: Georeference | None


def open_picture(
    path: Path,
    value_range: ValueRange | None = None,
    bands: Bands | None = None,
    scratch: Path | None = None,
) -> OpenPicture:
    """Opens the first frame of a picture; its pixels are those of `read_image`, to the bit.

    `scratch` is a folder for an unnamed temporary file, where one is needed; by default the
    system's. Raises as `read_image` does, also while parts are read; TIFFs that can be read in
    windows may have up to 2**40 pixels.
    """
    with opened(path, in_windows=True) as image:
        place = georeference(image, path, orientation(image), upright_size(image))
        return OpenPicture(raster_of(image, path, value_range, bands, scratch), place)


def raster_of(
    image: ImageFile.ImageFile,
    path: Path,
    value_range: ValueRange | None = None,
    bands: Bands | None = None,
    scratch: Path | None = None,
) -> Raster:
    """Returns the pixels of an opened picture; rules and errors are those of `open_picture`."""
    height, width = upright_size(image)
    if height * width <= _WHOLE:
        return pixels_of(image, path, value_range, bands)
    tiff = tiff_raster(image, path, value_range, bands)
    if tiff is not None:
        return tiff if tiff.is_cheap else _segments_once(tiff, scratch)
    refuse_size(image, path)
    if height * width <= _IN_MEMORY:
        return pixels_of(image, path, value_range, bands)
    return _decoded_once(image, path, value_range, bands, scratch)


def _segments_once(tiff: TiffRaster, scratch: Path | None) -> FileRaster:
    """Copies a TIFF whose strips are too large to be decoded for every window."""
    raster = FileRaster(tiff.shape, scratch)
    height, width = tiff.stored_size
    step = tiff.stored_rows * max(1, _STRIP // (tiff.stored_rows * width))
    for top in range(0, height, step):
        box = Box(top, min(top + step, height), 0, width)
        goal = upright_box(box, tiff.turn, tiff.stored_size)
        raster.put(goal.top, goal.left, turned(tiff.stored(box), tiff.turn))
    return raster


def _decoded_once(
    image: ImageFile.ImageFile,
    path: Path,
    value_range: ValueRange | None,
    bands: Bands | None,
    scratch: Path | None,
) -> FileRaster:
    """Decodes a picture and copies it in strips, each turned by itself."""
    height, width = upright_size(image)
    samples = deep_samples(image, path) if bands is None else band_samples(image, path, bands)
    if samples is None:
        image.load()
    turn = orientation(image)  # asked now: Pillow turns TIFFs itself, while decoding
    stored = (width, height) if turn >= 5 else (height, width)
    raster = FileRaster((height, width, 3 if bands is None else len(bands)), scratch)
    rows = max(1, _STRIP // width)
    for top in range(0, height, rows):
        box = stored_box(Box(top, min(top + rows, height), 0, width), turn, stored)
        if samples is None:
            part = image.crop((box.left, box.top, box.right, box.bottom))
            pixels = np.asarray(to_rgb(part))
        else:
            pixels = _shown_part(samples, box, path, value_range, whole=bands is None)
        raster.put(top, 0, turned(pixels, turn))
    return raster


def _shown_part(
    samples: Samples, box: Box, path: Path, value_range: ValueRange | None, whole: bool
) -> UInt8:  # [h, w, C]
    values = samples.values[box.top : box.bottom, box.left : box.right]
    if whole or samples.white != 255 or values.dtype != np.uint8:
        values = shown(Samples(values, samples.white), path, value_range)
    if values.ndim == 2:
        return np.repeat(values[..., None], 3, axis=2)
    return values


def read_georeference(path: Path) -> Georeference | None:
    """Returns where the pixels of a picture lie on a map, or None. Raises as `read_image` does."""
    with opened(path, in_windows=True) as image:
        return georeference(image, path, orientation(image), upright_size(image))
