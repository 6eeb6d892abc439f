"""What can be refused before a training begins, without torch, which takes seconds to import."""

from __future__ import annotations

import os
from pathlib import Path

from segdeform.config.schema import Config
from segdeform.data import load_dataset
from segdeform.data.dataset import Dataset
from segdeform.errors import ConfigError, ModelError, UsageError
from segdeform.evaluation.confusion import refuse_countless
from segdeform.model_folder import refuse_missing_model
from segdeform.training.run_folder import checkpoint_folders, refuse_output

_NO_FILES = ("none", "imagenet")  # values of model.weights


def refuse_start(
    config: Config, data: Path, run: Path, *, resume: bool = False, overwrite: bool = False
) -> None:
    """Refuses mistyped paths and splits at once; `training.loop.train` refuses the same, and more.

    Of several processes none looks: those that have not met cannot tell each other of a refusal.

    Raises:
        UsageError: as `refuse_output` and `refuse_own_weights`.
        ConfigError, ModelError, DataError: as `refuse_weights` and `refuse_data`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return
    refuse_output(run, resume=resume, overwrite=overwrite, data=data)
    refuse_own_weights(config.model.weights, run, overwrite)
    if not (resume and checkpoint_folders(run)):  # which hold their own
        refuse_weights(config.model.weights)
    refuse_data(config, data)


def refuse_own_weights(weights: str, run: Path, overwrite: bool) -> None:
    """Raises UsageError where the run that is to be replaced holds the weights to begin with.

    Until the first checkpoint of the new one a kill would leave neither.
    """
    if overwrite and weights not in _NO_FILES:
        place, source = run.resolve(), Path(weights).resolve()
        if place == source or place in source.parents:
            raise UsageError(
                f"model.weights = {weights} lies in {run}, which --overwrite replaces: choose "
                "another --output"
            )


def refuse_data(config: Config, data: Path) -> None:
    """Raises DataError where the data set is not there, lacks the splits to use, or files, or has
    more classes than can be scored, and ConfigError where train.class_weights are those of another
    number of classes."""
    for split in dict.fromkeys((config.data.train_split, *config.data.val_splits)):
        dataset = load_dataset(config.data.name, data, split)
        refuse_countless(len(dataset.classes))
        refuse_class_weights(config.train.class_weights, dataset)


def refuse_class_weights(weights: tuple[float, ...] | None, dataset: Dataset) -> None:
    """Raises ConfigError unless there is one weight for each class of the data set, or none."""
    classes = len(dataset.classes)
    if weights is not None and len(weights) != classes:
        raise ConfigError(
            f"train.class_weights has {len(weights)} numbers for the {classes} classes of "
            f"'{dataset.name}': give one a class, in order"
        )


def refuse_weights(weights: str) -> None:
    """Raises ConfigError or ModelError for a value of model.weights that names no file or model."""
    if weights in _NO_FILES:
        return
    path = Path(weights)
    if path.is_dir():
        return refuse_missing_model(path)
    if path.suffix not in (".safetensors", ".pth"):
        raise ConfigError(
            f"model.weights is {weights!r}; it must be 'imagenet', 'none' or the path of a "
            ".safetensors or .pth file or of a model folder"
        )
    if not path.is_file():
        raise ModelError(f"model.weights: {path} is missing")
