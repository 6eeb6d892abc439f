"""Makes index masks of a whole annotation set: classes, pictures, sizes, then one PNG a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from segdeform.callbacks import Progress
from segdeform.data.dataset import IGNORE, MAX_CLASSES, Sample, colour_map
from segdeform.data.image_io import opened, orientation, upright_size, write_index_png
from segdeform.data.layout import spelt
from segdeform.errors import DataError, UnsafeInputError, nearest
from segdeform.preparing.folder_names import is_void
from segdeform.preparing.polygons.annotation import (
    AnnotatedPicture,
    Annotations,
    Colour,
    Runs,
    Shape,
    is_background,
)
from segdeform.preparing.polygons.drawing import draw
from segdeform.preparing.polygons.geometry import stroke
from segdeform.preparing.polygons.matching import match_pictures
from segdeform.preparing.polygons.recognising import read_annotations
from segdeform.preparing.side_by_side import each

BACKGROUND = "background"
_NO_WIDTH = " (--line-width 3 draws them 3 pixels wide)"
_SLACK = 1.5  # pixels that a corner may lie out of a picture without telling anything


@dataclass(frozen=True)
class Drawn:
    """The masks that were made, and what is to be told of it."""

    samples: tuple[Sample, ...]  # pictures with their masks, by name
    classes: tuple[str, ...]
    palette: tuple[Colour, ...]
    unannotated: tuple[Path, ...]  # pictures without a word on them, that got no mask
    messages: tuple[str, ...]


def draw_annotations(
    source: Path,
    images: Path,
    masks: Path,
    *,
    classes: Sequence[str] | None = None,
    partial_labels: bool = False,
    empty_is_background: bool = False,
    line_width: float | None = None,
    workers: int = 2,
    progress: Progress = lambda done, total: None,
) -> Drawn:
    """Draws the annotations of SOURCE for the pictures below IMAGES into MASKS/NAME.png.

    Args:
        source: a file, or a folder of LabelMe's or YOLO's files; told by its content.
        classes: the names, which then are all that may occur; else the format's own order.
        partial_labels: pixels without a shape are not scored (255) instead of background.
        empty_is_background: pictures that nobody annotated are pure background, not left out.
        line_width: how wide lines are drawn, pixels; None leaves them out.

    Raises DataError or UnsafeInputError naming the file and the item, before the first mask is
    written where sizes, names or classes do not fit; UsageError, ResourceError where a mask cannot
    be written.
    """
    read = _with_lines(read_annotations(source), line_width)
    found, nowhere, unnamed = match_pictures(read.pictures, images)
    if not found:
        raise _no_picture(read, images)
    table = _ClassTable.of(read, classes, partial_labels)
    empty = sorted(path for path, picture in found.items() if not _is_annotated(picture))
    left = sorted([*empty, *unnamed])
    jobs = dict(found)
    if empty_is_background and not partial_labels:
        jobs.update({path: AnnotatedPicture((), path.name, source, ()) for path in unnamed})
        left = []
    else:
        jobs = {path: picture for path, picture in jobs.items() if _is_annotated(picture)}
    if not any(picture.shapes for picture in jobs.values()):
        raise _nothing_to_draw(read)
    order = sorted(jobs)
    sizes, turned = _checked_sizes(order, jobs, workers)
    samples = [_sample(path, images, masks) for path in order]
    work = partial(_draw_one, jobs=jobs, sizes=sizes, table=table, read=read)
    lost: Counter[str] = Counter()
    for done, counts in enumerate(each(work, samples, workers), 1):
        lost += counts
        progress(done, len(samples))
    return Drawn(
        samples=tuple(samples),
        classes=table.names,
        palette=table.palette,
        unannotated=tuple(left),
        messages=tuple(_messages(read, jobs, table, nowhere, left, lost, turned)),
    )


def _with_lines(read: Annotations, width: float | None) -> Annotations:
    """Gives lines a width, or leaves them out, and counts them."""
    for index, picture in enumerate(read.pictures):
        if not any(shape.line for shape in picture.shapes):
            continue
        shapes = []
        for shape in picture.shapes:
            if shape.line and width is None:
                read.left_out[f"{shape.line}{_NO_WIDTH}"] += 1
            elif shape.line and width is not None:
                shapes.append(replace(shape, rings=stroke(shape.rings[0], width)))
            else:
                shapes.append(shape)
        read.pictures[index] = replace(picture, shapes=tuple(shapes))
    return read


@dataclass(frozen=True)
class _ClassTable:
    """Which class a label is, and what pixels without a shape are."""

    names: tuple[str, ...]
    palette: tuple[Colour, ...]
    labels: dict[str, int]  # label -> class or IGNORE
    unlabelled: int

    @classmethod
    def of(
        cls, read: Annotations, given: Sequence[str] | None, partial_labels: bool
    ) -> _ClassTable:
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
        has_background = any(is_background(name) for name in (*names, *read.listed, *used))
        if not any(is_background(name) for name in names) and (
            has_background or not partial_labels
        ):
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
                labels[label] = IGNORE
            else:
                raise DataError(
                    f"{picture.source}: {picture.item}: {shape.item} is called {label!a}, which is "
                    f"not among the classes.{nearest(label, names)}"
                )
        unlabelled = IGNORE if partial_labels else known[BACKGROUND]
        return cls(tuple(names), _palette(names, read.colours), labels, unlabelled)


def _key(name: str) -> str:
    return BACKGROUND if is_background(name) else name


def _palette(names: Sequence[str], colours: dict[str, Colour]) -> tuple[Colour, ...]:
    """Takes the project's colours where every class but the background has one of its own."""
    own = [colours.get(name) for name in names if not is_background(name)]
    if None in own or len(set(own)) != len(own) or (0, 0, 0) in own:
        return colour_map(len(names))
    return tuple((0, 0, 0) if is_background(name) else colours[name] for name in names)


