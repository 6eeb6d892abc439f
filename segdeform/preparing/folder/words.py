"""Words what masks hold and mean: values and colours, how often, and the options to give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from segdeform.data.class_list import Colour
from segdeform.data.dataset import ignore_label
from segdeform.preparing.folder.look import Seen

SHOWN = 8  # values or colours named one by one


def line_to_give(seen: Seen, names: Sequence[str]) -> str:
    """Words the option that says what is meant, to be copied and completed."""
    used = sorted(seen.values)
    shown = used[:32]
    parts = []
    for index, value in enumerate(shown):
        own = "background" if value == 0 else f"NAME{index + 1}"
        parts.append(f"{value}:{names[index] if index < len(names) else own}")
    more = ",..." if len(used) > len(shown) else ""
    return f"say what they mean, e.g. --values {','.join(parts)}{more} ('ignore' is not scored)"


def told_labels(values: Mapping[int, int], names: Sequence[str]) -> str:
    """Words which value is which class."""
    shown = list(values.items())[:SHOWN]
    text = ", ".join(f"{value} is {told_label(names, label)}" for value, label in shown)
    return text + (f" and {len(values) - len(shown)} more" if len(values) > len(shown) else "")


def told_label(names: Sequence[str], label: int) -> str:
    """Returns the name of a class, or that it is not scored."""
    return "not scored" if label == ignore_label(len(names)) else names[label]


def told_values(seen: Seen, only: Sequence[int] | None = None) -> str:
    """Words mask values, each with its share of all pixels and the number of masks."""
    total = sum(pixels for pixels, _ in seen.values.values())
    values = sorted(seen.values) if only is None else only
    parts = [
        f"{value} ({seen.values[value][0] / max(1, total):.2%} in {seen.values[value][1]})"
        for value in values[:SHOWN]
    ]
    more = f" and {len(values) - SHOWN} more values" if len(values) > SHOWN else ""
    return f"{', '.join(parts)}{more}"


def told_colours(
    colours: Mapping[Colour, tuple[int, int]], names: Mapping[Colour, str] | None = None
) -> str:
    """Words the commonest colours, each with its share and the number of masks."""
    total = sum(pixels for pixels, _ in colours.values())
    ordered = sorted(colours.items(), key=lambda entry: (-entry[1][0], entry[0]))
    parts = [
        f"{hex_of(colour)}{' ' + names[colour] if names else ''} "
        f"({pixels / max(1, total):.2%} in {masks} masks)"
        for colour, (pixels, masks) in ordered[:SHOWN]
    ]
    more = f" and {len(ordered) - SHOWN} more" if len(ordered) > SHOWN else ""
    return f"{', '.join(parts)}{more}"


def hex_of(colour: Colour) -> str:
    """Returns a colour as RRGGBB."""
    return bytes(colour).hex()
