"""Which pictures a model is scored, or looked at, on."""

from __future__ import annotations

from pathlib import Path

from segdeform.data import data_root, load_dataset
from segdeform.data.dataset import Dataset
from segdeform.errors import DataError, UsageError
from segdeform.segmenter import Segmenter


def load_split(
    segmenter: Segmenter,
    kind: str | None,  # of the data set; None: the one trained on
    data: Path | None,  # its root; None: by the environment, for cityscapes
    split: str,
) -> Dataset:
    """Lists the pictures of a split.

    Raises:
        UsageError: nobody says of what kind it is, or where.
        DataError: it is not what it should be.
    """
    kind = kind or segmenter.info["training"].get("dataset")
    if kind is None:
        raise UsageError(
            f"{segmenter.info['path']} does not say what it was trained on: give --dataset NAME"
        )
    dataset = load_dataset(kind, data_root(kind, data), split)
    return dataset.as_read_by(segmenter.value_range, segmenter.bands)


def trained_on(segmenter: Segmenter, dataset: Dataset, data: Path | None) -> int:
    """Counts the pictures of a split that the model was trained on, as far as it can be told.

    The model keeps a sum over the names of its training pictures: they are known where the split
    that it names still lists the same.
    """
    record = segmenter.info.get("training", {}).get("pictures", {}).get("train", {})
    if not isinstance(record, dict) or record.get("dataset") != dataset.name:
        return 0
    try:
        root = data_root(dataset.name, data)
        trained = load_dataset(dataset.name, root, str(record.get("split")))
    except (DataError, UsageError):
        return 0
    if trained.names_sha256() != record.get("names_sha256"):
        return 0
    seen = {sample.image.resolve() for sample in trained.samples}
    return sum(sample.image.resolve() in seen for sample in dataset.samples)


def chosen_on(segmenter: Segmenter, dataset: Dataset) -> int:
    """Returns of how many networks this one scored best on the split; 0: it was not chosen so."""
    training = segmenter.info.get("training", {})
    match training.get("chosen"):
        case {"by": str(by), "evaluations": int(count)} if by == f"mIoU on {dataset.split}":
            return count if training.get("dataset") == dataset.name else 0
    return 0


def refuse_other_classes(classes: tuple[str, ...], dataset: Dataset) -> None:
    """Raises DataError unless the model's classes are the data set's, in the same order."""
    theirs = dataset.classes
    if classes == theirs:
        return
    pairs = zip(classes, theirs, strict=False)
    first = next((k for k, (a, b) in enumerate(pairs) if a != b), min(len(classes), len(theirs)))
    raise DataError(
        f"the model knows {len(classes)} classes and data set '{dataset.name}' has {len(theirs)}; "
        f"they part at class {first}: {_name(classes, first)} against {_name(theirs, first)}. "
        "Evaluate on the data set that the model was trained for"
    )


def _name(classes: tuple[str, ...], index: int) -> str:
    return f"'{classes[index]}'" if index < len(classes) else "none"
