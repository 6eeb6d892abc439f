"""mmsegmentation's DeepLabV3 and DeepLabV3+ of ResNets: names of tensors, texts of the config.

The arithmetic of the layers is the same, but for three places, where mmsegmentation resizes maps to
the size wanted and the network here enlarges them by their exact stride (`models.resizing`):

- the pooled branch, from 1x1: the same;
- DeepLabV3+: the pyramid's output, to the low-level features' size: the same where that is the
  exact multiple, that is where ceil(H / 4) is a multiple of stride / 4, and so for W;
- the scores, to the picture: the same where their stride (4, of DeepLabV3 the output stride)
  divides H and W.

So logits are equal where the output stride divides the picture's sides; elsewhere labels may differ
along edges, by a shift of less than one value of the map.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segdeform.config.schema import IMAGENET_MEAN, IMAGENET_STD, ModelConfig
from segdeform.errors import ModelError, shortened
from segdeform.importing.mmconfig import read_config
from segdeform.importing.renaming import (
    Translated,
    fold_pooled_norm,
    renamed,
    resnet_of,
    size_of,
)

# Strides and dilations of the four stages, and the output stride that they are.
_STRIDES = {
    ((1, 2, 1, 1), (1, 1, 2, 4)): 8,
    ((1, 2, 2, 1), (1, 1, 1, 2)): 16,
    ((1, 2, 2, 2), (1, 1, 1, 1)): 32,
}
_HEAD: tuple[tuple[str, str | None], ...] = (
    (r"auxiliary_head\.", None),
    (r"backbone\.stem\.([0-6])\.", r"backbone.conv1.\1."),
    (r"backbone\.stem\.7\.", "backbone.bn1."),
    (r"backbone\.", "backbone."),
    (r"decode_head\.image_pool\.1\.conv\.", "head.aspp.pooled.1."),
    (r"decode_head\.image_pool\.1\.bn\.", "pooled_norm."),
    (r"decode_head\.aspp_modules\.(\d+)\.depthwise_conv\.conv\.", r"head.aspp.branches.\1.0.0."),
    (r"decode_head\.aspp_modules\.(\d+)\.depthwise_conv\.bn\.", r"head.aspp.branches.\1.0.1."),
    (r"decode_head\.aspp_modules\.(\d+)\.pointwise_conv\.conv\.", r"head.aspp.branches.\1.1.0."),
    (r"decode_head\.aspp_modules\.(\d+)\.pointwise_conv\.bn\.", r"head.aspp.branches.\1.1.1."),
    (r"decode_head\.aspp_modules\.(\d+)\.conv\.", r"head.aspp.branches.\1.0."),
    (r"decode_head\.aspp_modules\.(\d+)\.bn\.", r"head.aspp.branches.\1.1."),
    (r"decode_head\.bottleneck\.conv\.", "head.aspp.project.0."),
    (r"decode_head\.bottleneck\.bn\.", "head.aspp.project.1."),
    (r"decode_head\.c1_bottleneck\.conv\.", "head.low_level.0."),
    (r"decode_head\.c1_bottleneck\.bn\.", "head.low_level.1."),
    (r"decode_head\.sep_bottleneck\.(\d+)\.depthwise_conv\.conv\.", r"head.decoder.\1.0.0."),
    (r"decode_head\.sep_bottleneck\.(\d+)\.depthwise_conv\.bn\.", r"head.decoder.\1.0.1."),
    (r"decode_head\.sep_bottleneck\.(\d+)\.pointwise_conv\.conv\.", r"head.decoder.\1.1.0."),
    (r"decode_head\.sep_bottleneck\.(\d+)\.pointwise_conv\.bn\.", r"head.decoder.\1.1.1."),
    (r"decode_head\.conv_seg\.", "head.score."),
)
_LICENCE = (
    "mmsegmentation is Apache-2.0; weights may have terms of their own, derived from the pictures "
    "they were trained on"
)


def is_mmsegmentation(tensors: Mapping[str, Tensor]) -> bool:
    """Tells mmsegmentation's networks by the name of their head."""
    return any(name.startswith("decode_head.") for name in tensors)


