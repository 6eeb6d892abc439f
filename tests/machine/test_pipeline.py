"""Reading ahead and writing behind: in order, bounded, and failures where they belong."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future

import pytest

from segdeform.machine.pipeline import Behind, read_ahead, threads


def test_items_come_in_order_and_few_are_read_before_they_are_needed() -> None:
    begun: list[int] = []

    def read(item: int) -> int:
        begun.append(item)
        time.sleep(0.003 * (5 - item % 5))
        return item * item

    with threads(3) as pool:
        for count, (item, reading) in enumerate(read_ahead(pool, range(23), read, depth=3)):
            assert (item, reading.result()) == (count, count * count)
            assert max(begun) <= count + 3
    assert sorted(begun) == list(range(23))


def test_a_failure_is_met_at_its_item() -> None:
    def read(item: int) -> int:
        if item == 2:
            raise OSError("broken")
        return item

    with threads(2) as pool:
        found = []
        for _, reading in read_ahead(pool, range(5), read, depth=2):
            found.append(reading.exception() or reading.result())
    assert [str(value) for value in found] == ["0", "1", "broken", "3", "4"]


def test_work_is_settled_in_order_in_the_callers_thread() -> None:
    settled: list[tuple[int, int]] = []
    most = 0

    def settle(item: int, future: Future[int]) -> None:
        assert future.done() and threading.current_thread() is threading.main_thread()
        settled.append((item, future.result()))

    with threads(2) as pool:
        behind: Behind[int, int] = Behind(pool, settle, depth=4)
        for item in range(17):
            behind.submit(item, lambda item=item: time.sleep(0.002) or -item)  # type: ignore[misc]
            most = max(most, item + 1 - len(settled))
        behind.finish()
    assert settled == [(item, -item) for item in range(17)]
    assert most <= 4


def test_what_has_not_begun_is_dropped_when_the_body_fails() -> None:
    done: list[int] = []

    def work(item: int) -> None:
        time.sleep(0.05)
        done.append(item)

    with pytest.raises(KeyError), threads(1) as pool:
        for _ in read_ahead(pool, range(50), work, depth=40):
            raise KeyError("stop")
    assert len(done) <= 2
