"""Lists of files: a picture a line, after a tab its mask, wherever both lie."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from segdeform.data.dataset import ListingProblem, Sample
from segdeform.data.image_io import LOSSY_SUFFIXES, MASK_SUFFIXES
from segdeform.data.layout import pairing_problem, spelt
from segdeform.errors import DataError


@dataclass(frozen=True)
class Places:
    """Where a data YAML lies, and the folder that its paths begin at."""

    source: Path
    base: Path  # the YAML's `path`

    def find(self, text: str, listing: Path | None = None) -> tuple[Path, bool]:
        """Finds what a YAML, or a list that it names, means by `text`; and whether elsewhere.

        ./x begins at the folder of the file that says it, everything else at `path`; what is not
        there is looked for beside these files, then below them without what leads elsewhere.
        """
        here = (listing or self.source).parent
        own = text.startswith("./")
        beside = (here / text, self.base / text, self.source.parent / text)
        wanted = beside[0] if own else beside[1]
        if wanted.exists():
            return wanted, False
        for place in beside:
            # "../x" from two places is two folders; a plain name was only to be found.
            if place.exists() and not (own or Path(text).is_absolute()):
                return place, ".." in Path(text).parts or place.is_dir()
        parts = [part for part in Path(text).parts if part not in ("..", "/")]
        # A single last part, such as images, would be the same folder for every split.
        for start in range(max(1, len(parts) - 1)):
            for root in (self.base, self.source.parent):
                place = root.joinpath(*parts[start:])
                if place.exists():
                    return place, True
        return wanted, False


def tidy(path: Path) -> Path:
    """Returns a path without ".." where that is the same place, whatever links lead there."""
    if ".." not in path.parts:
        return path
    short = Path(os.path.normpath(path))
    try:
        return short if short.samefile(path) else path
    except OSError:
        return path


def name_below(path: Path, base: Path) -> str:
    """Names a file or folder by its path below BASE; what lies elsewhere by its own path, without
    what would lead out of a folder."""
    absolute = Path(os.path.abspath(path))  # noqa: PTH100, links stay as they are named
    root = Path(os.path.abspath(base))  # noqa: PTH100
    if absolute.is_relative_to(root):
        return spelt(absolute.relative_to(root).as_posix())
    return spelt(absolute.relative_to(absolute.anchor).as_posix())


def list_pairs(
    listing: Path,
    places: Places,
    beside: str,
    masks: Path | None,
    suffix: str,
) -> tuple[list[Sample], list[ListingProblem]]:
    """Pairs the pictures of a list with the masks that it names, or that lie beside them.

    Without a second column, masks have the picture's name and `suffix`, in its folder with `beside`
    in the place of `images`, else in the folder MASKS. Raises DataError where the list cannot be
    read, or is empty.
    """
    samples, problems = [], []
    folders = _Folders()
    moved = ""
    for text, mask_text in _lines(listing):
        picture, elsewhere = places.find(text, listing)
        if elsewhere and not moved:
            moved = f"{listing}: {text} is not there; {picture} is taken for it"
            problems.append(ListingProblem("moved-folder", listing, moved))
        if not picture.exists():
            told = f"{picture}: missing, but listed in {listing}"
            problems.append(ListingProblem("missing-picture", picture, told))
            continue
        name = name_below(picture.with_suffix(""), places.base)
        if mask_text is None:
            folder = _folder_beside(picture, places, beside, masks, bool(suffix))
            stem = f"{spelt(picture.stem)}{suffix}"
            labels, lossy = folders.found(folder, stem)
            problem = pairing_problem(stem, picture.parent, folder, [picture], labels, lossy)
        else:
            labels = [_named_mask(mask_text, listing, places, masks)]
            told = f"{labels[0]}: missing, but listed in {listing}"
            problem = (
                None if labels[0].exists() else ListingProblem("missing-mask", labels[0], told)
            )
        if problem:
            problems.append(problem)
        else:
            samples.append(Sample(name, picture, labels[0]))
    return samples, problems


def _lines(listing: Path) -> list[tuple[str, str | None]]:
    """Reads the lines of a list, each a picture and, after a tab, a mask. Raises DataError."""
    try:
        lines = listing.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{listing}: the list of pictures cannot be read: {reason}") from error
    found: list[tuple[str, str | None]] = []
    for number, line in enumerate(lines, start=1):
        cells = [cell.strip() for cell in line.split("\t")]
        if not any(cells):
            continue
        if len(cells) > 2 or not all(cells):
            raise DataError(f"{listing}: line {number} is a picture and, after a tab, its mask")
        if not all(cell.isprintable() for cell in cells):
            raise DataError(f"{listing}: line {number}: {line!a} holds control characters")
        found.append((cells[0], cells[1] if len(cells) == 2 else None))
    if not found:
        raise DataError(f"{listing}: lists no picture")
    return found


def _folder_beside(
    picture: Path, places: Places, beside: str, masks: Path | None, suffixed: bool
) -> Path:
    """Returns the folder where the mask of a listed picture lies, as for folders of pictures."""
    parts = list(picture.parts[:-1])
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = beside
        folder = Path(*parts)
        if masks is None or folder.is_dir():
            return folder
    if masks is None:
        return picture.parent if suffixed else picture.parent.parent / beside
    inner = masks / name_below(picture.parent, places.base)
    return inner if inner.is_dir() else masks


def _named_mask(text: str, listing: Path, places: Places, masks: Path | None) -> Path:
    own = masks / text if masks is not None and not text.startswith("./") else None
    if own is not None and own.exists():
        return own
    found, _ = places.find(text, listing)
    return own if own is not None and not found.exists() else found


class _Folders:
    """The masks of folders by name, each folder read once."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[dict[str, list[Path]], dict[str, list[Path]]]] = {}

    def found(self, folder: Path, stem: str) -> tuple[list[Path], list[Path]]:
        """Returns the masks of a name, and those that JPEG may have blurred."""
        if folder not in self._known:
            self._known[folder] = ({}, {})
            for path in sorted(folder.iterdir()) if folder.is_dir() else []:
                for files, suffixes in zip(
                    self._known[folder], (MASK_SUFFIXES, LOSSY_SUFFIXES), strict=True
                ):
                    if path.suffix.lower() in suffixes and not path.name.startswith("."):
                        files.setdefault(spelt(path.stem), []).append(path)
        labels, lossy = self._known[folder]
        return labels.get(stem, []), lossy.get(stem, [])
