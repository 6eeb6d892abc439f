"""How much memory a training takes, and how much there is for it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from segdeform.config.schema import Config
from segdeform.machine.memory import free_memory, resident_memory
from segdeform.machine.processes import neighbours
from segdeform.models import build_model, freeze_batch_norm
from segdeform.models.deeplab import DeepLab
from segdeform.models.pyramid import fit_to_crop

# What the backward pass adds to what the forward pass leaves for it: MobileNetV2 on CPU, 8 crops.
_BACKWARD = 1.5
_USABLE = 0.7  # of what is free: the rest is for the loader, the state and what others take


def bytes_of_crop(config: Config, classes: int) -> int:
    """Estimates what each crop of a batch takes in training, bytes; takes no memory itself.

    Counted is what the forward pass keeps for the backward pass, in float32: of three crops, less
    that of two, so that weights do not count. BatchNorm refuses a single crop of one value.
    """
    config = fit_to_crop(config)
    with torch.device("meta"):
        network = build_model(config.model, config.deform, classes, pretrained=False)
    network = network.to("meta")  # its mean, too
    if config.train.freeze_bn:
        freeze_batch_norm(network.backbone)
    network.train()
    two, three = (_kept_bytes(network, count, config.data.crop) for count in (2, 3))
    return int(_BACKWARD * (three - two))


def _kept_bytes(network: DeepLab, count: int, crop: tuple[int, int]) -> int:
    kept: dict[Tensor, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        base = tensor if tensor._base is None else tensor._base  # a view takes nothing
        kept[base] = base.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        scores = network(torch.zeros(count, 3, *crop, device="meta")).logits
        F.cross_entropy(scores, torch.zeros(count, *crop, dtype=torch.long, device="meta"))
    return sum(kept.values())


def usable_memory(device: torch.device) -> int | None:
    """Returns the bytes that this process may plan with; None: nobody knows."""
    if device.type == "cuda":
        return int(_USABLE * torch.cuda.mem_get_info(device)[0])
    free = free_memory()
    return None if free is None else int(_USABLE * free / neighbours())


def memory_limit(device: torch.device) -> int | None:
    """Returns the bytes that this process may hold in all, with what it holds already.

    Of a GPU its whole memory; else what the system and the control groups leave, shared equally by
    the processes of a machine. None: nobody knows.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    free = free_memory()
    return None if free is None else resident_memory() + free // neighbours()
