"""The section `train` of a config."""

from __future__ import annotations

import math
from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field, field_validator, model_validator

from segdeform.config.section import Fraction, Positive, Section
from segdeform.errors import nearest

LossName = Literal["cross_entropy", "ohem", "dice", "lovasz", "focal", "boundary"]
_SMOOTHED = frozenset({"cross_entropy", "ohem"})


def _name_or_weights(value: object) -> object:
    weights = {value: 1.0} if isinstance(value, str) else value
    if not isinstance(weights, dict) or not weights:
        raise ValueError("name a loss, or several as {name: weight}")
    for name, weight in weights.items():
        if name not in get_args(LossName):
            raise ValueError(f"unknown loss '{name}'.{nearest(str(name), get_args(LossName))}")
        if (
            isinstance(weight, bool)
            or not isinstance(weight, int | float)
            or not 0 < weight < math.inf
        ):
            raise ValueError(f"the weight of {name} must be a number above 0")
    return value


Losses = Annotated[LossName | dict[LossName, float], BeforeValidator(_name_or_weights)]


class TrainConfig(Section):
    """Optimisation."""

    steps: int = Field(
        40_000, ge=1, le=2**40, description="optimiser steps; auto: by pictures, or --minutes"
    )
    epochs: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="passes over the training pictures, in the place of steps; null: as many "
        "steps as train.steps says",
    )
    batch_size: int = Field(16, ge=1, description="crops a step, all processes; auto: by memory")
    accumulate: int = Field(
        1,
        ge=1,
        description="parts in which a step's batch is computed, one after the other, to take less "
        "memory; the loss is that of the whole batch",
    )
    checkpointing: bool = Field(
        False,
        description="compute the backbone's blocks a second time on the way back, in the place of "
        "keeping what they computed: the same bits in less memory, about a third slower",
    )
    compile: bool = Field(
        False,
        description="train by code that torch's compiler makes of the network, which takes a "
        "minute or more: `--dry-run` measures with and without it; on processors here steps took "
        "1.1 to 2.3 times as long with it (2026-12-01), on GPUs it was not measured; where it "
        "cannot be compiled, training goes on without",
    )
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = Field(0.01, description="highest learning rate; auto: by optimizer and batch")
    momentum: Fraction = Field(0.9, description="SGD only")
    weight_decay: float = Field(5e-4, ge=0)
    schedule: Literal["poly", "cosine", "constant"] = "poly"
    poly_power: Positive = 0.9
    min_lr_factor: Fraction = Field(0.01, description="final rate / lr")
    warmup_steps: int = Field(
        0, ge=0, description="linear warm-up from 0; fewer than steps; auto: by them"
    )
    backbone_lr_factor: float = Field(
        1.0, ge=0, description="backbone's rate / lr; auto: by weights"
    )
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="each of the backbone's parts learns by this factor slower than the one after "
        "it (Clark et al. 2020, layer-wise decay): stem and stages of a ResNet, blocks else",
    )
    offset_lr_factor: float = Field(0.1, ge=0, description="offset branches' rate / their layer's")
    freeze_bn: bool = Field(
        False,
        description="backbone's BatchNorm: ImageNet statistics, no updates; auto: by weights",
    )
    clip_grad_norm: Positive | None = Field(None, description="global L2 norm; null: no clipping")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32",
        description="numbers of the network's passes; weights are fp32; auto: bf16 where the GPU, "
        "or a measurement on the processor, says that it is faster",
    )
    channels_last: bool = True
    ema_decay: Fraction = Field(0.0, description="0: no average of the network; else e.g. 0.999")
    loss: Losses = Field(
        "cross_entropy",
        description="a name, or {name: weight} for a sum: cross_entropy, ohem (of the hardest "
        "pixels), focal (less of easy pixels), boundary (more near boundaries), dice and lovasz "
        "(of overlaps; means over the classes in a batch, by class_weights)",
    )
    ohem_keep: Fraction = Field(0.25, description="least share of the hardest pixels kept")
    ohem_threshold: Fraction = Field(0.7, description="pixels with p(truth) below this are kept")
    focal_gamma: float = Field(2.0, ge=0, le=10, description="0: focal is the cross entropy")
    boundary_width: int = Field(3, ge=1, le=255, description="pixels that count as near a boundary")
    boundary_strength: Positive = Field(
        4.0, description="how much more a pixel near a boundary weighs than 1"
    )
    class_weights: tuple[float, ...] | None = Field(
        None,
        description="one a class, in order, 0 or more and not all 0; the loss is the mean by them; "
        "auto: by the classes' shares",
    )
    label_smoothing: Fraction = 0.0
    auxiliary_weight: float = Field(0.4, ge=0, description="weight of the auxiliary loss")
    seed: int = Field(0, ge=0, lt=2**31)
    save_every: int = Field(1000, ge=1, description="steps between checkpoints; may be auto")
    eval_every: int = Field(
        0, ge=0, description="steps between evaluations; 0: only at the end; may be auto"
    )
    keep_best: bool = Field(
        False,
        description="end with the weights that scored best on data.val_split, not with the last",
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="end after so many evaluations that score no better than one before; null: "
        "after all steps",
    )
    log_every: int = Field(20, ge=1, description="steps between log lines")

    @property
    def losses(self) -> dict[LossName, float]:
        """The losses that are summed up, and their weights."""
        return {self.loss: 1.0} if isinstance(self.loss, str) else self.loss

    @model_validator(mode="after")
    def _smoothed_loss(self) -> TrainConfig:
        if self.label_smoothing and _SMOOTHED.isdisjoint(self.losses):
            raise ValueError(
                "train.label_smoothing is of cross_entropy and ohem, not of "
                + " and ".join(self.losses)
            )
        return self

    @model_validator(mode="after")
    def _warm_up_ends(self) -> TrainConfig:
        if self.warmup_steps >= self.steps:
            raise ValueError(
                f"train.warmup_steps = {self.warmup_steps} leaves nothing of train.steps = "
                f"{self.steps}: make it smaller (--set train.warmup_steps=0: none)"
            )
        return self

    @field_validator("class_weights")
    @classmethod
    def _something_weighs(cls, weights: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if weights is not None and (not weights or min(weights) < 0):
            raise ValueError("it takes a weight for each class, none of them negative")
        if weights is not None and max(weights) == 0:
            raise ValueError("all are 0: nothing would be learned from")
        return weights
