"""What one file is, whatever the classes are: the part of a check that reads, and is remembered."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageFile

from segdeform.data.bands import (
    BandsFile,
    channel_pages,
    frame_count,
    is_georeferenced,
    unread_bands,
)
from segdeform.data.channels import (
    Bands,
    BandsError,
    band_samples,
    refuse_bands,
)
from segdeform.data.dataset import Mask
from segdeform.data.depth import Samples
from segdeform.data.image_io import (
    MaskKindError,
    UInt8,
    deep_samples,
    index_values,
    opened,
    orientation,
    read_mask,
    upright_rgb,
    upright_size,
)
from segdeform.errors import DataError, UnsafeInputError

_MAX_COLOURS = 256  # of a colour mask; one with more shows no classes
_MAX_VALUES = 10_000  # of a 16-bit mask, the lowest: more than any picture shows classes

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Facts:
    """What a picture or mask file holds; `problem` is None where it can be used."""

    height: int = 0
    width: int = 0  # of pictures upright, of masks as stored
    problem: str | None = None  # a kind of finding
    text: str = ""  # of the problem; one line that names the file
    orientation: int = 1  # EXIF
    frames: int = 1
    digest: str = ""  # of a picture's decoded pixels
    doubt: str = ""  # of a JPEG: what libjpeg says of damage that it passes over
    # Of a picture of more than 8 bits: the lowest and highest value of each channel, and the one
    # that would be white (None: nobody knows).
    spans: tuple[tuple[float, float], ...] = ()
    white: int | None = None
    # Of a picture read as RGB or grey: how many bands it has and are read, where these differ.
    bands: tuple[int, int] | None = None
    georeferenced: bool = False
    plain: bool = False  # of a mask of another kind: it holds whole numbers nevertheless
    # Of a mask: value -> number of pixels and place of the first one, row by row.
    values: dict[int, tuple[int, int]] = field(default_factory=dict)
    # Of a palette mask: value -> the colour that viewers show. Of a colour mask: 0, 1, ... -> its
    # colours, where they are few.
    colours: dict[int, Colour] = field(default_factory=dict)


def picture_facts(path: Path, bands: Bands | None = None) -> Facts:
    """Decodes a picture, or these bands of it. JPEGs are decoded at an eighth of their size: every
    byte of the file is read, and damage found, in half the time. Raises ResourceError."""
    try:
        with opened(path) as image:
            # Asked for first: decoding closes what holds further frames, and turns TIFFs.
            facts = Facts(
                *upright_size(image),
                orientation=orientation(image),
                frames=max(1, frame_count(image) // channel_pages(image)),
                bands=unread_bands(image) if bands is None else None,
                georeferenced=is_georeferenced(image),
            )
            image.seek(0)
            if image.format == "JPEG":
                refuse_bands(path, bands or (0,), 1 if image.mode == "L" else 3)
                return _jpeg_facts(facts, image, path.read_bytes())
            if bands is not None:
                return _band_facts(facts, image, path, bands)
            samples = deep_samples(image, path)
            if samples is not None:
                return _deep_facts(facts, samples)
            rgb = upright_rgb(image, path)
            return replace(facts, digest=_digest(f"{image.mode} {rgb.size}", rgb.tobytes()))
    except (DataError, UnsafeInputError) as error:
        return _failure(error)


def _band_facts(facts: Facts, image: ImageFile.ImageFile, path: Path, bands: Bands) -> Facts:
    samples = band_samples(image, path, bands)
    if samples.white != 255 or samples.values.dtype != np.uint8:
        return _deep_facts(facts, samples)
    return replace(facts, digest=_digest(f"{samples.values.shape}", samples.values.tobytes()))


def _jpeg_facts(facts: Facts, image: ImageFile.ImageFile, content: bytes) -> Facts:
    """Decodes strictly, then as Pillow does, which goes on after what libjpeg calls corrupt."""
    width, height = max(1, image.width // 8), max(1, image.height // 8)
    try:
        pixels = _decoded_jpeg(content, height, width, strict=True)
        return replace(facts, digest=_digest(f"JPEG {pixels.shape}", pixels.tobytes()))
    except ValueError as error:
        doubt = str(error)
    image.draft(None, (width, height))
    image.load()
    try:
        _decoded_jpeg(content, height, width, strict=False)
    except ValueError:  # a kind that this decoder does not know: its words are not of damage
        doubt = ""
    digest = _digest(f"{image.mode} {image.size}", image.tobytes())
    return replace(facts, digest=digest, doubt=" ".join(doubt.split()))


def _decoded_jpeg(content: bytes, height: int, width: int, strict: bool) -> UInt8:
    pixels = simplejpeg.decode_jpeg(content, min_height=height, min_width=width, strict=strict)
    return np.asarray(pixels)


def _deep_facts(facts: Facts, samples: Samples) -> Facts:
    values = samples.values
    planes = values[..., None] if values.ndim == 2 else values
    spans = tuple(_span(planes[..., channel]) for channel in range(planes.shape[2]))
    digest = _digest(f"{values.dtype.str} {values.shape}", values.tobytes())
    return replace(facts, digest=digest, spans=spans, white=samples.white)


def _span(values: npt.NDArray[Any]) -> tuple[float, float]:
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


def _digest(head: str, content: bytes) -> str:
    digest = hashlib.sha256(head.encode())
    digest.update(content)
    return digest.hexdigest()[:32]


def mask_facts(path: Path, decode: Callable[[Path], npt.NDArray[np.integer]] = read_mask) -> Facts:
    """Decodes a mask and counts its values. `decode` is the data set's; Raises ResourceError."""
    try:
        if decode is not read_mask:
            return index_facts(decode(path))
        with opened(path) as image:
            # Asked for first: decoding closes what holds further frames.
            frames = frame_count(image)
            image.seek(0)
            values = index_values(image, path)
            return index_facts(values, _palette(image), frames)
    except MaskKindError as error:
        return _other_kind(path, error)
    except (DataError, UnsafeInputError) as error:
        return _failure(error)


