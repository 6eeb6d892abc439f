"""Predicts thousands of damaged pictures and videos: none may crash, hang or get lost.

    python scripts/fuzz_predict.py --output FOLDER [--files 5000] [--batch 250] [--seed 0]

Makes files of every format that is read, damages each in one of six ways, and predicts them in
folders of many, all frames of each, in processes with a limit of memory and of time, by a network
that calls the strongest colour. Every file must be done or listed as failed. A process that ends
otherwise is halved until the file is found, which is kept in FOLDER/found. Ends in 1 where there is
one.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import tifffile
import torch
from PIL import Image
from torch import Tensor, nn

from segdeform.config.schema import EvalConfig
from segdeform.errors import SegdeformError
from segdeform.prediction.predict import predict
from segdeform.segmenter import Segmenter

SIZE = (26, 35)  # H, W
MEMORY = 6 << 30  # bytes of addresses that a process may have
SECONDS = 120  # that a process may take, and one more for each file
EXTREMES = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\1", b"\1\0\0\0")


class Output(NamedTuple):
    """What a network gives."""

    logits: Tensor


class Colours(nn.Module):
    """Says red, green or blue by the strongest colour."""

    def forward(self, images: Tensor) -> Output:
        """Returns the picture as scores."""
        return Output(self.maps(images))

    def maps(self, images: Tensor) -> Tensor:
        """Returns scores [N, 3, H, W]."""
        return images


def originals(folder: Path) -> dict[str, bytes]:
    """Writes whole files of every format and layout; returns their contents by name."""
    rng = np.random.default_rng(0)
    smooth = rng.integers(0, 256, (5, 7, 3), np.uint8)
    pixels = np.asarray(Image.fromarray(smooth).resize(SIZE[::-1], Image.Resampling.BICUBIC))
    picture, deep = Image.fromarray(pixels), pixels.astype(np.uint16) * 257
    frames = [picture, picture.rotate(90), picture.rotate(180)]
    found: dict[str, bytes] = {}

    several = {"save_all": True, "append_images": frames[1:]}
    turned = Image.Exif()
    turned[0x0112] = 6
    for name, image, options in (
        ("plain.jpg", picture, {"exif": turned.tobytes()}),
        ("progressive.jpg", picture, {"progressive": True}),
        ("grey.jpg", picture.convert("L"), {}),
        ("cmyk.jpg", picture.convert("CMYK"), {}),
        ("plain.png", picture, {}),
        ("palette.png", picture.quantize(9), {}),
        ("alpha.png", picture.convert("RGBA"), {}),
        ("deep.png", Image.fromarray(deep[..., 0]), {}),
        ("frames.png", picture, several),
        ("plain.gif", picture.quantize(30), {}),
        ("frames.gif", picture, several),
        ("plain.webp", picture, {}),
        ("lossless.webp", picture, {"lossless": True}),
        ("frames.webp", picture, several),
        ("plain.bmp", picture, {}),
        ("plain.ppm", picture, {}),
        ("grey.pgm", picture.convert("L"), {}),
        ("bits.pbm", picture.convert("1"), {}),
        ("frames.mpo", picture, several),
        ("fax.tif", picture.convert("1"), {"compression": "group4"}),
    ):
        path = folder / name
        image.copy().save(path, **options)  # what was a JPEG, Pillow saves as no TIFF
        found[name] = path.read_bytes()
    five = np.dstack([pixels, pixels[..., :2]])
    for name, values, more in (
        ("strips.tif", pixels, {"photometric": "rgb", "rowsperstrip": 7}),
        ("tiles.tif", pixels, {"photometric": "rgb", "tile": (16, 16), "compression": "deflate"}),
        ("pages.tif", np.stack([np.asarray(frame) for frame in frames]), {"photometric": "rgb"}),
        ("jpeg.tif", pixels, {"photometric": "rgb", "compression": "jpeg"}),
        ("deep.tif", deep, {"photometric": "rgb", "compression": "lzw", "predictor": True}),
        ("bands.tif", five, {"photometric": "minisblack", "planarconfig": "contig"}),
        ("planes.tif", deep.transpose(2, 0, 1), {"planarconfig": "separate", "photometric": "rgb"}),
        ("stack.tif", deep.transpose(2, 0, 1), {"imagej": True, "photometric": "minisblack"}),
        ("ome.tif", deep.transpose(2, 0, 1), {"ome": True, "photometric": "minisblack"}),
        ("big.tif", pixels, {"bigtiff": True, "photometric": "rgb", "compression": "zstd"}),
    ):
        tifffile.imwrite(folder / name, values, **more)
        found[name] = (folder / name).read_bytes()
    for name, code in (
        ("a.mp4", "mp4v"), ("b.avi", "MJPG"), ("c.mkv", "FFV1"), ("d.webm", "VP80"),
        ("e.mov", "mp4v"), ("f.webm", "VP90"), ("g.avi", "XVID"),
    ):  # fmt: skip
        fourcc = cv2.VideoWriter.fourcc(*code)
        writer = cv2.VideoWriter(str(folder / name), cv2.CAP_FFMPEG, fourcc, 10, SIZE[::-1])
        for frame in frames * 2:
            writer.write(cv2.resize(np.asarray(frame), SIZE[::-1])[..., ::-1].copy())
        writer.release()
        found[name] = (folder / name).read_bytes()
    return found


def flip(content: bytearray, other: bytes, chance: random.Random) -> None:
    """Turns single bits around, anywhere."""
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)


def flip_head(content: bytearray, other: bytes, chance: random.Random) -> None:
    """Turns single bits around in the head."""
    for _ in range(chance.choice((1, 2, 4))):
        content[chance.randrange(min(200, len(content)))] ^= 1 << chance.randrange(8)


def cut(content: bytearray, other: bytes, chance: random.Random) -> None:
    """Cuts the end off."""
    del content[chance.randrange(len(content)) :]


def set_field(content: bytearray, other: bytes, chance: random.Random) -> None:
    """Writes an extreme number somewhere, mostly near an end, where heads and indices are."""
    for _ in range(chance.choice((1, 1, 3))):
        near = chance.choice((len(content), min(300, len(content))))
        place = chance.randrange(near)
        if chance.random() < 0.3:
            place = len(content) - 1 - place
        value = chance.choice(EXTREMES)[: chance.choice((1, 2, 4))]
        content[place : place + len(value)] = value


def splice(content: bytearray, other: bytes, chance: random.Random) -> None:
    """Puts a piece of another file in, over or between."""
    start = chance.randrange(len(other))
    piece = other[start : start + chance.choice((4, 30, 400))]
    place = chance.randrange(len(content))
    content[place : place + chance.choice((0, len(piece)))] = piece


def blank(content: bytearray, other: bytes, chance: random.Random) -> None:
    """Fills a part with one byte, as of a block that was lost."""
    place, length = chance.randrange(len(content)), chance.choice((3, 40, 300))
    end = min(len(content), place + length)
    content[place:end] = bytes([chance.choice((0, 255))]) * (end - place)


DAMAGES: Sequence[Callable[[bytearray, bytes, random.Random], None]] = (
    *(flip, flip_head, cut, set_field, splice, blank),
)


def damaged(name: str, whole: dict[str, bytes], chance: random.Random) -> bytes:
    """Returns a file's content damaged in one way, or in two."""
    content = bytearray(whole[name])
    for _ in range(chance.choice((1, 1, 2))):
        if content:
            chance.choice(DAMAGES)(content, whole[chance.choice(list(whole))], chance)
    return bytes(content)


