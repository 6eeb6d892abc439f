"""Errors that a user can cause or mend, each with the exit code that `segdeform` ends with.

A `SegdeformError` is shown as one line on stderr: what went wrong, which file or key, what to do.
Anything else that escapes is a bug in segdeform: exit code 1, the only case with a traceback.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from difflib import get_close_matches

# The errno of disk, quota, memory or file handles that ended.
EXHAUSTED = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
)

_LONGEST = 60  # letters of a value in a message


class SegdeformError(Exception):
    """A failure with a known cause; its text is the one line that the user reads."""

    exit_code = 1


class UsageError(SegdeformError):
    """The command line asks for something that cannot be (also: an output folder in use)."""

    exit_code = 2


class ConfigError(SegdeformError):
    """A config file or a `--set` override is wrong."""

    exit_code = 3


class DataError(SegdeformError):
    """A data set, picture or mask cannot be used."""

    exit_code = 4


class ModelError(SegdeformError):
    """A model folder, checkpoint or weights file is damaged or does not fit."""

    exit_code = 5


class UnsafeInputError(SegdeformError):
    """An input tries to do what no input may: bombs, links out of an archive."""

    exit_code = 6


class ResourceError(SegdeformError):
    """Disk, memory or file handles ended."""

    exit_code = 7


class PartialFailureError(SegdeformError):
    """Part of the work failed; the rest is done and the failures are listed."""

    exit_code = 8


class NotFiniteError(SegdeformError):
    """Loss or gradients stopped being finite numbers."""

    exit_code = 9


class RunLockedError(SegdeformError):
    """Another process works in this run folder."""

    exit_code = 10


class PeerLostError(SegdeformError):
    """Another process of the same training was lost."""

    exit_code = 11


class DownloadError(SegdeformError):
    """A download failed or its checksum is wrong."""

    exit_code = 12


class StoppedError(SegdeformError):
    """SIGTERM or SIGHUP: the state is saved, run the same command with --resume."""

    exit_code = 75


class InterruptedByUserError(SegdeformError):
    """Ctrl-C: the state is saved where there is any."""

    exit_code = 130


def nearest(wrong: str, known: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" for the closest of the known names, or a list of them."""
    known = sorted(known)
    close = get_close_matches(wrong, known, n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else f" Known: {', '.join(known)}."


def shortened(value: object) -> str:
    """Returns a value as a message shows it: its repr, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
