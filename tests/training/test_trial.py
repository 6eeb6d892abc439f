"""How long a training takes is worked out from the steps and pictures that count."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from segdeform.config.schema import TrainConfig
from segdeform.machine.processes import ALONE
from segdeform.training import memory, trial
from segdeform.training.pace import Pace
from tests.training.conftest import tiny_config


@pytest.mark.parametrize(
    ("patience", "step", "compiling"), [(1000.0, 1.0, None), (5.0, 10.0, None), (99.0, 1.0, 30.0)]
)
def test_steps_of_a_trial_count_after_the_warm_up(
    patience: float, step: float, compiling: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three steps of 10 s, ten of 1 s; one who has no patience sees the first two."""
    ends = iter([110.0, 120.0, 130.0, *(131.0 + k for k in range(10))])
    given = {
        "build_state": SimpleNamespace(model=None, step=0),
        "class_weights": None,
        "batches_from": (None for _ in range(99)),
        "do_step": None,
        "evaluation_seconds": 7.0,
        "_saving_seconds": 3.0,
    }
    for name, value in given.items():
        monkeypatch.setattr(trial, name, lambda *a, value=value: value)
    monkeypatch.setattr(trial, "_now", lambda device: next(ends))
    monkeypatch.setattr(trial, "time", SimpleNamespace(perf_counter=lambda: 100.0))
    monkeypatch.setattr(trial, "network_of_steps", lambda *arguments: (None, compiling))
    plan: Any = SimpleNamespace(
        device="cpu",
        peers=SimpleNamespace(anyone=lambda late: late, first=True),
    )
    before = 12.0 if compiling is None else 42.0  # it is compiled again
    assert trial.try_out(plan, 88.0, patience) == Pace(step, 7.0, 3.0, before, compiling)


@pytest.mark.parametrize(
    ("spent", "seconds"),
    [
        ([9.0, 1.0], 1.0),  # 9 s would be example enough but for the first one's kernels
        ([3.0, 1.0, 2.0, 3.0, 4.0], 10.0),  # 2.5 s each, of four
        ([6.0], 24.0),
    ],
)
def test_pictures_after_the_first_stand_for_the_split(
    spent: list[float], seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, processes = (1, 1) if len(spent) == 2 else (10, 3)
    if len(spent) == 2:
        monkeypatch.setattr(trial, "_LONG", 60.0)
    times = iter([time for k, own in enumerate(spent) for time in (100.0 * k, 100.0 * k + own)])
    monkeypatch.setattr(trial, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    monkeypatch.setattr(trial, "current_segmenter", lambda *a: nullcontext())
    monkeypatch.setattr(trial, "read_pair", lambda *a: (None, None))
    monkeypatch.setattr(trial, "predict_sample", lambda *a: None)
    monkeypatch.setattr(trial, "Tally", lambda *a: SimpleNamespace(add=lambda *b: None))

    class Split(list[Any]):
        samples = range(pictures)
        classes = ("a", "b")

    val_set = Split(range(pictures))
    plan: Any = SimpleNamespace(
        val_set=val_set, val_sets=(val_set,), peers=SimpleNamespace(size=processes)
    )
    assert trial.evaluation_seconds(plan, None) == seconds  # type: ignore[arg-type]


def plan_of(steps: int, every: int, budget: Any = None) -> Any:
    train = tiny_config(steps=steps, eval_every=every).train
    said: list[str] = []
    return SimpleNamespace(
        config=SimpleNamespace(train=train),
        budget=budget,
        peers=ALONE,
        device=torch.device("cpu"),
        reporter=SimpleNamespace(message=said.append, said=said),
    )


@pytest.mark.parametrize(
    ("done", "every", "evaluations"), [(3, 5, 2), (5, 5, 1), (3, 4, 3), (3, 0, 1), (0, 10, 1)]
)
def test_a_forecast_counts_the_evaluations_to_come(done: int, every: int, evaluations: int) -> None:
    """Ten steps; the last evaluation is that of the end, whatever eval_every says."""
    text = trial._forecast(plan_of(10, every), done, Pace(1.0, 2.0))
    assert f"{10 - done} steps of 1 s, {evaluations} evaluation" in text


def test_who_gave_the_time_is_not_asked_to_give_one() -> None:
    slow = Pace(1000.0, 2.0)
    assert "--minutes" in trial._forecast(plan_of(10, 0), 3, slow)
    assert "--minutes" not in trial._forecast(plan_of(10, 0, budget=1), 3, slow)


def test_the_time_of_a_forecast_is_not_that_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    paused: list[bool] = []

    class Timed:
        def seconds(self) -> float:
            return 5.0

        @contextmanager
        def paused(self) -> Iterator[None]:
            paused.append(True)
            yield
            paused.clear()

    def looked(*given: Any) -> float:
        assert paused
        return 1.0

    monkeypatch.setattr(trial, "evaluation_seconds", looked)
    plan, state = plan_of(100, 0), SimpleNamespace(step=0)
    forecast, meter = trial.Forecast(plan, state), Timed()  # type: ignore[arg-type]
    for step in (trial.WARM_UP, trial.WARM_UP + trial.MEASURED):
        state.step = step
        forecast.hear(meter)  # type: ignore[arg-type]
    assert len(plan.reporter.said) == 1 and not paused


def test_processes_of_a_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 10_000)
    monkeypatch.setattr(memory, "neighbours", lambda: 4)
    assert memory.usable_memory(torch.device("cpu")) == 1750
    monkeypatch.setattr(memory, "resident_memory", lambda: 500)
    assert memory.memory_limit(torch.device("cpu")) == 500 + 2500
    monkeypatch.setattr(memory, "free_memory", lambda: None)
    assert memory.usable_memory(torch.device("cpu")) is None
    assert memory.memory_limit(torch.device("cpu")) is None


@pytest.mark.parametrize(("every", "keep", "count"), [(5, False, 2), (5, True, 3), (0, True, 1)])
def test_the_best_weights_may_be_scored_once_more(every: int, keep: bool, count: int) -> None:
    train = TrainConfig(steps=10, eval_every=every, keep_best=keep)
    assert trial.evaluations_left(train, 3) == count
