from __future__ import annotations

import pytest
import torch
from torch import nn

from segdeform.training.ema import averaged_model, ema_decay


def test_decay_warms_up() -> None:
    assert [ema_decay(0.99, step) for step in (0, 1, 8)] == [1 / 10, 2 / 11, 9 / 18]
    assert ema_decay(0.99, 10_000) == 0.99


def test_weights_and_batch_statistics_are_averaged_by_hand() -> None:
    model = nn.BatchNorm1d(1)
    average = averaged_model(model, 0.3)
    expected = None
    for step, value in enumerate([3.0, -1.0, 7.0, 5.0]):
        with torch.no_grad():
            model.weight.fill_(value)
            model.running_mean.fill_(-value)  # type: ignore[union-attr]
            model.running_var.fill_(value**2)  # type: ignore[union-attr]
            model.num_batches_tracked.fill_(step + 1)  # type: ignore[union-attr]
        average.update_parameters(model)
        decay = min(0.3, (1 + step) / (10 + step))
        new = torch.tensor([value, -value, value**2])
        expected = new if expected is None else decay * expected + (1 - decay) * new
    assert expected is not None
    norm = average.module
    found = (norm.weight, norm.running_mean, norm.running_var)
    assert [v.item() for v in found] == pytest.approx(expected.tolist())  # type: ignore[operator, union-attr]
    assert norm.num_batches_tracked.item() == 4  # type: ignore[operator, union-attr]
    assert not average.training and not norm.weight.requires_grad
