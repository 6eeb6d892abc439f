"""The section `train` of a config."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from segdeform.config.section import Fraction, Positive, Section


class TrainConfig(Section):
    """Optimisation."""

    steps: int = Field(
        40_000, ge=1, le=2**40, description="optimiser steps; auto: by pictures, or --minutes"
    )
    batch_size: int = Field(16, ge=1, description="crops a step, all processes; auto: by memory")
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
    offset_lr_factor: float = Field(0.1, ge=0, description="offset branches' rate / their layer's")
    freeze_bn: bool = Field(
        False,
        description="backbone's BatchNorm: ImageNet statistics, no updates; auto: by weights",
    )
    clip_grad_norm: Positive | None = Field(None, description="global L2 norm; null: no clipping")
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = True
    ema_decay: Fraction = Field(0.0, description="0: no average of the network; else e.g. 0.999")
    loss: Literal["cross_entropy", "ohem"] = "cross_entropy"
    ohem_keep: Fraction = Field(0.25, description="least share of the hardest pixels kept")
    ohem_threshold: Fraction = Field(0.7, description="pixels with p(truth) below this are kept")
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
    log_every: int = Field(20, ge=1, description="steps between log lines")

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
