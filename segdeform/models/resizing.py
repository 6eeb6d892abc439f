"""From a map back to the size of what it was made of, at any size.

A map of stride s has ceil(H / s) rows, and row i stands for the pixels i * s .. i * s + s - 1. So
it is enlarged s times, exactly, and what reaches beyond the picture is cut off. Resizing it to H
rows instead squeezes it wherever H is no multiple of s, and masks drift to the top left.
"""

from __future__ import annotations

import math

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
    whole = (rows * stride, columns * stride)
    large = F.interpolate(maps, whole, mode="bilinear", align_corners=False)
    if torch.compiler.is_compiling():
        # A cut ties a graph to sizes that the stride divides, or to all others; an operator that
        # is told size and stride at once becomes a page of gathers in ONNX, this one Resize.
        y, x = (torch.arange(side, device=maps.device) for side in size)
        return large.index_select(-2, y).index_select(-1, x)
    return large[..., :height, :width]


def stride_of(
    maps: Tensor,  # [N, C, h, w]
    size: torch.Size | tuple[int, int],  # (H, W)
) -> int:
    """Finds the stride, a power of two, at which a picture of (H, W) pixels has such maps.

    Where both sides have shrunk to one value any larger stride would do, and gives the same.
    """
    longer = 0 if size[0] >= size[1] else 1
    return 1 << max(0, math.ceil(math.log2(size[longer] / maps.shape[-2:][longer])))
