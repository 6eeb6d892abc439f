"""Predicting whole folders: every picture is done or listed, and nothing else is touched."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from segdeform.cli import main
from segdeform.config.schema import EvalConfig
from segdeform.errors import DataError, InterruptedByUserError, ResourceError, UsageError
from segdeform.prediction import plan
from segdeform.prediction.predict import predict
from segdeform.prediction.records import read_done
from segdeform.prediction.summary import Summary
from segdeform.results import files
from segdeform.segmenter import Segmenter
from tests.conftest import external_data

PALETTE = ((0, 0, 0), (250, 0, 0), (0, 0, 250))


class Output(NamedTuple):
    logits: Tensor


class Reddest(nn.Module):
    """Class 0, 1 or 2 for pixels that are most green, most red or most blue."""

    def forward(self, images: Tensor) -> Output:
        if images.shape[3] == 13:
            raise MemoryError
        return Output(images[:, [1, 0, 2]])


@pytest.fixture
def segmenter() -> Any:
    model: Any = Reddest()
    return Segmenter(
        model=model,
        classes=("green", "red", "blue"),
        palette=PALETTE,
        options=EvalConfig(),
        device=torch.device("cpu"),
        info={"sha256": "abc"},
    )


def save_picture(path: Path, seed: int = 0, size: tuple[int, int] = (20, 24)) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def tree(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_outputs_mirror_the_inputs(segmenter: Any, tmp_path: Path) -> None:
    pixels = save_picture(tmp_path / "in" / "sub" / "a.png")
    save_picture(tmp_path / "in" / "b.png", 1, (5, 7))
    steps: list[tuple[int, int]] = []
    summary = predict(
        segmenter,
        [tmp_path / "in"],
        tmp_path / "out",
        progress=lambda done, total: steps.append((done, total)),
    )
    assert sorted(tree(tmp_path / "out")) == [
        "failures.jsonl",
        "masks/b.png",
        "masks/sub/a.png",
        "overlays/b.jpg",
        "overlays/sub/a.jpg",
        "overview.png",
        "predictions.jsonl",
        "summary.json",
    ]
    mask = Image.open(tmp_path / "out" / "masks" / "sub" / "a.png")
    expected = pixels[:, :, [1, 0, 2]].argmax(2)
    assert mask.mode == "P"
    assert (mask.getpalette() or [])[:9] == [c for color in PALETTE for c in color]
    np.testing.assert_array_equal(np.asarray(mask), expected)
    overlay = np.asarray(Image.open(tmp_path / "out" / "overlays" / "sub" / "a.jpg")).astype(int)
    tint = abs(overlay - pixels).mean(2)
    assert (
        tint[expected == 0].mean() < 8 < 30 < tint[expected == 1].mean()
    )  # JPEG; class 0 is black
    assert steps == [(1, 2), (2, 2)]
    shares = summary.done[1].shares
    assert shares["red"] == pytest.approx((expected == 1).mean())
    assert sum(shares.values()) == pytest.approx(1)


def test_the_overview_spreads_over_all_pictures_and_names_the_classes_seen(
    segmenter: Any, tmp_path: Path
) -> None:
    """Green is black in this palette, so that it is left as it is: the overlay is the picture."""
    greens = [100 + 5 * k for k in range(30)]
    for k, green in enumerate(greens):
        path = tmp_path / "in" / f"{k:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((9, 9, 3), (7, green, 7), np.uint8)).save(path)
    predict(segmenter, [tmp_path / "in"], tmp_path / "out")
    sheet = np.asarray(Image.open(tmp_path / "out" / "overview.png"))
    near = [(abs(sheet.astype(int) - (7, green, 7)).max(2) <= 2) for green in greens]  # JPEG
    shown = [k for k, places in enumerate(near) if places.any()]
    assert len(shown) == 12 and shown[0] == 0 and shown[-1] == 29
    assert max(np.diff(shown)) <= 3
    ink = (sheet < 100).all(2).any(1)  # the heading "12 of 30 pictures" is above all of them
    assert ink[: np.flatnonzero(near[0].any(1))[0]].any()
    for unseen in PALETTE[1:]:  # no swatch of theirs in the legend
        assert not (sheet == unseen).all(2).any()


class ByWidth(nn.Module):
    """Calls every pixel of a window red where the window is narrower than 20 pixels."""

    def forward(self, images: Tensor) -> Output:
        red = torch.full_like(images[:, :1], 1.0 if images.shape[3] < 20 else -1.0)
        return Output(torch.cat([-red, red, torch.full_like(red, -9)], 1))


@pytest.mark.parametrize("options", [{}, {"tile": 12}, {"scales": [0.5]}])
def test_pictures_go_through_the_network_as_the_options_say(
    segmenter: Any, tmp_path: Path, options: dict[str, Any]
) -> None:
    save_picture(tmp_path / "a.png")
    segmenter.model = ByWidth()
    predict(segmenter.with_options(**options), [tmp_path / "a.png"], tmp_path / "out")
    assert (np.asarray(Image.open(tmp_path / "out/masks/a.png")) == bool(options)).all()
    told = json.loads((tmp_path / "out" / "summary.json").read_text())["inference"]
    assert options.items() <= told.items()


def test_the_summary_is_whole(segmenter: Any, tmp_path: Path) -> None:
    save_picture(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b.jpg").write_bytes(b"no picture")
    (tmp_path / "in" / "notes.txt").write_text("")
    predict(segmenter, [tmp_path / "in"], tmp_path / "out")
    value = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert value["finished"] is True
    assert value["model_sha256"] == "abc"
    assert value["skipped"] == 1
    reason = ".txt is no picture that is read here"
    assert value["skipped_files"] == [
        {"file": str(tmp_path / "in" / "notes.txt"), "reason": reason}
    ]
    assert [d["name"] for d in value["done"]] == ["a"]
    assert value["done"][0]["size"] == [20, 24]
    assert value["failed"][0]["picture"].endswith("b.jpg")
    assert "b.jpg" not in value["failed"][0]["reason"]


def test_one_bad_picture_costs_no_other(segmenter: Any, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    save_picture(folder / "good.png")
    save_picture(folder / "last.jpg")
    save_picture(folder / "too-large.png", size=(20, 13))
    save_picture(folder / "cut.png")
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:200])
    (folder / "empty.jpg").touch()
    (folder / "dangling.png").symlink_to("nowhere")
    (folder / "text.png").write_text("hello")
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.png")
    summary = predict(segmenter, [folder], tmp_path / "out")
    assert [d.name for d in summary.done] == ["good", "last"]
    assert {source.name for source, _ in summary.failed} == {
        *("too-large.png", "cut.png", "empty.jpg", "dangling.png", "text.png", "pipe.png"),
    }
    reasons = {source.name: reason for source, reason in summary.failed}
    assert "--tile" in reasons["too-large.png"]
    assert all(reason and "\n" not in reason for reason in reasons.values())
    assert sorted(tree(tmp_path / "out" / "masks")) == ["good.png", "last.png"]


def test_a_rerun_writes_the_same_bytes(segmenter: Any, tmp_path: Path) -> None:
    for k in range(15):
        save_picture(tmp_path / "in" / f"{k}.png", k)
    predict(segmenter, [tmp_path / "in"], tmp_path / "in" / "out")
    before = tree(tmp_path / "in" / "out")
    summary = predict(segmenter, [tmp_path / "in"], tmp_path / "in" / "out")
    assert len(summary.done) == 15
    assert tree(tmp_path / "in" / "out") == before


def test_a_picture_that_fails_now_leaves_no_old_mask(segmenter: Any, tmp_path: Path) -> None:
    save_picture(tmp_path / "in" / "a.png")
    predict(segmenter, [tmp_path / "in"], tmp_path / "out")
    (tmp_path / "in" / "a.png").write_bytes(b"")
    summary = predict(segmenter, [tmp_path / "in"], tmp_path / "out")
    assert (len(summary.done), len(summary.failed)) == (0, 1)
    assert sorted(tree(tmp_path / "out")) == ["failures.jsonl", "predictions.jsonl", "summary.json"]
    assert not read_done(tmp_path / "out")


def test_a_picture_that_cannot_be_written_is_listed(segmenter: Any, tmp_path: Path) -> None:
    """The mask of a.png and the folder a.png/ want the same name."""
    save_picture(tmp_path / "in" / "a.jpg")
    save_picture(tmp_path / "in" / "a.png" / "b.png")
    summary = predict(segmenter, [tmp_path / "in"], tmp_path / "out")
    assert [d.name for d in summary.done] == ["a"]
    assert [source.name for source, _ in summary.failed] == ["b.png"]


def test_a_full_disk_ends_the_work(
    segmenter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_picture(tmp_path / "in" / "a.png")

    def full(*_: object) -> None:
        raise ResourceError("a.png: cannot be written: no space")

    monkeypatch.setattr(files, "write_index_png", full)
    with pytest.raises(ResourceError, match="no space"):
        predict(segmenter, [tmp_path / "in"], tmp_path / "out")
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["finished"] is False


def test_a_stop_keeps_what_is_done_and_says_so(segmenter: Any, tmp_path: Path) -> None:
    for k in range(3):
        save_picture(tmp_path / "in" / f"{k}.png", k)
    answers = iter([False, False, True])  # before a picture, before its window, before the next
    with pytest.raises(InterruptedByUserError, match="after 1 of 3"):
        predict(segmenter, [tmp_path / "in"], tmp_path / "out", stop=lambda: next(answers))
    value = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert value["finished"] is False
    assert (len(value["done"]), value["left"]) == (1, 2)
    summary = predict(segmenter, [tmp_path / "in"], tmp_path / "out")
    assert (len(summary.done), summary.kept) == (3, 1)


@pytest.mark.parametrize("output", ["run/model", "run/model/new", "link", "run/other/../model/x"])
def test_nothing_is_written_into_a_model(segmenter: Any, tmp_path: Path, output: str) -> None:
    save_picture(tmp_path / "in" / "a.png")
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "other").mkdir()
    (tmp_path / "run" / "model" / "model.json").write_text("{}")
    (tmp_path / "link").symlink_to("run/model")
    before = tree(tmp_path)
    with pytest.raises(UsageError, match=r"run/model: is a model; choose another --output"):
        predict(segmenter, [tmp_path / "in"], tmp_path / output)
    assert tree(tmp_path) == before
    with pytest.raises(UsageError, match=r"run: is a run; choose another --output"):
        predict(segmenter, [tmp_path / "in"], tmp_path / "run")
    assert predict(segmenter, [tmp_path / "in"], tmp_path / "run" / "predictions").done


def test_predictions_of_other_classes_are_not_mixed(segmenter: Any, tmp_path: Path) -> None:
    """One number would mean two things in one folder; it takes a word of the user's."""
    save_picture(tmp_path / "a.png", 1)
    save_picture(tmp_path / "b.png", 2)
    out = tmp_path / "out"
    predict(segmenter, [tmp_path / "a.png"], out)
    before = (out / "masks" / "a.png").read_bytes()
    other = replace(segmenter, classes=tuple(f"{name}!" for name in segmenter.classes))
    with pytest.raises(UsageError, match=r"holds predictions of other classes .*--overwrite"):
        predict(other, [tmp_path / "b.png"], out)
    assert (
        list(tree(out / "masks")) == ["a.png"] and (out / "masks" / "a.png").read_bytes() == before
    )
    assert len(predict(other, [tmp_path / "a.png"], out, overwrite=True).done) == 1


