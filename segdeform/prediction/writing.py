"""What is made of a picture: its labels, and the files that show them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from segdeform.callbacks import Stop
from segdeform.data.image_io import write_image, write_index_png
from segdeform.data.label_files import write_index_tiff
from segdeform.errors import (
    InterruptedByUserError,
    PartialFailureError,
    ResourceError,
    SegdeformError,
)
from segdeform.prediction.job import Job, Task
from segdeform.prediction.place import mask_path, mask_paths, mask_suffix, overlay_path
from segdeform.prediction.reading import Seen, failure_of
from segdeform.prediction.records import Done
from segdeform.results.result import Result


def label_picture(job: Job, task: Task, seen: Seen, stop: Stop | None) -> Result:
    """Labels a picture.

    Raises PartialFailureError for what concerns it alone, InterruptedByUserError after a stop.
    """
    assert seen.image is not None
    try:
        return job.segmenter.label(seen.image, stop=stop)
    except InterruptedByUserError:
        raise
    except SegdeformError as error:
        raise failure_of(task.source, error) from error


def write_outputs(job: Job, task: Task, seen: Seen, result: Result) -> Done:
    """Writes a picture's outputs; returns its facts.

    Raises PartialFailureError for what concerns this picture alone, ResourceError for a full disk.
    """
    facts = (result.size, result.shares(), seen.frames, seen.input, job.settings, seen.note)
    done = Done(task.source, task.name, *facts, mask_suffix(result.size, seen.place))
    try:
        _write_mask(job, done, seen, result)
        if "overlays" in job.outputs:
            write_image(overlay_path(job.output, done), result.overlay())
    except ResourceError:
        raise
    except SegdeformError as error:
        raise failure_of(task.source, error) from error
    except MemoryError as error:
        raise PartialFailureError("memory ended while the masks were written") from error
    return done


def _write_mask(job: Job, done: Done, seen: Seen, result: Result) -> None:
    """Writes the mask, and removes one of the other kind that an earlier run left."""
    path = mask_path(job.output, done.name, done.mask)
    if done.mask == "tif":
        write_index_tiff(path, result.labels, result.palette, seen.place)
    else:
        write_index_png(path, result.labels, result.palette)
    for other in mask_paths(job.output, done.name):
        if other != path:
            with suppress(OSError):
                other.unlink(missing_ok=True)


def remove_outputs(output: Path, name: str) -> None:
    """Removes what an earlier run left for a picture that now fails."""
    overlays = output / "overlays"
    for path in (*mask_paths(output, name), overlays / f"{name}.jpg", overlays / f"{name}.png"):
        with suppress(OSError):
            path.unlink(missing_ok=True)
