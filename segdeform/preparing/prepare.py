"""Makes a data set ready for training, or says what is missing: `segdeform prepare`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from segdeform.callbacks import Steps
from segdeform.checking import check_sound
from segdeform.data import DATASETS, camvid, folder, load_dataset
from segdeform.data.dataset import Dataset, MissingSplitError
from segdeform.errors import DataError, InterruptedByUserError, UsageError, nearest
from segdeform.files.space import size_text
from segdeform.preparing.cityscapes import prepare_cityscapes
from segdeform.preparing.decoding import write_cache
from segdeform.preparing.shapes import write_shapes
from segdeform.preparing.voc import prepare_voc

# trainaug holds all of train.
_SPLITS = {"voc": ("trainaug", "train", "val")}
# What must lie at ROOT, and who gives it out.
_ORIGIN = {
    "camvid": f"Expected {camvid.LAYOUT}; the pictures come from {camvid.SOURCE}",
    "folder": f"Expected {folder.LAYOUT}",
}


@dataclass(frozen=True)
class PrepareSummary:
    """What `prepare` found or made."""

    name: str
    root: Path
    splits: dict[str, int]  # split -> number of pairs
    classes: tuple[str, ...]
    messages: tuple[str, ...]


def prepare(
    name: str,
    output: Path,
    *,
    archives: Sequence[Path] = (),
    download: bool = False,
    sbd: bool = True,
    cache: bool = False,
    shapes: Mapping[str, Any] | None = None,
    workers: int = 2,
    progress: Steps = lambda what, done, total: None,
) -> PrepareSummary:
    """Makes a data set in OUTPUT, from archives, by download or by drawing it, and verifies it all.

    What is there already is kept and only verified: every picture and mask of the splits that exist
    is read. An interrupted call is continued by the same call. `progress` hears (step, done, all).

    Args:
        archives: files of `voc` and `cityscapes` at hand.
        download: fetch what is missing of these two; `voc` is fetched anyway into an empty root.
        sbd: add SBD's masks to `voc`.
        cache: also write the decoded form of the splits that training maps into memory.
        shapes: seed, outline_only and deformation of `shapes`; see `write_shapes`.

    Raises:
        UsageError: an unknown name, options that do not belong to it, a folder in use.
        DataError: what is wrong with the data, or what is expected and where it comes from.
        UnsafeInputError: an archive that means harm.
        DownloadError, ResourceError: network, checksum, disk.
        InterruptedByUserError: Ctrl-C.
    """
    if name not in DATASETS:
        raise UsageError(f"no data set '{name}'.{nearest(name, DATASETS)}")
    if name not in ("voc", "cityscapes") and (archives or download):
        raise UsageError(f"--archive and --download are for voc and cityscapes, not for {name}")
    if name != "shapes" and shapes:
        raise UsageError(f"--seed, --outline-only and --deformation are for shapes, not for {name}")
    try:
        messages = _make(name, output, archives, download, sbd, shapes or {}, progress)
        datasets, missing = _load_splits(name, output)
        for dataset in datasets:
            shown = partial(progress, f"reading {dataset.split}")
            check_sound([dataset], workers=workers, progress=shown)
        cached = _write_caches(datasets, workers, progress) if cache else []
    except KeyboardInterrupt as error:
        raise InterruptedByUserError(
            "interrupted; what is done is kept, the same command goes on from there"
        ) from error
    messages.append("every picture and mask was read and fits")
    messages.extend([*cached, *(str(error) for error in missing)])
    return PrepareSummary(
        name=name,
        root=output,
        splits={dataset.split: len(dataset) for dataset in datasets},
        classes=datasets[0].classes,
        messages=tuple(messages),
    )


def _make(
    name: str,
    output: Path,
    archives: Sequence[Path],
    download: bool,
    sbd: bool,
    shapes: Mapping[str, Any],
    progress: Steps,
) -> list[str]:
    if name == "shapes":
        made = write_shapes(output, **shapes, progress=partial(progress, "drawing"))
        return ["generated" if made else "was there already, nothing written"]
    if name == "voc":
        return prepare_voc(output, archives, fetch=download, sbd=sbd, progress=progress)
    if name == "cityscapes":
        return prepare_cityscapes(output, archives, fetch=download, progress=progress)
    if not output.exists():
        raise DataError(f"{output}: no such folder, and nobody may download it. {_ORIGIN[name]}")
    return []


def _load_splits(name: str, output: Path) -> tuple[list[Dataset], list[MissingSplitError]]:
    """Loads the splits that there are; raises MissingSplitError when there is none."""
    datasets: list[Dataset] = []
    missing = []
    for split in _SPLITS.get(name, ("train", "val")):
        try:
            datasets.append(load_dataset(name, output, split))
        except MissingSplitError as error:
            if split != "trainaug":
                missing.append(error)
    if not datasets:
        raise missing[0]
    return datasets, missing


def _write_caches(datasets: list[Dataset], workers: int, progress: Steps) -> list[str]:
    messages = []
    splits = {dataset.split for dataset in datasets}
    for dataset in datasets:
        if dataset.split == "train" and "trainaug" in splits:
            continue  # its pictures are in trainaug
        folder = write_cache(dataset, workers, partial(progress, f"caching {dataset.split}"))
        size = sum(path.stat().st_size for path in folder.iterdir())
        messages.append(f"cache of {dataset.split}: {folder}, {size_text(size)}")
    return messages
