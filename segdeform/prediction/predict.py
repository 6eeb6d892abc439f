"""Predicts label maps for pictures and folders of pictures; one bad picture never stops the rest.

    OUTPUT/masks/...png      palette PNG, the pixel values are class indices
    OUTPUT/overlays/...png   the picture tinted in the classes' colours
    OUTPUT/overview.png      up to 12 overlays and the legend on one sheet
    OUTPUT/summary.json      what was done, what failed and why, class shares of each picture

The trees below masks/ and overlays/ mirror the inputs; the same command writes the same files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeform.callbacks import Progress, Stop
from segdeform.data.image_io import count_frames, shown_colours, write_image, write_index_png
from segdeform.errors import (
    DataError,
    InterruptedByUserError,
    PartialFailureError,
    ResourceError,
    SegdeformError,
    UsageError,
)
from segdeform.files.atomic import write_error, write_json
from segdeform.inference import predict_labels
from segdeform.prediction.inputs import find_images
from segdeform.prediction.outputs import Picture, legend, overlay, overview, thumbnail
from segdeform.segmenter import DESCRIPTION, Segmenter

_FORMAT = "segdeform-prediction"  # how a summary.json of ours is told from anybody else's
_OUTPUTS = ("masks", "overlays", "overview.png", "summary.json")
_OVERVIEW_PICTURES = 12
_ROWS = 256  # rows counted at a time


@dataclass(frozen=True)
class Done:
    """One predicted picture."""

    source: Path
    name: str  # of its outputs, below masks/ and overlays/, without suffix
    size: tuple[int, int]  # H, W
    shares: dict[str, float]  # class -> share of the picture's pixels; absent classes left out
    frames: int = 1  # frames or pages in the file; the first one was predicted


@dataclass
class Summary:
    """Every picture found is in `done` or in `failed`, also after a rerun."""

    output: Path
    done: list[Done] = field(default_factory=list)
    failed: list[tuple[Path, str]] = field(default_factory=list)  # source, one-line reason
    skipped: list[Path] = field(default_factory=list)  # in the input folders, and no pictures
    earlier: int = 0  # masks of earlier predictions of other pictures, left where they are

    def to_json(self) -> dict[str, Any]:
        """Returns the lists as JSON values."""
        done = [
            {
                "picture": str(d.source),
                "name": d.name,
                "size": list(d.size),
                "shares": d.shares,
                "frames": d.frames,
            }
            for d in self.done
        ]
        return {
            "done": done,
            "failed": [{"picture": str(path), "reason": reason} for path, reason in self.failed],
            "skipped": len(self.skipped),
            "skipped_files": [str(path) for path in self.skipped],
            "earlier": self.earlier,
        }


def predict(
    segmenter: Segmenter,
    inputs: Sequence[Path],
    output: Path,
    *,
    overlays: bool = True,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Summary:
    """Writes the masks (and overlays) of all pictures below `output`; returns what became of each.

    A picture that cannot be read, predicted or written is listed with its reason and the others go
    on; outputs that an earlier run left for it are removed. `progress(done, total)` is called after
    each picture, `stop()` is asked before each. Raises UsageError (missing input, an output folder
    in a model or with masks that are not an earlier prediction), DataError (no picture at all),
    ResourceError (disk full) and InterruptedByUserError; then summary.json says "finished": false.
    """
    for folder in inputs:
        if folder.resolve() == output.resolve():
            raise UsageError(f"{output}: holds the pictures; choose another --output")
    found = find_images(inputs, exclude=[output / name for name in _OUTPUTS])
    total = len(found.pictures)
    if not total:
        others = f"; {len(found.skipped)} files of other kinds" if found.skipped else ""
        raise DataError(f"no pictures in {', '.join(str(path) for path in inputs)}{others}")
    _refuse_foreign(output)
    summary = Summary(output, skipped=found.skipped)
    _write_summary(summary, segmenter, finished=False)
    shown = _spread(total) if overlays else set()
    sheet: list[tuple[Picture, Done]] = []
    for index, (source, name) in enumerate(found.pictures):
        if stop is not None and stop():
            _write_summary(summary, segmenter, finished=False)
            raise InterruptedByUserError(
                f"stopped after {index} of {total} pictures, their masks are in {output}; "
                "run the same command to do all"
            )
        try:
            done, tinted = _predict_one(segmenter, source, output, name, overlays)
        except PartialFailureError as failure:
            summary.failed.append((source, str(failure)))
            _remove(output, name)
        else:
            summary.done.append(done)
            if tinted is not None and index in shown:
                sheet.append((thumbnail(tinted), done))
        if progress is not None:
            progress(index + 1, total)
    _write_overview(segmenter, output, sheet)
    present = sum(1 for _ in (output / "masks").rglob("*.png"))
    summary.earlier = max(0, present - len(summary.done))
    _write_summary(summary, segmenter, finished=True)
    return summary


def _predict_one(
    segmenter: Segmenter, source: Path, output: Path, name: str, overlays: bool
) -> tuple[Done, Picture | None]:
    """Reads, predicts and writes one picture; returns its facts and its overlay.

    Raises PartialFailureError for what concerns this picture alone, ResourceError for a full disk.
    """
    try:
        image = segmenter.read(source)
        frames = count_frames(source, segmenter.bands)
        labels = predict_labels(segmenter.model, image, segmenter.options, segmenter.device)
    except SegdeformError as error:
        raise _failure(source, error) from error
    try:
        _write(output / "masks" / f"{name}.png", write_index_png, labels, segmenter.palette)
        tinted = None
        if overlays:
            image = shown_colours(image)
            tinted = overlay(image, labels, segmenter.palette, out=image)
            _write(output / "overlays" / f"{name}.png", write_image, tinted)
    except ResourceError:
        raise
    except SegdeformError as error:
        raise _failure(source, error) from error
    except MemoryError as error:
        raise PartialFailureError("memory ended while the masks were written") from error
    shares = _shares(labels, segmenter.classes)
    return Done(source, name, (image.shape[0], image.shape[1]), shares, frames), tinted


def _failure(source: Path, error: SegdeformError) -> PartialFailureError:
    """Makes one line of an error, without the picture's path, which stands beside it."""
    return PartialFailureError(" ".join(str(error).split()).removeprefix(f"{source}: "))


