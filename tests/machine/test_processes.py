"""Several processes: what they exchange, and how the end of one ends all, without a deadline."""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import nullcontext, suppress
from typing import Any

import numpy as np
import pytest
import torch

from segdeform.errors import DataError, PeerLostError
from segdeform.machine import meeting
from segdeform.machine.processes import Processes, processes
from tests.ranks import Ranks, run_ranks

CPU = torch.device("cpu")


def exchanges() -> dict[str, Any]:
    """Does every exchange once, with values of which each rank has its own."""
    with processes(CPU) as peers:
        rank = peers.rank
        rows = np.arange(3 * (rank + 1), dtype=np.int64).reshape(rank + 1, 3) + 100 * rank
        tensors = [
            torch.full((2, 3, 4, 5), float(rank)).to(memory_format=torch.channels_last),
            torch.tensor(rank),
        ]
        peers.copy_from_first(tensors)
        return {
            "nobody": peers.anyone(False),
            "one": peers.anyone(rank == peers.size - 1),
            "shared": peers.share({"rank": rank, "text": "é" * 5000}),
            "total": peers.total(torch.tensor([1.5, rank])).tolist(),
            "rows": peers.gather(rows[: 0 if rank == 1 else None]).tolist(),
            "copied": [float(tensor.sum()) for tensor in tensors],
            "strides": tensors[0].stride(),
            "again": [peers.anyone(step % 3 == 2 and rank == 0) for step in range(200)],
        }


def test_three_processes_exchange() -> None:
    first, second, third = run_ranks(3, exchanges)
    assert first == second == third
    assert (first["nobody"], first["one"]) == (False, True)
    assert first["shared"] == {"rank": 0, "text": "é" * 5000}
    assert first["total"] == [4.5, 3.0]
    of_third = [[200 + 3 * row + column for column in range(3)] for row in range(3)]
    assert first["rows"] == [[0, 1, 2], *of_third]
    assert first["copied"] == [0.0, 0.0]
    assert first["strides"] == (60, 1, 15, 3)
    assert first["again"] == [step % 3 == 2 for step in range(200)]


def test_alone_nothing_is_exchanged() -> None:
    peers = Processes()
    with peers.in_step():
        assert peers.first and peers.anyone(True) and not peers.anyone(False)
    assert peers.share([1]) == [1]
    with pytest.raises(DataError, match="mine"), peers.in_step():
        raise DataError("mine")


def fails_in_a_step(culprit: int, swallowed: bool) -> None:
    with processes(CPU) as peers:
        with peers.in_step():
            pass
        with suppress(DataError) if swallowed else nullcontext(), peers.in_step():
            if peers.rank == culprit:
                time.sleep(0.3)
                raise DataError("7.png: no picture")


@pytest.mark.parametrize("culprit", [0, 2])
def test_a_failure_in_a_step_ends_all_with_its_text(culprit: int) -> None:
    ends = Ranks(3, fails_in_a_step, culprit, False).ended()
    for rank, end in enumerate(ends):
        if rank == culprit:
            assert end.error == "DataError: 7.png: no picture"
        else:
            expected = f"Another process failed (number {culprit}: 7.png: no picture)"
            assert end.error == f"PeerLostError: {expected}"


def test_a_failure_is_told_when_the_step_ends() -> None:
    """Not only when the error leaves the whole block, which here it does not."""
    first, _ = Ranks(2, fails_in_a_step, 1, True).ended()
    assert first.error == "PeerLostError: Another process failed (number 1: 7.png: no picture)"


def works_longer_than_a_silence(seconds: float) -> tuple[float, float]:
    """Rank 0 works for longer than a process may be silent, twice, and rank 1 waits for it."""
    meeting.SILENCE, meeting.BEAT = 0.5, 0.05
    with processes(CPU) as peers:
        begun = time.monotonic()
        with peers.in_step():
            if peers.first:
                time.sleep(seconds)
        waited = time.monotonic() - begun
        if peers.first:
            time.sleep(seconds)
    return waited, time.monotonic() - begun


def test_no_honest_work_is_too_long() -> None:
    for waited, ended in run_ranks(2, works_longer_than_a_silence, 1.2):
        assert waited >= 1.2
        assert ended >= 2.4  # also at the end, before the connections are closed


def sleeps(seconds: float) -> None:
    """Rank 0 works; a second without a sign of life is silence."""
    meeting.SILENCE, meeting.BEAT = 1.0, 0.1
    with processes(CPU) as peers, peers.in_step():
        if peers.first:
            time.sleep(seconds)


def test_processes_that_were_all_stopped_go_on() -> None:
    """As a queue does that takes a machine back for an hour."""
    ranks = Ranks(2, sleeps, 4.0)
    time.sleep(1.0)
    for number, order in ((signal.SIGSTOP, (1, 0)), (signal.SIGCONT, (0, 1))):
        for rank in order:  # a third of a silence apart
            os.kill(ranks.processes[rank].pid or 0, number)
            time.sleep(0.3)
        time.sleep(1.5)
    assert not any(end.error for end in ranks.ended())


def is_lost(how: str, rank: int) -> None:
    """One process is lost while the others wait for it, or for its tensors."""
    meeting.SILENCE, meeting.BEAT, meeting.FAREWELL, meeting.LINGER = 1.0, 0.1, 0.2, 0.1
    with processes(CPU) as peers:
        with peers.in_step():
            pass
        if peers.rank == rank:
            os.kill(os.getpid(), signal.SIGSTOP if "stopped" in how else signal.SIGKILL)
        if "tensors" in how:
            peers.total(torch.ones(3))
        peers.anyone(False)


@pytest.mark.parametrize("how", ["killed", "stopped", "tensors, killed", "tensors, stopped"])
@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("host", ["torchrun", "rank 0"])
def test_a_lost_process_ends_the_others(how: str, lost: int, host: str) -> None:
    environment = {}
    if host == "rank 0":  # as on a machine that vanished, a stopped one answers no question
        environment["TORCHELASTIC_USE_AGENT_STORE"] = "False"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            environment["MASTER_PORT"] = str(free.getsockname()[1])
    ranks = Ranks(2, is_lost, how, lost, **environment)
    other = ranks.processes[1 - lost]
    other.join(30)
    ranks.processes[lost].kill()
    end = ranks.ended()[1 - lost]
    if how == "tensors, stopped" or (how, lost, host) == ("stopped", 0, "rank 0"):
        # No exception reaches code that waits for tensors, or for an answer of the store.
        assert end.code == PeerLostError.exit_code
    else:
        assert end.error.startswith("PeerLostError: Another process is lost"), end
        assert "--resume" in end.error
