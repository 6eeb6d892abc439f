"""SIGINT, SIGTERM and SIGHUP while training: the first asks for an orderly end, a second ends it.

SIGHUP is what a lost terminal or connection sends; where it is ignored, as under `nohup`, it stays
ignored.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from segdeform.errors import InterruptedByUserError, SegdeformError, StoppedError
from segdeform.machine import interrupts


def stop_requests() -> list[signal.Signals]:
    """Lists the signals besides Ctrl-C that ask for an end and are not ignored."""
    hung_up = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
    return [signal.SIGTERM, signal.SIGHUP] if hung_up else [signal.SIGTERM]


class StopSignals:
    """Catches the signals inside a `with` block and restores the old handlers after it.

    Calling the object tells whether an end was asked for: loops poll it. As long as `deferred` is
    False, where no loop polls and there is nothing to save, the first signal raises at once. Only
    Python's main thread may set handlers: in any other the object just never reports a signal.
    """

    def __init__(self, advice: str = "go on with the same command and --resume") -> None:
        self.advice = advice
        self.received: int | None = None
        self.deferred = False
        self._unbroken = False
        self._previous: dict[int, signal._HANDLER] = {}

    def __call__(self) -> bool:
        return self.received is not None

    def __enter__(self) -> StopSignals:
        interrupts.refuse_to_go_on()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *stop_requests()):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        again = self.received is not None
        self.received = number
        if not self._unbroken and (again or not self.deferred):
            raise self.error("nothing was saved since the last checkpoint")

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """Lets what is being saved be finished: signals are noted, however many come."""
        self._unbroken = True
        try:
            yield
        finally:
            self._unbroken = False

    def error(self, state: str) -> SegdeformError:
        """Returns the error for the signal received, saying what is saved and how to go on."""
        if self.received == signal.SIGINT:
            return InterruptedByUserError(f"Interrupted, {state}: {self.advice}")
        # Perhaps on request of another process.
        return StoppedError(f"Stopped on request, {state}: {self.advice}")
