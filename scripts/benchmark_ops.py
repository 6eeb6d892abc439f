"""Times deform_conv2d beside its peers and a plain convolution, in one process.

    python scripts/benchmark_ops.py [--threads 2] [--repeats 7] [--memory] [--json FILE]

All contestants of a row are called in turn, repeat by repeat, so that a busy machine slows them
alike; the table gives minimum (median) in milliseconds. Each turn is two calls, the second of which
is timed, so that no contestant pays for the caches and threads of the one before it (torchvision's
slow operator: one). "plain conv" is the faster of NCHW and channels-last. Ours is the functional
operator: it packs its weight at every call, while for ONNX Runtime and OpenVINO the weight is a
constant. Where a runtime is not installed or refuses a shape, its cell is a dash and stderr says
why. The table of bfloat16 has image, weight and output in it, and offsets and mask in float32, as
autocast calls the operator. Extra memory is the growth of the process's peak during one call,
measured in a child process. Deformable RoI pooling has no peer on CPU; without offsets it stands
beside torchvision's RoIAlign.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from operator_runtimes import RUNTIMES, Problem, runtime_calls, versions
from torch import Tensor

import cuda_ops


@dataclass(frozen=True)
class Row:
    """One shape: [N, C, H, W] -> O channels, 3x3, same size, modulated (v2)."""

    batch: int
    channels: int
    outputs: int
    size: tuple[int, int]
    dilation: int = 1
    groups: int = 1

    @property
    def name(self) -> str:
        kind = ", depthwise" if self.groups == self.channels else ""
        dilated = f", dil {self.dilation}" if self.dilation > 1 else ""
        height, width = self.size
        return f"{self.batch}, {self.channels}->{self.outputs}, {height}x{width}{dilated}{kind}"


ROWS = (
    Row(1, 512, 512, (32, 32), 2),
    Row(1, 512, 512, (33, 33), 2),  # res5 of DeepLab at 513x513, output stride 16
    Row(1, 512, 512, (64, 64), 2),
    Row(2, 256, 256, (33, 33)),
    Row(1, 128, 128, (128, 128)),
    Row(4, 64, 64, (64, 64)),
    Row(1, 960, 960, (23, 30), groups=960),
    Row(1, 960, 960, (33, 33), groups=960),
)

Call = Callable[[], object]


class Operands:
    """Random operands of a row, with gradients wanted of all of them."""

    def __init__(self, row: Row, device: str = "cpu") -> None:
        self.row = row
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(device)

        n, (h, w) = row.batch, row.size
        last = torch.channels_last
        self.plain = normal(n, row.channels, h, w)
        self.last = self.plain.contiguous(memory_format=last)
        self.weight = normal(row.outputs, row.channels // row.groups, 3, 3)
        self.weight_last = self.weight.contiguous(memory_format=last)
        self.offset = normal(n, 18, h, w) * 2
        self.mask = normal(n, 9, h, w).sigmoid()
        self.grad = normal(n, row.outputs, h, w)
        self.grad_last = self.grad.contiguous(memory_format=last)

    def problem(self) -> Problem:
        """Returns what the runtimes are to compute."""
        row = self.row
        return Problem(self.plain, self.offset, self.mask, self.weight, row.dilation, row.groups)

    def calls(self, backward: bool) -> dict[str, Call]:
        """Returns the contestants of torch: forward, or forward and all gradients."""
        d, groups = self.row.dilation, self.row.groups

        def conv(x: Tensor, w: Tensor) -> Tensor:
            return F.conv2d(x, w, None, 1, d, d, groups)

        def ours(x: Tensor, w: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
            return cuda_ops.deform_conv2d(x, offset, w, None, 1, d, d, mask)

        def theirs(x: Tensor, w: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
            output: Tensor = torchvision.ops.deform_conv2d(x, offset, w, None, 1, d, d, mask)
            return output

        sampling = (self.offset, self.mask)
        short = [t.bfloat16() for t in (self.last, self.weight, self.weight_last, self.grad_last)]
        last, weight, weight_last, grad_last = short
        candidates: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...], Tensor]] = {
            "conv NCHW": (conv, (self.plain, self.weight), self.grad),
            "conv channels-last": (conv, (self.last, self.weight_last), self.grad_last),
            "ours": (ours, (self.last, self.weight, *sampling), self.grad_last),
            "torchvision": (theirs, (self.plain, self.weight, *sampling), self.grad),
            "conv bf16": (conv, (last, weight_last), grad_last),
            "ours bf16": (ours, (last, weight, *sampling), grad_last),
        }
        return {
            name: self.call(f, inputs, grad, backward)
            for name, (f, inputs, grad) in candidates.items()
        }

    @staticmethod
    def call(
        f: Callable[..., Tensor], inputs: tuple[Tensor, ...], grad: Tensor, backward: bool
    ) -> Call:
        if not backward:
            return lambda: f(*inputs)
        leaves = [t.detach().requires_grad_() for t in inputs]
        return lambda: torch.autograd.grad(f(*leaves), leaves, grad)


def interleaved(calls: dict[str, Call], repeats: int) -> dict[str, list[float]]:
    """Times every call `repeats` times, in turn; milliseconds. The slow torchvision: at most 3."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for repeat in range(repeats):
        for name, call in calls.items():
            if name == "torchvision" and repeat >= 3:
                continue
            if name != "torchvision":
                call()
            start = time.perf_counter()
            call()
            times[name].append(1e3 * (time.perf_counter() - start))
    return times


