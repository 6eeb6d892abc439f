"""The native operators' faces beside their kernels: fake, autograd, autocast, vmap, torch.func.

Each operator `name` has a sister `name_backward`, which takes the output's gradient, what was
saved, the numbers, and a flag for each gradient that it can give.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cuda_ops.surroundings import as_autocast, transforming

Fake = Callable[..., Any]


@dataclass(frozen=True)
class Operator:
    """An operator of `segdeform`, described by the names of its tensors."""

    name: str
    tensors: tuple[str, ...]  # the first arguments of its schema, in order; numbers follow
    lowered: tuple[str, ...]  # what autocast brings to its dtype; the others hold positions
    saved: tuple[str, ...]  # what the backward operator takes after the gradient
    wanted: tuple[str, ...]  # what the backward operator differentiates by, in order
    output: Fake  # of the operator's arguments: an empty result
    gradients: Fake  # of the backward operator's arguments: empty gradients

    def setup_context(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keeps for the backward pass what it needs, as torch asks for it."""
        given = dict(zip(self.tensors, inputs, strict=False))
        ctx.save_for_backward(*[given[name] for name in self.saved])
        ctx.numbers = inputs[len(self.tensors) :]

    def backward(self, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Returns a gradient for each argument; None where none is asked for."""
        need = [ctx.needs_input_grad[self.tensors.index(name)] for name in self.wanted]
        arguments = (grad, *ctx.saved_tensors, *ctx.numbers, *need)
        grads = zip(self.wanted, call(f"{self.name}_backward", *arguments), need, strict=True)
        found = {name: value for name, value, needed in grads if needed}
        return (*[found.get(name) for name in self.tensors], *[None] * len(ctx.numbers))

    def refuse(self, ctx: Any, *grads: Tensor) -> None:
        """Refuses the second derivative."""
        raise RuntimeError(
            f"{self.name} has no second derivative; cuda_ops.reference.{self.name} has one"
        )

    def autocast(self, device: str, name: str) -> Callable[..., Tensor]:
        """Makes the rule of autocast on a type of device for the operator called `name`."""

        def under_autocast(*arguments: Any) -> Tensor:
            low = torch.get_autocast_dtype(device)
            given = dict(zip(self.tensors, arguments, strict=False))
            cast = [
                t if t is None else t.to(as_autocast(t, low if key in self.lowered else _POSITIONS))
                for key, t in given.items()
            ]
            with torch.autocast(device, enabled=False):
                result: Tensor = call(name, *cast, *arguments[len(cast) :])
            return result

        return under_autocast


_POSITIONS = torch.float32  # half precision would be off by up to a pixel

# Kept alive: torch drops a library's rules with the object.
_rules = torch.library.Library("segdeform", "IMPL")  # type: ignore[no-untyped-call]
_functions: dict[str, type[torch.autograd.Function]] = {}


def call(name: str, *arguments: Any) -> Any:
    """Calls a native operator; under a transform of torch.func as a function that it can see into.

    (An autograd rule of a registered operator is opaque to torch.func.)
    """
    if transforming() and name in _functions:
        return _functions[name].apply(*arguments)
    return getattr(torch.ops.segdeform, name)(*arguments)


def register(operator: Operator) -> None:
    """Gives torch all faces of an operator and of its backward operator."""
    name, backward = operator.name, f"{operator.name}_backward"
    add_fake(name, operator.output)
    add_fake(backward, operator.gradients)
    torch.library.register_autograd(
        f"segdeform::{name}", operator.backward, setup_context=operator.setup_context
    )
    torch.library.register_autograd(f"segdeform::{backward}", operator.refuse)
    _functions[name] = _as_function(name, operator.setup_context, operator.backward)
    _functions[backward] = _as_function(backward, _keep_nothing, operator.refuse)
    for each in (name, backward):
        torch.library.register_vmap(f"segdeform::{each}", _one_by_one(each))
    add_autocast(operator, name)


def add_autocast(operator: Operator, name: str) -> None:
    """Gives an operator with this one's tensors its rules of autocast."""
    for device, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
        _rules.impl(name, operator.autocast(device, name), key)  # type: ignore[no-untyped-call]


def add_fake(name: str, fake: Fake) -> None:
    """Gives an operator its result without values, also on the meta device.

    Where a tensor lies on meta torch comes here whatever the others are: mixed ones are refused.
    """

    def on_one_device(*arguments: Any) -> Any:
        devices = {a.device for a in arguments if isinstance(a, Tensor)}
        if len(devices) > 1:
            named = ", ".join(sorted(map(str, devices)))
            raise RuntimeError(f"{name}: all operands must be on one device, not on {named}")
        return fake(*arguments)

    torch.library.register_fake(f"segdeform::{name}", on_one_device)


def _keep_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Is the context of a function that refuses to be differentiated."""


def _as_function(
    name: str, setup_context: Callable[..., None], backward: Callable[..., Any]
) -> type[torch.autograd.Function]:
    def forward(*arguments: Any) -> Any:
        return getattr(torch.ops.segdeform, name)(*arguments)

    members = {"forward": forward, "setup_context": setup_context, "backward": backward}
    static = {key: staticmethod(member) for key, member in members.items()}
    return type(name, (torch.autograd.Function,), {**static, "generate_vmap_rule": True})


def _one_by_one(name: str) -> Callable[..., Any]:
    """Makes the rule of vmap: one call for each element, whose results are stacked."""

    def over_a_batch(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
        def element(index: int) -> list[Any]:
            return [
                a.select(dim, index) if isinstance(dim, int) else a
                for a, dim in zip(arguments, in_dims, strict=True)
            ]

        operator = getattr(torch.ops.segdeform, name)
        results = [operator(*element(index)) for index in range(info.batch_size)]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        stacked = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
        return stacked, tuple(0 for _ in stacked)

    return over_a_batch


# ---- layouts, as the kernels choose them ----


def format_of(t: Tensor) -> torch.memory_format:
    """Returns the memory format that a result takes over from an input [N, C, H, W]."""
    last = t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def empty_like_format(like: Tensor, size: tuple[int, ...]) -> Tensor:
    """Returns an empty tensor of another size in the dtype, device and memory format of `like`."""
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=format_of(like))


def gradient_like(t: Tensor, needed: bool) -> Tensor:
    """Returns an empty gradient of an image, or what stands for one that was not asked for."""
    return empty_like_format(t, tuple(t.shape)) if needed else t.new_empty(0)
