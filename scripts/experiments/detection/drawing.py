"""Draws what a detector finds and where its deformable pooler takes the samples of a box."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torchvision.models.detection import FasterRCNN
from torchvision.ops import box_iou

from cuda_ops import MultiScaleDeformRoIPool
from detection.average_precision import Found
from detection.detector import pyramid_of
from detection.scenes import Scene
from detection.training import as_tensor, find
from segdeform.explaining.drawing import point_colours

Float = NDArray[np.float64]
Color = tuple[int, int, int]

_SIDE = 560  # pixels of each panel's longer side
_LEAST_SCORE = 0.5
_ROWS, _OBJECTS = 3, 2  # pictures, and boxes of each whose bins are drawn


def sampling_places(
    box: NDArray[np.float32],  # [4]
    offset: NDArray[np.float32],  # [2, ph, pw]
    gamma: float,
    samples: int,  # along an axis of a bin
) -> Float:  # [ph, pw, samples**2, 2], x and y
    """Returns where `deform_roi_pool` reads a box, in the box's coordinates.

    Box corners are pixel edges: a pixel's centre is at a half.
    """
    _, rows, columns = offset.shape
    sides = np.maximum(box[2:] - box[:2], 0).astype(np.float64)
    inner = (np.arange(samples) + 0.5) / samples
    y = (np.arange(rows)[:, None] + inner) / rows  # [ph, samples], in box heights
    x = (np.arange(columns)[:, None] + inner) / columns
    grid = np.empty((rows, columns, samples, samples, 2))
    grid[..., 0], grid[..., 1] = x[None, :, None, :], y[:, None, :, None]
    grid += gamma * offset.transpose(1, 2, 0)[:, :, None, None, :]
    return (box[:2] + grid * sides).reshape(rows, columns, samples**2, 2)


def draw_detector(
    model: FasterRCNN, scenes: Sequence[Scene], names: Sequence[str]
) -> Image.Image | None:
    """Draws, a picture a row, the boxes found and the moved bins of some of them.

    Each box has one colour in both panels. A bin is a line from its place without offset to where
    it is read, the small dots are the single samples. Returns None when no box is found.
    """
    rows = []
    for scene in scenes:
        found = _sure(find(model, scene))
        chosen = _apart(np.asarray(found.boxes), _OBJECTS)
        if len(chosen) == _OBJECTS or (len(chosen) and len(scenes) == 1):
            rows.append(_row(model, scene, found, chosen, names))
        if len(rows) == _ROWS:
            break
    if not rows:
        return None
    canvas = Image.new("RGB", (rows[0].width, sum(row.height + 8 for row in rows)), (255,) * 3)
    top = 0
    for row in rows:
        canvas.paste(row, (0, top))
        top += row.height + 8
    return canvas


def _sure(found: Found) -> Found:
    keep = np.asarray(found.scores) >= _LEAST_SCORE
    return Found(*(np.asarray(v)[keep] for v in (found.boxes, found.labels, found.scores)))


def _apart(boxes: NDArray[np.float32], count: int) -> list[int]:
    """Chooses up to `count` large boxes that hardly overlap."""
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) if len(boxes) else np.zeros(0)
    chosen: list[int] = []
    for index in np.argsort(-areas, kind="stable").tolist():
        iou = box_iou(*(torch.from_numpy(boxes[which]) for which in ([index], chosen)))
        if len(chosen) < count and (iou < 0.05).all():
            chosen.append(index)
    return chosen


def _row(
    model: FasterRCNN, scene: Scene, found: Found, chosen: list[int], names: Sequence[str]
) -> Image.Image:
    height, width = scene.picture.shape[:2]
    scale = _SIDE / max(height, width)
    size = (round(width * scale), round(height * scale))
    picture = Image.fromarray(scene.picture).resize(size, Image.Resampling.BICUBIC)
    pale = Image.blend(
        picture.convert("L").convert("RGB"), Image.new("RGB", size, (255,) * 3), 0.45
    )
    boxes, colours = np.asarray(found.boxes), point_colours(len(np.asarray(found.boxes)))
    left, right = ImageDraw.Draw(picture), ImageDraw.Draw(pale)
    labels, scores = np.asarray(found.labels), np.asarray(found.scores)
    for box, label, score, colour in zip(boxes, labels, scores, colours, strict=True):
        corners = [float(v) * scale for v in box]
        left.rectangle(corners, outline=colour, width=3)
        _write(left, (corners[0], corners[1]), f"{names[label - 1]} {score:.2f}", colour)
    pool = model.roi_heads.box_roi_pool
    assert isinstance(pool, MultiScaleDeformRoIPool)
    with torch.inference_mode():
        features, seen, enlarged = pyramid_of(model, as_tensor(scene))
        offsets = pool.offsets(features, [torch.from_numpy(boxes[chosen]) * enlarged], seen)
    for index, offset in zip(chosen, offsets.numpy(), strict=True):
        _draw_bins(right, boxes[index], offset, pool, scale, colours[index])
    row = Image.new("RGB", (2 * size[0] + 8, size[1]), (255,) * 3)
    row.paste(picture, (0, 0))
    row.paste(pale, (size[0] + 8, 0))
    return row


def _draw_bins(
    draw: ImageDraw.ImageDraw,
    box: NDArray[np.float32],
    offset: NDArray[np.float32],
    pool: MultiScaleDeformRoIPool,
    scale: float,
    colour: Color,
) -> None:
    dark = (colour[0] // 2, colour[1] // 2, colour[2] // 2)
    draw.rectangle([float(v) * scale for v in box], outline=colour, width=3)
    samples = max(pool.sampling_ratio, 1)
    moved = scale * sampling_places(box, offset, pool.gamma, samples)
    fixed = scale * sampling_places(box, np.zeros_like(offset), pool.gamma, samples).mean(2)
    for (x, y), (fx, fy) in zip(moved.mean(2).reshape(-1, 2), fixed.reshape(-1, 2), strict=True):
        draw.line((fx, fy, x, y), fill=dark, width=2)
        draw.ellipse((x - 3.5, y - 3.5, x + 3.5, y + 3.5), fill=colour, outline=dark)
    for x, y in moved.reshape(-1, 2):
        draw.ellipse((x - 1, y - 1, x + 1, y + 1), fill=dark)


def _write(
    draw: ImageDraw.ImageDraw, corner: tuple[float, float], text: str, colour: Color
) -> None:
    """Writes a line in a bar of the colour on top of a box's edge, or below it at the frame."""
    left, top, right, bottom = draw.textbbox(corner, text, font_size=15)
    x, y = max(corner[0], 0), max(corner[1] - (bottom - top) - 6, 0)
    draw.rectangle((x, y, x + right - left + 6, y + bottom - top + 6), fill=colour)
    bright = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] > 128
    ink = (0, 0, 0) if bright else (255, 255, 255)
    draw.text((x + 3, y + 2 - (top - corner[1])), text, fill=ink, font_size=15)
