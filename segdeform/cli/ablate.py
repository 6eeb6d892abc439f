"""`segdeform ablate`: whether deformable layers pay on a data set."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from segdeform.cli.output import Data, Json, Threads, print_json
from segdeform.errors import PartialFailureError, UsageError


def ablate(
    config: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG", help="A config file or a shipped config.", show_default=False
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder of the runs.", show_default=False)],
    data: Data = None,
    layers: Annotated[
        str, typer.Option(metavar="A,B,...", help="Numbers of deformable layers.")
    ] = "0,3",
    variant: Annotated[str, typer.Option(metavar="v1,v2", help="Variants.")] = "v2",
    dilation: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...", help="Dilations.", show_default="what the output stride gives"
        ),
    ] = None,
    plain_dilation: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            help="Dilations of further networks without deformable layers: is it reach alone?",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each network.")] = 3,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a config key; repeatable."),
    ] = None,
    devices: Annotated[
        str, typer.Option(metavar="A,B,...", help="One run at a time on each: cuda:0,cuda:1.")
    ] = "auto",
    threads: Threads = None,
    json_output: Json = False,
) -> None:
    """Train networks with and without deformable layers, all else equal, and compare them.

    Every run is a folder of its own; the same command goes on after any interruption.
    """
    from segdeform.ablation import (
        Ablation,
        drop_repeated,
        make_arms,
        refuse_foreign,
        run_ablation,
    )
    from segdeform.config.loading import load_draft
    from segdeform.data import data_root
    from segdeform.training.start import refuse_data, refuse_weights

    variants = [word.strip() for word in variant.split(",")]
    if unknown := [word for word in variants if word not in ("v1", "v2")]:
        raise UsageError(f"--variant {unknown[0]}: it is v1 or v2")
    arms = make_arms(
        _numbers("--layers", layers, least=0),
        variants,  # type: ignore[arg-type]  # just checked
        [None] if dilation is None else _numbers("--dilation", dilation, least=1),
        _numbers("--plain-dilation", plain_dilation, least=1) if plain_dilation else (),
    )
    given = overrides or []
    # Before the first run, not after hours.
    configs = [load_draft(config, [*given, *arm.overrides()]).filled() for arm in arms]
    refuse_foreign(output)
    refuse_weights(configs[0].model.weights)
    refuse_data(configs[0], data_root(configs[0].data.name, data))
    arms, repeated = drop_repeated(arms, configs)
    ablation = Ablation(config, data, output, arms, seeds, given, devices.split(","), threads)

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    for arm, same in repeated:
        say(f"{arm.name}: the same network as {same.name}, trained once")
    facts = run_ablation(ablation, say)
    failed, count = facts["failed"], len(ablation.runs())
    if json_output:
        print_json(facts)
    elif len(failed) < count:
        print_table(facts)
        print(f"Written: {output / 'ablation.json'}")
    if failed:
        raise PartialFailureError(
            f"{len(failed)} of {count} runs failed, the first: {failed[0]} (see "
            f"{output / 'logs'}; the same command tries again)"
        )


def _numbers(option: str, text: str, least: int) -> list[int]:
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < least:
        raise UsageError(f"{option} {text}: expected whole numbers from {least}, as in 0,1,3")
    return numbers


def print_table(facts: dict[str, Any]) -> None:
    """Prints a row an arm, and what follows from them."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    title = f"{facts['config']}, {facts['seeds']} seeds; ±: 95% interval"
    table = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0))  # fits into 80 columns
    table.add_column("network", overflow="fold")
    for header in ("val mIoU", "against 0", "params", "time", "memory"):
        table.add_column(header, justify="right")
    against = {row["arm"]: row for row in facts["comparisons"]}
    for arm in facts["arms"]:
        change = against.get(arm["arm"])
        cells = ["" if change is None else _with_interval(change, "+.3f"), "", "", ""]
        if arm["parameters"] is not None:
            cells[1] = f"{arm['parameters'] / 1e6:.2f} M"
            cells[2] = f"{arm['seconds']:.0f} s"
            cells[3] = f"{arm['peak_memory_bytes'] / 2**20:.0f} MiB"
        table.add_row(arm["arm"], _with_interval(arm["miou"], ".3f"), *cells)
    Console().print(table)
    print(facts["verdict"])


def _with_interval(row: dict[str, Any], form: str) -> str:
    if row["mean"] is None:
        return "\N{EN DASH}"
    mean = f"{row['mean']:{form}}"
    return mean if row["high"] is None else f"{mean} ± {row['high'] - row['mean']:.3f}"
