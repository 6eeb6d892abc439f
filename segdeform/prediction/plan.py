"""What a prediction is to do, and what it notes before and after: the records and the summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from segdeform.files.atomic import remove_temporaries
from segdeform.prediction.inputs import Found
from segdeform.prediction.job import Job, Task
from segdeform.prediction.overview import write_overview
from segdeform.prediction.place import FOLDERS, identity, read_summary
from segdeform.prediction.records import (
    Done,
    Failure,
    Part,
    add_done,
    add_failure,
    called_by,
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
        self.before.update(self._called_as_now(read_done(output)))
        for folder in (output, *(output / name for name in FOLDERS)):
            for place in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
                remove_temporaries(place)
        notes = self.before | self._anew(self.before)
        kept = [entry for entry in notes.values() if entry is not None]
        failures = read_failures(output)
        for part in self._settled_anew(failures):
            del failures[part]
        write_anew(output, kept, failures)
        self._write(self._summed_up(), finished=False)

    def left_to_do(self) -> tuple[list[Task], int, dict[str, Done]]:
        """Returns the pictures that are not wholly done, how much is, and what is done by name."""
        # Of several processes only the first begins with a clean record.
        noted = read_done(self.job.output)
        done = self._called_as_now(noted)
        self.before.update({name: done[name] for name in done.keys() - self.before.keys()})
        anew = self._anew(done)
        for name, entry in list(done.items()):
            note = (anew[name] or _void(entry)) if name in anew else entry
            if note != noted[name]:
                add_done(self.job.output, note)
            if name in anew:
                del done[name]
        self.rests.update({name: rest for name, rest in anew.items() if rest is not None})
        self._note_failures_anew()
        pages = frames_of(done.values())
        todo, kept = [], 0
        for task in self.mine:
            parts = self.job.done_parts(task, done.get(task.name), pages.get(task.name, []))
            kept += parts
            if not parts:
                todo.append(task)
        return todo, kept, done

    def _note_failures_anew(self) -> None:
        output = self.job.output
        failures, collisions = read_failures(output), self._collisions()
        for part in self._settled_anew(failures):
            if part not in collisions:
                add_failure(output, part, Failure(""))
        for part, failure in collisions.items():
            if failures.get(part) != failure:
                add_failure(output, part, failure)

    def _settled_anew(self, failures: Mapping[Part, Failure]) -> list[Part]:
        """Lists what failed of pictures of which this call tells itself, by whatever path."""
        if not failures:
            return []
        sources = [task.source for task in self.mine]
        known = {identity(source) for source in (*sources, *(s for s, _ in self.found.collisions))}
        return [part for part in failures if identity(Path(part.picture)) in known]

    def _collisions(self) -> dict[Part, Failure]:
        return {Part(str(source)): Failure(why) for source, why in self.found.collisions}

    def _called_as_now(self, done: Mapping[str, Done]) -> dict[str, Done]:
        """Calls this call's pictures by the paths given now, where they were called otherwise."""
        mine, found = {task.name: task.source for task in self.mine}, dict(done)
        for name, entry in done.items():
            source = mine.get(entry.of, entry.source)
            if source != entry.source and identity(source) == identity(entry.source):
                found[name] = called_by(entry, source)
        return found

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
