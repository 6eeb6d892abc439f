"""A dry run tells what a training would take, and leaves every folder as it was."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segdeform.checking.report import SplitCount
from segdeform.cli import main
from segdeform.config.loading import dump_config
from segdeform.errors import InterruptedByUserError, UsageError
from segdeform.training import dry_run as rehearsals
from segdeform.training import dry_run_text as texts
from segdeform.training.dry_run import dry_run
from segdeform.training.dry_run_text import lines
from segdeform.training.loop import train
from segdeform.training.pace import Pace
from tests.training.conftest import ReporterThat, tiny_config


def _snapshot(root: Path) -> dict[str, tuple[str, int]]:
    return {
        str(path.relative_to(root)): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
            path.stat().st_mtime_ns,
        )
        for path in [root, *root.rglob("*")]
    }


def test_writes_nothing_and_later_weights_are_the_same(shapes: Path, tmp_path: Path) -> None:
    place = tmp_path / "runs"
    place.mkdir()
    config, hears = tiny_config(), {"workers": 0, "reporter": ReporterThat()}
    data, empty = _snapshot(shapes), _snapshot(place)
    told = dry_run(config, shapes, place / "deep" / "run", **hears)  # type: ignore[arg-type]
    assert (_snapshot(shapes), _snapshot(place)) == (data, empty)
    assert (told["first_step"], told["steps"], told["data"]["train"]["pictures"]) == (0, 4, 4)
    assert len(told["network"]["deformable_layers"]) == 2
    for role in ("train", "val"):
        _assert_counted(told["data"][role], shapes / role)
    assert told["machine"]["workers"] == 0
    _assert_filled_in(told)
    text = list(lines(told))
    assert all(len(line) <= 100 for line in text)
    assert any("all of 64x64 pixels" in line for line in text)
    assert told["compile"] is None and any("--set train.compile=true" in line for line in text)

    for run in ("one", "two"):
        if run == "two":
            dry_run(config, shapes, place / run, **hears)  # type: ignore[arg-type]
        train(config, shapes, place / run, **hears)  # type: ignore[arg-type]
    one, two = (place / run / "model" / "model.safetensors" for run in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    written = (place / "one" / "checkpoints" / "step-00000004").glob("*.safetensors")
    size = sum(path.stat().st_size for path in written)
    assert told["disk"]["checkpoint_bytes"] == pytest.approx(size, rel=0.03)  # and their headers

    before = _snapshot(place)
    with pytest.raises(UsageError, match="already holds a"):
        dry_run(config, shapes, place / "one", **hears)  # type: ignore[arg-type]
    dry_run(config, shapes, place / "one", overwrite=True, **hears)  # type: ignore[arg-type]
    told = dry_run(config, shapes, place / "one", resume=True, **hears)  # type: ignore[arg-type]
    assert told["finished"]
    assert _snapshot(place) == before


def _assert_counted(told: dict[str, Any], split: Path) -> None:
    """Compares what is told of a split with a count of its masks' bytes."""
    masks = [np.asarray(Image.open(path)) for path in (split / "masks").iterdir()]
    counts = np.bincount(np.concatenate([mask.ravel() for mask in masks]), minlength=256)
    classes = len(told["classes"])
    assert told["shares"] == pytest.approx(list(counts[:classes] / counts[:classes].sum()))
    assert told["ignored_share"] == pytest.approx(counts[255] / counts.sum())
    assert told["sizes"] == {
        **{key: [64, 64] for key in ("smallest", "commonest", "largest")},
        "different": 1,
    }


def _assert_filled_in(told: dict[str, Any]) -> None:
    """What no key said is told with what it became in the config of the run."""
    found = {choice["key"]: choice["value"] for choice in told["choices"]}
    assert found == {
        "data.channels": 3,
        "data.normalize": "imagenet",
        "data.mean": [0.485, 0.456, 0.406],
        "data.std": [0.229, 0.224, 0.225],
        "model.aspp_rates": [1, 1, 2],  # 6, 12, 18 times 48 / 512
        "eval.automatic_tile": 64,
    }
    for key, value in found.items():
        section, _, name = key.partition(".")
        assert told["config"][section][name] == value


def test_sizes_are_by_area_and_shares_by_rank() -> None:
    sizes = ((3, 40), (50, 4), (50, 4), (9, 20), (6, 30), (10, 11))
    pixels = (0, 5, 93, 2, 0, 100)
    told = rehearsals._counted(SplitCount("train", 6, pixels, 50, sizes))
    assert told["sizes"] == {
        "smallest": [10, 11],
        "commonest": [50, 4],
        "largest": [50, 4],
        "different": 5,
    }
    assert told["shares"] == [0, 0.025, 0.465, 0.01, 0, 0.5] and told["ignored_share"] == 0.2
    words = texts._shares([*"abcdef"], told["shares"])
    assert words == ("f 50.00%, c 46.50%, b 2.50%, d 1.00%; the rarest is d; in no mask: a, e")
    many = texts._shares([f"k{n}" for n in range(200)], [*range(199, 0, -1), 0])
    assert "rarest: k195" in many and "k199" in many.partition("in no mask: ")[2]
    assert "k100 " not in many


