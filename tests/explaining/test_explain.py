"""`segdeform explain`: what it writes, the page in a real browser, and what it refuses."""

from __future__ import annotations

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
from segdeform.explaining.explain import explain_picture
from segdeform.explaining.regions import region_centres
from segdeform.explaining.sampling import follow, place_of, record
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


def test_without_points_the_largest_regions_are_looked_at() -> None:
    labels = np.zeros((20, 30), np.uint8)
    labels[2:18, 3:6] = labels[15:18, 3:27] = 4  # an L, whose centre of gravity lies outside of it
    labels[1, 29] = labels[5:8, 20:25] = 7  # two regions: the larger one counts
    centres = region_centres(labels, 5)
    assert [labels[centre] for centre in centres] == [0, 4, 7]
    assert centres[2] == (6, 21) or (centres[2][0] == 6 and 21 <= centres[2][1] <= 23)
    assert region_centres(labels, 1) == centres[:1]


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
