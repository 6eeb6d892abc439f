"""Predicts label maps of pictures and videos, however many; a bad one never stops the rest.

    OUTPUT/masks/...png        palette PNG, the pixel values are class indices
    OUTPUT/overlays/...jpg     the picture tinted in the classes' colours
    OUTPUT/polygons/...        and other outputs, where they are asked for: `results.outputs`
    OUTPUT/overview.png        up to 12 overlays with their names, and the legend, on one sheet
    OUTPUT/predictions.jsonl   a line a predicted picture, as it finishes
    OUTPUT/failures.jsonl      a line a picture that failed, with the reason
    OUTPUT/summary.json        all of it together, and what was skipped

The trees below these folders mirror the inputs (`inputs`). Frames of a video, or all of a picture
with several, lie in a folder of its name, .../000000.png and so on. The same command after an
interruption does what is left and ends with the files of an unbroken one; several processes can
share the pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from segdeform.callbacks import Progress, Stop
from segdeform.errors import (
    DataError,
    InterruptedByUserError,
    PartialFailureError,
    UsageError,
)
from segdeform.files.lock import run_lock, shared_lock
from segdeform.machine.pipeline import WAITING_FOR_READERS, Behind, read_ahead, threads
from segdeform.machine.stopwatch import Clock, untimed
from segdeform.prediction.batches import seen_together
from segdeform.prediction.inputs import Found, find_images
from segdeform.prediction.job import Job, Task, settings_of
from segdeform.prediction.listing import STANDARD_INPUT, Typed, standard_input
from segdeform.prediction.pace import Pace
from segdeform.prediction.pieces import OpenFiles, Piece
from segdeform.prediction.place import (
    OUTPUTS,
    earlier_sources,
    frames_folder,
    refuse_foreign,
    refuse_other_classes,
    refuse_others_masks,
)
from segdeform.prediction.plan import Plan
from segdeform.prediction.profile import LABELLING, LOOP, READING, WRITING
from segdeform.prediction.reading import Seen, cut_out
from segdeform.prediction.records import (
    Done,
    Failure,
    add_done,
    add_failure,
    is_same_file,
    read_done,
    settings_digest,
    with_outputs_of,
)
from segdeform.prediction.summary import Summary
from segdeform.prediction.writing import (
    label_picture,
    remove_frames,
    remove_other_outputs,
    remove_outputs,
)
from segdeform.results.outputs import DEFAULT, Forms, known_outputs
from segdeform.results.result import Result
from segdeform.segmenter import Segmenter
from segdeform.windows import Window

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
    window: Window | None = None,
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
    picture of its own; a video is predicted whole. With `window` that part of each is the picture.

    `progress(done, total)` is called after each picture, `stop()` is asked before each and before
    each window of one. `clock` is told what `profile` makes sense of.

    Raises:
        UsageError: a missing input; an output folder in a model, with files that are not of an
            earlier prediction, or of other pictures or classes; an output or class that is not
            there.
        RunLockedError: another process predicts into the folder, other than in shards.
        DataError: no picture at all.
        ResourceError, InterruptedByUserError: a full disk, a stop; then summary.json says
            "finished": false, and the same call goes on.
    """
    outputs = known_outputs(outputs)
    forms.check(outputs, segmenter.classes)
    refuse_foreign(output, inputs)
    if not overwrite:
        refuse_other_classes(output, segmenter.classes)
    settings = settings_digest(settings_of(segmenter, window))
    job = Job(segmenter, output, outputs, settings, forms, every_frame, window)
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
            pace = Pace(len(todo) + kept, kept, progress)
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
    if not overwrite and STANDARD_INPUT in files:
        _refuse_another(job.output, files[STANDARD_INPUT])
    tasks = [Task(source, name, file=files.get(source)) for source, name in found.pictures]
    return Plan(job, found, earlier, tasks, tasks[shard.number :: shard.count], overwrite)


def _refuse_another(output: Path, picture: Path) -> None:
    """Raises UsageError where what came by standard input before was another picture.

    All have one name there, so that the first would be lost without a word.
    """
    for done in read_done(output).values():
        known = done.input if done.source == STANDARD_INPUT else None
        if known is not None and not is_same_file(picture, known):
            raise UsageError(
                f"{output}: holds what was made of another picture from standard input; choose "
                "another --output, or replace it by --overwrite"
            )


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


def _predict_all(
    plan: Plan,
    todo: Sequence[Task],
    done: Mapping[str, Done],
    pace: Pace,
    stop: Stop | None,
    clock: Clock,
) -> None:
    """Predicts pictures in order, reading and writing beside it; notes what becomes of each."""
    job = plan.job

    def settle(piece: Piece, future: Future[Done | None]) -> None:
        try:
            outcome = future.result()
            if outcome is not None:
                outcome = with_outputs_of(outcome, plan.before.get(outcome.name))
                # Before the record: else a kill would leave them for good.
                remove_other_outputs(job, outcome.source, outcome.name, outcome.outputs)
                add_done(job.output, outcome)
        except PartialFailureError as failure:
            _remove(plan, piece)
            frames = 1 if piece.part.frame is None else piece.frames()
            add_failure(job.output, piece.part, Failure(str(failure), frames))
        if piece.last:
            pace.close(piece.part, piece.frames())
        else:
            pace.step()

    def read(piece: Piece) -> Seen | None:
        with clock(READING):
            return cut_out(job, piece.task, piece.read(_GIANT))

    def write(piece: Piece, seen: Seen, result: Result) -> Done | None:
        with clock(WRITING):
            return piece.write(seen, result)

    # One writes, so that of two outputs that want one path the same gets it every time. Files are
    # closed when no thread reads them any more.
    with OpenFiles(job, done, pace) as opened, threads(_READERS) as readers, threads(1) as writer:
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
                            seen = cut_out(job, piece.task, piece.read(None))
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


def _remove(plan: Plan, piece: Piece) -> None:
    """Removes the outputs that an earlier run left for what fails now, and their records."""
    job, task = plan.job, piece.task
    if piece.owns:
        remove_outputs(job.output, task.name)
        plan.forget(task.name)
        if piece.part.frame is None:
            remove_frames(job, task.name, 0)
    elif piece.part.frame is None:  # a video, of which the frames before a break are kept
        name = frames_folder(task.name)
        if name not in plan.rests:
            remove_other_outputs(job, task.source, name, job.outputs)
        plan.forget(name)
