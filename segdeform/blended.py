"""Overlapping windows whose scores are blended, and several passes over one window.

A *pass* is the network on one window at one scale, flipped or not; its logits are resized back to
the window. With one pass the scores are the logits themselves; with several they are the mean of
the passes' class probabilities. Scales and flips are applied to each window, never to the whole of
a tiled picture, so memory depends on the window only.

Windows are blended with Gaussian weights, the middle counting most, or with equal ones. Only the
rows of windows under work are held: finished rows leave before the next row of windows starts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdeform.config.schema import EvalConfig
from segdeform.models.resizing import enlarge
from segdeform.network import coarse_scores
from segdeform.results.maps import Coarse
from segdeform.windows import Band, Source, Window, bands, gaussian, starts

AUTOMATIC_TILE = 512  # pixels, side of windows that nobody has asked for
_MANY_WINDOWS = 500  # for one picture, from which on the user is told
_ACCUMULATOR_BYTES = 2**29  # bounds the blended scores in work, whatever K and the width are

_log = logging.getLogger(__name__)


def blended_pieces(
    model: nn.Module,
    source: Source,
    tile: int,  # pixels, side of the windows
    options: EvalConfig,
) -> Iterator[Coarse]:
    """Yields blended scores of overlapping windows, of finished rows of a band of columns."""
    (height, width), read = source.size, source.read
    several = passes(options) > 1
    tops, tile_height = starts(height, tile, options.overlap), min(tile, height)
    lefts, tile_width = starts(width, tile, options.overlap), min(tile, width)
    first = Window(0, 0, tile_height, tile_width)
    scores = window_scores(model, read(first), options)  # [K, tile_height, tile_width]
    known = {first: scores}  # it told K, by which the bands are made, and is not computed twice
    columns = _ACCUMULATOR_BYTES // (4 * scores.shape[0] * tile_height)
    del scores
    _tell_of_many_windows(len(tops) * len(lefts), (tile_height, tile_width), source.size)
    profile = gaussian if options.blend == "gaussian" else torch.ones
    weight = profile(tile_height)[:, None] * profile(tile_width)  # [tile_height, tile_width]

    def scores_of(window: Window) -> Tensor:
        found = known.pop(window, None)
        return window_scores(model, read(window), options) if found is None else found

    for left, right in bands(lefts, width, columns):
        band = Band(left, right, weight)
        for top, next_top in zip(tops, [*tops[1:], height], strict=True):
            for x in lefts:
                if band.meets(x):
                    band.add(x, scores_of(Window(top, x, tile_height, tile_width)))
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


def window_scores(
    model: nn.Module,
    window: Tensor,  # [1, C, h, w] float32, 0..1
    options: EvalConfig,
) -> Tensor:  # [K, h, w] float32
    """Runs all passes on one window: logits of one, mean probabilities of several."""
    size = window.shape[2:]
    count = passes(options)
    mean: Tensor | None = None
    for scale in options.scales:
        resized = _resize(window, [max(1, round(side * scale)) for side in size])
        for flip in (False, True)[: 1 + options.flip]:
            images = resized.flip(3) if flip else resized
            scores, stride = coarse_scores(model, images)
            output = enlarge(scores, stride, images.shape[2:])
            scores = _resize(output.flip(3) if flip else output, list(size))[0]
            if count == 1:
                return scores
            probabilities = scores.softmax(0)
            mean = probabilities if mean is None else mean.add_(probabilities)
    assert mean is not None  # EvalConfig holds at least one scale
    return mean.div_(count)


def fitted(options: EvalConfig, size: tuple[int, int]) -> EvalConfig:
    """Returns the options for a picture of (H, W) pixels: those that reduce it, where they say so.

    Automatic windows show the network as much as they would of a smaller picture.
    """
    if options.shorter_side is None or min(size) <= options.shorter_side:
        return options
    factor = options.shorter_side / min(size)
    tile = int((options.automatic_tile or AUTOMATIC_TILE) / factor)
    scales = tuple(factor * scale for scale in options.scales)
    return options.model_copy(
        update={"scales": scales, "automatic_tile": tile, "shorter_side": None}
    )


def passes(options: EvalConfig) -> int:
    """Returns how many passes an option's scales and flips are."""
    return len(options.scales) * (1 + options.flip)


def _resize(images: Tensor, size: list[int]) -> Tensor:
    """Resizes [N, C, h, w] bilinearly, smoothing where it shrinks; same size: the same tensor."""
    if list(images.shape[2:]) == size:
        return images
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
