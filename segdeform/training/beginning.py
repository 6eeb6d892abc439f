"""A training that begins with a whole network: the model folder that model.weights names."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

from torch import Tensor

from segdeform.callbacks import Say
from segdeform.config.schema import ATROUS_HEADS, Config
from segdeform.errors import ConfigError
from segdeform.models.deeplab import DeepLab
from segdeform.models.deform import deformable_layers
from segdeform.models.same_padding import make_plain
from segdeform.segmenter import Segmenter, load
from segdeform.training.channels import statistics_used

_LAST = tuple(
    f"{head}.score.{kind}" for head in ("head", "auxiliary_head") for kind in ("weight", "bias")
)
_FREE = ("weights", "auxiliary_head")  # keys of the section model in which the two may differ

_log = logging.getLogger(__name__)


def begins_with_folder(config: Config) -> bool:
    """Tells whether model.weights names a folder."""
    return Path(config.model.weights).is_dir()


def may_begin_with_folder(config: Config) -> bool:
    """Tells whether the pyramid's dilations are those of a folder, which may be gone by now."""
    weights = config.model.weights
    file = weights in ("none", "imagenet") or Path(weights).suffix in (".pth", ".safetensors")
    return not file and config.model.aspp_rates is None and config.model.head in ATROUS_HEADS


def begin_with_folder(
    model: DeepLab, config: Config, classes: tuple[str, ...], say: Say = _log.info
) -> str:
    """Gives a network the weights of the folder that model.weights names; returns their SHA-256.

    The network is to be the folder's, so that it begins by computing what that computes; more of
    its layers may be deformable, and an auxiliary head begins at random where there is none. Of
    other classes, those of the same name keep their rows of the last layers, in their new order,
    and the rest begin at random: says which.

    Raises:
        ModelError: there is no model, or a file is damaged.
        ConfigError: it is another network.
    """
    folder = Path(config.model.weights)
    theirs = load(folder, "cpu", trainable=True)
    channels = len(statistics_used(config).mean)
    if theirs.channels != channels:
        raise ConfigError(
            f"model.weights: {folder} knows pictures of {theirs.channels} channels, and these have "
            f"{channels}: begin with weights of a backbone (imagenet, a file), which are widened"
        )
    if differing := _differing(config, theirs.info):
        overrides = " ".join(f"--set {key}={_short(v)}" for key, v in differing.items())
        raise ConfigError(
            f"model.weights: {folder} holds another network than the config describes: {overrides}"
        )
    _refuse_lost_layers(model, theirs, folder)
    make_plain(  # weights that are standardised there, and are not where a layer deforms
        theirs.model.backbone,
        map(theirs.model.backbone.get_submodule, deformable_layers(model.backbone)),
    )
    own, given = model.state_dict(), theirs.model.state_dict()
    if lost := sorted(key for key in given.keys() - own.keys() if key.startswith("backbone.")):
        raise ConfigError(f"model.weights: {folder} has {lost[0]}, for which there is no place")
    known = {key: value for key, value in given.items() if key in own}
    if theirs.classes != classes:
        rows = _rows(theirs.classes, classes)
        for key in _LAST:
            if key in known:
                known[key] = _with_rows(own[key], known[key], rows)
        say(_told(folder, theirs.classes, classes, rows))
    model.load_state_dict(own | known)
    if more := sorted({key.partition(".")[0] for key in own.keys() - given.keys()} - {"backbone"}):
        say(f"model.weights: {folder} has no {', '.join(more)}: it begins at random")
    return str(theirs.info["sha256"])


def _rows(theirs: tuple[str, ...], ours: tuple[str, ...]) -> dict[int, int]:
    """Returns {place of a class here: its place there} of the classes that both know."""
    places = {name: place for place, name in enumerate(theirs)}
    return {place: places[name] for place, name in enumerate(ours) if name in places}


def _with_rows(own: Tensor, given: Tensor, rows: dict[int, int]) -> Tensor:
    """Returns a last layer's own values, [K, ...], with the rows that are known from elsewhere."""
    mixed = own.clone()
    for here, there in rows.items():
        mixed[here] = given[there]
    return mixed


def _told(
    folder: Path, theirs: tuple[str, ...], ours: tuple[str, ...], rows: dict[int, int]
) -> str:
    kept = tuple(ours[place] for place in rows)
    new = tuple(name for name in ours if name not in kept)
    gone = tuple(name for name in theirs if name not in kept)
    told = [f"model.weights: all of {folder} but its last layer, which knows other classes"]
    for what, names in (("kept", kept), ("new", new), ("dropped", gone)):
        if names:
            told.append(f"{what}: {_listed(names)}")
    return "; ".join(told)


def _short(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))  # a shell parts words at spaces


def _listed(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:4])
    return f"{len(names)} ({shown}{', ...' if len(names) > 4 else ''})"


def _differing(config: Config, info: dict[str, Any]) -> dict[str, Any]:
    """Returns the folder's values of the keys in which the config differs."""
    found: dict[str, Any] = {}
    for key, ours in config.model.model_dump(mode="json").items():
        if key not in _FREE and info["model"][key] != ours:
            found[f"model.{key}"] = info["model"][key]
    deform = config.deform.model_dump(mode="json")
    if "model.backbone" in found and info["deformable_layers"]:  # these names say nothing here
        found["deform.layers"] = info["deform"]["layers"]
    keys = ("variant", "offset_groups", "dilation") if info["deformable_layers"] else ("dilation",)
    for key in keys:
        if info["deform"][key] != deform[key]:
            found[f"deform.{key}"] = info["deform"][key]
    for key, ours in statistics_used(config)._asdict().items():
        theirs = info[key]
        same = len(theirs) == len(ours) and all(map(math.isclose, theirs, ours))
        if not same:
            found[f"data.{key}"] = theirs
    return found


def _refuse_lost_layers(model: DeepLab, theirs: Segmenter, folder: Path) -> None:
    """Raises ConfigError where a layer that is deformable in the folder would no longer be."""
    lost = deformable_layers(theirs.model.backbone).keys() - deformable_layers(model.backbone)
    if lost:
        raise ConfigError(
            f"model.weights: in {folder} other layers are deformable, too: --set deform.layers="
            f"{_short(theirs.info['deform']['layers'])}"
        )
