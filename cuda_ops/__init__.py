"""Deformable operators with their own kernels, for torch >= 2.10."""

from cuda_ops.deform_conv2d import deform_conv2d
from cuda_ops.deform_roi_pool import deform_roi_pool, ps_deform_roi_pool
from cuda_ops.layers import DeformConv2d, DeformRoIPool, ModulatedDeformConv2d
from cuda_ops.library import backend
from cuda_ops.poolers import MultiScaleDeformRoIPool, MultiScaleRoIPool
from cuda_ops.rfcn import AverageVote, PSDeformRoIPool, RFCNPool, RFCNPredictor

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
