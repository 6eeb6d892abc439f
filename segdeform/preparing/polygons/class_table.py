"""Makes classes of labels: which there are, in which order, and what pixels of no shape are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from segdeform.data.dataset import MAX_CLASSES, colour_map, ignore_label
from segdeform.errors import DataError, nearest
from segdeform.preparing.folder.names import is_void
from segdeform.preparing.polygons.annotation import (
    AnnotatedPicture,
    Annotations,
    Colour,
    Shape,
    is_background,
)

BACKGROUND = "background"


@dataclass(frozen=True)
class ClassTable:
    """Which class a label is, and what pixels without a shape are."""

    names: tuple[str, ...]
    palette: tuple[Colour, ...]
    labels: dict[str, int]  # label -> class or what is ignored
    unlabelled: int

    @classmethod
    def of(cls, read: Annotations, given: Sequence[str] | None, partial_labels: bool) -> ClassTable:
        """Makes it of the names given, else of those that the format lists or shapes carry."""
        used: dict[str, tuple[AnnotatedPicture, Shape]] = {}
        for picture in read.pictures:
            for shape in picture.shapes:
                used.setdefault(shape.label, (picture, shape))
        if given is not None:
            names = list(given)
        else:
            every = (*read.listed, *sorted(used.keys() - set(read.listed)))
            names = [name for name in every if not (is_background(name) or is_void(name))]
        drawn = (*used, *(read.listed if given is None else ()))
        needed = not partial_labels or any(is_background(name) for name in drawn)
        if needed and not any(is_background(name) for name in names):
            names.insert(0, BACKGROUND)
        if len(names) > MAX_CLASSES:
            raise DataError(
                f"{read.source}: {len(names)} classes; up to {MAX_CLASSES} are possible"
            )
        known = {_key(name): index for index, name in enumerate(names)}
        labels = {}
        for label, (picture, shape) in used.items():
            if _key(label) in known:
                labels[label] = known[_key(label)]
            elif is_void(label):
                labels[label] = ignore_label(len(names))
            else:
                raise DataError(
                    f"{picture.source}: {picture.item}: {shape.item} is called '{label}', which is "
                    f"not among the classes.{nearest(label, names)}"
                )
        unlabelled = ignore_label(len(names)) if partial_labels else known[BACKGROUND]
        return cls(tuple(names), _palette(names, read.colours), labels, unlabelled)


def _key(name: str) -> str:
    return BACKGROUND if is_background(name) else name


def _palette(names: Sequence[str], colours: dict[str, Colour]) -> tuple[Colour, ...]:
    """Takes the project's colours where every class but the background has one of its own."""
    own = [colours.get(name) for name in names if not is_background(name)]
    if None in own or len(set(own)) != len(own) or (0, 0, 0) in own:
        return colour_map(len(names))
    return tuple((0, 0, 0) if is_background(name) else colours[name] for name in names)
