"""How long a training takes, and how that is said."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pace:
    """What takes how many seconds."""

    step: float
    evaluation: float  # of the whole validation split
    saving: float = 0.0
    before: float = 0.0  # from the command to the first step
    compiling: float | None = None  # of the network; None: it is not compiled


def duration(seconds: float) -> str:
    """Words a time by two digits: 0.45 s, 12 s, 14 minutes, 2.3 hours."""
    for size, unit in ((3600, "hours"), (60, "minutes")):
        if seconds >= 1.65 * size:
            count = seconds / size
            return f"{count:.1f} {unit}" if count < 9.95 else f"{count:.0f} {unit}"
    return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"


def expected(pace: Pace, steps: int, evaluations: int) -> str:
    """Words what a training is going to take; the evaluation at the end counts as one."""
    total = steps * pace.step + evaluations * pace.evaluation
    plural = "s" if evaluations > 1 else ""
    return (
        f"about {duration(total)}: {steps} steps of {duration(pace.step)}, {evaluations} "
        f"evaluation{plural} of {duration(pace.evaluation)}"
    )
