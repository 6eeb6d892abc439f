"""Deformable operators with their own kernels, for torch >= 2.10."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cuda_ops.deform_conv2d import deform_conv2d
from cuda_ops.deform_roi_pool import deform_roi_pool, ps_deform_roi_pool
from cuda_ops.layers import DeformConv2d, DeformRoIPool, ModulatedDeformConv2d
from cuda_ops.library import backend

if TYPE_CHECKING:
    from cuda_ops.poolers import MultiScaleDeformRoIPool, MultiScaleRoIPool
    from cuda_ops.rfcn import AverageVote, PSDeformRoIPool, RFCNPool, RFCNPredictor

# Parts for torchvision's detectors, imported when first asked for: all else does without it.
_HOMES = {
    "AverageVote": "cuda_ops.rfcn",
    "MultiScaleDeformRoIPool": "cuda_ops.poolers",
    "MultiScaleRoIPool": "cuda_ops.poolers",
    "PSDeformRoIPool": "cuda_ops.rfcn",
    "RFCNPool": "cuda_ops.rfcn",
    "RFCNPredictor": "cuda_ops.rfcn",
}

__all__ = [
    "AverageVote",
    "DeformConv2d",
    "DeformRoIPool",
    "ModulatedDeformConv2d",
    "MultiScaleDeformRoIPool",
    "MultiScaleRoIPool",
    "PSDeformRoIPool",
    "RFCNPool",
    "RFCNPredictor",
    "backend",
    "deform_conv2d",
    "deform_roi_pool",
    "ps_deform_roi_pool",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
