"""One training step: rate, loss, backward pass, update of the weights and of their average."""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from segdeform.data.loader import train_loader
from segdeform.errors import NotFiniteError
from segdeform.training.checkpoint import TrainState
from segdeform.training.gradients import backpropagate
from segdeform.training.optim import set_learning_rate
from segdeform.training.plan import Plan
from segdeform.training.profile import OPTIMISER, TRANSFER
from segdeform.training.together import average_statistics


class Done(NamedTuple):
    """What a step tells."""

    loss: Tensor  # [] float64, of the whole batch
    labelled: Tensor  # [] float64, pixels of the whole batch
    rate: float  # of a parameter group with factor 1


def do_step(
    plan: Plan,
    state: TrainState,
    network: nn.Module,  # the state's, as `Processes.wrap` returns it
    batch: tuple[Tensor, Tensor],  # images [N, 3, H, W] uint8, labels [N, H, W] uint8 or int32
    weights: Tensor | None,  # [K] float32
) -> Done:
    """Does the step number state.step, counted from 0, and counts it.

    Raises:
        NotFiniteError: the loss or the gradient is no finite number, as far as looking is free.
    """
    train = plan.config.train
    rate = set_learning_rate(state.optimizer, train, state.step)
    with plan.clock(TRANSFER):
        images, labels = _to_device(plan, *batch)
    state.optimizer.zero_grad(set_to_none=True)
    loss = backpropagate(plan, state, network, images, labels, weights)
    whole, labelled = _of_all(plan, loss, labels, state.step)
    with plan.clock(OPTIMISER):
        _update(plan, state)
    state.step += 1
    return Done(whole, labelled, rate)


def batches_from(plan: Plan, first_step: int) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Yields this process's (images, labels) of the steps from `first_step` on, as integers."""
    train = plan.config.train
    yield from train_loader(
        plan.train_set,
        plan.config.data,
        seed=train.seed,
        first_step=first_step,
        steps=train.steps - first_step,
        batch_size=train.batch_size,
        workers=plan.workers,
        rank=plan.peers.rank,
        world_size=plan.peers.size,
    )


def _to_device(
    plan: Plan,
    images: Tensor,  # [N, 3, H, W] uint8
    labels: Tensor,  # [N, H, W] uint8 or int32
) -> tuple[Tensor, Tensor]:  # [N, 3, H, W] float32, 0..1; [N, H, W] int64
    """Moves the bytes first and widens them on the device: a quarter of the traffic."""
    layout = torch.channels_last if plan.config.train.channels_last else torch.contiguous_format
    images = images.to(plan.device, non_blocking=True)
    labels = labels.to(plan.device, non_blocking=True)
    return images.to(torch.float32, memory_format=layout) / 255, labels.long()


def _of_all(plan: Plan, loss: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Sums loss and labelled pixels over all processes, [] float64 each.

    On the CPU, where looking is free, it refuses a loss that is not finite.
    """
    shares = torch.stack([loss.detach().double(), (labels != plan.train_set.ignore).sum().double()])
    whole, labelled = plan.peers.total(shares)
    if plan.device.type == "cpu":
        refuse_not_finite("the loss", whole.item(), step + 1)
    return whole, labelled


def _update(plan: Plan, state: TrainState) -> None:
    """Clips the gradients, and moves the weights and their average."""
    train, scaler = plan.config.train, state.scaler
    average_statistics(plan.peers, state.model)
    if train.clip_grad_norm is not None:
        scaler.unscale_(state.optimizer)
        norm = nn.utils.clip_grad_norm_(state.model.parameters(), train.clip_grad_norm)
        if plan.device.type == "cpu":
            refuse_not_finite("the gradient's norm", norm.item(), state.step + 1)
    scaler.step(state.optimizer)
    scaler.update()
    if state.averaged is not None:
        state.averaged.n_averaged.fill_(state.step)
        state.averaged.update_parameters(state.model)


def refuse_not_finite(what: str, value: float, step: int) -> None:
    """Raises NotFiniteError for a number that training cannot go on from."""
    if not math.isfinite(value):
        raise NotFiniteError(
            f"{what} is {value} at step {step}; the last checkpoint is untouched: try a lower "
            "train.lr, train.clip_grad_norm=1 or a longer train.warmup_steps"
        )
