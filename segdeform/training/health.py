"""Whether offsets are in good health: measured in the steps that are logged, and told of if not.

What is measured is of this process's own pictures, as the layers see them while training; of rank
0 where there are several processes. Other steps cost nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cuda_ops.layers import DeformConv2d
from segdeform.config.train import TrainConfig
from segdeform.models.deform import deformable_layers
from segdeform.models.recompute import statistics_kept
from segdeform.training.compiled import CompiledNetwork

_SATURATED = 0.01  # distance of a mask from 0 or 1 (before its factor of 2) that no gradient leaves


@dataclass(frozen=True)
class OffsetHealth:
    """Means over all samples of a deformable layer."""

    length: float  # of an offset, in pixels of the layer's input
    outside: float  # share of the samples that lie beyond the border, where nothing is
    outside_at_rest: float  # the same with offsets of zero: of the padding alone
    saturated: float | None  # share of the masks near 0 or 2; None: the layer has none

    def to_json(self) -> dict[str, float]:
        """Returns the numbers that there are, by name."""
        return {key: value for key, value in asdict(self).items() if value is not None}


class Watch:
    """Measures the deformable layers of a backbone while a block runs.

    Compiled code cannot be looked into: before it is called with pictures in `network`, which is
    how steps call `model`, the layers are shown them once more, as they are.
    """

    def __init__(self, model: nn.Module, network: nn.Module | None = None) -> None:
        self._layers = deformable_layers(getattr(model, "backbone", model))
        parts = [] if network is None else network.modules()
        self._compiled = next((m for m in parts if isinstance(m, CompiledNetwork)), None)
        self._seen: dict[str, list[Tensor]] = {}

    @contextmanager
    def during(self, wanted: bool) -> Iterator[None]:
        """Measures what runs in the block, where it is wanted."""
        self._seen = {}
        if not wanted:
            yield
        elif self._compiled is None:
            with self._looking():
                yield
        else:
            handle = self._compiled.register_forward_pre_hook(self._show)
            try:
                yield
            finally:
                handle.remove()

    @torch.no_grad()
    def _show(self, network: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(network, CompiledNetwork)
        images: Tensor = inputs[0]
        devices = [images.device] if images.is_cuda else []
        with torch.random.fork_rng(devices), statistics_kept(network.model), self._looking():
            network.model.features(images)

    @contextmanager
    def _looking(self) -> Iterator[None]:
        """Measures where the layers sample, by whatever way they are called."""
        for name, layer in self._layers.items():
            layer.sampling = partial(self._look, name, layer)  # type: ignore[method-assign]
        try:
            yield
        finally:
            for layer in self._layers.values():
                del layer.sampling

    def read(self) -> dict[str, OffsetHealth]:
        """Returns what was measured last, by the layers' names; waits for the device."""
        return {
            name: _health(torch.stack(numbers).double().mean(0).tolist())
            for name, numbers in self._seen.items()
        }

    def _look(self, name: str, layer: DeformConv2d, x: Tensor) -> tuple[Tensor, Tensor | None]:
        offset, mask = type(layer).sampling(layer, x)
        with torch.no_grad():
            self._seen.setdefault(name, []).append(_measured(layer, x, offset, mask))
        return offset, mask


def _health(numbers: list[float]) -> OffsetHealth:
    length, outside, at_rest, saturated = numbers
    return OffsetHealth(length, outside, at_rest, saturated if saturated >= 0 else None)


def _measured(
    layer: DeformConv2d,
    x: Tensor,  # [N, C, H, W]
    offset: Tensor,  # [N, 2*G*T, P, Q]
    mask: Tensor | None,  # [N, G*T, P, Q], 0..2
) -> Tensor:  # [4] float32: the fields of OffsetHealth, -1 for none
    taps = layer.kernel_size[0] * layer.kernel_size[1]
    shifts = offset.float().view(len(offset), -1, taps, 2, *offset.shape[2:])  # [N, G, T, 2, P, Q]
    y, x_at = _regular(layer, (offset.shape[2], offset.shape[3]), offset.device)
    size = (x.shape[2], x.shape[3])
    moved = _outside(y + shifts[:, :, :, 0], x_at + shifts[:, :, :, 1], size)
    saturated = offset.new_tensor(-1.0)
    if mask is not None:
        half = mask.float() / 2
        saturated = ((half < _SATURATED) | (half > 1 - _SATURATED)).float().mean()
    rest = _outside(y, x_at, size).float().mean()
    length = shifts.square().sum(3).sqrt().mean()
    return torch.stack((length, moved.float().mean(), rest, saturated.float()))


