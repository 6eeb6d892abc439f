"""Nothing is lost and nothing done twice: kills, changes, several processes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segdeform.errors import (
    InterruptedByUserError,
    ResourceError,
    RunLockedError,
    UsageError,
)
from segdeform.files.lock import run_lock, shared_lock
from segdeform.prediction import pieces, plan, records, writing
from segdeform.prediction import predict as module
from segdeform.prediction.job import settings_of
from segdeform.prediction.place import earlier_sources
from segdeform.prediction.predict import Shard, predict
from segdeform.prediction.records import (
    Done,
    Part,
    add_done,
    input_file,
    is_same_file,
    read_done,
    read_failures,
)
from segdeform.results import files
from segdeform.results.outputs import KINDS, Forms
from tests.prediction.test_predict import Reddest, save_picture, segmenter, tree

__all__ = ["segmenter"]  # a fixture


@pytest.fixture
def counted(segmenter: Any) -> tuple[Any, list[tuple[int, int]]]:
    """A segmenter, and the sizes of the pictures that its network has seen."""
    seen: list[tuple[int, int]] = []

    class Counting(Reddest):
        def forward(self, images: Any) -> Any:
            seen.append(tuple(images.shape[2:]))
            return super().forward(images)

    segmenter.model = Counting()
    return segmenter, seen


def folder_of(path: Path, count: int) -> Path:
    for k in range(count):
        save_picture(path / f"{k:02d}.png", k, (12, 20 + k))
    return path


@contextmanager
def open_beside(output: Path) -> Iterator[None]:
    """Holds an output folder as another shard would."""
    with shared_lock(output, lambda: None):
        yield


def names(lines: Path) -> list[str]:
    return [json.loads(line)["name"] for line in lines.read_text().splitlines()]


def test_what_is_done_is_not_done_again(counted: Any, tmp_path: Path) -> None:
    segmenter, seen = counted
    pictures, out = folder_of(tmp_path / "in", 4), tmp_path / "out"
    predict(segmenter, [pictures], out)
    before = tree(out)
    steps: list[tuple[int, int]] = []
    again = predict(
        segmenter, [pictures], out, progress=lambda done, total: steps.append((done, total))
    )
    assert len(seen) == 4 and (len(again.done), again.kept) == (4, 4)
    assert tree(out) == before and steps == []
    save_picture(pictures / "02.png", 99, (12, 77))  # another picture of the name
    os.utime(pictures / "01.png", ns=(1, 1))  # the same picture, copied anew
    (out / "masks" / "03.png").unlink()
    save_picture(pictures / "04.png", 4, (12, 50))
    summary = predict(
        segmenter, [pictures], out, progress=lambda done, total: steps.append((done, total))
    )
    assert summary.kept == 2 and steps == [(3, 5), (4, 5), (5, 5)]
    assert [width for _, width in seen[4:]] == [77, 23, 50]
    assert names(out / "predictions.jsonl") == ["00", "01", "02", "03", "04"]


@pytest.mark.parametrize("change", ["model", "options", "overlays", "overwrite", "range"])
def test_what_would_be_otherwise_is_done_again(counted: Any, tmp_path: Path, change: str) -> None:
    segmenter, seen = counted
    pictures, out = folder_of(tmp_path / "in", 2), tmp_path / "out"
    predict(segmenter, [pictures], out, outputs=["masks"])
    if change == "model":
        segmenter.info = {"sha256": "other"}
    if change == "options":
        segmenter = segmenter.with_options(flip=True)
    if change == "range":
        segmenter.value_range = (0.0, 100.0)
    outputs = ["masks", "overlays"] if change == "overlays" else ["masks"]
    more: dict[str, Any] = {"outputs": outputs, "overwrite": change == "overwrite"}
    assert predict(segmenter, [pictures], out, **more).kept == 0
    assert len(seen) == (6 if change == "options" else 4)
    assert predict(segmenter, [pictures], out, outputs=["masks"]).kept == 2
    assert names(out / "predictions.jsonl") == ["00", "01"]


def test_failures_are_noted_as_they_happen_and_tried_again(counted: Any, tmp_path: Path) -> None:
    segmenter, _ = counted
    pictures, out = folder_of(tmp_path / "in", 3), tmp_path / "out"
    whole = (pictures / "01.png").read_bytes()
    (pictures / "01.png").write_bytes(whole[:100])
    predict(segmenter, [pictures], out)
    assert list(read_failures(out)) == [Part(str(pictures / "01.png"))]
    sources = json.loads((out / "summary.json").read_text())["sources"]
    assert list(sources) == ["00", "02"]  # of the masks that are there
    assert names(out / "predictions.jsonl") == ["00", "02"]
    (pictures / "01.png").write_bytes(whole)
    summary = predict(segmenter, [pictures], out)
    assert (len(summary.done), summary.kept, summary.failed) == (3, 2, [])
    assert not (out / "failures.jsonl").read_text()
    save_picture(tmp_path / "other" / "x.png")
    (tmp_path / "other" / "y.png").write_bytes(b"")
    predict(segmenter, [tmp_path / "other"], out)
    predict(segmenter, [pictures], out)  # what became of other pictures stays told
    assert len(read_done(out)) == 4 and list(read_failures(out)) == [
        Part(str(tmp_path / "other/y.png"))
    ]


def test_a_line_that_was_cut_short_is_not_believed(counted: Any, tmp_path: Path) -> None:
    segmenter, seen = counted
    pictures, out = folder_of(tmp_path / "in", 3), tmp_path / "out"
    predict(segmenter, [pictures], out)
    path = out / "predictions.jsonl"
    path.write_text(path.read_text()[:-40] + '\n{"name": 5}\n[1]\nnonsense\n{"na')
    extra = Done(Path("p"), "p", (1, 1), {})
    add_done(out, extra)
    assert list(read_done(out)) == ["00", "01", "p"]
    assert predict(segmenter, [pictures], out).kept == 2
    assert len(seen) == 4 and names(path)[-1] == "02"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("size", "[1e999, 1]"),
        ("frames", "1e999"),
        ("shares", '{"red": NaN}'),
        ("shares", "5"),
        ("input", '{"bytes": 1e999, "mtime_ns": 1, "sha256": ""}'),
        ("input", "[5]"),
    ],
)
def test_a_line_that_was_edited_is_not_believed(
    counted: Any, tmp_path: Path, key: str, value: str
) -> None:
    segmenter, seen = counted
    pictures, out = folder_of(tmp_path / "in", 2), tmp_path / "out"
    predict(segmenter, [pictures], out)
    whole = tree(out)
    path = out / "predictions.jsonl"
    lines = path.read_text().splitlines()
    edited = json.dumps({**json.loads(lines[0]), key: "HERE"}).replace('"HERE"', value)
    other = edited.replace('"name": "00"', '"name": "another"')
    path.write_text(f"{edited}\n{lines[1]}\n{other}\n")
    assert predict(segmenter, [pictures], out).kept == 1
    assert len(seen) == 3 and tree(out) == whole


def test_a_summary_that_was_edited_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "a.png").touch()
    done = [{"name": [], "picture": "p"}, {"name": "a", "picture": 5}, {"name": "a"}, 7]
    summary = {"format": "segdeform-prediction", "done": done}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert earlier_sources(tmp_path) == {"a": ""}


def test_a_line_that_a_full_disk_cut_short_is_told(tmp_path: Path) -> None:
    done = Done(Path("p"), "p", (1, 1), {"red": 1.0})
    add_done(tmp_path, done)
    size = (tmp_path / "predictions.jsonl").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, before[1]))
    try:
        with pytest.raises(ResourceError, match="cannot be written"):
            add_done(tmp_path, Done(Path("q"), "q", (1, 1), {"red": 1.0}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert read_done(tmp_path) == {"p": done}


@pytest.mark.parametrize("count", [2, 3])
def test_shards_do_each_picture_once(counted: Any, tmp_path: Path, count: int) -> None:
    segmenter, seen = counted
    pictures, out = folder_of(tmp_path / "in", 7), tmp_path / "out"
    (pictures / "05.png").write_bytes(b"broken")
    left = []
    for number in reversed(range(count)):
        summary = predict(segmenter, [pictures], out, shard=Shard(number, count))
        assert summary.kept == 0
        left.append(summary.left)
        finished = json.loads((out / "summary.json").read_text())["finished"]
        assert finished is (number == 0) is (out / "overview.png").exists()
    assert sorted(left, reverse=True) == left and left[-1] == 0
    assert sorted(width for _, width in seen) == [20, 21, 22, 23, 24, 26]
    predict(segmenter, [pictures], tmp_path / "whole")
    assert tree(out) == {
        name: digest
        if name != "summary.json"
        else tree(out)[name]  # which tells masks there before
        for name, digest in tree(tmp_path / "whole").items()
    }
    save_picture(pictures / "05.png", 5, (12, 25))
    for number in range(count):
        with open_beside(out):  # so that no process is the first
            predict(segmenter, [pictures], out, shard=Shard(number, count))
    assert not read_failures(out) and len(read_done(out)) == 7


def test_a_shard_that_is_not_the_first_overwrites_too(counted: Any, tmp_path: Path) -> None:
    segmenter, seen = counted
    pictures, out = folder_of(tmp_path / "in", 5), tmp_path / "out"
    predict(segmenter, [pictures], out)
    with open_beside(out):
        for number in (0, 1):
            predict(segmenter, [pictures], out, shard=Shard(number, 2), overwrite=True)
    assert sorted(width for _, width in seen[5:]) == [20, 21, 22, 23, 24]
    predict(segmenter, [pictures], out)
    assert names(out / "predictions.jsonl") == ["00", "01", "02", "03", "04"]


def test_a_picture_that_fails_in_a_later_shard_is_no_prediction_any_more(
    counted: Any, tmp_path: Path
) -> None:
    segmenter, _ = counted
    pictures, out = folder_of(tmp_path / "in", 4), tmp_path / "out"
    predict(segmenter, [pictures], out)
    (pictures / "01.png").write_bytes(b"broken")
    (out / "masks" / "00.png").unlink()

    class Beside(Reddest):
        def forward(self, images: Any) -> Any:
            segmenter.model = Reddest()
            predict(segmenter, [pictures], out, shard=Shard(1, 2))
            return super().forward(images)

    segmenter.model = Beside()
    summary = predict(segmenter, [pictures], out, shard=Shard(0, 2))
    assert [source.name for source, _ in summary.failed] == ["01.png"]
    assert names(out / "predictions.jsonl") == ["00", "02", "03"]


def test_what_a_shard_does_anew_is_not_done_for_the_others(counted: Any, tmp_path: Path) -> None:
    """Else one that ends earlier would say that all is finished."""
    segmenter, _ = counted
    pictures, out = folder_of(tmp_path / "in", 4), tmp_path / "out"
    predict(segmenter, [pictures], out)
    (out / "masks" / "01.png").unlink()
    left: list[int] = []

    class Beside(Reddest):
        def forward(self, images: Any) -> Any:
            segmenter.model = Reddest()
            left.append(predict(segmenter, [pictures], out, shard=Shard(0, 2)).left)
            return super().forward(images)

    segmenter.model = Beside()
    with open_beside(out):
        assert predict(segmenter, [pictures], out, shard=Shard(1, 2)).left == 0
    assert left == [1]


def test_shards_may_share_a_folder_that_nobody_else_may_have(counted: Any, tmp_path: Path) -> None:
    segmenter, _ = counted
    pictures, out = folder_of(tmp_path / "in", 4), tmp_path / "out"
    with run_lock(out), pytest.raises(RunLockedError, match="in use by process"):
        predict(segmenter, [pictures], out)
    beside: list[int] = []

    class Beside(Reddest):
        def forward(self, images: Any) -> Any:
            if not beside:
                beside.append(1)
                other = Shard(1, 2)
                kept = [out / "masks" / ".segdeform-0123456789abcdef.tmp.png"]
                kept[0].parent.mkdir(parents=True, exist_ok=True)
                kept[0].touch()  # a file that a process writes just now
                segmenter.model = Reddest()
                assert predict(segmenter, [pictures], out, shard=other).left == 2
                assert kept[0].exists()
                kept[0].unlink()
                with pytest.raises(RunLockedError):
                    predict(segmenter, [pictures], out)
            return super().forward(images)

    segmenter.model = Beside()
    assert predict(segmenter, [pictures], out, shard=Shard(0, 2)).left == 0
    assert not (out / ".lock").exists()


def test_a_disk_that_is_full_keeps_what_is_done(
    counted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter, seen = counted
    pictures, out = folder_of(tmp_path / "in", 6), tmp_path / "out"
    write = files.write_index_png
    left = 2

    def fills_up(*arguments: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise ResourceError("no space left")
        write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_index_png", fills_up)
        with pytest.raises(ResourceError, match="no space left"):
            predict(segmenter, [pictures], out)
    assert names(out / "predictions.jsonl") == ["00", "01"]
    assert json.loads((out / "summary.json").read_text())["finished"] is False
    computed = len(seen)
    assert predict(segmenter, [pictures], out).kept == 2
    assert len(seen) == computed + 4


def test_leftovers_of_a_killed_run_are_removed(counted: Any, tmp_path: Path) -> None:
    segmenter, _ = counted
    pictures, out = folder_of(tmp_path / "in" / "deep", 2).parent, tmp_path / "out"
    predict(segmenter, [pictures], out)
    before = tree(out)
    for place in (out, out / "masks" / "deep", out / "overlays" / "deep"):
        (place / ".segdeform-00112233445566ff.tmp.png").write_bytes(b"half")
    (out / "masks" / "deep" / "mine.tmp").write_bytes(b"somebody's")
    predict(segmenter, [pictures], out)
    assert tree(out) == before | {"masks/deep/mine.tmp": hashlib.sha256(b"somebody's").hexdigest()}


@pytest.mark.parametrize("how", ["killed", "disk full"])
def test_what_ended_before_it_began_is_run_again(
    counted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    segmenter, _ = counted
    pictures, out = folder_of(tmp_path / "in", 2), tmp_path / "out"

    def die(*_: object, **__: object) -> None:
        raise KeyError("as if killed")

    if how == "killed":
        for step in ("write_anew", "write_summary"):
            with monkeypatch.context() as patch:
                patch.setattr(plan, step, die)
                with pytest.raises(KeyError):
                    predict(segmenter, [pictures], out)
    else:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limit[1]))
        try:
            with pytest.raises(ResourceError, match="cannot be written"):
                predict(segmenter, [pictures], out)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    predict(segmenter, [pictures], out)
    predict(segmenter, [pictures], tmp_path / "whole")
    assert tree(out) == tree(tmp_path / "whole")


FORMS = Forms(cutout_class="red", min_area=3)
KILLED = """
import sys, time
from pathlib import Path
import numpy as np, torch
from segdeform.config.schema import EvalConfig
from segdeform.results.outputs import KINDS
from segdeform.prediction.predict import predict
from segdeform.segmenter import Segmenter
from tests.prediction.test_predict import PALETTE, Reddest
from tests.prediction.test_records import FORMS

