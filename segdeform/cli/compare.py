"""`segdeform compare`: tells whether two evaluations differ by more than noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segdeform.cli.output import MOST_ROWS, ROWS_OF_MANY, Json, print_json, shown_score

if TYPE_CHECKING:
    from segdeform.evaluation.compare import Comparison, Difference

_FEW = 20  # pictures, below which a bootstrap interval is rough
_LISTED = 5  # pictures that lost and gained most

_HELP = "Folder that eval --output wrote, or one that holds several, as of folds."


def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help=_HELP)],
    second: Annotated[Path, typer.Argument(metavar="B", help=_HELP)],
    json_output: Json = False,
) -> None:
    """Compare two evaluations of the same pictures: what the second gained or lost.

    A folder of several, as results/mine/{fold1,fold2,...}, counts as one over all their pictures.
    """
    from segdeform.evaluation.compare import compare
    from segdeform.evaluation.joined import read_side

    comparison = compare(read_side(first), read_side(second))
    if json_output:
        print_json(comparison.to_json())
    else:
        _print(comparison)


def _print(comparison: Comparison) -> None:
    """Prints the verdict, a row for each class, and the pictures that changed most."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("class", title=f"{comparison.pictures} pictures")
    for header in ("A", "B", "change", "95% interval"):
        table.add_column(header, justify="right")
    shown = _most_changed(comparison.classes)
    for row in shown:
        change = f"{_change(row.change)}{' *' if row.clear else '  '}"
        scores = (shown_score(row.first), shown_score(row.second))
        table.add_row(escape(row.name), *scores, change, _interval(row))
    Console().print(table)
    if len(shown) < len(comparison.classes):
        print(
            f"The {len(shown)} classes that changed most, of {len(comparison.classes)}: --json has "
            "all of them"
        )
    if any(row.clear for row in comparison.classes):
        print("* can be told from noise: the interval of the change leaves 0 out")
    lost = [image for image in comparison.images if image.change < 0]
    gained = [image for image in reversed(comparison.images) if image.change > 0]
    _print_images("lost most", lost)
    _print_images("gained most", gained)
    for key, (a, b) in comparison.protocol.items():
        print(f"protocol: {key} is {a} in A, {b} in B")
    miou = comparison.miou
    verdict = "can be told from noise" if miou.clear else "cannot be told from noise"
    if comparison.pictures < _FEW:
        verdict += f"; rough, with {comparison.pictures} pictures"
    print(
        f"mIoU {shown_score(miou.first)} -> {shown_score(miou.second)}, change "
        f"{_change(miou.change)}, 95% interval {_interval(miou)}: {verdict}"
    )


def _most_changed(rows: Sequence[Difference]) -> Sequence[Difference]:
    """Returns the rows to print: all, or, of more classes than a screen is good for, those whose
    IoU changed most."""
    if len(rows) <= MOST_ROWS:
        return rows
    changed = [row for row in rows if row.change == row.change]
    return sorted(changed, key=lambda row: -abs(row.change))[:ROWS_OF_MANY]


def _print_images(title: str, images: Sequence[Difference]) -> None:
    if images:
        print(f"Pictures that {title} (mIoU of the picture):")
    for image in images[:_LISTED]:
        scores = f"{shown_score(image.first)} -> {shown_score(image.second)}"
        print(f"  {_change(image.change)}  {scores}  {image.name}")


def _change(value: float) -> str:
    return f"{value:+.4f}" if value == value else "\N{EN DASH}"


def _interval(row: Difference) -> str:
    if row.interval is None:
        return "\N{EN DASH}"
    return f"{row.interval[0]:+.4f} to {row.interval[1]:+.4f}"
