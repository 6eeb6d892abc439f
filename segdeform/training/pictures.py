"""Pictures for TensorBoard: a few of the validation split, with their labels and the predicted."""

from __future__ import annotations

import numpy as np
from PIL import Image

from segdeform.data.channels import shown_colours
from segdeform.data.dataset import Dataset, Sample, read_pair
from segdeform.results.overlay import Labels, Picture, overlay

_MOST = 4
_SIDE = 512  # pixels, of the longer side of each of the two


class Pictures:
    """Keeps what an evaluation predicts for a few pictures, always the same ones, and draws them.

    They lie evenly in the split, among those that this process scores: nothing is predicted twice.
    """

    def __init__(self, dataset: Dataset, processes: int) -> None:
        own = range(0, len(dataset), processes)  # of rank 0, as an evaluation shares them out
        places = np.linspace(0, len(own) - 1, min(_MOST, len(own))).round().astype(int)
        self._dataset = dataset
        self._wanted = {dataset.samples[own[place]].name: own[place] for place in places}
        self._predicted: dict[str, Labels] = {}

    def keep(self, sample: Sample, labels: Labels) -> None:
        """Hears of every prediction of an evaluation, [H, W]."""
        if sample.name in self._wanted:
            self._predicted[sample.name] = labels

    def drawn(self) -> dict[str, Picture]:
        """Returns, by name, labels on the left and predictions on the right, [h, w, 3]."""
        found = {}
        for name, labels in self._predicted.items():
            image, truth = read_pair(self._dataset, self._wanted[name])
            found[name] = _side_by_side(self._dataset, image, truth, labels)
        self._predicted = {}
        return found


def _side_by_side(
    dataset: Dataset, image: Picture, truth: Labels, predicted: Labels
) -> Picture:  # [h, 2 * w, 3]
    """Draws both over the picture, reduced; what is not scored shows the picture itself."""
    height, width = truth.shape
    scale = min(1.0, _SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.asarray(Image.fromarray(shown_colours(image)).resize(size, Image.Resampling.BOX))
    nothing = len(dataset.classes)
    palette = [*dataset.palette, (0, 0, 0)]  # black tints nothing
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int)
        for new, old in zip(size[::-1], (height, width), strict=True)
    )
    drawn = []
    for labels in (truth, predicted):
        shown = np.minimum(labels[rows][:, columns], nothing)
        drawn.append(overlay(small, shown, palette))
    return np.concatenate(drawn, axis=1)
