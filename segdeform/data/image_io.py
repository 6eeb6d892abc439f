"""Reads and writes pictures and index masks: arrays of known shape and type, or a clean error.

Pictures become uint8 RGB, or the bands that are asked for. Masks stay what the file holds:
integers, one a pixel, never converted. Pillow decodes; what it would read wrong or not at all is
left to `bands` (TIFFs) and `depth`.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

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
    _imaging,
)

from segdeform.data.bands import BandsFile, channel_pages, frame_count, holds_bands
from segdeform.data.channels import Bands, band_samples, to_rgb, turned
from segdeform.data.depth import (
    Samples,
    ValueRange,
    as_stored,
    declared_white,
    is_one,
    ranges,
    stored_samples,
    to_8_bits,
)
from segdeform.data.label_files import IndexValues, index_colours, write_index_png_rows
from segdeform.data.unread import unread_kind
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
MAX_IN_WINDOWS = 2**40  # pixels of a TIFF, of which only parts are decoded
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
DAMAGE = (
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

# Damage is told of by our own lines: libtiff writes to stderr by itself, from any thread (Pillow
# ends its warnings, not its errors), and Pillow warns.
with suppress(AttributeError, OSError):  # a Pillow with a libtiff of its own inside
    ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

_IN_STRIPS = 2**24  # pixels, beyond which a mask is written without a copy of the whole
_EXIF_ORIENTATION = 0x0112
_PNG_KEYWORD = 80  # bytes, of a text with its end
_METADATA_KEYWORDS = (b"Raw profile type exif", b"XML:com.adobe.xmp")  # of texts in a PNG
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


_NATIVE = {"I;16BS": "I;16NS", "I;32BS": "I;32NS", "F;32BF": "F;32NF"}


class _Tiff(TiffImagePlugin.TiffImageFile):
    """A TIFF whose size is limited by `refuse_size` alone, as that of the other formats is.

    It is read and not mapped: Pillow takes a map for upright where the picture is turned. What
    libtiff unpacks has the machine's byte order, which Pillow knows of 16 bits without a sign only.
    """

    def load_read(self, count: int) -> bytes:
        assert self.fp is not None
        return self.fp.read(count)

    def load_prepare(self) -> None:
        if self.tile and self.tile[0].codec_name == "libtiff":
            tile = self.tile[0]
            raw, *others = tile.args if isinstance(tile.args, tuple) else (tile.args,)
            self.tile = [tile._replace(args=(_NATIVE.get(str(raw), raw), *others))]
        if self._im is None:
            self.im = _imaging.new(self.mode, self._tile_size)
        super().load_prepare()


class MaskKindError(DataError):
    """A picture that can be read, and is no index mask; `kind` says of which other kind it is."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind  # jpeg-mask, turned-mask, colour-mask or mask-kind


def read_image(
    path: Path, value_range: ValueRange | None = None, bands: Bands | None = None
) -> UInt8:
    """Reads the first frame of a picture as uint8 [H, W, 3] RGB, upright by its EXIF orientation.

    Grey, palette and CMYK pictures become RGB, of bands the first three are it, alpha is dropped.
    Of more than 8 bits a channel, `value_range` says which values become 0 and 255; without it, 0
    and the highest one that the file can hold (16-bit values are divided by 257).
    `bands` says which bands of the file become the channels, [H, W, C], counted from 0: those of a
    TIFF as stored; of others grey or red, green and blue, then alpha.
    Raises DataError (missing, unreadable, damaged, of no known format or range), BandsError,
    UnsafeInputError (more than 500 megapixels, or three bytes for each) or ResourceError.
    """
    with opened(path) as image:
        return pixels_of(image, path, value_range, bands)


