"""`segdeform import`: makes a model folder of a network that others have trained."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from segdeform.cli.output import Json, print_json
from segdeform.cli.progress import progress_bars


def import_(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="torchvision:deeplabv3_resnet50, _resnet101 or _mobilenet_v3_large, or a file.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option(help="Model folder to write.", show_default=False)],
    weights: Annotated[
        Path | None,
        typer.Option(help="A file in the place of torchvision's download.", show_default=False),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Names of the classes, one a line, or classes.json with names and palette.",
            show_default="what the file says",
        ),
    ] = None,
    deform_layers: Annotated[
        int,
        typer.Option(
            min=0,
            help="How many of the last 3x3 convolutions become deformable; they compute the same "
            "until they are trained.",
        ),
    ] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the model in the folder.")
    ] = False,
    json_output: Json = False,
) -> None:
    """Make a model folder of a pretrained network of torchvision or mmsegmentation.

    torchvision's know the 21 classes of VOC. A file (.pth, .safetensors) is recognised by its keys:
    torchvision's DeepLabV3, mmsegmentation's DeepLabV3 and DeepLabV3+ with ResNet-50 or -101. No
    code in it is run.
    """
    from segdeform.importing.sources import refuse_occupied, refuse_source

    refuse_source(source, weights)  # all that needs no torch, before its seconds of import
    refuse_occupied(output, overwrite)

    from segdeform.importing.import_model import import_model

    with progress_bars() as progress:
        imported = import_model(
            source,
            output,
            weights=weights,
            classes=classes,
            deform_layers=deform_layers,
            progress=partial(progress, "downloading"),
        )
    description = imported.description
    if json_output:
        print_json(
            {"output": str(output), "notes": imported.notes, **description.model_dump(mode="json")}
        )
        return
    names = description.classes
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    print(f"{output} knows {len(names)} classes: {shown}")
    for note in imported.notes:
        print(f"note: {note}")
    print(f"Next: segdeform predict {output} PICTURES --output predictions")