@pytest.mark.parametrize("foreign", ["masks/a.png", "overlays/b.png", "summary.json"])
def test_files_that_are_not_ours_are_never_overwritten(
    segmenter: Any, tmp_path: Path, foreign: str
) -> None:
    save_picture(tmp_path / "images" / "a.png")
    (tmp_path / foreign).parent.mkdir(exist_ok=True)
    (tmp_path / foreign).write_text("{}")
    before = tree(tmp_path)
    with pytest.raises(UsageError, match="choose another --output"):
        predict(segmenter, [tmp_path / "images"], tmp_path)
    assert tree(tmp_path) == before


def test_nothing_to_do_is_refused_before_anything_is_written(
    segmenter: Any, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").touch()
    with pytest.raises(DataError, match="no pictures in"):
        predict(segmenter, [tmp_path / "in"], tmp_path / "out")
    with pytest.raises(UsageError, match="no such file"):
        predict(segmenter, [tmp_path / "in", tmp_path / "x.png"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_overlays_there_are_masks_only(segmenter: Any, tmp_path: Path) -> None:
    save_picture(tmp_path / "a.png")
    predict(segmenter, [tmp_path / "a.png"], tmp_path / "out")
    predict(segmenter, [tmp_path / "a.png"], tmp_path / "new", outputs=["masks"])
    records = ["failures.jsonl", "masks/a.png", "predictions.jsonl", "summary.json"]
    assert sorted(tree(tmp_path / "new")) == records


def check_awkward(summary: Summary, folder: Path) -> None:
    for done in summary.done:
        mask = Image.open(summary.output / "masks" / f"{done.name}.png")
        assert (mask.height, mask.width) == done.size
    assert len(summary.done) > 10
    assert len(summary.done) + len(summary.failed) + len(summary.skipped) == len(
        [path for path in folder.rglob("*") if path.is_file()]
    )


def test_awkward_pictures_are_done_or_listed(segmenter: Any, tmp_path: Path) -> None:
    folder = external_data("data/awkward_images")
    check_awkward(predict(segmenter, [folder], tmp_path / "out"), folder)


def test_the_pictures_folder_is_no_place_for_masks(segmenter: Any, tmp_path: Path) -> None:
    save_picture(tmp_path / "in" / "a.png")
    before = tree(tmp_path)
    with pytest.raises(UsageError, match="holds the pictures"):
        predict(segmenter, [tmp_path / "in"], tmp_path / "." / "in")
    assert tree(tmp_path) == before


def test_masks_of_other_pictures_stay_and_are_counted(segmenter: Any, tmp_path: Path) -> None:
    save_picture(tmp_path / "one" / "a.png")
    save_picture(tmp_path / "two" / "b.png")
    save_picture(tmp_path / "two" / "c.png")
    assert predict(segmenter, [tmp_path / "two"], tmp_path / "out").earlier == 0
    summary = predict(segmenter, [tmp_path / "one"], tmp_path / "out")
    assert (
        summary.earlier == 2 == json.loads((tmp_path / "out/summary.json").read_text())["earlier"]
    )
    assert len(list((tmp_path / "out" / "masks").iterdir())) == 3


def test_a_mask_of_another_picture_is_not_overwritten(segmenter: Any, tmp_path: Path) -> None:
    """Not by a folder of pictures of the same names; the same picture is replaced."""
    save_picture(tmp_path / "one" / "a.png", 0)
    save_picture(tmp_path / "two" / "a.png", 1)
    save_picture(tmp_path / "two" / "b.png", 2)
    out = tmp_path / "out"
    predict(segmenter, [tmp_path / "one"], out)
    before = tree(out)
    with pytest.raises(UsageError, match=r"masks/a.png is the mask of .*/one/a.png, not of .*two"):
        predict(segmenter, [tmp_path / "two"], out)
    assert tree(out) == before
    predict(segmenter, [tmp_path / "two" / "b.png"], out)
    with pytest.raises(UsageError, match=r"is the mask of .*/one/a.png"):  # remembered across runs
        predict(segmenter, [tmp_path / "two"], out)
    save_picture(tmp_path / "one" / "a.png", 3)
    predict(segmenter, [tmp_path / "one" / ".." / "one" / "a.png"], out)
    assert tree(out)["masks/a.png"] != before["masks/a.png"]
    assert json.loads((out / "summary.json").read_text())["sources"] == {
        "a": str(tmp_path / "one" / "a.png"),
        "b": str(tmp_path / "two" / "b.png"),
    }


def test_masks_of_earlier_versions_are_kept_too(
    segmenter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their summary tells the last pictures alone, as they were given."""
    save_picture(tmp_path / "one" / "a.png", 0)
    save_picture(tmp_path / "two" / "a.png", 1)
    predict(segmenter, [tmp_path / "one"], tmp_path / "out")
    path = tmp_path / "out" / "summary.json"
    value = json.loads(path.read_text())
    del value["sources"]
    value["done"][0]["picture"] = "one/a.png"
    path.write_text(json.dumps(value))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"is the mask of .*one/a.png"):
        predict(segmenter, [tmp_path / "two"], tmp_path / "out")
    assert predict(segmenter, [tmp_path / "one"], tmp_path / "out").done
    save_picture(tmp_path / "out" / "masks" / "b.png")
    save_picture(tmp_path / "two" / "b.png")
    with pytest.raises(UsageError, match=r"is the mask of another picture, not of"):
        predict(segmenter, [tmp_path / "two" / "b.png"], tmp_path / "out")


def test_a_second_picture_of_a_name_is_listed_and_costs_no_mask(
    segmenter: Any, tmp_path: Path
) -> None:
    pixels = save_picture(tmp_path / "in" / "a.bmp", 0)
    save_picture(tmp_path / "in" / "a.png", 1)
    for _ in range(2):
        summary = predict(segmenter, [tmp_path / "in"], tmp_path / "out")
        assert [done.source.name for done in summary.done] == ["a.bmp"]
        ((source, reason),) = summary.failed
        assert source.name == "a.png" and "would be a.png, as that of" in reason
        mask = np.asarray(Image.open(tmp_path / "out" / "masks" / "a.png"))
        np.testing.assert_array_equal(mask, pixels[:, :, [1, 0, 2]].argmax(2))


def test_a_killed_prediction_is_run_again(
    segmenter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its masks are known to be of these pictures though it had no time to say what is done."""
    for name in ("a", "b"):
        save_picture(tmp_path / "in" / f"{name}.png")

    def die(*_: object) -> None:
        raise KeyError("as if killed")

    with monkeypatch.context() as patch:
        patch.setattr(plan, "write_overview", die)
        with pytest.raises(KeyError):
            predict(segmenter, [tmp_path / "in"], tmp_path / "out")
    assert len(predict(segmenter, [tmp_path / "in"], tmp_path / "out").done) == 2


def test_an_earlier_prediction_is_no_input(
    segmenter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    save_picture(tmp_path / "in" / "a.png")
    predict(segmenter, [tmp_path / "in"], tmp_path / "in" / "old")
    with pytest.raises(DataError, match="old holds an earlier prediction, whose masks are not pic"):
        predict(segmenter, [tmp_path / "in" / "old"], tmp_path / "new")
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr("segdeform.segmenter.load", lambda *_, **__: segmenter)
    monkeypatch.setattr("segdeform.model_folder.refuse_missing_model", lambda path: None)
    words = ["predict", "model", str(tmp_path / "in"), "--output", str(tmp_path / "new")]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "1 picture predicted" in out
    assert f"left out, as masks of an earlier prediction: {tmp_path / 'in' / 'old'}" in out


def test_the_range_of_deep_pictures_can_be_given(
    segmenter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Floats tell nobody which value is white."""
    values = np.zeros((6, 10), np.float32)
    values[:, :4] = 1000
    Image.fromarray(values).save(tmp_path / "deep.tif")
    segmenter.model = ByBrightness()
    monkeypatch.setattr("segdeform.segmenter.load", lambda *_, **__: segmenter)
    monkeypatch.setattr("segdeform.model_folder.refuse_missing_model", lambda path: None)
    words = ["predict", "model", str(tmp_path / "deep.tif"), "--output", str(tmp_path / "out")]
    assert main(words) == 8
    assert "predict --value-range LOW,HIGH" in capsys.readouterr().err
    assert main([*words, "--value-range", "0,1500"]) == 0
    mask = np.asarray(Image.open(tmp_path / "out" / "masks" / "deep.png"))
    assert (mask[:, :4] == 1).all() and (mask[:, 4:] == 0).all()
    for wrong in ("5", "9,1", "a,b", "0,inf", "1,2,3"):
        assert main([*words, "--value-range", wrong]) == 2
        assert f"--value-range {wrong}: expected two numbers" in capsys.readouterr().err


def test_deep_pictures_that_would_be_nearly_black_are_told(
    segmenter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """12 bits in 16 and a model of 8-bit pictures: a sixteenth of the range."""
    folder = tmp_path / "in"
    folder.mkdir()
    values = np.zeros((6, 10), np.uint16)
    values[2:, 3:] = 2900
    Image.fromarray(values).save(folder / "deep.png")
    Image.fromarray(values * 16).save(folder / "whole.png")
    Image.fromarray((values // 256).astype(np.uint8)).save(folder / "night.png")
    monkeypatch.setattr("segdeform.segmenter.load", lambda *_, **__: segmenter)
    monkeypatch.setattr("segdeform.model_folder.refuse_missing_model", lambda path: None)
    words = ["predict", "model", str(folder), "--output", str(tmp_path / "out")]
    for _ in range(2):  # what was kept is told again
        assert main(words) == 0
        told = [text for text in capsys.readouterr().out.splitlines() if "warning" in text]
        assert told == [
            f"warning: {folder / 'deep.png'}: holds values up to 2900 of 65535: "
            "--value-range 0,4095 if that is white"
        ]
    assert main([*words, "--value-range", "0,4095"]) == 0
    assert "warning" not in capsys.readouterr().out


class ByBrightness(nn.Module):
    """Calls pixels red that are lighter than half."""

    def forward(self, images: Tensor) -> Output:
        red = images[:, :1] - 0.5
        return Output(torch.cat([-red, red, torch.full_like(red, -9)], 1))


def test_a_stop_is_heard_between_two_windows(segmenter: Any, tmp_path: Path) -> None:
    """So that SIGTERM need not wait for a picture of thousands of them."""
    save_picture(tmp_path / "a.png", size=(64, 64))
    seen: list[int] = []

    class Counting(ByWidth):
        def forward(self, images: Tensor) -> Output:
            seen.append(1)
            return super().forward(images)

    segmenter.model = Counting()
    tiled = segmenter.with_options(tile=8, overlap=0.0)
    with pytest.raises(InterruptedByUserError, match="after 0 of 1"):
        predict(tiled, [tmp_path / "a.png"], tmp_path / "out", stop=lambda: len(seen) >= 3)
    assert len(seen) == 3
    assert not list((tmp_path / "out").rglob("*.png"))


def test_only_the_first_of_several_frames_is_predicted_and_said(
    segmenter: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    frames = [
        Image.fromarray(np.full((8, 9, 3), colour, np.uint8))
        for colour in ([250, 9, 9], [9, 250, 9], [9, 9, 250])
    ]
    (tmp_path / "in").mkdir()
    for name in ("a.gif", "b.tif", "c.png", "d.webp"):
        frames[0].save(tmp_path / "in" / name, save_all=True, append_images=frames[1:])
    for name in ("e.png", "f.tif", "g.jpg"):
        frames[0].save(tmp_path / "in" / name)
    for number in range(12):
        (tmp_path / "in" / f"notes{number:02d}.txt").touch()
    monkeypatch.setattr("segdeform.segmenter.load", lambda *_, **__: segmenter)
    monkeypatch.setattr("segdeform.model_folder.refuse_missing_model", lambda path: None)
    assert main(["predict", "model", str(tmp_path / "in"), "--output", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    value = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [done["frames"] for done in value["done"]] == [3, 3, 3, 3, 1, 1, 1]
    assert all(done["shares"] == {"red": 1.0} for done in value["done"])
    said = [line for line in out.splitlines() if line.startswith("only the first of several")]
    assert [line.rpartition("/")[2] for line in said] == [
        *("a.gif (3)", "b.tif (3)", "c.png (3)", "d.webp (3)")
    ]
    assert "12 other files skipped" in out and out.count("\nskipped: ") == 11
    assert "notes09.txt" in out and "skipped: and 2 more, listed in summary.json" in out


def test_frames_of_other_programs(segmenter: Any, tmp_path: Path) -> None:
    summary = predict(segmenter, [external_data("cases/frames")], tmp_path / "out")
    assert [(done.name, done.frames) for done in summary.done] == [
        *(("three_frames", 3), ("three_pages", 3))
    ]
