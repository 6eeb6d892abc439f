"""The check itself: all splits of a data set read, judged and counted."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from segdeform.callbacks import Progress, Say
from segdeform.checking.causes import Cause, find_cause
from segdeform.checking.finding import KINDS, Finding
from segdeform.checking.judge import judge_pair, label_counts
from segdeform.checking.remembered import FactCache, cache_path
from segdeform.checking.report import Report, SplitCount
from segdeform.checking.scan import PairFacts, default_workers, read_pairs
from segdeform.data import list_dataset
from segdeform.data.dataset import IGNORE, Dataset, MissingSplitError
from segdeform.data.image_io import read_image
from segdeform.errors import DataError

SPLITS = ("train", "val", "test")


def list_splits(
    name: str, root: Path, splits: Sequence[str] = ()
) -> tuple[list[Dataset], list[Finding]]:
    """Lists the splits asked for, or all that there are; what cannot be listed is a finding.

    Raises DataError when the data set holds none of them.
    """
    datasets, findings, missing = [], [], []
    for split in splits or SPLITS:
        try:
            datasets.append(list_dataset(name, root, split))
        except MissingSplitError as error:
            missing.append(error)
        except DataError as error:
            findings.append(Finding("listing", split, root, str(error)))
    if missing and (splits or not (datasets or findings)):
        raise missing[0]
    if not datasets:
        raise DataError(findings[0].text)
    return datasets, findings


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
    findings = [*listing, *_judge(datasets, pairs, cause)]
    order = list(KINDS)
    return Report(
        name=datasets[0].name,
        root=datasets[0].root,
        classes=datasets[0].classes,
        splits=tuple(
            _count(dataset, facts) for dataset, facts in zip(datasets, pairs, strict=True)
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
    first, masks = datasets[0], _mask_values(pairs)
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
    return find_cause(first, masks + _mask_values(others))


def _mask_values(pairs: Sequence[list[PairFacts]]) -> list[set[int]]:
    """Returns the values of each mask."""
    return [set(pair.mask.values) for facts in pairs for pair in facts if pair.mask is not None]


def _judge(
    datasets: Sequence[Dataset], pairs: Sequence[list[PairFacts]], cause: Cause | None
) -> Iterator[Finding]:
    for dataset in datasets:
        for problem in dataset.problems:
            yield Finding(problem.kind, dataset.split, problem.file, problem.text)
    if cause:
        yield _first_of(cause, datasets, pairs)
    for dataset, facts in zip(datasets, pairs, strict=True):
        for index, pair in enumerate(facts):
            yield from judge_pair(dataset, index, pair, cause)
    yield from _absent(datasets, pairs)
    yield from _repeated(datasets, pairs)


def _first_of(
    cause: Cause, datasets: Sequence[Dataset], pairs: Sequence[list[PairFacts]]
) -> Finding:
    """Words a cause with the first pixel of the highest value as its witness."""
    used = set().union(*_mask_values(pairs))
    witness = IGNORE if cause.kind == "binary" and IGNORE in used else max(used - {IGNORE})
    for dataset, facts in zip(datasets, pairs, strict=True):
        for index, pair in enumerate(facts):
            if pair.mask is not None and witness in pair.mask.values:
                count, first = pair.mask.values[witness]
                row, column = divmod(first, pair.mask.width)
                path = dataset.samples[index].mask or dataset.root
                text = f"{path}: {witness} at row {row}, column {column}: {cause.text}"
                return Finding(
                    cause.kind,
                    dataset.split,
                    path,
                    text,
                    cause.fix,
                    witness,
                    row,
                    column,
                    count,
                    index,
                )
    raise AssertionError("a value that is used stands in a mask")


def _count(dataset: Dataset, facts: Sequence[PairFacts]) -> SplitCount:
    counts = np.zeros(IGNORE + 1, np.int64)
    for pair in facts:
        if pair.mask is not None:
            counts += label_counts(dataset, pair.mask)
    classes = counts[: len(dataset.classes)]
    return SplitCount(dataset.split, len(dataset), tuple(map(int, classes)), int(counts[IGNORE]))


def _absent(datasets: Sequence[Dataset], pairs: Sequence[list[PairFacts]]) -> Iterator[Finding]:
    counted = [_count(dataset, facts) for dataset, facts in zip(datasets, pairs, strict=True)]
    root, names = datasets[0].root, datasets[0].classes
    total = [sum(split.pixels[index] for split in counted) for index in range(len(names))]
    if not any(total):
        if any(pair.mask and pair.mask.values for facts in pairs for pair in facts):
            yield Finding("no-labels", "", root, f"{root}: no pixel of any mask has a class")
        return
    for index, name in enumerate(names):
        if not total[index]:
            yield Finding("never", "", root, f"class {index} ({name}) occurs in no mask")
            continue
        for split in counted:
            if not split.pixels[index]:
                kind = "absent-train" if split.name == "train" else "absent"
                text = f"class {index} ({name}) does not occur in {split.name}"
                yield Finding(kind, split.name, root, text)


def _repeated(datasets: Sequence[Dataset], pairs: Sequence[list[PairFacts]]) -> Iterator[Finding]:
    """Yields the pictures whose decoded pixels are those of an earlier one."""
    seen: dict[str, tuple[str, Path]] = {}
    digests = Counter(pair.picture.digest for facts in pairs for pair in facts)
    for dataset, facts in zip(datasets, pairs, strict=True):
        for index, pair in enumerate(facts):
            path = dataset.samples[index].image
            if not pair.picture.digest or digests[pair.picture.digest] == 1:
                continue
            split, first = seen.setdefault(_whole_digest(dataset, index), (dataset.split, path))
            if first is not path:
                kind = "repeated" if split == dataset.split else "leak"
                text = f"{path}: the same picture as {first} of {split}"
                yield Finding(kind, dataset.split, path, text, sample=index)


def _whole_digest(dataset: Dataset, index: int) -> str:
    """Digests a picture at its full size: the facts of JPEGs are those of an eighth of it.

    Raises DataError, UnsafeInputError where it is no longer what was read before.
    """
    if dataset.cache is not None:
        picture = dataset.cache.read(index)[0]
    else:
        picture = read_image(dataset.samples[index].image, dataset.value_range)
    return hashlib.sha256(f"{picture.shape}".encode() + picture.tobytes()).hexdigest()
