"""Ctrl-C that somebody else's code catches still ends the command."""

from __future__ import annotations

import os
import signal

import pytest

from segdeform.errors import InterruptedByUserError
from segdeform.machine import interrupts
from segdeform.machine.signals import StopSignals


@pytest.mark.parametrize("waits", [StopSignals, interrupts.stop_on_interrupt])
def test_a_swallowed_interrupt_is_told_of_where_one_is_waited_for(waits: type) -> None:
    before = signal.getsignal(signal.SIGINT)
    with interrupts.remembered():
        with waits():  # none yet
            pass
        with pytest.raises(KeyboardInterrupt):  # a library's `except:` would do as much
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(InterruptedByUserError), waits():
            pytest.fail("went on")
    assert signal.getsignal(signal.SIGINT) is before
    with interrupts.remembered(), waits():  # forgotten with the command
        pass
