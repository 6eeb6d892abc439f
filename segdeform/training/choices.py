"""What a training is given where its config says `auto`: values, each with its reason.

Plain functions of what was seen of the data set and of the machine.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from segdeform.checking.weights import RULE, balancing_weights
from segdeform.config.dotted import by_key
from segdeform.config.loading import Draft
from segdeform.config.schema import ATROUS_HEADS, Config, TrainConfig
from segdeform.errors import UsageError
from segdeform.models.pyramid import fitting_rates
from segdeform.training.pace import Pace, duration

Size = tuple[int, int]  # (H, W), pixels

# A class counts as rare below this share of the labelled pixels, or below half an equal share.
_RARE = 0.05
_LARGEST_CROP = {"cpu": 320, "cuda": 512}  # pixels
_BATCH = 8  # crops
_LR = {"adamw": 3e-3, "sgd": 0.02}  # for that many
_WORTH_BF16 = 0.9  # of the time in fp32, from which on its lost digits are worth it
_PASSES = 40  # over all that the pictures show, where there is no time budget
_FEWEST, _MOST = 400, 20_000  # steps, where there is no time budget
_PATIENCE = 4  # a time budget is filled with no more than this many times as much
_LEAST = 10  # steps; fewer train nothing
_EVALUATIONS = 3  # before the last one
_EVALUATING = 0.1  # share of the time that these may take
_LOOKING = 0.3  # time to predict a pixel / time to train on it
_LOST = 60.0  # seconds of training that an interruption may cost
_MARGIN = 0.96  # share of a time budget that is planned for
_ELSE = 8.0  # seconds to import torch, to start the loader, to open the log and to end


class Choice(NamedTuple):
    """A value for a key, and why it is this one."""

    key: str
    value: Any  # as in JSON
    reason: str


@dataclass(frozen=True)
class Seen:
    """What the choices rest upon."""

    classes: tuple[str, ...]
    pixels: tuple[int, ...]  # of each class, in the training masks
    train: tuple[Size, ...]  # of each training picture
    val: tuple[Size, ...]
    device: str = "cpu"  # or "cuda"
    processes: int = 1
    memory: int | None = None  # bytes for each process; None: nobody knows
    rates: tuple[int, ...] | None = None  # of the pyramid of a network to begin with
    native_bf16: bool = False  # whether the device has instructions for it
    no_weights: str = ""  # why ImageNet's weights cannot be had


def choose(draft: Draft, seen: Seen, crop_bytes: Callable[[Config, int], int]) -> list[Choice]:
    """Chooses for the keys that are `auto` and do not depend on how long a step takes.

    `crop_bytes(config, classes)` tells how much memory one crop takes in training.
    """

    def batch_size(config: Config, seen: Seen) -> tuple[int, str]:
        return _batch_size(config, seen, crop_bytes(config, len(seen.classes)))

    rules: tuple[tuple[str, Callable[[Config, Seen], tuple[Any, str]]], ...] = (
        ("model.weights", _weights),
        ("train.freeze_bn", _freeze_bn),
        ("train.backbone_lr_factor", _backbone_lr_factor),
        ("data.crop", _crop),
        ("data.scale", _scale),
        ("model.aspp_rates", _aspp_rates),
        ("train.class_weights", _class_weights),
        ("train.batch_size", batch_size),
        ("train.lr", _lr),
    )
    choices: list[Choice] = []
    for key, rule in rules:
        if key in draft.auto:
            choices.append(Choice(key, *rule(draft.filled(values_of(choices)), seen)))
    return choices


def choose_precision(draft: Draft, seen: Seen, bf16_cost: float | None) -> list[Choice]:
    """Chooses the precision, where it is `auto`.

    `bf16_cost` is how long a step takes in bf16, in steps of fp32, where that was measured.
    """
    key = "train.precision"
    if key not in draft.auto:
        return []
    if seen.device == "cuda":
        if seen.native_bf16:
            return [Choice(key, "bf16", "this GPU multiplies it natively, with the range of fp32")]
        return [Choice(key, "fp32", "this GPU has no bf16; fp16 needs loss scaling: set it")]
    if not seen.native_bf16:
        return [Choice(key, "fp32", "this processor has no instructions for bf16")]
    if bf16_cost is None:
        return [Choice(key, "fp32", "the usual; whether bf16 is faster here was not measured")]
    measured = f"a step in bf16 takes {bf16_cost:.2f} times one in fp32 here"
    if bf16_cost > _WORTH_BF16:
        return [Choice(key, "fp32", measured)]
    return [Choice(key, "bf16", measured)]


def choose_steps(
    draft: Draft, seen: Seen, before: Sequence[Choice], budget: tuple[float, Pace] | None
) -> list[Choice]:
    """Chooses what depends on the number of steps; `before` are the choices made already.

    `budget` is (seconds, what takes how long), where the training has to end in time.

    Raises:
        UsageError: the time does not suffice for ten steps.
    """
    choices: list[Choice] = []

    def settle(key: str, choice: tuple[Any, str]) -> None:
        if key in draft.auto:
            choices.append(Choice(key, *choice))

    def config() -> Config:
        return draft.filled(values_of([*before, *choices]))

    views = _views(seen.train, config().data.crop)
    pace = None if budget is None else budget[1]
    settle("train.save_every", _save_every(pace))
    if config().train.epochs is not None:
        settle("train.steps", _steps_of_epochs(config(), seen))
    elif budget is None:
        settle("train.steps", _steps(config(), seen, views))
    else:
        asked = "train.eval_every" not in draft.auto
        settle("train.steps", _steps_in_time(config(), *budget, views, asked))
    steps = config().train.steps
    settle("train.eval_every", _eval_every(config(), seen, pace))
    settle("train.warmup_steps", (min(50, steps // 20), "a twentieth of the steps, at most 50"))
    return choices


def filled_in(given: Config, settled: Config) -> list[Choice]:
    """Lists what a config leaves open by null, and what it became for this data set."""
    ways = {
        "imagenet": "3 channels, as ImageNet's pictures have",
        "measured": "other channels than ImageNet's pictures have",
        "network": "what the backbone of timm was trained with",
    }
    why = {
        "data.channels": "what the data set gives",
        "data.normalize": ways.get(settled.data.normalize or "", ""),
        "data.mean": f"data.normalize={settled.data.normalize}",
        "data.std": f"data.normalize={settled.data.normalize}",
        "model.aspp_rates": "what fits the crop",
        "eval.automatic_tile": "data.crop at the largest scale",
    }
    before, after = (by_key(config.model_dump(mode="json")) for config in (given, settled))
    return [
        Choice(key, after[key], reason)
        for key, reason in why.items()
        if before[key] is None and after[key] is not None
    ]


def values_of(choices: Sequence[Choice]) -> dict[str, Any]:
    """Returns the values by their keys."""
    return {choice.key: choice.value for choice in choices}


def _weights(config: Config, seen: Seen) -> tuple[str, str]:
    if seen.no_weights:
        return "none", (
            f"ImageNet's cannot be had ({seen.no_weights}), so that training begins with random "
            "numbers and needs several times the steps"
        )
    return "imagenet", "a start that knows edges and textures already"


def _freeze_bn(config: Config, seen: Seen) -> tuple[bool, str]:
    if config.model.weights == "none":
        return False, "random weights come with no statistics to keep"
    return True, "the statistics of the weights to start from are better than those of few pictures"


def _backbone_lr_factor(config: Config, seen: Seen) -> tuple[float, str]:
    if config.model.weights == "none":
        return 1.0, "random weights have everything to learn"
    return 0.25, "the weights to start from need little change"


def _crop(config: Config, seen: Seen) -> tuple[list[int], str]:
    """Fits the crop into nine of ten pictures, in multiples of the output stride."""
    stride, largest = config.model.output_stride, _LARGEST_CROP[seen.device]
    heights, widths = zip(*seen.train, strict=True)
    crop = []
    for sides in (heights, widths):
        usual = int(np.quantile(sides, 0.1, method="lower"))
        crop.append(max(stride, min(usual, largest) // stride * stride))
    shown = _sizes(seen.train)
    if max(crop) < largest:
        return crop, f"as large as {shown} and the output stride of {stride} allow"
    where = "without a GPU" if seen.device == "cpu" else "on a GPU"
    return crop, f"of {shown}; larger than {largest} costs more than it gives {where}"


def _sizes(sizes: Sequence[Size]) -> str:
    low, high = min(sizes, key=np.prod), max(sizes, key=np.prod)
    if low == high:
        return f"pictures of {low[0]}x{low[1]}"
    return f"pictures from {low[0]}x{low[1]} to {high[0]}x{high[1]}"


def _scale(config: Config, seen: Seen) -> tuple[list[float], str]:
    return [0.75, 1.5], "objects keep about their size; lines a few pixels wide stay visible"


def _aspp_rates(config: Config, seen: Seen) -> tuple[list[int] | None, str]:
    if config.model.head not in ATROUS_HEADS:
        return None, "this head has no dilations"
    if seen.rates is not None:
        return list(seen.rates), "those of the network that model.weights names"
    rates = fitting_rates(config.model.output_stride, config.data.crop)
    return list(rates), "what fits the crop"


def _class_weights(config: Config, seen: Seen) -> tuple[list[float] | None, str]:
    """Weighs classes (`balancing_weights`) where one is rare."""
    shares = np.array(seen.pixels) / max(1, sum(seen.pixels))
    present = shares > 0
    rare = int(np.argmin(np.where(present, shares, 1)))
    if present.sum() < 2:
        return None, "the masks hold a single class" if present.any() else "no pixel has a label"
    share = f"{seen.classes[rare]} has {shares[rare]:.2%} of the labelled pixels"
    if shares[rare] >= max(_RARE, 0.5 / len(shares)):
        return None, f"the rarest class, {share}: enough without weights"
    return balancing_weights([float(part) for part in shares]), f"{share}; each class by {RULE}"


def _batch_size(config: Config, seen: Seen, crop_bytes: int) -> tuple[int, str]:
    """Takes the usual batch, or what fits into memory, shared equally by all processes."""
    pictures, share = len(seen.train), 1
    wanted = _BATCH if pictures >= _BATCH else _BATCH // 2
    while share * seen.processes < wanted:
        share += 1
    why = "the usual number" if pictures >= _BATCH else f"there are {pictures} pictures"
    parts = config.train.accumulate
    share = -(-share // parts) * parts
    if seen.memory is not None:
        if share // parts * crop_bytes > seen.memory:
            share, why = max(1, int(seen.memory // crop_bytes)) * parts, "what fits"
        taken, free = crop_bytes / 2**30, seen.memory / 2**30
        why += f"; a crop takes about {taken:.1f} of the {free:.1f} GiB that may be used"
    if seen.processes > 1:
        why += f"; {share} for each of {seen.processes} processes"
    return share * seen.processes, why


def _lr(config: Config, seen: Seen) -> tuple[float, str]:
    """Goes with the root of the batch, as the noise of its gradient does."""
    train = config.train
    rate = float(f"{_LR[train.optimizer] * (train.batch_size / _BATCH) ** 0.5:.2g}")
    return rate, f"what {train.optimizer} learns fast with, in batches of {train.batch_size}"


def _views(sizes: Sequence[Size], crop: Size) -> float:
    """Returns how many crops show all that there is to see; a small picture counts as one."""
    area = crop[0] * crop[1]
    return sum(max(1.0, height * width / area) for height, width in sizes)


def _usual_steps(config: Config, views: float) -> int:
    return int(np.clip(_PASSES * views / config.train.batch_size, _FEWEST, _MOST))


def _steps(config: Config, seen: Seen, views: float) -> tuple[int, str]:
    steps, pictures = _usual_steps(config, views), len(seen.train)
    passes = steps * config.train.batch_size / views
    return steps, (
        f"{passes:.0f} passes over {_pictures(pictures)}, {views:.0f} crops of them a pass; "
        "--minutes 15 sets them by time instead"
    )


def _steps_of_epochs(config: Config, seen: Seen) -> tuple[int, str]:
    train, pictures = config.train, len(seen.train)
    assert train.epochs is not None
    what = f"{train.epochs:g} epochs of {_pictures(pictures)} in batches of {train.batch_size}"
    return steps_of_epochs(train.epochs, pictures, train.batch_size), what


def steps_of_epochs(epochs: float, pictures: int, batch_size: int) -> int:
    """Returns the least number of steps that show every picture `epochs` times, on average."""
    return max(1, math.ceil(round(epochs * pictures / batch_size, 6)))


def _pictures(count: int) -> str:
    return "1 picture" if count == 1 else f"{count} pictures"


def _steps_in_time(
    config: Config, seconds: float, pace: Pace, views: float, asked: bool
) -> tuple[int, str]:
    """Fills the time that is left with steps, unless so many would learn nothing more.

    `asked`: evaluations on the way are as the config says, else as many as are worth their time.
    """
    left = _MARGIN * seconds - pace.before - _ELSE - pace.evaluation - 2 * pace.saving
    each = pace.step + pace.saving / config.train.save_every
    if not asked:
        left -= _evaluations(left, pace) * pace.evaluation
    elif config.train.eval_every:
        each += pace.evaluation / config.train.eval_every
    steps = int(min(left / each, sys.maxsize))
    if steps < _LEAST:
        needed = seconds + (_LEAST * each - left) / _MARGIN
        raise UsageError(
            f"--minutes {seconds / 60:g}: {_LEAST} steps of {duration(pace.step)} and what goes "
            f"with them take {duration(needed)} here: give more time, or make steps cheaper by "
            "--set train.batch_size=2 or a smaller data.crop"
        )
    most = _PATIENCE * _usual_steps(config, views)
    if steps > most:
        passes = most * config.train.batch_size / views
        return most, f"{passes:.0f} passes; the time would allow {steps}, which show nothing new"
    return steps, (
        f"{seconds / 60:g} minutes, less {duration(seconds - steps * pace.step)} for all else, are "
        f"that many steps of {duration(pace.step)}"
    )


def _evaluations(seconds: float, pace: Pace) -> int:
    """Returns how many evaluations before the last one are worth their time."""
    return max(0, int(min(_EVALUATIONS, _EVALUATING * seconds / max(pace.evaluation, 1e-9))))


def _eval_every(config: Config, seen: Seen, pace: Pace | None) -> tuple[int, str]:
    train = config.train
    if pace is None:  # times in units of training on a pixel
        shown = train.steps * train.batch_size * config.data.crop[0] * config.data.crop[1]
        pixels = sum(height * width for height, width in seen.val)
        cost = Pace(step=0.0, evaluation=_LOOKING * pixels, saving=0.0, before=0.0)
        count = _evaluations(shown, cost)
    else:
        count = _evaluations(train.steps * pace.step, pace)
    if not count or train.steps <= count:
        return 0, "at the end only: " + (
            "another would take more than a tenth of the time" if not count else "few steps"
        )
    scores = "1 score" if count == 1 else f"{count} scores"
    return -(-train.steps // (count + 1)), f"{scores} on the way, beside that of the end"


def _save_every(pace: Pace | None) -> tuple[int, str]:
    if pace is None:
        return (
            TrainConfig().save_every // 4,
            "steps that a kill costs at most",
        )
    every = int(np.clip(_LOST / max(pace.step, 1e-9), 10, 1000))
    return every, f"about {duration(every * pace.step)} are lost where a training is killed"
