"""Outputs by choice: each right, whole or not there, and known to be of its picture."""

from __future__ import annotations

import json
import resource
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from scipy.special import softmax

from segdeform.cli import main
from segdeform.errors import ResourceError, UsageError
from segdeform.prediction import predict as module
from segdeform.prediction.predict import predict
from segdeform.prediction.records import read_done
from segdeform.results import files
from segdeform.results import overlay as overlay_module
from segdeform.results.outputs import KINDS, Forms, known_outputs
from tests.prediction.test_frames import save_pages
from tests.prediction.test_georeferenced import PLACE, save_geotiff
from tests.prediction.test_predict import save_picture, segmenter, tree

__all__ = ["segmenter"]  # a fixture

ALL = tuple(KINDS)
RED = Forms(cutout_class="red")


def run(segmenter: Any, folder: Path, out: Path, outputs: Sequence[str] = ALL, **more: Any) -> Any:
    return predict(segmenter, [folder], out, outputs=outputs, **{"forms": RED, **more})


def test_every_output_mirrors_the_inputs_and_agrees_with_the_mask(
    segmenter: Any, tmp_path: Path
) -> None:
    pixels = save_picture(tmp_path / "in" / "sub" / "a.b.png")
    save_picture(tmp_path / "in" / "c.jpg", 1, (5, 7))
    out = tmp_path / "out"
    run(segmenter, tmp_path / "in", out)
    for name, kind in KINDS.items():
        suffix = kind.suffixes[0]
        assert sorted(tree(out / name)) == [f"c.{suffix}", f"sub/a.b.{suffix}"]
    scores = softmax(pixels[:, :, [1, 0, 2]] / 255, axis=2)
    labels = scores.argmax(2)
    mask = np.asarray(Image.open(out / "masks" / "sub" / "a.b.png"))
    np.testing.assert_array_equal(mask, labels)
    confidence = np.asarray(Image.open(out / "confidence" / "sub" / "a.b.png"))
    assert confidence.dtype == np.uint8
    assert abs(confidence - 255 * scores.max(2)).max() < 0.6
    with np.load(out / "probabilities" / "sub" / "a.b.npz") as file:
        assert abs(file["rows_0"] - scores.transpose(2, 0, 1)).max() < 1e-3
        assert file["classes"].tolist() == ["green", "red", "blue"]
    coco = COCO(out / "rle" / "sub" / "a.b.json")
    for annotation in coco.loadAnns(coco.getAnnIds()):
        there = labels == annotation["category_id"]
        np.testing.assert_array_equal(coco.annToMask(annotation), there)
    cut = np.asarray(Image.open(out / "cutouts" / "sub" / "a.b.png"))
    np.testing.assert_array_equal(cut[..., 3], (labels == 1) * 255)
    np.testing.assert_array_equal(cut[labels == 1, :3], pixels[labels == 1])
    polygons = json.loads((out / "polygons" / "sub" / "a.b.geojson").read_text())
    areas = np.zeros(3)
    for feature in polygons["features"]:
        areas[feature["properties"]["class_index"]] += feature["properties"]["area"]
    np.testing.assert_array_equal(areas, np.bincount(labels.ravel()))
    facts = json.loads((out / "json" / "sub" / "a.b.json").read_text())
    assert facts["picture"] == str(tmp_path / "in" / "sub" / "a.b.png")
    assert (facts["model_sha256"], facts["size"]) == ("abc", [20, 24])
    assert [entry["pixels"] for entry in facts["classes"]] == areas.tolist()
    assert facts["mean_confidence"] == pytest.approx(confidence.mean() / 255)
    assert "georeference" not in facts


