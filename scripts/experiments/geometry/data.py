"""MNIST and CIFAR-10 for `geometry_table.py`, and the rotations and shifts of its sets.

Looked for in this order, below one folder:
- what torchvision.datasets keeps there (MNIST/raw, cifar-10-batches-py);
- data/mnist/mnist_{train,test}.npz (x uint8 [n, 28, 28], y uint8) and
  data/cifar10/cifar10_jpeg_6000.zip ({train,test}/CLASS/NNNN.jpg, 500 + 100 a class).
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from segdeform.errors import DataError, DownloadError, UsageError

FRAME = 40  # side of what MNIST stands in: a turned square of 28 pixels has a diagonal of 39.6
_CIFAR_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


class Split(NamedTuple):
    """Pictures and their classes."""

    images: Tensor  # [n, C, H, W] uint8
    labels: Tensor  # [n] int64, 0..9

    def subset(self, size: int | None) -> Split:
        """Takes `size` pictures, the same ones at every call, in a fixed random order; None: all.

        Raises:
            UsageError: there are fewer.
        """
        count = len(self.labels)
        if size is not None and size > count:
            raise UsageError(f"{size} pictures are asked for, and there are {count}")
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:size]
        return Split(self.images[order], self.labels[order])


@dataclass(frozen=True)
class Pictures:
    """A data set as read."""

    name: str  # as results must call it
    train: Split
    test: Split

    def sha256(self) -> str:
        """Returns the SHA-256 over all pictures and labels."""
        digest = hashlib.sha256()
        for part in (*self.train, *self.test):
            digest.update(part.numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class GeometrySet:
    """A row of the table: where its pictures come from and how they are moved."""

    source: str  # mnist or cifar
    angle: int = 0  # degrees, largest rotation to either side
    shift: int = 0  # whole pixels, largest shift along either axis to either side
    frame: int = 32  # pixels, side of the square with the picture in its middle, black around it


SETS = {
    "mnist": GeometrySet("mnist", frame=FRAME),
    "mnist-rotated": GeometrySet("mnist", angle=180, frame=FRAME),
    "mnist-translated": GeometrySet("mnist", shift=6, frame=FRAME),
    "mnist-rotated-translated": GeometrySet("mnist", angle=180, shift=6, frame=FRAME),
    "cifar": GeometrySet("cifar"),
    "cifar-rotated": GeometrySet("cifar", angle=180),
}


class Motion(NamedTuple):
    """How each of n pictures is moved: turned about its middle first, then shifted."""

    angle: Tensor  # [n] float32, degrees, anticlockwise as seen
    shift: Tensor  # [n, 2] int64, pixels down and to the right

    @classmethod
    def draw(cls, row: GeometrySet, count: int, generator: torch.Generator) -> Motion:
        """Draws angles and shifts, uniform within the row's limits."""
        angle = row.angle * (2 * torch.rand(count, generator=generator) - 1)
        limits = (-row.shift, row.shift + 1)
        return cls(angle, torch.randint(*limits, (count, 2), generator=generator))


def move(
    images: Tensor,  # [n, C, H, W] uint8
    motion: Motion,
    frame: int,  # pixels, side of the result
) -> Tensor:  # [n, C, frame, frame] float32, 0..1
    """Stands the pictures in a black frame, turns and shifts them there.

    What a picture does not cover is black, what leaves the frame is lost. Rotation is bilinear; a
    shift moves pixels as they are.
    """
    height, width = images.shape[2:]
    top, left = (frame - height) // 2, (frame - width) // 2
    around = (left, frame - width - left, top, frame - height - top)
    framed = F.pad(images, around).float() / 255
    return shifted(rotated(framed, motion.angle), motion.shift)


