"""Predicts label maps for pictures and folders of pictures; one bad picture never stops the rest.

    OUTPUT/masks/...png        palette PNG, the pixel values are class indices
    OUTPUT/overlays/...jpg     the picture tinted in the classes' colours
    OUTPUT/polygons/...        and other outputs, where they are asked for: `results.outputs`
    OUTPUT/overview.png        up to 12 overlays with their names, and the legend, on one sheet
    OUTPUT/predictions.jsonl   a line a predicted picture, as it finishes
    OUTPUT/failures.jsonl      a line a picture that failed, with the reason
    OUTPUT/summary.json        all of it together, and what was skipped

The trees below these folders mirror the inputs. The same command after an interruption does what is
left and ends with the files of an unbroken one; several processes can share the pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from segdeform.callbacks import Progress, Stop
from segdeform.errors import (
    DataError,
    InterruptedByUserError,
    PartialFailureError,
)
from segdeform.files.lock import run_lock, shared_lock
from segdeform.machine.pipeline import WAITING_FOR_READERS, Behind, read_ahead, threads
from segdeform.machine.stopwatch import Clock, untimed
from segdeform.prediction.batches import seen_together
from segdeform.prediction.inputs import Found, find_images
from segdeform.prediction.job import Job, Task, settings_of
from segdeform.prediction.listing import Typed, standard_input
from segdeform.prediction.pieces import Pages, Piece, failed_piece, picture_piece
from segdeform.prediction.place import (
    OUTPUTS,
    earlier_sources,
    frames_folder,
    refuse_foreign,
    refuse_others_masks,
)
from segdeform.prediction.plan import Plan
from segdeform.prediction.profile import LABELLING, LOOP, READING, WRITING
from segdeform.prediction.reading import Seen
from segdeform.prediction.records import (
    Done,
    Failure,
    Part,
    add_done,
    add_failure,
    read_failures,
    settings_digest,
    with_outputs_of,
)
from segdeform.prediction.summary import Summary
from segdeform.prediction.writing import label_picture, remove_frames, remove_outputs
from segdeform.results.outputs import DEFAULT, Forms, known_outputs
from segdeform.results.result import Result
from segdeform.segmenter import Segmenter

if TYPE_CHECKING:
    from segdeform.prediction.video import Video

_GIANT = 2**24  # pixels, from which on a picture is not read while another is in work
_READERS = 2
_AHEAD, _BEHIND = 3, 4  # pictures read before they are needed, written while others are computed


@dataclass(frozen=True)
class Shard:
    """The share of one of several processes: every `count`-th picture."""

    number: int = 0  # from 0
    count: int = 1


ALL = Shard()


def predict(
    segmenter: Segmenter,
    inputs: Sequence[Path],
    output: Path,
    *,
    outputs: Sequence[str] = DEFAULT,
    forms: Forms = Forms(),  # noqa: B008, frozen
    every_frame: bool = False,
    overwrite: bool = False,
    shard: Shard = ALL,
    progress: Progress | None = None,
    stop: Stop | None = None,
    clock: Clock = untimed,
) -> Summary:
    """Writes the outputs of all pictures below `output`; returns what became of each.

    What an earlier call did of the same file, by the same model in the same way, is kept unless
    `overwrite` asks for it anew. A picture that cannot be read, predicted or written, or whose
    outputs would have the name of another's, is listed with its reason and the others go on;
    outputs that an earlier run left for it are removed. Of several processes with the same inputs
    each does its `shard`; the last one to end leaves the whole summary.

    Of pictures with several frames or pages it is the first, with `every_frame` all of them, each a
    picture of its own; a video is predicted whole.

    `progress(done, total)` is called after each picture, `stop()` is asked before each and before
    each window of one. `clock` is told what `profile` makes sense of.

    Raises:
        UsageError: a missing input; an output folder in a model, with files that are not of an
            earlier prediction or that are of other pictures; an output or class that is not there.
        RunLockedError: another process predicts into the folder, other than in shards.
        DataError: no picture at all.
        ResourceError, InterruptedByUserError: a full disk, a stop; then summary.json says
            "finished": false, and the same call goes on.
    """
    outputs = known_outputs(outputs)
    forms.check(outputs, segmenter.classes)
    refuse_foreign(output, inputs)
    settings = settings_digest(settings_of(segmenter))
    job = Job(segmenter, output, outputs, settings, forms, every_frame)
    with standard_input(inputs) as typed:
        plan = _planned(job, inputs, typed, overwrite, shard)
        return _carried_out(plan, shard, progress, stop, clock)


def _carried_out(
    plan: Plan, shard: Shard, progress: Progress | None, stop: Stop | None, clock: Clock
) -> Summary:
    """Does what is left to do, and sums up, also after a stop."""
    output = plan.job.output
    with _held(output, shard, plan.begin, plan.put_in_order):
        todo, kept, done = plan.left_to_do()
        try:
            pace = _Pace(len(todo) + kept, kept, progress)
            with clock(LOOP):
                _predict_all(plan, todo, done, pace, stop, clock)
        except InterruptedByUserError as error:
            summary = plan.end()
            raise InterruptedByUserError(
                f"stopped after {len(summary.done)} of {len(plan.tasks)} pictures, their masks are "
                f"in {output}; run the same command to do the rest"
            ) from error
        summary = plan.end()
    summary.kept = kept
    return summary


def _planned(
    job: Job, inputs: Sequence[Path], typed: Typed | None, overwrite: bool, shard: Shard
) -> Plan:
    """Finds the pictures, and refuses what cannot be done before anything is written."""
    earlier = earlier_sources(job.output)
    found = find_images(inputs, [job.output / name for name in OUTPUTS], earlier, typed)
    _refuse_nothing(inputs, found)
    refuse_others_masks(job.output, earlier, found.pictures)
    names = (*earlier, *(name for _, name in found.pictures))
    job = replace(job, taken=frozenset(name for name in names if frames_folder(name)))
    files = found.files
    tasks = [Task(source, name, file=files.get(source)) for source, name in found.pictures]
    return Plan(job, found, earlier, tasks, tasks[shard.number :: shard.count], overwrite)


def _refuse_nothing(inputs: Sequence[Path], found: Found) -> None:
    if found.pictures:
        return
    others = f"; {len(found.skipped)} files of other kinds" if found.skipped else ""
    if found.own:
        others += f"; {found.own[0]} holds an earlier prediction, whose masks are not pictures"
    raise DataError(f"no pictures in {', '.join(str(path) for path in inputs)}{others}")


@contextmanager
def _held(
    output: Path, shard: Shard, first: Callable[[], None], last: Callable[[], None]
) -> Iterator[None]:
    """Holds the output folder, alone or with the other shards; the first and the last of them
    call what they are given, when nobody else adds to the records."""
    if shard.count > 1:
        with shared_lock(output, first, last):
            yield
    else:
        with run_lock(output):
            first()
            yield
            last()


class _Pace:
    """How far it is, in pictures and frames, which are counted as their files are opened."""

    def __init__(self, total: int, settled: int, tell: Progress | None) -> None:
        self._total, self._settled, self._tell = total, settled, tell
        self._frames: dict[Part, int] = {}

    def open(self, part: Part, frames: int) -> None:
        """Takes it that a file has so many frames."""
        self._frames[part] = frames
        self._total += frames - 1

    def close(self, part: Part, frames: int) -> None:
        """Corrects the number of frames."""
        self._total += frames - self._frames.pop(part, 1)

    def step(self) -> None:
        """Counts one that is done or failed."""
        self._settled += 1
        if self._tell is not None:
            self._tell(self._settled, self._total)


def _predict_all(
    plan: Plan,
    todo: Sequence[Task],
    done: Mapping[str, Done],
    pace: _Pace,
    stop: Stop | None,
    clock: Clock,
) -> None:
    """Predicts pictures in order, reading and writing beside it; notes what becomes of each."""
    job, failed = plan.job, read_failures(plan.job.output)

    def settle(piece: Piece, future: Future[Done | None]) -> None:
        try:
            outcome = future.result()
            if outcome is not None:
                add_done(job.output, with_outputs_of(outcome, plan.before.get(outcome.name)))
                if piece.part in failed:  # in an earlier run of several processes
                    add_failure(job.output, piece.part, Failure(""))
        except PartialFailureError as failure:
            _remove(job, piece)
            frames = 1 if piece.part.frame is None else piece.frames()
            add_failure(job.output, piece.part, Failure(str(failure), frames))
        if piece.last:
            pace.close(piece.part, piece.frames())
        else:
            pace.step()

    def read(piece: Piece) -> Seen | None:
        with clock(READING):
            return piece.read(_GIANT)

    def write(piece: Piece, seen: Seen, result: Result) -> Done | None:
        with clock(WRITING):
            return piece.write(seen, result)

    # One writes, so that of two outputs that want one path the same gets it every time.
    with threads(_READERS) as readers, threads(1) as writer, _Opened(job, done, pace) as opened:
        behind: Behind[Piece, Done | None] = Behind(writer, settle, _BEHIND, clock)
        try:
            ahead = read_ahead(readers, opened.pieces(todo), read, _AHEAD, clock)
            for piece, reading, coarse in seen_together(ahead, job.segmenter, clock):
                if stop is not None and stop():
                    raise InterruptedByUserError("interrupted")
                try:
                    seen = reading.result()
                    if seen is not None and seen.image is None:
                        behind.finish()  # a giant is in memory alone
                        with clock(WAITING_FOR_READERS):
                            seen = piece.read(None)
                    if seen is None:
                        behind.submit(piece._replace(last=True), piece.end)
                        continue
                    with clock(LABELLING):
                        result = label_picture(job, piece.task, seen, stop, coarse)
                except PartialFailureError as failure:
                    behind.submit(piece, partial(piece.fail, failure))
                    continue
                behind.submit(piece, partial(write, piece, seen, result))
                del seen, result, reading, coarse
        finally:
            behind.finish()


def _remove(job: Job, piece: Piece) -> None:
    """Removes the outputs that an earlier run left for what fails now."""
    if piece.owns:
        remove_outputs(job.output, piece.task.name)
        if piece.part.frame is None:
            remove_frames(job, piece.task.name, 0)


class _Opened:
    """The files of several frames that are at work; what is not finished in the end is dropped."""

    def __init__(self, job: Job, done: Mapping[str, Done], pace: _Pace) -> None:
        self._job, self._done, self._pace = job, done, pace
        self._videos: list[Video] = []

    def __enter__(self) -> _Opened:
        return self

    def __exit__(self, *_: object) -> None:
        for video in self._videos:
            video.close()

    def pieces(self, tasks: Iterable[Task]) -> Iterator[Piece]:
        """Yields the pieces of all tasks, in order."""
        for task in tasks:
            try:
                pieces = self._open(task)
            except PartialFailureError as failure:
                pieces = iter([failed_piece(task, failure)])
            yield from pieces

    def _open(self, task: Task) -> Iterator[Piece]:
        part = Part(str(task.source))
        if task.is_video:
            from segdeform.prediction.video import Video

            video = Video(self._job, task)
            self._videos = [*(other for other in self._videos if not other.closed), video]
            self._pace.open(part, max(1, video.count))
            return video.pieces()
        if self._job.every_frame:
            pages = Pages(self._job, task, self._done, self._pace.step)
            remove_frames(self._job, task.name, pages.count if pages.count > 1 else 0)
            if pages.count > 1:
                self._pace.open(part, pages.count)
                return pages.pieces()
        return iter([picture_piece(self._job, task)])
