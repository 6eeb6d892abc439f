"""Which pictures a prediction is asked for, and what each output is called."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from segdeform.data.file_lists import name_below
from segdeform.data.image_io import PICTURE_SUFFIXES
from segdeform.data.unread import is_video, unread_kind
from segdeform.errors import DataError, UsageError
from segdeform.prediction.listing import (
    STANDARD_INPUT,
    Typed,
    fixed_part,
    is_glob,
    is_list,
    is_standard_input,
    matches,
    read_list,
    refuse_deep,
    refuse_missing,
)
from segdeform.prediction.place import (
    OUTPUTS,
    SUMMARY,
    frames_folder,
    identity,
    read_summary,
)


@dataclass
class Found:
    """The pictures to predict, and what else lay in the folders."""

    pictures: list[tuple[Path, str]] = field(default_factory=list)  # source, name of its outputs
    collisions: list[tuple[Path, str]] = field(default_factory=list)  # source, why it has no name
    skipped: list[tuple[Path, str]] = field(default_factory=list)  # other files, and what they are
    own: list[Path] = field(default_factory=list)  # earlier predictions, whose files are left out
    files: dict[Path, Path] = field(default_factory=dict)  # source -> where it is read


def find_images(
    inputs: Sequence[Path],
    exclude: Iterable[Path] = (),
    earlier: Mapping[str, str] | None = None,  # name -> picture, absolute, of masks that are there
    typed: Typed | None = None,  # what came by standard input
) -> Found:
    """Lists the pictures and videos among inputs, in a fixed order, each once.

    Inputs are files, folders (searched through), globs, lists of paths (@list.txt), or "-" for
    standard input; see `listing`. In a folder a picture is what has the suffix of one; hidden
    entries are left out, and so are links to folders, which can run in circles. A file that is
    named itself, or in a list, is always taken. Paths below `exclude`, and the outputs of earlier
    predictions, are passed over.

    Outputs are called like the picture without its suffix, below the same folders as it is below
    the folder given, the part of a glob before its first wildcard, or the folder at which the paths
    of a list begin; what a list names elsewhere is called by its whole path. A name does not depend
    on what lies beside it, nor on what else is given. Of two pictures that would have one name,
    upper and lower case taken as one, the later is in `collisions`, unless the mask that is there
    already is its own. Raises UsageError for an input that does not exist.
    """
    refuse_missing(inputs)
    found, excluded = Found(), {identity(path) for path in exclude}
    listed: dict[Path, tuple[Path, str]] = {}  # absolute path -> source, name
    for source in inputs:
        for path, name in _named(source, excluded, found, typed):
            listed.setdefault(identity(path), (path, name))
    _tell_apart(listed.values(), earlier or {}, found)
    return found


def _named(
    source: Path, excluded: set[Path], found: Found, typed: Typed | None
) -> Iterator[tuple[Path, str]]:
    """Yields the pictures of one input, and what their outputs are called."""
    if is_standard_input(source):
        if typed is None:
            raise UsageError("-: there is no standard input here; give paths")
        if typed.picture is not None:
            found.files[STANDARD_INPUT] = typed.picture
            yield STANDARD_INPUT, STANDARD_INPUT.name
        yield from _of_list(Path(), typed.paths, excluded, found)
    elif is_list(source):
        yield from _of_list(*read_list(source), excluded, found)
    elif is_glob(source):
        yield from _of_glob(source, excluded, found)
    elif source.is_dir():
        yield from _in_folder(source, source, excluded, found)
    else:
        yield source, _name(Path(source.name))


def _in_folder(
    folder: Path, base: Path, excluded: set[Path], found: Found
) -> Iterator[tuple[Path, str]]:
    for path in _walk(folder, excluded, found.own):
        if reason := _no_picture(path):
            found.skipped.append((path, reason))
        else:
            yield path, _name(path.relative_to(base))


def _of_glob(source: Path, excluded: set[Path], found: Found) -> Iterator[tuple[Path, str]]:
    base, _ = fixed_part(source)
    for path in matches(source):
        if path.is_dir() and not path.name.startswith("."):
            yield from _in_folder(path, base, excluded, found)
            continue
        real = identity(path)
        own = _prediction_with(real)
        if own is not None or not excluded.isdisjoint([real, *real.parents]):
            if own is not None and own not in found.own:
                found.own.append(own)
        elif reason := _no_picture(path):
            found.skipped.append((path, reason))
        else:
            yield path, _name(path.relative_to(base))


def _of_list(
    base: Path, paths: Iterable[str], excluded: set[Path], found: Found
) -> Iterator[tuple[Path, str]]:
    for text in paths:
        path = base / text
        if os.path.isdir(path):  # noqa: PTH112, Path raises for names that are too long
            for inner in _walk(path, excluded, found.own):
                if reason := _no_picture(inner):
                    found.skipped.append((inner, reason))
                else:
                    yield inner, _name(Path(name_below(inner, base)))
        else:
            yield path, _name(Path(name_below(path, base)))


def _name(relative: Path) -> str:
    return relative.with_suffix("").as_posix()


def _no_picture(path: Path) -> str:
    """Says why an entry of a folder is no picture to predict; "" for one that is."""
    if path.name.startswith("."):
        return "hidden"
    if path.is_symlink() and path.is_dir():
        return "a link to a folder: give the folder itself"
    if is_video(path):
        return ""
    if kind := unread_kind(path):
        return f"{path.suffix} is not read here, {kind.name}: {kind.advice}"
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        return f"{path.suffix} is no picture that is read here" if path.suffix else "has no suffix"
    return ""


def _tell_apart(
    listed: Iterable[tuple[Path, str]], earlier: Mapping[str, str], found: Found
) -> None:
    """Gives every name to one picture: to that of the mask that is there, else to the first."""
    entries = list(listed)
    owners: dict[str, Path] = {}
    for source, name in entries:
        if earlier.get(name) == str(identity(source)):
            owners[_folded(name)] = source
    for source, name in entries:
        owners.setdefault(_folded(name), source)
    for source, name in entries:
        owner, video = owners[_folded(name)], owners.get(_folded(frames_folder(name)), source)
        if owner is source and (video is source or not is_video(video)):
            found.pictures.append((source, name))
            continue
        whose = f"that of {owner}" if owner is not source else f"that of a frame of {video}"
        text = f"its mask would be {name}.png, as {whose}: rename one of them"
        found.collisions.append((source, f"{text}, or predict it into another --output"))


def _walk(folder: Path, excluded: set[Path], own: list[Path]) -> Iterator[Path]:
    """Yields all that a folder holds but folders; of hidden and linked folders only the name.

    Folders of earlier predictions are noted in `own`, and what a prediction wrote is passed over.
    """

    def unreadable(error: OSError) -> NoReturn:
        raise DataError(f"{error.filename}: cannot be listed: {error.strerror}") from error

    place = _prediction_with(folder.resolve())  # the folder may be masks/ itself, or lie in it
    if place is not None:
        own.append(place)
        return
    for root, folders, files in os.walk(folder, onerror=unreadable):
        here = Path(root)
        refuse_deep(here, len(folder.parts))
        real = here.resolve()
        if not excluded.isdisjoint([real, *real.parents]):
            folders.clear()
            continue
        if SUMMARY in files and real / SUMMARY not in excluded and read_summary(here) is not None:
            own.append(here)
            excluded.update(real / name for name in OUTPUTS)
        closed = {name for name in folders if name.startswith(".") or (here / name).is_symlink()}
        folders[:] = sorted(set(folders) - closed)
        for name in sorted([*files, *closed]):
            if real / name not in excluded:
                yield here / name


def _prediction_with(real: Path) -> Path | None:
    """Returns the folder of an earlier prediction that a file or folder is an output of."""
    for place in real.parents:
        if real.relative_to(place).parts[0] in OUTPUTS and read_summary(place) is not None:
            return place
    return None


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
