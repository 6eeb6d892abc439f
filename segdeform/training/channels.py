"""What the channels of pictures are to a training: how many, and how they are normalised."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from segdeform.checking import check_sound
from segdeform.config.schema import IMAGENET_MEAN, IMAGENET_STD, Config
from segdeform.data.dataset import Dataset
from segdeform.data.statistics import Statistics, count_values, statistics_of
from segdeform.errors import ConfigError, DataError, ModelError, UnsafeInputError
from segdeform.files.manifest import read_json
from segdeform.machine.cpu import available_cores
from segdeform.machine.processes import neighbours
from segdeform.models.timm_backbone import TIMM
from segdeform.models.timm_networks import normalization
from segdeform.training.plan import Plan
from segdeform.training.run_folder import checkpoint_folders

_NEWS = 10.0  # seconds between lines while pictures are measured


def fit_to_bands(config: Config, dataset: Dataset) -> Config:
    """Fills in what the config leaves open: the number of channels, the numbers of the network.

    Raises:
        ConfigError: the config says otherwise than the data set; timm has no such network.
        ModelError: timm is not installed.
    """
    data, channels = config.data, dataset.channels
    if data.channels not in (None, channels):
        bands = "no bands" if dataset.bands is None else f"bands: {list(dataset.bands)}"
        raise ConfigError(
            f"data.channels = {data.channels}, and the data set {dataset.root} has {bands}, which "
            f"are {channels} channels: correct one of them"
        )
    if data.mean is not None and len(data.mean) != channels:
        raise ConfigError(
            f"data.mean and data.std have {len(data.mean)} numbers for pictures of {channels} "
            "channels: give one a channel"
        )
    if data.normalize in ("imagenet", "network") and channels != 3:
        raise ConfigError(
            f"data.normalize = {data.normalize} knows 3 channels, and the data set {dataset.root} "
            f"has {channels}: use measured"
        )
    given: dict[str, Any] = {"channels": channels}
    if data.mean is None:
        name = config.model.backbone
        own = "network" if name.startswith(TIMM) else "imagenet"
        given["normalize"] = data.normalize or (own if channels == 3 else "measured")
        if given["normalize"] != "measured":
            given |= {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
            if given["normalize"] == "network" and name.startswith(TIMM):
                mean, std = normalization(name.removeprefix(TIMM))
                given |= {"mean": mean, "std": std}
    return config.model_copy(update={"data": data.model_copy(update=given)})


def with_channels(config: Config, settled: Config) -> Config:
    """Returns the config with what `settled` says of the channels and how they are normalised."""
    names = ("channels", "normalize", "mean", "std")
    given = {name: getattr(settled.data, name) for name in names}
    return config.model_copy(update={"data": config.data.model_copy(update=given)})


def statistics_used(config: Config) -> Statistics:
    """Returns the mean and deviation that pictures are normalised by."""
    data = config.data
    return Statistics(data.mean or IMAGENET_MEAN, data.std or IMAGENET_STD)


def with_statistics(plan: Plan, resume: bool) -> Plan:
    """Returns the plan with mean and deviation of the training pictures, where they are to be
    measured; a run that is resumed keeps those that it began with.

    Raises:
        DataError, UnsafeInputError: lists the pictures and masks that cannot be used.
    """
    if plan.config.data.mean is not None:
        return plan
    peers, found = plan.peers, None
    if peers.first and resume:
        found = _recorded(plan.run)
    found = peers.share(found)
    statistics = _measured(plan) if found is None else Statistics(*map(tuple, found))
    data = plan.config.data.model_copy(update=statistics._asdict())
    return replace(plan, config=plan.config.model_copy(update={"data": data}))


def _measured(plan: Plan) -> Statistics:
    """Measures all training pictures, each in one of the processes."""
    peers, told = plan.peers, time.monotonic()
    mine = range(peers.rank, len(plan.train_set), peers.size)

    def hear(done: int) -> None:
        nonlocal told
        if time.monotonic() - told > _NEWS:
            told = time.monotonic()
            plan.reporter.message(f"measuring pictures: {done} of {len(mine)}")

    workers = max(1, available_cores() // neighbours())
    with peers.in_step():
        try:
            counts = count_values(plan.train_set, mine, workers, hear)
        except (DataError, UnsafeInputError):
            check_sound(plan.datasets)  # lists all that is wrong
            raise
    shape = (peers.size, *counts.shape)
    counts = peers.gather(counts).reshape(shape).sum(0)
    statistics = statistics_of(counts)
    shown = (", ".join(f"{number:.4g}" for number in numbers) for numbers in statistics)
    plan.reporter.message(
        "data.mean [{}] and data.std [{}] are measured: of {} training pictures".format(
            *shown, len(plan.train_set)
        )
    )
    if flat := [band for band, pixels in enumerate(np.count_nonzero(counts, 1)) if pixels < 2]:
        plan.reporter.message(f"warning: channel {flat[0]} has the same value everywhere")
    return statistics


def _recorded(run: Path) -> list[Any] | None:
    """Returns mean and deviation that a run measured when it began; None: nothing tells."""
    told = [(folder / "state.json", "config") for folder in checkpoint_folders(run)]
    for path, key in (*told, (run / "model" / "model.json", "training")):
        with suppress(ModelError, KeyError, TypeError):
            data = read_json(path)[key]["data"]
            if data["normalize"] == "measured" and data["mean"] and data["std"]:
                return [data["mean"], data["std"]]
    return None
