"""Brings a training run to its first step: checks, network, optimiser, the state to go on from."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from segdeform.checking import check_sound
from segdeform.config.loading import dump_config
from segdeform.config.schema import Config
from segdeform.data import load_dataset
from segdeform.data.cache import with_cache
from segdeform.errors import ModelError, ResourceError, UsageError
from segdeform.files.atomic import write_text
from segdeform.files.lock import run_lock
from segdeform.files.manifest import sha256
from segdeform.machine.cpu import keep_freed_memory
from segdeform.machine.device import require_right_kernels, resolve_device
from segdeform.machine.memory import memory_that_ended
from segdeform.machine.processes import own_device, processes
from segdeform.machine.signals import StopSignals
from segdeform.models import build_model, freeze_batch_norm
from segdeform.models.deeplab import DeepLab
from segdeform.models.deform import deformable_layers
from segdeform.models.pyramid import fit_to_crop, misfit, silence_unreachable_taps
from segdeform.training import checkpoint
from segdeform.training.channels import fit_to_bands, statistics_used, with_statistics
from segdeform.training.checkpoint import Checkpoint, TrainState
from segdeform.training.ema import averaged_model
from segdeform.training.logging import Reporter
from segdeform.training.optim import build_optimizer
from segdeform.training.plan import (
    Plan,
    check_config,
    check_resumable,
    check_same_classes,
    check_same_everywhere,
    default_workers,
)
from segdeform.training.result import is_finished
from segdeform.training.run_folder import (
    holds_run,
    refuse_output,
    remove_leftovers,
    remove_run,
)
from segdeform.training.together import batch_norm_warning, share_state, synchronize_batch_norm

_CHECK_NEWS = 10.0  # seconds between lines while a large data set is checked for the first time


@contextmanager
def open_run(
    config: Config,
    data: Path,
    run: Path,
    *,
    device: str,
    workers: int | None,
    resume: bool,
    overwrite: bool,
    reporter: Reporter | None,
) -> Iterator[tuple[Plan, TrainState | None]]:
    """Yields what to do and the state to begin with, None where the run is finished already.

    Until the block ends the run folder is locked, the processes are joined and signals are caught.
    Arguments and errors are those of `training.loop.train`.
    """
    config = fit_to_crop(config)
    own = own_device(resolve_device(device))
    require_right_kernels(own)
    if own.type == "cpu":
        keep_freed_memory()
    with ExitStack() as stack:
        stop = stack.enter_context(StopSignals())
        stack.enter_context(_memory_errors())
        peers = stack.enter_context(processes(own))
        train_set = load_dataset(config.data.name, data, config.data.train_split)
        val_set = load_dataset(config.data.name, data, config.data.val_split)
        check_same_classes(train_set, val_set)
        config = fit_to_bands(config, train_set)
        check_config(config, train_set, own, peers)
        reporter = (reporter or Reporter()) if peers.first else Reporter(Console(quiet=True))
        train_set = with_cache(train_set, reporter.message)
        val_set = with_cache(val_set, reporter.message)
        if workers is None:
            workers = default_workers(own)
        plan = Plan(config, train_set, val_set, run, own, workers, peers, stop, reporter)
        check_same_everywhere(plan)
        with peers.in_step():
            if peers.first:
                refuse_output(run, resume=resume, overwrite=overwrite, data=data)
                stack.enter_context(run_lock(run))
                # Again: another process may have written a run just now.
                refuse_output(run, resume=resume, overwrite=overwrite, data=data)
                remove_leftovers(run)
        plan = with_statistics(plan, resume)
        yield plan, _first_state(plan, resume, overwrite)


def _first_state(plan: Plan, resume: bool, overwrite: bool) -> TrainState | None:
    """Returns the state to go on from or to begin with; None where nothing is left to do.

    Rank 0 decides, by its run folder, and gives the others its state.
    """
    peers, finished, found = plan.peers, False, None
    elsewhere = peers.anyone(resume and not peers.first and holds_run(plan.run))
    with peers.in_step():
        if peers.first and resume:
            if elsewhere and not holds_run(plan.run):
                raise UsageError(
                    f"{plan.run} holds a run on another machine than that of process 0: start the "
                    "machines so that this one has rank 0, or copy the folder to it"
                )
            finished = is_finished(plan)
            found = None if finished else find_checkpoint(plan)
    if peers.share(finished):
        plan.reporter.message(f"{plan.run} is finished: {plan.config.train.steps} steps")
        return None
    with peers.in_step():
        state = build_state(plan, found)
    share_state(peers, state)
    warning = batch_norm_warning(state.model, peers, plan.config.train.batch_size)
    if warning is not None:
        plan.reporter.message(warning)
    with peers.in_step():
        if peers.first_here:
            check_pictures(plan)
    with peers.in_step():
        if peers.first:
            begin_run(plan, overwrite)
    return state


def find_checkpoint(plan: Plan) -> Checkpoint | None:
    """Returns the checkpoint to go on from; None where the run was interrupted before its first.

    Raises:
        ModelError: every checkpoint is damaged, or those of a finished run are gone.
        ConfigError, DataError: config or data are not those that the run began with.
    """
    found = checkpoint.newest(plan.run, plan.reporter.message)
    if found is not None:
        check_resumable(plan, found.record)
    elif (plan.run / "metrics.json").exists():
        raise ModelError(
            f"{plan.run} holds the scores of a finished run, but no checkpoint to make its model "
            "from again: start anew with --overwrite, or choose another --output"
        )
    elif holds_run(plan.run):
        plan.reporter.message(f"{plan.run} has no checkpoint: training begins with step 1")
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

    Only rank 0 looks for weights to start from.

    Raises:
        ConfigError: the settings do not suit the backbone.
        ModelError, DownloadError: the weights to start from are damaged, do not fit or are missing.
    """
    train = plan.config.train
    torch.manual_seed(train.seed)
    model = _build_network(plan, pretrained=found is None and plan.peers.first)
    model = synchronize_batch_norm(model, plan.peers, plan.device)
    chosen = ", ".join(deformable_layers(model.backbone))
    plan.reporter.message(f"deformable layers: {chosen or 'none'}")
    if train.freeze_bn:
        freeze_batch_norm(model.backbone)
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
    elif plan.peers.first and plan.config.model.weights not in ("none", "imagenet"):
        state.weights_sha256 = sha256(Path(plan.config.model.weights))
    return state


def class_weights(plan: Plan) -> Tensor | None:
    """Returns train.class_weights, [K] float32, on the device."""
    weights = plan.config.train.class_weights
    return None if weights is None else torch.tensor(weights, device=plan.device)


def _build_network(plan: Plan, pretrained: bool) -> DeepLab:
    config, classes = plan.config, len(plan.train_set.classes)
    mean, std = statistics_used(config)
    model = build_model(
        config.model, config.deform, classes, pretrained=pretrained, mean=mean, std=std
    )
    if silenced := silence_unreachable_taps(model, config.data.crop):
        what = misfit(silenced, config.data.crop, config.model.output_stride)
        plan.reporter.message(f"warning: {what}")
    return model


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Turns the ends of memory that torch and Python know into ResourceError."""
    advice = "lower train.batch_size or data.crop"
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if what := memory_that_ended(error):
            more = ", or use bf16" if what == "GPU memory" else ""
            raise ResourceError(f"{what} ended: {advice}{more}") from error
        raise
