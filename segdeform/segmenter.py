"""A trained network with everything needed to use it, and the folder it is kept in.

A model folder holds model.safetensors (weights), model.json (`ModelDescription`) and manifest.json
(their SHA-256). It needs no config file, no training data and no network to be used.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from segdeform.callbacks import Say
from segdeform.config.schema import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    DeformConfig,
    EvalConfig,
    ModelConfig,
)
from segdeform.data.dataset import MAX_CLASSES
from segdeform.data.depth import ValueRange, ranges
from segdeform.data.rasters import Raster
from segdeform.errors import ConfigError, ModelError, UsageError, nearest
from segdeform.files.atomic import write_json
from segdeform.files.manifest import read_json, replacing_folder
from segdeform.files.tensors import check_fit, read_tensors, write_tensors
from segdeform.machine.device import require_right_kernels, resolve_device
from segdeform.machine.pipeline import read_ahead, threads
from segdeform.model_folder import (
    AVERAGED_WEIGHTS,
    DESCRIPTION,
    EXPORT,
    TRAINING_STATE,
    WEIGHTS,
    find_model,
)
from segdeform.models import build_model
from segdeform.models.deeplab import DeepLab
from segdeform.models.deform import deformable_layers
from segdeform.models.folding import fold_batch_norm
from segdeform.models.precision import Asked, Precision, compute_in, resolve_precision
from segdeform.models.pyramid import fitting_tile, misfit, silence_unreachable_taps
from segdeform.models.receptive import reach_of
from segdeform.results.result import Result
from segdeform.version import __version__

if TYPE_CHECKING:
    from segdeform.data.opening import OpenPicture
    from segdeform.runtimes.description import Runtime

FORMAT_VERSION: Final = 1

Channel = Annotated[int, Field(ge=0, le=255)]
Band = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Side = Annotated[int, Field(ge=1)]
Picture = NDArray[Any] | Image | str | Path
OnePicture = TypeVar("OnePicture", bound=Picture)

_log = logging.getLogger(__name__)


class Origin(BaseModel):
    """Where a network that others have trained came from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    file: str  # its name
    sha256: str  # of the file
    licence: str  # what is known of it


