"""What `predict` writes of each picture, and how: its options, declared in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import typer

from segdeform.errors import UsageError
from segdeform.results.outputs import DEFAULT, KINDS, Forms, Numbers, known_outputs

_KINDS_HELP = "\n\n".join(f"{name}: {kind.help}." for name, kind in KINDS.items())


@dataclass(frozen=True)
class Outputs:
    """Options of the command line, in the order of `--help`."""

    PANEL: ClassVar[str] = "What is written of each picture"

    outputs: Annotated[
        str,
        typer.Option(metavar="A,B,...", help=f"Which, each in its own folder:\n\n{_KINDS_HELP}"),
    ] = ",".join(DEFAULT)
    overlays: Annotated[
        bool | None,
        typer.Option("--overlays/--no-overlays", help="Write overlays too, or none."),
    ] = None
    probabilities_type: Annotated[
        Numbers | None,
        typer.Option(help="uint8: 255 times them, rounded.", show_default="float16"),
    ] = None
    min_area: Annotated[
        int | None,
        typer.Option(min=1, help="Pixels of the smallest polygon.", show_default="1"),
    ] = None
    simplify: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="PIXELS",
            help="Smooth polygons by about so much (needs shapely).",
            show_default="0: along pixel edges",
        ),
    ] = None
    skip_class: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A class without polygons; can be given several times."),
    ] = None
    cutout_class: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The class that cutouts show.", show_default=False),
    ] = None

    def names(self) -> tuple[str, ...]:
        """Returns the outputs that are asked for.

        Raises UsageError for an unknown one, or an option of one that is not asked for.
        """
        names = known_outputs([name.strip() for name in self.outputs.split(",")])
        if self.overlays is not None:
            others = {name for name in names if name != "overlays"}
            wanted = others | ({"overlays"} if self.overlays else set())
            names = tuple(name for name in KINDS if name in wanted)
        if not names:
            raise UsageError("--outputs: nothing would be written")
        for output, option, value in (
            ("probabilities", "--probabilities-type", self.probabilities_type),
            ("polygons", "--min-area", self.min_area),
            ("polygons", "--simplify", self.simplify),
            ("polygons", "--skip-class", self.skip_class or None),
            ("cutouts", "--cutout-class", self.cutout_class),
        ):
            if value is not None and output not in names:
                raise UsageError(f"{option} is for {output}: add {output} to --outputs")
        if "cutouts" in names and self.cutout_class is None:
            raise UsageError("cutouts need --cutout-class NAME")
        if self.simplify:
            _refuse_missing_shapely()
        return names

    def forms(self) -> Forms:
        """Returns how outputs are made that can be made in several ways."""
        return Forms(
            probabilities_type=self.probabilities_type or "float16",
            min_area=self.min_area or 1,
            simplify=self.simplify or 0.0,
            skip_classes=tuple(self.skip_class or ()),
            cutout_class=self.cutout_class,
        )


def _refuse_missing_shapely() -> None:
    from importlib.util import find_spec

    if find_spec("shapely") is None:
        raise UsageError("--simplify needs shapely: pip install 'segdeform[polygons]'")
