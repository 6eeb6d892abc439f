"""PASCAL VOC 2012 segmentation in its official layout: 20 classes and the background."""

from __future__ import annotations

import os
from pathlib import Path

from segdeform.data.dataset import Dataset, ListingProblem, MissingSplitError, Sample, colour_map
from segdeform.data.layout import read_names
from segdeform.errors import DataError

CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
LAYOUT = (
    "ROOT/VOCdevkit/VOC2012/{ImageSets/Segmentation,JPEGImages,SegmentationClass} "
    "(ROOT may also be VOCdevkit or VOC2012)"
)
TRAINAUG_LIST = "ImageSets/Segmentation/trainaug.txt"  # below VOC2012: VOC's train and SBD


def load(root: Path, split: str) -> Dataset:
    """Lists the pictures of ImageSets/Segmentation/SPLIT.txt; 255, the border, is ignored.

    A mask is VOC's own where there is one, else that of SegmentationClassAug (SBD, for trainaug);
    pictures of the test split may lack one. Raises DataError when the folder does not look like VOC
    2012; what is missing is in `problems`.
    """
    home = find_home(root)
    if home is None:
        raise DataError(f"{root}: does not hold VOC 2012; expected {LAYOUT}")
    listing = home / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not listing.is_file():
        known = ", ".join(sorted(path.stem for path in listing.parent.glob("*.txt")))
        advice = "; segdeform prepare voc --download adds it" if split == "trainaug" else ""
        raise MissingSplitError(f"{listing}: no such split; there are: {known}{advice}")
    samples, problems = [], []
    for name in read_names(listing):
        image = home / "JPEGImages" / f"{name}.jpg"
        mask = home / "SegmentationClass" / f"{name}.png"
        added = home / "SegmentationClassAug" / f"{name}.png"
        if added.exists() and not mask.exists():
            mask = added
        missing = [path for path in (image, mask) if not os.path.lexists(path)]
        unlabelled = split == "test" and missing == [mask]
        if unlabelled:
            missing = []
        for path in missing:
            kind = "missing-picture" if path == image else "missing-mask"
            text = f"{path}: missing, but listed in {listing}"
            problems.append(ListingProblem(kind, path, text))
        if not missing:
            samples.append(Sample(name, image, None if unlabelled else mask))
    return Dataset(
        name="voc",
        split=split,
        root=root,
        classes=CLASSES,
        palette=colour_map(len(CLASSES)),
        samples=tuple(samples),
        problems=tuple(problems),
    )


def find_home(root: Path) -> Path | None:
    """Returns the folder VOC2012 in or at ROOT, None where there is none."""
    parts = ("ImageSets/Segmentation", "JPEGImages", "SegmentationClass")
    for home in (root / "VOCdevkit" / "VOC2012", root / "VOC2012", root):
        if all((home / part).is_dir() for part in parts):
            return home
    return None
