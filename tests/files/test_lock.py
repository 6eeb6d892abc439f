from __future__ import annotations

import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from segdeform.errors import RunLockedError, UsageError
from segdeform.files import lock
from segdeform.files.atomic import atomic_path
from segdeform.files.lock import run_lock, shared_lock


def test_second_one_is_refused_and_told_who(tmp_path: Path) -> None:
    with run_lock(tmp_path / "run"):
        told = f"/run is in use by process {os.getpid()} on this machine: wait for it"
        with pytest.raises(RunLockedError, match=told) as caught, run_lock(tmp_path / "run"):
            pass
        assert caught.value.exit_code == 10 and not set('{}"') & set(str(caught.value))
    with run_lock(tmp_path / "run"):
        pass


@pytest.mark.parametrize(
    ("written", "told"),
    [
        (b'{"pid": 7, "host": "elsewhere", "boot_id": ""}', "by process 7 on host elsewhere:"),
        (b"", "by another process:"),
        (b'{"pid": "x"', "by another process:"),
        (b"[1]", "by another process:"),
    ],
)
def test_the_holder_is_named_as_far_as_it_is_known(
    tmp_path: Path, written: bytes, told: str
) -> None:
    with run_lock(tmp_path):
        (tmp_path / ".lock").write_bytes(written)
        with pytest.raises(RunLockedError, match=told), run_lock(tmp_path):
            pass


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    started, start = os.pipe()
    with run_lock(tmp_path):
        child = os.fork()
        if child == 0:
            os.write(start, b"!")
            time.sleep(30)
            os._exit(0)
    try:
        assert os.read(started, 1) == b"!"  # it closed its copy of the lock before
        with run_lock(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(started)
        os.close(start)


def test_what_a_killed_holder_was_writing_goes_and_nothing_else(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        with run_lock(tmp_path), atomic_path(tmp_path / "log.jsonl") as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    left = [path for path in tmp_path.iterdir() if path.name != ".lock"]
    assert len(left) == 1 and left[0].read_text() == "half"
    mine = [tmp_path / name for name in (".segdeform-notes.tmp", "a.tmp.jsonl", ".segdeform")]
    for path in mine:
        path.write_text("mine")
    with run_lock(tmp_path):
        assert sorted(tmp_path.iterdir()) == sorted([tmp_path / ".lock", *mine])


def test_only_what_was_there_or_was_made_stays(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for folder in (tmp_path / "mine", tmp_path / "new" / "deep"):
        with pytest.raises(ValueError), run_lock(folder):
            assert (folder / ".lock").is_file()
            raise ValueError
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]
    with pytest.raises(ValueError), run_lock(tmp_path / "new" / "deep"):
        (tmp_path / "new" / "log.txt").touch()
        raise ValueError
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["log.txt"]


def test_a_lock_whose_file_is_removed_while_it_is_opened_is_held_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder ends between another one's opening and locking."""
    first, opened = run_lock(tmp_path), []
    first.__enter__()
    real = os.open

    def open_late(*arguments: Any) -> int:
        descriptor = real(*arguments)
        if not opened:
            opened.append(descriptor)
            first.__exit__(None, None, None)
        return descriptor

    monkeypatch.setattr("segdeform.files.lock.os.open", open_late)
    with run_lock(tmp_path):
        assert (tmp_path / ".lock").is_file()
        with pytest.raises(RunLockedError), run_lock(tmp_path):
            pass


def test_output_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    with pytest.raises(UsageError, match="another --output"), run_lock(tmp_path / "run"):
        pass


def test_nobody_is_let_in_before_the_first_has_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_PATIENCE", 0.0)
    begun: list[str] = []

    def begin() -> None:
        with pytest.raises(RunLockedError), shared_lock(tmp_path, lambda: begun.append("other")):
            pass
        begun.append("first")

    with shared_lock(tmp_path, begin):
        written = (tmp_path / ".lock").read_bytes()
        (tmp_path / ".lock").write_bytes(b" " + written)
        with shared_lock(tmp_path, lambda: begun.append("second")):
            assert (tmp_path / ".lock").read_bytes() == b" " + written  # it names the first one
    assert begun == ["first"] and not (tmp_path / ".lock").exists()


def test_a_full_disk_does_not_hinder_a_lock_nor_leave_one(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with run_lock(tmp_path / "run"), pytest.raises(RunLockedError), run_lock(tmp_path / "run"):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
