"""How far a command is: bars where stderr is a terminal, a line now and then where it is a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from segdeform.callbacks import Steps

if TYPE_CHECKING:
    from rich.progress import TaskID

_SECONDS = 10.0  # between two lines of a step; what is over sooner needs none
_COUNTABLE = 10**6  # up to here people count, beyond it (bytes) they want percent


@contextmanager
def progress_bars() -> Iterator[Steps]:
    """Lends `progress(step, done, total)`; a step counts pictures or bytes."""
    if not sys.stderr.isatty():
        yield _Lines().show
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    text, amount = (TextColumn(f"{{task.{field}}}") for field in ("description", "fields[amount]"))
    with Progress(text, BarColumn(), amount, TimeLeft(), console=Console(stderr=True)) as progress:
        tasks: dict[str, TaskID] = {}

        def show(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = progress.add_task(step, amount="")
            amount = _amount(done, total)
            progress.update(tasks[step], completed=done, total=total, amount=amount)

        yield show


class _Lines:
    """Prints "evaluating: 120/500, 0:03:10 left" to a stderr that is kept."""

    def __init__(self) -> None:
        self._begun: dict[str, float] = {}  # when a step was first heard of
        self._printed: dict[str, float] = {}

    def show(self, step: str, done: int, total: int) -> None:
        now = time.monotonic()
        begun = self._begun.setdefault(step, now)
        if now - self._printed.setdefault(step, now) < _SECONDS:
            return
        self._printed[step] = now
        left = (now - begun) * (total - done) / done if done else 0.0
        amount = _amount(done, total)
        print(f"{step}: {amount}, {timedelta(seconds=round(left))} left", file=sys.stderr)


def _amount(done: int, total: int) -> str:
    return f"{done}/{total}" if total <= _COUNTABLE else f"{done / total:.0%}"
