"""How the convolution on CUDA is cut into chunks: every row and channel once, within the memory."""

from __future__ import annotations

import json
import math
import random
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cuda_ops import build

PROGRAM = Path(__file__).with_name("plan_program.cpp")


class Question(NamedTuple):
    """A line of the program's input."""

    batch: int
    channels: int
    groups: int
    height: int
    width: int
    kernel_h: int
    kernel_w: int
    offset_groups: int
    workspace: int  # bytes
    element_bytes: int
    vector: int
    sorted_images: int  # 0: without the gradient of the input
    cells: int
    multiprocessors: int = 132

    @property
    def rows(self) -> int:
        return self.batch * self.height * self.width

    @property
    def column_bytes(self) -> int:  # of a channel in a row
        return self.kernel_h * self.kernel_w * self.element_bytes


def drawn(count: int) -> list[Question]:
    """Draws shapes, among them those of which not even one image or one vector fits."""
    draw = random.Random(0)
    found = []
    for _ in range(count):
        vector = draw.choice([1, 2, 4, 8])
        groups = draw.choice([1, 1, 2, 3, 8])
        batch = draw.randint(1, 9)
        found.append(
            Question(
                batch,
                groups * vector * draw.randint(1, 12),
                groups,
                draw.randint(1, 13),
                draw.randint(1, 13),
                draw.randint(1, 4),
                draw.randint(1, 4),
                1,
                int(2 ** draw.uniform(0, 22)),
                draw.choice([2, 4, 8]),
                vector,
                draw.choice([0, draw.randint(1, batch)]),
                draw.randint(1, 200),
                draw.choice([1, 2, 7, 132]),
            )
        )
    return found


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("plan") / "program"
    include = ["-I", build.SOURCES / "cuda"]
    flags = ["-std=c++20", "-O1", "-Wall", "-Werror", "-fsanitize=undefined"]
    subprocess.run([build.cxx_compiler(), *flags, *include, PROGRAM, "-o", target], check=True)
    return target


def answers(program: Path, lines: Iterable[Iterable[int]], *mode: str) -> list[str]:
    """Gives the program lines of numbers; returns the lines that it prints."""
    text = "".join(" ".join(map(str, line)) + "\n" for line in lines)
    done = subprocess.run([program, *mode], input=text, capture_output=True, text=True, check=True)
    assert not done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def plans(program: Path) -> list[tuple[Question, dict[str, Any]]]:
    questions = drawn(400)
    return list(zip(questions, map(json.loads, answers(program, questions)), strict=True))


def test_every_channel_of_every_row_is_in_one_chunk(
    plans: list[tuple[Question, dict[str, Any]]],
) -> None:
    for question, plan in plans:
        channels = [c for first, count, _, _ in plan["slices"] for c in range(first, first + count)]
        assert channels == list(range(question.channels)), question
        rows = [
            row
            for first, end, chunks in plan["sortings"]
            for start, count in chunks
            for row in range(start, start + count)
            if first <= start and start + count <= end
        ]
        assert rows == list(range(question.rows)), question


def test_slices_are_whole_groups_or_whole_vectors_of_one(
    plans: list[tuple[Question, dict[str, Any]]],
) -> None:
    parts = 0
    for question, plan in plans:
        inputs = question.channels // question.groups
        for first, count, group_channels, groups in plan["slices"]:
            assert groups * group_channels == count
            assert first % question.vector == count % question.vector == 0
            if group_channels == inputs:
                assert first % inputs == 0
            else:
                parts += 1
                assert groups == 1 and first // inputs == (first + count - 1) // inputs
        assert plan["widest"] == max(count for _, count, _, _ in plan["slices"])
    assert parts > 100


