"""Labels from coarse scores, without ever holding the scores of all pixels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cuda_ops import library

MOST_CLASSES = 65_535
BYTE_CLASSES = 255  # a byte numbers them, and 255 itself is left to what is no class
_STRIP = 16  # rows of the maps enlarged at a time where there is no kernel
_NATIVE = library.cpu_library.loaded and torch._C._dispatch_has_kernel("segdeform::enlarged_labels")


def enlarged_labels(
    maps: Tensor,  # [N, K, ceil(H / stride), ceil(W / stride)] floating point
    stride: int,
    size: tuple[int, int],  # (H, W)
) -> Tensor:  # [N, H, W] uint8; of more than 255 classes uint16
    """Gives every pixel the class whose score is highest once the maps are enlarged.

    The same as enlarging bilinearly by `stride` (half-pixel centres, `align_corners=False`),
    cutting to (H, W) and argmax over the classes, up to rounding where two scores are equal; of
    equal ones the lower class. The scores of all pixels, K * H * W, are held at no time. Computed
    in float32. It has no gradient.

    Raises:
        ValueError: K is not from 1 to 65535, maps of that stride have another size, or there is no
            such stride or picture.
    """
    if maps.dim() != 4 or not 1 <= maps.shape[1] <= MOST_CLASSES:
        raise ValueError(f"maps must be [N, 1 to 65535 classes, h, w], not {tuple(maps.shape)}")
    if stride < 1 or min(size) < 1:
        raise ValueError(f"a stride of {stride}, a picture of {size[0]}x{size[1]}: 1 is the least")
    expected = tuple((side - 1) // stride + 1 for side in size)
    if tuple(maps.shape[2:]) != expected:
        raise ValueError(
            f"maps of a picture of {size[0]}x{size[1]} pixels at stride {stride} are "
            f"{expected[0]}x{expected[1]}, not {maps.shape[2]}x{maps.shape[3]}"
        )
    if _NATIVE and maps.device.type == "cpu":
        labels: Tensor = torch.ops.segdeform.enlarged_labels(maps, stride, *size)
        return labels
    return _by_torch(maps.float(), stride, size)


def _by_torch(maps: Tensor, stride: int, size: tuple[int, int]) -> Tensor:
    """Does the same in strips of rows, each enlarged with the row above and below it."""
    height, width = size
    dtype = torch.uint8 if maps.shape[1] <= BYTE_CLASSES else torch.uint16
    labels = maps.new_empty((maps.shape[0], height, width), dtype=dtype)
    rows = maps.shape[2]
    for first in range(0, rows, _STRIP):
        above, below = max(0, first - 1), min(rows, first + _STRIP + 1)
        strip = maps[:, :, above:below]
        whole = (strip.shape[2] * stride, strip.shape[3] * stride)
        scores = F.interpolate(strip, whole, mode="bilinear", align_corners=False)
        top, end = first * stride, min((first + _STRIP) * stride, height)
        skipped = (first - above) * stride
        part = scores[:, :, skipped : skipped + end - top, :width]
        labels[:, top:end] = part.argmax(1).to(dtype)
    return labels
