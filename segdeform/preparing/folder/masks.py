"""Where the masks of pictures come from, and what they mean."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from segdeform.callbacks import Progress, Steps
from segdeform.checking.remembered import FactCache, cache_path
from segdeform.checking.scan import PairFacts, read_pairs
from segdeform.data.dataset import Dataset, Sample, colour_map
from segdeform.data.image_io import write_index_png
from segdeform.errors import DataError, SegdeformError, UnsafeInputError, UsageError
from segdeform.preparing.folder.drawn import are_annotations, draw_masks
from segdeform.preparing.folder.look import Look, Seen, among_colours, labels_of, look_at, together
from segdeform.preparing.folder.meaning import Meaning, understand
from segdeform.preparing.folder.names import (
    LabelNames,
    find_names,
    given_names,
    given_values,
)
from segdeform.preparing.folder.order import Order
from segdeform.preparing.folder.pairs import Pairing, pair_files, read_pairs_file
from segdeform.preparing.side_by_side import each

MASKS = "masks"  # below the output: the masks that are written


@dataclass(frozen=True)
class MaskSource:
    """Pairs of pictures and mask files, and what the source itself says of the classes."""

    pairing: Pairing
    drawn: LabelNames | None = None  # classes whose index masks were drawn, of annotations
    told: tuple[str, ...] = ()


@dataclass(frozen=True)
class Labelled:
    """Pairs that can be used, with the pixels of each class, and those that cannot."""

    samples: tuple[Sample, ...]
    pixels: npt.NDArray[np.int64]  # [N, K]
    meaning: Meaning
    bad: tuple[tuple[Path, str], ...]  # file, why
    written: bool  # whether the masks are those that were written here
    bits: int | None  # that the pictures use, of more than 8 that they could
    digests: tuple[str, ...]  # of each picture


def find_masks(order: Order, work: Path, progress: Steps) -> MaskSource:
    """Finds the masks of the pictures: files to be paired, or annotations that are drawn.

    What is drawn goes to WORK/masks. Raises DataError, UsageError.
    """
    if are_annotations(order):
        return MaskSource(*draw_masks(order, work / MASKS, progress))
    if order.pairs is not None:
        return MaskSource(read_pairs_file(order.pairs, order.images, order.masks))
    if order.images is None or order.masks is None:
        raise UsageError("give --images DIR and --masks DIR, or --pairs FILE")
    for folder, option in ((order.images, "--images"), (order.masks, "--masks")):
        if not folder.is_dir():
            raise UsageError(f"{option} {folder}: no such folder")
    return MaskSource(pair_files(order.images, order.masks, order.mask_name))


def read_masks(order: Order, source: MaskSource, work: Path, progress: Steps) -> Labelled:
    """Reads all pairs, finds out what their masks mean, and writes index masks where need be.

    Raises DataError where no meaning is certain, or where most pairs cannot be used.
    """
    samples, facts, bad = _sound_pairs(order, source.pairing.samples, progress)
    paths = [sample.mask or sample.image for sample in samples]
    looks = _looks(paths, facts, order.workers, partial(progress, "counting colours"))
    keep = [index for index, look in enumerate(looks) if isinstance(look, Look)]
    bad += [
        (path, str(look)) for path, look in zip(paths, looks, strict=True)
        if not isinstance(look, Look)
    ]  # fmt: skip
    _refuse_most(len(keep), bad)
    kept_looks = among_colours([look for look in looks if isinstance(look, Look)])
    samples, facts = [samples[index] for index in keep], [facts[index] for index in keep]
    seen = together((samples[k].mask or Path(), look) for k, look in enumerate(kept_looks))
    if source.drawn is not None:
        meaning = Meaning(source.drawn.names, palette=source.drawn.palette)
    else:
        meaning = _understood(order, samples, seen)
    # Empty masks that are written beside others need the same values in all of them.
    rewrite = meaning.rewrite or (order.keep_empty and source.drawn is None)
    meaning = replace(meaning, told=(*source.told, *meaning.told), rewrite=rewrite)
    pixels = np.array([_class_pixels(look, meaning) for look in kept_looks], np.int64)
    if meaning.rewrite:
        shown = partial(progress, "writing masks")
        samples = _write_masks(samples, meaning, work / MASKS, order.workers, shown)
    written = meaning.rewrite or source.drawn is not None
    bits, why = _bits(facts)
    meaning = replace(meaning, told=(*meaning.told, *why))
    digests = tuple(pair.picture.digest for pair in facts)
    return Labelled(tuple(samples), pixels, meaning, tuple(bad), written, bits, digests)


def _bits(facts: Sequence[PairFacts]) -> tuple[int | None, list[str]]:
    """Returns how many bits pictures use where they could use more, as a camera's 12 of 16."""
    deep = [pair.picture for pair in facts if pair.picture.spans and pair.picture.white]
    top = max((high for picture in deep for _, high in picture.spans), default=0.0)
    white = max((picture.white or 0 for picture in deep), default=0)
    if not 0 < top <= white // 2:
        return None, []
    bits = int(top).bit_length()
    told = f"{len(deep)} pictures of more than 8 bits hold values up to {top:g} of {white}: "
    return bits, [f"{told}bits: {bits} is written, which makes {(1 << bits) - 1} white"]


