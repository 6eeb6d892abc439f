"""Gives the keys that a config leaves `auto` their values, once in the life of a run.

A new run's are chosen from the data set, the machine and a time budget; a resumed run's are those
that it began with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from segdeform.callbacks import Say
from segdeform.checking import check_sound
from segdeform.checking.report import Report
from segdeform.config.dotted import by_key
from segdeform.config.loading import Draft
from segdeform.config.schema import Config
from segdeform.config.strict_yaml import read_yaml
from segdeform.data.dataset import Dataset
from segdeform.errors import ConfigError, DownloadError, ModelError
from segdeform.files.manifest import read_json
from segdeform.model_folder import DESCRIPTION, find_model
from segdeform.models.backbones import fetch_imagenet
from segdeform.models.precision import has_bf16
from segdeform.models.pyramid import fit_to_crop
from segdeform.models.timm_networks import NoWeightsError
from segdeform.segmenter import read_description
from segdeform.training.beginning import begins_with_folder
from segdeform.training.channels import with_channels
from segdeform.training.choices import (
    Choice,
    Seen,
    choose,
    choose_precision,
    choose_steps,
    values_of,
)
from segdeform.training.memory import bytes_of_crop, usable_memory
from segdeform.training.pace import Pace
from segdeform.training.plan import Budget, Plan, check_config
from segdeform.training.reporter import Reporter
from segdeform.training.run_folder import checkpoint_folders, holds_run
from segdeform.training.trial import cost_of_precision, try_out

_LONG_WARM_UP = 10_000  # steps: what a trial learns must not run away
_FEW_STEPS = 60
_SHARE_OF_TRIAL = 0.25  # of a time budget that a trial may take


def kept_values(run: Path, draft: Draft) -> dict[str, Any] | None:
    """Returns what a run's own files say of the keys that are `auto`; None: there is no run.

    A key that the run's version did not know has the meaning of its default.

    Raises:
        ConfigError: there is a run, but nothing tells what it began with.
    """
    if not holds_run(run):
        return None
    defaults = by_key(Config().model_dump(mode="json"))
    for config in _told_by(run):
        known = defaults | by_key(config)
        return {key: known[key] for key in sorted(draft.auto)}
    if not checkpoint_folders(run) and not (run / "model").exists():
        return None  # interrupted before it began
    key = min(draft.auto)
    raise ConfigError(
        f"{run / 'config.yaml'} is missing or damaged, and {key} = auto means what is written "
        f"there: give --set {key}=VALUE, or start anew with --overwrite"
    )


def _told_by(run: Path) -> list[Mapping[str, Any]]:
    """Returns the configs that a run folder tells of, the most direct one first."""
    told: list[Any] = []
    for path in (run / "config.yaml", *(f / "state.json" for f in checkpoint_folders(run))):
        try:
            told.append(read_yaml(path) if path.suffix == ".yaml" else read_json(path)["config"])
        except (ConfigError, ModelError, KeyError, TypeError):
            continue
    try:
        described = read_json(run / "model" / "model.json")
        networks = {section: described[section] for section in ("model", "deform")}
        told.append({**described["training"], **networks})
    except (ModelError, KeyError, TypeError):
        pass
    return [config for config in told if isinstance(config, Mapping) and "train" in config]


def settle(plan: Plan, draft: Draft) -> list[Choice]:
    """Chooses what is `auto` for a new run, tells it, and does so together with the others.

    `plan` is what is known so far: of its config only the channels. Rank 0 chooses, by the check's
    report, which the others may lack.

    Raises:
        UsageError: the time budget does not suffice for ten steps.
        ConfigError: a choice does not fit what the config says.
    """
    peers, budget = plan.peers, plan.budget
    seen: Seen | None = None
    choices: list[Choice] = []
    with peers.in_step():
        if peers.first:
            assert plan.report is not None
            seen = _look(draft, plan.train_set, plan.report, plan.device, peers.size)
            choices = choose(draft, seen, bytes_of_crop)
    choices = _shared(plan, choices)
    cost = _bf16_cost(plan, draft, choices)
    with peers.in_step():
        if seen is not None:
            choices = [*choices, *choose_precision(draft, seen, cost)]
    choices = _shared(plan, choices)
    pace = None
    if budget is not None:
        pace = _try_out(plan, draft, choices, budget)
    with peers.in_step():
        if seen is not None:
            limit = None if budget is None or pace is None else (budget.seconds, pace)
            choices = [*choices, *choose_steps(draft, seen, choices, limit)]
    choices = _shared(plan, choices)
    if not plan.dry:  # a dry run ends with all of them
        _tell(choices, plan.reporter.message)
    _warn(choices, plan.reporter.message)
    with peers.in_step():
        if missing := draft.auto - values_of(choices).keys():
            raise ConfigError(
                f"{min(missing)} is auto for process {peers.rank} and not for process 0: start all "
                "of them with the same config"
            )
    return choices


def _shared(plan: Plan, choices: list[Choice]) -> list[Choice]:
    """Gives every process the choices of rank 0."""
    return [Choice(*choice) for choice in plan.peers.share([list(choice) for choice in choices])]


def choose_alone(
    draft: Draft, datasets: Sequence[Dataset], device: torch.device, say: Say
) -> dict[str, Any]:
    """Chooses what is `auto` for runs that others will train; returns the values by their keys.

    `datasets` are the split to train on and those to score.

    Raises:
        DataError, UnsafeInputError: lists the pictures and masks that cannot be used.
    """
    report = check_sound(datasets, say=say)
    seen = _look(draft, datasets[0], report, device)
    choices = choose(draft, seen, bytes_of_crop)
    choices += choose_precision(draft, seen, None)
    choices += choose_steps(draft, seen, choices, None)
    _tell(choices, say)
    _warn(choices, say)
    return values_of(choices)


def _tell(choices: list[Choice], say: Say) -> None:
    if not choices:
        return
    say("chosen for this data set and this machine; --set KEY=VALUE decides otherwise:")
    for choice in choices:
        say(f"  {choice.key}={json.dumps(choice.value)}: {choice.reason}")


def _warn(choices: list[Choice], say: Say) -> None:
    values = values_of(choices)
    if values.get("model.weights") == "none":
        say(
            "warning: without ImageNet's weights the training begins with random ones and needs "
            "several times the steps; --set model.weights=FILE starts from a file"
        )
    if 0 < values.get("train.steps", 0) < _FEW_STEPS:
        say(
            f"warning: {values['train.steps']} steps teach little, least of all rare classes: give "
            "more time (--minutes)"
        )


def _look(
    draft: Draft, train_set: Dataset, report: Report, device: torch.device, processes: int = 1
) -> Seen:
    given, no_weights, rates = draft.filled(), "", None
    if "model.aspp_rates" in draft.auto and begins_with_folder(given):
        folder, _ = find_model(Path(given.model.weights))
        rates = read_description(folder / DESCRIPTION).model.aspp_rates
    if "model.weights" in draft.auto:
        try:
            fetch_imagenet(given.model.backbone, given.model.output_stride)
        except (DownloadError, NoWeightsError) as error:
            no_weights = str(error)
    train = report.split(given.data.train_split)
    return Seen(
        classes=train_set.classes,
        pixels=train.pixels,
        train=train.sizes,
        val=tuple(size for name in given.data.val_splits for size in report.split(name).sizes),
        device=device.type,
        processes=processes,
        memory=usable_memory(device),
        rates=rates,
        native_bf16=has_bf16(device),
        no_weights=no_weights,
    )


def _bf16_cost(plan: Plan, draft: Draft, choices: list[Choice]) -> float | None:
    """Measures how long a step takes in bf16, in steps of fp32, where that is to be known."""
    if "train.precision" not in draft.auto or plan.device.type != "cpu":
        return None
    if not plan.peers.share(has_bf16(plan.device)):
        return None
    plan.reporter.message("measuring steps in fp32 and bf16")
    return cost_of_precision(_quiet(plan, draft, choices), "bf16")


def _quiet(plan: Plan, draft: Draft, choices: list[Choice]) -> Plan:
    """Returns the training that is chosen so far, to be tried in silence."""
    chosen = values_of(choices) | {"train.warmup_steps": _LONG_WARM_UP}
    config = fit_to_crop(with_channels(draft.filled(chosen), plan.config))
    check_config(config, plan.train_set, plan.device, plan.peers)
    return replace(plan, config=config, reporter=Reporter(Console(quiet=True)))


def _try_out(plan: Plan, draft: Draft, choices: list[Choice], budget: Budget) -> Pace:
    """Measures the training that is chosen so far, in silence; all processes take part."""
    plan.reporter.message("measuring ten steps")
    quiet = _quiet(plan, draft, choices)
    pace = try_out(quiet, budget.began, _SHARE_OF_TRIAL * budget.seconds)
    if plan.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(plan.device)
    return pace
