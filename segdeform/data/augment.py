"""More augmentation, by albumentations' own transforms, named in the config with their arguments.

They see the finished crop and its labels together. What makes a crop decides their random numbers
alone: neither the order in which crops are made nor the process that makes them has a part in it.
"""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from segdeform.data.dataset import Labels
from segdeform.data.image_io import UInt8
from segdeform.errors import ConfigError, nearest

# Asked for at import, or albumentations looks for a newer version on the network.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations

Entry = Mapping[str, Any]  # name, and arguments as JSON values

_GROUPS = ("OneOf", "SomeOf", "Sequential", "RandomOrder")  # of transforms
_KEY = "data.augment"
_TRIES = 8  # draws of a transform; some change a crop's size in half of theirs
_DRAWS = 2  # keeps the seeds of these apart from other draws


class Augmentation:
    """Transforms that are applied one after the other to a crop and its labels.

    Args:
        entries: as in the config.
        fill: of each channel, 0..255: what a transform shows outside of the picture, unless its
            arguments say otherwise.
        ignored: the label there.

    Raises:
        ConfigError: a transform or an argument does not exist, or has a wrong value.
    """

    def __init__(self, entries: Sequence[Entry], fill: Sequence[int], ignored: int) -> None:
        self._compose = albumentations.Compose(
            [_built(entry, fill, ignored) for entry in entries], is_check_shapes=False
        )

    def __call__(
        self,
        image: UInt8,  # [H, W, C]
        labels: Labels,  # [H, W]
        seed: int,
        epoch: int,
        index: int,
    ) -> tuple[UInt8, Labels]:
        """Returns both, changed; the arguments alone decide how.

        Raises:
            ConfigError: they have another size or type now, in a draw that did not come up when
                the training tried its transforms.
        """
        picture, classes = self.changed(image, labels, seed, epoch, index)
        for before, after in ((image, picture), (labels, classes)):
            if _kind(after) != _kind(before):
                raise ConfigError(
                    f"{_KEY}: a crop of {_kind(before)} became one of {_kind(after)}: leave out "
                    "what changes its size or type"
                )
        return picture, classes

    def changed(
        self, image: UInt8, labels: Labels, seed: int, epoch: int, index: int
    ) -> tuple[Any, Any]:
        """Returns what the transforms make of both, whatever its size and type."""
        entropy = np.random.SeedSequence([seed, epoch, index, _DRAWS]).generate_state(1)
        self._compose.set_random_seed(int(entropy[0]))
        made = self._compose(image=image, mask=labels)
        return made["image"], made["mask"]


