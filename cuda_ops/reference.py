"""The operators in plain differentiable torch: the definition that the kernels must match.

Slow and hungry for memory (the convolution holds all C*T*P*Q samples), and therefore easy to trust.
Sources: Dai et al., "Deformable Convolutional Networks", ICCV 2017, equations 2-4 (convolution
v1), 5-6 (RoI pooling), 7-8 (position-sensitive); Zhu et al., "Deformable ConvNets v2", CVPR 2019,
equation 1 (the modulation mask).
"""

from __future__ import annotations

import torch
from torch import Tensor

from cuda_ops.arguments import pair


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
    y, x = sample_coordinates(offset, (kh, kw), pair(stride), pair(padding), pair(dilation))
    columns = bilinear_sample(input, y, x)
    if mask is not None:
        offset_groups = y.shape[1]
        modulation = mask.reshape(n, offset_groups, 1, taps, *y.shape[3:])
        columns = columns.reshape(n, offset_groups, -1, taps, *y.shape[3:]) * modulation
    columns = columns.reshape(n, groups, inputs * taps, -1)
    kernels = weight.reshape(groups, out_channels // groups, inputs * taps)
    output = (kernels @ columns).reshape(n, out_channels, *y.shape[3:])
    return output if bias is None else output + bias[:, None, None]


def deform_roi_pool(
    input: Tensor,  # [N, C, H, W]
    rois: Tensor,  # [R, 5]
    offset: Tensor | None,  # [R, 2, ph, pw], x first
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    gamma: float = 0.1,
) -> Tensor:  # [R, C, ph, pw]
    """Computes `cuda_ops.deform_roi_pool` as a product of two weights, of rows and of columns."""
    bins = pair(output_size)
    corners = rois.detach()[:, 1:] * spatial_scale - 0.5
    start, size = corners[:, :2], corners[:, 2:] - corners[:, :2]
    if offset is None:
        offset = input.new_zeros(len(rois), 2, *bins)
    images, shifts = input[:, :, None], gamma * offset[:, None]
    return _pool(images, rois, start, size, shifts, 1, sampling_ratio, False)


def ps_deform_roi_pool(
    input: Tensor,  # [N, output_channels * group_size**2, H, W]
    rois: Tensor,  # [R, 5]
    trans: Tensor | None,  # [R, 2*K, part_size, part_size], x first
    spatial_scale: float,
    output_channels: int,
    group_size: int,
    pooled_size: int,
    part_size: int,
    sample_per_part: int,
    trans_std: float = 0.1,
) -> Tensor:  # [R, output_channels, pooled_size, pooled_size]
    """Computes `cuda_ops.ps_deform_roi_pool` as a product of two weights, of rows and columns."""
    corners = (rois.detach()[:, 1:] + 0.5).floor()
    start = corners[:, :2] * spatial_scale - 0.5
    size = (corners[:, 2:] + 1) * spatial_scale - 0.5 - start
    size = torch.where(size.isfinite(), size.clamp(min=0.1), size)
    if trans is None:
        trans = input.new_zeros(len(rois), 2, part_size, part_size)
    part = torch.arange(pooled_size, device=input.device) * part_size // pooled_size
    classes = trans.shape[1] // 2
    by_class = trans.reshape(len(rois), classes, 2, part_size, part_size)
    shifts = trans_std * by_class[..., part[:, None], part]
    images = input.reshape(len(input), output_channels, group_size**2, *input.shape[2:])
    return _pool(images, rois, start, size, shifts, group_size, sample_per_part, True)


def _pool(
    images: Tensor,  # [N, O, cells, H, W]
    rois: Tensor,  # [R, 5]
    start: Tensor,  # [R, 2], (x, y) in feature pixels
    size: Tensor,  # [R, 2], (width, height)
    shifts: Tensor,  # [R, K, 2, ph, pw], (x, y) in parts of the size
    group: int,  # cells along a side
    samples: int,  # along an axis of a bin; 0: one a pixel or denser
    position_sensitive: bool,
) -> Tensor:  # [R, O, ph, pw]
    ph, pw = shifts.shape[3:]
    pooled = [images.new_zeros(0, images.shape[1], ph, pw) * (images.sum() + shifts.sum())]
    row, column = (torch.arange(n, device=images.device) for n in (ph, pw))
    cells = (row * group // ph)[:, None] * group + column * group // pw
    index = rois[:, 0].detach()
    named = (index >= 0) & (index < len(images))
    finite = start.isfinite().all(1) & size.isfinite().all(1)
    # NaN samples lie nowhere and give nothing; the result becomes NaN below.
    start = torch.where((named & finite)[:, None], start, float("nan"))
    index = torch.where(named, index, 0.0).long()
    options = (samples, position_sensitive)
    for r in range(len(rois)):
        axes, shift = (start[r], size[r]), shifts[r]
        y, count_y, lost_y = _line(axes, 1, shift, row[:, None], ph, images.shape[3], *options)
        x, count_x, lost_x = _line(axes, 0, shift, column, pw, images.shape[4], *options)
        image = images[index[r]]
        image = image.reshape(len(shift), -1, *image.shape[1:])  # [K, O/K, cells, H, W]
        total = image.new_zeros(*image.shape[:2], ph, pw)
        for cell in range(group**2):
            at = cells == cell
            total[:, :, at] = torch.einsum(
                "kbh,kbw,kohw->kob", y[:, at], x[:, at], image[:, :, cell]
            )
        mean = total / (count_y * count_x).clamp(min=1)[:, None]
        poison = torch.where(lost_y | lost_x, float("nan"), 0.0)
        poison = poison * torch.where(shift.isinf(), 0.0, shift).sum(1)
        pooled.append((mean + poison[:, None]).reshape(1, -1, ph, pw))
    return torch.cat(pooled)


def _line(
    axes: tuple[Tensor, Tensor],  # start and size, [2] each, (x, y)
    axis: int,  # 0: x, 1: y
    shift: Tensor,  # [K, 2, ph, pw]
    number: Tensor,  # of each bin along the axis, broadcasts to [ph, pw]
    bins: int,
    pixels: int,
    samples: int,
    position_sensitive: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums each bin's bilinear weights along one axis.

    Returns the weights of all pixels, [K, ph, pw, pixels], the number of samples that count and
    whether the bin has a NaN coordinate, both [K, ph, pw].
    """
    start, size = axes[0][axis], axes[1][axis]
    length = size / bins
    if samples == 0:
        samples = int(length.nan_to_num().clamp(0, 4096).ceil())
    phase, margin = (0.0, 0.5) if position_sensitive else (0.5, 1.0)
    steps = torch.arange(samples, dtype=size.dtype, device=size.device) + phase
    origin = start + shift[:, axis] * size + number * length
    position = origin[..., None] + steps * length / max(samples, 1)
    inside = (position >= -margin) & (position <= pixels - 1 + margin)
    clamped = torch.where(inside, position, 0.0).clamp(0, pixels - 1)
    low = clamped.detach().floor()
    fraction = clamped - low
    weights = position.new_zeros(*origin.shape, pixels)
    for pixel, weight in ((low, 1 - fraction), (low + 1, fraction)):
        to = pixel.long().clamp(max=pixels - 1)
        weights = weights.scatter_add(-1, to, torch.where(inside, weight, 0.0))
    counts = inside if position_sensitive else torch.ones_like(inside)
    return weights, counts.sum(-1), origin.isnan()
