from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from segdeform.errors import ModelError, ResourceError, UsageError
from segdeform.files import manifest
from segdeform.files.atomic import exchange
from segdeform.files.manifest import (
    MANIFEST,
    find_folder,
    replacing_folder,
    verify_manifest,
    write_manifest,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Returns a folder with two files and their manifest."""
    folder = tmp_path / "thing"
    write(folder, "first")
    return folder


def write(folder: Path, text: str) -> None:
    with replacing_folder(folder) as new:
        (new / "a.bin").write_bytes(bytes(range(256)))
        (new / "b.txt").write_text(text)


def test_the_manifest_lists_sizes_and_hashes(folder: Path) -> None:
    files = json.loads((folder / MANIFEST).read_text())["files"]
    digest = hashlib.sha256(b"first").hexdigest()
    assert files["b.txt"] == {"sha256": digest, "bytes": 5}
    assert files.keys() == {"a.bin", "b.txt"}
    assert verify_manifest(folder, ("a.bin",))["b.txt"] == digest


@pytest.mark.parametrize("position", range(0, 256, 15))
def test_every_flipped_bit_is_seen(folder: Path, position: int) -> None:
    content = bytearray((folder / "a.bin").read_bytes())
    content[position] ^= 1 << position % 8
    (folder / "a.bin").write_bytes(content)
    with pytest.raises(ModelError, match=r"a\.bin does not match"):
        verify_manifest(folder)


def test_missing_cut_and_unlisted_files_are_named(folder: Path) -> None:
    (folder / "c.txt").write_text("not ours")
    verify_manifest(folder)
    with pytest.raises(ModelError, match=r"does not list c\.txt"):
        verify_manifest(folder, ("c.txt",))
    (folder / "a.bin").write_bytes(b"short")
    with pytest.raises(ModelError, match=r"a\.bin has 5 bytes, not 256"):
        verify_manifest(folder)
    (folder / "a.bin").unlink()
    with pytest.raises(ModelError, match=r"a\.bin is missing"):
        verify_manifest(folder)
    (folder / "a.bin").mkdir()
    with pytest.raises(ModelError, match=r"a\.bin is missing"):
        verify_manifest(folder)
    (folder / MANIFEST).unlink()
    with pytest.raises(ModelError, match=r"manifest\.json is missing"):
        verify_manifest(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 40,
        b"\xff\xfe",
        b"[" * 100_000,
        b"[]",
        b'{"files": []}',
        b'{"files": {"a.bin": 3}}',
        b'{"files": {"a.bin": {"sha256": 1, "bytes": 256}}}',
        b'{"files": {"../a.bin": {"sha256": "x", "bytes": 256}}}',
        b'{"files": {"..": {"sha256": "x", "bytes": 256}}}',
        b'{"files": {"a\\u0000": {"sha256": "x", "bytes": 256}}}',
    ],
)
def test_a_damaged_manifest_is_refused(folder: Path, content: bytes) -> None:
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(ModelError, match=r"manifest\.json") as caught:
        verify_manifest(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_is_replaced_whole(folder: Path) -> None:
    with replacing_folder(folder) as new:
        (new / "b.txt").write_text("second")
    assert sorted(path.name for path in folder.iterdir()) == ["b.txt", MANIFEST]
    assert (folder / "b.txt").read_text() == "second"
    assert list(folder.parent.iterdir()) == [folder]


def test_a_failure_leaves_the_former_folder_alone(folder: Path) -> None:
    with pytest.raises(ZeroDivisionError), replacing_folder(folder) as new:
        (new / "b.txt").write_text("second")
        raise ZeroDivisionError
    assert (folder / "b.txt").read_text() == "first"
    assert list(folder.parent.iterdir()) == [folder]


def test_a_full_disk_leaves_the_former_folder_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(manifest, "sync", full)
    with pytest.raises(ResourceError, match="No space left"):
        write(folder, "second")
    verify_manifest(folder)
    assert (folder / "b.txt").read_text() == "first"
    assert list(folder.parent.iterdir()) == [folder]


def test_what_a_killed_writer_left_is_cleared(folder: Path) -> None:
    leftover = folder.with_name(".thing.new")
    leftover.mkdir()
    (leftover / "half").touch()
    write(folder, "second")
    assert list(folder.parent.iterdir()) == [folder]

    # Killed between the two renames: the former one is still there, and stays if this one fails.
    folder.rename(folder.with_name(".thing.old"))
    with pytest.raises(ZeroDivisionError), replacing_folder(folder):
        raise ZeroDivisionError
    verify_manifest(folder)
    assert (folder / "b.txt").read_text() == "second"


@pytest.mark.parametrize("swaps", [True, False], ids=["swap in one step", "two renames"])
@pytest.mark.parametrize("calls", range(4))
def test_a_kill_at_any_rename_leaves_the_old_folder_or_the_new(
    folder: Path, monkeypatch: pytest.MonkeyPatch, calls: int, swaps: bool
) -> None:
    child = os.fork()
    if child == 0:  # it dies at the call of this number, or comes to its end
        left = calls

        def dying(move: Callable[..., Any]) -> Callable[..., Any]:
            def moved(*paths: Path, **options: Any) -> Any:
                nonlocal left
                if left == 0:
                    os._exit(9)
                left -= 1
                return move(*paths, **options)

            return moved

        with suppress(BaseException):
            swap = exchange if swaps else lambda *paths: False
            monkeypatch.setattr(manifest, "exchange", dying(swap))
            monkeypatch.setattr(Path, "rename", dying(Path.rename))
            monkeypatch.setattr(manifest.shutil, "rmtree", dying(shutil.rmtree))
            write(folder, "second")
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) in (0, 9)
    if swaps:  # so that readers need to know nothing
        verify_manifest(folder, ("b.txt",))
    found = find_folder(folder)
    verify_manifest(found, ("b.txt",))
    assert (found / "b.txt").read_text() == ("second" if calls > (0 if swaps else 2) else "first")
    write(folder, "third")
    assert (folder / "b.txt").read_text() == "third"
    assert list(folder.parent.iterdir()) == [folder]


def test_this_system_swaps_folders_in_one_step(folder: Path) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("renameat2 is Linux's")
    (folder.parent / "other").mkdir()
    assert exchange(folder, folder.parent / "other")
    assert not list(folder.iterdir()) and (folder.parent / "other" / "b.txt").is_file()
    with pytest.raises(FileNotFoundError):
        exchange(folder, folder.parent / "missing")


def test_the_folder_behind_a_link_is_replaced(folder: Path) -> None:
    link = folder.with_name("link")
    link.symlink_to(folder.name)
    for text in ("second", "third"):
        write(link, text)
        assert link.is_symlink() and (folder / "b.txt").read_text() == text
        assert sorted(folder.parent.iterdir()) == [link, folder]


def test_other_peoples_folders_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").touch()
    (tmp_path / "file").touch()
    for name in ("home", "file"):
        with pytest.raises(UsageError, match="choose another output folder"):
            write(tmp_path / name, "")
    assert (tmp_path / "home" / "thesis.tex").exists()


def test_a_manifest_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("a")

    def fail(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(manifest, "sync", fail)
    with pytest.raises(OSError, match="Input/output"):
        write_manifest(tmp_path)
    assert not (tmp_path / MANIFEST).exists()
