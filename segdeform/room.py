"""How much of a picture a network may see at once, in bytes of the memory that it takes."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn

from segdeform.machine.tensor_memory import peak_bytes
from segdeform.models.deeplab import DeepLab
from segdeform.models.receptive import reach_of
from segdeform.network import coarse_scores, decoded_scores, kept_features
from segdeform.runtimes.network import ExportedNetwork

# Of all that a network computes with at a time; with 0.7 GiB of the process and the maps of a
# picture of 16 megapixels it is 3 GiB.
MOST_BYTES = 9 * 2**28
_GPU_FACTOR = 4  # graphics memory is there for this alone
_PROBE = 256  # pixels, side of what is shown to a network to learn what it takes
_FLOOR = 2**22  # bytes, less than which no window is made to take


class Cost(NamedTuple):
    """Bytes that a network takes for a pixel of its input."""

    whole: float
    classes: int
    backbone: float = 0.0
    kept: float = 0.0  # what the head keeps of the features
    head: float = 0.0
    given: float = 0.0  # of the input itself, which is in `whole` too


@dataclass
class Room:
    """What a network takes, and how much it may take: less once memory has ended."""

    cost: Cost
    bytes: int
    shrunk: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def shrink(self, used: float) -> bool:
        """Halves what may be taken, after `used` bytes were too many; False: it is too little."""
        with self._lock:
            if min(self.bytes, used) < _FLOOR:
                return False
            self.bytes = int(min(self.bytes, used)) // 2
            self.shrunk = True
            return True


_rooms: WeakKeyDictionary[nn.Module, Room] = WeakKeyDictionary()
_measuring = threading.Lock()


def room_of(model: nn.Module, device: torch.device, channels: int) -> Room:
    """Returns the room of a network, which the first call measures on a small picture."""
    with _measuring:
        room = _rooms.get(model)
        if room is None:
            factor = 1 if device.type == "cpu" else _GPU_FACTOR
            room = Room(_cost(model, device, channels), factor * MOST_BYTES)
            _rooms[model] = room
        return room


def has_shrunk(model: nn.Module) -> bool:
    """Tells whether memory has ended for a network before."""
    room = _rooms.get(model)
    return room is not None and room.shrunk


def _cost(model: nn.Module, device: torch.device, channels: int) -> Cost:
    pixels = _PROBE**2
    given = 4 * channels  # of the input itself
    images = torch.zeros(1, channels, _PROBE, _PROBE, device=device)
    # Once: a network that is to be compiled for sizes that come again is not for this one.
    whole, (scores, _) = peak_bytes(partial(coarse_scores, model, images))
    cost = Cost(whole / pixels + given, scores.shape[1], given=given)
    if isinstance(model, ExportedNetwork):
        return cost._replace(whole=cost.whole + model.bytes_a_pixel)
    if reach_of(model) is None or not isinstance(model, DeepLab):
        return cost
    backbone, (kept, _) = peak_bytes(partial(kept_features, model, images))
    head, _ = peak_bytes(partial(decoded_scores, model, kept, None))
    return cost._replace(
        backbone=backbone / pixels + given,
        kept=sum(values.element_size() * values.numel() for values in kept) / pixels,
        head=1 + head / pixels,
    )
