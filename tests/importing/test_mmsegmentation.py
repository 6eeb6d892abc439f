"""Checkpoints with mmsegmentation's keys against a forward of its own, from the same tensors."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from segdeform.errors import ModelError
from segdeform.importing import mmsegmentation
from segdeform.importing.import_model import Imported, import_model
from segdeform.importing.mmconfig import read_config
from segdeform.models.deeplab import DeepLab
from segdeform.segmenter import load
from tests.importing.conftest import normalised
from tests.importing.mmseg_networks import Forward, Layout, Weights

PLUS = Layout()
V3 = Layout(
    plus=False, deep_stem=False, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), rates=(1, 6, 9)
)
NAMES = tuple(f"thing {n}" for n in range(7))
PALETTE = [[n, 2 * n, 255 - n] for n in range(7)]


@pytest.fixture(scope="module")
def weights() -> Callable[[Layout], dict[str, Tensor]]:
    return cache(lambda layout: Weights(layout).state)


def save(path: Path, state: dict[str, Tensor], layout: Layout, **meta: Any) -> Path:
    """Writes a checkpoint as mmengine does; `meta` replaces what it says."""
    said = {
        "cfg": layout.config(),
        "dataset_meta": {"classes": NAMES, "palette": PALETTE},
        "mmengine_version": "0.10.4",
        "iter": 40000,
    }
    torch.save({"meta": said | meta, "state_dict": state}, path)
    return path


@pytest.fixture(scope="module")
def imported(
    weights: Callable[[Layout], dict[str, Tensor]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Layout], tuple[Path, Imported]]:
    """Imports a checkpoint of a layout once, with deformable layers."""

    @cache
    def run(layout: Layout) -> tuple[Path, Imported]:
        folder = tmp_path_factory.mktemp("m") / "model"
        path = save(folder.with_name("iter_40000.pth"), weights(layout), layout)
        return folder, import_model(str(path), folder, deform_layers=2)

    return run


@pytest.fixture(scope="module")
def networks(
    imported: Callable[[Layout], tuple[Path, Imported]],
) -> Callable[[Layout], DeepLab]:
    """Loads what was imported, in float64."""
    return cache(lambda layout: load(imported(layout)[0], "cpu", trainable=True).model.double())


@pytest.mark.parametrize(
    ("layout", "size"),
    [(PLUS, (40, 72)), (V3, (48, 80))],
    ids=["plus", "v3"],
)
def test_logits_are_mmsegmentations_where_the_stride_divides_the_sides(
    weights: Callable[[Layout], dict[str, Tensor]],
    networks: Callable[[Layout], DeepLab],
    layout: Layout,
    size: tuple[int, int],
) -> None:
    state, model = weights(layout), networks(layout)
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1)).double()
    theirs = Forward({key: value.double() for key, value in state.items()}, layout)
    with torch.inference_mode():
        expected = theirs.logits(normalised(images))
        assert expected.std((2, 3)).mean() > 0.05 and expected.std() < 20
        torch.testing.assert_close(model(images).logits.double(), expected, rtol=0, atol=1e-5)


def test_maps_are_equal_wherever_their_sizes_are_multiples(
    weights: Callable[[Layout], dict[str, Tensor]], networks: Callable[[Layout], DeepLab]
) -> None:
    """37x57 pixels: maps of 10x15 at stride 4 and 5x8 at stride 8, of which 15 is no double."""
    state, model = weights(PLUS), networks(PLUS)
    theirs = Forward({key: value.double() for key, value in state.items()}, PLUS)
    with torch.inference_mode():
        for size, equal in (((37, 53), True), ((37, 57), False)):
            images = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(2)).double()
            difference = model.maps(images).double() - theirs.maps(normalised(images))
            assert (difference.abs().max() < 1e-5) == equal


def test_names_colours_and_normalisation_are_those_of_the_file(
    imported: Callable[[Layout], tuple[Path, Imported]],
) -> None:
    folder, result = imported(V3)
    segmenter = load(folder, "cpu")
    assert segmenter.classes == NAMES and segmenter.palette[3] == (3, 6, 252)
    assert result.notes == ()
    info = segmenter.info
    np.testing.assert_allclose(info["mean"], (0.485, 0.456, 0.406), rtol=1e-9)
    np.testing.assert_allclose(info["std"], (0.229, 0.224, 0.225), rtol=1e-9)
    assert info["model"]["output_stride"] == 16 and info["model"]["aspp_rates"] == [6, 9]
    assert info["model"]["stem"] == "plain" and info["model"]["head_channels"] == 20
    assert info["origin"]["source"] == "mmsegmentation's deeplabv3 of resnet50"
    assert "Apache-2.0" in info["origin"]["licence"]


def test_files_of_versions_before_1_say_it_in_their_way(
    weights: Callable[[Layout], dict[str, Tensor]],
) -> None:
    """CLASSES and PALETTE, `config`, img_norm_cfg with to_rgb; another normalisation is kept."""
    text = PLUS.config().replace("    data_preprocessor=data_preprocessor,\n", "")
    begin, end = text.index("data_preprocessor"), text.index("model = ")
    norm = "img_norm_cfg = dict(mean=[127.5, 102, 51], std=[51.0, 255, 25.5], to_rgb=True)\n"
    text = text[:begin] + norm + text[end:]
    meta = {"config": text, "CLASSES": list(NAMES), "PALETTE": PALETTE, "mmseg_version": "0.11.0"}
    found = mmsegmentation.translate(weights(PLUS), meta, Path("old.pth"))
    assert found.classes == NAMES and found.palette is not None and found.palette[1] == (1, 2, 254)
    assert found.mean == (0.5, 0.4, 0.2)
    assert found.std == pytest.approx((0.2, 1.0, 0.1))
    assert found.model.output_stride == 8


def test_bare_weights_are_taken_for_the_usual_layout_and_it_is_said(
    weights: Callable[[Layout], dict[str, Tensor]], tmp_path: Path
) -> None:
    torch.save(weights(PLUS), tmp_path / "bare.pth")
    with pytest.raises(ModelError, match=r"what its 7 classes are.*--classes"):
        import_model(str(tmp_path / "bare.pth"), tmp_path / "m")
    found = mmsegmentation.translate(weights(PLUS), {}, Path("bare.pth"))
    assert (found.model.output_stride, found.model.aspp_rates) == (8, (12, 24, 36))
    assert any("12, 24, 36 are assumed" in note for note in found.notes)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("align_corners=False", "align_corners=True", "align_corners = True"),
        ("style='pytorch'", "style='caffe'", "style = 'caffe'"),
        ("contract_dilation=True", "contract_dilation=False", "contract_dilation = False"),
        ("norm_eval=False", "norm_eval=False, multi_grid=(1, 2, 4)", r"multi_grid = \[1, 2, 4\]"),
        ("type='ResNetV1c'", "type='ResNetV1d'", "'ResNetV1d'"),
        ("in_index=3", "in_index=2", "in_index = 2"),
        ("strides=(1, 2, 1, 1)", "strides=(1, 1, 1, 1)", r"strides \[1, 1, 1, 1\]"),
        ("dilations=(1, 12, 24, 36)", "dilations=(2, 12, 24, 36)", r"rates \[2, 12"),
        ("dilations=(1, 12, 24, 36)", "dilations=(1, 'a')", "no whole numbers"),
        ("bgr_to_rgb=True", "bgr_to_rgb=False", "BGR"),
        ("mean=[123.675,", "mean=[", r"mean = \[116.28, 103.53\]"),
        ("norm_cfg=dict(type='SyncBN',", "norm_cfg=dict(eps=1e-3, type='SyncBN',", "eps = 0.001"),
        ("type='DepthwiseSeparableASPPHead'", "type='ASPPHead'", "'ASPPHead'"),
    ],
)
def test_a_config_that_computes_otherwise_is_refused(
    weights: Callable[[Layout], dict[str, Tensor]], old: str, new: str, message: str
) -> None:
    text = PLUS.config()
    assert old in text
    with pytest.raises(ModelError, match=message) as caught:
        mmsegmentation.translate(weights(PLUS), {"cfg": text.replace(old, new)}, Path("w.pth"))
    assert "\n" not in str(caught.value) and "w.pth" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("dilations=(1, 12, 24, 36)", "dilations=(1, 12, 24)", r"unknown head\.aspp\.branches\.3"),
        ("std=[58.395,", "std=[0,", "std"),
    ],
)
def test_a_config_that_does_not_fit_the_tensors_is_refused(
    weights: Callable[[Layout], dict[str, Tensor]],
    tmp_path: Path,
    old: str,
    new: str,
    message: str,
) -> None:
    text = PLUS.config().replace(old, new)
    path = save(tmp_path / "w.pth", weights(PLUS), PLUS, cfg=text)
    with pytest.raises(ModelError, match=message) as caught:
        import_model(str(path), tmp_path / "m")
    assert "\n" not in str(caught.value) and not (tmp_path / "m").exists()


def test_windows_of_the_config_are_noted(weights: Callable[[Layout], dict[str, Tensor]]) -> None:
    windows = "test_cfg=dict(mode='slide', crop_size=(769, 513), stride=(513, 342))"
    text = PLUS.config().replace("test_cfg=dict(mode='whole')", windows)
    found = mmsegmentation.translate(weights(PLUS), {"cfg": text}, Path("w.pth"))
    assert [note for note in found.notes if "769x513" in note and "--tile 769" in note]


def without(prefix: str) -> Callable[[dict[str, Tensor]], None]:
    def change(state: dict[str, Tensor]) -> None:
        for key in [key for key in state if key.startswith(prefix)]:
            del state[key]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("backbone.layer3.5."), r"a ResNet of \[3, 4, 5, 3\] bottlenecks"),
        (without("backbone.stem.3"), r"lacks backbone\.conv1\.3\.weight"),
        (without("decode_head.conv_seg"), r"head\.score\.weight is missing"),
        (without("decode_head.image_pool"), r"lacks head\.aspp\.pooled\.1\.weight"),
        (
            lambda s: s.update({"decode_head.bottleneck.depthwise_conv.conv.weight": s["x"]}),
            "no network known here: decode_head.bottleneck.depthwise",
        ),
        (
            lambda s: s.update(
                {
                    "decode_head.conv_seg.weight": torch.ones(1, 20, 1, 1),
                    "decode_head.conv_seg.bias": torch.ones(1),
                }
            ),
            "one score a pixel",
        ),
        (
            lambda s: s.update(
                {
                    "decode_head.conv_seg.weight": torch.ones(9, 20, 1, 1),
                    "decode_head.conv_seg.bias": torch.ones(9),
                }
            ),
            "names 7 classes and has scores of 9",
        ),
        (
            lambda s: s.update({"decode_head.bottleneck.conv.weight": torch.ones(2, 100, 3, 3)}),
            "head_channels",
        ),
    ],
)
def test_tensors_of_another_network_are_refused(
    weights: Callable[[Layout], dict[str, Tensor]], tmp_path: Path, change: Any, message: str
) -> None:
    state = {**weights(PLUS), "x": torch.ones(1)}
    change(state)
    del state["x"]
    with pytest.raises(ModelError, match=message) as caught:
        import_model(str(save(tmp_path / "w.pth", state, PLUS)), tmp_path / "m")
    assert "\n" not in str(caught.value) and not (tmp_path / "m").exists()


def test_residual_blocks_of_two_convolutions_are_refused(
    weights: Callable[[Layout], dict[str, Tensor]],
) -> None:
    state = {key: value for key, value in weights(V3).items() if ".conv3." not in key}
    with pytest.raises(ModelError, match="resnet34 of mmsegmentation"):
        mmsegmentation.translate(state, {}, Path("w.pth"))


def test_histories_of_a_training_are_left_out_and_nothing_is_run(
    weights: Callable[[Layout], dict[str, Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class HistoryBuffer:
        def __init__(self) -> None:
            self.log, self.count = np.arange(5.0), np.ones(5, np.int64)
            self.method = HistoryBuffer.mean

        def mean(self) -> float:
            return float(self.log.mean())

    name = "mmengine.logging.history_buffer"
    module = ModuleType(name)
    module.HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = name, "HistoryBuffer"
    HistoryBuffer.mean.__module__ = name
    HistoryBuffer.mean.__qualname__ = "HistoryBuffer.mean"
    for parent in ("mmengine", "mmengine.logging", name):
        monkeypatch.setitem(sys.modules, parent, module)
    said = {"cfg": V3.config(), "dataset_meta": {"classes": NAMES}}
    hub = {"log_scalars": {"train/loss": HistoryBuffer()}, "runtime_info": {"iter": 5}}
    checkpoint = {"meta": said, "state_dict": weights(V3), "message_hub": hub}
    torch.save(checkpoint, tmp_path / "iter_5.pth")
    monkeypatch.undo()
    assert name not in sys.modules
    assert import_model(str(tmp_path / "iter_5.pth"), tmp_path / "m").description.classes == NAMES

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "executed",)

    torch.save(checkpoint | {"message_hub": Payload()}, tmp_path / "bad.pth")
    with pytest.raises(ModelError, match="more than tensors"):
        import_model(str(tmp_path / "bad.pth"), tmp_path / "n")
    assert not (tmp_path / "executed").exists() and not (tmp_path / "n").exists()


def test_config_texts_are_read_and_never_run(tmp_path: Path) -> None:
    text = (
        "a = dict(x=[1, -2.5, 'b'], y={'k': (True, None), 3: dict()})\n"
        "b = a\n"
        f"c = open({str(tmp_path / 'executed')!r}, 'w')\n"
        "d = [n for n in range(10**9)]\n"
        "e = dict(**a)\n"
        "import os\n"
        "f = 'x' * 10**9\n"
        "b['x'] = 5\n"
        "h = unknown\n"
        "g = 1\n"
        "g = max(1, 2)\n"
    )
    a = {"x": [1, -2.5, "b"], "y": {"k": [True, None], 3: {}}}
    assert read_config(text) == {"a": a, "b": a}
    assert not (tmp_path / "executed").exists()
    for broken in ("a = (", "\0", "a = " + "[" * 10**5, "a = 1\n" * 2**18, "é" * 2**21):
        assert read_config(broken) == {}
    assert read_config("a = " + "-" * 300 + "1") == {}


@pytest.mark.slow
def test_the_classes_of_a_data_set_known_here_make_it_the_default_of_eval(
    weights: Callable[[Layout], dict[str, Tensor]], tmp_path: Path
) -> None:
    """Of mmsegmentation's 19 classes of Cityscapes, as its files list them."""
    names = (
        *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light"),
        *("traffic sign", "vegetation", "terrain", "sky", "person", "rider", "car"),
        *("truck", "bus", "train", "motorcycle", "bicycle"),
    )
    state = dict(weights(V3))
    state["decode_head.conv_seg.weight"] = torch.zeros(19, 20, 1, 1)
    state["decode_head.conv_seg.bias"] = torch.zeros(19)
    path = save(tmp_path / "w.pth", state, V3, dataset_meta={"classes": names})
    description = import_model(str(path), tmp_path / "m").description
    assert description.training == {"dataset": "cityscapes"} and len(description.palette) == 19
