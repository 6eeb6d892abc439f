"""One picture of a prediction: read, labelled, written, and known again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segdeform.callbacks import Stop
from segdeform.checking.facts import picture_facts
from segdeform.data.channels import shown_colours
from segdeform.data.depth import as_json
from segdeform.data.image_io import count_frames, image_size, write_image, write_index_png
from segdeform.errors import (
    InterruptedByUserError,
    PartialFailureError,
    ResourceError,
    SegdeformError,
)
from segdeform.inference import predict_labels
from segdeform.prediction.outputs import Picture, overlay, overlay_path
from segdeform.prediction.records import Done, InputFile, input_file, is_same_file
from segdeform.segmenter import Segmenter
from segdeform.version import __version__

_ROWS = 256  # rows counted at a time
_DARK = 64  # of 255; a quarter of the range, as 14 bits use of 16


class Task(NamedTuple):
    """One picture to predict."""

    source: Path
    name: str  # of its outputs


class Seen(NamedTuple):
    """What was read of a picture."""

    image: Picture | None  # [H, W, C]; None: too large to be read beside others
    frames: int
    input: InputFile
    note: str = ""  # what a person should know of it


@dataclass(frozen=True)
class Job:
    """What all pictures of a call have in common."""

    segmenter: Segmenter
    output: Path
    overlays: bool
    settings: str  # digest of the model and how it is used

    def is_done(self, task: Task, entry: Done | None) -> bool:
        """Tells whether a picture's outputs are there, of this very file by these settings."""
        if entry is None or entry.input is None or entry.settings != self.settings:
            return False
        if entry.source != task.source or not is_same_file(task.source, entry.input):
            return False
        there = mask_path(self.output, task.name).is_file()
        return there and (not self.overlays or overlay_path(self.output, entry).is_file())


def settings_of(segmenter: Segmenter) -> Mapping[str, Any]:
    """Returns all that a mask depends on beside its picture."""
    return {
        "model": segmenter.info["sha256"],
        "inference": segmenter.options.model_dump(mode="json"),
        "value_range": segmenter.value_range and as_json(segmenter.value_range),
        "bands": segmenter.bands,
        "device": segmenter.device.type,
        "segdeform": __version__,
    }


def mask_path(output: Path, name: str) -> Path:
    """Returns where a mask lies."""
    return output / "masks" / f"{name}.png"


def read_picture(job: Job, task: Task, limit: int | None = None) -> Seen:
    """Reads a picture, unless it has more pixels than `limit`. Raises PartialFailureError."""
    source, segmenter = task.source, job.segmenter
    try:
        height, width = image_size(source)
        image = None
        if limit is None or height * width <= limit:
            image = segmenter.read(source)
        note = "" if image is None else _too_dark(source, image, segmenter)
        return Seen(image, count_frames(source, segmenter.bands), input_file(source), note)
    except SegdeformError as error:
        raise _failure(source, error) from error
    except OSError as error:
        raise PartialFailureError(f"cannot be read: {error.strerror}") from error


def _too_dark(source: Path, image: Picture, segmenter: Segmenter) -> str:
    """Says where a picture of more than 8 bits uses so little of its range that it is nearly black.

    Then its white is most likely another, as of cameras with 12 bits.
    """
    if segmenter.value_range is not None or image.max() >= _DARK:
        return ""
    facts = picture_facts(source, segmenter.bands)
    if not facts.spans or not facts.white:
        return ""
    top = max(high for _, high in facts.spans)
    white = (1 << int(top).bit_length()) - 1
    return f"holds values up to {top:g} of {facts.white}: --value-range 0,{white} if that is white"


def label_picture(
    job: Job, task: Task, seen: Seen, stop: Stop | None
) -> NDArray[np.uint8]:  # [H, W]
    """Labels a picture.

    Raises PartialFailureError for what concerns it alone, InterruptedByUserError after a stop.
    """
    segmenter = job.segmenter
    assert seen.image is not None
    try:
        return predict_labels(
            segmenter.model, seen.image, segmenter.options, segmenter.device, stop
        )
    except InterruptedByUserError:
        raise
    except SegdeformError as error:
        raise _failure(task.source, error) from error


def write_outputs(job: Job, task: Task, seen: Seen, labels: NDArray[np.uint8]) -> Done:
    """Writes a picture's outputs; returns its facts.

    Raises PartialFailureError for what concerns this picture alone, ResourceError for a full disk.
    """
    palette, image = job.segmenter.palette, seen.image
    assert image is not None
    shares = _shares(labels, job.segmenter.classes)
    size = (labels.shape[0], labels.shape[1])
    facts = (size, shares, seen.frames, seen.input, job.settings, seen.note)
    done = Done(task.source, task.name, *facts)
    try:
        write_index_png(mask_path(job.output, task.name), labels, palette)
        if job.overlays:
            shown = shown_colours(image)
            write_image(overlay_path(job.output, done), overlay(shown, labels, palette, out=shown))
    except ResourceError:
        raise
    except SegdeformError as error:
        raise _failure(task.source, error) from error
    except MemoryError as error:
        raise PartialFailureError("memory ended while the masks were written") from error
    return done


def _failure(source: Path, error: SegdeformError) -> PartialFailureError:
    """Makes one line of an error, without the picture's path, which stands beside it."""
    return PartialFailureError(" ".join(str(error).split()).removeprefix(f"{source}: "))


def remove_outputs(output: Path, name: str) -> None:
    """Removes what an earlier run left for a picture that now fails."""
    overlays = output / "overlays"
    for path in (mask_path(output, name), overlays / f"{name}.jpg", overlays / f"{name}.png"):
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _shares(labels: NDArray[np.uint8], classes: Sequence[str]) -> dict[str, float]:
    """Counts the share of each class that occurs, a few rows at a time to bound the memory."""
    counts = np.zeros(len(classes), np.int64)
    for top in range(0, len(labels), _ROWS):
        counts += np.bincount(labels[top : top + _ROWS].ravel(), minlength=len(classes))
    return {
        name: int(count) / labels.size for name, count in zip(classes, counts, strict=True) if count
    }
