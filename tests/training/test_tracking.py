"""Numbers sent to services, by stand-ins of their packages that write down what they are told."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from segdeform.cli import main
from segdeform.errors import UsageError
from segdeform.files.tensors import read_tensors
from segdeform.training import tracking
from segdeform.training.curves import read_log
from segdeform.training.loop import train
from tests.ranks import run_ranks
from tests.training.conftest import ReporterThat, send, tiny_config

OPTIONS: dict[str, Any] = {"device": "cpu", "workers": 0}
Told = list[tuple[str, Any]]


def wandb_like(told: Told, fail: Callable[[str], None] = lambda _: None) -> ModuleType:
    """Returns a module with what is used of wandb."""
    module = ModuleType("wandb")

    class Run:
        id = "w1"

        def log(self, scalars: dict[str, float], step: int) -> None:
            fail("log")
            told.append(("log", (step, scalars)))

        def finish(self) -> None:
            fail("finish")
            told.append(("finish", None))

    def init(**given: Any) -> Run:
        fail("init")
        told.append(("init", given))
        return Run()

    module.__dict__.update(init=init, Settings=lambda **given: given)
    module.__spec__ = SimpleNamespace(name="wandb")  # type: ignore[assignment]
    return module


def mlflow_like(told: Told) -> ModuleType:
    """Returns a module with what is used of mlflow."""
    module = ModuleType("mlflow")

    def start_run(**given: Any) -> Any:
        told.append(("start", given))
        return SimpleNamespace(info=SimpleNamespace(run_id="m1"))

    module.__dict__.update(
        set_experiment=lambda name: told.append(("experiment", name)),
        start_run=start_run,
        log_params=lambda values: told.append(("params", values)),
        log_metrics=lambda values, step: told.append(("log", (step, values))),
        end_run=lambda: told.append(("finish", None)),
    )
    module.__spec__ = SimpleNamespace(name="mlflow")  # type: ignore[assignment]
    return module


def logged(told: Told) -> list[tuple[int, dict[str, float]]]:
    return [value for kind, value in told if kind == "log"]


def expected(run: Path) -> list[tuple[int, dict[str, float]]]:
    """Returns the numbers of a run's log by the names that TensorBoard has for them."""
    found = []
    for entry in read_log(run / "log.jsonl"):
        kind, scalars = entry["kind"], {}
        for key, value in entry.items():
            if isinstance(value, float | int) and key != "step":
                scalars[f"{kind}/{key}"] = value
        scalars |= {f"val/iou/{k}": v for k, v in entry.get("iou", {}).items() if v is not None}
        for layer, numbers in entry.get("offsets", {}).items():
            scalars |= {f"offsets/{layer}/{name}": value for name, value in numbers.items()}
        found.append((entry["step"], scalars))
    return found


