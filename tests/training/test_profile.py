"""Where the time of a training goes: all of it, told at the end, without changing a bit."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from segdeform.config.schema import Config
from segdeform.errors import ResourceError, StoppedError
from segdeform.training import profile as profiles
from segdeform.training.loop import train
from segdeform.training.profile import PHASES, REST, lines, summary, verdict
from tests.training.conftest import ReporterThat, send, tiny_config

OPTIONS: dict[str, Any] = {"device": "cpu", "workers": 0}


def plan(device: str = "cpu", cache: object = None, **train: Any) -> Any:
    return SimpleNamespace(
        config=Config.model_validate({"train": {"eval_every": 5, **train}}),
        workers=1,
        device=SimpleNamespace(type=device),
        train_set=SimpleNamespace(cache=cache),
        val_sets=(SimpleNamespace(split="val"),),
    )


@pytest.mark.parametrize("keys", [{}, {"accumulate": 2}, {"accumulate": 2, "loss": "dice"}])
def test_all_of_the_time_is_told_and_no_bit_changes(
    shapes: Path, tmp_path: Path, keys: dict[str, Any]
) -> None:
    config = tiny_config(steps=3, batch_size=4, eval_every=2, save_every=2, **keys)
    reporter = ReporterThat()
    train(config, shapes, tmp_path / "a", profile=True, reporter=reporter, **OPTIONS)
    train(config, shapes, tmp_path / "b", reporter=ReporterThat(), **OPTIONS)
    ends = [(tmp_path / run / "model" / "model.safetensors").read_bytes() for run in "ab"]
    assert ends[0] == ends[1]
    assert not (tmp_path / "b" / "profile.json").exists()
    facts = json.loads((tmp_path / "a" / "profile.json").read_text())
    assert set(facts["shares"]) == {*PHASES, REST}
    assert sum(facts["shares"].values()) == pytest.approx(1)
    assert sum(facts["seconds"].values()) == pytest.approx(facts["wall_seconds"], abs=0.01)
    assert all(seconds > 0 for seconds in facts["seconds"].values()), facts["seconds"]
    assert facts["steps"] == 3 and facts["shares"][REST] < 0.5
    assert facts["verdict"] in reporter.messages
    assert any(message.startswith("profile: 3 steps in ") for message in reporter.messages)


def test_a_run_that_is_stopped_tells_too(shapes: Path, tmp_path: Path) -> None:
    reporter = ReporterThat(2, send(15))
    with pytest.raises(StoppedError):
        train(tiny_config(), shapes, tmp_path, profile=True, reporter=reporter, **OPTIONS)
    assert json.loads((tmp_path / "profile.json").read_text())["steps"] == 2
    train(tiny_config(), shapes, tmp_path, overwrite=True, reporter=ReporterThat(), **OPTIONS)
    assert not (tmp_path / "profile.json").exists()


def test_a_profile_that_cannot_be_written_changes_no_ending(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise ResourceError("the disk is full")

    monkeypatch.setattr(profiles, "write_json", full)
    reporter = ReporterThat(2, send(15))
    with pytest.raises(StoppedError, match="saved at step 2"):
        train(tiny_config(), shapes, tmp_path, profile=True, reporter=reporter, **OPTIONS)
    assert "warning: the disk is full" in reporter.messages


@pytest.mark.parametrize(
    ("spent", "given", "says"),
    [
        ({"loader wait": 4}, {}, r"The loader bounds it: for 40% .* --workers \(1 now\), or `segd"),
        ({"loader wait": 4}, {"cache": 1}, r"More --workers \(1 now\) would help"),
        ({"evaluation": 5}, {}, r"Evaluations take 50% .* train.eval_every \(5 now\)"),
        ({"saving": 2}, {"save_every": 7}, r"Saving takes 20% .* train.save_every \(7 now\)"),
        ({"forward": 3, "backward": 5}, {}, r"The network bounds it, with 80%.* train.precision=a"),
        ({"forward": 8}, {"precision": "bf16"}, r"with 80% of the time: a smaller data.crop, few"),
        ({"forward": 8}, {"device": "cuda"}, r"more GPUs \(torchrun\)"),
        ({"forward": 1}, {}, "none of these"),
    ],
)
def test_the_verdict(spent: dict[str, float], given: dict[str, Any], says: str) -> None:
    facts = summary(spent, 10.0, 4)
    facts["verdict"] = verdict(facts["shares"], plan(**given))
    assert re.search(says, facts["verdict"])
    told = list(lines(facts))
    assert told[-1] == facts["verdict"] and len(told) == len(PHASES) + 3


def test_a_phase_of_a_gpu_ends_with_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(
        profiles.torch.cuda, "synchronize", lambda device: order.append("synchronised")
    )
    watch = profiles.Stopwatch()
    clock = profiles._waiting_for(SimpleNamespace(type="cuda"), watch)  # type: ignore[arg-type]
    with clock("forward"):
        order.append("launched")
    assert order == ["launched", "synchronised"] and watch.seconds["forward"] > 0