class ModelDescription(BaseModel):
    """What model.json says: all that the weights alone do not tell."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format_version: Literal[1] = FORMAT_VERSION
    segdeform_version: str = __version__
    model: ModelConfig
    deform: DeformConfig
    classes: tuple[str, ...] = Field(min_length=1, max_length=MAX_CLASSES)
    palette: tuple[tuple[Channel, Channel, Channel], ...]
    mean: tuple[float, ...] = Field(IMAGENET_MEAN, min_length=1)  # one a channel, of 0..1
    std: tuple[Positive, ...] = IMAGENET_STD
    eval: EvalConfig = EvalConfig()
    # Of pictures of more than 8 bits, of all channels or one a channel.
    value_range: tuple[float, float] | tuple[tuple[float, float], ...] | None = None
    bands: tuple[Band, ...] | None = None  # of files, that become the channels; null: RGB
    crop: tuple[Side, Side] | None = None  # of training, pixels, (H, W)
    training: dict[str, Any] = {}
    origin: Origin | None = None  # null: trained by segdeform

    @model_validator(mode="after")
    def _one_colour_a_class(self) -> ModelDescription:
        if len(self.palette) != len(self.classes):
            raise ValueError(f"{len(self.palette)} colours for {len(self.classes)} classes")
        return self

    @model_validator(mode="after")
    def _one_value_a_channel(self) -> ModelDescription:
        channels = 3 if self.bands is None else len(self.bands)
        if not len(self.mean) == len(self.std) == channels:
            raise ValueError(
                f"{len(self.mean)} means and {len(self.std)} deviations for {channels} channels"
            )
        if self.value_range is not None:
            each = ranges(self.value_range, channels)
            if each is None or not all(low < high for low, high in each):
                raise ValueError(f"value_range {self.value_range} is empty, or of other channels")
        return self

    @model_validator(mode="before")
    @classmethod
    def _crop_of_older_folders(cls, value: Any) -> Any:
        """Finds the crop where folders kept it before it had a key of its own."""
        match value:
            case {"training": {"data": {"crop": crop}}} if value.get("crop") is None:
                return {**value, "crop": crop}
        return value


@dataclass(repr=False)
class Segmenter:
    """Labels pictures with a network in evaluation mode.

    `options` says how a picture becomes labels (tiles, scales, flip); it is frozen, and
    `with_options` returns the same network with others.
    `info` tells what the folder says of the network, JSON values only. `value_range` are the values
    that were black and white in training, where its pictures had more than 8 bits; `bands` are the
    bands of files that are its channels, where these are not RGB.
    """

    model: DeepLab
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    options: EvalConfig
    device: torch.device
    info: dict[str, Any]
    value_range: ValueRange | None = None
    bands: tuple[int, ...] | None = None
    precision: Precision | Literal["fp16"] = "fp32"  # what the network computes in
    compiled: bool = False  # by `compile`

    @property
    def network(self) -> DeepLab:
        """The network itself. Raises ModelError where there is only what was exported of it."""
        if "export" in self.info:
            raise ModelError(
                f"{self.info['path']} is exported; this needs the model that it was made of"
            )
        return self.model

    def __repr__(self) -> str:
        where = self.info.get("path", "a network in memory")
        return f"<Segmenter of {where}: {len(self.classes)} classes, on {self.device}>"

    @property
    def channels(self) -> int:
        """How many channels the network's pictures have."""
        return 3 if self.bands is None else len(self.bands)

    def read(self, picture: Path, frame: int = 0) -> NDArray[np.uint8]:
        """Reads a picture as the network knows them, uint8 [H, W, 3] RGB or [H, W, C] of its bands.

        Of several frames or pages it is the first, or the one numbered `frame`.

        Raises:
            DataError: the file is no readable picture, or lacks bands.
        """
        from segdeform.data.frames import read_frame

        return read_frame(picture, frame, self.value_range, self.bands)

    def open(self, picture: Path, scratch: Path | None = None) -> OpenPicture:
        """Opens a picture of any size as the network knows them, and its place on a map.

        A giant one is read in parts, or decoded once into an unnamed file in `scratch`.

        Raises:
            DataError: the file is no readable picture, or lacks bands.
        """
        from segdeform.data.opening import open_picture

        return open_picture(picture, self.value_range, self.bands, scratch)

    def compile(self, say: Say = _log.info) -> None:
        """Has the network compiled for each size that comes again; see `compile_network`."""
        from segdeform.models.compiling import compile_network

        if not self.compiled:
            compile_network(self.network, say)
            self.compiled = True

    def with_options(self, **given: Any) -> Segmenter:
        """Returns the same network with other inference options, keys of the section `eval`.

        What is not given stays as it is: `segmenter.with_options(tile=512, flip=True)`; but
        automatic windows follow the scales, so that the network sees as much as in training.

        Raises:
            ConfigError: names the option that is unknown or has a wrong value.
        """
        for key in given.keys() - EvalConfig.model_fields.keys():
            raise ConfigError(f"unknown option '{key}'.{nearest(key, EvalConfig.model_fields)}")
        options = self.options.model_dump() | given
        try:
            new = EvalConfig(**options)
            if self.options.automatic_tile is not None and "automatic_tile" not in given:
                seen = self.options.automatic_tile * max(self.options.scales)
                side = max(1, int(seen / max(new.scales)))
                new = new.model_copy(update={"automatic_tile": side})
            return replace(self, options=new)
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigError(f"{first['loc'][0]} = {first['input']!r}: {first['msg']}") from error

    def logits(self, image: Picture) -> Tensor:
        """Computes class scores [K, H, W], float32, on the device, of a picture.

        It is given as to `predict`; see `segdeform.inference.logits` for what they are with several
        scales or flips.

        Raises:
            DataError: the file is no readable picture, or the array is of another kind.
        """
        from segdeform.inference import logits

        pixels = torch.tensor(self._pixels(image)).permute(2, 0, 1)  # [C, H, W]
        return logits(self.model, pixels.to(self.device, torch.float32) / 255, self.options)

    @overload
    def predict(self, pictures: Picture) -> Result: ...
    @overload
    def predict(self, pictures: list[OnePicture] | tuple[OnePicture, ...]) -> list[Result]: ...
    @overload
    def predict(self, pictures: Iterator[OnePicture]) -> Iterator[Result]: ...
    def predict(self, pictures: Any) -> Result | list[Result] | Iterator[Result]:
        """Labels a picture: `result.labels` is the class number of every pixel, uint8 [H, W]
        (uint16 of more than 255 classes).

        A picture is a path, a PIL image, or an array of uint8 or uint16: [H, W, C], for RGB also
        [H, W] grey and [H, W, 4], whose alpha is dropped; see `data.arrays.pixels_of`. A list or
        tuple of them gives a list, read ahead of the network; a generator or any other iterable
        an iterator, which takes a picture when its result is asked for. Several threads may call
        it at once.

        Raises:
            DataError: the file is no readable picture, or the array is of another kind; of many,
                when its turn comes.
        """
        if isinstance(pictures, list | tuple):
            return self._predict_all(pictures)
        # Strings, arrays and tensors can be iterated over too, and are no collections of pictures.
        one = isinstance(pictures, str | Path | np.ndarray | Image | Tensor)
        if one or not isinstance(pictures, Iterable):
            return self._predict_one(pictures)
        return map(self._predict_one, pictures)  # goes on after a picture that raises

    def _predict_one(self, picture: Any) -> Result:
        return self._labelled(picture, self._opened(picture))

    def _predict_all(self, pictures: Sequence[Picture]) -> list[Result]:
        with threads(1) as reader:
            ahead = read_ahead(reader, pictures, self._opened, depth=2)
            return [self._labelled(picture, reading.result()) for picture, reading in ahead]

    def _labelled(self, picture: Picture, opened: OpenPicture) -> Result:
        source = Path(picture) if isinstance(picture, str | Path) else None
        result = self.label(opened.pixels, keep_coarse=True)
        return replace(result, source=source, place=opened.place)

    def label(self, image: Raster, **wanted: Any) -> Result:
        """Labels a picture [H, W, C] as `open` gives it.

        `wanted` are the keywords of `inference.predict_maps`, which has also what is raised.
        """
        from segdeform.inference import predict_maps

        compute = partial(predict_maps, self.model, image, self.options, self.device)
        return Result(compute(**wanted), image, self.classes, self.palette, compute=compute)

    def _opened(self, image: Any) -> OpenPicture:
        from segdeform.data.opening import OpenPicture

        if isinstance(image, str | Path):
            return self.open(Path(image))
        return OpenPicture(self._pixels(image), None)

    def _pixels(self, image: Any) -> NDArray[np.uint8]:  # [H, W, C]
        from segdeform.data.arrays import pixels_of

        if isinstance(image, str | Path):
            return self.read(Path(image))
        return pixels_of(image, self.value_range, self.channels, self.bands)


