"""Makes small frames in Cityscapes' layout, with all label ids, for tests of data, training and
scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.helpers.labels import labels as official_labels
from cityscapesscripts.preparation.json2labelImg import createLabelImage
from PIL import Image

CITIES = {"train": ("aachen", "bad-honnef"), "val": ("munster",), "test": ("berlin",)}


def write_frames(
    root: Path,
    *,
    frames: int = 2,  # for each city
    size: tuple[int, int] = (64, 128),  # pixels, [H, W]
    splits: tuple[str, ...] = ("train", "val"),
    seed: int = 0,
) -> Path:
    """Writes pictures, labelIds, labelTrainIds, instanceIds and polygons that agree; returns ROOT.

    Every frame has a patch of each of the 34 ids (0 and, as drawn by no polygon, -1 among them)
    over random rectangles; a picture shows the label's colour with noise. Masks are drawn by the
    official scripts.
    """
    rng = np.random.default_rng(seed)
    for split in splits:
        for city in CITIES[split]:
            for frame in range(frames):
                write_frame(root, split, f"{city}_{frame:06d}_{19:06d}", size, rng)
    return root


def write_frame(
    root: Path, split: str, stem: str, size: tuple[int, int], rng: np.random.Generator
) -> None:
    """Writes one frame of ROOT, named CITY_SEQUENCE_FRAME."""
    city = stem.split("_")[0]
    truth = root / "gtFine" / split / city
    pictures = root / "leftImg8bit" / split / city
    truth.mkdir(parents=True, exist_ok=True)
    pictures.mkdir(parents=True, exist_ok=True)
    polygons = truth / f"{stem}_gtFine_polygons.json"
    polygons.write_text(json.dumps(_annotation(size, rng)))
    annotation = Annotation()
    annotation.fromJsonFile(str(polygons))
    ids = createLabelImage(annotation, "ids")
    ids.save(truth / f"{stem}_gtFine_labelIds.png")
    createLabelImage(annotation, "trainIds").save(truth / f"{stem}_gtFine_labelTrainIds.png")
    values = np.asarray(ids)
    # Of every label with instances one instance, number 0; groups are not told apart here.
    single = np.isin(values, [label.id for label in official_labels if label.hasInstances])
    instances = np.where(single, values.astype(np.uint16) * 1000, values)
    Image.fromarray(instances.astype(np.uint16)).save(truth / f"{stem}_gtFine_instanceIds.png")
    colors = np.zeros((256, 3), np.int16)
    for label in official_labels:
        colors[label.id % 256] = label.color
    noisy = colors[values] + rng.integers(-20, 21, (*size, 3))
    picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    picture.save(pictures / f"{stem}_leftImg8bit.png", compress_level=1)


def _annotation(size: tuple[int, int], rng: np.random.Generator) -> dict[str, Any]:
    height, width = size
    objects = []
    for label in rng.choice([7, 8, 11, 21, 23, 26], size=12):
        top, left = int(rng.integers(-4, height)), int(rng.integers(-4, width))
        bottom, right = top + int(rng.integers(8, height)), left + int(rng.integers(8, width))
        corners = [[left, top], [right, top], [right, bottom], [left, bottom]]
        objects.append((_name(int(label)), corners))
    side = max(2, min(height // 4, width // 9))
    for place, label in enumerate(official_labels):
        top, left = place // 9 * side, place % 9 * side
        corners = [[left, top], [left + side - 1, top], [left + side - 1, top + side - 1]]
        objects.append((label.name, [*corners, [left, top + side - 1]]))
    described = [{"label": name, "polygon": polygon} for name, polygon in objects]
    return {"imgHeight": height, "imgWidth": width, "objects": described}


def _name(label: int) -> str:
    return next(entry.name for entry in official_labels if entry.id == label)
