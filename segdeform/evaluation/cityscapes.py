"""The official Cityscapes scores, by the official code: the only place that calls its evaluation.

It is written for a script's life and not for a library's: `numpy.in1d`, which NumPy 2.4 removed,
is called; an error prints and exits; the environment is read at import; and a predicted 255 counts
as an index. Here each worker process of its own restores the name, turns the exit into our error,
hides the variables and refuses other values than label ids. Its counting is slow Python, so
pictures are counted in parallel; counts add up, whatever the order.
"""

from __future__ import annotations

import contextlib
import io
import math
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from segdeform.callbacks import Progress, Stop
from segdeform.data.cityscapes_labels import HIGHEST_ID
from segdeform.data.image_io import read_mask
from segdeform.errors import DataError, InterruptedByUserError, ResourceError

TRUTH_ENDING: Final = "_gtFine_labelIds.png"
_INSTANCES_ENDING: Final = "_gtFine_instanceIds.png"
_LIMIT = 300  # seconds for one picture, after which its worker counts as lost
_TOLERANCE = 1e-6

Pair = tuple[Path, Path]  # prediction, truth: label ids
Sums = dict[str, dict[str, dict[str, float]]]  # "classes" or "categories" -> name -> sums
Counted = tuple[NDArray[Any], Sums]  # confusion matrix of label ids; of the instances


@dataclass(frozen=True)
class OfficialScores:
    """What cityscapesscripts says; NaN for labels that are not scored or absent."""

    class_iou: dict[str, float]
    class_iiou: dict[str, float] | None  # None: not every picture has instances
    category_iou: dict[str, float]
    category_iiou: dict[str, float] | None
    note: str  # on the instances, for people

    def to_json(self) -> dict[str, Any]:
        """Returns the averages and the scores that are numbers."""
        value: dict[str, Any] = {"note": self.note}
        for key in ("class_iou", "class_iiou", "category_iou", "category_iiou"):
            scores = getattr(self, key)
            known = {k: v for k, v in (scores or {}).items() if not math.isnan(v)}
            value[f"mean_{key}"] = math.fsum(known.values()) / len(known) if known else None
            value[key] = known if scores is not None else None
        return value


def official_scores(
    pairs: Sequence[Pair],
    *,
    workers: int = 1,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> OfficialScores:
    """Scores label id PNGs with cityscapesscripts, in `workers` processes.

    Raises:
        DataError: a file is unreadable, of another size, or holds what is no label id.
        ResourceError: a worker is lost or silent.
        InterruptedByUserError: after a stop.
    """
    lacking = sum(not _instances(truth).is_file() for _, truth in pairs)
    tasks = [(prediction, truth, not lacking) for prediction, truth in pairs]
    matrix: NDArray[Any] = np.zeros((0, 0), np.int64)
    sums: Sums = {}
    # Not forked: torch's threads would be missing in the child, their locks perhaps held.
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(workers, len(tasks)), _start_worker) as pool:
        answers = pool.imap(_count, tasks)  # in order: sums of floats depend on it
        for done in range(1, len(tasks) + 1):
            if stop is not None and stop():
                raise InterruptedByUserError("official evaluation stopped; nothing was written")
            try:
                answer = answers.next(_LIMIT)
            except multiprocessing.TimeoutError as error:
                raise ResourceError(
                    f"a process that counts {tasks[done - 1][1]} is lost, or hung for {_LIMIT} s; "
                    "free some memory or use fewer --workers"
                ) from error
            if isinstance(answer, DataError):
                raise answer
            matrix, sums = _add(matrix, sums, answer)
            if progress is not None:
                progress(done, len(tasks))
        return pool.apply_async(_score, (matrix, sums, lacking, len(tasks))).get(_LIMIT)


