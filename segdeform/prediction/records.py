"""What became of each picture, a line as it finishes: a kill loses nothing, nothing is done twice.

    OUTPUT/predictions.jsonl  a line a predicted picture: its names, size, class shares, and the
                              file and settings that they are of
    OUTPUT/failures.jsonl     a line a picture that failed, with the reason

With all frames of a file, each has a line: "frame" counts it from 0, "frames" is their number. A
video has one line, of the "frames" that were predicted, with their mean shares; "frame" is null, as
for a picture alone. A line that a kill cut short counts as not written. Of several lines of a name
the last one holds.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from segdeform.data.unread import is_video
from segdeform.files.atomic import write_error, write_text
from segdeform.files.manifest import sha256
from segdeform.results.outputs import KINDS

PREDICTIONS, FAILURES = "predictions.jsonl", "failures.jsonl"


@dataclass(frozen=True)
class InputFile:
    """By what an input is known again: cheap to compare where nothing changed."""

    bytes: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True)
class Done:
    """One predicted picture."""

    source: Path
    name: str  # of its outputs, below masks/, overlays/ and the others, without suffix
    size: tuple[int, int]  # H, W
    shares: dict[str, float]  # class -> share of the picture's pixels; absent classes left out
    frames: int = 1  # frames or pages in the file
    input: InputFile | None = None
    settings: str = ""  # of the model and how it was used, `settings_digest`
    note: str = ""  # what a person should know of it
    mask: str = "png"  # suffix of its mask: "tif" where the picture is georeferenced
    # The outputs that are of these settings, with what each was asked to be like.
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    frame: int | None = None  # which one this is, from 0; None: the first, or all of a video

    @property
    def is_first_of_several(self) -> bool:
        """Whether further frames of the file were left out."""
        return self.frames > 1 and self.frame is None and not is_video(self.source)

    @property
    def of(self) -> str:
        """The name of its picture's outputs, or of the folder with those of all frames."""
        return self.name if self.frame is None else self.name.rpartition("/")[0]

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        entry = asdict(self) | {"size": list(self.size)}
        return {"picture": str(entry.pop("source")), **entry}


def with_outputs_of(done: Done, before: Done | None) -> Done:
    """Adds the outputs that an earlier record tells of the same file by the same settings."""
    if before is None or before.settings != done.settings or before.source != done.source:
        return done
    if before.input is None or done.input is None or before.input.sha256 != done.input.sha256:
        return done
    outputs = {**before.outputs, **done.outputs}
    return replace(done, outputs={name: outputs[name] for name in KINDS if name in outputs})


def called_by(done: Done, source: Path) -> Done:
    """Calls a picture by another path that leads to it.

    Of facts, which tell the path themselves, it is noted which one they tell.
    """
    outputs, facts = dict(done.outputs), done.outputs.get("json")
    if isinstance(facts, dict):
        told = facts.get("picture", str(done.source))
        others = {key: value for key, value in facts.items() if key != "picture"}
        outputs["json"] = others if told == str(source) else {**others, "picture": told}
    return replace(done, source=source, outputs=outputs)


class Part(NamedTuple):
    """What may fail: a picture, or one of its frames."""

    picture: str
    frame: int | None = None


class Failure(NamedTuple):
    """Why a part failed."""

    reason: str
    frames: int = 1  # how many parts of its picture are done or failed, in the end

    def of(self, part: Part) -> str:
        """Returns the reason with the frame that it concerns."""
        return self.reason if part.frame is None else f"frame {part.frame}: {self.reason}"


def frame_name(name: str, frame: int) -> str:
    """Returns what the outputs of a picture's or video's frame are called."""
    return f"{name}/{frame:06d}"


