"""Unpacks tar, tar.gz and zip archives that nobody vouches for.

Every entry is looked at before the first is written. Only files come out, under names that stay
inside the target; links, devices, bombs and names that are more than a name are refused.
"""

from __future__ import annotations

import gzip
import lzma
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, cast

from segdeform.callbacks import Progress
from segdeform.errors import DataError, ResourceError, UnsafeInputError, UsageError
from segdeform.files.atomic import write_error
from segdeform.files.space import require_space

_BLOCK = 1 << 20  # bytes read at once, and the largest header of a tar
_MAX_NAME, _MAX_PATH, _MAX_DEPTH = 255, 1024, 32  # bytes, bytes, folders

# What the readers raise for damaged archives, beside their own OSErrors.
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    ValueError,
    LookupError,
    ArithmeticError,
    NotImplementedError,
    RecursionError,
)


@dataclass(frozen=True)
class Limits:
    """What no archive of a data set exceeds; beyond it, it is taken for a bomb."""

    entries: int = 250_000
    total: int = 1 << 40  # bytes, unpacked
    ratio: int = 100  # unpacked bytes / bytes of the archive, asked for above `free`
    free: int = 64 << 20  # unpacked bytes that are never a bomb


@dataclass(frozen=True)
class Entry:
    """A file in an archive: a relative path without `.` and `..`, and its size in bytes."""

    path: PurePosixPath
    size: int
    open: Callable[[], IO[bytes]]


_DEFAULT_LIMITS = Limits()


@contextmanager
def open_archive(archive: Path, limits: Limits = _DEFAULT_LIMITS) -> Iterator[list[Entry]]:
    """Lends the files of an archive, all of them checked; its content tells what kind it is.

    Raises DataError (missing, damaged, encrypted, no archive, two files of one name) or
    UnsafeInputError (links, devices, names that lead elsewhere, bombs).
    """
    with ExitStack() as stack:
        with _damage(archive):
            if not stat.S_ISREG(archive.stat().st_mode):
                raise DataError(f"{archive}: not a regular file")
            file = stack.enter_context(archive.open("rb"))
            listing = _Listing(archive, archive.stat().st_size, limits)
            magic = file.read(4)
            file.seek(0)
            if magic in (b"PK\x03\x04", b"PK\x05\x06"):
                _list_zip(stack.enter_context(zipfile.ZipFile(file)), listing)
            elif magic.startswith(b"\x1f\x8b"):
                unzipped = stack.enter_context(gzip.GzipFile(fileobj=file))
                _list_tar(cast("BinaryIO", unzipped), listing)
                _read_to_end(cast("BinaryIO", unzipped), listing)
            else:
                _list_tar(file, listing)
        yield listing.files


def unpack(
    entries: Sequence[Entry],
    archive: Path,
    target: Path,
    *,
    place: Callable[[PurePosixPath], PurePosixPath | None] = lambda path: path,
    progress: Progress | None = None,
) -> int:
    """Writes files into TARGET, each whole or not at all; returns how many of them are there then.

    `place` gives a file's path below TARGET, or None to leave it out. A file that is there already
    with its size stays, so that the same call continues an interrupted one. `progress` hears (done,
    all) bytes. Raises DataError for damage, UsageError or ResourceError where it cannot be written.
    """
    wanted = [(entry, target / placed) for entry in entries if (placed := place(entry.path))]
    missing = [(entry, path) for entry, path in wanted if not _is_there(entry, path)]
    need, done = sum(entry.size for entry, _ in missing), 0
    require_space(target, need + 4096 * len(missing))
    for entry, path in missing:
        _write(entry, archive, path, target / ".segdeform-part")
        done += entry.size
        if progress:
            progress(done, need)
    return len(wanted)


def safe_path(name: str, archive: Path) -> PurePosixPath:
    """Returns an entry's name as a relative path; raises UnsafeInputError for all that is more."""
    path = PurePosixPath(name)
    size = len(name.encode(errors="surrogatepass"))
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
        problem = "holds control characters or is no UTF-8"
    elif "\\" in name or path.is_absolute() or (path.parts and path.parts[0].endswith(":")):
        problem = "is absolute or a path of Windows"
    elif ".." in path.parts:
        problem = "leads out of its folder"
    elif size > _MAX_PATH or len(path.parts) > _MAX_DEPTH or not _are_short(path.parts):
        problem = "is too long"
    else:
        return path
    shown = name if size < 80 else f"{name[:60]}..."
    raise UnsafeInputError(f"{archive}: the name {shown!a} {problem}; nothing was unpacked")


def _are_short(parts: tuple[str, ...]) -> bool:
    return all(len(part.encode()) <= _MAX_NAME for part in parts)


