"""Which network a run ends with, and when: by the scores of its evaluations."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from segdeform.config.schema import Config, TrainConfig
from segdeform.data import load_dataset
from segdeform.errors import ConfigError, SegdeformError
from segdeform.evaluation.evaluate import Evaluation, evaluate
from segdeform.evaluation.run import run_evaluation
from segdeform.evaluation.wanted import Wanted
from segdeform.files.tensors import read_tensors
from segdeform.segmenter import load
from segdeform.training import loop
from segdeform.training.best import best_step, has_waited_long_enough
from segdeform.training.loop import train
from segdeform.training.run_folder import best_folders, checkpoint_folders
from tests.ranks import Ranks, run_ranks
from tests.training.conftest import ReporterThat, tiny_config

NAN = math.nan
OPTIONS: dict[str, Any] = {"device": "cpu", "workers": 0}


def steps(run: Path) -> list[int]:
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [entry["step"] for entry in lines if entry["kind"] == "val"]


def files(run: Path) -> dict[str, bytes]:
    return {name: (run / name).read_bytes() for name in ("model/model.safetensors", "metrics.json")}


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ({}, None),
        ({2: 0.1, 4: 0.3, 6: 0.2}, 4),
        ({6: 0.3, 2: 0.3, 4: 0.1}, 2),  # the first of equal ones
        ({2: NAN, 4: 0.0, 6: NAN}, 4),
        ({2: NAN, 4: NAN}, None),
    ],
)
def test_the_best_step(scores: dict[int, float], best: int | None) -> None:
    assert best_step(scores) == best


def test_patience_counts_evaluations_since_the_best() -> None:
    scores = {10: 0.2, 20: 0.5, 30: 0.5, 40: 0.4}
    for patience, over in ((1, True), (2, True), (3, False)):
        assert has_waited_long_enough(TrainConfig(patience=patience), scores) == over
    assert not has_waited_long_enough(TrainConfig(patience=2), {10: 0.2, 20: 0.3, 30: 0.1})
    assert not has_waited_long_enough(TrainConfig(), scores)
    assert not has_waited_long_enough(TrainConfig(patience=1), {})


def decided(monkeypatch: pytest.MonkeyPatch, scores: dict[int, float]) -> None:
    """Has the interval evaluations of a run score as wanted; the final one is real."""
    score_now = loop.score_now

    def score(plan: Any, state: Any, *more: Any) -> list[Evaluation]:
        evaluation, *others = score_now(plan, state, *more)
        changed = replace(evaluation.scores, miou=scores[state.step])
        evaluation.__dict__["scores"] = changed  # where a cached property keeps its value
        return [evaluation, *others]

    monkeypatch.setattr(loop, "score_now", score)


def config_of(**keys: Any) -> Config:
    return tiny_config(steps=5, eval_every=1, save_every=2, lr=0.05, **keys)


def test_the_best_network_is_kept(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is that of its step, and scored as `eval` scores it."""
    decided(monkeypatch, {1: 0.2, 2: 0.9, 3: 0.9, 4: 0.3})
    reporter = ReporterThat()
    done = train(config_of(keep_best=True), shapes, tmp_path / "a", reporter=reporter, **OPTIONS)
    assert (done.steps, done.weights_step) == (5, 2)
    train(tiny_config(steps=5, lr=0.05, save_every=1), shapes, tmp_path / "b", **OPTIONS)
    assert any("kept is the network of step 2" in m and "best of 5" in m for m in reporter.messages)
    kept = read_tensors(tmp_path / "a" / "model" / "model.safetensors")
    last = read_tensors(checkpoint_folders(tmp_path / "a")[0] / "model.safetensors")
    two = read_tensors(tmp_path / "a" / "checkpoints" / "best-00000002" / "model.safetensors")
    assert all((kept[name] == two[name]).all() for name in two)
    assert not all((kept[name] == last[name]).all() for name in last)
    segmenter = load(tmp_path / "a", "cpu")
    assert segmenter.info["training"]["chosen"] == {
        "step": 2,
        "by": "mIoU on val",
        "evaluations": 5,
    }
    result = evaluate(segmenter, load_dataset("shapes", shapes, "val")).to_json()
    assert result == json.loads((tmp_path / "a" / "metrics.json").read_text())
    said: list[str] = []
    run_evaluation(tmp_path / "a", shapes, "shapes", "val", Wanted(), device="cpu", say=said.append)
    assert any("chosen as the best of 5 by the score on this split" in text for text in said)
    said.clear()
    run_evaluation(tmp_path / "b", shapes, "shapes", "val", Wanted(), device="cpu", say=said.append)
    assert not any("chosen" in text for text in said)
    assert [path.name for path in best_folders(tmp_path / "a")] == ["best-00000002"]
    # What is trained does not depend on it.
    plain = read_tensors(checkpoint_folders(tmp_path / "b")[0] / "model.safetensors")
    assert all((plain[name] == last[name]).all() for name in last)


