"""Where deformable layers sample: recorded as a network runs, then followed from layer to layer.

Sources: Dai et al., "Deformable Convolutional Networks", ICCV 2017, figure 5 (the sampling points
of three stacked layers) and table 2 (effective dilation).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cuda_ops.layers import DeformConv2d
from segdeform.data.dataset import Labels, label_type
from segdeform.errors import DataError, ModelError, NotFiniteError
from segdeform.models.deform import deformable_layers, square_convolutions
from segdeform.segmenter import Segmenter

WHOLE_LIMIT = 2**24  # pixels, the most that are looked at

Floats = NDArray[np.float32]
Result = TypeVar("Result")


@dataclass(frozen=True)
class LayerSampling:
    """What one deformable layer did on one picture. T = kh*kw taps, G offset groups."""

    name: str
    kernel: tuple[int, int]
    step: tuple[int, int]  # stride of the layer
    padding: tuple[int, int]
    dilation: tuple[int, int]
    input_size: tuple[int, int]  # [H, W] of its input
    input_stride: int  # pixels of the picture between neighbours of its input
    offset: Floats  # [G, T, 2, P, Q]: dy, dx in steps of its input
    modulation: Floats  # [G, T, P, Q]; 1 for v1

    @property
    def output_stride(self) -> int:
        """Pixels of the picture between neighbours of its output, down and across alike."""
        return self.input_stride * self.step[0]

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of its output, P and Q."""
        return self.offset.shape[3], self.offset.shape[4]

    def positions(self) -> Floats:  # [G, T, 2, P, Q]
        """Computes the y and x of every sample, in steps of the layer's input."""
        rows, columns = self.size
        taps_y, taps_x = np.divmod(np.arange(self.kernel[0] * self.kernel[1]), self.kernel[1])
        y = np.arange(rows) * self.step[0] - self.padding[0]
        x = np.arange(columns) * self.step[1] - self.padding[1]
        at = self.offset.copy()
        at[:, :, 0] += (y + (taps_y * self.dilation[0])[:, None])[:, :, None]
        at[:, :, 1] += (x + (taps_x * self.dilation[1])[:, None])[:, None, :]
        return at

    def outside(self) -> NDArray[np.bool_]:  # [G, T, P, Q]
        """Marks the samples that read nothing but zeros, because they lie beyond the border."""
        y, x = np.moveaxis(self.positions(), 2, 0)
        height, width = self.input_size
        outside: NDArray[np.bool_] = (y <= -1) | (y >= height) | (x <= -1) | (x >= width)
        return outside

    def effective_dilation(self) -> Floats:  # [G, P, Q]
        """Computes the mean distance between neighbouring taps, in steps of the layer's input.

        A plain convolution has its dilation. A kernel of one tap has none: NaN.
        """
        at = self.positions()
        groups, _, _, rows, columns = at.shape
        grid = at.reshape(groups, *self.kernel, 2, rows, columns)
        across = np.linalg.norm(grid[:, :, 1:] - grid[:, :, :-1], axis=3)
        down = np.linalg.norm(grid[:, 1:] - grid[:, :-1], axis=3)
        pairs = across.shape[1] * across.shape[2] + down.shape[1] * down.shape[2]
        if pairs == 0:
            return np.full((groups, rows, columns), np.nan, np.float32)
        mean: Floats = (across.sum((1, 2)) + down.sum((1, 2))) / np.float32(pairs)
        return mean

    def offset_length(self) -> Floats:  # [P, Q]
        """Computes how far samples are moved, the mean over taps and groups, in picture pixels."""
        length: Floats = np.linalg.norm(self.offset, axis=2).mean((0, 1)) * self.input_stride
        return length


@dataclass(frozen=True)
class Points:
    """The samples that one place of the last layer rests on, in pixels of the picture."""

    y: Floats  # [n]
    x: Floats  # [n]
    weight: Floats  # [n], the product of the modulations on the way
    lost: int  # samples beyond the border of a layer's input: they read zeros


def explained_layers(segmenter: Segmenter) -> dict[str, DeformConv2d]:
    """Lists a model's deformable layers in the order in which they run.

    Raises:
        ModelError: it has none, or they are not the last 3x3 convolutions.
    """
    backbone = segmenter.network.backbone
    layers = deformable_layers(backbone)
    convolutions = list(square_convolutions(backbone, backbone.deformable_kernels))
    if layers and list(layers) != convolutions[-len(layers) :]:
        raise ModelError(
            f"{segmenter.info['path']} has other convolutions between its deformable layers or "
            "after them, through which samples are not followed: train with a number in "
            "deform.layers"
        )
    if not layers:
        raise ModelError(
            f"{segmenter.info['path']} has no deformable layers, so there is nothing to explain: "
            "train with --set deform.layers=3"
        )
    return layers


