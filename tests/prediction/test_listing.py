"""Globs, lists of paths and standard input."""

from __future__ import annotations

import io
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segdeform.cli import main
from segdeform.errors import DataError, UsageError
from segdeform.prediction import listing
from segdeform.prediction.inputs import find_images
from segdeform.prediction.listing import begins_picture, paths_of
from tests.prediction.test_inputs import touch
from tests.prediction.test_predict import save_picture, segmenter

__all__ = ["segmenter"]  # a fixture


def names(*inputs: Path | str) -> list[str]:
    return [name for _, name in find_images([Path(entry) for entry in inputs]).pictures]


@pytest.fixture
def commanded(segmenter: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """`segdeform predict` in a folder of its own."""
    monkeypatch.setattr("segdeform.segmenter.load", lambda *_, **__: segmenter)
    monkeypatch.setattr("segdeform.model_folder.refuse_missing_model", lambda path: None)
    monkeypatch.chdir(tmp_path)
    return lambda *words: main(["predict", "model", *words, "--output", "out"])


def typed(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_a_glob_is_named_below_its_fixed_part(tmp_path: Path) -> None:
    touch(tmp_path, "p/a.jpg", "p/b.png", "p/s/c.jpg", "p/s/t/d.jpg", "p/.h/e.jpg", "p/.f.jpg")
    touch(tmp_path, "p/s/notes.txt", "q/x.jpg")
    assert names(tmp_path / "p" / "**" / "*.jpg") == ["a", "s/c", "s/t/d"]
    assert names(tmp_path / "p" / "*.jpg") == ["a"]
    assert names(tmp_path / "*" / "?.jpg") == ["p/a", "q/x"]
    assert names(tmp_path / "p" / "[ab].*") == ["a", "b"]
    assert names(tmp_path / "p" / "*" / "c.jpg") == ["s/c"]
    assert names(tmp_path / "p" / "s*") == ["s/c", "s/t/d"]  # a folder that matches
    assert names(tmp_path / "p" / ".*.jpg") == []  # what is hidden is no picture
    with pytest.raises(UsageError, match="matches no file"):
        find_images([tmp_path / "p" / "*" / "e.jpg"])  # below a hidden folder
    found = find_images([tmp_path / "p" / "s" / "*"])
    assert [path.name for path, _ in found.skipped] == ["notes.txt"]


def test_a_glob_equals_that_of_pathlib(tmp_path: Path) -> None:
    chance = random.Random(4)
    folders = ["", "a/", "a/b/", "a/b/c/", "b/a/", "ab/", "ab/b/b/"]
    touch(tmp_path, *{f"{chance.choice(folders)}{chance.choice('abc')}.jpg" for _ in range(60)})
    for pattern in (
        "**/*.jpg",
        "*/*.jpg",
        "a/**/b.jpg",
        "**/b/*.jpg",
        "[ab]/?/**/*.jpg",
        "**/b/**/*",
    ):
        wanted = {path for path in tmp_path.glob(pattern) if path.is_file()}
        found = {path for path in listing.matches(tmp_path / pattern) if path.is_file()}
        assert found == wanted, pattern


def test_a_file_that_looks_like_a_glob_or_a_list_is_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "a[1].jpg", "a1.jpg", "b*.jpg", "@c.jpg", "d[x]/e.jpg")
    assert names("a[1].jpg", "b*.jpg", "@c.jpg") == ["a[1]", "b*", "@c"]
    assert names("d[x]") == ["e"]
    (tmp_path / "a[1].jpg").unlink()
    assert names("a[1].jpg") == ["a1"]


def test_links_in_circles_and_own_outputs_are_left_out_of_globs(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "out/masks/1.png", "out/overlays/1.jpg", "out/mine.jpg")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "out" / "summary.json").write_text('{"format": "segdeform-prediction"}')
    found = find_images([tmp_path / "**" / "*.*g"])
    assert [name for _, name in found.pictures] == ["a/1", "out/mine"]
    assert found.own == [tmp_path.resolve() / "out"]
    (tmp_path / "loop").symlink_to("loop")
    assert names(tmp_path / "*" / "1.jpg") == ["a/1"]


def test_a_link_in_a_circle_fails_alone(commanded: Any, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "loop").symlink_to("loop")
    save_picture(tmp_path / "a.png")
    assert commanded("loop", "a.png") == 8
    assert "loop: cannot be read: Too many levels" in capsys.readouterr().err
    assert (tmp_path / "out" / "masks" / "a.png").exists()


