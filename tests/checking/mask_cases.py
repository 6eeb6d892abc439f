"""Masks as people have them: each case writes one, and says what a check must make of it."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from cityscapesscripts.helpers.labels import labels
from PIL import Image, PngImagePlugin

Labels = npt.NDArray[np.uint8]

H, W = 9, 12
NAMES = ["sky", "road", "car", "tree", "sign"]  # 5 classes
COLOURS = [[10, 20, 30], [200, 0, 0], [0, 200, 0], [0, 0, 200], [250, 250, 0]]
TRUTH = (np.arange(H * W).reshape(H, W) % 7 % 5).astype(np.uint8)
VOID = TRUTH.copy()
VOID[2:4, 3:7] = 255


@dataclass(frozen=True)
class Case:
    """`write` puts the mask of picture b into a folder; good are those that give `labels`."""

    name: str
    write: Callable[[Path], object]
    kind: str | None = None  # of the finding that names the mask; None: it is good
    labels: Labels | None = None
    code: int = 0
    alone: bool = False  # without a good pair beside it
    classes: dict[str, Any] | None = None  # instead of NAMES
    turn: int = 1  # EXIF orientation of the picture
    warned: str | None = None  # a kind of warning or note


def _good(name: str, write: Callable[[Path], object], labels: Labels = TRUTH, **more: Any) -> Case:
    return Case(name, write, labels=labels, **more)


def _bad(name: str, kind: str, write: Callable[[Path], object], **more: Any) -> Case:
    return Case(name, write, kind, code=more.pop("code", 4), **more)


def _save(
    values: npt.NDArray[Any], mode: str | None = None, name: str = "b.png", **options: Any
) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        image = Image.fromarray(values)
        (image.convert(mode) if mode else image).save(folder / name, **options)

    return write


def _pgm(highest: int) -> bytes:
    values = TRUTH.astype(np.uint8 if highest < 256 else ">u2")
    return b"P5 %d %d %d\n" % (W, H, highest) + values.tobytes()


def _palette(
    values: npt.NDArray[Any],
    colours: list[list[int]] = COLOURS,
    name: str = "b.png",
    **options: Any,
) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        image = Image.fromarray(values)
        image.putpalette([channel for colour in colours for channel in colour])
        image.save(folder / name, **options)

    return write


def _bytes(content: Callable[[], bytes], name: str = "b.png") -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content())


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png(depth: int, colour: int, interlaced: bool, rows: bytes, size: tuple[int, int]) -> bytes:
    header = struct.pack(">IIBBBBB", size[1], size[0], depth, colour, 0, 0, int(interlaced))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (_chunk(b"IHDR", header), _chunk(b"IDAT", zlib.compress(rows)), _chunk(b"IEND", b""))
    )


def _packed(values: Labels, depth: int) -> bytes:
    """Packs grey values as rows of a PNG, as its specification says."""
    rows = bytearray()
    for row in values:
        bits = "".join(f"{value:0{depth}b}" for value in row)
        bits += "0" * (-len(bits) % 8)
        rows += bytes([0, *(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))])
    return bytes(rows)


def _adam7(values: Labels) -> bytes:
    """Orders the pixels in the seven passes of an interlaced PNG."""
    rows = bytearray()
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2))
    for top, left, down, right in (*passes, (1, 0, 2, 1)):
        part = values[top::down, left::right]
        for row in part if part.size else ():
            rows += bytes([0, *row.tolist()])
    return bytes(rows)


def _exif(turn: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = turn
    return exif


def _frames(folder: Path, name: str, **options: Any) -> None:
    first, second = Image.fromarray(TRUTH), Image.fromarray(TRUTH[::-1].copy())
    first.save(folder / name, save_all=True, append_images=[second], **options)


def _coloured(values: Labels) -> Image.Image:
    return Image.fromarray(np.array(COLOURS, np.uint8)[values])


def _cut(share: float, kind: str) -> Callable[[], bytes]:
    whole = _encoded(Image.fromarray(TRUTH), kind)
    return lambda: whole[: int(len(whole) * share)]


def _broken_sum() -> bytes:
    content = bytearray(_encoded(Image.fromarray(TRUTH), "PNG"))
    content[content.index(b"IDAT") + 8] ^= 0x55
    return bytes(content)


def _links(folder: Path, target: str | Path) -> None:
    (folder / "b.png").symlink_to(target)


def _with_target(folder: Path) -> None:
    other = folder.parent / "elsewhere.png"
    Image.fromarray(TRUTH).save(other)
    _links(folder, other)


def _void_as(value: int, dtype: type = np.uint8) -> npt.NDArray[Any]:
    return np.where(VOID == 255, dtype(value), VOID.astype(dtype))


def _twice(folder: Path) -> None:
    Image.fromarray(TRUTH).save(folder / "b.png")
    Image.fromarray(TRUTH).save(folder / "b.tif")


def _text_chunk() -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "drawn by hand", zip=True)
    return info


_WHITE = np.where(TRUTH > 1, 255, 0).astype(np.uint8)
_BITS = (TRUTH > 1).astype(np.uint8)
_DEEP = TRUTH.astype(np.uint16)
_TWO = {"names": ["no", "yes"]}
_MAPPED = {"names": NAMES, "label_mapping": {v: v // 100 for v in (0, 100, 200, 300, 400)}}
_CITY = {
    "names": [label.name for label in sorted(labels, key=lambda label: label.trainId)
              if 0 <= label.trainId < 255]
}  # fmt: skip
_ORGANS = {"names": [f"organ{index}" for index in range(19)]}
_STRAY = np.where(np.arange(H * W).reshape(H, W) == 50, 25, TRUTH).astype(np.uint8)
_OWN = {"names": NAMES, "palette": COLOURS}
_LABEL_IDS = np.array([7, 8, 11, 26, 33], np.uint8)[TRUTH]
_SHUFFLED = [COLOURS[index] for index in (3, 0, 4, 1, 2)]

GOOD = [
    _good("grey png", _save(TRUTH)),
    _good("grey png with void", _save(VOID), VOID),
    _good("palette png", _palette(TRUTH)),
    _good("palette png of 4 bits", _palette(TRUTH, bits=4)),
    _good("palette png of 2 bits", _palette(TRUTH % 4, bits=2), TRUTH % 4),
    _good("palette png of 1 bit", _palette(_BITS, bits=1), _BITS),
    _good("palette png all black", _palette(TRUTH, [[0, 0, 0]] * 256)),
    _good("palette png, own palette", _palette(TRUTH), classes=_OWN),
    _good("palette png, its void coloured", _palette(VOID, [*COLOURS, *[[9, 9, 9]] * 251]), VOID),
    _good("grey png of 2 bits", _bytes(lambda: _png(2, 0, False, _packed(TRUTH % 4, 2), (H, W))),
          TRUTH % 4),
    _good("grey png of 4 bits", _bytes(lambda: _png(4, 0, False, _packed(TRUTH, 4), (H, W)))),
    _good("interlaced png", _bytes(lambda: _png(8, 0, True, _adam7(TRUTH), (H, W)))),
    _good("png with a transparent grey", _save(TRUTH, transparency=2)),
    _good("palette png with transparency", _palette(TRUTH, transparency=b"\x00\x80\xff")),
    _good("png with text and ICC profile", _save(TRUTH, pnginfo=_text_chunk(), icc_profile=b"x")),
    _good("png with a density", _save(TRUTH, dpi=(300, 300))),
    _good("png, EXIF upright", _save(TRUTH, exif=_exif(1))),
    _good("16-bit png", _save(_DEEP)),
    _good("16-bit png with void", _save(VOID.astype(np.uint16)), VOID),
    _good("16-bit png of mapped values", _save(_DEEP * 100), classes=_MAPPED),
    _good("big-endian 16-bit tiff", _save(_DEEP.astype(">u2"), name="b.tif")),
    _good("16-bit tiff", _save(_DEEP, name="b.tif")),
    _good("grey tiff", _save(TRUTH, name="b.tif")),
    _good("lzw tiff", _save(TRUTH, name="b.tiff", compression="tiff_lzw")),
    _good("deflate tiff", _save(TRUTH, name="b.tif", compression="tiff_adobe_deflate")),
    _good("packbits tiff", _save(TRUTH, name="b.tif", compression="packbits")),
    _good("palette tiff", _palette(TRUTH, name="b.tif")),
    _good("grey bmp", _save(TRUTH, name="b.bmp")),
    _good("palette bmp", _palette(TRUTH, name="b.bmp")),
    _good("palette gif", _palette(TRUTH, name="b.gif", optimize=False)),
    _good("interlaced gif", _palette(TRUTH, name="b.gif", interlace=True, optimize=False)),
    _good("pgm", _save(TRUTH, name="b.pgm")),
    _good("16-bit pgm", _save(_DEEP.astype(np.int32), name="b.pgm")),
    _good("pgm of a low maximum", _bytes(lambda: _pgm(20), "b.pgm")),
    _good("pgm of a middle maximum", _bytes(lambda: _pgm(1000), "b.pgm")),
    _good("png in capitals", _save(TRUTH, name="b.PNG")),
    _good("png named tif", _bytes(lambda: _encoded(Image.fromarray(TRUTH), "PNG"), "b.tif")),
    _good("link to a mask", _with_target),
    _good("void of another number, declared", _save(_void_as(77)),
          VOID, classes={"names": NAMES, "void_id": 77}),
    _good("1 to K, mapped", _save(TRUTH + 1),
          classes={"names": NAMES, "label_mapping": {v + 1: v for v in range(5)}}, alone=True),
    _good("0 and 255, mapped", _save(_WHITE), _BITS,
          classes={**_TWO, "label_mapping": {0: 0, 255: 1}}, alone=True),
    _good("animated png", lambda folder: _frames(folder, "b.png"), warned="animated-mask"),
    _good("tiff of two pages", lambda folder: _frames(folder, "b.tif"), warned="animated-mask"),
    _good("all void", _save(np.full((H, W), 255, np.uint8)), np.full((H, W), 255, np.uint8),
          warned="void-mask"),
    _good("upright mask of a turned picture", _save(TRUTH), turn=6, warned="turned-picture"),
]  # fmt: skip
BAD = [
    _bad("1-bit png", "mask-kind", _save(_WHITE, "1")),
    _bad("1-bit tiff", "mask-kind", _save(_WHITE, "1", "b.tif")),
    _bad("1-bit bmp", "mask-kind", _save(_WHITE, "1", "b.bmp")),
    _bad("grey and alpha", "mask-kind", _save(TRUTH, "LA")),
    _bad("rgb png", "colour-mask", lambda folder: _coloured(TRUTH).save(folder / "b.png")),
    _bad("rgba png", "colour-mask", _save(TRUTH, "RGBA")),
    _bad("grey rgb png", "colour-mask", _save(TRUTH, "RGB")),
    _bad("rgb bmp", "colour-mask", _save(TRUTH, "RGB", "b.bmp")),
    _bad("rgb tiff", "colour-mask", _save(TRUTH, "RGB", "b.tif")),
    _bad("cmyk tiff", "colour-mask", _save(TRUTH, "CMYK", "b.tif")),
    _bad("ycbcr tiff", "colour-mask",
         lambda folder: _coloured(TRUTH).convert("YCbCr").save(folder / "b.tif")),
    _bad("lab tiff", "colour-mask",
         lambda folder: Image.new("LAB", (W, H)).save(folder / "b.tif")),
    _bad("32-bit tiff", "mask-kind", _save(TRUTH.astype(np.int32), name="b.tif")),
    _bad("float tiff", "mask-kind", _save(TRUTH.astype(np.float32), name="b.tif")),
    _bad("webp named png", "colour-mask",
         _bytes(lambda: _encoded(Image.fromarray(TRUTH), "WEBP", lossless=True))),
    _bad("webp", "jpeg-mask", _save(TRUTH, name="b.webp", lossless=True)),
    _bad("jpeg named png", "jpeg-mask", _bytes(lambda: _encoded(Image.fromarray(TRUTH), "JPEG"))),
    _bad("cmyk jpeg named png", "jpeg-mask",
         _bytes(lambda: _encoded(Image.fromarray(TRUTH).convert("CMYK"), "JPEG"))),
    _bad("jpeg", "jpeg-mask", _save(TRUTH, name="b.jpg")),
    _bad("0 and 255", "binary", _save(_WHITE), classes=_TWO, alone=True),
    _bad("0 and 255 in a palette", "binary", _palette(_WHITE, [[0, 0, 0]] * 256), classes=_TWO,
         alone=True),
    _bad("0 and 1 as 0 and 128", "binary", _save(_BITS * np.uint8(128)), classes=_TWO, alone=True),
    _bad("1 to K", "off-by-one", _save(TRUTH + 1), alone=True),
    _bad("1 to K with void", "off-by-one", _save(np.where(VOID == 255, VOID, TRUTH + 1)),
         alone=True),
    _bad("one value K", "label-outside", _save(np.where(TRUTH == 4, 5, TRUTH).astype(np.uint8))),
    _bad("one pixel of 254", "label-outside",
         _save(np.where(np.arange(H * W).reshape(H, W) == 50, 254, TRUTH).astype(np.uint8))),
    _bad("void of another number", "label-outside",
         _save(_void_as(200))),
    _bad("label ids", "label-ids", _save(_LABEL_IDS), classes=_CITY, alone=True),
    _bad("label ids, other names", "label-outside", _save(_LABEL_IDS), classes=_ORGANS,
         alone=True),
    _bad("stray 25 of 19 classes", "label-outside", _save(_STRAY), classes=_ORGANS),
    _bad("stray 25 of train ids", "label-outside", _save(_STRAY), classes=_CITY),
    _bad("16-bit labels over 255", "label-outside", _save(_DEEP * 300)),
    _bad("16-bit label 65535", "label-outside", _save(_void_as(65535, np.uint16))),
    _bad("values stretched to 255", "label-outside", _save(TRUTH * np.uint8(51))),
    _bad("a value that the mapping lacks", "label-outside", _save(TRUTH), classes=_MAPPED),
    _bad("another palette's numbers", "palette", _palette(TRUTH, _SHUFFLED), classes=_OWN),
    _bad("adaptive palette", "palette",
         lambda folder: _coloured(TRUTH).quantize(5, dither=0).save(folder / "b.png"),
         classes=_OWN),
    _bad("png turned by EXIF", "turned-mask", _save(TRUTH, exif=_exif(6))),
    _bad("png mirrored by EXIF", "turned-mask", _save(TRUTH, exif=_exif(2))),
    _bad("tiff turned by EXIF", "turned-mask", _save(TRUTH, name="b.tif", exif=_exif(3))),
    _bad("mask of the turned picture's stored pixels", "size", _save(TRUTH), turn=6),
    _bad("transposed", "size", _save(TRUTH.T.copy())),
    _bad("a row less", "size", _save(TRUTH[1:])),
    _bad("a column more", "size", _save(np.pad(TRUTH, ((0, 0), (0, 1))))),
    _bad("half the size", "size", _save(TRUTH[::2, ::2].copy())),
    _bad("twice the size", "size", _save(TRUTH.repeat(2, 0).repeat(2, 1))),
    _bad("one pixel", "size", _save(np.zeros((1, 1), np.uint8))),
    _bad("png cut in its data", "unreadable", _bytes(_cut(0.7, "PNG"))),
    _bad("png cut in its head", "unreadable", _bytes(lambda: _cut(1, "PNG")()[:20])),
    _bad("tiff cut in half", "unreadable", _bytes(_cut(0.5, "TIFF"), "b.tif")),
    _bad("png with a wrong sum", "unreadable", _bytes(_broken_sum)),
    _bad("png without data", "unreadable", _bytes(lambda: _png(8, 0, False, b"", (H, W)))),
    _bad("no pixels", "unreadable", _bytes(lambda: _png(8, 0, False, b"", (H, 0)))),
    _bad("empty file", "unreadable", _bytes(bytes)),
    _bad("text named png", "unreadable", _bytes(lambda: b"road road car\n")),
    _bad("html named png", "unreadable", _bytes(lambda: b"<!doctype html><h1>404</h1>")),
    _bad("numpy array named png", "unreadable", lambda folder: np.save(folder.parent / "b", TRUTH)
         or (folder.parent / "b.npy").rename(folder / "b.png")),
    _bad("link in a circle", "unreadable", lambda folder: _links(folder, "b.png")),
    _bad("link to nowhere", "unreadable", lambda folder: _links(folder, "nowhere.png")),
    _bad("link to a device", "unreadable", lambda folder: _links(folder, "/dev/zero")),
    _bad("fifo", "unreadable", lambda folder: os.mkfifo(folder / "b.png")),
    _bad("folder", "unreadable", lambda folder: (folder / "b.png").mkdir()),
    _bad("nothing", "missing-mask", lambda folder: None),
    _bad("twice", "double", _twice),
    _bad("bomb", "unsafe", _bytes(lambda: _png(8, 0, False, b"", (60_000, 60_000))), code=6),
    _bad("palette bomb", "unsafe", _bytes(lambda: _png(1, 3, False, b"", (1 << 20, 1 << 20))),
         code=6),
]  # fmt: skip


def write_case(root: Path, case: Case) -> None:
    """Writes a data set of the picture b with the case's mask, and a good pair a beside it."""
    images, masks = root / "train" / "images", root / "train" / "masks"
    images.mkdir(parents=True)
    masks.mkdir()
    rng = np.random.default_rng(7)
    shape = (W, H, 3) if case.turn >= 5 and case.kind is None else (H, W, 3)
    picture = Image.fromarray(rng.integers(0, 256, shape, np.uint8))
    picture.save(images / "b.jpg", exif=_exif(case.turn))
    case.write(masks)
    if not case.alone:
        Image.fromarray(rng.integers(0, 256, (H, W, 3), np.uint8)).save(images / "a.jpg")
        scale = 100 if case.classes is _MAPPED else 1
        Image.fromarray(_DEEP * scale if scale > 1 else TRUTH).save(masks / "a.png")
    content = {"train": "train/images", **(case.classes or {"names": NAMES})}
    (root / "data.yaml").write_text(yaml.safe_dump(content))
