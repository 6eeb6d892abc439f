"""Inputs that stand for others: globs, lists of paths, and what comes by standard input.

A glob is matched here, so that a quoted one may have more matches than a command line holds; `**`
stands for any folders, links to folders and hidden entries left out. What exists is itself first.

A list has a path a line; blank lines and those that begin with # are passed over. Paths begin at
the folder of the list; of standard input, at the current one. Where a NUL occurs, NULs end the
paths, as of `find -print0`, and every one is taken as it is.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO, NamedTuple

from segdeform.errors import EXHAUSTED, DataError, UsageError

STANDARD_INPUT = Path("/dev/stdin")  # what records call a picture that came by it
_LONGEST_LIST = 64 << 20  # bytes
_LARGEST_PICTURE = 4 << 30  # bytes
_BLOCK = 1 << 20
DEEPEST = 800  # folders in folders; Python has no room for twice as many
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_UTF_8 = b"\xef\xbb\xbf"
# How pictures of the formats that are read begin; BMP and PNM are told from paths by what follows.
_PICTURES = (b"\xff\xd8\xff", b"\x89PNG", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"GIF8", b"RIFF")


class Typed(NamedTuple):
    """What came by standard input: a picture, or paths."""

    picture: Path | None  # where it lies now
    paths: Sequence[str] = ()


def is_list(source: Path) -> bool:
    """Tells whether an input is a list of others, `@list.txt`."""
    return str(source).startswith("@") and not os.path.lexists(source)


def is_glob(source: Path) -> bool:
    """Tells whether an input is a glob; a file whose name holds such letters is itself."""
    return any(letter in str(source) for letter in "*?[") and not os.path.lexists(source)


def is_standard_input(source: Path) -> bool:
    """Tells whether an input is "-"."""
    return str(source) == "-"


def fixed_part(pattern: Path) -> tuple[Path, tuple[str, ...]]:
    """Splits a glob into the folder before its first wildcard, and the rest."""
    parts = pattern.parts
    magic = next(number for number, part in enumerate(parts) if set(part) & set("*?["))
    return Path(*parts[:magic]), parts[magic:]


def matches(pattern: Path) -> Iterator[Path]:
    """Yields what a glob matches, files and folders, in a fixed order, each once."""
    folder, parts = fixed_part(pattern)
    yield from dict.fromkeys(_matches(folder, parts, len(folder.parts)))


def refuse_deep(folder: Path, begin: int) -> None:
    """Raises DataError for a folder too far below one whose path has `begin` parts."""
    if len(folder.parts) - begin > DEEPEST:
        raise DataError(
            f"{Path(*folder.parts[: begin + 1])}: has more than {DEEPEST} folders in one another: "
            "give one further below"
        )


def _matches(folder: Path, parts: Sequence[str], begin: int) -> Iterator[Path]:
    refuse_deep(folder, begin)
    first, rest = parts[0], parts[1:]
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return  # no folder, or none that may be read
    if first == "**":
        yield from _matches(folder, rest or ("*",), begin)
        for entry in entries:
            if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                yield from _matches(folder / entry.name, parts, begin)
        return
    for entry in entries:
        hidden = entry.name.startswith(".") and not first.startswith(".")
        if hidden or not fnmatchcase(entry.name, first):
            continue
        if not rest:
            yield folder / entry.name
        elif os.path.isdir(entry):  # noqa: PTH112, that of the entry raises for links in a circle
            yield from _matches(folder / entry.name, rest, begin)


def read_list(source: Path) -> tuple[Path, list[str]]:
    """Reads `@list.txt`: the folder at which its paths begin, and these. Raises UsageError."""
    path = Path(str(source)[1:])
    try:
        with path.open("rb") as file:
            content = _bounded(file, str(source))
    except OSError as error:
        raise UsageError(f"{source}: the list cannot be read: {error.strerror}") from error
    # Of <(find ...) the folder would be that of a pipe.
    return (path.parent if path.is_file() else Path()), paths_of(content, str(source))


def paths_of(content: bytes, name: str) -> list[str]:
    """Splits a list into its paths. Raises UsageError."""
    if content[:2] in _UTF_16:  # as PowerShell writes
        try:
            content = content.decode("utf-16").encode()
        except UnicodeDecodeError as error:
            raise UsageError(f"{name}: the list is no text: {error.reason}") from error
    content = content.removeprefix(_UTF_8)
    if b"\0" in content:
        return [os.fsdecode(path) for path in content.split(b"\0") if path]
    lines = (line.removesuffix(b"\r") for line in content.split(b"\n"))
    return [os.fsdecode(line) for line in lines if line.strip() and not line.startswith(b"#")]


@contextmanager
def standard_input(inputs: Sequence[Path]) -> Iterator[Typed | None]:
    """Reads standard input where "-" is among the inputs; a picture lies in a file meanwhile.

    Raises UsageError for one that has no end in sight.
    """
    if not any(map(is_standard_input, inputs)):
        yield None
        return
    if sys.stdin is None:
        raise UsageError("-: standard input is closed")
    stream = sys.stdin.buffer
    head = _read(stream, 16)
    if not begins_picture(head):
        rest = _bounded(stream, "-")
        yield Typed(None, paths_of(head + rest, "-"))
        return
    with tempfile.TemporaryDirectory(prefix="segdeform-") as folder:
        path, size = Path(folder) / "stdin", len(head)
        with path.open("wb") as file:
            file.write(head)
            while block := _read(stream, _BLOCK):
                size += len(block)
                if size > _LARGEST_PICTURE:
                    raise UsageError("-: standard input is longer than any picture")
                file.write(block)
        yield Typed(path)


def begins_picture(head: bytes) -> bool:
    """Tells by its first 16 bytes whether a picture comes, or else a list of paths."""
    if head.startswith(_PICTURES):
        return not head.startswith(b"RIFF") or head[8:12] == b"WEBP"
    if head.startswith(b"BM"):
        return head[6:10] == bytes(4)
    return head[:1] == b"P" and head[1:2] in b"123456f" and head[2:3].isspace()


def _read(stream: BinaryIO, count: int) -> bytes:
    try:
        return stream.read(count)
    except OSError as error:  # of a folder, or what may only be written
        if error.errno in EXHAUSTED:
            raise
        raise UsageError(f"-: standard input cannot be read: {error.strerror}") from error


def _bounded(stream: BinaryIO, name: str) -> bytes:
    content = stream.read(_LONGEST_LIST + 1)
    if len(content) > _LONGEST_LIST:
        raise UsageError(f"{name}: a list of more than {_LONGEST_LIST >> 20} MB is not read")
    return content


def refuse_missing(inputs: Sequence[Path]) -> None:
    """Raises UsageError for an input that does not exist, or a glob that matches nothing."""
    for source in inputs:
        if is_standard_input(source) or os.path.lexists(source):
            continue
        if is_list(source):
            if not os.path.lexists(str(source)[1:]):
                raise UsageError(f"{source}: no such list of pictures")
        elif is_glob(source):
            if next(matches(source), None) is None:
                raise UsageError(f"{source}: matches no file")
        else:
            raise UsageError(f"{source}: no such file or folder")
