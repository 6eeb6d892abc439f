"""Pictures of several frames or pages with --frames all: each is a picture of its own."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from segdeform.cli import main
from segdeform.errors import InterruptedByUserError
from segdeform.prediction.pace import Pace
from segdeform.prediction.predict import Shard, predict
from segdeform.prediction.records import Failure, Part, read_done, read_failures
from tests.prediction.test_predict import Reddest, save_picture, segmenter, tree

__all__ = ["segmenter"]  # a fixture


def save_pages(path: Path, count: int, seed: int = 0, size: tuple[int, int] = (10, 14)) -> Any:
    path.parent.mkdir(parents=True, exist_ok=True)
    pages = np.random.default_rng(seed).integers(0, 256, (count, *size, 3), np.uint8)
    tifffile.imwrite(path, pages, photometric="rgb", compression="deflate", metadata=None)
    return pages


def damage(path: Path, page: int) -> None:
    with tifffile.TiffFile(path) as file:
        offset = file.pages[page].aspage().dataoffsets[0]
    content = bytearray(path.read_bytes())
    content[offset : offset + 9] = b"\xff" * 9
    path.write_bytes(content)


def mask(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def labels(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(pixels[..., [1, 0, 2]].argmax(-1))


def test_every_page_has_its_mask(segmenter: Any, tmp_path: Path) -> None:
    pages = save_pages(tmp_path / "in" / "s" / "a.tif", 4)
    save_picture(tmp_path / "in" / "b.png", 1)
    steps: list[tuple[int, int]] = []
    out = tmp_path / "out"
    summary = predict(
        segmenter,
        [tmp_path / "in"],
        out,
        every_frame=True,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert [(d.name, d.frame, d.frames) for d in summary.done] == [
        ("b", None, 1),
        *((f"s/a/{k:06d}", k, 4) for k in range(4)),
    ]
    assert steps[-1] == (5, 5) and len(steps) == 5
    for number, page in enumerate(pages):
        np.testing.assert_array_equal(mask(out / f"masks/s/a/{number:06d}.png"), labels(page))
        assert (out / f"overlays/s/a/{number:06d}.jpg").is_file()
    value = json.loads((out / "summary.json").read_text())
    assert value["frames"] == "all" and [d["frame"] for d in value["done"]] == [None, 0, 1, 2, 3]
    assert value["sources"].keys() == {"b", "s/a"}


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.mpo"])
def test_every_frame_of_an_animation(segmenter: Any, tmp_path: Path, name: str) -> None:
    """A small patch wanders over a green picture: composed, the rest stays green."""
    frames, count = [], 3 if name == "a.mpo" else 5  # of which Pillow writes no more rightly
    for k in range(count):
        pixels = np.full((30, 40, 3), (0, 200, 0), np.uint8)
        pixels[8:16, 8 * k : 8 * k + 8] = (200, 0, 0) if k % 2 else (0, 0, 200)
        frames.append(Image.fromarray(pixels))
    more: dict[str, Any] = {"quality": 95, "subsampling": 0} if name == "a.mpo" else {}
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **more)
    summary = predict(segmenter, [tmp_path / name], tmp_path / "out", every_frame=True)
    assert len(summary.done) == count
    for k in range(count):
        found = mask(tmp_path / f"out/masks/a/{k:06d}.png")
        expected = np.zeros((30, 40), np.uint8)
        expected[8:16, 8 * k : 8 * k + 8] = 1 if k % 2 else 2
        assert (found == expected).mean() > (0.9 if name in ("a.mpo", "a.webp") else 0.9999)


def test_a_damaged_page_fails_alone_and_is_tried_again(segmenter: Any, tmp_path: Path) -> None:
    path, out = tmp_path / "in" / "a.tif", tmp_path / "out"
    save_pages(path, 5)
    whole = path.read_bytes()
    predict(segmenter, [path.parent], tmp_path / "whole", every_frame=True)
    damage(path, 2)
    for _ in range(2):
        summary = predict(segmenter, [path.parent], out, every_frame=True)
        assert [d.frame for d in summary.done] == [0, 1, 3, 4] and summary.left == 0
        ((source, reason),) = summary.failed
        assert source == path and reason.startswith("frame 2: damaged")
        assert not (out / "masks/a/000002.png").exists()
        assert list(read_failures(out).items()) == [
            (Part(str(path), 2), Failure(reason.removeprefix("frame 2: "), 5))
        ]
    assert summary.kept == 0  # the file has to be opened to know
    path.write_bytes(whole)
    predict(segmenter, [path.parent], out, every_frame=True)
    told = {"predictions.jsonl": "", "summary.json": ""}  # the time of the file; what was there
    assert tree(out) | told == tree(tmp_path / "whole") | told
    assert not read_failures(out)


def test_an_animation_ends_where_it_breaks(segmenter: Any, tmp_path: Path) -> None:
    path, out = tmp_path / "a.png", tmp_path / "out"
    frames = [Image.fromarray(save_picture(tmp_path / "x.png", k)) for k in range(8)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    summary = predict(segmenter, [path], out, every_frame=True)
    done = len(summary.done)
    assert 3 <= done <= 6 and len(summary.failed) == 1 and summary.left == 0
    assert summary.failed[0][1].startswith(f"frame {done}: damaged or cut short")
    assert json.loads((out / "summary.json").read_text())["finished"] is True
    again = predict(segmenter, [path], out, every_frame=True)
    assert (len(again.done), len(again.failed)) == (done, 1)


def test_a_rerun_does_the_pages_that_are_left(segmenter: Any, tmp_path: Path) -> None:
    path, out = tmp_path / "in" / "a.tif", tmp_path / "out"
    save_pages(path, 6)
    save_pages(tmp_path / "in" / "b.tif", 2, seed=1)
    predict(segmenter, [tmp_path / "in"], tmp_path / "whole", every_frame=True)
    seen: list[int] = []

    class Counting(Reddest):
        def forward(self, images: Any) -> Any:
            seen.append(1)
            return super().forward(images)

    segmenter.model = Counting()
    with pytest.raises(InterruptedByUserError):
        predict(segmenter, [tmp_path / "in"], out, every_frame=True, stop=lambda: len(seen) >= 3)
    value = json.loads((out / "summary.json").read_text())
    assert value["finished"] is False and (len(value["done"]), value["left"]) == (3, 4)
    summary = predict(segmenter, [tmp_path / "in"], out, every_frame=True)
    assert len(summary.done) == 8 == len(seen)
    assert tree(out) == tree(tmp_path / "whole")
    assert predict(segmenter, [tmp_path / "in"], out, every_frame=True).kept == 8
    (out / "masks" / "a" / "000004.png").unlink()
    os.utime(tmp_path / "in" / "b.tif", ns=(5, 5))  # its content is the same
    predict(segmenter, [tmp_path / "in"], out, every_frame=True)
    assert len(seen) == 9
    assert tree(out).keys() == tree(tmp_path / "whole").keys()


def test_a_file_of_fewer_pages_leaves_no_old_masks(segmenter: Any, tmp_path: Path) -> None:
    path, out = tmp_path / "a.tif", tmp_path / "out"
    for count in (6, 3, 1):
        save_pages(path, count, seed=count)
        summary = predict(segmenter, [path], out, every_frame=True)
        assert len(summary.done) == count == len(read_done(out))
        masks = sorted(p.name for p in (out / "masks").rglob("*.png"))
        names = [f"{k:06d}.png" for k in range(count)] if count > 1 else ["a.png"]
        assert masks == names
    path.write_bytes(b"")
    save_pages(path, 2)
    predict(segmenter, [path], out, every_frame=True)
    path.write_bytes(b"II*\0nothing")
    assert len(predict(segmenter, [path], out, every_frame=True).failed) == 1
    assert not list((out / "masks").rglob("*.png"))


def test_first_after_all_and_all_after_first(segmenter: Any, tmp_path: Path) -> None:
    path, out = tmp_path / "a.tif", tmp_path / "out"
    pages = save_pages(path, 3)
    first = predict(segmenter, [path], out)
    assert [(d.name, d.frames) for d in first.done] == [("a", 3)]
    every = predict(segmenter, [path], out, every_frame=True)
    assert [d.frame for d in every.done] == [0, 1, 2]
    again = predict(segmenter, [path], out)
    assert [(d.name, d.frame) for d in again.done] == [("a", None)] and again.kept == 1
    assert predict(segmenter, [path], out, every_frame=True).kept == 3
    np.testing.assert_array_equal(mask(out / "masks" / "a.png"), labels(pages[0]))


def test_a_picture_called_as_a_page_keeps_its_mask(segmenter: Any, tmp_path: Path) -> None:
    """a.tif of three pages beside a/000001.png."""
    save_pages(tmp_path / "in" / "a.tif", 3)
    pixels = save_picture(tmp_path / "in" / "a" / "000001.png", 5)
    for _ in range(2):
        summary = predict(segmenter, [tmp_path / "in"], tmp_path / "out", every_frame=True)
        assert {d.name for d in summary.done} == {"a/000000", "a/000001", "a/000002"}
        ((source, reason),) = summary.failed
        assert source.name == "a.tif"
        assert reason.startswith("frame 1: its mask would be a/000001.png, as that of another")
        np.testing.assert_array_equal(
            mask(tmp_path / "out" / "masks" / "a" / "000001.png"), labels(pixels)
        )
    (tmp_path / "in" / "a" / "000001.png").unlink()
    later = predict(segmenter, [tmp_path / "in"], tmp_path / "out", every_frame=True)
    assert len(later.done) == 2 and len(later.failed) == 1  # its mask is still there


def test_shards_share_out_files(segmenter: Any, tmp_path: Path) -> None:
    for k in range(3):
        save_pages(tmp_path / "in" / f"{k}.tif", 2 + k, seed=k)
    damage(tmp_path / "in" / "1.tif", 0)
    out = tmp_path / "out"
    for number in (1, 0):
        summary = predict(
            segmenter, [tmp_path / "in"], out, every_frame=True, shard=Shard(number, 2)
        )
    assert (len(summary.done), len(summary.failed), summary.left) == (8, 1, 0)
    predict(segmenter, [tmp_path / "in"], tmp_path / "whole", every_frame=True)
    assert tree(out) | {"summary.json": ""} == tree(tmp_path / "whole") | {"summary.json": ""}


def test_the_command(
    segmenter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    save_pages(tmp_path / "a.tif", 3)
    monkeypatch.setattr("segdeform.segmenter.load", lambda *_, **__: segmenter)
    monkeypatch.setattr("segdeform.model_folder.refuse_missing_model", lambda path: None)
    words = ["predict", "model", str(tmp_path / "a.tif"), "--output", str(tmp_path / "out")]
    assert main([*words, "--frames", "all"]) == 0
    out = capsys.readouterr().out
    assert "3 pictures predicted" in out and "only the first" not in out
    damage(tmp_path / "a.tif", 1)
    assert main([*words, "--frames", "all"]) == 8
    err = capsys.readouterr().err
    assert f"{tmp_path / 'a.tif'}: frame 1: damaged" in err and "1 picture of 3 failed" in err
    assert main([*words, "--frames", "some"]) == 2
    assert "--frames some: expected first or all" in capsys.readouterr().err


def test_giant_pages_are_read_alone(
    segmenter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, count in (("a.tif", 6), ("b.gif", 4)):
        pages = save_pages(tmp_path / "a.tif", count)
        if name == "b.gif":
            frames = [Image.fromarray(page) for page in pages]
            frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    save_pages(tmp_path / "a.tif", 6)
    inputs = [tmp_path / "a.tif", tmp_path / "b.gif"]
    predict(segmenter, inputs, tmp_path / "small", every_frame=True)
    monkeypatch.setattr("segdeform.prediction.predict._GIANT", 10 * 14 - 1)
    predict(segmenter, inputs, tmp_path / "giant", every_frame=True)
    assert tree(tmp_path / "small") == tree(tmp_path / "giant")
    assert len(read_done(tmp_path / "giant")) == 10


def test_a_stack_that_tells_of_planes_it_has_not(segmenter: Any, tmp_path: Path) -> None:
    """What is there is done, and nothing is left."""
    values = np.zeros((8, 9), np.uint8)
    told = "ImageJ=1.53k\nimages=12\nslices=12\n"
    tifffile.imwrite(tmp_path / "a.tif", values, description=told, metadata=None)
    for every_frame, frames in ((False, 12), (True, 1)):
        out = tmp_path / str(every_frame)
        summary = predict(segmenter, [tmp_path / "a.tif"], out, every_frame=every_frame)
        assert [(d.name, d.frames) for d in summary.done] == [("a", frames)] and not summary.left


def test_the_pace_follows_what_files_turn_out_to_have() -> None:
    told: list[tuple[int, int]] = []
    pace = Pace(3, 1, lambda done, total: told.append((done, total)))
    pace.step()
    pace.open(Part("a.gif"), 10)
    pace.step()
    for _ in range(2):  # it breaks at its second frame, of which two readers know
        pace.close(Part("a.gif", 1), 2)
    pace.step()
    assert told == [(2, 3), (3, 12), (4, 4)]
