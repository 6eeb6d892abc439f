"""Writes a data set of pairs: a data YAML, lists that refer to the files, or copies and links.

data.yaml                    what a data set is
train.txt val.txt test.txt   a picture a line, after a tab its mask
fold1.txt ...                the same of folds
masks/                       index masks, where those given had to be written anew
{train,val}/{images,masks}   copies or hard links, in the place of train.txt and val.txt
prepare.json                 what was asked for, found, guessed and left out
"""

from __future__ import annotations

import errno
import filecmp
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from segdeform.data.data_yaml import SPLIT_KEYS
from segdeform.data.dataset import Sample
from segdeform.errors import UsageError
from segdeform.files.atomic import sync, write_error, write_json, write_text
from segdeform.files.manifest import sha256
from segdeform.preparing.folder.masks import MASKS, Labelled
from segdeform.preparing.folder.order import Order

RECORD = "prepare.json"
YAML = "data.yaml"
_MAKER = "segdeform prepare folder"
_LONGEST = 60  # letters of an argument that are told


# Of another of these, what lies in a folder is another data set.
_SOURCES = ("images", "masks", "pairs", "files")


def refuse_output(order: Order) -> list[str]:
    """Raises UsageError where the output is, or lies in, a source, or holds something else.

    Returns what an earlier call for it was asked otherwise, in words.
    """
    root = order.output.resolve()
    room = work_room(root)
    sources = ((order.images, "--images"), (order.masks, "--masks"), (order.pairs, "--pairs"))
    for source, option in sources:
        folder = source.resolve() if source else None
        if folder and folder.is_relative_to(room):
            raise UsageError(
                f"{option} {source}: lies where {order.output} is made; choose another --output"
            )
        if folder and folder.is_dir() and root.is_relative_to(folder):
            raise UsageError(
                f"{order.output}: lies in {option} {source}, which stays as it is; choose another "
                "--output"
            )
    if root.exists() and not root.is_dir():
        raise UsageError(f"{order.output}: is a file; choose another --output")
    names = {path.name for path in root.iterdir()} if root.is_dir() else set()
    if not {name for name in names if not name.startswith(".")}:
        return []
    record = read_record(root)
    if record is None:
        shown = ", ".join(sorted(names)[:3])
        raise UsageError(
            f"{order.output}: holds something else ({shown}); choose a new folder, such as "
            f"{order.output / 'prepared'}"
        )
    before, now = record["arguments"], order.arguments()
    other = [key for key in (before | now) if before.get(key) != now.get(key)]
    for key in _SOURCES:
        if key in other:
            raise UsageError(
                f"{order.output}: was prepared of other {key} ({before.get(key)}, now {now[key]}); "
                "choose another --output, or remove it"
            )
    return [f"{key}: {_shown(before.get(key))} -> {_shown(now.get(key))}" for key in other]


def _shown(value: Any) -> str:
    text = "not given" if value is None else str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def work_room(root: Path) -> Path:
    """Returns the folder beside ROOT in which it is made, and locked against others."""
    return root.parent / f".{root.name}.partial"


def read_record(root: Path) -> dict[str, Any] | None:
    """Returns what an earlier call wrote of itself; None where ROOT is of something else."""
    try:
        record = json.loads((root / RECORD).read_bytes())
    except (OSError, ValueError):
        return None
    sound = isinstance(record, dict) and record.get("made_by") == _MAKER
    return record if sound and isinstance(record.get("arguments"), dict) else None


def write_set(
    order: Order,
    labelled: Labelled,
    splits: Mapping[str, Sequence[int]],
    folds: Sequence[Sequence[int]],
    record: dict[str, Any],
    work: Path,
) -> None:
    """Writes the data set into WORK, where its own masks lie already. Raises ResourceError."""
    content = _describe(order, labelled, work)
    samples = list(labelled.samples)
    if order.mode == "refer":
        for split, members in splits.items():
            _write_list(work / f"{split}.txt", [samples[k] for k in members], content, order, work)
            content[split] = f"./{split}.txt"
    else:
        for split, members in splits.items():
            for k in members:
                samples[k] = _placed(samples[k], work / split, order.mode)
            content[split] = f"{split}/images"
        shutil.rmtree(work / MASKS, ignore_errors=True)
    for number, members in enumerate(folds, start=1):
        _write_list(work / f"fold{number}.txt", [samples[k] for k in members], content, order, work)
    if folds:
        content["folds"] = [f"./fold{number + 1}.txt" for number in range(len(folds))]
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None)
    head = f"# Written by {_MAKER}; prepare.json says from what, and what was left out.\n"
    write_text(work / YAML, head + text)
    files = sorted(path.relative_to(work).as_posix() for path in work.rglob("*") if path.is_file())
    head_of_record = {"made_by": _MAKER, "arguments": order.arguments()}
    digest = {"data_yaml_sha256": sha256(work / YAML), "files": [*files, RECORD]}
    write_json(work / RECORD, head_of_record | record | digest)


