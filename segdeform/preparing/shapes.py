"""Draws the data set `shapes`: bent, sheared, turned objects on textured ground, from a seed.

Layout: ROOT/{train,val}/{images,masks}/00000.png and ROOT/classes.json.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from segdeform.callbacks import Progress
from segdeform.data.image_io import UInt8, write_image, write_index_png
from segdeform.errors import UsageError
from segdeform.files.atomic import write_error
from segdeform.machine.cpu import available_cores
from segdeform.preparing.shapes_drawing import draw_picture
from segdeform.preparing.shapes_outlines import OUTLINES

CLASSES = ("ground", *OUTLINES)
PALETTE = (
    (40, 44, 52),
    (239, 71, 111),
    (255, 209, 102),
    (6, 214, 160),
    (17, 138, 178),
    (155, 93, 229),
    (241, 145, 67),
)
SPLITS = ("train", "val")
_VERSION = 2  # of the drawing: another number, other pictures


def write_shapes(
    root: Path,
    *,
    seed: int = 0,
    train: int = 400,
    val: int = 100,
    size: int = 256,
    outline_only: bool = False,
    deformation: float = 1.0,
    progress: Progress | None = None,
) -> bool:
    """Draws `train` + `val` pictures of `size` x `size` pixels; False when they are there already.

    `outline_only` draws colours that tell nothing of the class, `deformation` multiplies bending
    and shear. Picture i of a split is the same whatever the number of pictures. ROOT appears when
    all is written; what an interrupted run left beside it is replaced.
    `progress` hears (done, all).
    Raises UsageError when ROOT holds something else or cannot be written, ResourceError when the
    disk is full.
    """
    facts: dict[str, object] = {"version": _VERSION, "seed": seed, "train": train, "val": val}
    facts["size"] = size
    if outline_only:
        facts["outline_only"] = True
    if deformation != 1:
        facts["deformation"] = deformation
    description = {
        "names": list(CLASSES),
        "palette": [list(colour) for colour in PALETTE],
        "shapes": facts,
    }
    draw = functools.partial(
        draw_picture, size=size, outline_only=outline_only, deformation=deformation
    )
    if _holds(root, description):
        return False
    partial = root.with_name(f".{root.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        jobs = [("train", index) for index in range(train)] + [("val", i) for i in range(val)]
        for split in SPLITS:
            (partial / split / "images").mkdir(parents=True)
            (partial / split / "masks").mkdir()
        with ThreadPoolExecutor(available_cores()) as pool:
            written = pool.map(lambda job: _write_picture(partial, job, seed, draw), jobs)
            for done, _ in enumerate(written, start=1):
                if progress:
                    progress(done, len(jobs))
        (partial / "classes.json").write_text(json.dumps(description, indent=1), encoding="utf-8")
        partial.replace(root)
    except OSError as error:
        raise write_error(root, error) from error
    return True


def _holds(root: Path, description: dict[str, object]) -> bool:
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / "classes.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if found != description:
        raise UsageError(
            f"{root}: already holds something else than these shapes; choose another --output"
        )
    return True


def picture_randomness(seed: int, split: str, index: int) -> np.random.Generator:
    """Returns what picture `index` of a split is drawn with."""
    key = np.array([seed, SPLITS.index(split)], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, index, 0]))


def _write_picture(
    root: Path,
    job: tuple[str, int],  # split and index
    seed: int,
    draw: Callable[[np.random.Generator], tuple[UInt8, UInt8]],
) -> None:
    split, index = job
    picture, labels = draw(picture_randomness(seed, split, index))
    write_image(root / split / "images" / f"{index:05d}.png", picture)
    write_index_png(root / split / "masks" / f"{index:05d}.png", labels, PALETTE)
