"""Training, from top to bottom: batch, loss, step, log, evaluate, save.

Same bits whatever interrupts it: samples and augmentation are functions of (seed, step), the rate
is a function of the step, and the random generators are seeded anew at every step from (seed,
step, rank). So a checkpoint of weights, average, optimiser and scaler is the whole state.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from contextlib import ExitStack, closing, nullcontext, suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from segdeform.config.schema import Config
from segdeform.data.dataset import IGNORE
from segdeform.data.loader import train_loader
from segdeform.errors import InterruptedByUserError, NotFiniteError
from segdeform.training import checkpoint
from segdeform.training.checkpoint import TrainState
from segdeform.training.logging import Meter, Reporter, RunLog
from segdeform.training.losses import segmentation_loss
from segdeform.training.optim import set_learning_rate
from segdeform.training.plan import Plan
from segdeform.training.result import TrainResult, describe, shared_result, write_result
from segdeform.training.scoring import score_last_checkpoint, score_now, show_scores
from segdeform.training.setup import class_weights, open_run
from segdeform.training.together import average_statistics

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def train(
    config: Config,
    data: Path,
    output: Path,
    *,
    device: str = "auto",
    workers: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> TrainResult:
    """Trains the network that the config describes and leaves a finished run in `output`.

    The run folder holds model/, metrics.json and timing.json of the final evaluation, config.yaml,
    log.jsonl, tensorboard/ and the last checkpoints. With `resume` the run goes on from its newest
    good checkpoint, from the start where there is none, and is only reported where it is finished:
    the same call can be repeated after any interruption and ends with the same weights.

    Args:
        data: root folder of the data set `config.data.name`.
        device: "cpu", "cuda", "cuda:N" or "auto".
        workers: loader processes; None: chosen by the machine.
        reporter: shows the progress; None: a bar or plain lines on stderr.

    Raises:
        UsageError: the folder holds a run and neither `resume` nor `overwrite` is given.
        ConfigError, DataError, ModelError, DownloadError: before the first step.
        RunLockedError: another process works in the folder.
        NotFiniteError: the loss is no finite number; the last checkpoint stays as it is.
        InterruptedByUserError, StoppedError: SIGINT, SIGTERM or SIGHUP; the state is saved.
        ResourceError: disk or memory ended; the last checkpoint stays as it is.
    """
    with open_run(
        config,
        data,
        output,
        device=device,
        workers=workers,
        resume=resume,
        overwrite=overwrite,
        reporter=reporter,
    ) as (plan, state):
        if state is not None:
            with RunLog(output, state.step) if plan.peers.first else nullcontext() as log:
                plan.stop.deferred = True
                _train_steps(plan, state, log)
                _finish(plan, state, log)
        return shared_result(plan)


def _train_steps(plan: Plan, state: TrainState, log: RunLog | None) -> None:
    """Does the steps from state.step on; ends early, saved, when a stop is asked for."""
    train, peers = plan.config.train, plan.peers
    weights, meter = class_weights(plan), Meter(plan.device, state.seconds)
    with ExitStack() as stack:
        stack.callback(plan.reporter.stop)
        plan.reporter.start(state.step, train.steps)
        network = peers.wrap(state.model, plan.device)
        batches = stack.enter_context(closing(_batches(plan, state.step)))
        for step in range(state.step, train.steps):
            waiting = time.perf_counter()
            images, labels = next(batches)
            waited = time.perf_counter() - waiting

            torch.manual_seed(step_seed(train.seed, step, peers.rank))
            rate = set_learning_rate(state.optimizer, train, step)
            images, labels = _to_device(plan, images, labels)
            loss = _loss(plan, network, images, labels, weights)
            whole, labelled = _of_all(plan, loss, labels, step)
            _update(plan, state, loss)
            state.step = step + 1
            state.seconds = meter.seconds()

            meter.add(whole, labelled > 0, train.batch_size, waited)
            plan.reporter.step(state.step)
            if log is not None and _due(state.step, train.log_every, train.steps):
                _log(plan, meter, log, state.step, rate)
            if train.eval_every and state.step % train.eval_every == 0 and state.step < train.steps:
                _evaluate(plan, state, log, meter)
            stopped = peers.anyone(plan.stop())
            if stopped or _due(state.step, train.save_every, train.steps):
                with peers.in_step():
                    if peers.first:
                        _save(plan, state, meter)
            if stopped:
                raise plan.stop.error(f"saved at step {state.step} of {train.steps}")


def step_seed(seed: int, step: int, rank: int) -> int:
    """Returns the 64-bit seed of the random generators in one step of one process."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0])


