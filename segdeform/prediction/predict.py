"""Predicts label maps for pictures and folders of pictures; one bad picture never stops the rest.

    OUTPUT/masks/...png        palette PNG, the pixel values are class indices
    OUTPUT/overlays/...jpg     the picture tinted in the classes' colours
    OUTPUT/overview.png        up to 12 overlays with their names, and the legend, on one sheet
    OUTPUT/predictions.jsonl   a line a predicted picture, as it finishes
    OUTPUT/failures.jsonl      a line a picture that failed, with the reason
    OUTPUT/summary.json        all of it together, and what was skipped

The trees below masks/ and overlays/ mirror the inputs. The same command after an interruption does
what is left and ends with the files of an unbroken one; several processes can share the pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segdeform.callbacks import Progress, Stop
from segdeform.data.channels import shown_colours
from segdeform.data.depth import as_json
from segdeform.data.image_io import count_frames, image_size, write_image, write_index_png
from segdeform.errors import (
    DataError,
    InterruptedByUserError,
    PartialFailureError,
    ResourceError,
    SegdeformError,
)
from segdeform.files.atomic import remove_temporaries
from segdeform.files.lock import run_lock, shared_lock
from segdeform.inference import predict_labels
from segdeform.machine.pipeline import Behind, read_ahead, threads
from segdeform.prediction.inputs import Found, find_images
from segdeform.prediction.outputs import Picture, overlay, overlay_path, write_overview
from segdeform.prediction.place import (
    OUTPUTS,
    earlier_sources,
    refuse_foreign,
    refuse_others_masks,
)
from segdeform.prediction.records import (
    Done,
    InputFile,
    add_done,
    add_failure,
    input_file,
    is_same_file,
    read_done,
    read_failures,
    settings_digest,
    summing_up,
    write_anew,
)
from segdeform.prediction.summary import Summary, sum_up, write_summary
from segdeform.segmenter import Segmenter
from segdeform.version import __version__

_GIANT = 2**24  # pixels, from which on a picture is not read while another is in work
_READERS = 2
_AHEAD, _BEHIND = 3, 4  # pictures read before they are needed, written while others are computed
_ROWS = 256  # rows counted at a time


@dataclass(frozen=True)
class Shard:
    """The share of one of several processes: every `count`-th picture."""

    number: int = 0  # from 0
    count: int = 1


ALL = Shard()


class Task(NamedTuple):
    """One picture to predict."""

    source: Path
    name: str  # of its outputs


class Seen(NamedTuple):
    """What was read of a picture."""

    image: Picture | None  # [H, W, C]; None: too large to be read beside others
    frames: int
    input: InputFile


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
        there = mask_path(self.output, task.name).exists()
        return there and (not self.overlays or overlay_path(self.output, entry).exists())


def predict(
    segmenter: Segmenter,
    inputs: Sequence[Path],
    output: Path,
    *,
    overlays: bool = True,
    overwrite: bool = False,
    shard: Shard = ALL,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Summary:
    """Writes the masks (and overlays) of all pictures below `output`; returns what became of each.

    What an earlier call did of the same file, by the same model in the same way, is kept unless
    `overwrite` asks for it anew. A picture that cannot be read, predicted or written, or whose
    outputs would have the name of another's, is listed with its reason and the others go on;
    outputs that an earlier run left for it are removed. Of several processes with the same inputs
    each does its `shard`; the last one to end leaves the whole summary.

    `progress(done, total)` is called after each picture, `stop()` is asked before each and before
    each window of one.

    Raises:
        UsageError: a missing input; an output folder in a model, with masks that are not an earlier
            prediction or that are those of other pictures.
        RunLockedError: another process predicts into the folder, other than in shards.
        DataError: no picture at all.
        ResourceError, InterruptedByUserError: a full disk, a stop; then summary.json says
            "finished": false, and the same call goes on.
    """
    refuse_foreign(output, inputs)
    earlier = earlier_sources(output)
    found = find_images(inputs, [output / name for name in OUTPUTS], earlier)
    _refuse_nothing(inputs, found)
    refuse_others_masks(output, earlier, found.pictures)
    tasks = [Task(*picture) for picture in found.pictures]
    job = Job(segmenter, output, overlays, settings_digest(_settings(segmenter)))
    outputs = ["masks", "overlays"][: 1 + overlays]

    mine = tasks[shard.number :: shard.count]

    def begin() -> None:
        _clear(job, mine, keep=not overwrite)
        write_summary(
            sum_up(output, found, earlier, job.settings), segmenter, outputs, finished=False
        )

    def end() -> Summary:
        with summing_up(output):
            summary = sum_up(output, found, earlier, job.settings)
            if not summary.left:
                _put_in_order(job, tasks)
            if not summary.left and overlays:
                write_overview(output, summary.done, segmenter.classes, segmenter.palette)
            write_summary(summary, segmenter, outputs, finished=not summary.left)
        return summary

    with _held(output, shard, begin):
        done = read_done(output)
        todo = [task for task in mine if not job.is_done(task, done.get(task.name))]
        try:
            _predict_all(job, todo, len(mine), progress, stop)
        except InterruptedByUserError as error:
            summary = end()
            raise InterruptedByUserError(
                f"stopped after {len(summary.done)} of {len(tasks)} pictures, their masks are in "
                f"{output}; run the same command to do the rest"
            ) from error
        summary = end()
    summary.kept = len(mine) - len(todo)
    return summary


def mask_path(output: Path, name: str) -> Path:
    """Returns where a mask lies."""
    return output / "masks" / f"{name}.png"


def _refuse_nothing(inputs: Sequence[Path], found: Found) -> None:
    if found.pictures:
        return
    others = f"; {len(found.skipped)} files of other kinds" if found.skipped else ""
    if found.own:
        others += f"; {found.own[0]} holds an earlier prediction, whose masks are not pictures"
    raise DataError(f"no pictures in {', '.join(str(path) for path in inputs)}{others}")


def _settings(segmenter: Segmenter) -> Mapping[str, Any]:
    """Returns all that a mask depends on beside its picture."""
    return {
        "model": segmenter.info["sha256"],
        "inference": segmenter.options.model_dump(mode="json"),
        "value_range": segmenter.value_range and as_json(segmenter.value_range),
        "bands": segmenter.bands,
        "device": segmenter.device.type,
        "segdeform": __version__,
    }


@contextmanager
def _held(output: Path, shard: Shard, begin: Any) -> Iterator[None]:
    """Holds the output folder, alone or with the other shards; `begin` is called by the first."""
    if shard.count > 1:
        with shared_lock(output, begin):
            yield
    else:
        with run_lock(output):
            begin()
            yield


def _clear(job: Job, mine: Sequence[Task], keep: bool) -> None:
    """Removes what killed runs left half done, and the records of what is to be done anew."""
    for folder in (job.output, job.output / "masks", job.output / "overlays"):
        for place in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
            remove_temporaries(place)
    tasks = {task.name: task for task in mine}
    kept = [
        entry
        for name, entry in read_done(job.output).items()
        if name not in tasks or (keep and job.is_done(tasks[name], entry))
    ]
    sources = {str(task.source) for task in mine}
    failures = read_failures(job.output).items()
    write_anew(job.output, kept, [entry for entry in failures if entry[0] not in sources])


def _put_in_order(job: Job, tasks: Sequence[Task]) -> None:
    """Writes the records as one process would have that is never interrupted."""
    done, failures = read_done(job.output), read_failures(job.output)
    names, sources = [task.name for task in tasks], [str(task.source) for task in tasks]
    ours = set(names), set(sources)
    entries = [entry for name, entry in done.items() if name not in ours[0]]
    entries += [done[name] for name in names if name in done]
    failed = [entry for entry in failures.items() if entry[0] not in ours[1]]
    failed += [(source, failures[source]) for source in sources if source in failures]
    write_anew(job.output, entries, failed)


def _predict_all(
    job: Job, todo: Sequence[Task], total: int, progress: Progress | None, stop: Stop | None
) -> None:
    """Predicts pictures in order, reading and writing beside it; notes what becomes of each."""
    settled, failed = total - len(todo), read_failures(job.output)

    def settle(task: Task, future: Future[Done]) -> None:
        nonlocal settled
        try:
            add_done(job.output, future.result())
            if str(task.source) in failed:  # in an earlier run of several processes
                add_failure(job.output, task.source, "")
        except PartialFailureError as failure:
            _remove(job.output, task.name)
            add_failure(job.output, task.source, str(failure))
        settled += 1
        if progress is not None:
            progress(settled, total)

    def fail(failure: PartialFailureError) -> Done:
        raise failure

    # One writes, so that of two outputs that want one path the same gets it every time.
    with threads(_READERS) as readers, threads(1) as writer:
        behind: Behind[Task, Done] = Behind(writer, settle, _BEHIND)
        try:
            for task, reading in read_ahead(
                readers, todo, lambda task: _read(job, task, _GIANT), _AHEAD
            ):
                if stop is not None and stop():
                    raise InterruptedByUserError("interrupted")
                try:
                    seen = reading.result()
                    if seen.image is None:
                        behind.finish()  # a giant is in memory alone
                        seen = _read(job, task, None)
                    labels = _labels(job, task, seen, stop)
                except PartialFailureError as failure:
                    behind.submit(task, lambda failure=failure: fail(failure))  # type: ignore[misc]
                    continue
                behind.submit(
                    task,
                    lambda task=task, seen=seen, labels=labels: _write(job, task, seen, labels),  # type: ignore[misc]
                )
                del seen, labels, reading
        finally:
            behind.finish()


def _read(job: Job, task: Task, limit: int | None) -> Seen:
    """Reads a picture, unless it has more pixels than `limit`. Raises PartialFailureError."""
    source, segmenter = task.source, job.segmenter
    try:
        height, width = image_size(source)
        image = None
        if limit is None or height * width <= limit:
            image = segmenter.read(source)
        return Seen(image, count_frames(source, segmenter.bands), input_file(source))
    except SegdeformError as error:
        raise _failure(source, error) from error
    except OSError as error:
        raise PartialFailureError(f"cannot be read: {error.strerror}") from error


def _labels(job: Job, task: Task, seen: Seen, stop: Stop | None) -> NDArray[np.uint8]:  # [H, W]
    """Raises PartialFailureError for what concerns this picture alone, InterruptedByUserError."""
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


def _write(job: Job, task: Task, seen: Seen, labels: NDArray[np.uint8]) -> Done:
    """Writes a picture's outputs; returns its facts.

    Raises PartialFailureError for what concerns this picture alone, ResourceError for a full disk.
    """
    palette, image = job.segmenter.palette, seen.image
    assert image is not None
    shares = _shares(labels, job.segmenter.classes)
    size = (labels.shape[0], labels.shape[1])
    done = Done(task.source, task.name, size, shares, seen.frames, seen.input, job.settings)
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


def _remove(output: Path, name: str) -> None:
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
