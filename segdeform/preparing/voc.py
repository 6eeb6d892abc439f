"""Brings VOC 2012 to its layout and adds SBD's masks to it: the split `trainaug`.

trainaug = (VOC train + SBD train + SBD val) - VOC val, 10,582 pictures, sorted. A picture that has
a mask in VOC keeps it; the others get SBD's, which mark no borders (no 255).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath

from segdeform.callbacks import Steps
from segdeform.data import voc
from segdeform.data.dataset import colour_map
from segdeform.data.image_io import write_index_png
from segdeform.data.layout import read_names
from segdeform.errors import DataError, DownloadError
from segdeform.files.atomic import write_text
from segdeform.files.download import Checksum, download
from segdeform.files.space import require_space
from segdeform.preparing.archives import Entry, open_archive
from segdeform.preparing.sbd_mask import read_sbd_mask
from segdeform.preparing.staging import ARCHIVES, publish, staging_folder, unpack_lacking

TRAINAUG = 10_582  # ids, of the whole data sets
_VOC, _SBD = "VOC", "SBD"
_NEED = {_VOC: 4_200_000_000, _SBD: 1_800_000_000}  # bytes: archive and what comes out of it


def prepare_voc(
    root: Path, archives: Sequence[Path], *, fetch: bool, sbd: bool, progress: Steps
) -> list[str]:
    """Makes ROOT hold VOC 2012, with `sbd` also the split trainaug; returns what was done.

    The archives are VOC's tar and SBD's benchmark.tgz, in any order, told apart by their content.
    What ROOT holds already is not unpacked again. `fetch` downloads what is missing, which is also
    done when there is neither VOC nor an archive.
    Raises DataError for archives of something else, UnsafeInputError, DownloadError, ResourceError.
    """
    home = voc.find_home(root)
    wants_sbd = sbd and (home is None or not (home / voc.TRAINAUG_LIST).is_file())
    if home is not None and not (wants_sbd and (archives or fetch)):
        return ["was there already, nothing written", *_advice(home, sbd)]
    if home is None and not (archives or fetch) and _holds_something(root):
        raise DataError(
            f"{root}: does not hold VOC 2012; expected {voc.LAYOUT}. --download fetches it there, "
            "--archive takes VOCtrainval_11-May-2012.tar and SBD's benchmark.tgz"
        )
    goal = home or root / "VOCdevkit" / "VOC2012"
    with staging_folder(root) as staging:
        found = dict(_unpack(archive, staging, goal, wants_sbd, progress) for archive in archives)
        if fetch or not archives:
            wanted = {_VOC: home is None, _SBD: wants_sbd}
            missing = [kind for kind, needed in wanted.items() if needed and kind not in found]
            for archive in _download(root, missing, progress):
                found |= [_unpack(archive, staging, goal, wants_sbd, progress)]
        if _VOC in found:
            publish(found[_VOC], goal)
        if voc.find_home(root) is None:
            raise DataError(f"{root}: none of the archives holds VOC 2012; expected {voc.LAYOUT}")
        messages = ["VOC was there already" if home else f"unpacked VOC into {goal}"]
        if wants_sbd and _SBD in found:
            messages.append(merge_sbd(goal, found[_SBD], progress))
    return [*messages, *_advice(goal, sbd)]


def _holds_something(root: Path) -> bool:
    """Tells whether ROOT is in use for something else than a preparation that was interrupted."""
    if root.exists() and not root.is_dir():
        return True
    return root.exists() and any(
        path.name != ARCHIVES and not path.name.startswith(".") for path in root.iterdir()
    )


def _unpack(
    archive: Path, staging: Path, goal: Path, wants_sbd: bool, progress: Steps
) -> tuple[str, Path]:
    """Unpacks what is lacking and wanted of an archive; returns what it holds and where it is."""
    _check_official(archive)
    with open_archive(archive) as entries:
        if _holds(entries, "VOC2012", "ImageSets", "Segmentation", "train.txt"):
            return _VOC, unpack_lacking(archive, entries, staging, goal, _place_voc, progress)
        if _holds(entries, "dataset", "cls") and _holds(entries, "dataset", "train.txt"):
            chosen = entries if wants_sbd else []
            return _SBD, unpack_lacking(archive, chosen, staging, staging, _place_sbd, progress)
    raise DataError(
        f"{archive}: holds neither VOC 2012 (VOCdevkit/VOC2012/ImageSets) nor SBD "
        "(benchmark_RELEASE/dataset/cls)"
    )


def _advice(home: Path, sbd: bool) -> list[str]:
    if not sbd or (home / voc.TRAINAUG_LIST).is_file():
        return []
    return ["without SBD's 9,118 pictures: --download fetches them, or --archive benchmark.tgz"]


def merge_sbd(home: Path, sbd: Path, progress: Steps) -> str:
    """Writes SegmentationClassAug and, last of all, ImageSets/Segmentation/trainaug.txt.

    HOME is VOC2012; SBD holds train.txt, val.txt and cls/*.mat. Masks that are there already stay.
    Raises DataError naming the picture or mask that is missing or damaged.
    """
    lists = home / "ImageSets" / "Segmentation"
    train, val = read_names(lists / "train.txt"), read_names(lists / "val.txt")
    added = [*read_names(sbd / "train.txt"), *read_names(sbd / "val.txt")]
    names = trainaug_names(train, val, added)
    converted = 0
    for done, name in enumerate(names, start=1):
        if not (home / "JPEGImages" / f"{name}.jpg").exists():
            raise DataError(f"{home / 'JPEGImages' / name}.jpg: missing, but listed by SBD")
        if not (home / "SegmentationClass" / f"{name}.png").exists():
            goal = home / "SegmentationClassAug" / f"{name}.png"
            if not goal.exists():
                labels = read_sbd_mask(sbd / "cls" / f"{name}.mat")
                write_index_png(goal, labels, colour_map(len(voc.CLASSES)))
            converted += 1
        progress("converting SBD's masks", done, len(names))
    write_text(home / voc.TRAINAUG_LIST, "".join(f"{name}\n" for name in names))
    whole = "" if len(names) == TRAINAUG else f", of {TRAINAUG:,} in the whole data sets"
    return (
        f"trainaug.txt: {len(names):,} pictures{whole}; VOC's own masks for "
        f"{len(names) - converted:,} of them, SBD's for {converted:,} (SegmentationClassAug)"
    )


def trainaug_names(train: Sequence[str], val: Sequence[str], sbd: Sequence[str]) -> list[str]:
    """Returns (VOC train + SBD) - VOC val, sorted: no picture that is scored is trained on."""
    return sorted({*train, *sbd} - {*val})


def _holds(entries: Sequence[Entry], *parts: str) -> bool:
    """Tells whether a path of the archive has these parts one after the other."""
    wanted = "/".join(("", *parts, ""))
    return any(wanted in f"/{entry.path}/" for entry in entries)


def _place_voc(path: PurePosixPath) -> PurePosixPath | None:
    if "VOC2012" not in path.parts[:-1]:
        return None
    return PurePosixPath(*path.parts[path.parts.index("VOC2012") + 1 :])


def _place_sbd(path: PurePosixPath) -> PurePosixPath | None:
    if "dataset" not in path.parts:
        return None
    inside = path.parts[path.parts.index("dataset") + 1 :]
    is_mask = len(inside) == 2 and inside[0] == "cls" and path.suffix == ".mat"
    return PurePosixPath(*inside) if is_mask or inside in (("train.txt",), ("val.txt",)) else None


def _official() -> dict[str, tuple[str, str]]:
    """Returns file name -> (address, MD5), as torchvision knows them."""
    from torchvision.datasets import SBDataset
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    year = DATASET_YEAR_DICT["2012"]
    return {
        year["filename"]: (year["url"], year["md5"]),
        SBDataset.filename: (SBDataset.url, SBDataset.md5),
    }


def _download(root: Path, kinds: Sequence[str], progress: Steps) -> list[Path]:
    official = dict(zip((_VOC, _SBD), _official().items(), strict=True))
    missing = [kind for kind in kinds if not (root / ARCHIVES / official[kind][0]).is_file()]
    require_space(root, sum(_NEED[kind] for kind in missing))
    paths = []
    for kind in kinds:
        name, (address, md5) = official[kind]
        paths.append(root / ARCHIVES / name)
        shown = partial(progress, f"downloading {name}")
        download(address, paths[-1], Checksum("md5", md5), progress=shown)
    return paths


def _check_official(archive: Path) -> None:
    """Compares an archive that bears an official name with the MD5 that belongs to it."""
    known = _official().get(archive.name)
    if known and archive.is_file() and not Checksum("md5", known[1]).fits(archive):
        raise DownloadError(
            f"{archive}: has not the MD5 of the official file, {known[1]}: fetch it again, or "
            "rename it if it is an archive of your own"
        )
