"""What all formats have in common: recognition, names, sizes and EXIF, hostile files."""

from __future__ import annotations

import json
import random
import re
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from segdeform.errors import SegdeformError
from segdeform.preparing.polygons import coco as coco_file
from segdeform.preparing.polygons import cvat, label_studio, labelme, rasterising, yolo
from segdeform.preparing.polygons.rasterising import Drawn, draw_annotations
from segdeform.preparing.polygons.recognising import holds_annotations
from tests.preparing.polygons.scenes import labels_of, write_pictures, write_turned
from tests.preparing.polygons.test_label_studio import brush

RING = [2, 3, 17, 3, 17, 9, 2, 9]


def _coco(
    name: str = "a.jpg", size: tuple[int, int] = (20, 30), segmentation: Any = None
) -> dict[str, Any]:
    part = {"id": 1, "image_id": 1, "category_id": 1}
    return {
        "images": [{"id": 1, "file_name": name, "height": size[0], "width": size[1]}],
        "annotations": [{**part, "segmentation": segmentation or [RING]}],
        "categories": [{"id": 1, "name": "crack"}],
    }


def _write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def _draw(tmp_path: Path, content: Any, **options: Any) -> Drawn:
    path = _write(tmp_path / "file.json", content)
    return draw_annotations(path, tmp_path / "images", tmp_path / "masks", **options)


def test_shapes_are_drawn_on_the_upright_picture(tmp_path: Path) -> None:
    write_turned(tmp_path / "images" / "a.jpg", (20, 30))
    upright = _draw(tmp_path, _coco(size=(30, 20)))
    assert "EXIF" not in "\n".join(upright.messages)
    mask = labels_of(tmp_path / "masks", "a")
    assert mask.shape == (30, 20) and mask[3:9, 2:17].all() and mask.sum() == 90
    # Many tools write the size of the file as stored, and coordinates of what is shown.
    stored = _draw(tmp_path, _coco(size=(20, 30)))
    np.testing.assert_array_equal(labels_of(tmp_path / "masks", "a"), mask)
    assert "1 pictures are given in the size before their EXIF turn" in "\n".join(stored.messages)


@pytest.mark.parametrize(
    "segmentation",
    [[[2, 3, 28, 3, 28, 9, 2, 9]], {"size": [20, 30], "counts": [100, 40, 460]}],
    ids=["corners", "bitmap"],
)
def test_what_was_drawn_on_the_picture_as_stored_is_refused(
    segmentation: Any, tmp_path: Path
) -> None:
    write_turned(tmp_path / "images" / "a.jpg", (20, 30))
    with pytest.raises(SegdeformError, match=r"image 1 .*as it is stored, 20x30.*30x20"):
        _draw(tmp_path, _coco(size=(20, 30), segmentation=segmentation))


