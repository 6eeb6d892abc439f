"""Checks that the public functions share, and what a convolution takes beside its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

Pair = tuple[int, int]  # (height, width)


class Geometry(NamedTuple):
    """What the native operator takes after its tensors, in the order of its schema."""

    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int  # of the weight
    offset_groups: int


def pair(value: int | tuple[int, ...], name: str = "size", least: int | None = None) -> Pair:
    """Spells a size out as (height, width).

    Raises:
        ValueError: it is no pair, or a number is below `least`; names the argument.
    """
    both = (value, value) if isinstance(value, int) else tuple(value)
    if len(both) != 2 or (least is not None and any(v < least for v in both)):
        rule = "" if least is None else f" >= {least}"
        raise ValueError(f"{name} must be one or two integers{rule}, not {value}")
    return (both[0], both[1])


def check_tensors(input: Tensor, others: Mapping[str, Tensor | None]) -> None:
    """Demands floating-point tensors on the device of the input.

    Raises:
        TypeError: a tensor does not hold floating-point numbers.
        ValueError: one lies on another device.
    """
    for name, tensor in {"input": input, **others}.items():
        if tensor is None:
            continue
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must have a floating dtype, not {tensor.dtype}")
        if tensor.device != input.device:
            raise ValueError(f"{name} must be on {input.device} as input is, not {tensor.device}")


def check_shape(name: str, tensor: Tensor | None, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless the tensor, where it is given, has the shape."""
    if tensor is not None and tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, not {tuple(tensor.shape)}")