def measure(row: Row, repeats: int, threads: int) -> dict[str, Any]:
    """Returns minimum and median of each contestant, forward and forward+backward."""
    result: dict[str, Any] = asdict(row) | {"name": row.name}
    operands = Operands(row)
    for phase, backward in (("forward", False), ("forward+backward", True)):
        calls = operands.calls(backward)
        with torch.set_grad_enabled(backward):
            if not backward:
                output = calls["ours"]()
                assert isinstance(output, Tensor)
                calls |= runtime_calls(operands.problem(), output, threads)
            times = interleaved(calls, repeats)
        plain = min((times.pop(n) for n in ("conv NCHW", "conv channels-last")), key=min)
        times["plain conv"] = plain
        result[phase] = {
            name: {"min_ms": min(t), "median_ms": statistics.median(t)} for name, t in times.items()
        }
        result[phase]["ours / plain conv"] = min(times["ours"]) / min(plain)
        result[phase]["torchvision / ours"] = min(times["torchvision"]) / min(times["ours"])
        if runtimes := [min(times[name]) for name in RUNTIMES if name in times]:
            result[phase]["best runtime / ours"] = min(runtimes) / min(times["ours"])
        bf16 = min(times["ours bf16"])
        result[phase]["ours / plain conv, bf16"] = bf16 / min(times["conv bf16"])
        result[phase]["ours, float32 / bf16"] = min(times["ours"]) / bf16
    return result


MEMORY = """
import re, sys, torch
sys.path.insert(0, {scripts!r})
import benchmark_ops as b
torch.set_num_threads({threads})
call = b.Operands(b.ROWS[{index}]).calls({backward})[{name!r}]
small = b.Operands(b.Row(1, 8, 8, (8, 8))).calls({backward})[{name!r}]
def kib(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
with torch.set_grad_enabled({backward}):
    small()
    open("/proc/self/clear_refs", "w").write("5")  # forgets the peak so far
    before = kib("VmRSS")
    call()
print(kib("VmHWM") - before)
"""


def extra_memory(index: int, name: str, backward: bool, threads: int) -> float:
    """Returns the growth of a fresh process's peak memory over one call, in MiB."""
    code = MEMORY.format(scripts=str(Path(__file__).parent), threads=threads, index=index,
                         backward=backward, name=name)  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout) / 1024


def cell(phase: dict[str, Any], name: str) -> str:
    """Formats minimum (median) of a contestant; a dash if it did not take part."""
    times = phase.get(name)
    return f"{times['min_ms']:.2f} ({times['median_ms']:.2f})" if times else "-"


def table(results: list[dict[str, Any]]) -> str:
    """Formats the results in float32 as a Markdown table."""
    names = ("plain conv", "ours", "torchvision", *RUNTIMES)
    lines = [
        f"| N, C->O, size | phase | {', ms | '.join(names)}, ms | ours / plain "
        "| best runtime / ours | torchvision / ours | extra MiB: plain, ours, torchvision |",
        "|---" * (len(names) + 6) + "|",
    ]
    for result in results:
        for phase in ("forward", "forward+backward"):
            r = result[phase]
            best = f"{r['best runtime / ours']:.2f}" if "best runtime / ours" in r else "-"
            memory = ", ".join(f"{m:.0f}" for m in r.get("extra_mib", {}).values()) or "-"
            lines.append(
                f"| {result['name']} | {phase} | {' | '.join(cell(r, n) for n in names)} | "
                f"{r['ours / plain conv']:.2f} | {best} | {r['torchvision / ours']:.1f} "
                f"| {memory} |"
            )
    return "\n".join(lines)