def refuse_augmentation(
    entries: Sequence[Entry],
    crop: tuple[int, int],
    channels: int,
    label_type: np.dtype[np.uint8 | np.uint16],
) -> None:
    """Tries every transform on a crop, several times, before a training begins.

    Those of a group are tried alone, too: a group may draw one of them once in a thousand crops.

    Raises:
        ConfigError: names one that does not exist, gives a crop of another kind or size, labels
            that are no classes, or fails.
    """
    chance = np.random.default_rng(0)
    image = chance.integers(0, 256, (*crop, channels), np.uint8)
    labels = chance.integers(0, 3, crop).astype(label_type)
    ignored = int(np.iinfo(label_type).max)
    labels[:: max(2, crop[0] // 4)] = ignored
    for entry in entries:
        Augmentation([entry], [128] * channels, ignored)  # names and arguments, groups' as well
    for entry in _all_of(entries):
        always = Augmentation([{**entry, "p": 1.0}], [128] * channels, ignored)
        name = entry["name"]
        for draw in range(_TRIES):
            try:
                found, classes = always.changed(image, labels, draw, 0, 0)
            except Exception as error:  # transforms raise what they like
                line = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise ConfigError(
                    f"{_KEY}: {name} fails on crops of {_kind(image)}: {line}"
                ) from error
            _refuse_other(name, image, labels, found, classes)


def _refuse_other(name: str, image: UInt8, labels: Labels, found: Any, classes: Any) -> None:
    """Raises ConfigError where a transform gives what is no crop of the same kind."""
    for what, before, after in (("a crop", image, found), ("labels", labels, classes)):
        if _kind(after) != _kind(before):
            raise ConfigError(
                f"{_KEY}: {name} makes {what} of {_kind(before)} into {_kind(after)}; it has to "
                "stay the same"
            )
    ignored = int(np.iinfo(labels.dtype).max)
    if not set(np.unique(classes)) <= {0, 1, 2, ignored}:
        raise ConfigError(
            f"{_KEY}: {name} mixes labels, which are classes: give it mask_interpolation 0 "
            f"(nearest) and fill_mask {ignored}"
        )


def _all_of(entries: Sequence[Entry]) -> Iterator[Entry]:
    """Yields the transforms of groups, each before its group, and those of none."""
    for entry in entries:
        if entry["name"] in _GROUPS:
            yield from _all_of(entry["transforms"])
        yield entry


def _built(entry: Entry, fill: Sequence[int], ignored: int) -> Any:
    """Makes a transform of its entry."""
    name = str(entry["name"])
    kind = getattr(albumentations, name, None)
    known = [*_transforms(), *_GROUPS]
    if name not in known or kind is None:
        near = nearest(name, known)
        raise ConfigError(f"{_KEY}: albumentations has no transform '{name}'.{near}")
    given = {key: _as_tuples(value) for key, value in entry.items() if key != "name"}
    arguments = list(inspect.signature(kind.__init__).parameters.values())[1:]
    for key in given:
        names = [argument.name for argument in arguments]
        if key not in names:
            raise ConfigError(f"{_KEY}: {name} has no argument '{key}'.{nearest(key, names)}")
    if name in _GROUPS:
        given["transforms"] = [
            _built(inner, fill, ignored) for inner in _entries(name, entry.get("transforms"))
        ]
    for argument in arguments:
        # A default of None leaves labels as they are, below a hole for example.
        if argument.name == "fill_mask" and argument.default is not None:
            given.setdefault("fill_mask", ignored)
        if argument.name == "fill" and argument.default == 0:
            colour = len(fill) == 3 and "tuple" in str(argument.annotation)
            given.setdefault("fill", tuple(fill) if colour else round(sum(fill) / len(fill)))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice; what is wrong raises
            return kind(**given)
    except Exception as error:  # pydantic's errors, and what else they raise
        raise ConfigError(f"{_KEY}: {name}: {_reason(error)}") from error


def _entries(name: str, value: object) -> list[Entry]:
    inner = value if isinstance(value, list | tuple) else []
    if not inner or not all(isinstance(each, Mapping) and "name" in each for each in inner):
        raise ConfigError(f"{_KEY}: {name} takes transforms: [{{name: ...}}, ...]")
    return list(inner)


def _transforms() -> list[str]:
    """Lists the public transforms of pictures."""
    return [
        name
        for name, value in vars(albumentations).items()
        if inspect.isclass(value)
        and issubclass(value, albumentations.BasicTransform)
        and not inspect.isabstract(value)
        and hasattr(value, "apply")
        and not name.startswith(("Basic", "Base"))
        and name not in ("DualTransform", "ImageOnlyTransform", "NoOp")
    ]


def _as_tuples(value: Any) -> Any:
    """Returns lists of numbers as the tuples that albumentations checks for."""
    if isinstance(value, list | tuple):
        return tuple(_as_tuples(each) for each in value)
    return value


def _reason(error: Exception) -> str:
    """Returns what is wrong in one line: of pydantic, the argument and what it expects."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) >= 3 and "validation error" in lines[0]:
        return f"{lines[1].partition('.')[0]}: {lines[2].partition(' [')[0].lower()}"
    return lines[0] if lines else type(error).__name__


def _kind(array: np.ndarray[Any, Any]) -> str:
    """Returns size and type as messages show them: 41x57x3 uint8."""
    return f"{'x'.join(str(side) for side in array.shape)} {array.dtype}"
