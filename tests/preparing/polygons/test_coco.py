"""COCO files against pycocotools: annToMask, unions, run lengths of both kinds, crowds."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO

from segdeform.errors import SegdeformError
from segdeform.preparing.polygons.coco import decode
from segdeform.preparing.polygons.rasterising import Drawn, draw_annotations
from tests.conftest import external_data
from tests.preparing.polygons.scenes import distances, labels_of, star, write_pictures

SIZES = {"a.jpg": (41, 53), "deep/b.png": (60, 37), "c.jpg": (20, 30), "unnamed.jpg": (9, 9)}


def _scene() -> dict[str, Any]:
    rng = np.random.default_rng(8)
    images = [
        {"id": 10 + index, "file_name": name, "height": size[0], "width": size[1]}
        for index, (name, size) in enumerate(SIZES.items())
        if name != "unnamed.jpg"
    ]
    annotations: list[dict[str, Any]] = []
    for image, size in ((10, (41, 53)), (11, (60, 37))):
        for category in (7, 3, 7):
            rings = [star(rng, 9, size) + rng.uniform(-12, 12, 2) for _ in range(1 + category % 2)]
            annotations.append(
                {
                    "image_id": image,
                    "category_id": category,
                    "segmentation": [ring.ravel().round(2).tolist() for ring in rings],
                }
            )
        noise = np.asfortranarray(rng.random(size) < 0.03)
        packed = coco.encode(noise.astype(np.uint8))
        crowd = np.asfortranarray(rng.random(size) < 0.2)
        counts = [len(run) for run in _split(crowd.ravel(order="F"))]
        annotations.append(
            {
                "image_id": image,
                "category_id": 5,
                "iscrowd": 1,
                "segmentation": {"size": list(size), "counts": counts},
            }
        )
        annotations.append(
            {
                "image_id": image,
                "category_id": 5,
                "segmentation": {"size": list(size), "counts": packed["counts"].decode()},
            }
        )
    for index, annotation in enumerate(annotations):
        annotation["id"] = 100 + index
    categories = [
        {"id": 7, "name": "crack", "supercategory": "things"},
        {"id": 0, "name": "things", "supercategory": "none"},
        {"id": 5, "name": "hole", "supercategory": "things"},
        {"id": 3, "name": "Background", "supercategory": "things"},
        {"id": 9, "name": "absent", "supercategory": "things"},
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


def _split(flat: np.ndarray) -> list[np.ndarray]:
    parts = np.split(flat, np.flatnonzero(flat[1:] != flat[:-1]) + 1)
    return [flat[:0], *parts] if flat[0] else list(parts)


def _write(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    return path


def _draw(tmp_path: Path, content: Any, **options: Any) -> Drawn:
    images = write_pictures(tmp_path / "images", SIZES)
    return draw_annotations(_write(tmp_path, content), images, tmp_path / "masks", **options)


def _by_pycocotools(path: Path, image: int, size: tuple[int, int]) -> np.ndarray:
    """Paints what annToMask gives, crowds first, then the larger before the smaller."""
    with contextlib.redirect_stdout(io.StringIO()):
        reader = COCO(str(path))
    masks = [(a, reader.annToMask(a) == 1) for a in reader.imgToAnns[image]]
    expected = np.zeros(size, np.uint8)
    order = sorted(masks, key=lambda pair: (not pair[0].get("iscrowd"), -pair[1].sum()))
    for annotation, mask in order:
        label = {7: 2, 3: 0, 5: 1}[annotation["category_id"]]
        expected[mask] = 255 if annotation.get("iscrowd") else label
    return expected


def test_masks_are_what_pycocotools_decodes(tmp_path: Path) -> None:
    scene = _scene()
    drawn = _draw(tmp_path, scene)
    assert drawn.classes == ("background", "hole", "crack", "absent")
    assert [sample.name for sample in drawn.samples] == ["a", "c", "deep/b"]
    assert not labels_of(tmp_path / "masks", "c").any(), "listed without an annotation"
    for image, name in ((10, "a"), (11, "deep/b")):
        mine = labels_of(tmp_path / "masks", name)
        theirs = _by_pycocotools(tmp_path / "instances.json", image, mine.shape)
        rings = [
            np.array(ring).reshape(-1, 2)
            for a in scene["annotations"]
            if a["image_id"] == image and isinstance(a["segmentation"], list)
            for ring in a["segmentation"]
        ]
        odd = np.argwhere(mine != theirs)
        nearest = np.min([distances(odd, ring) for ring in rings], axis=0)
        assert len(odd) < 0.02 * mine.size and (nearest < 0.3).all()
        assert {0, 1, 2, 255} == set(np.unique(mine))


def test_run_lengths_alone_are_equal_to_the_last_pixel(tmp_path: Path) -> None:
    scene = _scene()
    scene["annotations"] = [a for a in scene["annotations"] if isinstance(a["segmentation"], dict)]
    _draw(tmp_path, scene)
    mine = labels_of(tmp_path / "masks", "a")
    theirs = _by_pycocotools(tmp_path / "instances.json", 10, mine.shape)
    np.testing.assert_array_equal(mine, theirs)
    assert (mine == 1).any()


def test_every_compressed_text_is_decoded_as_pycocotools_does() -> None:
    rng = np.random.default_rng(2)
    for _ in range(200):
        height, width = (int(n) for n in rng.integers(1, 90, 2))
        bits = np.asfortranarray(rng.random((height, width)) < rng.choice([0, 0.02, 0.5, 1]))
        lengths = decode(coco.encode(bits.astype(np.uint8))["counts"].decode())
        flat = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
        np.testing.assert_array_equal(flat.reshape(width, height).T, bits)


def test_what_was_left_out_is_told(tmp_path: Path) -> None:
    scene = _scene()
    scene["annotations"] += [
        {"id": 1, "image_id": 10, "category_id": 7, "segmentation": [], "bbox": [1, 1, 5, 5]},
        {"id": 2, "image_id": 10, "category_id": 7, "segmentation": [[1, 1, 5, 5]]},
        {"id": 3, "image_id": 10, "category_id": 7, "segmentation": [[99, 99, 199, 99, 99, 199]]},
    ]
    scene["images"].append({"id": 77, "file_name": "gone.jpg", "height": 4, "width": 4})
    drawn = _draw(tmp_path, scene)
    told = "\n".join(drawn.messages)
    for said in (
        "COCO: 12 shapes in 3 pictures",
        "left out: 1 annotations with a box alone",
        "left out: 1 shapes with fewer than 3 points",
        "left out: 1 shapes outside of their picture",
        "category 'things' only groups others",
        "1 pictures have no shape and are pure background",
        "1 pictures are not annotated and left out",
        "1 annotated pictures are not there: 'gone.jpg'",
    ):
        assert said in told
    assert [path.name for path in drawn.unannotated] == ["unnamed.jpg"]


def test_pictures_without_a_word_are_background_when_asked_for(tmp_path: Path) -> None:
    drawn = _draw(tmp_path, _scene(), empty_is_background=True)
    assert [sample.name for sample in drawn.samples] == ["a", "c", "deep/b", "unnamed"]
    assert drawn.unannotated == () and not labels_of(tmp_path / "masks", "unnamed").any()


def test_partial_labels_leave_the_rest_unscored(tmp_path: Path) -> None:
    whole = _draw(tmp_path, _scene())
    before = labels_of(tmp_path / "masks", "a")
    partly = _draw(tmp_path, _scene(), partial_labels=True)
    after = labels_of(tmp_path / "masks", "a")
    assert partly.classes == whole.classes, "background is a class that was drawn"
    np.testing.assert_array_equal(after[before > 0], before[before > 0])
    assert {0, 255} == set(np.unique(after[before == 0]))
    scene = _scene()
    scene["annotations"] = [a for a in scene["annotations"] if a["category_id"] != 3]
    scene["categories"] = [c for c in scene["categories"] if c["id"] != 3]
    assert _draw(tmp_path, scene, partial_labels=True).classes == ("hole", "crack", "absent")
    assert labels_of(tmp_path / "masks", "c").min() == 255


def test_given_names_win_and_an_unknown_one_is_named(tmp_path: Path) -> None:
    drawn = _draw(tmp_path, _scene(), classes=["crack", "background", "hole"])
    assert drawn.classes == ("crack", "background", "hole")
    assert labels_of(tmp_path / "masks", "c").max() == 1, "of no shape: background, their second"
    with pytest.raises(
        SegdeformError, match=r"instances\.json: image 10 .*annotation 100 .*'crack'"
    ):
        _draw(tmp_path, _scene(), classes=["hole"])


def _broken(change: str) -> dict[str, Any]:
    scene = _scene()
    first, run = scene["annotations"][0], scene["annotations"][3]
    match change:
        case "nan":
            first["segmentation"][0][2] = float("nan")
        case "huge":
            first["segmentation"][0][2] = 1e300
        case "odd":
            first["segmentation"][0].append(1)
        case "text":
            first["segmentation"] = [["1", "x"]]
        case "gigapixels":
            run["segmentation"] = {"size": [100_000, 100_000], "counts": [10**10]}
        case "another size":
            run["segmentation"] = {"size": [40, 53], "counts": [40 * 53]}
        case "sum":
            run["segmentation"]["counts"][0] += 1
        case "negative":
            run["segmentation"]["counts"] = [-5, 41 * 53 + 5]
        case "large number":
            run["segmentation"]["counts"] = [10**400]
        case "far below zero":
            run["segmentation"]["counts"] = [-(10**400)]
        case "damaged":
            run["segmentation"]["counts"] = "PPo\u00e9"
        case "endless":
            run["segmentation"]["counts"] = "o" * 40 + "0"
        case "no category":
            first["category_id"] = 4
        case "no image":
            first["image_id"] = 4
        case "twice":
            scene["images"][1]["id"] = 10
        case "same picture":
            scene["images"][1]["file_name"] = "elsewhere/a.jpg"
        case "size":
            scene["images"][0]["width"] = 54
        case "nothing":
            scene["annotations"] = [{**first, "segmentation": []}]
        case "no name":
            scene["images"][0]["file_name"] = ""
        case "no key":
            del scene["categories"]
    return scene


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("nan", r"annotations\[0\]\.segmentation.*finite"),
        ("huge", r"annotation 100: .*no picture has"),
        ("odd", r"annotation 100: a polygon of 19 numbers"),
        ("text", r"annotations\[0\]\.segmentation.*number"),
        ("gigapixels", r"annotation 103: .*100000x100000"),
        ("another size", r"annotation 103, a bitmap of 40x53 for a picture of 41x53"),
        ("sum", r"annotation 103: its runs do not sum up to the 41 x 53"),
        ("negative", r"annotation 103: .*negative"),
        ("large number", r"annotations\[3\]\.segmentation"),
        ("far below zero", r"annotations\[3\]\.segmentation"),
        ("damaged", r"annotation 103: .*damaged"),
        ("endless", r"annotation 103: a run that is longer"),
        ("no category", r"annotation 100: there is no category 4"),
        ("no image", r"annotation 100: there is no image 4"),
        ("twice", r"two images have the same id"),
        ("same picture", r"image 10 \(a\.jpg\).*both of .*a\.jpg"),
        ("size", r"image 10 \(a\.jpg\) is of 41x54 .* 41x53"),
        ("nothing", r"only 1 annotations with a box alone, which have no area"),
        ("no name", r"images\[0\]\.file_name"),
        ("no key", r"categories: Field required"),
    ],
)
def test_each_fault_is_one_line_that_names_file_and_item(
    change: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(SegdeformError, match=rf"instances\.json: .*{said}") as caught:
        _draw(tmp_path, _broken(change))
    assert caught.value.exit_code in (4, 6) and "\n" not in str(caught.value)
    assert not (tmp_path / "masks").exists(), "nothing was written"


def test_the_panoptic_format_is_refused_by_its_name(tmp_path: Path) -> None:
    scene = _scene()
    scene["annotations"] = [{"image_id": 10, "segments_info": [], "file_name": "a.png"}]
    with pytest.raises(SegdeformError, match="panoptic"):
        _draw(tmp_path, scene)


def test_real_masks_packed_by_pycocotools_come_back_as_they_were(tmp_path: Path) -> None:
    home = external_data("data/camvid/val")
    names = sorted(path.stem for path in (home / "masks").glob("*.png"))[::40]
    images, annotations = [], []
    for index, name in enumerate(names):
        mask = np.asarray(Image.open(home / "masks" / f"{name}.png"))
        height, width = mask.shape
        picture = {"id": index, "file_name": f"elsewhere/{name}.png"}
        images.append({**picture, "height": height, "width": width})
        for value in np.unique(mask[mask < 11]):
            packed = coco.encode(np.asfortranarray(mask == value).astype(np.uint8))
            segmentation = {"size": [height, width], "counts": packed["counts"].decode()}
            part = {"id": len(annotations), "image_id": index, "category_id": int(value) + 1}
            annotations.append({**part, "segmentation": segmentation})
    categories = [{"id": value + 1, "name": f"class {value}"} for value in range(11)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = _write(tmp_path, content)
    drawn = draw_annotations(path, home / "images", tmp_path / "masks", partial_labels=True)
    assert len(drawn.samples) == len(names) and len(drawn.classes) == 11
    for name in names:
        mask = np.asarray(Image.open(home / "masks" / f"{name}.png"))
        expected = np.where(mask < 11, mask, 255)
        np.testing.assert_array_equal(labels_of(tmp_path / "masks", name), expected)