def test_giants_are_written_in_strips_with_a_smaller_overlay(
    segmenter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers are the same; of the overlay each pixel is the mean of those it stands for."""
    folder, out = tmp_path / "in", tmp_path / "out"
    pixels = save_picture(folder / "a.png", 0, (41, 62)).astype(int)
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes())
    run(segmenter, folder / "a.png", tmp_path / "whole")
    monkeypatch.setattr(files, "_IN_STRIPS", 100)
    monkeypatch.setattr(files, "_ROWS", 7)
    monkeypatch.setattr(overlay_module, "_MOST_PIXELS", 600)
    monkeypatch.setattr(overlay_module, "_STRIP", 62 * 8)
    green = segmenter.palette  # black, so that the picture shows
    segmenter.palette = ((0, 0, 0),) * 3
    done = run(segmenter, folder / "a.png", out).done[0]
    assert done.note == "so large that its overlay is drawn at 1/3 of the size"
    small = np.asarray(Image.open(out / "overlays" / "a.jpg")).astype(float)
    assert small.shape == (14, 21, 3)
    means = [
        [pixels[y : y + 3, x : x + 3].mean((0, 1)) for x in range(0, 62, 3)]
        for y in range(0, 41, 3)
    ]
    assert abs(small - np.array(means)).mean() < 4  # JPEG
    for name in ("confidence/a.png", "cutouts/a.png"):
        arrays = [np.asarray(Image.open(place / name)) for place in (out, tmp_path / "whole")]
        np.testing.assert_array_equal(*arrays)
    monkeypatch.setattr(segmenter, "palette", green)
    tinted = overlay_module.reduced_overlay(
        np.zeros((41, 62, 3), np.uint8), np.ones((41, 62), np.uint8), segmenter.palette
    )
    np.testing.assert_array_equal(tinted, np.broadcast_to([125, 0, 0], (14, 21, 3)))


def test_what_is_missing_or_otherwise_is_done_again_and_nothing_else(
    segmenter: Any, tmp_path: Path
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    for k in range(3):
        save_picture(folder / f"{k}.png", k)
    assert run(segmenter, folder, out, ["masks"]).kept == 0
    assert run(segmenter, folder, out, ["polygons"]).kept == 0
    assert run(segmenter, folder, out, ["masks", "polygons"]).kept == 3  # both are there
    before = tree(out)
    (out / "polygons" / "1.geojson").unlink()
    assert run(segmenter, folder, out, ["polygons", "masks"]).kept == 2
    assert tree(out) == before
    coarse = Forms(min_area=4)
    assert run(segmenter, folder, out, ["masks"], forms=coarse).kept == 3  # not of masks
    assert run(segmenter, folder, out, ["polygons"], forms=coarse).kept == 0
    areas = [
        feature["properties"]["area"]
        for feature in json.loads((out / "polygons" / "0.geojson").read_text())["features"]
    ]
    assert areas and min(areas) == 4
    assert run(segmenter, folder, out, ["masks", "polygons"], forms=coarse).kept == 3
    assert run(segmenter, folder, out, ["masks", "polygons"]).kept == 0
    assert tree(out)["polygons/0.geojson"] == before["polygons/0.geojson"]
    segmenter.info = {"sha256": "other"}
    assert run(segmenter, folder, out, ["masks"]).kept == 0
    # Polygons are still those of the first model.
    assert run(segmenter, folder, out, ["masks", "polygons"]).kept == 0


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("probabilities", {"probabilities_type": "uint8"}),
        ("polygons", {"simplify": 1.0}),
        ("polygons", {"skip_classes": ("green",)}),
        ("cutouts", {"cutout_class": "blue"}),
    ],
)
def test_every_form_is_part_of_what_was_asked(
    segmenter: Any, tmp_path: Path, name: str, other: dict[str, Any]
) -> None:
    save_picture(tmp_path / "in" / "a.png")
    out = tmp_path / "out"
    run(segmenter, tmp_path / "in", out, [name])
    before = tree(out / name)
    assert run(segmenter, tmp_path / "in", out, [name]).kept == 1
    assert run(segmenter, tmp_path / "in", out, [name], forms=Forms(**other)).kept == 0
    assert tree(out / name) != before


def test_shards_tell_other_forms_from_theirs(segmenter: Any, tmp_path: Path) -> None:
    for k in range(4):
        save_picture(tmp_path / "in" / f"{k}.png", k)
    out = tmp_path / "out"
    run(segmenter, tmp_path / "in", out, ["polygons"])
    shard = module.Shard(0, 2)
    summary = run(
        segmenter, tmp_path / "in", out, ["polygons"], forms=Forms(min_area=3), shard=shard
    )
    assert (summary.left, len(summary.done)) == (2, 2)


def test_a_picture_that_fails_now_leaves_no_output(segmenter: Any, tmp_path: Path) -> None:
    save_picture(tmp_path / "in" / "a.png")
    run(segmenter, tmp_path / "in", tmp_path / "out")
    assert len(tree(tmp_path / "out")) == len(ALL) + 4
    (tmp_path / "in" / "a.png").write_bytes(b"")
    assert len(run(segmenter, tmp_path / "in", tmp_path / "out", ["json"]).failed) == 1
    assert sorted(tree(tmp_path / "out")) == [
        *("failures.jsonl", "overview.png", "predictions.jsonl", "summary.json")
    ]


@pytest.mark.parametrize("name", [name for name in ALL if name != "masks"])
def test_outputs_without_masks_are_known_to_be_of_their_picture(
    segmenter: Any, tmp_path: Path, name: str
) -> None:
    save_picture(tmp_path / "one" / "a.png", 0)
    save_picture(tmp_path / "two" / "a.png", 1)
    save_picture(tmp_path / "two" / "b.png", 2)
    out = tmp_path / "out"
    run(segmenter, tmp_path / "one", out, [name])
    before = tree(out)
    with pytest.raises(UsageError, match=rf"{name}/a\.\w+ is the output of .*/one/a.png, not of"):
        run(segmenter, tmp_path / "two", out, ["masks"])
    assert tree(out) == before
    assert run(segmenter, tmp_path / "two" / "b.png", out, [name]).earlier == 1


@pytest.mark.parametrize("earlier", [False, True])
def test_a_folder_that_somebody_else_filled_is_refused(
    segmenter: Any, tmp_path: Path, earlier: bool
) -> None:
    """Also within an earlier prediction that wrote no such output."""
    save_picture(tmp_path / "in" / "a.png")
    out = tmp_path / "out"
    if earlier:
        run(segmenter, tmp_path / "in", out, ["masks"])
    (out / "polygons").mkdir(parents=True)
    (out / "polygons" / "a.geojson").write_text("{}")
    before = tree(out)
    with pytest.raises(UsageError, match=r"choose another --output"):
        run(segmenter, tmp_path / "in", out, ["polygons"])
    assert tree(out) == before
    (out / "polygons" / "a.geojson").unlink()
    (out / "polygons").rmdir()
    for outputs in (["polygons"], ["masks"], ["polygons"]):  # what wrote it once is remembered
        assert run(segmenter, tmp_path / "in", out, outputs).done


@pytest.mark.parametrize("name", ["confidence", "probabilities", "polygons", "rle", "cutouts"])
def test_a_disk_that_is_full_keeps_what_is_done(
    segmenter: Any, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_IN_STRIPS", 5000)
    folder, out = tmp_path / "in", tmp_path / "out"
    save_picture(folder / "0.png", 0, (6, 8))
    save_picture(folder / "1.png", 1, (200, 300))
    save_picture(folder / "2.png", 2, (6, 8))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    heard = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        with pytest.raises(ResourceError, match=r"1\.\w+: cannot be written"):
            run(segmenter, folder, out, [name])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, heard)
    # The third may have been written behind the second; nothing is there by half.
    done, whole = list(read_done(out)), {path.stem for path in (out / name).iterdir()}
    assert done in (["0"], ["0", "2"]) and set(done) <= whole <= {"0", "2"}
    assert run(segmenter, folder, out, [name]).kept == len(done)


def test_polygons_and_facts_are_on_the_map(segmenter: Any, tmp_path: Path) -> None:
    features = pytest.importorskip("rasterio.features", reason="rasterio is not installed")
    from rasterio.transform import Affine

    pixels = save_geotiff(tmp_path / "in" / "a.tif")
    run(segmenter, tmp_path / "in", tmp_path / "out", ["polygons", "json"])
    found = json.loads((tmp_path / "out" / "polygons" / "a.geojson").read_text())
    assert found["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::25832"
    burnt = features.rasterize(
        [(one["geometry"], one["properties"]["class_index"]) for one in found["features"]],
        pixels.shape[:2],
        fill=99,
        transform=Affine(*PLACE.transform),
    )
    np.testing.assert_array_equal(burnt, pixels[..., [1, 0, 2]].argmax(2))
    facts = json.loads((tmp_path / "out" / "json" / "a.json").read_text())
    assert facts["georeference"] == {"transform": list(PLACE.transform), "epsg": 25832}


def test_outputs_are_named(tmp_path: Path, segmenter: Any) -> None:
    assert known_outputs(["rle", "masks", "rle"]) == ("masks", "rle")
    with pytest.raises(UsageError, match="Did you mean 'polygons'"):
        known_outputs(["masks", "polygon"])
    save_picture(tmp_path / "in" / "a.png")
    for forms, outputs, told in (
        (Forms(cutout_class="rad"), ["cutouts"], "no class 'rad'. Did you mean 'red'"),
        (Forms(), ["cutouts"], "cutouts need a class: --cutout-class NAME.* of green, red, blue"),
        (Forms(skip_classes=("greem",)), ["polygons"], "Did you mean 'green'"),
    ):
        with pytest.raises(UsageError, match=told):
            run(segmenter, tmp_path / "in", tmp_path / "out", outputs, forms=forms)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "folders"),
    [
        ([], ["masks", "overlays"]),
        (["--no-overlays"], ["masks"]),
        (["--outputs", "rle", "--overlays"], ["overlays", "rle"]),
        (["--outputs", "masks,overlays,json", "--no-overlays"], ["json", "masks"]),
        (["--outputs", "cutouts", "--cutout-class", "red"], ["cutouts"]),
        (["--outputs", "polygons", "--min-area", "2", "--skip-class", "red"], ["polygons"]),
    ],
)
def test_the_command_writes_what_is_asked_for(
    segmenter: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    folders: list[str],
) -> None:
    save_picture(tmp_path / "a.png")
    monkeypatch.setattr("segdeform.segmenter.load", lambda *_, **__: segmenter)
    monkeypatch.setattr("segdeform.model_folder.refuse_missing_model", lambda path: None)
    out = tmp_path / "out"
    call = ["predict", "model", str(tmp_path / "a.png"), "--output", str(out), *words]
    assert main(call) == 0
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == folders
    printed = capsys.readouterr().out
    assert ("overview.png" in printed) == ("overlays" in folders)
    assert printed.splitlines()[0].startswith("1 picture predicted")
    assert any(printed.splitlines()[0].endswith(str(out / name)) for name in folders)


def test_the_help_tells_of_every_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--help"]) == 0
    told = capsys.readouterr().out
    assert [name for name in KINDS if f"{name}: {KINDS[name].help.split()[0]}" not in told] == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--outputs", "masks,"], "no output ''"),
        (["--outputs", "overlay"], "Did you mean 'overlays'"),
        (["--outputs", "overlays", "--no-overlays"], "nothing would be written"),
        (["--min-area", "5"], "--min-area is for polygons: add polygons to --outputs"),
        (["--cutout-class", "red"], "add cutouts to --outputs"),
        (["--outputs", "cutouts"], "cutouts need --cutout-class NAME"),
        (["--probabilities-type", "uint8"], "add probabilities to --outputs"),
    ],
)
def test_what_makes_no_sense_is_refused_before_torch_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    save_picture(tmp_path / "a.png")
    call = ["predict", "nowhere", str(tmp_path / "a.png"), "--output", str(tmp_path / "out")]
    assert main([*call, *words]) == 2
    assert told in capsys.readouterr().err


def test_every_page_has_its_outputs(segmenter: Any, tmp_path: Path) -> None:
    pages = save_pages(tmp_path / "in" / "a.tif", 3)
    out = tmp_path / "out"
    assert len(run(segmenter, tmp_path / "in", out, ["json", "rle"], every_frame=True).done) == 3
    for number, page in enumerate(pages):
        facts = json.loads((out / "json" / "a" / f"{number:06d}.json").read_text())
        assert (facts["frame"], facts["picture"]) == (number, str(tmp_path / "in" / "a.tif"))
        counts = np.bincount(page[..., [1, 0, 2]].argmax(2).ravel(), minlength=3)
        assert [entry["pixels"] for entry in facts["classes"]] == counts.tolist()
    assert run(segmenter, tmp_path / "in", out, ["rle"], every_frame=True).kept == 3
    forms = Forms(min_area=2)
    assert run(segmenter, tmp_path / "in", out, ["rle"], every_frame=True, forms=forms).kept == 3
    more = run(segmenter, tmp_path / "in", out, ["polygons"], every_frame=True, forms=forms)
    assert (more.kept, len(more.done)) == (0, 3)
    both = ["polygons", "rle"]
    assert run(segmenter, tmp_path / "in", out, both, every_frame=True, forms=forms).kept == 3
