"""RoI poolers for torchvision's detection models: one feature map or a pyramid of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign

from cuda_ops.deform_roi_pool import deform_roi_pool
from cuda_ops.layers import make_offset_fc

Pooling = Callable[[Tensor, Tensor, float, Tensor], Tensor]
"""(features [N, C, H, W], rois [r, 5], spatial scale, their places [r] among all) -> [r, ...]."""


class MultiScaleRoIPool(MultiScaleRoIAlign):  # type: ignore[misc]  # torchvision has no types
    """Pools every box from the level of a feature pyramid that suits its size.

    `torchvision.ops.MultiScaleRoIAlign` but for the half pixel: torchvision's calls `roi_align`
    with aligned=False, which shifts a RoI by half a feature pixel towards the lower right and makes
    it at least one feature pixel large; this one, as `deform_roi_pool`, is aligned=True.

    Args:
        featmap_names: the levels among the features, finest first; each has the scale 2**-k.
        output_size: (ph, pw), or one number for both.
        sampling_ratio: samples along an axis of a bin; 0: adaptive, see `deform_roi_pool`.
        canonical_scale: side, in image pixels, of a box that is pooled from canonical_level.
        canonical_level: the k of that level. Lin et al., "Feature Pyramid Networks", CVPR 2017,
            equation 1, where they are 224 and 4.
    """

    def __init__(
        self,
        featmap_names: Sequence[str],
        output_size: int | tuple[int, int],
        sampling_ratio: int = 2,
        *,
        canonical_scale: int = 224,
        canonical_level: int = 4,
    ) -> None:
        super().__init__(
            list(featmap_names),
            output_size,
            sampling_ratio,
            canonical_scale=canonical_scale,
            canonical_level=canonical_level,
        )

    def deal(
        self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> DealtRoIs:
        """Deals the boxes out to the levels; arguments and errors as in `forward`."""
        if missing := [name for name in self.featmap_names if name not in x]:
            raise ValueError(f"features must hold {missing[0]!r}; they hold {', '.join(x)}")
        features = [x[name] for name in self.featmap_names]
        height = max(shape[0] for shape in image_shapes)
        levels = [round(float(torch.tensor(height / f.shape[2]).log2())) for f in features]
        rois = _as_rois(boxes, features[0].dtype)
        nearest = self._levels(rois, levels)
        places = [(nearest == number).nonzero()[:, 0] for number in range(len(levels))]
        return DealtRoIs(features, [2.0**-level for level in levels], rois, places)

    def _levels(self, rois: Tensor, levels: list[int]) -> Tensor:
        """Returns [R]: which of the levels each RoI is pooled from."""
        side = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).sqrt()
        wanted = (self.canonical_level + (side / self.canonical_scale).log2() + 1e-6).floor()
        # A RoI that holds no numbers has to be pooled somewhere, to give NaN.
        wanted = wanted.nan_to_num(levels[0]).clamp(min(levels), max(levels))
        distance: Tensor = (wanted[:, None] - wanted.new_tensor(levels)).abs()
        return distance.argmin(1)

    def forward(
        self,
        x: dict[str, Tensor],  # [N, C, H, W] each, C alike
        boxes: list[Tensor],  # [r, 4] of each image: x1, y1, x2, y2 in image pixels
        image_shapes: list[tuple[int, int]],  # (H, W) of each image
    ) -> Tensor:  # [R, C, ph, pw], all images' boxes in order
        """Pools the boxes. Raises ValueError as `deform_roi_pool`, and for a missing level."""
        return self._pool(self.deal(x, boxes, image_shapes), None)

    def _pool(self, dealt: DealtRoIs, offset: Tensor | None, gamma: float = 0.0) -> Tensor:
        def pool(features: Tensor, rois: Tensor, scale: float, places: Tensor) -> Tensor:
            shifts = None if offset is None else offset[places]
            size = (self.output_size[0], self.output_size[1])
            return deform_roi_pool(features, rois, shifts, size, scale, self.sampling_ratio, gamma)

        return dealt.pool(pool)


class MultiScaleDeformRoIPool(MultiScaleRoIPool):
    """Pools every box into bins that move by offsets predicted from the box's own features.

    A `box_roi_pool` for torchvision's `FasterRCNN` and its kin. As `MultiScaleRoIPool`, then, from
    what that pools, three fully connected layers that all levels share predict each bin's offset,
    and the boxes are pooled again from their moved bins. The last layer starts at zero, so that a
    fresh pooler computes `MultiScaleRoIPool`. Dai et al., "Deformable Convolutional Networks", ICCV
    2017, section 2.2.

    Args:
        channels: C of the features.
        gamma: an offset of 1 moves a bin by this part of the box's size.
        hidden: width of the two hidden layers.
        (the rest): as in `MultiScaleRoIPool`.

    Raises:
        ValueError: channels or hidden is below 1.
    """

    def __init__(
        self,
        featmap_names: Sequence[str],
        output_size: int | tuple[int, int],
        channels: int,
        sampling_ratio: int = 2,
        gamma: float = 0.1,
        hidden: int = 1024,
        *,
        canonical_scale: int = 224,
        canonical_level: int = 4,
    ) -> None:
        super().__init__(
            featmap_names,
            output_size,
            sampling_ratio,
            canonical_scale=canonical_scale,
            canonical_level=canonical_level,
        )
        self.channels, self.gamma = channels, gamma
        self.offset_fc = make_offset_fc(channels, self.output_size, hidden)

    def offsets(
        self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        """Predicts [R, 2, ph, pw]: each bin moves by gamma * (dx * width, dy * height).

        Takes what `forward` takes, and raises what it raises.
        """
        return self._predict(self.deal(x, boxes, image_shapes))

    def _predict(self, dealt: DealtRoIs) -> Tensor:
        plain = self._pool(dealt, None)
        if plain.shape[1] != self.channels:
            raise ValueError(f"features must have {self.channels} channels, not {plain.shape[1]}")
        predicted: Tensor = self.offset_fc(plain.flatten(1))
        # Positions are kept in float32 or better whatever the layers compute in.
        predicted = predicted.to(torch.promote_types(predicted.dtype, torch.float32))
        return predicted.reshape(-1, 2, *self.output_size)

    def forward(
        self,
        x: dict[str, Tensor],  # [N, C, H, W] each
        boxes: list[Tensor],  # [r, 4] of each image: x1, y1, x2, y2 in image pixels
        image_shapes: list[tuple[int, int]],  # (H, W) of each image
    ) -> Tensor:  # [R, C, ph, pw], all images' boxes in order
        """Pools the boxes; errors as in `MultiScaleRoIPool`, and for another number of channels."""
        dealt = self.deal(x, boxes, image_shapes)
        return self._pool(dealt, self._predict(dealt), self.gamma)


@dataclass(frozen=True)
class DealtRoIs:
    """RoIs of a batch of images, each given to one level of a feature pyramid."""

    features: list[Tensor]  # [N, C, H, W] of each level
    scales: list[float]  # feature pixels per image pixel
    rois: Tensor  # [R, 5]
    places: list[Tensor]  # of each level, the indices of its RoIs

    def pool(self, pooling: Pooling) -> Tensor:
        """Pools each level's RoIs and puts the results [r, ...] in the RoIs' order: [R, ...].

        Levels without RoIs take part: their parameters get a gradient, of zero.
        """
        pooled = [
            pooling(features, self.rois[places], scale, places)
            for features, scale, places in zip(self.features, self.scales, self.places, strict=True)
        ]
        if len(pooled) == 1:
            return pooled[0]
        result = pooled[0].new_zeros(len(self.rois), *pooled[0].shape[1:])
        for places, values in zip(self.places, pooled, strict=True):
            # Under autocast a level may have come out of a layer of another precision.
            result[places] = values.to(result.dtype)
        return result


def _as_rois(boxes: list[Tensor], dtype: torch.dtype) -> Tensor:
    """Puts the image's index before each box: [R, 5], in float32, which holds any, or better."""
    dtype = torch.promote_types(torch.promote_types(boxes[0].dtype, dtype), torch.float32)
    rows = [
        torch.cat([box.new_full((len(box), 1), image, dtype=dtype), box.to(dtype)], 1)
        for image, box in enumerate(boxes)
    ]
    return torch.cat(rows)
