"""Layers that predict where they sample."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cuda_ops.arguments import Pair, pair
from cuda_ops.deform_conv2d import deform_conv2d
from cuda_ops.deform_roi_pool import deform_roi_pool
from cuda_ops.packing import WeightPacking
from cuda_ops.surroundings import without_autocast

Size = int | Pair

# torch.fx (feature extractors, quantisation) records a call of these and does not look inside.
for _leaf in ("deform_conv2d", "deform_roi_pool", "predict_positions"):
    torch.fx.wrap(_leaf)


class DeformConv2d(nn.Module):
    """Convolves at positions that a second convolution predicts from the same input.

    A drop-in for `nn.Conv2d` with zero padding: `weight` and `bias` have the same names and shapes.
    `offset_conv` has the geometry of the layer itself and starts at zero, so that a fresh layer
    computes the plain convolution. Its channels: 2*G*T offsets in pixels (dy and dx of each tap by
    turns, taps row-major, within an offset group). Dai et al., "Deformable Convolutional Networks",
    ICCV 2017, equation 2.

    In evaluation mode on CPU the layer keeps its weight in the kernels' layout until `train()`; a
    weight that changes meanwhile is noticed.

    Args:
        offset_groups: G, groups of input channels with offsets of their own.
        (the rest): as in `nn.Conv2d`; (height, width) where a pair is given.

    Raises:
        ValueError: offset_groups does not divide in_channels.
    """

    maps_per_tap = 2  # channels of offset_conv per tap and offset group

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        offset_groups: int = 1,
    ) -> None:
        super().__init__()
        if offset_groups < 1 or in_channels % offset_groups:
            raise ValueError(
                f"offset_groups must divide the {in_channels} input channels, not {offset_groups}"
            )
        plain = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        )
        self.weight, self.bias = plain.weight, plain.bias
        self.kernel_size, self.stride = pair(kernel_size), pair(stride)
        self.padding, self.dilation = pair(padding), pair(dilation)
        self.groups, self.offset_groups = groups, offset_groups
        maps = self.maps_per_tap * offset_groups * self.kernel_size[0] * self.kernel_size[1]
        self.offset_conv = nn.Conv2d(in_channels, maps, kernel_size, stride, padding, dilation)
        nn.init.zeros_(self.offset_conv.weight)
        assert self.offset_conv.bias is not None
        nn.init.zeros_(self.offset_conv.bias)
        self._packing = WeightPacking()

    def sampling(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Predicts the offsets [N, 2*G*T, P, Q] in pixels, and the modulation, which v1 has not.

        float32 or better whatever the input [N, C, H, W] is: half-precision coordinates are off by
        up to a pixel.
        """
        return self._predict(x), None

    def _predict(self, x: Tensor) -> Tensor:
        conv = self.offset_conv
        assert conv.bias is not None
        return predict_positions(
            x, conv.weight, conv.bias, self.stride, self.padding, self.dilation
        )

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolves [N, C, H, W] -> [N, O, P, Q] at the predicted positions with a given weight."""
        offset, mask = self.sampling(x)
        at_work = isinstance(x, Tensor) and not self.training  # torch.fx brings stand-ins
        return deform_conv2d(
            x,
            offset,
            weight,
            bias,
            self.stride,
            self.padding,
            self.dilation,
            mask,
            packing=self._packing if at_work else None,
        )

    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W] -> [N, O, P, Q]
        return self.convolve(x, self.weight, self.bias)

    def train(self, mode: bool = True) -> DeformConv2d:
        """Sets the mode; drops what is kept for inference."""
        self._packing = WeightPacking()
        return super().train(mode)

    def extra_repr(self) -> str:
        """Describes the layer as `nn.Conv2d` does."""
        out_channels, in_channels = self.weight.shape[0], self.weight.shape[1] * self.groups
        return (
            f"{in_channels}, {out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, "
            f"bias={self.bias is not None}, offset_groups={self.offset_groups}"
        )


class ModulatedDeformConv2d(DeformConv2d):
    """Convolves at predicted positions with predicted weights of the samples (v2).

    As `DeformConv2d`; after the offsets, `offset_conv` predicts G*T logits of the modulation, which
    is 2*sigmoid(logit): 1 at the start, where the sigmoid of Zhu et al., "Deformable ConvNets v2",
    CVPR 2019, equation 1, is a half.
    """

    maps_per_tap = 3

    def sampling(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Predicts offsets [N, 2*G*T, P, Q] in pixels and the modulation [N, G*T, P, Q]."""
        predicted = self._predict(x)
        positions = 2 * predicted.shape[1] // 3
        return predicted[:, :positions], 2 * predicted[:, positions:].sigmoid()


