"""`segdeform explain`: what it writes, the page in a real browser, and what it refuses."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from segdeform.cli import main
from segdeform.data import load_dataset
from segdeform.explaining.clickable import MODULATION_UNIT, OFFSET_UNIT
from segdeform.explaining.explain import _layer_facts, explain_picture
from segdeform.explaining.regions import region_centres
from segdeform.explaining.sampling import LayerSampling, follow, place_of, record
from segdeform.preparing.shapes import write_shapes
from segdeform.segmenter import Segmenter
from tests.explaining.conftest import model_folder

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.fixture(scope="session")
def picture(image: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "<script>1&.png"
    Image.fromarray(image).save(path)
    return path


def test_a_picture_becomes_drawings_a_page_and_numbers(
    segmenter: Segmenter, picture: Path, tmp_path: Path
) -> None:
    output = tmp_path / "new" / "out"
    facts = explain_picture(segmenter, picture, output, [(100, 70), (0, 149)])
    assert json.loads((output / "explain.json").read_text()) == facts
    names = sorted(path.name for path in output.iterdir())
    assert names == ["explain.json", "index.html", *[f"offsets-{i}.png" for i in (1, 2, 3)],
                     "points.png"]  # fmt: skip
    assert Image.open(output / "offsets-2.png").size == (210, 150)
    first, second = facts["points"]
    assert (first["x"], first["y"], second["x"], second["y"]) == (100, 70, 0, 149)
    assert first["samples"] + first["samples_outside"] == 729
    assert second["samples_outside"] > first["samples_outside"]
    drawn = np.asarray(Image.open(output / "points.png").convert("RGB")).reshape(-1, 3)
    colours = {"#{:02x}{:02x}{:02x}".format(*colour) for colour in np.unique(drawn, axis=0)}
    assert {first["colour"], second["colour"]} <= colours


def test_the_numbers_are_those_of_the_samples(
    segmenter: Segmenter, image: NDArray[np.uint8], picture: Path, tmp_path: Path
) -> None:
    facts = explain_picture(segmenter, picture, tmp_path, [(100, 70), (33, 149)])
    layers, labels = record(segmenter, image)
    for found, layer in zip(facts["layers"], layers, strict=True):
        length = np.hypot(*np.moveaxis(layer.offset, 2, 0)).mean((0, 1)) * layer.input_stride
        assert found["mean_offset_pixels"] == pytest.approx(length.mean(), abs=1e-4)
        assert found["largest_offset_pixels"] == pytest.approx(length.max(), abs=1e-4)
        y, x = np.moveaxis(layer.positions(), 2, 0)
        height, width = layer.input_size
        inside = (y > -1) & (y < height) & (x > -1) & (x < width)
        assert found["share_outside"] == pytest.approx(1 - inside.mean(), abs=1e-4)
        assert 0 < found["share_outside"] < 1
        ordered = np.sort(layer.modulation, axis=None)
        for value, share in zip(found["modulation"], (0.05, 0.5, 0.95), strict=True):
            assert value == pytest.approx(ordered[int(share * len(ordered))], abs=0.01)
        assert found["modulation"][0] < found["modulation"][2]
    for found in facts["points"]:
        y, x = found["y"], found["x"]
        points = follow(layers, place_of(layers[-1], (y, x)))
        assert found["class"] == segmenter.classes[labels[y, x]]
        np.testing.assert_allclose(found["at"], np.stack([points.x, points.y], 1), atol=0.006)
        distances = np.sort([np.hypot(py - y, px - x) for px, py in found["at"]])
        assert found["median_reach_pixels"] == pytest.approx(np.median(distances), abs=0.02)
        assert found["samples_outside"] == points.lost and len(found["at"]) == found["samples"]


def test_the_mean_and_the_largest_offset_of_a_layer_are_told_apart() -> None:
    """One of 30 places moves all its samples by 3 and 4 steps of 4 pixels."""
    offset = np.zeros((1, 9, 2, 5, 6), np.float32)
    offset[0, :, :, 2, 3] = (3, 4)
    ones = np.ones((1, 9, 5, 6), np.float32)
    layer = LayerSampling("l", (3, 3), (1, 1), (1, 1), (1, 1), (5, 6), 4, offset, ones)
    facts = _layer_facts(layer)
    assert facts["largest_offset_pixels"] == 20
    assert facts["mean_offset_pixels"] == pytest.approx(20 / 30, abs=1e-4)


def test_the_page_keeps_the_layers_as_they_are(
    segmenter: Segmenter, image: NDArray[np.uint8], picture: Path, tmp_path: Path
) -> None:
    """What its script reads, read here as it says."""
    explain_picture(segmenter, picture, tmp_path, [(100, 70)])
    text = re.search(r'id="data">(.*?)</script>', (tmp_path / "index.html").read_text())
    assert text is not None
    data = json.loads(text[1])
    assert (data["height"], data["width"]) == (150, 210) and data["start"] == [{"y": 70, "x": 100}]
    for kept, layer in zip(data["layers"], record(segmenter, image)[0], strict=True):
        groups, taps, _, rows, columns = layer.offset.shape
        packed = np.frombuffer(base64.b64decode(kept["offset"]), "<i2")
        offset = packed.reshape(groups, taps, 2, rows, columns) / data["offsetUnit"]
        assert np.abs(offset - layer.offset).max() <= 0.5 / 32 + 1e-6
        packed = np.frombuffer(base64.b64decode(kept["modulation"]), np.uint8)
        modulation = packed.reshape(groups, taps, rows, columns) / data["modulationUnit"]
        assert np.abs(modulation - layer.modulation).max() <= 0.5 / 100 + 1e-6
        assert (kept["inputStride"], kept["groups"], kept["taps"]) == (
            layer.input_stride, groups, taps,
        )  # fmt: skip
        for key, name in (("kernel", "kernel"), ("step", "step"), ("padding", "padding"),
                          ("dilation", "dilation"), ("inputSize", "input_size"),
                          ("size", "size")):  # fmt: skip
            assert tuple(kept[key]) == getattr(layer, name)


def test_without_points_the_largest_regions_are_looked_at() -> None:
    labels = np.zeros((20, 30), np.uint8)
    labels[2:18, 3:6] = labels[15:18, 3:27] = 4  # an L, whose centre of gravity lies outside of it
    labels[1, 29] = labels[5:8, 20:25] = 7  # two regions: the larger one counts
    centres = region_centres(labels, 5)
    assert [labels[centre] for centre in centres] == [0, 4, 7]
    assert centres[2] == (6, 21) or (centres[2][0] == 6 and 21 <= centres[2][1] <= 23)
    assert region_centres(labels, 1) == centres[:1]
    labels[:, 12:] = 9  # the picture's edge is a border, too
    ((row, column), *_) = region_centres(labels, 1)
    assert 8 <= row <= 11 and 20 <= column <= 22


def dumped(page: Path) -> str:
    """The page's elements after its script has run in the browser."""
    assert BROWSER is not None
    profile = f"--user-data-dir={page.parent / 'profile'}"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=900,700", profile]
    command = [BROWSER, *flags, "--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout


def circles(dom: str) -> NDArray[np.float64]:
    """x, y of the samples drawn, sorted."""
    group = re.search(r'<g id="points".*?</g>', dom, re.DOTALL)
    assert group is not None
    found = re.findall(r'cx="([-\d.]+)" cy="([-\d.]+)"', group[0])
    return np.array(sorted((float(x), float(y)) for x, y in found))


@pytest.mark.skipif(BROWSER is None, reason="no Chromium found")
def test_a_click_shows_the_points_that_python_finds(
    segmenter: Segmenter, image: NDArray[np.uint8], picture: Path, tmp_path: Path
) -> None:
    explain_picture(segmenter, picture, tmp_path, [(100, 70)])
    page = tmp_path / "index.html"
    layers, _ = record(segmenter, image)

    rounded = [  # as the page keeps them
        replace(
            layer,
            offset=np.rint(layer.offset * OFFSET_UNIT) / OFFSET_UNIT,
            modulation=np.rint(layer.modulation * MODULATION_UNIT) / MODULATION_UNIT,
        )
        for layer in layers
    ]

    def agree(found: NDArray[np.float64], x: int, y: int, count: int) -> None:
        points = follow(rounded[-count:], place_of(layers[-1], (y, x)))
        wanted = np.array(sorted(zip(points.x + 0.5, points.y + 0.5, strict=True)))
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() < 0.011  # drawn with two decimals

    agree(circles(dumped(page)), 100, 70, 3)
    clicked = tmp_path / "clicked.html"
    # A click in the middle of pixel (160, 30), with the last layer alone.
    clicked.write_text(
        page.read_text().replace(
            "</body>",
            """<script>
            find("layers").value = 1;
            const at = new DOMPoint(160.5, 30.5).matrixTransform(svg.getScreenCTM());
            svg.dispatchEvent(new MouseEvent("click", {clientX: at.x, clientY: at.y}));
            </script></body>""",
        )
    )
    dom = dumped(clicked)
    agree(circles(dom), 160, 30, 1)
    assert "x 160, y 30: " in dom
    assert (
        "<script>1&amp;" not in page.read_text() and "&lt;script&gt;1&amp;.png" in page.read_text()
    )


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["explain", *map(str, arguments)])
    return code, *capsys.readouterr()