def test_training_ends_when_nothing_gets_better(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decided(monkeypatch, {1: 0.2, 2: 0.9, 3: 0.9, 4: 0.3})
    reporter = ReporterThat()
    config = config_of(patience=2)
    result = train(config, shapes, tmp_path, reporter=reporter, **OPTIONS)
    assert result.steps == 4 and steps(tmp_path) == [1, 2, 3, 4]
    assert "no better for 2 evaluations: ended at step 4 of 5" in reporter.messages
    assert checkpoint_folders(tmp_path)[0].name == "step-00000004"
    before = files(tmp_path)
    again = ReporterThat()
    assert train(config, shapes, tmp_path, resume=True, reporter=again, **OPTIONS) == result
    assert any("is finished: 4 steps" in message for message in again.messages)
    # A kill before the model was written: the checkpoint alone tells that it is over.
    shutil.rmtree(tmp_path / "model")
    (tmp_path / "metrics.json").unlink()
    again = ReporterThat()
    train(config, shapes, tmp_path, resume=True, reporter=again, **OPTIONS)
    assert files(tmp_path) == before


def is_killed(config: str, data: Path, run: Path, at: int, where: str) -> None:
    """Trains with --resume and is killed, once, where it saves, evaluates or keeps the best."""
    done = run.with_name("killed")
    name = {"save": "_save", "evaluate": "_evaluate", "best": "keep_best", "end": "_finish"}[where]
    real = getattr(loop, name)

    def dies(plan: Any, state: Any, *more: Any) -> None:
        if state.step >= at and not done.exists():
            if where == "best":
                real(plan, state, *more)  # it was written, and its checkpoint was not
            done.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        real(plan, state, *more)

    setattr(loop, name, dies)
    options = {"resume": True, "reporter": ReporterThat(), **OPTIONS}
    train(Config.model_validate_json(config), data, run, **options)


@pytest.mark.parametrize(
    ("at", "where"), [(2, "save"), (3, "evaluate"), (3, "best"), (1, "best"), (1, "end")]
)
def test_a_kill_changes_neither_the_choice_nor_the_end(
    shapes: Path, tmp_path: Path, at: int, where: str
) -> None:
    keys = {"keep_best": True, "patience": 2, "ema_decay": 0.9}
    config = tiny_config(steps=6, eval_every=1, save_every=2, lr=0.02, **keys)
    # In a process like those that are killed: bits depend on the number of threads.
    run_ranks(1, trains, config.model_dump_json(), shapes, tmp_path / "whole")
    run = tmp_path / "broken"
    arguments = (config.model_dump_json(), shapes, run, at, where)
    for code in (-9, 0):
        (end,) = Ranks(1, is_killed, *arguments).ended()
        assert end.code == code, end
    assert files(run) == files(tmp_path / "whole")
    assert steps(run) == steps(tmp_path / "whole")
    told = [load(path, "cpu").info["training"] for path in (run, tmp_path / "whole")]
    assert told[0]["chosen"] == told[1]["chosen"] and told[0]["steps"] == told[1]["steps"]


def trains(config: str, data: Path, run: Path) -> int:
    own = run if os.environ["RANK"] == "0" else run.with_name("elsewhere")
    options = {"reporter": ReporterThat(), **OPTIONS}
    return train(Config.model_validate_json(config), data, own, **options).steps


def test_processes_choose_and_end_together(shapes: Path, tmp_path: Path) -> None:
    keys = {"keep_best": True, "patience": 1, "batch_size": 4}
    config = tiny_config(steps=6, eval_every=1, save_every=3, lr=0.02, **keys)
    ends = run_ranks(2, trains, config.model_dump_json(), shapes, tmp_path / "run")
    told = load(tmp_path / "run", "cpu").info["training"]
    assert ends == [told["steps"]] * 2
    result = evaluate(
        load(tmp_path / "run", "cpu"), load_dataset("shapes", shapes, "val")
    ).to_json()
    written = json.loads((tmp_path / "run" / "metrics.json").read_text())
    del result["protocol"], written["protocol"]  # it tells of the machine
    assert written["classes"] and result == written


def test_patience_without_evaluations_is_refused(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.eval_every = 0 makes one at the end only"):
        train(tiny_config(patience=2), shapes, tmp_path, reporter=ReporterThat(), **OPTIONS)


def test_a_damaged_best_network_is_not_used_in_silence(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decided(monkeypatch, {1: 0.2, 2: 0.9, 3: 0.9, 4: 0.3})
    finish = loop._finish

    def damage(plan: Any, state: Any, log: Any) -> None:
        path = tmp_path / "checkpoints" / "best-00000002" / "model.safetensors"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))
        finish(plan, state, log)

    monkeypatch.setattr(loop, "_finish", damage)
    with pytest.raises(SegdeformError, match="best-00000002"):
        train(config_of(keep_best=True), shapes, tmp_path, reporter=ReporterThat(), **OPTIONS)
    assert not (tmp_path / "model").exists()
