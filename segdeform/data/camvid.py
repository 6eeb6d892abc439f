"""CamVid: street scenes, 11 classes, the SegNet split of 367 training and 101 validation pairs."""

from __future__ import annotations

from pathlib import Path

from segdeform.data.dataset import IGNORE, Dataset, MissingSplitError
from segdeform.data.layout import pair_folders, read_names

VOID = 11
CLASSES = {  # name -> the colour that CamVid results are usually shown in
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "column_pole": (192, 192, 128),
    "road": (128, 64, 128),
    "sidewalk": (60, 40, 222),
    "tree": (128, 128, 0),
    "sign_symbol": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}
LAYOUT = "ROOT/{train,val}/{images,masks} with one mask a picture"
SOURCE = "http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid (CC BY-NC 4.0)"


def load(root: Path, split: str) -> Dataset:
    """Lists one split of CamVid: ROOT/SPLIT/images and ROOT/SPLIT/masks (void 11).

    ROOT/SPLIT.txt selects and orders the pictures; without it, they are all that there are.
    Raises DataError when the folder does not look like this; what is missing is in `problems`.
    """
    listing, folder = root / f"{split}.txt", root / split
    if not ((folder / "images").is_dir() and (folder / "masks").is_dir()):
        raise MissingSplitError(f"{root}: holds no CamVid split '{split}'; expected {LAYOUT}")
    names = read_names(listing) if listing.exists() else None
    samples, problems = pair_folders(folder / "images", folder / "masks", names)
    return Dataset(
        name="camvid",
        split=split,
        root=root,
        classes=tuple(CLASSES),
        palette=tuple(CLASSES.values()),
        samples=tuple(samples),
        void=frozenset({VOID, IGNORE}),
        problems=tuple(problems),
    )
