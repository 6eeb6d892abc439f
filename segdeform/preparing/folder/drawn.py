"""Masks that are drawn of annotations, in the place of masks that are found."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from segdeform.callbacks import Steps
from segdeform.data.image_io import MASK_SUFFIXES
from segdeform.data.layout import files_by_name
from segdeform.errors import UsageError
from segdeform.preparing.folder.names import LabelNames, given_names
from segdeform.preparing.folder.order import Order
from segdeform.preparing.folder.pairs import Pairing
from segdeform.preparing.polygons.rasterising import draw_annotations
from segdeform.preparing.polygons.recognising import KNOWN, holds_annotations


def are_annotations(order: Order) -> bool:
    """Tells whether --masks names annotations. Raises UsageError where options contradict that.

    A folder of masks may hold a JSON beside them: annotations it holds only where no file in it,
    the pictures apart, can be a mask.
    """
    if order.pairs is not None or order.masks is None or order.mask_name is not None:
        found = False
    else:
        found = _holds(order.masks, order)
        if order.masks.is_file() and not found:
            raise UsageError(f"--masks {order.masks}: neither a folder nor annotations: {KNOWN}")
    for_masks = {"--values": order.values, "--threshold": order.threshold}
    for_shapes = {
        "--partial": order.partial,
        "--line-width": order.line_width,
    }
    for option, value in (for_masks if found else for_shapes).items():
        if value:
            raise UsageError(
                f"{option} is for masks, and {order.masks} holds annotations" if found
                else f"{option} is for annotations ({KNOWN}), and there are masks"
            )  # fmt: skip
    if order.partial and order.keep_empty:
        raise UsageError("--partial and --keep-empty exclude each other: nothing would be scored")
    return found


def draw_masks(
    order: Order, folder: Path, progress: Steps
) -> tuple[Pairing, LabelNames, tuple[str, ...]]:
    """Draws the annotations of --masks into FOLDER/NAME.png: the pairs, the classes, what is told.

    Raises DataError, UnsafeInputError, UsageError, ResourceError.
    """
    if order.masks is None or order.images is None or not order.images.is_dir():
        raise UsageError(f"--images {order.images}: no such folder")
    drawn = draw_annotations(
        order.masks,
        order.images,
        folder,
        classes=given_names(order.classes).names if order.classes else None,
        partial_labels=order.partial,
        empty_is_background=order.keep_empty,
        line_width=order.line_width,
        workers=order.workers,
        progress=partial(progress, "drawing masks"),
    )
    pairing = Pairing(drawn.samples, f"the names in {order.masks}", drawn.unannotated)
    names = LabelNames(drawn.classes, str(order.masks), palette=drawn.palette)
    return pairing, names, drawn.messages


def _holds(masks: Path, order: Order) -> bool:
    if not masks.is_dir():
        return holds_annotations(masks)
    pictures = order.images.resolve() if order.images else None
    place = masks.resolve()
    if pictures is None or not (place == pictures or pictures.is_relative_to(place)):
        return not files_by_name(masks, MASK_SUFFIXES) and holds_annotations(masks)
    files = [path for found in files_by_name(masks, MASK_SUFFIXES).values() for path in found]
    outside = [path for path in files if not path.resolve().is_relative_to(pictures)]
    return not outside and holds_annotations(masks)
