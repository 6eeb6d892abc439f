"""Deformable convolution v1 and v2: the public function and the operator's Python faces.

The sampling rule, layouts and gradients are those of `torchvision.ops.deform_conv2d`; the rules
that torchvision leaves open (NaN, infinities, mixed precision) are stated at `deform_conv2d`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cuda_ops import library
from cuda_ops.autodiff import refuse_forward_mode
from cuda_ops.packing import WeightPacking

Pair = tuple[int, int]


def deform_conv2d(
    input: Tensor,  # [N, C, H, W]
    offset: Tensor,  # [N, 2*G*T, P, Q]: per group and tap (dy, dx), pixels
    weight: Tensor,  # [O, C/groups, kh, kw]
    bias: Tensor | None = None,  # [O]
    stride: int | Pair = 1,
    padding: int | Pair = 0,
    dilation: int | Pair = 1,
    mask: Tensor | None = None,  # [N, G*T, P, Q]; None: v1, all ones
    *,
    packing: WeightPacking | None = None,  # spares inference on CPU the packing of the weight
) -> Tensor:  # [N, O, P, Q]
    """Convolves with taps that are displaced by offsets and, in v2, scaled by a mask.

    Output pixel (p, q) samples tap (i, j) at y = p*stride - padding + i*dilation + dy, x alike, by
    bilinear interpolation of the image padded with one ring of zeros. T = kh*kw taps are row-major;
    G offset groups split the channels and need not nest with the weight's groups. Dai et al., ICCV
    2017, equations 2-4; Zhu et al., CVPR 2019, equation 1.

    float64 computes in float64; float32, bfloat16 and float16 compute in float32. On CUDA the
    samples are rounded to the input's dtype before the product, which follows torch's own settings
    (tf32, reduced precision). Offset and mask may keep float32 beside an input of lower precision,
    and do under autocast. Channels-last input gives channels-last output. A sample at an infinite
    coordinate counts as masked out; at a NaN coordinate it makes what it feeds NaN.

    Raises:
        TypeError: if the dtypes do not go together.
        ValueError: if the shapes do not fit, naming the argument, the rule and the value.
    """
    pairs = tuple(
        _pair(name, value, least)
        for name, value, least in (
            ("stride", stride, 1),
            ("padding", padding, 0),
            ("dilation", dilation, 1),
        )
    )
    groups, offset_groups = _check(input, offset, weight, bias, mask, *pairs)
    if library.has_kernel("deform_conv2d", input.device.type):
        geometry = (*pairs, groups, offset_groups)
        return _by_kernels(input, offset, weight, bias, mask, geometry, packing)
    library.warn_fallback("deform_conv2d", input.device.type)
    return _by_torchvision(input, offset, weight, bias, mask, *pairs)


def _by_kernels(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    geometry: tuple[Any, ...],
    packing: WeightPacking | None,
) -> Tensor:
    operands = (input, offset, weight, bias, mask)
    refuse_forward_mode("deform_conv2d", *operands)
    result: Tensor
    if packing is not None:
        with packing.lend(input, weight, geometry[-2], offset, bias, mask) as memory:
            if memory is not None:
                result = torch.ops.segdeform.deform_conv2d_packed(*operands, memory, *geometry)
                return result
    result = torch.ops.segdeform.deform_conv2d(*operands, *geometry)
    return result


def _pair(name: str, value: int | Pair, least: int) -> Pair:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or any(v < least for v in pair):
        raise ValueError(f"{name} must be one or two integers >= {least}, not {value}")
    return (pair[0], pair[1])


def _check(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> tuple[int, int]:
    """Returns (groups, offset groups), or raises what `deform_conv2d` promises."""
    for name, tensor in (("input", input), ("offset", offset), ("weight", weight)):
        if tensor.dim() != 4:
            raise ValueError(f"{name} must have 4 dimensions, not {tensor.dim()}")
    same = input.is_floating_point() and weight.dtype == input.dtype
    if not same and not torch.is_autocast_enabled(input.device.type):
        raise TypeError(
            f"input and weight must share a floating dtype, not {input.dtype} and {weight.dtype}"
        )
    n, c, *size = input.shape
    out_channels, inputs, kh, kw = weight.shape
    if inputs == 0 or c % inputs:
        raise ValueError(f"weight takes {inputs} channels a group, which does not divide C = {c}")
    groups = c // inputs
    if out_channels == 0 or out_channels % groups:
        raise ValueError(f"weight's {out_channels} outputs are not divisible by {groups} groups")
    if offset.shape[1] == 0 or offset.shape[1] % (2 * kh * kw):
        raise ValueError(
            f"offset has {offset.shape[1]} channels, not a multiple of 2*kh*kw = {2 * kh * kw}"
        )
    offset_groups = offset.shape[1] // (2 * kh * kw)
    if c % offset_groups:
        raise ValueError(f"offset's {offset_groups} groups do not divide C = {c}")
    out = [
        (size[i] + 2 * padding[i] - (dilation[i] * ((kh, kw)[i] - 1) + 1)) // stride[i] + 1
        for i in range(2)
    ]
    if min(out) < 1:
        raise ValueError(f"the output would be {out[0]}x{out[1]}: the kernel exceeds the input")
    _check_shape("offset", offset, (n, offset.shape[1], *out))
    _check_shape("mask", mask, (n, offset_groups * kh * kw, *out))
    _check_shape("bias", bias, (out_channels,))
    return groups, offset_groups


def _check_shape(name: str, tensor: Tensor | None, shape: tuple[int, ...]) -> None:
    if tensor is not None and tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, not {tuple(tensor.shape)}")


def _by_torchvision(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> Tensor:
    """Computes with torchvision's operator, which a NaN coordinate would crash on CPU.

    Such samples move out of the image, and the output pixels that they feed become NaN. Those pass
    NaN gradients to all taps of theirs: louder than the native kernels, which name the very tap.
    """
    import torchvision  # only here: the kernels do without

    device = input.device.type
    kind = torch.promote_types(input.dtype, torch.float32)  # so that offsets keep their precision
    lost = offset.isnan()
    with torch.autocast(device, enabled=False):
        output = torchvision.ops.deform_conv2d(
            input.to(kind),
            torch.where(lost, 1e8, offset).to(kind),
            weight.to(kind),
            None if bias is None else bias.to(kind),
            stride,
            padding,
            dilation,
            None if mask is None else mask.to(kind),
        )
        output = output * torch.where(lost.any(1, keepdim=True), float("nan"), 1.0).to(kind)
    low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else input.dtype
    result: Tensor = output if kind == torch.float64 else output.to(low)
    return result


# ---- faces of the native operator: fake, autograd, autocast ----


def _is_channels_last(t: Tensor) -> bool:
    return t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()


def _format_of(t: Tensor) -> torch.memory_format:
    return torch.channels_last if _is_channels_last(t) else torch.contiguous_format


def _fake(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    offset_groups: int,
) -> Tensor:
    size = (input.shape[0], weight.shape[0], offset.shape[2], offset.shape[3])
    return torch.empty(
        size, dtype=input.dtype, device=input.device, memory_format=_format_of(input)
    )


def _fake_packed(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    packing: Tensor,
    *geometry: Any,
) -> Tensor:
    return _fake(input, offset, weight, bias, mask, *geometry)


def _fake_backward(
    grad: Tensor,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    offset_groups: int,
    need_input: bool,
    need_offset: bool,
    need_weight: bool,
    need_bias: bool,
    need_mask: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    def like(needed: bool, t: Tensor, shape: torch.Size) -> Tensor:
        return t.new_empty(shape if needed else (0,))

    grad_input = like(need_input, input, input.shape)
    if need_input:
        grad_input = torch.empty_like(grad_input, memory_format=_format_of(input))
    return (
        grad_input,
        like(need_offset, offset, offset.shape),
        like(need_weight, weight, weight.shape),
        like(need_bias, weight, weight.shape[:1]),
        offset.new_empty(0) if mask is None else like(need_mask, mask, mask.shape),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, offset, weight, _, mask, *geometry = inputs
    ctx.save_for_backward(input, offset, weight, mask)
    ctx.geometry = geometry


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    input, offset, weight, mask = ctx.saved_tensors
    need = ctx.needs_input_grad[:5]  # input, offset, weight, bias, mask
    grads = torch.ops.segdeform.deform_conv2d_backward(
        grad, input, offset, weight, mask, *ctx.geometry, *need
    )
    wanted = [g if needed else None for g, needed in zip(grads, need, strict=True)]
    return (*wanted, *[None] * len(ctx.geometry))


def _no_double_backward(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError(
        "deform_conv2d has no second derivative; cuda_ops.reference.deform_conv2d has one"
    )


def _autocast(operator: str, device: str) -> Any:
    """Image and weight go to the autocast dtype; offset and mask stay float32: they hold pixels."""

    def call(
        input: Tensor,
        offset: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        mask: Tensor | None,
        *rest: Any,
    ) -> Tensor:
        low = torch.get_autocast_dtype(device)

        def at_least_float(t: Tensor | None) -> Tensor | None:
            return t if t is None or t.dtype == torch.float64 else t.float()

        def lowered(t: Tensor | None) -> Tensor | None:
            return t if t is None or t.dtype == torch.float64 else t.to(low)

        with torch.autocast(device, enabled=False):
            result: Tensor = getattr(torch.ops.segdeform, operator)(
                lowered(input),
                at_least_float(offset),
                lowered(weight),
                lowered(bias),
                at_least_float(mask),
                *rest,
            )
        return result

    return call


if library.cpu_library.loaded:
    _autocast_rules = torch.library.Library("segdeform", "IMPL")  # type: ignore[no-untyped-call]
    for _device, _key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
        for _operator in ("deform_conv2d", "deform_conv2d_packed"):
            _rule = _autocast(_operator, _device)
            _autocast_rules.impl(_operator, _rule, _key)  # type: ignore[no-untyped-call]
    torch.library.register_fake("segdeform::deform_conv2d", _fake)
    torch.library.register_fake("segdeform::deform_conv2d_packed", _fake_packed)
    torch.library.register_fake("segdeform::deform_conv2d_backward", _fake_backward)
    torch.library.register_autograd(
        "segdeform::deform_conv2d", _backward, setup_context=_setup_context
    )
    torch.library.register_autograd("segdeform::deform_conv2d_backward", _no_double_backward)
