"""Every way in which people store masks is read exactly, or refused with file and reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from segdeform.checking import check_sound
from segdeform.data import list_dataset, load_dataset, read_pair
from segdeform.errors import SegdeformError
from tests.checking.conftest import Check
from tests.checking.mask_cases import BAD, GOOD, Case, write_case


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case.name)
def test_a_good_mask_gives_its_labels(tmp_path: Path, check: Check, case: Case) -> None:
    write_case(tmp_path, case)
    checked = check(tmp_path)
    assert (checked.code, checked.err) == (0, "")
    assert checked.report["sound"]
    expected = {case.warned} if case.warned else set()
    assert checked.kinds("/b.") == expected

    dataset = load_dataset("folder", tmp_path, "train")
    index = next(i for i, sample in enumerate(dataset.samples) if sample.name == "b")
    image, labels = read_pair(dataset, index)
    assert case.labels is not None
    np.testing.assert_array_equal(labels, case.labels)
    assert image.shape[:2] == labels.shape

    pixels = np.zeros(256, int)
    for position in range(len(dataset)):
        pixels += np.bincount(read_pair(dataset, position)[1].ravel(), minlength=256)
    (split,) = checked.report["splits"]
    assert split["pixels"] == pixels[: len(dataset.classes)].tolist()
    assert split["ignored_pixels"] == pixels[255]


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.name)
def test_a_bad_mask_is_refused_by_name(tmp_path: Path, check: Check, case: Case) -> None:
    write_case(tmp_path, case)
    checked = check(tmp_path)
    assert checked.code == case.code
    assert case.kind in checked.kinds("masks/b.")
    finding = next(f for f in checked.report["findings"] if f["kind"] == case.kind)
    assert finding["severity"] == "error" and finding["fix"]
    assert checked.err.startswith("segdeform: ") and checked.err.count("\n") == 1

    with pytest.raises(SegdeformError) as refused:  # and so do training and evaluation
        load_dataset("folder", tmp_path, "train")
        check_sound([list_dataset("folder", tmp_path, "train")])
    assert refused.value.exit_code == case.code
    assert "masks/b." in str(refused.value)
    if finding["value"] is not None and case.kind != "palette":
        assert str(finding["value"]) in str(refused.value)
