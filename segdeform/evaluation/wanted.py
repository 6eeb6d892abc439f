"""What an evaluation is to leave behind, and whether it can be had: asked before any work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from segdeform.data.dataset import Dataset
from segdeform.errors import DataError, UsageError
from segdeform.evaluation import cityscapes
from segdeform.evaluation.result import check_output
from segdeform.evaluation.submission import refuse_without_server


@dataclass(frozen=True)
class Wanted:
    """What an evaluation leaves behind."""

    output: Path | None = None  # folder of the result
    official: bool = False  # score with cityscapesscripts too
    submission: Path | None = None  # zip for the benchmark server


def check_wanted(dataset: Dataset, wanted: Wanted) -> None:
    """Raises UsageError or DataError for what would only show after hours of counting."""
    if has_no_masks(dataset) and (wanted.submission is None or wanted.output or wanted.official):
        raise UsageError(
            f"split '{dataset.split}' of {dataset.name} has no masks that hold a class, so nothing "
            "can be scored: give --submission FILE.zip alone to have its label maps for the "
            "benchmark's server"
        )
    lacking = [sample for sample in dataset.samples if sample.mask is None]
    if 0 < len(lacking) < len(dataset):
        raise DataError(f"{lacking[0].image}: has no mask, though other pictures have one")
    if wanted.official:
        _check_official(dataset, wanted)
    if wanted.submission is not None:
        refuse_without_server(dataset)
        if wanted.submission.suffix != ".zip" or wanted.submission.is_dir():
            raise UsageError(f"--submission {wanted.submission}: expected the name of a .zip file")
    if wanted.output is not None:
        check_output(wanted.output)


def has_no_masks(dataset: Dataset) -> bool:
    """Tells whether a split can be predicted only, as a benchmark's test split."""
    return all(sample.mask is None for sample in dataset.samples)


def _check_official(dataset: Dataset, wanted: Wanted) -> None:
    if dataset.name != "cityscapes":
        raise UsageError(f"--official is for cityscapes, not for '{dataset.name}'")
    if wanted.output is None:
        raise UsageError("--official writes label maps: give --output FOLDER")
    for sample in dataset.samples:
        if sample.mask is not None and not sample.mask.name.endswith(cityscapes.TRUTH_ENDING):
            raise DataError(
                f"{sample.mask}: the official scripts need *{cityscapes.TRUTH_ENDING}; "
                "segdeform prepare cityscapes makes them"
            )
