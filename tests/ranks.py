"""Runs a function in several processes that torchrun might have started, in a fraction of a second.

They are forked from a server that has imported torch once.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read by the server, with torch
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["segdeform.training.loop", "tests.ranks"])


class Ended(NamedTuple):
    """How a process ended."""

    value: Any  # what the function returned
    error: str  # "Class: text" of what it raised instead, or ""
    code: int  # of the process


class Ranks:
    """Processes at work."""

    def __init__(
        self, size: int, work: Callable[..., Any], *arguments: Any, **environment: str
    ) -> None:
        """Starts `work(*arguments)` as each of `size` ranks, with more of the environment."""
        self._size, self._work = size, work
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        kept = ("XDG_CACHE_HOME", "PYTHONPATH")
        self._shared = {name: os.environ[name] for name in kept if name in os.environ} | {
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self._store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            **environment,
        }
        self.start(*arguments)

    def start(self, *arguments: Any) -> None:
        """Starts them all once more, with other arguments, as torchrun does after a loss."""
        self.processes: list[BaseProcess] = []
        self._ends: list[Connection] = []
        for rank in range(self._size):
            ours, theirs = _CONTEXT.Pipe(duplex=False)
            environment = {**self._shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            process = _CONTEXT.Process(
                target=_run, args=(environment, theirs, self._work, arguments)
            )
            process.start()
            theirs.close()
            self.processes.append(process)
            self._ends.append(ours)

    def ended(self, seconds: float = 100) -> list[Ended]:
        """Waits until all have ended; kills them when that takes longer than told."""
        deadline = time.monotonic() + seconds
        ended = []
        for process, end in zip(self.processes, self._ends, strict=True):
            value, error = None, "ended without a word"
            try:
                if end.poll(max(0, deadline - time.monotonic())):
                    value, error = end.recv()
            except EOFError:
                pass
            process.join(max(0, deadline - time.monotonic()))
            if process.is_alive():
                error = f"hung for {seconds} s"
            ended.append((value, error))
        for process in self.processes:
            if process.is_alive():
                process.kill()
            process.join()
        codes = [process.exitcode or 0 for process in self.processes]
        return [Ended(*end, code) for end, code in zip(ended, codes, strict=True)]


def run_ranks(
    size: int, work: Callable[..., Any], *arguments: Any, **environment: str
) -> list[Any]:
    """Returns what `work(*arguments)` returns in each of `size` processes; none may fail."""
    ends = Ranks(size, work, *arguments, **environment).ended()
    assert not any(end.error for end in ends), ends
    return [end.value for end in ends]


def _run(
    environment: dict[str, str],
    end: Connection,
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    try:
        value, error = work(*arguments), ""
    except Exception as raised:
        value, error = None, f"{type(raised).__name__}: {raised}"
    end.send((value, error))
    end.close()
