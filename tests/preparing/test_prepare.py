from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from segdeform.errors import DataError, UsageError
from segdeform.preparing.prepare import prepare
from segdeform.preparing.shapes import write_shapes


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_shapes(tmp_path / "data", train=2, val=1, size=32)
    return tmp_path / "data"


def test_a_data_set_in_place_is_verified_and_summed_up(root: Path) -> None:
    summary = prepare("folder", root)
    assert summary.splits == {"train": 2, "val": 1}
    assert len(summary.classes) == 7
    assert summary.root == root
    assert len(summary.messages) == 1


def test_a_missing_split_is_a_message_and_two_are_an_error(root: Path) -> None:
    shutil.rmtree(root / "val")
    summary = prepare("folder", root)
    assert summary.splits == {"train": 2}
    assert "no split 'val'" in summary.messages[-1]
    shutil.rmtree(root / "train")
    with pytest.raises(DataError, match="no split 'train'"):
        prepare("folder", root)


def test_damage_in_any_split_is_found(root: Path) -> None:
    picture = root / "val" / "images" / "00000.png"
    picture.write_bytes(picture.read_bytes()[:200])
    with pytest.raises(DataError, match=r"val/images/00000\.png"):
        prepare("folder", root)


@pytest.mark.parametrize(
    ("name", "source"), [("camvid", "mi.eng.cam.ac.uk"), ("cityscapes", "www.cityscapes-dataset")]
)
def test_an_absent_data_set_is_told_with_layout_and_source(
    name: str, source: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=source) as caught:
        prepare(name, tmp_path / "none")
    assert "xpected ROOT/" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("option", [{"download": True}, {"archives": [Path("x.zip")]}])
def test_archives_are_for_those_that_come_in_some(
    option: dict[str, Any], root: Path, tmp_path: Path
) -> None:
    for name in ("shapes", "camvid", "folder"):
        with pytest.raises(UsageError, match=f"not for {name}"):
            prepare(name, root, **option)


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Did you mean 'shapes'"):
        prepare("shape", tmp_path / "x")


def test_shapes_are_generated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"train": 3, "val": 2, "size": 32}
    monkeypatch.setattr(
        "segdeform.preparing.prepare.write_shapes",
        lambda root, **options: write_shapes(root, **options, **sizes),
    )
    heard: list[tuple[str, int, int]] = []
    first = prepare("shapes", tmp_path / "s", progress=lambda *now: heard.append(now))
    assert first.splits == {"train": 3, "val": 2}
    assert ("drawing", 5, 5) in heard
    assert heard[-1] == ("reading val", 2, 2)
    assert first.messages[0] == "generated"
    assert "already" in prepare("shapes", tmp_path / "s").messages[0]
