"""The same work on many files, side by side, in threads that Ctrl-C and failures stop soon."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from segdeform.callbacks import Progress

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def each(
    work: Callable[[_Item], _Result],
    items: Sequence[_Item],
    workers: int,
    progress: Progress = lambda done, total: None,
) -> Iterator[_Result]:
    """Yields what `work` returns, in order; nothing more is begun after the first failure."""
    with ThreadPoolExecutor(workers) as pool:
        try:
            for done, result in enumerate(pool.map(work, items), start=1):
                yield result
                progress(done, len(items))
        finally:
            pool.shutdown(cancel_futures=True)
