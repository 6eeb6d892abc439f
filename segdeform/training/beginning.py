"""A training that begins with a whole network: the model folder that model.weights names."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from segdeform.config.schema import Config
from segdeform.errors import ConfigError
from segdeform.models.deeplab import DeepLab
from segdeform.models.deform import deformable_layers
from segdeform.segmenter import Segmenter, load
from segdeform.training.channels import statistics_used

_FREE = ("weights", "auxiliary_head")  # keys of the section model in which the two may differ


def begins_with_folder(config: Config) -> bool:
    """Tells whether model.weights names a folder."""
    return Path(config.model.weights).is_dir()


def begin_with_folder(model: DeepLab, config: Config, classes: tuple[str, ...]) -> str:
    """Gives a network the weights of the folder that model.weights names; returns their SHA-256.

    The network is to be the folder's, so that it begins by computing what that computes; more of
    its layers may be deformable, and an auxiliary head begins at random where there is none.

    Raises:
        ModelError: there is no model, or a file is damaged.
        ConfigError: it is another network, or has other classes.
    """
    folder = Path(config.model.weights)
    theirs = load(folder, "cpu", trainable=True)
    if theirs.classes != classes:
        raise ConfigError(
            f"model.weights: {folder} knows other classes than the data set: "
            f"{_listed(theirs.classes)} there, {_listed(classes)} here"
        )
    if differing := _differing(config, theirs.info):
        overrides = " ".join(f"--set {key}={_short(v)}" for key, v in differing.items())
        raise ConfigError(
            f"model.weights: {folder} holds another network than the config describes: {overrides}"
        )
    _refuse_lost_layers(model, theirs, folder)
    own, given = model.state_dict(), theirs.model.state_dict()
    model.load_state_dict(own | {key: value for key, value in given.items() if key in own})
    return str(theirs.info["sha256"])


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
