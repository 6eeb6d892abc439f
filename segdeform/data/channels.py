"""Bands of a picture that become its channels: any of them, in any order and number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, TiffImagePlugin

from segdeform.data.bands import BandsFile, frame_count, with_channels
from segdeform.data.depth import Samples, stored_samples
from segdeform.errors import DataError, UnsafeInputError

UInt8 = npt.NDArray[np.uint8]
Bands = tuple[int, ...]  # which bands of a file, from 0, become the channels

_MAX_VALUES = 1_500_000_000  # of a picture: 500 megapixels of three bands
# What turns the stored pixels [H, W, ...] of each EXIF orientation upright.
_TURNED: dict[int, Callable[[UInt8], UInt8]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels[::-1].swapaxes(0, 1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: pixels[:, ::-1].swapaxes(0, 1),
}


class BandsError(DataError):
    """A picture that can be read, and has not the bands that are asked for."""


def band_samples(image: ImageFile.ImageFile, path: Path, bands: Bands) -> Samples:
    """Decodes bands of an opened picture as stored, [H, W, C].

    Raises BandsError where it has fewer, and what `read_image` does.
    """
    if image.width * image.height * len(bands) > _MAX_VALUES:
        raise UnsafeInputError(
            f"{path}: {image.width}x{image.height} pixels of {len(bands)} bands are over the limit "
            "of 500 megapixels of three"
        )
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        image = with_channels(image) or image
    if isinstance(image, BandsFile):
        if max(bands) >= image.every_band:
            refuse_bands(path, bands, image.every_band, frame_count(image))
        return Samples(image.samples(bands), image.white)
    samples = stored_samples(image, path, every_band=True)
    if samples is None:
        image.load()
        samples = Samples(np.asarray(in_bands(image)), 255)
    values = samples.values if samples.values.ndim == 3 else samples.values[..., None]
    if max(bands) >= values.shape[2]:
        refuse_bands(path, bands, values.shape[2], frame_count(image))
    return Samples(values[..., list(bands)], samples.white)


def in_bands(image: Image.Image) -> Image.Image:
    """Returns a picture of 8 bits in grey or RGB, with its alpha if it has one."""
    if image.mode in ("L", "LA", "RGB", "RGBA"):
        return image
    if image.mode == "1":
        return image.convert("L")
    if image.mode in ("La", "RGBa"):
        return image.convert(image.mode.upper())
    return to_rgb(image)


def refuse_bands(path: Path | str, bands: Bands, count: int, frames: int = 1) -> None:
    """Raises BandsError where a file of `count` bands has not those that are asked for."""
    if max(bands) < count:
        return
    has = "1 band" if count == 1 else f"{count} bands"
    stack = f" ({frames} pages, which nothing in it calls channels)" if frames > 1 else ""
    raise BandsError(
        f"{path}: has {has}{stack}, and bands: {list(bands)} asks for band {max(bands)}, counted "
        "from 0; correct bands in the data YAML, or save the picture with as many"
    )


def shown_colours(pixels: UInt8) -> UInt8:
    """Returns what a person is shown of a picture, [H, W, 3]: its first three channels, or grey."""
    if pixels.shape[2] == 3:
        return pixels
    if pixels.shape[2] > 3:
        return np.ascontiguousarray(pixels[..., :3])
    return np.repeat(pixels[..., :1], 3, axis=2)


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts a picture of Pillow to RGB; alpha is dropped."""
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def turned(pixels: UInt8, orientation: int) -> UInt8:
    """Returns stored pixels [H, W, C] upright, as the EXIF orientation says; no copy."""
    turn = _TURNED.get(orientation)
    return pixels if turn is None else turn(pixels)
