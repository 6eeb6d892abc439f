"""Judges the facts of the pairs of one split against its classes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from segdeform.checking.causes import Cause
from segdeform.checking.facts import Colour, Facts
from segdeform.checking.finding import Finding, Place
from segdeform.checking.scan import PairFacts
from segdeform.data.dataset import Dataset, colour_map

_SHOWN_VALUES = 5  # values outside the classes told of one mask


def judge_pair(
    dataset: Dataset, index: int, pair: PairFacts, cause: Cause | None
) -> Iterator[Finding]:
    """Yields what is wrong with one pair."""
    sample, split = dataset.samples[index], dataset.split
    picture, mask = pair
    if picture.problem:
        yield Finding(picture.problem, split, sample.image, picture.text, sample=index)
    else:
        yield from _judge_picture(dataset, index, picture)
    if sample.mask is None or mask is None:
        path = sample.image
        kind = "unlabelled" if split == "test" else "missing-mask"  # benchmarks keep theirs
        yield Finding(kind, split, path, f"{path}: has no mask", sample=index)
        return
    if mask.problem:
        fix, mendable = _kind_fix(dataset, picture, mask)
        path, problem = sample.mask, mask.problem
        yield Finding(problem, split, path, mask.text, fix, sample=index, mendable=mendable)
        return
    if not picture.problem and (mask.height, mask.width) != (picture.height, picture.width):
        text = (
            f"{sample.mask}: is {mask.height}x{mask.width} (HxW), its picture {sample.image} "
            f"is {picture.height}x{picture.width}"
        )
        fix, mendable = _size_fix(picture, mask)
        yield Finding("size", split, sample.mask, text, fix, sample=index, mendable=mendable)
    yield from _judge_values(dataset, index, mask, cause)


def _judge_picture(dataset: Dataset, index: int, picture: Facts) -> Iterator[Finding]:
    path, split = dataset.samples[index].image, dataset.split
    if picture.orientation != 1:
        text = f"{path}: has the EXIF orientation {picture.orientation}"
        yield Finding("turned-picture", split, path, text, sample=index)
    if picture.doubt:
        text = f"{path}: libjpeg says: {picture.doubt}"
        yield Finding("damaged-jpeg", split, path, text, sample=index)
    if picture.frames > 1:
        text = f"{path}: holds {picture.frames} frames or pages"
        yield Finding("frames", split, path, text, sample=index)
    if picture.spans and picture.white is None and dataset.value_range is None:
        low = min(span[0] for span in picture.spans)
        high = max(span[1] for span in picture.spans)
        text = f"{path}: holds values from {low:g} to {high:g}, and nobody says which is white"
        yield Finding("no-range", split, path, text, sample=index)


def label_counts(dataset: Dataset, mask: Facts) -> npt.NDArray[np.int64]:
    """Counts a mask's pixels of each label, [256] or [65536], the last one being ignored; values
    outside the classes do not count."""
    counts = np.zeros(dataset.ignore + 1, np.int64)
    for value, (count, _) in mask.values.items():
        if dataset.lookup[value] >= 0:
            counts[dataset.lookup[value]] += count
    return counts


def foreign_index(dataset: Dataset, mask: Facts) -> int | None:
    """Returns an index of a palette mask that is shown in the colour of another class.

    That is what a converter leaves that numbers the colours of each picture as it meets them. A
    mask with any colour that is no class's is coloured by some other taste: None.
    """
    shown = {value: colour for value, colour in mask.colours.items() if value not in dataset.void}
    if dataset.label_map is not None or not set(shown.values()) <= set(dataset.palette):
        return None
    if len(set(shown.values())) < 2:  # all black, say, tells nothing
        return None
    own = dict(enumerate(dataset.palette))
    return next((value for value, colour in shown.items() if own.get(value) != colour), None)


def has_own_colours(dataset: Dataset) -> bool:
    """Whether the classes' colours were given: only then may colours be taken for classes."""
    return dataset.name != "folder" or dataset.palette != colour_map(len(dataset.classes))


def class_of_colour(dataset: Dataset) -> dict[Colour, int]:
    """Returns the classes' given colours; none where two are equal."""
    if not has_own_colours(dataset):
        return {}
    colours = {colour: index for index, colour in enumerate(dataset.palette)}
    return colours if len(colours) == len(dataset.palette) else {}


