"""The splits of a data YAML: the pictures of its folders and lists, and where their masks lie."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from segdeform.data.data_yaml import KNOWN, OTHER_NAMES, SPLIT_KEYS, text_of
from segdeform.data.dataset import ListingProblem, MissingSplitError, Sample
from segdeform.data.file_lists import Places, list_pairs, name_below, tidy
from segdeform.data.layout import pair_folders
from segdeform.errors import DataError, nearest, shortened

_FOLD = re.compile(r"(except-)?fold([1-9][0-9]{0,3})")
_LIST = ".txt"


def split_samples(
    content: Mapping[Any, Any], source: Path, split: str
) -> tuple[list[Sample], list[ListingProblem]]:
    """Lists the pairs of a split of the YAML SOURCE, and what is odd about them.

    Exported YAMLs name files as seen from another place (../train/images, /content/set/valid/
    images): what is not there is looked for below the YAML itself. Raises DataError,
    MissingSplitError.
    """
    texts = split_texts(content, source, split)
    places = Places(source, tidy(source.parent / text_of(content, "path", "", source)))
    suffix = None
    if "mask_suffix" in content:
        suffix = text_of(content, "mask_suffix", "", source, "what ends the masks' names, as _mask")
    samples: list[Sample] = []
    problems: list[ListingProblem] = []
    for text, masks in zip(texts, _masks_of(content, source, split, len(texts)), strict=True):
        place, moved = places.find(text)
        if moved:
            told = f"{source}: {split}: {text} is not there; {place} is taken for it"
            problems.append(ListingProblem("moved-folder", source, told))
        if Path(text).suffix.lower() == _LIST and not place.is_dir():
            given = None if masks is None else tidy(places.find(masks)[0])
            found, odd = list_pairs(place, places, masks or "masks", given, suffix or "")
        else:
            folder = _mask_folder(places, split, text, place, masks, bool(suffix))
            found, odd = pair_folders(place, folder, mask_suffix=suffix)
            if len(texts) > 1:
                name = name_below(place, places.base)
                found = [replace(sample, name=f"{name}/{sample.name}") for sample in found]
        samples += found
        problems += odd
    samples, doubles = _without_doubles(samples)
    return samples, sorted([*problems, *doubles], key=lambda problem: problem.harmless)


def split_texts(content: Mapping[Any, Any], source: Path, split: str) -> list[str]:
    """Returns the folders and lists that a split is made of, as the YAML names them.

    Raises MissingSplitError, DataError.
    """
    folds = _texts_of(content["folds"], "folds", source) if content.get("folds") else []
    if len(folds) == 1:
        raise DataError(f"{source}: folds are two or more lists of files, not {folds[0]!r}")
    fold = _FOLD.fullmatch(split)
    if fold and int(fold[2]) <= len(folds):
        index = int(fold[2]) - 1
        return folds[:index] + folds[index + 1 :] if fold[1] else [folds[index]]
    if fold and not folds:
        raise MissingSplitError(
            f"{source}: no split '{split}': the data set has no folds; segdeform prepare folder "
            "--folds K writes them"
        )
    if split not in SPLIT_KEYS:
        there = [name for name in SPLIT_KEYS if any(content.get(key) for key in _keys(name))]
        known = (*there, *(f"fold{number + 1}" for number in range(len(folds))))
        raise MissingSplitError(f"{source}: no split '{split}'.{nearest(split, known)}")
    value = next((content[key] for key in _keys(split) if content.get(key)), None)
    if value is None:
        raise MissingSplitError(
            f"{source}: no split '{split}'{_splits_there(content)}; write {split}: "
            f"images/{split}, or another folder or list of files"
        )
    return _texts_of(value, split, source)


def _splits_there(content: Mapping[Any, Any]) -> str:
    """Words what a YAML names in the place of a split: the others, and keys nobody knows."""
    there = [key for split in SPLIT_KEYS for key in _keys(split) if content.get(key)]
    odd = [str(key) for key, value in content.items() if key not in KNOWN and value]
    words = f"; there are: {', '.join(there)}" if there else ""
    return words + (f" (and the unknown key{'s'[: len(odd) > 1]} {', '.join(odd)})" if odd else "")


def _keys(split: str) -> tuple[str, ...]:
    return split, *OTHER_NAMES.get(split, ())


def _texts_of(value: Any, key: str, source: Path) -> list[str]:
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError(
            f"{source}: {key} is a folder, a list of files (.txt), or several of them in brackets, "
            f"not {shortened(value)}"
        )
    return texts


def _masks_of(
    content: Mapping[Any, Any], source: Path, split: str, count: int
) -> list[str] | list[None]:
    """Returns the mask folder that the YAML names for each part of a split, or None."""
    key = "masks" if "masks" in content else "masks_dir"
    value = content.get(key)
    if isinstance(value, Mapping):
        value = next((value[key] for key in _keys(split) if value.get(key)), None)
        if value is None:
            raise DataError(f"{source}: {key} names no folder for {split}")
    if value is None:
        return [None] * count
    texts = _texts_of(value, key, source)
    if isinstance(value, list) and len(texts) != count:
        raise DataError(f"{source}: {key} names {len(texts)} folders for the {count} of {split}")
    return texts if isinstance(value, list) else texts * count


def _mask_folder(
    places: Places, split: str, text: str, images: Path, masks: str | None, suffixed: bool
) -> Path:
    """Returns the folder of the masks of a folder of pictures, the first there is of several.

    `masks` in the place of `images`; the folder `masks` itself, or what lies in it for the split;
    where masks have a suffix and no folder is named, the pictures' own.
    """
    parts = list(images.parts)
    choices = []
    if parallel := "images" in Path(text).parts and "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = masks or "masks"
        choices.append(Path(*parts))
    if masks is not None:
        folder, _ = places.find(masks)
        inner = Path(*Path(text).parts[1:])
        choices += [folder / inner, folder]
    elif suffixed:
        choices.append(images)
    found = next((place for place in choices if place.is_dir()), None)
    if found is None and parallel and masks is None:
        _refuse_polygons(places.source, images, parts)
    if found is None and not parallel:
        raise DataError(
            f"{places.source}: {split}: {text} has no part 'images' that '{masks or 'masks'}' "
            f"could take the place of to find the masks; name their folder: masks: {{{split}: "
            "FOLDER}"
        )
    return found or choices[0]


def _refuse_polygons(source: Path, images: Path, parts: list[str]) -> None:
    """Raises DataError where polygons lie in the place of masks: a folder labels/ of texts."""
    index = len(images.parts) - 1 - images.parts[::-1].index("images")
    labels = Path(*parts[:index], "labels", *parts[index + 1 :])
    if next(labels.glob("*.txt"), None) is not None:
        raise DataError(
            f"{source}: {labels} holds polygons, not masks; draw them: segdeform prepare folder "
            f"--images {images} --masks {labels} --output ROOT"
        )


def _without_doubles(samples: list[Sample]) -> tuple[list[Sample], list[ListingProblem]]:
    """Keeps the first sample of each name: outputs are named after it."""
    kept: dict[str, Sample] = {}
    problems = []
    for sample in samples:
        first = kept.setdefault(sample.name, sample)
        if first is not sample:
            same = first.image == sample.image
            text = f"{sample.image}: " + (
                "is listed twice" if same else f"has the same name as {first.image}; rename one"
            )
            problems.append(ListingProblem("double", sample.image, text))
    return list(kept.values()), problems
