"""Deformable operators with their own kernels, for torch >= 2.10."""

from cuda_ops.deform_conv2d import deform_conv2d
from cuda_ops.deform_roi_pool import deform_roi_pool, ps_deform_roi_pool
from cuda_ops.layers import DeformConv2d, DeformRoIPool, ModulatedDeformConv2d
from cuda_ops.library import backend

__all__ = [
    "DeformConv2d",
    "DeformRoIPool",
    "ModulatedDeformConv2d",
    "backend",
    "deform_conv2d",
    "deform_roi_pool",
    "ps_deform_roi_pool",
]
