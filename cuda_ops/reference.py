"""Deformable convolution in plain differentiable torch: the definition that the kernels must match.

Slow and hungry for memory (it holds all C*T*P*Q samples), and therefore easy to trust. Sources:
Dai et al., "Deformable Convolutional Networks", ICCV 2017, equations 2-4 (v1); Zhu et al.,
"Deformable ConvNets v2", CVPR 2019, equation 1 (the modulation mask).
"""

from __future__ import annotations

import torch
from torch import Tensor


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def sample_coordinates(
    offset: Tensor,  # [N, 2*G*T, P, Q], (dy, dx) interleaved
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Computes where each tap samples: y and x, each [N, G, T, P, Q], pixels of the input."""
    n, channels, p, q = offset.shape
    taps = kernel_size[0] * kernel_size[1]
    shifts = offset.reshape(n, channels // (2 * taps), taps, 2, p, q)

    def grid(axis: int, size: int) -> Tensor:
        return torch.arange(size, device=offset.device) * stride[axis] - padding[axis]

    tap_y = torch.arange(kernel_size[0], device=offset.device) * dilation[0]
    tap_x = torch.arange(kernel_size[1], device=offset.device) * dilation[1]
    base_y = tap_y.repeat_interleave(kernel_size[1])[:, None, None] + grid(0, p)[None, :, None]
    base_x = tap_x.repeat(kernel_size[0])[:, None, None] + grid(1, q)[None, None, :]
    return base_y + shifts[:, :, :, 0], base_x + shifts[:, :, :, 1]


def bilinear_sample(
    input: Tensor,  # [N, C, H, W]
    y: Tensor,  # [N, G, T, P, Q], pixels
    x: Tensor,  # [N, G, T, P, Q], pixels
) -> Tensor:  # [N, C, T, P, Q]
    """Samples each channel at its offset group's points; zero outside the image.

    A corner outside the image is skipped. A NaN coordinate gives a NaN sample. The image is finite:
    at exactly -1 a corner of weight 0 counts, as the one-sided derivative there needs it.
    """
    n, c, height, width = input.shape
    groups = y.shape[1]
    nan = y.isnan() | x.isnan()
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    # Not selected means constant: the derivative is 0 outside the closed interval.
    safe_y, safe_x = torch.where(inside, y, -2.0), torch.where(inside, x, -2.0)
    y0, x0 = safe_y.detach().floor(), safe_x.detach().floor()
    ly, lx = safe_y - y0, safe_x - x0
    images = input.reshape(n, groups, c // groups, height * width)

    total = input.new_zeros(())
    for corner_y, weight_y in ((y0, 1 - ly), (y0 + 1, ly)):
        for corner_x, weight_x in ((x0, 1 - lx), (x0 + 1, lx)):
            valid = (corner_y >= 0) & (corner_y < height) & (corner_x >= 0) & (corner_x < width)
            index = torch.where(valid, corner_y * width + corner_x, 0.0).long()
            flat = index.reshape(n, groups, 1, -1).expand(-1, -1, c // groups, -1)
            values = images.gather(3, flat).reshape(n, groups, c // groups, *y.shape[2:])
            values = torch.where(valid[:, :, None], values, torch.zeros_like(values))
            total = total + values * (weight_y * weight_x)[:, :, None]
    poison = torch.where(nan, float("nan"), 0.0)
    finite_y, finite_x = (torch.where(v.isinf(), 0.0, v) for v in (y, x))
    total = total + ((finite_y + finite_x) * poison)[:, :, None]
    return total.reshape(n, c, *y.shape[2:])


def deform_conv2d(
    input: Tensor,  # [N, C, H, W]
    offset: Tensor,  # [N, 2*G*T, P, Q]
    weight: Tensor,  # [O, C/groups, kh, kw]
    bias: Tensor | None = None,  # [O]
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    mask: Tensor | None = None,  # [N, G*T, P, Q]
) -> Tensor:  # [N, O, P, Q]
    """Computes `cuda_ops.deform_conv2d` with gathers and one matrix product per group."""
    n, c = input.shape[:2]
    out_channels, inputs, kh, kw = weight.shape
    taps, groups = kh * kw, c // inputs
    y, x = sample_coordinates(offset, (kh, kw), _pair(stride), _pair(padding), _pair(dilation))
    columns = bilinear_sample(input, y, x)
    if mask is not None:
        offset_groups = y.shape[1]
        modulation = mask.reshape(n, offset_groups, 1, taps, *y.shape[3:])
        columns = columns.reshape(n, offset_groups, -1, taps, *y.shape[3:]) * modulation
    columns = columns.reshape(n, groups, inputs * taps, -1)
    kernels = weight.reshape(groups, out_channels // groups, inputs * taps)
    output = (kernels @ columns).reshape(n, out_channels, *y.shape[3:])
    return output if bias is None else output + bias[:, None, None]
