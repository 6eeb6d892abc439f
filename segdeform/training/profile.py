"""Where the time of a training goes, by phase, and what would make it faster."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from segdeform.errors import SegdeformError
from segdeform.files.atomic import write_json
from segdeform.machine.stopwatch import Clock, Stopwatch
from segdeform.training.plan import Plan

# What the clock of a plan is told.
LOADER, TRANSFER, FORWARD, LOSS = "loader wait", "transfer", "forward", "loss"
BACKWARD, OPTIMISER, LOGGING = "backward", "optimiser", "logging"
EVALUATION, SAVING, REST = "evaluation", "saving", "rest"
PHASES = (LOADER, TRANSFER, FORWARD, LOSS, BACKWARD, OPTIMISER, LOGGING, EVALUATION, SAVING)
FILE = "profile.json"

_BOUND = 0.25  # share of the time from which on a phase beside the network bounds the whole
_COSTLY = 0.1  # the same of saving


@contextmanager
def profiled(plan: Plan, wanted: bool) -> Iterator[Plan]:
    """Yields the plan with a clock, and tells at the end, however it comes, what it was told.

    RUN/profile.json holds seconds and shares of the wall time. On a GPU every phase waits for the
    device, which costs a little.
    """
    if not wanted:
        yield plan
        return
    watch, began = Stopwatch(), time.perf_counter()
    try:
        yield replace(plan, clock=_waiting_for(plan.device, watch))
    finally:
        seconds = time.perf_counter() - began
        if plan.peers.first:
            facts = summary(watch.seconds, seconds, watch.times.get(OPTIMISER, 0))
            facts["verdict"] = verdict(facts["shares"], plan)
            try:
                write_json(plan.run / FILE, facts)
            except SegdeformError as problem:  # which must not take the place of what ended the run
                plan.reporter.message(f"warning: {problem}")
            for line in lines(facts):
                plan.reporter.message(line)


def summary(spent: Mapping[str, float], seconds: float, steps: int) -> dict[str, Any]:
    """Returns seconds and shares of each phase; what is in none of them is the rest."""
    known = {phase: spent.get(phase, 0.0) for phase in PHASES}
    known[REST] = max(0.0, seconds - sum(known.values()))
    total = max(sum(known.values()), 1e-9)
    return {
        "steps": steps,
        "wall_seconds": round(seconds, 3),
        "seconds": {phase: round(value, 4) for phase, value in known.items()},
        "shares": {phase: value / total for phase, value in known.items()},
    }


def verdict(shares: Mapping[str, float], plan: Plan) -> str:
    """Says in a sentence what bounds the pace, and which key or option would change it."""
    train, workers = plan.config.train, plan.workers
    if shares[LOADER] > _BOUND:
        cache = "" if plan.train_set.cache is not None else ", or `segdeform prepare --cache`,"
        return (
            f"The loader bounds it: for {shares[LOADER]:.0%} of the time the network waits for "
            f"pictures. More --workers ({workers} now){cache} would help."
        )
    if shares[EVALUATION] > _BOUND:
        splits = " and ".join(val_set.split for val_set in plan.val_sets)
        return (
            f"Evaluations take {shares[EVALUATION]:.0%} of the time: a larger train.eval_every "
            f"({train.eval_every} now) or fewer pictures in {splits} would help."
        )
    if shares[SAVING] > _COSTLY:
        return (
            f"Saving takes {shares[SAVING]:.0%} of the time: a larger train.save_every "
            f"({train.save_every} now) or a faster drive would help."
        )
    work = sum(shares[phase] for phase in (FORWARD, LOSS, BACKWARD, OPTIMISER))
    if shares[REST] + shares[LOGGING] > work:
        return "What bounds it is none of these: is the machine busy, or the training very short?"
    bf16 = "train.precision=auto, " if train.precision == "fp32" else ""
    device = "a GPU, more cores" if plan.device.type == "cpu" else "more GPUs (torchrun)"
    layers = ", fewer deform.layers" if plan.config.deform.layers else ""
    return (
        f"The network bounds it, with {work:.0%} of the time: {bf16}a smaller data.crop{layers}, a "
        f"smaller backbone or {device} would help."
    )


def lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """Writes a profile for a person to read."""
    yield f"profile: {facts['steps']} steps in {facts['wall_seconds']:.1f} s"
    steps = max(1, facts["steps"])
    for phase, seconds in facts["seconds"].items():
        yield (
            f"  {phase:12} {facts['shares'][phase]:7.1%} {1000 * seconds / steps:9.1f} ms a step"
        )
    yield facts["verdict"]


def _waiting_for(device: torch.device, watch: Stopwatch) -> Clock:
    """Returns a clock whose blocks end when the device has done their work."""
    if device.type != "cuda":
        return watch

    @contextmanager
    def clock(what: str) -> Iterator[None]:
        with watch(what):
            yield
            torch.cuda.synchronize(device)

    return clock
