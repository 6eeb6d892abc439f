"""Draws one sheet that shows each output of `segdeform predict` as a picture.

    python scripts/draw_outputs.py demo/run demo/data/val/images/00054.png --class cross \\
        --output .github/outputs.png

Everything on it is read from the files that the command writes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segdeform.cli import main as segdeform
from segdeform.preparing.polygons.coco import decode
from segdeform.results.outputs import KINDS
from segdeform.segmenter import load

SIDE, GAP, COLUMNS = 320, 10, 3  # pixels of a cell, pixels between them
TITLE, SMALL = 15, 12  # pixels, height of letters
PAPER, INK, PALE = (255, 255, 255), (32, 32, 32), (110, 110, 110)


def draw_sheet(model: Path, picture: Path, chosen: str) -> Image.Image:
    """Predicts a picture with all outputs and lays them out, each with its name."""
    segmenter = load(model, "cpu")
    with tempfile.TemporaryDirectory() as folder:
        out, name = Path(folder) / "out", picture.stem
        code = segdeform(
            [
                *("predict", str(model), str(picture), "--output", str(out), "--device", "cpu"),
                *("--outputs", ",".join(KINDS), "--cutout-class", chosen),
                *("--min-area", "20", "--simplify", "2.5"),
            ]
        )
        if code:
            raise SystemExit(code)
        plain = Image.open(picture).convert("RGB")
        palette = dict(zip(segmenter.classes, segmenter.palette, strict=True))
        polygons = json.loads((out / "polygons" / f"{name}.geojson").read_text())
        runs = json.loads((out / "rle" / f"{name}.json").read_text())
        numbers = out / "probabilities" / f"{name}.npz"
        cells = {
            "the picture": enlarged(plain),
            "masks": enlarged(Image.open(out / "masks" / f"{name}.png").convert("RGB")),
            "overlays": enlarged(Image.open(out / "overlays" / f"{name}.jpg")),
            "confidence": enlarged(Image.open(out / "confidence" / f"{name}.png").convert("RGB")),
            f"probabilities (of {chosen})": probability(numbers, chosen),
            "polygons": outlines(plain, polygons["features"], palette),
            "rle": boxes(plain, runs, palette),
            f"cutouts (of {chosen})": on_chequers(Image.open(out / "cutouts" / f"{name}.png")),
            "json": written(json.loads((out / "json" / f"{name}.json").read_text())),
        }
    return laid_out(cells)


def enlarged(image: Image.Image) -> Image.Image:
    """Returns a picture that fills a cell."""
    return image.resize((SIDE, SIDE), Image.Resampling.NEAREST)


def probability(path: Path, chosen: str) -> Image.Image:
    """Draws the probabilities of one class from black to white."""
    with np.load(path) as file:
        values = file["rows_0"][file["classes"].tolist().index(chosen)]
    return enlarged(Image.fromarray((255 * values.astype(np.float32)).astype(np.uint8)))


def outlines(
    picture: Image.Image, features: Iterable[dict], palette: dict[str, tuple[int, int, int]]
) -> Image.Image:
    """Draws polygons with their corners on the picture in grey."""
    cell = enlarged(dimmed(picture))
    draw, scale = ImageDraw.Draw(cell), SIDE / picture.width
    for feature in features:
        colour = palette[feature["properties"]["class"]]
        if sum(colour) < 200:  # that of the ground would not show
            continue
        for ring in feature["geometry"]["coordinates"]:
            points = [(x * scale, y * scale) for x, y in ring]
            draw.line(points, fill=colour, width=2)
            for x, y in points:
                draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=PAPER)
    return cell


def boxes(
    picture: Image.Image, runs: dict, palette: dict[str, tuple[int, int, int]]
) -> Image.Image:
    """Draws the classes from their runs, with box and area."""
    pixels = np.array(dimmed(picture))
    names = {category["id"]: category["name"] for category in runs["categories"]}
    shown = [one for one in runs["annotations"] if one["category_id"]]
    for one in shown:
        height, width = one["segmentation"]["size"]
        lengths = decode(one["segmentation"]["counts"])
        there = np.repeat(np.arange(len(lengths)) % 2, lengths).reshape(width, height).T
        pixels[there == 1] = palette[names[one["category_id"]]]
    cell = enlarged(Image.fromarray(pixels))
    draw, font, scale = ImageDraw.Draw(cell), ImageFont.load_default(SMALL), SIDE / picture.width
    for one in shown:
        x, y, width, height = (value * scale for value in one["bbox"])
        draw.rectangle((x, y, x + width - 1, y + height - 1), outline=PAPER)
        text = f"{names[one['category_id']]} {one['area']}"
        draw.text((x + 3, y + 1), text, fill=PAPER, font=font, stroke_width=1, stroke_fill=INK)
    return cell


def dimmed(picture: Image.Image) -> Image.Image:
    """Returns a picture in dark grey."""
    return picture.convert("L").point(lambda value: value * 0.6).convert("RGB")


def on_chequers(image: Image.Image) -> Image.Image:
    """Shows what is transparent as viewers do."""
    squares = np.add.outer(np.arange(SIDE) // 10, np.arange(SIDE) // 10) % 2
    paper = Image.fromarray(np.where(squares, 255, 215).astype(np.uint8)).convert("RGBA")
    return Image.alpha_composite(paper, enlarged(image))


def written(facts: dict) -> Image.Image:
    """Writes the facts down, as far as they fit."""
    cell = Image.new("RGB", (SIDE, SIDE), (246, 246, 246))
    draw, font = ImageDraw.Draw(cell), ImageFont.load_default(SMALL)
    lines = [
        f"size: {facts['size']}",
        f"mean_confidence: {facts['mean_confidence']:.3f}",
        "classes:",
    ]
    for entry in facts["classes"]:
        lines.append(f"    {entry['class']}: {entry['pixels']} pixels, {entry['share']:.1%},")
        lines.append(f"        mean_confidence {entry['mean_confidence']:.3f}")
    for row, line in enumerate(lines):
        draw.text((10, 10 + row * 17), line, fill=INK, font=font)
    return cell


def laid_out(cells: dict[str, Image.Image]) -> Image.Image:
    """Puts the cells in rows, each below its name."""
    across, down = SIDE + GAP, SIDE + GAP + TITLE + 6
    rows = -(-len(cells) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * across + GAP, rows * down + GAP), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TITLE)
    for index, (name, cell) in enumerate(cells.items()):
        left, top = GAP + index % COLUMNS * across, GAP + index // COLUMNS * down
        draw.text((left, top - 2), name, fill=INK if index else PALE, font=font)
        sheet.paste(cell.convert("RGB"), (left, top + TITLE + 6))
    return sheet


def run() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="run or model folder")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--class", dest="chosen", required=True, help="to cut out")
    parser.add_argument("--output", type=Path, required=True, help="PNG of the sheet")
    options = parser.parse_args()
    sheet = draw_sheet(options.model, options.picture, options.chosen)
    sheet.quantize(256).save(options.output, optimize=True)


if __name__ == "__main__":
    run()
