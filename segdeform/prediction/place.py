"""Where predictions are written: never among the files of others, never over another's outputs.

An output folder remembers in summary.json which picture each name is of.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from segdeform.data.georeference import Georeference
from segdeform.data.unread import is_video
from segdeform.errors import UsageError
from segdeform.files.atomic import is_temporary
from segdeform.model_folder import DESCRIPTION
from segdeform.prediction.records import FAILURES, PREDICTIONS, Done
from segdeform.results.outputs import DEFAULT, KINDS
from segdeform.results.overlay import reduced_size

FORMAT = "segdeform-prediction"  # how a summary.json of ours is told from anybody else's
SUMMARY = "summary.json"
FOLDERS = tuple(KINDS)  # one an output, mirroring the inputs
_LARGEST_PNG = 2**30  # pixels
_FRAME = re.compile(r"(.+)/\d{6,}")  # the name of a frame's outputs
_JPEG_SIDE = 65_500  # pixels, the most that a JPEG has
_FILES = ("overview.png", PREDICTIONS, FAILURES, SUMMARY)
OUTPUTS = (*FOLDERS, *_FILES)


def read_summary(folder: Path) -> Mapping[str, Any] | None:
    """Returns what the last prediction into a folder noted; None where there was none."""
    path = folder / SUMMARY
    try:
        value = json.loads(path.read_bytes()) if path.is_file() else None  # a FIFO never ends
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and value.get("format") == FORMAT else None


def refuse_foreign(output: Path, inputs: Iterable[Path] = ()) -> None:
    """Raises UsageError where masks would be written among files that are not ours."""
    place = Path(os.path.realpath(output))  # Path raises for links in a circle
    if any(os.path.realpath(folder) == str(place) for folder in inputs):
        raise UsageError(f"{output}: holds the pictures; choose another --output")
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output}: is not a folder; choose another --output")
    for folder in (place, *place.parents):
        if os.path.lexists(folder / DESCRIPTION):
            raise UsageError(f"{folder}: is a model; choose another --output")
    if os.path.lexists(output / "checkpoints") or os.path.lexists(output / "model" / DESCRIPTION):
        raise UsageError(f"{output}: is a run; choose another --output")
    present = [name for name in OUTPUTS if os.path.lexists(output / name)]
    if present and read_summary(output) is None:
        raise UsageError(
            f"{output}: holds {', '.join(present)} from something else than an earlier prediction; "
            "choose another --output"
        )
    written = _written(output)
    for name in present:
        if name in FOLDERS and name not in written and any((output / name).glob("*")):
            raise UsageError(
                f"{output / name}: holds something that no prediction wrote; choose another "
                "--output, or move it away"
            )
        what, is_one = ("folder", Path.is_dir) if name in FOLDERS else ("file", Path.is_file)
        if not is_one(output / name):
            raise UsageError(f"{output / name}: is not a {what}; remove it")


def refuse_other_classes(output: Path, classes: Sequence[str]) -> None:
    """Raises UsageError where earlier predictions have other classes: one number, two meanings."""
    noted = (read_summary(output) or {}).get("classes")
    if isinstance(noted, list) and noted != list(classes):
        raise UsageError(
            f"{output}: holds predictions of other classes ({_named(noted)}; these are "
            f"{_named(classes)}): choose another --output, or --overwrite them"
        )


def _named(classes: Sequence[object]) -> str:
    names = ", ".join(str(name) for name in classes[:3])
    return f"{names}, ..." if len(classes) > 3 else names


def earlier_sources(output: Path) -> dict[str, str]:
    """Returns {name: absolute path of its picture} of the outputs that lie in a folder.

    Those whose picture nobody noted have "".
    """
    summary = read_summary(output) or {}
    noted = summary.get("sources")
    if not isinstance(noted, dict):  # of an earlier version, which told the last pictures only
        done = summary.get("done")
        noted = {
            entry["name"]: str(identity(Path(entry["picture"])))
            for entry in (done if isinstance(done, list) else [])
            if isinstance(entry, dict)
            and all(isinstance(entry.get(key), str) for key in ("name", "picture"))
        }
    names = set()
    for folder, kind in KINDS.items():
        for path in (output / folder).rglob("*"):
            one = path.suffix[1:] in kind.suffixes and not is_temporary(path.name)
            if one and path.is_file():
                names.add(path.relative_to(output / folder).with_suffix("").as_posix())
    present = {_noted(name, noted): None for name in sorted(names)}
    return {name: str(noted.get(name, "")) for name in present}


def _noted(name: str, noted: Mapping[str, Any]) -> str:
    """Returns the name that a mask's picture is noted by: of a frame's, that of all of them."""
    folder = frames_folder(name)
    return folder if name not in noted and folder in noted else name


def frames_folder(name: str) -> str:
    """Returns the name whose frame a name may be: a/b for a/b/000012; "" for any other."""
    match = _FRAME.fullmatch(name)
    return match[1] if match else ""


def written_outputs(output: Path, outputs: Iterable[str]) -> list[str]:
    """Returns the kinds of outputs that predictions into a folder wrote, with those of now."""
    known = {*outputs, *_written(output)}
    return [name for name in KINDS if name in known]


def _written(output: Path) -> tuple[str, ...]:
    noted = (read_summary(output) or {}).get("folders")
    return tuple(map(str, noted)) if isinstance(noted, list) else DEFAULT


def refuse_others_masks(
    output: Path, earlier: Mapping[str, str], pictures: Iterable[tuple[Path, str]]
) -> None:
    """Raises UsageError where a picture's outputs have the name of those of another picture.

    `pictures` are (source, name); `earlier` is what `earlier_sources` says.
    """
    frames = {folder: name for name in earlier if (folder := frames_folder(name))}
    others = []
    for source, name in pictures:
        taken, folder = name, frames_folder(name)
        if name not in earlier and folder in earlier and has_outputs(output, name):
            taken = folder  # its mask would lie where that of a frame lies
        elif name not in earlier and is_video(source):
            taken = frames.get(name, name)  # the mask of a frame would lie where a picture's lies
        if taken in earlier and earlier[taken] != str(identity(source)):
            others.append((source, taken))
    if others:
        source, name = others[0]
        more = f" (and {len(others) - 1} more such files)" if len(others) > 1 else ""
        there = next((path for path in every_path(output, name) if path.is_file()), output / name)
        raise UsageError(
            f"{there} is the {_called(there, output)} of {earlier[name] or 'another picture'}, "
            f"not of {source}{more}: choose another --output"
        )


def _called(path: Path, output: Path) -> str:
    return "mask" if path.is_relative_to(output / "masks") else "output"


def identity(path: Path) -> Path:
    """Returns the absolute path of an entry itself, not of what it links to."""
    try:
        return path.parent.resolve() / path.name
    except (OSError, RuntimeError, ValueError):  # links in a circle, a NUL
        return path.absolute()


def has_outputs(output: Path, name: str) -> bool:
    """Tells whether there is any output of a name."""
    # Path raises for names that are too long.
    return any(os.path.isfile(path) for path in every_path(output, name))  # noqa: PTH113


def video_path(output: Path, name: str) -> Path:
    """Returns where the overlays of a video lie."""
    return output / "overlays" / f"{name}.mp4"


def mask_suffix(size: tuple[int, int], place: Georeference | None) -> str:
    """Chooses the kind of a mask file: "tif" where a picture lies on a map or is a giant.

    A TIFF keeps the place and can be read in parts; a PNG of a giant would have to be unpacked
    whole.
    """
    return "tif" if place is not None or size[0] * size[1] > _LARGEST_PNG else "png"


def mask_path(output: Path, name: str, suffix: str = "png") -> Path:
    """Returns where a mask lies."""
    return output / "masks" / f"{name}.{suffix}"


def overlay_path(output: Path, done: Done) -> Path:
    """Returns where a picture's overlay lies: a JPEG, or a PNG where a side is too long for it."""
    suffix = "jpg" if max(reduced_size(done.size)) <= _JPEG_SIDE else "png"
    return output / "overlays" / f"{done.name}.{suffix}"


def output_path(output: Path, done: Done, name: str) -> Path:
    """Returns where an output of a picture lies."""
    if name == "masks":
        return mask_path(output, done.name, done.mask)
    if name == "overlays":
        return overlay_path(output, done)
    return output / name / f"{done.name}.{KINDS[name].suffixes[0]}"


def every_path(output: Path, name: str, kinds: Iterable[str] = FOLDERS) -> list[Path]:
    """Returns where all outputs of a name lie or would lie, in all their forms."""
    return [output / kind / f"{name}.{end}" for kind in kinds for end in KINDS[kind].suffixes]
