"""What an exported folder holds, who can run it, and that a wrong one is never left."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import cuda_ops
from segdeform.errors import ModelError, UsageError
from segdeform.export import export as exporting
from segdeform.export.export import Wanted, export_model
from segdeform.export.network import ExportedForm, Form, exported_form, traced
from segdeform.export.operator import by_torchvision
from segdeform.export.parity import BARS, compare
from segdeform.export.pictures import generated
from segdeform.models.deeplab import DeepLab
from segdeform.runtimes.description import FILES
from segdeform.runtimes.sessions import open_file
from segdeform.segmenter import load
from tests.cli.conftest import Command, command  # noqa: F401
from tests.export.conftest import Exported
from tests.export.tiny import CLASSES

onnx = pytest.importorskip("onnx")
ROOT = Path(__file__).parents[2]
OUTPUTS = Form(probabilities=True).outputs


def picture(height: int, width: int, seed: int = 0) -> Any:  # uint8 [height, width, 3]
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 9 + 2, width // 7 + 2, 3), dtype=np.uint8)
    return np.kron(coarse, np.ones((9, 7, 1), np.uint8))[:height, :width]


def test_the_graph_is_standard_and_says_what_it_is(exported: Exported) -> None:
    path = exported.folder / "model.onnx"
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    assert not model.functions
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("DeformConv") == 2
    assert operators.count("GlobalAveragePool") == 1 and "ReduceMean" not in operators
    assert "BatchNormalization" not in operators
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(told["classes"]) == list(CLASSES)
    assert json.loads(told["palette"])[2] == [14, 6, 50]
    assert told["sha256"] == load(exported.model, "cpu").info["sha256"]
    assert "4 times" in told["size_rule"]  # of DeepLabV3+
    protocol = json.loads(told["protocol"])
    assert protocol["input"] == "uint8 [N, H, W, C], RGB" and protocol["inference"]["flip"] is False
    sizes = [
        [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]
        for value in (model.graph.input[0], model.graph.output[0])
    ]
    assert sizes == [["N", "H", "W", 3], ["N", "H", "W"]]
    assert str(ROOT).encode() not in path.read_bytes()  # nor where it was made


def test_the_report_stands_beside_the_file(exported: Exported) -> None:
    report = json.loads((exported.folder / "parity.json").read_text())
    assert report == exported.report
    assert report["pictures_are"] == "generated alone" and len(report["pictures"]) == 4
    assert len({tuple(entry["size"]) for entry in report["pictures"]}) == 4
    facts = report["runtimes"]["onnxruntime"]
    assert facts["version"] == metadata.version("onnxruntime")
    assert facts["least_version"] == "1.25"
    assert facts["equal_labels"] >= 0.9999
    assert 0 < facts["mean_logit_difference"] < facts["largest_logit_difference"] < 1e-3
    assert facts["largest_probability_difference"] < 1e-3
    assert report["runtimes"]["torch"]["equal_labels"] == 1


@pytest.mark.parametrize("size", [(1, 1), (16, 33), (5, 64), (101, 77)])
def test_every_size_goes_in(exported: Exported, size: tuple[int, int]) -> None:
    """Also one smaller than a square of the network's stride."""
    run = open_file("onnxruntime", exported.folder, OUTPUTS, "cpu")
    labels, probabilities = run(np.stack([picture(*size), picture(*size, 1)]), OUTPUTS[::2])
    assert labels.shape == (2, *size) and labels.dtype == np.uint8
    segmenter = load(exported.model, "cpu")
    expected = np.stack([segmenter.predict(picture(*size, seed)).labels for seed in (0, 1)])
    assert (labels == expected).mean() >= 0.9999
    assert len(np.unique(expected)) > 1 or min(size) < 17
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    assert (probabilities.argmax(1) == labels).mean() > 0.999


