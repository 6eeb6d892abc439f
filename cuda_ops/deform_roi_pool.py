"""Deformable RoI pooling, plain and position-sensitive: the public functions, and what they call.

Sources: Dai et al., "Deformable Convolutional Networks", ICCV 2017, equations 5 and 6 (RoI
pooling) and 7 and 8 (position-sensitive), there with RoIAlign's bilinear samples (He et al.,
"Mask R-CNN", ICCV 2017) in place of rounded bins.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cuda_ops import faces, library, reference
from cuda_ops.arguments import Pair, check_shape, check_tensors, pair
from cuda_ops.surroundings import (
    as_autocast,
    autocast_dtype,
    refuse_forward_mode,
    values_at_hand,
    without_autocast,
)

MAX_SAMPLES = 4096  # along one axis of one bin


def deform_roi_pool(
    input: Tensor,  # [N, C, H, W]
    rois: Tensor,  # [R, 5]: image index, x1, y1, x2, y2 in image pixels
    offset: Tensor | None,  # [R, 2, ph, pw]: (dx, dy) in parts of the RoI's width and height
    output_size: int | Pair,  # (ph, pw)
    spatial_scale: float = 1.0,  # feature pixels per image pixel
    sampling_ratio: int = 0,
    gamma: float = 0.1,
) -> Tensor:  # [R, C, ph, pw]
    """Averages each bin of a RoI after moving it by gamma * (dx * width, dy * height).

    Without offset it is `torchvision.ops.roi_align(aligned=True)`: a RoI starts at
    x1 * spatial_scale - 0.5, nothing is rounded, and a bin averages a grid of bilinear samples.
    The grid has sampling_ratio samples along an axis or, if that is 0, ceil(RoI size / bins) and at
    most 4096 (a bin of no or negative size has none and gives 0). A sample beyond -1 or H (W) is 0
    but counts; elsewhere its coordinate is clamped into the image, and where it is clamped the
    offset's derivative is 0. Dai et al., ICCV 2017, equations 5 and 6.

    A RoI with a NaN or infinite value, and a bin with a NaN offset, gives NaN and passes no
    gradient to the input; an infinite offset moves its bin out of the image. `rois` gets no
    gradient. float64 computes in float64; float32, bfloat16 and float16 compute in float32. RoIs
    and offset may keep float32 beside an input of lower precision, and do under autocast.

    Raises:
        TypeError: if a tensor does not hold floating-point numbers.
        ValueError: if a shape, device or number does not fit, or a RoI names no image. The last is
            seen on CPU and where nothing traces or transforms the call; elsewhere it gives NaN.
    """
    size = pair(output_size, "output_size", 1)
    _check_number("sampling_ratio", sampling_ratio, 0, MAX_SAMPLES)
    _check_numbers(spatial_scale=spatial_scale, gamma=gamma)
    _check_tensors(input, rois, "offset", offset)
    check_shape("offset", offset, (rois.shape[0], 2, *size))
    numbers = (size, _float(spatial_scale), sampling_ratio, _float(gamma))
    return _serve("deform_roi_pool", input, rois, offset, *numbers)


def ps_deform_roi_pool(
    input: Tensor,  # [N, output_channels * group_size**2, H, W]
    rois: Tensor,  # [R, 5]: image index, x1, y1, x2, y2 in image pixels
    trans: Tensor | None,  # [R, 2*K, part_size, part_size]: (dx, dy) of K classes by turns
    spatial_scale: float,  # feature pixels per image pixel
    output_channels: int,
    group_size: int,
    pooled_size: int,
    part_size: int,
    sample_per_part: int,
    trans_std: float = 0.1,
) -> Tensor:  # [R, output_channels, pooled_size, pooled_size]
    """Averages each bin of a RoI in channels of its own, after moving it by trans_std * trans.

    Bin (i, j) of channel c reads input channel (c * group_size + gh) * group_size + gw, where
    gh = i * group_size // pooled_size and gw alike. It is moved by the part of trans that it lies
    in (part_size instead of group_size), times trans_std and the RoI's size; channel c follows
    class c // (output_channels / K). RoIs are rounded to whole image pixels (x.5 upwards), both
    ends inclusive, and at least 0.1 feature pixels large. A bin has sample_per_part samples along
    an axis, the first one in its corner. Samples beyond -0.5 or H - 0.5 (W - 0.5) are left out of
    the mean, the others clamped into the image; a bin without samples is 0. Dai et al., "R-FCN",
    NIPS 2016, equation 1, and "Deformable Convolutional Networks", ICCV 2017, equations 7 and 8.

    Everything else, errors too, is as in `deform_roi_pool`.
    """
    sizes = {
        "output_channels": output_channels,
        "group_size": group_size,
        "pooled_size": pooled_size,
        "part_size": part_size,
    }
    for name, value in sizes.items():
        _check_number(name, value, 1)
    _check_number("sample_per_part", sample_per_part, 1, MAX_SAMPLES)
    _check_numbers(spatial_scale=spatial_scale, trans_std=trans_std)
    _check_tensors(input, rois, "trans", trans)
    if input.shape[1] != output_channels * group_size**2:
        raise ValueError(
            f"input must have output_channels * group_size**2 = {output_channels * group_size**2} "
            f"channels, not {input.shape[1]}"
        )
    if trans is not None:
        _check_trans(trans, rois.shape[0], output_channels, part_size)
    numbers = (_float(spatial_scale), *sizes.values(), sample_per_part, _float(trans_std))
    return _serve("ps_deform_roi_pool", input, rois, trans, *numbers)


def _check_number(name: str, value: int, least: int, most: int | None = None) -> None:
    if value < least or (most is not None and value > most):
        rule = f">= {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be an integer {rule}, not {value}")


def _check_numbers(**numbers: float) -> None:
    if torch.compiler.is_compiling():  # which may not know the value; NaN comes of a wrong one
        return
    for name, value in numbers.items():
        if not isinstance(value, torch.SymFloat) and not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, not {value}")


def _float(value: float) -> float:
    """Takes numbers of other libraries too; a symbolic one stays what it is."""
    return value if isinstance(value, torch.SymFloat) else float(value)


def _check_tensors(input: Tensor, rois: Tensor, shifts_name: str, shifts: Tensor | None) -> None:
    check_tensors(input, {"rois": rois, shifts_name: shifts})
    if input.dim() != 4 or 0 in input.shape[1:]:
        raise ValueError(f"input must be [N, C, H, W] and not empty, not {tuple(input.shape)}")
    if rois.dim() != 2 or rois.shape[1] != 5:
        raise ValueError(f"rois must have shape [R, 5], not {tuple(rois.shape)}")
    # In this order: a compiler knows the images, but perhaps not how many RoIs there will be.
    if input.shape[0] == 0 and rois.shape[0] > 0:
        raise ValueError(f"rois names images of an empty batch: {rois.shape[0]} RoIs, N = 0")
    if values_at_hand(rois):
        _check_images(rois[:, 0].detach(), input.shape[0])


def _check_images(index: Tensor, images: int) -> None:
    """Non-finite RoIs are the kernel's to mark; here are those that are plainly wrong."""
    wrong = (index < 0) | (index >= images) | (index != index.floor())
    wrong &= index.isfinite()
    if wrong.any():
        first = int(wrong.nonzero()[0])
        raise ValueError(
            f"rois[{first}, 0] must be the index of one of {images} images, not {index[first]:g}"
        )