def _regular(
    layer: DeformConv2d, size: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor]:  # [T, P, 1], [T, 1, Q]: pixels
    """Returns where the taps sample without offsets."""
    places = []
    for axis in (0, 1):
        first = torch.arange(size[axis], device=device) * layer.stride[axis] - layer.padding[axis]
        tap = torch.arange(layer.kernel_size[axis], device=device) * layer.dilation[axis]
        places.append(tap[:, None] + first)  # [k, P] or [k, Q]
    rows = places[0].repeat_interleave(layer.kernel_size[1], 0)[:, :, None]
    columns = places[1].repeat(layer.kernel_size[0], 1)[:, None, :]
    return rows, columns


def _outside(y: Tensor, x: Tensor, size: tuple[int, int]) -> Tensor:
    """Tells of positions whether nothing of the picture reaches them."""
    return (y <= -1) | (y >= size[0]) | (x <= -1) | (x >= size[1])


# Between models that learned and trainings that were spoiled. Of six good models (CamVid, shapes,
# cracks, membranes; mIoU 0.65 to 0.87) and six short healthy runs, v1 and v2, up to 0.41 of the
# samples that lay within the border without offsets were beyond it, and up to 58% of a layer's
# masks were saturated, which is no fault by itself. Of offsets that ran away (offset_lr_factor of 1
# and 10) it was 0.75 to 1 and 70% to 98% from step 30 on.
_LOST = 0.6
_CLOSED = 0.9
# In pixels; after ten steps it was 0.01 and more wherever offsets learned.
_STILL = 1e-4
_AWAKE = 100  # steps after the warm-up, by which offsets have moved
_TOLD = 3  # times that one layer's trouble is told


_AWAY = "offsets run away"
_SHUT = "masks are near 0 or 2, where they learn no more"
_STUCK = "offsets have not moved"


class Warnings:
    """Says when offsets go wrong, by layer, and which key to change; once while it lasts."""

    def __init__(self, train: TrainConfig) -> None:
        self._train = train
        self._ill: dict[str, set[str]] = {}
        self._told: Counter[tuple[str, str]] = Counter()

    def hear(self, step: int, health: Mapping[str, OffsetHealth]) -> list[str]:
        """Returns what is to be said after a step, a line for each kind of trouble that is new."""
        lines = []
        for kind, ill in self._troubles(step, health).items():
            before = self._ill.get(kind, set())
            new = [name for name in ill if name not in before and self._told[kind, name] < _TOLD]
            self._ill[kind] = set(ill)
            self._told.update((kind, name) for name in new)
            if new:
                layers = ", ".join(f"{name} ({ill[name]})" for name in new)
                lines.append(f"warning: {kind}: {layers}; {self._advice(kind)}")
        return lines

    def _troubles(self, step: int, health: Mapping[str, OffsetHealth]) -> dict[str, dict[str, str]]:
        """Returns {kind: {layer: its numbers}}, also of kinds that no layer has."""
        found: dict[str, dict[str, str]] = {_AWAY: {}, _SHUT: {}, _STUCK: {}}
        train = self._train
        learns = train.offset_lr_factor > 0 and train.backbone_lr_factor > 0
        awake = learns and step > train.warmup_steps + _AWAKE
        for name, layer in health.items():
            inside = 1 - layer.outside_at_rest
            if layer.outside - layer.outside_at_rest > _LOST * inside:
                found[_AWAY][name] = (
                    f"{layer.outside:.0%} of its samples lie beyond the border, "
                    f"{layer.outside_at_rest:.0%} without offsets; {layer.length:.1f} pixels long"
                )
            if layer.saturated is not None and layer.saturated > _CLOSED:
                found[_SHUT][name] = f"{layer.saturated:.0%}"
            if awake and layer.length < _STILL:
                found[_STUCK][name] = f"{layer.length:.1g} pixels at step {step}"
        return found

    def _advice(self, kind: str) -> str:
        train = self._train
        if kind == _STUCK:
            return (
                f"raise train.offset_lr_factor ({train.offset_lr_factor:g} now), or leave them out "
                "by deform.layers"
            )
        return (
            f"lower train.offset_lr_factor ({train.offset_lr_factor:g} now) or train.lr "
            f"({train.lr:g}), or set train.clip_grad_norm"
        )
