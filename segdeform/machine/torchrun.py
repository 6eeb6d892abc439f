"""torchrun that ends with segdeform's exit code: `python -m segdeform.machine.torchrun ...`.

It takes torchrun's options and does what torchrun does, which by itself ends with 1 whatever the
processes ended with, so that a queue cannot tell a stopped training (75) from a broken one.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from segdeform.errors import InterruptedByUserError, PeerLostError, StoppedError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs torchrun with its arguments and returns the exit code that tells most."""
    try:
        run.main(arguments)
    except ChildFailedError as error:
        failures = sorted(error.failures.values(), key=lambda failure: failure.timestamp)
        return exit_code([failure.exitcode for failure in failures])
    except SignalException as error:  # torchrun has passed it on, and the processes have ended
        stopped = InterruptedByUserError if error.sigval == signal.SIGINT else StoppedError
        return stopped.exit_code
    return 0


def exit_code(
    codes: Sequence[int],  # of this machine's processes that failed, in order; negative: a signal
) -> int:
    """Returns the code of the process that failed by itself, before those that only heard of it."""
    own = [code for code in codes if code > 0 and code != PeerLostError.exit_code]
    if own:
        return own[0]
    return PeerLostError.exit_code if PeerLostError.exit_code in codes else 128 - codes[0]


if __name__ == "__main__":
    sys.exit(main())
