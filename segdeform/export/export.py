"""Exports a model: a file for each runtime, and the proof that it gives the same labels."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from segdeform.errors import ModelError, UsageError
from segdeform.export.network import Form, exported_form, traced
from segdeform.export.onnx_file import Opset, write_onnx
from segdeform.export.operator import by_grid_sample, by_torchvision
from segdeform.export.parity import BARS, Parity, compare, worded
from segdeform.export.pictures import Picture, Split, generated, given, of_split
from segdeform.files.atomic import write_json
from segdeform.files.manifest import MANIFEST, replacing_folder
from segdeform.model_folder import DESCRIPTION, EXPORT, is_exported
from segdeform.models.deform import deformable_layers
from segdeform.room import room_of
from segdeform.runtimes.description import FILES, PARITY, ExportDescription, Runtime
from segdeform.runtimes.sessions import LEAST, installed, nothing_told, open_file
from segdeform.segmenter import (
    ModelDescription,
    Segmenter,
    load,
    read_description,
    write_description,
)
from segdeform.version import __version__

FORMATS: dict[str, Runtime] = {
    "onnx": "onnxruntime",
    "openvino": "openvino",
    "torch": "torch",
}
_WRITERS = {"onnx": ("onnx", "onnxscript"), "openvino": (), "torch": ()}

SIZE_RULE = (
    "any number of pictures of any height and width; scores are enlarged {stride} times and cut at "
    "the right and the bottom, so label [y, x] is that of pixel [y, x]"
)


@dataclass(frozen=True)
class Wanted:
    """What is to be exported, and how."""

    formats: tuple[str, ...] = ("onnx",)  # of FORMATS
    form: Form = field(default_factory=Form)
    pure: bool = False  # deformable layers made of standard operators
    opset: Opset = 20  # of ONNX
    check: tuple[Path, ...] = ()  # pictures, or folders of them
    split: Split | None = None  # whose masks give both networks a score


def export_model(model: Path, output: Path, wanted: Wanted) -> dict[str, Any]:
    """Writes an exported folder and returns what its parity.json says.

    Every file is run by its runtime, here, and compared with the network on generated pictures of
    several odd sizes, on those that are given, and on some of the data set's. Where one fails
    nothing is left.

    Raises:
        UsageError: a format that is unknown, `output` is another model or holds other files.
        ModelError: there is no model, what a format needs is not installed, a runtime does not
            take its file or does not give the same.
        DataError: a picture cannot be read, or the data set is not what it should be.
    """
    _refuse_output(model, output)
    for name in wanted.formats:
        _refuse_format(name, wanted)
    if is_exported(model):
        raise UsageError(f"{model} is exported already; give the model that it was made of")
    segmenter = load(model, "cpu")
    description = _description(segmenter, wanted)
    for runtime in description.runtimes:
        installed(runtime, description.operator)
    pictures = generated(segmenter.channels) + given(segmenter, wanted.check)
    if wanted.split is not None:
        pictures += of_split(segmenter, wanted.split)
    with replacing_folder(output) as new:
        write_description(new, _model_description(segmenter))
        write_json(new / EXPORT, description.model_dump(mode="json"))
        for name in wanted.formats:
            _write(name, new, segmenter, description, wanted)
        report = _check(new, segmenter, description, wanted, pictures)
        write_json(new / PARITY, report)
    return report


def _refuse_output(model: Path, output: Path) -> None:
    place = output.resolve()
    if place == model.resolve() or place in model.resolve().parents:
        raise UsageError(f"{output}: holds the model; choose another --output")
    if (output / MANIFEST).is_file() and not (output / EXPORT).is_file():
        raise UsageError(f"{output}: is a model that was trained; choose another --output")


def _refuse_format(name: str, wanted: Wanted) -> None:
    """Raises UsageError or ModelError for what cannot be written or checked here."""
    if name not in FORMATS:
        raise UsageError(f"--format {name}: unknown; use {', '.join(FORMATS)}")
    if name == "onnx" and wanted.form.precision == "bf16":
        raise UsageError(
            "--precision bf16: onnxruntime computes no bfloat16 on the CPU, so nothing could be "
            "checked; use fp16, or --format torch"
        )
    for package in _WRITERS[name]:
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            raise ModelError(f"{package} is not installed: pip install 'segdeform[onnx]'") from None


def _model_description(segmenter: Segmenter) -> ModelDescription:
    """Returns what model.json says: that of the model, with how pictures become labels as used."""
    description = read_description(Path(segmenter.info["path"]) / DESCRIPTION)
    crop = segmenter.info["crop"]
    return description.model_copy(
        update={"eval": segmenter.options, "crop": None if crop is None else tuple(crop)}
    )


def _description(segmenter: Segmenter, wanted: Wanted) -> ExportDescription:
    stride = segmenter.network.stride
    assert stride is not None
    cost = room_of(segmenter.network, segmenter.device, segmenter.channels).cost
    return ExportDescription(
        runtimes=tuple(FORMATS[name] for name in wanted.formats),
        input=wanted.form.input,
        outputs=wanted.form.outputs,
        precision=wanted.form.precision,
        pure=wanted.pure,
        opset=wanted.opset if "onnx" in wanted.formats else None,
        stride=stride,
        smallest=max(segmenter.network.backbone.stride + 1, segmenter.network.backbone.least),
        source_sha256=segmenter.info["sha256"],
        source_segdeform=segmenter.info["segdeform_version"],
        deformable_layers=tuple(deformable_layers(segmenter.network.backbone)),
        parameters=segmenter.info["parameters"],
        receptive_field=segmenter.info["receptive_field"],
        # Made of standard operators, a deformable layer holds all its samples at once.
        bytes_a_pixel=cost.whole * (2 if wanted.pure else 1),
    )


def _write(
    name: str, folder: Path, segmenter: Segmenter, description: ExportDescription, wanted: Wanted
) -> None:
    """Writes the file of a format."""
    own = name == "torch"  # our operator is known where cuda_ops is
    operator = by_grid_sample if wanted.pure else None if own else by_torchvision
    network = exported_form(segmenter.network, wanted.form, operator)
    path = folder / FILES[FORMATS[name]]
    try:
        program = traced(network, segmenter.channels, description.smallest)
        if name == "onnx":
            facts = _metadata(segmenter, description)
            write_onnx(path, program, wanted.opset, wanted.form, facts)
        elif name == "openvino":
            _write_openvino(path, program)
        else:
            torch.export.save(program, path)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # exporters and converters raise what they like
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        hint = "" if wanted.pure else "; --pure exports standard operators alone"
        raise ModelError(f"the network cannot be written as {name}: {reason}{hint}") from error


def _write_openvino(path: Path, program: torch.export.ExportedProgram) -> None:
    with nothing_told():
        import openvino

        converted = openvino.convert_model(program)
    openvino.save_model(converted, path, compress_to_fp16=False)


def _metadata(segmenter: Segmenter, description: ExportDescription) -> dict[str, str]:
    """Returns what an ONNX file says of itself, JSON where it is more than a word."""
    info = segmenter.info
    told = "uint8 [N, H, W, C]" if description.input == "uint8" else "float32 0..1 [N, C, H, W]"
    channels = "RGB" if segmenter.bands is None else f"bands {list(segmenter.bands)} of a file"
    protocol = {
        "input": f"{told}, {channels}",
        "mean": info["mean"],  # both are in the graph already
        "std": info["std"],
        "value_range": info["value_range"],
        "inference": info["eval"],
        "precision": description.precision,
    }
    return {
        "segdeform": __version__,
        "classes": json.dumps(list(segmenter.classes), ensure_ascii=False),
        "palette": json.dumps([list(colour) for colour in segmenter.palette]),
        "size_rule": SIZE_RULE.format(stride=description.stride),
        "protocol": json.dumps(protocol),
        "sha256": info["sha256"],
    }


def _check(
    folder: Path,
    segmenter: Segmenter,
    description: ExportDescription,
    wanted: Wanted,
    pictures: list[Picture],
) -> dict[str, Any]:
    """Compares every file with the network. Raises ModelError where one differs."""
    runtimes: dict[str, Any] = {}
    for runtime in description.runtimes:
        version = installed(runtime, description.operator)
        run = open_file(runtime, folder, description.outputs, "cpu")
        parity = compare(segmenter.network, run, wanted.form, pictures)
        bar = BARS[wanted.form.precision]
        line = worded(runtime, version, parity, len(pictures))
        if failure := parity.failure(bar):
            raise ModelError(
                f"not exported: by {runtime} {version} the network does not give what it gives "
                f"here: {failure}. {line}"
            )
        runtimes[runtime] = {
            "version": version,
            "device": "cpu",
            **parity.to_json(),
            "bar": bar._asdict(),
            "least_version": LEAST[runtime][description.operator],
            "line": line,
        }
    return {
        "reference": f"torch {torch.__version__}, segdeform {__version__}, float32, CPU",
        "model_sha256": description.source_sha256,
        "precision": wanted.form.precision,
        "pictures": [
            {"name": picture.name, "size": list(picture.pixels.shape[1:3])} for picture in pictures
        ],
        "pictures_are": "given and generated"
        if wanted.check or wanted.split
        else "generated alone",
        "runtimes": runtimes,
    }


__all__ = ["FORMATS", "Parity", "Wanted", "export_model"]
