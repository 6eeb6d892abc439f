"""What changes the result of a training run: validated, frozen, unknown keys refused.

Where and when a run happens (paths, device, workers, resume) belongs to the command line instead.
Keys among AUTO_KEYS may be written as `auto`: `training.choices` gives them a value from the data
set before a run begins, so that a Config holds nothing but values.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from segdeform.config.data import DataConfig
from segdeform.config.section import Pixels, Positive, Section
from segdeform.config.train import TrainConfig

__all__ = ["Config", "DataConfig", "DeformConfig", "EvalConfig", "ModelConfig", "TrainConfig"]

BackboneName = Literal[
    "resnet18", "resnet34", "resnet50", "resnet101", "mobilenet_v2", "mobilenet_v3_large"
]
HeadName = Literal["deeplab", "deeplabv3", "deeplabv3plus", "upernet", "segformer"]
ATROUS_HEADS = ("deeplabv3", "deeplabv3plus")  # with a pyramid of dilated convolutions
# Mean and standard deviation of ImageNet's pictures, RGB, 0..1: what torchvision's weights expect.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def _count_or_names(value: object) -> int | tuple[str, ...]:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    names = (value,) if isinstance(value, str) else value
    if isinstance(names, list | tuple) and names and all(map(_is_name, names)):
        return tuple(names)
    raise ValueError("it takes a number from 0 on, or names of convs as 'layer4.*.conv2'")


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value != "" and not value.isdecimal()


def _backbone(value: object) -> str:
    """Accepts the networks built in, and timm/NAME with or without a tag of its weights."""
    names = get_args(BackboneName)
    if isinstance(value, str) and (value in names or re.fullmatch(r"timm/\w+(\.\w+)?", value)):
        return value
    raise ValueError(f"it must be {', '.join(names)} or timm/NAME of timm's networks")


CountOrNames = Annotated[int | tuple[str, ...], BeforeValidator(_count_or_names)]


class ModelConfig(Section):
    """The network without its deformable part."""

    backbone: Annotated[str, BeforeValidator(_backbone)] = Field(
        "resnet50",
        description="one of those built in, or timm/NAME: one of timm's networks with features at "
        "the output stride, as timm/convnext_tiny (pip install 'segdeform[timm]')",
    )
    weights: str = Field(
        "imagenet",
        description="'imagenet' (torchvision's or timm's, downloaded), 'none' (random), the path "
        "of a .safetensors or .pth file with torchvision's or timm's keys, or a run or model "
        "folder of the same network, which is trained further; auto: imagenet, else none",
    )
    stem: Literal["plain", "deep"] = Field(
        "plain",
        description="a ResNet's first convolution: 7x7, or three of 3x3 in its place (He et al. "
        "2019, ResNet-C), for which weights are 'none' or a file with keys conv1.0 to conv1.6",
    )
    head: HeadName = "deeplabv3plus"
    head_channels: int = Field(256, ge=8, description="width of the head")
    head_convs: int = Field(
        0, ge=0, le=16, description="3x3 convs between pyramid and scores; deeplabv3 only"
    )
    low_channels: int = Field(
        48, ge=1, description="channels the low-level features are reduced to; deeplabv3plus only"
    )
    output_stride: Literal[8, 16, 32] = 16
    aspp_rates: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        None,
        min_length=1,
        description="dilations of the pyramid's 3x3 branches; null: 6, 12, 18 at output stride 16 "
        "(12, 24, 36 at 8), in proportion smaller where a side of data.crop is below 512",
    )
    aspp_mixing: Literal[1, 3] = Field(
        1, description="kernel of the conv that mixes the pyramid's branches"
    )
    auxiliary_head: bool = Field(False, description="FCN head on the last stage but one")

    @model_validator(mode="after")
    def _only_what_is_used(self) -> ModelConfig:
        if self.stem == "deep" and not self.backbone.startswith("resnet"):
            raise ValueError(f"model.stem = deep is of ResNets, not of {self.backbone}")
        if self.stem == "deep" and self.weights == "imagenet":
            raise ValueError(
                "model.stem = deep has no ImageNet weights to download: set model.weights to none "
                "or a file"
            )
        for key, head in (("head_convs", "deeplabv3"), ("low_channels", "deeplabv3plus")):
            if self.head != head and key in self._changed():
                raise ValueError(f"model.{key} is of model.head = {head}, not of {self.head}")
        # Older models of the head deeplab may tell rates, which mean nothing there.
        atrous = ("aspp_mixing",) if self.head == "deeplab" else ("aspp_mixing", "aspp_rates")
        for key in atrous:
            if self.head not in ATROUS_HEADS and key in self._changed():
                raise ValueError(
                    f"model.{key} is of model.head = {' or '.join(ATROUS_HEADS)}, not of "
                    f"{self.head}"
                )
        return self

    def _changed(self) -> set[str]:
        fields = type(self).model_fields.items()
        return {key for key, field in fields if getattr(self, key) != field.default}


class DeformConfig(Section):
    """The deformable part: Dai et al. 2017 (v1), Zhu et al. 2019 (v2, modulated)."""

    layers: CountOrNames = Field(
        3,
        description="how many of the backbone's last 3x3 convs (timm's: also 5x5 and 7x7) deform; "
        "or the names of those that do, a pattern or a list of them: 'layer4.*.conv2'",
    )
    variant: Literal["v1", "v2"] = "v2"
    offset_groups: int = Field(1, ge=1, description="groups of channels with offsets of their own")
    dilation: int | None = Field(
        None,
        ge=1,
        description="dilation of the backbone's last max(3, layers) 3x3 convs, deformable or not, "
        "or of those that are named; null: what the output stride gives",
    )


class EvalConfig(Section):
    """How a picture of any size becomes a label map, in evaluation and prediction alike."""

    tile: int = Field(
        0,
        ge=0,
        description="side of the sliding window, pixels; 0: whole picture, or as if it were whole "
        "where memory does not hold it",
    )
    automatic_tile: Pixels | None = Field(
        None,
        description="side, at most, of the blended windows in which several passes (scales, flip) "
        "see a picture that is too large to be seen whole; one pass needs none; "
        "null: as large as data.crop at the largest scale",
    )
    overlap: float = Field(0.25, ge=0, lt=1, description="overlap of neighbouring windows / side")
    blend: Literal["gaussian", "uniform"] = Field(
        "gaussian",
        description="weights where windows overlap: the middle counts most, or all equal",
    )
    scales: tuple[Positive, ...] = Field((1.0,), min_length=1)
    shorter_side: Pixels | None = Field(
        None,
        description="pictures whose shorter side has more pixels are seen reduced to this; scales "
        "are of the reduced picture; null: as large as they are",
    )
    flip: bool = False


class Config(Section):
    """One training run."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    deform: DeformConfig = DeformConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()


# Keys for which a config file may say `auto`.
AUTO_KEYS = frozenset(
    {
        "data.crop",
        "data.scale",
        "model.weights",
        "model.aspp_rates",
        "train.steps",
        "train.batch_size",
        "train.lr",
        "train.precision",
        "train.class_weights",
        "train.freeze_bn",
        "train.backbone_lr_factor",
        "train.warmup_steps",
        "train.save_every",
        "train.eval_every",
    }
)
