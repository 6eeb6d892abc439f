"""Makes index masks of a whole annotation set: classes, pictures, sizes, then one PNG a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from segdeform.callbacks import Progress
from segdeform.data.dataset import Sample, ignore_label
from segdeform.data.image_io import write_index_png
from segdeform.data.layout import spelt
from segdeform.errors import DataError, UnsafeInputError
from segdeform.preparing.polygons.annotation import AnnotatedPicture, Annotations, Colour, Shape
from segdeform.preparing.polygons.class_table import ClassTable
from segdeform.preparing.polygons.drawing import draw
from segdeform.preparing.polygons.geometry import stroke
from segdeform.preparing.polygons.matching import match_pictures
from segdeform.preparing.polygons.recognising import read_annotations
from segdeform.preparing.polygons.sizes import checked_sizes
from segdeform.preparing.side_by_side import each

_NO_WIDTH = " (--line-width 3 draws them 3 pixels wide)"


@dataclass(frozen=True)
class Drawn:
    """The masks that were made, and what is to be told of it."""

    samples: tuple[Sample, ...]  # pictures with their masks; without one, such as cannot be read
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
        partial_labels: pixels without a shape are not scored instead of background.
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
    table = ClassTable.of(read, classes, partial_labels)
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
    sizes, turned = checked_sizes(order, jobs, workers)
    samples = [_sample(path, images, masks) for path in order]
    work = partial(_draw_one, jobs=jobs, sizes=sizes, table=table, read=read)
    lost: Counter[str] = Counter()
    for counts in each(work, samples, workers, progress):
        lost += counts
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


def _is_annotated(picture: AnnotatedPicture) -> bool:
    return picture.looked_at or bool(picture.shapes)


def _sample(path: Path, images: Path, masks: Path) -> Sample:
    name = spelt(path.relative_to(images).with_suffix("").as_posix())
    return Sample(name, path, masks / f"{name}.png")


def _draw_one(
    sample: Sample,
    jobs: dict[Path, AnnotatedPicture],
    sizes: dict[Path, tuple[int, int]],
    table: ClassTable,
    read: Annotations,
) -> Counter[str]:
    if sample.image not in sizes:
        return Counter()  # it cannot be read
    picture, size = jobs[sample.image], sizes[sample.image]
    shapes = picture.shapes
    if picture.in_fractions:
        scale = np.array([size[1], size[0]], np.float64)
        shapes = tuple(
            Shape(shape.label, shape.item, tuple(ring * scale for ring in shape.rings))
            for shape in shapes
        )
    try:
        rules = (table.labels, table.unlabelled, read.smaller_on_top, len(table.names))
        labels, lost = draw(shapes, size, *rules)
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
    table: ClassTable,
    nowhere: Sequence[AnnotatedPicture],
    left: Sequence[Path],
    lost: Counter[str],
    turned: Sequence[Path],
) -> list[str]:
    """Makes the sentences that tell what was drawn and what was not."""
    count = sum(len(picture.shapes) for picture in jobs.values())
    ignore = ignore_label(len(table.names))
    unscored = f"not scored ({ignore})"
    rest = unscored if table.unlabelled == ignore else table.names[table.unlabelled]
    told = [f"{read.form}: {count:,} shapes in {len(jobs):,} pictures; pixels of no shape: {rest}"]
    told += read.notes
    told += [f"'{name}' is {unscored}" for name, k in table.labels.items() if k == ignore]
    told += [f"left out: {n:,} shapes {kind}" for kind, n in sorted(lost.items())]
    told += [f"left out: {n:,} {kind}" for kind, n in sorted(read.left_out.items())]
    empty = sum(not picture.shapes for picture in jobs.values())
    if empty:
        told.append(f"{empty:,} pictures have no shape and are pure {rest}")
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