def colours_of(image: Image.Image) -> dict[int, Colour]:
    """Returns the distinct colours of a picture, numbered; none where there are more than 256."""
    counted = image.convert("RGB").getcolors(_MAX_COLOURS) or []
    colours = sorted(colour for _, colour in counted if isinstance(colour, tuple))
    return dict(enumerate((red, green, blue) for red, green, blue in colours))


def _failure(error: DataError | UnsafeInputError) -> Facts:
    kind = "unsafe" if isinstance(error, UnsafeInputError) else "unreadable"
    return Facts(problem="bands" if isinstance(error, BandsError) else kind, text=str(error))


def _other_kind(path: Path, error: MaskKindError) -> Facts:
    """Looks at a mask that is no index mask: could its size or its colours help to repair it?"""
    try:
        with opened(path) as image:
            width, height = image.size
            turn = orientation(image)
            colours = colours_of(image) if error.kind == "colour-mask" else {}
            blurred = image.format in ("JPEG", "MPO", "WEBP")  # WebP unless told not to
            plain = not blurred and plain_values(image) is not None
    except (DataError, UnsafeInputError) as damage:
        return _failure(damage)
    return Facts(
        height, width, error.kind, str(error), orientation=turn, colours=colours, plain=plain
    )


def plain_values(image: Image.Image) -> Mask | None:
    """Returns the values [H, W] of a mask of another kind, None where they are no whole numbers."""
    if isinstance(image, BandsFile):
        return _whole_numbers(image.samples()) if image.bands < 3 else None
    image.load()
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8)
    if image.mode in ("LA", "La"):
        return np.asarray(image.getchannel(0))
    if image.mode == "PA":
        return np.asarray(image)[..., 0] if np.asarray(image).ndim == 3 else np.asarray(image)
    if image.mode in ("I", "F"):
        return _whole_numbers(np.asarray(image))
    return np.asarray(image) if image.mode in ("L", "P") else None


def _whole_numbers(values: npt.NDArray[Any]) -> Mask | None:
    # NaN fails every comparison, so that it is refused too.
    whole = (values >= 0) & (values < 1 << 16) & (values == np.floor(values))
    return values.astype(np.uint16) if whole.all() else None


def index_facts(
    values: npt.NDArray[np.integer], palette: list[int] | None = None, frames: int = 1
) -> Facts:
    """Counts the values of a mask [H, W]; `palette` is that of a palette mask."""
    flat = np.ascontiguousarray(values).ravel()
    counts = np.bincount(flat)
    present = [int(value) for value in np.flatnonzero(counts)][:_MAX_VALUES]
    first = _first_places(flat, present)
    found = {value: (int(counts[value]), first[value]) for value in present}
    colours = {}
    if palette is not None:
        for value in present:
            red, green, blue = (*palette[3 * value : 3 * value + 3], 0, 0, 0)[:3]
            colours[value] = (red, green, blue)
    height, width = values.shape
    return Facts(height, width, values=found, colours=colours, frames=frames)


def _first_places(flat: npt.NDArray[np.integer], present: list[int]) -> dict[int, int]:
    """Returns the place of the first pixel of each value."""
    if flat.dtype == np.uint8:
        # Searching the bytes stops at the first hit, where comparing the arrays would go on.
        content = flat.tobytes()
        return {value: content.find(value) for value in present}
    # Of many values, one pass for all of them: of equal ones, what is written last stays.
    first = np.zeros(int(flat.max(initial=0)) + 1, np.int64)
    first[flat[::-1]] = np.arange(flat.size - 1, -1, -1)
    return {value: int(first[value]) for value in present}


def _palette(image: ImageFile.ImageFile) -> list[int] | None:
    return image.getpalette("RGB") if image.mode == "P" else None