def pixels_of(
    image: ImageFile.ImageFile,
    path: Path,
    value_range: ValueRange | None = None,
    bands: Bands | None = None,
) -> UInt8:
    """Decodes an opened picture; the rules and the errors are those of `read_image`."""
    if bands is None:
        return np.array(upright_rgb(image, path, value_range))
    samples = band_samples(image, path, bands)
    pixels = samples.values
    if samples.white != 255 or pixels.dtype != np.uint8:
        pixels = shown(samples, path, value_range)
    return np.ascontiguousarray(turned(pixels, orientation(image)))


def upright_rgb(
    image: ImageFile.ImageFile, path: Path, value_range: ValueRange | None = None
) -> Image.Image:
    """Decodes an opened picture; the rules and the errors are those of `read_image`."""
    samples = deep_samples(image, path)
    if samples is None:
        image.load()
        rgb = to_rgb(image)
    else:
        rgb = Image.fromarray(shown(samples, path, value_range)).convert("RGB")
    turn = UPRIGHT.get(orientation(image))  # asked now: Pillow turns TIFFs itself, while decoding
    return rgb if turn is None else rgb.transpose(turn)


def count_frames(path: Path, bands: Bands | None = None) -> int:
    """Counts the frames or pages of a picture, of which `read_image` reads the first."""
    try:
        with opened(path, in_windows=True) as image:
            frames = frame_count(image)
            return frames if bands is None else max(1, frames // channel_pages(image))
    except (DataError, UnsafeInputError):
        return 1  # what comes after the first one is damaged


def deep_samples(image: ImageFile.ImageFile, path: Path) -> Samples | None:
    """Decodes an opened picture of more than 8 bits a channel; None for any other."""
    if not isinstance(image, BandsFile):
        return stored_samples(image, path)
    return None if image.white == 255 else Samples(image.samples(), image.white)


def image_size(path: Path) -> tuple[int, int]:
    """Returns the (H, W) of the upright picture, from the header. Raises as `read_image` does.

    A TIFF may be larger than what is read whole.
    """
    with opened(path, in_windows=True) as image:
        return upright_size(image)


def upright_size(image: ImageFile.ImageFile) -> tuple[int, int]:
    """Returns the (H, W) of an opened picture that is not decoded yet, turned upright."""
    width, height = image.size
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # its own size may be turned already
        width, height = image.tag_v2[256], image.tag_v2[257]
    return (width, height) if orientation(image) >= 5 else (height, width)


def read_mask(path: Path) -> IndexValues:
    """Reads an index mask [H, W] exactly as stored: 8-bit grey or palette indices, or 16-bit grey.

    The values of a PGM are not stretched to its maximum either.
    Raises MaskKindError for whatever is no index mask (RGB, JPEG, 1-bit, turned by EXIF), and
    DataError, UnsafeInputError or ResourceError as `read_image` does.
    """
    with opened(path) as image:
        return index_values(image, path)


def index_values(image: ImageFile.ImageFile, path: Path) -> IndexValues:
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
    if isinstance(image, BandsFile):
        return _band_values(image, path)
    highest = declared_white(image)
    as_stored(image)
    image.load()
    if kind.startswith("I;16") or (kind == "I" and image.format == "PPM"):
        return _within(np.asarray(image).astype(np.uint16), highest, path)
    if kind not in ("L", "P") or stretch is None:
        raise MaskKindError(
            "colour-mask" if kind in _COLOUR_MODES else "mask-kind",
            f"{path}: is stored as {kind}; a mask holds one class index a pixel: "
            "8-bit grey, palette or 16-bit grey",
        )
    values = np.array(image)
    return values // np.uint8(stretch) if stretch > 1 else _within(values, highest, path)


def _band_values(image: BandsFile, path: Path) -> IndexValues:
    if image.bands == 1 and image.white is not None:
        values = image.samples()
        return values.astype(np.uint8) if values.dtype == np.uint8 else values.astype(np.uint16)
    raise MaskKindError(
        "colour-mask" if image.bands > 2 else "mask-kind",
        f"{path}: is stored as {image.bands} bands of {image.page.dtype}; a mask holds one class "
        "index a pixel: 8-bit grey, palette or 16-bit grey",
    )


def _within(values: IndexValues, highest: int, path: Path) -> IndexValues:
    if values.size and values.max() > highest:
        raise DataError(f"{path}: damaged: holds {values.max()}, and says at most {highest}")
    return values


def write_index_png(
    path: Path, labels: IndexValues, palette: Sequence[tuple[int, int, int]]
) -> None:
    """Writes labels [H, W]: uint8 as a palette PNG, uint16 as a grey one of 16 bits.

    The indices stay; of a palette PNG viewers show the colours, 255 (ignore) in a pale grey. The
    file appears whole or not at all. Raises ResourceError or UsageError when it cannot be written.
    """
    if labels.size > _IN_STRIPS:
        write_index_png_rows(path, labels, palette)
        return
    image = Image.fromarray(labels)
    if labels.dtype == np.uint8:
        image.putpalette(index_colours(palette).tobytes())
    _save(path, image, "PNG")


def write_image(path: Path, pixels: UInt8) -> None:
    """Writes uint8 [H, W, 3] RGB as JPEG (by suffix) or PNG; the file appears whole or not at all.

    As PNG also [H, W] grey and [H, W, 4] RGBA.

    Raises ResourceError or UsageError when it cannot be written.
    """
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if path.suffix.lower() in (".jpg", ".jpeg"):
        _save(path, image, "JPEG", quality=95, subsampling=0)
    else:
        _save(path, image, "PNG", compress_level=1)


@contextmanager
def opened(path: Path, *, in_windows: bool = False) -> Iterator[ImageFile.ImageFile]:
    """Lends a picture of a known format, not decoded yet; failures inside the block count as its.

    With `in_windows` a TIFF may be larger than what is decoded whole.
    Raises DataError, UnsafeInputError or ResourceError as `read_image` does.
    """
    with told_failures(path), open_file(path) as file:
        yield identified(path, file, in_windows)


def open_file(path: Path) -> BinaryIO:
    """Opens a regular file; a FIFO or device would block or never end. Raises DataError."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise DataError(f"{path}: not a regular file")
    return path.open("rb")


@contextmanager
def told_failures(path: Path) -> Iterator[None]:
    """Raises what a decoder raises inside the block as `read_image` does, with the file's name."""
    try:
        yield
    except SegdeformError:
        raise
    except Image.DecompressionBombError as error:
        raise UnsafeInputError(
            f"{path}: says that it is larger than is safe to decode ({_one_line(error)})"
        ) from error
    except MemoryError as error:
        raise ResourceError(f"{path}: not enough memory to decode it") from error
    except OSError as error:
        if error.errno in EXHAUSTED:
            raise ResourceError(f"{path}: {error.strerror}") from error
        if error.strerror:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        raise _damaged(path, error) from error  # Pillow's own words come without one
    except DAMAGE as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path}: damaged or cut short: restore the file, or save it anew (decoder: "
        f"{_one_line(error)})"
    )


