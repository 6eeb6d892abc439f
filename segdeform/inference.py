"""Scores and labels for a picture of any size: whole or in windows, several scales, flipped.

The one path of evaluation and prediction, so that a number and a mask come from the same pixels.

A picture is seen whole where the memory that the network takes for it is within `room.MOST_BYTES`,
else in windows as if it were seen whole (`seamless`), or, in several passes, in windows that are
blended (`blended`), as where the user asks for windows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segdeform.blended import AUTOMATIC_TILE, blended_pieces, fitted, passes, window_scores
from segdeform.callbacks import Stop
from segdeform.config.schema import EvalConfig
from segdeform.data.rasters import Raster
from segdeform.errors import InterruptedByUserError, ResourceError
from segdeform.machine.cpu import large_blocks_returned
from segdeform.machine.memory import memory_that_ended
from segdeform.models.deeplab import DeepLab
from segdeform.models.receptive import reach_of
from segdeform.network import coarse_scores, refuse_not_finite
from segdeform.results.maps import Coarse, Maps, MapWriter, enlarged
from segdeform.room import Cost, Room, has_shrunk, room_of
from segdeform.seamless import Seamless, tell_of_less
from segdeform.windows import Source, Window

# Pixels, up to which a picture is seen whole without asking what the network takes: of a single
# pass, and of several, which hold the scores of all classes at all pixels.
_SMALL, _SMALL_OF_SEVERAL = 2**19, 2**16
_LARGE = 2**30  # bytes of work on a picture, beyond which none of it is kept for the next one


def logits(
    model: nn.Module,
    image: Tensor,  # [C, H, W] float32, 0..1, on the model's device
    options: EvalConfig,
) -> Tensor:  # [K, H, W] float32
    """Computes the scores of a picture: logits of a single pass, log-probabilities of several.

    Both give probabilities by softmax over the classes and labels by argmax. The whole [K, H, W]
    is held; `predict_maps` is the way for large pictures and many classes. Raises NotFiniteError
    where the network gives NaN or infinity and ResourceError where memory ends.
    """

    def read(window: Window) -> Tensor:
        return image[None, :, window.top :, window.left :][..., : window.height, : window.width]

    height, width = image.shape[1:]
    options = fitted(options, (height, width))
    with torch.inference_mode(), _memory_errors(height, width):
        scores: Tensor | None = None
        source = Source(read, (height, width), image.shape[0], image.device)
        for piece in _pieces(model, source, options):
            top, left, h, w = piece.window
            if scores is None:
                if (h, w) == (height, width):
                    scores = enlarged(piece)
                    break
                scores = image.new_empty(piece.scores.shape[1], height, width)
            scores[:, top : top + h, left : left + w] = enlarged(piece)
        if scores is None:
            raise ValueError(f"a picture of {height}x{width} pixels has no scores")
        if passes(options) == 1:
            return scores
        return scores.clamp_min(torch.finfo(scores.dtype).tiny).log()


def predict_labels(
    model: nn.Module,
    picture: Raster,  # [H, W, C]
    options: EvalConfig,
    device: torch.device | str,
    stop: Stop | None = None,
) -> NDArray[Any]:  # [H, W] class indices, uint8 or beyond 255 classes uint16
    """Gives every pixel the class with the highest score; see `predict_maps`."""
    return predict_maps(model, picture, options, device, stop=stop).labels


def predict_maps(
    model: nn.Module,
    picture: Raster,  # [H, W, C]
    options: EvalConfig,
    device: torch.device | str,
    *,
    confidence: bool = False,
    probabilities: bool = False,
    keep_coarse: bool = False,
    coarse: Coarse | None = None,
    scratch: Path | None = None,
    stop: Stop | None = None,
) -> Maps:
    """Labels every pixel by the class with the highest score, of equal ones the lowest index.

    Where they are asked for, the maps hold also the probability of that class, and those of all.
    With `keep_coarse`, a picture that is seen whole in one pass comes with the scores that
    `confidence_of` and `probabilities_of` can make these of later. `coarse` is what
    `coarse_together` had for it; then the network is not asked again.

    Memory does not grow with the picture but for the maps, which lie in unnamed files in `scratch`
    where they are large, and never holds the scores of all classes at all pixels. `stop()` is asked
    before each window. Threads may share a model.

    Raises:
        NotFiniteError: the network gives NaN or infinity.
        ResourceError: memory ends, or the disk below `scratch` is full.
        InterruptedByUserError: after a stop.
    """

    def read(window: Window) -> Tensor:
        if stop is not None and stop():
            raise InterruptedByUserError("interrupted")
        return _read([picture], window, device)

    height, width = picture.shape[0], picture.shape[1]
    options = fitted(options, (height, width))
    with torch.inference_mode(), _memory_errors(height, width):
        maps = MapWriter((height, width), confidence, probabilities, scratch)
        source = Source(read, (height, width), picture.shape[2], torch.device(device))
        if coarse is not None:
            refuse_not_finite(coarse.scores)
        kept = None
        for piece in [coarse] if coarse else _pieces(model, source, options):
            maps.add(piece)
            if keep_coarse and _plain(options) and piece.window == Window(0, 0, height, width):
                kept = piece
            del piece  # before the next one needs the memory
        return replace(maps.finish(), coarse=kept)


def coarse_together(
    model: nn.Module,
    pictures: Sequence[Raster],  # of one size
    options: EvalConfig,
    device: torch.device | str,
) -> list[Coarse | None]:
    """Runs the network on several pictures at once, where each is seen whole in one pass.

    Elsewhere, and where memory ends, there is None for each: they are better seen one by one.
    """
    alone: list[Coarse | None] = [None] * len(pictures)
    height, width, channels = pictures[0].shape
    whole = Window(0, 0, height, width)
    options = fitted(options, (height, width))
    one_pass = options.tile == 0 and _plain(options)
    if len(pictures) < 2 or not one_pass or not isinstance(model, DeepLab):
        return alone
    # As one picture of as many pixels, so that these are seen whole and all fit.
    size = (len(pictures) * height, width)
    read = partial(_read, pictures[:1], device=device)
    try:
        with torch.inference_mode():
            if not _fits(model, Source(read, size, channels, torch.device(device)), options):
                return alone
            scores = model.maps(_read(pictures, whole, device))
    except (MemoryError, RuntimeError) as error:
        if not memory_that_ended(error):
            raise
        return alone
    stride = model.map_stride(scores, whole[2:])
    return [Coarse(each[None], stride, whole) for each in scores]


def _read(
    pictures: Sequence[Raster], window: Window, device: torch.device | str
) -> Tensor:  # [N, C, h, w] float32, 0..1
    top, left, h, w = window
    parts = [torch.tensor(each[top : top + h, left : left + w]) for each in pictures]
    pixels = parts[0][None] if len(parts) == 1 else torch.stack(parts)
    # [N, h, w, C] seen as [N, C, h, w] is channels-last, the layout convolutions like best.
    return pixels.permute(0, 3, 1, 2).to(device=device, dtype=torch.float32).div_(255)


def _pieces(model: nn.Module, source: Source, options: EvalConfig) -> Iterator[Coarse]:
    """Yields the scores of parts that together cover the picture; a later one is as good or better.

    What large pictures take is returned to the system.
    """
    large = not _is_small(model, source, options) and _bytes(model, source, options) > _LARGE
    with large_blocks_returned() if large else nullcontext():
        yield from _pieces_of_any(model, source, options)


def _pieces_of_any(model: nn.Module, source: Source, options: EvalConfig) -> Iterator[Coarse]:
    """Yields the scores of parts that together cover the picture; a later one is as good or better.

    Where memory ends, and the user has not said how large windows are, smaller ones follow.
    """
    if options.tile and options.tile < max(source.size):
        yield from blended_pieces(model, source, options.tile, options)
        return
    if _fits(model, source, options):
        try:
            yield _whole(model, source, options)
            return
        except (MemoryError, RuntimeError) as error:
            what = memory_that_ended(error)
            bytes_taken = 0.0 if not what or options.tile else _bytes(model, source, options)
            if not bytes_taken or not _room(model, source).shrink(bytes_taken):
                raise
        tell_of_less(what, source.size)
    reach = reach_of(model)
    if reach is not None and _plain(options):
        assert isinstance(model, DeepLab)
        yield from Seamless(model, source, reach, _room(model, source)).pieces()
    else:
        yield from _blended_automatically(model, source, options)


def _whole(model: nn.Module, source: Source, options: EvalConfig) -> Coarse:
    """Computes the scores of a picture that is seen whole."""
    window = Window(0, 0, *source.size)
    if _plain(options):
        scores, stride = coarse_scores(model, source.read(window))
        return Coarse(scores, stride, window)
    scores = window_scores(model, source.read(window), options)[None]
    return Coarse(scores, 1, window, probabilities=passes(options) > 1)


def _blended_automatically(
    model: nn.Module, source: Source, options: EvalConfig
) -> Iterator[Coarse]:
    """Yields blended scores of windows as large as the options and the memory allow."""
    while True:
        room = _room(model, source)
        bytes_a_pixel = _bytes_a_pixel(room.cost, options)
        tile = options.automatic_tile or AUTOMATIC_TILE
        tile = max(1, min(tile, math.isqrt(int(room.bytes / bytes_a_pixel))))
        try:
            yield from blended_pieces(model, source, tile, options)
            return
        except (MemoryError, RuntimeError) as error:
            what = memory_that_ended(error)
            if not what or not room.shrink(bytes_a_pixel * tile**2):
                raise
        tell_of_less(what, source.size)


def _plain(options: EvalConfig) -> bool:
    """Tells whether the labels are those of one pass over the pixels as they are."""
    return passes(options) == 1 and options.scales == (1.0,)


def _fits(model: nn.Module, source: Source, options: EvalConfig) -> bool:
    """Tells whether a picture is seen whole: by the memory that this network takes."""
    if options.tile or _is_small(model, source, options):
        return True
    return _bytes(model, source, options) <= _room(model, source).bytes


def _is_small(model: nn.Module, source: Source, options: EvalConfig) -> bool:
    """Tells whether a picture is so small that no network lacks the memory for it."""
    if has_shrunk(model):
        return False
    most = _SMALL if _plain(options) else _SMALL_OF_SEVERAL
    return source.size[0] * source.size[1] <= most


def _bytes(model: nn.Module, source: Source, options: EvalConfig) -> float:
    """Returns what a picture takes where it is seen whole."""
    height, width = source.size
    return height * width * _bytes_a_pixel(_room(model, source).cost, options)


def _bytes_a_pixel(cost: Cost, options: EvalConfig) -> float:
    if _plain(options):
        return cost.whole
    # Several passes hold scores, their probabilities, those at the picture's size and the mean.
    copies = 2 if passes(options) == 1 else 4
    largest = max(options.scales)  # a reduced picture costs the network little
    at_full_size = cost.given + 4 * copies * cost.classes
    return cost.whole * largest**2 + at_full_size * max(1.0, largest) ** 2


def _room(model: nn.Module, source: Source) -> Room:
    return room_of(model, source.device, source.channels)


@contextmanager
def _memory_errors(height: int, width: int) -> Iterator[None]:
    """Turns the ways in which memory ends into a ResourceError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        what = memory_that_ended(error)
        if not what:
            raise
        raise ResourceError(
            f"{what} ended on a picture of {height}x{width} pixels: work in windows with --tile "
            "(config key eval.tile), or in smaller ones"
        ) from error
