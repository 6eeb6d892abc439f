"""What a person sees of a training: a bar on a terminal, elsewhere plain lines."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column

from segdeform.training.meter import LogRecord
from segdeform.training.sparkline import sparkline

_WIDTH = 16  # characters of a sparkline
_ROOM = 60  # characters of a terminal, below which they would be cut
_EVALUATION_NEWS = 10.0  # seconds between lines of an evaluation


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

    def start(
        self,
        step: int,
        steps: int,
        scores: Sequence[float] = (),
        losses: Sequence[float] = (),
    ) -> None:
        """Begins to show training from `step` of `steps`; `scores` and `losses` were had before."""
        self._steps, self._scores, self._losses = steps, list(scores), list(losses)
        if not self._console.is_terminal or self._console.is_dumb_terminal:
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
        if self._console.width < _ROOM:
            return self._told_last
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
