"""The pictures that a report shows: the worst and the best, each with truth, labels and errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segdeform.callbacks import Stop
from segdeform.data.channels import shown_colours
from segdeform.data.dataset import Dataset, Labels, ignore_label, read_pair
from segdeform.errors import InterruptedByUserError
from segdeform.evaluation.counts import Column, union
from segdeform.evaluation.evaluate import Evaluation, predict_sample
from segdeform.files.html import data_uri
from segdeform.segmenter import Segmenter

WORST, BEST = 8, 4  # pictures shown
_SIDE = 320  # pixels, the longer side of what is shown
_STOPPED = "evaluation stopped; nothing was written"
_VOID = (224, 224, 224)
_RIGHT, _WRONG, _UNSCORED = (236, 239, 241), (213, 43, 30), (255, 255, 255)

Colours = Sequence[tuple[int, int, int]]


@dataclass(frozen=True)
class Example:
    """One picture of the report."""

    name: str
    worst: bool  # among the worst, else among the best
    miou: float
    accuracy: float
    size: tuple[int, int]  # H, W in pixels
    classes: tuple[tuple[int, float], ...]  # (class, IoU) of those in the picture, lowest first
    image: str  # data URIs, at most 320 pixels wide and high; "": there is none
    truth: str
    prediction: str
    errors: str


Look = Callable[[int], tuple[NDArray[np.uint8] | None, Labels, Labels]]
"""Of a picture's index: the picture [H, W, C] where there is one, its truth and its labels."""


def choose_examples(
    evaluation: Evaluation,
    segmenter: Segmenter,
    dataset: Dataset,
    stop: Stop | None = None,
) -> tuple[Example, ...]:
    """Predicts the pictures with the lowest and highest mIoU of their own once more.

    Keeping label maps of all pictures instead would cost memory that grows with their number.
    Raises what `evaluate` raises for a picture, InterruptedByUserError after a stop.
    """

    def look(index: int) -> tuple[NDArray[np.uint8], Labels, Labels]:
        image, truth = read_pair(dataset, index)
        return image, truth, predict_sample(segmenter, dataset.samples[index], image, stop)

    return draw_examples(evaluation, segmenter.palette, look, stop)


def draw_examples(
    evaluation: Evaluation, colours: Colours, look: Look, stop: Stop | None = None
) -> tuple[Example, ...]:
    """Draws the pictures with the lowest and highest mIoU of their own, as `look` gives them.

    Raises what `look` raises, InterruptedByUserError after a stop.
    """
    scores = evaluation.picture_scores
    scored = [int(k) for k in np.argsort(scores.miou, kind="stable") if scores.miou[k] >= 0]
    # Of a few pictures, each is shown once, most of them as the worst.
    best = min(BEST, len(scored) // 3)
    worst = scored[: min(WORST, len(scored) - best)]
    chosen = [(index, True) for index in worst]
    chosen += [(index, False) for index in reversed(scored[len(scored) - best :])]
    examples = []
    for index, is_worst in chosen:
        if stop is not None and stop():
            raise InterruptedByUserError(_STOPPED)
        try:
            seen = look(index)
        except InterruptedByUserError as error:
            raise InterruptedByUserError(_STOPPED) from error
        examples.append(_example(evaluation, colours, seen, index, is_worst))
    return tuple(examples)


def _example(
    evaluation: Evaluation,
    colours: Colours,
    seen: tuple[NDArray[np.uint8] | None, Labels, Labels],
    index: int,
    worst: bool,
) -> Example:
    image, truth, labels = seen
    ignore = ignore_label(len(colours))
    palette = np.full((ignore + 1, 3), _VOID, np.uint8)
    palette[: len(colours)] = colours
    wrong = np.where(truth == ignore, 2, truth != labels).astype(np.uint8)
    rows = evaluation.counts.rows
    rows = rows[rows[:, Column.PICTURE] == index]
    ious = rows[:, Column.CORRECT] / union(rows)
    scores = evaluation.picture_scores
    return Example(
        name=evaluation.pictures[index],
        worst=worst,
        miou=float(scores.miou[index]),
        accuracy=float(scores.accuracy[index]),
        size=(truth.shape[0], truth.shape[1]),
        classes=tuple(
            (int(rows[k, Column.CLASS]), float(ious[k])) for k in np.argsort(ious, kind="stable")
        ),
        image=""
        if image is None
        else data_uri(_shrunk(Image.fromarray(shown_colours(image)), Image.Resampling.BOX), "JPEG"),
        truth=_indexed(truth, palette),
        prediction=_indexed(labels, palette),
        errors=_indexed(wrong, np.array([_RIGHT, _WRONG, _UNSCORED], np.uint8)),
    )


def _indexed(
    labels: Labels,  # [H, W]
    palette: NDArray[np.uint8],  # [C, 3]
) -> str:
    """Returns a label map in its colours, shrunk without mixing any, as a PNG."""
    image = _shrunk(Image.fromarray(labels), Image.Resampling.NEAREST)
    if labels.dtype != np.uint8:  # no palette has as many colours
        return data_uri(Image.fromarray(palette[np.asarray(image)]), "PNG")
    image.putpalette(palette.tobytes())
    return data_uri(image, "PNG")


def _shrunk(image: Image.Image, method: Image.Resampling) -> Image.Image:
    shrink = max(1.0, max(image.size) / _SIDE)
    width, height = (max(1, round(side / shrink)) for side in image.size)
    return image.resize((width, height), method)
