"""Ways to read a mask that fail, for data sets whose reading should fail inside a loader process.

Without torch, which those processes cannot import.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import cv2

from segdeform.data.image_io import read_mask


def memory_ends(path: Path) -> Any:
    raise MemoryError


def opencv_ends(path: Path) -> Any:
    raise cv2.error("Insufficient memory")


def has_a_bug(path: Path) -> Any:
    raise ZeroDivisionError("of a planted bug")


def kills_its_process(path: Path) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def stops_its_process(path: Path) -> Any:
    os.kill(os.getpid(), signal.SIGSTOP)


def is_counted(path: Path) -> Any:
    with path.parent.with_name("calls").open("ab") as file:
        file.write(b".")
    return read_mask(path)
