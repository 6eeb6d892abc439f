"""What is asked of a prediction: its pictures, its outputs, and whether a picture is done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from segdeform.data.depth import as_json
from segdeform.data.unread import is_video
from segdeform.prediction.place import output_path, video_path
from segdeform.prediction.records import Done, frame_name, is_same_file
from segdeform.results.outputs import Forms
from segdeform.segmenter import Segmenter
from segdeform.version import __version__
from segdeform.windows import Window


class Task(NamedTuple):
    """One picture to predict, or one of its frames, or a whole video."""

    source: Path
    name: str  # of its outputs
    frame: int | None = None  # where each has a task of its own; None: the first, or all of a video
    file: Path | None = None  # where it is read, if not at `source`: what came by standard input

    @property
    def path(self) -> Path:
        """Where it is read."""
        return self.file or self.source

    @property
    def is_video(self) -> bool:
        """Whether its file is a video, by its name."""
        return is_video(self.source)

    def framed(self, frame: int) -> Task:
        """Returns the task of one of its frames."""
        return self._replace(name=frame_name(self.name, frame), frame=frame)


@dataclass(frozen=True)
class Job:
    """What all pictures of a call have in common."""

    segmenter: Segmenter
    output: Path
    outputs: tuple[str, ...]  # names of outputs.KINDS
    settings: str  # digest of the model and how it is used
    forms: Forms
    every_frame: bool = False  # of pictures that have several
    window: Window | None = None  # the part of each picture that is predicted
    taken: frozenset[str] = frozenset()  # names of other pictures, which no frame may have

    def is_done(self, task: Task, entry: Done | None) -> bool:
        """Tells whether a picture's outputs are there, of this very file by these settings."""
        if entry is None or not self.is_made(entry) or not self.is_of_now(task, entry):
            return False
        return all(path.is_file() for path in files_of(self.output, entry, self.outputs))

    def is_of_now(self, task: Task, entry: Done) -> bool:
        """Tells whether a record is of the file as it is, by these settings, whatever was made."""
        if entry.settings != self.settings or entry.source != task.source:
            return False
        return entry.input is not None and is_same_file(task.path, entry.input)

    def is_made(self, entry: Done) -> bool:
        """Tells whether a record is of these settings, and of all outputs as they are asked for."""
        made = entry.outputs
        return entry.settings == self.settings and all(
            made.get(name) == self.forms.of(name) for name in self.outputs
        )

    def done_parts(self, task: Task, entry: Done | None, pages: Sequence[Done]) -> int:
        """Counts what is done of a picture of which nothing is left to do, else 0.

        `entry` and `pages` are what is noted of it and of its frames.
        """
        if entry is not None and (task.is_video or not self.every_frame or entry.frames == 1):
            return int(self.is_done(task, entry))
        if not self.every_frame or not pages or len(pages) != pages[0].frames:
            return 0
        whole = all(self.is_done(task._replace(name=page.name), page) for page in pages)
        return len(pages) if whole else 0


def files_of(output: Path, done: Done, outputs: Sequence[str]) -> Iterator[Path]:
    """Yields where the outputs of a picture lie; of a video, those of every frame, too."""
    stills_alone = outputs
    if is_video(done.source) and "overlays" in outputs:
        yield video_path(output, done.name)
        stills_alone = [name for name in outputs if name != "overlays"]
    for still in stills(done):
        yield from (output_path(output, still, name) for name in stills_alone)


def stills(done: Done) -> Iterator[Done]:
    """Yields the frames of a video, a picture each; of anything else itself."""
    if not is_video(done.source):
        yield done
        return
    for frame in range(done.frames):
        yield replace(done, name=frame_name(done.name, frame), frame=frame)


def settings_of(segmenter: Segmenter, window: Window | None = None) -> Mapping[str, Any]:
    """Returns all that a mask depends on beside its picture."""
    # Named only where they are others, so that what earlier versions did is known again.
    others: dict[str, Any] = {}
    if segmenter.precision != "fp32":
        others["precision"] = segmenter.precision
    if window is not None:
        others["window"] = list(window)
    if segmenter.compiled:
        others["compiled"] = True
    if "runtime" in segmenter.info:  # of an exported model
        others["runtime"] = segmenter.info["runtime"]
    return others | {
        "model": segmenter.info["sha256"],
        "inference": segmenter.options.model_dump(mode="json"),
        "value_range": segmenter.value_range and as_json(segmenter.value_range),
        "bands": segmenter.bands,
        "device": segmenter.device.type,
        "segdeform": __version__,
    }
