"""Predicts label maps for pictures and folders of pictures; one bad picture never stops the rest.

    OUTPUT/masks/...png        palette PNG, the pixel values are class indices
    OUTPUT/overlays/...jpg     the picture tinted in the classes' colours
    OUTPUT/polygons/...        and others that are asked for: `outputs.KINDS` has all
    OUTPUT/overview.png        up to 12 overlays with their names, and the legend, on one sheet
    OUTPUT/predictions.jsonl   a line a predicted picture, as it finishes
    OUTPUT/failures.jsonl      a line a picture that failed, with the reason
    OUTPUT/summary.json        all of it together, and what was skipped

The trees below these folders mirror the inputs. The same command after an interruption does what is
left and ends with the files of an unbroken one; several processes can share the pictures.
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
)
from segdeform.files.atomic import remove_temporaries
from segdeform.files.lock import run_lock, shared_lock
from segdeform.machine.pipeline import WAITING_FOR_READERS, Behind, read_ahead, threads
from segdeform.machine.stopwatch import Clock, untimed
from segdeform.prediction.inputs import Found, find_images
from segdeform.prediction.job import Job, Task, settings_of
from segdeform.prediction.overview import write_overview
from segdeform.prediction.place import (
    FOLDERS,
    OUTPUTS,
    earlier_sources,
    refuse_foreign,
    refuse_others_masks,
)
from segdeform.prediction.profile import LABELLING, LOOP, READING, WRITING
from segdeform.prediction.reading import Seen, read_picture
from segdeform.prediction.records import (
    Done,
    add_done,
    add_failure,
    read_done,
    read_failures,
    settings_digest,
    summing_up,
    with_outputs_of,
    write_anew,
)
from segdeform.prediction.summary import Summary, sum_up, write_summary
from segdeform.prediction.writing import label_picture, remove_outputs, write_outputs
from segdeform.results.outputs import DEFAULT, Forms, known_outputs
from segdeform.results.result import Result
from segdeform.segmenter import Segmenter

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
    earlier = earlier_sources(output)
    found = find_images(inputs, [output / name for name in OUTPUTS], earlier)
    _refuse_nothing(inputs, found)
    refuse_others_masks(output, earlier, found.pictures)
    tasks = [Task(*picture) for picture in found.pictures]
    settings = settings_digest(settings_of(segmenter))
    job = Job(segmenter, output, outputs, settings, forms)

    mine = tasks[shard.number :: shard.count]
    before: dict[str, Done] = {}  # what the records told when this process began

    def begin() -> None:
        before.update(read_done(output))
        _clear(job, mine, keep=not overwrite)
        write_summary(
            sum_up(output, found, earlier, job.is_made), segmenter, outputs, finished=False
        )

    def end() -> Summary:
        with summing_up(output):
            summary = sum_up(output, found, earlier, job.is_made)
            if not summary.left and "overlays" in outputs:
                write_overview(output, summary.done, segmenter.classes, segmenter.palette)
            write_summary(summary, segmenter, outputs, finished=not summary.left)
        return summary

    with _held(output, shard, begin, partial(_put_in_order, job, tasks)):
        done = read_done(output)
        known = done | before
        todo = [task for task in mine if overwrite or not job.is_done(task, done.get(task.name))]
        for entry in (done[task.name] for task in todo if task.name in done):
            # Of several processes only the first begins with a clean record.
            add_done(output, replace(entry, input=None, settings=""))
        try:
            with clock(LOOP):
                _predict_all(job, todo, known, len(mine), progress, stop, clock)
        except InterruptedByUserError as error:
            summary = end()
            raise InterruptedByUserError(
                f"stopped after {len(summary.done)} of {len(tasks)} pictures, their masks are in "
                f"{output}; run the same command to do the rest"
            ) from error
        summary = end()
    summary.kept = len(mine) - len(todo)
    return summary


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


def _clear(job: Job, mine: Sequence[Task], keep: bool) -> None:
    """Removes what killed runs left half done, and the records of what is to be done anew."""
    for folder in (job.output, *(job.output / name for name in FOLDERS)):
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
    entries += [done[name] for name in names if name in done and done[name].settings]
    failed = [entry for entry in failures.items() if entry[0] not in ours[1]]
    failed += [(source, failures[source]) for source in sources if source in failures]
    write_anew(job.output, entries, failed)


def _predict_all(
    job: Job,
    todo: Sequence[Task],
    before: Mapping[str, Done],
    total: int,
    progress: Progress | None,
    stop: Stop | None,
    clock: Clock,
) -> None:
    """Predicts pictures in order, reading and writing beside it; notes what becomes of each."""
    settled, failed = total - len(todo), read_failures(job.output)

    def settle(task: Task, future: Future[Done]) -> None:
        nonlocal settled
        try:
            done = future.result()
            add_done(job.output, with_outputs_of(done, before.get(done.name)))
            if str(task.source) in failed:  # in an earlier run of several processes
                add_failure(job.output, task.source, "")
        except PartialFailureError as failure:
            remove_outputs(job.output, task.name)
            add_failure(job.output, task.source, str(failure))
        settled += 1
        if progress is not None:
            progress(settled, total)

    def read(task: Task) -> Seen:
        with clock(READING):
            return read_picture(job, task, limit=_GIANT)

    def write(task: Task, seen: Seen, result: Result) -> Done:
        with clock(WRITING):
            return write_outputs(job, task, seen, result)

    # One writes, so that of two outputs that want one path the same gets it every time.
    with threads(_READERS) as readers, threads(1) as writer:
        behind: Behind[Task, Done] = Behind(writer, settle, _BEHIND, clock)
        try:
            for task, reading in read_ahead(readers, todo, read, _AHEAD, clock):
                if stop is not None and stop():
                    raise InterruptedByUserError("interrupted")
                try:
                    seen = reading.result()
                    if seen.image is None:
                        behind.finish()  # a giant is in memory alone
                        with clock(WAITING_FOR_READERS):
                            seen = read_picture(job, task)
                    with clock(LABELLING):
                        result = label_picture(job, task, seen, stop)
                except PartialFailureError as failure:
                    behind.submit(task, partial(_fail, failure))
                    continue
                behind.submit(task, partial(write, task, seen, result))
                del seen, result, reading
        finally:
            behind.finish()


def _fail(failure: PartialFailureError) -> Done:
    raise failure
