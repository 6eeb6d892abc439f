"""Ctrl-C that cannot be swallowed.

A KeyboardInterrupt may be raised in the midst of other people's code, as while torch is imported,
and be caught there. What then waits for one asks here whether it came already.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from segdeform.callbacks import Stop
from segdeform.errors import InterruptedByUserError

_received = False


@contextmanager
def remembered() -> Iterator[None]:
    """Remembers a Ctrl-C as long as it lasts; KeyboardInterrupt is raised as before."""
    global _received
    _received = False
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _receive)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is _receive:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _receive(number: int, frame: FrameType | None) -> None:
    global _received
    _received = True
    raise KeyboardInterrupt


def received() -> bool:
    """Tells whether Ctrl-C came, whoever caught it."""
    return _received


def refuse_to_go_on() -> None:
    """Raises InterruptedByUserError if Ctrl-C came, whoever caught it."""
    if _received:
        raise InterruptedByUserError("interrupted")


@contextmanager
def stop_on_interrupt() -> Iterator[Stop]:
    """Lends a question "was Ctrl-C pressed?"; a second Ctrl-C raises KeyboardInterrupt.

    Only Python's main thread hears signals: in any other the answer stays no.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    pressed = False

    def receive(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    previous = signal.signal(signal.SIGINT, receive)
    try:
        refuse_to_go_on()
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, previous)
