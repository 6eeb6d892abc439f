"""The report: complete, escaped, and laid out as meant in a real browser."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segdeform.data.dataset import Dataset, Sample, colour_map
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
    for text in (miou, "dark", "light", "never", "whole up to bytes", "model sha256"):
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


def pixels(uri: str) -> np.ndarray:
    kind, _, text = uri.partition(";base64,")
    assert kind in ("data:image/png", "data:image/jpeg")
    return np.asarray(Image.open(BytesIO(base64.b64decode(text))).convert("RGB")).astype(int)


@pytest.fixture
def seven(tmp_path: Path) -> Dataset:
    """Seven pictures, the k-th with 4 rows wrong for each step of (3 k modulo 7), one row void."""
    samples = []
    for k in range(7):
        labels = np.zeros((30, 16), np.uint8)
        labels[:, 8:] = 1
        image = np.repeat(labels[:, :, None] * 200, 3, 2)
        image[:, :, 1] = np.arange(30)[:, None] * 8
        image[:, :, 2] = np.arange(16) * 10
        labels[: 4 * (3 * k % 7)] ^= 1
        labels[-1] = 255
        paths = tmp_path / f"{k}.png", tmp_path / f"{k}-mask.png"
        Image.fromarray(image).save(paths[0])
        Image.fromarray(labels).save(paths[1])
        samples.append(Sample(f"s/{k}", *paths))
    palette = ((9, 9, 9), (255, 0, 0), (0, 255, 0))
    return Dataset("tiny", "val", tmp_path, ("dark", "light", "never"), palette, tuple(samples))


def test_worst_and_best_are_chosen_by_their_miou(
    seven: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segdeform.evaluation.examples.WORST", 3)
    evaluation = evaluate(segmenter(), seven)
    examples = choose_examples(evaluation, segmenter(), seven)
    # Steps of errors: 0 3 6 2 5 1 4 of pictures 0 to 6.
    assert [example.name for example in examples] == ["s/2", "s/4", "s/6", "s/0", "s/5"]
    assert [example.worst for example in examples] == [True, True, True, False, False]
    assert examples[3].miou == 1 and examples[0].accuracy == pytest.approx(5 / 29)
    assert examples[0].size == (30, 16)
    few = dataclasses.replace(seven, samples=seven.samples[:2])
    shown = choose_examples(evaluate(segmenter(), few), segmenter(), few)
    assert [(example.name, example.worst) for example in shown] == [("s/1", True), ("s/0", True)]


def test_an_example_shows_picture_truth_labels_and_errors(seven: Dataset) -> None:
    own = segmenter()
    own.palette = seven.palette
    example = choose_examples(evaluate(own, seven), own, seven)[0]
    sample = next(sample for sample in seven.samples if sample.name == example.name)
    assert sample.mask is not None
    image, truth = (np.asarray(Image.open(path)) for path in (sample.image, sample.mask))
    colours = np.full((256, 3), 224)
    colours[:3] = seven.palette
    labels = (image[:, :, 0] > 127).astype(int)
    np.testing.assert_array_equal(pixels(example.truth), colours[truth])
    np.testing.assert_array_equal(pixels(example.prediction), colours[labels])
    assert abs(pixels(example.image) - image).mean() < 8  # JPEG
    errors = pixels(example.errors)
    assert (errors[truth == 255] == 255).all()
    wrong = (errors[:, :, 0] > 200) & (errors[:, :, 1] < 60)  # red
    np.testing.assert_array_equal(wrong, (truth != labels) & (truth != 255))


def test_confusions_go_from_the_truth_to_what_was_said() -> None:
    """Twelve of A taken for B, 80 of C for A; nothing the other way round."""
    tally = Tally(3, 0.02)
    for picture, (true, said, count) in enumerate([(0, 1, 12), (2, 0, 80), (1, 1, 300)]):
        truth = np.full((20, 20), 255, np.uint8)
        truth.flat[:count] = true
        tally.add(picture, truth, np.full_like(truth, said))
    evaluation = dataclasses.replace(
        evaluation_of(3), classes=("A", "B", "C"), counts=tally.gather(Processes())
    )
    text = " ".join(Page(render_report(evaluation, colour_map(3), ())).text.split())
    assert "A taken for B: 1.000, 12 pixels" in text and "C taken for A: 1.000, 80 pixels" in text
    assert "B taken for A" not in text and "A taken for C" not in text
    listed = text[text.index("C → A") :]
    assert listed.startswith("C → A100.0%80 A → B100.0%12")  # what costs most comes first


def test_the_histogram_is_of_the_pictures_miou(seven: Dataset) -> None:
    evaluation = evaluate(segmenter(), seven)
    text = Page(render_report(evaluation, seven.palette, ())).text
    found = re.findall(r"(\d+) pictures from (0\.\d\d) to", text)
    bins: dict[float, int] = {}
    for miou in evaluation.picture_scores.miou:
        low = round(min(19, int(20 * miou)) / 20, 2)
        bins[low] = bins.get(low, 0) + 1
    assert {float(low): int(count) for count, low in found} == bins
    assert len(bins) > 3


BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)

# Loads the report at the width of a phone and of a screen and writes down what came of it.
PROBE = """<!doctype html><body><pre id="out"></pre>
<iframe id="390" width="390" height="800" src="report.html"></iframe>
<iframe id="1200" width="1200" height="800" src="report.html"></iframe>
<iframe id="long" width="1200" height="800" src="long.html"></iframe>
<script>onload = () => { const found = {};
for (const frame of document.querySelectorAll('iframe')) {
  const page = frame.contentDocument, root = page.documentElement;
  const bars = [...page.querySelectorAll('.track i')];
  found[frame.id] = { title: page.title, overflow: root.scrollWidth - root.clientWidth,
    images: [...page.images].map(image => image.naturalWidth),
    bars: bars.map(bar => bar.offsetWidth / bar.parentElement.offsetWidth),
    columns: getComputedStyle(page.querySelector('.four')).gridTemplateColumns.split(' ').length,
    texts: [...page.querySelectorAll('.wide svg text')].map(text => {
      const box = text.getBoundingClientRect();
      const whole = text.ownerSVGElement.getBoundingClientRect();
      return Math.min(box.left - whole.left, box.top - whole.top, whole.right - box.right,
        whole.bottom - box.bottom) }),
    cells: [...page.querySelectorAll('svg rect.hit')].map(rect => rect.getBBox().width) };
}
document.getElementById('out').textContent = JSON.stringify(found); };</script>"""


LONG = ("Reinforced concrete, exposed aggregate, wet", "W" * 40, "\u9577\u3044\u540d\u524d" * 6)


def render_long(dataset: Dataset) -> str:
    scored = segmenter()
    scored.classes = LONG
    evaluation = evaluate(scored, dataclasses.replace(dataset, classes=LONG))
    examples = choose_examples(evaluation, scored, dataclasses.replace(dataset, classes=LONG))
    return render_report(evaluation, scored.palette, examples)


def test_long_names_are_cut_beside_the_matrix_and_whole_elsewhere(dataset: Dataset) -> None:
    page = render_long(dataset)
    labels = re.findall(r"<text [^>]*>([^<]*)<title>([^<]*)</title></text>", page)
    assert [name for _, name in labels] == [name for name in LONG for _ in range(2)]
    for label, name in labels:
        assert label.endswith("\u2026") and name.startswith(label[2:-1])
        assert label[:2] == f"{LONG.index(name)} " and 8 < len(label) < 25
    assert "Cut short above: 0 <bdi>Reinforced concrete, exposed aggregate, wet</bdi>, 1 " in page


@pytest.mark.skipif(not BROWSER, reason="no Chromium on the PATH")
def test_in_a_real_browser(report: str, dataset: Dataset, tmp_path: Path) -> None:
    scores = evaluate(segmenter(), dataset).scores
    (tmp_path / "report.html").write_text(report, encoding="utf-8", errors="backslashreplace")
    (tmp_path / "long.html").write_text(render_long(dataset), encoding="utf-8")
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
    for seen in found.values():  # nothing beside the matrix is cut off
        assert len(seen["texts"]) >= 7 and min(seen["texts"]) >= 0
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