def test_other_sizes_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", {"a.jpg": (30, 20), "b.jpg": (20, 30)})
    both = _coco()
    both["images"].append({"id": 2, "file_name": "b.jpg", "height": 21, "width": 30})
    both["images"].insert(0, {"id": 3, "file_name": "0.jpg", "height": 20, "width": 30})
    write_pictures(tmp_path / "images", {"0.jpg": (20, 30)})
    with pytest.raises(SegdeformError, match=r"20x30 .*30x20; so are 1 others"):
        _draw(tmp_path, both)
    assert not (tmp_path / "masks").exists()


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "C:\\Windows\\system.ini",
        "//host/share/x",
        "..",
        "/",
        ".",
    ],
)
def test_names_that_lead_out_of_the_folder_lead_nowhere(name: str, tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", {"a.jpg": (20, 30)})
    with pytest.raises(SegdeformError, match=r"file\.json: COCO for 1 pictures, none") as caught:
        _draw(tmp_path, _coco(name=name))
    assert caught.value.exit_code == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.json", "images"]


def test_the_longest_common_end_of_the_paths_decides(tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", {"x/a.jpg": (20, 30), "y/a.jpg": (20, 30)})
    content = _coco("/home/me/set/y/a.png")
    assert [sample.name for sample in _draw(tmp_path, content).samples] == ["y/a"]
    with pytest.raises(SegdeformError, match=r"image 1 \(a\.jpg\) may mean .*x/a\.jpg or .*y/a"):
        _draw(tmp_path, _coco("a.jpg"))
    # One folder of a set of which the file names several.
    content["images"].append({"id": 2, "file_name": "x/a.jpg", "height": 20, "width": 30})
    other = [[1, 1, 4, 1, 4, 5, 1, 5]]
    content["annotations"].append({"id": 2, "image_id": 2, "category_id": 1, "segmentation": other})
    path = _write(tmp_path / "file.json", content)
    drawn = draw_annotations(path, tmp_path / "images" / "x", tmp_path / "masks")
    assert [sample.name for sample in drawn.samples] == ["a"]
    assert labels_of(tmp_path / "masks", "a").sum() == 12, "of x/a.jpg"
    assert "1 annotated pictures are not there" in "\n".join(drawn.messages)


def test_names_in_another_normal_form_of_unicode_are_the_same(tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", {"stra\u00dfe \u00e4.jpg": (20, 30)})
    assert len(_draw(tmp_path, _coco("stra\u00dfe a\u0308.jpg")).samples) == 1


def test_names_of_any_letters_and_length_leave_one_line(tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", {"a.jpg": (20, 30)})
    for name in ("x\ny\x1b[31m/a.jpg", "long" * 5000 + "/a.jpg"):
        with pytest.raises(SegdeformError, match=r"image 1 .* 21x30") as caught:
            _draw(tmp_path, _coco(name, size=(21, 30)))
        assert str(caught.value).isprintable() and len(str(caught.value)) < 600


def test_two_pictures_that_would_share_a_mask_are_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", {"a.jpg": (20, 30), "a.png": (20, 30)})
    with pytest.raises(SegdeformError, match="has the same name"):
        _draw(tmp_path, _coco())


@pytest.mark.parametrize("module", [coco_file, labelme, cvat, label_studio, yolo])
def test_the_examples_in_the_documentation_are_read(module: ModuleType, tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", {"a.jpg": (480, 640)})
    lines = (module.__doc__ or "").splitlines()
    example = "\n".join(line for line in lines if line.startswith("    "))
    folder = tmp_path / "labels"
    folder.mkdir()
    _write(folder / "a.txt", example)
    source = folder if module is yolo else folder / "a.txt"
    drawn = draw_annotations(source, tmp_path / "images", tmp_path / "masks")
    assert [sample.name for sample in drawn.samples] == ["a"] and "left out" not in str(drawn)
    values = np.unique(labels_of(tmp_path / "masks", "a"))
    assert set(range(len(drawn.classes))) <= {*values.tolist()}


def test_the_content_tells_the_format_whatever_the_name(tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", {"a.jpg": (20, 30)})
    renamed = _write(tmp_path / "download.txt", " \n" + json.dumps(_coco()))
    assert holds_annotations(renamed)
    assert len(draw_annotations(renamed, tmp_path / "images", tmp_path / "masks").samples) == 1
    wide = tmp_path / "wide.json"
    wide.write_bytes(json.dumps(_coco()).encode("utf-16"))
    assert len(draw_annotations(wide, tmp_path / "images", tmp_path / "masks").samples) == 1
    folder = tmp_path / "export"
    folder.mkdir()
    assert not holds_annotations(folder)
    _write(folder / "_annotations.coco.json", _coco())
    assert holds_annotations(folder)
    assert len(draw_annotations(folder, tmp_path / "images", tmp_path / "masks").samples) == 1
    _write(folder / "second.json", _coco())
    with pytest.raises(SegdeformError, match="several annotation files"):
        draw_annotations(folder, tmp_path / "images", tmp_path / "masks")


def test_folders_of_masks_and_lists_are_no_annotations(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    _write(tmp_path / "classes.txt", "road\n0 1 2 3 4\n")
    _write(tmp_path / "train.txt", "0 1 2 3 4\n")
    _write(tmp_path / "classes.json", {"names": ["road"]})
    assert not holds_annotations(tmp_path)
    assert not holds_annotations(_write(tmp_path / "pairs.csv", "a.jpg,a.png\n"))
    assert not holds_annotations(tmp_path / "nothing")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[[[[" * 50_000,
        '{"images":' + "[" * 100_000,
        '{"via": {}}',
        '{"shapes": 1, "imagePath": 2}',
        '{"images": 1, "annotations": 2, "categories": 3}',
        '{"images": [], "annotations": [], "categories": []}',
        "[1, 2]",
        "[]",
        '[{"image_id": 1, "category_id": 1, "segmentation": []}]',
        "<",
        "PK\x03\x04",
        "null",
    ],
)
def test_nonsense_is_one_line_of_code_4(content: str, tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", {"a.jpg": (20, 30)})
    with pytest.raises(SegdeformError, match=r"file\.json: ") as caught:
        _draw(tmp_path, content)
    assert caught.value.exit_code == 4 and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_files_larger_than_any_are_unsafe(tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", {"a.jpg": (20, 30)})
    path = tmp_path / "file.json"
    with path.open("wb") as file:
        file.write(b"{")
        file.truncate(1 << 40)
    with pytest.raises(SegdeformError, match="MiB") as caught:
        draw_annotations(path, tmp_path / "images", tmp_path / "masks")
    assert caught.value.exit_code == 6


def _whole_files() -> list[str]:
    """Returns a sound file of each format with every kind of shape."""
    whole = {"original_width": 30, "original_height": 20, "image_rotation": 0}
    values: list[dict[str, Any]] = [
        {"x": 10, "y": 10, "width": 50, "height": 50, "rotation": 9, "rectanglelabels": ["crack"]},
        {"x": 10, "y": 10, "radiusX": 50, "radiusY": 50, "ellipselabels": ["crack"]},
        {"points": [[1, 1], [50, 2], [30, 80]], "closed": True, "polygonlabels": ["crack"]},
        {"rle": brush(np.eye(20, 30, dtype=np.uint8)), "format": "rle", "brushlabels": ["spot"]},
    ]
    results = [{"type": next(k for k in v if "labels" in k), "value": v, **whole} for v in values]
    done = {"result": results, "was_cancelled": False, "ground_truth": True, "updated_at": "2026"}
    task = {"id": 1, "data": {"image": "/data/upload/1/0a1b2c3d-a.jpg"}, "annotations": [done]}
    row = {"id": 1, "image": "a.jpg", "label": [{**value, **whole} for value in values]}
    kinds = {"polygon": [[1, 1], [9, 1], [9, 9]], "circle": [[5, 5], [8, 8]], "line": [[5, 5]]}
    shapes = [{"label": "x", "shape_type": kind, "points": kinds[kind]} for kind in kinds]
    labelme = {"shapes": shapes, "imagePath": "a.jpg", "imageHeight": 20, "imageWidth": 30}
    cvat = (
        "<annotations><meta><label><name>s</name><color>#0000ff</color></label></meta>"
        '<image id="1" name="a.jpg" width="30" height="20"><polygon label="s" points="1,1;9,1;9,9"'
        ' z_order="1"/><mask label="s" rle="2,3,1" left="4" top="5" width="3" height="2"/>'
        '<box label="s" xtl="1.0" ytl="2.00" xbr="20" ybr="12.00" rotation="30"/>'
        '<ellipse label="s" cx="9" cy="9" rx="4" ry="3"/></image></annotations>'
    )
    text = coco.encode(np.asfortranarray(np.eye(20, 30, dtype=np.uint8)))["counts"].decode()
    packed = _coco(segmentation={"size": [20, 30], "counts": text})
    files = (_coco(), packed, labelme, [task], [row])
    return [*(json.dumps(content) for content in files), cvat]


_ODD = (
    *("1e308", "-1e308", "1e9", "99999999999999999999", "-1", "0", "NaN", "Infinity", "9" * 400),
    *("null", "true", '"x"', '""', "[]", "{}", "[[[]]]", "1.5"),
)


def _damaged(text: str, draw: random.Random) -> str:
    kind = draw.random()
    if kind < 0.5:  # another value in the place of one
        start, end = draw.choice([m.span() for m in re.finditer(r'-?\d+(\.\d+)?|"[^"]*"', text)])
        return text[:start] + draw.choice(_ODD) + text[end:]
    start = draw.randrange(len(text))
    if kind < 0.7:  # a part that is missing
        return text[:start] + text[start + draw.randrange(40) :]
    letter = draw.choice('09-e.,:;"[]{}<>&\\x\0\u00e9')
    return text[:start] + letter + text[start + 1 :]


def test_damage_of_any_kind_is_one_line_or_harmless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rasterising, "write_index_png", lambda *_: None)
    write_pictures(tmp_path / "images", {"a.jpg": (20, 30)})
    draw, refused = random.Random(0), 0
    for whole in _whole_files():
        assert _draw(tmp_path, whole).samples
        for _ in range(200):
            text = whole
            for _ in range(draw.choice((1, 1, 2, 4))):
                text = _damaged(text, draw) or " "
            try:
                _draw(tmp_path, text)
            except SegdeformError as error:
                assert error.exit_code in (4, 6) and "\n" not in str(error)
                assert "file.json: " in str(error)
                refused += 1
    assert refused > 600


def test_labels_that_mean_void_are_not_scored_unless_asked_for(tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", {"a.jpg": (20, 30)})
    content = _coco()
    content["categories"].append({"id": 2, "name": "Ignore"})
    ring = [20, 0, 24, 0, 24, 3, 20, 3]
    part = {"id": 2, "image_id": 1, "category_id": 2, "segmentation": [ring]}
    content["annotations"].append(part)
    drawn = _draw(tmp_path, content)
    assert drawn.classes == ("background", "crack")
    assert "'Ignore' is not scored (255)" in drawn.messages
    assert (labels_of(tmp_path / "masks", "a") == 255).sum() == 12
    asked = _draw(tmp_path, content, classes=["crack", "Ignore"], partial_labels=True)
    assert asked.classes == ("crack", "Ignore")
    mask = labels_of(tmp_path / "masks", "a")
    assert (mask == 1).sum() == 12 and (mask == 0).sum() == 90 and mask.max() == 255


def test_masks_are_written_in_parallel_and_counted(tmp_path: Path) -> None:
    names = [f"{index:02}.jpg" for index in range(17)]
    write_pictures(tmp_path / "images", dict.fromkeys(names, (20, 30)))
    content = _coco()
    content["images"] = [
        {"id": index, "file_name": name, "height": 20, "width": 30}
        for index, name in enumerate(names)
    ]
    heard: list[tuple[int, int]] = []
    drawn = _draw(tmp_path, content, workers=3, progress=lambda *step: heard.append(step))
    assert heard == [(done, 17) for done in range(1, 18)]
    assert [sample.image.name for sample in drawn.samples] == names
    assert sum(labels_of(tmp_path / "masks", name[:-4]).any() for name in names) == 1


def test_nothing_more_is_drawn_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{index:03}.jpg" for index in range(200)]
    write_pictures(tmp_path / "images", dict.fromkeys(names, (20, 30)))
    content = _coco("000.jpg")
    content["images"] += [{"id": 9 + n, "file_name": name} for n, name in enumerate(names[1:])]
    calls = []

    def fail(path: Path, *_: object) -> None:
        calls.append(path)
        time.sleep(0.02)  # seconds in all, in which the failure is heard
        raise SegdeformError("no room")

    monkeypatch.setattr(rasterising, "write_index_png", fail)
    with pytest.raises(SegdeformError, match="no room"):
        _draw(tmp_path, content)
    assert len(calls) < 200
