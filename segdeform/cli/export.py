"""`segdeform export`: a model as files for other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from segdeform.cli.output import Json, Kind, Model, Split, Threads, print_json
from segdeform.errors import UsageError


def export(
    model: Model,
    output: Annotated[Path, typer.Option(help="Folder of the exported model.", show_default=False)],
    formats: Annotated[
        str,
        typer.Option("--format", metavar="A,B,...", help="onnx, openvino, torch; one or several."),
    ] = "onnx",
    pure: Annotated[
        bool,
        typer.Option(
            "--pure",
            help="Make deformable layers of standard operators: for runtimes without DeformConv.",
        ),
    ] = False,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Give those of all classes, too.")
    ] = False,
    check: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PICTURES",
            help="Pictures or folders to compare on; repeatable.",
            show_default="generated ones",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Data set to compare on, too, with the mIoU of both.", show_default=False
        ),
    ] = None,
    kind: Kind = None,
    split: Split = "val",
    opset: Annotated[Literal["20", "22"], typer.Option(help="Version of ONNX's operators.")] = "20",
    pictures: Annotated[
        Literal["uint8", "float"],
        typer.Option("--input", help="uint8 [N, H, W, 3], or float32 of 0..1 [N, 3, H, W]."),
    ] = "uint8",
    precision: Annotated[
        Literal["fp32", "fp16", "bf16"],
        typer.Option(help="Of weights and features; offsets and masks stay float32."),
    ] = "fp32",
    threads: Threads = None,
    json_output: Json = False,
) -> None:
    """Write a model for other runtimes, and prove that it gives the same labels.

    OUTPUT becomes a model folder with model.onnx, model.xml and model.bin (openvino), or model.pt2
    (torch): any number of pictures of any size go in, normalisation is inside, labels come out
    (uint8 [N, H, W]), then the scores before they are enlarged, then with --probabilities those.
    predict, eval and info take the folder, or a file in it, as any model; --runtime chooses.

    Each file is run by its runtime and compared with the model, on generated pictures, --check's
    and --data's; parity.json has the numbers. One that differs is not written: exit code 5.
    DeformConv needs onnxruntime >= 1.25 or TensorRT >= 10.1; --pure is for runtimes without it. In
    fp16 and bf16 the deformable operator itself computes in float32, as all its inputs have one
    type in ONNX.
    """
    names = tuple(dict.fromkeys(name.strip() for name in formats.split(",") if name.strip()))
    if not names:
        raise UsageError(f"--format {formats!r}: expected onnx, openvino, torch, or several")
    from segdeform.evaluation.wanted import refuse_early
    from segdeform.model_folder import refuse_missing_model
    from segdeform.prediction.listing import refuse_missing

    refuse_missing_model(model)  # before torch's seconds of import
    refuse_missing(check or ())
    if data is not None or kind is not None:
        refuse_early(model, kind, data, split, None)

    import torch

    from segdeform.export.export import Wanted, export_model
    from segdeform.export.network import Form
    from segdeform.export.pictures import Split as PartOfData

    if threads is not None:
        torch.set_num_threads(threads)
    wanted = Wanted(
        formats=names,
        form=Form(pictures, probabilities, precision),
        pure=pure,
        opset=20 if opset == "20" else 22,
        check=tuple(check or ()),
        split=None if data is None and kind is None else PartOfData(kind, data, split),
    )
    report = export_model(model, output, wanted)
    if json_output:
        print_json({"output": str(output), **report})
        return
    for facts in report["runtimes"].values():
        print(f"{facts['line']} ({report['pictures_are']}; needs >= {facts['least_version']})")
    print(f"Written: {output}")
