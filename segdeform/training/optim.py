"""Optimiser, its parameter groups, and learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD, AdamW, Optimizer

from segdeform.config.schema import TrainConfig
from segdeform.models.timm_backbone import TimmBackbone

_NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm)


def learning_rate_factor(train: TrainConfig, step: int) -> float:
    """Returns the rate of step `step` (0-based) divided by `train.lr`.

    With progress p = step / steps and floor m = min_lr_factor: poly m + (1 - m)(1 - p)^power
    (Chen et al. 2017, DeepLab), cosine m + (1 - m)(1 + cos(pi p)) / 2 (Loshchilov and Hutter 2017).
    During warm-up the schedule is multiplied by (step + 1) / warmup_steps.
    """
    progress = step / train.steps
    decay = {
        "poly": math.pow(1 - progress, train.poly_power),
        "cosine": (1 + math.cos(math.pi * progress)) / 2,
        "constant": 1.0,
    }[train.schedule]
    factor = train.min_lr_factor + (1 - train.min_lr_factor) * decay
    warmup = min(1.0, (step + 1) / train.warmup_steps) if train.warmup_steps else 1.0
    return factor * warmup


def parameter_groups(model: nn.Module, train: TrainConfig) -> list[dict[str, Any]]:
    """Divides the trainable parameters by learning rate and weight decay, each into one group.

    Parameters below `backbone` learn at `backbone_lr_factor`, in part k of n from its end at
    `layer_decay`^k of that (see `depths_from_end`), those below an `offset_conv` at
    `offset_lr_factor` times what surrounds them. Biases and normalisation do not decay. Every
    group carries its `lr_factor`, which `set_learning_rate` multiplies with the schedule.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    depths = depths_from_end(model)
    for module_name, module in model.named_modules():
        path = module_name.split(".")
        factor = 1.0
        if path[0] == "backbone":
            depth = depths[".".join(path[1:])]
            factor = train.backbone_lr_factor * train.layer_decay**depth
        if "offset_conv" in path:
            factor *= train.offset_lr_factor
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            plain = name == "bias" or isinstance(module, _NORMS)
            decay = 0.0 if plain else train.weight_decay
            groups.setdefault((factor, decay), []).append(parameter)
    return [
        {"params": parameters, "lr_factor": factor, "weight_decay": decay}
        for (factor, decay), parameters in groups.items()
    ]


def backbone_parts(model: nn.Module) -> list[str]:
    """Names the parts of a network's backbone in their order: layers of a ResNet, blocks else."""
    backbone = getattr(model, "backbone", nn.Module())
    if isinstance(backbone, TimmBackbone):
        return list(backbone.blocks())
    names = [name for name, _ in backbone.named_children() if name.startswith("layer")]
    blocks = getattr(backbone, "features", nn.Module())
    return names or [f"features.{name}" for name, _ in blocks.named_children()]


def depths_from_end(model: nn.Module) -> dict[str, int]:
    """Returns 1 for a backbone's modules in its last part, one more for each part before it.

    By their names below the backbone. What lies in no part counts as the one that follows it, or
    that it follows at the end; what comes before the first, a stem, as one more part.
    """
    parts, place, depths = backbone_parts(model), -1, {}
    for name, _ in getattr(model, "backbone", nn.Module()).named_modules():
        own = (k for k, part in enumerate(parts) if f"{name}.".startswith(f"{part}."))
        inside = next(own, None)
        if inside is not None:
            place = inside
        elif place >= 0:
            inside = min(place + 1, len(parts) - 1)
        depths[name] = len(parts) - (-1 if inside is None else inside)
    return depths


def build_optimizer(model: nn.Module, train: TrainConfig) -> Optimizer:
    """Builds SGD with momentum or AdamW over the model's parameter groups."""
    groups = parameter_groups(model, train)
    if train.optimizer == "sgd":
        return SGD(groups, lr=train.lr, momentum=train.momentum)
    return AdamW(groups, lr=train.lr)


def set_learning_rate(optimizer: Optimizer, train: TrainConfig, step: int) -> float:
    """Sets every group's rate for step `step` and returns the rate of a group with factor 1."""
    rate = train.lr * learning_rate_factor(train, step)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_factor"]
    return rate