def identified(path: Path, file: BinaryIO, in_windows: bool = False) -> ImageFile.ImageFile:
    """Opens a picture by its first bytes. Raises DataError, UnsafeInputError and as Pillow."""
    prefix = file.read(16)
    if not prefix:
        raise DataError(f"{path}: the file is empty")
    for format_name in _FORMATS:
        # Not Image.open: its pixel limit is one global number for the whole process.
        factory, accept = Image.OPEN[format_name]
        if accept is not None and accept(prefix) is True:
            file.seek(0)
            image = _open_tiff(path, file) if format_name == "TIFF" else factory(file, str(path))
            refuse_size(image, path, in_windows and format_name == "TIFF")
            return image
    kind = unread_kind(path)
    more = f"; {kind.name}: {kind.advice}" if kind else ""
    raise DataError(f"{path}: not a picture of a known format ({', '.join(_FORMATS)}){more}")


def refuse_size(image: ImageFile.ImageFile, path: Path, in_windows: bool = False) -> None:
    """Raises UnsafeInputError or DataError for a picture of too many or no pixels."""
    (width, height), limit = image.size, MAX_IN_WINDOWS if in_windows else MAX_PIXELS
    if width * height > limit:
        raise UnsafeInputError(
            f"{path}: {width}x{height} pixels are over the limit of {limit // 10**6} megapixels"
        )
    if width < 1 or height < 1:
        raise DataError(f"{path}: the picture is empty ({width}x{height} pixels)")


