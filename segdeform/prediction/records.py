"""What became of each picture, a line as it finishes: a kill loses nothing, nothing is done twice.

    OUTPUT/predictions.jsonl  a line a predicted picture: its names, size, class shares, and the
                              file and settings that they are of
    OUTPUT/failures.jsonl     a line a picture that failed, with the reason

A line that a kill cut short counts as not written. Of several lines of a name the last one holds.
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
from pathlib import Path
from typing import Any

from segdeform.files.atomic import write_error, write_text
from segdeform.files.manifest import sha256

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
    frames: int = 1  # frames or pages in the file; the first one was predicted
    input: InputFile | None = None
    settings: str = ""  # of the model and how it was used, `settings_digest`
    note: str = ""  # what a person should know of it
    mask: str = "png"  # suffix of its mask: "tif" where the picture is georeferenced
    # The outputs that are of these settings, with what each was asked to be like.
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)

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
    return replace(done, outputs={**before.outputs, **done.outputs})


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
        return status.st_mtime_ns == known.mtime_ns or sha256(path) == known.sha256
    except OSError:
        return False


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
            )
        except (AttributeError, KeyError, TypeError, ValueError, IndexError, OverflowError):
            continue  # edited by somebody
        found[done.name] = done
    return found


def _input(given: Mapping[str, Any]) -> InputFile:
    return InputFile(int(given["bytes"]), int(given["mtime_ns"]), str(given["sha256"]))


def read_failures(output: Path) -> dict[str, str]:
    """Returns {picture: reason} of failures.jsonl, without those that succeeded since."""
    found = {
        str(entry["picture"]): str(entry["reason"])
        for entry in _lines(output / FAILURES)
        if {"picture", "reason"} <= entry.keys()
    }
    return {picture: reason for picture, reason in found.items() if reason}


def write_anew(output: Path, done: Iterable[Done], failures: Iterable[tuple[str, str]]) -> None:
    """Writes both files with these lines alone. Raises as `write_text` does."""
    write_text(output / PREDICTIONS, "".join(_line(entry.to_json()) for entry in done))
    failed = "".join(_line(_failure(source, reason)) for source, reason in failures)
    write_text(output / FAILURES, failed)


def add_done(output: Path, done: Done) -> None:
    """Adds a line at once. Raises ResourceError or UsageError."""
    _append(output / PREDICTIONS, _line(done.to_json()))


def add_failure(output: Path, source: Path, reason: str) -> None:
    """Adds a line at once; without a reason, that it fails no more. Raises as `add_done` does."""
    _append(output / FAILURES, _line(_failure(source, reason)))


def _failure(source: Path | str, reason: str) -> dict[str, Any]:
    return {"picture": str(source), "reason": reason}


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
