"""Compares the labels of pictures seen in windows with those of the same seen whole.

    python scripts/seam_error.py MODEL PICTURE... [--window 1024] [--tile 512]

`--window` is the side of a square that the network has memory for: how many pixels a window with
its context may have, where a picture is too large to be seen whole. `--tile` compares blended
windows of that side instead (the option of `predict` and `eval`). Pictures must fit the memory
whole. The time is that in windows over that of the whole.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from segdeform.inference import predict_labels
from segdeform.room import room_of
from segdeform.segmenter import Segmenter, load


def compare(segmenter: Segmenter, picture: Path, window: int, tile: int) -> dict[str, float]:
    """Returns the share of pixels with the labels of the whole, and the ratio of the times."""
    pixels = segmenter.read(picture)
    height, width, channels = pixels.shape
    room = room_of(segmenter.model, segmenter.device, channels)
    options = segmenter.options.model_copy(update={"tile": 0, "scales": (1.0,), "flip": False})
    enough = room.bytes

    def labelled(tile: int) -> tuple[float, torch.Tensor]:
        started = time.perf_counter()
        chosen = options.model_copy(update={"tile": tile})
        labels = predict_labels(segmenter.model, pixels, chosen, segmenter.device)
        return time.perf_counter() - started, torch.from_numpy(labels.astype("int32"))

    labelled(0)  # the first call takes longer
    whole_seconds, whole = labelled(0)
    if not tile:
        kept = room.cost.kept * height * width
        room.bytes = int(window**2 * room.cost.backbone + kept)
    seconds, found = labelled(tile)
    room.bytes = enough
    equal = float((whole == found).double().mean())
    return {"equal": round(equal, 6), "time": round(seconds / whole_seconds, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("pictures", type=Path, nargs="+")
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--tile", type=int, default=0)
    given = parser.parse_args()
    segmenter = load(given.model)
    for picture in given.pictures:
        found = compare(segmenter, picture, given.window, given.tile)
        print(json.dumps({"picture": str(picture), **found}), flush=True)


if __name__ == "__main__":
    main()
