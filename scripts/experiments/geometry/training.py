"""The networks of `geometry_table.py`, plain and deformable, and one training run of them."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from cuda_ops import DeformConv2d
from geometry.data import GeometrySet, Motion, Split, move
from segdeform.config.schema import TrainConfig
from segdeform.errors import NotFiniteError
from segdeform.training.optim import build_optimizer, set_learning_rate

Net = Literal["plain", "deformable"]
Pool = Literal["mean", "max"]
NETS: tuple[Net, ...] = ("plain", "deformable")
WIDTHS = (16, 32, 48, 48)  # channels after each 3x3 layer of the deformable network
STRIDES = (2, 1, 2, 1)
CLASSES = 10
POINTS = 12  # of a learning curve
WATCHED = 1000  # test pictures behind each of them; the table's accuracy is that of all

_VERSION = 2  # of networks, motions and recipe: another number where they change in the code
_TEST_SEED = 2**31  # beyond the seeds of runs


@dataclass(frozen=True)
class Budget:
    """What both networks of a row get alike."""

    steps: int
    batch: int
    train_size: int | None  # pictures, None: all
    test_size: int | None
    pool: Pool = "mean"  # over places, before the linear layer


def build_classifier(
    channels: int,  # C of the pictures
    widths: tuple[int, ...],
    deformable: bool,  # the layers after the first
    pool: Pool = "mean",
) -> nn.Sequential:  # [N, C, H, W] -> [N, 10] logits
    """Builds 3x3 layers with BatchNorm and ReLU, pooling over all places, and a linear layer."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (width, stride) in enumerate(zip(widths, STRIDES, strict=True), 1):
        kind = DeformConv2d if deformable and number > 1 else nn.Conv2d
        layers[f"conv{number}"] = kind(channels, width, 3, stride, padding=1, bias=False)
        layers[f"norm{number}"] = nn.BatchNorm2d(width)
        layers[f"relu{number}"] = nn.ReLU()
        channels = width
    layers["pool"] = nn.AdaptiveAvgPool2d(1) if pool == "mean" else nn.AdaptiveMaxPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["classes"] = nn.Linear(channels, CLASSES)
    return nn.Sequential(layers)


def count_parameters(model: nn.Module) -> int:
    """Counts the numbers that are learned."""
    return sum(parameter.numel() for parameter in model.parameters())


@cache
def plain_widths(channels: int) -> tuple[int, ...]:
    """Returns the widths that make the plain network at least as large as the deformable one.

    All layers are widened by one factor, the least whose network has as many parameters as the
    deformable network with its offset branches: the plain network has a few more, never fewer.
    """
    wanted = count_parameters(build_classifier(channels, WIDTHS, deformable=True))
    thousandths = 1000
    while True:
        widths = tuple(round(width * thousandths / 1000) for width in WIDTHS)
        if count_parameters(build_classifier(channels, widths, deformable=False)) >= wanted:
            return widths
        thousandths += 1


def describe_run(row: GeometrySet, net: Net, channels: int, budget: Budget) -> dict[str, Any]:
    """Returns all that decides a run beside its pictures and its seed, as JSON values."""
    widths = WIDTHS if net == "deformable" else plain_widths(channels)
    model = build_classifier(channels, widths, net == "deformable", budget.pool)
    return {
        "version": _VERSION,
        "net": net,
        "widths": list(widths),
        "strides": list(STRIDES),
        "parameters": count_parameters(model),
        "angle": row.angle,
        "shift": row.shift,
        "frame": row.frame,
        **vars(budget),
        "training": _training(budget, 0).model_dump(
            include={"optimizer", "lr", "momentum", "weight_decay", "schedule", "min_lr_factor",
                     "warmup_steps", "offset_lr_factor"}
        ),
    }  # fmt: skip


