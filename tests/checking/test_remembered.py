"""What is remembered between checks, and what never is."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdeform.checking import check
from segdeform.checking.report import Report
from segdeform.data import list_dataset


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three pairs, written an hour ago."""
    rng = np.random.default_rng(0)
    root = tmp_path / "set"
    for kind in ("images", "masks"):
        (root / "train" / kind).mkdir(parents=True)
    for name in "abc":
        picture = rng.integers(0, 256, (8, 10, 3), np.uint8)
        Image.fromarray(picture).save(root / "train" / "images" / f"{name}.png")
        labels = rng.integers(0, 3, (8, 10), np.uint8)
        Image.fromarray(labels).save(root / "train" / "masks" / f"{name}.png")
    (root / "classes.txt").write_text("x\ny\nz\n")
    for path in root.rglob("*.png"):
        age(path)
    return root


def age(path: Path, seconds: float = 3600) -> None:
    before = time.time() - seconds
    os.utime(path, (before, before))


def checked(root: Path) -> Report:
    return check([list_dataset("folder", root, "train")])


def verdict(report: Report) -> tuple[object, ...]:
    return report.findings, report.splits, report.cause


def test_the_second_check_reads_nothing_and_says_the_same(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = checked(root)
    assert (first.files, first.reused) == (6, 0)

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a known file is read again")

    monkeypatch.setattr("segdeform.checking.scan.picture_facts", fail)
    monkeypatch.setattr("segdeform.checking.scan.mask_facts", fail)
    monkeypatch.setattr("segdeform.checking.remembered.sha256", fail)
    second = checked(root)
    assert second.reused == 6
    assert verdict(second) == verdict(first)


def test_a_changed_file_is_read_again_and_a_touched_one_compared_by_content(root: Path) -> None:
    checked(root)
    mask = root / "train" / "masks" / "b.png"
    age(mask, 1800)
    assert checked(root).reused == 6
    labels = np.full((8, 10), 9, np.uint8)
    Image.fromarray(labels).save(mask)
    age(mask, 900)
    report = checked(root)
    assert report.reused == 5
    (error,) = report.errors
    assert (error.kind, error.place and error.place.value) == ("label-outside", 9)


def test_other_classes_change_the_verdict_on_known_files(root: Path) -> None:
    assert not checked(root).errors
    (root / "classes.txt").write_text("x\ny\n")
    report = checked(root)
    assert report.reused == 6
    values = {(error.kind, error.place and error.place.value) for error in report.errors}
    assert values == {("label-outside", 2)}


def test_a_file_written_just_now_is_compared_by_content(root: Path) -> None:
    mask = root / "train" / "masks" / "a.png"
    status = mask.stat()
    now = time.time_ns()
    os.utime(mask, ns=(now, now))
    checked(root)
    content = bytearray(mask.read_bytes())
    content[len(content) // 2] ^= 0xFF
    mask.write_bytes(content)
    os.utime(mask, ns=(now, now))  # the same size and time, other bytes
    assert mask.stat().st_size == status.st_size
    assert [finding.kind for finding in checked(root).errors] == ["unreadable"]


def test_damaged_files_are_never_remembered(root: Path) -> None:
    mask = root / "train" / "masks" / "a.png"
    whole = mask.read_bytes()
    mask.write_bytes(whole[:-30])
    age(mask)
    assert checked(root).errors
    mask.write_bytes(whole)
    age(mask)
    assert not checked(root).errors


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content.replace(b'"height":8', b'"height":9'),
        lambda content: b"\xff\xfe" + content,
        lambda content: content.replace(b"segdeform-check 5", b"segdeform-check 4"),
        lambda content: b"[" * 100_000,
    ],
)
def test_a_damaged_cache_is_made_anew_in_silence(
    root: Path, cache: Path, capfd: pytest.CaptureFixture[str], damage: object
) -> None:
    first = checked(root)
    (path,) = cache.rglob("*.json")
    assert callable(damage)
    changed = damage(path.read_bytes())
    assert changed != path.read_bytes()
    path.write_bytes(changed)
    report = checked(root)
    assert report.reused == 0
    assert verdict(report) == verdict(first)
    assert checked(root).reused == 6
    assert capfd.readouterr() == ("", "")


def test_without_a_place_for_the_cache_the_check_goes_on(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert not checked(root).errors
    assert checked(root).reused == 0


def test_nothing_is_written_into_the_data_set_and_gone_files_are_forgotten(
    root: Path, cache: Path
) -> None:
    before = sorted(root.rglob("*"))
    checked(root)
    assert sorted(root.rglob("*")) == before
    for kind in ("images", "masks"):
        (root / "train" / kind / "c.png").unlink()
        age(root / "train" / kind / "a.png", 60)
    checked(root)
    (path,) = cache.rglob("*.json")
    assert b"a.png" in path.read_bytes() and b"c.png" not in path.read_bytes()


def test_a_file_that_is_far_too_large_is_not_read_for_its_sum(root: Path) -> None:
    """Else the check of a sparse terabyte would take an hour to say that it is no picture."""
    path = root / "train" / "images" / "a.png"
    with path.open("wb") as file:
        file.truncate(2**40)
    (finding,) = checked(root).findings
    assert (finding.kind, finding.file) == ("unreadable", path)