def test_folders_that_are_too_deep_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Python's stack ends, which would be in between."""
    touch(tmp_path, "deep/1/2/3/4/5/6/x.png")
    monkeypatch.setattr(listing, "DEEPEST", 6)
    assert names(tmp_path / "deep") == ["1/2/3/4/5/6/x"]
    monkeypatch.setattr(listing, "DEEPEST", 5)
    for source in ("deep", "deep/**/*.png", "deep/*/2/**/x*"):
        with pytest.raises(DataError, match="deep/1: has more than 5 folders in one another"):
            find_images([tmp_path / source])


@pytest.mark.parametrize("digits", [19, 5000])
def test_numbers_without_end_are_refused(commanded: Any, digits: int, capsys: Any) -> None:
    save_picture(Path("a.png"))
    number = "1" * digits
    for option in (f"--window=0,0,5,{number}", f"--shard=1/{number}", f"--threads={number}"):
        assert commanded("a.png", option) == 2
        said = capsys.readouterr().err
        assert option[:7] in said and len(said) < 400


@pytest.mark.parametrize("source", ["no/**/*.jpg", "[z].png", "p/*.tif"])
def test_a_glob_that_matches_nothing_is_refused(
    commanded: Any, tmp_path: Path, source: str, capsys: Any
) -> None:
    touch(tmp_path, "p/a.jpg")
    assert commanded(source) == 2
    assert f"{source}: matches no file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_list_names_pictures_below_its_folder_and_elsewhere(tmp_path: Path) -> None:
    touch(tmp_path, "l/a.jpg", "l/s/b.png", "other/c.jpg", "l/f/d.jpg", "l/f/notes.txt", "l/x.dat")
    lines = [
        "\ufeff# pictures", "", "a.jpg", "./s/b.png", "   ", "s/../s/b.png", "../other/c.jpg",
        str(tmp_path / "l" / "a.jpg"), "f", "x.dat", "no where.jpg",
    ]  # fmt: skip
    (tmp_path / "l" / "list.txt").write_bytes("\r\n".join(lines).encode())
    found = find_images([Path(f"@{tmp_path / 'l' / 'list.txt'}")])
    elsewhere = str(tmp_path / "other" / "c").lstrip("/")
    assert [name for _, name in found.pictures] == [
        *("a", "s/b", elsewhere, "f/d", "x", "no where"),
    ]
    assert [path.name for path, _ in found.skipped] == ["notes.txt"]


@pytest.mark.parametrize(
    "text", ["../../../../etc/passwd", "a/../../b/../../../x.png", "/../up.png"]
)
def test_nothing_is_written_outside_of_the_output(tmp_path: Path, text: str) -> None:
    (tmp_path / "list.txt").write_text(text)
    for name in names(f"@{tmp_path / 'list.txt'}"):
        assert not name.startswith("/") and ".." not in Path(name).parts


@pytest.mark.parametrize(
    ("content", "paths"),
    [
        (b"a.jpg\nb c.jpg\n", ["a.jpg", "b c.jpg"]),
        (b"\xef\xbb\xbfa.jpg\r\n\r\n#b\r\nc", ["a.jpg", "c"]),
        (b"a\nb.jpg\0#c.jpg\0\0d\r\0", ["a\nb.jpg", "#c.jpg", "d\r"]),
        ("grün.jpg\n日.png".encode("utf-16"), ["grün.jpg", "日.png"]),
        (b"\xff.jpg\n", ["\udcff.jpg"]),
        (b"", []),
    ],
)
def test_how_lists_are_written(content: bytes, paths: list[str]) -> None:
    assert paths_of(content, "-") == paths


def test_a_list_that_is_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="is no text"):
        paths_of(b"\xff\xfe\x00\xd8", "@l")
    monkeypatch.setattr(listing, "_LONGEST_LIST", 10)
    (tmp_path / "l").write_text("a.jpg\n" * 3)
    with pytest.raises(UsageError, match="more than 0 MB is not read"):
        find_images([Path(f"@{tmp_path / 'l'}")])
    with pytest.raises(UsageError, match="no such list"):
        find_images([Path(f"@{tmp_path / 'nowhere.txt'}")])
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="the list cannot be read"):
        find_images([Path(f"@{tmp_path / 'folder'}")])


