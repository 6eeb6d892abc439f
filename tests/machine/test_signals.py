from __future__ import annotations

import signal

import pytest

from segdeform.errors import InterruptedByUserError, StoppedError
from segdeform.machine.signals import StopSignals


def test_first_is_noted_second_ends_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopSignals() as stop:
        stop.deferred = True
        assert not stop()
        signal.raise_signal(signal.SIGINT)
        assert stop()
        with pytest.raises(InterruptedByUserError):
            signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize(
    ("number", "error", "code"),
    [(signal.SIGINT, InterruptedByUserError, 130), (signal.SIGTERM, StoppedError, 75)],
)
def test_ends_at_once_where_nothing_polls(
    number: signal.Signals, error: type[Exception], code: int
) -> None:
    with StopSignals(), pytest.raises(error, match="--resume") as caught:
        signal.raise_signal(number)
    assert caught.value.exit_code == code  # type: ignore[attr-defined]
