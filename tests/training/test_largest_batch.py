"""The largest batch is found by trying, and an attempt that ends badly ends itself alone."""

from __future__ import annotations

import io
import json
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from segdeform.cli import main
from segdeform.config.loading import dump_config
from segdeform.errors import UsageError
from segdeform.training import attempt as attempts
from segdeform.training import dry_run as rehearsals
from segdeform.training import dry_run_text as texts
from segdeform.training import largest_batch as batches
from segdeform.training.attempt import Job
from segdeform.training.largest_batch import Attempt, search
from segdeform.training.plan import Plan
from segdeform.training.setup import open_run
from tests.training.conftest import ReporterThat, tiny_config

MIB = 2**20


@pytest.mark.parametrize("unit", [1, 3])
@pytest.mark.parametrize("most", [0, 1, 2, 6, 7, 8, 9, 15, 16, 17, 100, 127, 128])
@pytest.mark.parametrize("start", [1, 6, 40])
def test_the_search_finds_what_fits(start: int, most: int, unit: int) -> None:
    """Whatever it begins with, it tries nothing twice and nothing above twice what fits."""
    sizes: list[int] = []

    def attempt(size: int) -> Attempt:
        sizes.append(size)
        return Attempt(size, size <= most * unit, 1.0 if size <= most * unit else None)

    found = search(attempt, start * unit, unit)
    assert (0 if found is None else found.batch_size) == most * unit
    assert len(set(sizes)) == len(sizes) <= 16
    assert all(size % unit == 0 and size >= unit for size in sizes)
    assert max(sizes) <= max(start, 2 * most, 1) * unit


def test_the_search_ends_where_steps_take_long() -> None:
    found = search(lambda size: Attempt(size, True, float(size)), 4, 1)
    assert found is not None and found.batch_size == 64


@contextmanager
def opened(shapes: Path, run: Path, **train: Any) -> Iterator[Plan]:
    wanted: dict[str, Any] = {"device": "cpu", "workers": 0, "minutes": None, "dry": True}
    with open_run(
        tiny_config(**train),
        shapes,
        run,
        resume=False,
        overwrite=False,
        reporter=ReporterThat(),
        **wanted,
    ) as (plan, _):
        yield plan


def test_an_attempt_holds_what_it_may_hold_and_no_more(shapes: Path, tmp_path: Path) -> None:
    """Of 120 crops, which take about 1.4 GiB, less than half is given."""
    with opened(shapes, tmp_path / "run") as plan:
        assert batches._attempt(plan, 120, 600 * MIB) == Attempt(120, False, cause="memory ended")
    assert not (tmp_path / "run").exists()


def test_an_attempt_does_real_steps(
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of the config's own kind, here in this process."""
    limits: list[int] = []
    monkeypatch.setattr(attempts, "_limit_memory", lambda device, limit: limits.append(limit))
    monkeypatch.setattr(attempts, "_OOM", tmp_path / "score")
    keys = {"ema_decay": 0.9, "loss": {"dice": 1, "boundary": 1}, "accumulate": 2, "steps": 2}
    with opened(shapes, tmp_path / "run", batch_size=6, **keys) as plan:
        job = Job(plan.config, plan.train_set, "cpu", 1, 700 * MIB)
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(pickle.dumps(job))))
        seen: list[tuple[Any, ...]] = []
        do_step = attempts.do_step

        def step(plan: Any, state: Any, network: Any, batch: Any, weights: Any) -> Any:
            seen.append((batch[0].shape, batch[0].dtype, batch[1].dtype, state.averaged is None))
            return do_step(plan, state, network, batch, weights)

        monkeypatch.setattr(attempts, "do_step", step)
        attempts.main()
    told = json.loads(capsys.readouterr().out)
    assert told["fits"] and told["step_seconds"] > 0 and told["peak_bytes"] > 100 * MIB
    assert limits == [700 * MIB] and (tmp_path / "score").read_text() == "1000"
    assert seen == [((6, 3, 48, 64), torch.uint8, torch.uint8, False)] * len(seen)
    assert 2 <= len(seen) <= 4


