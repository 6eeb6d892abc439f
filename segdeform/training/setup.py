"""Brings a training run to its first step: checks, network, optimiser, the state to go on from."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from segdeform.checking import check_sound
from segdeform.checking.report import Report
from segdeform.config.loading import Draft, dump_config
from segdeform.config.schema import Config, DataConfig
from segdeform.data import load_dataset
from segdeform.data.augment import refuse_augmentation
from segdeform.data.cache import with_cache
from segdeform.data.dataset import Dataset, label_type
from segdeform.errors import ModelError, ResourceError, UsageError
from segdeform.files.atomic import write_text
from segdeform.files.lock import run_lock
from segdeform.machine.cpu import keep_freed_memory
from segdeform.machine.device import require_right_kernels, resolve_device
from segdeform.machine.memory import memory_that_ended
from segdeform.machine.processes import own_device, processes
from segdeform.machine.signals import StopSignals
from segdeform.models.pyramid import fit_to_crop
from segdeform.training import checkpoint
from segdeform.training.beginning import may_begin_with_folder
from segdeform.training.channels import fit_to_bands, with_channels, with_statistics
from segdeform.training.checkpoint import Checkpoint, TrainState
from segdeform.training.choices import Choice, filled_in, values_of
from segdeform.training.plan import (
    Budget,
    Plan,
    check_config,
    check_resumable,
    check_same_classes,
    check_same_everywhere,
    default_workers,
)
from segdeform.training.reporter import Reporter
from segdeform.training.result import is_finished, read_result
from segdeform.training.run_folder import (
    holds_run,
    refuse_output,
    remove_leftovers,
    remove_run,
)
from segdeform.training.settling import kept_values, settle
from segdeform.training.start import refuse_own_weights
from segdeform.training.state import build_state
from segdeform.training.together import batch_norm_warning, share_state

_CHECK_NEWS = 10.0  # seconds between lines while a large data set is checked for the first time


@contextmanager
def open_run(
    config: Config | Draft,
    data: Path,
    run: Path,
    *,
    device: str,
    workers: int | None,
    resume: bool,
    overwrite: bool,
    minutes: float | None,
    reporter: Reporter | None,
    dry: bool = False,
) -> Iterator[tuple[Plan, TrainState | None]]:
    """Yields what to do and the state to begin with, None where the run is finished already.

    Until the block ends the run folder is locked, the processes are joined and signals are caught.
    Arguments and errors are those of `training.loop.train`. A `dry` opening refuses the same and
    changes nothing: no lock, no folder, no config; a former run stays.
    """
    draft = Draft.of(config) if isinstance(config, Config) else config
    if may_begin_with_folder(draft.filled()):
        draft = draft.leave_open("model.aspp_rates")
    budget = None if minutes is None else Budget(60 * minutes, time.perf_counter())
    if budget is not None:
        draft = draft.leave_open("train.steps")
        if draft.filled().train.epochs is not None:
            raise UsageError(
                "a time in minutes and train.epochs contradict each other: --set train.epochs=null"
            )
    given = draft.filled()
    own = own_device(resolve_device(device))
    require_right_kernels(own)
    if own.type == "cpu":
        keep_freed_memory()
    with ExitStack() as stack:
        stop = stack.enter_context(StopSignals())
        stack.enter_context(_memory_errors())
        peers = stack.enter_context(processes(own))
        train_set = load_dataset(given.data.name, data, given.data.train_split)
        val_sets = [load_dataset(given.data.name, data, name) for name in given.data.val_splits]
        for val_set in val_sets:
            check_same_classes(train_set, val_set)
        reporter = (reporter or Reporter()) if peers.first else Reporter(Console(quiet=True))
        if train_set.split in given.data.val_splits:
            reporter.message(
                f"warning: '{train_set.split}' is data.train_split and in data.val_split: its "
                "score is of the pictures trained on, and will be too good"
            )
        _try_augmentation(given.data, train_set)
        train_set = with_cache(train_set, reporter.message)
        val_set, *more = (with_cache(val_set, reporter.message) for val_set in val_sets)
        if workers is None:
            workers = default_workers(own)
        fitting = fit_to_crop(fit_to_bands(given, train_set))
        plan = Plan(fitting, train_set, val_set, run, own, workers, peers, stop, reporter, budget)
        plan = replace(plan, dry=dry, more_val_sets=tuple(more))
        if not draft.auto:
            check_config(plan.config, train_set, own, peers)
        check_same_everywhere(plan)
        with peers.in_step():
            if peers.first:
                refuse_output(run, resume=resume, overwrite=overwrite, data=data)
                refuse_own_weights(given.model.weights, run, overwrite)
                if not dry:
                    stack.enter_context(run_lock(run))
                    # Again: another process may have written a run just now.
                    refuse_output(run, resume=resume, overwrite=overwrite, data=data)
                    remove_leftovers(run)
        plan, checked = with_statistics(plan, resume), False
        if draft.auto:
            plan, checked = _settled(plan, draft, resume)
        filled = [c for c in filled_in(given, plan.config) if c.key not in draft.auto]
        plan = replace(plan, choices=(*plan.choices, *filled))
        state = _first_state(plan, resume)
        if state is not None:
            if not checked:
                plan = _checked(plan)
            with peers.in_step():
                if peers.first and not dry:
                    begin_run(plan, overwrite)
        yield plan, state


def _settled(plan: Plan, draft: Draft, resume: bool) -> tuple[Plan, bool]:
    """Gives what is `auto` its values: those that the run began with, or new ones.

    Returns the plan, and whether the pictures were checked for it.
    """
    peers, kept = plan.peers, None
    with peers.in_step():
        if peers.first and resume:
            kept = kept_values(plan.run, draft)
    kept = peers.share(kept)
    if kept is not None:
        config = draft.config(kept)
        choices = [Choice(key, value, "what the run began with") for key, value in kept.items()]
        if plan.budget is not None:
            steps = config.train.steps
            plan.reporter.message(f"{plan.run} goes on with its {steps} steps, whatever --minutes")
    else:
        plan = _checked(plan)
        choices = settle(plan, draft)
        config = draft.config(values_of(choices))
    config = fit_to_crop(with_channels(config, plan.config))
    plan = replace(plan, config=config, choices=tuple(choices))
    check_config(plan.config, plan.train_set, plan.device, peers)
    if plan.config.data.crop != draft.filled().data.crop:
        _try_augmentation(plan.config.data, plan.train_set)
    check_same_everywhere(plan)
    return plan, kept is None


def _try_augmentation(data: DataConfig, train_set: Dataset) -> None:
    """Raises ConfigError where a transform of the config does not fit the training's crops."""
    if data.augment:
        kind = label_type(len(train_set.classes))
        refuse_augmentation(data.augment, data.crop, train_set.channels, kind)


def _checked(plan: Plan) -> Plan:
    """Has each machine check its pictures; returns the plan with the report of this process."""
    report = None
    with plan.peers.in_step():
        if plan.peers.first_here:
            report = check_pictures(plan)
    return replace(plan, report=report)


def _first_state(plan: Plan, resume: bool) -> TrainState | None:
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
        steps = read_result(plan.run).steps if peers.first else 0
        plan.reporter.message(f"{plan.run} is finished: {steps} steps")
        return None
    with peers.in_step():
        state = build_state(plan, found)
    share_state(peers, state)
    warning = batch_norm_warning(
        state.model, peers, plan.config.train.batch_size, plan.config.train.accumulate
    )
    if warning is not None:
        plan.reporter.message(warning)
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


def check_pictures(plan: Plan) -> Report:
    """Checks every picture and mask, and says what was found and counted.

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

    return check_sound(plan.datasets, progress=hear, say=say)


def begin_run(plan: Plan, overwrite: bool) -> None:
    """Writes RUN/config.yaml; only now, with all inputs good, may a former run go."""
    if overwrite:
        remove_run(plan.run)
    write_text(plan.run / "config.yaml", dump_config(plan.config))


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
