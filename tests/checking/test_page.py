"""The page: whole in one file, safe with hostile names, and drawn by a browser."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.checking.conftest import Check
from tests.checking.mask_cases import BAD, Case, write_case

HOSTILE = '<script>document.title="owned"<'
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


class Page(HTMLParser):
    """Collects the tags, the pictures and the text of a page; knows unclosed tags."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.images: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attributes)["src"] or "")
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """One bad mask with a name that is HTML, in a data set of many bad ones."""

    def write(folder: Path) -> None:
        values = np.zeros((9, 12), np.uint8)
        values[5, 7] = 99
        for index in range(70):
            name = HOSTILE if not index else f"m{index:02d}"
            Image.fromarray(values).save(folder / f"{name}.png")
            Image.new("RGB", (12, 9), (index, 0, 0)).save(folder.parent / "images" / f"{name}.png")
        (folder.parent / "images" / "b.jpg").unlink()

    write_case(tmp_path / "set", Case("many", write))
    return tmp_path / "set"


def test_the_page_is_whole_bounded_and_escaped(root: Path, tmp_path: Path, check: Check) -> None:
    checked = check(root, "--html", tmp_path / "page.html")
    assert checked.code == 4 and len(checked.report["findings"]) >= 70
    page = Page(tmp_path / "page.html")
    assert page.open == []
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert HOSTILE in page.text
    assert "label 99 at row 5, column 7" in page.text and "and 10 more" in page.text
    source = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href|url)\s*[=(]\s*['\"]?(?!data:)\w+:", source)
    assert len(page.images) <= 40
    for uri in page.images:
        head, _, body = uri.partition(";base64,")
        with Image.open(BytesIO(base64.b64decode(body))) as image:
            assert head == f"data:image/{image.format.lower() if image.format else ''}"
            assert max(image.size) == 240
            image.load()


def test_the_mask_shows_pixels_outside_the_classes_in_magenta(
    root: Path, tmp_path: Path, check: Check
) -> None:
    check(root, "--html", tmp_path / "page.html")
    uri = next(
        uri for uri in Page(tmp_path / "page.html").images if uri.startswith("data:image/png")
    )
    with Image.open(BytesIO(base64.b64decode(uri.partition(";base64,")[2]))) as image:
        pixels = np.asarray(image.convert("RGB"))
    rows, columns = np.nonzero((pixels == (255, 0, 255)).all(axis=2))
    scale = 240 / 12
    assert 5 * scale <= rows.min() and rows.max() < 6 * scale
    assert 7 * scale <= columns.min() and columns.max() < 8 * scale


def test_a_sound_set_shows_pairs_of_each_split_with_the_mask_in_place(
    tmp_path: Path, check: Check
) -> None:
    """Class 1 is red and in the right half; what is ignored is pale, class 0 as it is."""
    for split, count in (("train", 9), ("val", 2)):
        for kind in ("images", "masks"):
            (tmp_path / "set" / split / kind).mkdir(parents=True)
        for index in range(count):
            labels = np.zeros((20, 30), np.uint8)
            labels[:, 15:], labels[:5] = 1, 255
            picture = np.full((20, 30, 3), 40 + index + count, np.uint8)
            for kind, pixels in (("images", picture), ("masks", labels)):
                Image.fromarray(pixels).save(tmp_path / "set" / split / kind / f"n{index}.png")
    (tmp_path / "set" / "classes.json").write_text(
        '{"names": ["ground", "crack"], "palette": [[0, 0, 0], [250, 0, 0]]}'
    )
    assert check(tmp_path / "set", "--html", tmp_path / "page.html").code == 0
    page = Page(tmp_path / "page.html")
    names = ("n0", "n3", "n5", "n8", "n0", "n1")
    assert len(page.images) == 2 * len(names) and page.open == []
    assert [word for word in page.text.split() if re.fullmatch(r"n\d", word)] == [*names]
    with Image.open(BytesIO(base64.b64decode(page.images[3].partition(";base64,")[2]))) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    left, right, above = pixels[100, 40], pixels[100, 200], pixels[10, 40]
    assert abs(left - 52).max() < 12  # as it is
    assert right[0] > 120 and right[1:].max() < 60
    assert above.min() > 100 and np.ptp(above) < 12


@pytest.mark.parametrize("case", BAD[::3], ids=lambda case: case.name)
def test_whatever_is_wrong_there_is_a_page(tmp_path: Path, check: Check, case: Case) -> None:
    write_case(tmp_path / "set", case)
    assert check(tmp_path / "set", "--html", tmp_path / "page.html").code == case.code
    page = Page(tmp_path / "page.html")
    assert page.open == [] and "b." in page.text and "error" in page.text


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_draws_it_without_scrolling_sideways(
    root: Path, tmp_path: Path, check: Check, width: int
) -> None:
    check(root, "--html", tmp_path / "page.html")
    # A frame as wide as a phone: windows of a browser cannot be that narrow.
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe id=f src="page.html" style="width:{width}px;height:900px;border:0"></iframe>'
        "<script>onload = () => { const page = f.contentDocument;"
        "document.title = [page.title, page.documentElement.scrollWidth,"
        "[...page.images].every(image => image.naturalWidth > 0)].join('|') }</script>"
    )
    browser = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu"]
    browser += ["--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}"]
    result = subprocess.run(
        [*browser, "--dump-dom", frame.as_uri()], capture_output=True, text=True, timeout=120
    )
    found = re.search(r"<title>(.*?)</title>", result.stdout)
    assert found, result.stderr[-500:]
    title, wide, drawn = found[1].split("|")
    assert title.startswith("Check of folder:") and "owned" not in title
    assert int(wide) <= width
    assert drawn == "true"