def test_attempts_that_end_badly_are_told_by_their_cause(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(shapes, tmp_path / "run") as plan:
        assert "one value a channel" in batches._attempt(_of_little(plan), 1, 4000 * MIB).cause
        for program, cause in (
            ("import os; os.abort()", "memory ended (SIGABRT)"),
            (
                "import os, sys; print('a\\nstd::bad_alloc', file=sys.stderr); os._exit(1)",
                "std::bad",
            ),
            ("pass", "it said nothing"),
        ):
            monkeypatch.setattr(batches, "_PROGRAM", program)
            tried = batches._attempt(plan, 4, 4000 * MIB)
            assert not tried.fits and tried.cause.startswith(cause)


def _of_little(plan: Plan) -> Plan:
    data = plan.config.data.model_copy(update={"crop": (16, 16)})
    plan.__dict__["config"] = plan.config.model_copy(update={"data": data})
    return plan


def _holds(most: int) -> Any:
    def attempt(plan: Plan, size: int, limit: int) -> Attempt:
        assert limit == 700 * MIB
        if size > most:
            return Attempt(size, False, cause="memory ended")
        return Attempt(size, True, 0.5 + size / 10, size * MIB)

    return attempt


@pytest.mark.parametrize(
    ("most", "says"),
    [
        (
            5,
            "largest: train.batch_size=5 of 48x64 fits, with 0.00 of the 0.7 GiB that may be used: "
            "5.0 images/s without the loader (2 as it is set: 2.9) 6 does not: memory ended",
        ),
        (2, "(the one that is set) 3 does not"),
        (1, "(2 as it is set does not fit) 2 does not"),
        (0, "no batch fits into the 0.7 GiB that may be used: of 1, memory ended"),
        (10**9, "larger ones fit, too, but take more than a minute a step"),
    ],
)
def test_what_was_found_is_told(
    most: int,
    says: str,
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In both forms; nothing is written."""
    told: dict[str, Any] = {"finished": False, "config": {"data": {"crop": [48, 64]}}}
    monkeypatch.setattr(rehearsals, "_rehearsed", lambda *arguments: dict(told))
    monkeypatch.setattr(batches, "_attempt", _holds(most))
    monkeypatch.setattr(batches, "usable_memory", lambda device: 700 * MIB)
    monkeypatch.setattr(rehearsals, "refuse_too_little", lambda plan: None)
    (tmp_path / "c.yaml").write_text(dump_config(tiny_config()))
    words = ["train", str(tmp_path / "c.yaml"), "--data", str(shapes), "--largest-batch", "--json"]
    words += ["--output", str(tmp_path / "run"), "--workers", "0", "--device", "cpu"]
    assert main([*words, "--dry-run"]) == 0
    found = json.loads(capsys.readouterr().out)["largest_batch"]
    if most < 10**9:
        assert (found["batch_size"] or 0) == most
        assert found["current"]["fits"] == (most >= 2)
    text = " ".join(" ".join(texts._of_largest_batch(found, [48, 64])).split())
    assert says in text
    assert not (tmp_path / "run").exists()
    if most == 0:
        assert main(words) == 2 and "give both" in capsys.readouterr().err


def test_several_processes_are_refused(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="leave torchrun out"):
        rehearsals.dry_run(tiny_config(), shapes, tmp_path / "run", largest_batch=True)


@pytest.mark.slow
def test_a_small_limit_is_found_by_trying(shapes: Path, tmp_path: Path) -> None:
    """And a batch of twice what was found, where it may, takes more than the limit."""
    torch.set_num_threads(1)
    with opened(shapes, tmp_path / "run") as plan:
        found = search(lambda size: batches._attempt(plan, size, 800 * MIB), 16, 16)
        assert found is not None and found.peak_bytes is not None
        assert found.peak_bytes <= 800 * MIB
        larger = batches._attempt(plan, 2 * found.batch_size, 4000 * MIB)
        print(found, larger)
        assert larger.peak_bytes is not None and larger.peak_bytes > 800 * MIB
        assert not (tmp_path / "run").exists()