def refuse_other_iou(official: OfficialScores, ours: dict[str, float]) -> None:
    """Raises DataError unless both class IoUs, NaN included, are equal to 1e-6."""
    for name, iou in ours.items():
        theirs = official.class_iou[name]
        both_absent = math.isnan(theirs) and math.isnan(iou)
        if not both_absent and not abs(theirs - iou) <= _TOLERANCE:
            raise DataError(
                f"the official scripts give class '{name}' an IoU of {theirs:.6f} and this "
                f"evaluation {iou:.6f}: the *{TRUTH_ENDING} are not those that were read"
            )


def _instances(truth: Path) -> Path:
    return truth.with_name(truth.name.removesuffix(TRUTH_ENDING) + _INSTANCES_ENDING)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us


def _count(task: tuple[Path, Path, bool]) -> Counted | DataError:
    """Counts one pair of label id files, in a worker."""
    prediction, truth, with_instances = task
    try:
        _refuse_other_ids(prediction)
        with _official_code(with_instances) as (code, settings):
            matrix = code.generateMatrix(settings)
            sums = code.generateInstanceStats(settings)
            code.evaluatePair(str(prediction), str(truth), matrix, sums, {}, settings)
    except DataError as error:
        return error  # raised here, it would arrive wrapped
    return matrix.astype(np.int64), sums


def _score(matrix: NDArray[Any], sums: Sums, lacking: int, pictures: int) -> OfficialScores:
    """Computes the scores from all counts, in a worker."""
    with _official_code(not lacking) as (code, settings):
        code.generateMatrix(settings)  # fills settings.evalLabels
        ids = settings.evalLabels
        names = {label: code.id2label[label].name for label in ids}
        categories = list(code.category2labels)
        class_iiou = category_iiou = None
        if not lacking:
            class_iiou = {
                names[k]: code.getInstanceIouScoreForLabel(k, matrix, sums, settings) for k in ids
            }
            category_iiou = {
                name: code.getInstanceIouScoreForCategory(name, matrix, sums, settings)
                for name in categories
            }
        return OfficialScores(
            {names[k]: code.getIouScoreForLabel(k, matrix, settings) for k in ids},
            class_iiou,
            {name: code.getIouScoreForCategory(name, matrix, settings) for name in categories},
            category_iiou,
            f"no iIoU: {lacking} of {pictures} pictures have no *{_INSTANCES_ENDING}"
            if lacking
            else f"iIoU from the *{_INSTANCES_ENDING} of all pictures",
        )


@contextlib.contextmanager
def _official_code(with_instances: bool) -> Iterator[tuple[Any, Any]]:
    """Lends the official module and a copy of its settings; its exit becomes a DataError."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if "CITYSCAPES_" in name}
    lacks_name = not hasattr(np, "in1d")
    if lacks_name:
        np.in1d = _in1d  # type: ignore[attr-defined]
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as code

            settings = copy(code.args)
            settings.evalInstLevelScore = with_instances
            settings.quiet = True
            settings.JSONOutput = False
            yield code, settings
    except SystemExit as error:
        reason = " ".join(said.getvalue().split()).removeprefix("ERROR: ")
        raise DataError(f"the official Cityscapes scripts refuse: {reason}") from error
    finally:
        os.environ.update(hidden)
        if lacks_name:
            del np.in1d  # type: ignore[attr-defined]


def _in1d(values: NDArray[Any], test: Any, invert: bool = False) -> NDArray[np.bool_]:
    """Does what `numpy.in1d` did."""
    return np.isin(np.ravel(values), test, invert=invert)


def _refuse_other_ids(prediction: Path) -> None:
    highest = int(read_mask(prediction).max())
    if highest > HIGHEST_ID:
        raise DataError(f"{prediction}: holds {highest}; label ids end at {HIGHEST_ID}")


def _add(matrix: NDArray[Any], sums: Sums, counted: Counted) -> Counted:
    """Adds one picture's counts to those before it."""
    more, others = counted
    if not sums:
        return more, others
    for kind, of_names in others.items():
        for name, values in of_names.items():
            for key in ("tp", "tpWeighted", "fn", "fnWeighted"):
                sums[kind][name][key] += values[key]
    return matrix + more, sums
