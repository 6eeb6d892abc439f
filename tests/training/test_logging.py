from __future__ import annotations

import errno
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing import event_accumulator  # type: ignore[import-untyped]

from segdeform.evaluation.confusion import scores
from segdeform.training.meter import LogRecord, Meter
from segdeform.training.reporter import Reporter
from segdeform.training.run_log import RunLog

RECORD = LogRecord(
    step=20,
    loss=1.25,
    learning_rate=0.01,
    images_per_second=12.5,
    loader_wait=0.07,
    memory_bytes=3 * 2**29,
    unlabelled_batches=0,
    seconds_left=3725,
)


def test_plain_line_has_all_and_is_not_wrapped() -> None:
    out = io.StringIO()
    reporter = Reporter(Console(file=out, width=40))
    reporter.start(0, 100)
    reporter.record(RECORD)
    assert out.getvalue() == (
        "step 20/100  loss 1.2500  rate 1.00e-02  12.5 images/s  loader wait 7%  "
        "1.50 GiB  1:02:05 left\n"
    )


def test_terminal_gets_a_bar_with_the_same() -> None:
    out = io.StringIO()
    reporter = Reporter(Console(file=out, width=200, force_terminal=True))
    reporter.start(0, 100)
    reporter.step(20)
    reporter.record(RECORD)
    reporter.stop()
    for part in ("20/100", "loss 1.2500", "12.5 images/s", "loader wait 7%", "1:02:05 left"):
        assert part in out.getvalue()


class _GoneTerminal(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("bar", [False, True])
def test_a_terminal_that_is_gone_is_no_error(bar: bool) -> None:
    reporter = Reporter(Console(file=_GoneTerminal(), width=80, force_terminal=bar))
    reporter.message("begun")
    reporter.start(0, 100)
    reporter.step(20)
    reporter.record(RECORD)
    reporter.evaluating(1, 2)
    reporter.stop()
    reporter.message("done")


def test_a_long_evaluation_is_told_of_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("segdeform.training.reporter.time.monotonic", lambda: now)
    out = io.StringIO()
    reporter = Reporter(Console(file=out, width=80))
    for done in range(1, 8):
        reporter.evaluating(done, 7)
        now += 4
    assert out.getvalue() == "evaluating: 4/7\nevaluating: 7/7\n"


def test_meter_averages_and_counts() -> None:
    meter = Meter(torch.device("cpu"))
    meter.add(torch.tensor(1.0), torch.tensor(True), 4, waited=0.0)
    meter.add(torch.tensor(0.0), torch.tensor(False), 4, waited=0.0)
    record = meter.read(step=2, steps=4, learning_rate=0.1)
    assert (record.loss, record.unlabelled_batches) == (0.5, 1)
    meter.add(torch.tensor(3.0), torch.tensor(True), 4, waited=0.0)
    assert meter.read(step=3, steps=4, learning_rate=0.1).loss == 3.0


def test_log_is_cut_to_the_resumed_step(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("".join(f'{{"step": {s}, "kind": "train"}}\n' for s in (1, 2, 3)) + '{"st')
    found = scores(np.array([[3, 1, 0], [1, 0, 0], [0, 0, 0]]))
    with RunLog(tmp_path, 2) as log:
        log.evaluation(3, found, ("road", "a/b", "none"))
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert entries == [
        {"step": 1, "kind": "train"},
        {"step": 2, "kind": "train"},
        {"step": 3, "kind": "val", "miou": 0.3, "accuracy": 0.6}
        | {"iou": {"road": 0.6, "a/b": 0.0, "none": None}},
    ]
    board = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    accuracy = board.Scalars("val/accuracy")
    assert [(event.step, event.value) for event in accuracy] == [(3, pytest.approx(0.6))]
    assert board.Scalars("val/iou/road")[0].value == pytest.approx(0.6)


def test_a_terminal_shows_how_loss_and_scores_went() -> None:
    """Also those of evaluations before an interruption."""
    console = Console(force_terminal=True, width=200, file=io.StringIO())
    reporter = Reporter(console)
    reporter.start(40, 100, [0.1, 0.4])
    for step, loss in ((50, 2.0), (60, 1.0), (70, 1.5)):
        reporter.record(LogRecord(step, loss, 0.1, 9.0, 0.0, 2**30, 0, 3.0))
    reporter.scored(0.3)
    assert reporter._progress is not None
    (task,) = reporter._progress.tasks
    assert "loss █▁▅" in task.description and task.description.endswith("mIoU ▁█▆ 0.300")
    assert task.description.startswith("loss 1.5000")
    reporter.stop()


def test_losses_of_an_earlier_start_are_shown_too(tmp_path: Path) -> None:
    lines = [{"step": s, "kind": "train", "loss": 4.0 - s} for s in (1, 2, 3)]
    lines.insert(2, {"step": 2, "kind": "val", "miou": 0.5})
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with RunLog(tmp_path, 2) as log:
        losses = log.losses
    assert losses == [3.0, 2.0]
    for width, bars in ((200, True), (40, False)):
        reporter = Reporter(Console(force_terminal=True, width=width, file=io.StringIO()))
        reporter.start(2, 100, (), losses)
        reporter.record(RECORD)
        assert reporter._progress is not None
        (task,) = reporter._progress.tasks
        assert ("loss █▄▁" in task.description) is bars
        reporter.stop()


def test_a_terminal_that_cannot_move_its_cursor_gets_lines() -> None:
    out = io.StringIO()
    console = Console(force_terminal=True, width=200, file=out, _environ={"TERM": "dumb"})
    reporter = Reporter(console)
    reporter.start(0, 100)
    reporter.record(LogRecord(50, 2.0, 0.1, 9.0, 0.0, 2**30, 0, 3.0))
    reporter.stop()
    assert out.getvalue().startswith("step 50/100  loss 2.0000")