def save_model(folder: Path, model: DeepLab, description: ModelDescription) -> None:
    """Writes a model folder; it appears complete or not at all and replaces a former one.

    Weights are written as float32 in the plain memory layout.

    Raises:
        UsageError: `folder` holds something else, or cannot be written.
        ResourceError: the disk is full.
    """
    with replacing_folder(folder) as new:
        write_tensors(new / WEIGHTS, model.state_dict())
        write_description(new, description)


def write_description(folder: Path, description: ModelDescription) -> None:
    """Writes model.json, which makes a folder with weights a loadable model."""
    write_json(folder / DESCRIPTION, description.model_dump(mode="json"))


def read_description(path: Path) -> ModelDescription:
    """Reads a model.json.

    Raises:
        ModelError: it is damaged, or of a format that this version does not know.
    """
    value = read_json(path)
    version = value.get("format_version") if isinstance(value, dict) else None
    if not isinstance(version, int):
        raise ModelError(f"{path} does not describe a model")
    if version != FORMAT_VERSION:
        raise ModelError(
            f"{path} has format version {version}; segdeform {__version__} reads version "
            f"{FORMAT_VERSION}: use the segdeform that wrote it ({value.get('segdeform_version')})"
        )
    try:
        return ModelDescription.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the whole"
        raise ModelError(f"{path} is damaged: {key}: {first['msg']}") from error


