"""What only the whole of a data set shows: causes, absent classes, repeated pictures, ranges."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from segdeform.checking.causes import Cause
from segdeform.checking.facts import Facts
from segdeform.checking.finding import Finding, Place
from segdeform.checking.judge import judge_pair, label_counts
from segdeform.checking.report import SplitCount
from segdeform.checking.scan import PairFacts
from segdeform.data.dataset import IGNORE, MAX_NARROW, Dataset, read_picture
from segdeform.data.depth import Range, ValueRange, is_one, ranges

_LISTED_BANDS = 12  # named one by one


def mask_values(pairs: Sequence[list[PairFacts]]) -> list[set[int]]:
    """Returns the values of each mask."""
    return [set(pair.mask.values) for facts in pairs for pair in facts if pair.mask is not None]


def judge(
    datasets: Sequence[Dataset], pairs: Sequence[list[PairFacts]], cause: Cause | None
) -> Iterator[Finding]:
    """Yields all that is wrong with the splits of one data set."""
    # A cause says better what is odd about the values.
    yield from (
        found for found in _listed(datasets) if not (cause and found.kind == "class-values")
    )
    if cause:
        yield _first_of(cause, datasets, pairs)
    else:
        yield from _white_among(datasets, pairs)
        yield from _class_255(datasets, pairs)
    for dataset, facts in zip(datasets, pairs, strict=True):
        bare = _is_bare(dataset, facts)
        if bare:
            path = dataset.samples[0].mask or dataset.root
            text = f"{path}: no mask of {dataset.split} holds a class"
            yield Finding("placeholders", dataset.split, path, text)
        for index, pair in enumerate(facts):
            for finding in judge_pair(dataset, index, pair, cause):
                if not (bare and finding.kind == "void-mask"):
                    yield finding
    if cause is None:  # else the classes are not yet known
        yield from _absent(datasets, pairs)
    yield from _ranges(datasets, pairs)
    yield from _extra_bands(datasets, pairs)
    yield from _georeferenced(datasets, pairs)
    yield from _repeated(datasets, pairs)


def _listed(datasets: Sequence[Dataset]) -> Iterator[Finding]:
    """Yields what was odd in the listing; what concerns all splits, once."""
    told: set[str] = set()
    for dataset in datasets:
        for problem in dataset.problems:
            if problem.text not in told:
                told.add(problem.text)
                yield Finding(problem.kind, dataset.split, problem.file, problem.text)


def _is_bare(dataset: Dataset, facts: Sequence[PairFacts]) -> bool:
    """Tells whether these are the masks that a benchmark puts in the place of its own."""
    if dataset.split != "test" or not any(pair.mask and pair.mask.values for pair in facts):
        return False
    return not any(count_split(dataset, facts).pixels)


def _white_among(
    datasets: Sequence[Dataset], pairs: Sequence[list[PairFacts]]
) -> Iterator[Finding]:
    """Yields black and white masks among masks of classes, whose white would be ignored.

    Masks of a class and 255 show that 255 does mean void, unless there is one class to mean.
    """
    first, masks = datasets[0], mask_values(pairs)
    classes = set(range(1, len(first.classes)))
    if first.label_map is not None or not any(values & classes for values in masks):
        return
    if len(classes) > 1 and any(IGNORE in values and values & classes for values in masks):
        return
    for dataset, facts in zip(datasets, pairs, strict=True):
        for index, pair in enumerate(facts):
            if pair.mask is not None and pair.mask.values.keys() == {0, IGNORE}:
                count, start = pair.mask.values[IGNORE]
                place = Place(IGNORE, *divmod(start, pair.mask.width), count)
                path = dataset.samples[index].mask or dataset.root
                text = f"{path}: holds only 0 and {IGNORE}, where others hold classes"
                yield Finding("white-mask", dataset.split, path, text, place=place, sample=index)


def _class_255(datasets: Sequence[Dataset], pairs: Sequence[list[PairFacts]]) -> Iterator[Finding]:
    """Yields the first 255 of masks that are all of 8 bits, where it is a class since there are
    more than 255: in such masks it mostly means that nothing is known."""
    first = datasets[0]
    if not first.wide or first.label_map is not None or IGNORE in first.void:
        return
    if any(value > MAX_NARROW for values in mask_values(pairs) for value in values):
        return
    for dataset, facts in zip(datasets, pairs, strict=True):
        for index, pair in enumerate(facts):
            if pair.mask is not None and IGNORE in pair.mask.values:
                count, start = pair.mask.values[IGNORE]
                place = Place(IGNORE, *divmod(start, pair.mask.width), count)
                path = dataset.samples[index].mask or dataset.root
                text = (
                    f"{path}: {IGNORE} is class {IGNORE} ({dataset.classes[IGNORE]}) of "
                    f"{len(dataset.classes)}, and no mask holds a higher value"
                )
                yield Finding("class-255", dataset.split, path, text, place=place, sample=index)
                return


def _ranges(datasets: Sequence[Dataset], pairs: Sequence[list[PairFacts]]) -> Iterator[Finding]:
    """Yields a picture of more than 8 bits that shows that `value_range` is missing, or wrong."""
    deep = [
        (dataset, index, pair.picture.spans, pair.picture.white)
        for dataset, facts in zip(datasets, pairs, strict=True)
        for index, pair in enumerate(facts)
        if pair.picture.spans and pair.picture.white is not None
    ]
    if not deep:
        return
    given = datasets[0].value_range
    if given is not None:
        yield from _clipped(deep, given)
        return
    tops = [max(high for _, high in spans) / white for _, _, spans, white in deep]
    dataset, index, spans, white = deep[int(np.argmax(tops))]
    path, split = dataset.samples[index].image, dataset.split
    top = max(high for _, high in spans)
    if 0 < top <= white // 2:
        lowest = min(low for _, _, spans, _ in deep for low, _ in spans)
        text = (
            f"{path}: the {len(deep)} pictures of more than 8 bits hold values from {lowest:g} to "
            f"{top:g} of {white}: they are read as 0 to {255 * top / white:.0f} of 255"
        )
        # Cameras have whole bits: 4095 is the white of 12 of them.
        bits = int(top).bit_length()
        fix = f"write bits: {bits}, or value_range: [0, {(1 << bits) - 1}], into the data YAML"
        yield Finding("value-range", split, path, text, fix, sample=index)


def _clipped(
    deep: Sequence[tuple[Dataset, int, tuple[Range, ...], int]], given: ValueRange
) -> Iterator[Finding]:
    """Yields the picture that lies the furthest above the range, of all or of its channel."""
    worst: tuple[float, int, int] | None = None  # share of the range, picture, channel
    over = 0
    for number, (_, _, spans, _) in enumerate(deep):
        each = ranges(given, len(spans))
        if each is None:
            continue
        shares = [
            (high - low) / (top - low) for (_, high), (low, top) in zip(spans, each, strict=True)
        ]
        channel = int(np.argmax(shares))
        over += shares[channel] > 1
        if shares[channel] > 1 and (worst is None or shares[channel] > worst[0]):
            worst = shares[channel], number, channel
    if worst is None:
        return
    dataset, index, spans, _ = deep[worst[1]]
    low, top = (ranges(given, len(spans)) or ())[worst[2]]
    where = "" if is_one(given) else f" of channel {worst[2]}"
    path = dataset.samples[index].image
    text = (
        f"{path}: holds values up to {spans[worst[2]][1]:g}, above value_range [{low:g}, {top:g}]"
        f"{where} ({over} of {len(deep)} pictures of more than 8 bits do)"
    )
    yield Finding("clipped", dataset.split, path, text, sample=index)


def _extra_bands(
    datasets: Sequence[Dataset], pairs: Sequence[list[PairFacts]]
) -> Iterator[Finding]:
    """Yields the first picture of each number of bands that has more than are read."""
    found: dict[tuple[int, int], list[tuple[Dataset, int]]] = {}
    for dataset, index, picture in _pictures(datasets, pairs):
        if picture.bands is not None:
            found.setdefault(picture.bands, []).append((dataset, index))
    for (bands, read), places in sorted(found.items()):
        dataset, index = places[0]
        path = dataset.samples[index].image
        used = "the first three are read, as RGB" if read == 3 else "the first is read, as grey"
        text = f"{path}: has {bands} bands, of which {used} ({_of(len(places), pairs)})"
        shown = list(range(bands)) if bands <= _LISTED_BANDS else f"[0, 1, ..., {bands - 1}]"
        fix = f"write bands: {shown} into the data YAML to use all, or those to use"
        yield Finding("extra-bands", dataset.split, path, text, fix, sample=index)


def _georeferenced(
    datasets: Sequence[Dataset], pairs: Sequence[list[PairFacts]]
) -> Iterator[Finding]:
    """Yields the first georeferenced picture, which is read like any other."""
    found = [
        (dataset, index)
        for dataset, index, picture in _pictures(datasets, pairs)
        if picture.georeferenced
    ]
    if found:
        dataset, index = found[0]
        path = dataset.samples[index].image
        text = f"{path}: says where on earth it lies ({_of(len(found), pairs)})"
        yield Finding("georeferenced", dataset.split, path, text, sample=index)


def _pictures(
    datasets: Sequence[Dataset], pairs: Sequence[list[PairFacts]]
) -> Iterator[tuple[Dataset, int, Facts]]:
    for dataset, facts in zip(datasets, pairs, strict=True):
        for index, pair in enumerate(facts):
            yield dataset, index, pair.picture


def _of(count: int, pairs: Sequence[list[PairFacts]]) -> str:
    return f"{count} of {sum(map(len, pairs))} pictures do"


def _first_of(
    cause: Cause, datasets: Sequence[Dataset], pairs: Sequence[list[PairFacts]]
) -> Finding:
    """Words a cause with the first pixel of the highest value as its witness."""
    used = set().union(*mask_values(pairs))
    ignored = datasets[0].ignore
    witness = ignored if cause.kind == "binary" and ignored in used else max(used - {ignored})
    for dataset, facts in zip(datasets, pairs, strict=True):
        for index, pair in enumerate(facts):
            if pair.mask is not None and witness in pair.mask.values:
                count, first = pair.mask.values[witness]
                row, column = divmod(first, pair.mask.width)
                path = dataset.samples[index].mask or dataset.root
                text = f"{path}: {witness} at row {row}, column {column}: {cause.text}"
                place = Place(witness, row, column, count)
                return Finding(cause.kind, dataset.split, path, text, cause.fix, place, index)
    raise AssertionError("a value that is used stands in a mask")


def count_split(dataset: Dataset, facts: Sequence[PairFacts]) -> SplitCount:
    """Counts the pixels of each class in the masks of a split."""
    counts = np.zeros(dataset.ignore + 1, np.int64)
    for pair in facts:
        if pair.mask is not None:
            counts += label_counts(dataset, pair.mask)
    classes = counts[: len(dataset.classes)]
    return SplitCount(
        dataset.split,
        len(dataset),
        tuple(map(int, classes)),
        int(counts[dataset.ignore]),
        tuple((pair.picture.height, pair.picture.width) for pair in facts),
    )


def _absent(datasets: Sequence[Dataset], pairs: Sequence[list[PairFacts]]) -> Iterator[Finding]:
    counted = [
        count_split(dataset, facts)
        for dataset, facts in zip(datasets, pairs, strict=True)
        if not _is_bare(dataset, facts)
    ]
    if not counted:
        return
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
            if pair.picture.spans and not (pair.picture.white or dataset.value_range):
                continue  # of no known range, it cannot be read as a picture
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
        picture = read_picture(dataset, index)
    return hashlib.sha256(f"{picture.shape}".encode() + picture.tobytes()).hexdigest()
