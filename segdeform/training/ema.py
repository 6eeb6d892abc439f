"""Exponential moving average of the network (Polyak averaging), scored and saved as the model."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def ema_decay(decay: float, step: int) -> float:
    """Returns the decay of update `step` (0-based): short memory at first, so the start fades."""
    return min(decay, (1 + step) / (10 + step))


def averaged_model(model: nn.Module, decay: float) -> AveragedModel:
    """Returns the moving average of a network, in evaluation mode.

    The first of its updates copies the network; update n (0-based) moves weights and BatchNorm
    statistics towards it by 1 - ema_decay(decay, n), where n is read from `n_averaged`.
    """

    def move(averaged: Sequence[Tensor], current: Sequence[Tensor], update: Tensor | int) -> None:
        if averaged[0].is_floating_point():
            updates = int(average.n_averaged)  # on the CPU, unlike `update`: no wait for a GPU
            of_update = get_ema_multi_avg_fn(ema_decay(decay, updates))  # type: ignore[no-untyped-call]
            of_update(averaged, current, update)
        else:
            for count, counted in zip(averaged, current, strict=True):  # BatchNorm's, of batches
                count.copy_(counted)

    average = AveragedModel(model, multi_avg_fn=move, use_buffers=True)
    return average.eval().requires_grad_(False)
