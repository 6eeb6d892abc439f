"""The numbers a network computes in: float32, or bfloat16 where that is faster."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from cuda_ops.layers import DeformConv2d
from segdeform.errors import UsageError
from segdeform.models.deeplab import DeepLab
from segdeform.models.timm_backbone import TimmBackbone

Precision = Literal["fp32", "bf16"]
Asked = Literal["auto", "fp32", "bf16"]

_AMPERE = (8, 0)  # compute capability of the first GPUs with bfloat16


def resolve_precision(asked: Asked, device: torch.device) -> Precision:
    """Returns what a network computes in on a device; `auto`: bfloat16 where that is faster.

    By the kind of processor or GPU alone, never by a measurement: another process on the same kind
    of machine, or the same one tomorrow, has to come to the same labels.

    Raises:
        UsageError: bf16 is asked of a GPU that has none.
    """
    if asked == "auto":
        return "bf16" if _is_faster_in_bf16(device) else "fp32"
    if asked == "bf16" and device.type == "cuda" and not _is_faster_in_bf16(device):
        raise UsageError(
            f"--precision bf16: {torch.cuda.get_device_name(device)} does not compute in it; "
            "use fp32"
        )
    return asked


def has_bf16(device: torch.device) -> bool:
    """Tells whether a device has instructions for bfloat16; on processors they may be slow."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= _AMPERE
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _is_faster_in_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= _AMPERE
    # Instructions for it are not enough: with those of AVX-512 the networks here took 1.4 to 1.6
    # times as long as in float32. Tiles (AMX) are units of their own for such products.
    return device.type == "cpu" and torch.cpu._is_amx_tile_supported()


def compute_in(model: DeepLab, precision: Precision) -> None:
    """Has a network compute in a precision, in place; its scores are float32 in any case.

    In bf16 the weights of convolutions are rounded once. What predicts the positions of deformable
    ones stays in float32, where half the digits would be off by up to a pixel, and so do norms.
    """
    if precision == "fp32":
        return
    model.features_dtype = torch.bfloat16
    positions = {layer.offset_conv for layer in model.modules() if isinstance(layer, DeformConv2d)}
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear | DeformConv2d) and layer not in positions:
            layer.weight = _rounded(layer.weight)
            layer.bias = None if layer.bias is None else _rounded(layer.bias)
    if isinstance(model.backbone, TimmBackbone):
        _round_rest(model.backbone, positions)


def _round_rest(backbone: TimmBackbone, positions: set[nn.Conv2d]) -> None:
    """Rounds what else maps are multiplied with: scales of layers, norms over channels, blurs.

    In float32 they would make float32 of the maps, which the next convolution does not take.
    """
    for layer in backbone.modules():
        if layer in positions or isinstance(layer, nn.BatchNorm2d):
            continue
        for name, parameter in layer._parameters.items():
            if parameter is not None and parameter.dtype == torch.float32:
                layer._parameters[name] = _rounded(parameter)
        for name, buffer in layer._buffers.items():
            if buffer is not None and buffer.dtype == torch.float32:
                layer._buffers[name] = buffer.to(torch.bfloat16)


def _rounded(parameter: Tensor) -> nn.Parameter:
    return nn.Parameter(parameter.detach().to(torch.bfloat16), requires_grad=False)