def _check_trans(trans: Tensor, rois: int, output_channels: int, part_size: int) -> None:
    shape = tuple(trans.shape)
    if len(shape) != 4 or (shape[0], *shape[2:]) != (rois, part_size, part_size):
        expected = f"({rois}, 2*K, {part_size}, {part_size})"
        raise ValueError(f"trans must have shape {expected}, not {shape}")
    classes = shape[1] // 2
    if shape[1] % 2 or classes == 0 or output_channels % classes:
        raise ValueError(
            f"trans must have 2*K channels and K must divide output_channels = {output_channels}; "
            f"it has {shape[1]}"
        )


def _serve(name: str, input: Tensor, rois: Tensor, shifts: Tensor | None, *numbers: Any) -> Tensor:
    """Calls the native operator, or the reference where there is none."""
    device = input.device.type
    if library.has_kernel(name, device):
        refuse_forward_mode(name, input, rois, shifts)
        result: Tensor = faces.call(name, input, rois, shifts, *numbers)
        return result
    library.warn_fallback(name, device)
    low = autocast_dtype(device)
    kind = torch.promote_types(input.dtype, torch.float32)
    definition: Callable[..., Tensor] = getattr(reference, name)
    with without_autocast(device):
        operands = [t if t is None else t.to(kind) for t in (input, rois, shifts)]
        output = definition(*operands, *numbers)
    return output.to(as_autocast(input, low), memory_format=faces.format_of(input))


# ---- the native operators' results without values, for their faces ----


def _output(
    input: Tensor, rois: Tensor, offset: Tensor | None, output_size: Pair, *_: float
) -> Tensor:
    return faces.empty_like_format(input, (rois.shape[0], input.shape[1], *output_size))


def _ps_output(
    input: Tensor,
    rois: Tensor,
    trans: Tensor | None,
    spatial_scale: float,
    output_channels: int,
    group_size: int,
    pooled_size: int,
    *_: float,
) -> Tensor:
    size = (rois.shape[0], output_channels, pooled_size, pooled_size)
    return faces.empty_like_format(input, size)


def _gradients(
    grad: Tensor, input: Tensor, rois: Tensor, shifts: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor]:
    need_input, need_shifts = rest[-2:]
    grad_input = faces.gradient_like(input, need_input)
    if shifts is None:
        return grad_input, rois.new_empty(0)
    return grad_input, shifts.new_empty(shifts.shape if need_shifts else 0)


for _name, _shape, _shifts in (
    ("deform_roi_pool", _output, "offset"),
    ("ps_deform_roi_pool", _ps_output, "trans"),
):
    if library.has_kernel(_name, "cpu"):
        faces.register(
            faces.Operator(
                _name,
                tensors=("input", "rois", _shifts),
                lowered=("input",),
                saved=("input", "rois", _shifts),
                wanted=("input", _shifts),
                output=_shape,
                gradients=_gradients,
            )
        )