def _describe(order: Order, labelled: Labelled, work: Path) -> dict[str, Any]:
    """Returns the data YAML without its splits."""
    meaning = labelled.meaning
    content: dict[str, Any] = {}
    if order.mode == "refer":
        base = base_of(order)
        content["path"] = _near(base, order.output.resolve())
        if labelled.written:
            content["masks"] = f"./{MASKS}"
        elif order.masks is not None:
            content["masks"] = _near(order.masks.resolve(), base)
    content["names"] = dict(enumerate(meaning.names))
    if meaning.values is not None and not labelled.written:
        content["label_mapping"] = dict(meaning.values)
    if labelled.bits is not None:
        content["bits"] = labelled.bits
    if meaning.palette is not None:
        content["palette"] = [list(colour) for colour in meaning.palette]
    return content


def base_of(order: Order) -> Path:
    """Returns the folder that pictures are named below."""
    if order.images is not None:
        return order.images.resolve()
    assert order.pairs is not None, "one of both is given"
    return order.pairs.resolve().parent


def _near(path: Path, start: Path) -> str:
    """Returns a path relative to a folder beside or above it, absolute where it lies far away."""
    text = os.path.relpath(path, start)
    return text if Path(text).parts.count("..") <= 1 else str(path)


def _write_list(
    path: Path, samples: Sequence[Sample], content: dict[str, Any], order: Order, work: Path
) -> None:
    lines = []
    for sample in samples:
        assert sample.mask is not None, "of a pair"
        if sample.image.is_relative_to(work):  # a copy
            places = [f"./{p.relative_to(work).as_posix()}" for p in (sample.image, sample.mask)]
        elif sample.mask.is_relative_to(work):
            mask = sample.mask.relative_to(work / MASKS).as_posix()
            places = [_below(sample.image, base_of(order)), mask]
        else:
            masks = order.masks.resolve() if order.masks else base_of(order)
            places = [_below(sample.image, base_of(order)), _below(sample.mask, masks)]
        lines.append("\t".join(places))
    write_text(path, "".join(f"{line}\n" for line in sorted(lines)))


def _below(path: Path, folder: Path) -> str:
    place = path.parent.resolve() / path.name
    return place.relative_to(folder).as_posix() if place.is_relative_to(folder) else str(place)


def _placed(sample: Sample, folder: Path, mode: str) -> Sample:
    """Copies or links a pair to FOLDER/{images,masks}, both by the picture's name."""
    assert sample.mask is not None, "of a pair"
    image = folder / "images" / f"{sample.name}{sample.image.suffix}"
    mask = folder / "masks" / f"{sample.name}{sample.mask.suffix}"
    for source, goal in ((sample.image, image), (sample.mask, mask)):
        try:
            goal.parent.mkdir(parents=True, exist_ok=True)
            if mode == "link":
                os.link(source.resolve(), goal)
            else:
                shutil.copyfile(source, goal)
        except OSError as error:
            if error.errno == errno.EXDEV:
                raise UsageError(f"{goal}: no hard link to another drive; give --copy") from error
            raise write_error(goal, error) from error
    return Sample(sample.name, image, mask)


def publish(work: Path, root: Path) -> bool:
    """Moves what was written to ROOT, over what an earlier call wrote; tells whether it differs.

    Files that the earlier call wrote and this one did not go. Raises UsageError where the data
    YAML was edited since, ResourceError.
    """
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        if not root.exists() or not any(root.iterdir()):
            work.replace(root)
            sync(root.parent)
            return True
        return _update(work, root)
    except OSError as error:
        raise write_error(root, error) from error


def _update(work: Path, root: Path) -> bool:
    record = read_record(root) or {}
    edited = (
        (root / YAML).is_file()
        and not filecmp.cmp(work / YAML, root / YAML, shallow=False)
        and sha256(root / YAML) != record.get("data_yaml_sha256")
    )
    if edited:
        raise UsageError(
            f"{root / YAML}: was edited since it was written; choose another --output, or remove it"
        )
    new = [path.relative_to(work) for path in work.rglob("*") if path.is_file()]
    # The record goes last: until then, an interrupted call can be told from something else.
    new.sort(key=lambda path: (path.name in (YAML, RECORD), path.name == RECORD, path))
    changed = False
    for path in new:
        goal = root / path
        if goal.is_file() and filecmp.cmp(work / path, goal, shallow=False):
            continue
        changed = True
        goal.parent.mkdir(parents=True, exist_ok=True)
        (work / path).replace(goal)
    kept = {path.as_posix() for path in new}
    for name in record.get("files", []):
        inside = isinstance(name, str) and (root / name).parent.resolve().is_relative_to(root)
        if inside and name not in kept and ".." not in Path(name).parts:
            (root / name).unlink(missing_ok=True)
            _remove_empty((root / name).parent, root)
    return changed


def _remove_empty(folder: Path, root: Path) -> None:
    while folder != root and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def split_names(test: bool) -> tuple[str, ...]:
    """Returns the splits that are made."""
    return SPLIT_KEYS if test else SPLIT_KEYS[:2]
