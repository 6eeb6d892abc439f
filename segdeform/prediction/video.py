"""Videos: frames read in order through OpenCV, their masks, and one video of overlays.

    OUTPUT/masks/NAME/000000.png ...  as of pictures of these names, and so other outputs
    OUTPUT/overlays/NAME.mp4          MPEG-4, of the same rate; of odd sides the last row or column
                                      is doubled, as that coding asks for even ones

A video is one picture of the records: done when all its frames are, else done anew.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

# Read by OpenCV when it opens its first video: what FFmpeg has to say is said by our own lines,
# and a file may name no other one, nor an address.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "protocol_whitelist;file")

import cv2
import numpy as np
import numpy.typing as npt

from segdeform.data.channels import refuse_bands
from segdeform.data.image_io import open_file
from segdeform.errors import DataError, PartialFailureError, ResourceError
from segdeform.files.atomic import put, temporary_path, write_error
from segdeform.prediction.containers import is_container, missing_bytes, opencv_path, trimmed_to
from segdeform.prediction.job import Job, Task
from segdeform.prediction.pieces import Piece, Turns
from segdeform.prediction.place import video_path
from segdeform.prediction.reading import Seen, failures_told
from segdeform.prediction.records import Done, Part, input_file
from segdeform.prediction.writing import remove_frames, write_outputs
from segdeform.results.overlay import Picture
from segdeform.results.result import Result

_MOST_PIXELS = 2**27  # of a frame, four times those of 8K
_MOST_FRAMES = 10**7  # that a container may tell of and be believed
_RATES = (0.1, 1000.0)  # frames a second that are believed
_USUAL_RATE = 25.0
_MOST_TICKS = 65535  # of MPEG-4, a second
_SLACK = 0.5  # seconds by which containers that tell no number of frames may be wrong


class Video:
    """A video whose frames are predicted one after the other."""

    def __init__(self, job: Job, task: Task) -> None:
        """Opens a file. Raises PartialFailureError."""
        self._job, self._task = job, task
        with failures_told(task.path):
            self._capture = _opened(task.path)  # before the whole of what may never end is read
            self._file = input_file(task.path)
        self._rate, self._pixels = _rate(self._capture), _pixels(self._capture)
        told = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self._told = int(told) if 0 < told < _MOST_FRAMES else 0
        self._stills = replace(job, outputs=tuple(o for o in job.outputs if o != "overlays"))
        self._turns, self._ended = Turns(), False
        self._times: list[float] = []  # of the last frame and the one before it, milliseconds
        self._gap = ""
        self._written, self._failure, self.closed = 0, "", False
        self._size = (0, 0)
        self._shares: dict[str, float] = {}
        self._overlays: OverlayVideo | None = None

    @property
    def count(self) -> int:
        """How many frames there are, as far as is known."""
        return self._written if self.closed else max(self._told, self._written)

    def pieces(self) -> Iterator[Piece]:
        """Yields the frames, and in the end one that is none."""
        for number in count():
            ended = self._ended
            yield Piece(
                self._task.framed(number),
                _no_frame if ended else partial(self._read, number),
                partial(self._write, self._task.framed(number)),
                self._fail,
                self._end,
                Part(str(self._task.source)),
                lambda: self.count,
                owns=False,
            )
            if ended:
                return

    def close(self) -> None:
        """Ends the work; of overlays that are not finished nothing is left."""
        self.closed = True
        self._capture.release()
        if self._overlays is not None:
            self._overlays.drop()

    def _read(self, number: int, limit: int | None) -> Seen | None:
        seen = Seen(None, 1, self._file)
        if limit is not None and self._pixels > limit:
            return seen
        with self._turns.of(number), failures_told(self._task.path):
            if self._ended:
                return None
            try:
                found, frame = self._capture.read()
            except cv2.error as error:
                raise ResourceError("not enough memory for a frame") from error
            if not found:
                self._ended = True
                return None
            self._note_time(number)
            return seen._replace(image=_known(frame, self._job.segmenter.bands, self._task.path))

    def _note_time(self, number: int) -> None:
        """Remembers the first place where frames seem to be missing."""
        self._times = [*self._times[-1:], self._capture.get(cv2.CAP_PROP_POS_MSEC)]
        step = (self._times[-1] - self._times[0]) / 1000
        if step * self._rate > 2.5 and not self._gap:
            self._gap = f"none for {step:.1f} seconds after frame {number - 1}"

    def _write(self, task: Task, seen: Seen, result: Result) -> Done | None:
        if self._failure:
            return None
        try:
            done = write_outputs(self._stills, task, seen, result)
            if "overlays" in self._job.outputs:
                self._add_overlay(result.overlay())
        except PartialFailureError as failure:
            return self._fail(failure)
        self._size = done.size
        for name, share in done.shares.items():
            self._shares[name] = self._shares.get(name, 0.0) + share
        self._written += 1
        return None

    def _add_overlay(self, picture: Picture) -> None:
        if self._overlays is None:
            path = video_path(self._job.output, self._task.name)
            self._overlays = OverlayVideo(path, self._rate, picture.shape[:2])
        self._overlays.add(picture)

    def _fail(self, failure: PartialFailureError) -> Done | None:
        if not self._failure:
            self._failure = f"breaks at frame {self._written}: {failure}"
            self._ended = True
        return None

    def _end(self) -> Done | None:
        """Finishes the overlays and says what became of the video. Raises PartialFailureError."""
        if self.closed:
            return None
        path = video_path(self._job.output, self._task.name)
        if self._overlays is not None:
            self._overlays.finish(self._written)
            self._overlays = None
        elif "overlays" in self._job.outputs:
            with suppress(OSError):
                path.unlink(missing_ok=True)
        remove_frames(self._job, self._task.name, self._written)
        self.close()
        if problem := self._failure or self._missing():
            kept = f"; frames 0 to {self._written - 1} are kept" if self._written else ""
            raise PartialFailureError(f"{problem}{kept}")
        shares = {
            name: self._shares[name] / self._written
            for name in self._job.segmenter.classes
            if name in self._shares
        }
        facts = (self._size, shares, self._written, self._file, self._job.settings)
        made = {name: self._job.forms.of(name) for name in self._job.outputs}
        return Done(self._task.source, self._task.name, *facts, outputs=made)

    def _missing(self) -> str:
        """Says what a video lacks of what its container tells; "" where it is whole."""
        path, read = self._task.path, self._written
        try:
            if missing := missing_bytes(path):
                return f"breaks at frame {read}: cut short, {missing} bytes are missing"
            shown = trimmed_to(path)
        except OSError as error:
            return f"breaks at frame {read}: cannot be read: {error.strerror}"
        if not read:
            return "no frame of it can be decoded: damaged, or of a coding that is not read here"
        told, end = self._told, (self._times[-1] / 1000 if self._times else 0.0)
        if shown is not None and shown * self._rate < told - 1.5:  # not all of it is to be shown
            told = math.floor(shown * self._rate - _SLACK * self._rate)
        if _estimated(path):  # by its length in seconds
            told = told if told / self._rate - end > _SLACK + 2 / self._rate else 0
        if read >= told:
            return ""
        where = f", {self._gap}" if self._gap else ""
        return (
            f"breaks at frame {read}: it says that it has {told} frames; damaged in the "
            f"middle{where}, or wrong about itself"
        )


class OverlayVideo:
    """A video that appears whole, or not at all."""

    def __init__(self, path: Path, rate: float, size: tuple[int, int]) -> None:
        """Begins one of `rate` frames a second, of size (H, W).

        Raises PartialFailureError where it cannot be coded, ResourceError or UsageError where not
        be written.
        """
        self._path, self._temporary = path, temporary_path(path)
        try:
            self._name = opencv_path(self._temporary)
        except DataError as error:
            raise PartialFailureError(
                "no overlay video has a path that is no valid UTF-8: leave overlays out, or rename "
                "the video or the output folder"
            ) from error
        self._size = size[0] + size[0] % 2, size[1] + size[1] % 2  # MPEG-4 has even sides
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._temporary.touch()
        except OSError as error:
            raise write_error(path, error) from error
        code = cv2.VideoWriter.fourcc(*"mp4v")
        self._writer = cv2.VideoWriter(
            self._name, cv2.CAP_FFMPEG, code, _coded(rate), self._size[::-1]
        )
        if not self._writer.isOpened():
            self.drop()
            raise PartialFailureError(
                f"an overlay video of {size[1]}x{size[0]} pixels cannot be coded: leave it out"
            )

    def add(self, picture: Picture) -> None:
        """Adds a frame [H, W, 3] RGB; one of another size is fitted to the first one's."""
        height, width = self._size
        if not (height - picture.shape[0] in (0, 1) and width - picture.shape[1] in (0, 1)):
            smaller = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
            picture = np.asarray(smaller, np.uint8)
        more = ((0, height - picture.shape[0]), (0, width - picture.shape[1]), (0, 0))
        self._writer.write(np.ascontiguousarray(np.pad(picture, more, "edge")[..., ::-1]))

    def finish(self, frames: int) -> None:
        """Gives it its name. Raises ResourceError where the disk took not all `frames`."""
        self._writer.release()
        try:
            capture = cv2.VideoCapture(self._name, cv2.CAP_FFMPEG)
            if int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) != frames:  # it tells of no error itself
                raise ResourceError(
                    f"{self._path}: cannot be written. Free some space and run again."
                )
            put(self._temporary, self._path)
        except OSError as error:
            raise write_error(self._path, error) from error
        finally:
            self.drop()

    def drop(self) -> None:
        """Removes what is not finished."""
        self._writer.release()
        with suppress(OSError):
            self._temporary.unlink(missing_ok=True)


