"""The page that a person looks at: one HTML file with everything in it, for any browser.

Bars and the confusion matrix are HTML and SVG, pictures are data URIs; there is no script, and a
policy in the page forbids the browser every request.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from unicodedata import east_asian_width

import numpy as np
from numpy.typing import NDArray

from segdeform.config.dotted import dotted
from segdeform.data.dataset import MAX_NARROW
from segdeform.evaluation.bootstrap import LEVEL
from segdeform.evaluation.counts import Column, class_sums, union
from segdeform.evaluation.evaluate import Evaluation
from segdeform.evaluation.examples import Colours, Example
from segdeform.evaluation.verdict import warnings
from segdeform.files.html import page_template

_TEMPLATE = "report.html.j2"
_BINS = 20  # of the pictures' mIoU
_CONFUSIONS = 10  # listed in words, or three times as many where no matrix is drawn
_NAMED = 60  # classes in the legend of the pictures, where there are more than 255
_SMALLEST_SHARE = 0.005  # of a row, below which a cell stays empty: 150 classes have 22,500
_NUMBERS_UP_TO = 24  # classes, up to which the cells hold numbers
_LETTER, _WIDE_LETTER = 8.2, 13.0  # pixels that a letter takes at most, at 13 pixels' height
_WIDE_LETTERS = frozenset("WMwm@%")
_LONGEST_LABEL = 176.0  # pixels, likewise


@dataclass(frozen=True)
class Cell:
    """One coloured cell of the confusion matrix."""

    row: int
    column: int
    share: float  # of the row's pixels
    pixels: int


@dataclass(frozen=True)
class MatrixDrawing:
    """The confusion matrix in SVG units, which are pixels."""

    cells: tuple[Cell, ...]
    side: int  # of a cell
    margin: int  # left of the matrix and above it, for the names
    font: int
    numbers: bool


def render_report(
    evaluation: Evaluation, palette: Colours, examples: Sequence[Example], title: str | None = None
) -> str:
    """Returns the report as HTML. Names are escaped, whatever they hold."""
    template = page_template("segdeform.evaluation", _TEMPLATE, score=_score, percent=_percent)
    metrics = evaluation.to_json()
    protocol = metrics["protocol"]
    total = max(1, int(evaluation.matrix.sum()))
    drawn = len(evaluation.classes) <= MAX_NARROW  # of more, nobody can make anything out
    return template.render(
        title=title or f"{protocol['dataset']} {protocol['split']}",
        metrics=metrics,
        rows=metrics["classes"],
        total=total,
        level=f"{LEVEL:.0%}",
        colours=[f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in palette],
        labels=_labels(evaluation.classes),
        matrix=_matrix_drawing(evaluation.matrix, evaluation.classes) if drawn else None,
        confusions=_confusions(evaluation.matrix, _CONFUSIONS if drawn else 3 * _CONFUSIONS),
        histogram=_histogram(evaluation.picture_scores.miou),
        examples=examples,
        **_legend(evaluation, examples),
        warnings=list(warnings(evaluation)),
        protocol=[
            (key.replace("_", " "), _shown(value)) for key, value in dotted(protocol).items()
        ],
        timing=evaluation.timing,
    )


def _legend(evaluation: Evaluation, examples: Sequence[Example]) -> dict[str, Any]:
    """Returns which classes the legend names: all that occur, or, of more than 255, those that
    cover most of the shown pictures, and how many it leaves out."""
    ious = evaluation.scores.iou
    if len(ious) <= MAX_NARROW:
        return {"shown": {k for k, iou in enumerate(ious) if not math.isnan(iou)}, "unshown": 0}
    rows = evaluation.counts.rows
    numbers = [evaluation.pictures.index(example.name) for example in examples]
    rows = rows[np.isin(rows[:, Column.PICTURE], numbers)]
    pixels = class_sums(rows, union(rows), len(ious))
    order = np.argsort(-pixels, kind="stable")[:_NAMED]
    shown = {int(k) for k in order if pixels[k]}
    return {"shown": shown, "unshown": int((pixels > 0).sum()) - len(shown)}


def _matrix_drawing(matrix: NDArray[np.int64], classes: Sequence[str]) -> MatrixDrawing:
    count = len(matrix)
    side = next(side for most, side in ((12, 46), (24, 34), (60, 17), (255, 11)) if count <= most)
    font = min(13, side - 2)
    longest = max(_width(label) for label in _labels(classes))
    totals = matrix.sum(axis=1)
    cells = []
    for row, column in zip(*np.nonzero(matrix), strict=True):
        share = float(matrix[row, column] / totals[row])
        if share >= _SMALLEST_SHARE:
            cells.append(Cell(int(row), int(column), share, int(matrix[row, column])))
    return MatrixDrawing(
        cells=tuple(cells),
        side=side,
        margin=math.ceil(longest * font / 13) + 14,
        font=font,
        numbers=count <= _NUMBERS_UP_TO,
    )


def _confusions(matrix: NDArray[np.int64], most: int) -> list[Cell]:
    """Returns the mistakes that cost the most pixels."""
    rows, columns = np.nonzero(matrix)
    mistakes = rows != columns
    rows, columns = rows[mistakes], columns[mistakes]
    pixels = matrix[rows, columns]
    order = np.argsort(-pixels, kind="stable")[:most]
    return [
        Cell(row, column, count / int(matrix[row].sum()), count)
        for row, column, count in zip(
            rows[order].tolist(), columns[order].tolist(), pixels[order].tolist(), strict=True
        )
    ]


def _histogram(mious: NDArray[np.float64]) -> list[int]:
    counts, _ = np.histogram(mious[~np.isnan(mious)], bins=_BINS, range=(0, 1))
    return [int(count) for count in counts]


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value)


def _labels(classes: Sequence[str]) -> list[str]:
    """Returns what stands beside the matrix; a long name is cut, and numbered for the legend."""
    return [
        name if _width(name) <= _LONGEST_LABEL else _cut(f"{index} {name}")
        for index, name in enumerate(classes)
    ]


def _cut(name: str) -> str:
    while _width(f"{name}\N{HORIZONTAL ELLIPSIS}") > _LONGEST_LABEL:
        name = name[:-1]
    return f"{name}\N{HORIZONTAL ELLIPSIS}"


def _width(text: str) -> float:
    """Returns the pixels that a text takes at most, at 13 pixels' height, in any usual font."""
    wide = sum(letter in _WIDE_LETTERS or east_asian_width(letter) in "WF" for letter in text)
    return wide * _WIDE_LETTER + (len(text) - wide) * _LETTER


def _score(value: float | None, digits: int = 3) -> str:
    missing = value is None or math.isnan(value)
    return "\N{EN DASH}" if missing else f"{value:.{digits}f}"


def _percent(value: float) -> str:
    return f"{value:.1%}" if value == 0 or value >= 0.001 else "<0.1%"
