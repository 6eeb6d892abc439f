"""What a prediction is to do, and what it notes before and after: the records and the summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from segdeform.files.atomic import remove_temporaries
from segdeform.prediction.inputs import Found
from segdeform.prediction.job import Job, Task
from segdeform.prediction.overview import write_overview
from segdeform.prediction.place import FOLDERS, read_summary
from segdeform.prediction.records import (
    Done,
    add_done,
    read_done,
    read_failures,
    summing_up,
    write_anew,
)
from segdeform.prediction.summary import Summary, frames_of, sum_up, write_summary


@dataclass(frozen=True)
class Plan:
    """The pictures of a call, and which of them are to be done here."""

    job: Job
    found: Found
    earlier: Mapping[str, str]  # name -> picture, of masks that were there before
    tasks: Sequence[Task]
    mine: Sequence[Task]  # of several processes, those of this one
    overwrite: bool = False
    before: dict[str, Done] = field(default_factory=dict)  # what the records told in the beginning

    def begin(self) -> None:
        """Removes what killed runs left half done, and the records of what is to be done anew."""
        output = self.job.output
        if read_summary(output) is None:
            # First, else what a kill leaves would be taken for the records of something else.
            self._write(self._summed_up(), finished=False)
        self.before.update(read_done(output))
        for folder in (output, *(output / name for name in FOLDERS)):
            for place in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
                remove_temporaries(place)
        anew = {entry.name for entry in self._anew(self.before)}
        kept = [entry for name, entry in self.before.items() if name not in anew]
        sources = {str(task.source) for task in self.mine}
        failures = read_failures(output).items()
        write_anew(output, kept, {p: why for p, why in failures if p.picture not in sources})
        self._write(self._summed_up(), finished=False)

    def left_to_do(self) -> tuple[list[Task], int, dict[str, Done]]:
        """Returns the pictures that are not wholly done, how much is, and what is done by name."""
        done = read_done(self.job.output)
        self.before.update({name: done[name] for name in done.keys() - self.before.keys()})
        for entry in self._anew(done):
            # Of several processes only the first begins with a clean record.
            add_done(self.job.output, replace(entry, input=None, settings=""))
            del done[entry.name]
        pages = frames_of(done.values())
        todo, kept = [], 0
        for task in self.mine:
            parts = self.job.done_parts(task, done.get(task.name), pages.get(task.name, []))
            kept += parts
            if not parts:
                todo.append(task)
        return todo, kept, done

    def _anew(self, done: Mapping[str, Done]) -> list[Done]:
        """Lists what is noted of this call's pictures and does not hold any more."""
        mine = {task.name: task for task in self.mine}
        found = []
        for entry in done.values():
            task = mine.get(entry.of)
            if task is None or (entry.frame is not None and not self.job.every_frame):
                continue
            if self.overwrite or not self.job.is_done(task._replace(name=entry.name), entry):
                found.append(entry)
        return found

    def end(self) -> Summary:
        """Sums up, and draws the overview where nothing is left; returns the summary."""
        job = self.job
        with summing_up(job.output):
            summary = self._summed_up()
            if not summary.left and "overlays" in job.outputs:
                segmenter = job.segmenter
                write_overview(job.output, summary.done, segmenter.classes, segmenter.palette)
            self._write(summary, finished=not summary.left)
        return summary

    def put_in_order(self) -> None:
        """Writes the records as one process would have that is never interrupted."""
        output = self.job.output
        done, failures = read_done(output), read_failures(output)
        names = {task.name: number for number, task in enumerate(self.tasks)}
        sources = {str(task.source): number for number, task in enumerate(self.tasks)}
        entries = [entry for entry in done.values() if entry.of not in names]
        ours = [entry for entry in done.values() if entry.of in names and entry.settings]
        ours.sort(key=lambda entry: (names[entry.of], _number(entry.frame)))
        failed = [part for part in failures if part.picture not in sources]
        mine = [part for part in failures if part.picture in sources]
        mine.sort(key=lambda part: (sources[part.picture], _number(part.frame)))
        write_anew(output, [*entries, *ours], {part: failures[part] for part in [*failed, *mine]})

    def _summed_up(self) -> Summary:
        return sum_up(self.job, self.found, self.earlier)

    def _write(self, summary: Summary, *, finished: bool) -> None:
        write_summary(summary, self.job, finished=finished)


def _number(frame: int | None) -> int:
    return -1 if frame is None else frame
