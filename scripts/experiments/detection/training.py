"""Trains a detector for a number of steps and scores it; all that happens depends on the seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN

from cuda_ops import MultiScaleDeformRoIPool, PSDeformRoIPool
from detection.average_precision import Found, Precision, Truth, average_precision
from detection.scenes import Scene

_WARM_UP = 50  # steps
_LONGEST = 5.0  # norm of the gradient


@dataclass(frozen=True)
class Recipe:
    """How a detector is trained: AdamW, linear warm-up, then half a cosine to zero."""

    steps: int
    batch: int  # pictures
    rate: float  # learning rate
    offset_rate: float  # of the layers that predict offsets, as a share of `rate`
    decay: float = 1e-4  # of the weights


def as_tensor(scene: Scene) -> Tensor:
    """Returns the picture as [3, H, W] float32 in 0..1."""
    return torch.from_numpy(scene.picture).permute(2, 0, 1).float() / 255


def train(
    model: FasterRCNN,
    scenes: Sequence[Scene],
    recipe: Recipe,
    seed: int,
    say: Callable[[str], None],
) -> list[float]:
    """Trains on random batches, mirrored at random; returns the loss of every step.

    Raises FloatingPointError when a loss is no longer finite.
    """
    torch.manual_seed(seed)  # of the samplers of anchors and proposals
    batches = _batches(scenes, recipe.batch, seed)
    optimizer = torch.optim.AdamW(_groups(model, recipe), weight_decay=recipe.decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _pace(step, recipe.steps))
    model.train()
    losses: list[float] = []
    for step in range(recipe.steps):
        parts = model(*next(batches))
        loss = sum(parts.values())
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss of step {step} is {loss.item()}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), _LONGEST)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            say(f"step {step + 1}: loss {np.mean(losses[-50:]):.3f}")
    return losses


def _groups(model: FasterRCNN, recipe: Recipe) -> list[dict[str, object]]:
    """Parts the parameters by their learning rate."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    offsets = [p for name, p in named if "offset_" in name]
    rest = [p for name, p in named if "offset_" not in name]
    groups: list[dict[str, object]] = [{"params": rest, "lr": recipe.rate}]
    if offsets:
        groups.append({"params": offsets, "lr": recipe.rate * recipe.offset_rate})
    return groups


def _pace(step: int, steps: int) -> float:
    warm_up = min(_WARM_UP, steps // 4)
    if step < warm_up:
        return (step + 1) / (warm_up + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))


def _batches(
    scenes: Sequence[Scene], size: int, seed: int
) -> Iterator[tuple[list[Tensor], list[dict[str, Tensor]]]]:
    """Goes through the pictures in random order again and again."""
    rng = np.random.default_rng(seed)
    order: list[int] = []
    while True:
        while len(order) < size:
            order += rng.permutation(len(scenes)).tolist()
        chosen, order = order[:size], order[size:]
        pairs = [_example(scenes[index], rng.random() < 0.5) for index in chosen]
        yield [picture for picture, _ in pairs], [target for _, target in pairs]


def _example(scene: Scene, mirrored: bool) -> tuple[Tensor, dict[str, Tensor]]:
    picture, boxes = as_tensor(scene), torch.from_numpy(scene.boxes[~scene.ignored])
    if mirrored:
        picture = picture.flip(2)
        width = picture.shape[2]
        boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
    return picture, {"boxes": boxes, "labels": torch.from_numpy(scene.labels[~scene.ignored])}


@torch.inference_mode()
def find(model: FasterRCNN, scene: Scene) -> Found:
    """Returns what the detector finds in one picture, in its pixels."""
    model.eval()
    (result,) = model([as_tensor(scene)])
    return Found(*(result[key].numpy() for key in ("boxes", "labels", "scores")))


@dataclass(frozen=True)
class Score:
    """How well a detector does on the validation pictures."""

    precision: Precision
    shift: float | None  # mean way of a bin, in parts of the box's sides; None: bins are fixed


def score(model: FasterRCNN, scenes: Sequence[Scene], classes: int) -> Score:
    """Scores a detector on pictures that it was not trained on."""
    shifts: list[Tensor] = []

    def note(module: nn.Module, arguments: tuple[Any, ...], _: Tensor) -> None:
        shifts.append(_shift(module, arguments))

    moving = [module for module in model.modules() if _moves(module)]
    hooks = [module.register_forward_hook(note) for module in moving]
    found = [find(model, scene) for scene in scenes]
    for hook in hooks:
        hook.remove()
    truth = [Truth(scene.boxes, scene.labels, scene.ignored) for scene in scenes]
    shift = torch.cat(shifts).mean().item() if shifts else None
    return Score(average_precision(truth, found, classes), shift)


def _moves(module: nn.Module) -> bool:
    sensitive = isinstance(module, PSDeformRoIPool) and module.offset_classes is not None
    return sensitive or isinstance(module, MultiScaleDeformRoIPool)


def _shift(module: nn.Module, arguments: tuple[Any, ...]) -> Tensor:
    """Returns how far the bins of a call move, in parts of the box's sides."""
    assert isinstance(module, MultiScaleDeformRoIPool | PSDeformRoIPool)
    gamma = module.gamma if isinstance(module, MultiScaleDeformRoIPool) else module.trans_std
    offsets = module.offsets(*arguments)
    assert offsets is not None
    return gamma * offsets.unflatten(1, (-1, 2)).norm(dim=2).flatten()
