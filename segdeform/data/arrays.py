"""Pictures that Python code has in memory, made what a network sees: uint8 [H, W, C]."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from segdeform.data.channels import Bands, in_bands, refuse_bands, to_rgb, turned
from segdeform.data.depth import ValueRange, is_one, ranges, to_8_bits
from segdeform.data.image_io import UInt8, orientation
from segdeform.errors import DataError

_WHITE = 65535  # of 16 bits
_WIDE = ("I", "F")  # what modes of more than 8 bits begin with


def pixels_of(
    picture: object,
    value_range: ValueRange | None,
    channels: int,
    bands: Bands | None = None,
) -> UInt8:
    """Makes an array or a PIL picture what `read_image` makes of its file, uint8 [H, W, C].

    Arrays are uint8 or uint16: [H, W] and [H, W, 1] are grey, of [H, W, 4] the alpha is dropped,
    where the network's pictures are RGB; else [H, W, C], the channels as they are. PIL pictures of
    any mode are turned upright by their EXIF orientation, and `bands` are taken of them as of a
    file. `value_range` says which values of more than 8 bits are
    black and white; without it, 0 and 65535.

    Raises:
        DataError: it is of another kind; says what to do.
    """
    if isinstance(picture, Image.Image):
        return _of_pil(picture, value_range, channels, bands)
    if isinstance(picture, np.ndarray):
        return _of_array(picture, value_range, channels)
    hint = ": give tensor.permute(1, 2, 0).cpu().numpy()" if hasattr(picture, "permute") else ""
    raise DataError(
        f"a picture is a path, an array or a PIL image; this is {type(picture).__name__}{hint}"
    )


def _of_pil(
    picture: Image.Image, value_range: ValueRange | None, channels: int, bands: Bands | None
) -> UInt8:
    if not (picture.width and picture.height):
        raise DataError(f"a picture of {picture.width}x{picture.height} pixels is empty")
    picture.load()
    turn = orientation(picture)  # asked now: Pillow turns TIFFs itself, while decoding
    if picture.mode.startswith(_WIDE):
        values = np.asarray(picture)
        if picture.mode == "I" and 0 <= values.min() <= values.max() <= _WHITE:
            values = values.astype(np.uint16)
        values = values.astype(values.dtype.newbyteorder("="))
        values = values if bands is None else _picked(values, bands)
        return _of_array(turned(values, turn), value_range, channels)
    if bands is None:
        return np.ascontiguousarray(turned(np.asarray(to_rgb(picture)), turn))
    return np.ascontiguousarray(turned(_picked(np.asarray(in_bands(picture)), bands), turn))


def _picked(values: npt.NDArray[Any], bands: Bands) -> npt.NDArray[Any]:  # [H, W, C]
    planes = values if values.ndim == 3 else values[..., None]
    refuse_bands("the picture", bands, planes.shape[2])
    return planes[..., list(bands)]


def _of_array(array: npt.NDArray[Any], value_range: ValueRange | None, channels: int) -> UInt8:
    values = _with_channels(array, channels)
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)  # torch takes no negative strides, as of a flipped one
    if values.dtype != np.uint16 and (value_range is None or values.dtype.kind not in "fiu"):
        raise DataError(
            f"a picture's array is uint8 or uint16; this is {values.dtype}{_remedy(values)}"
        )
    each = ranges(value_range or (0, _WHITE), channels)
    if each is None:
        raise DataError(f"value_range has not one range for each of the {channels} channels")
    if value_range is None or is_one(value_range):
        return to_8_bits(values, *each[0])
    shown = [to_8_bits(values[..., channel], *span) for channel, span in enumerate(each)]
    return np.stack(shown, axis=2)


def _remedy(values: npt.NDArray[Any]) -> str:
    if values.dtype.kind == "b":
        return ": give 255 * array.astype(numpy.uint8)"
    if values.dtype.kind == "f":
        return (
            ": of 0 to 1, give (255 * array).round().astype(numpy.uint8); of other values, set "
            "segmenter.value_range = (black, white)"
        )
    return ": give array.astype(numpy.uint8), or set segmenter.value_range = (black, white)"


def _with_channels(array: npt.NDArray[Any], channels: int) -> npt.NDArray[Any]:  # [H, W, C]
    wanted = "[H, W], [H, W, 3] or [H, W, 4]" if channels == 3 else f"[H, W, {channels}]"
    shape = list(array.shape)
    values = array[..., None] if array.ndim == 2 else array
    if values.ndim == 3 and values.size:
        count = values.shape[2]
        if channels == 3 and count == 1:
            return np.repeat(values, 3, 2)
        if count == channels or (channels == 3 and count == 4):
            return values[..., :channels]
    hint = ""
    if array.ndim == 3 and array.shape[0] in (1, channels):
        hint = ": channels come last, give array.transpose(1, 2, 0)"
    elif array.ndim == 4:
        hint = ": give one picture at a time"
    raise DataError(f"a picture's array is {wanted}, not empty; this is {shape}{hint}")
