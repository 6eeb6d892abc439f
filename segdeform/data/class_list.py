"""What mask values mean: class names, colours, ignored values, and a mapping of file values."""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segdeform.data.channels import Bands
from segdeform.data.dataset import IGNORE, ListingProblem, colour_map, ignore_label
from segdeform.data.depth import Range, ValueRange, ranges
from segdeform.errors import DataError, shortened

Colour = tuple[int, int, int]

MAX_CHANNELS = 512  # the most that OpenCV resizes
_MAX_BITS = 32
_NUMBER = re.compile(r"-?\d{1,6}", re.ASCII)


@dataclass(frozen=True)
class ClassList:
    """Names and colours of K classes, and how the values of files are to be understood."""

    names: tuple[str, ...]
    palette: tuple[Colour, ...]
    void: frozenset[int] = frozenset({IGNORE})
    label_map: dict[int, int] | None = None
    value_range: ValueRange | None = None  # of pictures of more than 8 bits
    bands: Bands | None = None  # of the files, that become the channels


_FILES = ("classes.json", "classes.txt")


def find_class_list(root: Path) -> tuple[ClassList, Path] | None:
    """Reads ROOT/classes.json or ROOT/classes.txt (one name a line), and tells which of them.

    Returns None when there is neither. Raises DataError when the file cannot be understood.
    """
    path = next((path for name in _FILES if (path := root / name).is_file()), None)
    return None if path is None else (read_class_list(path), path)


def other_lists(root: Path, source: Path, labels: ClassList) -> Iterator[ListingProblem]:
    """Yields the class lists beside `source` that name other classes, and are not read."""
    for name in _FILES:
        path = root / name
        if path == source or not path.is_file():
            continue
        try:
            same = read_class_list(path).names == labels.names
        except DataError:
            same = False
        if not same:
            text = f"{path}: names other classes than {source.name}, and is not used"
            yield ListingProblem("unused-list", path, text)


def read_class_list(path: Path) -> ClassList:
    try:
        content = path.read_bytes()
        # A byte order mark is what Windows begins a text with.
        wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode("utf-16" if wide else "utf-8-sig")
        if path.suffix == ".txt":
            names = [line.strip() for line in text.splitlines() if line.strip()]
            return parse_class_list({"names": names}, path)
        keys = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: the class list cannot be read: {error}") from error
    if not isinstance(keys, dict):
        raise DataError(f'{path}: expected {{"names": [...]}}')
    return parse_class_list(keys, path)


def parse_class_list(content: Mapping[Any, Any], source: Path) -> ClassList:
    """Understands names, nc, palette, void_id, label_mapping, value_range, bits and bands.

    Raises DataError naming the file and the key.
    """
    names = _names(content.get("names"), source)
    if content.get("nc", len(names)) != len(names):
        raise DataError(
            f"{source}: nc is {shortened(content['nc'])}, but there are {len(names)} names"
        )
    ignore = ignore_label(len(names))
    void = content.get("void_id", ignore)
    if not _is_index(void, 1 << 16):
        raise DataError(f"{source}: void_id is a mask value from 0 to 65535, not {void!r}")
    palette = content.get("palette")
    bands = _bands(content.get("bands"), source)
    return ClassList(
        names,
        colour_map(len(names)) if palette is None else _palette(palette, len(names), source),
        frozenset({void, ignore}),
        _label_map(content.get("label_mapping"), len(names), source),
        _range_of(content, 3 if bands is None else len(bands), source),
        bands,
    )


def _names(names: Any, source: Path) -> tuple[str, ...]:
    if isinstance(names, Mapping):
        indexed = {str(key): name for key, name in names.items()}
        if set(indexed) != {str(index) for index in range(len(indexed))}:
            raise DataError(f"{source}: the keys of names are 0, 1, 2, ... without a gap")
        names = [indexed[str(index)] for index in range(len(indexed))]
    if not isinstance(names, list) or not names:
        raise DataError(
            f"{source}: names is a list of class names, or a mapping 0: name, 1: ..., not "
            f"{shortened(names)}"
        )
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise DataError(
                f"{source}: names: the class name {shortened(name)} is not a text; put it in quotes"
            )
    return tuple(name.strip() for name in names)


