"""`segdeform check`: finds what is wrong with a data set before anything is trained on it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segdeform.cli.output import MOST_ROWS, ROWS_OF_MANY, Json, print_json
from segdeform.cli.progress import progress_bars
from segdeform.errors import PartialFailureError, UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from segdeform.checking import Report
    from segdeform.checking.fix import Repair

_FILES_SHOWN = 3
_MARKS = {"error": "[red]error[/]", "warning": "[yellow]warning[/]", "note": "note"}


def check(
    root: Annotated[
        Path, typer.Argument(metavar="ROOT", help="Root of the data set.", show_default=False)
    ],
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Its kind: folder, camvid, voc, cityscapes.", show_default="by its layout"
        ),
    ] = None,
    split: Annotated[
        list[str] | None,
        typer.Option(help="Only this part of it; repeatable.", show_default="train, val, test"),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a page with pictures.", show_default="none"),
    ] = None,
    fix: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Write a repaired copy with a data YAML; ROOT stays as it is.",
            show_default="none",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Threads that read the pictures.", show_default="cores + 1"),
    ] = None,
    json_output: Json = False,
) -> None:
    """Read every picture and mask, and say which are wrong, where, and what to do."""
    from segdeform.checking import check, list_splits
    from segdeform.checking.fix import repair
    from segdeform.checking.page import write_page
    from segdeform.data import guess_name

    if html and html.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--html {html}: expected the name of an .html file")
    name = dataset or guess_name(root)
    datasets, listing = list_splits(name, root, split or ())
    with progress_bars() as progress:
        shown = partial(progress, "checking")
        report = check(datasets, listing=listing, workers=workers, progress=shown)
    if html:
        write_page(html, report, datasets)
    repaired = None
    if fix:
        with progress_bars() as progress:
            repaired = repair(datasets, report, fix, progress=partial(progress, "repairing"))
    if json_output:
        print_json(report.to_json() | ({"fix": repaired.to_json()} if repaired else {}))
    else:
        print_report(report)
        if html:
            print(f"Page: {html}")
        if repaired:
            print_repair(repaired)
    if repaired is None and report.errors:
        count = len(report.errors)
        offers = filter(None, ("--html FILE shows the pictures", report.repair_offer()))
        raise report.refusal(
            f"{root}: not fit for training: {count} error{'s' if count > 1 else ''}; "
            f"{', '.join(offers)}"
        )
    lacking = [error for error in report.errors if error.kind == "missing-split"]
    if repaired and lacking:  # which no copy mends
        raise report.refusal(f"{lacking[0].line}: {lacking[0].advice}")
    if repaired and repaired.left_out:
        raise PartialFailureError(
            f"{len(repaired.left_out)} of {repaired.pairs} pairs could not be repaired and are not "
            f"in the copy; they are listed in {repaired.listing}"
        )


def print_report(report: Report) -> None:
    """Prints the findings, the first files of each kind, and the classes' shares and weights."""
    from rich.console import Console

    from segdeform.checking import KINDS
    from segdeform.checking.weights import RULE

    console = Console()
    pairs = ", ".join(f"{split.name} {split.pairs}" for split in report.splits)
    print(f"{report.name} in {report.root}: {pairs} pairs, {len(report.classes)} classes")
    console.print(_class_table(report))
    for findings in report.by_kind().values():
        first = findings[0]
        mark = _MARKS[first.severity]
        console.print(f"{mark}: {KINDS[first.kind].title} ({len(findings)})", highlight=False)
        for finding in findings[:_FILES_SHOWN]:
            console.print(f"  {finding.line}", markup=False, highlight=False, soft_wrap=True)
        if len(findings) > _FILES_SHOWN:
            console.print(f"  and {len(findings) - _FILES_SHOWN} more", highlight=False)
        for advice in dict.fromkeys(finding.advice for finding in findings[:_FILES_SHOWN]):
            console.print(f"  -> {advice}", markup=False, highlight=False, soft_wrap=True)
    weights = ", ".join(f"{weight:g}" for weight in report.class_weights())
    if weights:
        source = report.splits[0].name
        print(f"Weights for rare classes, as train.class_weights=auto takes them from {source}")
        print(f"({RULE}):")
        if len(report.classes) <= MOST_ROWS:
            print(f"train: {{class_weights: [{weights}]}}")
        else:
            print("of so many classes, --json lists them")
    print(report.summary())


def _class_table(report: Report) -> Table:
    from rich.markup import escape
    from rich.table import Table

    shown = _told_classes(report)
    title = "Pixels of each class"
    if len(shown) < len(report.classes):
        title = (
            f"Pixels of the {len(shown)} commonest and rarest of {len(report.classes)} classes; "
            "--json has all"
        )
    table = Table("class", title=title)
    for split in report.splits:
        table.add_column(escape(split.name), justify="right")
    shares = [split.shares() for split in report.splits]
    for index in shown:
        name = escape(f"{index} {report.classes[index]}")
        table.add_row(name, *(_share(column[index]) for column in shares))
    return table


def _told_classes(report: Report) -> list[int]:
    """Returns the classes to print, in order: all, or, of more than a screen is good for, those of
    most and of fewest pixels among those that occur."""
    count = len(report.classes)
    if count <= MOST_ROWS:
        return list(range(count))
    total = [sum(split.pixels[index] for split in report.splits) for index in range(count)]
    present = sorted((index for index in range(count) if total[index]), key=lambda k: -total[k])
    half = ROWS_OF_MANY // 2
    return sorted({*present[:half], *present[-half:]})


def _share(share: float) -> str:
    return f"{share:.2%}" if share else "none"


def print_repair(repaired: Repair) -> None:
    """Prints what a repaired copy holds and how to train on it."""
    print(f"Copy: {repaired.written} of {repaired.pairs} pairs in {repaired.folder}")
    print(f"Next: segdeform train folder --data {repaired.folder} --output RUN")
