"""Tries a training out, before it begins or in its first steps, to tell how long it takes."""

from __future__ import annotations

import shutil
import statistics
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import torch
from torch import nn

from segdeform.config.train import TrainConfig
from segdeform.data.dataset import read_pair
from segdeform.evaluation.boundary import BOUNDARY_WIDTH
from segdeform.evaluation.counts import Tally
from segdeform.evaluation.evaluate import predict_sample
from segdeform.files.tensors import write_tensors
from segdeform.training.checkpoint import TrainState, optimizer_tensors
from segdeform.training.compiled import network_of_steps
from segdeform.training.meter import Meter
from segdeform.training.pace import Pace, expected
from segdeform.training.plan import Plan
from segdeform.training.scoring import current_segmenter
from segdeform.training.state import build_state, class_weights
from segdeform.training.step import batches_from, do_step

WARM_UP = 3  # steps that do not count: caches, kernels and the loader come up
MEASURED = 10  # steps
_TURNS = 3  # of steps in two precisions, after one that does not count
_PICTURES = 4  # that stand for a whole split
_TIRING = 1200.0  # seconds from which on a shorter way is named
_LONG = 5.0  # seconds; a picture that takes longer is example enough


def try_out(plan: Plan, began: float, patience: float, state: TrainState | None = None) -> Pace:
    """Does real steps on a network that is thrown away, scores some pictures, and saves it.

    All processes take part, with the same steps; after `patience` seconds fewer than ten have to
    do. `began` is the time.perf_counter() at which the command began. A `state` that is given is
    thrown away, too: it is changed.
    """
    state = state or build_state(plan, None)
    network, compiling = network_of_steps(plan, state)
    step = step_seconds(plan, state, network, patience)
    evaluation = evaluation_seconds(plan, state)
    saving = _saving_seconds(plan, state) if plan.peers.first else 0.0
    # The training compiles the network again, in at most the same time.
    before = time.perf_counter() - began + (compiling or 0.0)
    return Pace(step, evaluation, saving, before, compiling)


def step_seconds(plan: Plan, state: TrainState, network: nn.Module, patience: float) -> float:
    """Does the next thirteen steps, or fewer after `patience` seconds; returns what one takes."""
    weights = class_weights(plan)
    with closing(batches_from(plan, state.step)) as batches:
        times = [time.perf_counter()]
        for _ in range(WARM_UP + MEASURED):
            do_step(plan, state, network, next(batches), weights)
            times.append(_now(plan.device))
            late = len(times) > 2 and times[-1] - times[0] > patience
            if plan.peers.anyone(late):
                break
    counted = times[min(WARM_UP, len(times) - 2) :]
    return (counted[-1] - counted[0]) / (len(counted) - 1)


class Forecast:
    """Tells, after the first steps of a training, how long the rest of it takes."""

    def __init__(self, plan: Plan, state: TrainState) -> None:
        self._plan, self._state, self._first = plan, state, state.step
        self._since = 0.0

    def hear(self, meter: Meter) -> None:
        """Hears that a step is done; tells once, after ten that count, unless few are left."""
        plan, train, done = self._plan, self._plan.config.train, self._state.step - self._first
        if done not in (WARM_UP, WARM_UP + MEASURED):
            return
        _now(plan.device)  # until when the device has done its steps
        if done == WARM_UP:
            self._since = meter.seconds()
        elif plan.peers.first and train.steps - self._state.step >= MEASURED:
            step = (meter.seconds() - self._since) / MEASURED
            with meter.paused():
                pace = Pace(step, evaluation_seconds(plan, self._state))
            plan.reporter.message(_forecast(plan, self._state.step, pace))


def _forecast(plan: Plan, done: int, pace: Pace) -> str:
    steps = plan.config.train.steps
    evaluations = evaluations_left(plan.config.train, done)
    text = expected(pace, steps - done, evaluations)
    seconds = (steps - done) * pace.step + evaluations * pace.evaluation
    if plan.budget is None and seconds > _TIRING:
        text += ". In a hurry? --minutes 15 --overwrite begins again with fewer steps"
    return text


def evaluations_left(train: TrainConfig, done: int) -> int:
    """Counts the evaluations after step `done`, the one at the end included.

    Where the best weights are kept, these may have to be scored once more.
    """
    if not train.eval_every:
        return 1
    before = (train.steps - 1) // train.eval_every - done // train.eval_every
    return 1 + before + train.keep_best


def evaluation_seconds(plan: Plan, state: TrainState) -> float:
    """Scores a few validation pictures and says what all of them take all processes together.

    They are of the first split; those of others are taken to be like them.
    """
    count, spent = len(plan.val_set), []
    with current_segmenter(plan, state) as segmenter:
        for index in np.linspace(0, count - 1, min(count, _PICTURES) + 1).astype(int):
            began = time.perf_counter()
            image, truth = read_pair(plan.val_set, index)
            labels = predict_sample(segmenter, plan.val_set.samples[index], image)
            Tally(len(plan.val_set.classes), BOUNDARY_WIDTH).add(0, truth, labels)
            spent.append(time.perf_counter() - began)
            if spent[-1] > _LONG:
                break
    usual = spent[1:] or spent  # the first one brings the kernels up
    shares = sum(-(-len(val_set) // plan.peers.size) for val_set in plan.val_sets)
    return sum(usual) / len(usual) * shares


def _saving_seconds(plan: Plan, state: TrainState) -> float:
    """Writes the state to where checkpoints go, under a name that a later start would clear.

    A dry run writes nothing there: it writes to the system's temporary folder instead.
    """
    if plan.dry:
        with TemporaryDirectory(prefix="segdeform-") as place:
            return _seconds_in(Path(place) / "checkpoints" / "trial", state)
    return _seconds_in(plan.run / "checkpoints" / ".step-trial", state)


def _seconds_in(folder: Path, state: TrainState) -> float:
    began = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        write_tensors(folder / "model.safetensors", state.model.state_dict())
        if state.averaged is not None:
            write_tensors(folder / "ema.safetensors", state.averaged.module.state_dict())
        write_tensors(folder / "optimizer.safetensors", optimizer_tensors(state))
        return 2 * (time.perf_counter() - began)  # checkpoints are read again to verify them
    finally:
        shutil.rmtree(folder)
        if not any(folder.parent.iterdir()):
            folder.parent.rmdir()


def _now(device: torch.device) -> float:
    """Returns the time at which the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def cost_of_precision(plan: Plan, precision: Literal["bf16"]) -> float:
    """Returns how long a step takes in a precision, in steps of the plan's own; by turns.

    All processes take part, with a network that is thrown away; it is not compiled.
    """
    state = build_state(plan, None)
    network, weights = plan.peers.wrap(state.model, plan.device), class_weights(plan)
    train = plan.config.train.model_copy(update={"precision": precision})
    other = replace(plan, config=plan.config.model_copy(update={"train": train}))
    times: dict[bool, list[float]] = {False: [], True: []}
    with closing(batches_from(plan, 0)) as batches:
        batch = next(batches)
    for _ in range(1 + _TURNS):
        for wanted, way in ((False, plan), (True, other)):
            began = _now(plan.device)
            do_step(way, state, network, batch, weights)
            state.step = 0  # also where the training has fewer
            times[wanted].append(_now(plan.device) - began)
    usual, changed = (statistics.median(times[key][1:]) for key in (False, True))
    return changed / usual
