"""Data YAMLs: what is in a data set and where it lies, also as annotation services export them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from segdeform.config.strict_yaml import read_yaml
from segdeform.data.dataset import ListingProblem, MissingSplitError
from segdeform.errors import DataError, nearest

SPLIT_KEYS = ("train", "val", "test")
OTHER_NAMES = {"val": ("valid", "validation")}  # of a split, as other tools call it
_KEYS = {
    *SPLIT_KEYS,
    "bands",
    "bits",
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
_KNOWN = _KEYS | _UNUSED_KEYS | {name for names in OTHER_NAMES.values() for name in names}
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
            path for path, found in files.items() if path.name in _OURS or _KEYS & found.keys()
        ]
    if len(described) > 1:
        names = ", ".join(path.name for path in described)
        raise DataError(f"{root}: holds several data YAMLs ({names}); give the path of one")
    return described[0] if described else None


def read_data_yaml(path: Path) -> Mapping[Any, Any]:
    """Reads a data YAML; empty where it holds no keys. Raises DataError."""
    content = read_yaml(path, DataError)
    return content if isinstance(content, dict) else {}


def check_keys(content: Mapping[Any, Any], source: Path) -> None:
    """Raises DataError for a key that looks misspelt, and where there are no names."""
    lacking = _KEYS - content.keys()
    for key in content:
        if key not in _KNOWN and get_close_matches(str(key), lacking, n=1, cutoff=0.75):
            raise DataError(f"{source}: unknown key '{key}'.{nearest(str(key), _KEYS)}")
    if "names" not in content:
        raise DataError(f"{source}: a data YAML needs names: a list of the class names")


def unused_keys(content: Mapping[Any, Any], source: Path) -> Iterator[ListingProblem]:
    """Yields the keys that mean nothing here: other tools' own blocks, and single values."""
    for key, value in content.items():
        if key not in _KNOWN:
            kind = "unused-block" if isinstance(value, Mapping) else "unused-key"
            yield ListingProblem(kind, source, f"{source}: the key '{key}' means nothing here")


def split_folders(
    content: Mapping[Any, Any], source: Path, split: str
) -> tuple[Path, Path, list[ListingProblem]]:
    """Returns the folders of a split's pictures and masks, and what is odd about them.

    Exported YAMLs name folders as seen from another place (../train/images, /content/set/valid/
    images): what is not there is looked for below the YAML itself. Raises DataError.
    """
    if split not in SPLIT_KEYS:
        raise MissingSplitError(f"{source}: no split '{split}'.{nearest(split, SPLIT_KEYS)}")
    names = (split, *OTHER_NAMES.get(split, ()))
    text = next((content[name] for name in names if isinstance(content.get(name), str)), None)
    if text is None:
        raise MissingSplitError(f"{source}: needs {split}: images/{split}, or another folder")
    beside = text_of(content, "masks", text_of(content, "masks_dir", "masks", source), source)
    images = _place(source.parent, text_of(content, "path", "", source), text)
    parts = list(images.parts)
    if "images" not in Path(text).parts or "images" not in parts:
        raise DataError(
            f"{source}: {split}: {text} has no part 'images' that '{beside}' could take the place "
            "of to find the masks"
        )
    parts[len(parts) - 1 - parts[::-1].index("images")] = beside
    problems = []
    if images != source.parent / text_of(content, "path", "", source) / text:
        told = f"{source}: {split}: {text} is not there; {images} is taken for it"
        problems.append(ListingProblem("moved-folder", source, told))
    return images, Path(*parts), problems


def text_of(content: Mapping[Any, Any], key: str, default: str, source: Path) -> str:
    """Returns a text of a data YAML. Raises DataError for a value of another kind."""
    value = content.get(key, default)
    if not isinstance(value, str):
        raise DataError(f"{source}: {key} is the name of a folder, not {value!r}")
    return value


def _place(folder: Path, path: str, text: str) -> Path:
    """Finds what a YAML in FOLDER means by `text`: first as it says, then below FOLDER."""
    wanted = folder / path / text
    parts = [part for part in Path(text).parts if part not in ("..", "/")]
    # A single last part, such as images, would be the same folder for every split.
    tails = [Path(*parts[start:]) for start in range(max(1, len(parts) - 1))]
    places = [wanted, *(base / tail for tail in tails for base in (folder / path, folder))]
    return next((place for place in places if place.is_dir()), wanted)


def _looks_ours(path: Path) -> bool:
    try:
        return bool(_LOOKS_OURS.search(path.read_bytes()))
    except OSError:
        return True