def _open_tiff(path: Path, file: Any) -> ImageFile.ImageFile:
    """Opens a TIFF by Pillow, or by tifffile where Pillow would read it wrong or not at all."""
    try:
        image: ImageFile.ImageFile = _Tiff(file, str(path))
        if isinstance(image, TiffImagePlugin.TiffImageFile) and not holds_bands(image):
            return image
    except (OSError, *DAMAGE):  # layouts that it does not know look like damage, too
        pass
    file.seek(0)
    bands = BandsFile(file, str(path))
    bands.refuse_unknown(path)
    return bands


def orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation, 1 (upright) to 8; any other value means nothing: 1."""
    try:
        turn = int(_exif(image).get(_EXIF_ORIENTATION, 1))
    except DAMAGE:
        return 1  # broken metadata does not make a good picture unreadable
    return turn if 1 <= turn <= 8 else 1


def _exif(image: Image.Image) -> Image.Exif:
    """Returns the metadata of a picture that stays as it is: not decoded, if it was not."""
    if isinstance(image, PngImagePlugin.PngImageFile) and image.tile and image.fp is not None:
        # Pillow decodes a PNG to see what stands behind its pixels.
        if not _has_metadata_behind(image.fp.fileno()):
            return Image.Image.getexif(image)
        with PngImagePlugin.PngImageFile(str(image.filename)) as other:
            return other.getexif()
    return image.getexif()


def _has_metadata_behind(descriptor: int) -> bool:
    """Tells whether a PNG has EXIF or XMP behind its pixels, by the heads of its chunks."""
    at, behind = 8, False
    while len(head := os.pread(descriptor, 8 + _PNG_KEYWORD, at)) >= 8:
        kind, keyword = head[4:8], head[8:].split(b"\0")[0]
        if kind == b"IEND":
            return False
        if behind and (kind == b"eXIf" or keyword in _METADATA_KEYWORDS):
            return True
        behind = behind or kind == b"IDAT"
        at += 12 + int.from_bytes(head[:4])
    return False


def _stored_as(image: ImageFile.ImageFile) -> str:
    arguments = image.tile[0].args if image.tile else image.mode
    return str(arguments if isinstance(arguments, str) else (arguments or [image.mode])[0])


def shown(samples: Samples, path: Path, value_range: ValueRange | None) -> UInt8:
    """Makes 8 bits of stored values, [H, W] or [H, W, C]. Raises DataError as `read_image` does."""
    values, white = samples
    if value_range is None and white is None:
        raise DataError(
            f"{path}: values of {values.dtype} have no known range; write "
            "value_range: [lowest, highest] into the data YAML, give predict --value-range "
            "LOW,HIGH, or save it with 8 or 16 bits"
        )
    each = ranges(value_range or (0, white or 65535), values.shape[2] if values.ndim == 3 else 1)
    if each is None:
        count = values.shape[2] if values.ndim == 3 else 1
        raise DataError(f"{path}: value_range has not one range for each of its {count} channels")
    if value_range is None or is_one(value_range):
        return to_8_bits(values, *each[0])
    planes = values if values.ndim == 3 else values[..., None]
    shown = [to_8_bits(planes[..., channel], *span) for channel, span in enumerate(each)]
    return np.stack(shown, axis=2).reshape(values.shape)


def _save(path: Path, image: Image.Image, format_name: str, **options: int) -> None:
    with atomic_path(path) as temporary:
        image.save(temporary, format_name, **options)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
