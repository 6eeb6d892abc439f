"""Brings a training run to its first step: checks, network, optimiser, the state to go on from."""

from __future__ import annotations

import time
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor

from segdeform.checking import check_sound
from segdeform.config.loading import dump_config
from segdeform.files.atomic import write_text
from segdeform.files.manifest import sha256
from segdeform.models import build_model, freeze_batch_norm
from segdeform.models.deeplab import DeepLab
from segdeform.training import checkpoint
from segdeform.training.checkpoint import Checkpoint, TrainState
from segdeform.training.optim import build_optimizer
from segdeform.training.plan import Plan, check_resumable
from segdeform.training.run_folder import remove_run

_CHECK_NEWS = 10.0  # seconds between lines while a large data set is checked for the first time


def find_checkpoint(plan: Plan, resume: bool) -> Checkpoint | None:
    """Returns the checkpoint to go on from; None where there is none, or no resuming is meant.

    Raises:
        ModelError: every checkpoint is damaged.
        ConfigError, DataError: config or data are not those that the run began with.
    """
    found = checkpoint.newest(plan.run, plan.reporter.message) if resume else None
    if found is not None:
        check_resumable(plan, found.record)
    return found


def check_pictures(plan: Plan) -> None:
    """Checks every picture and mask.

    Raises:
        DataError, UnsafeInputError: lists the pictures and masks that cannot be used.
    """
    say = plan.reporter.message
    told = time.monotonic()

    def hear(done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told > _CHECK_NEWS:
            told = time.monotonic()
            say(f"checking pictures and masks: {done} of {total} pairs")

    check_sound((plan.train_set, plan.val_set), progress=hear, say=say)


def begin_run(plan: Plan, overwrite: bool) -> None:
    """Writes RUN/config.yaml; only now, with all inputs good, may a former run go."""
    if overwrite:
        remove_run(plan.run)
    write_text(plan.run / "config.yaml", dump_config(plan.config))


def build_state(plan: Plan, found: Checkpoint | None) -> TrainState:
    """Builds network, average, optimiser and scaler, and fills them from a checkpoint if given.

    Raises:
        ConfigError: the settings do not suit the backbone.
        ModelError, DownloadError: the weights to start from are damaged, do not fit or are missing.
    """
    train = plan.config.train
    torch.manual_seed(train.seed)
    model = _build_network(plan, pretrained=found is None)
    if train.freeze_bn:
        freeze_batch_norm(model.backbone)
    layout = torch.channels_last if train.channels_last else torch.contiguous_format
    model.to(plan.device, memory_format=layout)  # type: ignore[call-overload]
    averaged = deepcopy(model).eval().requires_grad_(False) if train.ema_decay else None
    fp16 = train.precision == "fp16"
    scaler = torch.amp.GradScaler(plan.device.type, enabled=fp16)
    state = TrainState(model.train(), averaged, build_optimizer(model, train), scaler)
    if found is not None:
        checkpoint.restore(found, state)
        state.weights_sha256 = found.record.get("weights_sha256")
    elif plan.config.model.weights not in ("none", "imagenet"):
        state.weights_sha256 = sha256(Path(plan.config.model.weights))
    return state


def class_weights(plan: Plan) -> Tensor | None:
    """Returns train.class_weights, [K] float32, on the device."""
    weights = plan.config.train.class_weights
    return None if weights is None else torch.tensor(weights, device=plan.device)


def _build_network(plan: Plan, pretrained: bool) -> DeepLab:
    config, classes = plan.config, len(plan.train_set.classes)
    return build_model(config.model, config.deform, classes, pretrained=pretrained)
