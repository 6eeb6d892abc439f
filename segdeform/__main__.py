"""Runs the command line: `python -m segdeform`, and the command `segdeform`."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def run() -> int:
    """Calls `cli.main`; Ctrl-C while that is imported is one line as well, and code 130."""
    try:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _end)
        from segdeform.cli import main

        if signal.getsignal(signal.SIGINT) is _end:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return main()
    except KeyboardInterrupt:
        _end(signal.SIGINT, None)
        raise


def _end(number: int, frame: FrameType | None) -> None:
    """Ends at once: nothing is begun, and an exception in an import can come out as any other."""
    os.write(2, b"segdeform: interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    sys.exit(run())
