"""From a map back to the size of what it was made of, at any size.

A map of stride s has ceil(H / s) rows, and row i stands for the pixels i * s .. i * s + s - 1. So
it is enlarged s times, exactly, and what reaches beyond the picture is cut off. Resizing it to H
rows instead squeezes it wherever H is no multiple of s, and masks drift to the top left.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def enlarge(
    maps: Tensor,  # [N, C, ceil(H / stride), ceil(W / stride)]
    stride: int,
    size: torch.Size | tuple[int, int],  # (H, W)
) -> Tensor:  # [N, C, H, W]
    """Enlarges maps `stride` times, bilinearly, and cuts them to a size.

    Raises:
        ValueError: maps of that stride have another size.
    """
    (rows, columns), (height, width) = maps.shape[-2:], size
    # Written as convolutions compute their sizes, by which it can be proven for symbolic ones.
    if rows != (height - 1) // stride + 1 or columns != (width - 1) // stride + 1:
        raise ValueError(
            f"maps of {rows}x{columns} are not those of a picture of {height}x{width} pixels at "
            f"stride {stride}"
        )
    if stride == 1:
        return maps
    exporting = torch.compiler.is_exporting()
    if torch.compiler.is_compiling() and not exporting and torch.is_grad_enabled():
        whole_operator: Tensor = torch.ops.segdeform.enlarge(maps, stride, height, width)
        return whole_operator
    whole = (rows * stride, columns * stride)
    large = F.interpolate(maps, whole, mode="bilinear", align_corners=False)
    return cut(large, size)


def cut(
    maps: Tensor,  # [..., >= H, >= W]
    size: torch.Size | tuple[int, int],  # (H, W)
) -> Tensor:  # [..., H, W]
    """Returns the top left of maps."""
    if torch.compiler.is_compiling():
        # A cut ties a graph to sizes that the stride divides, or to all others; an operator that
        # is told size and stride at once becomes a page of gathers in ONNX, this one Resize.
        y, x = (torch.arange(side, device=maps.device) for side in size)
        return maps.index_select(-2, y).index_select(-1, x)
    return maps[..., : size[0], : size[1]]


# torch's compiler takes interpolation apart, and adds up its gradient in an order that is another
# each time, and slowly: in training it is one operator, in which it does not look.
@torch.library.custom_op(
    "segdeform::enlarge",
    mutates_args=(),
    schema="(Tensor maps, SymInt stride, SymInt height, SymInt width) -> Tensor",
)
def _enlarge(maps: Tensor, stride: int, height: int, width: int) -> Tensor:
    whole = (maps.shape[2] * stride, maps.shape[3] * stride)
    large = F.interpolate(maps, whole, mode="bilinear", align_corners=False)
    return large[..., :height, :width]


@torch.library.custom_op(
    "segdeform::enlarge_backward",
    mutates_args=(),
    schema="(Tensor grad, SymInt stride, SymInt rows, SymInt columns) -> Tensor",
)
def _enlarge_backward(grad: Tensor, stride: int, rows: int, columns: int) -> Tensor:
    whole = [rows * stride, columns * stride]
    cut = (0, whole[1] - grad.shape[3], 0, whole[0] - grad.shape[2])
    size = [*grad.shape[:2], rows, columns]
    found: Tensor = torch.ops.aten.upsample_bilinear2d_backward(
        F.pad(grad, cut), whole, size, False, None, None
    )
    return found.contiguous(memory_format=_layout(grad))


def _layout(tensor: Tensor) -> torch.memory_format:
    last = tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


@_enlarge_backward.register_fake
def _no_gradients(grad: Tensor, stride: int, rows: int, columns: int) -> Tensor:
    empty = grad.new_empty(*grad.shape[:2], rows, columns)
    return empty.contiguous(memory_format=_layout(grad))


def _keep_sizes(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    maps, ctx.stride, *_ = inputs
    ctx.rows, ctx.columns = maps.shape[2:]


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    by_maps = torch.ops.segdeform.enlarge_backward(grad, ctx.stride, ctx.rows, ctx.columns)
    return by_maps, None, None, None


_enlarge.register_fake(_enlarge._init_fn)
_enlarge.register_autograd(_gradients, setup_context=_keep_sizes)


def stride_of(
    maps: Tensor,  # [N, C, h, w]
    size: torch.Size | tuple[int, int],  # (H, W)
) -> int:
    """Finds the stride, a power of two, at which a picture of (H, W) pixels has such maps.

    Where both sides have shrunk to one value any larger stride would do, and gives the same.
    """
    longer = 0 if size[0] >= size[1] else 1
    return 1 << max(0, math.ceil(math.log2(size[longer] / maps.shape[-2:][longer])))
