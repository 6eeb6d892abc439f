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
    skipped = {str(path.relative_to(tmp_path)): reason for path, reason in found.skipped}
    assert skipped == {
        ".git": "hidden",
        ".hidden.png": "hidden",
        "pictures.json": ".json is no picture that is read here",
        "z/notes.txt": ".txt is no picture that is read here",
    }


def test_a_named_file_is_always_taken(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt", "x/picture")
    assert names(tmp_path / "notes.txt", tmp_path / "x" / "picture") == ["notes", "picture"]


def test_a_name_does_not_depend_on_what_lies_beside_or_is_given_too(tmp_path: Path) -> None:
    touch(tmp_path, "here/s/1.jpg", "b/2.png", "c.d/e.f.tif")
    alone = find_images([tmp_path / "here"]).pictures
    assert [name for _, name in alone] == ["s/1"]
    touch(tmp_path, "here/s/1.png", "here/s/1.jpg.png", "here/1.jpg", "here/s.jpg")
    inputs = [tmp_path / "b", tmp_path / "here", tmp_path / "c.d", tmp_path / "here" / "1.jpg"]
    together = find_images(inputs).pictures
    assert set(alone) <= set(together)
    assert [name for _, name in together] == ["2", "1", "s", "s/1", "s/1.jpg", "e.f"]


def test_the_folder_here_needs_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "here/1.jpg", "b/2.jpg")
    monkeypatch.chdir(tmp_path / "here")
    assert names(Path(), Path("../b")) == ["1", "2"]


def test_two_pictures_never_have_one_name(tmp_path: Path) -> None:
    """The later one is told, with both names, also where a disk would ignore case."""
    touch(tmp_path, "a.jpg", "a.png", "b.png", "s/C.jpg", "s/c.png", "t/b.webp", "é.png", "é.jpg")
    found = find_images([tmp_path, tmp_path / "t"])
    assert [name for _, name in found.pictures] == ["a", "b", "é", "s/C", "t/b"]
    told = {path.name: reason for path, reason in found.collisions}
    assert told.keys() == {"a.png", "c.png", "é.png"}
    assert f"would be a.png, as that of {tmp_path / 'a.jpg'}: rename" in told["a.png"]
    across = find_images([tmp_path / "t", tmp_path])
    assert across.pictures[0] == (tmp_path / "t" / "b.webp", "b")
    assert {path.name for path, _ in across.collisions} == {"a.png", "b.png", "c.png", "é.png"}


def test_a_mask_that_is_there_keeps_its_picture(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "a.png", "b.jpg")
    found = find_images([tmp_path], earlier={"a": str(tmp_path / "a.png"), "b": "/other/b.jpg"})
    assert found.pictures == [(tmp_path / "a.png", "a"), (tmp_path / "b.jpg", "b")]
    assert [path.name for path, _ in found.collisions] == ["a.jpg"]


def test_a_picture_named_twice_is_taken_once(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "a/2.jpg")
    again = tmp_path / "a" / ".." / "a" / "2.jpg"
    assert names(tmp_path / "a", tmp_path / "a", again) == ["1", "2"]


def test_links_in_circles_end(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "other/2.jpg")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "self.png").symlink_to("self.png")
    (tmp_path / "linked").symlink_to(tmp_path / "other")
    found = find_images([tmp_path])
    assert [name for _, name in found.pictures] == ["a/1", "a/self", "other/2"]
    assert {path.name for path, _ in found.skipped} == {"up", "linked"}
    assert {why for _, why in found.skipped} == {"a link to a folder: give the folder itself"}
    assert names(tmp_path / "linked") == ["2"]


def test_own_outputs_are_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", "out/masks/1.png", "out/masks/s/2.png", "out/overview.png")
    own = (tmp_path / "out" / "masks", tmp_path / "out" / "overview.png")
    assert names(tmp_path, exclude=own) == ["1"]
    assert names(tmp_path / "out" / "masks" / "s", exclude=own) == []
    (tmp_path / "link").symlink_to(tmp_path / "out")
    linked = (tmp_path / "link" / "masks", tmp_path / "link" / "overview.png")
    assert names(tmp_path, exclude=linked) == ["1"]


def test_earlier_predictions_are_no_pictures(tmp_path: Path) -> None:
    touch(tmp_path, "out/masks/1.png", "out/masks/s/2.png", "out/overlays/1.png", "out/mine.jpg")
    touch(tmp_path, "out/overview.png", "foreign/masks/3.png", "foreign/summary.json")
    (tmp_path / "out" / "summary.json").write_text('{"format": "segdeform-prediction"}')
    found = find_images([tmp_path])
    assert [name for _, name in found.pictures] == ["foreign/masks/3", "out/mine"]
    assert found.own == [tmp_path / "out"]
    for inside in ("masks", "masks/s", "overlays"):
        assert find_images([tmp_path / "out" / inside]).own == [tmp_path / "out"]
        assert names(tmp_path / "out" / inside) == []
    assert names(tmp_path / "out" / "masks" / "1.png") == ["1"]  # it was named


def test_a_missing_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere: no such file or folder"):
        find_images([tmp_path, tmp_path / "nowhere"])


def test_names_that_only_a_careful_reader_tells_apart_are_one(tmp_path: Path) -> None:
    """As disks and people take them: in another case, or an accent put together otherwise."""
    touch(tmp_path, "A.png", "a.jpg", "e\u0301.png", "\u00e9.jpg")
    found = find_images([tmp_path], earlier={"a": str(tmp_path.resolve() / "a.jpg")})
    assert [path.name for path, _ in found.pictures] == ["a.jpg", "e\u0301.png"]
    assert [path.name for path, _ in found.collisions] == ["A.png", "\u00e9.jpg"]
    touch(tmp_path, "b.png", "B.jpg")
    named, earlier = (
        [tmp_path / "b.png", tmp_path / "B.jpg"],
        {"B": str(tmp_path.resolve() / "B.jpg")},
    )
    assert find_images(named, earlier=earlier).pictures == [(tmp_path / "B.jpg", "B")]
