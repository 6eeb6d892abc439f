"""Data sets in folders: parallel images/ and masks/, with a class list, a data YAML or neither."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from segdeform.config.strict_yaml import read_yaml
from segdeform.data.class_list import ClassList, find_class_list, parse_class_list
from segdeform.data.dataset import (
    IGNORE,
    Dataset,
    ListingProblem,
    MissingSplitError,
    Sample,
    colour_map,
)
from segdeform.data.image_io import MASK_SUFFIXES, read_mask
from segdeform.data.layout import files_by_name, pair_folders
from segdeform.errors import DataError, UnsafeInputError, nearest

LAYOUT = (
    "ROOT/{train,val}/{images,masks} or ROOT/{images,masks}/{train,val}, "
    "or a data YAML with names, train and val"
)
_SPLIT_KEYS = ("train", "val", "test")
_YAML_KEYS = {
    *_SPLIT_KEYS,
    "path",
    "names",
    "nc",
    "masks",
    "masks_dir",
    "label_mapping",
    "palette",
    "void_id",
}
# What data YAMLs of other tools hold beside that, without a meaning here.
_UNUSED_KEYS = {"download", "channels", "author", "license", "version", "description"}


def load(root: Path, split: str) -> Dataset:
    """Lists one split of ROOT, a folder or a data YAML; pictures and masks are paired by name.

    Classes come from the YAML's `names`, else from classes.json or classes.txt in ROOT, else they
    are counted in the masks of all splits. What is missing, double or odd is in `problems`; raises
    DataError when the folder or the YAML cannot be understood at all.
    """
    description = root if root.is_file() else _find_data_yaml(root)
    if description is not None:
        return _load_yaml(root, description, split)
    images, masks = _split_folders(root, split)
    samples, problems = pair_folders(images, masks)
    labels = find_class_list(root)
    if labels is None:
        labels, odd = _count_classes(root)
        problems.extend(odd)
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
        problems=tuple(problems),
    )


def _find_data_yaml(root: Path) -> Path | None:
    files = {path: _read_mapping(path) for path in [*root.glob("*.yaml"), *root.glob("*.yml")]}
    described = sorted(path for path, content in files.items() if "names" in content)
    if not described:  # one that lacks its names, or misspells them, is to be refused, not ignored
        ours = ("data.yaml", "data.yml")
        described = sorted(
            path for path, found in files.items() if path.name in ours or _YAML_KEYS & found.keys()
        )
    if len(described) > 1:
        names = ", ".join(path.name for path in described)
        raise DataError(f"{root}: holds several data YAMLs ({names}); give the path of one")
    return described[0] if described else None


def _read_mapping(path: Path) -> dict[Any, Any]:
    content = read_yaml(path, DataError)
    return content if isinstance(content, dict) else {}


def _load_yaml(root: Path, description: Path, split: str) -> Dataset:
    content = _read_mapping(description)
    for key in content:
        if key not in _YAML_KEYS | _UNUSED_KEYS:
            raise DataError(f"{description}: unknown key '{key}'.{nearest(str(key), _YAML_KEYS)}")
    if "names" not in content:
        raise DataError(f"{description}: a data YAML needs names: a list of the class names")
    if split not in _SPLIT_KEYS:
        raise MissingSplitError(f"{description}: no split '{split}'.{nearest(split, _SPLIT_KEYS)}")
    if not isinstance(content.get(split), str):
        raise MissingSplitError(f"{description}: needs {split}: images/{split}, or another folder")
    base = description.parent / _text(content, "path", "", description)
    images = base / content[split]
    beside = _text(content, "masks", _text(content, "masks_dir", "masks", description), description)
    parts = list(Path(content[split]).parts)
    if "images" not in parts:
        raise DataError(
            f"{description}: {split}: {content[split]} has no part 'images' that '{beside}' "
            "could take the place of to find the masks"
        )
    parts[len(parts) - 1 - parts[::-1].index("images")] = beside
    samples, problems = pair_folders(images, base / Path(*parts))
    return _dataset(root, split, samples, parse_class_list(content, description), problems)


def _text(content: dict[Any, Any], key: str, default: str, source: Path) -> str:
    value = content.get(key, default)
    if not isinstance(value, str):
        raise DataError(f"{source}: {key} is the name of a folder, not {value!r}")
    return value


def _split_folders(root: Path, split: str) -> tuple[Path, Path]:
    for images, masks in (
        (root / split / "images", root / split / "masks"),
        (root / "images" / split, root / "masks" / split),
    ):
        if images.is_dir() and masks.is_dir():
            return images, masks
    raise MissingSplitError(f"{root}: holds no split '{split}'; expected {LAYOUT}")


def _count_classes(root: Path) -> tuple[ClassList, list[ListingProblem]]:
    """Takes classes 0 to the highest mask value of all splits; values that look odd are a problem.

    Masks that cannot be read do not count here: whoever reads them says so.
    """
    folders = [*root.glob("*/masks"), *(root / "masks").glob("*")]
    named = [files for folder in folders for files in files_by_name(folder, MASK_SUFFIXES).values()]
    with ThreadPoolExecutor(max_workers=2) as pool:
        used = set().union(*pool.map(_mask_values, [mask for masks in named for mask in masks]))
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


def _mask_values(path: Path) -> set[int]:
    try:
        counts = np.bincount(read_mask(path).ravel())
    except (DataError, UnsafeInputError):
        return set()
    return {int(value) for value in np.flatnonzero(counts)}