def translate(tensors: Mapping[str, Tensor], meta: Mapping[Any, Any], source: Path) -> Translated:
    """Puts a checkpoint of mmsegmentation into our words; `meta` is what lies beside its weights.

    Raises:
        ModelError: it is another network, or its config says that it computes otherwise.
    """
    backbone = resnet_of(tensors, source)
    if backbone in ("resnet18", "resnet34"):  # dilate the first convolution of a block alone
        raise ModelError(
            f"{source} is a {backbone} of mmsegmentation, whose blocks are dilated otherwise than "
            "here; known are resnet50 and resnet101"
        )
    ours = renamed(tensors, _HEAD, source)
    fold_pooled_norm(ours, "head.aspp.pooled.1", "pooled_norm", source)
    _pooled_last(ours, source)
    plus = "head.low_level.0.weight" in ours
    stride, rates, notes = _layout(meta, plus, source)
    classes, palette = _classes(meta)
    mean, std = _normalisation(_config(meta), source)
    if size_of(ours, "head.score.weight", 0, source) == 1:
        raise ModelError(
            f"{source} has one score a pixel, which is compared with a threshold; networks here "
            "have a score for each class"
        )
    keys: dict[str, object] = {
        "backbone": backbone,
        "weights": "none",
        "stem": "deep" if "backbone.conv1.0.weight" in ours else "plain",
        "head": "deeplabv3plus" if plus else "deeplabv3",
        "head_channels": size_of(ours, "head.aspp.project.0.weight", 0, source),
        "output_stride": stride,
        "aspp_rates": rates,
        "aspp_mixing": size_of(ours, "head.aspp.project.0.weight", 2, source),
    }
    if plus:
        keys["low_channels"] = size_of(ours, "head.low_level.0.weight", 0, source)
    name = f"mmsegmentation's {keys['head']} of {backbone}"
    model = ModelConfig.model_validate(keys)
    return Translated(name, model, ours, classes, palette, _LICENCE, mean, std, notes)


def _pooled_last(tensors: dict[str, Tensor], source: Path) -> None:
    """Moves the pooled branch, which comes first there, behind the others, where it is here."""
    name = "head.aspp.project.0.weight"
    width = size_of(tensors, name, 0, source)
    size_of(tensors, name, 1, source)
    mixing = tensors[name]
    tensors[name] = torch.cat((mixing[:, width:], mixing[:, :width]), dim=1)


def _config(meta: Mapping[Any, Any]) -> dict[str, Any]:
    text = meta.get("cfg", meta.get("config"))  # of version 1, of versions before
    return read_config(text) if isinstance(text, str) else {}


def _layout(
    meta: Mapping[Any, Any], plus: bool, source: Path
) -> tuple[int, tuple[int, ...], tuple[str, ...]]:
    """Returns output stride and rates of the pyramid, which no tensor tells, and notes.

    Raises ModelError where the config says what is not computed here.
    """
    match _config(meta).get("model"):
        case {"backbone": dict(backbone), "decode_head": dict(head)}:
            pass
        case _:
            note = (
                "the file holds no config: output stride 8 and rates 12, 24, 36 are assumed, as in "
                "mmsegmentation's configs r50-d8 and r101-d8"
            )
            return 8, (12, 24, 36), (note,)
    _refuse_other(backbone, head, plus, source)
    four = [backbone.get("strides", [1, 2, 2, 2]), backbone.get("dilations", [1, 1, 1, 1])]
    rates = head.get("dilations", [1, 12, 24, 36])
    if not all(isinstance(v, list) and all(type(n) is int for n in v) for v in (*four, rates)):
        raise ModelError(f"{source}: strides and dilations of its config are no whole numbers")
    stride = _STRIDES.get((tuple(four[0]), tuple(four[1])))
    if stride is None or rates[:1] != [1] or not all(1 < rate <= 512 for rate in rates[1:]):
        raise ModelError(
            f"{source}: its config has strides {shortened(four[0])}, dilations "
            f"{shortened(four[1])} and rates {shortened(rates)}, which are not built here"
        )
    return stride, tuple(rates[1:]), _windows(_config(meta)["model"])


def _windows(model: dict[str, Any]) -> tuple[str, ...]:
    """Notes where mmsegmentation sees pictures in windows: here they are seen whole."""
    match model.get("test_cfg"):
        case {"mode": "slide", "crop_size": [int(height), int(width)]}:
            return (
                f"mmsegmentation sees pictures in windows of {height}x{width} with it; here they "
                f"are seen whole, and with --tile {max(height, width)} in windows",
            )
    return ()


