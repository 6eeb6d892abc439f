"""What earlier predictions left in a folder goes where it does not hold, and stays where it does.

The truth is always a prediction of the same pictures into a new folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from segdeform.errors import InterruptedByUserError
from segdeform.prediction import predict as module
from segdeform.prediction.predict import Shard, predict
from segdeform.prediction.records import Part, read_done, read_failures
from segdeform.results.outputs import DEFAULT
from tests.prediction.test_frames import damage, save_pages
from tests.prediction.test_predict import save_picture, segmenter, tree
from tests.prediction.test_records import open_beside
from tests.prediction.test_video import save_video

__all__ = ["segmenter"]  # a fixture


def check_as_new(out: Path, segmenter: Any, inputs: list[Path], **options: Any) -> None:
    """Compares a folder with what a first prediction makes, but for what it tells of others."""
    fresh = out.with_name(f"{out.name}-new")
    predict(segmenter, inputs, fresh, **options)
    if "overlays" not in options.get("outputs", DEFAULT):  # it shows overlays of some other time
        (out / "overview.png").unlink(missing_ok=True)
    assert tree(out) | {"summary.json": ""} == tree(fresh) | {"summary.json": ""}
    found, right = (json.loads((f / "summary.json").read_text()) for f in (out, fresh))
    assert {**found, "folders": 0} == {**right, "folders": 0}


@pytest.mark.parametrize("change", ["picture", "model"])
def test_kinds_not_asked_for_now_go_with_what_they_were_of(
    segmenter: Any, tmp_path: Path, change: str
) -> None:
    picture, out = tmp_path / "a.png", tmp_path / "out"
    save_picture(picture)
    predict(segmenter, [picture], out, outputs=["masks", "json", "polygons"])
    if change == "picture":
        save_picture(picture, 1, (9, 31))
    else:
        segmenter.info = {"sha256": "other"}
    predict(segmenter, [picture], out, outputs=["overlays"])
    check_as_new(out, segmenter, [picture], outputs=["overlays"])


def test_kinds_of_the_same_picture_stay_also_after_a_kill(
    segmenter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, out = tmp_path / "in", tmp_path / "out"
    for k in range(4):
        save_picture(pictures / f"{k}.png", k)
    save_video(pictures / "v.mp4", 3)
    predict(segmenter, [pictures], out, outputs=["masks", "json"])
    left = 2

    def dies(*given: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyError("as if killed")

    with monkeypatch.context() as patch:
        patch.setattr(module, "remove_other_outputs", dies)
        with pytest.raises(KeyError):
            predict(segmenter, [pictures], out, outputs=["overlays"])
    with pytest.raises(InterruptedByUserError):
        predict(segmenter, [pictures], out, outputs=["overlays"], stop=lambda: True)
    predict(segmenter, [pictures], out, outputs=["overlays"])
    assert predict(segmenter, [pictures], out, outputs=["masks", "json", "overlays"]).kept == 5
    check_as_new(out, segmenter, [pictures], outputs=["masks", "json", "overlays"])


def test_a_picture_that_fails_is_forgotten_wholly(
    segmenter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, out = tmp_path / "in", tmp_path / "out"
    save_picture(pictures / "a.png")
    save_picture(pictures / "b.png", 1)
    predict(segmenter, [pictures], out, outputs=["masks"])

    def ends(*given: Any, **options: Any) -> Any:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("segdeform.prediction.writing.write_output", ends)
        assert len(predict(segmenter, [pictures], out, outputs=["json"]).failed) == 2
    assert not read_done(out) and not list((out / "masks").rglob("*.png"))


def test_a_shorter_video_leaves_nothing_of_the_longer_one(segmenter: Any, tmp_path: Path) -> None:
    video, out = save_video(tmp_path / "v.mp4", 9), tmp_path / "out"
    predict(segmenter, [video], out, outputs=["masks", "overlays", "json"])
    save_video(video, 4, (32, 48))
    predict(segmenter, [video], out, outputs=["masks"])
    check_as_new(out, segmenter, [video], outputs=["masks"])
    predict(segmenter, [video], out, outputs=["json", "overlays"])
    whole = save_video(tmp_path / "v.avi", 6, (48, 64), "MJPG").read_bytes()
    video.write_bytes(whole[: len(whole) // 2])
    summary = predict(segmenter, [video], out, outputs=["masks"])
    assert len(summary.failed) == 1
    check_as_new(out, segmenter, [video], outputs=["masks"])


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("change", ["pages", "page", "model"])
def test_the_other_choice_of_frames_goes_with_what_it_was_of(
    segmenter: Any, tmp_path: Path, first: bool, change: str
) -> None:
    path, out = tmp_path / "s.tif", tmp_path / "out"
    save_pages(path, 5)
    predict(segmenter, [path], out, every_frame=not first)
    if change == "model":
        segmenter.info = {"sha256": "other"}
    else:
        save_pages(path, 2 if change == "pages" else 1, seed=1)
    predict(segmenter, [path], out, every_frame=first)
    check_as_new(out, segmenter, [path], every_frame=first)


def test_a_whole_picture_goes_where_pages_take_its_place(segmenter: Any, tmp_path: Path) -> None:
    path, out = tmp_path / "s.tif", tmp_path / "out"
    save_pages(path, 1)
    predict(segmenter, [path], out, every_frame=True)
    save_pages(path, 3)
    predict(segmenter, [path], out, every_frame=True)
    check_as_new(out, segmenter, [path], every_frame=True)


def test_pages_after_a_damaged_one_go_too(segmenter: Any, tmp_path: Path) -> None:
    path, out = tmp_path / "s.tif", tmp_path / "out"
    save_pages(path, 8)
    damage(path, 4)
    predict(segmenter, [path], out, every_frame=True)
    save_picture(out / "masks" / "s" / "7.png")  # of somebody else
    assert (out / "masks" / "s" / "000007.png").exists()
    save_pages(path, 3)
    predict(segmenter, [path], out, every_frame=True)
    predict(segmenter, [path], tmp_path / "new", every_frame=True)
    expected = tree(tmp_path / "new").keys() | {"masks/s/7.png"}
    assert tree(out).keys() == expected


@pytest.mark.parametrize("beside", [False, True])
def test_what_is_noted_is_known_by_whatever_path(
    segmenter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: bool
) -> None:
    pictures, out = tmp_path / "in", tmp_path / "out"
    for k in range(3):
        save_picture(pictures / f"{k}.png", k)
    save_pages(pictures / "s.tif", 3)
    damage(pictures / "s.tif", 1)
    whole = (pictures / "1.png").read_bytes()
    (pictures / "1.png").write_bytes(b"broken")
    monkeypatch.chdir(tmp_path)
    assert len(predict(segmenter, [Path("in")], out, every_frame=True).failed) == 2
    (pictures / "1.png").write_bytes(whole)
    save_pages(pictures / "s.tif", 3, seed=1)
    if beside:
        with open_beside(out):
            for number in (1, 0):
                predict(segmenter, [pictures], out, every_frame=True, shard=Shard(number, 2))
    assert predict(segmenter, [pictures], out, every_frame=True).kept == (6 if beside else 2)
    check_as_new(out, segmenter, [pictures], every_frame=True)


def test_facts_tell_the_path_given_now(
    segmenter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture, out = tmp_path / "a.png", tmp_path / "out"
    save_picture(picture)
    monkeypatch.chdir(tmp_path)
    both = ["masks", "json"]
    predict(segmenter, [Path("a.png")], out, outputs=both)
    before = tree(out)
    assert predict(segmenter, [picture], out, outputs=["masks"]).kept == 1
    assert tree(out)["json/a.json"] == before["json/a.json"]
    assert predict(segmenter, [Path("a.png")], out, outputs=both).kept == 1
    assert tree(out) == before
    assert predict(segmenter, [picture], out, outputs=both).kept == 0
    check_as_new(out, segmenter, [picture], outputs=both)


def test_pictures_without_a_name_of_their_own_are_in_the_failures(
    segmenter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, out = tmp_path / "in", tmp_path / "out"
    save_picture(pictures / "x.jpg")
    save_picture(pictures / "x.png", 1)
    save_video(pictures / "v.mp4", 3)
    save_picture(pictures / "v" / "000000.png")
    (pictures / "b.png").write_bytes(b"broken")
    monkeypatch.chdir(tmp_path)
    predict(segmenter, [Path("in")], out)
    for number in (None, 1, 0):
        if number is None:
            summary = predict(segmenter, [pictures], out)
        else:
            with open_beside(out):
                predict(segmenter, [pictures], out, shard=Shard(number, 2))
        told = {part.picture: failure.reason for part, failure in read_failures(out).items()}
        assert told == {str(source): reason for source, reason in summary.failed}
        assert len(told) == 3
    predict(segmenter, [pictures], out)
    check_as_new(out, segmenter, [pictures])
    (pictures / "x.png").rename(pictures / "y.png")
    (pictures / "x.jpg").rename(pictures / "x.png")
    (out / "masks" / "x.png").unlink()
    (out / "overlays" / "x.jpg").unlink()
    predict(segmenter, [pictures], out)
    failed = {Path(part.picture).name for part in read_failures(out)}
    assert failed == {"000000.png", "b.png"}


def test_a_shard_beside_others_tells_no_failure_that_is_mended(
    segmenter: Any, tmp_path: Path
) -> None:
    pictures, out = tmp_path / "in", tmp_path / "out"
    save_picture(pictures / "a.png")
    save_pages(pictures / "b.tif", 3)
    whole = (pictures / "b.tif").read_bytes()
    (pictures / "b.tif").write_bytes(b"II*\0nothing")
    predict(segmenter, [pictures], out, every_frame=True)
    assert list(read_failures(out)) == [Part(str(pictures / "b.tif"))]
    (pictures / "b.tif").write_bytes(whole)
    with open_beside(out):
        summary = predict(segmenter, [pictures], out, every_frame=True, shard=Shard(1, 2))
    assert (len(summary.done), summary.failed) == (4, [])
    assert not read_failures(out)


def test_a_failure_that_was_edited_costs_nothing(segmenter: Any, tmp_path: Path) -> None:
    picture, out = tmp_path / "a.png", tmp_path / "out"
    save_picture(picture)
    predict(segmenter, [picture], out)
    (out / "failures.jsonl").write_text('{"picture": "a\\u0000/b", "reason": "no"}\n')
    assert predict(segmenter, [picture], out).kept == 1
    assert list(read_failures(out)) == [Part("a\0/b")]
