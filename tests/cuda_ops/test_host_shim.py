"""The host shim itself: what it computes, and that it sees the mistakes it is there to see."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

import cuda_ops
from cuda_ops import build
from tests.cuda_ops.host_shim import SEEDS, host_shim  # noqa: F401

PROGRAM = Path(__file__).with_name("host_shim_program.cpp")


def test_the_probe_agrees_with_the_reference(host_shim: Any) -> None:  # noqa: F811
    image = torch.randn(7, 9)
    points = torch.rand(300, 2) * torch.tensor([11.0, 13.0]) - 2
    y, x = points.T.reshape(2, 1, 1, 1, 1, -1)
    expected = cuda_ops.reference.bilinear_sample(image[None, None], y, x).flatten()
    torch.testing.assert_close(host_shim.sample_points(image, points), expected)


def test_a_read_of_what_no_one_wrote_is_seen(host_shim: Any) -> None:  # noqa: F811
    for kind in ("sum_of_workspace", "sum_of_result"):
        read = getattr(host_shim, kind)
        for dtype in (torch.float32, torch.float64):
            like = torch.ones(96, dtype=dtype)
            assert read(like, 96) == 95 * 96 / 2
            assert read(like, 95).isnan()
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("host_shim") / "program"
    include = Path(torch.__file__).parent / "include"
    flags = ["-std=c++20", "-O1", "-U_FORTIFY_SOURCE", "-DSEGDEFORM_HOST_SHIM", "-isystem", include]
    sources = ["-I", build.SOURCES / "cuda", PROGRAM]
    subprocess.run([build.cxx_compiler(), *flags, *sources, "-o", target], check=True)
    return target


def run(program: Path, case: str, seed: str) -> str:
    done = subprocess.run([program, case], capture_output=True, text=True,
                          env={"SEGDEFORM_SHIM_SEED": seed})  # fmt: skip
    return done.stdout.strip() if done.returncode == 0 else f"error: {done.stderr.strip()}"


@pytest.mark.parametrize("seed", SEEDS)
def test_blocks_threads_barriers_and_shuffles(program: Path, seed: str) -> None:
    # 3 x 2 blocks of 96 threads; each block sums (thread + 1000 * block) over its threads
    blocks = [sum(t + 1000 * b for t in range(96)) for b in range(6)]
    assert run(program, "block_sums", seed).split() == [str(v) for v in blocks]
    lanes = range(32)
    expected = [
        [v ^ 5 for v in lanes],
        [min(v + 3, 31) if v + 3 < 32 else v for v in lanes],
        [7] * 32,
        [0b1001001001001001001001001001001 | 1 << 30] * 32,  # every third lane
        [v // 8 * 8 for v in lanes],  # among eight lanes named by a mask
    ]
    text = run(program, "shuffles", seed)
    assert [[int(v) for v in line.split()] for line in text.splitlines()] == expected


def test_a_missing_barrier_is_seen(program: Path) -> None:
    assert len({run(program, "reverse", seed) for seed in SEEDS}) == 1
    racy = [run(program, "reverse_without_barrier", seed) for seed in SEEDS]
    assert all(text != run(program, "reverse", "0") for text in racy)


def test_an_order_among_blocks_is_not_kept(program: Path) -> None:
    assert len({run(program, "order_of_blocks", seed) for seed in SEEDS}) > 1


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("barrier_in_a_branch", "a barrier that others never reach"),
        ("shuffle_after_exit", "a barrier that others never reach"),
        ("shuffle_from_outside", "a lane that takes no part"),
        ("past_shared_memory", "past the block's shared memory"),
        ("too_much_shared_memory", "too much shared memory"),
        ("throws", "thrown by a thread"),
    ],
)
def test_mistakes_throw(program: Path, case: str, message: str) -> None:
    assert message in run(program, case, "0")
