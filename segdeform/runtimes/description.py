"""What export.json says: which files an exported folder holds, and what they take and give.

An exported folder holds a file a runtime, export.json, parity.json (how far each is from the
network that it was made of), model.json as any model folder, and manifest.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from segdeform.errors import ModelError
from segdeform.files.manifest import read_json
from segdeform.model_folder import EXPORT
from segdeform.version import __version__

EXPORT_VERSION: Final = 1
PARITY: Final = "parity.json"

Runtime = Literal["onnxruntime", "openvino", "torch"]
FILES: dict[Runtime, str] = {
    "onnxruntime": "model.onnx",
    "openvino": "model.xml",  # its weights lie beside it, in model.bin
    "torch": "model.pt2",
}


class ExportDescription(BaseModel):
    """What export.json says beside model.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = EXPORT_VERSION
    segdeform_version: str = __version__
    runtimes: tuple[Runtime, ...] = Field(min_length=1)
    input: Literal["uint8", "float"]  # [N, H, W, C], or [N, C, H, W] float32 of 0..1
    outputs: tuple[str, ...]
    precision: Literal["fp32", "fp16", "bf16"]
    pure: bool  # deformable layers are made of standard operators
    opset: int | None  # of ONNX; None: no such file
    stride: int = Field(ge=1)  # height of the pictures / height of the scores
    smallest: int = Field(ge=1)  # side, pixels, of pictures that torch's file takes
    source_sha256: str  # of the weights that were exported
    source_segdeform: str  # the version that wrote them
    deformable_layers: tuple[str, ...]
    parameters: int
    receptive_field: dict[str, Any] | None  # as `Reach.to_json` says it
    bytes_a_pixel: float = Field(gt=0)  # that it takes to compute the scores

    @property
    def operator(self) -> bool:
        """Whether a runtime must know the deformable operator."""
        return bool(self.deformable_layers) and not self.pure


def read_export(folder: Path) -> ExportDescription:
    """Reads export.json.

    Raises:
        ModelError: it is damaged, or of a format that this version does not know.
    """
    path = folder / EXPORT
    value: Any = read_json(path)
    version = value.get("format_version") if isinstance(value, dict) else None
    if not isinstance(version, int):
        raise ModelError(f"{path} does not describe an exported network")
    if version != EXPORT_VERSION:
        raise ModelError(
            f"{path} has format version {version}; segdeform {__version__} reads version "
            f"{EXPORT_VERSION}: export the model again"
        )
    try:
        return ExportDescription.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the whole"
        raise ModelError(f"{path} is damaged: {key}: {first['msg']}") from error
