"""Deformable operators with their own kernels, for torch >= 2.10."""

from cuda_ops.deform_conv2d import deform_conv2d
from cuda_ops.deform_roi_pool import deform_roi_pool, ps_deform_roi_pool
from cuda_ops.library import backend

__all__ = ["backend", "deform_conv2d", "deform_roi_pool", "ps_deform_roi_pool"]
