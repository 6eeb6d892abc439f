"""How far a prediction is."""

from __future__ import annotations

from segdeform.callbacks import Progress
from segdeform.prediction.records import Part


class Pace:
    """How far it is, in pictures and frames, which are counted as their files are opened."""

    def __init__(self, total: int, settled: int, tell: Progress | None) -> None:
        self._total, self._settled, self._tell = total, settled, tell
        self._frames: dict[Part, int] = {}

    def open(self, part: Part, frames: int) -> None:
        """Takes it that a file has so many frames."""
        self._frames[part] = frames
        self._total += frames - 1

    def close(self, part: Part, frames: int) -> None:
        """Corrects the number of frames, where a file has fewer or more than it told."""
        whole = Part(part.picture)
        self._total += frames - self._frames.pop(whole, frames)

    def step(self) -> None:
        """Counts one that is done or failed."""
        self._settled += 1
        if self._tell is not None:
            self._tell(self._settled, self._total)
