"""What the README shows of Python runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdeform.config.schema import DeformConfig, ModelConfig
from segdeform.models import build_model
from segdeform.segmenter import ModelDescription, save_model

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the examples speak of: runs/mine, street.jpg and photos/."""
    place = tmp_path_factory.mktemp("readme")
    model = ModelConfig(backbone="mobilenet_v2", weights="none", head_channels=8)
    deform = DeformConfig(layers=1)
    network = build_model(model, deform, 3).eval()
    about = ModelDescription(
        model=model,
        deform=deform,
        classes=("road", "car", "sky"),
        palette=((9, 9, 9), (200, 0, 0), (0, 0, 200)),
    )
    (place / "runs").mkdir()
    save_model(place / "runs" / "mine", network, about)
    rng = np.random.default_rng(0)
    for name in ("street.jpg", "photos/a.jpg", "photos/b.jpg"):
        (place / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (43, 61, 3), np.uint8)).save(place / name)
    return place


def test_the_readme_has_examples() -> None:
    assert len(BLOCKS) >= 3


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_an_example_runs(number: int, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    exec(compile(BLOCKS[number], f"README.md, example {number + 1}", "exec"), {})


def test_the_examples_leave_what_they_say(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    for block in BLOCKS:
        exec(block, {})
    with Image.open(place / "a-overlay.png") as overlay:
        assert overlay.size == (61, 43)
