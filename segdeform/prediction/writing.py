"""What is made of a picture: its labels, and the files that show them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from segdeform.callbacks import Stop
from segdeform.data.unread import is_video
from segdeform.errors import (
    InterruptedByUserError,
    PartialFailureError,
    ResourceError,
    SegdeformError,
)
from segdeform.prediction.job import Job, Task
from segdeform.prediction.place import every_path, mask_suffix, output_path
from segdeform.prediction.reading import Seen, failure_of
from segdeform.prediction.records import Done, frame_name
from segdeform.results.files import write_output
from segdeform.results.maps import Coarse
from segdeform.results.outputs import KINDS
from segdeform.results.overlay import reduction
from segdeform.results.result import Result


def label_picture(
    job: Job, task: Task, seen: Seen, stop: Stop | None, coarse: Coarse | None = None
) -> Result:
    """Labels a picture, with all that its outputs need; by what the network said if it is known.

    Raises PartialFailureError for what concerns it alone, InterruptedByUserError after a stop.
    """
    assert seen.image is not None
    try:
        result = job.segmenter.label(
            seen.image,
            coarse=coarse,
            stop=stop,
            confidence=not {"confidence", "json"}.isdisjoint(job.outputs),
            probabilities="probabilities" in job.outputs,
            scratch=job.output,
        )
        return replace(result, source=task.source, place=seen.place)
    except InterruptedByUserError:
        raise
    except SegdeformError as error:
        raise failure_of(task.path, error) from error


def write_outputs(job: Job, task: Task, seen: Seen, result: Result) -> Done:
    """Writes a picture's outputs; returns its facts.

    Raises PartialFailureError for what concerns this picture alone, ResourceError for a full disk.
    """
    done = Done(
        task.source,
        task.name,
        result.size,
        result.shares(),
        seen.frames,
        seen.input,
        job.settings,
        _note(job, seen, result),
        mask_suffix(result.size, seen.place),
        {name: job.forms.of(name) for name in job.outputs},
        task.frame,
    )
    known: dict[str, Any] = {"picture": str(task.source)}
    if task.frame is not None:
        known["frame"] = task.frame
    known["model_sha256"] = job.segmenter.info["sha256"]
    try:
        for name in job.outputs:
            path = output_path(job.output, done, name)
            write_output(path, name, result, job.forms, known)
            _remove(other for other in every_path(job.output, done.name, [name]) if other != path)
    except ResourceError:
        raise
    except SegdeformError as error:
        raise failure_of(task.path, error) from error
    except MemoryError as error:
        raise PartialFailureError("memory ended while its outputs were written") from error
    return done


def remove_outputs(output: Path, name: str) -> None:
    """Removes what an earlier run left for a picture that now fails."""
    _remove(every_path(output, name))


def remove_frames(job: Job, name: str, first: int, kinds: Iterable[str] = KINDS) -> None:
    """Removes the outputs of frames from `first` on, of a file that has fewer now."""
    for kind in kinds:
        try:
            entries = list(os.scandir(job.output / kind / name))
        except OSError:
            continue  # no such folder, or a name that is too long
        for entry in entries:
            number, _, suffix = entry.name.partition(".")
            if suffix not in KINDS[kind].suffixes or not (number.isascii() and number.isdigit()):
                continue
            frame = f"{name}/{number}"
            right = frame == frame_name(name, int(number)) and frame not in job.taken
            if right and int(number) >= first:  # damaged ones between them have no outputs
                _remove([Path(entry)])


def remove_other_outputs(job: Job, source: Path, name: str, kept: Iterable[str]) -> None:
    """Removes outputs of kinds beside `kept`, which are of an earlier content or other settings.

    Of a video, also those of its frames.
    """
    others = [kind for kind in KINDS if kind not in set(kept)]
    _remove(every_path(job.output, name, others))
    if is_video(source):
        remove_frames(job, name, 0, others)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _note(job: Job, seen: Seen, result: Result) -> str:
    times = reduction(result.size)
    if times == 1 or "overlays" not in job.outputs:
        return seen.note
    smaller = f"so large that its overlay is drawn at 1/{times} of the size"
    return f"{seen.note}; {smaller}" if seen.note else smaller
