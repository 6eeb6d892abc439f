"""A network that trains by code that torch's compiler made of it, as train.compile asks for it."""

from __future__ import annotations

import time
from typing import cast

import torch
from torch import Tensor, nn

from segdeform.machine.memory import memory_that_ended
from segdeform.models.compiling import first_line, without_noise
from segdeform.models.deeplab import DeepLab, Output
from segdeform.models.recompute import statistics_kept
from segdeform.training.checkpoint import TrainState
from segdeform.training.gradients import forward
from segdeform.training.losses import needs_whole_batch
from segdeform.training.pace import duration
from segdeform.training.plan import Plan

# Dropout draws the numbers that it would draw otherwise, and no choice of code rests on how long
# each took: the same steps have the same bits.
_OPTIONS = {"fallback_random": True, "deterministic": True}


class CompiledNetwork(nn.Module):
    """Computes what a network computes; weights, statistics and mode are the network's own."""

    def __init__(self, model: DeepLab) -> None:
        """Compiles nothing yet: the first call does, for its sizes, and the first gradient."""
        super().__init__()
        self.model = model
        # One size is all that a training has: with sizes left open the code is slower.
        self._fast = torch.compile(model.forward, dynamic=False, options=dict(_OPTIONS))

    def forward(self, images: Tensor) -> Output:  # [N, C, H, W] float32, 0..1
        return cast(Output, self._fast(images))


def network_of_steps(plan: Plan, state: TrainState) -> tuple[nn.Module, float | None]:
    """Returns the network as the steps call it, and the seconds that compiling it took, if it was.

    Where it cannot be compiled, for want of a compiler say, one message tells so, and the network
    is used as it is. All processes take part and do the same.

    Raises:
        InterruptedByUserError, StoppedError: a stop was asked for meanwhile.
    """
    network, seconds = (state.model, None) if not plan.config.train.compile else _try(plan, state)
    if state.compiled is not None and state.compiled != (seconds is not None):
        plan.reporter.message(
            f"warning: the network {'was' if state.compiled else 'was not'} compiled before, and "
            f"is{'' if seconds is not None else ' not'} now: the weights will not be bit for bit "
            "those of an uninterrupted run"
        )
    state.compiled = seconds is not None
    return plan.peers.wrap(network, plan.device), seconds


def _try(plan: Plan, state: TrainState) -> tuple[nn.Module, float | None]:
    say, begun = plan.reporter.message, time.perf_counter()
    say("compiling the network (train.compile), which can take minutes")
    network = CompiledNetwork(state.model)
    with plan.peers.in_step():
        reason = _rehearse(plan, state, network)
    if plan.peers.anyone(reason is not None):
        reason = reason or "another process cannot"
        say(f"the network is not compiled, which changes nothing but the pace: {reason}")
        return state.model, None
    seconds = time.perf_counter() - begun
    say(f"compiled the network in {duration(seconds)}")
    return network, seconds


def _rehearse(plan: Plan, state: TrainState, network: CompiledNetwork) -> str | None:
    """Has the forward and the backward pass of a step compiled; returns why that failed, if so.

    The network is left as it is; the random generators are seeded anew by every step.
    """
    train, model = plan.config.train, state.model
    layout = torch.channels_last if train.channels_last else torch.contiguous_format
    count = train.batch_size // train.accumulate // plan.peers.size
    size = (count, plan.train_set.channels, *plan.config.data.crop)
    images = torch.zeros(size, device=plan.device).contiguous(memory_format=layout)
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        with without_noise(), statistics_kept(model):
            if train.accumulate > 1 and needs_whole_batch(train):
                with torch.no_grad():
                    forward(plan, network, images)
            scores = [s for s in forward(plan, network, images) if s is not None]
            slopes = [torch.zeros_like(s) for s in scores]
            torch.autograd.grad(scores, wanted, slopes, allow_unused=True)
    except (RuntimeError, OSError, ImportError) as error:
        if plan.stop():  # torch wraps what a signal raises in an error of its own
            raise plan.stop.error("before the first step") from error
        if memory_that_ended(error):
            raise
        return first_line(error)
    return None
