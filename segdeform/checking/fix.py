"""Writes a repaired copy of a data set; the source is only ever read."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from segdeform.callbacks import Progress
from segdeform.checking.check import check, list_splits
from segdeform.checking.facts import Facts, mask_facts, plain_values
from segdeform.checking.judge import class_of_colour, foreign_index
from segdeform.checking.report import Report
from segdeform.data.dataset import Dataset, Labels, Mask, label_type, read_picture
from segdeform.data.depth import as_json
from segdeform.data.image_io import (
    UPRIGHT,
    MaskKindError,
    UInt8,
    opened,
    orientation,
    read_mask,
    write_image,
    write_index_png,
)
from segdeform.errors import DataError, UnsafeInputError, UsageError
from segdeform.files.atomic import write_error, write_json, write_text

LISTING = "left-out.json"
_SPLITS = ("train", "val", "test")  # the keys of a data YAML


@dataclass(frozen=True)
class Repair:
    """What a repaired copy holds."""

    folder: Path
    pairs: int
    written: int
    left_out: tuple[tuple[str, str], ...]  # file, why

    @property
    def listing(self) -> Path:
        return self.folder / LISTING

    def to_json(self) -> dict[str, Any]:
        """Returns the repair as JSON values."""
        left_out = [{"file": file, "reason": reason} for file, reason in self.left_out]
        return {
            "folder": str(self.folder),
            "pairs": self.pairs,
            "written": self.written,
            "left_out": left_out,
        }


def repair(
    datasets: Sequence[Dataset],
    report: Report,
    folder: Path,
    *,
    progress: Progress | None = None,
) -> Repair:
    """Writes FOLDER/{images,masks}/SPLIT, data.yaml and, where pairs are left out, their list.

    Pictures turned by EXIF are stored upright; masks become palette PNGs of class indices: mapped,
    converted from colours where the palette knows them, turned with their picture. What needs a
    guess (other sizes, unknown values or colours, JPEG masks) is left out. FOLDER appears whole,
    once it has been checked like any other.

    Raises UsageError when FOLDER is in use or inside the data set, DataError when no pair is left
    or the copy has errors too, ResourceError when the disk is full.
    """
    folder = folder.resolve()  # "." has no name
    _refuse_folder(folder, datasets)
    plans = [_with_cause(dataset, report) for dataset in datasets]
    partial = _room(folder)
    left_out = [
        (str(problem.file), problem.text)
        for dataset in datasets
        for problem in dataset.problems
        if not problem.harmless and problem.kind != "class-values"
    ]
    total, done, written = sum(map(len, datasets)) + len(left_out), 0, 0
    try:
        shutil.rmtree(partial, ignore_errors=True)
        for dataset in plans:
            for index, sample in enumerate(dataset.samples):
                try:
                    _write_pair(dataset, index, partial)
                    written += 1
                except (DataError, UnsafeInputError) as error:
                    left_out.append((str(sample.mask or sample.image), str(error)))
                done += 1
                if progress:
                    progress(done, total)
        if not written:
            raise DataError(f"{left_out[0][1]} (nor can any other pair be repaired)")
        result = Repair(folder, total, written, tuple(left_out))
        _describe(plans, partial, result)
        _refuse_errors(partial, folder)
        partial.replace(folder)
    except OSError as error:
        raise write_error(folder, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return result


def _written(folder: Path) -> list[tuple[str, str]]:
    """Returns the splits that a copy has pictures of, and where."""
    return [(split, f"images/{split}") for split in _SPLITS if (folder / "images" / split).is_dir()]


def _room(folder: Path) -> Path:
    """Returns where FOLDER is made, before it appears whole."""
    return folder.with_name(f".{folder.name}.partial")


def _refuse_folder(folder: Path, datasets: Sequence[Dataset]) -> None:
    root = datasets[0].root if datasets[0].root.is_dir() else datasets[0].root.parent
    if folder.resolve().is_relative_to(root.resolve()):
        raise UsageError(f"{folder}: lies in the data set {root}; choose a folder outside of it")
    if root.resolve().is_relative_to(_room(folder)):
        raise UsageError(f"{root}: lies where {folder} is made; choose another folder")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder}: holds other files; choose a new folder")
    for dataset in datasets:
        if dataset.split not in _SPLITS:
            raise UsageError(
                f"--fix writes a data YAML, which knows {', '.join(_SPLITS)} and not "
                f"'{dataset.split}': name these with --split"
            )


def _with_cause(dataset: Dataset, report: Report) -> Dataset:
    """Adds the mapping that the check found to be meant."""
    return replace(dataset, label_map=report.cause.mapping) if report.cause else dataset


def _refuse_errors(partial: Path, folder: Path) -> None:
    """Checks a copy as any data set; raises DataError where it could not be trained on."""
    datasets, listing = list_splits("folder", partial, [split for split, _ in _written(partial)])
    report = check(datasets, listing=listing)
    if report.errors:
        text = report.errors[0].line.replace(str(partial), str(folder))
        raise report.refusal(f"{folder}: not written, the copy would not be sound either: {text}")


def _write_pair(dataset: Dataset, index: int, folder: Path) -> None:
    sample = dataset.samples[index]
    if sample.mask is None:
        raise DataError(f"{sample.image}: has no mask")
    picture = read_picture(dataset, index)
    with opened(sample.image) as image:
        turn = orientation(image)
    labels = _labels(dataset, sample.mask, turn)
    if labels.shape != picture.shape[:2] and turn >= 5:
        labels = _turned(labels, turn)
    if labels.shape != picture.shape[:2]:
        sizes = (f"{shape[0]}x{shape[1]}" for shape in (labels.shape, picture.shape))
        raise DataError(f"{sample.mask}: is {' (HxW) and its picture '.join(sizes)}")
    base = folder / "images" / dataset.split
    if turn == 1 or dataset.bands is not None:  # no PNG holds any number of bands
        target = base / f"{sample.name}{sample.image.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(sample.image, target)
    else:
        write_image(base / f"{sample.name}.png", picture)
    write_index_png(
        folder / "masks" / dataset.split / f"{sample.name}.png", labels, dataset.palette
    )


def _labels(dataset: Dataset, mask: Path, turn: int) -> Labels:
    """Reads a mask as labels [H, W] in whatever form it comes, or raises DataError."""
    try:
        values = dataset.decode_mask(mask)
    except MaskKindError as error:
        with opened(mask) as image:
            if image.format in ("JPEG", "MPO", "WEBP"):  # they blur, WebP unless told not to
                raise
            if error.kind == "colour-mask":
                return _labels_of_colours(dataset, mask, image, error)
            turned = error.kind == "turned-mask"
            if turned and orientation(image) != turn:
                raise
            plain = plain_values(image)
            if plain is None:
                raise
            return _looked_up(dataset, mask, _turned(plain, turn) if turned else plain)
    if dataset.decode_mask is read_mask:
        facts = mask_facts(mask)
        if class_of_colour(dataset) and foreign_index(dataset, facts) is not None:
            return _looked_up(dataset, mask, _renumbered(dataset, values, facts))
    return _looked_up(dataset, mask, values)


def _looked_up(dataset: Dataset, mask: Path, values: Mask) -> Labels:
    labels = dataset.lookup[values]
    if labels.min() < 0:
        wrong = ", ".join(str(value) for value in np.unique(values[labels < 0])[:5])
        raise DataError(f"{mask}: no class is known for {wrong}")
    return labels.astype(label_type(len(dataset.classes)))


def _labels_of_colours(
    dataset: Dataset, mask: Path, image: Image.Image, error: MaskKindError
) -> Labels:
    """Converts the classes' own colours, or grey of three equal channels, to labels."""
    pixels = np.asarray(image.convert("RGB"))
    packed = _packed(pixels)
    colours = {_pack(colour): index for colour, index in class_of_colour(dataset).items()}
    present = set(np.unique(packed).tolist())
    if image.mode in ("RGB", "RGBA") and colours and present <= colours.keys():
        table = np.zeros(1 << 24, label_type(len(dataset.classes)))
        table[list(colours)] = list(colours.values())
        return np.asarray(table[packed])
    grey = (pixels == pixels[..., :1]).all()
    if grey and image.mode in ("RGB", "RGBA"):
        return _looked_up(dataset, mask, pixels[..., 0])
    raise error


