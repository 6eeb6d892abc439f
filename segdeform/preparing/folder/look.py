"""What masks of any kind hold, before it is known what it means: values or colours, counted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from segdeform.checking.facts import Facts, plain_values
from segdeform.data.class_list import Colour
from segdeform.data.dataset import IGNORE, Labels, label_type
from segdeform.data.image_io import MaskKindError, index_values, opened
from segdeform.errors import DataError

_BLURRING = ("JPEG", "MPO", "WEBP")  # WebP unless told not to
_MAX_COLOURS = 4096  # counted in one mask; more show no classes
_EDGE = 40  # of 255: as near to black or white JPEG leaves what was black and white

Kind = Literal["index", "plain", "colour", "blurred"]


@dataclass(frozen=True)
class Look:
    """What one mask holds: the pixels of each value, or of each colour."""

    kind: Kind
    values: dict[int, int] = field(default_factory=dict)
    colours: dict[Colour, int] = field(default_factory=dict)
    top: dict[Colour, int] = field(default_factory=dict)  # of more colours than can be classes
    shown: dict[int, Colour] = field(default_factory=dict)  # of a palette mask, value -> colour


@dataclass
class Seen:
    """What all masks hold together: key -> pixels and masks that have it."""

    values: dict[int, tuple[int, int]] = field(default_factory=dict)
    colours: dict[Colour, tuple[int, int]] = field(default_factory=dict)
    top: dict[Colour, tuple[int, int]] = field(default_factory=dict)
    kinds: dict[Kind, int] = field(default_factory=dict)
    first: dict[Kind, Path] = field(default_factory=dict)
    shown: dict[int, set[Colour | None]] = field(default_factory=dict)  # value -> its colours

    @property
    def masks(self) -> int:
        """The number of masks."""
        return sum(self.kinds.values())

    @property
    def near_ends(self) -> float:
        """The share of the pixels that is nearly black or nearly white."""
        total = sum(pixels for pixels, _ in self.values.values())
        near = sum(
            pixels
            for value, (pixels, _) in self.values.items()
            if value <= _EDGE or value >= IGNORE - _EDGE
        )
        return near / max(1, total)


def look_at(path: Path, facts: Facts) -> Look:
    """Counts what a mask holds, whose facts are known; index masks are not read again.

    Raises DataError where it is no mask, UnsafeInputError, ResourceError.
    """
    if facts.problem is None:
        values = {value: count for value, (count, _) in facts.values.items()}
        return Look("index", values, shown=facts.colours)
    if facts.problem not in ("colour-mask", "mask-kind", "jpeg-mask"):
        raise DataError(facts.text)
    with opened(path) as image:
        if image.format in _BLURRING:
            counts = np.bincount(np.asarray(image.convert("L")).ravel(), minlength=256)
            return Look("blurred", {int(v): int(counts[v]) for v in np.flatnonzero(counts)})
        if facts.problem == "mask-kind":
            numbers = plain_values(image)
            if numbers is None:
                raise DataError(facts.text)
            found, counts = np.unique(numbers.astype(np.int64), return_counts=True)
            return Look("plain", dict(zip(found.tolist(), counts.tolist(), strict=True)))
        return _colour_look(image.convert("RGB"))


def _colour_look(image: Image.Image) -> Look:
    found = image.getcolors(_MAX_COLOURS)
    if found is None:
        coarse = image.quantize(8, dither=Image.Dither.NONE).convert("RGB").getcolors(8) or []
        return Look("colour", top={_rgb(colour): count for count, colour in coarse})
    counts = {_rgb(colour): count for count, colour in found}
    if all(red == green == blue for red, green, blue in counts):
        return Look("plain", {red: count for (red, _, _), count in counts.items()})
    return Look("colour", colours=counts)


def among_colours(looks: list[Look]) -> list[Look]:
    """Takes palette masks by their colours, where others of the masks are coloured."""
    if not any(look.kind == "colour" for look in looks):
        return looks
    return [_by_palette(look) if look.shown else look for look in looks]


def _by_palette(look: Look) -> Look:
    counts: dict[Colour, int] = {}
    for value, pixels in look.values.items():
        colour = look.shown[value]
        counts[colour] = counts.get(colour, 0) + pixels
    return Look("colour", colours=counts)


def _rgb(colour: object) -> Colour:
    assert isinstance(colour, tuple), "of an RGB picture"
    red, green, blue = colour
    return red, green, blue


def together(looks: Iterable[tuple[Path, Look]]) -> Seen:
    """Adds up what masks hold."""
    seen = Seen()
    for path, look in looks:
        seen.kinds[look.kind] = seen.kinds.get(look.kind, 0) + 1
        seen.first.setdefault(look.kind, path)
        for value, pixels in look.values.items():
            before = seen.values.get(value, (0, 0))
            seen.values[value] = (before[0] + pixels, before[1] + 1)
            seen.shown.setdefault(value, set()).add(look.shown.get(value))
        for counts, into in ((look.colours, seen.colours), (look.top, seen.top)):
            for colour, pixels in counts.items():
                before = into.get(colour, (0, 0))
                into[colour] = (before[0] + pixels, before[1] + 1)
    return seen


def labels_of(
    path: Path,
    values: dict[int, int],  # mask value -> class or what is ignored
    colours: dict[Colour, int],
    threshold: int | None,
    classes: int,
) -> Labels:
    """Reads a mask of any kind as labels [H, W], by a table that has all that it holds.

    Raises DataError for what the table lacks.
    """
    with opened(path) as image:
        if threshold is not None:
            return (np.asarray(image.convert("L")) >= threshold).astype(np.uint8)
        by_colour = image.mode in _COLOURED or (image.mode == "P" and bool(colours))
        numbers = None if by_colour else _numbers(image, path)
        if numbers is not None:
            grey = {red: k for (red, green, blue), k in colours.items() if red == green == blue}
            return _looked_up(path, numbers, values | grey, classes)
        pixels = np.asarray(image.convert("RGB")).astype(np.int32)
    packed = pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]
    table = {red << 16 | green << 8 | blue: k for (red, green, blue), k in colours.items()}
    # Grey that was saved with three channels, where a table of colours does not know it.
    shades = {value * 0x010101: label for value, label in values.items() if value < 256}
    return _looked_up(path, packed, shades | table, classes)


def _numbers(image: ImageFile.ImageFile, path: Path) -> Labels | None:
    """Returns the values of a mask as its facts have them, None where it holds no numbers."""
    try:
        return index_values(image, path)
    except MaskKindError:
        return plain_values(image)


_COLOURED = frozenset(("RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"))


def _looked_up(
    path: Path, values: npt.NDArray[np.integer], table: dict[int, int], classes: int
) -> Labels:
    found, inverse = np.unique(values, return_inverse=True)
    unknown = [value for value in found.tolist() if value not in table]
    if unknown:
        raise DataError(f"{path}: no class is known for {', '.join(map(str, unknown[:5]))}")
    labels = np.array([table[value] for value in found.tolist()], label_type(classes))
    return labels[inverse].reshape(values.shape)
