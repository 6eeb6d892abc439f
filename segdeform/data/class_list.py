"""What mask values mean: class names, colours, ignored values, and a mapping of file values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segdeform.data.dataset import IGNORE, colour_map
from segdeform.errors import DataError

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class ClassList:
    """Names and colours of K classes, and how mask values become class indices."""

    names: tuple[str, ...]
    palette: tuple[Colour, ...]
    void: frozenset[int] = frozenset({IGNORE})
    label_map: dict[int, int] | None = None


def find_class_list(root: Path) -> ClassList | None:
    """Reads ROOT/classes.json or ROOT/classes.txt (one name a line); None when there is neither.

    Raises DataError when the file cannot be understood.
    """
    listed, plain = root / "classes.json", root / "classes.txt"
    try:
        if listed.is_file():
            content = json.loads(listed.read_text(encoding="utf-8"))
            if not isinstance(content, dict):
                raise DataError(f'{listed}: expected {{"names": [...]}}')
            return parse_class_list(content, listed)
        if plain.is_file():
            lines = plain.read_text(encoding="utf-8").splitlines()
            names = [line.strip() for line in lines if line.strip()]
            return parse_class_list({"names": names}, plain)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{root}: the class list cannot be read: {error}") from error
    return None


def parse_class_list(content: Mapping[Any, Any], source: Path) -> ClassList:
    """Understands the keys names, nc, palette, void_id and label_mapping of a class list.

    Raises DataError naming the file and the key.
    """
    names = _names(content.get("names"), source)
    if content.get("nc", len(names)) != len(names):
        raise DataError(f"{source}: nc is {content['nc']}, but there are {len(names)} names")
    void = content.get("void_id", IGNORE)
    if not _is_index(void, 1 << 16):
        raise DataError(f"{source}: void_id is a mask value from 0 to 65535, not {void!r}")
    palette = content.get("palette")
    return ClassList(
        names,
        colour_map(len(names)) if palette is None else _palette(palette, len(names), source),
        frozenset({void, IGNORE}),
        _label_map(content.get("label_mapping"), len(names), source),
    )


def _names(names: Any, source: Path) -> tuple[str, ...]:
    if isinstance(names, Mapping):
        indexed = {str(key): name for key, name in names.items()}
        if set(indexed) != {str(index) for index in range(len(indexed))}:
            raise DataError(f"{source}: the keys of names are 0, 1, 2, ... without a gap")
        names = [indexed[str(index)] for index in range(len(indexed))]
    if not isinstance(names, list) or not names:
        raise DataError(f"{source}: names is a list of class names, or a mapping 0: name, 1: ...")
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"{source}: the class name {name!r} is not a text; put it in quotes")
    return tuple(name.strip() for name in names)


def _palette(palette: Any, count: int, source: Path) -> tuple[Colour, ...]:
    colours = palette if isinstance(palette, list) else []
    good = all(
        isinstance(c, list) and [_is_index(v, 256) for v in c] == [True] * 3 for c in colours
    )
    if len(colours) != count or not good:
        raise DataError(f"{source}: palette is one [red, green, blue], 0 to 255, for each class")
    return tuple((red, green, blue) for red, green, blue in colours)


def _label_map(mapping: Any, count: int, source: Path) -> dict[int, int] | None:
    if mapping is None:
        return None
    if not isinstance(mapping, Mapping):
        raise DataError(f"{source}: label_mapping maps mask values to classes, 7: 0")
    for value, label in mapping.items():
        if not _is_index(label, count) and label != IGNORE:
            raise DataError(
                f"{source}: label_mapping {value}: {label!r} is neither a class "
                f"(0 to {count - 1}) nor {IGNORE} (ignore)"
            )
        if not isinstance(value, int) or value >= 1 << 16:
            raise DataError(f"{source}: label_mapping holds {value!r}, which no mask can hold")
    # Negative values (Cityscapes' -1) stand in no mask file.
    return {value: label for value, label in mapping.items() if value >= 0}


def _is_index(value: Any, end: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < end