def _batches(plan: Plan, first_step: int) -> Generator[tuple[Tensor, Tensor], None, None]:
    train = plan.config.train
    yield from train_loader(
        plan.train_set,
        plan.config.data,
        seed=train.seed,
        first_step=first_step,
        steps=train.steps - first_step,
        batch_size=train.batch_size,
        workers=plan.workers,
        rank=plan.peers.rank,
        world_size=plan.peers.size,
    )


def _to_device(
    plan: Plan,
    images: Tensor,  # [N, 3, H, W] uint8
    labels: Tensor,  # [N, H, W] uint8
) -> tuple[Tensor, Tensor]:  # [N, 3, H, W] float32, 0..1; [N, H, W] int64
    """Moves the bytes first and widens them on the device: a quarter of the traffic."""
    layout = torch.channels_last if plan.config.train.channels_last else torch.contiguous_format
    images = images.to(plan.device, non_blocking=True)
    labels = labels.to(plan.device, non_blocking=True)
    return images.to(torch.float32, memory_format=layout) / 255, labels.long()


def _loss(
    plan: Plan,
    network: nn.Module,
    images: Tensor,  # [N, 3, H, W] float32, 0..1
    labels: Tensor,  # [N, H, W] int64
    weights: Tensor | None,  # [K] float32
) -> Tensor:
    """Computes this process's share of the loss."""
    train = plan.config.train
    dtype = PRECISIONS[train.precision]
    with torch.autocast(plan.device.type, dtype, enabled=dtype != torch.float32):
        output = network(images)
    return segmentation_loss(output.logits, output.auxiliary, labels, train, weights, plan.peers)


def _of_all(plan: Plan, loss: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Sums loss and labelled pixels over all processes, [] float64 each.

    On the CPU, where looking is free, it refuses a loss that is not finite.
    """
    shares = torch.stack([loss.detach().double(), (labels != IGNORE).sum().double()])
    whole, labelled = plan.peers.total(shares)
    if plan.device.type == "cpu":
        _refuse_not_finite("the loss", whole.item(), step + 1)
    return whole, labelled


def _update(plan: Plan, state: TrainState, loss: Tensor) -> None:
    """Does the backward pass, clips, and moves the weights and their average."""
    train, scaler = plan.config.train, state.scaler
    state.optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(scaler.scale(loss))
    average_statistics(plan.peers, state.model)
    if train.clip_grad_norm is not None:
        scaler.unscale_(state.optimizer)
        norm = nn.utils.clip_grad_norm_(state.model.parameters(), train.clip_grad_norm)
        if plan.device.type == "cpu":
            _refuse_not_finite("the gradient's norm", norm.item(), state.step + 1)
    scaler.step(state.optimizer)
    scaler.update()
    if state.averaged is not None:
        state.averaged.n_averaged.fill_(state.step)
        state.averaged.update_parameters(state.model)


def _log(plan: Plan, meter: Meter, log: RunLog, step: int, rate: float) -> None:
    record = meter.read(step, plan.config.train.steps, rate)
    _refuse_not_finite("the loss", record.loss, step)
    log.record(record)
    plan.reporter.record(record)


def _evaluate(plan: Plan, state: TrainState, log: RunLog | None, meter: Meter) -> None:
    with meter.paused(), suppress(InterruptedByUserError):  # the loop sees the flag next
        show_scores(plan, log, state.step, score_now(plan, state))


def _finish(plan: Plan, state: TrainState, log: RunLog | None) -> None:
    evaluation = score_last_checkpoint(plan, state)
    with plan.peers.in_step():
        if plan.peers.first:
            show_scores(plan, log, state.step, evaluation)
            with plan.stop.finishing():
                write_result(plan, state, evaluation)


def _save(plan: Plan, state: TrainState, meter: Meter) -> None:
    with meter.paused(), plan.stop.finishing():
        for name, value in state.model.state_dict().items():
            if not torch.isfinite(value).all():
                _refuse_not_finite(name, float("nan"), state.step)
        so_far = describe(plan, {"steps": state.step, "dataset": plan.train_set.name})
        record = plan.record() | {"weights_sha256": state.weights_sha256}
        checkpoint.save(plan.run, state, record, so_far)


def _due(step: int, every: int, steps: int) -> bool:
    return step % every == 0 or step == steps


def _refuse_not_finite(what: str, value: float, step: int) -> None:
    if not math.isfinite(value):
        raise NotFiniteError(
            f"{what} is {value} at step {step}; the last checkpoint is untouched: try a lower "
            "train.lr, train.clip_grad_norm=1 or a longer train.warmup_steps"
        )
