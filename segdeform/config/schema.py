"""What changes the result of a training run: validated, frozen, unknown keys refused.

Where and when a run happens (paths, device, workers, resume) belongs to the command line instead.
Keys among AUTO_KEYS may be written as `auto`: `training.choices` gives them a value from the data
set before a run begins, so that a Config holds nothing but values.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

BackboneName = Literal[
    "resnet18", "resnet34", "resnet50", "resnet101", "mobilenet_v2", "mobilenet_v3_large"
]
HeadName = Literal["deeplab", "deeplabv3", "deeplabv3plus"]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
# Mean and standard deviation of ImageNet's pictures, RGB, 0..1: what torchvision's weights expect.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Pixels = Annotated[int, Field(ge=1)]


def _count_or_names(value: object) -> int | tuple[str, ...]:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    names = (value,) if isinstance(value, str) else value
    if isinstance(names, list | tuple) and names and all(map(_is_name, names)):
        return tuple(names)
    raise ValueError("it takes a number from 0 on, or names of 3x3 convs as 'layer4.*.conv2'")


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value != "" and not value.isdecimal()


CountOrNames = Annotated[int | tuple[str, ...], BeforeValidator(_count_or_names)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataConfig(_Section):
    """Which pictures are trained on and how they are varied."""

    name: Literal["camvid", "voc", "cityscapes", "folder", "shapes"] = "folder"
    train_split: str = "train"
    val_split: str = "val"
    crop: tuple[Pixels, Pixels] = Field(
        (256, 256), description="training crop, pixels, [H, W]; auto: by sizes"
    )
    scale: tuple[Positive, Positive] = Field(
        (0.5, 2.0), description="range of the random resizing factor, log-uniform; may be auto"
    )
    max_class_share: Fraction = Field(
        1.0, description="crops in which one class covers more than this share are drawn again"
    )
    flip: Fraction = Field(0.5, description="probability of a left-right flip")
    rotate: float = Field(0.0, ge=0, le=180, description="largest random rotation, degrees")
    color: Fraction = Field(
        0.4,
        description="strength of brightness/contrast/saturation/hue jitter; pictures of other than "
        "3 channels have no saturation and hue",
    )
    channels: int | None = Field(
        None,
        ge=1,
        le=512,
        description="channels of a picture; null: as many as the data set's bands, else 3",
    )
    normalize: Literal["imagenet", "measured"] | None = Field(
        None,
        description="mean and std of a channel: ImageNet's, of 3 channels only, or those of all "
        "pixels of the training pictures; null: ImageNet's where there are 3 channels",
    )
    mean: tuple[Fraction, ...] | None = Field(
        None, description="one a channel, of values 0..1; null: what normalize says"
    )
    std: tuple[Positive, ...] | None = Field(None, description="as mean, and given with it")

    @model_validator(mode="after")
    def _scale_is_a_range(self) -> DataConfig:
        if self.scale[0] > self.scale[1]:
            raise ValueError("data.scale is [low, high] with low <= high")
        return self

    @model_validator(mode="after")
    def _channels_agree(self) -> DataConfig:
        if self.channels not in (None, 3):
            if self.name != "folder":
                raise ValueError(
                    f"data.channels = {self.channels}: pictures of '{self.name}' have 3; others "
                    "come from data sets of kind 'folder' whose data YAML has bands"
                )
            if self.normalize == "imagenet":
                raise ValueError(
                    f"data.normalize = imagenet knows 3 channels, and data.channels = "
                    f"{self.channels}: use measured"
                )
        counts = [len(values) for values in (self.mean, self.std) if values is not None]
        if counts and (len(counts) == 1 or counts != [self.channels or counts[0]] * 2):
            raise ValueError("data.mean and data.std are given together, one number a channel")
        return self


class ModelConfig(_Section):
    """The network without its deformable part."""

    backbone: BackboneName = "resnet50"
    weights: str = Field(
        "imagenet",
        description="'imagenet' (torchvision's, downloaded), 'none' (random), the path of a "
        ".safetensors or .pth file with torchvision's keys, or a model folder of the same network "
        "and classes, which is trained further; auto: imagenet, else none",
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
        if self.head == "deeplab" and "aspp_mixing" in self._changed():
            raise ValueError("model.aspp_mixing is of heads with a pyramid, not of deeplab")
        return self

    def _changed(self) -> set[str]:
        fields = type(self).model_fields.items()
        return {key for key, field in fields if getattr(self, key) != field.default}


class DeformConfig(_Section):
    """The deformable part: Dai et al. 2017 (v1), Zhu et al. 2019 (v2, modulated)."""

    layers: CountOrNames = Field(
        3,
        description="how many of the backbone's last 3x3 convs deform; or the names of those that "
        "do, a pattern or a list of them: 'layer4.*.conv2'",
    )
    variant: Literal["v1", "v2"] = "v2"
    offset_groups: int = Field(1, ge=1, description="groups of channels with offsets of their own")
    dilation: int | None = Field(
        None,
        ge=1,
        description="dilation of the backbone's last max(3, layers) 3x3 convs, deformable or not, "
        "or of those that are named; null: what the output stride gives",
    )


class TrainConfig(_Section):
    """Optimisation."""

    steps: int = Field(
        40_000, ge=1, le=2**40, description="optimiser steps; auto: by pictures, or --minutes"
    )
    batch_size: int = Field(16, ge=1, description="crops a step, all processes; auto: by memory")
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = Field(0.01, description="highest learning rate; auto: by optimizer and batch")
    momentum: Fraction = Field(0.9, description="SGD only")
    weight_decay: float = Field(5e-4, ge=0)
    schedule: Literal["poly", "cosine", "constant"] = "poly"
    poly_power: Positive = 0.9
    min_lr_factor: Fraction = Field(0.01, description="final rate / lr")
    warmup_steps: int = Field(
        0, ge=0, description="linear warm-up from 0; fewer than steps; auto: by them"
    )
    backbone_lr_factor: float = Field(
        1.0, ge=0, description="backbone's rate / lr; auto: by weights"
    )
    offset_lr_factor: float = Field(0.1, ge=0, description="offset branches' rate / their layer's")
    freeze_bn: bool = Field(
        False,
        description="backbone's BatchNorm: ImageNet statistics, no updates; auto: by weights",
    )
    clip_grad_norm: Positive | None = Field(None, description="global L2 norm; null: no clipping")
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = True
    ema_decay: Fraction = Field(0.0, description="0: no average of the network; else e.g. 0.999")
    loss: Literal["cross_entropy", "ohem"] = "cross_entropy"
    ohem_keep: Fraction = Field(0.25, description="least share of the hardest pixels kept")
    ohem_threshold: Fraction = Field(0.7, description="pixels with p(truth) below this are kept")
    class_weights: tuple[float, ...] | None = Field(
        None,
        description="one a class, in order, 0 or more and not all 0; the loss is the mean by them; "
        "auto: by the classes' shares",
    )
    label_smoothing: Fraction = 0.0
    auxiliary_weight: float = Field(0.4, ge=0, description="weight of the auxiliary loss")
    seed: int = Field(0, ge=0, lt=2**31)
    save_every: int = Field(1000, ge=1, description="steps between checkpoints; may be auto")
    eval_every: int = Field(
        0, ge=0, description="steps between evaluations; 0: only at the end; may be auto"
    )
    log_every: int = Field(20, ge=1, description="steps between log lines")

    @model_validator(mode="after")
    def _warm_up_ends(self) -> TrainConfig:
        if self.warmup_steps >= self.steps:
            raise ValueError(
                f"train.warmup_steps = {self.warmup_steps} leaves nothing of train.steps = "
                f"{self.steps}: make it smaller (--set train.warmup_steps=0: none)"
            )
        return self

    @field_validator("class_weights")
    @classmethod
    def _something_weighs(cls, weights: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if weights is not None and (not weights or min(weights) < 0):
            raise ValueError("it takes a weight for each class, none of them negative")
        if weights is not None and max(weights) == 0:
            raise ValueError("all are 0: nothing would be learned from")
        return weights


class EvalConfig(_Section):
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
    flip: bool = False


class Config(_Section):
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
        "train.steps",
        "train.batch_size",
        "train.lr",
        "train.class_weights",
        "train.freeze_bn",
        "train.backbone_lr_factor",
        "train.warmup_steps",
        "train.save_every",
        "train.eval_every",
    }
)
