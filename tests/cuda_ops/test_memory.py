"""No column matrix: the memory of a call stays near what it returns."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.skipif(
        os.environ.get("SEGDEFORM_OPS") == "torchvision", reason="the native library is set aside"
    ),
    pytest.mark.skipif(
        not Path("/proc/self/clear_refs").exists(), reason="this system does not tell the peak"
    ),
]

# Large results, so that what a process happens to grow by anyway is small beside them.
CHANNELS, SIDE = 64, 384
OUTPUT_MIB = CHANNELS * SIDE * SIDE * 4 / 2**20  # 36; the column matrix would take 324

CALL = f"""
import re, torch, cuda_ops
def operands(side):
    image = torch.empty(1, {CHANNELS}, side, side, memory_format=torch.channels_last).normal_()
    offset, mask = torch.randn(1, 18, side, side), torch.rand(1, 9, side, side)
    return image, offset, torch.randn({CHANNELS}, {CHANNELS}, 3, 3), mask
def kib(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
def start():
    open("/proc/self/clear_refs", "w").write("5")  # forgets the peak so far
    return kib("VmRSS")
def call(image, offset, weight, mask):
    return cuda_ops.deform_conv2d(image, offset, weight, padding=1, mask=mask)
small, large = operands(8), operands({SIDE})
call(*[t.requires_grad_() for t in small]).sum().backward()
"""
FORWARD = "before = start(); kept = call(*large); print(kib('VmHWM') - before)"
BACKWARD = """
output = call(*[t.requires_grad_() for t in large])
grad = torch.ones_like(output)
before = start(); output.backward(grad); print(kib("VmHWM") - before)
"""


def growth(step: str) -> float:
    """Runs a step in a fresh process; returns by how many MiB its peak grew."""
    done = subprocess.run([sys.executable, "-c", CALL + step], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout) / 1024


def test_forward_takes_little_more_than_its_output() -> None:
    assert 0.9 * OUTPUT_MIB < growth(FORWARD) < 1.1 * OUTPUT_MIB


def test_backward_takes_a_few_times_its_results() -> None:
    # The gradient of the input, a padded copy of the output's, and per-slice sums for the samples.
    assert OUTPUT_MIB < growth(BACKWARD) < 5 * OUTPUT_MIB
