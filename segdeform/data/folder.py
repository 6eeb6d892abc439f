"""Data sets in folders: parallel images/ and masks/, with a class list, a data YAML or neither."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path

import numpy as np

from segdeform.data.class_list import (
    ClassList,
    find_class_list,
    other_lists,
    parse_class_list,
)
from segdeform.data.data_yaml import (
    OTHER_NAMES,
    check_keys,
    find_data_yaml,
    read_data_yaml,
    unused_keys,
)
from segdeform.data.dataset import (
    IGNORE,
    Dataset,
    ListingProblem,
    MissingSplitError,
    Sample,
    colour_map,
)
from segdeform.data.image_io import MASK_SUFFIXES, PICTURE_SUFFIXES, read_mask
from segdeform.data.layout import files_by_name, pair_folders
from segdeform.data.yaml_splits import split_samples
from segdeform.errors import DataError, UnsafeInputError

LAYOUT = (
    "ROOT/{train,val}/{images,masks} or ROOT/{images,masks}/{train,val}, "
    "or a data YAML with names, train and val"
)


def load(root: Path, split: str) -> Dataset:
    """Lists one split of ROOT, a folder or a data YAML; pictures and masks are paired by name.

    Classes come from the YAML's `names`, else from classes.json or classes.txt in ROOT, else they
    are counted in the masks of all splits. What is missing, double or odd is in `problems`; raises
    DataError when the folder or the YAML cannot be understood at all.
    """
    if root.is_file() and root.suffix.lower() in PICTURE_SUFFIXES:
        raise DataError(
            f"{root}: is a picture; a data set is a folder of pictures and masks, or a data YAML"
        )
    description = root if root.is_file() else find_data_yaml(root)
    if description is not None:
        return _load_yaml(root, description, split)
    images, masks = _split_folders(root, split)
    samples, problems = pair_folders(images, masks)
    listed = find_class_list(root)
    if listed is not None:
        labels, source = listed
        problems += other_lists(root, source, labels)
    else:
        labels, odd = _count_classes(root)
        problems += odd
    return _dataset(root, split, samples, labels, problems)


def _dataset(
    root: Path,
    split: str,
    samples: Iterable[Sample],
    labels: ClassList,
    problems: Iterable[ListingProblem],
) -> Dataset:
    return Dataset(
        name="folder",
        split=split,
        root=root,
        classes=labels.names,
        palette=labels.palette,
        samples=tuple(samples),
        label_map=labels.label_map,
        void=labels.void,
        value_range=labels.value_range,
        bands=labels.bands,
        problems=tuple(problems),
    )


def _load_yaml(root: Path, description: Path, split: str) -> Dataset:
    content = read_data_yaml(description)
    check_keys(content, description)
    samples, problems = split_samples(content, description, split)
    labels = parse_class_list(content, description)
    problems += unused_keys(content, description)
    problems += other_lists(description.parent, description, labels)
    return _dataset(root, split, samples, labels, problems)


def _split_folders(root: Path, split: str) -> tuple[Path, Path]:
    for name in (split, *OTHER_NAMES.get(split, ())):
        for images, masks in (
            (root / name / "images", root / name / "masks"),
            (root / "images" / name, root / "masks" / name),
        ):
            if images.is_dir() and masks.is_dir():
                return images, masks
    raise MissingSplitError(f"{root}: holds no split '{split}'{_what_is_there(root, split)}")


def _what_is_there(root: Path, split: str) -> str:
    """Words what a folder holds in the place of a split, and what to do."""
    beside = {
        path.parent.name for path in root.glob("*/images") if (path.parent / "masks").is_dir()
    }
    below = {path.name for path in root.glob("images/*") if (root / "masks" / path.name).is_dir()}
    known = sorted(name for name in beside | below if not name.startswith("."))
    if known:
        close = get_close_matches(split, known, n=1, cutoff=0.5)
        like = [name for name in known if name.startswith(split)] or close
        asked = f"; is '{like[0]}' meant? Rename it, or name" if like else "; add it, or name"
        return f"; there are: {', '.join(known)}{asked} its folder in a data YAML"
    found = sorted(path.name for path in root.glob("*") if path.is_dir() and path.name[:1] != ".")
    there = f", but {', '.join(found[:5])}" if found else ""
    return (
        f"{there}; expected {LAYOUT}. Of raw pictures and masks, 'segdeform prepare folder "
        "--images DIR --masks DIR --output NEW' makes one"
    )


def _count_classes(root: Path) -> tuple[ClassList, list[ListingProblem]]:
    """Takes classes 0 to the highest mask value of all splits; values that look odd are a problem.

    Masks that cannot be read do not count here: whoever reads them says so.
    """
    found = (*root.glob("*/masks"), *(root / "masks").glob("*"))
    hidden = [path.name.startswith(".") or path.parent.name.startswith(".") for path in found]
    folders = [path for path, dot in zip(found, hidden, strict=True) if path.is_dir() and not dot]
    named = [files for folder in folders for files in files_by_name(folder, MASK_SUFFIXES).values()]
    with ThreadPoolExecutor(max_workers=2) as pool:
        used: set[int] = set().union(
            *pool.map(_mask_values, [mask for masks in named for mask in masks])
        )
    values = sorted(used - {IGNORE})
    count = values[-1] + 1 if values else 1
    problems = []
    if used == {0, IGNORE} or 2 * len(values) < count or count > IGNORE:
        shown = ", ".join(map(str, sorted(used)[:12])) or "none"
        text = (
            f"{root}: the masks hold the values {shown}, which do not count classes from 0; write "
            f"ROOT/data.yaml with names: [...], train: ..., val: ... and label_mapping: "
            f"{{value: class}}, e.g. {{0: 0, 255: 1}} for black and white masks"
        )
        problems.append(ListingProblem("class-values", root, text))
        # As many as can be told apart: the rest of the values then stand out, by file and place.
        count = next(index for index in range(IGNORE) if index not in values)
        count = max(count, 2 if len(used) == 2 else 1)
    names = tuple(f"class_{index}" for index in range(count))
    return ClassList(names, colour_map(count)), problems


def _mask_values(path: Path) -> frozenset[int]:
    try:
        status = path.stat()
    except OSError:
        return frozenset()
    return _values_of(path, status.st_size, status.st_mtime_ns)


@lru_cache(1 << 20)  # every split of a data set looks at the masks of all of them
def _values_of(path: Path, size: int, mtime_ns: int) -> frozenset[int]:
    try:
        counts = np.bincount(read_mask(path).ravel())
    except (DataError, UnsafeInputError):
        return frozenset()
    return frozenset(int(value) for value in np.flatnonzero(counts))
