"""The regions of a label map and their outlines along the edges of pixels.

A region is what hangs together by the sides of pixels of one class. Its outline is one ring around
it and one around each hole; rings of a region meet in corners at most, as OGC's simple features
want it. All is done in strips of rows: beside the labels there is what the regions need, not what
the pixels do.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from segdeform.errors import UsageError
from segdeform.results.overlay import Labels

_STRIP = 2**20  # pixels worked on at a time
_MOST_CORNERS = 2**24  # of all outlines, whose memory is some 80 bytes each
_MOST_RUNS = 2**25  # of equal pixels in rows, of some 40 bytes each
_EAST, _SOUTH, _WEST, _NORTH = range(4)
_LEFT, _RIGHT = 3, 1  # turns, added to a direction
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Flags = NDArray[np.bool_]


class Outline(NamedTuple):
    """A region of one class."""

    label: int  # class number
    area: int  # pixels
    rings: list[Int64]  # [n, 2] corners (x, y), pixels; around the region, then around its holes


@dataclass(frozen=True)
class Regions:
    """Which region each run of equal pixels belongs to, runs counted row by row."""

    of_run: Int32  # [runs]
    before: list[int]  # runs above each strip
    labels: NDArray[np.int64]  # [regions] class numbers
    areas: Int64  # [regions] pixels


class _Segments(NamedTuple):
    """Straight pieces of outlines, walked so that their region lies on the right."""

    direction: Int64  # [n]
    start: Int64  # [n] corner, y * (W + 1) + x
    end: Int64
    turn: Int64  # to the direction that follows
    cut: Flags  # ends only because a strip does
    region: Int32


def outlines(
    labels: Labels,  # [H, W]
    *,
    min_area: int = 1,  # pixels
    skip: Collection[int] = (),  # classes without outlines
    junctions: bool = False,  # corners also where a third region begins along a straight side
) -> Iterator[Outline]:
    """Yields the regions from the top down, each ring from its topmost corner on.

    With x to the right and y down, the numbers of outer rings go around anticlockwise (their
    signed area is positive), those of holes clockwise. Filled where the centre of a pixel is
    inside, regions give the labels back. Raises UsageError where there are too many of them.
    """
    regions = find_regions(labels)
    keep = np.append((regions.areas >= min_area) & ~np.isin(regions.labels, list(skip)), False)
    segments = _all_segments(labels, regions, keep, junctions)
    if not len(segments.start):
        return
    corners, offsets, owner = _rings(segments, labels.shape[1] + 1)
    area = _signed_areas(corners, offsets)
    # By region, its outer ring first, holes from the top down.
    order = np.lexsort((np.arange(len(owner)), area < 0, owner))
    first = np.append(np.flatnonzero(area[order] > 0), len(order))
    for begin, end in pairwise(first):
        mine = order[begin:end]
        region = owner[mine[0]]
        rings = [corners[offsets[ring] : offsets[ring + 1]] for ring in mine]
        yield Outline(int(regions.labels[region]), int(regions.areas[region]), rings)


def find_regions(labels: Labels) -> Regions:
    """Finds what hangs together by the sides of pixels. Raises UsageError for too many runs."""
    before, lengths, classes = [0], [], []
    upper: list[Int32] = []
    lower: list[Int32] = []
    above: tuple[Labels, Flags, Int32] | None = None  # row above the strip: labels, begins, runs
    for top, bottom in _strips(labels):
        part = labels[top:bottom]
        begins, runs = _runs(part, before[-1])
        starts = np.flatnonzero(begins)
        lengths.append(np.diff(starts, append=part.size).astype(np.int32))
        classes.append(part.ravel()[starts])
        before.append(before[-1] + len(starts))
        if before[-1] > _MOST_RUNS:
            raise UsageError(
                "regions too small and too many for polygons: leave polygons out of --outputs"
            )
        if above is not None:
            part, begins, runs = (
                np.concatenate([row[None], rows])
                for row, rows in zip(above, (part, begins, runs), strict=True)
            )
        # One link for two runs that lie upon each other: where the later of them begins.
        links = (part[1:] == part[:-1]) & (begins[1:] | begins[:-1])
        upper.append(runs[:-1][links])
        lower.append(runs[1:][links])
        above = part[-1], begins[-1], runs[-1]
    count = before.pop()
    a, b = np.concatenate(upper), np.concatenate(lower)
    graph = coo_matrix((np.ones(len(a), bool), (a, b)), (count, count))
    regions, of_run = connected_components(graph, directed=False)
    areas = np.bincount(of_run, np.concatenate(lengths), regions).astype(np.int64)
    of_region = np.zeros(regions, np.int64)
    of_region[of_run] = np.concatenate(classes)
    return Regions(of_run.astype(np.int32), before, of_region, areas)


def _strips(labels: Labels) -> Iterator[tuple[int, int]]:
    height, width = labels.shape
    rows = max(1, _STRIP // width)
    for top in range(0, height, rows):
        yield top, min(top + rows, height)


def _runs(part: Labels, before: int) -> tuple[Flags, Int32]:
    """Returns where runs begin, and the run of each pixel, [h, W]."""
    begins = np.ones(part.shape, bool)
    np.not_equal(part[:, 1:], part[:, :-1], out=begins[:, 1:])
    runs = np.cumsum(begins.ravel(), dtype=np.int32).reshape(part.shape)
    runs += before - 1
    return begins, runs


def _all_segments(labels: Labels, regions: Regions, keep: Flags, junctions: bool) -> _Segments:
    """Finds the straight pieces of all outlines, ordered by start and direction."""
    height, width = labels.shape
    found: list[_Segments] = []
    corners = 0
    above = np.full(width, -1, np.int32)
    for (top, bottom), before in zip(_strips(labels), regions.before, strict=True):
        part = labels[top : bottom + 1]  # with the row below
        rows = regions.of_run[_runs(part, before)[1]]
        padded = np.full((bottom - top + 2, width + 2), -1, np.int32)
        padded[0, 1:-1] = above
        padded[1 : 1 + len(rows), 1:-1] = rows
        above = rows[bottom - top - 1]
        found += _strip_segments(padded, top, bottom == height, keep, junctions)
        corners += sum(len(piece.start) for piece in found[-4:])
        if corners > _MOST_CORNERS:
            raise UsageError(
                f"outlines of more than {_MOST_CORNERS:,} corners: leave small regions out with "
                "--min-area, or polygons out of --outputs"
            )
    joined = [np.concatenate(parts) for parts in zip(*found, strict=True)]
    order = np.argsort(joined[1] * 4 + joined[0])
    return _Segments(*(values[order] for values in joined))


def _strip_segments(
    padded: Int32,  # [h + 2, W + 2] regions, with the rows above and below and -1 outside
    top: int,
    last: bool,
    keep: Flags,
    junctions: bool,
) -> Iterator[_Segments]:
    """Yields the pieces in each of the four directions."""
    side = padded.shape[1] - 1  # corners in a row
    # Lines between rows; that below a strip is the next one's first.
    upper, lower = (padded[:-1], padded[1:]) if last else (padded[:-2], padded[1:-1])
    left, right = padded[:, :-1].T, padded[:, 1:].T  # along lines between columns
    for direction, region, other in (
        (_EAST, lower, upper),
        (_WEST, upper, lower),
        (_SOUTH, left, right),
        (_NORTH, right, left),
    ):
        forward = direction in (_EAST, _SOUTH)
        line, begin, end, turn, cut, owner = _pieces(region, other, forward, keep, junctions)
        along, across = (1, side) if direction in (_EAST, _WEST) else (side, 1)
        corner = line * across + top * side
        start, stop = corner + begin * along, corner + end * along
        directions = np.full(len(start), direction, np.int64)
        yield _Segments(directions, start, stop, turn, cut, owner)


def _pieces(
    region: Int32,  # [lines, n + 2] on the right of one who walks along
    other: Int32,  # on the left
    forward: bool,
    keep: Flags,
    junctions: bool,
) -> tuple[Int64, Int64, Int64, Int64, Flags, Int32]:
    """Finds straight pieces along lines: line, first and last corner, turn, cut, region."""
    here, aside = region[:, 1:-1], other[:, 1:-1]
    ahead = slice(2, None) if forward else slice(None, -2)
    before_right, before_left = region[:, ahead], other[:, ahead]
    exists = (here != aside) & keep[here]
    # Where the region goes on to the left only, the other pixel of it is met in a corner, and
    # belongs to it by another way: turning left there keeps the two rings of this corner apart.
    left = before_left == here
    onwards = exists & ~left & (before_right == here)
    straight = onwards & (before_left == aside) if junctions else onwards.copy()
    edge = -1 if forward else 0
    cut = np.zeros_like(exists)
    cut[:, edge] = straight[:, edge]
    straight[:, edge] = False
    follows = np.zeros_like(exists)
    if forward:
        follows[:, 1:] = straight[:, :-1]
    else:
        follows[:, :-1] = straight[:, 1:]
    line, begin = np.nonzero(exists & ~follows)
    last = np.nonzero(exists & ~straight)
    turn = np.where(left[last], _LEFT, np.where(onwards[last], 0, _RIGHT))
    return (
        line,
        begin if forward else begin + 1,
        last[1] + 1 if forward else last[1],
        turn,
        cut[last],
        here[last],
    )


def _rings(segments: _Segments, side: int) -> tuple[Int64, Int64, Int32]:
    """Walks along the pieces: corners (x, y) [n, 2], the first of each ring and n, its region."""
    key = segments.start * 4 + segments.direction
    wanted = segments.end * 4 + (segments.direction + segments.turn) % 4
    following = array("i", np.searchsorted(key, wanted).astype(np.int32).tobytes())
    order, firsts = array("i"), array("i")
    seen = bytearray(len(key))
    for first in range(len(key)):
        if seen[first]:
            continue
        firsts.append(len(order))
        at = first
        while not seen[at]:
            seen[at] = 1
            order.append(at)
            at = following[at]
    walked = np.frombuffer(order, np.int32)
    offsets = np.append(np.frombuffer(firsts, np.int32), len(walked)).astype(np.int64)
    owner = segments.region[walked[offsets[:-1]]]
    # A corner is kept unless the piece that leads to it goes on straight, only in the next strip.
    kept = np.ones(len(key), bool)
    kept[np.frombuffer(following, np.int32)[segments.cut]] = False
    kept = kept[walked]
    y, x = np.divmod(segments.start[walked[kept]], side)
    offsets = np.concatenate(([0], np.cumsum(kept)))[offsets]
    return np.stack([x, y], 1), offsets, owner


def _signed_areas(corners: Int64, offsets: Int64) -> Int64:
    """Returns twice the signed area of each ring."""
    following = np.concatenate([corners[1:], corners[:1]])
    following[offsets[1:] - 1] = corners[offsets[:-1]]
    cross = corners[:, 0] * following[:, 1] - following[:, 0] * corners[:, 1]
    return np.add.reduceat(cross, offsets[:-1])