def bf16_table(results: list[dict[str, Any]]) -> str:
    """Formats the results in bfloat16 as a Markdown table."""
    lines = [
        "| bfloat16: N, C->O, size | phase | plain conv, ms | ours, ms | ours / plain "
        "| ours: float32 / bfloat16 |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        for phase in ("forward", "forward+backward"):
            r = result[phase]
            lines.append(
                f"| {result['name']} | {phase} | {cell(r, 'conv bf16')} | {cell(r, 'ours bf16')} "
                f"| {r['ours / plain conv, bf16']:.2f} | {r['ours, float32 / bf16']:.2f} |"
            )
    return "\n".join(lines)


def measure_rois(repeats: int) -> dict[str, Any]:
    """Times pooling of 512 regions, 8 to 400 image pixels wide, from features of stride 16."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(512, 2, generator=generator) * 819
    sizes = torch.rand(512, 2, generator=generator) * 392 + 8
    rois = torch.cat([torch.zeros(512, 1), corners, (corners + sizes).clamp(max=1024)], 1)
    image = torch.randn(1, 256, 64, 64, generator=generator)
    last = image.contiguous(memory_format=torch.channels_last)
    offset = torch.randn(512, 2, 7, 7, generator=generator)
    grad = torch.randn(512, 256, 7, 7, generator=generator)
    grad_last = grad.contiguous(memory_format=torch.channels_last)

    def ours(x: Tensor, offset: Tensor | None = None) -> Tensor:
        return cuda_ops.deform_roi_pool(x, rois, offset, 7, 1 / 16)

    def theirs(x: Tensor) -> Tensor:
        output: Tensor = torchvision.ops.roi_align(x, rois, 7, 1 / 16, aligned=True)
        return output

    candidates: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...], Tensor]] = {
        "torchvision roi_align": (theirs, (image,), grad),
        "ours, no offset": (ours, (image,), grad),
        "ours, no offset, channels-last": (ours, (last,), grad_last),
        "ours": (ours, (image, offset), grad),
        "ours, channels-last": (ours, (last, offset), grad_last),
    }
    result = {}
    for phase, backward in (("forward", False), ("forward+backward", True)):
        calls = {
            name: Operands.call(f, inputs, g, backward)
            for name, (f, inputs, g) in candidates.items()
        }
        with torch.set_grad_enabled(backward):
            times = interleaved(calls, repeats)
        result[phase] = {
            name: {"min_ms": min(t), "median_ms": statistics.median(t)} for name, t in times.items()
        }
    return result


def roi_table(result: dict[str, Any]) -> str:
    """Formats what `measure_rois` found as a Markdown table."""
    lines = [
        "| pooling of 512 RoIs, C = 256, 7x7 | forward, ms | forward+backward, ms |",
        "|---|---|---|",
    ]
    for name in result["forward"]:
        cells = [
            f"{r['min_ms']:.2f} ({r['median_ms']:.2f})" for r in (p[name] for p in result.values())
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def machine(threads: int) -> dict[str, Any]:
    """Describes what the numbers were measured on."""
    names = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processor": names[0] if names else platform.processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": len(names),
        "threads": threads,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "backend": cuda_ops.backend("cpu"),
    }


def main() -> None:
    """Prints the table and, if asked to, writes it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--memory", action="store_true", help="measure extra memory too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    facts = machine(arguments.threads) | versions()
    results = []
    for index, row in enumerate(ROWS):
        if arguments.only not in row.name:
            continue
        print(f"measuring {row.name}", file=sys.stderr, flush=True)
        results.append(measure(row, arguments.repeats, arguments.threads))
        if arguments.memory:
            for phase, backward in (("forward", False), ("forward+backward", True)):
                results[-1][phase]["extra_mib"] = {
                    name: extra_memory(index, name, backward, arguments.threads)
                    for name in ("conv channels-last", "ours", "torchvision")
                }
    print(", ".join(f"{key}: {value}" for key, value in facts.items()), end="\n\n")
    print(table(results), end="\n\n")
    print(bf16_table(results), end="\n\n")
    rois = measure_rois(arguments.repeats)
    print(roi_table(rois))
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"machine": facts, "rows": results, "roi pooling": rois}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
