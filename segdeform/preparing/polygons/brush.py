"""Decodes what Label Studio's brush draws: the opacity of every pixel, packed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from segdeform.preparing.polygons.annotation import Runs


def decode_brush(rle: Sequence[int], size: tuple[int, int]) -> Runs:
    """Decodes a brush: packed RGBA, of which the opacity is kept. Raises ValueError.

    The bits are those of thi.ng's rle-pack: how many bytes there are (32), their width less one
    (5), four lengths less one (4 each); then, until all bytes are there, whether one value follows
    or as many as it says (1), which of the lengths its count has (2), the count less one, values.
    """
    height, width = size
    try:
        bits = _Bits(bytes(rle))
        if bits.take(32) != 4 * height * width:
            raise ValueError(f"a brush that is not of {height}x{width} pixels (HxW)")
        word = bits.take(5) + 1
        counts = [bits.take(4) + 1 for _ in range(4)]
        spans = list(_opaque(bits, word, counts, 4 * height * width))
    except IndexError as error:
        raise ValueError("a brush that ends before its last pixel") from error
    ends = np.array(spans, np.int64).reshape(-1)
    return Runs(0, 0, height, width, _lengths(ends, height * width), whole=True)


def _opaque(bits: _Bits, word: int, counts: Sequence[int], total: int) -> Iterator[tuple[int, int]]:
    """Yields spans (first, end) of pixels whose fourth byte is not 0, of RGBA bytes in a row."""
    done = 0
    while done < total:
        repeated = bits.take(1)
        end = min(done + 1 + bits.take(counts[bits.take(2)]), total)
        if repeated:
            # Byte 4p + 3 is the opacity of pixel p.
            first, last = done // 4, end // 4
            if bits.take(word) and first < last:
                yield first, last
        else:
            for place in range(done, end):
                if bits.take(word) and place % 4 == 3:
                    yield place // 4, place // 4 + 1
        done = end


def _lengths(spans: npt.NDArray[np.int64], total: int) -> npt.NDArray[np.int64]:
    """Makes run lengths, off first, of spans in a row: first, end, first, end, ..."""
    return np.diff(np.concatenate(([0], spans, [total])))


class _Bits:
    """Reads numbers of some bits from bytes, the highest bit first."""

    def __init__(self, content: bytes) -> None:
        self._content = content + bytes(8)
        self._place, self._end = 0, 8 * len(content)

    def take(self, count: int) -> int:
        """Returns the next `count` bits, 32 at most. Raises IndexError behind the last one."""
        first = self._place
        self._place += count
        if self._place > self._end:
            raise IndexError
        word = int.from_bytes(self._content[first >> 3 : (first >> 3) + 5], "big")
        return word >> (40 - (first & 7) - count) & ((1 << count) - 1)
