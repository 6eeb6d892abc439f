from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision import models as torchvision_models

from segdeform.errors import ConfigError, DownloadError, ModelError, SegdeformError
from segdeform.models import weights as weights_module
from segdeform.models.backbones import build_backbone
from tests.conftest import external_data


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return dict(torchvision_models.resnet18().state_dict())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_with_torchvisions_keys_is_loaded(
    tmp_path: Path, tensors: dict[str, Tensor], suffix: str
) -> None:
    path = tmp_path / f"resnet18{suffix}"
    half = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    if suffix == ".pth":  # as torchvision's older files: without the counters
        torch.save({k: v for k, v in half.items() if "num_batches" not in k}, path)
    else:
        save_file(half, path)
    loaded = build_backbone("resnet18", str(path), 16).state_dict()
    assert tensors.keys() - loaded.keys() == {"fc.weight", "fc.bias"}
    for key, value in loaded.items():
        assert value.dtype == tensors[key].dtype
        torch.testing.assert_close(value, half[key].to(value.dtype), rtol=0, atol=0)


def test_the_classifier_may_be_absent(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path = tmp_path / "w.safetensors"
    save_file({k: v for k, v in tensors.items() if not k.startswith("fc.")}, path)
    build_backbone("resnet18", str(path), 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("layer4.1.bn2.running_var"), "lacks layer4.1.bn2.running_var"),
        (lambda t: t.update(extra=torch.zeros(1)), "unknown extra"),
        (lambda t: t.update({"conv1.weight": torch.zeros(64, 3, 3, 3)}), r"conv1.weight.*7, 7"),
        (
            lambda t: t.update({"bn1.bias": torch.zeros(64, dtype=torch.int8)}),
            "bn1.bias is torch.int8",
        ),
        (lambda t: t["bn1.bias"].fill_(torch.inf), "bn1.bias holds values that are not finite"),
        (lambda t: [t.pop(k) for k in list(t) if "layer" in k], r"and \d+ more"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    tmp_path: Path, tensors: dict[str, Tensor], change: Any, message: str
) -> None:
    change(tensors)
    path = tmp_path / "w.safetensors"
    save_file(tensors, path)
    with pytest.raises(ModelError, match=message) as caught:
        build_backbone("resnet18", str(path), 16)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_weights_of_another_network_are_refused(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path = tmp_path / "w.safetensors"
    save_file(tensors, path)
    with pytest.raises(ModelError, match="does not fit"):
        build_backbone("mobilenet_v2", str(path), 16)


def test_downloads_are_torchvisions() -> None:
    theirs = {
        name: torchvision_models.get_model_weights(name)["IMAGENET1K_V1"].url
        for name in weights_module.IMAGENET
    }
    assert theirs == weights_module.IMAGENET


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"\x80\x02", b"\xff" * 64, None])
def test_damaged_files_are_refused(tmp_path: Path, suffix: str, content: bytes | None) -> None:
    path = tmp_path / f"w{suffix}"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=r"w\.(safetensors|pth)") as caught:
        build_backbone("resnet18", str(path), 16)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [{"w": Payload()}, {"state_dict": {}}, torch.zeros(3)])
def test_a_pth_with_more_than_tensors_is_refused_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, "w.pth")
    with pytest.raises(ModelError, match=r"w\.pth"):
        build_backbone("resnet18", "w.pth", 16)
    assert not Path("executed").exists()


@pytest.mark.parametrize("weights", ["imagnet", "weights.onnx"])
def test_an_unknown_kind_of_weights_is_refused(weights: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.weights"):
        build_backbone("resnet18", weights, 16)


def test_the_cached_download_is_used_only_when_its_hash_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tensors: dict[str, Tensor]
) -> None:
    torch.save(tensors, tmp_path / "w.pth")
    digest = hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()
    source = (tmp_path / "w.pth").rename(tmp_path / f"resnet18-{digest[:8]}.pth")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setitem(weights_module.IMAGENET, "resnet18", source.as_uri())
    backbone = build_backbone("resnet18", "imagenet", 16)
    assert torch.equal(backbone.state_dict()["conv1.weight"], tensors["conv1.weight"])

    cached = tmp_path / "hub" / "checkpoints" / source.name
    assert [path.name for path in cached.parent.iterdir()] == [source.name]
    content = bytearray(cached.read_bytes())
    content[len(content) // 2] ^= 1
    cached.write_bytes(content)
    with pytest.raises(DownloadError, match="wrong checksum"):
        build_backbone("resnet18", "imagenet", 16)


def test_without_a_network_the_way_out_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(SegdeformError, match=r"--set model\.weights=FILE") as caught:
        build_backbone("mobilenet_v2", "imagenet", 16)
    assert caught.value.exit_code == 12 and "\n" not in str(caught.value)


def test_real_weights_are_loaded_whole() -> None:
    path = external_data("weights/mobilenet_v2-imagenet-fp16.safetensors")
    file = load_file(path)
    loaded = build_backbone("mobilenet_v2", str(path), 16).state_dict()
    assert len(loaded) == 306
    for key, value in loaded.items():
        assert torch.equal(value, file[key].to(value.dtype)), key