def load(
    path: str | Path,
    device: str = "auto",
    *,
    precision: Asked = "fp32",
    trainable: bool = False,
    runtime: Runtime | None = None,
) -> Segmenter:
    """Loads a trained network from a model folder, a run folder or a checkpoint folder.

    Of a run folder: its model, or while it is still training the newest checkpoint that is intact.
    Of a checkpoint: the averaged weights where there are any. All files are checked by SHA-256.
    The network is made for inference, with every BatchNorm folded into the convolution before it;
    `trainable` keeps it as it was trained. `precision` bf16 computes in bfloat16, auto does where
    the processor or GPU is faster with it.

    A folder of exported networks, or a file in one, is run by a `runtime`, the first that is
    installed where none is given, in the precision that it was exported in.

    Raises:
        ModelError: there is no model, a file is damaged or does not fit, or a runtime is absent.
        UsageError: no such device, bf16 on a GPU without it, a runtime that there is no file for.
    """
    where = resolve_device(device)
    numbers = resolve_precision(precision, where)
    require_right_kernels(where)
    try:
        folder, digests = find_model(Path(path))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    if EXPORT in digests:
        if trainable:
            raise ModelError(f"{folder} is exported and cannot be trained")
        place = "cpu" if device == "auto" else str(where)
        return _load_exported(folder, digests, place, precision, runtime)
    if runtime is not None:
        raise UsageError(f"--runtime {runtime}: {path} is not exported; segdeform export does that")
    description = read_description(folder / DESCRIPTION)
    if description.crop is None and TRAINING_STATE in digests:
        description = description.model_copy(update={"crop": _recorded_crop(folder)})
    weights = AVERAGED_WEIGHTS if AVERAGED_WEIGHTS in digests else WEIGHTS
    model = _fill(description, read_tensors(folder / weights), folder / weights)
    options = _fit(model.eval(), description, folder)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if not trainable:
        fold_batch_norm(model)
    compute_in(model, numbers)
    model.to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    reach = reach_of(model)
    info = description.model_dump(mode="json") | {
        "path": str(folder),
        "weights": weights,
        "sha256": digests[weights],
        "deformable_layers": list(deformable_layers(model.backbone)),
        "parameters": parameters,
        "receptive_field": None if reach is None else reach.to_json(),
    }
    return Segmenter(
        model,
        description.classes,
        description.palette,
        options,
        where,
        info,
        description.value_range,
        description.bands,
        numbers,
    )


def _load_exported(
    folder: Path,
    digests: Mapping[str, str],
    device: str,
    precision: Asked,
    runtime: Runtime | None,
) -> Segmenter:
    from segdeform.runtimes.network import open_exported

    description = read_description(folder / DESCRIPTION)
    network, facts = open_exported(folder, digests, device, runtime)
    numbers = facts["export"]["precision"]
    if precision == "bf16" and numbers != "bf16":
        raise UsageError(
            f"--precision bf16: {folder} is exported in {numbers}; segdeform export has --precision"
        )
    return Segmenter(
        network.eval(),
        description.classes,
        description.palette,
        description.eval,
        torch.device("cpu"),  # where pictures are given to a runtime
        description.model_dump(mode="json") | {"path": str(folder)} | facts,
        description.value_range,
        description.bands,
        numbers,
    )


def _recorded_crop(checkpoint: Path) -> tuple[int, int] | None:
    """Returns the training crop that a checkpoint of an earlier version tells beside its model."""
    match read_json(checkpoint / TRAINING_STATE):
        case {"config": {"data": {"crop": [int(height), int(width)]}}}:
            return height, width
    return None


def _fit(model: DeepLab, description: ModelDescription, folder: Path) -> EvalConfig:
    """Keeps a network to what its training crop taught it; returns how pictures become labels."""
    options, crop = description.eval, description.crop
    if crop is None:
        return options
    if silenced := silence_unreachable_taps(model, crop):
        _log.warning("%s: %s", folder, misfit(silenced, crop, description.model.output_stride))
    if options.automatic_tile is not None:
        return options
    return options.model_copy(update={"automatic_tile": fitting_tile(crop, options.scales)})


def _fill(description: ModelDescription, tensors: Mapping[str, Tensor], source: Path) -> DeepLab:
    """Builds the described network around tensors from a file."""
    # On "meta": sizes are compared before memory is taken, and no random number is drawn.
    try:
        with torch.device("meta"):
            model = build_model(
                description.model,
                description.deform,
                len(description.classes),
                pretrained=False,
                mean=description.mean,
                std=description.std,
            )
    except ConfigError as error:
        raise ModelError(f"{source.with_name(DESCRIPTION)} does not make sense: {error}") from error
    expected = model.state_dict()
    check_fit(expected, tensors, source)
    values = {name: value.to(expected[name].dtype) for name, value in tensors.items()}
    model.load_state_dict(values, assign=True)
    return model
