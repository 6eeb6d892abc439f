"""Data YAMLs: what is in a data set and where it lies, also as other tools write them.

Folders of pictures; masks lie where `masks` takes the place of the part `images` of the path:

    path: street               # optional: of the data set, absolute or from this file's folder
    names: [road, car]         # or a mapping 0: road, 1: car
    train: images/train        # masks/train has the masks; with `masks_dir: labels`, labels/train
    val: images/val            # `valid` and `validation` are read, too
    mask_suffix: _mask         # optional: masks are called NAME_mask

Any folder of masks, for all splits or for each; pictures and masks in one folder:

    names: [road, car]
    train: photos/train        # no part `images`: masks are in drawn/train, else in drawn
    val: photos/val
    masks: drawn               # or {train: a/labels, val: b/labels}
    # one folder for both, as Roboflow exports them: train: train, val: valid, mask_suffix: _mask

Lists of files, a picture a line; after a tab its mask, from `masks`, else from `path`:

    path: /data/street
    names: {0: road, 1: car}
    train: train.txt           # in `path`, else beside this file, where ./train.txt is
    val: val.txt               # its lines: images/x.png, or photos/x.jpg<TAB>drawn/x.png
    masks: masks               # of lines without a mask, as for folders; ./x.png: from the list

Several folders or lists; pictures are then named after their path below `path`:

    names: [road, car]
    train: [berlin/images, bonn/images]
    val: [ulm/images, more.txt]
    masks: {train: [berlin/masks, bonn/masks], val: [ulm/masks, extra]}    # optional

Folds, K lists or folders: `fold2` is the second, `except-fold2` all others:

    names: [road, car]
    train: ./train.txt         # optional, with folds
    val: ./val.txt
    folds: [./fold1.txt, ./fold2.txt, ./fold3.txt]
    label_mapping: {0: 0, 255: 1}

Of up to 255 classes, 255 is not scored in masks and mappings. Of more, up to 65,535, masks are PNGs
or TIFFs of 16 bits (of 8 where the values fit), 255 is a class like any other, and 65535 is not
scored. `void_id` names one more value that is not scored, as 255 of masks that have 8 bits:

    names: classes of 300 lines, or a mapping, as above
    void_id: 255               # optional
    label_mapping: {0: 65535, 1: 0, 300: 299}
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from segdeform.config.strict_yaml import read_yaml
from segdeform.data.dataset import ListingProblem
from segdeform.errors import DataError, nearest, shortened

SPLIT_KEYS = ("train", "val", "test")
OTHER_NAMES = {"val": ("valid", "validation")}  # of a split, as other tools call it
KEYS = {
    *SPLIT_KEYS,
    "bands",
    "bits",
    "folds",
    "path",
    "names",
    "nc",
    "masks",
    "masks_dir",
    "mask_suffix",
    "label_mapping",
    "palette",
    "value_range",
    "void_id",
}
# What data YAMLs of other tools hold beside that, and nobody expects to matter.
_UNUSED_KEYS = {"download", "channels", "author", "license", "version", "description", "name"}
KNOWN = KEYS | _UNUSED_KEYS | {name for names in OTHER_NAMES.values() for name in names}
_OURS = ("data.yaml", "data.yml")
_LOOKS_OURS = re.compile(rb"^\s*(names|train|val|label_mapping)\s*:", re.MULTILINE)


def find_data_yaml(root: Path) -> Path | None:
    """Finds the data YAML of a folder; hidden files and YAMLs about other things are left alone.

    Raises DataError where there are several, or the one that there is cannot be read.
    """
    paths = sorted(path for path in root.glob("*.y*ml") if path.suffix in (".yaml", ".yml"))
    files: dict[Path, Mapping[Any, Any]] = {}
    unreadable: list[DataError] = []
    for path in paths:
        if path.name.startswith("."):  # macOS leaves ._data.yaml on foreign drives
            continue
        try:
            files[path] = read_data_yaml(path)
        except DataError as error:
            if path.name in _OURS or _looks_ours(path):
                unreadable.append(error)
    described = [path for path, content in files.items() if "names" in content]
    if not described and unreadable:
        raise unreadable[0]
    if not described:  # one that lacks its names, or misspells them, is to be refused, not ignored
        described = [
            path
            for path, found in files.items()
            if path.name in _OURS or (KEYS & found.keys() and not _is_config(found))
        ]
    if len(described) > 1:
        names = ", ".join(path.name for path in described)
        raise DataError(f"{root}: holds several data YAMLs ({names}); give the path of one")
    return described[0] if described else None


def _is_config(content: Mapping[Any, Any]) -> bool:
    """Tells a training's config, whose `train` is a section, from a data YAML."""
    return isinstance(content.get("train"), Mapping) or not {"model", "deform"}.isdisjoint(content)


def read_data_yaml(path: Path) -> Mapping[Any, Any]:
    """Reads a data YAML; empty where it holds no keys. Raises DataError."""
    content = read_yaml(path, DataError)
    return content if isinstance(content, dict) else {}


def check_keys(content: Mapping[Any, Any], source: Path) -> None:
    """Raises DataError for a key that looks misspelt, and where there are no names."""
    lacking = KEYS - content.keys()
    for key in content:
        if key not in KNOWN and get_close_matches(str(key), lacking, n=1, cutoff=0.75):
            raise DataError(f"{source}: unknown key '{key}'.{nearest(str(key), KEYS)}")
    if "names" not in content:
        raise DataError(f"{source}: a data YAML needs names: a list of the class names")


def unused_keys(content: Mapping[Any, Any], source: Path) -> Iterator[ListingProblem]:
    """Yields the keys that mean nothing here: other tools' own blocks, and single values."""
    for key, value in content.items():
        if key not in KNOWN:
            kind = "unused-block" if isinstance(value, Mapping) else "unused-key"
            yield ListingProblem(kind, source, f"{source}: the key '{key}' means nothing here")


def text_of(
    content: Mapping[Any, Any], key: str, default: str, source: Path, what: str = "a folder's name"
) -> str:
    """Returns a text of a data YAML. Raises DataError for a value of another kind."""
    value = content.get(key, default)
    if not isinstance(value, str):
        raise DataError(f"{source}: {key} is {what}, one text, not {shortened(value)}")
    return value


def _looks_ours(path: Path) -> bool:
    try:
        return bool(_LOOKS_OURS.search(path.read_bytes()))
    except OSError:
        return True
