"""`segdeform prepare`: makes a data set ready, or verifies the one that lies in a folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segdeform.cli.output import Json, print_json
from segdeform.cli.progress import progress_bars
from segdeform.errors import PartialFailureError, UsageError

if TYPE_CHECKING:
    from segdeform.preparing.folder.prepare import Prepared

_NAMES_SHOWN = 3
_SOURCES = ("images", "masks", "pairs")
_RAW = "Your own pictures and masks"


def prepare(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="voc, cityscapes, camvid, shapes or folder (your own).",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            help="Root of the data set; for cityscapes also CITYSCAPES_DATASET.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Pictures.", rich_help_panel=_RAW)
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|FILE",
            help="Masks, called like the pictures or NAME_mask, mask_NAME; or annotations of COCO, "
            "LabelMe, CVAT, Label Studio or YOLO (python -m pydoc segdeform.preparing.polygons).",
            rich_help_panel=_RAW,
        ),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="CSV or TSV: a picture and its mask a line.",
            rich_help_panel=_RAW,
        ),
    ] = None,
    mask_name: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN",
            help="What masks are called, such as NAME_mask.",
            show_default="found",
            rich_help_panel=_RAW,
        ),
    ] = None,
    split: Annotated[
        float | None,
        typer.Option(help="Share to validate on.", show_default="0.2", rich_help_panel=_RAW),
    ] = None,
    test: Annotated[
        float | None,
        typer.Option(help="Share to keep for the end.", show_default="none", rich_help_panel=_RAW),
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN",
            help="Regular expression on names: pictures of one group stay together.",
            show_default="none; videos are found",
            rich_help_panel=_RAW,
        ),
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(
            min=2,
            metavar="K",
            help="Also write splits fold1, except-fold1, ...",
            show_default="none",
            rich_help_panel=_RAW,
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES|FILE",
            help="Class names, as background,crack, or a file of them.",
            show_default="classes.txt, labelmap.txt, ... beside the masks",
            rich_help_panel=_RAW,
        ),
    ] = None,
    values: Annotated[
        str | None,
        typer.Option(
            metavar="VALUE:NAME,...",
            help="What mask values or colours mean: 0:background,255:crack; 'ignore' is not "
            "scored.",
            show_default="guessed from evidence",
            rich_help_panel=_RAW,
        ),
    ] = None,
    threshold: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=255,
            help="Cut blurred black and white masks (JPEG) at this grey.",
            show_default="none",
            rich_help_panel=_RAW,
        ),
    ] = None,
    partial: Annotated[
        bool,
        typer.Option(
            "--partial",
            help="Annotations: pixels of no shape are not scored, instead of background.",
            rich_help_panel=_RAW,
        ),
    ] = False,
    keep_empty: Annotated[
        bool,
        typer.Option(
            "--keep-empty",
            help="Pictures without a mask or annotation are background, instead of left out.",
            rich_help_panel=_RAW,
        ),
    ] = False,
    line_width: Annotated[
        float | None,
        typer.Option(
            metavar="PIXELS",
            help="Annotations: how wide lines are drawn.",
            show_default="left out",
            rich_help_panel=_RAW,
        ),
    ] = None,
    copy: Annotated[
        bool,
        typer.Option("--copy", help="Copy the files, instead of referring.", rich_help_panel=_RAW),
    ] = False,
    link: Annotated[
        bool, typer.Option("--link", help="Make hard links of them.", rich_help_panel=_RAW)
    ] = False,
    archive: Annotated[
        list[Path] | None,
        typer.Option(help="An archive at hand of voc, SBD or cityscapes; repeatable."),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch what is missing of voc or cityscapes.")
    ] = False,
    sbd: Annotated[bool, typer.Option(help="Add SBD's masks to voc: the split trainaug.")] = True,
    cache: Annotated[
        bool,
        typer.Option(
            "--cache", help="Also write the pictures decoded, for training to map into memory."
        ),
    ] = False,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of shapes' pictures, of splits.", show_default="0")
    ] = None,
    outline_only: Annotated[
        bool, typer.Option("--outline-only", help="Shapes of random colours: a hard task.")
    ] = False,
    deformation: Annotated[
        float | None,
        typer.Option(min=0, max=2, help="Bending and shear of shapes.", show_default="1"),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Threads that read the pictures.",
            show_default="2, of your own cores + 1",
        ),
    ] = None,
    json_output: Json = False,
) -> None:
    """Make a data set ready: unpack, download, convert or generate it; read every file of it.

    What is there already is kept: a second run only verifies, an interrupted one is continued.

    Your own: segdeform prepare folder --images DIR --masks DIR --output ROOT writes ROOT/data.yaml,
    which refers to your files. python -m pydoc segdeform.data.data_yaml shows all it can hold.
    """
    from segdeform.data import data_root
    from segdeform.preparing.prepare import prepare

    root = data_root(name, output, "--output")
    asked = {
        "images": images,
        "masks": masks,
        "pairs": pairs,
        "mask_name": mask_name,
        "split": split,
        "test": test,
        "group_by": group_by,
        "folds": folds,
        "classes": classes,
        "values": values,
        "threshold": threshold,
        "partial": partial or None,
        "keep_empty": keep_empty or None,
        "line_width": line_width,
    }
    given: dict[str, Any] = {key: value for key, value in asked.items() if value is not None}
    if name == "folder" and given.keys() & set(_SOURCES):
        if archive or download or cache or outline_only or deformation is not None:
            raise UsageError(
                "--archive, --download, --cache and shapes' options are not for this; decoded "
                f"pictures are written afterwards: segdeform prepare folder --output {root} --cache"
            )
        mode = _mode(copy, link)
        _prepare_folder(
            {**given, "output": root, "mode": mode, "seed": seed or 0, "workers": workers},
            json_output,
        )
        return
    if given or copy or link:
        option = f"--{next(iter(given), 'copy' if copy else 'link').replace('_', '-')}"
        raise UsageError(f"{option} goes with prepare folder --images DIR --masks DIR")
    look = {"seed": seed, "outline_only": outline_only or None, "deformation": deformation}
    with progress_bars() as progress:
        summary = prepare(
            name,
            root,
            archives=archive or (),
            download=download,
            sbd=sbd,
            cache=cache,
            shapes={key: value for key, value in look.items() if value is not None},
            workers=workers or 2,
            progress=progress,
        )
    if json_output:
        print_json({**asdict(summary), "root": str(summary.root)})
        return
    counted = ", ".join(f"{split} {count}" for split, count in summary.splits.items())
    print(f"{name} in {root}: {counted} pairs of picture and mask, {len(summary.classes)} classes")
    for message in summary.messages:
        print(message)
    more = " --set data.train_split=trainaug" if "trainaug" in summary.splits else ""
    print(f"Next:  segdeform train {name} --data {root} --output RUN{more}")


def _mode(copy: bool, link: bool) -> str:
    if copy and link:
        raise UsageError("--copy and --link exclude each other")
    return "copy" if copy else "link" if link else "refer"


def _prepare_folder(given: dict[str, Any], json_output: bool) -> None:
    """Makes a data set of raw folders and prints what was found."""
    from segdeform.checking.scan import default_workers
    from segdeform.preparing.folder.order import Order
    from segdeform.preparing.folder.prepare import prepare_folder

    given["workers"] = given["workers"] or default_workers()
    order = Order(**given)
    with progress_bars() as progress:
        prepared = prepare_folder(order, progress)
    if json_output:
        report = prepared.report.to_json()
        print_json({**prepared.record, "root": str(prepared.root), "check": report})
    else:
        _print_prepared(prepared)
    unusable = prepared.record["left_out"]["pairs that cannot be used"]
    if unusable:
        raise PartialFailureError(
            f"{len(unusable)} pairs cannot be used and are left out ({unusable[0]['reason']}); "
            f"{prepared.listing} lists them"
        )


def _print_prepared(prepared: Prepared) -> None:
    from segdeform.cli.check import print_report

    record = prepared.record
    print(f"paired: {record['pairs']} of {record['pictures']} pictures, by {record['paired_by']}")
    for key, files in record["left_out"].items():
        if files:
            names = [Path(f["file"] if isinstance(f, dict) else f).name for f in files]
            more = ", ..." if len(names) > _NAMES_SHOWN else ""
            shown = ", ".join(names[:_NAMES_SHOWN])
            bare = key == "pictures without a mask"
            hint = "; --keep-empty takes them as background" if bare else ""
            print(f"left out: {len(files)} {key} ({shown}{more}){hint}")
    for line in record["unread"]:
        print(f"left out: {line}")
    for line in record["guessed"]:
        print(f"masks: {line}")
    for line in record["split_by"]:
        print(f"split: {line}")
    if record["folds"]:
        print(f"folds: {len(record['folds'])}, of {', '.join(map(str, record['folds']))} pairs: "
              "fold1 and except-fold1 are splits")  # fmt: skip
    print_report(prepared.report)
    done = "written" if prepared.changed else "the same as before"
    if prepared.otherwise:
        done += f", anew ({'; '.join(prepared.otherwise)})"
    print(f"Data set: {prepared.root}, {done}; {prepared.listing.name} lists what was left out")
    if record["folds"]:
        splits = " --set data.train_split=except-fold1 --set data.val_split=fold1"
        print(f"A fold: segdeform train folder --data {prepared.root} --output RUN{splits}")
    print(f"Next: segdeform train folder --data {prepared.root} --output RUN")
