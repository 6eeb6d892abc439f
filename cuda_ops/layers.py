"""Layers that predict where they sample."""

from __future__ import annotations

from torch import Tensor, nn

from cuda_ops.deform_roi_pool import deform_roi_pool


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
        for name, value in (("channels", channels), ("hidden", hidden)):
            if value < 1:
                raise ValueError(f"{name} must be an integer >= 1, not {value}")
        ph, pw = (output_size, output_size) if isinstance(output_size, int) else output_size
        self.output_size, self.spatial_scale = (ph, pw), spatial_scale
        self.channels, self.sampling_ratio, self.gamma = channels, sampling_ratio, gamma
        last = nn.Linear(hidden, 2 * ph * pw)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.offset_fc = nn.Sequential(
            nn.Linear(channels * ph * pw, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            last,
        )

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
        return predicted.reshape(len(rois), 2, *self.output_size)

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