def _write(path: Path, writer: Callable[..., None], *values: Any) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error
    writer(path, *values)


def _remove(output: Path, name: str) -> None:
    """Removes what an earlier run left for a picture that now fails."""
    for folder in ("masks", "overlays"):
        with suppress(OSError):
            (output / folder / f"{name}.png").unlink(missing_ok=True)


def _shares(labels: NDArray[np.uint8], classes: Sequence[str]) -> dict[str, float]:
    """Counts the share of each class that occurs, a few rows at a time to bound the memory."""
    counts = np.zeros(len(classes), np.int64)
    for top in range(0, len(labels), _ROWS):
        counts += np.bincount(labels[top : top + _ROWS].ravel(), minlength=len(classes))
    return {
        name: int(count) / labels.size for name, count in zip(classes, counts, strict=True) if count
    }


def _spread(total: int) -> set[int]:
    """Chooses the pictures of the overview, evenly over the list."""
    return {round(i) for i in np.linspace(0, total - 1, min(total, _OVERVIEW_PICTURES))}


def _write_overview(
    segmenter: Segmenter, output: Path, sheet: Sequence[tuple[Picture, Done]]
) -> None:
    path = output / "overview.png"
    if not sheet:
        path.unlink(missing_ok=True)
        return
    pictures = overview([picture for picture, _ in sheet])
    seen = set().union(*(done.shares for _, done in sheet))
    colors = zip(segmenter.classes, segmenter.palette, strict=True)
    names = legend([entry for entry in colors if entry[0] in seen], pictures.shape[1])
    _write(path, write_image, np.vstack([pictures, names]))


def _write_summary(summary: Summary, segmenter: Segmenter, *, finished: bool) -> None:
    header = {
        "format": _FORMAT,
        "finished": finished,
        "model_sha256": segmenter.info["sha256"],
        "classes": list(segmenter.classes),
        "inference": segmenter.options.model_dump(mode="json"),
    }
    write_json(summary.output / "summary.json", header | summary.to_json())


def _refuse_foreign(output: Path) -> None:
    """Raises UsageError where masks would be written among files that are not ours."""
    place = output.resolve()
    for folder in (place, *place.parents):
        if os.path.lexists(folder / DESCRIPTION):
            raise UsageError(f"{folder}: is a model; choose another --output")
    if os.path.lexists(output / "checkpoints") or os.path.lexists(output / "model" / DESCRIPTION):
        raise UsageError(f"{output}: is a run; choose another --output")
    present = [name for name in _OUTPUTS if os.path.lexists(output / name)]
    if not present:
        return
    try:
        value = json.loads((output / "summary.json").read_bytes())
    except (OSError, ValueError):
        value = None
    if not isinstance(value, dict) or value.get("format") != _FORMAT:
        raise UsageError(
            f"{output}: holds {', '.join(present)} from something else than an earlier prediction; "
            "choose another --output"
        )
