"""Where the time of a process goes: seconds by what they went to, from any thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Lock

Clock = Callable[[str], AbstractContextManager[None]]
"""Takes the time of a block that belongs to a name: `with clock("reading"): ...`."""

_NOTHING = nullcontext()


def untimed(what: str) -> AbstractContextManager[None]:
    """Is the clock where nobody wants to know."""
    return _NOTHING


class Stopwatch:
    """A clock that adds up the seconds, and counts the blocks, of each name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.times: dict[str, int] = {}
        self._lock = Lock()

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            taken = time.perf_counter() - begun
            with self._lock:
                self.seconds[what] = self.seconds.get(what, 0.0) + taken
                self.times[what] = self.times.get(what, 0) + 1
