"""Which pictures are found, in which order, and what their outputs are called."""

from __future__ import annotations

from pathlib import Path

import pytest

from segdeform.errors import UsageError
from segdeform.prediction.inputs import find_images


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def names(*inputs: Path, exclude: tuple[Path, ...] = ()) -> list[str]:
    return [name for _, name in find_images(inputs, exclude).pictures]


def test_a_folder_is_searched_in_a_fixed_order(tmp_path: Path) -> None:
    touch(tmp_path, "b.JPG", "a.png", "sub/deep/c.webp", "sub/a.tif", "z/notes.txt", ".hidden.png")
    touch(tmp_path, ".git/x.png", "pictures.json")
    found = find_images([tmp_path])
    assert [name for _, name in found.pictures] == ["a", "b", "sub/a", "sub/deep/c"]
    assert [source for source, _ in found.pictures][1] == tmp_path / "b.JPG"
    skipped = {str(path.relative_to(tmp_path)) for path in found.skipped}
    assert skipped == {".git", ".hidden.png", "pictures.json", "z/notes.txt"}


def test_a_named_file_is_always_taken(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt", "x/picture")
    assert names(tmp_path / "notes.txt", tmp_path / "x" / "picture") == ["notes", "picture"]


def test_several_folders_keep_apart(tmp_path: Path) -> None:
    touch(tmp_path, "a/imgs/1.jpg", "b/imgs/1.jpg", "c/1.jpg", "d/1.jpg")
    inputs = [tmp_path / "a" / "imgs", tmp_path / "b" / "imgs", tmp_path / "c"]
    assert names(*inputs) == ["imgs/1", "imgs-2/1", "c/1"]
    assert names(*inputs, tmp_path / "d" / "1.jpg") == ["imgs/1", "imgs-2/1", "c/1", "1"]


def test_the_folder_here_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "here/1.jpg", "b/1.jpg")
    monkeypatch.chdir(tmp_path / "here")
    assert names(Path(), Path("../b")) == ["here/1", "b/1"]
    assert names(Path()) == ["1"]


def test_equal_names_keep_their_suffix(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "a.png", "b.png", "s/C.jpg", "s/c.png", "s/c.tif")
    assert names(tmp_path) == ["a.jpg", "a.png", "b", "s/C.jpg", "s/c.png", "s/c.tif"]


def test_names_that_stay_equal_are_numbered(tmp_path: Path) -> None:
    touch(tmp_path, "x/1.jpg", "y/1.JPG", "z/1.jpg", "z/1.png")
    files = [tmp_path / "x/1.jpg", tmp_path / "y/1.JPG", tmp_path / "z/1.jpg", tmp_path / "z/1.png"]
    assert names(*files) == ["1", "1-2", "1-3", "1.png"]


def test_no_two_names_are_equal_whatever_the_files_are_called(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "a.png", "a.jpg.png", "A.JPG.tif", "a.jpg-2.png", "é.png", "é.jpg")
    found = names(tmp_path)
    assert len({name.casefold() for name in found}) == len(found) == 7


def test_a_picture_named_twice_is_taken_once(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "a/2.jpg")
    again = tmp_path / "a" / ".." / "a" / "2.jpg"
    assert names(tmp_path / "a", tmp_path / "a", again) == ["a/1", "a/2"]


def test_links_in_circles_end(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "other/2.jpg")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "self.png").symlink_to("self.png")
    (tmp_path / "linked").symlink_to(tmp_path / "other")
    found = find_images([tmp_path])
    assert [name for _, name in found.pictures] == ["a/1", "a/self", "other/2"]
    assert {path.name for path in found.skipped} == {"up", "linked"}
    assert names(tmp_path / "linked") == ["2"]


def test_own_outputs_are_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", "out/masks/1.png", "out/masks/s/2.png", "out/overview.png")
    own = (tmp_path / "out" / "masks", tmp_path / "out" / "overview.png")
    assert names(tmp_path, exclude=own) == ["1"]
    assert names(tmp_path / "out" / "masks" / "s", exclude=own) == []
    (tmp_path / "link").symlink_to(tmp_path / "out")
    linked = (tmp_path / "link" / "masks", tmp_path / "link" / "overview.png")
    assert names(tmp_path, exclude=linked) == ["1"]


def test_a_missing_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere: no such file or folder"):
        find_images([tmp_path, tmp_path / "nowhere"])
