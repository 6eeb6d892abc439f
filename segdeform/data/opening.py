"""Pictures of any size, opened so that a part can be had at a time."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from segdeform.data.channels import Bands
from segdeform.data.depth import ValueRange
from segdeform.data.georeference import Georeference, georeference
from segdeform.data.image_io import opened, orientation, read_image, upright_size
from segdeform.data.rasters import Raster


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
    system's. Raises as `read_image` does, also while parts are read.
    """
    return OpenPicture(read_image(path, value_range, bands), read_georeference(path))


def read_georeference(path: Path) -> Georeference | None:
    """Returns where the pixels of a picture lie on a map, or None. Raises as `read_image` does."""
    with opened(path) as image:
        return georeference(image, path, orientation(image), upright_size(image))
