"""How far an exported network is from the network that it was made of, measured on pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cuda_ops.labels import enlarged_labels
from segdeform.evaluation.confusion import Labels, confusion_matrix
from segdeform.evaluation.confusion import scores as score
from segdeform.export.network import Form, Precision
from segdeform.export.pictures import Picture
from segdeform.files.atomic import json_number
from segdeform.models.deeplab import DeepLab
from segdeform.models.resizing import enlarge
from segdeform.runtimes.sessions import Run

_LARGE = 100.0  # scores beyond which those of all classes but one have no probability


class Bar(NamedTuple):
    """What must hold of an export."""

    logits: float  # largest difference of scores / largest score
    labels: float  # share of the pixels with the same label
    probabilities: float  # largest difference


BARS: dict[Precision, Bar] = {
    "fp32": Bar(1e-3, 0.9999, 1e-3),
    "fp16": Bar(3e-2, 0.995, 3e-2),
    "bf16": Bar(2e-1, 0.97, 2e-1),
}


@dataclass
class Parity:
    """What was measured over all pictures."""

    pixels: int = 0
    equal: int = 0
    largest_score: float = 0.0
    largest: float = 0.0  # difference of scores
    summed: float = 0.0
    scores: int = 0
    probabilities: float | None = None  # largest difference
    finite: bool = True
    # [K, K] pixels by true and predicted class, of pictures with masks: the network's, its own.
    counts: NDArray[np.int64] | None = None
    its_counts: NDArray[np.int64] | None = None
    other_shape: str = ""  # of an output, where it has not the one that it must have

    def failure(self, bar: Bar) -> str:
        """Says what is wrong; "" where all is well."""
        if self.other_shape:
            return self.other_shape
        if not self.finite:
            return "it gives NaN or infinity"
        if self.relative > bar.logits:
            return f"scores differ by up to {self.relative:.1e} of the largest ({bar.logits:g} may)"
        if self.share < bar.labels:
            least = f"{bar.labels:.2%} must"
            return f"only {self.share:.4%} of the pixels have the same label ({least})"
        # Scores of thousands are off by more than a probability's digits, in any float32.
        most = bar.probabilities * max(1.0, self.largest_score / _LARGE)
        if self.probabilities is not None and self.probabilities > most:
            return f"probabilities differ by up to {self.probabilities:.1e} ({most:.1e} may)"
        return ""

    @property
    def share(self) -> float:
        """The share of the pixels with the same label."""
        return self.equal / max(1, self.pixels)

    @property
    def relative(self) -> float:
        """The largest difference of scores / the largest score."""
        return self.largest / max(self.largest_score, 1e-30)

    @property
    def miou(self) -> tuple[float, float] | None:
        """The network's mIoU and its own, where there were masks."""
        if self.counts is None or self.its_counts is None:
            return None
        return score(self.counts).miou, score(self.its_counts).miou

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values."""
        found = {
            "pixels": self.pixels,
            "equal_labels": self.share,
            "different_labels": self.pixels - self.equal,
            "largest_logit_difference": self.largest,
            "mean_logit_difference": self.summed / max(1, self.scores),
            "largest_logit": self.largest_score,
        }
        if self.probabilities is not None:
            found["largest_probability_difference"] = self.probabilities
        if self.miou is not None:
            ours, its = self.miou
            scored = {"miou": json_number(its), "reference_miou": json_number(ours)}
            return found | scored
        return found


@torch.inference_mode()
def compare(network: DeepLab, run: Run, form: Form, pictures: Iterable[Picture]) -> Parity:
    """Runs both on all pictures; labels are compared with those that `predict` writes."""
    parity = Parity(probabilities=0.0 if form.probabilities else None)
    for picture in pictures:
        images = torch.from_numpy(picture.pixels).permute(0, 3, 1, 2).float() / 255
        scores, size = network.maps(images), (images.shape[2], images.shape[3])
        stride = network.map_stride(scores, size)
        labels = enlarged_labels(scores, stride, size)
        given = picture.pixels if form.input == "uint8" else images.contiguous().numpy()
        found = dict(zip(form.outputs, run(given, form.outputs), strict=True))
        _add(parity, scores, labels, torch.tensor(found["scores"]), torch.tensor(found["labels"]))
        if picture.truth is not None and not parity.other_shape:
            _count(parity, picture.truth, labels.numpy(), found["labels"], scores.shape[1])
        if parity.probabilities is not None:
            wanted = enlarge(scores, stride, size).softmax(1)
            apart = (torch.tensor(found["probabilities"]) - wanted).abs().max()
            parity.probabilities = max(parity.probabilities, float(apart))
    return parity


def _add(parity: Parity, scores: Tensor, labels: Tensor, its: Tensor, its_labels: Tensor) -> None:
    if its.shape != scores.shape or its_labels.shape != labels.shape:
        parity.other_shape = (
            f"its scores and labels are {list(its.shape)} and {list(its_labels.shape)}, not "
            f"{list(scores.shape)} and {list(labels.shape)}"
        )
        return
    parity.finite &= bool(torch.isfinite(its).all())
    apart = (its.double() - scores.double()).abs()
    parity.pixels += labels.numel()
    parity.equal += int((its_labels.int() == labels.int()).sum())
    parity.largest_score = max(parity.largest_score, float(scores.abs().max()))
    parity.largest = max(parity.largest, float(apart.max()))
    parity.summed += float(apart.sum())
    parity.scores += apart.numel()


def _count(
    parity: Parity,
    truth: Labels,  # [N, H, W]
    labels: NDArray[Any],  # [N, H, W]
    its_labels: NDArray[Any],  # [N, H, W]
    classes: int,
) -> None:
    """Counts the pixels of both by class."""
    if parity.counts is None or parity.its_counts is None:
        parity.counts, parity.its_counts = np.zeros((2, classes, classes), np.int64)
    for true, ours, its in zip(truth, labels, its_labels, strict=True):
        parity.counts += confusion_matrix(true, ours, classes)
        parity.its_counts += confusion_matrix(true, its, classes)


def worded(runtime: str, version: str, parity: Parity, pictures: int) -> str:
    """Says in one line what was measured."""
    share = math.floor(parity.share * 10**6) / 10**6  # 100% is said of all pixels alone
    scored = ""
    if parity.miou is not None:
        ours, its = parity.miou
        scored = f"; mIoU {its:.4f}, the network's {ours:.4f}"
    return (
        f"{runtime} {version}: {share:.4%} of the labels equal ({parity.pixels - parity.equal} of "
        f"{parity.pixels} pixels differ), scores differ by up to {parity.largest:.1e}, "
        f"{parity.summed / max(1, parity.scores):.1e} on average, of "
        f"{parity.largest_score:.1f}; {pictures} pictures{scored}"
    )