def test_torch_runs_it_without_segdeform(exported: Exported, tmp_path: Path) -> None:
    """Where cuda_ops and torch are all that is installed."""
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "cuda_ops").symlink_to(Path(cuda_ops.__file__).parent)
    np.save(alone / "picture.npy", picture(75, 90)[None])
    script = (
        "import sys, numpy, torch, cuda_ops\n"
        "network = torch.export.load(sys.argv[1]).module()\n"
        "labels, scores, _ = network(torch.from_numpy(numpy.load('picture.npy')))\n"
        "assert 'segdeform' not in sys.modules\n"
        "numpy.save('labels.npy', labels.numpy())\n"
    )
    (alone / "run.py").write_text(script)
    subprocess.run(
        [sys.executable, "run.py", exported.folder / "model.pt2"],
        cwd=alone,
        env={"PYTHONPATH": str(alone), "OMP_NUM_THREADS": "1"},
        check=True,
    )
    expected = load(exported.model, "cpu").predict(picture(75, 90)).labels
    assert (np.load(alone / "labels.npy")[0] == expected).mean() >= 0.9999


def test_a_script_of_five_lines_writes_the_masks_of_predict(
    exported: Exported, tmp_path: Path
) -> None:
    Image.fromarray(picture(61, 47)).save(tmp_path / "a.png")
    script = ROOT / "scripts" / "onnx_masks.py"
    subprocess.run(
        [sys.executable, script, exported.folder / "model.onnx", tmp_path / "a.png"],
        env={"PYTHONPATH": ""},
        check=True,
    )
    expected = load(exported.model, "cpu").predict(tmp_path / "a.png").labels
    with Image.open(tmp_path / "a.mask.png") as mask:
        assert (np.asarray(mask) == expected).mean() >= 0.9999


def test_pads_of_one_pixel_too_many_are_noticed(exported: Exported, tmp_path: Path) -> None:
    """And dilation, which changes no shape; both in one layer of the graph."""
    segmenter = load(exported.model, "cpu")
    form = Form(probabilities=True)

    def failure(name: str, change: Any) -> str:
        model = onnx.load(exported.folder / "model.onnx")
        layer = [node for node in model.graph.node if node.op_type == "DeformConv"][-1]
        attributes = {entry.name: entry for entry in layer.attribute}
        change(attributes)
        folder = tmp_path / name
        folder.mkdir()
        onnx.save(model, folder / "model.onnx")
        run = open_file("onnxruntime", folder, OUTPUTS, "cpu")
        pictures = generated(3)[:2]
        return compare(segmenter.model, run, form, pictures).failure(BARS["fp32"])

    def shift(attributes: Any) -> None:  # the padding moves from the end to the beginning
        attributes["pads"].ints[:] = [2, 2, 0, 0]

    def widen(attributes: Any) -> None:
        attributes["pads"].ints[:] = [2, 2, 2, 2]
        attributes["dilations"].ints[:] = [2, 2]

    assert failure("none", lambda attributes: None) == ""
    assert "scores differ" in failure("shift", shift)
    assert "scores differ" in failure("widen", widen)