def test_the_command_measures_a_data_set(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shapes(tmp_path / "shapes", train=1, val=2, size=64)
    given = ("--data", tmp_path / "shapes", "--output", tmp_path / "o")
    code, _, err = run(capsys, folder, *given)
    assert code == 4 and "knows 3 classes" in err and not (tmp_path / "o").exists()

    classes = load_dataset("shapes", tmp_path / "shapes", "val").classes
    model = model_folder(tmp_path / "m", 2, classes=classes)
    code, out, err = run(capsys, model, *given)
    facts = json.loads((tmp_path / "o" / "dilation.json").read_text())
    assert code == 0 and facts["layers"][1]["layer"] == "features.17.conv.1.0", err
    assert facts["layers"][1]["plain_dilation"] == 2
    counted = [row["places"] for row in facts["layers"][1]["classes"]]
    assert sum(counted) == facts["layers"][1]["all"]["places"] == 2 * 4 * 4  # of 64 x 64 pixels
    never = next(row["name"] for row in facts["layers"][1]["classes"] if row["places"] == 0)
    assert re.search(f"{never} .*\N{EN DASH}", out)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "give a PICTURE"),
        (("PICTURE", "--at", "210,3"), 2, "--at 210,3: outside"),
        (("PICTURE", "--at", "-1,3"), 2, "--at -1,3: outside"),
        (("PICTURE", "--at", "3"), 2, "--at 3: expected two whole numbers"),
        (("PICTURE", "--at", "3,4.5"), 2, "--at 3,4.5: expected two whole numbers"),
        (("--at", "3,4", "--data", "."), 2, "--at is for a PICTURE"),
        (("gone.jpg",), 4, "gone.jpg"),
        (("PICTURE", "--output", "/proc/none"), 2, "/proc/none"),
    ],
)
def test_bad_arguments_end_in_one_line(
    arguments: tuple[str, ...],
    code: int,
    message: str,
    folder: Path,
    picture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [str(picture) if word == "PICTURE" else word for word in arguments]
    ended, out, err = run(capsys, folder, *words)
    assert ended == code and message in err and len(err.splitlines()) == 1, err
    assert not out and not list(tmp_path.iterdir())


def test_a_model_without_deformable_layers_says_what_to_do(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, model_folder(tmp_path / "m", 0), picture, "--output", tmp_path / "o")
    assert code == 5 and "no deformable layers" in err and "deform.layers=3" in err
