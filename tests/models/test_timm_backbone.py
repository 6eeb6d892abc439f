"""Networks of timm as backbones: against timm's own, built and filled apart."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segdeform.config.loading import load_config
from segdeform.config.schema import Config, DeformConfig, ModelConfig
from segdeform.errors import ConfigError, DownloadError, ModelError
from segdeform.models import build_model, timm_networks
from segdeform.models.backbones import build_backbone, set_dilation
from segdeform.models.deform import choose_layers, deformable_layers, deformify
from segdeform.models.features import Features
from segdeform.models.folding import fold_batch_norm
from segdeform.models.frozen import freeze_batch_norm
from segdeform.models.precision import compute_in
from segdeform.models.receptive import backbone_reach, reach_of
from segdeform.models.recompute import recompute_blocks
from segdeform.models.same_padding import PaddedConv2d, make_plain
from segdeform.models.stem import widened
from segdeform.models.timm_backbone import TimmBackbone
from segdeform.models.timm_networks import normalization
from segdeform.segmenter import ModelDescription, save_model
from segdeform.training.beginning import begin_with_folder
from segdeform.training.optim import backbone_parts, depths_from_end

# Of every way in which timm builds: BatchNorm with and without its activation, group and layer
# normalisation, standardised weights, SAME padding, kernels of 5 and 7, pools before strides, blur.
NAMES = [
    "test_byobnet",
    "test_convnext",
    "test_convnext2",
    "test_efficientnet",
    "test_efficientnet_evos",
    "test_efficientnet_gn",
    "test_nfnet",
    "test_resnet",
    "convnextv2_atto",
    "efficientnet_lite0",
    "fbnetc_100",
    "hardcorenas_a",
    "lcnet_050",
    "mnasnet_small",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small_035",
    "regnetx_002",
    "regnety_002",
    "resnet10t",
    "semnasnet_075",
    "tf_efficientnet_lite0",
    "tf_mobilenetv3_small_minimal_100",
]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def theirs(name: str, stride: int) -> nn.Module:
    """Returns timm's extractor in float64 whose statistics, gains and biases are random."""
    asked = {} if stride == 32 else {"output_stride": stride}
    network: nn.Module = timm.create_model(name, features_only=True, **asked)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.dtype.is_floating_point and tensor.squeeze().ndim <= 1:
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=draw))
    return network.double().eval()


def ours(network: nn.Module, name: str) -> TimmBackbone:
    return TimmBackbone(copy.deepcopy(network), name).eval()


