"""`prepare_folder`: from raw folders to a data set that is checked, listed and told of."""

from __future__ import annotations

import json
from pathlib import Path

from segdeform.data import load_dataset, read_pair
from segdeform.preparing.folder import prepare_folder
from segdeform.preparing.folder_order import Order
from tests.preparing.raw_folders import raw_folders

NAMES = [f"road{letter}{number}" for letter in "abcdef" for number in ("x", "y", "z")]


def test_pictures_and_masks_become_a_data_set_that_refers_to_them(tmp_path: Path) -> None:
    images, masks = raw_folders(tmp_path, NAMES, mask_name="{}_mask", without=NAMES[3:8])
    prepared = prepare_folder(Order(tmp_path / "ready", images, masks, split=0.3))
    assert prepared.record["splits"] == {"train": 9, "val": 4}
    assert prepared.record["paired_by"] == "NAME_mask"
    left_out = json.loads((tmp_path / "ready" / "prepare.json").read_bytes())["left_out"]
    assert [Path(p).stem for p in left_out["pictures_without_mask"]] == NAMES[3:8]
    found = []
    for split in ("train", "val"):
        dataset = load_dataset("folder", tmp_path / "ready", split)
        found += [sample.name for sample in dataset.samples]
        for index, sample in enumerate(dataset.samples):
            assert sample.image.resolve() == images / f"{sample.name}.jpg"
            assert read_pair(dataset, index)[1][0].tolist()[:3] == [0, 1, 0]
    assert sorted(found) == NAMES[:3] + NAMES[8:]
    assert sorted(path.name for path in (tmp_path / "ready").iterdir()) == [
        *("data.yaml", "prepare.json", "train.txt", "val.txt")
    ]