def _understood(order: Order, samples: Sequence[Sample], seen: Seen) -> Meaning:
    """Finds out what masks mean from the options, the files beside them, and what they hold."""
    said = given_values(order.values) if order.values else None
    named = given_names(order.classes) if order.classes else None
    found, odd = ([], []) if said else find_names(_beside(samples, order))
    if named is not None:  # what stands for a class may be said there all the same
        found = [labels for labels in found if labels.said]
        found = [] if named.said else found
    meaning = understand(seen, said, named, found, order.threshold)
    others = [labels.source for labels in found if labels.names != meaning.names]
    odd += [f"not used, as it names other classes: {source}" for source in others]
    return replace(meaning, told=(*odd, *meaning.told))


def _sound_pairs(
    order: Order, samples: Sequence[Sample], progress: Steps
) -> tuple[list[Sample], list[PairFacts], list[tuple[Path, str]]]:
    """Reads every picture and mask; what is remembered serves the check of the output, too."""
    dataset = Dataset(
        "folder", "all", order.output, ("unknown",), colour_map(1), tuple(samples)
    )  # the classes are not known yet, and facts do not depend on them
    cache = FactCache(cache_path(order.output))
    total = len(samples)
    try:
        shown = partial(progress, "reading")
        facts = read_pairs(dataset, cache, order.workers, lambda done: shown(done, total))
    finally:
        cache.save()
    good, kept, bad = [], [], []
    for sample, pair in zip(samples, facts, strict=True):
        path, why = _fault(sample, pair)
        if why:
            bad.append((path, why))
        else:
            good.append(sample)
            kept.append(pair)
    return good, kept, bad


def _fault(sample: Sample, pair: PairFacts) -> tuple[Path, str]:
    """Says what keeps a pair from being used whatever its mask means; "" where nothing does."""
    picture, mask = pair
    path = sample.mask or sample.image
    for name, file in ((sample.name, sample.image), (path.name, path)):
        if why := name_fault(name, file):
            return file, why
    if picture.problem:
        return sample.image, picture.text
    if mask is None or mask.problem in ("unreadable", "unsafe", "turned-mask"):
        return path, mask.text if mask else "no mask"
    if (mask.height, mask.width) != (picture.height, picture.width):
        return path, (
            f"{path}: is {mask.height}x{mask.width} (HxW), its picture {sample.image} is "
            f"{picture.height}x{picture.width}"
        )
    return path, ""


def name_fault(name: str, file: Path) -> str:
    """Says where a name loses letters in a line of a list, as of tabs and of spaces at its ends."""
    if name.isprintable() and name == name.strip():
        return ""
    return f"{file}: its name cannot stand in a list of files; rename it"


def _refuse_most(good: int, bad: Sequence[tuple[Path, str]]) -> None:
    if good <= len(bad):
        raise DataError(
            f"{len(bad)} of {good + len(bad)} pairs cannot be used: {bad[0][1]}"
            + (f" | {bad[1][1]}" if len(bad) > 1 else "")
        )


def _looks(
    paths: Sequence[Path], facts: Sequence[PairFacts], workers: int, progress: Progress
) -> list[Look | SegdeformError]:
    """Counts what each mask holds; an error in the place of one that is no mask."""

    def look(index: int) -> Look | SegdeformError:
        known = facts[index].mask
        assert known is not None, "of a pair"
        try:
            return look_at(paths[index], known)
        except (DataError, UnsafeInputError) as error:
            return error

    return list(each(look, range(len(paths)), workers, progress))


def _beside(samples: Iterable[Sample], order: Order) -> list[Path]:
    """Returns the folders in which class names are looked for."""
    first = next(iter(samples))
    folder = order.masks or (first.mask or first.image).parent
    return [folder, folder.parent]


def _class_pixels(look: Look, meaning: Meaning) -> npt.NDArray[np.int64]:
    counts = np.zeros(meaning.ignore + 1, np.int64)
    for value, pixels in look.values.items():
        table = meaning.colours.get((value, value, value)) if meaning.colours else None
        counts[meaning.label(value) if table is None else table] += pixels
    for colour, pixels in look.colours.items():
        counts[meaning.colours[colour]] += pixels
    return counts[: len(meaning.names)]


def _write_masks(
    samples: Sequence[Sample], meaning: Meaning, folder: Path, workers: int, progress: Progress
) -> list[Sample]:
    """Writes index masks of the classes, FOLDER/NAME.png, and returns the pairs with them."""
    palette = meaning.palette or colour_map(len(meaning.names))

    def write(sample: Sample) -> Sample:
        path = folder / f"{sample.name}.png"
        mask, classes = sample.mask or sample.image, len(meaning.names)
        labels = labels_of(mask, meaning.table(), meaning.colours, meaning.threshold, classes)
        write_index_png(path, labels, palette)
        return replace(sample, mask=path)

    return list(each(write, samples, workers, progress))
