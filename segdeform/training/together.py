"""What makes several processes one training run: the same start, and BatchNorm over all of them."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from segdeform.files.atomic import json_number
from segdeform.machine.processes import Processes
from segdeform.models.deeplab import DeepLab
from segdeform.training.checkpoint import (
    TrainState,
    fill_optimizer,
    optimizer_tensors,
    scores_of,
)


def share_state(peers: Processes, state: TrainState) -> None:
    """Gives every process rank 0's state, bit for bit, so that the others need no run folder.

    Raises:
        PeerLostError: a process failed or is lost.
    """
    if peers.size == 1:
        return
    ours = optimizer_tensors(state)
    facts = peers.share(
        {
            "step": state.step,
            "seconds": state.seconds,
            "weights_sha256": state.weights_sha256,
            "scores": [[step, json_number(score)] for step, score in state.scores.items()],
            "scaler": state.scaler.state_dict(),
            "optimizer": {name: [*value.shape] for name, value in ours.items()},
        }
    )
    state.step, state.seconds = facts["step"], facts["seconds"]
    state.weights_sha256 = facts["weights_sha256"]
    state.scores = scores_of(facts)
    if state.scaler.is_enabled():
        state.scaler.load_state_dict(facts["scaler"])
    if not peers.first:
        empty = {name: torch.zeros(shape) for name, shape in facts["optimizer"].items()}
        fill_optimizer(state, empty, "rank 0's optimiser")
        ours = optimizer_tensors(state)
    peers.copy_from_first(state.model.state_dict().values())
    if state.averaged is not None:
        peers.copy_from_first(state.averaged.module.state_dict().values())
    peers.copy_from_first(ours[name] for name in facts["optimizer"])


def synchronize_batch_norm(model: DeepLab, peers: Processes, device: torch.device) -> DeepLab:
    """Has BatchNorm normalise over the pictures of all processes, where torch can: on GPUs."""
    if peers.size == 1 or device.type != "cuda":
        return model
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return cast(DeepLab, converted)


def own_batch_norm(model: nn.Module) -> list[nn.Module]:
    """Returns the layers that normalise over the pictures of their own process while training."""
    return [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm)
        and module.training
        and not isinstance(module, nn.SyncBatchNorm)
    ]


def batch_norm_warning(
    model: DeepLab, peers: Processes, batch_size: int, accumulate: int = 1
) -> str | None:
    """Says by how much BatchNorm sees less than a whole batch would show it; None: it does not."""
    parted = accumulate > 1
    layers = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm)
        and module.training
        and (parted or not isinstance(module, nn.SyncBatchNorm))
    ]
    if (peers.size == 1 and not parted) or not layers:
        return None
    share = batch_size // accumulate
    if len(own_batch_norm(model)) == len(layers):
        share //= peers.size
    whose = "those of their own process (torch can do better on GPUs only): the network will not "
    whose += "be that of one process"
    if parted:
        whose = "those of one part (train.accumulate): the network will not be that of one part"
    warning = (
        f"warning: {len(layers)} BatchNorm layers see {share} of the {batch_size} crops of a step, "
        f"{whose}"
    )
    if set(layers).isdisjoint(model.backbone.modules()):
        return warning
    return f"{warning}. train.freeze_bn = true freezes the backbone's"


def average_statistics(peers: Processes, model: nn.Module) -> None:
    """Gives the running statistics of such layers their mean over all processes.

    So the network stays the same in every process, and none of its pictures are left out.
    """
    if peers.size == 1:
        return
    statistics: list[Tensor] = [
        buffer
        for layer in own_batch_norm(model)
        for buffer in layer.buffers()
        if buffer.is_floating_point()
    ]
    if not statistics:
        return
    mean = peers.total(torch.cat(statistics)) / peers.size
    parts = torch.split(mean, [len(buffer) for buffer in statistics])
    for buffer, part in zip(statistics, parts, strict=True):
        buffer.copy_(part)
