"""An exported folder in the place of its model: the same commands, the same pictures."""

from __future__ import annotations

import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segdeform.files.manifest import write_manifest
from segdeform.prediction.job import settings_of
from segdeform.prediction.records import settings_digest
from segdeform.room import room_of
from segdeform.runtimes.description import Runtime, read_export
from segdeform.runtimes.network import ExportedNetwork
from segdeform.segmenter import load
from tests.cli.conftest import Command, command  # noqa: F401
from tests.export.conftest import Exported
from tests.export.test_export import picture
from tests.export.tiny import CLASSES

SIZES = {"a": (61, 47), "b": (97, 120), "c": (40, 70)}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of classes that nobody drew: its masks are noise."""
    root = tmp_path_factory.mktemp("data")
    for name in ("images", "masks"):
        (root / "val" / name).mkdir(parents=True)
    for seed, (name, size) in enumerate(SIZES.items()):
        Image.fromarray(picture(*size, seed)).save(root / "val" / "images" / f"{name}.png")
        mask = picture(*size, seed + 9)[:, :, 0] % len(CLASSES)
        Image.fromarray(mask).save(root / "val" / "masks" / f"{name}.png")
    (root / "classes.json").write_text(json.dumps({"names": CLASSES}), encoding="utf-8")
    return root


def masks(output: Path) -> dict[str, Any]:
    return {path.stem: np.asarray(Image.open(path)) for path in (output / "masks").glob("*.png")}


def test_a_data_set_gives_the_network_and_its_export_a_score(
    exported: Exported,
    pictures: Path,
    command: Command,  # noqa: F811
    tmp_path: Path,
) -> None:
    """That of `eval`, on masks with labels that are ignored."""
    root = shutil.copytree(pictures, tmp_path / "data")
    mask = root / "val" / "masks" / "b.png"
    pixels = np.array(Image.open(mask))
    pixels[:50] = 255
    Image.fromarray(pixels).save(mask)
    words = ("--data", root, "--dataset", "folder")
    out = tmp_path / "out"
    ended = command("export", exported.model, "--output", out, "--format", "torch", *words)
    assert ended.code == 0, ended.err
    report = json.loads((out / "parity.json").read_text())
    assert [entry["size"] for entry in report["pictures"][4:]] == [list(s) for s in SIZES.values()]
    assert report["pictures_are"] == "given and generated"
    facts = report["runtimes"]["torch"]
    result = json.loads(command("eval", exported.model, *words, "--json").out)
    assert facts["reference_miou"] == pytest.approx(result["miou"], abs=1e-12)
    assert facts["miou"] == pytest.approx(result["miou"], abs=1e-3)
    assert f"mIoU {facts['miou']:.4f}, the network's {facts['reference_miou']:.4f}" in ended.out
    (root / "classes.json").write_text(json.dumps({"names": CLASSES[::-1]}), encoding="utf-8")
    refused = command("export", exported.model, "--output", tmp_path / "no", *words)
    assert refused.code == 4 and "they part at class 0" in refused.err
    refused = command("export", exported.model, "--output", tmp_path / "no", *words, "--split", "x")
    assert refused.code == 4 and not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("file", "runtime", "way"),
    [
        ("", "onnxruntime", ()),
        ("model.onnx", None, ("--tile", 48, "--overlap", 0.5)),
        ("", "onnxruntime", ("--flip",)),
        ("", "torch", ()),
    ],
)
def test_predict_writes_the_masks_of_the_model(
    exported: Exported,
    pictures: Path,
    command: Command,  # noqa: F811
    tmp_path: Path,
    file: str,
    runtime: str | None,
    way: tuple[object, ...],
) -> None:
    images, fp32 = pictures / "val" / "images", ("--precision", "fp32")
    command("predict", exported.model, images, "--output", tmp_path / "own", *way, *fp32)
    chosen = () if runtime is None else ("--runtime", runtime)
    ended = command(
        "predict", exported.folder / file, images, "--output", tmp_path / "its", *way, *chosen
    )
    assert ended.code == 0, ended.err
    own, its = masks(tmp_path / "own"), masks(tmp_path / "its")
    assert {name: mask.shape for name, mask in its.items()} == SIZES
    different = sum(int((own[name] != its[name]).sum()) for name in own)
    assert different <= 1e-3 * sum(mask.size for mask in own.values())
    assert len(np.unique(own["b"])) > 1


def test_other_scales_are_rounded_to_8_bits_alone(exported: Exported) -> None:
    scales = {"scales": (0.75, 1.5)}
    own = load(exported.model, "cpu").with_options(**scales)
    its = load(exported.folder, "cpu").with_options(**scales)
    probabilities = own.logits(picture(70, 90)).exp()
    assert (its.logits(picture(70, 90)).exp() - probabilities).abs().mean() < 5e-3


def test_bytes_of_pictures_go_in_as_they_were(exported: Exported) -> None:
    """All of them; what was resized is rounded, and kept in their range."""
    seen = []

    def run(pictures: Any, wanted: Any) -> Any:
        seen.append(pictures)
        return [np.zeros((1, 2, 1, 1), np.float32)]

    network = ExportedNetwork(run, read_export(exported.folder))
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    network.maps(values.float() / 255)
    assert seen[0].dtype == np.uint8 and seen[0].shape == (1, 16, 16, 3)
    assert (seen[0][0, :, :, 1].ravel() == np.arange(256)).all()
    network.maps(torch.tensor([-0.1, 0.499 / 255, 0.501 / 255, 1.1]).expand(1, 3, 1, 4))
    assert seen[1][0, 0, :, 0].tolist() == [0, 0, 1, 255]


def test_scores_are_not_enlarged_before_they_must_be(exported: Exported) -> None:
    runtimes: tuple[Runtime, ...] = ("torch", "onnxruntime")
    for runtime in runtimes:
        its = load(exported.folder, "cpu", runtime=runtime)
        result = its.label(picture(61, 47), keep_coarse=True)
        coarse = result.maps.coarse
        assert coarse is not None and (coarse.stride, coarse.scores.shape[2:]) == (4, (16, 12))


def test_a_runtime_is_taken_to_need_the_memory_of_the_network(exported: Exported) -> None:
    """Which torch cannot see: without it a giant picture would be seen whole."""
    own, its = load(exported.model, "cpu"), load(exported.folder, "cpu")
    costs = [room_of(found.model, found.device, 3).cost.whole for found in (own, its)]
    assert costs[1] >= costs[0] > 100


def test_another_runtime_predicts_anew(exported: Exported) -> None:
    runtimes: tuple[Runtime, ...] = ("torch", "onnxruntime")
    used = [settings_of(load(exported.folder, "cpu", runtime=name)) for name in runtimes]
    used.append(settings_of(load(exported.model, "cpu")))
    assert len({settings_digest(settings) for settings in used}) == 3
    assert (
        used[0]["runtime"] == f"torch {metadata.version('torch')}"
    )  # another version, another bit
    assert "runtime" not in used[2]  # what was predicted before there were any is known again


def test_eval_scores_it_and_says_what_ran_it(
    exported: Exported,
    pictures: Path,
    command: Command,  # noqa: F811
    tmp_path: Path,
) -> None:
    given = ("--data", pictures, "--dataset", "folder", "--json")
    ended = command("eval", exported.model, *given)
    assert ended.code == 0, ended.err
    own = json.loads(ended.out)
    ended = command("eval", exported.folder, *given, "--runtime", "torch")
    its = json.loads(ended.out)
    assert its["miou"] == pytest.approx(own["miou"], abs=1e-3)
    assert its["protocol"]["runtime"] == f"torch {metadata.version('torch')}"
    assert "runtime" not in own["protocol"]
    assert its["protocol"]["model_sha256"] != own["protocol"]["model_sha256"]


def test_info_tells_what_it_was_made_of(
    exported: Exported,
    command: Command,  # noqa: F811
) -> None:
    facts = json.loads(command("info", exported.folder, "--json").out)
    own = load(exported.model, "cpu").info
    assert facts["export"]["source_sha256"] == own["sha256"]
    assert facts["runtime"] == f"onnxruntime {metadata.version('onnxruntime')}"
    for key in ("classes", "parameters", "deformable_layers", "eval"):
        assert facts[key] == own[key]
    shown = " ".join(command("info", exported.folder).out.split())
    assert "exported" in shown and "ONNX opset 20" in shown


def test_what_an_export_is_not(
    exported: Exported,
    pictures: Path,
    command: Command,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image, out = pictures / "val" / "images" / "a.png", tmp_path / "out"
    predict = ("predict", exported.folder, image, "--output", out)
    for arguments, code, says in (
        ((*predict, "--runtime", "openvino"), 2, "has files for onnxruntime, torch alone"),
        ((*predict, "--precision", "bf16"), 2, "is exported in fp32"),
        (("predict", exported.model, image, "--output", out, "--runtime", "torch"), 2, "--runtime"),
        (("explain", exported.folder, image, "--output", out), 5, "needs the model that"),
        ((*predict, "--compile"), 5, "needs the model that"),
        (("export", exported.folder, "--output", out), 2, "is exported already"),
    ):
        ended = command(*arguments)
        assert (ended.code, says in ended.err, ended.err.count("\n")) == (code, True, 1), ended.err
    small = tmp_path / "small.png"
    Image.fromarray(picture(12, 40)).save(small)
    ended = command("predict", exported.folder, small, "--output", out, "--runtime", "torch")
    assert ended.code == 8 and "12x40 pixels are fewer than" in ended.err
    assert command("predict", exported.folder, small, "--output", out).code == 0

    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda n: "1.20" if n == "onnxruntime" else real(n))
    ended = command(*predict, "--runtime", "onnxruntime")
    assert ended.code == 5 and "pip install 'onnxruntime>=1.25'" in ended.err
    assert json.loads(command("info", exported.folder, "--json").out)["weights"] == "model.pt2"


def test_a_damaged_or_newer_export_is_not_run(
    exported: Exported,
    command: Command,  # noqa: F811
    tmp_path: Path,
) -> None:
    folder = shutil.copytree(exported.folder, tmp_path / "copy")
    path = folder / "export.json"
    description = json.loads(path.read_text())
    path.write_text(json.dumps(description | {"format_version": 2}))
    write_manifest(folder)
    ended = command("info", folder)
    assert ended.code == 5 and "export the model again" in ended.err
    path.write_text(json.dumps(description | {"stride": 0}))
    write_manifest(folder)
    ended = command("info", folder)
    assert ended.code == 5 and "export.json is damaged: stride" in ended.err
    with (folder / "model.onnx").open("r+b") as file:
        file.seek(5000)
        file.write(b"\0\1\2")
    ended = command("info", folder)
    assert ended.code == 5 and "model.onnx does not match its SHA-256" in ended.err
