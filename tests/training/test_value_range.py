"""A range of stored values, from the data YAML through training into the model and its use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segdeform.cli import main
from segdeform.data import load_dataset, read_pair
from segdeform.segmenter import load
from segdeform.training.loop import train
from tests.training.conftest import ReporterThat, tiny_config

STEP, FULL = 16, 255 * 16  # of a camera whose 255 grey levels are the multiples of 16


def grey_set(shapes: Path, root: Path, deep: bool) -> Path:
    """Writes generated pictures in grey: of 8 bits, or the same ones of 12 bits in 16."""
    for split in ("train", "val"):
        dataset = load_dataset("shapes", shapes, split)
        for index, sample in enumerate(dataset.samples):
            picture, labels = read_pair(dataset, index)
            grey = picture[..., 1].astype(np.uint16) * STEP if deep else picture[..., 1]
            for folder, content in (("images", grey), ("masks", labels)):
                path = root / split / folder / f"{sample.name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(content).save(path)
    text = {"names": list(dataset.classes), "train": "train/images", "val": "val/images"}
    (root / "data.yaml").write_text(json.dumps(text | ({"value_range": FULL} if deep else {})))
    return root


def test_a_range_makes_the_same_network_and_the_same_masks(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(steps=2)
    config = config.model_copy(update={"data": config.data.model_copy(update={"name": "folder"})})
    runs: dict[bool, Path] = {}
    for deep in (False, True):
        data = grey_set(shapes, tmp_path / f"data{deep}", deep)
        runs[deep] = tmp_path / f"run{deep}"
        train(config, data, runs[deep], device="cpu", workers=0, reporter=ReporterThat())
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in runs.values()]
    assert weights[0] == weights[1]
    assert load(runs[False], "cpu").value_range is None
    assert load(runs[True], "cpu").value_range == (0, FULL)

    def written(run: Path, data: Path, name: str) -> list[Any]:
        """The masks, and the overlays, which show the picture as it was read."""
        out = tmp_path / name
        asked = ["predict", str(run), str(data / "val" / "images"), "--output", str(out)]
        assert main(asked) == 0
        return [np.asarray(Image.open(path)).tolist() for path in sorted(out.glob("*/*.*g"))]

    plain, deep_data = tmp_path / "dataFalse", tmp_path / "dataTrue"
    expected = written(runs[False], plain, "plain")
    assert len(expected) == 4
    assert written(runs[True], deep_data, "deep") == expected
    assert written(runs[True], plain, "eight bits") == expected
    picture = next(deep_data.glob("val/images/*"))
    scores = load(runs[False], "cpu").logits(plain / picture.relative_to(deep_data))
    assert torch.equal(load(runs[True], "cpu").logits(picture), scores)

    # The model knows the range of pictures whose data set does not name one.
    (deep_data / "data.yaml").write_text(json.dumps({
        key: value for key, value in json.loads((deep_data / "data.yaml").read_text()).items()
        if key != "value_range"
    }))  # fmt: skip
    rows = []
    for run, data in ((runs[False], plain), (runs[True], deep_data)):
        capsys.readouterr()
        assert main(["eval", str(run), "--data", str(data), "--json"]) == 0
        out, err = capsys.readouterr()
        assert "value_range" not in err
        rows.append(json.loads(out)["classes"])
    assert rows[0] == rows[1]
