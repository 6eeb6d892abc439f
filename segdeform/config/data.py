"""The section `data` of a config."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from segdeform.config.section import Fraction, Pixels, Positive, Section


class DataConfig(Section):
    """Which pictures are trained on and how they are varied."""

    name: Literal["camvid", "voc", "cityscapes", "folder", "shapes"] = "folder"
    train_split: str = "train"
    val_split: str | tuple[str, ...] = Field(
        "val",
        description="the split that is scored; or several, [val, night]: the first decides what is "
        "decided by a score, the others are scored beside it",
    )
    crop: tuple[Pixels, Pixels] = Field(
        (256, 256), description="training crop, pixels, [H, W]; auto: by sizes"
    )
    scale: tuple[Positive, Positive] = Field(
        (0.5, 2.0), description="range of the random resizing factor, log-uniform; may be auto"
    )
    max_class_share: Fraction = Field(
        1.0, description="crops in which one class covers more than this share are drawn again"
    )
    class_balance: Fraction = Field(
        0.0,
        description="probability that a crop is drawn around a pixel of a class, each of those in "
        "the picture being as likely, so that rare ones are seen more often",
    )
    flip: Fraction = Field(0.5, description="probability of a left-right flip")
    rotate: float = Field(0.0, ge=0, le=180, description="largest random rotation, degrees")
    color: Fraction = Field(
        0.4,
        description="strength of brightness/contrast/saturation/hue jitter; pictures of other than "
        "3 channels have no saturation and hue",
    )
    augment: tuple[dict[str, Any], ...] = Field(
        (),
        description="transforms of albumentations, by name and arguments, on the finished crop: "
        "[{name: RandomGamma, gamma_limit: [80, 120], p: 0.3}]; OneOf and its like take transforms",
    )
    channels: int | None = Field(
        None,
        ge=1,
        le=512,
        description="channels of a picture; null: as many as the data set's bands, else 3",
    )
    normalize: Literal["imagenet", "network", "measured"] | None = Field(
        None,
        description="mean and std of a channel: ImageNet's or those that timm names for the "
        "backbone, both of 3 channels only, or those of all pixels of the training pictures; null: "
        "the backbone's where there are 3 channels",
    )
    mean: tuple[Fraction, ...] | None = Field(
        None, description="one a channel, of values 0..1; null: what normalize says"
    )
    std: tuple[Positive, ...] | None = Field(None, description="as mean, and given with it")

    @field_validator("augment")
    @classmethod
    def _named(cls, entries: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        for entry in entries:
            if not isinstance(entry.get("name"), str):
                raise ValueError(f"{entry} has no name; write {{name: RandomGamma, p: 0.5}}")
        return entries

    @field_validator("val_split")
    @classmethod
    def _splits(cls, given: str | tuple[str, ...]) -> str | tuple[str, ...]:
        names = (given,) if isinstance(given, str) else given
        if not names or "" in names or len(set(names)) < len(names):
            raise ValueError("it is the name of a split, or a list of different names")
        return names[0] if len(names) == 1 else names

    @property
    def val_splits(self) -> tuple[str, ...]:
        """The splits to score, of which the first decides."""
        return (self.val_split,) if isinstance(self.val_split, str) else self.val_split

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
            if self.normalize in ("imagenet", "network"):
                raise ValueError(
                    f"data.normalize = {self.normalize} knows 3 channels, and data.channels = "
                    f"{self.channels}: use measured"
                )
        counts = [len(values) for values in (self.mean, self.std) if values is not None]
        if counts and (len(counts) == 1 or counts != [self.channels or counts[0]] * 2):
            raise ValueError("data.mean and data.std are given together, one number a channel")
        return self