def _refuse_other(backbone: dict[str, Any], head: dict[str, Any], plus: bool, source: Path) -> None:
    """Raises ModelError for settings by which a network computes otherwise, with the same names."""
    dilated = backbone.get("dilations", [1, 1, 1, 1]) != [1, 1, 1, 1]
    wanted: list[tuple[str, Any, tuple[Any, ...]]] = [
        ("backbone.type", backbone.get("type"), ("ResNetV1c", "ResNet")),
        ("backbone.style", backbone.get("style", "pytorch"), ("pytorch",)),
        ("backbone.multi_grid", backbone.get("multi_grid"), (None,)),
        ("backbone.dcn", backbone.get("dcn"), (None,)),
        ("backbone.avg_down", backbone.get("avg_down", False), (False,)),
        ("backbone.out_indices", backbone.get("out_indices", [0, 1, 2, 3]), ([0, 1, 2, 3],)),
        (
            "backbone.contract_dilation",
            backbone.get("contract_dilation", False),
            (True,) if dilated else (True, False),
        ),
        (
            "decode_head.type",
            head.get("type"),
            ("DepthwiseSeparableASPPHead",) if plus else ("ASPPHead",),
        ),
        ("decode_head.in_index", head.get("in_index", 3), (3, -1)),
        ("decode_head.align_corners", head.get("align_corners", False), (False,)),
    ]
    for part, keys in (("backbone", backbone), ("decode_head", head)):
        norm = keys.get("norm_cfg", {})
        norm = norm if isinstance(norm, dict) else {"type": norm}
        wanted.append((f"{part}.norm_cfg.type", norm.get("type", "BN"), ("BN", "SyncBN", "BN2d")))
        wanted.append((f"{part}.norm_cfg.eps", norm.get("eps", 1e-5), (1e-5,)))
        wanted.append((f"{part}.act_cfg", keys.get("act_cfg", "ReLU"), ("ReLU", {"type": "ReLU"})))
    for key, value, known in wanted:
        if value not in known:
            raise ModelError(
                f"{source}: {key} = {shortened(value)} in its config; known is "
                f"{' or '.join(map(repr, known))}"
            )


def _normalisation(
    config: dict[str, Any], source: Path
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and deviation of RGB in 0..1, ImageNet's where the config is silent.

    Raises ModelError for pictures that are not RGB.
    """
    model = config.get("model")
    inside = model.get("data_preprocessor") if isinstance(model, dict) else None
    given = inside or config.get("data_preprocessor") or config.get("img_norm_cfg") or {}
    if not isinstance(given, dict) or not given.get("mean"):
        return IMAGENET_MEAN, IMAGENET_STD
    if not given.get("bgr_to_rgb", given.get("to_rgb", False)):
        raise ModelError(f"{source}: its config feeds the network BGR pictures; RGB ones are known")
    found = []
    for key in ("mean", "std"):
        numbers = given.get(key)
        if not (
            isinstance(numbers, list)
            and len(numbers) == 3
            and all(type(number) in (int, float) and 0 <= number <= 1000 for number in numbers)
        ):
            raise ModelError(f"{source}: {key} = {shortened(numbers)} in its config: not of RGB")
        found.append(tuple(number / 255 for number in numbers))
    return found[0], found[1]


def _classes(
    meta: Mapping[Any, Any],
) -> tuple[tuple[str, ...] | None, tuple[tuple[int, int, int], ...] | None]:
    """Returns names and colours where the file says them, in either version's way."""
    said = meta.get("dataset_meta")
    said = said if isinstance(said, Mapping) else {}
    names = said.get("classes", meta.get("CLASSES"))
    colours = said.get("palette", meta.get("PALETTE"))
    if not (
        isinstance(names, list | tuple)
        and all(isinstance(name, str) and name.strip() for name in names)
    ):
        return None, None
    good = isinstance(colours, list | tuple) and all(
        isinstance(colour, list | tuple)
        and len(colour) == 3
        and all(type(value) is int and 0 <= value <= 255 for value in colour)
        for colour in colours
    )
    if not good or len(colours) != len(names):
        return tuple(names), None
    return tuple(names), tuple((colour[0], colour[1], colour[2]) for colour in colours)