def test_what_a_list_names_and_is_not_there_fails_alone(
    commanded: Any, tmp_path: Path, capsys: Any
) -> None:
    save_picture(tmp_path / "a.png")
    save_picture(tmp_path / "c.png")
    (tmp_path / "loop").symlink_to("loop")
    long = "x" * 300 + ".png"
    (tmp_path / "list.txt").write_text(f"a.png\nmissing.png\nloop/y.png\n{long}\nc.png\n")
    code, err = commanded("@list.txt"), capsys.readouterr().err
    assert code == 8, err
    assert "missing.png: cannot be read: No such file or directory" in err
    assert "3 pictures of 5 failed" in err
    value = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [done["name"] for done in value["done"]] == ["a", "c"] and value["finished"] is True
    save_picture(tmp_path / "missing.png")
    assert commanded("@list.txt") == 8
    assert "2 pictures of 5 failed" in capsys.readouterr().err
    (tmp_path / "list.txt").write_text("# nothing\n")
    assert commanded("@list.txt") == 4
    assert "no pictures in @list.txt" in capsys.readouterr().err


@pytest.mark.parametrize("end", [b"\n", b"\0"])
def test_paths_by_standard_input(
    commanded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: bytes
) -> None:
    for name in ("BM/a.png", "P1.png", "II.png"):
        save_picture(tmp_path / "in" / name)
    paths = sorted(os.fsencode(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
    typed(monkeypatch, b"".join(path + end for path in paths))
    assert commanded("-") == 0
    masks = sorted(
        str(p.relative_to(tmp_path / "out/masks")) for p in tmp_path.glob("out/masks/**/*.png")
    )
    assert masks == ["in/BM/a.png", "in/II.png", "in/P1.png"]


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "gif", "webp", "bmp", "ppm", "pgm"])
def test_a_picture_by_standard_input(
    commanded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, capsys: Any
) -> None:
    frame = Image.fromarray(np.full((20, 24, 3), (9, 9, 250), np.uint8))
    path = tmp_path / f"x.{suffix}"
    frame.convert("L" if suffix == "pgm" else "RGB").save(path)
    content = path.read_bytes()
    path.unlink()
    for _ in range(2):
        typed(monkeypatch, content)
        assert commanded("-") == 0
        mask = np.asarray(Image.open(tmp_path / "out" / "masks" / "stdin.png"))
        assert mask.shape == (20, 24) and (suffix == "pgm" or (mask == 2).all())
    assert "1 of them before" in capsys.readouterr().out
    other = io.BytesIO()
    Image.new("RGB", (5, 7), (250, 0, 0)).save(other, "PNG")
    typed(monkeypatch, other.getvalue())
    assert commanded("-") == 2  # another one would take its place
    assert "another picture from standard input" in capsys.readouterr().err
    assert np.asarray(Image.open(tmp_path / "out" / "masks" / "stdin.png")).shape == (20, 24)
    typed(monkeypatch, other.getvalue())
    assert commanded("-", "--overwrite") == 0
    assert np.asarray(Image.open(tmp_path / "out" / "masks" / "stdin.png")).shape == (7, 5)
    typed(monkeypatch, other.getvalue()[:40])
    assert commanded("-", "--overwrite") == 8
    assert "/dev/stdin: damaged or cut short" in capsys.readouterr().err


def test_standard_input_that_is_empty_or_endless(
    commanded: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    typed(monkeypatch, b"")
    assert commanded("-") == 4
    monkeypatch.setattr("sys.stdin", None)  # as of <&-
    assert commanded("-") == 2
    assert "standard input is closed" in capsys.readouterr().err
    with os.fdopen(os.open(os.devnull, os.O_WRONLY), "rb") as stream:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(stream))
        assert commanded("-") == 2
    assert "standard input cannot be read: Bad file descriptor" in capsys.readouterr().err
    monkeypatch.setattr(listing, "_LARGEST_PICTURE", 1000)
    typed(monkeypatch, b"\xff\xd8\xff" + bytes(2000))
    assert commanded("-") == 2
    assert "longer than any picture" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert commanded("-") == 2
    assert "cannot share standard input" in capsys.readouterr().err


def test_paths_are_not_taken_for_pictures() -> None:
    for text in (b"BMW/1.jpg\nBMW/2.jpg", b"P5.jpg\n", b"II.tif\nMM.tif\n", b"RIFF.avi\nand more"):
        assert not begins_picture(text[:16])