def record(
    segmenter: Segmenter,
    image: NDArray[np.uint8],  # [H, W, C]
) -> tuple[list[LayerSampling], Labels]:
    """Runs a model on a whole picture; returns what its deformable layers did, and [H, W] labels.

    Raises:
        ModelError: no deformable layers.
        DataError: the picture is too large to be looked at as a whole.
        NotFiniteError: the network predicts offsets that are no numbers.
    """
    layers = explained_layers(segmenter)
    height, width = image.shape[:2]
    if height * width > WHOLE_LIMIT:
        raise DataError(
            f"a picture of {height}x{width} pixels is too large to be looked at as a whole: cut "
            f"out a part of at most {WHOLE_LIMIT} pixels"
        )
    pixels = torch.tensor(image).permute(2, 0, 1)[None].to(segmenter.device, torch.float32) / 255

    def predict() -> Labels:
        logits = segmenter.model(pixels).logits[0]
        labels: Labels = logits.argmax(0).cpu().numpy().astype(label_type(len(logits)))
        return labels

    # The deformable layers are the backbone's last strided or spatial ones, one after the other.
    return record_layers(layers, predict, int(segmenter.info["model"]["output_stride"]))


def record_layers(
    layers: dict[str, DeformConv2d], run: Callable[[], Result], output_stride: int
) -> tuple[list[LayerSampling], Result]:
    """Calls `run`, which runs a network once on one picture; returns what layers did and its value.

    The layers stand in the order in which they run, with nothing strided between them or after
    them: `output_stride` is that of the last one, in pixels of the picture.

    Raises:
        NotFiniteError: a layer predicts offsets that are no numbers.
        ModelError: something between them reduces the map.
    """
    with torch.inference_mode(), _recording(layers) as calls:
        value = run()
    for (name, layer), after in pairwise(layers.items()):
        size = tuple(
            -(-side // step) for side, step in zip(calls[name][0], layer.stride, strict=True)
        )
        if size != calls[after[0]][0]:
            raise ModelError(
                f"between the deformable layers {name} and {after[0]} something else reduces the "
                "map, through which samples are not followed: train with fewer deform.layers"
            )
    found: list[LayerSampling] = []
    stride = output_stride
    for name, layer in reversed(layers.items()):
        size, offset, mask = calls[name]
        stride //= layer.stride[0]
        found.append(_layer_sampling(name, layer, stride, size, offset, mask))
    return found[::-1], value


Call = tuple[tuple[int, int], Tensor, Tensor | None]  # size of the input, offset, mask


@contextmanager
def _recording(layers: dict[str, DeformConv2d]) -> Iterator[dict[str, Call]]:
    """Keeps what each layer predicts while the network runs, however the layer is called."""
    calls: dict[str, Call] = {}

    def keep(name: str, layer: DeformConv2d) -> None:
        predict = layer.sampling

        def sampling(x: Tensor) -> tuple[Tensor, Tensor | None]:
            offset, mask = predict(x)
            calls[name] = ((x.shape[2], x.shape[3]), offset, mask)
            return offset, mask

        layer.sampling = sampling  # type: ignore[method-assign]

    for name, layer in layers.items():
        keep(name, layer)
    try:
        yield calls
    finally:
        for layer in layers.values():
            del layer.sampling


def _layer_sampling(
    name: str,
    layer: DeformConv2d,
    stride: int,
    size: tuple[int, int],
    offset: Tensor,  # [1, 2*G*T, P, Q]
    mask: Tensor | None,  # [1, G*T, P, Q]
) -> LayerSampling:
    taps = layer.kernel_size[0] * layer.kernel_size[1]
    shape = (layer.offset_groups, taps, *offset.shape[2:])
    offsets = offset[0].float().cpu().numpy().reshape(*shape[:2], 2, *shape[2:])
    if not np.isfinite(offsets).all():
        raise NotFiniteError(f"layer {name} predicts offsets that are NaN or infinite")
    weights = np.ones(shape, np.float32) if mask is None else mask[0].float().cpu().numpy()
    return LayerSampling(
        name,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        size,
        stride,
        offsets,
        weights.reshape(shape),
    )


def follow(
    layers: list[LayerSampling],  # in the order in which they run
    place: tuple[int, int],  # row, column of the last layer's output
    group: int = 0,  # of offsets
) -> Points:
    """Follows the samples of a place back through all layers: T^n of them for n layers.

    A sample between whole positions of the layer before takes the samples of the nearest one.
    """
    y, x = np.array([place[0]], np.float32), np.array([place[1]], np.float32)
    weight, lost = np.ones(1, np.float32), 0
    for layer in reversed(layers):
        lost *= len(layer.offset[0])
        rows, columns = layer.size
        row = np.clip(np.floor(y + 0.5).astype(int), 0, rows - 1)
        column = np.clip(np.floor(x + 0.5).astype(int), 0, columns - 1)
        of = min(group, len(layer.offset) - 1)
        at = layer.positions()[of][:, :, row, column]  # [T, 2, n]
        weight = (layer.modulation[of][:, row, column] * weight).ravel()
        y, x = at[:, 0].ravel(), at[:, 1].ravel()
        height, width = layer.input_size
        inside = (y > -1) & (y < height) & (x > -1) & (x < width)
        lost += int((~inside).sum())
        y, x, weight = y[inside], x[inside], weight[inside]
    return Points(y * layers[0].input_stride, x * layers[0].input_stride, weight, lost)


def place_of(
    layer: LayerSampling,
    pixel: tuple[int, int],  # y, x
) -> tuple[int, int]:
    """Returns the row and column of a layer's output that lie nearest to a pixel."""
    rows, columns = layer.size
    nearest = [round(value / layer.output_stride) for value in pixel]
    return min(nearest[0], rows - 1), min(nearest[1], columns - 1)
