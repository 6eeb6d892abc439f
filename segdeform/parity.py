"""Do the kernels of an installation agree with the reference? Small cases of every operator."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

import cuda_ops
from cuda_ops import library, reference

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}  # largest difference / largest value

# The public functions; their definitions in cuda_ops.reference have the same names and arguments.
OPERATORS: dict[str, Callable[..., Tensor]] = {
    "deform_conv2d": cuda_ops.deform_conv2d,
    "deform_roi_pool": cuda_ops.deform_roi_pool,
    "ps_deform_roi_pool": cuda_ops.ps_deform_roi_pool,
}


class Case(NamedTuple):
    """A call with nothing symmetric in it."""

    name: str
    operator: str
    dtype: torch.dtype
    tensors: Mapping[str, Tensor]  # float64, on the CPU
    options: Mapping[str, Any]

    @property
    def wanted(self) -> list[str]:
        """Names the tensors that get a gradient."""
        return [name for name in self.tensors if name != "rois"]


class Outcome(NamedTuple):
    """How far a case is from the reference; `error` is what a kernel said that did not run."""

    backend: str
    worst: str  # "output" or "gradient of ..."
    difference: float  # largest one / largest value; infinite where a NaN is
    seconds: float
    error: str | None = None

    def within(self, case: Case) -> bool:
        """Tells whether the kernels agree with the reference."""
        return self.error is None and self.difference <= TOLERANCES[case.dtype]


def compare_with_reference(case: Case, device: str) -> Outcome:
    """Runs a case, its output and all its gradients, and the reference in float64."""
    started = time.perf_counter()
    backend = library.backend(device, case.operator)
    try:
        ours = _output_and_gradients(OPERATORS[case.operator], case, device, case.dtype)
    except RuntimeError as error:  # a kernel that does not launch is what this looks for
        said = str(error).splitlines()[0]
        return Outcome(backend, "", float("inf"), time.perf_counter() - started, said)
    definition = getattr(reference, case.operator)
    truth = _output_and_gradients(definition, case, "cpu", torch.float64)
    differences = {key: difference(ours[key], truth[key]) for key in truth}
    worst = max(differences, key=differences.__getitem__)
    return Outcome(backend, worst, differences[worst], time.perf_counter() - started)


def difference(ours: Tensor, truth: Tensor) -> float:
    """Returns the largest difference / the largest value; infinite where a NaN is."""
    value = float((ours.double().cpu() - truth).abs().max() / truth.abs().max())
    return value if value == value else float("inf")


def _output_and_gradients(
    function: Callable[..., Tensor], case: Case, device: str, dtype: torch.dtype
) -> dict[str, Tensor]:
    tensors = {name: value.to(device, dtype) for name, value in case.tensors.items()}
    leaves = [tensors[name].requires_grad_() for name in case.wanted]
    output = function(**tensors, **case.options)
    towards = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).reshape(output.shape)
    gradients = torch.autograd.grad(output, leaves, towards.to(output))
    named = zip((f"gradient of {name}" for name in case.wanted), gradients, strict=True)
    return {"output": output.detach(), **dict(named)}


def _convolution(
    name: str, dtype: torch.dtype, groups: int, offset_groups: int, modulated: bool
) -> Case:
    """Draws a kernel of 3x2 and pictures of 9x13, the same ones each time."""
    random = torch.Generator().manual_seed(0)
    channels, taps, size = 12, 6, (4, 14)  # of the output
    offset = torch.randint(-3, 3, (2, 2 * offset_groups * taps, *size), generator=random)
    tensors = {
        "input": _normal(random, 2, channels, 9, 13),
        "offset": offset + _fraction(random, offset.shape),
        "weight": _normal(random, 24, channels // groups, 3, 2),
        "bias": _normal(random, 24),
    }
    if modulated:
        shape = (2, offset_groups * taps, *size)
        tensors["mask"] = torch.rand(shape, generator=random, dtype=torch.float64)
    options = {"stride": (2, 1), "padding": (1, 1), "dilation": (2, 1)}
    return Case(name, "deform_conv2d", dtype, tensors, options)


def _roi_pooling(name: str, dtype: torch.dtype, position_sensitive: bool) -> Case:
    """Draws five RoIs on two pictures of 9x13 features, the same ones each time."""
    random = torch.Generator().manual_seed(0)
    corner = torch.rand(5, 2, generator=random, dtype=torch.float64) * 16
    size = torch.rand(5, 2, generator=random, dtype=torch.float64) * 14 + 3
    image = torch.tensor([[0], [1], [1], [0], [1]])
    tensors = {
        "input": _normal(random, 2, 24, 9, 13),
        "rois": torch.cat([image, corner, corner + size], dim=1),
    }
    if not position_sensitive:
        tensors["offset"] = _normal(random, 5, 2, 3, 2)
        options = {"output_size": (3, 2), "spatial_scale": 0.5, "sampling_ratio": 2}
        return Case(name, "deform_roi_pool", dtype, tensors, options)
    tensors["trans"] = _normal(random, 5, 2 * 3, 2, 2)
    options = {"spatial_scale": 0.5, "output_channels": 6, "group_size": 2, "pooled_size": 3}
    options |= {"part_size": 2, "sample_per_part": 3}
    return Case(name, "ps_deform_roi_pool", dtype, tensors, options)


def _normal(random: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=random, dtype=torch.float64)


def _fraction(random: torch.Generator, shape: torch.Size) -> Tensor:
    """Draws numbers that keep away from whole pixels, where the derivative jumps."""
    return torch.rand(shape, generator=random, dtype=torch.float64) * 0.8 + 0.1


CASES = (
    _convolution("v1", torch.float32, 2, 3, False),
    _convolution("v2", torch.float32, 1, 1, True),
    _convolution("v2 depthwise", torch.float32, 12, 1, True),
    _convolution("v2, float64", torch.float64, 2, 3, True),
    _roi_pooling("RoI pooling", torch.float32, False),
    _roi_pooling("position-sensitive RoI pooling", torch.float32, True),
)
