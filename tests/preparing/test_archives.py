"""Archives that mean harm or are damaged: each is refused with its code, nothing escapes."""

from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest

from segdeform.errors import ResourceError, SegdeformError, UsageError
from segdeform.preparing.archives import Limits, open_archive, unpack

KINDS = ("tar", "tar.gz", "zip")
LIMITS = Limits(entries=50, total=1 << 20, ratio=100, free=1 << 18)


def write(path: Path, files: list[tuple[str, bytes]], kind: str) -> Path:
    """Writes an archive as the usual tools do, but under any names."""
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files:
                info = zipfile.ZipInfo("x")
                info.filename = info.orig_filename = name
                archive.writestr(info, content, zipfile.ZIP_DEFLATED)
        return path
    with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def unpack_all(archive: Path, target: Path) -> int:
    with open_archive(archive, LIMITS) as entries:
        return unpack(entries, archive, target)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def refused(archive: Path, code: int, kept: tuple[str, ...] = ()) -> str:
    """Unpacks, expects the exit code, and that nothing but `kept` lies anywhere afterwards."""
    root = archive.parent
    before = contents(root) if archive.is_file() else {}
    with pytest.raises(SegdeformError) as caught:
        unpack_all(archive, root / "target")
    assert caught.value.exit_code == code, caught.value
    assert str(root) in str(caught.value) and "\n" not in str(caught.value)
    if archive.is_file():
        after = contents(root)
        assert after.keys() - before.keys() == {f"target/{name}" for name in kept}
        assert {name: after[name] for name in before} == before
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_archive_comes_out_whole_and_only_once(kind: str, tmp_path: Path) -> None:
    files = [("a/ä.txt", b"1"), ("./a/b/c", b"2" * 5000), ("empty", b"")]
    archive = write(tmp_path / f"good.{kind}", [*files, ("a/b/", b"")][: 3 + (kind == "zip")], kind)
    expected = {"a/ä.txt": b"1", "a/b/c": b"2" * 5000, "empty": b""}
    assert unpack_all(archive, tmp_path / "target") == 3
    assert contents(tmp_path / "target") == expected
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "target").rglob("*")}
    assert unpack_all(archive, tmp_path / "target") == 3
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "target").rglob("*")}


@pytest.mark.parametrize("kind", KINDS)
def test_place_moves_files_and_leaves_them_out(kind: str, tmp_path: Path) -> None:
    archive = write(tmp_path / f"good.{kind}", [("a/x", b"1"), ("b/x", b"2")], kind)
    with open_archive(archive) as entries:
        chosen = unpack(
            entries,
            archive,
            tmp_path / "target",
            place=lambda path: PurePosixPath("c", path.name) if path.parts[0] == "b" else None,
        )
    assert chosen == 1 and contents(tmp_path / "target") == {"c/x": b"2"}


