"""Shows what a first training reaches: from raw pictures to a mask, in three commands each.

    python scripts/first_quarter_hour.py --output DIR [--minutes 15] [--weights FILE]

Draws likenesses of two data sets (tests/likenesses.py: cracked roads, membranes under a microscope)
and runs on each `segdeform prepare folder`, `train folder` and `predict`, with nothing set but the
time. Prints for each how long that took, the IoU of every class on the validation pictures and,
beside it, what the best threshold on the training pictures reaches there.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).parents[1]))

from segdeform.data import load_dataset, read_pair
from tests.likenesses import write_cracks, write_membranes

Grey = npt.NDArray[np.uint8]  # [H, W]

WRITERS = {"cracks": write_cracks, "membranes": write_membranes}
CLASSES = {"cracks": "road,crack", "membranes": "membrane,cell"}
RARE = {"cracks": 1, "membranes": 0}
WANTED = {"cracks": 0.30, "membranes": 0.55}  # IoU of the rarer class


def main() -> None:
    """Prints a block for each data set; ends with 1 where one is below what is wanted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--weights", help="instead of the download: a file, or none")
    parser.add_argument("--only", choices=sorted(WRITERS))
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    good = True
    for name in [options.only] if options.only else sorted(WRITERS):
        good &= show(name, options)
    raise SystemExit(not good)


def show(name: str, options: argparse.Namespace) -> bool:
    """Goes the way from raw pictures to masks; returns whether the score is good enough."""
    raw, root, run = (options.output / f"{name}-{part}" for part in ("raw", "data", "run"))
    WRITERS[name](raw)
    began = time.monotonic()
    words = ["prepare", "folder", "--images", raw / "image", "--masks", raw / "masks"]
    call(*words, "--output", root, "--split", 0.2, "--classes", CLASSES[name])
    more = ["--set", f"model.weights={options.weights}"] if options.weights else []
    more += ["--threads", options.threads] if options.threads else []
    call("train", "folder", "--data", root, "--output", run, "--minutes", options.minutes, *more)
    minutes = (time.monotonic() - began) / 60
    call("predict", run, raw / "image", "--output", options.output / f"{name}-masks")
    classes = json.loads((run / "metrics.json").read_text())["classes"]
    score = classes[RARE[name]]["iou"] or 0.0
    print(f"{name}: {minutes:.1f} minutes")
    for row in classes:
        print(f"  {row['name']}: IoU {row['iou'] or 0:.3f}")
    for kind, iou in threshold_scores(root, RARE[name]).items():
        print(f"  the best threshold on {kind}: {iou:.3f}")
    print(f"  wanted: {WANTED[name]:.2f}, {'reached' if score >= WANTED[name] else 'MISSED'}")
    return score >= WANTED[name]


def call(*words: object) -> None:
    """Runs a segdeform command, and shows it."""
    arguments = [str(word) for word in words]
    print(f"$ segdeform {shlex.join(arguments)}", flush=True)
    subprocess.run([sys.executable, "-P", "-m", "segdeform", *arguments], check=True)


def threshold_scores(root: Path, rare: int) -> dict[str, float]:
    """Returns the IoU on val of the threshold that is best on train, for each kind of darkness."""
    scores = {}
    for kind, darkness in DARKNESS.items():
        train, val = (curve(root, split, rare, darkness) for split in ("train", "val"))
        scores[kind] = float(val[train.argmax()])
    return scores


def curve(
    root: Path, split: str, rare: int, darkness: Callable[[Grey], Grey]
) -> npt.NDArray[np.float64]:  # [256]
    """Returns the IoU of "at least this dark is the rare class" for every threshold."""
    counts = np.zeros((2, 256))  # of the rare class, of the others
    for grey, is_rare in greys(root, split, rare):
        dark = darkness(grey)
        counts[0] += np.bincount(dark[is_rare], minlength=256)
        counts[1] += np.bincount(dark[~is_rare], minlength=256)
    hits, wrong = counts[:, ::-1].cumsum(axis=1)[:, ::-1]
    return hits / (counts[0].sum() + wrong)


def greys(root: Path, split: str, rare: int) -> Iterator[tuple[Grey, npt.NDArray[np.bool_]]]:
    """Yields every picture in grey, and where the rare class is."""
    dataset = load_dataset("folder", root, split)
    for index in range(len(dataset)):
        picture, labels = read_pair(dataset, index)
        yield np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)), labels == rare


def less_than_around(grey: Grey) -> Grey:
    """Returns how much darker each pixel is than its surroundings, 128 for equal."""
    smooth = cv2.GaussianBlur(grey.astype(np.float32), (0, 0), 1.2)
    return np.clip(128 + cv2.GaussianBlur(smooth, (0, 0), 12) - smooth, 0, 255).astype(np.uint8)


def black_hat(grey: Grey) -> Grey:
    """Returns by how much a closing brightens each pixel: thin dark lines stand out."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (11, 11))
    smooth = cv2.GaussianBlur(grey, (0, 0), 1.0)
    return np.asarray(cv2.morphologyEx(smooth, cv2.MORPH_BLACKHAT, disc))


DARKNESS: dict[str, Callable[[Grey], Grey]] = {
    "grey values": lambda grey: 255 - grey,
    "grey values less those around": less_than_around,
    "a black-hat filter": black_hat,
}

if __name__ == "__main__":
    main()
