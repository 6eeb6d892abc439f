"""Tells by their content which annotation format a file or a folder is of, and reads it."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

from segdeform.errors import DataError
from segdeform.preparing.polygons.annotation import Annotations
from segdeform.preparing.polygons.coco import read_coco
from segdeform.preparing.polygons.cvat import read_cvat
from segdeform.preparing.polygons.label_studio import read_label_studio
from segdeform.preparing.polygons.labelme import looks_like_labelme, read_labelme
from segdeform.preparing.polygons.strict_json import read_bytes
from segdeform.preparing.polygons.yolo import looks_like_yolo, read_yolo

KNOWN = (
    "COCO (one JSON), LabelMe (JSON files), CVAT for images 1.1 (XML), Label Studio (JSON), "
    "YOLO segmentation (text files)"
)
_IMAGES, _ANNOTATIONS = re.compile(rb'"images"\s*:'), re.compile(rb'"annotations"\s*:')
_KEY = re.compile(rb'"([A-Za-z_]{1,40})"\s*:')
_ZIP = b"PK\x03\x04"
_END = 1 << 16  # bytes at either end of a file that are looked at to tell whether it is one


def holds_annotations(path: Path) -> bool:
    """Tells whether a file or a folder holds annotations, and not masks or lists of them.

    An archive counts, too: it is told to be unpacked where it is read. Cheap: of a folder, at most
    the ends of its JSON, XML and text files are looked at.
    """
    if path.is_file():
        text = _ends(path).lstrip(b"\xef\xbb\xbf\xff\xfe\x00 \t\r\n")
        return text[:1] in (b"{", b"[", b"<") or text.startswith(_ZIP)
    return path.is_dir() and bool(_labelme_files(path) or _single(path) or looks_like_yolo(path))


def read_annotations(path: Path) -> Annotations:
    """Reads an annotation file, or a folder of LabelMe's or YOLO's files, or with the one of it.

    Raises DataError for no known format, or naming the file and the item that is wrong, and
    UnsafeInputError for files that mean harm.
    """
    if path.is_file():
        return _read_file(path)
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder")
    if _labelme_files(path):
        return _read_labelme_folder(path)
    if single := _single(path):
        return _read_file(single)
    if looks_like_yolo(path):
        return read_yolo(path)
    raise DataError(f"{path}: holds no annotations of a known format: {KNOWN}")


def _read_file(path: Path) -> Annotations:
    content = read_bytes(path)
    first = content[:_END].lstrip()[:1]
    if first == b"<":
        return read_cvat(content, path)
    if first == b"[":
        return read_label_studio(content, path)
    if first == b"{" and looks_like_labelme(content):
        read = Annotations("LabelMe", path)
        read_labelme(content, path, PurePosixPath(path.name), read)
        return read
    if first == b"{" and _IMAGES.search(content) and _ANNOTATIONS.search(content):
        return read_coco(content, path)
    if content.startswith(_ZIP):
        raise DataError(f"{path}: is an archive; unpack it, and give the file or folder in it")
    raise DataError(f"{path}: holds no annotations of a known format: {KNOWN}")


def _read_labelme_folder(folder: Path) -> Annotations:
    read = Annotations("LabelMe", folder)
    others = []
    for path in _files(folder, "*.json"):
        content = read_bytes(path)
        if looks_like_labelme(content):
            inside = PurePosixPath(path.relative_to(folder).as_posix())
            read_labelme(content, path, inside, read)
        else:
            others.append(path)
    if others:
        read.notes.append(f"{len(others)} JSON files are not LabelMe's, and not read: {others[0]}")
    return read


def _labelme_files(folder: Path) -> bool:
    """Tells whether a folder holds LabelMe's files."""
    return any(looks_like_labelme(_ends(path)) for path in _files(folder, "*.json"))


def _single(folder: Path) -> Path | None:
    """Returns the one annotation file for many pictures that a folder holds at its top.

    Raises DataError where there are several.
    """
    files = [path for path in sorted(folder.glob("[!.]*.*")) if path.is_file()]
    found = [path for path in files if path.suffix.lower() in (".json", ".xml") and _is_one(path)]
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:4])
        raise DataError(f"{folder}: holds several annotation files ({names}); give one of them")
    return found[0] if found else None


def _is_one(path: Path) -> bool:
    ends = _ends(path).lstrip()
    if path.suffix.lower() == ".xml":
        return b"<annotations" in ends
    keys = {match.group(1) for match in _KEY.finditer(ends)}
    return bool(
        (ends[:1] == b"{" and keys & {b"images", b"annotations", b"categories"})
        or (ends[:1] == b"[" and keys & {b"annotations", b"completions", b"annotation_id"})
    )


def _files(folder: Path, pattern: str) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob(pattern)
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    )


def _ends(path: Path) -> bytes:
    """Returns the first and the last bytes of a file: keys stand before or behind long lists."""
    try:
        with path.open("rb") as file:
            head = file.read(_END)
            file.seek(max(file.seek(0, os.SEEK_END) - _END, len(head)))
            return head + file.read(_END)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
