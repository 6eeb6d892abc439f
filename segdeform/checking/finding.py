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


# In the order of the report: first what is wrong with the whole, then with single files.
KINDS = {
    "unsafe": Kind("error", "Unsafe files", "remove the file"),
    "listing": Kind("error", "Splits that cannot be listed", "see the message"),
    "class-values": Kind(
        "error", "Mask values that count no classes", "describe the values in a data YAML"
    ),
    "binary": Kind(
        "error", "Black and white masks", "write label_mapping into the data YAML, or use --fix"
    ),
    "label-ids": Kind(
        "error", "Cityscapes label ids", "write label_mapping into the data YAML, or use --fix"
    ),
    "off-by-one": Kind(
        "error", "Labels that count from 1", "write label_mapping into the data YAML, or use --fix"
    ),
    "no-labels": Kind("error", "No labelled pixel at all", "are these the right masks?"),
    "missing-picture": Kind("error", "Missing pictures", "restore the picture or drop its name"),
    "missing-mask": Kind("error", "Missing masks", "restore the mask or remove the picture"),
    "double": Kind("error", "Names given twice", "keep one of the files"),
    "unreadable": Kind("error", "Unreadable files", "restore the file or remove the pair"),
    "jpeg-mask": Kind(
        "error", "JPEG masks", "export the mask again as PNG: what JPEG blurred is lost"
    ),
    "turned-mask": Kind("error", "Masks turned by EXIF", "save the mask upright"),
    "colour-mask": Kind("error", "Colour masks", "write class indices instead of colours"),
    "mask-kind": Kind("error", "Masks of no index kind", "save it as 8-bit grey, or use --fix"),
    "palette": Kind("error", "Masks of another palette", "convert by colour: use --fix"),
    "size": Kind("error", "Sizes that differ", "make picture and mask of one size"),
    "label-outside": Kind(
        "error", "Labels outside the classes", "correct the mask, or map the value"
    ),
    "palette-differs": Kind(
        "warning", "Palettes that differ", "do the masks number the classes in the same way?"
    ),
    "animated-mask": Kind("warning", "Masks of several frames", "the first frame is used"),
    "void-mask": Kind("warning", "Masks without a label", "the picture teaches nothing"),
    "leak": Kind(
        "warning", "Pictures in several splits", "remove it from one: the score would be too good"
    ),
    "never": Kind("warning", "Classes that never occur", "is the class list the right one?"),
    "absent-train": Kind("warning", "Classes without training pixels", "they cannot be learned"),
    "orphan-mask": Kind("warning", "Masks without a picture", "it is not used"),
    "unused-list": Kind("warning", "Class lists that are not used", "remove it, or name the same"),
    "unused-key": Kind("warning", "Keys that mean nothing here", "remove it, or is it misspelt?"),
    "unused-block": Kind("note", "Other tools' keys", "they are left alone"),
    "moved-folder": Kind("note", "Folders found elsewhere", "write where they are"),
    "mask-suffix": Kind("note", "Masks with a suffix", "write mask_suffix to be sure of it"),
    "absent": Kind("note", "Classes absent from a split", "they are left out of its mIoU"),
    "unlabelled": Kind("note", "Pictures without a mask", "they can be predicted, not scored"),
    "repeated": Kind("note", "Pictures given twice", "the same picture counts twice"),
    "turned-picture": Kind(
        "note", "Pictures turned by EXIF", "they are read upright: the masks must be upright too"
    ),
}


@dataclass(frozen=True)
class Finding:
    """One thing that was found, with the place and what to do."""

    kind: str
    split: str
    file: Path
    text: str  # names the file, whatever its name holds; to be shown, use `line`
    fix: str = ""  # "": the kind's
    value: int | None = None  # the mask value, with the place of its first pixel and their number
    row: int | None = None
    column: int | None = None
    count: int | None = None
    sample: int | None = None  # index in its split

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
    def advice(self) -> str:
        return self.fix or KINDS[self.kind].fix

    def to_json(self) -> dict[str, Any]:
        """Returns the finding as JSON values."""
        return {
            "kind": self.kind,
            "severity": self.severity,
            "split": self.split,
            "file": str(self.file),
            "text": self.line,
            "fix": self.advice,
            "value": self.value,
            "row": self.row,
            "column": self.column,
            "count": self.count,
        }
