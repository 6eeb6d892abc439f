"""Downloads a file once: resumed after any interruption, checked, and only then under its name."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from segdeform.callbacks import Progress
from segdeform.errors import DownloadError
from segdeform.files.atomic import sync, write_error
from segdeform.files.space import require_space
from segdeform.version import __version__

TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 4  # for what may be better a moment later: lost connections, a busy server
PAUSE = 1.0  # seconds before the second attempt, doubled before each further one
WINDOW, LEAST = 60.0, 60_000  # seconds, and the bytes in them below which it counts as stalled
_PEER_TIMEOUT = 300.0  # seconds that another process may hold the file without growing it
_BLOCK = 1 << 18
_BUSY = {408, 425, 429, 500, 502, 503, 504}


class Checksum(NamedTuple):
    """What a file must hash to: the hexadecimal digest, or its first digits."""

    algorithm: str  # as hashlib names it
    digest: str

    def fits(self, path: Path) -> bool:
        """Reads the file and compares."""
        with path.open("rb") as file:
            return hashlib.file_digest(file, self.algorithm).hexdigest().startswith(self.digest)


class _LostError(Exception):
    """An attempt that ended early; the next one may go on from there."""


def download(url: str, path: Path, checksum: Checksum, *, progress: Progress | None = None) -> None:
    """Fetches a file to PATH unless it is there; PATH never holds less than the whole, right file.

    What has arrived stays beside it in a hidden .part file, from which the same call goes on later.
    Several processes may ask for one file: one fetches it, the others wait. `progress` hears (done,
    all) bytes. Raises DownloadError (server, network, checksum; also of a file that was there),
    ResourceError or UsageError where the file cannot be written.
    """
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _locked_part(path) as file:
                if not path.is_file():
                    _fetch(url, file, path, checksum, progress)
                    return
        except OSError as error:
            raise write_error(path, error) from error
    if not checksum.fits(path):
        raise DownloadError(f"{path} has a wrong checksum; delete it and try again")


@contextmanager
def _locked_part(path: Path) -> Iterator[BinaryIO]:
    """Lends the .part file of PATH to one process at a time; an empty one does not stay."""
    part = path.with_name(f".{path.name}.part")
    size, since = -1, time.monotonic()
    while True:
        with part.open("ab+") as file:
            if not _lock(file):
                if size != (size := os.fstat(file.fileno()).st_size):
                    since = time.monotonic()
                if time.monotonic() - since > _PEER_TIMEOUT:
                    raise DownloadError(f"{part}: another process holds it, but gets no further")
                time.sleep(0.1)
            elif _is_open(part, file):  # else its holder renamed or removed it meanwhile
                try:
                    yield file
                finally:
                    if _is_open(part, file) and part.stat().st_size == 0:
                        part.unlink()
                return


def _lock(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_open(part: Path, file: BinaryIO) -> bool:
    return part.exists() and os.path.samestat(part.stat(), os.fstat(file.fileno()))


def _fetch(
    url: str, file: BinaryIO, path: Path, checksum: Checksum, progress: Progress | None
) -> None:
    """Fills the .part file, tries again after what may pass, and renames it when it is right."""
    part = Path(str(file.name))
    in_one_piece = _try_repeatedly(url, file, path, progress)
    if not in_one_piece and not checksum.fits(part):  # pieces of two files: once more from scratch
        file.truncate(0)
        _try_repeatedly(url, file, path, progress)
    if not checksum.fits(part):
        file.truncate(0)
        raise DownloadError(f"{url}: the checksum is wrong; the file there is another one now")
    sync(part)
    part.rename(path)


def _try_repeatedly(url: str, file: BinaryIO, path: Path, progress: Progress | None) -> bool:
    """Receives what is missing; tells whether the file was received in one piece."""
    in_one_piece = file.seek(0, os.SEEK_END) == 0
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE * 2 ** (attempt - 1))
        try:
            _receive(url, file, path, progress)
            return in_one_piece and attempt == 0
        except _LostError as error:
            lost = error
    raise DownloadError(
        f"cannot download {url}: {lost}; run again to go on from there, or fetch it by other means "
        f"and put it at {path}"
    ) from lost


def _receive(url: str, file: BinaryIO, path: Path, progress: Progress | None) -> None:
    """Appends to the file what it lacks; raises _LostError when that ends early."""
    start = file.seek(0, os.SEEK_END)
    request = urllib.request.Request(url, headers={"User-Agent": f"segdeform/{__version__}"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as reply:
            if start != (given := _start_of(reply, url)):
                file.truncate(0)
                start = file.seek(0)
                if given != 0:
                    raise _LostError("the server sent another part than asked for")
            length = reply.headers.get("Content-Length")
            total = start + int(length) if length and length.isdecimal() else None
            if total is not None:
                require_space(path.parent, total - start)
            _copy(reply, file, path, total, progress)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            return  # nothing is missing, or the parts do not belong together: the checksum tells
        reason = f"the server says {error.code} {error.reason}".splitlines()[0]
        if error.code in _BUSY:
            raise _LostError(reason) from error
        raise DownloadError(f"cannot download {url}: {reason}") from error
    except (OSError, HTTPException) as error:
        reason = str(getattr(error, "reason", error)).strip() or type(error).__name__
        raise _LostError(reason) from error


def _start_of(reply: Any, url: str) -> int | None:
    """Returns the byte at which the reply begins, None when it does not say. No page is a file."""
    if reply.headers.get_content_type() == "text/html":
        raise DownloadError(f"cannot download {url}: the server sent a web page, not the file")
    if getattr(reply, "status", None) != HTTPStatus.PARTIAL_CONTENT:
        return 0
    given = re.match(r"bytes (\d+)-", reply.headers.get("Content-Range", ""))
    return int(given[1]) if given else None


def _copy(
    reply: Any, file: BinaryIO, path: Path, total: int | None, progress: Progress | None
) -> None:
    since, begin = time.monotonic(), file.tell()
    while block := reply.read1(_BLOCK):  # what has arrived, be it less
        try:
            file.write(block)
            file.flush()
        except OSError as error:
            raise write_error(path, error) from error
        if progress and total is not None:
            progress(file.tell(), total)
        if time.monotonic() - since > WINDOW:
            if file.tell() - begin < LEAST:
                raise _LostError(f"only {file.tell() - begin} bytes came in {WINDOW:.0f} s")
            since, begin = time.monotonic(), file.tell()
    if total is not None and file.tell() != total:
        raise _LostError(f"the connection ended after {file.tell()} of {total} bytes")