def test_an_export_with_y_and_x_exchanged_is_refused(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left of it, and what was there before stays."""

    def exchanged(image: Tensor, offset: Tensor, *rest: Any) -> Tensor:
        pairs = offset.reshape(offset.shape[0], -1, 2, *offset.shape[2:])
        return by_torchvision(image, pairs.flip(2).reshape(offset.shape), *rest)

    def wrong(network: DeepLab, form: Form, operator: object) -> ExportedForm:
        return exported_form(network, form, exchanged)

    out = tmp_path / "out"
    shutil.copytree(exported.folder, out)
    monkeypatch.setattr(exporting, "exported_form", wrong)
    with pytest.raises(ModelError, match=r"not exported: by torch .* scores differ"):
        export_model(exported.model, out, Wanted(("torch",)))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    for path in exported.folder.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes()


def test_half_precision_keeps_offsets_in_float32(exported: Exported) -> None:
    network = load(exported.model, "cpu").network
    for operator in (None, by_torchvision):  # ours, and one that takes all its tensors in one type
        program = traced(exported_form(network, Form(precision="bf16"), operator), 3, 33)
        tensors = {name: value.dtype for name, value in program.state_dict.items()}
        positions = {tensors.pop(name) for name in list(tensors) if "offset_conv" in name}
        assert positions == {torch.float32} and set(tensors.values()) == {torch.bfloat16}
        calls = [node for node in program.graph.nodes if "deform_conv2d" in str(node.target)]
        kinds = {str(arg): arg.meta["val"].dtype for arg in calls[0].args if hasattr(arg, "meta")}
        assert torch.float32 in kinds.values() and len(calls) == 2
        assert (torch.bfloat16 in kinds.values()) == (operator is None)


def test_memory_that_ends_is_not_taken_for_a_network_that_cannot_be_written(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **named: object) -> None:
        raise MemoryError

    monkeypatch.setattr(exporting, "traced", full)
    with pytest.raises(MemoryError):
        export_model(exported.model, tmp_path / "out", Wanted())
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr("onnxruntime.InferenceSession", full)
    with pytest.raises(MemoryError):
        open_file("onnxruntime", exported.folder, OUTPUTS, "cpu")


def test_what_cannot_be_exported_is_said(
    exported: Exported,
    command: Command,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    for arguments, code, says in (
        (("--format", "tflite"), 2, "--format tflite: unknown; use onnx, openvino, torch"),
        (("--format", ","), 2, "expected onnx, openvino, torch"),
        (("--precision", "bf16"), 2, "onnxruntime computes no bfloat16"),
        (("--check", tmp_path / "gone"), 2, "no such file or folder"),
        (("--check", tmp_path), 2, "no pictures there"),
    ):
        ended = command("export", exported.model, "--output", out, *arguments)
        assert (ended.code, ended.err.count("\n")) == (code, 1) and says in ended.err
    for place in (exported.model, exported.model.parent):
        ended = command("export", exported.model, "--output", place)
        assert ended.code == 2 and "choose another --output" in ended.err
    other = shutil.copytree(exported.model, tmp_path / "other")
    ended = command("export", exported.model, "--output", other)
    assert ended.code == 2 and "is a model that was trained" in ended.err
    ended = command("export", tmp_path / "none", "--output", out)
    assert ended.code == 5 and not out.exists()

    real = metadata.version
    for package, version, says in (
        ("onnxruntime", "1.24.4", "pip install 'onnxruntime>=1.25'"),
        ("onnxruntime", None, "onnxruntime is not installed: pip install 'segdeform[onnx]'"),
        ("onnxscript", None, "onnxscript is not installed: pip install 'segdeform[onnx]'"),
    ):

        def versions(name: str, package: str = package, version: str | None = version) -> str:
            if name != package:
                return real(name)
            if version is None:
                raise metadata.PackageNotFoundError(name)
            return version

        monkeypatch.setattr(metadata, "version", versions)
        ended = command("export", exported.model, "--output", out)
        assert ended.code == 5 and says in ended.err and not out.exists()


def test_an_operator_that_a_runtime_lacks_is_named(exported: Exported, tmp_path: Path) -> None:
    model = onnx.load(exported.folder / "model.onnx")
    layer = next(node for node in model.graph.node if node.op_type == "DeformConv")
    layer.op_type = "DeformConvOfTomorrow"
    onnx.save(model, tmp_path / FILES["onnxruntime"])
    with pytest.raises(ModelError, match=r"DeformConvOfTomorrow.*--pure"):
        open_file("onnxruntime", tmp_path, OUTPUTS, "cpu")


def test_exports_go_to_devices_that_there_are(exported: Exported) -> None:
    for runtime in ("onnxruntime", "torch"):
        with pytest.raises(UsageError, match="--device cuda"):
            open_file(runtime, exported.folder, OUTPUTS, "cuda")  # type: ignore[arg-type]