@torch.no_grad()
def difference(backbone: nn.Module, expected: list[Tensor], pictures: Tensor) -> float:
    """Returns the largest difference from timm's features, in parts of their largest value."""
    assert isinstance(backbone, TimmBackbone)
    backbone.gives_second = True
    got: Features = backbone(pictures)
    low, second = (
        next(m for m in expected if m.shape[-1] == pictures.shape[-1] // stride)
        for stride in (4, 8)
    )
    pairs = zip(got.stages, (low, second, expected[-2], expected[-1]), strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


@pytest.mark.parametrize("name", NAMES)
def test_it_starts_as_what_timm_computes(name: str) -> None:
    network = theirs(name, 16)
    pictures = torch.randn(2, 3, 48, 80, dtype=torch.float64)
    with torch.no_grad():
        expected = network(pictures)
    backbone = ours(network, name)
    assert difference(backbone, expected, pictures) < 1e-12
    chosen = choose_layers(backbone, 3, backbone.deformable_kernels)
    make_plain(backbone, chosen.values())
    deformify(backbone, 3, kernels=backbone.deformable_kernels).eval()
    assert list(deformable_layers(backbone)) == list(chosen)
    assert difference(backbone, expected, pictures) < 1e-9
    frozen = copy.deepcopy(backbone)
    freeze_batch_norm(frozen)
    assert difference(frozen, expected, pictures) < 1e-9
    for start in (backbone, frozen):
        assert difference(fold_batch_norm(copy.deepcopy(start)), expected, pictures) < 1e-9


@pytest.mark.parametrize("stride", [8, 32])
def test_other_output_strides(stride: int) -> None:
    network = theirs("test_resnet", stride)
    pictures = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        expected = network(pictures)
    backbone = ours(network, "test_resnet")
    assert backbone.stride == stride and backbone.middle_stride == min(16, stride)
    assert difference(backbone, expected, pictures) < 1e-12


@pytest.mark.parametrize("name", ["test_efficientnet", "test_convnext", "tf_efficientnet_lite0"])
def test_any_size_is_that_of_a_picture_with_zeros_below_and_to_the_right(name: str) -> None:
    backbone = ours(theirs(name, 16), name)
    pictures = torch.randn(1, 3, 37, 53, dtype=torch.float64)
    with torch.no_grad():
        features, whole = backbone(pictures), backbone(F.pad(pictures, (0, 11, 0, 11)))
    assert features.second is None
    for stride, got, expected in zip((4, 16, 16), features[:3], whole[:3], strict=True):
        rows, columns = -(-37 // stride), -(-53 // stride)
        assert got.shape[-2:] == (rows, columns)
        assert torch.equal(got, expected[..., :rows, :columns])


def test_batchnorm_is_folded_wherever_it_follows_a_convolution() -> None:
    backbone = ours(theirs("tf_efficientnet_lite0", 16), "tf_efficientnet_lite0")
    norms = [layer for layer in backbone.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert len(backbone.norm_pairs) == len(norms) == 48
    fold_batch_norm(backbone)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in backbone.modules())


def test_frozen_batchnorm_lets_the_gradient_of_training_through() -> None:
    network = theirs("test_efficientnet", 16)
    pictures = torch.randn(2, 3, 32, 48, dtype=torch.float64)
    gradients = []
    for absorbed in (True, False):
        backbone = ours(network, "test_efficientnet")
        if not absorbed:
            backbone.norm_pairs = ()
        freeze_batch_norm(backbone)
        backbone.train()(pictures).high.square().sum().backward()
        gradients.append({n: p.grad for n, p in backbone.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][key], rtol=1e-8, atol=1e-9)


# -- weights ---------------------------------------------------------------------------------------


def whole_weights(name: str, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    state: dict[str, Tensor] = timm.create_model(name).state_dict()
    return state


@pytest.mark.parametrize("name", ["test_efficientnet", "test_convnext", "test_byobnet"])
def test_a_file_has_timms_keys(name: str, tmp_path: Path) -> None:
    whole = {k: v.half() if v.is_floating_point() else v for k, v in whole_weights(name).items()}
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(whole, path)
    backbone = build_backbone(f"timm/{name}", str(path), 16).eval()
    expected = timm.create_model(name, features_only=True, output_stride=16).eval()
    for key, value in expected.state_dict().items():
        first, _, rest = key.partition(".")
        value.copy_(whole[key if key in whole else f"{first.replace('_', '.', 1)}.{rest}"])
    pictures = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        want, got = expected(pictures)[-1], backbone(pictures).high
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(whole_weights("test_resnet"), path)
    with pytest.raises(ModelError, match="not of timm's test_efficientnet"):
        build_backbone("timm/test_efficientnet", str(path), 16)
    state = whole_weights("test_efficientnet")
    del state["blocks.1.0.conv_pwl.weight"]
    safetensors.torch.save_file(state, path)
    with pytest.raises(ModelError, match=r"blocks.1.0.conv_pwl.weight"):
        build_backbone("timm/test_efficientnet", str(path), 16)


def test_what_cannot_work_says_why_before_anything_is_fetched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(timm_networks, "_fetched", lambda _name: pytest.fail("fetched"))
    for name, stride, reason in [
        ("convnxt_tiny", 16, r"timm knows no convnxt_tiny; near: convnext_tiny"),
        ("resnet18.b1k", 16, r"has no weights called 'b1k'; it has .*a1_in1k"),
        ("densenet121", 16, r"output stride 16: .*output_stride.*model.output_stride = 32"),
        ("test_vit", 32, r"strides \[16, 16, 16\], the last of which is not"),
        ("hrnet_w18_small", 16, r"no features at output stride 16"),
        ("swin_tiny_patch4_window7_224", 32, r"(makes maps|does not take pictures of any size)"),
    ]:
        with pytest.raises(ConfigError, match=reason) as caught:
            build_backbone(f"timm/{name}", "imagenet", stride)
        assert f"model.backbone = timm/{name}" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_weights_that_timm_has_not_or_cannot_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no weights of mobilenetv4_conv_small_035: set"):
        build_backbone("timm/mobilenetv4_conv_small_035", "imagenet", 16)
    create = timm.create_model

    def offline(name: str, **given: Any) -> nn.Module:
        if given.get("pretrained"):
            raise OSError("no route to host\nand more")
        model: nn.Module = create(name, **given)
        return model

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(DownloadError, match=r"test_resnet: no route to host; or give a file") as e:
        build_backbone("timm/test_resnet", "imagenet", 16)
    assert "\n" not in str(e.value)


def test_timm_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match=r"pip install 'segdeform\[timm\]'"):
        build_backbone("timm/resnet18", "none", 16)
    build_backbone("resnet18", "none", 16)


@pytest.mark.parametrize("name", ["resnet_18", "timm/", "timm/a b", "tim/resnet18", "timm/../x"])
def test_names_of_no_backbone(name: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.backbone"):
        load_config("shapes", [f"model.backbone={name}"])


def test_normalisation_is_the_networks_own() -> None:
    assert normalization("tf_efficientnet_lite0") == ((0.5,) * 3, (0.5,) * 3)
    assert normalization("resnet18")[0] == (0.485, 0.456, 0.406)


# -- the rest of the package -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["test_convnext", "tf_efficientnet_lite0", "resnet10t"])
def test_reach_is_never_too_little(name: str) -> None:
    network = theirs(name, 16).float()
    backbone = deformify(ours(network, name), 0)
    assert isinstance(backbone, TimmBackbone)
    reach = backbone_reach(backbone)
    pictures = torch.zeros(1, 3, 16, 16 * (reach // 16 + 3), requires_grad=True)
    backbone(pictures).high[..., 0].sum().backward()
    assert pictures.grad is not None
    seen = pictures.grad[0, 0, 0].nonzero().max().item()
    assert reach / 4 < seen <= reach + 16


@pytest.mark.parametrize(
    ("name", "sees_all"),
    [("tf_efficientnet_lite0", False), ("regnety_002", True), ("convnextv2_atto", True)],
)
def test_what_sees_the_mean_of_the_whole_is_known(name: str, sees_all: bool) -> None:
    config = ModelConfig(backbone=f"timm/{name}", weights="none", head="deeplab")
    model = build_model(config, Config().deform, 5, mean=(0.5,) * 3, std=(0.5,) * 3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.inference_mode():  # as a prediction asks
        reach = reach_of(model)
    assert reach is not None and reach.squeezes is sees_all
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_checkpointing_and_layer_decay_know_its_blocks() -> None:
    pictures = torch.randn(2, 3, 32, 48)
    outputs = []
    for recomputed in (False, True):
        torch.manual_seed(5)
        backbone = build_backbone("timm/test_byobnet", "none", 16).train()
        assert isinstance(backbone, TimmBackbone)
        blocks = backbone.blocks()
        if recomputed:
            assert recompute_blocks(backbone) == len(blocks) > 3
        features = backbone(pictures)
        features.high.square().mean().backward()
        outputs.append([features.high, *(p.grad for p in backbone.parameters())])
        parts = backbone_parts(nn.ModuleDict({"backbone": backbone}))
        assert parts == list(blocks) and all(p.startswith("network.stages_") for p in parts)
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))


def test_features_that_no_head_looks_at_are_not_held() -> None:
    backbone = build_backbone("timm/test_efficientnet", "none", 16)
    assert len(backbone.network(torch.zeros(1, 3, 32, 32))) == 4  # type: ignore[operator]


def test_a_dilated_layer_with_uneven_padding_keeps_the_size() -> None:
    """Of the last three some have a stride, which SAME pads to one side more than to the other."""
    backbone = build_backbone("timm/tf_mobilenetv3_small_minimal_100", "none", 32).eval()
    pictures = torch.randn(1, 3, 64, 96)
    before = [features.shape for features in backbone(pictures)[:3]]
    set_dilation(backbone, 3, 2)
    assert [features.shape for features in backbone(pictures)[:3]] == before
    layer = next(m for m in backbone.modules() if isinstance(m, PaddedConv2d) and m.dilation[0] > 1)
    assert sum(layer.pads[:2]) == 2 * (layer.kernel_size[0] - 1) - 1
    with pytest.raises(ConfigError, match=r"pads unevenly .*model\.output_stride"):
        deformify(backbone, 3)


@pytest.mark.parametrize("name", ["pvt_v2_b0", "densenet121"])
def test_checkpointing_of_blocks_that_take_more_than_a_map(name: str) -> None:
    backbone = build_backbone(f"timm/{name}", "none", 32).train()
    assert recompute_blocks(backbone) > 0
    backbone(torch.rand(2, 3, 64, 64)).high.mean().backward()
    assert all(p.grad is not None for p in backbone.parameters())


def test_a_standardised_stem_answers_grey_in_more_channels_as_before() -> None:
    backbone = ours(theirs("test_nfnet", 16), "test_nfnet")
    grey = torch.rand(1, 1, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        expected = backbone(grey.expand(1, 3, 64, 96)).high
        torch.manual_seed(0)
        wide = build_backbone("timm/test_nfnet", "none", 16, channels=6).double().eval()
        first = next(m for m in backbone.modules() if isinstance(m, nn.Conv2d))
        make_plain(backbone, [first])
        given = backbone.state_dict()
        name = next(key for key, value in given.items() if value.shape[1:2] == (3,))
        given[name] = widened(given[name], 6)
        wide.load_state_dict(given)
        torch.testing.assert_close(wide(grey.expand(1, 6, 64, 96)).high, expected)


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("mobilenetv3_small_050", "network.blocks.5.0.conv"),
        ("test_convnext", "network.stages_3.downsample.1"),
    ],
)
def test_what_lies_in_no_block_learns_as_the_next(name: str, last: str) -> None:
    backbone = build_backbone(f"timm/{name}", "none", 16)
    depths = depths_from_end(nn.ModuleDict({"backbone": backbone}))
    stem = next(n for n, m in backbone.named_modules() if isinstance(m, nn.Conv2d))
    blocks = backbone_parts(nn.ModuleDict({"backbone": backbone}))
    assert depths[stem] == len(blocks) + 1
    assert depths[last] == (1 if "blocks.5" in last else depths["network.stages_3.blocks.0"])


def test_a_folder_with_standardised_weights_is_a_start_for_more_deformable_layers(
    tmp_path: Path,
) -> None:
    mean = std = (0.5,) * 3
    values = Config().model_dump(mode="json")
    values["model"] |= {"backbone": "timm/test_nfnet", "weights": "none", "head": "deeplab"}
    values["data"] |= {"channels": 3, "mean": mean, "std": std}
    values["deform"] |= {"layers": 0}
    config = Config.model_validate(values)
    first = build_model(config.model, config.deform, 2, pretrained=False, mean=mean, std=std)
    first.backbone.network.load_state_dict(
        {k: v.float() for k, v in theirs("test_nfnet", 16).state_dict().items()}
    )
    palette = ((0, 0, 0), (9, 9, 9))
    description = ModelDescription(
        model=config.model,
        deform=config.deform,
        classes=("a", "b"),
        palette=palette,
        mean=mean,
        std=std,
        eval=config.eval,
        value_range=None,
        bands=None,
        crop=config.data.crop,
        training={},
    )
    save_model(tmp_path / "model", first, description)
    values["model"]["weights"], values["deform"]["layers"] = str(tmp_path / "model"), 2
    config = Config.model_validate(values)
    second = build_model(config.model, config.deform, 2, pretrained=False, mean=mean, std=std)
    begin_with_folder(second, config, ("a", "b"))
    pictures = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected, got = (model.eval()(pictures).logits for model in (first, second))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["convnext_atto", "resnet18", "test_efficientnet_gn", "test_nfnet"]
)
def test_bfloat16(name: str) -> None:
    """Also where scales and norms are parameters that no convolution folds in."""
    config = ModelConfig(backbone=f"timm/{name}", weights="none", head="deeplab")
    torch.manual_seed(0)
    model = build_model(config, Config().deform, 3, mean=(0.5,) * 3, std=(0.5,) * 3).eval()
    randomised = theirs(name, 16).float().state_dict()
    model.backbone.load_state_dict(
        {
            key: randomised.get(key.removeprefix("network."), value)
            for key, value in model.backbone.state_dict().items()
        }
    )
    pictures = torch.rand(1, 3, 40, 56)
    fold_batch_norm(model)
    with torch.no_grad():
        expected = model.maps(pictures)
        compute_in(model, "bf16")
        got = model.maps(pictures)
    assert model.features(pictures).high.dtype == torch.bfloat16
    assert float((got - expected).norm() / expected.norm()) < 0.1
    assert reach_of(model) is not None


@pytest.mark.parametrize(
    ("name", "stride"), [("test_resnet", 16), ("resnet18d", 16), ("dla46_c", 32)]
)
def test_pools_that_pad_by_size_and_features_that_begin_late(name: str, stride: int) -> None:
    network = theirs(name, stride)
    pictures = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        expected = network(pictures)[-1]
        torch.manual_seed(0)
        backbone = build_backbone(f"timm/{name}", "none", stride).double().eval()
        kept = backbone.network.state_dict()
        ours_by_theirs = TimmBackbone(copy.deepcopy(network), name).network.state_dict()
        backbone.network.load_state_dict({key: ours_by_theirs[key] for key in kept})
        got = backbone(pictures).high
    assert got.shape[-2:] == (64 // stride, 96 // stride)
    torch.testing.assert_close(got, expected)
    assert not any(type(m).__name__.endswith("Pool2dSame") for m in backbone.modules())


def test_weights_of_a_network_that_is_asked_for_what_lies_between(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(whole_weights("twins_svt_small"), path)
    whole = whole_weights("twins_svt_small")
    backbone = build_backbone("timm/twins_svt_small", str(path), 32)
    own = backbone.state_dict()
    name = next(key for key in own if key.endswith("patch_embeds.0.proj.weight"))
    assert torch.equal(own[name], whole[name.partition("model.")[2]])


def test_several_first_convolutions_are_not_widened() -> None:
    with pytest.raises(ConfigError, match="repvgg_a0 looks at pictures by several convolutions"):
        build_backbone("timm/repvgg_a0", "none", 16, channels=5)


def test_blocks_of_linear_layers_are_blocks() -> None:
    with torch.device("meta"):
        backbone = build_backbone("timm/convnext_tiny", "none", 32)
    assert isinstance(backbone, TimmBackbone)
    assert len(backbone.blocks()) == 3 + 3 + 9 + 3


def test_a_plain_network_of_computed_padding_is_dilated() -> None:
    """The baseline without deformable layers, whose last three are changed all the same."""
    model = ModelConfig(backbone="timm/dm_nfnet_f0", weights="none", head="deeplab")
    model = model.model_copy(update={"output_stride": 32})
    with torch.device("meta"):
        network = build_model(model, DeformConfig(layers=0, dilation=2), 3)
        assert network.backbone(torch.zeros(1, 3, 64, 96)).high.shape[-2:] == (2, 3)
    dilated = [m for m in network.backbone.modules() if getattr(m, "dilation", 1) == (2, 2)]
    assert len(dilated) == 3 and all(type(m) in (nn.Conv2d, PaddedConv2d) for m in dilated)


def test_padding_that_depends_on_the_size_is_written_down() -> None:
    backbone = build_backbone("timm/tf_efficientnet_lite0", "none", 16)
    kinds = {type(layer).__name__ for layer in backbone.modules() if isinstance(layer, nn.Conv2d)}
    assert kinds == {"Conv2d", "PaddedConv2d"}
    pads = [layer.pads for layer in backbone.modules() if isinstance(layer, PaddedConv2d)]
    assert pads == [(0, 1, 0, 1), (0, 1, 0, 1), (1, 2, 1, 2), (0, 1, 0, 1)]


def test_the_smallest_pictures() -> None:
    for name in ("test_efficientnet", "resnetblur18"):
        backbone = build_backbone(f"timm/{name}", "none", 32).eval()
        assert backbone(torch.randn(1, 3, 1, 33)).high.shape[-2:] == (1, 2)


def test_other_channels_than_three() -> None:
    backbone = build_backbone("timm/test_efficientnet", "none", 16, channels=5).eval()
    assert isinstance(backbone, TimmBackbone) and backbone.picture_channels == 5
    assert backbone(torch.randn(1, 5, 33, 31)).high.shape[-2:] == (3, 2)
