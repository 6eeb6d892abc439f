from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import scipy.sparse
from torchvision.datasets import SBDataset

from segdeform.errors import SegdeformError
from segdeform.preparing.sbd_mask import read_sbd_mask


def write_mat(path: Path, values: Any, *, key: str = "GTcls", packed: bool = True) -> Path:
    """Writes what SBD's files hold: edges, labels and the classes that occur."""
    edges = np.empty((20, 1), object)
    for index in range(20):
        edges[index, 0] = scipy.sparse.csc_array(np.eye(4, 6, index % 3))
    content = {"Boundaries": edges, "Segmentation": values, "CategoriesPresent": [[3.0], [7.0]]}
    scipy.io.savemat(path, {"first": "text", key: content}, do_compression=packed)
    return path


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (3, 1), (375, 500)])
def test_masks_are_what_torchvision_reads(
    shape: tuple[int, int], packed: bool, tmp_path: Path
) -> None:
    values = np.random.default_rng(0).integers(0, 21, shape, np.uint8)
    path = write_mat(tmp_path / "a.mat", values, packed=packed)
    reader = SBDataset.__new__(SBDataset)
    reader._loadmat = scipy.io.loadmat
    np.testing.assert_array_equal(read_sbd_mask(path), reader._get_segmentation_target(str(path)))
    np.testing.assert_array_equal(read_sbd_mask(path), values)


@pytest.mark.parametrize(
    ("values", "key", "said"),
    [
        (np.full((2, 3), 21, np.uint8), "GTcls", "labels outside 0 to 20"),
        (np.zeros((2, 3)), "GTcls", "no matrix of bytes"),
        (np.zeros((2, 3, 4), np.uint8), "GTcls", "no matrix of bytes"),
        (np.zeros((0, 3), np.uint8), "GTcls", "labels outside"),
        ("text", "GTcls", "no matrix of bytes"),
        (np.zeros((2, 3), np.uint8), "GTinst", "no struct GTcls"),
    ],
)
def test_other_content_is_refused(values: Any, key: str, said: str, tmp_path: Path) -> None:
    path = write_mat(tmp_path / "a.mat", values, key=key)
    with pytest.raises(SegdeformError, match=rf"a\.mat: .*{said}") as caught:
        read_sbd_mask(path)
    assert caught.value.exit_code == 4


def test_files_that_grow_are_unsafe(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    path.write_bytes(bytes(2 << 20))
    with pytest.raises(SegdeformError) as caught:
        read_sbd_mask(path)
    assert caught.value.exit_code == 6
    write_mat(path, np.zeros((9000, 9000), np.uint8))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(SegdeformError, match="too large"):
        read_sbd_mask(path)


def test_damage_is_an_error_or_harmless(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 21, (5, 7), np.uint8)
    draw, path, refused = random.Random(0), tmp_path / "a.mat", 0
    for packed in (True, False):
        whole = write_mat(path, values, packed=packed).read_bytes()
        for _ in range(400):
            content = bytearray(whole)
            for _ in range(draw.choice((1, 1, 3))):
                content[draw.randrange(len(content))] = draw.choice((0, 1, 14, 127, 128, 255))
            path.write_bytes(content[: draw.choice((len(content), draw.randrange(len(content))))])
            try:
                labels = read_sbd_mask(path)
                assert labels.ndim == 2 and labels.max() < 21
            except SegdeformError as error:
                assert error.exit_code == 4 and "\n" not in str(error)
                refused += 1
    assert refused > 250


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SegdeformError, match=r"a\.mat: cannot be read"):
        read_sbd_mask(tmp_path / "a.mat")
