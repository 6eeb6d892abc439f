"""Looks at every picture and mask of a data set before anything is trained on or scored."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from segdeform.data.dataset import IGNORE, Dataset, read_pair
from segdeform.errors import DataError, ResourceError, SegdeformError

_SHOWN = 10


def check_dataset(
    dataset: Dataset,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Decodes every picture and mask; `progress` hears (done, all) after each.

    Raises DataError whose one line lists the first ten problems: missing, unreadable or truncated
    files, other sizes, labels outside the classes, black-and-white masks taken for class indices.
    """
    problems: list[str] = []
    used: set[int] = set()
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        found = pool.map(lambda index: _examine(dataset, index), range(len(dataset)))
        for done, (labels, problem) in enumerate(found, start=1):
            used |= labels
            if problem:
                problems.append(problem)
            if progress:
                progress(done, len(dataset))
    if not problems and used == {0, IGNORE} and dataset.label_map is None:
        problems.append(
            f"all masks hold only 0 and {IGNORE}, and {IGNORE} is ignored; if it means the second "
            f"class, write label_mapping: {{0: 0, {IGNORE}: 1}} into the data YAML"
        )
    if problems:
        rest = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise DataError(" | ".join([*problems[:_SHOWN], *rest]))


def _examine(dataset: Dataset, index: int) -> tuple[set[int], str | None]:
    try:
        if dataset.cache is not None:
            dataset.cache.check(index)
        _, labels = read_pair(dataset, index)
    except ResourceError:
        raise
    except SegdeformError as error:
        return set(), str(error)
    counts = np.bincount(labels.ravel(), minlength=IGNORE + 1)
    return {int(label) for label in np.flatnonzero(counts)}, None
