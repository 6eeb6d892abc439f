"""What goes through the network at once: a picture, a page of a file, a frame of a video."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from segdeform.data.frames import Frames
from segdeform.errors import PartialFailureError
from segdeform.prediction.job import Job, Task
from segdeform.prediction.pace import Pace
from segdeform.prediction.reading import Seen, failures_told, read_page, read_picture
from segdeform.prediction.records import Done, Part, input_file
from segdeform.prediction.writing import remove_frames, remove_outputs, write_outputs
from segdeform.results.result import Result

if TYPE_CHECKING:
    from segdeform.prediction.video import Video


class Piece(NamedTuple):
    """A picture or a frame, and what is to be done with it; all but `read` by the one writer."""

    task: Task
    # Of up to so many pixels; None: there is no such frame. Raises PartialFailureError.
    read: Callable[[int | None], Seen | None]
    write: Callable[[Seen, Result], Done | None]  # None: nothing to note yet
    fail: Callable[[PartialFailureError], Done | None]
    end: Callable[[], Done | None]  # called where there is no such frame
    part: Part  # what fails with it
    frames: Callable[[], int]  # of its file, as far as is known
    owns: bool = True  # its outputs, which go when it fails
    last: bool = False  # no frame, but the end of a video


class Turns:
    """Lets threads do numbered things in order."""

    def __init__(self) -> None:
        self._changed, self._next = threading.Condition(), 0

    @contextmanager
    def of(self, number: int) -> Iterator[None]:
        """Waits until those before `number` are done."""
        with self._changed:
            self._changed.wait_for(lambda: self._next == number)
        try:
            yield
        finally:
            with self._changed:
                self._next = number + 1
                self._changed.notify_all()


def picture_piece(job: Job, task: Task) -> Piece:
    """Makes a piece of a picture, of which the first frame is taken."""
    read, write = partial(read_picture, job, task), partial(write_outputs, job, task)
    return Piece(task, read, write, fail, nothing, Part(str(task.source)), lambda: 1)


def failed_piece(task: Task, failure: PartialFailureError, owns: bool = True) -> Piece:
    """Makes a piece of what cannot be read."""

    def read(limit: int | None) -> Seen | None:
        raise failure

    part = Part(str(task.source), None if task.is_video else task.frame)
    return Piece(task, read, lambda *_: None, fail, nothing, part, lambda: 1, owns)


def fail(failure: PartialFailureError) -> Done | None:
    """Raises it."""
    raise failure


def nothing() -> Done | None:
    """Does nothing."""
    return None


class Pages:
    """A still picture of several frames or pages, each of which is a picture of its own.

    Where an animation breaks the rest cannot be composed; damaged pages fail alone.
    """

    def __init__(
        self, job: Job, task: Task, done: Mapping[str, Done], skip: Callable[[], None]
    ) -> None:
        """Opens a file; `skip()` is called for each frame that is done.

        Raises PartialFailureError.
        """
        self._job, self._task, self._done, self._skip = job, task, done, skip
        with failures_told(task.path):
            self._frames = Frames(task.path, job.segmenter.bands)
            self._file = input_file(task.path) if self.count > 1 else None
        self._turns, self._broken = Turns(), False

    @property
    def count(self) -> int:
        """How many there are, as far as is known."""
        return self._frames.count

    def pieces(self) -> Iterator[Piece]:
        """Yields the frames that are not done."""
        turn = 0
        for frame in range(self.count):
            task = self._task.framed(frame)
            if self._job.is_done(task, self._done.get(task.name)):
                self._skip()
                continue
            if self._broken:
                return
            if task.name in self._job.taken:
                failure = PartialFailureError(
                    f"its mask would be {task.name}.png, as that of another picture: rename one "
                    "of them, or predict it into another --output"
                )
                yield failed_piece(task, failure, owns=False)._replace(frames=lambda: self.count)
                continue
            read = partial(self._read, turn, task)
            write = partial(write_outputs, self._job, task)
            part = Part(str(task.source), frame)
            yield Piece(task, read, write, fail, nothing, part, lambda: self.count)
            turn += 1

    def _read(self, turn: int, task: Task, limit: int | None) -> Seen | None:
        if limit is None:  # once more, alone
            return self._decoded(task, None)
        with self._turns.of(turn):
            return None if self._broken else self._decoded(task, limit)

    def _decoded(self, task: Task, limit: int | None) -> Seen:
        assert self._file is not None
        try:
            return read_page(self._job, task, self._frames, self._file, limit)
        except PartialFailureError:
            if not self._frames.alone:
                self._broken, self._frames.count = True, (task.frame or 0) + 1
            raise


class OpenFiles:
    """The files of several frames that are at work; what is not finished in the end is dropped."""

    def __init__(self, job: Job, done: Mapping[str, Done], pace: Pace) -> None:
        self._job, self._done, self._pace = job, done, pace
        self._videos: list[Video] = []

    def __enter__(self) -> OpenFiles:
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
                if task.name not in self._done:  # what a whole picture of the name left
                    remove_outputs(self._job.output, task.name)
                self._pace.open(part, pages.count)
                return pages.pieces()
        return iter([picture_piece(self._job, task)])
