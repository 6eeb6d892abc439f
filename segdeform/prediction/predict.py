"""Predicts label maps for pictures and folders of pictures; one bad picture never stops the rest.

    OUTPUT/masks/...png      palette PNG, the pixel values are class indices
    OUTPUT/overlays/...png   the picture tinted in the classes' colours
    OUTPUT/overview.png      up to 12 overlays with their names, and the legend, on one sheet
    OUTPUT/summary.json      what was done, what failed and why, class shares of each picture

The trees below masks/ and overlays/ mirror the inputs; the same command writes the same files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeform.callbacks import Progress, Stop
from segdeform.data.channels import shown_colours
from segdeform.data.image_io import count_frames, write_image, write_index_png
from segdeform.errors import (
    DataError,
    InterruptedByUserError,
    PartialFailureError,
    ResourceError,
    SegdeformError,
)
from segdeform.files.atomic import write_error, write_json
from segdeform.inference import predict_labels
from segdeform.prediction.inputs import Found, find_images
from segdeform.prediction.outputs import (
    Picture,
    heading,
    legend,
    overlay,
    overview,
    thumbnail,
)
from segdeform.prediction.place import (
    FORMAT,
    OUTPUTS,
    SUMMARY,
    earlier_sources,
    identity,
    refuse_foreign,
    refuse_others_masks,
)
from segdeform.segmenter import Segmenter

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
    # In the input folders: other files with what they are, and earlier predictions of ours.
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    own: list[Path] = field(default_factory=list)
    earlier: int = 0  # masks of earlier predictions of other pictures, left where they are
    # Of every mask below `output`, also of earlier predictions: name -> its picture, absolute
    sources: dict[str, str] = field(default_factory=dict)

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
            "skipped_files": [
                {"file": str(path), "reason": reason} for path, reason in self.skipped
            ],
            "own_outputs": [str(path) for path in self.own],
            "earlier": self.earlier,
            "sources": dict(sorted(self.sources.items())),
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

    A picture that cannot be read, predicted or written, or whose outputs would have the name of
    another's, is listed with its reason and the others go on; outputs that an earlier run left for
    it are removed. `progress(done, total)` is called after each picture, `stop()` is asked before
    each and before each window of one. Raises UsageError (missing input, an output folder in a
    model, with masks that are not an earlier prediction or that are those of other pictures),
    DataError (no picture at all), ResourceError (disk full) and InterruptedByUserError; then
    summary.json says "finished": false.
    """
    refuse_foreign(output, inputs)
    earlier = earlier_sources(output)
    found = find_images(inputs, [output / name for name in OUTPUTS], earlier)
    _refuse_nothing(inputs, found)
    refuse_others_masks(output, earlier, found.pictures)
    planned = {name: str(identity(source)) for source, name in found.pictures}
    summary = Summary(
        output,
        failed=list(found.collisions),
        skipped=found.skipped,
        own=found.own,
        sources=earlier | planned,
    )
    _write_summary(summary, segmenter, finished=False)
    total = len(found.pictures)
    shown = _spread(total) if overlays else set()
    sheet: list[tuple[Picture, Done]] = []
    for index, (source, name) in enumerate(found.pictures):
        try:
            if stop is not None and stop():
                raise InterruptedByUserError("interrupted")
            done, tinted = _predict_one(segmenter, source, output, name, overlays, stop)
        except InterruptedByUserError as error:
            _write_summary(summary, segmenter, finished=False)
            raise InterruptedByUserError(
                f"stopped after {index} of {total} pictures, their masks are in {output}; "
                "run the same command to do all"
            ) from error
        except PartialFailureError as failure:
            summary.failed.append((source, str(failure)))
            summary.sources.pop(name)
            _remove(output, name)
        else:
            summary.done.append(done)
            if tinted is not None and index in shown:
                sheet.append((thumbnail(tinted), done))
        if progress is not None:
            progress(index + 1, total)
    _write_overview(segmenter, output, sheet, total)
    summary.earlier = len(summary.sources.keys() - planned.keys())
    _write_summary(summary, segmenter, finished=True)
    return summary


def _refuse_nothing(inputs: Sequence[Path], found: Found) -> None:
    if found.pictures:
        return
    others = f"; {len(found.skipped)} files of other kinds" if found.skipped else ""
    if found.own:
        others += f"; {found.own[0]} holds an earlier prediction, whose masks are not pictures"
    raise DataError(f"no pictures in {', '.join(str(path) for path in inputs)}{others}")


def _predict_one(
    segmenter: Segmenter,
    source: Path,
    output: Path,
    name: str,
    overlays: bool,
    stop: Stop | None,
) -> tuple[Done, Picture | None]:
    """Reads, predicts and writes one picture; returns its facts and its overlay.

    Raises PartialFailureError for what concerns this picture alone, ResourceError for a full disk,
    InterruptedByUserError after a stop.
    """
    try:
        image = segmenter.read(source)
        frames = count_frames(source, segmenter.bands)
        labels = predict_labels(segmenter.model, image, segmenter.options, segmenter.device, stop)
    except InterruptedByUserError:
        raise
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
    segmenter: Segmenter, output: Path, sheet: Sequence[tuple[Picture, Done]], total: int
) -> None:
    path = output / "overview.png"
    if not sheet:
        path.unlink(missing_ok=True)
        return
    pictures = overview([picture for picture, _ in sheet], [done.name for _, done in sheet])
    width = pictures.shape[1]
    seen = set().union(*(done.shares for _, done in sheet))
    colors = zip(segmenter.classes, segmenter.palette, strict=True)
    names = legend([entry for entry in colors if entry[0] in seen], width)
    title = heading(f"{len(sheet)} of {total} pictures" if len(sheet) < total else "", width)
    _write(path, write_image, np.vstack([title, pictures, names]))


def _write_summary(summary: Summary, segmenter: Segmenter, *, finished: bool) -> None:
    header = {
        "format": FORMAT,
        "finished": finished,
        "model_sha256": segmenter.info["sha256"],
        "classes": list(segmenter.classes),
        "inference": segmenter.options.model_dump(mode="json"),
    }
    write_json(summary.output / SUMMARY, header | summary.to_json())