def _palette(palette: Any, count: int, source: Path) -> tuple[Colour, ...]:
    colours = palette if isinstance(palette, list) else []
    good = all(
        isinstance(c, list) and [_is_index(v, 256) for v in c] == [True] * 3 for c in colours
    )
    if len(colours) != count or not good:
        raise DataError(
            f"{source}: palette is one [red, green, blue], 0 to 255, for each class, not "
            f"{shortened(palette)}"
        )
    return tuple((red, green, blue) for red, green, blue in colours)


def _label_map(mapping: Any, count: int, source: Path) -> dict[int, int] | None:
    if mapping is None:
        return None
    if not isinstance(mapping, Mapping):
        raise DataError(
            f"{source}: label_mapping maps mask values to classes, as {{7: 0}}, not "
            f"{shortened(mapping)}"
        )
    found: dict[int, int] = {}
    ignore = ignore_label(count)
    for key, label in mapping.items():
        # The keys of JSON are texts.
        value = int(key) if isinstance(key, str) and _NUMBER.fullmatch(key) else key
        if not (_is_index(label, count) or (type(label) is int and label == ignore)):
            raise DataError(
                f"{source}: label_mapping {key}: {label!r} is neither a class "
                f"(0 to {count - 1}) nor {ignore} (ignore)"
            )
        if type(value) is not int or value >= 1 << 16:
            raise DataError(f"{source}: label_mapping holds {key!r}, which no mask can hold")
        if value in found:
            raise DataError(f"{source}: label_mapping gives {value} twice")
        found[value] = label
    # Negative values (Cityscapes' -1) stand in no mask file.
    return {value: label for value, label in found.items() if value >= 0}


def _range_of(content: Mapping[Any, Any], channels: int, source: Path) -> ValueRange | None:
    given = _value_range(content.get("value_range"), channels, source)
    bits = content.get("bits")
    if bits is None:
        return given
    if not _is_index(bits, _MAX_BITS + 1) or bits == 0:
        raise DataError(
            f"{source}: bits is how many of a picture's bits a camera fills, as 12 for the values "
            f"0 to 4095, not {bits!r}"
        )
    meant = 0, (1 << bits) - 1
    if given is not None and given != meant:
        raise DataError(
            f"{source}: bits: {bits} means value_range: {list(meant)}, and value_range says "
            f"otherwise; write one of them"
        )
    return meant


def _value_range(given: Any, channels: int, source: Path) -> ValueRange | None:
    if given is None:
        return None
    several = isinstance(given, list) and any(isinstance(value, list) for value in given)
    pairs = given if several else [[0, given] if not isinstance(given, list) else given]
    found = [pair for pair in map(_pair, pairs) if pair is not None]
    if len(found) != len(pairs):
        raise DataError(
            f"{source}: value_range is [lowest, highest], the values of pictures of more than 8 "
            f"bits that are black and white, or a list of one such pair a channel, not {given!r}"
        )
    if not several:
        return found[0]
    if ranges(tuple(found), channels) is None:
        raise DataError(
            f"{source}: value_range has {len(found)} pairs for {channels} channels: give one pair "
            "for all, or one a channel, in the order of bands"
        )
    return tuple(found)


def _pair(numbers: Any) -> Range | None:
    good = (
        isinstance(numbers, list)
        and len(numbers) == 2
        and all(type(number) in (int, float) and math.isfinite(number) for number in numbers)
    )
    return (numbers[0], numbers[1]) if good and numbers[0] < numbers[1] else None


def _bands(given: Any, source: Path) -> Bands | None:
    if given is None:
        return None
    listed = given if isinstance(given, list) else []
    if not 1 <= len(listed) <= MAX_CHANNELS or not all(_is_index(band, 1 << 16) for band in listed):
        raise DataError(
            f"{source}: bands is a list of the bands that become the channels, counted from 0, as "
            f"[3, 2, 1], not {given!r}"
        )
    return tuple(listed)


def _is_index(value: Any, end: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < end
