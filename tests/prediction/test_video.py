"""Videos: every frame, one overlay video, and whatever may be wrong with a file."""

from __future__ import annotations

import json
import os
import resource
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from segdeform.cli import main
from segdeform.errors import (
    InterruptedByUserError,
    PartialFailureError,
    ResourceError,
    UsageError,
)
from segdeform.prediction import pieces, records
from segdeform.prediction.predict import Shard, predict
from segdeform.prediction.video import OverlayVideo, Video
from tests.prediction.test_predict import PALETTE, Reddest, save_picture, segmenter, tree

__all__ = ["segmenter"]  # a fixture

COLOURS = ((20, 220, 30), (220, 30, 20), (30, 20, 220))  # of class 0, 1 and 2, RGB


def class_of(frame: int) -> int:
    return frame * frame % 3 if frame % 5 else 2


def save_video(
    path: Path, frames: int = 12, size: tuple[int, int] = (48, 64), code: str = "mp4v"
) -> Path:
    """Writes frames of one colour each, with noise, so that each takes many bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fourcc = cv2.VideoWriter.fourcc(*code)
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, fourcc, 12.5, size[::-1])
    rng = np.random.default_rng(0)
    for number in range(frames):
        noise = rng.integers(-20, 20, (*size, 3))
        frame = np.array(COLOURS[class_of(number)]) + noise
        writer.write(frame.clip(0, 255).astype(np.uint8)[..., ::-1])
    writer.release()
    return path


def mask(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def check_masks(
    folder: Path, frames: int, size: tuple[int, int] = (48, 64), right: int | None = None
) -> None:
    """Checks that there are so many masks, and that so many are right."""
    assert sorted(path.name for path in folder.iterdir()) == [
        f"{number:06d}.png" for number in range(frames)
    ]
    for number in range(frames if right is None else right):
        found = mask(folder / f"{number:06d}.png")
        assert found.shape == size and (found == class_of(number)).mean() > 0.97


def played(path: Path) -> list[np.ndarray]:
    """Returns the frames of a video, RGB."""
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (answer := capture.read())[0]:
        frames.append(answer[1][..., ::-1])
    return frames


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("a.mp4", "mp4v"),
        ("a.avi", "MJPG"),
        ("a.mkv", "FFV1"),
        ("a.webm", "VP80"),
        ("a.MOV", "mp4v"),
    ],
)
def test_every_frame_has_a_mask_and_the_overlays_are_a_video(
    segmenter: Any, tmp_path: Path, name: str, code: str
) -> None:
    video = save_video(tmp_path / "in" / "s" / name, code=code)
    out = tmp_path / "out"
    steps: list[tuple[int, int]] = []
    summary = predict(
        segmenter, [tmp_path / "in"], out, progress=lambda done, total: steps.append((done, total))
    )
    check_masks(out / "masks" / "s" / "a", 12)
    frames = played(out / "overlays" / "s" / "a.mp4")
    assert len(frames) == 12 and frames[0].shape == (48, 64, 3)
    assert cv2.VideoCapture(str(out / "overlays/s/a.mp4")).get(cv2.CAP_PROP_FPS) == 12.5
    for number, frame in enumerate(frames):
        label = class_of(number)
        tint = (np.array(COLOURS[label]) + PALETTE[label]) / 2 if label else COLOURS[0]
        assert abs(frame.mean((0, 1)) - tint).max() < 12
    (done,) = summary.done
    assert (done.source, done.name, done.frames, done.frame) == (video, "s/a", 12, None)
    assert done.size == (48, 64)
    truth = np.bincount([class_of(number) for number in range(12)]) / 12
    assert [done.shares.get(c, 0) for c in segmenter.classes] == pytest.approx(truth, abs=0.03)
    assert steps[-1] == (12, 12)
    assert (out / "overview.png").exists()
    value = json.loads((out / "summary.json").read_text())
    assert value["sources"] == {"s/a": str(video.resolve())} and value["earlier"] == 0


def test_odd_sides_and_pictures_beside_it(segmenter: Any, tmp_path: Path) -> None:
    """FFV1 codes odd sides, the overlays' MPEG-4 does not."""
    size = (49, 63)
    frames = np.full((4, *size, 3), COLOURS[1], np.uint8)
    frames[:, -1], frames[:, :, -1] = COLOURS[2], COLOURS[2]
    (tmp_path / "in").mkdir()
    folder = tmp_path / "in"
    # OpenCV's writer cuts odd sides, so frames of PNGs in an AVI are put together by hand.
    write_avi(
        folder / "v.avi", [cv2.imencode(".png", f[..., ::-1])[1].tobytes() for f in frames], size
    )
    save_picture(folder / "p.png")
    summary = predict(segmenter, [folder], tmp_path / "out")
    assert [(d.name, d.size) for d in summary.done] == [("p", (20, 24)), ("v", size)]
    found = mask(tmp_path / "out/masks/v/000003.png")
    assert (found[:-1, :-1] == 1).all() and (found[-1] == 2).all() and (found[:, -1] == 2).all()
    overlays = played(tmp_path / "out/overlays/v.mp4")
    assert len(overlays) == 4 and overlays[0].shape == (50, 64, 3)


