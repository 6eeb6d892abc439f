"""What a training run tells: a progress bar or plain lines, RUN/log.jsonl and TensorBoard."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column
from torch import Tensor

from segdeform.evaluation.confusion import Scores
from segdeform.files.atomic import json_number, write_error, write_text
from segdeform.training.sparkline import sparkline

_WIDTH = 16  # characters of a sparkline
_EVALUATION_NEWS = 10.0  # seconds between lines of an evaluation


@dataclass(frozen=True)
class LogRecord:
    """The averages since the record before."""

    step: int  # steps done
    loss: float
    learning_rate: float
    images_per_second: float  # over all processes
    loader_wait: float  # share of the time spent waiting for pictures
    memory_bytes: int  # highest so far: of the GPU, or of the process without one
    unlabelled_batches: int  # batches without one labelled pixel; their loss is 0
    seconds_left: float

    def line(self, steps: int) -> str:
        """Describes the record in one line of text."""
        left = timedelta(seconds=round(self.seconds_left))
        text = (
            f"step {self.step}/{steps}  loss {self.loss:.4f}  rate {self.learning_rate:.2e}  "
            f"{self.images_per_second:.1f} images/s  loader wait {self.loader_wait:.0%}  "
            f"{self.memory_bytes / 2**30:.2f} GiB  {left} left"
        )
        empty = self.unlabelled_batches
        return f"{text}  {empty} batches without a label" if empty else text


class Meter:
    """Sums up what happened since the last record, without waiting for the device."""

    def __init__(self, device: torch.device, seconds: float = 0.0) -> None:
        """Begins to count; `seconds` were trained before."""
        self._device = device
        self._begun = time.perf_counter() - seconds
        self._restart()

    def _restart(self) -> None:
        self._loss = torch.zeros((), dtype=torch.float64, device=self._device)
        self._unlabelled = torch.zeros((), dtype=torch.int64, device=self._device)
        self._waited, self._images, self._steps = 0.0, 0, 0
        self._since = time.perf_counter()

    def add(self, loss: Tensor, labelled: Tensor, images: int, waited: float) -> None:
        """Adds a step: its loss, whether any pixel had a label, its images, seconds of waiting."""
        self._loss += loss
        self._unlabelled += ~labelled
        self._images += images
        self._waited += waited
        self._steps += 1

    def seconds(self) -> float:
        """Returns the seconds of training so far, without the pauses."""
        return time.perf_counter() - self._begun

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out the time that goes into something else than training steps."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # the steps' own work belongs to them
        begun = time.perf_counter()
        try:
            yield
        finally:
            pause = time.perf_counter() - begun
            self._since += pause
            self._begun += pause

    def read(self, step: int, steps: int, learning_rate: float) -> LogRecord:
        """Returns the averages and starts anew; waits for the device."""
        loss = self._loss.item() / self._steps
        seconds = max(time.perf_counter() - self._since, 1e-9)
        record = LogRecord(
            step=step,
            loss=loss,
            learning_rate=learning_rate,
            images_per_second=self._images / seconds,
            loader_wait=min(self._waited / seconds, 1.0),
            memory_bytes=peak_memory(self._device),
            unlabelled_batches=int(self._unlabelled.item()),
            seconds_left=seconds / self._steps * (steps - step),
        )
        self._restart()
        return record


class Reporter:
    """Shows the progress on stderr: a bar on a terminal, else plain lines.

    A terminal that is gone, as after SIGHUP, ends no training: nothing more is shown.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._progress: Progress | None = None
        self._told = time.monotonic()  # when an evaluation was last told of
        self._told_last = ""
        self._losses: list[float] = []
        self._scores: list[float] = []

    def start(self, step: int, steps: int, scores: Sequence[float] = ()) -> None:
        """Begins to show training from `step` of `steps`; `scores` were had before."""
        self._steps, self._scores = steps, list(scores)
        if not self._console.is_terminal:
            return
        self._progress = Progress(
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.description}", table_column=Column()),  # wraps on a narrow terminal
            console=self._console,
        )
        self._task = self._progress.add_task("", total=steps, completed=step)
        with self._unless_gone():
            self._progress.start()

    def step(self, step: int) -> None:
        """Shows that a step is done."""
        if self._progress is not None:
            self._progress.update(self._task, completed=step)

    def record(self, record: LogRecord) -> None:
        """Shows the averages of the last steps."""
        line = record.line(self._steps)
        if self._progress is None:
            self.message(line)
        else:  # the bar shows the step already
            self._losses.append(record.loss)
            self._told_last = line.partition("  ")[2]
            self._progress.update(self._task, description=self._description())

    def scored(self, miou: float) -> None:
        """Shows the mIoU of an evaluation beside those before."""
        self._scores.append(miou)
        if self._progress is not None:
            self._progress.update(self._task, description=self._description())

    def _description(self) -> str:
        """Returns the last line, with how loss and mIoU went so far."""
        parts = [self._told_last]
        if bars := sparkline(self._losses, _WIDTH, self._console.encoding):
            parts.append(f"loss {bars}")
        if bars := sparkline(self._scores, _WIDTH, self._console.encoding):
            parts.append(f"mIoU {bars} {self._scores[-1]:.3f}")
        return "  ".join(parts)

    def evaluating(self, done: int, total: int) -> None:
        """Shows how far an evaluation is; without a bar, by a line now and then."""
        if self._progress is not None:
            self._progress.update(self._task, description=f"evaluating picture {done}/{total}")
            return
        now = time.monotonic()
        if done <= 1:
            self._told = now
        elif now - self._told > _EVALUATION_NEWS:
            self._told = now
            self.message(f"evaluating: {done}/{total}")

    def message(self, text: str) -> None:
        """Shows a line of text, above the bar where there is one."""
        with self._unless_gone():
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        """Ends the bar."""
        if self._progress is not None:
            progress, self._progress = self._progress, None
            with self._unless_gone():
                progress.stop()

    @contextmanager
    def _unless_gone(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self._console.quiet = True


class RunLog:
    """RUN/log.jsonl, one JSON object a line, and the same values as TensorBoard scalars."""

    def __init__(self, run: Path, step: int) -> None:
        """Opens both; what an interrupted run wrote after step `step` is dropped.

        Raises:
            ResourceError: the disk is full.
            UsageError: the folder cannot be written to.
        """
        self._path = run / "log.jsonl"
        from torch.utils.tensorboard import SummaryWriter  # costs a second, so only where needed

        write_text(self._path, "".join(_lines_until(self._path, step)))
        try:
            self._file = self._path.open("a", encoding="utf-8")
            self._board = SummaryWriter(run / "tensorboard", purge_step=step + 1)
        except OSError as error:
            raise write_error(run, error) from error

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._file.close()
            self._board.close()
        except OSError as problem:
            if error is None:  # else the disk is full and that error is on its way
                raise write_error(self._path, problem) from problem

    def record(
        self, record: LogRecord, offsets: Mapping[str, Mapping[str, float]] | None = None
    ) -> None:
        """Logs the averages of the last steps under train/, a layer's offsets under offsets/."""
        values = asdict(record)
        del values["step"], values["seconds_left"]
        layers = offsets or {}
        board = {
            f"offsets/{layer}/{name}": value
            for layer, numbers in layers.items()
            for name, value in numbers.items()
        }
        self._write(record.step, "train", values, {"offsets": layers} if layers else {}, board)

    def evaluation(self, step: int, scores: Scores, classes: Sequence[str]) -> None:
        """Logs the scores of an evaluation under val/, the IoU of each class under val/iou/."""
        values = {"miou": scores.miou, "accuracy": scores.accuracy}
        iou = dict(zip(classes, scores.iou, strict=True))
        board = {f"val/iou/{name}": value for name, value in iou.items()}
        self._write(step, "val", values, {"iou": iou}, board)

    def _write(
        self,
        step: int,
        kind: str,
        values: Mapping[str, float],
        nested: Mapping[str, Any],  # more for the file
        board: Mapping[str, float],  # more for TensorBoard
    ) -> None:
        entry = _plain({"step": step, "kind": kind, **values, **nested})
        scalars = {f"{kind}/{name}": value for name, value in values.items()} | dict(board)
        try:
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()
            for name, value in scalars.items():
                self._board.add_scalar(name, value, step)
        except OSError as error:
            raise write_error(self._path, error) from error


def _plain(value: Any) -> Any:
    """Returns what JSON can hold: numbers that are none become null."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return json_number(value) if isinstance(value, float) else value


def peak_memory(device: torch.device) -> int:
    """Returns the most memory used so far, bytes: allocated on the GPU, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _lines_until(path: Path, step: int) -> list[str]:
    """Returns the whole lines of a log up to a step; a line that a kill cut short is dropped."""
    if step == 0 or not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if line.endswith("\n") and isinstance(entry, dict) and entry.get("step", step) <= step:
            lines.append(line)
    return lines
