from __future__ import annotations

import signal

import pytest

from segdeform.errors import InterruptedByUserError, StoppedError
from segdeform.machine.signals import StopSignals, stop_requests


def test_first_is_noted_second_ends_and_handlers_come_back() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    with StopSignals() as stop:
        stop.deferred = True
        assert not stop()
        signal.raise_signal(signal.SIGINT)
        assert stop()
        with pytest.raises(InterruptedByUserError):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in numbers] == before


def test_what_is_being_saved_is_finished_however_often_an_end_is_asked_for() -> None:
    with StopSignals() as stop:
        stop.deferred = True
        signal.raise_signal(signal.SIGINT)
        with stop.finishing():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
                signal.raise_signal(number)
        assert stop()
        with pytest.raises(StoppedError):
            signal.raise_signal(signal.SIGTERM)


def test_a_hang_up_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup leaves it
    try:
        with StopSignals() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop()
            assert stop_requests() == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hang_up_heard")
@pytest.mark.parametrize(
    ("number", "error", "code"),
    [
        (signal.SIGINT, InterruptedByUserError, 130),
        (signal.SIGTERM, StoppedError, 75),
        (signal.SIGHUP, StoppedError, 75),
    ],
)
def test_ends_at_once_where_nothing_polls(
    number: signal.Signals, error: type[Exception], code: int
) -> None:
    with StopSignals(), pytest.raises(error, match="--resume") as caught:
        signal.raise_signal(number)
    assert caught.value.exit_code == code  # type: ignore[attr-defined]
