"""The report: complete, escaped, and laid out as meant in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segdeform.data.dataset import Dataset, colour_map
from segdeform.evaluation.counts import Tally
from segdeform.evaluation.evaluate import Evaluation, evaluate
from segdeform.evaluation.examples import choose_examples
from segdeform.evaluation.report import render_report
from segdeform.machine.processes import Processes
from tests.evaluation.conftest import segmenter

HOSTILE = "<script>document.title='owned'</script>\"'&\n\u202e\udcff"


class Page(HTMLParser):
    """Collects the elements and what they refer to."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for key, value in attrs if key in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def evaluation_of(
    classes: int, name: str = "class", pictures: int = 3, void: int = 0
) -> Evaluation:
    """An evaluation of random label maps, 0.7 of them right."""
    rng = np.random.default_rng(classes)
    tally = Tally(classes, 0.02)
    for picture in range(pictures):
        truth = rng.integers(0, classes, (40, 60)).astype(np.uint8)
        noise = rng.integers(0, classes, truth.shape).astype(np.uint8)
        labels = np.where(rng.random(truth.shape) < 0.7, truth, noise)
        tally.add(picture, np.full_like(truth, 255) if picture < void else truth, labels)
    protocol: dict[str, Any] = {
        "dataset": "folder",
        "split": "val",
        "pictures": pictures,
        "inference": {"scales": [1.0], "flip": False},
        "versions": {"segdeform": "0"},
    }
    timing = {"date": "2026-11-21T00:00:00+00:00", "seconds": 1.0, "processes": 1}
    names = tuple(f"{name} {k}" for k in range(classes))
    pictures_names = tuple(f"{name} {k}" for k in range(pictures))
    return Evaluation(names, pictures_names, tally.gather(Processes()), protocol, timing)


@pytest.fixture
def report(dataset: Dataset) -> str:
    evaluation = evaluate(segmenter(), dataset)
    return render_report(
        evaluation, dataset.palette, choose_examples(evaluation, segmenter(), dataset)
    )


def test_holds_the_scores_and_everything_it_needs(report: str, dataset: Dataset) -> None:
    page = Page(report)
    miou = f"{evaluate(segmenter(), dataset).scores.miou:.4f}"
    for text in (miou, "dark", "light", "never", "tiled above pixels", "model sha256"):
        assert text in page.text
    assert "script" not in page.tags and "link" not in page.tags
    assert page.references and all(r.startswith("data:image/") for r in page.references)
    assert not re.search(r"url\(|@import|https?://", report)
    assert page.tags.count("article") == 2 and page.tags.count("img") == 8


@pytest.mark.parametrize("classes", [1, 2, 24, 25, 150, 255])
def test_any_number_of_classes(classes: int) -> None:
    evaluation = evaluation_of(classes)
    report = render_report(evaluation, colour_map(classes), ())
    page = Page(report)
    assert page.text.count("class 0") >= 2
    shown = evaluation.matrix / np.maximum(evaluation.matrix.sum(axis=1, keepdims=True), 1)
    assert report.count("taken for class") == (shown >= 0.005).sum()
    assert len(report) < 3_000_000


def test_pictures_without_a_scored_pixel() -> None:
    page = Page(render_report(evaluation_of(3, void=3), colour_map(3), ()))
    assert "No pixel was given a wrong class" in page.text
    assert "nan" not in page.text.lower()


def test_names_are_text_whatever_they_hold() -> None:
    report = render_report(evaluation_of(3, HOSTILE), colour_map(3), (), title=HOSTILE)
    page = Page(report.encode(errors="backslashreplace").decode())
    assert "script" not in page.tags
    assert "<script>" in page.text


def test_worst_and_best_are_chosen_by_their_miou(dataset: Dataset) -> None:
    evaluation = evaluate(segmenter(), dataset)
    examples = choose_examples(evaluation, segmenter(), dataset)
    assert [example.name for example in examples] == ["s/0", "s/1"][:: _order(evaluation)]
    assert examples[0].miou <= examples[1].miou
    assert all(example.worst for example in examples)  # of two, both


def _order(evaluation: Evaluation) -> int:
    first, second = evaluation.picture_scores.miou
    return 1 if first <= second else -1


BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)

# Loads the report at the width of a phone and of a screen and writes down what came of it.
PROBE = """<!doctype html><body><pre id="out"></pre>
<iframe id="390" width="390" height="800" src="report.html"></iframe>
<iframe id="1200" width="1200" height="800" src="report.html"></iframe>
<script>onload = () => { const found = {};
for (const frame of document.querySelectorAll('iframe')) {
  const page = frame.contentDocument, root = page.documentElement;
  const bars = [...page.querySelectorAll('.track i')];
  found[frame.id] = { title: page.title, overflow: root.scrollWidth - root.clientWidth,
    images: [...page.images].map(image => image.naturalWidth),
    bars: bars.map(bar => bar.offsetWidth / bar.parentElement.offsetWidth),
    columns: getComputedStyle(page.querySelector('.four')).gridTemplateColumns.split(' ').length,
    cells: [...page.querySelectorAll('svg rect.hit')].map(rect => rect.getBBox().width) };
}
document.getElementById('out').textContent = JSON.stringify(found); };</script>"""


@pytest.mark.skipif(not BROWSER, reason="no Chromium on the PATH")
def test_in_a_real_browser(report: str, dataset: Dataset, tmp_path: Path) -> None:
    scores = evaluate(segmenter(), dataset).scores
    (tmp_path / "report.html").write_text(report, encoding="utf-8", errors="backslashreplace")
    (tmp_path / "probe.html").write_text(PROBE, encoding="utf-8")
    dom = browse(tmp_path, "--dump-dom", tmp_path / "probe.html")
    text = re.search(r'<pre id="out">(.*?)</pre>', dom, re.DOTALL)
    assert text, dom[:2000]
    found = json.loads(text[1])
    for width in ("390", "1200"):
        seen = found[width]
        assert seen["title"] == f"tiny val: mIoU {scores.miou:.3f}"
        assert seen["overflow"] <= 0
        assert len(seen["images"]) == 8 and min(seen["images"]) > 0
        assert seen["bars"] == pytest.approx(scores.iou[:2], abs=0.01)  # the third class is absent
        assert min(seen["cells"]) > 5
    assert (found["390"]["columns"], found["1200"]["columns"]) == (2, 4)


@pytest.mark.skipif(not BROWSER, reason="no Chromium on the PATH")
def test_light_and_dark_in_a_real_browser(report: str, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(report, encoding="utf-8", errors="backslashreplace")
    papers = []
    for option in ("--disable-gpu", "--force-dark-mode"):
        browse(tmp_path, f"--screenshot={tmp_path / 'shot.png'}", option, path)
        pixels = np.asarray(Image.open(tmp_path / "shot.png").convert("RGB")).astype(int)
        papers.append(pixels[2, 2].mean())
        bars = (abs(pixels - np.array([31, 111, 178])).sum(axis=2) < 12).sum()
        bars += (abs(pixels - np.array([90, 169, 230])).sum(axis=2) < 12).sum()
        assert bars > 1000  # the bars of the classes are in sight
    assert papers[0] > 240 and papers[1] < 60


def browse(folder: Path, *arguments: object) -> str:
    command = [
        BROWSER,
        "--headless=new",
        "--no-sandbox",
        "--hide-scrollbars",
        "--allow-file-access-from-files",
        "--window-size=1200,900",
        f"--user-data-dir={folder / 'profile'}",
        *map(str, arguments),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
