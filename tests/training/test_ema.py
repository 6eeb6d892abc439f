from __future__ import annotations

import pytest
import torch
from torch import nn

from segdeform.training.ema import ema_decay, update_ema


def test_decay_warms_up() -> None:
    assert [ema_decay(0.99, step) for step in (0, 1, 8)] == [1 / 10, 2 / 11, 9 / 18]
    assert ema_decay(0.99, 10_000) == 0.99


def test_average_by_hand_and_buffers_copied() -> None:
    model, averaged = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    expected = averaged.weight.item()
    for step, value in enumerate([3.0, -1.0, 7.0]):
        with torch.no_grad():
            model.weight.fill_(value)
            model.running_mean.fill_(value)  # type: ignore[union-attr]
            model.num_batches_tracked.fill_(step + 1)  # type: ignore[union-attr]
        decay = ema_decay(0.5, step)
        update_ema(averaged, model, decay)
        expected = decay * expected + (1 - decay) * value
    assert averaged.weight.item() == pytest.approx(expected)
    assert averaged.running_mean.item() == 7.0  # type: ignore[union-attr]
    assert averaged.num_batches_tracked.item() == 3  # type: ignore[union-attr]
