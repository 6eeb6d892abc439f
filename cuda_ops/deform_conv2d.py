"""Deformable convolution v1 and v2: the public function, and what it calls.

The sampling rule, layouts and gradients are those of `torchvision.ops.deform_conv2d`; the rules
that torchvision leaves open (NaN, infinities, mixed precision) are stated at `deform_conv2d`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cuda_ops import faces, library
from cuda_ops.arguments import Geometry, Pair, check_shape, check_tensors, pair
from cuda_ops.packing import WeightPacking
from cuda_ops.surroundings import (
    as_autocast,
    autocast_dtype,
    refuse_forward_mode,
    without_autocast,
)


class Operands(NamedTuple):
    """The tensors of one call, in the order of the native operator's schema."""

    input: Tensor  # [N, C, H, W]
    offset: Tensor  # [N, 2*G*T, P, Q]
    weight: Tensor  # [O, C/groups, kh, kw]
    bias: Tensor | None  # [O]
    mask: Tensor | None  # [N, G*T, P, Q]


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
    samples are rounded to the input's dtype before the product, which is a matrix product of torch:
    for float32 `torch.backends.cuda.matmul` says whether tf32 may serve (off by default), not
    `torch.backends.cudnn`, which `nn.Conv2d` follows (on by default). Offset and mask may keep
    float32 beside an input of lower precision, and do under autocast. Channels-last input gives
    channels-last output. A sample at an infinite coordinate counts as masked out; at a NaN
    coordinate it makes what it feeds NaN.

    The gradient by an offset follows the cell of pixels that the sample lies in. On a whole pixel
    it is the derivative from the right; at exactly -1, where zero offsets put the taps of a padded
    border, the one-sided derivative into the image, although the value there is 0; beyond, 0.

    Raises:
        TypeError: if a tensor is not floating-point or the dtypes do not go together.
        ValueError: if the shapes or devices do not fit, naming the argument, the rule and the
            value.
    """
    operands = Operands(input, offset, weight, bias, mask)
    geometry = _geometry(
        operands,
        pair(stride, "stride", 1),
        pair(padding, "padding", 0),
        pair(dilation, "dilation", 1),
    )
    if library.has_kernel("deform_conv2d", input.device.type):
        return _by_kernels(operands, geometry, packing)
    library.warn_fallback("deform_conv2d", input.device.type)
    return _by_torchvision(operands, geometry)


def _by_kernels(operands: Operands, geometry: Geometry, packing: WeightPacking | None) -> Tensor:
    refuse_forward_mode("deform_conv2d", *operands)
    result: Tensor
    if packing is not None and not torch.compiler.is_compiling():
        with packing.lend(operands.input, operands.weight, geometry.groups, *operands) as memory:
            if memory is not None:
                result = torch.ops.segdeform.deform_conv2d_packed(*operands, memory, *geometry)
                return result
    result = faces.call("deform_conv2d", *operands, *geometry)
    return result


def _geometry(operands: Operands, stride: Pair, padding: Pair, dilation: Pair) -> Geometry:
    """Completes the geometry by what the shapes say, or raises what `deform_conv2d` promises."""
    input, offset, weight, bias, mask = operands
    check_tensors(input, operands._asdict())
    _check_dtypes(operands)
    for name, tensor in (("input", input), ("offset", offset), ("weight", weight)):
        if tensor.dim() != 4:
            raise ValueError(f"{name} must have 4 dimensions, not {tensor.dim()}")
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
    check_shape("offset", offset, (n, offset.shape[1], *out))
    check_shape("mask", mask, (n, offset_groups * kh * kw, *out))
    check_shape("bias", bias, (out_channels,))
    return Geometry(stride, padding, dilation, groups, offset_groups)


def _check_dtypes(operands: Operands) -> None:
    """Demands one dtype of image, weight and bias, as they are or as autocast makes them."""
    low = autocast_dtype(operands.input.device.type)
    kind = as_autocast(operands.input, low)
    for name, tensor in (("weight", operands.weight), ("bias", operands.bias)):
        if tensor is not None and as_autocast(tensor, low) != kind:
            where = "" if low is None else ", which autocast does not bring together"
            raise TypeError(
                f"input and {name} must share a floating dtype, not {operands.input.dtype} and "
                f"{tensor.dtype}{where}"
            )


def _by_torchvision(operands: Operands, geometry: Geometry) -> Tensor:
    """Computes with torchvision's operator, which a NaN coordinate would crash on CPU.

    Such samples move out of the image, and the output pixels that they feed become NaN. Those pass
    NaN gradients to all taps of theirs: louder than the native kernels, which name the very tap.
    """
    import torchvision  # only here: the kernels do without

    input, offset, weight, bias, mask = operands
    device = input.device.type
    low = autocast_dtype(device)
    kind = torch.promote_types(input.dtype, torch.float32)  # so that offsets keep their precision
    lost = offset.isnan()
    with without_autocast(device):
        output = torchvision.ops.deform_conv2d(
            input.to(kind),
            torch.where(lost, 1e8, offset).to(kind),
            weight.to(kind),
            None if bias is None else bias.to(kind),
            geometry.stride,
            geometry.padding,
            geometry.dilation,
            None if mask is None else mask.to(kind),
        )
        output = output * torch.where(lost.any(1, keepdim=True), float("nan"), 1.0).to(kind)
    result: Tensor = output.to(as_autocast(input, low))
    return result


# ---- the native operator's results without values, for its faces ----


def _output(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, *_: object
) -> Tensor:
    return faces.empty_like_format(
        input, (input.shape[0], weight.shape[0], offset.shape[2], offset.shape[3])
    )


def _gradients(
    grad: Tensor, input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, *rest: bool
) -> tuple[Tensor, ...]:
    need_input, need_offset, need_weight, need_bias, need_mask = rest[-5:]
    return (
        faces.gradient_like(input, need_input),
        offset.new_empty(offset.shape if need_offset else 0),
        weight.new_empty(weight.shape if need_weight else 0),
        weight.new_empty(weight.shape[:1] if need_bias else 0),
        mask.new_empty(mask.shape) if need_mask and mask is not None else offset.new_empty(0),
    )


if library.cpu_library.loaded:
    _OPERATOR = faces.Operator(
        "deform_conv2d",
        tensors=Operands._fields,
        lowered=("input", "weight", "bias"),
        saved=("input", "offset", "weight", "mask"),
        wanted=Operands._fields,
        output=_output,
        gradients=_gradients,
    )
    faces.register(_OPERATOR)
    faces.add_fake("deform_conv2d_packed", _output)
    faces.add_autocast(_OPERATOR, "deform_conv2d_packed")
