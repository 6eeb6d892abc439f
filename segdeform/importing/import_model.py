"""Makes a model folder of a network that others have trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from segdeform.callbacks import Progress
from segdeform.config.schema import DeformConfig, EvalConfig
from segdeform.data import camvid, cityscapes_labels, voc
from segdeform.data.class_list import read_class_list
from segdeform.data.dataset import colour_map
from segdeform.errors import DownloadError, ModelError, UsageError
from segdeform.files.manifest import sha256
from segdeform.files.tensors import check_fit, plain_tensors, read_pickled, read_tensors
from segdeform.importing import mmsegmentation, torchvision
from segdeform.importing.renaming import Translated, size_of
from segdeform.importing.sources import PREFIX, TORCHVISION, Pretrained, refuse_source
from segdeform.models import build_model
from segdeform.models.weights import cached_download
from segdeform.segmenter import ModelDescription, Origin, save_model

_SIDE = 520  # pixels, at which torchvision scores its networks
_PROTOCOL = {
    "pictures": "COCO 2017, those with VOC's classes",
    "weights": "COCO_WITH_VOC_LABELS_V1",
    "trained_at": "crops of 480 pixels from pictures with a shorter side of 260 to 1040",
    "scored_at": f"a shorter side of {_SIDE}",
}
_DATA_SETS = {
    voc.CLASSES: "voc",
    tuple(camvid.CLASSES): "camvid",
    tuple(label.name for label in cityscapes_labels.CITYSCAPES_CLASSES): "cityscapes",
}


@dataclass(frozen=True)
class Imported:
    """What was made, and what a user should know of it."""

    description: ModelDescription
    notes: tuple[str, ...]


def import_model(
    source: str,
    output: Path,
    *,
    weights: Path | None = None,
    classes: Path | None = None,
    deform_layers: int = 0,
    progress: Progress | None = None,
) -> Imported:
    """Writes a model folder that computes what a network of others does.

    Args:
        source: "torchvision:NAME", or a file of torchvision's or mmsegmentation's keys.
        weights: a file in the place of torchvision's download.
        classes: a class list (classes.txt, classes.json) in the place of the file's own names.
        deform_layers: how many of the backbone's last 3x3 convolutions become deformable; they
            compute the same until they are trained.
        progress: hears (done, all) bytes of a download.

    Raises:
        UsageError: no such source; `output` holds something else.
        ModelError: a file is damaged, no network that is known, or does not say its classes.
        DataError: the class list cannot be read.
        ConfigError: the backbone has fewer 3x3 convolutions.
        DownloadError: the download failed, or its checksum is wrong.
    """
    refuse_source(source, weights)
    pretrained = TORCHVISION.get(source.removeprefix(PREFIX))
    path = weights or (_downloaded(pretrained, progress) if pretrained else Path(source))
    found = _translated(path)
    if pretrained is not None:
        _refuse_other(found, source, pretrained, path)
    names, palette = _classes(found, classes, path)
    digest = sha256(path)
    training, notes = _history(found, names, digest)
    if classes is None and _is_torchvision(found) and "weights" not in training:
        notes.append("its 21 classes are taken for VOC's; the file does not name them: --classes")
    description = _description(
        found,
        path,
        deform=DeformConfig(layers=deform_layers),
        classes=names,
        palette=palette,
        training=training,
        origin=Origin(
            source=source if pretrained else found.origin,
            file=path.name,
            sha256=digest,
            licence=found.licence,
        ),
    )
    _save(description, found.tensors, output)
    return Imported(description, tuple(notes))


def _downloaded(pretrained: Pretrained, progress: Progress | None) -> Path:
    try:
        return cached_download(pretrained.url, progress)
    except DownloadError as error:
        raise DownloadError(f"{error}; or give a file with its keys: --weights FILE") from error


def _translated(path: Path) -> Translated:
    value = read_tensors(path) if path.suffix == ".safetensors" else read_pickled(path)
    nested = isinstance(value, dict) and isinstance(value.get("state_dict"), dict)
    tensors = plain_tensors(value["state_dict"] if nested else value, path)
    floats = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    try:
        if torchvision.is_torchvision(floats):
            return torchvision.translate(floats, path)
        if mmsegmentation.is_mmsegmentation(floats):
            meta = value.get("meta") if nested else None
            return mmsegmentation.translate(floats, meta if isinstance(meta, dict) else {}, path)
    except ValidationError as error:
        raise _nonsense(path, error) from error
    some = ", ".join(list(tensors)[:3]) or "no tensor"
    raise ModelError(
        f"{path} is no network known here (it has {some}, ...): known are torchvision's DeepLabV3 "
        "and mmsegmentation's DeepLabV3 and DeepLabV3+ of ResNets"
    )


def _refuse_other(found: Translated, source: str, wanted: Pretrained, path: Path) -> None:
    if not _is_torchvision(found) or found.model.backbone != wanted.backbone:
        raise ModelError(f"{path} is {found.origin}, not {source}")


def _is_torchvision(found: Translated) -> bool:
    return found.origin.startswith("torchvision")


def _history(
    found: Translated, names: tuple[str, ...], digest: str
) -> tuple[dict[str, Any], list[str]]:
    """Returns what is known of the training, and notes for the user."""
    training: dict[str, Any] = {}
    notes = list(found.notes)
    if names in _DATA_SETS:
        training["dataset"] = _DATA_SETS[names]
    for pretrained in TORCHVISION.values():
        if digest.startswith(Path(pretrained.url).stem.rpartition("-")[2]):
            training |= _PROTOCOL | {"reported_mean_iou": pretrained.mean_iou}
    if _is_torchvision(found):
        notes.append(
            f"such networks were trained on pictures with a shorter side of about {_SIDE} pixels: "
            "larger ones are seen reduced to it (--shorter-side 0: as they are)"
        )
    return training, notes


def _classes(
    found: Translated, given: Path | None, path: Path
) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """Returns names and colours of the classes: those given, those of the file."""
    count = size_of(found.tensors, "head.score.weight", 0, path)
    if given is not None:
        listed = read_class_list(given)
        if len(listed.names) != count:
            raise UsageError(f"{given} names {len(listed.names)} classes; {path} has {count}")
        return listed.names, listed.palette
    if found.classes is None:
        raise ModelError(
            f"{path} does not say what its {count} classes are: give their names with --classes "
            "FILE, one a line"
        )
    if len(found.classes) != count:
        raise ModelError(f"{path} names {len(found.classes)} classes and has scores of {count}")
    return found.classes, found.palette or colour_map(count)


def _description(found: Translated, path: Path, **given: Any) -> ModelDescription:
    """Puts the description together; raises ModelError where it or the tensors do not fit."""
    try:
        description = ModelDescription(
            model=found.model,
            mean=found.mean,
            std=found.std,
            eval=EvalConfig(shorter_side=_SIDE if _is_torchvision(found) else None),
            **given,
        )
    except ValidationError as error:
        raise _nonsense(path, error) from error
    classes = len(description.classes)
    with torch.device("meta"):  # sizes are compared before memory is taken
        plain = build_model(found.model, DeformConfig(layers=0), classes, pretrained=False)
    check_fit(plain.state_dict(), found.tensors, path)
    return description


def _save(description: ModelDescription, tensors: dict[str, Tensor], output: Path) -> None:
    with torch.device("meta"):  # no random numbers are drawn to be dropped
        model = build_model(
            description.model, description.deform, len(description.classes), pretrained=False
        )
    # What the tensors lack are the offsets' convolutions, which begin at zero.
    values = {
        name: tensors[name] if name in tensors else torch.zeros(value.shape)
        for name, value in model.state_dict().items()
    }
    model.load_state_dict(values, assign=True)
    save_model(output, model, description)


def _nonsense(path: Path, error: ValidationError) -> ModelError:
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    return ModelError(f"{path} is not built here: {key}: {first['msg']}")