def _is_annotated(picture: AnnotatedPicture) -> bool:
    return picture.looked_at or bool(picture.shapes)


def _checked_sizes(
    order: Sequence[Path], jobs: dict[Path, AnnotatedPicture], workers: int
) -> tuple[dict[Path, tuple[int, int]], list[Path]]:
    """Returns the upright (H, W) of each picture, and those whose file tells it before turning.

    Raises DataError where an annotation is of another size than its picture.
    """
    sizes, turned, wrong = {}, [], []
    for path, (size, stored) in zip(order, each(_size, order, workers), strict=True):
        sizes[path] = size
        told = jobs[path].size
        if told is None or told == size:
            fault = _bitmap_fault(jobs[path], size)
        elif told == stored and not _lies_on_stored(jobs[path], size):
            turned.append(path)
            fault = _bitmap_fault(jobs[path], size)
        elif told == stored:
            fault = (
                f"was drawn on the picture as it is stored, {_text(stored)}, and {path} is shown "
                f"turned by its EXIF orientation, {_text(size)}; save it upright and draw again"
            )
        else:
            fault = f"is of {_text(told)} pixels (HxW), and its picture {path} has {_text(size)}"
        if fault:
            wrong.append(f"{jobs[path].source}: {jobs[path].item} {fault}")
    if wrong:
        more = f"; so are {len(wrong) - 1} others" if len(wrong) > 1 else ""
        raise DataError(f"{wrong[0]}{more}")
    return sizes, turned


