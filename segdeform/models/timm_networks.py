"""Networks built by timm, by name, with weights of its own, of a file, or none."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segdeform.config.schema import IMAGENET_MEAN, IMAGENET_STD
from segdeform.errors import ConfigError, DownloadError, ModelError
from segdeform.files.tensors import check_fit
from segdeform.models.timm_backbone import TIMM, TimmBackbone, stages_of
from segdeform.models.weights import read_weights


class NoWeightsError(ConfigError):
    """There are no weights of a network to begin with."""


def build_timm(name: str, weights: str, output_stride: int) -> TimmBackbone:
    """Builds a network of timm by its name, with or without a tag of its weights.

    Args:
        weights: "imagenet" (timm's own for this name, downloaded), "none" (random), or the path of
            a file with timm's keys.
        output_stride: 8, 16 or 32.

    Raises:
        ConfigError: timm knows no such network, or it cannot be used here; said before anything is
            downloaded.
        ModelError: timm is not installed; the file is damaged or does not fit.
        DownloadError: the download failed.
    """
    if weights != "none":
        with torch.device("meta"):  # what cannot work is found out before a byte is fetched
            network = _network(name, output_stride)
            _timm_names(network.state_dict(), _timm().create_model(name).state_dict())
            TimmBackbone(network, name)
    network = _network(name, output_stride)
    _fill_buffers(network, name, output_stride)
    if weights != "none":
        _load(network, name, weights)
    return TimmBackbone(network, name)


def normalization(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation of RGB, 0..1, that a network's weights expect.

    Raises ConfigError, ModelError.
    """
    config = _timm().get_pretrained_cfg(_known(name))
    if config is None:  # of a network without weights
        return IMAGENET_MEAN, IMAGENET_STD
    return tuple(config.mean), tuple(config.std)


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise ModelError(
            "this network is made by timm, which is not installed: pip install 'segdeform[timm]'"
        ) from error
    return timm


def _known(name: str) -> str:
    """Returns the name if timm has a network (and weights) of it. Raises ConfigError."""
    timm = _timm()
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = get_close_matches(architecture, timm.list_models(exclude_filters="test_*"), 3, 0.6)
        hint = f"; near: {', '.join(near)}" if near else ""
        raise ConfigError(f"model.backbone = {TIMM}{name}: timm knows no {architecture}{hint}")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise ConfigError(
            f"model.backbone = {TIMM}{name}: timm's {architecture} has no weights called "
            f"{tag!r}; it has {', '.join(tags) or 'none'}"
        )
    return name


def _network(name: str, output_stride: int) -> nn.Module:
    """Builds an extractor of the four stages alone. Raises ConfigError with the reason."""
    with torch.device("meta"):
        info: Any = _extractor(name, output_stride).feature_info
    strides = list(info.reduction())
    if strides[-1] != output_stride:
        raise ConfigError(
            f"model.backbone = {TIMM}{name} has features at strides {strides}, the last of which "
            f"is not model.output_stride = {output_stride}"
        )
    # timm counts from the stem, its list from where its features begin.
    places = [list(info.out_indices)[place] for place in sorted(set(stages_of(strides, name)))]
    return _extractor(name, output_stride, out_indices=places)


def _extractor(name: str, output_stride: int, **more: Any) -> nn.Module:
    """Has timm build a feature extractor, random weights. Raises ConfigError with its reason."""
    timm = _timm()
    # Of stride 32 most networks are without being asked, also those that cannot be dilated.
    asked = {} if output_stride == 32 else {"output_stride": output_stride}
    try:
        network: nn.Module = timm.create_model(_known(name), features_only=True, **asked, **more)
        network.feature_info.reduction()  # type: ignore[operator, union-attr]
        return network
    except (AssertionError, TypeError, RuntimeError, ValueError, AttributeError) as error:
        reason = str(error).partition("\n")[0] or "timm refuses"
        undilated = "" if not asked else " (it may work with model.output_stride = 32)"
        raise ConfigError(
            f"model.backbone = {TIMM}{name} gives no features at output stride {output_stride}: "
            f"{reason}{undilated}"
        ) from error


def _load(network: nn.Module, name: str, weights: str) -> None:
    """Fills a network just built from timm's own weights or a file of timm's keys."""
    timm = _timm()
    with torch.device("meta"):
        whole = timm.create_model(name).state_dict()
    path = Path(weights)
    given = _fetched(name) if weights == "imagenet" else read_weights(path)
    names = _timm_names(network.state_dict(), whole)
    if strange := sorted(given.keys() - whole.keys()):
        raise ModelError(f"{path} is not of timm's {name}: it knows no {strange[0]}")
    own = {names[key]: value for key, value in network.state_dict().items()}
    given = {key: value for key, value in given.items() if key in own}
    for key, value in own.items():
        if key.endswith("num_batches_tracked"):
            given.setdefault(key, value)
    check_fit(own, given, path)
    network.load_state_dict({key: given[theirs] for key, theirs in names.items()})


def _fetched(name: str) -> dict[str, Tensor]:
    """Returns timm's own weights, downloaded if need be. Raises ConfigError, DownloadError."""
    timm = _timm()
    config = timm.get_pretrained_cfg(name)
    if config is None or not (config.hf_hub_id or config.url or config.file):
        raise NoWeightsError(
            f"timm has no weights of {name}: set model.weights to none or to a file of its keys"
        )
    try:
        state: dict[str, Tensor] = timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # of huggingface_hub, torch.hub, urllib, requests or httpx
        reason = str(error).partition("\n")[0]
        raise DownloadError(
            f"cannot fetch timm's weights of {name}: {reason}; or give a file with timm's keys: "
            "--set model.weights=FILE"
        ) from error
    return state


def _timm_names(own: dict[str, Tensor], whole: dict[str, Tensor]) -> dict[str, str]:
    """Returns timm's key for every key of a feature extractor, which flattens the first two levels
    (stages_0.x for stages.0.x).

    Raises ModelError: a key has no counterpart.
    """
    names = {}
    for key in own:
        bare = key.removeprefix("model.")  # where the network itself is asked for what lies between
        first, _, rest = bare.partition(".")
        splits = [k for k, letter in enumerate(first) if letter == "_"]
        candidates = [bare, *(f"{first[:k]}.{first[k + 1 :]}.{rest}" for k in splits)]
        found = [c for c in candidates if c in whole and whole[c].shape == own[key].shape]
        if not found:
            raise ModelError(f"timm's features have a {key} that its network has not")
        names[key] = found[0]
    return names


def _fill_buffers(network: nn.Module, name: str, output_stride: int) -> None:
    """Gives buffers that no file has their values, where the network was built on "meta".

    They are those of one that is built for them, which few networks need.
    """
    lacking = [
        (path, key)
        for path, layer in network.named_modules()
        for key in layer._non_persistent_buffers_set
        if (buffer := layer._buffers[key]) is not None and buffer.is_meta
    ]
    if not lacking:
        return
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):  # a file's numbers follow
        real = _network(name, output_stride)
    for path, key in lacking:
        network.get_submodule(path)._buffers[key] = real.get_submodule(path)._buffers[key]
