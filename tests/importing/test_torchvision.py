"""torchvision's own networks, random weights, against what they became here."""

from __future__ import annotations

import copy
import hashlib
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from torchvision.models import segmentation

from segdeform.config.schema import DeformConfig
from segdeform.data import voc
from segdeform.errors import DownloadError, ModelError, SegdeformError
from segdeform.importing import sources, torchvision
from segdeform.importing.import_model import Imported, import_model
from segdeform.models import build_model
from segdeform.models.deform import deformable_layers
from segdeform.segmenter import load
from tests.importing.conftest import normalised

MOBILE, RESNET = "deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50"
STRIDES = {MOBILE: 16, RESNET: 8}

Networks = Callable[[str], Any]
Files = Callable[[str], Path]
Folders = Callable[[str], tuple[Path, Imported]]


def their_maps(net: Any, images: Tensor) -> Tensor:
    scores: Tensor = net.classifier(net.backbone(normalised(images))["out"])
    return scores


def both(name: str, networks: Networks, imported: Folders) -> tuple[Any, Any]:
    """Returns torchvision's network and ours in float64, where rounding hides no difference."""
    ours = load(imported(name)[0], "cpu", trainable=True).model
    return copy.deepcopy(networks(name)).double(), ours.double()


@pytest.mark.parametrize("name", [MOBILE, RESNET])
def test_logits_are_torchvisions_where_the_stride_divides_the_sides(
    name: str, networks: Networks, imported: Folders
) -> None:
    stride = STRIDES[name]
    theirs, ours = both(name, networks, imported)
    images = torch.rand(2, 3, 3 * stride, 7 * stride, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = theirs(normalised(images.double()))["out"]
        assert expected.std((2, 3)).mean() > 0.1 and expected.std() < 5
        found = ours(images.double()).logits.double()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        # As predict uses it: folded, in float32, where torchvision's own are 1e-5 off, too.
        folded = load(imported(name)[0], "cpu").model(images).logits.double()
        torch.testing.assert_close(folded, expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize(
    ("name", "size"), [(MOBILE, (53, 75)), (MOBILE, (31, 130)), (RESNET, (53, 75))]
)
def test_at_other_sizes_maps_are_torchvisions_and_enlarged_in_place(
    name: str, size: tuple[int, int], networks: Networks, imported: Folders
) -> None:
    stride = STRIDES[name]
    theirs, ours = both(name, networks, imported)
    images = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(2)).double()
    with torch.inference_mode():
        maps = their_maps(theirs, images)
        torch.testing.assert_close(ours.maps(images).double(), maps, rtol=0, atol=1e-5)
        whole = [side * stride for side in maps.shape[2:]]
        large = F.interpolate(maps, whole, mode="bilinear", align_corners=False)
        logits, cut = ours(images).logits.double(), large[..., : size[0], : size[1]]
        torch.testing.assert_close(logits, cut, rtol=0, atol=1e-5)


def test_the_auxiliary_head_of_a_resnet_is_kept(networks: Networks, imported: Folders) -> None:
    net, model = networks(RESNET), load(imported(RESNET)[0], "cpu", trainable=True).model
    images = torch.rand(1, 3, 40, 51)
    assert model.auxiliary_head is not None
    with torch.inference_mode():
        theirs = net.aux_classifier(net.backbone(normalised(images))["aux"])
        ours = model.auxiliary_head(model.backbone(normalised(images)))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-5)
    assert load(imported(MOBILE)[0], "cpu").model.auxiliary_head is None


def test_the_description_tells_classes_and_origin(files: Files, imported: Folders) -> None:
    folder, result = imported(MOBILE)
    segmenter = load(folder, "cpu")
    assert segmenter.classes == voc.CLASSES and segmenter.palette[15] == (192, 128, 128)  # person
    info = segmenter.info
    assert info["origin"] == {
        "source": f"torchvision:{MOBILE}",
        "file": f"{MOBILE}.pth",
        "sha256": hashlib.sha256(files(MOBILE).read_bytes()).hexdigest(),
        "licence": info["origin"]["licence"],
    }
    assert "BSD-3-Clause" in info["origin"]["licence"]
    assert info["training"] == {"dataset": "voc"}  # eval's default; not what genuine weights have
    assert any("taken for VOC's" in note for note in result.notes)


