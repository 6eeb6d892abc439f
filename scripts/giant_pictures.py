"""Time and peak memory of `segdeform predict` on giant pictures.

    python scripts/giant_pictures.py --work FOLDER [--side 20000] [--classes 21,150,1000]
        [--pictures jpeg,turned,tiff,bigtiff] [--outputs masks] [--more "--precision fp32"]

Makes a JPEG of side x side pixels, the same turned by EXIF, a tiled TIFF of the same pixels, and a
sparse BigTIFF on a map five times as wide and high, of which a part of 4096 x 4096 is predicted;
and networks of random weights. Each is predicted in a process of its own, whose wall time and peak
resident memory (ru_maxrss, which counts the mapped pages of files too) are printed. What was made
is kept in FOLDER and used again. Ends in 1 where a mask is missing, of another size, or a process
needed more than `--limit` GiB.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PICTURES = ("jpeg", "turned", "tiff", "bigtiff")
WIDER = 5  # times the side, of the BigTIFF
PART = 4096  # pixels, side of what is predicted of it
TILE = 512
PATTERN = 2500  # pixels, after which the pictures repeat themselves


def pattern() -> Any:  # uint8 [PATTERN, PATTERN, 3]
    """Returns smooth noise of several coarsenesses."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    total = np.zeros((PATTERN, PATTERN, 3))
    for cells in (5, 25, 125, 625):
        coarse = Image.fromarray(rng.integers(0, 255, (cells, cells, 3), np.uint8))
        total += np.asarray(coarse.resize((PATTERN, PATTERN), Image.Resampling.BICUBIC))
    return (total / 4).astype(np.uint8)


def make_jpegs(jpeg: Path, turned: Path, side: int) -> None:
    """Writes a JPEG, and the same with the EXIF orientation 6."""
    import numpy as np
    import simplejpeg
    from PIL import Image

    times = math.ceil(side / PATTERN)
    pixels = np.ascontiguousarray(np.tile(pattern(), (times, times, 1))[:side, :side])
    content = simplejpeg.encode_jpeg(pixels, quality=90, colorspace="RGB")
    jpeg.write_bytes(content)
    exif = Image.Exif()
    exif[0x0112] = 6
    told = exif.tobytes()
    head = b"\xff\xe1" + (len(told) + 2).to_bytes(2) + told
    turned.write_bytes(content[:2] + head + content[2:])


def make_tiff(path: Path, side: int, part: int | None = None) -> None:
    """Writes a tiled BigTIFF on a map; with `part`, all but so much in its middle is left out."""
    import numpy as np
    import tifffile

    from segdeform.data.georeference import Georeference, Tag

    keys = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 25832)
    place = Georeference((0.1, 0.0, 4e5, 0.0, -0.1, 5e6), 25832, (Tag(34735, 3, len(keys), keys),))
    base = pattern()
    rows = np.arange(TILE)
    first, last = (0, side) if part is None else ((side - part) // 2, (side + part) // 2)

    def tile(top: int, left: int) -> Any:
        inside = first - TILE < top < last and first - TILE < left < last
        if not inside and (top, left) != (0, 0):  # the writer wants to see one
            return None
        return base[np.ix_((top + rows) % PATTERN, (left + rows) % PATTERN)]

    with tifffile.TiffWriter(path, bigtiff=True) as file:
        file.write(
            (tile(top, left) for top in range(0, side, TILE) for left in range(0, side, TILE)),
            shape=(side, side, 3),
            dtype=np.uint8,
            tile=(TILE, TILE),
            compression="zlib",
            photometric="rgb",
            extratags=place.tags(),
            metadata=None,
            maxworkers=1,
        )


def make_model(folder: Path, classes: int, backbone: str) -> None:
    """Writes a network of random weights, as trained on crops of 512."""
    import torch

    from segdeform.config.schema import DeformConfig, ModelConfig
    from segdeform.models import build_model
    from segdeform.segmenter import ModelDescription, save_model

    torch.manual_seed(0)
    config = ModelConfig.model_validate({"backbone": backbone, "weights": "none"})
    deform = DeformConfig()
    description = ModelDescription(
        model=config,
        deform=deform,
        classes=tuple(f"class {k}" for k in range(classes)),
        palette=tuple((k * 37 % 256, k * 91 % 256, k * 53 % 256) for k in range(classes)),
        crop=(512, 512),
    )
    save_model(folder, build_model(config, deform, classes).eval(), description)


def once(make: Callable[..., None], goals: list[Path], *given: object) -> None:
    """Makes files unless they are there, in another process: what a parent's memory held at its
    peak is counted as a child's, too."""
    if all(goal.exists() for goal in goals):
        return
    process = multiprocessing.get_context("spawn").Process(target=make, args=(*goals, *given))
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(f"{goals[0]} was not made")


def measured(command: list[str]) -> tuple[int, float, float]:
    """Runs a command; returns its exit code, wall seconds and peak memory in GiB."""
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, time.perf_counter() - begun, usage.ru_maxrss / 2**20


def problem(output: Path, size: list[int]) -> str:
    """Says what is wrong with a prediction; "" for nothing."""
    lines = (output / "predictions.jsonl").read_text().splitlines()
    if not lines:
        return (output / "failures.jsonl").read_text().strip()
    masks = [path for path in (output / "masks").rglob("*") if path.is_file()]
    if len(masks) != 1:
        return f"{len(masks)} masks"
    found = json.loads(lines[-1])["size"]
    return "" if found == size else f"a mask of {found}, not {size}"


def main() -> None:
    """Makes, predicts, prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--side", type=int, default=20_000)
    parser.add_argument("--classes", default="21,150,1000")
    parser.add_argument("--pictures", default=",".join(PICTURES))
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--outputs", default="masks")
    parser.add_argument("--more", default="", help="further options of predict")
    parser.add_argument("--limit", type=float, default=4.0, help="GiB")
    given = parser.parse_args()
    side, wide, part = given.side, given.side * WIDER, min(PART, given.side)
    work: Path = given.work / str(side)
    work.mkdir(parents=True, exist_ok=True)
    files = {
        "jpeg": work / "a.jpg",
        "turned": work / "turned.jpg",
        "tiff": work / "a.tif",
        "bigtiff": work / "sparse.tif",
    }
    once(make_jpegs, [files["jpeg"], files["turned"]], side)
    once(make_tiff, [files["tiff"]], side)
    once(make_tiff, [files["bigtiff"]], wide, part)
    corner = (wide - part) // 2
    failed = False
    print(f"{side}x{side}, {given.backbone}, {given.outputs}; {part}x{part} of {wide}x{wide}")
    print("picture    classes  seconds  peak GiB")
    for classes in map(int, given.classes.split(",")):
        model = given.work / f"{given.backbone}-{classes}"
        once(make_model, [model], classes, given.backbone)
        for name in given.pictures.split(","):
            output = work / f"out-{name}-{classes}"
            command = [sys.executable, "-m", "segdeform", "predict", str(model), str(files[name])]
            command += ["--output", str(output), "--outputs", given.outputs, "--overwrite"]
            size = [side, side]
            if name == "bigtiff":
                command += ["--window", f"{corner},{corner},{part},{part}"]
                size = [part, part]
            code, seconds, peak = measured(command + shlex.split(given.more))
            wrong = problem(output, size) if code in (0, 8) else f"exit code {code}"
            if not wrong and peak > given.limit:
                wrong = f"more than {given.limit} GiB"
            failed = failed or bool(wrong)
            print(f"{name:10} {classes:7} {seconds:8.0f} {peak:9.2f}  {wrong}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
