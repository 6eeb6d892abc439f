"""The check itself: all splits of a data set read, judged and counted."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from segdeform.callbacks import Progress, Say
from segdeform.checking.causes import Cause, find_cause
from segdeform.checking.finding import KINDS, Finding
from segdeform.checking.remembered import FactCache, cache_path
from segdeform.checking.report import Report
from segdeform.checking.scan import PairFacts, default_workers, read_pairs
from segdeform.checking.whole import count_split, judge, mask_values
from segdeform.data import list_dataset
from segdeform.data.dataset import Dataset, MissingSplitError
from segdeform.errors import DataError

SPLITS = ("train", "val", "test")
_NEEDED = ("train", "val")  # by a training


def list_splits(
    name: str, root: Path, splits: Sequence[str] = ()
) -> tuple[list[Dataset], list[Finding]]:
    """Lists the splits asked for, or all that there are; what cannot be listed is a finding.

    So is, where none is asked for, one that a training needs and is not there. What is said of
    several splits is one finding. Raises DataError when the data set holds none of them.
    """
    datasets: list[Dataset] = []
    findings: dict[str, Finding] = {}
    missing: list[MissingSplitError] = []
    for split in splits or SPLITS:
        try:
            datasets.append(list_dataset(name, root, split))
        except MissingSplitError as error:
            missing.append(error)
            if split in _NEEDED:
                findings.setdefault(str(error), Finding("missing-split", split, root, str(error)))
        except DataError as error:
            findings.setdefault(str(error), Finding("listing", split, root, str(error)))
    listed = [finding for finding in findings.values() if finding.kind == "listing"]
    if missing and (splits or not (datasets or listed)):
        raise missing[0]
    if not datasets:
        raise DataError(listed[0].text)
    return datasets, list(findings.values())


def check(
    datasets: Sequence[Dataset],
    *,
    listing: Sequence[Finding] = (),
    workers: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Reads every picture and mask of the splits of one data set and judges them together.

    `listing` are findings from before; `progress` hears (done, all) after each pair. What has been
    read is remembered in the user's cache folder. Raises ResourceError, DataError where the drive
    does not answer.
    """
    started = time.perf_counter()
    cache = FactCache(cache_path(datasets[0].root))
    total, before = sum(map(len, datasets)), 0
    pairs = []
    try:
        for dataset in datasets:

            def shown(count: int, before: int = before) -> None:
                if progress:
                    progress(before + count, total)

            pairs.append(read_pairs(dataset, cache, workers or default_workers(), shown))
            before += len(dataset)
        cause = _guess_cause(datasets, pairs, cache, workers or default_workers())
    finally:
        cache.save()  # after Ctrl-C, too: the next check goes on from here
    findings = [*listing, *judge(datasets, pairs, cause)]
    order = list(KINDS)
    return Report(
        name=datasets[0].name,
        root=datasets[0].root,
        classes=datasets[0].classes,
        splits=tuple(
            count_split(dataset, facts) for dataset, facts in zip(datasets, pairs, strict=True)
        ),
        findings=tuple(sorted(findings, key=lambda finding: order.index(finding.kind))),
        cause=cause,
        files=sum(1 + (pair.mask is not None) for facts in pairs for pair in facts),
        reused=cache.reused,
        seconds=time.perf_counter() - started,
    )


def check_sound(
    datasets: Sequence[Dataset],
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    say: Say | None = None,
) -> Report:
    """Checks splits before they are used: `say` hears one line, and one for each kind of warning.

    Raises DataError (or UnsafeInputError) whose one line lists the first ten errors.
    """
    distinct = list({dataset.split: dataset for dataset in datasets}.values())
    report = check(distinct, workers=workers, progress=progress)
    if say:
        say(report.summary())
        for line in report.warnings():
            say(f"warning: {line}")
    report.refuse_errors()
    return report


def _guess_cause(
    datasets: Sequence[Dataset], pairs: Sequence[list[PairFacts]], cache: FactCache, workers: int
) -> Cause | None:
    """Guesses why the values do not fit; splits that were not asked for must agree."""
    first, masks = datasets[0], mask_values(pairs)
    if find_cause(first, masks) is None:
        return None
    try:
        listed, _ = list_splits(first.name, first.root)
    except DataError:  # a data set made in code
        listed = []
    checked = {dataset.split for dataset in datasets}
    others = [
        read_pairs(dataset, cache, workers, lambda done: None)
        for dataset in listed
        if dataset.split not in checked
    ]
    return find_cause(first, masks + mask_values(others))
