"""Atomic writing: the old file or the new one, never a part, never a leftover."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from segdeform.errors import ResourceError, UsageError
from segdeform.files.atomic import atomic_path, write_bytes, write_json, write_text

FULL_DISK = Path("/dev/full")


def test_contents_arrive_and_nothing_else_stays(tmp_path: Path) -> None:
    write_bytes(tmp_path / "new" / "a.bin", b"\0\1\2")
    write_text(tmp_path / "new" / "a.txt", "é\n")
    write_json(tmp_path / "new" / "a.json", {"b": [1, None]})
    assert (tmp_path / "new" / "a.bin").read_bytes() == b"\0\1\2"
    assert (tmp_path / "new" / "a.txt").read_bytes() == "é\n".encode()
    assert json.loads((tmp_path / "new" / "a.json").read_text()) == {"b": [1, None]}
    assert len(list((tmp_path / "new").iterdir())) == 3


def test_failure_in_the_middle_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(KeyError), atomic_path(target) as temporary:
        temporary.write_text("half of the n")
        assert target.read_text() == "old"
        assert temporary.suffix == ".txt"
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert target.read_text() == "old"


def test_json_refuses_nan_and_keeps_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", math.nan)
    assert (tmp_path / "a.json").read_text() == "1\n"


def test_file_names_that_are_no_utf8_survive_json(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    write_json(tmp_path / "a.json", [name])
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == [name]


def test_a_full_disk_is_a_resource_error(tmp_path: Path) -> None:
    """A limit on the file size stands in for the full disk: the write fails half-way."""
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    old_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    old_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old_limit[1]))
    try:
        with pytest.raises(ResourceError, match=r"a\.bin: cannot be written"):
            write_bytes(target, bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old_limit)
        signal.signal(signal.SIGXFSZ, old_handler)
    assert target.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_enospc_is_a_resource_error(tmp_path: Path) -> None:
    if not FULL_DISK.exists():
        pytest.skip("this system has no /dev/full")
    with (
        pytest.raises(ResourceError, match="No space left"),
        atomic_path(tmp_path / "a"),
        FULL_DISK.open("wb", buffering=0) as full,
    ):
        full.write(b"x")


def test_a_file_where_a_folder_should_be_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="Choose another output folder"):
        write_text(tmp_path / "file" / "a.txt", "")


def test_a_kill_at_any_moment_leaves_one_whole_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    code = (
        "import sys, pathlib; from segdeform.files.atomic import write_text\n"
        "path = pathlib.Path(sys.argv[1]); print('go', flush=True)\n"
        "while True:\n"
        "    for letter in 'ab': write_text(path, letter * 300_000)\n"
    )
    for delay in (0.0, 0.003, 0.02):
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        child.stdout.readline()
        while not target.exists():
            pass
        time.sleep(delay)
        child.kill()
        child.wait()
        child.stdout.close()
        text = target.read_text()
        assert len(text) == 300_000
        assert len(set(text)) == 1
