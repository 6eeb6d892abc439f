"""Weights that a backbone starts from: torchvision's download, or a file with the same keys."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from segdeform.callbacks import Progress
from segdeform.errors import ConfigError, DownloadError
from segdeform.files.download import Checksum, download
from segdeform.files.tensors import check_fit, plain_tensors, read_pickled, read_tensors

# torchvision's names of its weights of ImageNet, version 1, which its own dense predictors and the
# papers start from; they end in the beginning of the file's SHA-256.
_ADDRESS = "https://download.pytorch.org/models/"
IMAGENET = {
    "resnet18": f"{_ADDRESS}resnet18-f37072fd.pth",
    "resnet34": f"{_ADDRESS}resnet34-b627a593.pth",
    "resnet50": f"{_ADDRESS}resnet50-0676ba61.pth",
    "resnet101": f"{_ADDRESS}resnet101-63fe2227.pth",
    "mobilenet_v2": f"{_ADDRESS}mobilenet_v2-b0353104.pth",
    "mobilenet_v3_large": f"{_ADDRESS}mobilenet_v3_large-8738ca79.pth",
}

# What classifiers have beyond the backbone (features.18: MobileNetV2's 1x1 conv to 1280).
CLASSIFIER = ("fc.", "classifier.", "features.18.")


def load_weights(backbone: nn.Module, name: str, weights: str) -> None:
    """Loads a backbone's weights from "imagenet" or a file; "none" leaves it as it is.

    A file holds torchvision's keys for this network, in any floating dtype, with the classifier or
    without it.

    Raises:
        ConfigError: the file is neither .safetensors nor .pth.
        ModelError: it is missing, damaged, or a key is missing, unknown or of another shape.
        DownloadError: the download failed or its checksum is wrong.
    """
    if weights == "none":
        return
    path = imagenet_file(name) if weights == "imagenet" else Path(weights)
    given = read_weights(path)
    own = backbone.state_dict()
    given = {key: value for key, value in given.items() if not key.startswith(CLASSIFIER)}
    for key, value in own.items():  # files older than this counter lack it; it has no influence
        if key.endswith("num_batches_tracked"):
            given.setdefault(key, value)
    check_fit(own, given, path)
    backbone.load_state_dict(given)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of a .safetensors or .pth file by name; nothing in it is run.

    Raises:
        ConfigError: it is called otherwise.
        ModelError: it is missing or damaged.
    """
    if path.suffix == ".safetensors":
        return read_tensors(path)
    if path.suffix == ".pth":
        return plain_tensors(read_pickled(path), path)
    raise ConfigError(
        f"model.weights is {str(path)!r}; it must be 'imagenet', 'none' or the path of a "
        ".safetensors or .pth file"
    )


def imagenet_file(name: str) -> Path:
    """Returns torchvision's weights file in torch's own cache, downloaded if need be, checked.

    Raises DownloadError.
    """
    try:
        return cached_download(IMAGENET[name])
    except DownloadError as error:
        raise DownloadError(
            f"{error}; or give a file with torchvision's keys: --set model.weights=FILE"
        ) from error


def cached_download(url: str, progress: Progress | None = None) -> Path:
    """Returns a file of torch's servers in torch's own cache, downloaded if need be, checked.

    Its name ends in the beginning of its SHA-256. `progress` hears (done, all) bytes. Raises
    DownloadError.
    """
    path = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    prefix = path.stem.rpartition("-")[2]
    download(url, path, Checksum("sha256", prefix), progress=progress)
    return path