def predict_positions(
    x: Tensor,  # [N, C, H, W]
    weight: Tensor,  # [maps, C, kh, kw]
    bias: Tensor,  # [maps]
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> Tensor:  # [N, maps, P, Q]
    """Convolves in float32 or better, autocast or not: half precision is off by up to a pixel."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    with without_autocast(x.device.type):
        return F.conv2d(x.to(dtype), weight.to(dtype), bias.to(dtype), stride, padding, dilation)


class DeformRoIPool(nn.Module):
    """Pools RoIs into bins that move by offsets predicted from the RoI's own features.

    The offsets come from plain RoIAlign pooling through three fully connected layers. The last one
    starts at zero, so that a fresh layer computes plain pooling. Dai et al., "Deformable
    Convolutional Networks", ICCV 2017, section 2.2 and figure 3.

    Args:
        output_size: (ph, pw), or one number for both.
        spatial_scale: feature pixels per image pixel.
        channels: C of the features.
        sampling_ratio: samples along an axis of a bin; 0: adaptive, see `deform_roi_pool`.
        gamma: an offset of 1 moves a bin by this part of the RoI's size.
        hidden: width of the two hidden layers.

    Raises:
        ValueError: channels or hidden is below 1.
    """

    def __init__(
        self,
        output_size: int | tuple[int, int],
        spatial_scale: float,
        channels: int,
        sampling_ratio: int = 0,
        gamma: float = 0.1,
        hidden: int = 1024,
    ) -> None:
        super().__init__()
        self.output_size, self.spatial_scale = pair(output_size), spatial_scale
        self.channels, self.sampling_ratio, self.gamma = channels, sampling_ratio, gamma
        self.offset_fc = make_offset_fc(channels, self.output_size, hidden)

    def offsets(self, input: Tensor, rois: Tensor) -> Tensor:
        """Predicts each bin's offset [R, 2, ph, pw]: it moves by gamma * (dx * width, dy * height).

        Takes input [N, C, H, W] and rois [R, 5] as `forward` does.

        Raises:
            ValueError: as `deform_roi_pool`, and if input does not have the layer's channels.
        """
        plain = self._pool(input, rois, None)
        if plain.shape[1] != self.channels:
            raise ValueError(f"input must have {self.channels} channels, not {plain.shape[1]}")
        predicted: Tensor = self.offset_fc(plain.flatten(1))
        return predicted.reshape(rois.shape[0], 2, *self.output_size)

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """Pools input [N, C, H, W] in rois [R, 5] (image index, x1, y1, x2, y2): [R, C, ph, pw]."""
        return self._pool(input, rois, self.offsets(input, rois))

    def _pool(self, input: Tensor, rois: Tensor, offset: Tensor | None) -> Tensor:
        return deform_roi_pool(
            input,
            rois,
            offset,
            self.output_size,
            self.spatial_scale,
            self.sampling_ratio,
            self.gamma,
        )

    def extra_repr(self) -> str:
        """Describes the layer as torch's own do."""
        return (
            f"{self.output_size}, spatial_scale={self.spatial_scale}, channels={self.channels}, "
            f"sampling_ratio={self.sampling_ratio}, gamma={self.gamma}"
        )


def make_offset_fc(channels: int, output_size: tuple[int, int], hidden: int) -> nn.Sequential:
    """Makes the layers [R, C*ph*pw] -> [R, 2*ph*pw] that predict bins' offsets, at first zero.

    Raises:
        ValueError: channels or hidden is below 1.
    """
    for name, value in (("channels", channels), ("hidden", hidden)):
        if value < 1:
            raise ValueError(f"{name} must be an integer >= 1, not {value}")
    bins = output_size[0] * output_size[1]
    last = nn.Linear(hidden, 2 * bins)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    first = nn.Linear(channels * bins, hidden)
    return nn.Sequential(first, nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), last)
