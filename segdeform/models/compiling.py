"""A network compiled by torch for the sizes that come often: faster, after a while of compiling."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from segdeform.callbacks import Say
from segdeform.machine.memory import memory_that_ended
from segdeform.models.deeplab import DeepLab

_MOST_SIZES = 4  # compiled; others are computed as ever
_MORE_THAN = 1  # times that a size was seen before it is worth compiling for

Network = Callable[[Tensor], Tensor]  # [N, C, H, W] -> [N, K, h, w]


def compile_network(model: DeepLab, say: Say) -> None:
    """Has a network compile itself, in place, for each size that it sees again, up to four.

    Each is a graph of its own: with sizes left open the same took three times as long to compile
    and gained a third less. `say` hears how long each took. Where nothing can be compiled, for want
    of a C++ compiler say, it hears that once and the network goes on as it was.
    """
    model.maps = _OftenSeen(model.maps, say)  # type: ignore[method-assign]


@contextmanager
def without_noise() -> Iterator[None]:
    """Has torch's compiler not warn that there is no CUDA, of which nobody speaks."""
    log = logging.getLogger("torch.utils.cpp_extension")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def first_line(error: BaseException) -> str:
    """Returns the first line of what an error says, or its name where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class _OftenSeen:
    """Computes scores by a compiled network at the sizes that come often."""

    def __init__(self, plain: Network, say: Say) -> None:
        self._plain, self._say = plain, say
        self._fast: Network = torch.compile(plain, dynamic=False)
        self._seen: Counter[torch.Size] = Counter()
        self._compiled: set[torch.Size] = set()
        self._works = True

    def __call__(self, images: Tensor) -> Tensor:
        size = images.shape
        if size in self._compiled:
            return self._fast(images)
        self._seen[size] += 1
        if not self._works or self._seen[size] <= _MORE_THAN:
            return self._plain(images)
        if len(self._compiled) == _MOST_SIZES:
            return self._plain(images)
        return self._compile(images)

    def _compile(self, images: Tensor) -> Tensor:
        begun = time.perf_counter()
        try:
            from torch._inductor import config  # a second, which nobody else need wait for

            constants = config.patch(freezing=True)  # weights, in the best layout
            with without_noise(), constants:
                scores = self._fast(images)
        except (RuntimeError, OSError) as error:
            if memory_that_ended(error):
                raise
            self._works = False
            self._say(
                "the network is not compiled, which changes nothing but the pace: "
                f"{first_line(error)}"
            )
            return self._plain(images)
        self._compiled.add(images.shape)
        height, width = images.shape[2:]
        self._say(f"compiled for {height}x{width} pixels in {time.perf_counter() - begun:.0f} s")
        return scores
