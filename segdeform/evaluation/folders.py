"""Scores a folder of predicted label maps against a folder of masks, whoever made either.

Both hold index images of the same names (`a/b.png` and `a/b.png`); one side may end all its names
in one suffix (`b_pred.png`). Values of the masks become classes by the class list; values of the
predictions are class numbers, or values of the same mapping where `mapped` says so.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Set
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from segdeform.callbacks import Progress, Say, Stop
from segdeform.data.class_list import ClassList, find_class_list, parse_class_list, read_class_list
from segdeform.data.data_yaml import find_data_yaml, read_data_yaml
from segdeform.data.dataset import (
    IGNORE,
    MAX_NARROW,
    Dataset,
    Labels,
    Sample,
    colour_map,
    read_labels,
)
from segdeform.data.image_io import MASK_SUFFIXES, PICTURE_SUFFIXES, read_mask
from segdeform.data.layout import common_suffix, files_by_name
from segdeform.errors import DataError, InterruptedByUserError, UsageError
from segdeform.evaluation.boundary import BOUNDARY_WIDTH
from segdeform.evaluation.counts import Counts, Tally
from segdeform.evaluation.evaluate import Evaluation, counting_protocol
from segdeform.files.manifest import sha256
from segdeform.machine.processes import ALONE

_NAMED = 3  # files of a kind named in a refusal
_UPWARDS = 2  # folders above the masks in which a class list may lie: ROOT, of ROOT/val/masks


def score_folders(
    truth: Path,
    predictions: Path,
    classes: Path | None = None,
    *,
    mapped: bool = False,
    boundary_width: float = BOUNDARY_WIDTH,
    progress: Progress | None = None,
    stop: Stop | None = None,
    say: Say | None = None,
) -> tuple[Evaluation, Dataset]:
    """Counts every mask of `truth` against the prediction of its name.

    Args:
        predictions: a folder of label maps, or one that `segdeform predict` wrote.
        classes: a class list (classes.txt, classes.json) or data YAML; None: the one beside the
            masks or up to two folders above, else what a prediction of ours says, else classes are
            counted in both folders.
        mapped: predictions hold the same values as the masks, and become classes alike.

    Returns the evaluation and the pairs, a prediction in the place of each picture. Raises
    UsageError or DataError for folders that are not there, do not pair or hold what is no class,
    InterruptedByUserError after a stop.
    """
    dataset = pair_label_maps(truth, predictions, classes, say)
    started, date = time.perf_counter(), datetime.now(UTC)
    tally, digest = Tally(len(dataset.classes), boundary_width), hashlib.sha256()
    for index, sample in enumerate(dataset.samples):
        if stop is not None and stop():
            raise InterruptedByUserError(f"stopped after {index} of {len(dataset)} label maps")
        labels, predicted = label_pair(dataset, index, mapped)
        try:
            tally.add(index, labels, predicted)
        except DataError as error:
            raise DataError(f"{sample.image}: {error}") from error
        digest.update(sha256(sample.image).encode())
        if progress is not None:
            progress(index + 1, len(dataset))
    counts = tally.gather(ALONE)
    _refuse_black_and_white(truth, dataset, counts)
    protocol = counting_protocol(dataset, counts, boundary_width) | {
        "predictions": predictions.resolve().name,
        "predictions_sha256": digest.hexdigest(),
        "prediction_values": "values of the masks" if mapped else "class indices",
    }
    timing = {
        "date": date.isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - started, 3),
        "pictures": len(dataset),
        "processes": 1,
    }
    names = tuple(sample.name for sample in dataset.samples)
    return Evaluation(dataset.classes, names, counts, protocol, timing), dataset


def _refuse_black_and_white(truth: Path, dataset: Dataset, counts: Counts) -> None:
    """Raises DataError where the masks are most likely of 0 and 255, whose 255 is not scored."""
    true, said = counts.matrix.sum(axis=1), counts.matrix.sum(axis=0)
    only_first = true[0] > 0 and not true[1:].any()
    if dataset.label_map is None and only_first and said[1:].any() and counts.void.any():
        raise DataError(
            f"{truth}: the masks hold only 0 and {max(dataset.void)}, which is not scored. If it "
            "means the second class, say so by --classes FILE.yaml with names: [ground, object] "
            f"and label_mapping: {{0: 0, {max(dataset.void)}: 1}}"
        )


def label_pair(dataset: Dataset, index: int, mapped: bool) -> tuple[Labels, Labels]:
    """Reads truth and prediction of a pair, [H, W] each; truth may hold what is ignored.

    Raises DataError naming the file.
    """
    sample = dataset.samples[index]
    assert sample.mask is not None  # they are paired
    truth = read_labels(dataset, sample.mask)
    if mapped:
        predicted = read_labels(dataset, sample.image)
    else:
        predicted = read_labels(replace(dataset, label_map=None, void=frozenset()), sample.image)
    if (predicted == dataset.ignore).any():
        raise DataError(
            f"{sample.image}: holds pixels without a class ({dataset.ignore}); every pixel needs "
            "one"
        )
    return truth, predicted


def pair_label_maps(
    truth: Path, predictions: Path, classes: Path | None = None, say: Say | None = None
) -> Dataset:
    """Pairs the masks with the predictions, which stand in the place of the pictures.

    `say` hears where the classes are from, and how many predictions have no mask.

    Raises as `score_folders` does.
    """
    for folder in (truth, predictions):
        if not folder.is_dir():
            raise UsageError(f"{folder}: no such folder")
    if _summary(truth) is not None:
        raise UsageError(
            f"{truth}: is what predict wrote, and stands in the place of the masks: the order is "
            "TRUTH PREDICTIONS"
        )
    ours = _summary(predictions)
    place = predictions / "masks" if ours is not None else predictions
    masks, found = _label_maps(truth), _label_maps(place)
    masks, found = _without_suffixes(masks, found)
    lacking = sorted(masks.keys() - found.keys())
    if lacking:
        named = ", ".join(str(masks[name]) for name in lacking[:_NAMED])
        raise DataError(
            f"{place}: {len(lacking)} of {len(masks)} masks have no prediction of their name "
            f"({named}{', ...' if len(lacking) > _NAMED else ''}); "
            "a score of the others alone would be of other pictures"
        )
    samples = tuple(Sample(name, found[name], masks[name]) for name in masks)
    labels, source = _classes(truth, classes, ours, samples)
    if say is not None:
        say(f"{len(labels.names)} classes: {source}")
    if say is not None and (unused := len(found) - len(masks)):
        say(f"{unused} predictions without a mask are left out")
    return Dataset(
        name="masks",
        split="/".join(truth.resolve().parts[-2:]),
        root=truth,
        classes=labels.names,
        palette=labels.palette,
        samples=samples,
        label_map=labels.label_map,
        void=labels.void,
    )


def _label_maps(folder: Path) -> dict[str, Path]:
    named = files_by_name(folder, MASK_SUFFIXES)
    if not named:
        others = sum(map(len, files_by_name(folder, PICTURE_SUFFIXES).values()))
        hint = f"; {others} pictures of other kinds, as JPEG, cannot be" if others else ""
        if find_data_yaml(folder) is not None:
            hint = "; it is a data set: give its folder of masks, or use segdeform eval"
        raise DataError(f"{folder}: holds no label map (PNG, TIFF, BMP, GIF or PGM){hint}")
    for first, *doubles in named.values():
        if doubles:
            raise DataError(f"{doubles[0]}: has the same name as {first}; rename one of them")
    return {name: paths[0] for name, paths in named.items()}


def _without_suffixes(
    masks: dict[str, Path], found: dict[str, Path]
) -> tuple[dict[str, Path], dict[str, Path]]:
    """Takes away what all names of one side end in, where no names are equal."""
    if ending := common_suffix(masks.keys(), found.keys()):
        found = _shortened(found, ending)
    elif ending := common_suffix(found.keys(), masks.keys()):
        masks = _shortened(masks, ending)
    return masks, found


def _shortened(files: dict[str, Path], ending: str) -> dict[str, Path]:
    return {name.removesuffix(ending): path for name, path in files.items()}


def _summary(predictions: Path) -> dict[str, object] | None:
    """Returns the summary.json of a prediction of ours, None of anybody else's folder."""
    try:
        value = json.loads((predictions / "summary.json").read_bytes())
    except (OSError, ValueError):
        return None
    ours = isinstance(value, dict) and value.get("format") == "segdeform-prediction"
    return value if ours and (predictions / "masks").is_dir() else None


