"""What the native operators refuse of automatic differentiation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad


def refuse_forward_mode(operator: str, *tensors: Tensor | None) -> None:
    """Raises RuntimeError for forward-mode tangents, which torch would silently take for zero."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    given = [t for t in tensors if t is not None]
    if any(forward_ad.unpack_dual(t).tangent is not None for t in given):  # type: ignore[no-untyped-call]
        raise RuntimeError(
            f"{operator} has no forward-mode derivative; cuda_ops.reference.{operator} has one"
        )
