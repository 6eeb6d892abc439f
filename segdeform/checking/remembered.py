"""Remembers the facts of files between checks, by size and modification time, then by content.

The facts do not depend on classes or mappings, so that nothing has to be forgotten when those
change; another version of the check or of the decoder forgets everything. A remembered file that
is damaged or cannot be written costs time only, and is replaced or gone without in silence.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import PIL
from pydantic import TypeAdapter, ValidationError

from segdeform.checking.facts import Facts
from segdeform.errors import SegdeformError
from segdeform.files.atomic import write_bytes
from segdeform.files.manifest import sha256
from segdeform.version import __version__

_FORMAT = 5  # another number where Facts means something else
_HEADER = f"segdeform-check {_FORMAT} {__version__} pillow-{PIL.__version__}"
# A file that was written this shortly before it was read can change again unseen: the time stamps
# of some file systems are that coarse. Its content is compared next time.
_SETTLED_NS = 2_000_000_000
_LARGEST = 2**33  # bytes; what is no picture is refused by its first bytes, however large


@dataclass(frozen=True)
class _Entry:
    size: int
    mtime_ns: int  # 0: to be compared by content
    sha256: str
    facts: Facts


_ENTRIES = TypeAdapter(dict[str, _Entry])


class FactCache:
    """The facts of the files of one data set, kept in a file of the user's cache folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reused = 0  # files whose facts were known
        self._entries = _load(path)
        self._changed = False

    def facts(self, role: str, path: Path, examine: Callable[[Path], Facts]) -> Facts:
        """Returns what `examine` says, or said of the same content in the same role.

        Can be called from several threads. Raises what `examine` raises.
        """
        key = f"{role}:{os.path.abspath(path)}"  # noqa: PTH100, resolving links is slow
        known = self._entries.get(key)
        try:
            status = path.stat()
            if known and (known.size, known.mtime_ns) == (status.st_size, status.st_mtime_ns):
                self.reused += 1
                return known.facts
            if not _is_worth_a_hash(path):
                return examine(path)
            content = sha256(path)
        except OSError:
            return examine(path)  # it says why the file cannot be read
        settled = time.time_ns() - status.st_mtime_ns > _SETTLED_NS
        mtime = status.st_mtime_ns if settled else 0
        same = known is not None and known.sha256 == content
        facts = known.facts if known and same else examine(path)
        self.reused += same
        if facts.problem is None:  # the others are few, and may be mended without a trace
            self._changed = True
            self._entries[key] = _Entry(status.st_size, mtime, content, facts)
        return facts

    def save(self) -> None:
        """Writes what is new, whole or not at all; files that are gone are forgotten."""
        if not self._changed:
            return
        kept = {
            key: entry
            for key, entry in self._entries.copy().items()  # threads may still add to it
            if os.path.lexists(key.partition(":")[2])
        }
        try:
            body = _ENTRIES.dump_json(kept)
            head = f"{_HEADER} {hashlib.sha256(body).hexdigest()}\n"
            write_bytes(self.path, head.encode() + body)
        except (SegdeformError, ValueError):  # no place to write; a name that JSON cannot hold
            return


def cache_path(root: Path) -> Path:
    """Returns where the facts of a data set are kept: XDG_CACHE_HOME or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    name = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:32]
    return Path(base) / "segdeform" / "check" / f"{name}.json"


def _load(path: Path) -> dict[str, _Entry]:
    try:
        head, _, body = path.read_bytes().partition(b"\n")
        if head.decode() != f"{_HEADER} {hashlib.sha256(body).hexdigest()}":
            return {}
        return _ENTRIES.validate_json(body)
    except (OSError, ValidationError, UnicodeDecodeError):
        return {}


def _is_worth_a_hash(path: Path) -> bool:
    """Whether it is a file, which a FIFO is not, and none that would take minutes to read."""
    return path.is_file() and path.stat().st_size <= _LARGEST
