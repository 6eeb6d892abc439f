"""What scores mean to a person: one line for each evaluation, and what to do where a class fails.

An mIoU alone misleads where classes are rare: with 98% road, a network that says road everywhere
has 0.49 of two classes. So the line holds that score too, and every class's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from segdeform.evaluation.evaluate import Evaluation

_ALL_SHOWN = 8  # classes, up to which a line has the IoU of each; beyond, those that are lowest
_LOWEST = 5
_NAMED = 5  # classes that were never predicted
MORE_STEPS = "try more steps (train.steps, or --minutes)"
OR_WEIGHTS = " or weights for rare classes (train.class_weights=auto)"


def score_line(evaluation: Evaluation) -> str:
    """Words the scores in one line: mIoU, that of the commonest class alone, IoU by class."""
    scores = evaluation.scores
    if math.isnan(scores.miou):
        return "mIoU undefined: no pixel is labelled"
    present = [k for k, iou in enumerate(scores.iou) if not math.isnan(iou)]
    shown, title = present, "IoU"
    if len(present) > _ALL_SHOWN:
        shown = sorted(present, key=lambda k: scores.iou[k])[:_LOWEST]
        title = "lowest IoU"
    ious = ", ".join(f"{evaluation.classes[k]} {scores.iou[k]:.3f}" for k in shown)
    return f"mIoU {scores.miou:.4f}{_constant(evaluation)}  {title}: {ious}"


def _constant(evaluation: Evaluation) -> str:
    truth = evaluation.matrix.sum(axis=1)
    if (truth > 0).sum() < 2:
        return ""
    name = evaluation.classes[int(truth.argmax())]
    return f" ({name} everywhere: {evaluation.scores.constant_miou:.4f})"


def never_predicted(evaluation: Evaluation) -> tuple[int, ...]:
    """Returns the classes that the masks hold and the network never said."""
    truth, predicted = evaluation.matrix.sum(axis=1), evaluation.matrix.sum(axis=0)
    return tuple(int(k) for k in ((truth > 0) & (predicted == 0)).nonzero()[0])


def warnings(evaluation: Evaluation, weighted: bool = False) -> Iterator[str]:
    """Yields a line where classes were never predicted, with what to try.

    `weighted`: the training has class weights already.
    """
    lost = never_predicted(evaluation)
    if not lost:
        return
    truth = evaluation.matrix.sum(axis=1)
    named = [f"{evaluation.classes[k]} ({truth[k] / truth.sum():.2%})" for k in lost[:_NAMED]]
    if len(lost) > _NAMED:
        named.append(f"{len(lost) - _NAMED} more")
    classes = named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"
    advice = MORE_STEPS if weighted else f"{MORE_STEPS}{OR_WEIGHTS}"
    were = f"class {classes} was" if len(lost) == 1 else f"classes {classes} were"
    yield f"{were} never predicted (shares are of the scored pixels): {advice}"
