"""torchrun with our exit codes."""

from __future__ import annotations

import signal
from types import SimpleNamespace

import pytest
from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from segdeform.machine.torchrun import main


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ({0: (5, 11), 1: (7, 4)}, 4),  # a peer noticed sooner than torchrun saw the failure itself
        ({0: (5, 75), 1: (3, 75)}, 75),
        ({0: (5, 9), 1: (3, 3)}, 3),
        ({0: (2, 11), 1: (1, -9)}, 11),
        ({0: (2, -9), 1: (1, -11)}, 139),
    ],
)
def test_the_code_of_the_process_that_failed_by_itself(
    codes: dict[int, tuple[int, int]], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = {
        rank: SimpleNamespace(timestamp=time, exitcode=code) for rank, (time, code) in codes.items()
    }
    error = ChildFailedError.__new__(ChildFailedError)
    error.failures = failures  # type: ignore[assignment]

    def fail(arguments: list[str]) -> None:
        assert arguments == ["--standalone", "x.py"]
        raise error

    monkeypatch.setattr(run, "main", fail)
    assert main(["--standalone", "x.py"]) == expected


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_is_a_stop(
    number: signal.Signals, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(arguments: list[str]) -> None:
        raise SignalException("got it", number)

    monkeypatch.setattr(run, "main", stop)
    assert main([]) == expected
    monkeypatch.setattr(run, "main", lambda arguments: None)
    assert main([]) == 0