def _size(path: Path) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns (H, W) of a picture as it is shown, and as its pixels are stored."""
    with opened(path) as image:
        height, width = upright_size(image)
        return (height, width), (width, height) if orientation(image) >= 5 else (height, width)


def _lies_on_stored(picture: AnnotatedPicture, size: tuple[int, int]) -> bool:
    """Tells by corners out of the upright picture, or by bitmaps, that it was not drawn on that."""
    if any(shape.runs is not None for shape in picture.shapes):
        return True
    rings = [ring for shape in picture.shapes for ring in shape.rings if len(ring)]
    highest = np.max([ring.max(axis=0) for ring in rings], axis=0) if rings else (0, 0)
    return bool(highest[0] > size[1] + _SLACK or highest[1] > size[0] + _SLACK)


def _bitmap_fault(picture: AnnotatedPicture, size: tuple[int, int]) -> str:
    """Says which bitmap is larger than its picture, or not as large where it should be; else ""."""
    for shape in picture.shapes:
        if shape.runs is not None and not _fits(shape.runs, size):
            found = (shape.runs.height, shape.runs.width)
            return f"has {shape.item}, a bitmap of {_text(found)} for a picture of {_text(size)}"
    return ""


def _fits(runs: Runs, size: tuple[int, int]) -> bool:
    found = (runs.height, runs.width)
    return found == size if runs.whole else found[0] <= size[0] and found[1] <= size[1]


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _sample(path: Path, images: Path, masks: Path) -> Sample:
    name = spelt(path.relative_to(images).with_suffix("").as_posix())
    return Sample(name, path, masks / f"{name}.png")


def _draw_one(
    sample: Sample,
    jobs: dict[Path, AnnotatedPicture],
    sizes: dict[Path, tuple[int, int]],
    table: _ClassTable,
    read: Annotations,
) -> Counter[str]:
    picture, size = jobs[sample.image], sizes[sample.image]
    shapes = picture.shapes
    if picture.in_fractions:
        scale = np.array([size[1], size[0]], np.float64)
        shapes = tuple(
            Shape(shape.label, shape.item, tuple(ring * scale for ring in shape.rings))
            for shape in shapes
        )
    try:
        labels, lost = draw(shapes, size, table.labels, table.unlabelled, read.smaller_on_top)
    except UnsafeInputError as error:
        raise UnsafeInputError(f"{picture.source}: {picture.item}: {error}") from error
    assert sample.mask is not None
    write_index_png(sample.mask, labels, table.palette)
    return lost


def _no_picture(read: Annotations, images: Path) -> DataError:
    if not read.pictures:
        return DataError(f"{read.source}: {read.form} without a single picture")
    name = read.pictures[0].names[0]
    return DataError(
        f"{read.source}: {read.form} for {len(read.pictures)} pictures, none of which is in "
        f"{images}; the first is {name[:200]!a}"
    )


def _nothing_to_draw(read: Annotations) -> DataError:
    kinds = ", ".join(f"{count} {kind}" for kind, count in read.left_out.most_common())
    reason = f"only {kinds}, which have no area" if kinds else "no shape for any of the pictures"
    return DataError(f"{read.source}: {read.form} with {reason}; there is no mask to draw")


def _messages(
    read: Annotations,
    jobs: dict[Path, AnnotatedPicture],
    table: _ClassTable,
    nowhere: Sequence[AnnotatedPicture],
    left: Sequence[Path],
    lost: Counter[str],
    turned: Sequence[Path],
) -> list[str]:
    """Makes the sentences that tell what was drawn and what was not."""
    count = sum(len(picture.shapes) for picture in jobs.values())
    kind = "not scored (255)" if table.unlabelled == IGNORE else table.names[table.unlabelled]
    told = [f"{read.form}: {count:,} shapes in {len(jobs):,} pictures; pixels of no shape: {kind}"]
    told += read.notes
    told += [f"'{name}' is not scored (255)" for name, k in table.labels.items() if k == IGNORE]
    told += [f"left out: {n:,} shapes {kind}" for kind, n in sorted(lost.items())]
    told += [f"left out: {n:,} {kind}" for kind, n in sorted(read.left_out.items())]
    empty = sum(not picture.shapes for picture in jobs.values())
    if empty:
        told.append(f"{empty:,} pictures have no shape and are pure {kind}")
    if left:
        told.append(f"{len(left):,} pictures are not annotated and left out: {left[0]}")
    if nowhere:
        name = nowhere[0].names[0][:200]
        told.append(f"{len(nowhere):,} annotated pictures are not there: {name!a}")
    if turned:
        told.append(
            f"{len(turned):,} pictures are given in the size before their EXIF turn; shapes are "
            f"drawn on the upright picture, look at one: {turned[0]}"
        )
    return told