def _packed(pixels: UInt8) -> np.ndarray[Any, np.dtype[np.int32]]:
    wide = pixels.astype(np.int32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


def _pack(colour: tuple[int, int, int]) -> int:
    return colour[0] << 16 | colour[1] << 8 | colour[2]


def _renumbered(dataset: Dataset, values: Mask, facts: Facts) -> Mask:
    table = np.arange(1 << 16)
    for value, colour in facts.colours.items():
        if value not in dataset.void:
            table[value] = class_of_colour(dataset)[colour]
    return table[values].astype(np.uint16)


def _turned(values: Mask, turn: int) -> Any:
    return np.asarray(Image.fromarray(values).transpose(UPRIGHT[turn])) if turn != 1 else values


def _describe(datasets: Sequence[Dataset], folder: Path, result: Repair) -> None:
    """Writes data.yaml and the list of what is left out."""
    first = datasets[0]
    content: dict[str, Any] = dict(_written(folder))
    content["names"] = dict(enumerate(first.classes))
    content["palette"] = [list(colour) for colour in first.palette]
    content["void_id"] = first.ignore
    if first.value_range:
        content["value_range"] = as_json(first.value_range)
    if first.bands:
        content["bands"] = list(first.bands)
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None)
    write_text(folder / "data.yaml", text)
    if result.left_out:
        write_json(folder / LISTING, result.to_json()["left_out"])
