"""What bounds a prediction: reading, the network, labels, or writing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from segdeform.machine.pipeline import WAITING_FOR_READERS, WAITING_FOR_WRITERS
from segdeform.machine.stopwatch import Clock, Stopwatch
from segdeform.models.heads import Head
from segdeform.segmenter import Segmenter

# What a prediction's clock is told, beside the pipeline's waits.
LOOP, READING, LABELLING, NETWORK, WRITING = "loop", "reading", "labelling", "network", "writing"
_BOUND = 0.25  # share of the time from which on waiting for reading or writing bounds the whole


@dataclass(frozen=True)
class Profile:
    """Seconds of one prediction, of the thread that runs the network but for the last two."""

    pictures: int  # that were predicted, or frames
    seconds: float  # from the first picture to the last, those below included
    waiting_for_pictures: float
    network: float
    labels: float  # windows, enlarging, and what else is made of the network's output
    waiting_for_writing: float
    reading: float  # by threads of its own, beside the others
    writing: float

    @property
    def rest(self) -> float:
        """Seconds of records, progress and the like."""
        known = self.waiting_for_pictures + self.network + self.labels + self.waiting_for_writing
        return max(0.0, self.seconds - known)

    def to_json(self) -> dict[str, Any]:
        """Returns the seconds as JSON values."""
        rounded = {key: round(value, 4) for key, value in asdict(self).items()}
        return rounded | {"rest": round(self.rest, 4)}

    def verdict(self, segmenter: Segmenter) -> str:
        """Says in a sentence what bounds the pace, and what would change it."""
        waits = {"reading": self.waiting_for_pictures, "writing": self.waiting_for_writing}
        worst = max(waits, key=lambda name: waits[name])
        if waits[worst] > _BOUND * self.seconds:
            share = f"{waits[worst] / self.seconds:.0%} of the time the network waits"
            if worst == "reading":
                return (
                    f"Reading bounds it: {share} for pictures. A faster drive, files that decode "
                    "faster (JPEG), or several processes (--shard) on more cores would help."
                )
            return (
                f"Writing bounds it: {share} for outputs to be written. Fewer --outputs or a "
                "faster drive would help."
            )
        if max(self.labels, self.rest) > self.network:
            if self.labels > self.rest:
                return (
                    "Labels bound it, more than the network: larger windows (--tile), fewer "
                    "passes (--scales, --flip), or outputs without probabilities would help."
                )
            return "Neither pictures nor network bound it, but the records: is the drive slow?"
        busy = (self.reading + self.writing) / self.seconds
        return (
            f"The network bounds it: {_faster(segmenter)} would help. Beside it, reading and "
            f"writing keep {busy:.0%} of one core at work."
        )


def _faster(segmenter: Segmenter) -> str:
    compiling = "" if segmenter.compiled else " or, for many pictures of a size, --compile"
    if segmenter.device.type == "cpu":
        return f"a GPU, more cores, a smaller backbone{compiling}"
    numbers = "" if segmenter.precision == "bf16" else ", --precision bf16"
    return f"several GPUs (torchrun), a smaller backbone{numbers}{compiling}"


def profile_of(watch: Stopwatch) -> Profile:
    """Sums up what a prediction's clock was told."""
    spent = {name: watch.seconds.get(name, 0.0) for name in (LOOP, READING, WRITING, NETWORK)}
    labelling = watch.seconds.get(LABELLING, 0.0)
    return Profile(
        pictures=watch.times.get(WRITING, 0),
        seconds=spent[LOOP],
        waiting_for_pictures=watch.seconds.get(WAITING_FOR_READERS, 0.0),
        network=spent[NETWORK],
        labels=max(0.0, labelling - spent[NETWORK]),
        waiting_for_writing=watch.seconds.get(WAITING_FOR_WRITERS, 0.0),
        reading=spent[READING],
        writing=spent[WRITING],
    )


@contextmanager
def network_timed(segmenter: Segmenter, clock: Clock) -> Iterator[None]:
    """Tells a clock of each call of the network or, in windows, its parts, while the body runs."""
    model = segmenter.model
    inside = False

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal inside
            if inside:  # a part of what is timed already
                return function(*arguments, **named)
            inside = True
            try:
                with clock(NETWORK):
                    result = function(*arguments, **named)
                    if segmenter.device.type == "cuda":
                        torch.cuda.synchronize()  # else what comes after would wait for it
                    return result
            finally:
                inside = False

        return call

    parts: list[tuple[nn.Module, str]] = [(model, "maps"), (model, "features")]
    if isinstance(model.head, Head):
        parts.append((model.head, "decode"))
    former = [(owner, name, vars(owner).get(name)) for owner, name in parts]  # perhaps compiled
    for owner, name in parts:
        setattr(owner, name, timed(getattr(owner, name)))
    try:
        yield
    finally:
        for owner, name, own in former:
            delattr(owner, name)
            if own is not None:
                setattr(owner, name, own)


def lines(profile: Profile, segmenter: Segmenter) -> Iterator[str]:
    """Writes a profile for a person to read."""
    if not profile.pictures:
        yield "profile: nothing was left to predict"
        return
    pace = profile.pictures / profile.seconds
    yield f"profile: {profile.pictures} pictures in {profile.seconds:.2f} s, {pace:.2f} a second"
    parts = {
        "waiting for pictures": profile.waiting_for_pictures,
        "network": profile.network,
        "labels": profile.labels,
        "waiting for writing": profile.waiting_for_writing,
        "records and the rest": profile.rest,
        "beside it, reading": profile.reading,
        "beside it, writing": profile.writing,
    }
    for name, seconds in parts.items():
        each = 1000 * seconds / profile.pictures
        yield f"  {name:21} {seconds / profile.seconds:7.1%} {each:9.1f} ms a picture"
    yield profile.verdict(segmenter)