def test_choices_and_their_reasons_are_told_on_stdout(
    shapes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In both forms; and of a run that goes on, what it began with."""
    monkeypatch.setattr(rehearsals, "try_out", lambda *arguments: Pace(0.5, 2.0, 0.1, 3.0))
    (tmp_path / "c.yaml").write_text(dump_config(tiny_config(steps=2)))
    words = ["train", str(tmp_path / "c.yaml"), "--data", str(shapes), "--workers", "0"]
    words += ["--output", str(tmp_path / "run"), "--device", "cpu"]
    asked = ("data.crop", "model.aspp_rates", "train.class_weights", "train.warmup_steps")
    for key in asked:
        words += ["--set", f"{key}=auto"]
    assert main([*words, "--dry-run", "--json"]) == 0
    out, err = capsys.readouterr()
    choices = {choice["key"]: choice for choice in json.loads(out)["choices"]}
    assert tuple(choice["key"] for choice in json.loads(out)["choices"]) == (
        *asked,
        *(f"data.{key}" for key in ("channels", "normalize", "mean", "std")),
        "eval.automatic_tile",
    )
    assert choices["data.crop"]["value"] == [64, 64] == json.loads(out)["config"]["data"]["crop"]
    assert "data.crop=" not in err
    assert main([*words, "--dry-run"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"chosen: data.crop=[64, 64]: {choices['data.crop']['reason']}" in text
    assert all(choice["reason"] in text for choice in choices.values())

    assert main(words) == 0
    assert "  data.crop=[64, 64]: " in capsys.readouterr().err
    (tmp_path / "run" / "metrics.json").unlink()
    shutil.rmtree(tmp_path / "run" / "model")
    assert main([*words, "--resume", "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {choice["reason"] for choice in told["choices"][:4]} == {"what the run began with"}
    assert told["choices"][0]["value"] == [64, 64]


@pytest.mark.parametrize(
    ("seconds", "step", "says", "total"),
    [
        (30.0, 0.2, "it pays: train.compile=true, from step 10 on", 30 + 100 * 0.2),
        (301.0, 0.2, "train.compile=false; it would pay from step 101 on", 301 + 100 * 0.2),
        (30.0, 3.3, "it does not pay: train.compile=false is faster", 30 + 100 * 3.3),
        (None, 0.2, "cannot be compiled here", 100 * 0.2),
    ],
)
def test_steps_compiled_and_not_are_told(
    seconds: float | None,
    step: float,
    says: str,
    total: float,
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """3.2 s a step as it is; a hundred steps."""
    pace = Pace(step, 0.0, 0.0, 3.0, compiling=seconds)
    monkeypatch.setattr(rehearsals, "try_out", lambda *arguments: pace)
    monkeypatch.setattr(rehearsals, "step_seconds", lambda *arguments: 3.2)
    config = tiny_config(steps=100, compile=True, save_every=100)
    told = dry_run(config, shapes, tmp_path / "run", workers=0, reporter=ReporterThat())
    text = " ".join(" ".join(lines(told)).split())
    assert says in text and told["time"]["seconds"] == pytest.approx(total)
    assert told["compile"]["pays"] == ("it pays" in says)
    assert ("3.2 s a step without" in text) == (seconds is not None)


@pytest.mark.parametrize(("limit", "near"), [(100, True), (117, True), (118, False), (None, False)])
def test_memory_that_is_nearly_all_is_told(
    limit: int | None, near: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsals, "peak_memory", lambda device: 100 * 2**20)
    limit = None if limit is None else limit * 2**20
    told = rehearsals._memory(torch.device("cpu"), 70 * 2**20, limit)
    assert (told["peak_bytes"], told["near_limit"]) == (100 * 2**20, near)
    text = " ".join(texts._of_memory(told))
    assert ("that is nearly all" in text) == near and ("it may take" in text) == (limit is not None)


def test_too_little_room_is_refused_as_the_run_would_be(
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By the command, whose exit code scripts look at; an interruption is told as what it is."""
    (tmp_path / "c.yaml").write_text(dump_config(tiny_config(steps=2)))
    words = ["train", str(tmp_path / "c.yaml"), "--data", str(shapes), "--dry-run"]
    words += ["--output", str(tmp_path / "run"), "--workers", "0", "--device", "cpu"]
    pace = Pace(0.5, 2.0, 0.1, 3.0)
    monkeypatch.setattr(rehearsals, "try_out", lambda *arguments: pace)
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["time"]["seconds"] == pytest.approx(2 * 0.5 + 2.0 + 0.1)
    usage = SimpleNamespace(free=told["disk"]["needed_bytes"] - 1)
    monkeypatch.setattr(rehearsals.shutil, "disk_usage", lambda place: usage)
    assert main(words) == 7
    out, err = capsys.readouterr()
    assert "needed" in out and "without --dry-run it starts" not in out
    assert main([*words, "--profile"]) == 2 and "give one of them" in capsys.readouterr().err
    assert err.strip().splitlines()[-1].endswith("or make room")

    def interrupted(*arguments: object) -> Pace:
        raise InterruptedByUserError("saved at step 3: continue with --resume")

    monkeypatch.setattr(rehearsals, "try_out", interrupted)
    assert main(words) == 130
    assert "nothing is to be resumed" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
