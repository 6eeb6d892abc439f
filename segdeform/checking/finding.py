"""What a check can find: the kinds, how severe each is, and one finding."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

Severity = Literal["error", "warning", "note"]


class Kind(NamedTuple):
    """One kind of finding."""

    severity: Severity  # error: refused; warning: told, and gone on with; note: reported only
    title: str
    fix: str  # what to do, where a finding does not know better
    mended: bool = False  # whether --fix always mends it


_MAP = "write label_mapping into the data YAML"

# In the order of the report: first what is wrong with the whole, then with single files.
KINDS = {
    "unsafe": Kind("error", "Unsafe files", "remove the file"),
    "listing": Kind("error", "Splits that cannot be listed", "see the message"),
    "missing-split": Kind(
        "error",
        "Splits that training needs",
        "make it (segdeform prepare folder splits pictures), or check a part alone by --split",
    ),
    "class-values": Kind(
        "error", "Mask values that count no classes", "describe the values in a data YAML"
    ),
    "binary": Kind("error", "Black and white masks", _MAP, mended=True),
    "label-ids": Kind("error", "Cityscapes label ids", _MAP, mended=True),
    "off-by-one": Kind("error", "Labels that count from 1", _MAP, mended=True),
    "no-labels": Kind("error", "No labelled pixel at all", "are these the right masks?"),
    "missing-picture": Kind("error", "Missing pictures", "restore the picture or drop its name"),
    "missing-mask": Kind("error", "Missing masks", "restore the mask or remove the picture"),
    "double": Kind("error", "Names given twice", "keep one of the files"),
    "unreadable": Kind("error", "Unreadable files", "restore the file or remove the pair"),
    "bands": Kind(
        "error",
        "Pictures that lack bands",
        "correct bands in the data YAML, or save the picture with as many",
    ),
    "no-range": Kind(
        "error",
        "Values of no known range",
        "write value_range: [lowest, highest] into the data YAML",
    ),
    "jpeg-mask": Kind(
        "error", "JPEG masks", "export the mask again as PNG: what JPEG blurred is lost"
    ),
    "turned-mask": Kind("error", "Masks turned by EXIF", "save the mask upright"),
    "colour-mask": Kind("error", "Colour masks", "write class indices instead of colours"),
    "mask-kind": Kind("error", "Masks of no index kind", "save it as 8-bit grey"),
    "palette": Kind("error", "Masks of another palette", "convert by colour"),
    "size": Kind("error", "Sizes that differ", "make picture and mask of one size"),
    "label-outside": Kind(
        "error", "Labels outside the classes", "correct the mask, or map the value"
    ),
    "damaged-jpeg": Kind(
        "warning", "JPEGs with damage inside", "look at it: a part may be grey or shifted"
    ),
    "value-range": Kind(
        "warning", "Pictures that use little of their range", "write value_range into the data YAML"
    ),
    "clipped": Kind("warning", "Values above value_range", "are the camera's values the same?"),
    "frames": Kind(
        "warning",
        "Stacks: pictures of several frames",
        "the first frame is used: save each as a picture of its own",
    ),
    "extra-bands": Kind("warning", "Bands that are not used", "name bands in the data YAML"),
    "white-mask": Kind(
        "warning",
        "Masks of 0 and 255 among others",
        "255 is ignored: if it means a class here, write the number of that class",
    ),
    "class-255": Kind(
        "warning",
        "Masks of 8 bits whose 255 is a class",
        "if it means that nothing is known there, write void_id: 255 into the data YAML",
    ),
    "palette-differs": Kind(
        "warning", "Palettes that differ", "do the masks number the classes in the same way?"
    ),
    "animated-mask": Kind("warning", "Masks of several frames", "the first frame is used"),
    "void-mask": Kind("warning", "Masks without a label", "the picture teaches nothing"),
    "leak": Kind(
        "warning",
        "Pictures in several splits",
        "remove it from one: where the other is trained on, the score is too good",
    ),
    "never": Kind("warning", "Classes that never occur", "is the class list the right one?"),
    "absent-train": Kind("warning", "Classes without training pixels", "they cannot be learned"),
    "orphan-mask": Kind("warning", "Masks without a picture", "it is not used"),
    "unused-list": Kind("warning", "Class lists that are not used", "remove it, or name the same"),
    "unread-files": Kind("warning", "Files that are not read", "convert them, or move them away"),
    "unused-key": Kind("warning", "Keys that mean nothing here", "remove it, or is it misspelt?"),
    "unused-block": Kind("note", "Other tools' keys", "they are left alone"),
    "moved-folder": Kind("note", "Folders found elsewhere", "write where they are"),
    "mask-suffix": Kind("note", "Masks with a suffix", "write mask_suffix to be sure of it"),
    "absent": Kind("note", "Classes absent from a split", "they are left out of its mIoU"),
    "placeholders": Kind("note", "Masks that hold no class", "they can be predicted, not scored"),
    "unlabelled": Kind("note", "Pictures without a mask", "they can be predicted, not scored"),
    "georeferenced": Kind(
        "note",
        "Georeferenced pictures",
        "masks of predict are PNGs of the same rows and columns without it: copy it over",
    ),
    "repeated": Kind("note", "Pictures given twice", "the same picture counts twice"),
    "turned-picture": Kind(
        "note", "Pictures turned by EXIF", "they are read upright: the masks must be upright too"
    ),
}


@dataclass(frozen=True)
class Place:
    """A mask value, the row and column of its first pixel, and the number of its pixels."""

    value: int
    row: int | None = None
    column: int | None = None
    count: int | None = None


@dataclass(frozen=True)
class Finding:
    """One thing that was found, with the place and what to do."""

    kind: str
    split: str
    file: Path
    text: str  # names the file, whatever its name holds; to be shown, use `line`
    fix: str = ""  # "": the kind's
    place: Place | None = None
    sample: int | None = None  # index in its split
    mendable: bool = False  # whether --fix mends it, where that depends on the file

    @property
    def severity(self) -> Severity:
        return KINDS[self.kind].severity

    @property
    def line(self) -> str:
        """The text on one line: names may hold newlines and what terminals take for commands."""
        return "".join(
            letter if letter.isprintable() else letter.encode("unicode_escape").decode()
            for letter in self.text
        )

    @property
    def mended(self) -> bool:
        """Whether --fix mends it."""
        return self.mendable or KINDS[self.kind].mended

    @property
    def advice(self) -> str:
        """What to do."""
        return (self.fix or KINDS[self.kind].fix) + (", or use --fix" if self.mended else "")

    def to_json(self) -> dict[str, Any]:
        """Returns the finding as JSON values."""
        return {
            "kind": self.kind,
            "severity": self.severity,
            "split": self.split,
            "file": str(self.file),
            "text": self.line,
            "fix": self.advice,
            "value": self.place and self.place.value,
            "row": self.place and self.place.row,
            "column": self.place and self.place.column,
            "count": self.place and self.place.count,
        }
