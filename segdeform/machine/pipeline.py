"""Reading and writing beside the network: a few pictures ahead, a few behind, in order.

Threads do, since decoders and encoders leave Python's lock. Both sides are bounded, so that memory
does not grow with the number of pictures; giant pictures are worked on one at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final, Generic, TypeVar

from segdeform.machine.stopwatch import Clock, untimed

Item = TypeVar("Item")
Result = TypeVar("Result")

# What a clock is told of the caller's thread: it waits for what is read ahead, or done behind.
WAITING_FOR_READERS: Final = "waiting for readers"
WAITING_FOR_WRITERS: Final = "waiting for writers"


@contextmanager
def threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Lends threads; what has not begun when the body ends is dropped, what has is waited for."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def read_ahead(
    pool: ThreadPoolExecutor,
    items: Iterable[Item],
    read: Callable[[Item], Result],
    depth: int,
    clock: Clock = untimed,
) -> Iterator[tuple[Item, Future[Result]]]:
    """Yields items in order, each with what `read` makes of it, begun `depth` items before.

    The futures are done when they come.
    """
    waiting: deque[tuple[Item, Future[Result]]] = deque()

    def next_one() -> tuple[Item, Future[Result]]:
        with clock(WAITING_FOR_READERS):
            waiting[0][1].exception()  # waits
        return waiting.popleft()

    for item in items:
        waiting.append((item, pool.submit(read, item)))
        if len(waiting) > depth:
            yield next_one()
    while waiting:
        yield next_one()


class Behind(Generic[Item, Result]):
    """Work that is done later than it is handed in, and settled in order."""

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        settle: Callable[[Item, Future[Result]], None],
        depth: int,  # how many may be under way
        clock: Clock = untimed,
    ) -> None:
        """`settle(item, future)` is called in the caller's thread, once the future is done."""
        self._pool, self._settle, self._depth, self._clock = pool, settle, depth, clock
        self._waiting: deque[tuple[Item, Future[Result]]] = deque()

    def submit(self, item: Item, work: Callable[[], Result]) -> None:
        """Hands in work; waits for the oldest where too much is under way."""
        self._waiting.append((item, self._pool.submit(work)))
        self._settle_while(lambda: len(self._waiting) > self._depth)
        while self._waiting and self._waiting[0][1].done():
            self._settle(*self._waiting.popleft())

    def finish(self) -> None:
        """Waits for everything."""
        self._settle_while(lambda: bool(self._waiting))

    def _settle_while(self, condition: Callable[[], bool]) -> None:
        while condition():
            item, future = self._waiting.popleft()
            with self._clock(WAITING_FOR_WRITERS):
                future.exception()  # waits
            self._settle(item, future)
