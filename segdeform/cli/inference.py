"""How a model is used: the options that `eval` and `predict` have in common, declared once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import typer

from segdeform.cli.output import Device, Threads
from segdeform.errors import UsageError

if TYPE_CHECKING:
    from segdeform.models.precision import Asked
    from segdeform.segmenter import Segmenter


@dataclass(frozen=True)
class Inference:
    """Options of the command line, in the order of `--help`; None: what the model says."""

    PANEL: ClassVar[str] = "How the model is used"

    tile: Annotated[
        int | None,
        typer.Option(min=0, help="Side of the sliding window, pixels; 0: whole pictures."),
    ] = None
    overlap: Annotated[
        float | None, typer.Option(min=0, max=0.99, help="Overlap of neighbouring windows / side.")
    ] = None
    blend: Annotated[
        Literal["gaussian", "uniform"] | None, typer.Option(help="Weights where windows overlap.")
    ] = None
    scales: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Average over these scales: 0.75,1,1.25.")
    ] = None
    shorter_side: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="See pictures reduced whose shorter side has more pixels than this; 0: see none "
            "reduced.",
        ),
    ] = None
    flip: Annotated[
        bool | None, typer.Option("--flip/--no-flip", help="Average over a flip too.")
    ] = None
    precision: Annotated[
        Literal["auto", "fp32", "bf16"] | None,
        typer.Option(
            help="Numbers of the network; auto: bf16 where processor or GPU is faster with it.",
            show_default="auto for predictions, fp32 for scores",
        ),
    ] = None
    runtime: Annotated[
        Literal["onnxruntime", "openvino", "torch"] | None,
        typer.Option(
            help="What runs an exported model.", show_default="the first it has a file for"
        ),
    ] = None
    device: Device = "auto"
    threads: Threads = None

    def options(self) -> dict[str, Any]:
        """Returns what was given of the keys of the config's section `eval`."""
        given = {key: getattr(self, key) for key in ("tile", "overlap", "blend", "flip")}
        given["scales"] = None if self.scales is None else _numbers(self.scales)
        given = {key: value for key, value in given.items() if value is not None}
        if self.shorter_side is not None:
            given["shorter_side"] = self.shorter_side or None
        return given

    def load(self, model: Path, precision: Asked = "fp32") -> Segmenter:
        """Loads a model to be used like this; in `precision` where no other was given.

        Raises what `segmenter.load` does, and UsageError.
        """
        import torch

        from segdeform.machine.cpu import available_cores, keep_freed_memory
        from segdeform.machine.device import resolve_device
        from segdeform.machine.processes import neighbours, own_device
        from segdeform.model_folder import is_exported
        from segdeform.segmenter import load

        options = self.options()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        elif neighbours() > 1:  # torchrun would leave one thread to each
            torch.set_num_threads(max(1, available_cores() // neighbours()))
        keep_freed_memory()
        device = str(own_device(resolve_device(self.device)))
        if is_exported(model):  # its runtime may be for the CPU alone, on a machine with a GPU
            device = self.device
        numbers = self.precision or precision
        segmenter = load(model, device, precision=numbers, runtime=self.runtime)
        return segmenter.with_options(**options)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(0.1 <= number <= 10 for number in numbers):
        raise UsageError(f"--scales {text}: expected numbers from 0.1 to 10, as in 0.75,1,1.25")
    return numbers
