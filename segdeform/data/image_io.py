"""Reads and writes pictures and index masks: arrays of known shape and type, or a clean error.

Pictures become uint8 RGB. Masks stay what the file holds: integers, one a pixel, never converted.
"""

from __future__ import annotations

import stat
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from segdeform.errors import (
    EXHAUSTED,
    DataError,
    ResourceError,
    SegdeformError,
    UnsafeInputError,
)
from segdeform.files.atomic import atomic_path

UInt8 = npt.NDArray[np.uint8]

MAX_PIXELS = 500_000_000
PICTURE_SUFFIXES = frozenset(
    """.jpg .jpeg .jpe .jfif .mpo .png .apng .webp .bmp .tif .tiff .gif .ppm .pgm .pbm
    .pnm""".split()  # noqa: SIM905, a list would take a page
)
LOSSY_SUFFIXES = frozenset((".jpg", ".jpeg", ".webp"))  # no mask survives them
MASK_SUFFIXES = frozenset((".png", ".tif", ".tiff", ".bmp", ".gif", ".pgm"))

# The only decoders that ever see a byte of an input; a JPEG may turn out to be an MPO.
_PLUGINS = (
    JpegImagePlugin.JpegImageFile,
    PngImagePlugin.PngImageFile,
    WebPImagePlugin.WebPImageFile,
    TiffImagePlugin.TiffImageFile,
    BmpImagePlugin.BmpImageFile,
    GifImagePlugin.GifImageFile,
    PpmImagePlugin.PpmImageFile,
)
_FORMATS = tuple(plugin.format for plugin in _PLUGINS)

# What Pillow's decoders raise for damaged files, beside their own OSErrors.
_DAMAGE = (
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    EOFError,
    NotImplementedError,
    struct.error,
    zlib.error,
)

_EXIF_ORIENTATION = 0x0112
# What turns the stored pixels of each EXIF orientation upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_COLOUR_MODES = frozenset(("RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"))
# Grey of 2 or 4 bits is stretched to 0..255 on decoding; these factors undo that exactly.
_STRETCH = {"L": 1, "L;4": 17, "L;2": 85}


