from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segdeform.data.sampler import batch_indices, epoch_order

small = st.integers(1, 40)


@given(seed=st.integers(0, 2**31 - 1), epoch=st.integers(0, 10**6), size=small)
def test_an_epoch_is_a_permutation(seed: int, epoch: int, size: int) -> None:
    assert sorted(epoch_order(seed, epoch, size)) == list(range(size))


def test_orders_differ_by_seed_and_epoch_and_stay_the_same_for_ever() -> None:
    orders = {tuple(epoch_order(seed, epoch, 50)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    # Golden: a changed order would break the resuming of every run.
    assert epoch_order(0, 0, 8).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]


def test_every_place_is_equally_likely() -> None:
    firsts = Counter(int(epoch_order(7, epoch, 5)[0]) for epoch in range(5000))
    assert set(firsts) == set(range(5))
    # Five standard deviations of a binomial count.
    assert all(abs(count - 1000) < 5 * np.sqrt(800) for count in firsts.values())


@given(size=small, batch=small, world=st.integers(1, 9), seed=st.integers(0, 99))
def test_each_index_comes_once_an_epoch_for_any_world_size(
    size: int, batch: int, world: int, seed: int
) -> None:
    steps = -(-3 * size // batch)
    stream = [
        pair
        for step in range(steps)
        for rank in range(world)
        for pair in batch_indices(seed, step, batch, size, rank, world)
    ]
    assert len(stream) == steps * batch
    for epoch in range(3):
        assert sorted(i for e, i in stream if e == epoch) == list(range(size))
        part = stream[epoch * size : (epoch + 1) * size]
        assert [i for _, i in part] == list(epoch_order(seed, epoch, size))


@given(size=small, batch=small, world=st.integers(1, 9), step=st.integers(0, 10**6))
def test_the_ranks_shares_make_up_the_single_process_batch(
    size: int, batch: int, world: int, step: int
) -> None:
    shares = [batch_indices(3, step, batch, size, rank, world) for rank in range(world)]
    assert [pair for share in shares for pair in share] == batch_indices(3, step, batch, size)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_order_cannot_be_changed_by_a_caller() -> None:
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(0, 0, 8)[0] = 3
