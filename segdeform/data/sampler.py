"""Which picture is trained on when: pure functions of (seed, step), so that resuming is free."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, size: int) -> npt.NDArray[np.int64]:
    """Returns the order of one epoch, a permutation int64 [size] (read-only), drawn from a seed."""
    # Sorting raw 64-bit numbers, because only the raw stream is the same in every NumPy version.
    draws = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(size)
    order = np.argsort(draws, kind="stable")
    order.setflags(write=False)
    return order


def batch_indices(
    seed: int,
    step: int,
    batch_size: int,
    size: int,
    rank: int = 0,
    world_size: int = 1,
) -> list[tuple[int, int]]:
    """Returns the (epoch, index) pairs that one process trains on in step `step`, counted from 0.

    The epochs' orders form one endless stream, cut into batches of `batch_size` over all processes;
    each rank takes its contiguous share of the batch.
    """
    first = step * batch_size + batch_size * rank // world_size
    end = step * batch_size + batch_size * (rank + 1) // world_size
    pairs = []
    for position in range(first, end):
        epoch, place = divmod(position, size)
        pairs.append((epoch, int(epoch_order(seed, epoch, size)[place])))
    return pairs