def _training(budget: Budget, seed: int) -> TrainConfig:
    """Returns the one recipe of all runs: SGD, a short warm-up, a cosine to (nearly) 0."""
    return TrainConfig(
        steps=budget.steps,
        batch_size=budget.batch,
        lr=0.05,
        schedule="cosine",
        warmup_steps=min(50, budget.steps - 1),
        seed=seed,
    )


@dataclass(frozen=True)
class Trained:
    """What a run gave."""

    model: nn.Sequential
    accuracy: float  # of all test pictures
    curve: list[dict[str, float]]  # step, loss since the point before, accuracy of WATCHED
    seconds: float


def train_classifier(
    row: GeometrySet,
    net: Net,
    train: Split,
    test: Split,
    budget: Budget,
    seed: int,
    board: Path,  # folder of the TensorBoard event file
) -> Trained:
    """Trains one network from random weights and scores it on the test pictures, moved once.

    The seed decides the weights, and, for both networks alike, which pictures a step sees and how
    they are moved.

    Raises:
        NotFiniteError: the loss stopped being a number.
    """
    began = time.perf_counter()
    recipe = _training(budget, seed)
    channels = train.images.shape[1]
    widths = WIDTHS if net == "deformable" else plain_widths(channels)
    torch.manual_seed(seed)
    model = build_classifier(channels, widths, net == "deformable", budget.pool)
    optimizer = build_optimizer(model, recipe)
    moved_test = moved_once(row, test)
    watched = Split(*(part[:WATCHED] for part in moved_test))
    every = max(1, budget.steps // POINTS)
    curve, losses = [], []
    with SummaryWriter(board) as writer:
        for step, (images, labels) in enumerate(batches(row, train, budget, seed)):
            rate = set_learning_rate(optimizer, recipe, step)
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if losses[-1] != losses[-1]:
                raise NotFiniteError(f"{board.name}: the loss is NaN at step {step + 1}")
            if (step + 1) % every == 0 or step + 1 == budget.steps:
                point = {"step": step + 1, "loss": sum(losses) / len(losses)}
                point["accuracy"] = accuracy(model, watched)
                writer.add_scalar("train/loss", point["loss"], step + 1)
                writer.add_scalar("train/learning_rate", rate, step + 1)
                writer.add_scalar(f"test/accuracy_of_{WATCHED}", point["accuracy"], step + 1)
                curve.append(point)
                losses.clear()
        score = accuracy(model, moved_test)
        writer.add_scalar("test/accuracy", score, budget.steps)
    return Trained(model, score, curve, time.perf_counter() - began)


def batches(
    row: GeometrySet, train: Split, budget: Budget, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the batches of a run, moved anew whenever a picture comes again.

    Every epoch goes through the pictures in a new order; what does not fill a batch goes first into
    the next one.
    """
    generator = torch.Generator().manual_seed(seed)
    waiting = torch.empty(0, dtype=torch.int64)
    for _ in range(budget.steps):
        while len(waiting) < budget.batch:
            epoch = torch.randperm(len(train.labels), generator=generator)
            waiting = torch.cat([waiting, epoch])
        chosen, waiting = waiting[: budget.batch], waiting[budget.batch :]
        motion = Motion.draw(row, budget.batch, generator)
        yield move(train.images[chosen], motion, row.frame), train.labels[chosen]


def moved_once(row: GeometrySet, test: Split) -> Split:
    """Moves the test pictures: the same way for every network and every seed."""
    generator = torch.Generator().manual_seed(_TEST_SEED)
    parts = [
        move(images, Motion.draw(row, len(images), generator), row.frame)
        for images in test.images.split(1000)  # coordinates of all at once would fill the memory
    ]
    return Split(torch.cat(parts), test.labels)


def accuracy(model: nn.Module, test: Split) -> float:
    """Returns the share of pictures whose class has the largest logit; leaves training mode on."""
    model.eval()
    right = 0
    with torch.inference_mode():
        for images, labels in zip(test.images.split(500), test.labels.split(500), strict=True):
            right += int((model(images).argmax(1) == labels).sum())
    model.train()
    return right / len(test.labels)