def test_chunks_fit_the_workspace_or_are_the_least_there_is(
    plans: list[tuple[Question, dict[str, Any]]],
) -> None:
    for question, plan in plans:
        unit = question.height * question.width if question.sorted_images else 1
        share = 0.75 if question.sorted_images else 1.0
        for first, end, chunks in plan["sortings"]:
            if question.sorted_images:
                assert first % unit == end % unit == 0
                assert end - first <= question.sorted_images * unit
            for start, count in chunks:
                assert start % unit == count % unit == 0
                taken = count * plan["widest"] * question.column_bytes
                least = count == unit and plan["widest"] == question.vector
                assert least or taken <= share * question.workspace, question


def test_columns_stay_whole_where_all_fit(plans: list[tuple[Question, dict[str, Any]]]) -> None:
    whole = 0
    for question, plan in plans:
        everything = question.rows * question.channels * question.column_bytes
        if not question.sorted_images and everything <= question.workspace:
            whole += 1
            assert len(plan["slices"]) == 1 and plan["forward"] == question.rows
            assert [chunks for _, _, chunks in plan["sortings"]] == [[[0, question.rows]]]
    assert whole > 20


def test_the_forward_pass_and_the_sorting_fit_as_well(
    plans: list[tuple[Question, dict[str, Any]]],
) -> None:
    for question, plan in plans:
        row_bytes = question.channels * question.column_bytes
        rows = plan["forward"]
        assert 1 <= rows <= question.rows and (rows == 1 or rows * row_bytes <= question.workspace)
        taps = question.kernel_h * question.kernel_w
        image = 16 * taps * question.height * question.width + 4 * question.cells
        images = plan["images"]
        assert 1 <= images <= question.batch
        assert images == 1 or images * image <= question.workspace
        assert images == question.batch or (images + 1) * image > question.workspace


MOST = 2**31 - 1  # what the kernels count to


def test_a_launch_never_has_more_rows_than_the_kernels_count(program: Path) -> None:
    rows = 3 * 30_000 * 40_000
    for sorted_images in (0, 3):
        question = Question(3, 1, 1, 30_000, 40_000, 1, 1, 1, 2**50, 2, 1, sorted_images, 1)
        plan = json.loads(answers(program, [question])[0])
        chunks = [chunk for _, _, chunks in plan["sortings"] for chunk in chunks]
        assert [first for first, _ in chunks] == [i * chunks[0][1] for i in range(len(chunks))]
        assert sum(count for _, count in chunks) == rows > MOST
        assert max(count for _, count in chunks) <= MOST and plan["forward"] <= MOST


