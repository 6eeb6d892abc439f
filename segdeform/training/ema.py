"""Exponential moving average of the weights (Polyak averaging), scored and saved as the model."""

from __future__ import annotations

import torch
from torch import nn


def ema_decay(decay: float, step: int) -> float:
    """Returns the decay of update `step` (0-based): short memory at first, so the start fades."""
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def update_ema(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    """Moves the averaged parameters towards the model's by 1 - decay; buffers are copied."""
    for average, parameter in zip(averaged.parameters(), model.parameters(), strict=True):
        average.lerp_(parameter, 1 - decay)
    for copy, buffer in zip(averaged.buffers(), model.buffers(), strict=True):
        copy.copy_(buffer)