def rotated(images: Tensor, angle: Tensor) -> Tensor:  # [n, C, S, S], [n] degrees
    """Turns square pictures about their middles, bilinearly; those of angle 0 stay bit for bit."""
    if not angle.any():
        return images
    radians = torch.deg2rad(angle)
    cosine, sine, zero = torch.cos(radians), torch.sin(radians), torch.zeros_like(radians)
    # From a place of the result back to one of the picture; y points down.
    matrix = torch.stack([cosine, -sine, zero, sine, cosine, zero], 1).reshape(-1, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    turned = F.grid_sample(images, grid, align_corners=False)
    return torch.where((angle == 0)[:, None, None, None], images, turned)


def shifted(images: Tensor, shift: Tensor) -> Tensor:  # [n, C, S, S], [n, 2] pixels
    """Moves pictures by whole pixels, down and to the right."""
    if not shift.any():
        return images
    most = int(shift.abs().max())
    side = images.shape[2]
    padded = F.pad(images, (most,) * 4)
    places = most - shift[:, :, None] + torch.arange(side)  # [n, 2, S]: rows, columns
    rows, columns = places[:, 0, :, None], places[:, 1, None, :]
    picked = padded[torch.arange(len(images))[:, None, None], :, rows, columns]  # [n, S, S, C]
    return picked.permute(0, 3, 1, 2).contiguous()


def find_root(data: Path | None) -> Path:
    """Returns the folder to look in: the given one, else SEGDEFORM_TEST_DATA's.

    Raises:
        UsageError: neither is given.
    """
    named = os.environ.get("SEGDEFORM_TEST_DATA")
    if data is None and not named:
        raise UsageError("no data: give --data DIR (with --download where there is a network)")
    return data or Path(str(named))


def read_pictures(source: str, root: Path, *, download: bool = False) -> Pictures:
    """Reads "mnist" or "cifar" below `root`.

    Raises:
        DataError: nothing is there, or it is damaged.
        DownloadError: the download failed.
    """
    if not root.is_dir() and not download:
        raise DataError(f"{root} is not a folder: give --data DIR, or --download to fill it")
    kind = {"mnist": torchvision.datasets.MNIST, "cifar": torchvision.datasets.CIFAR10}[source]
    title = {"mnist": "MNIST", "cifar": "CIFAR-10"}[source]
    try:
        splits = [kind(root, train=train, download=download) for train in (True, False)]
    except (RuntimeError, OSError) as error:
        if download:
            raise DownloadError(f"{title} could not be fetched into {root}: {error}") from error
        return _read_files(source, root, title)
    return Pictures(title, *(_from_torchvision(split.data, split.targets) for split in splits))


def _from_torchvision(data: Tensor | NDArray[np.uint8], targets: Tensor | list[int]) -> Split:
    images = torch.as_tensor(data)
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    return Split(images, torch.as_tensor(targets, dtype=torch.int64))


def _read_files(source: str, root: Path, title: str) -> Pictures:
    paths = {
        "mnist": [root / "data/mnist" / f"mnist_{split}.npz" for split in ("train", "test")],
        "cifar": [root / "data/cifar10/cifar10_jpeg_6000.zip"],
    }[source]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f"no {title} in {root}: neither torchvision's files nor {missing[0]}; "
            "--download fetches it where there is a network"
        )
    read: Callable[[list[Path]], Pictures] = {"mnist": _read_npz, "cifar": _read_zip}[source]
    try:
        return read(paths)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{paths[0]}: cannot be read: {error}") from error


def _read_npz(paths: list[Path]) -> Pictures:
    splits = []
    for path in paths:
        with np.load(path, allow_pickle=False) as file:
            images, labels = torch.from_numpy(file["x"]), torch.from_numpy(file["y"])
        if images.ndim != 3 or len(images) != len(labels) or images.dtype != torch.uint8:
            raise ValueError(f"x must be uint8 [n, 28, 28] and y [n], not {list(images.shape)}")
        splits.append(Split(images[:, None], labels.long()))
    return Pictures("MNIST", *splits)


def _read_zip(paths: list[Path]) -> Pictures:
    found: dict[str, tuple[list[Tensor], list[int]]] = {"train": ([], []), "test": ([], [])}
    with zipfile.ZipFile(paths[0]) as archive:
        for name in sorted(archive.namelist()):
            if not name.endswith(".jpg"):
                continue
            split, word, _ = name.split("/")
            with Image.open(io.BytesIO(archive.read(name)), formats=["JPEG"]) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            found[split][0].append(torch.tensor(pixels).permute(2, 0, 1))
            found[split][1].append(_CIFAR_CLASSES.index(word))
    splits = [Split(torch.stack(images), torch.tensor(labels)) for images, labels in found.values()]
    count = sum(len(split.labels) for split in splits)
    return Pictures(f"CIFAR-10, {count:,} pictures", *splits)
