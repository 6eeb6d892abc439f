"""A picture too large to be seen whole, seen in windows with the scores of the whole.

The backbone works in windows with as much context around them as it looks at, which is computed
and thrown away; what the head needs of its features is kept, and the head works on that in windows
with its own context. Windows begin at multiples of the stride, zeros pad at the borders of the
picture alone, and means that the head looks at are those of the whole picture. So all is computed
that the whole would be, of plain convolutions the same but for rounding.

Where the kept features would be too many, the picture is cut into chunks, with context again, and
the backbone goes over the picture once before for the means.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from segdeform.machine.cpu import return_freed_memory
from segdeform.machine.memory import memory_that_ended
from segdeform.models.deeplab import DeepLab
from segdeform.models.grids import Whole, cell_sizes, cell_sums
from segdeform.models.receptive import Reach
from segdeform.network import decoded_scores, kept_features
from segdeform.results.maps import Coarse
from segdeform.room import Room
from segdeform.windows import Source, Window, cores, grown

_KEPT_SHARE = 1 / 2  # of all bytes, at most, for the kept features
_TELL_FROM = 60  # seconds for a picture, from which on the user is told
_WITH_HEAD = 1.5  # time with the head / time of the backbone, about

_log = logging.getLogger(__name__)


@dataclass
class Seamless:
    """The work on one picture."""

    model: DeepLab
    source: Source
    reach: Reach
    room: Room
    # [1, C, cells] of the last features of the whole picture, over the cells of the head's grids
    _means: Tensor | None = None
    _begun: float = field(default_factory=lambda: time.monotonic())
    _told: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the picture."""
        return self.source.size

    def pieces(self) -> Iterator[Coarse]:
        """Yields the scores of parts that together cover the picture.

        Where memory ends the part is begun again in smaller windows.
        """
        whole = Window(0, 0, *self.size)
        todo = self._chunks(whole)
        while todo:
            chunk = todo.pop(0)
            try:
                if self.reach.pools and self._means is None and chunk != whole:
                    self._means = self._means_of_all()
                yield from self._chunk(chunk)
                continue
            except (MemoryError, RuntimeError) as error:
                what = memory_that_ended(error)
                if not what or not self.room.shrink(self.room.bytes):
                    raise
            tell_of_less(what, self.size)  # out of the handler, which holds what it took
            todo = self._chunks(chunk) + todo

    def _chunks(self, region: Window) -> list[Window]:
        """Cuts into parts whose kept features are not too many."""
        most = int(_KEPT_SHARE * self.room.bytes / self.room.cost.kept)
        return cores(region, self.reach.head_halo, most, self.reach.step, self.size)

    def _chunk(self, chunk: Window) -> Iterator[Coarse]:
        around, cost = self.reach.head_halo, self.room.cost
        region = grown(chunk, around, self.size)
        room = self.room.bytes - cost.kept * region.height * region.width
        kept, means = self._kept(region, room)
        if self._means is None:
            self._means = means
        scores_stride, last_stride = self.reach.strides[0], self.reach.strides[-1]
        for core in cores(chunk, around, int(room / cost.head), self.reach.step, self.size):
            outer = grown(core, around, self.size)
            seen = tuple(
                _cut(values, outer, region, stride)
                for values, stride in zip(kept, self.reach.strides, strict=True)
            )
            place = (outer.top // last_stride, outer.left // last_stride)
            whole = Whole(self._last_size(), self._means, *place)
            scores = decoded_scores(self.model, seen, whole)
            inner = grown(core, self.reach.step, self.size)
            scores = _cut(scores, inner, outer, scores_stride)
            yield Coarse(scores, scores_stride, core, core.top - inner.top, core.left - inner.left)
            del scores, seen  # before the next window needs the memory
            return_freed_memory()

    def _kept(self, region: Window, room: float) -> tuple[tuple[Tensor, ...], Tensor]:
        """Computes what the head needs of a region, and the means of its last features."""
        kept: tuple[Tensor, ...] = ()
        total: Tensor | None = None
        for core in self._telling(self._windows(region, room)):
            values, high = self._features(core)
            if not kept:
                kept = tuple(
                    _empty(part, region, stride)
                    for part, stride in zip(values, self.reach.strides, strict=True)
                )
            for whole, part, stride in zip(kept, values, self.reach.strides, strict=True):
                _cut(whole, core, region, stride).copy_(part)
            total = high if total is None else total + high
            del values
        assert total is not None
        return kept, self._as_means(total)

    def _windows(self, region: Window, room: float) -> list[Window]:
        """Cuts a region into windows of the backbone, for which there is so much room, bytes."""
        most = int(room / self.room.cost.backbone)
        return cores(region, self.reach.backbone_halo, most, self.reach.step, self.size)

    def _features(self, core: Window) -> tuple[tuple[Tensor, ...], Tensor]:
        """Computes what the head needs of a window, and the sums of its last features."""
        outer = grown(core, self.reach.backbone_halo, self.size)
        kept, high = kept_features(self.model, self.source.read(outer))
        strides = self.reach.strides
        parts = tuple(
            _cut(part, core, outer, stride) for part, stride in zip(kept, strides, strict=True)
        )
        last = _cut(high, core, outer, strides[-1])
        place = (core.top // strides[-1], core.left // strides[-1])
        return parts, cell_sums(last, self.reach.grids, self._last_size(), *place)

    def _last_size(self) -> tuple[int, int]:
        """Returns (h, w) of the last features of the whole picture."""
        height, width = (-(-side // self.reach.strides[-1]) for side in self.size)
        return height, width

    def _as_means(self, total: Tensor) -> Tensor:  # [1, C, cells]
        sizes = cell_sizes(self.reach.grids, self._last_size())
        return (total / total.new_tensor(sizes)).float()

    def _means_of_all(self) -> Tensor:  # [1, C, cells]
        """Returns the means of the last features of the whole picture, which are not kept.

        A tenth of them would not do: labels of CamVid then agree at 96% with those of the whole.
        """
        windows = self._windows(Window(0, 0, *self.size), self.room.bytes)
        total = sum(self._features(core)[1] for core in self._telling(windows, 2))
        assert isinstance(total, Tensor)
        return self._as_means(total)

    def _telling(self, windows: list[Window], times: int = 1) -> Iterator[Window]:
        """Yields windows; says after the first one that a picture will take its time.

        `times` is how often the backbone goes over the picture.
        """
        for number, window in enumerate(windows):
            return_freed_memory()  # the smaller blocks of a window leave holes of a gigabyte in all
            if number == 1 and not self._told:
                self._told = True
                self._tell(windows[0], time.monotonic() - self._begun, times)
            yield window

    def _tell(self, first: Window, took: float, times: int) -> None:
        height, width = self.size
        count = height * width / (first.height * first.width) * times
        seconds = took * count * _WITH_HEAD
        if seconds >= _TELL_FROM:
            _log.warning(
                "a picture of %dx%d pixels is seen in about %d windows of %dx%d and more around "
                "them: by the first one it takes about %d minutes",
                *(height, width, math.ceil(count), first.height, first.width),
                math.ceil(seconds / 60),
            )


def tell_of_less(what: str, size: tuple[int, int]) -> None:
    """Says that windows become smaller."""
    _log.warning(
        "%s ended on a picture of %dx%d pixels: it is seen in smaller windows, which takes longer",
        *(what, *size),
    )


def _empty(like: Tensor, region: Window, stride: int) -> Tensor:
    """Makes room for the values of a region."""
    shape = (1, like.shape[1], -(-region.height // stride), -(-region.width // stride))
    return like.new_empty(shape).contiguous(memory_format=torch.channels_last)


def _cut(values: Tensor, part: Window, whole: Window, stride: int) -> Tensor:
    """Returns the values, [1, C, h, w], of a part of what they are of; both at the stride."""
    top, left = (part.top - whole.top) // stride, (part.left - whole.left) // stride
    rows, columns = -(-part.height // stride), -(-part.width // stride)
    return values[:, :, top : top + rows, left : left + columns]