torch.set_num_threads(1)
segmenter = Segmenter(
    Reddest(), ("green", "red", "blue"), PALETTE, EvalConfig(), torch.device("cpu"), {"sha256": "k"}
)
print("ready", flush=True)
predict(segmenter, [Path(sys.argv[1])], Path(sys.argv[2]), outputs=tuple(KINDS), forms=FORMS)
"""


def killed_runs(pictures: Path, out: Path, kills: int) -> None:
    """Starts a prediction again and again, and kills it after a random time, until it ends."""
    chance = random.Random(kills)
    for attempt in range(kills + 1):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(pictures), str(out)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()  # torch is imported
        if attempt < kills:
            time.sleep(chance.uniform(0, 0.25))
            process.send_signal(signal.SIGKILL)
        code = process.wait(120)
        assert code in (0, -signal.SIGKILL)
    assert code == 0


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_lose_nothing(segmenter: Any, tmp_path: Path, kills: int) -> None:
    pictures = tmp_path / "in"
    for k in range(60):
        save_picture(pictures / f"{k % 7}" / f"{k:02d}.png", k, (40, 60))
    for k in (3, 33):
        (pictures / f"{k % 7}" / f"{k:02d}.png").write_bytes(b"broken")
    killed_runs(pictures, tmp_path / "killed", kills)
    segmenter.info = {"sha256": "k"}
    whole_run: dict[str, Any] = {"outputs": tuple(KINDS), "forms": FORMS}
    summary = predict(segmenter, [pictures], tmp_path / "whole", **whole_run)
    assert (len(summary.done), len(summary.failed)) == (58, 2)
    killed, whole = tree(tmp_path / "killed"), tree(tmp_path / "whole")
    assert len(whole) == 58 * len(KINDS) + 4
    assert killed.keys() == whole.keys()
    assert {name for name in whole if killed[name] != whole[name]} <= {"summary.json"}
    assert len(names(tmp_path / "killed" / "predictions.jsonl")) == 58
    value = json.loads((tmp_path / "killed" / "summary.json").read_text())
    assert value["finished"] is True and len(value["done"]) == 58 and len(value["failed"]) == 2


def test_a_shard_is_one_of_its_count() -> None:
    from segdeform.cli.predict import _shard

    assert _shard("2/8") == (1, 8)
    for wrong in ("0/2", "3/2", "1", "a/b", "-1/2", "1/2/3"):
        with pytest.raises(UsageError, match="expected I/N"):
            _shard(wrong)


def test_giant_pictures_are_read_alone(
    counted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter, seen = counted
    pictures = folder_of(tmp_path / "in", 6)
    expected = predict(segmenter, [pictures], tmp_path / "small").to_json()["done"]
    monkeypatch.setattr(module, "_GIANT", 12 * 22)
    found = predict(segmenter, [pictures], tmp_path / "giant").to_json()["done"]
    assert found == expected
    for name in ("00", "05"):
        masks = [
            np.asarray(Image.open(tmp_path / f / "masks" / f"{name}.png"))
            for f in ("small", "giant")
        ]
        np.testing.assert_array_equal(*masks)
    assert len(seen) == 12


def test_what_failed_and_is_not_tried_again_yet_is_left(counted: Any, tmp_path: Path) -> None:
    segmenter, _ = counted
    pictures, out = folder_of(tmp_path / "in", 3), tmp_path / "out"
    (pictures / "01.png").write_bytes(b"broken")
    predict(segmenter, [pictures], out)
    with pytest.raises(InterruptedByUserError):
        predict(segmenter, [pictures], out, stop=lambda: True)
    value = json.loads((out / "summary.json").read_text())
    assert (value["finished"], value["left"], value["failed"]) == (False, 1, [])


def test_a_picture_called_by_another_path_is_told_by_it(
    counted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter, _ = counted
    pictures, out = folder_of(tmp_path / "in", 2), tmp_path / "out"
    monkeypatch.chdir(tmp_path)
    predict(segmenter, [Path("in")], out)
    summary = predict(segmenter, [pictures], out)
    assert (summary.kept, summary.left) == (2, 0)
    assert [done.source for done in summary.done] == [pictures / "00.png", pictures / "01.png"]


def test_masks_of_another_model_are_still_to_be_done_by_the_other_shards(
    counted: Any, tmp_path: Path
) -> None:
    segmenter, _ = counted
    pictures, out = folder_of(tmp_path / "in", 5), tmp_path / "out"
    predict(segmenter, [pictures], out)
    segmenter.info = {"sha256": "other"}
    assert predict(segmenter, [pictures], out, shard=Shard(0, 2)).left == 2
    assert json.loads((out / "summary.json").read_text())["finished"] is False


@pytest.mark.parametrize(
    "change",
    [
        {"bands": (2, 0, 1)},
        {"device": torch.device("meta")},
        {"value_range": (0.0, 9.0)},
        {"precision": "bf16"},
        {"compiled": True},
    ],
)
def test_all_that_changes_a_mask_is_in_the_settings(segmenter: Any, change: dict[str, Any]) -> None:
    changed = dataclasses.replace(segmenter, **change)
    assert settings_of(changed) != settings_of(segmenter)
    new = {"precision", "compiled"}  # unknown to earlier versions, whose records hold as before
    assert new.isdisjoint(settings_of(segmenter))


def test_a_file_that_did_not_change_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_picture(tmp_path / "a.png")
    known = input_file(tmp_path / "a.png")
    monkeypatch.setattr(records, "sha256", lambda path: pytest.fail("read"))
    assert is_same_file(tmp_path / "a.png", known)


def test_every_output_of_a_failed_picture_goes(tmp_path: Path) -> None:
    for name in ("masks/d/a.png", "overlays/d/a.jpg", "overlays/d/a.png", "overlays/d/ab.png"):
        save_picture(tmp_path / name)
    writing.remove_outputs(tmp_path, "d/a")
    assert list(tree(tmp_path)) == ["overlays/d/ab.png"]


def test_one_writes_and_nothing_is_written_beside_a_giant(
    segmenter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = folder_of(tmp_path / "in", 6)
    monkeypatch.setattr(module, "_GIANT", 12 * 24)  # 05 alone is larger
    write, read = pieces.write_outputs, pieces.read_picture
    at_work: list[str] = []

    def writes(job: Any, task: Any, *given: Any) -> Done:
        at_work.append(task.name)
        time.sleep(0.02)
        assert at_work == [task.name]
        done = write(job, task, *given)
        at_work.clear()
        return done

    def reads(job: Any, task: Any, limit: int | None = None) -> Any:
        assert limit is not None or not at_work
        return read(job, task, limit)

    monkeypatch.setattr(pieces, "write_outputs", writes)
    monkeypatch.setattr(pieces, "read_picture", reads)
    assert len(predict(segmenter, [pictures], tmp_path / "out").done) == 6


@pytest.mark.parametrize("output", ["masks/01.png", "overlays/01.jpg"])
@pytest.mark.parametrize("what", ["folder", "fifo"])
def test_what_took_the_place_of_an_output_is_no_output(
    counted: Any, tmp_path: Path, output: str, what: str
) -> None:
    segmenter, seen = counted
    pictures, out = folder_of(tmp_path / "in", 3), tmp_path / "out"
    predict(segmenter, [pictures], out)
    (out / output).unlink()
    (out / output).mkdir() if what == "folder" else os.mkfifo(out / output)
    summary = predict(segmenter, [pictures], out)
    assert len(seen) == 4 and summary.kept == 2
    failed = [source.name for source, _ in summary.failed]
    assert failed == (["01.png"] if what == "folder" else [])
    assert (out / output).is_dir() == (what == "folder")


@pytest.mark.parametrize("name", ["masks", "overview.png", "predictions.jsonl", "failures.jsonl"])
def test_outputs_that_are_something_else_are_told_first(
    counted: Any, tmp_path: Path, name: str
) -> None:
    segmenter, seen = counted
    pictures, out = folder_of(tmp_path / "in", 1), tmp_path / "out"
    predict(segmenter, [pictures], out)
    (out / name).rename(tmp_path / "away")
    for kind in (os.mkfifo, Path.touch if name == "masks" else Path.mkdir):
        kind(out / name)
        with pytest.raises(UsageError, match=f"{name}: is not a"):
            predict(segmenter, [pictures], out, overwrite=True)
        (out / name).rename(tmp_path / kind.__name__)
    (out / "summary.json").unlink()
    os.mkfifo(out / "summary.json")  # which nobody ever writes into
    with pytest.raises(UsageError, match="something else than an earlier prediction"):
        predict(segmenter, [pictures], out)
    assert len(seen) == 1


def test_a_mask_that_could_not_be_replaced_stays_that_of_its_picture(
    counted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a folder that was read-only for a while."""
    segmenter, _ = counted
    pictures, out = folder_of(tmp_path / "in", 2), tmp_path / "out"
    predict(segmenter, [pictures], out)

    def refuse(*arguments: Any) -> None:
        raise UsageError("cannot be written")

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_index_png", refuse)
        patch.setattr(module, "remove_outputs", lambda output, name: None)
        assert len(predict(segmenter, [pictures], out, overwrite=True).failed) == 2
    assert len(predict(segmenter, [pictures], out).done) == 2
