"""The gradient of a step's loss: of the batch at once, or of parts of it, one after the other."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from segdeform.models.deeplab import Output
from segdeform.models.recompute import statistics_kept
from segdeform.training.checkpoint import TrainState
from segdeform.training.losses import denominators, needs_whole_batch, segmentation_loss
from segdeform.training.plan import Plan
from segdeform.training.profile import BACKWARD, FORWARD, LOSS

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def backpropagate(
    plan: Plan,
    state: TrainState,
    network: nn.Module,  # the state's, as `Processes.wrap` returns it
    images: Tensor,  # [N, C, H, W] float32, 0..1
    labels: Tensor,  # [N, H, W] int64
    weights: Tensor | None,  # [K] float32
) -> Tensor:  # []
    """Adds the gradient of the step's loss, times the scaler's factor, and returns the loss.

    What it returns is this process's share, like what it adds.

    The random numbers of each part are functions of seed, step, rank and part. A loss that is no
    sum over pixels is computed of the scores of all parts together: these are computed a first
    time for it, without what a gradient needs, and a second time to carry its gradient back.
    """
    train = plan.config.train
    if train.accumulate == 1:
        _seed(plan, state.step, 0)
        output = forward(plan, network, images)
        with plan.clock(LOSS):
            loss = segmentation_loss(
                output.logits, output.auxiliary, labels, train, weights, plan.peers
            )
        with plan.clock(BACKWARD):
            torch.autograd.backward(state.scaler.scale(loss))
        return loss.detach()
    parts = list(zip(images.chunk(train.accumulate), labels.chunk(train.accumulate), strict=True))
    if needs_whole_batch(train):
        return _in_two_passes(plan, state, network, parts, labels, weights)
    classes = len(plan.train_set.classes)
    whole = denominators(labels, classes, train, weights, plan.peers)
    total = torch.zeros((), dtype=torch.float64, device=plan.device)
    for number, (part, its_labels) in enumerate(parts):
        with _exchanging(network, last=number == len(parts) - 1):
            _seed(plan, state.step, number)
            output = forward(plan, network, part)
            with plan.clock(LOSS):
                loss = segmentation_loss(
                    output.logits, output.auxiliary, its_labels, train, weights, plan.peers, whole
                )
            with plan.clock(BACKWARD):
                torch.autograd.backward(state.scaler.scale(loss))
        total += loss.detach()
    return total


def step_seed(seed: int, step: int, rank: int, part: int = 0) -> int:
    """Returns the 64-bit seed of the random generators in a part of a step of one process."""
    entropy = [seed, step, rank, part] if part else [seed, step, rank]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])


def _in_two_passes(
    plan: Plan,
    state: TrainState,
    network: nn.Module,
    parts: list[tuple[Tensor, Tensor]],
    labels: Tensor,
    weights: Tensor | None,
) -> Tensor:
    with torch.no_grad(), statistics_kept(state.model):
        outputs = []
        for number, (part, _) in enumerate(parts):
            _seed(plan, state.step, number)
            outputs.append(forward(plan, network, part))
    logits = torch.cat([output.logits for output in outputs]).requires_grad_()
    sides = [output.auxiliary for output in outputs if output.auxiliary is not None]
    auxiliary = torch.cat(sides).requires_grad_() if sides else None
    del outputs, sides
    scores = [logits] if auxiliary is None else [logits, auxiliary]
    with plan.clock(LOSS):
        loss = segmentation_loss(logits, auxiliary, labels, plan.config.train, weights, plan.peers)
        gradients = torch.autograd.grad(state.scaler.scale(loss), scores)
    for number, ((part, _), *slopes) in enumerate(
        zip(parts, *(gradient.chunk(len(parts)) for gradient in gradients), strict=True)
    ):
        with _exchanging(network, last=number == len(parts) - 1):
            _seed(plan, state.step, number)
            output = forward(plan, network, part)
            with plan.clock(BACKWARD):
                torch.autograd.backward([s for s in output if s is not None], slopes)
    return loss.detach()


def forward(plan: Plan, network: nn.Module, images: Tensor) -> Output:
    """Computes the scores of [N, C, H, W] pictures, 0..1, in the precision of the training."""
    dtype = PRECISIONS[plan.config.train.precision]
    casting = torch.autocast(plan.device.type, dtype, enabled=dtype != torch.float32)
    with plan.clock(FORWARD), casting:
        return cast(Output, network(images))


def _seed(plan: Plan, step: int, part: int) -> None:
    torch.manual_seed(step_seed(plan.config.train.seed, step, plan.peers.rank, part))


def _exchanging(network: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """Has processes exchange gradients once a step, with the last part."""
    if last or not isinstance(network, DistributedDataParallel):
        return nullcontext()
    return cast(AbstractContextManager[None], network.no_sync())