@pytest.mark.parametrize("name", [MOBILE, pytest.param(RESNET, marks=pytest.mark.slow)])
def test_deformable_layers_compute_the_same_until_they_are_trained(
    name: str, files: Files, networks: Networks, tmp_path: Path
) -> None:
    import_model(str(files(name)), tmp_path / "m", deform_layers=3)
    model = load(tmp_path / "m", "cpu", trainable=True).model
    assert len(deformable_layers(model)) == 3
    images = torch.rand(1, 3, 45, 70, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        theirs = their_maps(networks(name), images)
        torch.testing.assert_close(model.maps(images), theirs, rtol=0, atol=5e-5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(2):  # the first step moves no offset where the scores do not depend on it
        optimizer.zero_grad()
        F.cross_entropy(model(images).logits, torch.ones(1, 45, 70, dtype=torch.long)).backward()
        optimizer.step()
    moved = [layer.offset_conv.weight.abs().max() for layer in deformable_layers(model).values()]
    assert min(moved) > 0
    with torch.inference_mode():
        assert (model.maps(images) - theirs).abs().max() > 1e-3


def test_half_precision_and_older_files_are_read(
    networks: Networks, imported: Folders, tmp_path: Path
) -> None:
    """Without the auxiliary head and counters, as safetensors of 16 bits; found by the keys."""
    state = {
        key: value.half()
        for key, value in networks(MOBILE).state_dict().items()
        if not key.startswith("aux") and "num_batches" not in key
    }
    save_file(state, tmp_path / "half.safetensors")
    names = tmp_path / "classes.txt"
    names.write_text("\n".join(f"kind {n}" for n in range(21)), encoding="utf-8")
    import_model(str(tmp_path / "half.safetensors"), tmp_path / "m", classes=names)
    half, whole = load(tmp_path / "m", "cpu"), load(imported(MOBILE)[0], "cpu")
    assert half.classes[20] == "kind 20" and half.info["training"] == {}
    assert half.info["origin"]["source"] == f"torchvision's {MOBILE}"
    images = torch.rand(1, 3, 64, 48)
    with torch.inference_mode():
        difference = (half.model.maps(images) - whole.model.maps(images)).abs().max()
    assert 1e-6 < difference < 0.05


def test_the_largest_network_has_the_same_parts() -> None:
    with torch.device("meta"):
        net = segmentation.deeplabv3_resnet101(
            weights=None, weights_backbone=None, aux_loss=True, num_classes=21
        )
        found = torchvision.translate(net.state_dict(), Path("w.pth"))
        model = build_model(found.model, DeformConfig(layers=0), 21, pretrained=False)
    assert found.model.backbone == "resnet101"
    ours = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in found.tensors.items()} == ours
    theirs = [m for m in net.backbone.modules() if isinstance(m, torch.nn.Conv2d)]
    convs = [m for m in model.backbone.modules() if isinstance(m, torch.nn.Conv2d)]
    assert list(map(str, convs)) == list(map(str, theirs))


def test_downloads_are_torchvisions() -> None:
    classes = {
        "deeplabv3_resnet50": segmentation.DeepLabV3_ResNet50_Weights,
        "deeplabv3_resnet101": segmentation.DeepLabV3_ResNet101_Weights,
        "deeplabv3_mobilenet_v3_large": segmentation.DeepLabV3_MobileNet_V3_Large_Weights,
    }
    assert sources.TORCHVISION.keys() == classes.keys()
    for name, ours in sources.TORCHVISION.items():
        theirs = classes[name].COCO_WITH_VOC_LABELS_V1
        reported = theirs.meta["_metrics"]["COCO-val2017-VOC-labels"]["miou"]
        assert (ours.url, ours.mean_iou) == (theirs.url, pytest.approx(reported / 100))
        their_names = [name.replace("__", "") for name in theirs.meta["categories"]]
        assert tuple(their_names) == voc.CLASSES


def test_weights_are_downloaded_once_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: Files, imported: Folders
) -> None:
    digest = hashlib.sha256(files(MOBILE).read_bytes()).hexdigest()
    source = tmp_path / f"{MOBILE}-{digest[:8]}.pth"
    shutil.copyfile(files(MOBILE), source)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    known = sources.TORCHVISION[MOBILE]._replace(url=source.as_uri())
    monkeypatch.setitem(sources.TORCHVISION, MOBILE, known)
    heard: list[tuple[int, int]] = []
    result = import_model(
        f"torchvision:{MOBILE}", tmp_path / "m", progress=lambda *amount: heard.append(amount)
    )
    assert heard[-1] == (source.stat().st_size,) * 2
    training = result.description.training
    assert training["weights"] == "COCO_WITH_VOC_LABELS_V1"
    assert training["reported_mean_iou"] == 0.603 and training["dataset"] == "voc"
    assert not any("taken for VOC's" in note for note in result.notes)
    first = load(tmp_path / "m", "cpu").info["sha256"]
    assert first == load(imported(MOBILE)[0], "cpu").info["sha256"]

    cached = tmp_path / "hub" / "checkpoints" / source.name
    content = bytearray(cached.read_bytes())
    content[len(content) // 2] ^= 1
    cached.write_bytes(content)
    with pytest.raises(DownloadError, match=r"wrong checksum.*--weights FILE"):
        import_model(f"torchvision:{MOBILE}", tmp_path / "n")
    assert not (tmp_path / "n").exists()


def test_without_a_network_the_way_out_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr("segdeform.files.download.PAUSE", 0.0)
    with pytest.raises(SegdeformError, match="--weights FILE") as caught:
        import_model(f"torchvision:{RESNET}", tmp_path / "m")
    assert caught.value.exit_code == 12 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("classifier.0.convs.4.2.running_var"), "lacks pooled_norm.running_var"),
        (lambda t: t.pop("classifier.1.weight"), r"lacks head\.convs\.0\.0\.weight"),
        (lambda t: t.update({"classifier.9.weight": torch.ones(1)}), r"classifier\.9\.weight"),
        (lambda t: t["classifier.4.bias"].fill_(torch.nan), "not finite"),
        (
            lambda t: t.update({"classifier.0.project.0.weight": torch.ones(256, 1, 1, 1)}),
            r"head\.aspp\.project\.0\.weight has the shape",
        ),
        (lambda t: t.update({"classifier.4.weight": torch.ones(())}), "has no axis 0"),
        (
            lambda t: t.update(
                {
                    "classifier.4.weight": torch.ones(5, 256, 1, 1),
                    "classifier.4.bias": torch.ones(5),
                }
            ),
            "does not say what its 5 classes are.*--classes",
        ),
        (lambda t: t.update({"backbone.1.block.0.0.weight": "text"}), "not a plain state dict"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    tmp_path: Path, networks: Networks, change: Any, message: str
) -> None:
    state = {key: value.clone() for key, value in networks(MOBILE).state_dict().items()}
    change(state)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=message) as caught:
        import_model(str(tmp_path / "w.pth"), tmp_path / "m")
    assert "\n" not in str(caught.value) and str(tmp_path / "w.pth") in str(caught.value)
    assert not (tmp_path / "m").exists()


def test_weights_of_another_network_are_refused(tmp_path: Path, files: Files) -> None:
    with pytest.raises(ModelError, match=f"is torchvision's {MOBILE}, not torchvision:{RESNET}"):
        import_model(f"torchvision:{RESNET}", tmp_path / "m", weights=files(MOBILE))