class _Listing:
    """The files seen so far; the one that goes too far is refused."""

    def __init__(self, archive: Path, packed: int, limits: Limits) -> None:
        self.archive = archive
        self.limits = limits
        self.bound = min(limits.total, max(limits.free, limits.ratio * packed))  # bytes
        self.files: list[Entry] = []
        self._count = self._total = 0
        self._kinds: dict[str, tuple[PurePosixPath, bool]] = {}  # folded path -> path, is a folder

    def add(self, name: str, size: int, is_folder: bool, reader: Callable[[], IO[bytes]]) -> None:
        """Takes an entry after the checks of its name, its size and all sizes so far."""
        self._count += 1
        if size < 0:
            raise DataError(f"{self.archive}: damaged: a file of {size} bytes")
        if self._count > self.limits.entries:
            raise UnsafeInputError(f"{self.archive}: holds more than {self.limits.entries} files")
        self.grow(size)
        path = safe_path(name, self.archive)
        if not path.parts:  # "./"
            return
        for parent in list(path.parents)[:-1]:
            self._claim(parent, is_folder=True)
        self._claim(path, is_folder)
        if not is_folder:
            self.files.append(Entry(path, size, reader))

    def grow(self, size: int) -> None:
        """Counts unpacked bytes; raises UnsafeInputError beyond what a data set can have."""
        self._total += size
        if self._total > self.bound:
            raise UnsafeInputError(
                f"{self.archive}: would grow to more than {self.bound >> 20} MiB, further than "
                "pictures and masks can; it is taken for a bomb"
            )

    def _claim(self, path: PurePosixPath, is_folder: bool) -> None:
        """Refuses two entries at one place, also where the names of files ignore case."""
        key = unicodedata.normalize("NFC", path.as_posix()).casefold()
        known = self._kinds.setdefault(key, (path, is_folder))
        if known[0] is not path and not (known == (path, True) and is_folder):
            raise DataError(
                f"{self.archive}: '{known[0]}' and '{path}' would be one file; nothing was unpacked"
            )


def _list_zip(reader: zipfile.ZipFile, listing: _Listing) -> None:
    for info in reader.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _no_file(listing.archive, info.orig_filename)
        if info.flag_bits & 1:
            raise DataError(f"{listing.archive}: is encrypted; unpack it with its password first")
        # orig_filename: `filename` ends at the first NUL.
        listing.add(info.orig_filename, info.file_size, info.is_dir(), partial(reader.open, info))


def _list_tar(file: BinaryIO, listing: _Listing) -> None:
    reader = tarfile.open(fileobj=_TarSource(file), mode="r:")  # type: ignore[call-overload]  # noqa: SIM115
    for member in reader:
        if not (member.isdir() or member.isreg()) or member.issparse():
            raise _no_file(listing.archive, member.name)
        listing.add(member.name, member.size, member.isdir(), partial(_open_member, reader, member))
    # tarfile takes a header that it does not understand for the end; the real one is a zero block.
    file.seek(reader.offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise DataError(f"{listing.archive}: damaged, or no tar, tar.gz or zip archive")


def _open_member(reader: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    return cast("IO[bytes]", reader.extractfile(member))  # None for what is no file alone


def _no_file(archive: Path, name: str) -> UnsafeInputError:
    return UnsafeInputError(
        f"{archive}: {name[:80]!a} is a link, a device or the like; nothing was unpacked"
    )


def _read_to_end(file: BinaryIO, listing: _Listing) -> None:
    """Reads what follows the tar, because the checksum of gzip is compared at its very end."""
    while block := file.read(_BLOCK):
        listing.grow(len(block))


class _TarSource:
    """What tarfile reads from; refuses the giant or negative sizes that a header may claim."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek = file.seek
        self.tell = file.tell
        self._read = file.read

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _BLOCK:
            raise tarfile.HeaderError(f"a header of {size} bytes")
        return self._read(size)


def _is_there(entry: Entry, path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and path.stat().st_size == entry.size


def _write(entry: Entry, archive: Path, path: Path, part: Path) -> None:
    """Copies an entry to `part`, which becomes `path` when it is whole."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() or path.is_symlink():
            raise UsageError(f"{path}: is there already and differs from {archive}; remove it")
        part.unlink(missing_ok=True)
        with part.open("xb") as file:
            for block in _blocks(entry, archive):
                file.write(block)
        part.rename(path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _blocks(entry: Entry, archive: Path) -> Iterator[bytes]:
    left = entry.size
    with _damage(archive, entry.path), entry.open() as source:
        while left >= 0:
            block = source.read(min(_BLOCK, left + 1))
            if not block:
                break
            left -= len(block)
            yield block
        if left:
            raise DataError(f"{archive}: damaged: '{entry.path}' has not the size it claims")


@contextmanager
def _damage(archive: Path, entry: PurePosixPath | None = None) -> Iterator[None]:
    """Turns what the readers raise into errors of ours."""
    place = f"{archive}: '{entry}'" if entry else str(archive)
    try:
        yield
    except MemoryError as error:
        raise ResourceError(f"{place}: not enough memory to read it") from error
    except OSError as error:
        raise DataError(f"{place}: cannot be read: {error.strerror or error}") from error
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{place}: damaged, or no tar, tar.gz or zip archive: {reason}") from error