NAMES = {
    "absolute": ("/tmp/segdeform-escaped", 6),
    "absolute twice": ("//tmp/segdeform-escaped", 6),
    "parent": ("../escaped", 6),
    "parent inside": ("a/../../escaped", 6),
    "parent that stays": ("a/../b", 6),
    "parent at the end": ("a/..", 6),
    "backslashes": ("..\\escaped", 6),
    "drive": ("C:/escaped", 6),
    "newline": ("a\nb", 6),
    "terminal codes": ("a\x1b[2Jb", 6),
    "delete": ("a\x7fb", 6),
    "long name": ("n" * 256, 6),
    "long in bytes": ("ä" * 130, 6),
    "long path": ("/".join(["d" * 100] * 11), 6),
    "deep": ("/".join("d" * 40), 6),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", NAMES)
def test_names_that_are_more_than_names(case: str, kind: str, tmp_path: Path) -> None:
    name, code = NAMES[case]
    archive = write(tmp_path / f"evil.{kind}", [("first", b"1"), (name, b"2")], kind)
    assert "name" in refused(archive, code)
    assert not Path("/tmp/segdeform-escaped").exists()


COLLISIONS = {
    "the same name": ["a/b", "a/b"],
    "the same place": ["a/b", "./a//b"],
    "another case": ["a/Picture", "a/picture"],
    "folders of another case": ["A/x", "a/y"],
    "composed and decomposed": ["\u00e4", "a\u0308"],
    "a folder below a file": ["a", "a/b"],
    "a file over a folder": ["a/b", "a"],
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", COLLISIONS)
def test_two_files_for_one_place(case: str, kind: str, tmp_path: Path) -> None:
    files = [(name, str(place).encode()) for place, name in enumerate(COLLISIONS[case])]
    assert "would be one file" in refused(write(tmp_path / f"two.{kind}", files, kind), 4)


@pytest.mark.parametrize("kind", KINDS)
def test_bombs_by_number_and_by_total_size(kind: str, tmp_path: Path) -> None:
    many = write(tmp_path / f"many.{kind}", [(f"{i}", b"") for i in range(51)], kind)
    assert "more than 50 files" in refused(many, 6)
    noise = os.urandom(1 << 19)
    large = write(tmp_path / f"large.{kind}", [(f"{i}", noise) for i in range(3)], kind)
    assert "bomb" in refused(large, 6)


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_bombs_by_ratio(kind: str, tmp_path: Path) -> None:
    zeros = write(tmp_path / f"zeros.{kind}", [("zeros", bytes(1 << 19))], kind)
    assert zeros.stat().st_size < 5000
    assert "bomb" in refused(zeros, 6)


def tar_member(kind: bytes, name: str = "evil", **fields: object) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type = kind
    for field, value in fields.items():
        setattr(member, field, value)
    return member


def write_members(path: Path, *members: tarfile.TarInfo) -> Path:
    mode = "w:gz" if path.name.endswith("gz") else "w"
    with tarfile.open(path, mode, format=tarfile.PAX_FORMAT) as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(b"x" * member.size) if member.isreg() else None)
    return path


SPECIAL = {
    "symlink": [tar_member(tarfile.SYMTYPE, linkname="/etc/passwd")],
    "symlink inside": [tar_member(tarfile.SYMTYPE, linkname="other")],
    "through a symlink": [
        tar_member(tarfile.SYMTYPE, "way", linkname="/tmp"),
        tar_member(tarfile.REGTYPE, "way/segdeform-escaped"),
    ],
    "hard link": [tar_member(tarfile.LNKTYPE, linkname="/etc/passwd")],
    "character device": [tar_member(tarfile.CHRTYPE, devmajor=1, devminor=5)],
    "block device": [tar_member(tarfile.BLKTYPE, devmajor=8)],
    "fifo": [tar_member(tarfile.FIFOTYPE)],
    "unknown type": [tar_member(b"Z")],
    "symlink named as a folder": [tar_member(tarfile.SYMTYPE, "d/", linkname="..")],
    "NUL": [tar_member(tarfile.REGTYPE, pax_headers={"path": "a\x00b"})],
    "no UTF-8": [tar_member(tarfile.REGTYPE, "a\udcff")],
}


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
@pytest.mark.parametrize("case", SPECIAL)
def test_a_tar_may_hold_nothing_but_files(case: str, kind: str, tmp_path: Path) -> None:
    first = tar_member(tarfile.REGTYPE, "first", size=3)
    archive = write_members(tmp_path / f"evil.{kind}", first, *SPECIAL[case])
    refused(archive, 6)
    assert not Path("/tmp/segdeform-escaped").exists()


def header(size: bytes = b"00000000000\0", kind: bytes = b"0", name: bytes = b"evil") -> bytes:
    """Makes one block of a tar with a right checksum around any field."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108] = b"0000644\0"
    block[124:136] = size
    block[136:148] = b"00000000000\0"
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"%06o\0 " % (sum(block) + 8 * 32)
    return bytes(block)


NEGATIVE = b"\xff" * 10 + struct.pack(">h", -1024)
HUGE = b"\x80\x00\x00\x00" + struct.pack(">Q", 1 << 60)
END = bytes(1024)
HEADERS = {
    "negative size": (header(NEGATIVE) + END, 4),
    "huge size": (header(HUGE) + END, 6),
    "negative long name": (header(NEGATIVE, b"L") + END, 4),
    "huge long name": (header(HUGE, b"L") + END, 4),
    "negative attributes": (header(NEGATIVE, b"x") + END, 4),
    "huge attributes": (header(HUGE, b"x") + END, 4),
    "endless attributes": (header(kind=b"x") * 3000 + END, 4),
    "sparse": (header(kind=b"S") + END, 6),
    "data missing": (header(b"00000020000\0") + b"x" * 100, 4),
    "no end": (header(), 4),
    "half a header": (header() + header()[:300], 4),
    "a broken header between": (header() + b"\x01" * 512 + header(name=b"b") + END, 4),
    "only zeros": (END, 4),
}


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
@pytest.mark.parametrize("case", HEADERS)
def test_headers_that_lie(case: str, kind: str, tmp_path: Path) -> None:
    content, code = HEADERS[case]
    archive = tmp_path / f"lie.{kind}"
    archive.write_bytes(gzip.compress(content) if kind == "tar.gz" else content)
    if case == "only zeros":  # an archive of nothing
        assert unpack_all(archive, tmp_path / "target") == 0
    else:
        refused(archive, code)


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_archive(kind: str, share: float, tmp_path: Path) -> None:
    archive = write(tmp_path / f"cut.{kind}", [("a", os.urandom(9000)), ("b", b"1" * 9000)], kind)
    cut(archive, share)
    refused(archive, 4)


def test_a_flipped_bit_in_gzip(tmp_path: Path) -> None:
    archive = write(tmp_path / "flip.tar.gz", [("a", os.urandom(9000)), ("b", b"1")], "tar.gz")
    flip(archive, 5000)
    refused(archive, 4)
    archive = write(tmp_path / "sum.tar.gz", [("a", b"1")], "tar.gz")
    flip(archive, archive.stat().st_size - 6)
    assert "CRC" in refused(archive, 4)


def test_a_flipped_bit_in_a_tars_header(tmp_path: Path) -> None:
    archive = write(tmp_path / "flip.tar", [("a", b"1"), ("b", b"2")], "tar")
    flip(archive, 1024 + 3)
    assert "damaged" in refused(archive, 4)


def test_a_flipped_bit_in_zip_spoils_no_file(tmp_path: Path) -> None:
    archive = write(tmp_path / "flip.zip", [("a", b"1"), ("b", os.urandom(9000))], "zip")
    flip(archive, 5000)
    assert "CRC" in refused(archive, 4, kept=("a",))


ZIP_MODES = {"symlink": 0o120777, "fifo": 0o010644, "device": 0o020644, "socket": 0o140644}


@pytest.mark.parametrize("case", ZIP_MODES)
def test_a_zip_may_hold_nothing_but_files(case: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        info = zipfile.ZipInfo("evil")
        info.create_system = 3
        info.external_attr = ZIP_MODES[case] << 16
        archive.writestr(info, "/etc/passwd")
    refused(tmp_path / "evil.zip", 6)


def patched(path: Path, change: Callable[[bytearray, int, int], None]) -> Path:
    """Writes a zip of one file and changes its bytes, told where both of its headers begin."""
    write(path, [("name", b"text" * 100)], "zip")
    content = bytearray(path.read_bytes())
    change(content, 0, content.index(b"PK\x01\x02"))
    path.write_bytes(content)
    return path


def encrypt(content: bytearray, local: int, central: int) -> None:
    content[local + 6] |= 1
    content[central + 8] |= 1


def pack_unknown(content: bytearray, local: int, central: int) -> None:
    content[local + 8] = content[central + 10] = 97


def rename_locally(content: bytearray, local: int, central: int) -> None:
    content[local + 30 : local + 34] = b"evil"


def put_nul(content: bytearray, local: int, central: int) -> None:
    content[local + 32] = content[central + 48] = 0


def spoil_utf8(content: bytearray, local: int, central: int) -> None:
    content[local + 7] |= 8
    content[central + 9] |= 8
    content[local + 30] = content[central + 46] = 0xFF


def claim_less(content: bytearray, local: int, central: int) -> None:
    struct.pack_into("<I", content, central + 24, 7)


def claim_more(content: bytearray, local: int, central: int) -> None:
    struct.pack_into("<I", content, central + 24, 7000)


def start_beyond(content: bytearray, local: int, central: int) -> None:
    struct.pack_into("<I", content, central + 42, 1 << 30)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (encrypt, 4),
        (pack_unknown, 4),
        (rename_locally, 4),
        (put_nul, 6),
        (spoil_utf8, 4),
        (claim_less, 4),
        (claim_more, 4),
        (start_beyond, 4),
    ],
)
def test_zips_that_lie(
    change: Callable[[bytearray, int, int], None], code: int, tmp_path: Path
) -> None:
    refused(patched(tmp_path / "lie.zip", change), code)


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"\x1f\x8b", b"<!doctype html><p>Sign in", b"\x00" * 100]
)
def test_what_is_no_archive(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(content)
    refused(tmp_path / "x.zip", 4)


def test_a_folder_a_fifo_and_nothing_are_no_archives(tmp_path: Path) -> None:
    (tmp_path / "folder.zip").mkdir()
    os.mkfifo(tmp_path / "fifo.zip")
    for name in ("folder", "fifo", "none"):
        refused(tmp_path / f"{name}.zip", 4)


@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_in_the_target_is_not_overwritten(kind: str, tmp_path: Path) -> None:
    archive = write(tmp_path / f"good.{kind}", [("a/b", b"1"), ("c", b"22")], kind)
    target = tmp_path / "target"
    target.mkdir()
    (target / "c").write_bytes(b"other")
    with pytest.raises(UsageError, match="target/c: is there already"):
        unpack_all(archive, target)
    assert contents(target) == {"a/b": b"1", "c": b"other"}
    (target / "c").unlink()
    (target / "c").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="target/c: is there already"):
        unpack_all(archive, target)
    assert not (tmp_path / "elsewhere").exists()
    (target / "c").unlink()
    (target / "c").mkdir()
    with pytest.raises(UsageError, match="target/c: is there already"):
        unpack_all(archive, target)
    (target / "a" / "b").unlink()
    (target / "a").rmdir()
    (target / "a").write_bytes(b"a file where a folder is wanted")
    with pytest.raises(UsageError, match="target/a/b: cannot be written"):
        unpack_all(archive, target)


def test_the_disk_is_looked_at_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = write(tmp_path / "good.tar", [("a", b"1" * 100_000)], "tar")
    monkeypatch.setattr("segdeform.files.space.shutil.disk_usage", lambda path: FreeSpace())
    with pytest.raises(ResourceError, match=r"needs 104 kB of disk, 70 kB are free"):
        unpack_all(archive, tmp_path / "target")
    assert not (tmp_path / "target").exists()


class FreeSpace:
    free = 70_000


def test_an_interrupted_call_is_continued(tmp_path: Path) -> None:
    files = [(f"{place}", bytes([place]) * 1000) for place in range(5)]
    archive = write(tmp_path / "good.zip", files, "zip")

    def interrupt(done: int, total: int) -> None:
        if done == 3000:
            raise KeyboardInterrupt

    with open_archive(archive) as entries, pytest.raises(KeyboardInterrupt):
        unpack(entries, archive, tmp_path / "target", progress=interrupt)
    assert len(contents(tmp_path / "target")) == 3
    heard: list[tuple[int, int]] = []
    with open_archive(archive) as entries:
        unpack(entries, archive, tmp_path / "target", progress=lambda *now: heard.append(now))
    assert heard == [(1000, 2000), (2000, 2000)]
    assert contents(tmp_path / "target") == dict(files)