def _judge_values(
    dataset: Dataset, index: int, mask: Facts, cause: Cause | None
) -> Iterator[Finding]:
    sample, split = dataset.samples[index], dataset.split
    path = sample.mask or sample.image
    foreign = foreign_index(dataset, mask)
    if foreign is not None:
        colour = mask.colours[foreign]
        text = (
            f"{path}: shows index {foreign} in the colour {colour} of class "
            f"{dataset.palette.index(colour)}: its indices are not the classes"
        )
        kind = "palette" if has_own_colours(dataset) else "palette-differs"
        mendable = kind == "palette" and bool(class_of_colour(dataset))
        place = Place(foreign)
        yield Finding(kind, split, path, text, place=place, sample=index, mendable=mendable)
    explained = cause.mapping.keys() if cause else set()  # said once, of all masks
    outside = [
        value
        for value in mask.values
        if dataset.lookup[value] < 0 and value not in explained and value not in dataset.void
    ]
    outside.sort(key=lambda value: mask.values[value][1])
    for value in outside[:_SHOWN_VALUES]:
        yield _outside(dataset, index, mask, value, len(outside), cause)
    if mask.frames > 1:
        text = f"{path}: has {mask.frames} frames"
        yield Finding("animated-mask", split, path, text, sample=index)
    if mask.values and all(dataset.lookup[value] == dataset.ignore for value in mask.values):
        text = f"{path}: every pixel is ignored"
        yield Finding("void-mask", split, path, text, sample=index)


def _outside(
    dataset: Dataset, index: int, mask: Facts, value: int, others: int, cause: Cause | None
) -> Finding:
    path = dataset.samples[index].mask or dataset.samples[index].image
    count, first = mask.values[value]
    row, column = divmod(first, mask.width)
    classes = len(dataset.classes)
    allowed = f"0 to {classes - 1}" if dataset.label_map is None else "label_mapping"
    text = (
        f"{path}: label {value} at row {row}, column {column} is outside the {classes} classes "
        f"(allowed: {allowed}; ignored: {', '.join(map(str, sorted(dataset.void)))})"
    )
    if cause:
        fix = cause.fix
    elif others == 1:
        fix = f"correct the mask; if {value} means 'no label', set void_id: {value}"
        if value == classes and dataset.label_map is None:
            fix += "; if all masks count the classes from 1, write label_mapping"
    else:
        fix = ""
    mendable = cause is not None and (value in cause.mapping or value in dataset.void)
    place = Place(value, row, column, count)
    split = dataset.split
    return Finding("label-outside", split, path, text, fix, place, index, mendable)


def _kind_fix(dataset: Dataset, picture: Facts, mask: Facts) -> tuple[str, bool]:
    """Returns what to do about a mask of another kind, and whether --fix does it."""
    if mask.problem == "colour-mask":
        colours = set(mask.colours.values())
        if colours and colours <= {*class_of_colour(dataset)}:
            return "its colours are those of the classes: write their numbers", True
        if colours and all(red == green == blue for red, green, blue in colours):
            return "it is grey: save one channel", True
        return "give the classes' colours as palette in the data YAML, then use --fix", False
    turned = mask.problem == "turned-mask" and mask.orientation != picture.orientation
    return "", mask.plain and mask.problem in ("mask-kind", "turned-mask") and not turned


def _size_fix(picture: Facts, mask: Facts) -> tuple[str, bool]:
    """Returns what to do about sizes that differ, and whether --fix does it."""
    height, width = picture.height, picture.width
    if (mask.width, mask.height) == (height, width):
        if picture.orientation >= 5:
            return "the mask was drawn on the picture as stored, not upright as EXIF says", True
        return "the mask is turned by 90 degrees: turn it", False
    if max(abs(mask.height - height), abs(mask.width - width)) <= 2:
        return "a border was cut or added: cut the larger one to the size of the other", False
    if mask.height and mask.height * width == mask.width * height:
        factor = height / mask.height
        text = f"scale the mask by {factor:.4g}, nearest neighbour, or the picture to the mask"
        return text, False
    return "", False
