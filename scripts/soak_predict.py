"""Predicts thousands of pictures, some broken, through kills: none lost, none done twice.

    python scripts/soak_predict.py --output FOLDER [--pictures 10000] [--broken 100] [--kills 20]

Generates JPEGs of 500x375 and a small network of random weights, then runs `segdeform predict`,
kills it at random moments (of start, network, writing, summing up), and runs it to its end. Checks
that every picture has one mask, whole and of its size, or one failure, that no picture which a
killed run had noted was done again, that nothing of a killed run is left, and prints how the memory
of the last run grew after 500 pictures. Ends in 1 where a check fails.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from segdeform.config.schema import DeformConfig, ModelConfig
from segdeform.errors import PartialFailureError
from segdeform.files.atomic import is_temporary
from segdeform.models import build_model
from segdeform.segmenter import ModelDescription, save_model

SIZE = (375, 500)  # H, W
WARM = 500  # pictures, after which memory should have settled
MOST_GROWTH = 50  # MB
LONGEST_LIFE = 15.0  # seconds that a run has before it is killed


@dataclass
class Folders:
    """Where the soak lies."""

    root: Path

    @property
    def pictures(self) -> Path:
        """The pictures, a hundred in a folder."""
        return self.root / "pictures"

    @property
    def model(self) -> Path:
        """The model folder."""
        return self.root / "model"

    @property
    def output(self) -> Path:
        """What predict writes."""
        return self.root / "output"


def write_model(folder: Path) -> None:
    """Writes a small network of random weights."""
    torch.manual_seed(0)
    model = ModelConfig(
        backbone="mobilenet_v2", weights="none", head="deeplab", head_channels=8, output_stride=32
    )
    deform = DeformConfig(layers=1)
    names = ("sky", "road", "car", "person", "tree")
    palette = tuple((40 * k, 255 - 50 * k, 17 * k) for k in range(len(names)))
    network = build_model(model, deform, len(names)).eval()
    save_model(
        folder,
        network,
        ModelDescription(model=model, deform=deform, classes=names, palette=palette),
    )


def write_pictures(folder: Path, count: int, broken: set[int]) -> None:
    """Writes JPEGs of smooth noise, all different; those broken in one of five ways."""
    rng = np.random.default_rng(0)
    for k in range(count):
        path = folder / f"{k // 100:03d}" / f"{k:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 255, (5, 7, 3), np.uint8))
        coarse.resize(SIZE[::-1], Image.Resampling.BICUBIC).save(path, quality=85)
        if k in broken:
            content = path.read_bytes()
            half = len(content) // 2
            kinds = (content[:half], b"", b"<html>404</html>", content[64:], bytes(half))
            path.write_bytes(kinds[k % len(kinds)])


def start(folders: Folders) -> subprocess.Popen[bytes]:
    """Starts `segdeform predict` on everything."""
    command = ["segdeform", "predict", folders.model, folders.pictures, "--output", folders.output]
    log = (folders.root / "log.txt").open("ab")
    return subprocess.Popen([sys.executable, "-m", *map(str, command)], stdout=log, stderr=log)


def noted(folders: Folders) -> dict[str, int]:
    """Returns the pictures noted as done, and when each mask was written, ns."""
    path = folders.output / "predictions.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    names = [json.loads(line)["name"] for line in lines if line.endswith(b"\n")]
    masks = {name: folders.output / "masks" / f"{name}.png" for name in names}
    return {name: mask.stat().st_mtime_ns if mask.exists() else 0 for name, mask in masks.items()}


def resident(process: subprocess.Popen[bytes]) -> float:
    """Returns a process's resident memory, MB."""
    try:
        pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0.0
    return pages * 4096 / 1e6


def run_to_the_end(folders: Folders) -> tuple[int, list[tuple[int, float]]]:
    """Runs once without a kill; returns the exit code, and memory by pictures done."""
    before = len(noted(folders))
    process = start(folders)
    memory = []
    path = folders.output / "predictions.jsonl"
    while process.poll() is None:
        time.sleep(2)
        done = path.read_bytes().count(b"\n") - before if path.is_file() else 0
        if (now := resident(process)) and done > 0:
            memory.append((done, now))
    return process.returncode, memory


def check(folders: Folders, count: int, broken: set[int], first: dict[str, int]) -> list[str]:
    """Returns what is wrong of a finished prediction."""
    found = []
    output = folders.output
    lines = (output / "predictions.jsonl").read_text().splitlines()
    names = [json.loads(line)["name"] for line in lines]
    failed = [
        Path(json.loads(line)["picture"]).stem
        for line in (output / "failures.jsonl").read_text().splitlines()
    ]
    expected = {f"{k // 100:03d}/{k:05d}" for k in range(count) if k not in broken}
    if sorted(names) != sorted(expected):
        found.append(f"{len(names)} lines of {len(set(names))} pictures, {len(expected)} expected")
    if sorted(failed) != sorted(f"{k:05d}" for k in broken):
        found.append(f"{len(failed)} failures, {len(broken)} expected")
    files = [path for path in (output / "masks").rglob("*") if path.is_file()]
    masks = {p.relative_to(output / "masks").with_suffix("").as_posix(): p for p in files}
    if masks.keys() != expected:
        found.append(f"{len(masks)} masks")
    for path in masks.values():
        with Image.open(path) as image:
            image.load()
            if image.size != SIZE[::-1]:
                found.append(f"{path}: {image.size}")
    now = noted(folders)
    again = [name for name, written in first.items() if now.get(name) != written]
    if again:
        found.append(f"done twice: {len(again)}, as {again[0]}")
    left = [path for path in output.rglob("*") if is_temporary(path.name)]
    if left:
        found.append(f"left of killed runs: {left[:3]}")
    return found


def main() -> None:
    """Generates, kills, finishes, checks and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--broken", type=int, default=100)
    parser.add_argument("--kills", type=int, default=20)
    given = parser.parse_args()
    folders, dice = Folders(given.output), random.Random(0)
    broken = set(dice.sample(range(given.pictures), given.broken))
    if not folders.model.exists():
        write_model(folders.model)
        write_pictures(folders.pictures, given.pictures, broken)
    first: dict[str, int] = {}
    for kill in range(given.kills):
        process = start(folders)
        time.sleep(dice.uniform(0, LONGEST_LIFE))
        process.kill()
        process.wait()
        now = noted(folders)
        again = [name for name in first if now.get(name) != first[name]]
        print(f"kill {kill + 1}: {len(now)} done, {len(again)} of those before not as they were")
        first = now | first
    code, memory = run_to_the_end(folders)
    wrong = check(folders, given.pictures, broken, first)
    if code != PartialFailureError.exit_code:
        wrong.append(f"exit code {code}, {PartialFailureError.exit_code} expected")
    settled = [megabytes for done, megabytes in memory if done >= WARM]
    if settled:
        growth = max(settled) - settled[0]
        print(
            f"memory: {settled[0]:.0f} MB after {WARM} pictures, at most {max(settled):.0f}, at "
            f"the end {settled[-1]:.0f} after {memory[-1][0]}"
        )
        if growth > MOST_GROWTH:
            wrong.append(f"memory grew by {growth:.0f} MB")
    print(
        "\n".join(wrong) if wrong else f"{given.pictures} pictures, {given.kills} kills: all right"
    )
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
