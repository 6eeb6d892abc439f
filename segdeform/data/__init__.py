"""Data sets, read in place: `load_dataset` lists a split, `read_pair` reads one pair of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from segdeform.data import camvid, cityscapes, folder, shapes, voc
from segdeform.data.dataset import IGNORE, Dataset, MissingSplitError, Sample, read_pair
from segdeform.errors import DataError, UsageError, nearest

__all__ = [
    "DATASETS",
    "IGNORE",
    "Dataset",
    "Sample",
    "data_root",
    "guess_name",
    "list_dataset",
    "load_dataset",
    "read_pair",
]

DATASETS: dict[str, Callable[[Path, str], Dataset]] = {
    "camvid": camvid.load,
    "voc": voc.load,
    "cityscapes": cityscapes.load,
    "folder": folder.load,
    "shapes": shapes.load,
}


def data_root(name: str, given: Path | None, option: str = "--data") -> Path:
    """Returns the folder given, for Cityscapes else CITYSCAPES_DATASET.

    Raises UsageError for an unknown name, and where there is neither, with the option to give.
    """
    if name not in DATASETS:
        raise UsageError(f"no data set '{name}'.{nearest(name, DATASETS)}")
    root = given or (cityscapes.default_root() if name == "cityscapes" else None)
    if root is None:
        hint = ", or set CITYSCAPES_DATASET" if name == "cityscapes" else ""
        raise UsageError(f"where is the {name} data set? Give {option} FOLDER{hint}")
    return root


def load_dataset(name: str, root: Path, split: str) -> Dataset:
    """Lists the pictures of one split of a data set; no picture is opened.

    Raises UsageError for an unknown name, DataError when the folder, a list or a file is missing.
    """
    dataset = list_dataset(name, root, split)
    problems = [problem for problem in dataset.problems if not problem.harmless]
    if problems:
        more = f" (and {len(problems) - 1} more such problems)" if len(problems) > 1 else ""
        raise DataError(f"{problems[0].text}{more}")
    return dataset


def list_dataset(name: str, root: Path, split: str) -> Dataset:
    """Lists what a split has, and in `problems` what it lacks; else as `load_dataset`."""
    if name not in DATASETS:
        raise UsageError(f"no data set '{name}'.{nearest(name, DATASETS)}")
    if not root.exists():
        raise DataError(f"{root}: no such folder; where is the {name} data set?")
    try:
        return DATASETS[name](root, split)
    except MissingSplitError as error:
        other = guess_name(root)
        if name == "folder" != other:
            raise DataError(
                f"{root}: this looks like {other}, not like folders of pictures: say {other} "
                f"instead of folder (train {other}, eval --dataset {other})"
            ) from error
        raise


def guess_name(root: Path) -> str:
    """Tells by its layout which data set lies in a folder; `folder` where it is no known one."""
    if (root / "leftImg8bit").is_dir():
        return "cityscapes"
    return "voc" if voc.find_home(root) else "folder"
