"""The state that a training begins with or goes on from: network, average, optimiser, scaler."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from segdeform.errors import ConfigError
from segdeform.files.manifest import sha256
from segdeform.models import build_model, freeze_batch_norm
from segdeform.models.deeplab import DeepLab
from segdeform.models.deform import deformable_layers
from segdeform.models.pyramid import misfit, silence_unreachable_taps
from segdeform.models.recompute import recompute_blocks
from segdeform.training import checkpoint
from segdeform.training.beginning import begin_with_folder, begins_with_folder
from segdeform.training.channels import statistics_used
from segdeform.training.checkpoint import Checkpoint, TrainState
from segdeform.training.ema import averaged_model
from segdeform.training.optim import backbone_parts, build_optimizer
from segdeform.training.plan import Plan
from segdeform.training.together import synchronize_batch_norm


def build_state(plan: Plan, found: Checkpoint | None) -> TrainState:
    """Builds network, average, optimiser and scaler, and fills them from a checkpoint if given.

    Only rank 0 looks for weights to start from.

    Raises:
        ConfigError: the settings do not suit the backbone.
        ModelError, DownloadError: the weights to start from are damaged, do not fit or are missing.
    """
    train = plan.config.train
    torch.manual_seed(train.seed)
    model, weights_sha256 = _build_network(plan, pretrained=found is None and plan.peers.first)
    model = synchronize_batch_norm(model, plan.peers, plan.device)
    chosen = ", ".join(deformable_layers(model.backbone))
    plan.reporter.message(f"deformable layers: {chosen or 'none'}")
    if train.freeze_bn:
        freeze_batch_norm(model.backbone)
    by_parts = {"checkpointing": train.checkpointing, "layer_decay": train.layer_decay < 1}
    for key, wanted in by_parts.items():
        if wanted and not backbone_parts(model):
            raise ConfigError(
                f"train.{key} is of the blocks of a backbone, and none were found in "
                f"{plan.config.model.backbone}: leave it out"
            )
    if train.checkpointing:
        recompute_blocks(model.backbone)
    layout = torch.channels_last if train.channels_last else torch.contiguous_format
    model.to(plan.device, memory_format=layout)  # type: ignore[call-overload]
    averaged = averaged_model(model, train.ema_decay) if train.ema_decay else None
    fp16 = train.precision == "fp16"
    scaler = torch.amp.GradScaler(plan.device.type, enabled=fp16)
    state = TrainState(model.train(), averaged, build_optimizer(model, train), scaler)
    if found is not None:
        checkpoint.restore(found, state)
        for network in (state.model, state.best_model):  # what an earlier version left in them
            silence_unreachable_taps(network, plan.config.data.crop)
        state.weights_sha256 = found.record.get("weights_sha256")
        state.compiled = found.record.get("compiled")
    else:
        state.weights_sha256 = weights_sha256
    return state


def class_weights(plan: Plan) -> Tensor | None:
    """Returns train.class_weights, [K] float32, on the device."""
    weights = plan.config.train.class_weights
    return None if weights is None else torch.tensor(weights, device=plan.device)


def _build_network(plan: Plan, pretrained: bool) -> tuple[DeepLab, str | None]:
    """Returns the network, and the SHA-256 of the file that it starts from, if it does."""
    config, classes, digest = plan.config, plan.train_set.classes, None
    mean, std = statistics_used(config)
    whole = pretrained and begins_with_folder(config)
    model = build_model(
        config.model,
        config.deform,
        len(classes),
        pretrained=pretrained and not whole,
        mean=mean,
        std=std,
    )
    if whole:
        digest = begin_with_folder(model, config, classes, plan.reporter.message)
    elif pretrained and config.model.weights not in ("none", "imagenet"):
        digest = sha256(Path(config.model.weights))
    if silenced := silence_unreachable_taps(model, config.data.crop):
        what = misfit(silenced, config.data.crop, config.model.output_stride)
        plan.reporter.message(f"warning: {what}")
    return model, digest
