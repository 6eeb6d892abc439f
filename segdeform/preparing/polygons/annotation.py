"""What every annotation format is read into: pictures, their shapes, and the names of the classes.

Coordinates are (x, y) with the origin in the upper left corner of the picture, so that pixel
(row r, column c) is the square from (c, r) to (c + 1, r + 1), as all these tools have it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from segdeform.data.image_io import MAX_PIXELS
from segdeform.errors import DataError

Points = npt.NDArray[np.float64]  # [N, 2], x and y; the last one is joined with the first
Bits = npt.NDArray[np.bool_]  # [H, W]
Colour = tuple[int, int, int]

FARTHEST = 1e9  # pixels: no coordinate is farther away than that
_LONGEST_NAME = 200  # letters
_SHOWN = 80  # letters of a text of a file in a message


@dataclass(frozen=True)
class Runs:
    """A bitmap as lengths of runs, off and on in turn, beginning with off."""

    top: int  # of its upper left pixel in the picture
    left: int
    height: int
    width: int
    lengths: npt.NDArray[np.int64]  # their sum is height * width
    by_columns: bool = False  # the runs go down the columns, as COCO's, not along the rows
    whole: bool = False  # it is as large as the picture, not a part of it

    def __post_init__(self) -> None:
        """Raises ValueError for lengths that do not make such a bitmap."""
        if self.height < 1 or self.width < 1:
            raise ValueError(f"a bitmap of {self.height}x{self.width} pixels")
        if (self.lengths < 0).any():
            raise ValueError("a run of negative length")
        # Sums of int64 wrap: no single run may be longer than the whole.
        whole = self.height * self.width
        if whole > MAX_PIXELS:
            raise ValueError(
                f"a bitmap of {self.height}x{self.width} pixels, more than any picture"
            )
        if (self.lengths > whole).any() or int(self.lengths.sum()) != whole:
            raise ValueError(
                f"its runs do not sum up to the {self.height} x {self.width} pixels that it claims"
            )


@dataclass(frozen=True)
class Shape:
    """One thing drawn: rings of which the union counts, or a bitmap."""

    label: str
    item: str  # what the file calls it, for messages: "annotation 17"
    rings: tuple[Points, ...] = ()
    runs: Runs | None = None
    crowd: bool = False  # a region of many things, not scored where nothing else is drawn
    line: str = ""  # what its ring is called where it is a line without width: "polylines"


@dataclass(frozen=True)
class AnnotatedPicture:
    """What a file says of one picture."""

    names: tuple[str, ...]  # what the picture may be called, with or without folders, best first
    item: str  # what the file calls it, for messages
    source: Path  # the file that says so
    shapes: tuple[Shape, ...]  # in drawing order, later ones on top
    size: tuple[int, int] | None = None  # (H, W) where the file tells it
    looked_at: bool = True  # somebody has worked on it: without a shape, there is nothing in it
    in_fractions: bool = False  # coordinates are shares of width and height, 0 to 1


@dataclass
class Annotations:
    """What an annotation file, or a folder of them, holds."""

    form: str  # as people call the format
    source: Path
    pictures: list[AnnotatedPicture] = field(default_factory=list)
    listed: list[str] = field(default_factory=list)  # classes in the project's own order, if any
    colours: dict[str, Colour] = field(default_factory=dict)
    smaller_on_top: bool = False  # the format has no order of drawing
    left_out: Counter[str] = field(
        default_factory=Counter
    )  # kind of shape without area -> how many
    notes: list[str] = field(default_factory=list)  # whole sentences for the user


def shown(name: object) -> str:
    """Returns the beginning of a text of a file as one line can hold it."""
    return "".join(c if c.isprintable() else "?" for c in str(name)[:_SHOWN])


def clean_label(text: str, where: str) -> str:
    """Returns the name of a class. Raises DataError naming `where` for one that cannot be."""
    name = text.strip()
    if not name or len(name) > _LONGEST_NAME or not name.isprintable():
        raise DataError(f"{where}: {name[:40]!a} cannot be the name of a class")
    return name


def checked_points(numbers: Points, where: str) -> Points:
    """Returns finite coordinates that a picture may have. Raises DataError naming `where`."""
    if not np.isfinite(numbers).all() or (np.abs(numbers) > FARTHEST).any():
        raise DataError(f"{where}: holds a coordinate that no picture has")
    return numbers


def is_background(label: str) -> bool:
    """Tells whether a label is one of the spellings of "background" (LabelMe's: _background_)."""
    return label.strip("_ ").casefold() == "background"
