"""Class names, and what they stand for in masks, from the files that labelling tools leave."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from segdeform.data.class_list import ClassList, Colour, parse_class_list, read_class_list
from segdeform.data.data_yaml import read_data_yaml
from segdeform.data.dataset import ignore_label
from segdeform.errors import DataError, UsageError

# Looked for beside the masks and above them, in this order.
FILES = (
    *("data.yaml", "data.yml", "classes.json", "classes.txt", "labels.txt"),
    *("labelmap.txt", "label_colors.txt", "_classes.csv"),
)
_VOID = {"void", "ignore", "ignored", "unlabeled", "unlabelled", "unlabled", "dontcare"}
_CVAT = re.compile(r"(?P<name>[^:#]+):(?P<rgb>\d{1,3},\d{1,3},\d{1,3}):[^:]*:[^:]*")
_CAMVID = re.compile(r"(?P<rgb>\d{1,3}\s+\d{1,3}\s+\d{1,3})\s+(?P<name>\S.*)")


@dataclass(frozen=True)
class LabelNames:
    """Classes by name, and the mask values or colours that a file or the user says they have."""

    names: tuple[str, ...]
    source: str  # who says so
    values: dict[int, int] | None = None  # mask value -> class or what is ignored; None: not said
    colours: dict[Colour, int] | None = None  # the same of colours
    palette: tuple[Colour, ...] | None = None
    void: int | None = None  # one more value that is not scored
    order: tuple[int, ...] | None = None  # class, or what is ignored, of each row of colours

    @property
    def said(self) -> bool:
        """Whether it is said what stands for a class, not only how the classes are called."""
        return self.values is not None or self.colours is not None


def is_void(name: str) -> bool:
    """Whether a class of this name means pixels that are not to be scored."""
    return re.sub(r"[\W_]", "", name).casefold() in _VOID


def given_names(text: str) -> LabelNames:
    """Understands --classes: a file, or names with commas. Raises DataError, UsageError."""
    path = Path(text)
    with suppress(OSError):  # many names together are longer than a file's name can be
        if path.is_file():
            return read_names_file(path)
    if path.suffix.lower() in (".txt", ".json", ".yaml", ".yml", ".csv") or "/" in text:
        raise UsageError(f"--classes {text}: no such file")
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) != len(names):
        raise UsageError(f"--classes {text}: give names with commas, each once: background,crack")
    return LabelNames(tuple(names), "--classes")


def given_values(text: str) -> LabelNames:
    """Understands --values: 0:background,255:crack; of colours, 000000:background,ff0000:crack.

    The same name twice is one class; ignore is not scored. Raises UsageError.
    """
    entries = []
    for part in text.split(","):
        key, _, name = part.partition(":")
        if not re.fullmatch(r"\d{1,5}|[0-9a-fA-F]{6}", key.strip()) or not name.strip():
            raise UsageError(f"--values {text}: give VALUE:NAME or RRGGBB:NAME, not '{part}'")
        entries.append((key.strip(), name.strip()))
    colours = all(len(key) == 6 for key, _ in entries)
    if not colours and any(len(key) == 6 for key, _ in entries):
        raise UsageError(f"--values {text}: give either mask values or colours as RRGGBB")
    if len({key.lower() for key, _ in entries}) != len(entries):
        raise UsageError(f"--values {text}: a value is given twice")
    names, labels = _numbered([name for _, name in entries], fewest=1)
    if not names:
        raise UsageError(f"--values {text}: names no class")
    keys = [key for key, _ in entries]
    if colours:
        table = {_rgb(bytes.fromhex(key)): label for key, label in zip(keys, labels, strict=True)}
        return LabelNames(names, "--values", colours=table, palette=_palette(table, len(names)))
    table_of_values = {int(key): label for key, label in zip(keys, labels, strict=True)}
    if max(table_of_values) >= 1 << 16:
        raise UsageError(f"--values {text}: mask values end at 65535")
    return LabelNames(names, "--values", values=table_of_values)


def find_names(places: Sequence[Path]) -> tuple[list[LabelNames], list[str]]:
    """Reads the lists of classes in some folders; and tells of those that cannot be read."""
    found: list[LabelNames] = []
    odd: list[str] = []
    for folder in dict.fromkeys(places):
        for name in FILES:
            path = folder / name
            if path.is_file():
                try:
                    found.append(read_names_file(path))
                except DataError as error:
                    odd.append(f"not used: {error}")
    return found, odd


def read_names_file(path: Path) -> LabelNames:
    """Reads the classes that a file of a labelling tool names. Raises DataError."""
    suffix = path.suffix.lower()
    if suffix in (".yaml", ".yml"):
        content = read_data_yaml(path)
        labels = parse_class_list(content, path)
        given = content.get("palette") is not None
        return _of_list(labels, path, given)
    if suffix == ".json":
        labels = read_class_list(path)
        return _of_list(labels, path, b'"palette"' in path.read_bytes())
    lines = _lines(path)
    if suffix == ".csv":
        return _of_values(lines, path)
    for pattern in (_CVAT, _CAMVID):
        matches = [pattern.fullmatch(line) for line in lines]
        if all(matches):
            rows = [(m["name"].strip(), m["rgb"].replace(",", " ")) for m in matches if m]
            return _of_colours(rows, path)
    names = read_class_list(path).names
    # What LabelMe calls so has no number.
    return LabelNames(tuple(name for name in names if name != "__ignore__"), str(path))


def _of_list(labels: ClassList, path: Path, given: bool) -> LabelNames:
    """Takes over a list of classes, and its palette where that is given."""
    names, palette = labels.names, labels.palette
    void = next((value for value in labels.void if value != ignore_label(len(names))), None)
    colours = {colour: index for index, colour in enumerate(palette)} if given else None
    if colours is not None and len(colours) < len(palette):
        colours = None  # two classes of one colour cannot be told apart
    own = palette if given else None
    return LabelNames(names, str(path), labels.label_map, colours, own, void)


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the class list cannot be read: {error}") from error
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def _of_values(lines: list[str], path: Path) -> LabelNames:
    """Reads rows of a mask value and its name, as Roboflow writes them below a heading."""
    entries: dict[int, str] = {}
    try:
        rows = list(csv.reader(lines))
    except csv.Error as error:
        raise DataError(f"{path}: the class list cannot be read: {error}") from error
    for row in rows:
        cells = [cell.strip() for cell in row]
        if len(cells) == 2 and cells[0].isdecimal() and int(cells[0]) < 1 << 16 and cells[1]:
            entries[int(cells[0])] = cells[1]
        elif row is not None and entries:
            raise DataError(f"{path}: not a mask value and the name of its class: {row}")
    if not entries:
        raise DataError(f"{path}: names no class")
    names, labels = _numbered(list(entries.values()))
    return LabelNames(names, str(path), dict(zip(entries, labels, strict=True)))


def _of_colours(rows: list[tuple[str, str]], path: Path) -> LabelNames:
    colours = [_rgb(bytes(min(255, int(part)) for part in rgb.split())) for _, rgb in rows]
    names, labels = _numbered([name for name, _ in rows])
    if len(set(colours)) != len(colours):
        raise DataError(f"{path}: gives one colour to two classes")
    table = dict(zip(colours, labels, strict=True))
    palette = _palette(table, len(names))
    return LabelNames(names, str(path), colours=table, palette=palette, order=tuple(labels))


def _numbered(names: Sequence[str], fewest: int = 2) -> tuple[tuple[str, ...], list[int]]:
    """Numbers names as they come; what is not to be scored is ignored, if classes enough are left.

    Tools call the background of a single class unlabelled, too.
    """
    classes = tuple(dict.fromkeys(name for name in names if not is_void(name)))
    if len(classes) < fewest:
        classes = tuple(dict.fromkeys(names))
    numbers = {name: index for index, name in enumerate(classes)}
    return classes, [numbers.get(name, ignore_label(len(classes))) for name in names]


def _palette(table: dict[Colour, int], count: int) -> tuple[Colour, ...]:
    first: dict[int, Colour] = {}
    for colour, label in table.items():
        first.setdefault(label, colour)
    return tuple(first[label] for label in range(count))


def _rgb(content: bytes) -> Colour:
    red, green, blue = content
    return red, green, blue


def renamed(labels: LabelNames, names: Sequence[str]) -> LabelNames:
    """Gives the classes of a table other names, as many as it has. Raises UsageError."""
    if len(names) != len(labels.names):
        raise UsageError(
            f"--classes gives {len(names)} names, and {labels.source} has {len(labels.names)} "
            f"classes: {', '.join(labels.names)}"
        )
    return replace(labels, names=tuple(names))
