"""Networks of every kind through every runtime; each is compared while it is exported."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from segdeform.export.export import Wanted, export_model
from segdeform.export.network import Form, exported_form
from segdeform.segmenter import load
from tests.conftest import external_data
from tests.export.tiny import write_tiny

Keys = dict[str, Any]

NETWORKS: dict[str, tuple[Keys, Keys]] = {  # model, deform
    "v1": ({}, {"variant": "v1"}),
    "offset groups": ({}, {"offset_groups": 4, "layers": 3}),
    "no deformable layer": ({"backbone": "resnet34"}, {"layers": 0}),
    "strided deformable layer": ({}, {"layers": ["layer4.0.conv1"]}),
    "dilation": ({}, {"dilation": 3}),
    "deeplabv3, stride 16": ({"head": "deeplabv3", "output_stride": 16}, {}),
    "deeplabv3, stride 8": ({"head": "deeplabv3", "output_stride": 8}, {"variant": "v1"}),
    "deeplabv3, stride 32": ({"head": "deeplabv3", "output_stride": 32}, {}),
    "deeplabv3plus, stride 8": ({"head": "deeplabv3plus", "output_stride": 8}, {}),
    "deeplab, stride 8": ({"output_stride": 8}, {}),
    "resnet50": ({"backbone": "resnet50", "head": "deeplabv3plus"}, {}),
    "resnet101": ({"backbone": "resnet101"}, {"layers": 3}),
    "mobilenet_v2, stride 16": ({"backbone": "mobilenet_v2", "output_stride": 16}, {}),
    "auxiliary head": ({"auxiliary_head": True}, {}),
    "upernet, stride 32": ({"head": "upernet"}, {}),
    "upernet, stride 8": ({"head": "upernet", "output_stride": 8}, {}),
    "segformer, stride 16": ({"head": "segformer", "output_stride": 16}, {}),
    "mobilenet_v3_large": ({"backbone": "mobilenet_v3_large", "head": "deeplabv3"}, {"layers": 0}),
    "deep stem, mixing by 3x3": (
        {"stem": "deep", "head": "deeplabv3", "aspp_mixing": 3, "head_convs": 2},
        {},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("pure", [False, True])
def test_every_network_is_the_same_everywhere(name: str, pure: bool, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    model, deform = NETWORKS[name]
    folder = write_tiny(tmp_path / "model", model, deform)
    wanted = Wanted(("onnx", "openvino", "torch"), Form(probabilities=True), pure=pure)
    report = export_model(folder, tmp_path / "out", wanted)
    for facts in report["runtimes"].values():
        assert facts["equal_labels"] >= 0.9999, facts["line"]


@pytest.mark.slow
@pytest.mark.parametrize("opset", [20, 22])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_form_is_the_same_everywhere(opset: Any, precision: Any, tmp_path: Path) -> None:
    """Of bands instead of RGB, and of more classes than a byte has."""
    pytest.importorskip("openvino")
    bands = {"bands": (3, 0, 1, 5), "mean": (0.4, 0.5, 0.3, 0.6), "std": (0.2, 0.3, 0.25, 0.2)}
    folder = write_tiny(tmp_path / "model", {"head": "deeplabv3"}, **bands)
    wanted = Wanted(("onnx", "openvino", "torch"), Form("float", precision=precision), opset=opset)
    report = export_model(folder, tmp_path / "out", wanted)
    assert len(report["runtimes"]) == 3


@pytest.mark.slow
def test_labels_of_many_classes_are_int32(tmp_path: Path) -> None:
    network = load(write_tiny(tmp_path / "model"), "cpu").model
    head: Any = network.head
    head.score = torch.nn.Conv2d(16, 300, 1)
    labels = exported_form(network, Form(), None)(torch.zeros(1, 33, 40, 3, dtype=torch.uint8))[0]
    assert labels.dtype == torch.int32


@pytest.mark.slow
def test_real_pictures_have_the_same_labels(tmp_path: Path) -> None:
    """CamVid's and VOC's at their own odd sizes, by a network with ImageNet's weights."""
    weights = external_data("weights/mobilenet_v2-imagenet-fp16.safetensors")
    folders = ("data/camvid/val/images", "data/VOCdevkit/VOC2012/JPEGImages")
    model = {"backbone": "mobilenet_v2", "weights": str(weights), "head": "deeplabv3plus"}
    folder = write_tiny(tmp_path / "model", model | {"output_stride": 16}, {"layers": 3})
    runtimes = ("onnx", "openvino", "torch") if find_spec("openvino") else ("onnx", "torch")
    for place in folders:
        wanted = Wanted(runtimes, check=(external_data(place),))
        report = export_model(folder, tmp_path / "out", wanted)
        assert report["pictures_are"] == "given and generated" and len(report["pictures"]) > 4
        for facts in report["runtimes"].values():
            assert facts["equal_labels"] >= 0.9999, facts["line"]
