"""Times the operators on a GPU beside cuDNN's plain convolution and torchvision, in one process.

    python scripts/benchmark_cuda.py [--seconds 90] [--only TEXT] [--json FILE] [--markdown FILE]

Times are medians of device events in milliseconds; all contestants of a row are called in turn,
repeat by repeat. Before each call the GPU is kept busy for a moment, so that the time of launching
stays out. "conv" is F.conv2d, "ours" deform_conv2d with a mask, both channels-last in the dtype of
the row; "torchvision" is its operator as autocast calls it, NCHW, left out where torchvision is
not installed. Extra memory is the peak during a call above what was there before it, results
included; "workspace" is what ours takes beyond its results in the forward pass. A second table
times ours with other workspaces (SEGDEFORM_CUDA_WORKSPACE): more rows a chunk against columns that
stay in the L2 cache.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import cuda_ops

try:
    import torchvision
except (ImportError, RuntimeError):  # the latter where it was made for another torch
    torchvision = None

LOW = {"bf16": torch.bfloat16, "fp16": torch.float16}
BUSY_CYCLES = 3_000_000  # of the GPU's clock: longer than Python needs to queue a call
CEILINGS = ("copy TB/s", "bf16 TFLOP/s")
Call = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One convolution: [N, C, H, W] -> O channels, 3x3, same size, modulated (v2)."""

    batch: int
    channels: int
    outputs: int
    size: tuple[int, int]
    dtype: str = "bf16"  # or fp16, fp32, tf32
    dilation: int = 1
    groups: int = 1

    @property
    def name(self) -> str:
        kind = ", depthwise" if self.groups == self.channels else ""
        dilated = f", dil {self.dilation}" if self.dilation > 1 else ""
        shape = f"{self.batch}, {self.channels}->{self.outputs}, {self.size[0]}x{self.size[1]}"
        return f"{shape}{dilated}{kind}, {self.dtype}"


ROWS = (
    Row(16, 512, 512, (64, 64), dilation=2),
    Row(16, 64, 64, (128, 128)),
    Row(16, 256, 256, (33, 33)),
    Row(1, 512, 512, (64, 128), dilation=2),  # 1024x2048 at output stride 16
    Row(16, 960, 960, (33, 33), groups=960),
    Row(16, 512, 512, (64, 64), "fp16", dilation=2),
    Row(16, 512, 512, (64, 64), "tf32", dilation=2),
    Row(16, 512, 512, (64, 64), "fp32", dilation=2),
)


WORKSPACES = (64, 192, 640)  # MiB; the first is the default
SWEPT = (ROWS[0], ROWS[2])


def set_tf32(on: bool) -> None:
    """Lets float32 matrix products and convolutions use tf32, or not."""
    torch.backends.cuda.matmul.allow_tf32 = on
    torch.backends.cudnn.allow_tf32 = on


