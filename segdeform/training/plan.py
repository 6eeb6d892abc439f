"""What stays the same during a training run, checked before anything slow begins."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import cuda_ops
from segdeform.checking.report import Report
from segdeform.config.dotted import by_key, dotted
from segdeform.config.schema import IMAGENET_MEAN, IMAGENET_STD, Config, EvalConfig
from segdeform.data.dataset import Dataset
from segdeform.data.depth import as_json
from segdeform.errors import ConfigError, DataError
from segdeform.evaluation.confusion import refuse_countless
from segdeform.machine.cpu import available_cores
from segdeform.machine.processes import Processes, neighbours
from segdeform.machine.signals import StopSignals
from segdeform.machine.stopwatch import Clock, untimed
from segdeform.models.pyramid import ASPP_RATES
from segdeform.training.choices import Choice, steps_of_epochs
from segdeform.training.reporter import Reporter
from segdeform.training.start import refuse_class_weights

# Keys that change no weight: a resumed run may have others.
FREE_KEYS = frozenset(
    {"train.save_every", "train.eval_every", "train.log_every"}
    | {f"eval.{key}" for key in EvalConfig.model_fields}
)
_LENGTH = ("train.epochs", "train.steps")
# What a run has meant that says nothing of these keys, which are filled in when a run begins.
_ONCE = {
    "data.channels": 3,
    "data.normalize": "imagenet",
    "data.mean": list(IMAGENET_MEAN),
    "data.std": list(IMAGENET_STD),
}


@dataclass(frozen=True)
class Budget:
    """How long a training may take, from the command on."""

    seconds: float
    began: float  # time.perf_counter()


@dataclass(frozen=True)
class Plan:
    """What to train on what, where, and whom to tell."""

    config: Config
    train_set: Dataset
    val_set: Dataset
    run: Path
    device: torch.device
    workers: int
    peers: Processes
    stop: StopSignals
    reporter: Reporter
    budget: Budget | None = None  # of time, for a run that begins
    dry: bool = False  # nothing may be written into the run folder
    clock: Clock = untimed  # of the phases that `profile` names
    report: Report | None = None  # of the check, in the process that made it
    choices: tuple[Choice, ...] = ()  # for the keys that the config left `auto` or null
    more_val_sets: tuple[Dataset, ...] = ()  # scored, too, without deciding anything

    @property
    def val_sets(self) -> tuple[Dataset, ...]:
        """All splits that are scored, the one that decides first."""
        return self.val_set, *self.more_val_sets

    @property
    def datasets(self) -> tuple[Dataset, ...]:
        """All splits: the one to train on, then `val_sets`."""
        return self.train_set, *self.val_sets

    def record(self) -> dict[str, Any]:
        """Returns what a checkpoint remembers, for `check_resumable` to compare."""
        return {
            "config": self.config.model_dump(mode="json"),
            "data": {
                "train": _fingerprint(self.train_set),
                "val": _fingerprint(self.val_set),
                **{f"val {more.split}": _fingerprint(more) for more in self.more_val_sets},
            },
            "environment": environment(self.device, self.peers.size),
        }


def check_config(
    config: Config, train_set: Dataset, device: torch.device, peers: Processes
) -> None:
    """Refuses settings that do not fit the data set, the device or the number of processes.

    Raises:
        ConfigError: names the key.
        DataError: more classes than can be scored.
    """
    train = config.train
    refuse_countless(len(train_set.classes))
    refuse_class_weights(train.class_weights, train_set)
    refuse_other_steps(config, len(train_set))
    if train.patience is not None and not train.eval_every:
        raise ConfigError(
            f"train.patience = {train.patience} counts evaluations, and train.eval_every = 0 makes "
            "one at the end only: set it"
        )
    if train.precision == "fp16" and device.type != "cuda":
        raise ConfigError("train.precision = fp16 needs a CUDA device: use bf16 or fp32")
    if train.compile and train.checkpointing:
        raise ConfigError(
            "train.compile and train.checkpointing do not go together: the compiler itself decides "
            "what is computed again; set one of them to false"
        )
    _refuse_unequal_parts(config, peers)
    stride = config.model.output_stride
    smallest = math.prod(-(-side // stride) for side in config.data.crop)  # values a channel
    if train.batch_size // train.accumulate // peers.size * smallest < 2:
        raise ConfigError(
            f"data.crop = {list(config.data.crop)} with train.batch_size = {train.batch_size} "
            "leaves one value a channel, which BatchNorm cannot normalise: enlarge one of them"
        )


def _refuse_unequal_parts(config: Config, peers: Processes) -> None:
    """Raises ConfigError where processes, or parts of a step, would have unequal shares."""
    train = config.train
    if train.batch_size % (train.accumulate * peers.size) == 0:
        return
    if train.accumulate == 1:
        raise ConfigError(
            f"train.batch_size = {train.batch_size} cannot be shared equally by {peers.size} "
            "processes: use a multiple"
        )
    among = f" and {peers.size} processes" if peers.size > 1 else ""
    raise ConfigError(
        f"train.batch_size = {train.batch_size} cannot be parted equally by train.accumulate = "
        f"{train.accumulate}{among}: use a multiple"
    )


def refuse_other_steps(config: Config, pictures: int) -> None:
    """Raises ConfigError where train.steps are not those of train.epochs."""
    train = config.train
    if train.epochs is None:
        return
    steps = steps_of_epochs(train.epochs, pictures, train.batch_size)
    if steps != train.steps:
        raise ConfigError(
            f"train.epochs = {train.epochs:g} of {pictures} pictures are {steps} steps, and "
            f"train.steps = {train.steps}: give one of them (--set train.steps=auto)"
        )


def _another_length(plan: Plan) -> str:
    """Says how to train a network for longer than its run was meant to."""
    beside = plan.run.with_name(f"{plan.run.name}-longer")
    run, longer = (shlex.quote(str(place)) for place in (plan.run, beside))
    return (
        ". The learning rate followed a schedule to the end of these steps, so that a longer run "
        "is another one, which can begin with the network of this: "
        f"--set model.weights={run} --output {longer}"
    )


def check_same_classes(train_set: Dataset, val_set: Dataset) -> None:
    """Raises DataError unless both splits have the same classes."""
    if train_set.classes != val_set.classes:
        raise DataError(
            f"{train_set.root}: the splits '{train_set.split}' and '{val_set.split}' differ in "
            "their classes"
        )


def check_resumable(plan: Plan, record: dict[str, Any]) -> None:
    """Compares a checkpoint's record with the plan; another machine or thread count only warns.

    Raises:
        ConfigError: names the first key that differs.
        DataError: the split that has other pictures or classes.
    """
    ours = plan.record()
    # A key that the run's own version did not know has had its default's meaning.
    old = by_key(Config().model_dump(mode="json")) | _ONCE | by_key(record.get("config"))
    new = by_key(ours["config"])
    if old["model.aspp_rates"] is None and new["model.aspp_rates"] is not None:
        old["model.aspp_rates"] = list(ASPP_RATES[plan.config.model.output_stride])
    for key in sorted(old.keys() | new.keys()):
        if key not in FREE_KEYS and old.get(key) != new.get(key):
            was = f"{key}={json.dumps(old.get(key))}"
            raise ConfigError(
                f"{key} is {new.get(key)} now and was {old.get(key)} when {plan.run} began: resume "
                f"with the config that it began with (--set {shlex.quote(was)}), or "
                f"start anew with --overwrite{_another_length(plan) if key in _LENGTH else ''}"
            )
    old_data = record.get("data")
    for split, fingerprint in ours["data"].items():
        if not isinstance(old_data, dict) or old_data.get(split) != fingerprint:
            raise DataError(
                f"the {split} split lists other pictures or classes than when {plan.run} began: "
                "restore the data set, or start anew with --overwrite"
            )
    old_environment = dotted(record.get("environment"))
    for key, value in ours["environment"].items():
        if old_environment.get(key) != value:
            plan.reporter.message(
                f"warning: {key} was {old_environment.get(key)} and is {value} now: "
                "the weights will not be bit for bit those of an uninterrupted run"
            )


def check_same_everywhere(plan: Plan) -> None:
    """Refuses processes, perhaps on other machines, that were given something else than rank 0.

    Raises:
        ConfigError: names the first key that differs.
        DataError: the split that has other pictures or classes.
        PeerLostError: another process was.
    """
    peers = plan.peers
    ours = {key: value for key, value in plan.record().items() if key in ("config", "data")}
    theirs = peers.share(ours)
    with peers.in_step():
        old, new = by_key(theirs["config"]), by_key(ours["config"])
        for key in sorted((old.keys() | new.keys()) - {"model.weights"}):  # rank 0 alone reads them
            if old.get(key) != new.get(key):
                raise ConfigError(
                    f"{key} is {new.get(key)} for process {peers.rank} and {old.get(key)} for "
                    "process 0: start all of them with the same config"
                )
        for split, fingerprint in ours["data"].items():
            if theirs["data"][split] != fingerprint:
                raise DataError(
                    f"the {split} split of process {peers.rank} lists other pictures or classes "
                    "than that of process 0: give all machines the same data set"
                )


def environment(device: torch.device, processes: int) -> dict[str, Any]:
    """Returns what the last bits of a result depend on besides config and data."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {
        "segdeform": version("segdeform"),
        "torch": str(torch.__version__),
        "device": name,
        "threads": torch.get_num_threads(),
        "processes": processes,
        "deform_conv2d": cuda_ops.backend(device.type),
    }


def default_workers(device: torch.device) -> int:
    """Returns how many loader processes keep a GPU busy; a CPU that computes has one to spare.

    The processes of a machine share its cores.
    """
    cores = available_cores() // neighbours()
    if device.type == "cuda":
        return max(1, min(16, cores - 2))
    return max(1, cores // 8)


def _fingerprint(dataset: Dataset) -> dict[str, Any]:
    return {
        "dataset": dataset.name,
        "split": dataset.split,
        "pictures": len(dataset),
        "names_sha256": dataset.names_sha256(),
        "classes": list(dataset.classes),
        **({"value_range": as_json(dataset.value_range)} if dataset.value_range else {}),
        **({"bands": list(dataset.bands)} if dataset.bands else {}),
    }
