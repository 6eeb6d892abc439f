"""Deformable RoI pooling, plain and position-sensitive: public functions and Python faces.

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

from cuda_ops import library, reference
from cuda_ops.autodiff import refuse_forward_mode

Pair = tuple[int, int]

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
        ValueError: if a shape or number does not fit, or, on CPU and outside of torch.compile, a
            RoI names no image. Elsewhere such a RoI gives NaN.
    """
    size = _pair("output_size", output_size)
    _check_number("sampling_ratio", sampling_ratio, 0, MAX_SAMPLES)
    _check_numbers(spatial_scale=spatial_scale, gamma=gamma)
    _check_tensors(input, rois, "offset", offset)
    if offset is not None and tuple(offset.shape) != (len(rois), 2, *size):
        expected = (len(rois), 2, *size)
        raise ValueError(f"offset must have shape {expected}, not {tuple(offset.shape)}")
    numbers = (size, float(spatial_scale), sampling_ratio, float(gamma))
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
        _check_trans(trans, len(rois), output_channels, part_size)
    numbers = (float(spatial_scale), *sizes.values(), sample_per_part, float(trans_std))
    return _serve("ps_deform_roi_pool", input, rois, trans, *numbers)


def _pair(name: str, value: int | Pair) -> Pair:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or any(v < 1 for v in pair):
        raise ValueError(f"{name} must be one or two integers >= 1, not {value}")
    return (pair[0], pair[1])


def _check_number(name: str, value: int, least: int, most: int | None = None) -> None:
    if value < least or (most is not None and value > most):
        rule = f">= {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be an integer {rule}, not {value}")


def _check_numbers(**numbers: float) -> None:
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, not {value}")


def _check_tensors(input: Tensor, rois: Tensor, shifts_name: str, shifts: Tensor | None) -> None:
    for name, tensor in (("input", input), ("rois", rois), (shifts_name, shifts)):
        if tensor is not None and not tensor.is_floating_point():
            raise TypeError(f"{name} must have a floating dtype, not {tensor.dtype}")
        if tensor is not None and tensor.device != input.device:
            raise ValueError(f"{name} must be on {input.device} as input is, not {tensor.device}")
    if input.dim() != 4 or 0 in input.shape[1:]:
        raise ValueError(f"input must be [N, C, H, W] and not empty, not {tuple(input.shape)}")
    if rois.dim() != 2 or rois.shape[1] != 5:
        raise ValueError(f"rois must have shape [R, 5], not {tuple(rois.shape)}")
    if len(rois) and not len(input):
        raise ValueError(f"rois names images of an empty batch: {len(rois)} RoIs, N = 0")
    if rois.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_images(rois[:, 0].detach(), len(input))


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
        result: Tensor = getattr(torch.ops.segdeform, name)(input, rois, shifts, *numbers)
        return result
    library.warn_fallback(name, device)
    kind = torch.promote_types(input.dtype, torch.float32)
    definition: Callable[..., Tensor] = getattr(reference, name)
    with torch.autocast(device, enabled=False):
        operands = [t if t is None else t.to(kind) for t in (input, rois, shifts)]
        output = definition(*operands, *numbers)
    low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else input.dtype
    return output.to(kind if kind == torch.float64 else low, memory_format=_format_of(input))


# ---- faces of the native operators: fake, autograd, autocast; the same rules for both ----


def _empty(like: Tensor, *size: int) -> Tensor:
    return like.new_empty(size).to(memory_format=_format_of(like))


def _format_of(t: Tensor) -> torch.memory_format:
    last = t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _fake(
    input: Tensor,
    rois: Tensor,
    offset: Tensor | None,
    output_size: Pair,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> Tensor:
    return _empty(input, rois.shape[0], input.shape[1], *output_size)


def _fake_ps(
    input: Tensor,
    rois: Tensor,
    trans: Tensor | None,
    spatial_scale: float,
    output_channels: int,
    group_size: int,
    pooled_size: int,
    *samples: Any,
) -> Tensor:
    return _empty(input, rois.shape[0], output_channels, pooled_size, pooled_size)


def _fake_backward(
    grad: Tensor, input: Tensor, rois: Tensor, shifts: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor]:
    need_input, need_shifts = rest[-2:]
    grad_input = _empty(input, *input.shape) if need_input else input.new_empty(0)
    if shifts is None:
        return grad_input, rois.new_empty(0)
    return grad_input, shifts.new_empty(shifts.shape if need_shifts else (0,))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])  # input, rois, shifts
    ctx.numbers = inputs[3:]


def _backward_of(name: str) -> Callable[..., tuple[Tensor | None, ...]]:
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        need_input, _, need_shifts = ctx.needs_input_grad[:3]
        operator = getattr(torch.ops.segdeform, f"{name}_backward")
        grad_input, grad_shifts = operator(
            grad, *ctx.saved_tensors, *ctx.numbers, need_input, need_shifts
        )
        wanted = (grad_input if need_input else None, None, grad_shifts if need_shifts else None)
        return (*wanted, *[None] * len(ctx.numbers))

    return backward


def _refusal_of(name: str) -> Callable[..., None]:
    def refuse(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(f"{name} has no second derivative; cuda_ops.reference.{name} has one")

    return refuse


def _autocast(name: str, device: str) -> Callable[..., Tensor]:
    """The image goes to the autocast dtype; RoIs and shifts stay float32: they hold positions."""

    def call(input: Tensor, rois: Tensor, shifts: Tensor | None, *numbers: Any) -> Tensor:
        def at_least_float(t: Tensor | None) -> Tensor | None:
            return t if t is None or t.dtype == torch.float64 else t.float()

        low = input.dtype if input.dtype == torch.float64 else torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            result: Tensor = getattr(torch.ops.segdeform, name)(
                input.to(low), at_least_float(rois), at_least_float(shifts), *numbers
            )
        return result

    return call


_FAKES: dict[str, Callable[..., Tensor]] = {
    "deform_roi_pool": _fake,
    "ps_deform_roi_pool": _fake_ps,
}

if all(library.has_kernel(name, "cpu") for name in _FAKES):
    _autocast_rules = torch.library.Library("segdeform", "IMPL")  # type: ignore[no-untyped-call]
    for _name, _output in _FAKES.items():
        for _device, _key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
            _autocast_rules.impl(_name, _autocast(_name, _device), _key)  # type: ignore[no-untyped-call]
        torch.library.register_fake(f"segdeform::{_name}", _output)
        torch.library.register_fake(f"segdeform::{_name}_backward", _fake_backward)
        torch.library.register_autograd(
            f"segdeform::{_name}", _backward_of(_name), setup_context=_setup_context
        )
        torch.library.register_autograd(f"segdeform::{_name}_backward", _refusal_of(_name))
