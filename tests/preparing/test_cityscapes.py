from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cityscapesscripts.download import downloader

from segdeform.data import load_dataset
from segdeform.errors import DataError, SegdeformError
from segdeform.preparing.prepare import prepare
from tests.data.cityscapes_frames import write_frames


@pytest.fixture
def zips(tmp_path: Path) -> list[Path]:
    """Both archives as Cityscapes gives them out, with four frames in train and two in val."""
    tree = write_frames(tmp_path / "tree", splits=("train", "val", "test"), size=(32, 64))
    paths = []
    for part in ("leftImg8bit", "gtFine"):
        paths.append(tmp_path / f"{part}_trainvaltest.zip")
        with zipfile.ZipFile(paths[-1], "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("README", "read me")
            archive.writestr("license.txt", "terms")
            for path in sorted((tree / part).rglob("*")):
                archive.write(path, path.relative_to(tree))
    return paths


def files(root: Path) -> dict[str, int]:
    return {
        path.relative_to(root).as_posix(): path.stat().st_mtime_ns
        for path in root.rglob("*")
        if path.is_file()
    }


def test_zips_become_a_tree_once(zips: list[Path], tmp_path: Path) -> None:
    root = tmp_path / "root"
    summary = prepare("cityscapes", root, archives=zips)
    assert summary.splits == {"train": 4, "val": 2}
    assert "note: train has 4 of its 2,975 pictures" in summary.messages
    assert sorted(path.name for path in root.iterdir()) == ["gtFine", "leftImg8bit"]
    before = files(root)
    assert len(before) == len(files(tmp_path / "tree"))
    assert prepare("cityscapes", root).messages[0] == "was there already, nothing written"
    prepare("cityscapes", root, archives=zips)
    assert files(root) == before


def test_one_zip_alone_says_what_lacks(zips: list[Path], tmp_path: Path) -> None:
    root = tmp_path / "root"
    with pytest.raises(DataError, match=r"root: holds no gtFine; .*--archive"):
        prepare("cityscapes", root, archives=zips[:1])
    assert prepare("cityscapes", root, archives=zips[1:]).splits == {"train": 4, "val": 2}


def test_a_tree_with_holes_is_filled(zips: list[Path], tmp_path: Path) -> None:
    root = tmp_path / "root"
    prepare("cityscapes", root, archives=zips)
    hole = root / "gtFine/val/munster/munster_000001_000019_gtFine_labelIds.png"
    content = hole.read_bytes()
    hole.unlink()
    prepare("cityscapes", root, archives=zips)
    assert hole.read_bytes() == content


def test_ctrl_c_leaves_no_partial_tree(zips: list[Path], tmp_path: Path) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        if what.startswith("unpacking left") and 2 * done > total:
            raise KeyboardInterrupt

    root = tmp_path / "root"
    with pytest.raises(SegdeformError) as caught:
        prepare("cityscapes", root, archives=zips, progress=interrupt)
    assert caught.value.exit_code == 130
    assert [path.name for path in root.iterdir()] == [".segdeform-unpacking"]
    heard: list[int] = []

    def hear(what: str, done: int, total: int) -> None:
        if what.startswith("unpacking left"):
            heard.append(done)

    assert prepare("cityscapes", root, archives=zips, progress=hear).splits["train"] == 4
    assert len(heard) < 8
    assert sorted(path.name for path in root.iterdir()) == ["gtFine", "leftImg8bit"]


def test_nothing_at_all_names_the_ways(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no gtFine and no leftImg8bit.*--archive.*--download"):
        prepare("cityscapes", tmp_path)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("data/x.png", "")
    with pytest.raises(DataError, match=r"other\.zip: holds neither"):
        prepare("cityscapes", tmp_path / "root", archives=[tmp_path / "other.zip"])
    assert list((tmp_path / "root").iterdir()) == []


def copy_packages(zips: list[Path]) -> Callable[..., None]:
    def download_packages(*, package_names: list[str], destination_path: str, **rest: Any) -> None:
        for path in zips:
            if path.name in package_names:
                Path(destination_path, path.name).write_bytes(path.read_bytes())

    return download_packages


def test_the_official_script_downloads(
    zips: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segdeform.preparing.cityscapes._NEED", 1)
    monkeypatch.setattr(downloader, "login", object)
    monkeypatch.setattr(downloader, "download_packages", copy_packages(zips))
    root = tmp_path / "root"
    assert prepare("cityscapes", root, download=True).splits == {"train": 4, "val": 2}
    assert sorted(path.name for path in (root / "archives").iterdir()) == [
        "gtFine_trainvaltest.zip",
        "leftImg8bit_trainvaltest.zip",
    ]
    monkeypatch.setattr(downloader, "login", lambda: pytest.fail("nothing lacks"))
    assert prepare("cityscapes", root, download=True).splits["val"] == 2


def test_the_disk_is_looked_at_before_the_account_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segdeform.preparing.cityscapes._NEED", 1 << 60)
    monkeypatch.setattr(downloader, "login", lambda: pytest.fail("the disk is too small"))
    with pytest.raises(SegdeformError, match="of disk") as caught:
        prepare("cityscapes", tmp_path / "root", download=True)
    assert caught.value.exit_code == 7


def test_a_zip_put_into_archives_replaces_what_a_download_left_of_it(
    zips: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segdeform.preparing.cityscapes._NEED", 1)
    monkeypatch.setattr(downloader, "login", object)
    monkeypatch.setattr(downloader, "download_packages", copy_packages(zips[1:]))
    archives = tmp_path / "root" / "archives"
    (archives / ".unfinished").mkdir(parents=True)
    (archives / ".unfinished" / zips[0].name).write_bytes(zips[0].read_bytes()[:100])
    zips[0].rename(archives / zips[0].name)
    assert prepare("cityscapes", tmp_path / "root", download=True).splits["val"] == 2
    assert sorted(path.name for path in archives.iterdir()) == sorted(path.name for path in zips)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (Exception("Bad credentials."), "Bad credentials"),
        (Exception("MD5 sum of downloaded file does not match."), "MD5 sum"),
        (SystemExit(1), "ended with: 1"),
        (AssertionError(), "AssertionError"),
        (ConnectionError("no route"), "no route"),
        (EOFError(), "asks for an account"),
    ],
)
def test_what_the_official_script_ends_with_is_told(
    error: BaseException, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("segdeform.preparing.cityscapes._NEED", 1)
    monkeypatch.setattr(downloader, "login", fail)
    with pytest.raises(SegdeformError, match=text) as caught:
        prepare("cityscapes", tmp_path / "root", download=True)
    assert caught.value.exit_code == 12
    assert "\n" not in str(caught.value)


def test_a_test_split_without_masks_can_be_listed(zips: list[Path], tmp_path: Path) -> None:
    root = tmp_path / "root"
    prepare("cityscapes", root, archives=zips)
    for path in (root / "gtFine" / "test").rglob("*.*"):
        path.unlink()
    assert [sample.mask for sample in load_dataset("cityscapes", root, "test").samples] == [
        None
    ] * 2
