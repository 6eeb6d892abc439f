"""What one file is, whatever the classes are: the part of a check that reads, and is remembered."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from segdeform.data.image_io import (
    MaskKindError,
    index_values,
    opened,
    orientation,
    read_mask,
    upright_rgb,
)
from segdeform.errors import DataError, UnsafeInputError

_MAX_COLOURS = 256  # of a colour mask; one with more shows no classes
_MAX_VALUES = 1000  # of a 16-bit mask: enough to tell what is wrong

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Facts:
    """What a picture or mask file holds; `problem` is None where it can be used."""

    height: int = 0
    width: int = 0  # of pictures upright, of masks as stored
    problem: str | None = None  # a kind of finding
    text: str = ""  # of the problem; one line that names the file
    orientation: int = 1  # EXIF
    frames: int = 1
    digest: str = ""  # of a picture's decoded pixels
    # Of a mask: value -> number of pixels and place of the first one, row by row.
    values: dict[int, tuple[int, int]] = field(default_factory=dict)
    # Of a palette mask: value -> the colour that viewers show. Of a colour mask: 0, 1, ... -> its
    # colours, where they are few.
    colours: dict[int, Colour] = field(default_factory=dict)


def picture_facts(path: Path) -> Facts:
    """Decodes a picture. JPEGs are decoded at an eighth of their size: every byte of the file is
    read, and damage found, in half the time. Raises ResourceError."""
    try:
        with opened(path) as image:
            width, height = image.size
            turn = orientation(image)
            if image.format == "JPEG":
                image.draft(None, (max(1, width // 8), max(1, height // 8)))
                image.load()
                pixels: Image.Image = image
            else:
                pixels = upright_rgb(image, path)
            digest = hashlib.sha256(f"{image.mode} {pixels.size}".encode())
            digest.update(pixels.tobytes())
    except (DataError, UnsafeInputError) as error:
        return _failure(error)
    if turn >= 5:
        height, width = width, height
    return Facts(height, width, orientation=turn, digest=digest.hexdigest()[:32])


def mask_facts(path: Path, decode: Callable[[Path], npt.NDArray[np.integer]] = read_mask) -> Facts:
    """Decodes a mask and counts its values. `decode` is the data set's; Raises ResourceError."""
    try:
        if decode is not read_mask:
            return index_facts(decode(path))
        with opened(path) as image:
            # Asked for first: decoding closes what holds further frames.
            frames = int(getattr(image, "n_frames", 1))
            image.seek(0)
            values = index_values(image, path)
            return index_facts(values, _palette(image), frames)
    except MaskKindError as error:
        return _other_kind(path, error)
    except (DataError, UnsafeInputError) as error:
        return _failure(error)


def colours_of(image: Image.Image) -> dict[int, Colour]:
    """Returns the distinct colours of a picture, numbered; none where there are more than 256."""
    counted = image.convert("RGB").getcolors(_MAX_COLOURS) or []
    colours = sorted(colour for _, colour in counted if isinstance(colour, tuple))
    return dict(enumerate((red, green, blue) for red, green, blue in colours))


def _failure(error: DataError | UnsafeInputError) -> Facts:
    unsafe = isinstance(error, UnsafeInputError)
    return Facts(problem="unsafe" if unsafe else "unreadable", text=str(error))


def _other_kind(path: Path, error: MaskKindError) -> Facts:
    """Looks at a mask that is no index mask: could its size or its colours help to repair it?"""
    try:
        with opened(path) as image:
            width, height = image.size
            turn = orientation(image)
            colours = colours_of(image) if error.kind == "colour-mask" else {}
    except (DataError, UnsafeInputError) as damage:
        return _failure(damage)
    return Facts(height, width, error.kind, str(error), orientation=turn, colours=colours)


def index_facts(
    values: npt.NDArray[np.integer], palette: list[int] | None = None, frames: int = 1
) -> Facts:
    """Counts the values of a mask [H, W]; `palette` is that of a palette mask."""
    flat = np.ascontiguousarray(values).ravel()
    counts = np.bincount(flat)
    present = [int(value) for value in np.flatnonzero(counts)][:_MAX_VALUES]
    # Searching the bytes stops at the first hit, where comparing the arrays would go on.
    content = flat.tobytes() if flat.dtype == np.uint8 else None
    found = {}
    for value in present:
        first = content.find(value) if content is not None else int(np.argmax(flat == value))
        found[value] = (int(counts[value]), first)
    colours = {}
    if palette is not None:
        for value in present:
            red, green, blue = (*palette[3 * value : 3 * value + 3], 0, 0, 0)[:3]
            colours[value] = (red, green, blue)
    height, width = values.shape
    return Facts(height, width, values=found, colours=colours, frames=frames)


def _palette(image: ImageFile.ImageFile) -> list[int] | None:
    return image.getpalette("RGB") if image.mode == "P" else None
