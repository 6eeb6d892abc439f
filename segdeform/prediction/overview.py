"""One sheet that shows many overlays, with a legend."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segdeform.data.image_io import write_image
from segdeform.data.unread import is_video
from segdeform.prediction.place import overlay_path, video_path
from segdeform.prediction.records import Done
from segdeform.results.overlay import Color, Picture

_OVERVIEW_PICTURES = 12
_MOST_DECODED = 2**25  # pixels of an overlay, for the overview
_CELL = (240, 320)  # largest [H, W] of a picture on the sheet
_NARROWEST = 90  # pixels, so that names can be read below tiny pictures
_GAP = 8  # pixels between them
_TEXT, _LINE = 13, 18  # pixels, height of letters and of their line
_PAPER, _INK = (255, 255, 255), (32, 32, 32)


def write_overview(
    output: Path, pictures: Sequence[Done], classes: Sequence[str], palette: Sequence[Color]
) -> None:
    """Draws overview.png from overlays that are there, spread evenly over the pictures.

    Removes it where there is none. Raises ResourceError or UsageError.
    """
    path = output / "overview.png"
    chosen = np.linspace(0, len(pictures) - 1, min(len(pictures), _OVERVIEW_PICTURES)).round()
    shown = [pictures[index] for index in sorted({int(index) for index in chosen})]
    drawn = [(done, small) for done in shown if (small := _small_overlay(output, done)) is not None]
    if not drawn:
        path.unlink(missing_ok=True)
        return
    sheet = overview([small for _, small in drawn], [done.name for done, _ in drawn])
    width = sheet.shape[1]
    seen = set().union(*(done.shares for done, _ in drawn))
    colours = [entry for entry in zip(classes, palette, strict=True) if entry[0] in seen]
    part = f"{len(drawn)} of {len(pictures)} pictures" if len(drawn) < len(pictures) else ""
    write_image(path, np.vstack([heading(part, width), sheet, legend(colours, width)]))


def _small_overlay(output: Path, done: Done) -> Picture | None:
    """Reads an overlay at about the size of a thumbnail; None where it cannot be had so."""
    if is_video(done.source):
        from segdeform.prediction.video import middle_frame

        frame = middle_frame(video_path(output, done.name))
        return None if frame is None else thumbnail(frame)
    path = overlay_path(output, done)
    try:
        with Image.open(path, formats=("JPEG", "PNG")) as image:
            image.draft("RGB", (2 * _CELL[1], 2 * _CELL[0]))  # a JPEG is decoded at a part of it
            if image.width * image.height > _MOST_DECODED:
                return None
            return thumbnail(np.asarray(image.convert("RGB")))
    except (OSError, Image.DecompressionBombError):
        return None


def thumbnail(image: Picture) -> Picture:
    """Shrinks a picture, where it is larger, to fit a cell of the sheet."""
    height, width = image.shape[:2]
    shrink = max(height / _CELL[0], width / _CELL[1], 1.0)
    step = max(1, int(shrink) // 4)  # a giant picture is thinned out before it is smoothed
    size = (max(1, round(width / shrink)), max(1, round(height / shrink)))
    small = Image.fromarray(np.ascontiguousarray(image[::step, ::step]))
    return np.asarray(small.resize(size, Image.Resampling.HAMMING if shrink > 1 else None))


def overview(images: Sequence[Picture], names: Sequence[str], columns: int = 4) -> Picture:
    """Lays out thumbnails on one white sheet, row by row, each in the middle of its cell.

    Below each stands its name; of one that is too long, the end.
    """
    images = [thumbnail(image) for image in images]
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    height = max(image.shape[0] for image in images)
    width = max(_NARROWEST, *(image.shape[1] for image in images))
    down, across = height + _LINE + _GAP, width + _GAP
    sheet = Image.new("RGB", (columns * across + _GAP, rows * down + _GAP), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=_TEXT)
    for index, (image, name) in enumerate(zip(images, names, strict=True)):
        h, w = image.shape[:2]
        top, left = _GAP + (index // columns) * down, _GAP + (index % columns) * across
        sheet.paste(Image.fromarray(image), (left + (width - w) // 2, top + (height - h) // 2))
        text = _shortened(name, font, width)
        middle = left + (width - font.getlength(text)) / 2
        draw.text((round(middle), top + height + 1), text, fill=_INK, font=font)
    return np.asarray(sheet)


def _shortened(name: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Leaves out the beginning of a name that is wider than `width` pixels."""
    text = name
    while len(name) > 1 and font.getlength(text) > width:
        name = name[1:]
        text = f"\N{HORIZONTAL ELLIPSIS}{name}"
    return text


def heading(text: str, width: int) -> Picture:  # [H, width, 3]
    """Writes a line above a sheet; no line for an empty text."""
    sheet = Image.new("RGB", (width, _LINE + _GAP if text else 0), _PAPER)
    font = ImageFont.load_default(size=_TEXT)
    ImageDraw.Draw(sheet).text((_GAP, _GAP // 2), text, fill=_INK, font=font)
    return np.asarray(sheet)


def legend(entries: Iterable[tuple[str, Color]], width: int) -> Picture:  # [H, width, 3]
    """Draws a swatch and a name for each class, wrapped into lines of `width` pixels."""
    font = ImageFont.load_default(size=_TEXT)
    swatch, line = 14, 22
    places: list[tuple[int, int, str, Color]] = []  # left, top, name, colour
    left = top = _GAP
    for name, color in entries:
        advance = swatch + 6 + math.ceil(font.getlength(name)) + 2 * _GAP
        if left > _GAP and left + advance > width:
            left, top = _GAP, top + line
        places.append((left, top, name, color))
        left += advance
    sheet = Image.new("RGB", (width, top + line), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for left, top, name, color in places:
        draw.rectangle((left, top, left + swatch, top + swatch), fill=color, outline=_INK)
        draw.text((left + swatch + 6, top - 1), name, fill=_INK, font=font)
    return np.asarray(sheet)
