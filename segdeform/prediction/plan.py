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
from segdeform.prediction.writing import remove_outputs


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
    # Of what is to be done, records of other outputs than those asked for now.
    rests: dict[str, Done] = field(default_factory=dict)

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
        notes = self.before | self._anew(self.before)
        kept = [entry for entry in notes.values() if entry is not None]
        sources = {str(task.source) for task in self.mine}
        failures = read_failures(output).items()
        write_anew(output, kept, {p: why for p, why in failures if p.picture not in sources})
        self._write(self._summed_up(), finished=False)

    def left_to_do(self) -> tuple[list[Task], int, dict[str, Done]]:
        """Returns the pictures that are not wholly done, how much is, and what is done by name."""
        done = read_done(self.job.output)
        self.before.update({name: done[name] for name in done.keys() - self.before.keys()})
        for name, rest in self._anew(done).items():
            # Of several processes only the first begins with a clean record.
            if (note := rest or _void(done[name])) != done[name]:
                add_done(self.job.output, note)
            del done[name]
            if rest is not None:
                self.rests[name] = rest
        pages = frames_of(done.values())
        todo, kept = [], 0
        for task in self.mine:
            parts = self.job.done_parts(task, done.get(task.name), pages.get(task.name, []))
            kept += parts
            if not parts:
                todo.append(task)
        return todo, kept, done

    def forget(self, name: str) -> None:
        """Notes that there are no outputs of a name any more."""
        if name in self.rests:
            add_done(self.job.output, _void(self.rests.pop(name)))

    def _anew(self, done: Mapping[str, Done]) -> dict[str, Done | None]:
        """Returns what holds of the records that do not hold any more, of this call's pictures.

        Of what was predicted with the other choice of frames, and is not done now, outputs of
        another content or other settings are removed.
        """
        job, mine = self.job, {task.name: task for task in self.mine}
        found: dict[str, Done | None] = {}
        for entry in done.values():
            task = mine.get(entry.of)
            if task is None:
                continue
            if entry.is_first_of_several if job.every_frame else entry.frame is not None:
                if not job.is_of_now(task, entry):
                    if entry.name not in job.taken:
                        remove_outputs(job.output, entry.name)
                    found[entry.name] = None
            elif self.overwrite or not job.is_done(task._replace(name=entry.name), entry):
                others = {n: form for n, form in entry.outputs.items() if n not in job.outputs}
                holds = others and job.is_of_now(task, entry)
                found[entry.name] = replace(entry, outputs=others) if holds else None
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


def _void(entry: Done) -> Done:
    """Makes a record that tells of nothing done."""
    return replace(entry, input=None, settings="")


def _number(frame: int | None) -> int:
    return -1 if frame is None else frame
