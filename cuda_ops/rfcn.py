"""The position-sensitive head of R-FCN with deformable pooling, in torchvision's three parts.

`RoIHeads(box_roi_pool=RFCNPool(...), box_head=AverageVote(), box_predictor=RFCNPredictor(...))`, or
the same arguments of `FasterRCNN`. Dai et al., "R-FCN", NIPS 2016, and "Deformable Convolutional
Networks", ICCV 2017, section 2.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cuda_ops.deform_roi_pool import ps_deform_roi_pool
from cuda_ops.poolers import MultiScaleRoIPool


class PSDeformRoIPool(nn.Module):
    """Pools RoIs from position-sensitive maps, in bins that move by offsets from maps alike.

    One 1x1 convolution makes output_channels maps for each of the k x k bins; another, which starts
    at zero, makes 2 * offset_classes offset maps a bin, whose pooled values move the bins.

    Args:
        channels: C of the features.
        output_channels: what comes out for each bin.
        bins: k.
        offset_classes: K, how many offset fields the output channels are shared out to, in order;
            None: the bins stay where they are (R-FCN).
        sample_per_part: samples along an axis of a bin.
        trans_std: an offset of 1 moves a bin by this part of the RoI's size.

    Raises:
        ValueError: a number is below 1, or offset_classes does not divide output_channels.
    """

    def __init__(
        self,
        channels: int,
        output_channels: int,
        bins: int = 7,
        offset_classes: int | None = 1,
        sample_per_part: int = 4,
        trans_std: float = 0.1,
    ) -> None:
        super().__init__()
        for name, value in (
            ("channels", channels),
            ("output_channels", output_channels),
            ("bins", bins),
        ):
            if value < 1:
                raise ValueError(f"{name} must be an integer >= 1, not {value}")
        if offset_classes is not None and (offset_classes < 1 or output_channels % offset_classes):
            raise ValueError(
                f"offset_classes must divide the {output_channels} output channels, not "
                f"{offset_classes}"
            )
        self.output_channels, self.bins = output_channels, bins
        self.offset_classes, self.sample_per_part = offset_classes, sample_per_part
        self.trans_std = trans_std
        self.maps = nn.Conv2d(channels, output_channels * bins**2, 1)
        nn.init.normal_(self.maps.weight, std=0.01)
        assert self.maps.bias is not None
        nn.init.zeros_(self.maps.bias)
        self.offset_maps: nn.Conv2d | None = None
        if offset_classes is not None:
            # Draws no random number: with and without offsets, all else starts the same.
            maps: nn.Conv2d = nn.utils.skip_init(  # type: ignore[no-untyped-call]
                nn.Conv2d, channels, 2 * offset_classes * bins**2, 1
            )
            for parameter in maps.parameters():
                nn.init.zeros_(parameter)
            self.offset_maps = maps

    def offsets(self, input: Tensor, rois: Tensor, spatial_scale: float) -> Tensor | None:
        """Predicts [R, 2*K, k, k], (dx, dy) of each field by turns; None without offset maps."""
        if self.offset_maps is None or self.offset_classes is None:
            return None
        maps = self.offset_maps(input)
        trans = self._pool(maps, rois, None, spatial_scale, 2 * self.offset_classes)
        return trans.to(torch.promote_types(trans.dtype, torch.float32))

    def forward(
        self,
        input: Tensor,  # [N, C, H, W]
        rois: Tensor,  # [R, 5]: image index, x1, y1, x2, y2 in image pixels
        spatial_scale: float,  # feature pixels per image pixel
    ) -> Tensor:  # [R, output_channels, k, k]
        """Pools the RoIs; raises ValueError as `ps_deform_roi_pool` does."""
        trans = self.offsets(input, rois, spatial_scale)
        return self._pool(self.maps(input), rois, trans, spatial_scale, self.output_channels)

    def _pool(
        self, maps: Tensor, rois: Tensor, trans: Tensor | None, scale: float, channels: int
    ) -> Tensor:
        k, samples = self.bins, self.sample_per_part
        return ps_deform_roi_pool(
            maps, rois, trans, scale, channels, k, k, k, samples, self.trans_std
        )


class RFCNPool(MultiScaleRoIPool):
    """Pools class scores and box changes from position-sensitive maps: the `box_roi_pool`.

    A 1x1 convolution with ReLU leads to the maps, on every level with the same weights. Each class
    has an offset field of its own, the box changes, which all classes share, have one more.

    Args:
        channels: C of the features.
        num_classes: classes with the background, as torchvision counts them.
        bins: k of the k x k bins.
        deformable: whether the bins move.
        hidden: channels between the two convolutions.
        (the rest): as in `MultiScaleRoIPool` and `PSDeformRoIPool`.
    """

    def __init__(
        self,
        featmap_names: Sequence[str],
        channels: int,
        num_classes: int,
        bins: int = 7,
        deformable: bool = True,
        hidden: int = 1024,
        sample_per_part: int = 4,
        trans_std: float = 0.1,
        *,
        canonical_scale: int = 224,
        canonical_level: int = 4,
    ) -> None:
        super().__init__(
            featmap_names,
            bins,
            sample_per_part,
            canonical_scale=canonical_scale,
            canonical_level=canonical_level,
        )
        self.reduction = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.ReLU())
        self.scores = PSDeformRoIPool(
            hidden,
            num_classes,
            bins,
            num_classes if deformable else None,
            sample_per_part,
            trans_std,
        )
        self.changes = PSDeformRoIPool(
            hidden, 4, bins, 1 if deformable else None, sample_per_part, trans_std
        )

    def forward(
        self,
        x: dict[str, Tensor],  # [N, C, H, W] each
        boxes: list[Tensor],  # [r, 4] of each image: x1, y1, x2, y2 in image pixels
        image_shapes: list[tuple[int, int]],  # (H, W) of each image
    ) -> Tensor:  # [R, num_classes + 4, k, k]
        """Pools the boxes: a score for every class, then the four changes, for each bin."""

        def pool(features: Tensor, rois: Tensor, scale: float, places: Tensor) -> Tensor:
            reduced = self.reduction(features)
            parts = [self.scores(reduced, rois, scale), self.changes(reduced, rois, scale)]
            return torch.cat(parts, 1)

        return self.deal(x, boxes, image_shapes).pool(pool)


class AverageVote(nn.Module):
    """Averages over the bins: the `box_head`."""

    def forward(self, x: Tensor) -> Tensor:  # [R, C, k, k] -> [R, C]
        return x.mean((2, 3))


class RFCNPredictor(nn.Module):
    """Parts scores from box changes and gives every class the same changes: the `box_predictor`."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Turns votes [R, num_classes + 4] into scores [R, num_classes] and [R, 4*num_classes]."""
        scores, changes = x[:, : self.num_classes], x[:, self.num_classes :]
        return scores, changes.repeat(1, self.num_classes)
