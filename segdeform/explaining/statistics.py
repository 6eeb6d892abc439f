"""How far deformable layers reach, by class, over a whole split: table 2 of Dai et al., 2017."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeform.callbacks import Progress, Stop
from segdeform.data.dataset import Dataset, Labels, ignore_label, read_pair
from segdeform.errors import DataError, InterruptedByUserError
from segdeform.evaluation.split import refuse_other_classes
from segdeform.explaining.sampling import LayerSampling, explained_layers, record
from segdeform.segmenter import Segmenter


@dataclass
class LayerStatistics:
    """Sums over all places of a layer's output; one entry a class."""

    name: str
    plain_dilation: float  # mean distance between neighbouring taps without offsets
    count: NDArray[np.int64]  # [K] places times offset groups
    total: NDArray[np.float64]  # [K] of effective dilation, in steps of the layer's input
    squares: NDArray[np.float64]  # [K]
    samples: int = 0
    outside: int = 0  # samples that lie beyond the border
    moved: float = 0.0  # sum of the samples' distances from their plain places, picture pixels

    def add(self, layer: LayerSampling, labels: Labels) -> None:
        """Counts one picture; `labels` [P, Q] are those of the layer's places, perhaps ignored."""
        dilation = layer.effective_dilation()
        known = np.broadcast_to(labels != ignore_label(len(self.count)), dilation.shape)
        classes = np.broadcast_to(labels, dilation.shape)[known]
        values = dilation[known].astype(np.float64)
        length = len(self.count)
        self.count += np.bincount(classes, minlength=length)
        self.total += np.bincount(classes, values, minlength=length)
        self.squares += np.bincount(classes, values**2, minlength=length)
        outside = layer.outside()
        self.samples += outside.size
        self.outside += int(outside.sum())
        self.moved += float(layer.offset_length().mean()) * outside.size

    def to_json(self, classes: tuple[str, ...]) -> dict[str, Any]:
        """Returns means and standard deviations by class; None for classes that never occur."""
        rows = [
            {"name": name, "places": int(n), **_spread(int(n), total, squares)}
            for name, n, total, squares in zip(
                classes, self.count, self.total, self.squares, strict=True
            )
        ]
        whole = _spread(int(self.count.sum()), self.total.sum(), self.squares.sum())
        return {
            "layer": self.name,
            "plain_dilation": self.plain_dilation,
            "all": {"places": int(self.count.sum()), **whole},
            "classes": rows,
            "mean_offset_pixels": self.moved / self.samples if self.samples else None,
            "share_outside": self.outside / self.samples if self.samples else None,
        }


def _spread(count: int, total: float, squares: float) -> dict[str, float | None]:
    if count == 0:
        return {"mean": None, "std": None}
    mean = total / count
    return {"mean": mean, "std": float(np.sqrt(max(0.0, squares / count - mean**2)))}


def effective_dilation(
    segmenter: Segmenter,
    dataset: Dataset,
    *,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> list[LayerStatistics]:
    """Measures every deformable layer on every picture of a split, by the true class of a place.

    A place has the class of the mask's pixel that it is centred on.

    Raises:
        ModelError: no deformable layers.
        DataError: a picture or mask that cannot be read, other classes than the model's, no masks.
        InterruptedByUserError: `stop` said so.
    """
    names = explained_layers(segmenter)
    refuse_other_classes(segmenter.classes, dataset)
    statistics: dict[str, LayerStatistics] = {}
    for index, sample in enumerate(dataset.samples):
        if stop and stop():
            raise InterruptedByUserError("interrupted")
        if sample.mask is None:
            raise DataError(f"{sample.image}: has no mask, so its classes are unknown")
        image, mask = read_pair(dataset, index)
        layers, _ = record(segmenter, image)
        for layer in layers:
            if layer.name not in statistics:
                k = len(dataset.classes)
                statistics[layer.name] = LayerStatistics(
                    layer.name, _plain(layer), np.zeros(k, np.int64), np.zeros(k), np.zeros(k)
                )
            statistics[layer.name].add(layer, labels_at(layer, mask))
        if progress:
            progress(index + 1, len(dataset))
    return [statistics[name] for name in names]


def labels_at(
    layer: LayerSampling,
    mask: Labels,  # [H, W]
) -> Labels:  # [P, Q]
    """Picks the labels of the pixels that a layer's places are centred on."""
    rows, columns = layer.size
    y = np.minimum(np.arange(rows) * layer.output_stride, mask.shape[0] - 1)
    x = np.minimum(np.arange(columns) * layer.output_stride, mask.shape[1] - 1)
    return mask[np.ix_(y, x)]


def _plain(layer: LayerSampling) -> float:
    kh, kw = layer.kernel
    down, across = (kh - 1) * kw, kh * (kw - 1)
    if down + across == 0:
        return float("nan")
    return (down * layer.dilation[0] + across * layer.dilation[1]) / (down + across)
