"""What happened in the steps since the last record: loss, pace, waiting, memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor

from segdeform.machine.memory import peak_resident_memory


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


def peak_memory(device: torch.device) -> int:
    """Returns the most memory used so far, bytes: allocated on the GPU, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_resident_memory()
