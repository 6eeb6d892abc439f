"""What an ablation trains: networks that differ in one respect, each with several seeds."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from segdeform.config.schema import Config

Variant = Literal["v1", "v2"]


@dataclass(frozen=True)
class Arm:
    """One network of the comparison; all else is equal."""

    layers: int
    variant: Variant | None  # None: no deformable layer, so none
    dilation: int | None  # None: what the output stride gives

    @property
    def name(self) -> str:
        parts = [f"layers{self.layers}", self.variant or ""]
        parts.append(f"dilation{self.dilation}" if self.dilation else "")
        return "-".join(filter(None, parts))

    def overrides(self) -> list[str]:
        """Returns what sets this arm apart from the config."""
        given = [f"deform.layers={self.layers}"]
        if self.variant:
            given.append(f"deform.variant={self.variant}")
        if self.dilation:
            given.append(f"deform.dilation={self.dilation}")
        return given


def make_arms(
    layers: Sequence[int],
    variants: Sequence[Variant],
    dilations: Sequence[int | None],
    plain_dilations: Sequence[int] = (),  # of further networks without deformable layers
) -> list[Arm]:
    """Lists every combination once: without deformable layers the variant makes no difference."""
    arms = [
        Arm(count, variant if count else None, dilation)
        for dilation in dilations
        for count in layers
        for variant in variants
    ]
    arms += [Arm(0, None, dilation) for dilation in plain_dilations]
    return list(dict.fromkeys(arms))


def drop_repeated(
    arms: Sequence[Arm], configs: Sequence[Config]
) -> tuple[list[Arm], list[tuple[Arm, Arm]]]:
    """Drops arms whose network is that of an arm before them, as a dilation it has by itself.

    `configs` are those of the arms. Returns the arms kept, and (dropped, the same) pairs. Networks
    are the same if all their layers say so: they are built, without memory or random numbers.

    Raises:
        ConfigError: an arm does not suit the backbone.
    """
    # torch is imported here because command lines are looked at before it is loaded.
    import torch

    from segdeform.models import build_model

    first: dict[tuple[str, str], Arm] = {}
    repeated = []
    for arm, config in zip(arms, configs, strict=True):
        with torch.device("meta"):
            network = build_model(config.model, config.deform, 2, pretrained=False)
        shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
        same = first.setdefault((repr(network), repr(shapes)), arm)
        if same is not arm:
            repeated.append((arm, same))
    return list(first.values()), repeated


@dataclass(frozen=True)
class Ablation:
    """An ablation: what is trained, on what, where."""

    config: str
    data: Path | None
    output: Path
    arms: Sequence[Arm]
    seeds: int
    overrides: Sequence[str] = ()
    devices: Sequence[str] = ("auto",)  # one run at a time on each
    threads: int | None = None

    def runs(self) -> list[tuple[Arm, int]]:
        """Lists the runs, seed by seed, so that a stopped ablation has compared like with like."""
        return [(arm, seed) for seed in range(self.seeds) for arm in self.arms]

    def folder(self, arm: Arm, seed: int) -> Path:
        return self.output / f"{arm.name}-seed{seed}"

    def command(self, arm: Arm, seed: int, device: str) -> list[str]:
        """Returns the command line of a run; the same one starts it and goes on with it."""
        settings = [*self.overrides, *arm.overrides(), f"train.seed={seed}"]
        words = [sys.executable, "-m", "segdeform", "train", self.config, "--resume"]
        words += ["--output", str(self.folder(arm, seed)), "--device", device]
        words += [] if self.data is None else ["--data", str(self.data)]
        words += [] if self.threads is None else ["--threads", str(self.threads)]
        return words + [word for setting in settings for word in ("--set", setting)]
