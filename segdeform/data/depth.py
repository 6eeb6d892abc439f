"""Pictures of more than 8 bits a channel: their values as stored, and 8 bits made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

Range = tuple[float, float]  # the stored values that are shown as 0 and as 255
ValueRange = Range | tuple[Range, ...]  # of all channels alike, or one a channel

_BITS = 258  # the tag of a TIFF
_ROWS = 64  # made into 8 bits at a time: floats of the whole would be eight times the picture


class Samples(NamedTuple):
    """The stored values of a picture, [H, W] or [H, W, C], and the one of full brightness."""

    values: npt.NDArray[Any]
    white: int | None  # None: nobody knows


def declared_white(image: ImageFile.ImageFile) -> int:
    """Returns the highest value that the file says its samples can have; asked before decoding."""
    if image.format == "PPM" and image.tile and image.tile[0].codec_name in ("ppm", "ppm_plain"):
        arguments = image.tile[0].args
        return int(arguments[-1]) if isinstance(arguments, tuple) else 255
    if image.format == "TIFF" and image.mode.startswith("I;16"):
        bits = getattr(image, "tag_v2", {}).get(_BITS, (16,))
        return (1 << int(bits[0])) - 1
    return 65535 if image.mode[:1] in ("I", "F") or _has_deep_colour(image) else 255


def as_stored(image: ImageFile.ImageFile) -> None:
    """Keeps Pillow from stretching the grey values of a PGM to 0..255; before decoding."""
    if image.format == "PPM" and image.mode in ("L", "I") and image.tile:
        tile = image.tile[0]
        if tile.codec_name in ("ppm", "ppm_plain"):
            full = 255 if image.mode == "L" else 65535
            image.tile = [tile._replace(args=(image.mode, full))]


def stored_samples(
    image: ImageFile.ImageFile, path: Path, every_band: bool = False
) -> Samples | None:
    """Decodes a picture of more than 8 bits; None for any other. Raises what Pillow does.

    `every_band` keeps what comes after grey or RGB, too: alpha.
    """
    white = declared_white(image)
    if image.format == "PPM" and image.mode == "RGB" and white > 255:
        return Samples(_ppm_samples(image, path), white)
    if _has_deep_colour(image):
        image.load()  # finds damage, which the other decoder may pass over
        values = _png_samples(path.read_bytes())
        return Samples(values if every_band else _colours(values), white)
    if image.mode[:1] not in ("I", "F"):
        return None
    as_stored(image)
    image.load()
    values = np.asarray(image)
    if image.mode == "F" or (values.size and not 0 <= values.min() <= values.max() <= 65535):
        return Samples(values, None)
    return Samples(values.astype(np.uint16), white)


def ranges(value_range: ValueRange, channels: int) -> tuple[Range, ...] | None:
    """Returns the range of each channel; None where it gives another number of them."""
    first, second = value_range[0], value_range[-1]
    if isinstance(first, tuple) or isinstance(second, tuple):
        each = tuple(pair for pair in value_range if isinstance(pair, tuple))
        return each if len(each) == channels else None
    return ((first, second),) * channels


def is_one(value_range: ValueRange) -> bool:
    """Tells whether it is one range, of all channels."""
    return not isinstance(value_range[0], tuple)


def as_json(value_range: ValueRange) -> list[Any]:
    """Returns a range as JSON and YAML hold it, in lists."""
    return [list(value) if isinstance(value, tuple) else value for value in value_range]


def to_8_bits(values: npt.NDArray[Any], low: float, high: float) -> npt.NDArray[np.uint8]:
    """Maps low..high to 0..255, rounded to the nearest; what lies outside is cut, NaN is low."""
    if values.dtype == np.uint8 and (low, high) == (0, 255):
        return values
    scale = 255 / (high - low)
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        steps = (np.arange(1 << 16, dtype=np.float64) - low) * scale
        table = np.clip(np.rint(steps), 0, 255).astype(np.uint8)
        return np.asarray(table[values])
    result = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), _ROWS):
        steps = (values[top : top + _ROWS].astype(np.float64) - low) * scale
        np.nan_to_num(steps, copy=False, posinf=255, neginf=0)
        result[top : top + _ROWS] = np.clip(np.rint(steps), 0, 255)
    return result


def _has_deep_colour(image: Image.Image) -> bool:
    """Tells whether it is a PNG of 16 bits a channel, of which Pillow would drop 8."""
    tile = getattr(image, "tile", None)
    if image.format != "PNG" or not tile:
        return False
    return image.mode in ("RGB", "RGBA", "LA") and str(tile[0].args).endswith(";16B")


def _ppm_samples(image: ImageFile.ImageFile, path: Path) -> npt.NDArray[Any]:  # [H, W, 3]
    """Reads a PPM of more than 8 bits, of which Pillow would keep 8. Raises ValueError."""
    tile, (width, height) = image.tile[0], image.size
    with path.open("rb") as file:
        file.seek(tile.offset)
        if tile.codec_name == "ppm":
            values = np.frombuffer(file.read(6 * width * height), ">u2")
        else:  # written as text, with comments
            words = b" ".join(line.partition(b"#")[0] for line in file).split()
            values = np.array(words[: 3 * width * height], np.int64)
    return values.reshape(height, width, 3)


def _png_samples(content: bytes) -> npt.NDArray[np.uint16]:  # [H, W, 1 to 4]
    import imagecodecs

    try:
        values = imagecodecs.png_decode(content)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    return np.asarray(values if values.ndim == 3 else values[..., None])


def _colours(values: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:  # [H, W] or [H, W, 3]
    return values[..., :3] if values.shape[2] > 2 else values[..., 0]
