"""What an evaluation is to leave behind, and whether it can be had: asked before any work."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from segdeform.data import data_root, load_dataset
from segdeform.data.dataset import Dataset
from segdeform.errors import DataError, UsageError
from segdeform.evaluation import cityscapes
from segdeform.evaluation.result import check_output
from segdeform.evaluation.submission import refuse_without_server
from segdeform.model_folder import refuse_missing_model, trained_on


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


def refuse_early(
    model: Path, kind: str | None, data: Path | None, split: str, output: Path | None
) -> None:
    """Refuses mistyped paths and splits without torch, which takes seconds to import.

    Of several processes none looks: those that have not met cannot tell each other of a refusal.
    Raises ModelError, UsageError or DataError, as `load`, `load_split` and `check_output` do.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return
    refuse_missing_model(model)
    kind = kind or trained_on(model)
    if kind is not None:
        load_dataset(kind, data_root(kind, data), split)
    if output is not None:
        check_output(output)


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
