"""What all formats have in common: recognition, names, sizes and EXIF, hostile files."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segdeform.errors import SegdeformError
from segdeform.preparing.polygons import rasterising
from segdeform.preparing.polygons.rasterising import Drawn, draw_annotations
from segdeform.preparing.polygons.recognising import holds_annotations
from tests.preparing.polygons.scenes import labels_of, write_pictures, write_turned

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


def test_two_pictures_that_would_share_a_mask_are_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", {"a.jpg": (20, 30), "a.png": (20, 30)})
    with pytest.raises(SegdeformError, match="has the same name"):
        _draw(tmp_path, _coco())


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
    box = {"x": 10, "y": 10, "width": 50, "height": 50, "rectanglelabels": ["crack"]}
    whole = {"original_width": 30, "original_height": 20}
    result = {"type": "rectanglelabels", "value": box, **whole}
    task = {"id": 1, "data": {"image": "a.jpg"}, "annotations": [{"result": [result]}]}
    shape = {"label": "crack", "shape_type": "polygon", "points": [[1, 1], [9, 1], [9, 9]]}
    labelme = {"shapes": [shape], "imagePath": "a.jpg", "imageHeight": 20, "imageWidth": 30}
    cvat = (
        '<annotations><meta><label><name>crack</name></label></meta><image id="1" name="a.jpg" '
        'width="30" height="20"><polygon label="crack" points="1,1;9,1;9,9"/><mask label="crack" '
        'rle="2,3,1" left="4" top="5" width="3" height="2"/></image></annotations>'
    )
    packed = _coco(segmentation={"size": [20, 30], "counts": "T41b0"})
    return [json.dumps(part) for part in (_coco(), packed, labelme, [task])] + [cvat]


def test_damage_of_any_byte_is_one_line_or_harmless(tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", {"a.jpg": (20, 30)})
    draw, refused = random.Random(0), 0
    for whole in _whole_files():
        for _ in range(120):
            text = list(whole)
            for _ in range(draw.choice((1, 1, 2, 5))):
                text[draw.randrange(len(text))] = draw.choice('09-e.,:;"[]{}<>&\\x\0\u00e9')
            if draw.random() < 0.2:
                del text[draw.randrange(len(text)) :]
            try:
                _draw(tmp_path, "".join(text))
            except SegdeformError as error:
                assert error.exit_code in (4, 6) and "\n" not in str(error)
                assert "file.json: " in str(error)
                refused += 1
    assert refused > 300


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
        raise SegdeformError("no room")

    monkeypatch.setattr(rasterising, "write_index_png", fail)
    with pytest.raises(SegdeformError, match="no room"):
        _draw(tmp_path, content)
    assert len(calls) < 100
