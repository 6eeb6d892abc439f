"""Training, from top to bottom: batch, loss, step, log, evaluate, save.

Same bits whatever interrupts it: samples and augmentation are functions of (seed, step), the rate
is a function of the step, and the random generators are seeded anew at every step from (seed,
step, rank). So a checkpoint of weights, average, optimiser and scaler is the whole state.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import torch
from torch import nn

from segdeform.config.dotted import by_key
from segdeform.config.loading import Draft
from segdeform.config.schema import Config
from segdeform.errors import InterruptedByUserError
from segdeform.machine.processes import own_rank
from segdeform.training import checkpoint
from segdeform.training.best import chosen, evaluation_is_due, is_over, keep_best, tell_end
from segdeform.training.checkpoint import TrainState, best_step
from segdeform.training.compiled import network_of_steps
from segdeform.training.curves import write_curves
from segdeform.training.health import OffsetHealth, Warnings, Watch
from segdeform.training.meter import Meter
from segdeform.training.pictures import Pictures
from segdeform.training.plan import Plan
from segdeform.training.profile import EVALUATION, LOADER, LOGGING, SAVING, profiled
from segdeform.training.reporter import Reporter
from segdeform.training.result import TrainResult, describe, shared_result, write_result
from segdeform.training.run_log import RunLog
from segdeform.training.scoring import score_best, score_last_checkpoint, score_now, show_scores
from segdeform.training.setup import open_run
from segdeform.training.state import class_weights
from segdeform.training.step import batches_from, do_step, refuse_not_finite
from segdeform.training.tracking import refuse_untrackable, tracked
from segdeform.training.trial import Forecast


def train(
    config: Config | Draft,
    data: Path,
    output: Path,
    *,
    device: str = "auto",
    workers: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    minutes: float | None = None,
    profile: bool = False,
    track: Sequence[str] = (),
    reporter: Reporter | None = None,
) -> TrainResult:
    """Trains the network that the config describes and leaves a finished run in `output`.

    The run folder holds model/, metrics.json and timing.json of the final evaluation, config.yaml,
    log.jsonl, tensorboard/ and the last checkpoints. With `resume` the run goes on from its newest
    good checkpoint, from the start where there is none, and is only reported where it is finished:
    the same call can be repeated after any interruption and ends with the same weights.

    Args:
        config: what to train, or a draft: what is `auto` in it is chosen from the data when a run
            begins, told, and written into config.yaml; a run that goes on keeps what it has there.
        data: root folder of the data set `config.data.name`.
        device: "cpu", "cuda", "cuda:N" or "auto".
        workers: loader processes; None: chosen by the machine.
        minutes: how long a new run may take, all in all, on this machine; the number of steps is
            chosen so, by ten real ones, whatever the config says. None: as the config says.
        profile: tell where the time went, at the end and in RUN/profile.json; the bits are the
            same.
        track: services that are told the numbers as well, of `tracking.SERVICES`; one that fails
            changes nothing.
        reporter: shows the progress; None: a bar or plain lines on stderr.

    Raises:
        UsageError: the folder holds a run and neither `resume` nor `overwrite` is given; `minutes`
            do not suffice for ten steps, or are given beside train.epochs; a service of `track`
            is not installed.
        ConfigError, DataError, ModelError, DownloadError: before the first step.
        RunLockedError: another process works in the folder.
        NotFiniteError: the loss is no finite number; the last checkpoint stays as it is.
        InterruptedByUserError, StoppedError: SIGINT, SIGTERM or SIGHUP; the state is saved.
        ResourceError: disk or memory ended; the last checkpoint stays as it is.
    """
    if own_rank() == 0:  # which alone tells them
        refuse_untrackable(track)
    with open_run(
        config,
        data,
        output,
        device=device,
        workers=workers,
        resume=resume,
        overwrite=overwrite,
        minutes=minutes,
        reporter=reporter,
    ) as (plan, state):
        if state is not None:
            network, _ = network_of_steps(plan, state)
            with _log_of(plan, state, track) as log:
                plan.stop.deferred = True
                with profiled(plan, profile) as timed:
                    _train_steps(timed, state, network, log)
                    _finish(timed, state, log)
        return shared_result(plan)


@contextmanager
def _log_of(plan: Plan, state: TrainState, track: Sequence[str]) -> Iterator[RunLog | None]:
    """Opens the log, which rank 0 alone has, and what else is to be told the same."""
    if not plan.peers.first:
        yield None
        return
    config = by_key(plan.config.model_dump(mode="json"))
    with (
        tracked(track, plan.run, config, plan.reporter.message) as trackers,
        RunLog(plan.run, state.step, trackers, scored=state.step in state.scores) as log,
    ):
        yield log


def _train_steps(plan: Plan, state: TrainState, network: nn.Module, log: RunLog | None) -> None:
    """Does the steps from state.step on; ends early, saved, when a stop is asked for."""
    train, peers = plan.config.train, plan.peers
    weights, meter = class_weights(plan), Meter(plan.device, state.seconds)
    with ExitStack() as stack:
        stack.callback(plan.reporter.stop)
        losses = [] if log is None else log.losses
        plan.reporter.start(state.step, train.steps, list(state.scores.values()), losses)
        batches = stack.enter_context(closing(batches_from(plan, state.step)))
        forecast, watch = Forecast(plan, state), Watch(state.model, network)
        warnings = Warnings(train)
        saved = (state.step, len(state.scores))  # nothing is new yet
        while True:
            if evaluation_is_due(train, state):
                _evaluate(plan, state, log, meter)
            over, stopped = is_over(train, state), peers.anyone(plan.stop())
            due = over or stopped or state.step % train.save_every == 0
            if due and saved != (saved := (state.step, len(state.scores))):
                with peers.in_step():
                    if peers.first:
                        _save(plan, state, meter)
            if over and not stopped:
                return
            if stopped:
                raise plan.stop.error(f"saved at step {state.step} of {train.steps}")
            waiting = time.perf_counter()
            with plan.clock(LOADER):
                batch = next(batches)
            waited = time.perf_counter() - waiting

            logged = log is not None and _due(state.step + 1, train.log_every, train.steps)
            with watch.during(logged):
                done = do_step(plan, state, network, batch, weights)
            state.seconds = meter.seconds()

            meter.add(done.loss, done.labelled > 0, train.batch_size, waited)
            plan.reporter.step(state.step)
            forecast.hear(meter)
            if log is not None and logged:
                health = watch.read()
                _log(plan, meter, log, state.step, done.rate, health)
                for warning in warnings.hear(state.step, health):
                    plan.reporter.message(warning)


def _log(
    plan: Plan,
    meter: Meter,
    log: RunLog,
    step: int,
    rate: float,
    health: Mapping[str, OffsetHealth],
) -> None:
    with plan.clock(LOGGING):
        record = meter.read(step, plan.config.train.steps, rate)
        refuse_not_finite("the loss", record.loss, step)
        log.record(record, {name: layer.to_json() for name, layer in health.items()})
        plan.reporter.record(record)


def _evaluate(plan: Plan, state: TrainState, log: RunLog | None, meter: Meter) -> None:
    with meter.paused(), suppress(InterruptedByUserError):  # the loop sees the flag next
        with plan.clock(EVALUATION):
            pictures = Pictures(plan.val_set, plan.peers.size)
            evaluations = score_now(plan, state, pictures.keep)
        state.scores[state.step] = evaluations[0].scores.miou
        show_scores(plan, log, state.step, evaluations, pictures)
        with plan.peers.in_step():
            if plan.peers.first and plan.config.train.keep_best:
                keep_best(plan, state)


def _finish(plan: Plan, state: TrainState, log: RunLog | None) -> None:
    pictures = Pictures(plan.val_set, plan.peers.size)
    with plan.clock(EVALUATION):
        evaluations = score_last_checkpoint(plan, state, pictures.keep)
    with plan.peers.in_step():
        if plan.peers.first and state.step not in state.scores:
            show_scores(plan, log, state.step, evaluations, pictures)
    state.scores[state.step] = evaluations[0].scores.miou
    best = best_step(state.scores)
    if plan.config.train.keep_best and best is not None and best != state.step:
        evaluations = score_best(plan, state, best)
    with plan.peers.in_step():
        if plan.peers.first:
            tell_end(plan, state)
            write_curves(plan.run, plan.train_set.classes, plan.reporter.message)
            with plan.stop.finishing(), plan.clock(SAVING):
                write_result(plan, state, evaluations, chosen(plan, state))
            if log is not None:
                log.final(state.step, evaluations[0].scores)


def _save(plan: Plan, state: TrainState, meter: Meter) -> None:
    with meter.paused(), plan.stop.finishing(), plan.clock(SAVING):
        for name, value in state.model.state_dict().items():
            if not torch.isfinite(value).all():
                refuse_not_finite(name, float("nan"), state.step)
        so_far = describe(plan, {"steps": state.step, "dataset": plan.train_set.name})
        record = plan.record() | {
            "weights_sha256": state.weights_sha256,
            "compiled": state.compiled,
        }
        checkpoint.save(plan.run, state, record, so_far)


def _due(step: int, every: int, steps: int) -> bool:
    return step % every == 0 or step == steps
