"""A loader process: a program of its own that makes the batches it is asked for.

Training starts it as `main` with the numbers of two open files: a socket, and memory that both
share. In the memory lie the places of batches and behind them, pickled, what the batches are made
of. Over the socket comes a line "STEP PLACE" for each batch; the answer is a pickled None when it
is made, or the error. The process ends when the socket does, so with the training, however that
ends.
"""

from __future__ import annotations

import mmap
import pickle
import socket
import sys
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from segdeform.data.batches import Batch, Batches


def main() -> None:
    """Serves the training whose numbers are in sys.argv: socket, memory, start of the pickle."""
    # albumentations would import these if it could, torch in 2 seconds and 470 MB a process.
    sys.modules.update(dict.fromkeys(("torch", "huggingface_hub")))  # type: ignore[arg-type]
    import cv2
    import numpy as np

    from segdeform.machine.cpu import keep_freed_memory

    cv2.setNumThreads(0)  # the processes share the cores already
    keep_freed_memory()
    channel, descriptor, start = map(int, sys.argv[1:])
    memory = np.frombuffer(mmap.mmap(descriptor, 0), np.uint8)
    batches: Batches = pickle.loads(memory[start:].data)
    with socket.socket(fileno=channel) as training, suppress(ConnectionError):
        for line in training.makefile("rb"):
            step, place = map(int, line.split())
            training.sendall(pickle.dumps(_make(batches, step, batches.place(memory, place))))


def _make(batches: Batches, step: int, batch: Batch) -> Exception | None:
    """Makes a batch; returns its error if there is one, a bug with the traceback as text."""
    from segdeform.errors import SegdeformError

    try:
        batches.fill(step, batch)
    except SegdeformError as error:
        return error
    except Exception as error:
        return RuntimeError("".join(traceback.format_exception(error)))
    return None