def _classes(
    truth: Path,
    given: Path | None,
    ours: dict[str, object] | None,
    samples: tuple[Sample, ...],
) -> tuple[ClassList, str]:
    """Returns the classes and where they are from."""
    if given is not None:
        if given.suffix in (".yaml", ".yml"):
            return parse_class_list(read_data_yaml(given), given), str(given)
        return read_class_list(given), str(given)
    place = truth.resolve()
    for folder in (place, *place.parents[:_UPWARDS]):
        if (described := find_data_yaml(folder)) is not None:
            return parse_class_list(read_data_yaml(described), described), str(described)
        if (listed := find_class_list(folder)) is not None:
            return listed[0], str(listed[1])
    if ours is not None:
        return parse_class_list({"names": ours.get("classes")}, truth), "the prediction's summary"
    count = max(_highest(samples)) + 1
    if count > MAX_NARROW:
        raise DataError(
            f"{truth}: the label maps hold values up to {count - 1}; more than {MAX_NARROW} "
            "classes need a list, by --classes FILE, which tells what 255 means"
        )
    labels = ClassList(tuple(f"class_{index}" for index in range(count)), colour_map(count))
    return labels, "counted in the label maps; --classes FILE names them"


def _highest(samples: tuple[Sample, ...]) -> Set[int]:
    """Returns the highest class of each label map, 0 where there is none."""
    found = {0}
    for sample in samples:
        for path in (sample.image, sample.mask):
            assert path is not None
            values = read_mask(path)
            found.add(int(values[values != IGNORE].max(initial=0)))
    return found