def test_shapes_are_handed_over_whole_or_not_at_all(program: Path) -> None:
    usual = {
        "batch": 5, "channels": 12, "height": 7, "width": 9, "outputs": 8, "out_height": 3,
        "out_width": 2, "kernel_h": 3, "kernel_w": 2, "stride_h": 2, "stride_w": 4, "pad_h": 1,
        "pad_w": 0, "dilation_h": 2, "dilation_w": 3, "groups": 4, "offset_groups": 6,
    }  # fmt: skip
    refused: list[dict[str, int]] = [
        {"batch": 2**31}, {"outputs": 2**31}, {"channels": 2**29}, {"pad_w": 2**31},
        {"height": 2**20, "width": 2**11}, {"out_height": 2**20, "out_width": 2**11},
    ]  # fmt: skip
    taken: list[dict[str, int]] = [
        {}, {"batch": MOST}, {"outputs": MOST}, {"channels": MOST // 6},
        {"height": 46_340, "width": 46_340}, {"out_height": 46_340, "out_width": 46_340},
        {"pad_h": -3},
    ]  # fmt: skip
    lines = [tuple((usual | change).values()) for change in taken + refused]
    found = answers(program, lines, "conv")
    assert found[len(taken) :] == ["refused"] * len(refused)
    assert [tuple(map(int, line.split())) for line in found[: len(taken)]] == lines[: len(taken)]
    # A step that is never taken may be as large as it likes.
    far = usual | {"stride_h": 2**40, "out_height": 1, "stride_w": 2**31 + 5, "out_width": 1}
    (line,) = answers(program, [far.values()], "conv")
    assert tuple(map(int, line.split())) == tuple((far | {"stride_h": 1, "stride_w": 1}).values())


def test_shapes_of_roi_pooling_are_handed_over_whole_or_not_at_all(program: Path) -> None:
    usual = {
        "batch": 5, "channels": 24, "height": 7, "width": 9, "rois": 11, "outputs": 6,
        "pooled_h": 3, "pooled_w": 4, "group": 2, "classes": 3, "part_h": 5, "part_w": 8,
        "samples": 1,
    }  # fmt: skip
    refused: list[dict[str, int]] = [
        {"rois": 2**31}, {"channels": 2**31}, {"height": 2**20, "width": 2**11},
        {"pooled_h": 2**17, "pooled_w": 2**14}, {"part_h": 2**15, "part_w": 2**14},
        {"pooled_h": 2**20, "group": 2**11, "pooled_w": 1},
        {"pooled_w": 2**20, "part_w": 2**11, "pooled_h": 1},
    ]  # fmt: skip
    taken: list[dict[str, int]] = [
        {}, {"rois": MOST}, {"channels": MOST}, {"height": 46_340, "width": 46_340},
        {"pooled_h": 2**16, "pooled_w": 2**12}, {"part_h": 2**14, "part_w": 2**13},
    ]  # fmt: skip
    lines = [tuple((usual | change).values()) for change in taken + refused]
    found = answers(program, lines, "roi")
    assert found[len(taken) :] == ["refused"] * len(refused)
    assert [tuple(map(int, line.split())) for line in found[: len(taken)]] == lines[: len(taken)]


def waves(rows: int, multiprocessors: int) -> int:
    """Rounds of gathering (2 blocks for 32 rows, 4 at once) and of a product 4 tiles wide."""
    gathering = math.ceil(math.ceil(rows / 32) * 2 / (4 * multiprocessors))
    return gathering + math.ceil(math.ceil(rows / 128) * 4 / multiprocessors)


@pytest.mark.parametrize("multiprocessors", [78, 108, 132])
def test_chunks_fill_the_multiprocessors(program: Path, multiprocessors: int) -> None:
    """512 channels, 3x3, bfloat16: the rows of a chunk take the fewest waves that can be had."""
    for mib in (64, 80, 192):
        for batch in (3, 16):
            shape = (batch, 512, 1, 64, 64, 3, 3, 1)
            question = Question(*shape, mib << 20, 2, 8, 0, 1, multiprocessors)
            plan = json.loads(answers(program, [question])[0])
            most = (mib << 20) // (512 * 9 * 2)

            def cost(chunk: int, rows: int = question.rows) -> int:
                rest = waves(rows % chunk, multiprocessors) if rows % chunk else 0
                return rows // chunk * waves(chunk, multiprocessors) + rest

            found = plan["forward"]
            if question.rows <= most:
                assert found == question.rows
                continue
            chunks = math.ceil(question.rows / most)
            even = 128 * math.ceil(question.rows / chunks / 128)
            assert found % 128 == 0 and most / 2 < found <= most
            assert cost(found) == min(cost(c) for c in range(most // 256 * 128 + 128, most, 128))
            assert cost(found) <= cost(min(even, most))


def test_images_of_a_chunk_are_of_like_number(program: Path) -> None:
    image = 16 * 16 * 64 * 9 * 2  # bytes of its columns
    question = Question(16, 64, 1, 16, 16, 3, 3, 1, 14 * image, 2, 8, 16, 1, 1)
    [[_, _, chunks]] = json.loads(answers(program, [question])[0])["sortings"]
    # Three quarters of the workspace hold 10 images: two chunks of 8, not one of 10 and one of 6.
    assert chunks == [[0, 8 * 256], [8 * 256, 8 * 256]]