def write_avi(
    path: Path, frames: list[bytes], size: tuple[int, int], told: int | None = None
) -> None:
    """Writes an AVI of PNGs, byte by byte as its specification says."""
    told = len(frames) if told is None else told

    def chunk(kind: bytes, content: bytes) -> bytes:
        return kind + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)

    height, width = size
    head = struct.pack("<14I", 80000, 0, 0, 0, told, 0, 1, 0, width, height, 0, 0, 0, 0)
    rate = struct.pack("<4sIIHHIIIIIIII", b"MPNG", 0, 0, 0, 0, 0, 2, 25, 0, told, 0, 0, 0)
    stream = b"vids" + rate + struct.pack("<4h", 0, 0, width, height)
    form = struct.pack("<IiiHH4sIiiII", 40, width, height, 1, 24, b"MPNG", 0, 0, 0, 0, 0)
    strl = chunk(b"LIST", b"strl" + chunk(b"strh", stream) + chunk(b"strf", form))
    body = chunk(b"LIST", b"hdrl" + chunk(b"avih", head) + strl)
    body += chunk(b"LIST", b"movi" + b"".join(chunk(b"00dc", frame) for frame in frames))
    path.write_bytes(chunk(b"RIFF", b"AVI " + body))


def test_a_video_on_its_side_is_turned(segmenter: Any, tmp_path: Path) -> None:
    """The matrix of an MP4's track says so, as of telephones."""
    path = tmp_path / "a.mp4"
    frame = np.full((48, 64, 3), COLOURS[0], np.uint8)
    frame[:, :16] = COLOURS[1]  # left; turned a quarter clockwise it is above
    writer = cv2.VideoWriter(
        str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), 5, (64, 48)
    )
    for _ in range(3):
        writer.write(frame[..., ::-1])
    writer.release()
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40
    one = 1 << 16
    content[matrix : matrix + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    (done,) = predict(segmenter, [path], tmp_path / "out").done
    assert done.size == (64, 48) and done.frames == 3
    found = mask(tmp_path / "out/masks/a/000001.png")
    assert (found[:15] == 1).all() and (found[17:] == 0).all()
    assert played(tmp_path / "out/overlays/a.mp4")[0].shape == (64, 48, 3)


def fast_start(path: Path) -> None:
    """Moves the index of an MP4 before its frames, as of those for the web."""
    content, boxes, place = path.read_bytes(), {}, 0
    while place < len(content):
        size, kind = struct.unpack_from(">I4s", content, place)
        boxes[kind] = content[place : place + size]
        place += size
    moov = bytearray(boxes[b"moov"])
    table = moov.index(b"stco") + 8
    for k in range(struct.unpack_from(">I", moov, table)[0]):
        at = table + 4 + 4 * k
        struct.pack_into(">I", moov, at, struct.unpack_from(">I", moov, at)[0] + len(moov))
    rest = [data for kind, data in boxes.items() if kind not in (b"ftyp", b"moov")]
    path.write_bytes(b"".join([boxes[b"ftyp"], bytes(moov), *rest]))


@pytest.mark.parametrize("name", ["a.mp4", "a.avi", "a.mkv", "a.webm"])
def test_a_video_that_is_cut_short_keeps_its_frames(
    segmenter: Any, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    code = {"a.avi": "MJPG", "a.webm": "VP80"}.get(name, "mp4v")
    video = save_video(tmp_path / "in" / name, 30, code=code)
    save_picture(tmp_path / "in" / "b.png")
    if name == "a.mp4":
        fast_start(video)
        assert len(played(video)) == 30
    whole = video.read_bytes()
    video.write_bytes(whole[: len(whole) * 3 // 5])
    monkeypatch.setattr("segdeform.segmenter.load", lambda *_, **__: segmenter)
    monkeypatch.setattr("segdeform.model_folder.refuse_missing_model", lambda path: None)
    out = tmp_path / "out"
    assert main(["predict", "model", str(tmp_path / "in"), "--output", str(out)]) == 8
    frames = len(list((out / "masks" / "a").iterdir()))
    assert 8 <= frames <= 22
    err = capsys.readouterr().err
    assert f"{video}: breaks at frame {frames}: cut short, " in err
    assert f"bytes are missing; frames 0 to {frames - 1} are kept" in err
    check_masks(out / "masks" / "a", frames, right=frames - 1)  # of the last a part is missing
    assert len(played(out / "overlays" / "a.mp4")) == frames
    assert (out / "masks" / "b.png").exists()
    video.write_bytes(whole)
    summary = predict(segmenter, [tmp_path / "in"], out)
    assert [d.frames for d in summary.done] == [30, 1] and not summary.failed
    check_masks(out / "masks" / "a", 30)
    video.write_bytes(whole[: len(whole) * 2 // 5])  # and again: frames of then are gone
    assert len(predict(segmenter, [tmp_path / "in"], out).failed) == 1
    fewer = len(list((out / "masks" / "a").iterdir()))
    assert fewer < frames
    check_masks(out / "masks" / "a", fewer, right=fewer - 1)


def test_damage_in_the_middle_is_told(segmenter: Any, tmp_path: Path) -> None:
    video = save_video(tmp_path / "a.mp4", 30)
    content = bytearray(video.read_bytes())
    content[len(content) // 3 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 3)
    video.write_bytes(content)
    summary = predict(segmenter, [video], tmp_path / "out")
    ((_, reason),) = summary.failed
    assert "it says that it has 30 frames; damaged in the middle" in reason
    assert len(played(tmp_path / "out/overlays/a.mp4")) == len(
        list((tmp_path / "out/masks/a").iterdir())
    )


@pytest.mark.parametrize("told", [0, 3, 2**32 - 1, 400])
def test_a_number_of_frames_that_is_not_true(segmenter: Any, tmp_path: Path, told: int) -> None:
    size = (20, 24)
    pixels = [np.full((*size, 3), COLOURS[class_of(k)], np.uint8) for k in range(9)]
    frames = [cv2.imencode(".png", frame[..., ::-1])[1].tobytes() for frame in pixels]
    write_avi(tmp_path / "a.avi", frames, size, told)
    steps: list[tuple[int, int]] = []
    summary = predict(
        segmenter,
        [tmp_path / "a.avi"],
        tmp_path / "out",
        progress=lambda done, total: steps.append((done, total)),
    )
    check_masks(tmp_path / "out" / "masks" / "a", 9, size)
    assert len(steps) == 9
    assert [d.frames for d in summary.done] == [9]


def test_what_is_no_video(segmenter: Any, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(b"")
    (folder / "b.mkv").write_text("#EXTM3U\nhttp://127.0.0.1:9/x.ts\n")
    (folder / "c.avi").write_bytes(b"RIFF\xff\xff\xff\x7fAVI nothing")
    (folder / "d.mov").symlink_to("nowhere")
    (folder / "e.mp4").write_text("ffconcat version 1.0\nfile /etc/passwd\n")
    video = save_video(folder / "f.mp4")
    video.write_bytes(video.read_bytes()[:2000])  # its index was at the end
    summary = predict(segmenter, [folder], tmp_path / "out")
    reasons = {source.name: reason for source, reason in summary.failed}
    assert reasons.keys() == {"a.mp4", "b.mkv", "c.avi", "d.mov", "e.mp4", "f.mp4"}
    assert "empty" in reasons["a.mp4"] and "cut short" in reasons["f.mp4"]
    assert "not a video of a known kind" in reasons["b.mkv"] == reasons["e.mp4"]
    assert not list((tmp_path / "out").rglob("*.png"))


def test_a_rerun_skips_what_is_whole(segmenter: Any, tmp_path: Path) -> None:
    seen: list[int] = []

    class Counting(Reddest):
        def forward(self, images: Any) -> Any:
            seen.append(1)
            return super().forward(images)

    segmenter.model = Counting()
    video, out = save_video(tmp_path / "a.mp4"), tmp_path / "out"
    predict(segmenter, [video], out)
    before = tree(out)
    assert predict(segmenter, [video], out).kept == 1 and len(seen) == 12
    assert tree(out) == before
    (out / "masks" / "a" / "000007.png").unlink()
    predict(segmenter, [video], out)
    assert len(seen) == 24 and tree(out) == before
    save_video(video, 7)
    predict(segmenter, [video], out)
    check_masks(out / "masks" / "a", 7)
    video.unlink()
    save_picture(tmp_path / "b.png")
    assert predict(segmenter, [tmp_path / "b.png"], out).earlier == 1


def test_an_interrupted_video_is_done_anew(segmenter: Any, tmp_path: Path) -> None:
    video, out = save_video(tmp_path / "a.mp4"), tmp_path / "out"
    predict(segmenter, [video], tmp_path / "whole")
    asked: list[int] = []
    with pytest.raises(InterruptedByUserError):
        predict(segmenter, [video], out, stop=lambda: len(asked) > 12 or bool(asked.append(1)))
    assert not list((out / "overlays").rglob("*")) or not list((out / "overlays").glob("*.mp4"))
    assert not list(out.rglob(".segdeform-*"))
    assert json.loads((out / "summary.json").read_text())["left"] == 1
    predict(segmenter, [video], out)
    assert tree(out) == tree(tmp_path / "whole")


def test_a_video_is_closed_when_nobody_reads_it(
    segmenter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenCV ends the process where a video is closed under a thread that decodes it."""
    reading: list[int] = []
    read, close = Video._read, Video.close

    def slow(self: Video, number: int, limit: int | None) -> Any:
        reading.append(number)
        time.sleep(0.05)
        seen = read(self, number, limit)
        reading.remove(number)
        return seen

    def closes(self: Video) -> None:
        assert not reading
        close(self)

    monkeypatch.setattr(Video, "_read", slow)
    monkeypatch.setattr(Video, "close", closes)
    stops = iter([False, False, True])
    with pytest.raises(InterruptedByUserError):
        predict(segmenter, [save_video(tmp_path / "a.mp4")], tmp_path / "out", stop=stops.__next__)


def test_a_disk_that_fills_up_in_a_video(
    segmenter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_picture(tmp_path / "in" / "a.png")
    save_video(tmp_path / "in" / "b.mp4")
    out, write = tmp_path / "out", pieces.write_outputs
    predict(segmenter, [tmp_path / "in"], tmp_path / "whole")

    def fills_up(job: Any, task: Any, *given: Any) -> Any:
        if task.frame == 5:
            raise ResourceError("no space left")
        return write(job, task, *given)

    with monkeypatch.context() as patch:
        patch.setattr("segdeform.prediction.video.write_outputs", fills_up)
        with pytest.raises(ResourceError, match="no space left"):
            predict(segmenter, [tmp_path / "in"], out)
    assert (out / "masks" / "a.png").exists() and not (out / "overlays" / "b.mp4").exists()
    assert not list(out.rglob(".segdeform-*"))
    assert json.loads((out / "summary.json").read_text())["finished"] is False
    assert predict(segmenter, [tmp_path / "in"], out).kept == 1
    assert tree(out) == tree(tmp_path / "whole")


def test_a_disk_that_has_no_room_for_the_overlays(segmenter: Any, tmp_path: Path) -> None:
    """OpenCV goes on without a word where the system takes nothing any more."""
    video, out = save_video(tmp_path / "a.mp4", 40, (96, 128)), tmp_path / "out"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(ResourceError, match=r"a\.mp4: cannot be written.*run again"):
            predict(segmenter, [video], out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list((out / "overlays").iterdir()) and len(list((out / "masks/a").iterdir())) == 40
    assert predict(segmenter, [video], out).done and (out / "overlays" / "a.mp4").is_file()


def test_an_overlay_video_that_the_disk_did_not_take(tmp_path: Path) -> None:
    """OpenCV tells of no error while it writes."""
    video = OverlayVideo(tmp_path / "a.mp4", 25.0, (48, 64))
    for _ in range(3):
        video.add(np.zeros((48, 64, 3), np.uint8))
    with pytest.raises(ResourceError, match=r"a\.mp4: cannot be written"):
        video.finish(4)
    assert not list(tmp_path.iterdir())
    with pytest.raises(PartialFailureError, match="9000x20 pixels cannot be coded"):
        OverlayVideo(tmp_path / "b.mp4", 25.0, (20, 9000))
    assert not list(tmp_path.iterdir())


def test_a_frame_that_fails_ends_its_video_alone(segmenter: Any, tmp_path: Path) -> None:
    class Failing(Reddest):
        calls = 0

        def forward(self, images: Any) -> Any:
            self.calls += 1
            if self.calls == 6:
                raise MemoryError
            return super().forward(images)

    segmenter.model = Failing()
    save_video(tmp_path / "in" / "a.mp4")
    save_picture(tmp_path / "in" / "b.png")
    summary = predict(segmenter, [tmp_path / "in"], tmp_path / "out")
    assert [d.name for d in summary.done] == ["b"]
    ((_, reason),) = summary.failed
    assert reason.startswith("breaks at frame 5: ") and "--tile" in reason
    check_masks(tmp_path / "out/masks/a", 5)
    assert len(played(tmp_path / "out/overlays/a.mp4")) == 5


def test_pictures_and_videos_of_one_name(segmenter: Any, tmp_path: Path) -> None:
    save_video(tmp_path / "in" / "a.mp4")
    save_picture(tmp_path / "in" / "a.png")
    pixels = save_picture(tmp_path / "in" / "a" / "000003.png")
    for _ in range(2):
        summary = predict(segmenter, [tmp_path / "in"], tmp_path / "out")
        reasons = {source.name: reason for source, reason in summary.failed}
        assert reasons.keys() == {"a.png", "000003.png"}
        assert "would be a/000003.png, as that of a frame of" in reasons["000003.png"]
        assert [d.frames for d in summary.done] == [12]
        check_masks(tmp_path / "out" / "masks" / "a", 12)
    out = tmp_path / "third"
    (tmp_path / "in" / "a.mp4").rename(tmp_path / "a.mp4")
    predict(segmenter, [tmp_path / "in"], out)
    for other in ("masks/a.png", "overlays/a.jpg"):
        (out / other).unlink()
    with pytest.raises(UsageError, match=r"a/000003\.png is the mask of .*, not of .*a\.mp4"):
        predict(segmenter, [tmp_path / "a.mp4"], out)
    found = mask(out / "masks" / "a" / "000003.png")
    np.testing.assert_array_equal(found, pixels[..., [1, 0, 2]].argmax(2))
    predict(segmenter, [tmp_path / "a.mp4"], tmp_path / "fourth")
    (tmp_path / "in" / "a.png").unlink()
    with pytest.raises(UsageError, match=r"is the output of .*a\.mp4, not of .*3\.png"):
        predict(segmenter, [tmp_path / "in"], tmp_path / "fourth")


def test_shards_and_masks_alone(segmenter: Any, tmp_path: Path) -> None:
    for k in range(3):
        save_video(tmp_path / "in" / f"{k}.mp4", 4 + k)
    out = tmp_path / "out"
    for number in (1, 0):
        summary = predict(
            segmenter, [tmp_path / "in"], out, outputs=["masks"], shard=Shard(number, 2)
        )
    assert [d.frames for d in summary.done] == [4, 5, 6] and not summary.left
    assert sorted(path.name for path in out.iterdir()) == [
        *("failures.jsonl", "masks", "predictions.jsonl", "summary.json"),
    ]
    assert predict(segmenter, [tmp_path / "in"], out).kept == 0  # now with overlays
    assert len(played(out / "overlays" / "2.mp4")) == 6


def test_giant_frames_are_in_memory_alone(
    segmenter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = save_video(tmp_path / "a.mp4")
    predict(segmenter, [video], tmp_path / "small")
    monkeypatch.setattr("segdeform.prediction.predict._GIANT", 48 * 64 - 1)
    predict(segmenter, [video], tmp_path / "giant")
    assert tree(tmp_path / "small") == tree(tmp_path / "giant")


_OTHER_BYTES = """
import os, sys
from pathlib import Path
from segdeform.errors import DataError, PartialFailureError
from segdeform.prediction import video
clip = Path(sys.argv[1])
folder = clip.parent / os.fsdecode(b"folder-\\xff")
folder.mkdir()
odd = folder / "a.mp4"
os.link(clip, odd)
for act in (lambda: video._opened(odd), lambda: video.OverlayVideo(odd, 25.0, (48, 64))):
    try:
        act()
    except (DataError, PartialFailureError) as error:
        print("valid UTF-8" in str(error))
print(video.middle_frame(odd), len(list(folder.iterdir())))
os.chdir(folder)
Path("http:").mkdir()
video.OverlayVideo(Path("http:/x.mp4"), 25.0, (48, 64)).drop()
print(video.middle_frame(Path("a.mp4")).shape)
"""


def test_names_of_other_bytes_do_not_end_the_process(tmp_path: Path) -> None:
    """In a child, which OpenCV would take along; the folder that it is in is none of the name."""
    clip = save_video(tmp_path / "a.mp4", frames=2)
    child = subprocess.run(
        [sys.executable, "-c", _OTHER_BYTES, str(clip)],
        capture_output=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr[-500:]
    answers = child.stdout.decode().splitlines()
    assert answers == ["True", "True", "None 1", "(48, 64, 3)"]


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_what_never_ends_fails_alone(
    segmenter: Any, tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "a.mp4")
    save_picture(tmp_path / "b.png")
    whole = records.sha256

    def read(path: Path) -> str:
        assert path.name != "a.mp4", "read to its end, which never comes"
        return whole(path)

    monkeypatch.setattr(records, "sha256", read)
    summary = predict(segmenter, [tmp_path / "a.mp4", tmp_path / "b.png"], tmp_path / "out")
    assert [(path.name, why) for path, why in summary.failed] == [("a.mp4", "not a regular file")]
    assert [done.name for done in summary.done] == ["b"]