def middle_frame(path: Path) -> Picture | None:
    """Reads a frame from the middle of a video; None where it cannot be had."""
    if not path.is_file():
        return None
    try:
        capture = cv2.VideoCapture(opencv_path(path), cv2.CAP_FFMPEG)
    except DataError:
        return None
    capture.set(cv2.CAP_PROP_POS_FRAMES, capture.get(cv2.CAP_PROP_FRAME_COUNT) // 2)
    found, frame = capture.read()
    return np.ascontiguousarray(frame[..., ::-1]) if found else None


def _opened(path: Path) -> Any:
    """Opens a regular file of a known kind. Raises DataError, OSError."""
    open_file(path).close()
    name = opencv_path(path)
    if not path.stat().st_size:
        raise DataError(f"{path}: the file is empty")
    if not is_container(path):
        raise DataError(f"{path}: not a video of a known kind (MP4, MOV, AVI, MKV, MPEG, WMV)")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    one = [cv2.CAP_PROP_N_THREADS, 1]  # several would lose frames before a damaged one
    capture = cv2.VideoCapture(name, cv2.CAP_FFMPEG, one)
    if not capture.isOpened():
        missing = missing_bytes(path)
        why = f"cut short, {missing} bytes are missing" if missing else "damaged"
        raise DataError(f"{path}: cannot be opened as a video: {why}, or of an unknown coding")
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
    if _pixels(capture) > _MOST_PIXELS:
        raise DataError(f"{path}: frames of more than {_MOST_PIXELS} pixels are not read")
    return capture


def _pixels(capture: Any) -> float:
    size = capture.get(cv2.CAP_PROP_FRAME_WIDTH) * capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
    return float(size)


def _rate(capture: Any) -> float:
    rate = float(capture.get(cv2.CAP_PROP_FPS))
    return rate if math.isfinite(rate) and _RATES[0] <= rate <= _RATES[1] else _USUAL_RATE


def _coded(rate: float) -> float:
    """Returns a rate that MPEG-4 can have: a fraction of at most 65535 ticks a second."""
    for digits in (3, 2, 1):
        if rate * 10**digits <= _MOST_TICKS:
            return round(rate, digits)
    return float(round(rate))


def _known(
    frame: npt.NDArray[np.uint8], bands: tuple[int, ...] | None, path: Path
) -> npt.NDArray[np.uint8]:
    """Makes a frame [H, W, 3] BGR what the network knows, as `read_image` does."""
    if bands is None:
        return np.ascontiguousarray(frame[..., ::-1])
    refuse_bands(path, bands, 3)
    return np.ascontiguousarray(frame[..., ::-1][..., list(bands)])


def _estimated(path: Path) -> bool:
    """Tells whether OpenCV knows of a container's frames only by how long it is."""
    with path.open("rb") as file:
        head = file.read(12)
    return head[:4] != b"RIFF" and head[4:8] not in (b"ftyp", b"moov", b"mdat", b"wide", b"free")


def _no_frame(limit: int | None) -> Seen | None:
    return None
