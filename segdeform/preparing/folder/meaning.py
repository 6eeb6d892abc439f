"""What the values or colours of masks mean: from what is said, else from evidence, else refused.

A guess is told with what was seen. Where two readings are possible, the refusal prints the option
that says which one is meant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from segdeform.data.class_list import Colour
from segdeform.data.dataset import IGNORE, MAX_NARROW, ignore_label
from segdeform.errors import DataError, UsageError
from segdeform.preparing.folder.look import Seen
from segdeform.preparing.folder.names import LabelNames, renamed
from segdeform.preparing.folder.words import (
    SHOWN,
    hex_of,
    line_to_give,
    told_colours,
    told_label,
    told_labels,
    told_values,
)
from segdeform.preparing.polygons.annotation import is_background

_FEW_COLOURS = 64  # a person can tell apart
_BIMODAL = 0.95  # the share of pixels nearly black or white that makes a mask black and white
_MANY_GREYS = 8  # between black and white: a mask of fewer may be of classes
_EDGE = 40  # greys from white that still are nearly white


@dataclass(frozen=True)
class Meaning:
    """The classes of masks, and which value or colour is which of them."""

    names: tuple[str, ...]
    # Mask value -> class or what is ignored; None: each is its class.
    values: dict[int, int] | None = None
    colours: dict[Colour, int] = field(default_factory=dict)
    palette: tuple[Colour, ...] | None = None
    threshold: int | None = None  # from this grey on it is the second class
    rewrite: bool = False  # whether index masks have to be written
    told: tuple[str, ...] = ()  # what was guessed, and from what

    @property
    def ignore(self) -> int:
        """The label of pixels that are not scored."""
        return ignore_label(len(self.names))

    def label(self, value: int) -> int:
        """Returns the class of a mask value, or what is ignored."""
        if self.threshold is not None:
            return int(value >= self.threshold)
        if self.values is None or (value == self.ignore and value not in self.values):
            return value
        return self.values[value]

    def background(self) -> int | None:
        """Returns the class of that name, else that of 0 or of black; None where there is none."""
        named = [k for k, name in enumerate(self.names) if is_background(name)]
        if named:
            return named[0]
        if self.colours:
            label = self.colours.get((0, 0, 0), self.ignore)
        elif self.threshold is None and self.values is not None:
            label = self.values.get(0, self.ignore)
        else:
            label = 0
        return None if label == self.ignore else label

    def table(self) -> dict[int, int]:
        """Returns the class of each mask value, for masks that are written anew."""
        if self.values is not None:
            return {self.ignore: self.ignore} | self.values
        return {**{index: index for index in range(len(self.names))}, self.ignore: self.ignore}


def understand(
    seen: Seen,
    said: LabelNames | None,  # --values
    named: LabelNames | None,  # --classes
    found: Sequence[LabelNames],  # in files beside the masks
    threshold: int | None,
) -> Meaning:
    """Finds out what masks mean. Raises DataError, UsageError where it cannot be known."""
    if seen.kinds.get("blurred") or threshold is not None:
        return _black_and_white(seen, said, named, threshold)
    if seen.kinds.get("colour"):
        return _coloured(seen, said, named, found)
    rewrite = bool(seen.kinds.get("plain"))
    meaning = _of_values(seen, said, named, found)
    told = list(meaning.told)
    if rewrite:
        told.append(
            f"{seen.kinds['plain']} masks are grey or one bit in another form than 8-bit grey "
            f"(first: {seen.first['plain']}): written as index masks"
        )
    return Meaning(
        meaning.names, meaning.values, palette=meaning.palette, rewrite=rewrite, told=tuple(told)
    )


def _black_and_white(
    seen: Seen, said: LabelNames | None, named: LabelNames | None, threshold: int | None
) -> Meaning:
    """Cuts masks of two greys that something blurred, where it was asked for."""
    white = any(value >= IGNORE - _EDGE for value in seen.values)
    clear = seen.near_ends >= _BIMODAL and white and not seen.colours and not seen.top
    share = f"{seen.near_ends:.1%} of the pixels are nearly black or white"
    what = f"{seen.kinds['blurred']} masks are JPEG or WebP" if "blurred" in seen.kinds else "masks"
    first = seen.first.get("blurred", next(iter(seen.first.values())))
    if not clear:
        raise DataError(
            f"{first}: {what}, which blurs labels, and no threshold can mend them: only {share}; "
            "export the masks again as PNG (or are pictures and masks exchanged?)"
        )
    if threshold is None:
        raise DataError(
            f"{first}: {what}, which blurs labels ({share}); export them again as PNG, or, where "
            "they are black and white, give --threshold 128"
        )
    if said is not None:
        raise UsageError("--threshold and --values exclude each other: name two --classes")
    names = _two(named)
    told = f"cut at {threshold}: {share}; from {threshold} on it is {names[1]}, below {names[0]}"
    return Meaning(names, threshold=threshold, rewrite=True, told=(told,))


def _two(named: LabelNames | None) -> tuple[str, ...]:
    if named is None:
        return ("background", "foreground")
    if len(named.names) != 2:
        raise UsageError(f"black and white masks have two classes, {named.source} names "
                         f"{len(named.names)}: {', '.join(named.names)}")  # fmt: skip
    return named.names


def _coloured(
    seen: Seen, said: LabelNames | None, named: LabelNames | None, found: Sequence[LabelNames]
) -> Meaning:
    """Gives each colour of colour masks a class."""
    colours = dict(seen.colours)
    for value, counts in seen.values.items():  # black masks are easily saved as grey
        before = colours.get((value, value, value), (0, 0))
        colours[value, value, value] = (before[0] + counts[0], before[1] + counts[1])
    tables = [labels for labels in (said, named, *found) if labels and labels.colours is not None]
    first = seen.first["colour"]
    if said is not None and said.colours is None:
        raise UsageError(
            f"{first}: the masks are coloured: give --values RRGGBB:NAME,... ; "
            f"{told_colours(colours)}"
        )
    if not tables and (seen.top or len(colours) > _FEW_COLOURS):
        raise DataError(
            f"{first}: {seen.kinds['colour']} colour masks hold {_number(seen, colours)} colours, "
            f"too many to be classes: smoothed edges, or a JPEG before; the commonest: "
            f"{told_colours(seen.top or colours)}; export them again without smoothing (or are "
            "pictures and masks exchanged?)"
        )
    if not tables:
        return _own_colours(seen, colours, named)
    table = tables[0]
    known = table.colours or {}
    unknown = {colour: counts for colour, counts in colours.items() if colour not in known}
    if unknown or seen.top:
        raise DataError(
            f"{first}: the colour masks hold {_number(seen, unknown)} colours that "
            f"{table.source} does not name: {told_colours(unknown or seen.top)}; name them, or "
            "export the masks again without smoothed edges"
        )
    if named is not None and named is not table:
        table = renamed(table, named.names)
    meant = {colour: told_label(table.names, label) for colour, label in known.items()}
    told = (
        f"colours are those of {table.source}: {told_colours(colours, meant)}",
        f"{seen.masks} masks are written as index masks",
    )
    return Meaning(table.names, {}, known, table.palette, rewrite=True, told=told)


def _own_colours(
    seen: Seen, colours: Mapping[Colour, tuple[int, int]], named: LabelNames | None
) -> Meaning:
    ordered = sorted(colours)
    line = ",".join(f"{hex_of(colour)}:NAME{index + 1}" for index, colour in enumerate(ordered))
    if named is not None:
        raise DataError(
            f"{seen.first['colour']}: {named.source} does not say which class has which of "
            f"{len(ordered)} colours: {told_colours(colours)}; give --values {line}"
        )
    names = tuple(f"colour_{hex_of(colour)}" for colour in ordered)
    told = (
        f"{seen.kinds['colour']} colour masks of {len(ordered)} colours, each taken for a class: "
        f"{told_colours(colours)}; name them: --values {line}",
        f"{seen.masks} masks are written as index masks",
    )
    table = {colour: index for index, colour in enumerate(ordered)}
    return Meaning(names, {}, table, tuple(ordered), rewrite=True, told=told)


def _number(seen: Seen, colours: Mapping[Colour, Any]) -> str:
    return "thousands of" if seen.top else str(len(colours))


def _of_values(
    seen: Seen, said: LabelNames | None, named: LabelNames | None, found: Sequence[LabelNames]
) -> Meaning:
    used = sorted(seen.values)
    if said is not None:
        if said.values is None:
            raise UsageError("--values: the masks hold numbers, not colours: "
                             f"{told_values(seen)}")  # fmt: skip
        return _mapped(seen, said)
    tables = [labels for labels in (named, *found) if labels and labels.values is not None]
    if tables:
        table = renamed(tables[0], named.names) if named and named is not tables[0] else tables[0]
        return _mapped(seen, table)
    if len(used) == 1:
        raise DataError(
            f"{next(iter(seen.first.values()))}: all {seen.masks} masks hold only {used[0]}: "
            "are these the right masks?"
        )
    names = named or (found[0] if found else None)
    coloured = [labels for labels in (named, *found) if labels and labels.colours is not None]
    if coloured and (values := _of_palettes(seen, coloured[0])):
        table = renamed(coloured[0], named.names) if named else coloured[0]
        told = f"the masks' palettes have the colours of {table.source}: "
        told += told_labels(values, table.names)
        plain = all(value == label for value, label in values.items())
        known = None if plain else values
        return Meaning(table.names, known, palette=table.palette, told=(told,))
    if _is_smoothed(seen):
        raise DataError(
            f"{next(iter(seen.first.values()))}: {len(used)} greys, {seen.near_ends:.1%} of the "
            "pixels nearly black or white: smoothed edges; export the masks again without, or give "
            "--threshold 128"
        )
    return _of_names(seen, names) if names else _unnamed(seen)


def _of_palettes(seen: Seen, table: LabelNames) -> dict[int, int]:
    """Takes the class of each value from the colour that palettes show it in; {} where they do not
    agree, or have colours of their own."""
    values: dict[int, int] = {}
    ignore = ignore_label(len(table.names))
    for value, shown in seen.shown.items():
        (colour,) = shown if len(shown) == 1 else (None,)
        label = None if colour is None else (table.colours or {}).get(colour)
        if label is None and value != ignore:
            return {}
        values[value] = ignore if label is None else label
    return dict(sorted(values.items())) if len(set(values.values()) - {ignore}) > 1 else {}


def _is_smoothed(seen: Seen) -> bool:
    between = [value for value in seen.values if 0 < value < IGNORE]
    ends = 0 in seen.values and max(seen.values) == IGNORE  # no white of 8 bits is higher
    return (
        ends
        and len(between) > _MANY_GREYS
        and seen.near_ends >= _BIMODAL
        and (max(between) - min(between) >= 128)
    )


def _mapped(seen: Seen, table: LabelNames) -> Meaning:
    """Takes what is said of the values; each that masks hold must be named, or what is ignored."""
    values = dict(table.values or {})
    ignore = ignore_label(len(table.names))
    if table.void is not None:
        values.setdefault(table.void, ignore)
    unknown = [value for value in sorted(seen.values) if value not in values and value != ignore]
    if unknown:
        raise DataError(
            f"{next(iter(seen.first.values()))}: the masks hold values that {table.source} does "
            f"not name: {told_values(seen, unknown)}; {line_to_give(seen, table.names)}"
        )
    told = f"values are those of {table.source}: {told_labels(values, table.names)}"
    plain = all(value == label for value, label in values.items())
    return Meaning(table.names, None if plain else values, palette=table.palette, told=(told,))


def _of_names(seen: Seen, names: LabelNames) -> Meaning:
    """Fits names without values to the values: from 0 on, black and white, or from 1 on."""
    count = len(names.names)
    ignore = ignore_label(count)
    if names.order is not None and set(seen.values) - {ignore} <= set(range(len(names.order))):
        by_row = dict(enumerate(names.order))
        told = f"values count the rows of {names.source}: {told_labels(by_row, names.names)}"
        plain = all(value == label for value, label in by_row.items())
        known = None if plain else by_row
        return Meaning(names.names, known, palette=names.palette, told=(told,))
    skipped = {ignore, *([names.void] if names.void is not None else [])}
    used = set(seen.values) - skipped
    void = {names.void: ignore} if names.void is not None else {}
    if count == 2 and set(seen.values) == {0, IGNORE}:
        values = {0: 0, IGNORE: 1}
        told = f"all masks hold only 0 and 255: {told_labels(values, names.names)}"
        return Meaning(names.names, values, palette=names.palette, told=(told,))
    if used <= set(range(count)) and len(used) > 1:
        told = f"{count} classes from {names.source}, numbered as named; {told_values(seen)}"
        numbered = dict(enumerate(range(count))) | void if void else None
        return Meaning(names.names, numbered, palette=names.palette, told=(told,))
    two = sorted(used)
    if count == 2 and len(two) == 2 and two[0] == 0 and IGNORE not in seen.values:
        values = {0: 0, two[1]: 1}
        told = f"all masks hold only 0 and {two[1]}: {told_labels(values, names.names)}"
        return Meaning(names.names, values, palette=names.palette, told=(told,))
    often = 2 * seen.values.get(count, (0, 0))[1] > seen.masks
    if 0 not in used and max(used, default=0) == count and often:
        values = {value: value - 1 for value in range(1, count + 1)} | void
        told = f"values from 1 to {count} and never 0: {told_labels(values, names.names)}"
        return Meaning(names.names, values, palette=names.palette, told=(told,))
    # One name is that of what was looked for.
    meant = ("background", *names.names) if count == 1 else names.names
    raise DataError(
        f"{next(iter(seen.first.values()))}: {names.source} names {count} classes and does not say "
        f"which values they have; the masks hold {told_values(seen)}; {line_to_give(seen, meant)}"
    )


def _unnamed(seen: Seen) -> Meaning:
    """Takes values for classes where there is one way to do so."""
    used = sorted(seen.values)
    classes = [value for value in used if value != IGNORE]
    if len(used) == 2 and used[0] == 0 and used[1] > 1:
        names = ("background", "foreground")
        values = {0: 0, used[1]: 1}
        told = (
            f"all masks hold only 0 and {used[1]}: {told_labels(values, names)}; name them: "
            "--classes NAME,NAME"
        )
        return Meaning(names, values, told=(told,))
    count = classes[-1] + 1
    if 2 * len(classes) < count or count > MAX_NARROW or len(classes) < 2:
        what = "which do not count classes from 0"
        if count > MAX_NARROW and 2 * len(classes) >= count:
            what = f"and more than {MAX_NARROW} classes need names: give --classes FILE, or"
        raise DataError(
            f"{next(iter(seen.first.values()))}: the masks hold {told_values(seen)}, {what}"
            f"{'' if what.endswith('or') else ';'} {line_to_give(seen, ())}"
        )
    numbered = tuple(f"class_{index}" for index in range(count))
    lacking = sorted(set(range(count)) - set(classes))
    told = f"the masks hold {told_values(seen)}: classes 0 to {count - 1}"
    if lacking:
        told += f", of which no mask has {', '.join(map(str, lacking[:SHOWN]))}"
    if IGNORE in seen.values:
        told += "; 255 is not scored"
    return Meaning(numbered, None, told=(f"{told}; name them: --classes NAME,NAME,...",))
