"""What surrounds a call of an operator: autocast, differentiation, tracing, transforms."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode


def autocast_dtype(device: str) -> torch.dtype | None:
    """Returns the dtype that autocast asks for on a type of device; None where it is off."""
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def without_autocast(device: str) -> AbstractContextManager[None]:
    """Returns a context in which autocast is off on a type of device, where there is such a one."""
    if not torch.amp.is_autocast_available(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def as_autocast(tensor: Tensor, low: torch.dtype | None) -> torch.dtype:
    """Returns the dtype of a tensor under autocast to `low`, which leaves float64 alone."""
    return tensor.dtype if low is None or tensor.dtype == torch.float64 else low


def refuse_forward_mode(operator: str, *tensors: Tensor | None) -> None:
    """Raises RuntimeError for forward-mode tangents, which torch would silently take for zero."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    given = [t for t in tensors if t is not None]
    if any(forward_ad.unpack_dual(t).tangent is not None for t in given):  # type: ignore[no-untyped-call]
        raise RuntimeError(
            f"{operator} has no forward-mode derivative; cuda_ops.reference.{operator} has one"
        )


def transforming() -> bool:
    """Says whether a transform of torch.func (vmap, grad, ...) is at work in an eager call."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def values_at_hand(*tensors: Tensor | None) -> bool:
    """Says whether Python may read the values: plain CPU tensors, and nothing watches the call.

    Compilers, tracers, fake tensors, dispatch modes and transforms do not have one value, or must
    not see a decision made by it.
    """
    if torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None:
        return False
    if torch._C._get_tracing_state() is not None:  # torch.jit.trace
        return False
    return all(
        type(t) in (Tensor, torch.nn.Parameter)
        and t.device.type == "cpu"
        and not torch._C._functorch.is_functorch_wrapped_tensor(t)
        for t in tensors
        if t is not None
    )
