"""How processes of one job wait for each other: as long as all of them live, without a deadline.

They share a store of keys, torchrun's or rank 0's. Every process writes a sign of life into it from
a thread of its own, so that hours of honest work are no silence, and whoever fails says so there.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import uuid
from collections.abc import Callable
from typing import TypeVar

from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

from segdeform.errors import PeerLostError

JOINING = 600.0  # seconds until all processes have been started
BEAT = 2.0  # seconds between two signs of life
SILENCE = 120.0  # seconds without one after which a process counts as lost
FAREWELL = 5.0  # seconds for the others to hear of a failure, or to leave
LINGER = 1.0  # seconds by which those that only heard of a failure end after the one that failed

_YES = 2**32  # one vote, above the count of those present

T = TypeVar("T")


def join(store: Store, rank: int, size: int) -> Store:
    """Returns a store that only these processes know, once all of them are there.

    torchrun's store outlives a restart of the processes, with all that the lost ones wrote; and the
    number of the restart may differ between its machines. So rank 0 invents a name, and hands it to
    those whose own fresh names it finds.

    Raises:
        PeerLostError: the others do not come.
    """
    deadline = time.monotonic() + JOINING

    def pause(missing: str) -> None:
        if time.monotonic() > deadline:
            raise PeerLostError(f"The processes do not find each other: {missing} did not come")
        time.sleep(0.02)

    name = uuid.uuid4().hex
    if rank > 0:
        store.set(f"join/{rank}", name)
        while not store.check([f"welcome/{name}"]):
            pause("rank 0")
        name = store.get(f"welcome/{name}").decode()
        store.add(f"joined/{name}", 1)
        return PrefixStore(name, store)
    while (here := store.add(f"joined/{name}", 0)) < size - 1:
        for other in range(1, size):
            if store.check([f"join/{other}"]):
                store.set("welcome/" + store.get(f"join/{other}").decode(), name)
        pause(f"{size - 1 - here} of {size - 1}")
    return PrefixStore(name, store)


class Meeting:
    """One process's place among those that share a store; see `join`.

    Every method raises PeerLostError where another process failed, is silent, or took the store
    with it. Where that comes to light while this one is in an exchange of tensors, which may then
    never end, this process ends after a moment, with PeerLostError's exit code.
    """

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self._store, self._rank, self._size = store, rank, size
        self._turn = 0
        self._shared = 0
        self.alone = False  # at work that ends by itself, which the loss of another may not cut
        self._trouble: PeerLostError | None = None
        self._failed = False
        self._beats = 0
        self._over = threading.Event()
        self._watching = threading.Thread(target=self._watch, args=[store.clone()], daemon=True)
        self._watching.start()
        threading.Thread(target=self._guard, daemon=True).start()

    def votes(self, yes: bool) -> int:
        """Waits until every process has asked and returns how many of them said yes."""
        self._turn += 1
        turn = f"turn/{self._turn}"
        said = self._ask(lambda: self._store.add(turn, 1 + _YES * yes))
        if said % _YES < self._size:
            return int(self._wait_for(f"{turn}/votes"))

        def close() -> None:
            self._store.set(f"{turn}/votes", str(said // _YES))
            before = f"turn/{self._turn - 1}"  # which all have left
            self._store.delete_key(before)
            self._store.delete_key(f"{before}/votes")

        self._ask(close)
        return int(said // _YES)

    def share(self, text: str) -> str:
        """Returns the text of rank 0, to every process."""
        self._shared += 1
        key = f"shared/{self._shared}"
        if self._rank > 0:
            return self._wait_for(key)
        self._ask(lambda: self._store.set(key, text))
        return text

    def fail(self, reason: str) -> None:
        """Tells the others why this process ends; gives them a moment to hear it."""
        if self._failed:
            return
        self._failed = True
        text = f"number {self._rank}: {reason}"
        try:
            first = self._store.compare_set("failure", "", text).decode() == text
            self._store.add("heard", 1)
            deadline = time.monotonic() + FAREWELL
            while first and time.monotonic() < deadline and self._trouble is None:
                if self._store.add("heard", 0) >= self._size:
                    break
                time.sleep(0.02)
        except RuntimeError:
            pass  # the store went with its process: the others have noticed

    def leave(self) -> None:
        """Ends the signs of life; the process with the store is the last to go."""
        try:
            left = self._store.add("left", 1)
            deadline = time.monotonic() + FAREWELL
            while self._rank == 0 and left < self._size and not self._failed:
                if time.monotonic() > deadline:
                    break
                time.sleep(0.02)
                left = self._store.add("left", 0)
        except RuntimeError:
            pass  # likewise
        self._over.set()
        self._watching.join(FAREWELL)

    def _wait_for(self, key: str) -> str:
        pause = 0.0002
        while not self._ask(lambda: self._store.check([key])):
            if self._ask(lambda: self._store.check(["failure"])):
                raise self._heard()
            if self._trouble is not None:
                raise self._trouble
            time.sleep(pause)
            pause = min(1.3 * pause, 0.02)
        return self._ask(lambda: self._store.get(key)).decode()

    def _heard(self) -> PeerLostError:
        """Returns the failure of another, once that one has had time to end first."""
        failure = failed(self._ask(lambda: self._store.get("failure")))
        self._failed = True
        deadline = time.monotonic() + FAREWELL
        try:
            self._store.add("heard", 1)
            while self._store.add("left", 0) == 0 and time.monotonic() < deadline:
                time.sleep(0.02)
        except RuntimeError:
            pass  # the store went with the process that failed
        time.sleep(LINGER)  # torchrun kills all as soon as one has ended
        return failure

    def _ask(self, question: Callable[[], T]) -> T:
        try:
            return question()
        except RuntimeError as error:
            raise lost(error) from error

    def _watch(self, store: Store) -> None:
        """Writes signs of life and looks for those of rank 0, or of all others at rank 0."""
        others = range(1, self._size) if self._rank == 0 else range(1)
        seen = dict.fromkeys(others, (b"", 0))
        while not self._over.wait(BEAT) and self._trouble is None:
            try:
                store.set(f"alive/{self._rank}", str(self._beats))
                for other, (sign, last) in seen.items():
                    key = f"alive/{other}"
                    new = store.get(key) if store.check([key]) else b""
                    if new != sign:
                        seen[other] = (new, self._beats)
                    # By our own beats, not the clock: where all were stopped, none is silent.
                    elif (self._beats - last) * BEAT > SILENCE:
                        silent = f"process {other} gave no sign of life for {SILENCE:.0f} s"
                        self._trouble = lost(silent)
                if store.check(["failure"]):
                    self._trouble = failed(store.get("failure"))
            except RuntimeError as error:
                self._trouble = lost(error)
            self._beats += 1

    def _guard(self) -> None:
        """Ends the process where it does not come to know of trouble by itself in time.

        The store may be the trouble: where its machine vanished, no question has an end.
        """
        beats, quiet = 0, 0
        while self._trouble is None and not self._over.wait(BEAT):
            beats, quiet = self._beats, quiet + 1 if beats == self._beats else 0
            if quiet * BEAT > SILENCE:
                self._trouble = lost(f"the store gave no answer for {SILENCE:.0f} s")
        while not self._over.wait(2 * FAREWELL + LINGER):
            if not self.alone and self._trouble is not None:
                print(f"segdeform: {self._trouble}", file=sys.stderr, flush=True)
                os._exit(self._trouble.exit_code)


def lost(reason: object) -> PeerLostError:
    """Returns the error for a process that is gone without a word."""
    line = str(reason).strip().partition("\n")[0][:200]
    return PeerLostError(
        f"Another process is lost: run the same command again, a training with --resume ({line})"
    )


def failed(reason: bytes) -> PeerLostError:
    """Returns the error for a process that has said why it ends."""
    return PeerLostError(f"Another process failed ({reason.decode()})")
