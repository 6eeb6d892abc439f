"""Probabilities of all classes as .npz, which `numpy.load` opens: blocks of rows, one an entry.

    classes      names, [K]
    size         (H, W) of the picture
    rows_0       [K, h, W] of the first h rows; of a picture of ordinary size all of them
    rows_h       [K, h, W] of the next h rows, called by their first one, and so on

Entries are read when they are asked for, so that nobody has to hold a large picture's at once.
Values are float16 probabilities, or uint8: 255 times them, rounded.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Probabilities = NDArray[np.float16] | NDArray[np.uint8]

_BLOCK = 2**26  # bytes of float16 in an entry


def write_probabilities(
    path: Path,
    probabilities: NDArray[np.float16],  # [K, H, W]
    classes: Sequence[str],
    kind: str = "float16",  # or "uint8"
) -> None:
    """Writes the file, block by block. Raises OSError."""
    count, height, width = probabilities.shape
    rows = max(1, _BLOCK // (2 * count * width))
    # Level 1: a higher one takes five times as long for a few per cent.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        _add(file, "classes", np.array(classes))
        _add(file, "size", np.array([height, width]))
        for top in range(0, height, rows):
            block = np.ascontiguousarray(probabilities[:, top : top + rows])
            _add(file, f"rows_{top}", as_bytes(block) if kind == "uint8" else block)


def as_bytes(probabilities: NDArray[np.float16]) -> NDArray[np.uint8]:
    """Returns 255 times the probabilities, rounded."""
    return (probabilities.astype(np.float32) * 255).round().astype(np.uint8)


def _add(file: zipfile.ZipFile, name: str, values: NDArray[np.generic]) -> None:
    # An entry named by a text has the same date always, so that equal values are equal bytes.
    with file.open(f"{name}.npy", "w", force_zip64=True) as entry:
        np.lib.format.write_array(entry, values, allow_pickle=False)
