"""`segdeform info`: what a model folder holds."""

from __future__ import annotations

from typing import Any

from segdeform.cli.output import MOST_ROWS, ROWS_OF_MANY, Json, Model, print_json


def info(model: Model, json_output: Json = False) -> None:
    """Show a model's architecture, classes, size and training; verify its files."""
    from segdeform.model_folder import refuse_missing_model

    refuse_missing_model(model)  # before torch's seconds of import

    from segdeform.segmenter import load

    facts = load(model, "cpu").info
    if json_output:
        print_json(facts)
    else:
        print_facts(facts)


def print_facts(facts: dict[str, Any]) -> None:
    """Prints the facts of `Segmenter.info` as a table."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False)
    table.add_column()
    table.add_column(overflow="fold")  # hashes are to be copied whole
    for name, value in _rows(facts):
        table.add_row(name, escape(value))
    Console().print(table, highlight=False)


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    model, deform = facts["model"], facts["deform"]
    layers = facts["deformable_layers"]
    groups = f"{deform['variant']}, {_count(deform['offset_groups'], 'offset group')}"
    deformable = f"{_count(len(layers), 'layer')}, {groups}: {', '.join(layers)}"
    exported = facts.get("export")
    return [
        ("folder", facts["path"]),
        *([] if exported is None else [("exported", _exported(facts, exported))]),
        ("network", f"{model['backbone']}, {model['head']} head of {model['head_channels']}"),
        ("output stride", str(model["output_stride"])),
        ("deformable", deformable if layers else "no"),
        ("dilation", str(deform["dilation"] or "from the output stride")),
        ("classes", _classes(facts["classes"])),
        ("pictures", _pictures(facts)),
        ("parameters", f"{facts['parameters']:,}"),
        ("receptive field", _field(facts["receptive_field"], seamless=exported is None)),
        ("inference", _inference(facts["eval"], seamless=exported is None)),
        ("training", _pairs(facts["training"])),
        *_origin(facts.get("origin")),
        ("written by", f"segdeform {facts['segdeform_version']}"),
        ("files", "all verified"),
        (facts["weights"], f"SHA-256 {facts['sha256']}"),
    ]


def _classes(names: list[str]) -> str:
    """Names the classes; of more than a screen is good for, the first ones."""
    shown = names if len(names) <= MOST_ROWS else names[:ROWS_OF_MANY]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return f"{len(names)}: {', '.join(shown)}{more}"


def _origin(origin: dict[str, str] | None) -> list[tuple[str, str]]:
    """Tells where an imported network came from."""
    if origin is None:
        return []
    return [
        ("imported from", origin["source"]),
        ("its file", f"{origin['file']}, SHA-256 {origin['sha256']}"),
        ("licence", origin["licence"]),
    ]


def _exported(facts: dict[str, Any], exported: dict[str, Any]) -> str:
    """Words what an exported model is, and what it was made of."""
    takes = "uint8 [N, H, W, C]" if exported["input"] == "uint8" else "float32 [N, C, H, W]"
    layers = ", deformable layers of standard operators" if exported["pure"] else ""
    opset = "" if exported["opset"] is None else f", ONNX opset {exported['opset']}"
    return (
        f"for {', '.join(exported['runtimes'])}, in {exported['precision']}{layers}{opset}; takes "
        f"{takes}, gives {', '.join(exported['outputs'])}; run here by {facts['runtime']}; made of "
        f"weights with SHA-256 {exported['source_sha256']}"
    )


def _pictures(facts: dict[str, Any]) -> str:
    """Tells how a picture is read and normalised."""
    bands, value_range = facts["bands"], facts["value_range"]
    read = "RGB" if bands is None else f"bands {', '.join(map(str, bands))} of a file"
    numbers = (
        f"{name} {', '.join(f'{value:.3g}' for value in facts[name])}" for name in ("mean", "std")
    )
    if value_range is None:
        return "; ".join([read, *numbers])
    pairs = value_range if isinstance(value_range[0], list) else [value_range]
    black_and_white = ", ".join(f"{low:g} to {high:g}" for low, high in pairs)
    return "; ".join([read, *numbers, f"values {black_and_white}"])


def _field(field: dict[str, Any] | None, seamless: bool) -> str:
    """Words how far the network looks, and what windows with the scores of the whole need."""
    if field is None:
        return "unknown"
    mean = ", and the mean of the whole picture" if field["pools"] else ""
    if len(grids := field.get("grids", ())) > 1:  # descriptions of exported models may lack it
        cells = ", ".join(f"{grid}x{grid}" for grid in grids)
        mean = f", and the means of the whole picture's cells in grids of {cells}"
    if field["squeezes"]:
        mean += ", and in the backbone the means of what it is shown"
    if not seamless:
        return f"{field['pixels']} pixels{mean}"
    return (
        f"{field['pixels']} pixels{mean}; windows have {field['backbone_halo']} more on every side "
        f"for the backbone, {field['head_halo']} for the head"
    )


def _inference(options: dict[str, Any], seamless: bool) -> str:
    """Words how a picture becomes labels; `seamless`: by a network that can be taken apart."""
    blend = f"overlap {options['overlap']:g}, blend {options['blend']}"
    if options["tile"]:
        seen = f"in windows of {options['tile']} pixels, {blend}"
    elif not seamless or options["flip"] or tuple(options["scales"]) != (1.0,):
        side = options["automatic_tile"] or "512"  # of models that do not tell their crop
        seen = f"whole; too large for that, in windows of {side} pixels, {blend}"
    else:
        seen = "whole; too large for that, in windows with the labels of the whole"
    scales = ", ".join(f"{scale:g}" for scale in options["scales"])
    many = f"scales {scales}" if len(options["scales"]) > 1 else f"scale {scales}"
    if side := options.get("shorter_side"):
        many = f"{many} of pictures reduced to a shorter side of {side} pixels"
    return f"{seen}; {many}; {'both ways round' if options['flip'] else 'no flip'}"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _pairs(values: dict[str, Any]) -> str:
    """Joins the values that fit on a line; nested ones are shown by --json."""
    plain = {key: value for key, value in values.items() if not isinstance(value, dict)}
    return ", ".join(f"{key.replace('_', ' ')} {_plain(value)}" for key, value in plain.items())


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