def settings_digest(settings: Mapping[str, Any]) -> str:
    """Returns a short name for all that changes a mask beside its picture."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def input_file(path: Path) -> InputFile:
    """Describes an input. Raises OSError."""
    status = path.stat()
    return InputFile(status.st_size, status.st_mtime_ns, sha256(path))


def is_same_file(path: Path, known: InputFile) -> bool:
    """Tells whether an input is what it was: by size and time, else by its content."""
    try:
        status = path.stat()
        if status.st_size != known.bytes:
            return False
        if status.st_mtime_ns == known.mtime_ns:
            return True
        return _digest(path, status.st_size, status.st_mtime_ns) == known.sha256
    except OSError:
        return False


@lru_cache(maxsize=64)  # of a file with many pages, each of which asks
def _digest(path: Path, size: int, mtime_ns: int) -> str:
    return sha256(path)


def read_done(output: Path) -> dict[str, Done]:
    """Returns {name: picture} of what predictions.jsonl tells."""
    found = {}
    for entry in _lines(output / PREDICTIONS):
        try:
            given = entry["input"]
            shares = {name: float(share) for name, share in entry["shares"].items()}
            if not all(map(math.isfinite, shares.values())):
                continue
            done = Done(
                source=Path(entry["picture"]),
                name=str(entry["name"]),
                size=(int(entry["size"][0]), int(entry["size"][1])),
                shares=shares,
                frames=int(entry["frames"]),
                input=_input(given) if given else None,
                settings=str(entry["settings"]),
                note=str(entry.get("note", "")),
                mask="tif" if entry.get("mask") == "tif" else "png",
                outputs=dict(entry.get("outputs", {"masks": {}, "overlays": {}})),
                frame=_frame(entry),
            )
        except (AttributeError, KeyError, TypeError, ValueError, IndexError, OverflowError):
            continue  # edited by somebody
        found[done.name] = done
    return found


def _input(given: Mapping[str, Any]) -> InputFile:
    return InputFile(int(given["bytes"]), int(given["mtime_ns"]), str(given["sha256"]))


def _frame(entry: Mapping[str, Any]) -> int | None:
    frame = entry.get("frame")
    return None if frame is None else int(frame)


def read_failures(output: Path) -> dict[Part, Failure]:
    """Returns what failures.jsonl tells, without the parts that succeeded since."""
    found: dict[Part, Failure] = {}
    for entry in _lines(output / FAILURES):
        try:
            part = Part(str(entry["picture"]), _frame(entry))
            found[part] = Failure(str(entry["reason"]), int(entry.get("frames", 1)))
        except (KeyError, TypeError, ValueError, OverflowError):
            continue  # edited by somebody
    return {part: failure for part, failure in found.items() if failure.reason}


def write_anew(output: Path, done: Iterable[Done], failures: Mapping[Part, Failure]) -> None:
    """Writes both files with these lines alone. Raises as `write_text` does."""
    write_text(output / PREDICTIONS, "".join(_line(entry.to_json()) for entry in done))
    failed = "".join(_line(_failure(*entry)) for entry in failures.items())
    write_text(output / FAILURES, failed)


def add_done(output: Path, done: Done) -> None:
    """Adds a line at once. Raises ResourceError or UsageError."""
    _append(output / PREDICTIONS, _line(done.to_json()))


def add_failure(output: Path, part: Part, failure: Failure) -> None:
    """Adds a line at once; without a reason, that it fails no more. Raises as `add_done` does."""
    _append(output / FAILURES, _line(_failure(part, failure)))


def _failure(part: Part, failure: Failure) -> dict[str, Any]:
    return part._asdict() | failure._asdict()


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=True, allow_nan=False) + "\n"


def _append(path: Path, line: str) -> None:
    """Writes in one call at the end of the file, so that several processes can share it."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":  # a kill cut the line before
                line = f"\n{line}"
            content = line.encode()
            if os.write(descriptor, content) < len(content):  # the disk is full
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise write_error(path, error) from error


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        content = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    entries = []
    for line in content.splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue  # a kill cut it short
        if isinstance(entry, dict):
            entries.append(entry)
    return entries


@contextmanager
def summing_up(output: Path) -> Iterator[None]:
    """Keeps other processes from summing up while the body does."""
    with (output / PREDICTIONS).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
