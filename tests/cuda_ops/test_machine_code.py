"""What ptxas made of the kernels: nothing that costs more than it must, as far as reading tells.

No GPU is needed. The numbers are those of nvcc 13.0 for sm_90; other versions may differ by some.
"""

from __future__ import annotations

import pytest

from cuda_ops import library
from tests.cuda_ops import machine_code
from tests.cuda_ops.machine_code import Kernel
from tests.cuda_ops.test_ptx import VECTORS

SLACK = 1.15
# kernel: most instructions of those that read 16 bytes at once, of the others; most registers
RECORDED = {
    "add_bias": (0, 186, 30),
    "add_weight_gradient": (0, 162, 16),
    "depthwise_forward": (1639, 1946, 96),
    "depthwise_weight_gradient": (1149, 851, 72),
    "find_lists": (0, 209, 22),
    "find_starts": (0, 32, 16),
    "gather_columns": (655, 1086, 56),
    "gather_input_gradient": (846, 685, 104),
    "gradient_of_input": (0, 1338, 72),
    "gradient_of_shifts": (2368, 2418, 128),
    "place_bins": (0, 1312, 84),
    "pool_bins": (1831, 1802, 90),
    "sample_gradients": (1024, 1273, 95),
}
# Calls of subroutines; these are divisions of 64-bit integers or of floating point numbers.
DIVIDING = {
    "add_weight_gradient": 1,
    "depthwise_weight_gradient": 1,
    "gradient_of_input": 3,
    "gradient_of_shifts": 26,
    "place_bins": 20,
    "pool_bins": 28,
}


@pytest.fixture(scope="module")
def newest() -> dict[str, Kernel]:
    machine_code.require_library()
    return machine_code.kernels(max(machine_code.architectures(), key=int))


def name_of(mangled: str) -> str:
    """Returns the plain name of a kernel."""
    names = [*RECORDED, "sample_points_kernel"]
    return next(name for name in names if f"{len(name)}{name}" in mangled)


def test_every_kernel_is_known(newest: dict[str, Kernel]) -> None:
    assert {name_of(kernel) for kernel in newest} - {"sample_points_kernel"} == set(RECORDED)
    assert all(kernel.instructions > 10 for kernel in newest.values())


def test_no_mask_is_made_sure_of_at_run_time(newest: dict[str, Kernel]) -> None:
    assert sum(kernel.count("SHFL") for kernel in newest.values()) > 100
    for name, kernel in newest.items():
        assert kernel.count("MATCH") == kernel.count("REDUX") == 0, name


@pytest.mark.skipif(
    library.cuda_library.build.get("nvcc") != "13.0", reason="recorded with nvcc 13.0"
)
def test_kernels_have_not_grown(newest: dict[str, Kernel]) -> None:
    for name, kernel in newest.items():
        if (plain := name_of(name)) not in RECORDED:
            continue
        wide, single, registers = RECORDED[plain]
        most = wide if any(v in name for v in VECTORS) else single
        assert kernel.instructions <= SLACK * most, name
        assert kernel.registers <= registers + 8, name
        assert kernel.count("CALL") <= DIVIDING.get(plain, 0), name


def test_no_register_is_spilled_to_memory() -> None:
    machine_code.require_library()
    for architecture in machine_code.architectures():
        found = machine_code.resources(architecture)
        assert len(found) > 80
        spilled = {name: kernel.stack for name, kernel in found.items() if kernel.stack}
        assert not spilled, f"sm_{architecture}"
