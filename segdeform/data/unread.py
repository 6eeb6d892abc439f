"""Files that hold pictures and are not read here: what they are by their suffix, what to do."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

_EXPORTS = "save them as PNG or JPEG"
_DEVELOP = "develop them into TIFFs of 16 bits, or JPEGs"
_PLANES = "export each picture as a TIFF: Fiji opens them by Bio-Formats"
_TILES = "cut tiles of one level into TIFFs or PNGs, as QuPath does"
_TRANSLATE = "write them as GeoTIFFs: gdal_translate IN OUT.tif"
_VIDEO = "video"
_SLICES = "save each slice as a PNG or TIFF of 16 bits"


class Unread(NamedTuple):
    """A kind of file that is not read."""

    name: str
    advice: str


_KINDS = {
    Unread("HEIC", _EXPORTS): ".heic .heif .hif",
    Unread("AVIF", _EXPORTS): ".avif .avifs",
    Unread("JPEG XL", _EXPORTS): ".jxl",
    Unread("JPEG 2000", "save them as TIFF or PNG: gdal_translate IN OUT.tif"): (
        ".jp2 .j2k .jpx .jpf .jpc .j2c"
    ),
    Unread("camera raw", _DEVELOP): (
        ".dng .cr2 .cr3 .crw .nef .nrw .arw .orf .rw2 .raf .pef .srw .raw .3fr .iiq"
    ),
    Unread("microscope", _PLANES): ".czi .lif .nd2 .lsm .oib .oif .vsi .ims .stk .dv .zvi .flex",
    Unread("whole slide", _TILES): ".svs .ndpi .mrxs .scn .bif .vms .vmu .svslide .isyntax",
    Unread("OpenEXR or Radiance", "save them as TIFFs of 16 bits"): ".exr .hdr",
    Unread("DICOM", _SLICES): ".dcm .dicom .ima",
    Unread("volume", _SLICES): ".nii .nii.gz .nrrd .nhdr .mha .mhd .mgz",
    Unread(
        "raster", _TRANSLATE
    ): ".img .ecw .sid .vrt .nc .nc4 .grd .asc .bil .bsq .bip .ntf .nitf",
    Unread("array", "save each as a TIFF: tifffile.imwrite of Python does"): (
        ".npy .npz .mat .h5 .hdf5 .hdf .zarr .pt .pkl"
    ),
    Unread("astronomical", "save them as TIFFs of 16 or 32 bits"): ".fits .fit .fts",
    Unread(_VIDEO, "save the frames as PNG or JPEG: ffmpeg -i IN frame-%05d.png"): (
        ".mp4 .mov .avi .mkv .webm .m4v .mpg .mpeg .wmv"
    ),
    Unread("drawings", _EXPORTS): ".psd .psb .xcf .kra .svg .pdf .eps .ai .afphoto",
    Unread("pictures of other programs", _EXPORTS): (
        ".tga .pcx .sgi .dds .ico .icns .jxr .wdp .pfm .ppf .qoi .ras .xbm .xpm .fpx .btf .tf8"
    ),
    Unread("archive", "unpack them"): ".zip .tar .gz .tgz .7z .rar .bz2 .xz",
}
_OF_SUFFIX = {suffix: kind for kind, suffixes in _KINDS.items() for suffix in suffixes.split()}


def unread_kind(path: Path) -> Unread | None:
    """Tells by a file's name what picture it is that is not read; None for anything else."""
    name = path.name.lower()
    if name.endswith(".nii.gz"):
        return _OF_SUFFIX[".nii.gz"]
    return _OF_SUFFIX.get(path.suffix.lower())


def is_video(path: Path) -> bool:
    """Tells by a file's name whether it is a video, which is predicted, and not trained on."""
    kind = unread_kind(path)
    return kind is not None and kind.name == _VIDEO


def unread_below(folder: Path) -> list[str]:
    """Words what lies below a folder and is not read: each kind once, with the number of files."""
    found: dict[Unread, list[Path]] = {}
    for path in folder.rglob("*"):
        if (kind := unread_kind(path)) is None:
            continue
        relative = path.relative_to(folder)
        if not any(part.startswith(".") for part in relative.parts):
            found.setdefault(kind, []).append(relative)
    told = []
    for kind, paths in sorted(found.items()):
        count = "1 file" if len(paths) == 1 else f"{len(paths)} files"
        told.append(
            f"{folder}: {count} of a kind that is not read here, {kind.name}, as {min(paths)}: "
            f"{kind.advice}"
        )
    return told