def predict_here(pictures: Path, output: Path) -> int:
    """Predicts a folder within the limits; returns the exit code."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    torch.set_num_threads(1)
    palette = ((250, 0, 0), (0, 250, 0), (0, 0, 250))
    network: nn.Module = Colours()
    segmenter = Segmenter(
        network,  # type: ignore[arg-type]
        ("red", "green", "blue"),
        palette,
        EvalConfig(),
        torch.device("cpu"),
        {"sha256": ""},
        value_range=(0.0, 65535.0),
    )
    try:
        summary = predict(segmenter, [pictures], output, every_frame=True)
    except SegdeformError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 8 if summary.failed else 0


class Ended(NamedTuple):
    """How a process ended."""

    problem: str  # "" where all is well
    done: int  # files
    failed: int


def run(pictures: Path, output: Path) -> Ended:
    """Predicts a folder in a process of its own, and looks whether every file is told of."""
    shutil.rmtree(output, ignore_errors=True)
    files = sorted(str(path) for path in pictures.iterdir())
    command = [sys.executable, __file__, "--child", str(pictures), "--output", str(output)]
    try:
        child = subprocess.run(command, capture_output=True, timeout=SECONDS + len(files))
    except subprocess.TimeoutExpired:
        return Ended("hangs", 0, 0)
    if child.returncode not in (0, 8):
        lines = child.stderr.decode(errors="replace").strip().splitlines()
        return Ended(f"code {child.returncode}: {lines[-1] if lines else ''}", 0, 0)
    value = json.loads((output / "summary.json").read_bytes())
    done = {entry["picture"] for entry in value["done"]}
    failed = {entry["picture"] for entry in value["failed"]}
    lost = [path for path in files if path not in done | failed]
    if lost or not value["finished"]:
        return Ended(f"{len(lost)} lost, as {lost[:1]}", 0, 0)
    return Ended("", len(done), len(failed - done))


def culprits(pictures: Path, work: Path) -> list[tuple[Path, str]]:
    """Halves a folder until the files are found that end a process."""
    ended = run(pictures, work / "out")
    files = sorted(pictures.iterdir())
    if not ended.problem:
        return []
    if len(files) == 1:
        return [(files[0], ended.problem)]
    found = []
    for half in (files[: len(files) // 2], files[len(files) // 2 :]):
        part = work / f"half-{half[0].name}-{len(half)}"
        part.mkdir(parents=True)
        for path in half:
            shutil.copy(path, part / path.name)
        found += culprits(part, work)
    return found


def main() -> int:
    """Damages, predicts and tells."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", type=Path)
    options = parser.parse_args()
    if options.child is not None:
        return predict_here(options.child, options.output)
    chance, root = random.Random(options.seed), options.output
    (root / "whole").mkdir(parents=True)
    whole = originals(root / "whole")
    totals: Counter[str] = Counter()
    begun = time.monotonic()
    for first in range(0, options.files, options.batch):
        pictures = root / "pictures"
        shutil.rmtree(pictures, ignore_errors=True)
        pictures.mkdir()
        for number in range(first, min(options.files, first + options.batch)):
            name = chance.choice(list(whole))
            stem, _, suffix = name.rpartition(".")
            path = pictures / f"{number:06d}-{stem}.{suffix}"
            path.write_bytes(damaged(name, whole, chance))
        ended = run(pictures, root / "out")
        totals += Counter(done=ended.done, failed=ended.failed)
        if ended.problem:
            print(f"batch {first}: {ended.problem}", flush=True)
            for path, problem in culprits(pictures, root / "work"):
                (root / "found").mkdir(exist_ok=True)
                shutil.copy(path, root / "found" / path.name)
                print(f"  {path.name}: {problem}", flush=True)
                totals["found"] += 1
            totals["batches"] += 1
            shutil.rmtree(root / "work", ignore_errors=True)
    seconds = time.monotonic() - begun
    print(
        f"{options.files} files, seed {options.seed}: {totals['done']} done, {totals['failed']} "
        f"failed, {totals['found']} ended a process, {totals['batches']} batches ended so; "
        f"{seconds:.0f} s"
    )
    return 1 if totals["batches"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
