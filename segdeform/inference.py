"""Scores and labels for a picture of any size: whole or tiled, several scales, flipped.

The one path of evaluation and prediction, so that a number and a mask come from the same pixels.

A *pass* is the network on one window at one scale, flipped or not; its logits are resized back to
the window. With one pass the scores are the logits themselves; with several they are the mean of
the passes' class probabilities. Scales and flips are applied to each window, never to the whole of
a tiled picture, so memory depends on the window only.

Windows overlap and their scores are blended, with Gaussian weights, the middle counting most, or
with equal ones. Only the rows of windows under work are held: finished rows leave before the next
row of windows starts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from segdeform.callbacks import Stop
from segdeform.config.schema import EvalConfig
from segdeform.data.rasters import Raster
from segdeform.errors import InterruptedByUserError, NotFiniteError, ResourceError
from segdeform.machine.memory import memory_that_ended
from segdeform.models.deeplab import DeepLab
from segdeform.models.resizing import enlarge
from segdeform.results.maps import Coarse, Maps, MapWriter, enlarged
from segdeform.windows import Band, Window, bands, gaussian, starts

# A picture beyond either limit is tiled even where options.tile is 0.
WHOLE_LIMIT = 2**24  # pixels
WHOLE_BYTES = 3 * 2**29  # of the scores of all classes, in as many copies as the passes need
AUTOMATIC_TILE = 512  # pixels, side of those tiles where options.automatic_tile says nothing
_MOST_CLASSES = 255
_PROBE = 64  # pixels, side of what is shown to a network to learn how many classes it has
_MANY_WINDOWS = 500  # for one picture, from which on the user is told
_ACCUMULATOR_BYTES = 2**29  # bounds the blended scores in work, whatever K and the width are

_log = logging.getLogger(__name__)


ReadWindow = Callable[[Window], Tensor]  # -> [1, C, h, w] float32, 0..1, on the model's device


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
    with torch.inference_mode(), _memory_errors(height, width):
        scores: Tensor | None = None
        for piece in _pieces(model, read, (height, width), options):
            top, left, h, w = piece.window
            if scores is None:
                if (h, w) == (height, width):
                    scores = enlarged(piece)
                    break
                scores = image.new_empty(piece.scores.shape[1], height, width)
            scores[:, top : top + h, left : left + w] = enlarged(piece)
        if scores is None:
            raise ValueError(f"a picture of {height}x{width} pixels has no scores")
        if _passes(options) == 1:
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
    with torch.inference_mode(), _memory_errors(height, width):
        maps = MapWriter((height, width), confidence, probabilities, scratch)
        if coarse is not None:
            _refuse_not_finite(coarse.scores)
        for piece in [coarse] if coarse else _pieces(model, read, (height, width), options):
            maps.add(piece)
        found = maps.finish()
        if keep_coarse and _passes(options) == 1 and piece.window == Window(0, 0, height, width):
            return replace(found, coarse=piece)
        return found


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
    whole = Window(0, 0, pictures[0].shape[0], pictures[0].shape[1])
    one_pass = options.tile == 0 and _passes(options) == 1 and options.scales == (1.0,)
    if len(pictures) < 2 or not one_pass or not isinstance(model, DeepLab):
        return alone
    read = partial(_read, pictures[:1], device=device)
    try:
        with torch.inference_mode():
            # As one picture of as many pixels, so that these are seen whole and all fit.
            if _too_large(model, read, (len(pictures) * whole.height, whole.width), options):
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


def _coarse_scores(
    model: nn.Module,
    images: Tensor,  # [N, C, h, w] float32, 0..1
) -> tuple[Tensor, int]:  # [N, K, ...] float32, their stride
    """Runs the network: the one place where it is called."""
    images = images.contiguous(memory_format=torch.channels_last)
    size = (images.shape[2], images.shape[3])
    if isinstance(model, DeepLab):
        scores = model.maps(images)
        stride = model.map_stride(scores, size)
    else:
        scores, stride = model(images).logits.float(), 1
    _refuse_not_finite(scores)
    return scores, stride


def _refuse_not_finite(scores: Tensor) -> None:  # [N, K, h, w]
    # In the order of memory: across it the same takes twenty times as long.
    if scores.is_contiguous(memory_format=torch.channels_last):
        scores = scores.permute(0, 2, 3, 1)
    if not all(torch.isfinite(extreme) for extreme in scores.aminmax()):
        raise NotFiniteError(
            "the network's output holds NaN or infinity: train again with a lower "
            "train.lr, or use an earlier checkpoint"
        )


def _tile(model: nn.Module, read: ReadWindow, size: tuple[int, int], options: EvalConfig) -> int:
    """Returns the side of the windows; that of the picture where it is seen whole."""
    if not options.tile and _too_large(model, read, size, options):
        return options.automatic_tile or AUTOMATIC_TILE
    return options.tile or max(size)


def _pieces(
    model: nn.Module, read: ReadWindow, size: tuple[int, int], options: EvalConfig
) -> Iterator[Coarse]:
    """Yields the scores of parts that together cover the picture, each pixel once."""
    height, width = size
    tile = _tile(model, read, size, options)
    if tile >= max(size):
        whole = Window(0, 0, height, width)
        if _passes(options) == 1 and options.scales == (1.0,):
            scores, stride = _coarse_scores(model, read(whole))
            yield Coarse(scores, stride, whole)
        else:
            several = _passes(options) > 1
            scores = _scores(model, read(whole), options)[None]
            yield Coarse(scores, 1, whole, probabilities=several)
        return
    yield from _blended(model, read, size, tile, options)


def _blended(
    model: nn.Module, read: ReadWindow, size: tuple[int, int], tile: int, options: EvalConfig
) -> Iterator[Coarse]:
    """Yields blended scores of overlapping windows, of finished rows of a band of columns."""
    height, width = size
    several = _passes(options) > 1
    tops, tile_height = starts(height, tile, options.overlap), min(tile, height)
    lefts, tile_width = starts(width, tile, options.overlap), min(tile, width)
    first = Window(0, 0, tile_height, tile_width)
    scores = _scores(model, read(first), options)  # [K, tile_height, tile_width]
    known = {first: scores}  # it told K, by which the bands are made, and is not computed twice
    columns = _ACCUMULATOR_BYTES // (4 * scores.shape[0] * tile_height)
    del scores
    _tell_of_many_windows(len(tops) * len(lefts), (tile_height, tile_width), size)
    profile = gaussian if options.blend == "gaussian" else torch.ones
    weight = profile(tile_height)[:, None] * profile(tile_width)  # [tile_height, tile_width]

    def window_scores(window: Window) -> Tensor:
        found = known.pop(window, None)
        return _scores(model, read(window), options) if found is None else found

    for left, right in bands(lefts, width, columns):
        band = Band(left, right, weight)
        for top, next_top in zip(tops, [*tops[1:], height], strict=True):
            for x in lefts:
                if band.meets(x):
                    band.add(x, window_scores(Window(top, x, tile_height, tile_width)))
            window = Window(top, left, next_top - top, right - left)
            yield Coarse(band.finish(window.height)[None], 1, window, probabilities=several)


@cache  # once for all pictures of a size
def _tell_of_many_windows(count: int, tile: tuple[int, int], size: tuple[int, int]) -> None:
    """Says that a picture will take its time, before minutes of silence."""
    if count > _MANY_WINDOWS:
        _log.warning(
            "a picture of %dx%d pixels takes %d windows of %dx%d: a larger --tile (config key "
            "eval.tile) is faster",
            *(*size, count, *tile),
        )


def _too_large(
    model: nn.Module, read: ReadWindow, size: tuple[int, int], options: EvalConfig
) -> bool:
    """Tells whether a picture goes through the network in windows though none are asked for."""
    pixels = size[0] * size[1]
    if pixels > WHOLE_LIMIT:
        return True
    # Several passes hold scores, their probabilities, those at the picture's size and the mean.
    copies = 1 if _passes(options) == 1 else 4
    bytes_a_class = 4 * copies * pixels * max(1.0, *options.scales) ** 2
    if bytes_a_class * _MOST_CLASSES <= WHOLE_BYTES:
        return False
    probe = read(Window(0, 0, min(size[0], _PROBE), min(size[1], _PROBE)))
    return bytes_a_class * int(model(probe).logits.shape[1]) > WHOLE_BYTES


def _scores(
    model: nn.Module,
    window: Tensor,  # [1, C, h, w] float32, 0..1
    options: EvalConfig,
) -> Tensor:  # [K, h, w] float32
    """Runs all passes on one window: logits of one, mean probabilities of several."""
    size = window.shape[2:]
    passes = _passes(options)
    mean: Tensor | None = None
    for scale in options.scales:
        resized = _resize(window, [max(1, round(side * scale)) for side in size])
        for flip in (False, True)[: 1 + options.flip]:
            images = resized.flip(3) if flip else resized
            scores, stride = _coarse_scores(model, images)
            output = enlarge(scores, stride, images.shape[2:])
            scores = _resize(output.flip(3) if flip else output, list(size))[0]
            if passes == 1:
                return scores
            probabilities = scores.softmax(0)
            mean = probabilities if mean is None else mean.add_(probabilities)
    assert mean is not None  # EvalConfig holds at least one scale
    return mean.div_(passes)


def _passes(options: EvalConfig) -> int:
    return len(options.scales) * (1 + options.flip)


def _resize(images: Tensor, size: list[int]) -> Tensor:
    """Resizes [N, C, h, w] bilinearly, smoothing where it shrinks; same size: the same tensor."""
    if list(images.shape[2:]) == size:
        return images
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)


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
