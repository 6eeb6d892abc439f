"""Makes a data set ready for training, or says what is missing: `segdeform prepare`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from segdeform.checking import check_sound
from segdeform.data import DATASETS, camvid, cityscapes, folder, load_dataset, voc
from segdeform.data.dataset import MissingSplitError
from segdeform.data.shapes import write_shapes
from segdeform.errors import DataError, UsageError, nearest

_SPLITS = ("train", "val")
# What must lie at ROOT, and who gives it out.
_ORIGIN = {
    "camvid": f"Expected {camvid.LAYOUT}; the pictures come from {camvid.SOURCE}",
    "voc": f"Expected {voc.LAYOUT}; unpack {voc.SOURCE} there",
    "cityscapes": f"Expected {cityscapes.LAYOUT}; https://www.cityscapes-dataset.com gives it out",
    "folder": f"Expected {folder.LAYOUT}",
}


@dataclass(frozen=True)
class PrepareSummary:
    """What `prepare` found or made."""

    name: str
    root: Path
    splits: dict[str, int]  # split -> number of pairs
    classes: tuple[str, ...]
    messages: tuple[str, ...]


def prepare(
    name: str,
    output: Path,
    *,
    seed: int = 0,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> PrepareSummary:
    """Generates `shapes` into a folder, or verifies in place the data set that lies there.

    Every picture and mask of the splits that exist is read and checked; `progress` hears (done,
    all) while pictures are generated.
    Raises UsageError for an unknown name or a folder in use, DataError that says what is wrong with
    the data or, where there are none, what is expected and where it comes from.
    """
    if name not in DATASETS:
        raise UsageError(f"no data set '{name}'.{nearest(name, DATASETS)}")
    messages = []
    if name == "shapes":
        made = write_shapes(output, seed=seed, progress=progress)
        messages.append("generated" if made else "was there already, nothing written")
    elif not output.exists():
        raise DataError(f"{output}: no such folder, and nothing is downloaded yet. {_ORIGIN[name]}")
    datasets, missing = [], []
    for split in _SPLITS:
        try:
            datasets.append(load_dataset(name, output, split))
        except MissingSplitError as error:
            missing.append(error)
    if not datasets:
        raise missing[0]
    check_sound(datasets, workers=workers)
    messages.append("every picture and mask was read and fits")
    messages.extend(str(error) for error in missing)
    return PrepareSummary(
        name=name,
        root=output,
        splits={dataset.split: len(dataset) for dataset in datasets},
        classes=datasets[0].classes,
        messages=tuple(messages),
    )