def test_a_service_hears_what_the_log_has(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: Told = []
    monkeypatch.setitem(sys.modules, "wandb", wandb_like(told))
    run, config = tmp_path / "street", tiny_config(eval_every=2)
    result = train(config, shapes, run, track=["wandb"], reporter=ReporterThat(), **OPTIONS)
    (_, start), *_ = told
    assert (start["name"], start["id"], start["dir"]) == ("street", None, str(run))
    assert start["config"]["train.steps"] == 4 and start["config"]["data.crop"] == [48, 64]
    assert start["settings"]["init_timeout"] <= 60
    *numbers, last = logged(told)
    assert numbers == expected(run) and len(numbers) == 6
    assert any(name.startswith("offsets/") for name in numbers[0][1])
    assert last == (4, {"final/miou": result.miou, "final/accuracy": last[1]["final/accuracy"]})
    assert told[-1][0] == "finish"
    assert json.loads((run / "tracking.json").read_text()) == {"wandb": "w1"}


def test_names_and_values_that_mlflow_takes(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: Told = []
    monkeypatch.setitem(sys.modules, "mlflow", mlflow_like(told))
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    with tracking.tracked(["mlflow"], tmp_path, dict.fromkeys(map(str, range(230)), 1), print) as t:
        t[0].log(3, {'val/iou/a "b", c': 0.5, "val/iou/Bäume": 0.25})
    assert [value for kind, value in told if kind == "experiment"] == ["segdeform"]
    assert [len(value) for kind, value in told if kind == "params"] == [100, 100, 30]
    assert logged(told) == [(3, {"val/iou/a _b__ c": 0.5, "val/iou/Bäume": 0.25})]


def test_a_run_that_goes_on_is_the_same_run_there(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb, mlflow = Told(), Told()
    monkeypatch.setitem(sys.modules, "wandb", wandb_like(wandb))
    monkeypatch.setitem(sys.modules, "mlflow", mlflow_like(mlflow))
    both, config, run = ["wandb", "mlflow"], tiny_config(save_every=1), tmp_path / "run"
    stopping = ReporterThat(2, send(15))
    with pytest.raises(Exception, match="saved at step 2"):
        train(config, shapes, run, track=both, reporter=stopping, **OPTIONS)
    assert json.loads((run / "tracking.json").read_text()) == {"wandb": "w1", "mlflow": "m1"}
    train(config, shapes, run, track=both, resume=True, reporter=ReporterThat(), **OPTIONS)
    starts = [given for kind, given in wandb if kind == "init"]
    assert [(g["id"], g["resume"]) for g in starts] == [(None, None), ("w1", "allow")]
    starts = [given for kind, given in mlflow if kind == "start"]
    assert [g["run_id"] for g in starts] == [None, "m1"]
    assert sum(kind == "params" for kind, _ in mlflow) == 1  # they cannot be changed there
    assert logged(mlflow)[:-1] == logged(wandb)[:-1] == expected(run)
    train(
        tiny_config(), shapes, run, track=both, overwrite=True, reporter=ReporterThat(), **OPTIONS
    )
    assert [given["id"] for kind, given in wandb if kind == "init"][-1] is None


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_a_service_that_fails_is_warned_of_once(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def fail(place: str) -> None:
        if place == where:
            raise OSError("no route to host\nand more")

    config = tiny_config(eval_every=2)
    train(config, shapes, tmp_path / "alone", reporter=ReporterThat(), **OPTIONS)
    monkeypatch.setitem(sys.modules, "wandb", wandb_like([], fail))
    reporter = ReporterThat()
    train(config, shapes, tmp_path / "run", track=["wandb"], reporter=reporter, **OPTIONS)
    warned = [text for text in reporter.messages if "wandb" in text]
    assert warned == ["warning: wandb fails, and is told no more: no route to host"]
    weights = [read_tensors(tmp_path / f / "model/model.safetensors") for f in ("alone", "run")]
    assert all((weights[0][key] == value).all() for key, value in weights[1].items())


def test_a_service_that_hangs_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, said = threading.Event(), list[str]()
    monkeypatch.setattr(tracking, "_ENDING", 0.2)
    monkeypatch.setitem(
        sys.modules, "wandb", wandb_like([], lambda place: place == "log" and answer.wait(60))
    )
    with tracking.tracked(["wandb"], tmp_path, {}, said.append) as trackers:
        for step in range(50):
            trackers[0].log(step, {"train/loss": 1.0})
    answer.set()
    assert len(said) == 1 and "wandb has not answered" in said[0] and "log.jsonl" in said[0]


def _train_tracked(data: Path, run: Path, notes: Path) -> None:
    told: Told = []
    sys.modules["wandb"] = wandb_like(told)
    options = OPTIONS | {"track": ["wandb"], "reporter": ReporterThat()}
    train(tiny_config(), data, run, **options)
    with notes.open("a") as file:
        file.write("".join(f"{kind}\n" for kind, _ in told if kind == "init"))


def test_of_several_processes_one_tells(shapes: Path, tmp_path: Path) -> None:
    run_ranks(2, _train_tracked, shapes, tmp_path / "run", tmp_path / "notes")
    assert (tmp_path / "notes").read_text() == "init\n"


def test_what_is_not_installed_is_refused_before_anything_is_written(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda _name: None)
    arguments = ["train", "shapes", "--data", str(shapes), "--output", str(tmp_path / "run")]
    assert main([*arguments, "--set", "model.weights=none", "--track", "mlflow"]) == 2
    assert "pip install 'segdeform[mlflow]'" in capsys.readouterr().err
    assert main([*arguments, "--set", "model.weights=none", "--track", "wanbd"]) == 2
    assert "it must be wandb or mlflow" in capsys.readouterr().err
    with pytest.raises(UsageError, match="segdeform"):
        train(tiny_config(), shapes, tmp_path / "run", track=["wandb"], **OPTIONS)
    assert not (tmp_path / "run").exists()