def conv_calls(row: Row, backward: bool, device: str = "cuda") -> dict[str, Call]:
    """Returns the contestants of a row, each a call without arguments."""
    generator = torch.Generator(device).manual_seed(0)
    dtype, last = LOW.get(row.dtype, torch.float32), torch.channels_last

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    n, (h, w), d, groups = row.batch, row.size, row.dilation, row.groups
    image = normal(n, row.channels, h, w).to(dtype)
    weight = normal(row.outputs, row.channels // groups, 3, 3).to(dtype)
    grad = normal(n, row.outputs, h, w).to(dtype)
    sampling = (2 * normal(n, 18, h, w), normal(n, 9, h, w).sigmoid())
    image_last, weight_last, grad_last = (
        t.contiguous(memory_format=last) for t in (image, weight, grad)
    )

    def conv(x: Tensor, w: Tensor) -> Tensor:
        return F.conv2d(x, w, None, 1, d, d, groups)

    def ours(x: Tensor, w: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        return cuda_ops.deform_conv2d(x, offset, w, None, 1, d, d, mask)

    def theirs(x: Tensor, w: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        with torch.autocast(device, dtype, enabled=row.dtype in LOW):
            output: Tensor = torchvision.ops.deform_conv2d(x, offset, w, None, 1, d, d, mask)
        return output

    calls = {
        "conv": call_of(conv, (image_last, weight_last), grad_last, backward),
        "ours": call_of(ours, (image_last, weight, *sampling), grad_last, backward),
    }
    if torchvision is not None:
        calls["torchvision"] = call_of(theirs, (image, weight, *sampling), grad, backward)
    return calls


def workspace_calls(row: Row, backward: bool, device: str = "cuda") -> dict[str, Call]:
    """Returns ours once for each workspace, by its size in MiB."""
    ours = conv_calls(row, backward, device)["ours"]

    def with_workspace(mib: int) -> Call:
        def call() -> object:
            before = os.environ.get("SEGDEFORM_CUDA_WORKSPACE")
            os.environ["SEGDEFORM_CUDA_WORKSPACE"] = str(mib << 20)
            try:
                return ours()
            finally:
                del os.environ["SEGDEFORM_CUDA_WORKSPACE"]
                if before is not None:
                    os.environ["SEGDEFORM_CUDA_WORKSPACE"] = before

        return call

    return {str(mib): with_workspace(mib) for mib in WORKSPACES}


def roi_calls(backward: bool, device: str = "cuda", count: int = 512) -> dict[str, Call]:
    """Returns contestants that pool regions, 8 to 400 image pixels wide, at stride 16, bf16."""
    generator = torch.Generator(device).manual_seed(0)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=device)

    corners = uniform(count, 2) * 819
    rois = torch.cat([(uniform(count, 1) * 2).floor(), corners, corners + uniform(count, 2) * 392],
                     1)  # fmt: skip
    rois[:, 3:] += 8
    image = uniform(2, 256, 64, 64).bfloat16()
    last = image.contiguous(memory_format=torch.channels_last)
    offset = uniform(count, 2, 7, 7)
    grad = uniform(count, 256, 7, 7).bfloat16()
    grad_last = grad.contiguous(memory_format=torch.channels_last)

    def ours(x: Tensor, offset: Tensor | None = None) -> Tensor:
        return cuda_ops.deform_roi_pool(x, rois, offset, 7, 1 / 16)

    def theirs(x: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            output: Tensor = torchvision.ops.roi_align(x, rois, 7, 1 / 16, aligned=True)
        return output

    calls = {
        "ours, no offset": call_of(ours, (last,), grad_last, backward),
        "ours": call_of(ours, (last, offset), grad_last, backward),
    }
    if torchvision is not None:
        calls["torchvision roi_align"] = call_of(theirs, (image,), grad, backward)
    return calls


def call_of(
    f: Callable[..., Tensor], inputs: tuple[Tensor, ...], grad: Tensor, backward: bool
) -> Call:
    """Binds the operands; with backward, all gradients are computed too."""
    if not backward:
        return lambda: f(*inputs)
    leaves = [t.detach().requires_grad_() for t in inputs]

    def both() -> tuple[Tensor, ...]:
        output = f(*leaves)
        return torch.autograd.grad(output, leaves, grad.to(output))

    return both


def device_time(call: Call) -> float:
    """Times one call by device events; milliseconds."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(BUSY_CYCLES)
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def bytes_of(result: object) -> int:
    """Returns how much memory the tensors of a result take."""
    tensors = result if isinstance(result, tuple) else (result,)
    return sum(t.untyped_storage().nbytes() for t in tensors if isinstance(t, Tensor))


def extra_memory(call: Call) -> dict[str, float]:
    """Returns the peak of one call above what was there, and that without its results, in MiB."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    return {"extra_mib": peak / 2**20, "workspace_mib": (peak - bytes_of(result)) / 2**20}


def compare(calls: dict[str, Call], deadline: float) -> dict[str, dict[str, float]]:
    """Times the calls in turn: 5 to 30 repeats, fewer when the deadline is near."""
    found = {}
    for name, call in calls.items():
        for _ in range(3):  # cuDNN chooses, allocators grow
            call()
        found[name] = extra_memory(call)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(30):
        if repeat >= 5 and time.monotonic() > deadline:
            break
        for name, call in calls.items():
            times[name].append(device_time(call))
    for name, seen in times.items():
        found[name] |= {"median_ms": statistics.median(seen), "min_ms": min(seen),
                        "max_ms": max(seen), "repeats": len(seen)}  # fmt: skip
    return found


def measure(calls_of: Callable[[bool], dict[str, Call]], seconds: float) -> dict[str, Any]:
    """Times both phases of a row; a contestant that fails says so and ends the phase."""
    result: dict[str, Any] = {}
    for phase, backward in (("forward", False), ("forward+backward", True)):
        try:
            with torch.set_grad_enabled(backward):
                result[phase] = compare(calls_of(backward), time.monotonic() + seconds / 2)
        except RuntimeError as error:  # out of memory, a launch that failed
            result[phase] = {"error": str(error).strip().splitlines()[0]}
    return result


def conv_table(rows: list[dict[str, Any]]) -> list[str]:
    """Formats the convolutions: a line a row and phase."""
    lines = [
        "| N, C->O, size | phase | conv, ms | ours, ms | torchvision, ms | ours / conv "
        "| torchvision / ours | extra MiB: conv, ours, torchvision | workspace, MiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    contestants = ("conv", "ours", "torchvision")
    for row in rows:
        for phase in ("forward", "forward+backward"):
            r = row[phase]
            if "error" in r:
                lines.append(f"| {row['name']} | {phase} | {r['error']} |")
                continue
            ms = {n: r[n]["median_ms"] for n in contestants if n in r}
            cells = [f"{ms[n]:.3f}" if n in ms else "-" for n in contestants]
            faster = f"{ms['torchvision'] / ms['ours']:.1f}" if "torchvision" in ms else "-"
            extra = ", ".join(f"{r[n]['extra_mib']:.0f}" for n in contestants if n in r)
            space = f"{r['ours']['workspace_mib']:.0f}" if phase == "forward" else "-"
            lines.append(
                f"| {row['name']} | {phase} | {' | '.join(cells)} | {ms['ours'] / ms['conv']:.2f} "
                f"| {faster} | {extra} | {space} |"
            )
    return lines


def roi_table(result: dict[str, Any]) -> list[str]:
    """Formats the poolings: a line a contestant."""
    lines = ["| pooling of 512 RoIs, C = 256, 7x7, bf16 | forward, ms | forward+backward, ms |",
             "|---|---|---|"]  # fmt: skip
    phases = [result[phase] for phase in ("forward", "forward+backward")]
    if failed := [r["error"] for r in phases if "error" in r]:
        return [*lines, f"| {failed[0]} | - | - |"]
    for name in phases[0]:
        cells = [f"{r[name]['median_ms']:.3f}" for r in phases]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def workspace_table(rows: list[dict[str, Any]]) -> list[str]:
    """Formats the workspaces: a line a row and phase."""
    sizes = " | ".join(f"{mib}, ms" for mib in WORKSPACES)
    lines = [
        f"| ours, by MiB of workspace | phase | {sizes} |",
        "|---|---|" + "---|" * len(WORKSPACES),
    ]
    for row in rows:
        for phase in ("forward", "forward+backward"):
            r = row[phase]
            cells = [r["error"]] if "error" in r else [f"{r[n]['median_ms']:.3f}" for n in r]
            lines.append(f"| {row['name']} | {phase} | {' | '.join(cells)} |")
    return lines


def ceilings(device: str = "cuda", mib: int = 1024, side: int = 8192) -> dict[str, float]:
    """Measures what this GPU can do: copied memory (read and written) and a bf16 product."""
    source = torch.randint(255, (mib * 2**20,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    matrix = torch.randn(side, side, device=device).bfloat16()

    def median_ms(call: Call) -> float:
        return statistics.median([device_time(call) for _ in range(10)][3:])

    return {
        "copy TB/s": 2 * source.numel() / median_ms(lambda: target.copy_(source)) / 1e9,
        "bf16 TFLOP/s": 2 * side**3 / median_ms(lambda: matrix @ matrix) / 1e9,
    }


def machine() -> dict[str, Any]:
    """Describes what the numbers were measured on."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "torchvision": None if torchvision is None else torchvision.__version__,
        "backend": cuda_ops.backend("cuda"),
        "roi backend": cuda_ops.backend("cuda", "deform_roi_pool"),
    }


def main() -> int:
    """Measures, writes after each row what is known so far; returns 8 if a row failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=90, help="for all rows together, about")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmark_cuda: torch sees no CUDA device on this machine", file=sys.stderr)
        return 2
    torch.backends.cudnn.benchmark = True
    found: dict[str, Any] = {"machine": machine() | ceilings(), "rows": [], "workspaces": []}
    wanted = [row for row in ROWS if options.only in row.name]
    swept = [row for row in SWEPT if options.only in row.name]
    # Half for warming up and drawing operands.
    share = options.seconds / (len(wanted) + len(swept) + 1) / 2

    def write(table: list[str]) -> None:
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n")
        if options.markdown:
            options.markdown.write_text("\n".join(table) + "\n")

    for row in wanted:
        print(f"measuring {row.name}", file=sys.stderr, flush=True)
        set_tf32(row.dtype == "tf32")
        result = measure(lambda backward, row=row: conv_calls(row, backward), share)
        found["rows"].append(asdict(row) | {"name": row.name} | result)
        write(conv_table(found["rows"]))
        torch.cuda.empty_cache()
    set_tf32(False)
    for row in swept:
        print(f"measuring workspaces, {row.name}", file=sys.stderr, flush=True)
        result = measure(lambda backward, row=row: workspace_calls(row, backward), share)
        found["workspaces"].append({"name": row.name} | result)
        torch.cuda.empty_cache()
    found["roi pooling"] = measure(roi_calls, share)
    facts = ", ".join(f"{key}: {found['machine'][key]:.1f}" for key in CEILINGS)
    table = [*conv_table(found["rows"]), "", *workspace_table(found["workspaces"]), "",
             *roi_table(found["roi pooling"]), "", facts]  # fmt: skip
    write(table)
    print("\n".join(table))
    results = [*found["rows"], *found["workspaces"], found["roi pooling"]]
    failed = any("error" in r[p] for r in results for p in ("forward", "forward+backward"))
    return 8 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
