"""Operands for the tests of deform_conv2d: shapes in which nothing is symmetric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """Nothing symmetric by default: 3x2 kernel, all strides and paddings different."""

    batch: int = 2
    channels: int = 6
    size: tuple[int, int] = (9, 8)
    outputs: int = 4
    kernel: tuple[int, int] = (3, 2)
    stride: tuple[int, int] = (2, 1)
    padding: tuple[int, int] = (1, 0)
    dilation: tuple[int, int] = (2, 1)
    groups: int = 2
    offset_groups: int = 3
    modulated: bool = True

    @property
    def out(self) -> tuple[int, int]:
        def along(i: int) -> int:
            span = self.dilation[i] * (self.kernel[i] - 1) + 1
            return (self.size[i] + 2 * self.padding[i] - span) // self.stride[i] + 1

        return along(0), along(1)

    def tensors(self, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
        """Random operands; offsets keep clear of the kinks of bilinear interpolation."""
        generator = torch.Generator().manual_seed(seed)
        taps = self.kernel[0] * self.kernel[1]

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        offset = normal(self.batch, 2 * self.offset_groups * taps, *self.out) * 2
        offset = offset.floor() + 0.1 + 0.8 * (offset - offset.floor())
        operands = {
            "input": normal(self.batch, self.channels, *self.size),
            "offset": offset,
            "weight": normal(self.outputs, self.channels // self.groups, *self.kernel),
            "bias": normal(self.outputs),
        }
        if self.modulated:
            operands["mask"] = normal(self.batch, self.offset_groups * taps, *self.out).sigmoid()
        return operands

    @property
    def geometry(self) -> dict[str, tuple[int, int]]:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}

    def call(self, op: Callable[..., Tensor], operands: dict[str, Tensor]) -> Tensor:
        return op(**operands, **self.geometry)


SAME = Shape(kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=1)
SHAPES = {
    "asymmetric": Shape(),
    "v1": Shape(modulated=False),
    "one_image": Shape(batch=1),
    "batch_33": replace(SAME, batch=33, channels=3, size=(5, 4), offset_groups=1),
    "c1_o1": replace(SAME, channels=1, outputs=1, offset_groups=1),
    "c16_o20": replace(SAME, channels=16, outputs=20, offset_groups=2),
    "c20_o64_pointwise": Shape(channels=20, outputs=64, kernel=(1, 1), padding=(0, 0),
                               dilation=(1, 1), groups=4, offset_groups=5),
    "c64_o129": replace(SAME, channels=64, outputs=129, offset_groups=1, dilation=(2, 2)),
    "c129_o3": replace(SAME, channels=129, outputs=3, offset_groups=3),
    "c512_o16": replace(SAME, channels=512, outputs=16, offset_groups=1, size=(6, 7)),
    "c600_o8": replace(SAME, channels=600, outputs=8, offset_groups=4, size=(5, 5)),
    "two_large_groups": replace(SAME, channels=1040, outputs=6, groups=2, offset_groups=1,
                                size=(4, 5)),
    "groups_do_not_nest": replace(SAME, channels=96, outputs=12, groups=3, offset_groups=2),
    "many_groups": replace(SAME, channels=24, outputs=48, groups=12, offset_groups=3),
    "depthwise": replace(SAME, channels=48, outputs=48, groups=48, offset_groups=1),
    "depthwise_strided": replace(SAME, channels=130, outputs=130, groups=130, offset_groups=2,
                                 stride=(2, 1)),
    "kernel_7": replace(SAME, channels=2, outputs=2, kernel=(7, 7), padding=(3, 3), size=(10, 8),
                        offset_groups=2),
}  # fmt: skip

# For CUDA kernels: vectors of 16 bytes fit, or do not, in many ways.
EVERY = SHAPES | {
    "vectors": replace(SAME, channels=64, outputs=24, groups=2, offset_groups=2, size=(5, 7)),
    "pieces_across_groups": Shape(channels=48, outputs=6, groups=2, offset_groups=3, size=(7, 6)),
    "odd": Shape(channels=35, outputs=10, groups=5, offset_groups=7),
    "more_than_a_slice": replace(SAME, channels=272, outputs=2, groups=1, offset_groups=1,
                                 size=(4, 3), batch=1),
    "depthwise_vectors": replace(SAME, channels=32, outputs=32, groups=32, offset_groups=2),
    "depthwise_pointwise": replace(SAME, channels=32, outputs=32, groups=32, offset_groups=2,
                                   kernel=(1, 1), padding=(0, 0)),
    "depthwise_two_maps": replace(SAME, channels=6, outputs=12, groups=6, offset_groups=3),
}  # fmt: skip
