"""Brings Cityscapes to its layout: from its zips, or through csDownload with the user's account."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path, PurePosixPath

from segdeform.callbacks import Steps
from segdeform.data import cityscapes
from segdeform.errors import DataError, DownloadError
from segdeform.files.atomic import write_error
from segdeform.files.space import require_space
from segdeform.preparing.archives import open_archive
from segdeform.preparing.staging import ARCHIVES, publish, staging_folder, unpack_lacking

PACKAGES = ("gtFine_trainvaltest.zip", "leftImg8bit_trainvaltest.zip")
_PARTS = ("gtFine", "leftImg8bit")
_NEED = 24_000_000_000  # bytes: both archives and what comes out of them


def prepare_cityscapes(
    root: Path, archives: Sequence[Path], *, fetch: bool, progress: Steps
) -> list[str]:
    """Makes ROOT hold leftImg8bit and gtFine; returns what was done and what is missing.

    The archives are Cityscapes' zips, told apart by their content; a part that ROOT holds whole is
    not unpacked again. `fetch` downloads through the official script, which asks for the account.
    Raises DataError for archives of something else, UnsafeInputError, DownloadError, ResourceError.
    """
    missing = _missing_parts(root)
    if missing and not archives and not fetch:
        raise _incomplete(root)
    if not archives and not missing:
        return ["was there already, nothing written", *_counts(root)]
    with staging_folder(root) as staging:
        if fetch and missing:
            archives = [*archives, *_download(root)]
        for archive in archives:
            with open_archive(archive) as entries:
                if not any(_place(entry.path) for entry in entries):
                    raise DataError(f"{archive}: holds neither leftImg8bit/ nor gtFine/")
                folder = unpack_lacking(archive, entries, staging, root, _place, progress)
            publish(folder, root)
    if _missing_parts(root):
        raise _incomplete(root)
    return [*(f"took from {archive.name} what lacked" for archive in archives), *_counts(root)]


def _missing_parts(root: Path) -> list[str]:
    return [part for part in _PARTS if not (root / part).is_dir()]


def _incomplete(root: Path) -> DataError:
    return DataError(
        f"{root}: holds no {' and no '.join(_missing_parts(root))}; expected {cityscapes.LAYOUT}. "
        f"Give the zips of https://www.cityscapes-dataset.com ({', '.join(PACKAGES)}) by "
        "--archive, or --download with an account there"
    )


def _place(path: PurePosixPath) -> PurePosixPath | None:
    found = [place for place, part in enumerate(path.parts[:-1]) if part in _PARTS]
    return PurePosixPath(*path.parts[found[0] :]) if found else None


def _counts(root: Path) -> list[str]:
    """Tells of every split that is not whole how much of it there is."""
    notes = []
    for split, whole in cityscapes.SPLITS.items():
        count = len(list((root / "leftImg8bit" / split).glob(f"*/*{cityscapes.PICTURE}")))
        if count != whole:
            notes.append(f"note: {split} has {count:,} of its {whole:,} pictures")
    return notes


def _download(root: Path) -> list[Path]:
    """Fetches the packages that ROOT/archives lacks; asks for user name and password.

    Raises DownloadError for whatever the official script ends with.
    """
    folder, unfinished = root / ARCHIVES, root / ARCHIVES / ".unfinished"
    missing = [name for name in PACKAGES if not (folder / name).is_file()]
    require_space(root, _NEED if missing else 0)
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
        for name in missing:
            _download_package(name, unfinished)
            (unfinished / name).rename(folder / name)
        shutil.rmtree(unfinished)  # with the part of a package that has come by another way
    except OSError as error:
        raise write_error(folder, error) from error
    return [folder / name for name in PACKAGES]


def _download_package(name: str, folder: Path) -> None:
    from cityscapesscripts.download import downloader

    try:
        with redirect_stdout(sys.stderr):
            session = downloader.login()
            downloader.download_packages(
                session=session, package_names=[name], destination_path=str(folder), resume=True
            )
    except EOFError as error:
        raise DownloadError(
            "Cityscapes asks for an account: run this in a terminal, run csDownload once and let "
            f"it store your account, or fetch {name} in a browser and give it by --archive"
        ) from error
    except (Exception, SystemExit) as error:  # the script raises bare Exceptions, requests its own
        if " 416 " in f" {error} ":
            (folder / name).unlink(missing_ok=True)  # as long as the file and yet not it
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DownloadError(
            f"{name}: the official download ended with: {reason}; run again to go on, or fetch it "
            "in a browser and give it by --archive"
        ) from error