class MaskKindError(DataError):
    """A picture that can be read, and is no index mask; `kind` says of which other kind it is."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind  # jpeg-mask, turned-mask, colour-mask or mask-kind


def read_image(path: Path) -> UInt8:
    """Reads the first frame of a picture as uint8 [H, W, 3] RGB, upright by its EXIF orientation.

    Grey, palette and CMYK pictures become RGB, alpha is dropped, 16-bit values are divided by 257.
    Raises DataError (missing, unreadable, damaged, of no known format), UnsafeInputError (more than
    500 megapixels) or ResourceError.
    """
    with opened(path) as image:
        return np.array(upright_rgb(image, path))


def upright_rgb(image: ImageFile.ImageFile, path: Path) -> Image.Image:
    """Decodes an opened picture; the rules and the errors are those of `read_image`."""
    image.load()
    turn = UPRIGHT.get(orientation(image))
    rgb = _to_rgb(image, path)
    return rgb if turn is None else rgb.transpose(turn)


def image_size(path: Path) -> tuple[int, int]:
    """Returns the (H, W) that `read_image` would give, from the header. Raises as it does."""
    with opened(path) as image:
        width, height = image.size
        return (width, height) if orientation(image) >= 5 else (height, width)


def read_mask(path: Path) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
    """Reads an index mask [H, W] exactly as stored: 8-bit grey or palette indices, or 16-bit grey.

    Raises MaskKindError for whatever is no index mask (RGB, JPEG, 1-bit, turned by EXIF), and
    DataError, UnsafeInputError or ResourceError as `read_image` does.
    """
    with opened(path) as image:
        return index_values(image, path)


def index_values(
    image: ImageFile.ImageFile, path: Path
) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
    """Decodes an opened mask, [H, W]; the rules and the errors are those of `read_mask`."""
    if image.format in ("JPEG", "MPO"):
        raise MaskKindError(
            "jpeg-mask",
            f"{path}: a JPEG cannot be a mask, it blurs the class indices; use PNG",
        )
    kind = image.mode
    stretch = 1 if kind == "P" or image.format == "GIF" else _STRETCH.get(_stored_as(image))
    if orientation(image) != 1:
        raise MaskKindError(
            "turned-mask", f"{path}: a mask with an EXIF orientation is ambiguous; save it upright"
        )
    image.load()
    if kind.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if kind not in ("L", "P") or stretch is None:
        raise MaskKindError(
            "colour-mask" if kind in _COLOUR_MODES else "mask-kind",
            f"{path}: is stored as {kind}; a mask holds one class index a pixel: "
            "8-bit grey, palette or 16-bit grey",
        )
    values = np.array(image)
    return values if stretch == 1 else values // np.uint8(stretch)


def write_index_png(path: Path, labels: UInt8, palette: Sequence[tuple[int, int, int]]) -> None:
    """Writes labels uint8 [H, W] as a palette PNG: the indices stay, viewers show the colours.

    Index 255 (ignore) is shown in a pale grey. The file appears whole or not at all.
    Raises ResourceError or UsageError when it cannot be written.
    """
    colors = np.full((256, 3), 224, np.uint8)
    colors[: len(palette)] = palette
    image = Image.fromarray(labels)
    image.putpalette(colors.tobytes())
    _save(path, image, "PNG")


def write_image(path: Path, pixels: UInt8) -> None:
    """Writes uint8 [H, W, 3] RGB as JPEG (by suffix) or PNG; the file appears whole or not at all.

    Raises ResourceError or UsageError when it cannot be written.
    """
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if path.suffix.lower() in (".jpg", ".jpeg"):
        _save(path, image, "JPEG", quality=95, subsampling=0)
    else:
        _save(path, image, "PNG", compress_level=3)


@contextmanager
def opened(path: Path) -> Iterator[ImageFile.ImageFile]:
    """Lends a picture of a known format, not decoded yet; failures inside the block count as its.

    Raises DataError, UnsafeInputError or ResourceError as `read_image` does.
    """
    try:
        # A FIFO or device would block or never end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError(f"{path}: not a regular file")
        with path.open("rb") as file:
            yield _identify(path, file)
    except SegdeformError:
        raise
    except Image.DecompressionBombError as error:
        raise UnsafeInputError(f"{path}: {_one_line(error)}") from error
    except MemoryError as error:
        raise ResourceError(f"{path}: not enough memory to decode it") from error
    except OSError as error:
        if error.errno in EXHAUSTED:
            raise ResourceError(f"{path}: {error.strerror}") from error
        raise DataError(f"{path}: cannot be read: {error.strerror or _one_line(error)}") from error
    except _DAMAGE as error:
        raise DataError(f"{path}: damaged: {_one_line(error)}") from error


def _identify(path: Path, file: Any) -> ImageFile.ImageFile:
    prefix = file.read(16)
    if not prefix:
        raise DataError(f"{path}: the file is empty")
    for format_name in _FORMATS:
        # Not Image.open: its pixel limit is one global number for the whole process.
        factory, accept = Image.OPEN[format_name]
        if accept is not None and accept(prefix) is True:
            file.seek(0)
            image = factory(file, str(path))
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise UnsafeInputError(
                    f"{path}: {width}x{height} pixels are over the limit of 500 megapixels"
                )
            if width < 1 or height < 1:
                raise DataError(f"{path}: the picture is empty ({width}x{height} pixels)")
            return image
    raise DataError(f"{path}: not a picture of a known format ({', '.join(_FORMATS)})")


def orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation, 1 (upright) to 8."""
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except _DAMAGE:
        return 1  # broken metadata does not make a good picture unreadable


def _stored_as(image: ImageFile.ImageFile) -> str:
    arguments = image.tile[0].args if image.tile else image.mode
    return str(arguments if isinstance(arguments, str) else (arguments or [image.mode])[0])


def _to_rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(f"{path}: 32-bit values have no known range; save it with 8 or 16 bits")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise DataError(f"{path}: floating-point values have no known range; save it with 8 bits")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _save(path: Path, image: Image.Image, format_name: str, **options: int) -> None:
    with atomic_path(path) as temporary:
        image.save(temporary, format_name, **options)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
