"""The batches of training, each a pure function of its step: what every loader process makes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from segdeform.config.schema import IMAGENET_MEAN, DataConfig
from segdeform.data.dataset import Dataset, Labels, label_type, read_pair
from segdeform.data.image_io import UInt8
from segdeform.data.sampler import batch_indices
from segdeform.data.transforms import TrainTransform
from segdeform.errors import ResourceError

Batch = tuple[UInt8, Labels]  # images [N, h, w, C], labels [N, h, w]


@dataclass(frozen=True)
class Batches:
    """The batches that one process of a training is given: its share of each step's."""

    dataset: Dataset
    config: DataConfig
    seed: int
    batch_size: int  # crops, over all ranks
    rank: int
    world_size: int

    @cached_property
    def _pixels(self) -> int:
        height, width = self.config.crop
        return len(self._indices(0)) * height * width

    @cached_property
    def _transform(self) -> TrainTransform:
        config = self.config
        return TrainTransform(
            crop=config.crop,
            scale=config.scale,
            max_class_share=config.max_class_share,
            flip=config.flip,
            rotate=config.rotate,
            color=config.color,
            mean=config.mean or (IMAGENET_MEAN if self._channels == 3 else [0.5] * self._channels),
            augment=config.augment,
            class_balance=config.class_balance,
        )

    @property
    def _channels(self) -> int:
        return self.dataset.channels

    @property
    def _label_type(self) -> np.dtype[np.uint8 | np.uint16]:
        return label_type(len(self.dataset.classes))

    @property
    def nbytes(self) -> int:
        """How many bytes a batch has; all have the same."""
        return (self._channels + self._label_type.itemsize) * self._pixels

    def place(self, memory: UInt8, number: int = 0) -> Batch:
        """Returns a place for a batch in a memory, uint8 [bytes], that holds one after another."""
        place = memory[number * self.nbytes : (number + 1) * self.nbytes]
        shape = (len(self._indices(0)), *self.config.crop)
        images, labels = np.split(place, [self._channels * self._pixels])
        return images.reshape(*shape, self._channels), labels.view(self._label_type).reshape(shape)

    def fill(self, step: int, batch: Batch) -> None:
        """Makes the crops of a step.

        Raises SegdeformError for a picture that cannot be read, ResourceError when memory ends.
        """
        images, labels = batch
        for row, (epoch, index) in enumerate(self._indices(step)):
            try:
                pair = read_pair(self.dataset, index)
                images[row], labels[row] = self._transform(*pair, self.seed, epoch, index)
            except (MemoryError, cv2.error) as error:  # cv2's has no type of its own for memory
                if isinstance(error, cv2.error) and "memory" not in str(error):
                    raise
                raise ResourceError(
                    "memory ended while crops were made: lower data.crop or batch_size"
                ) from error

    def _indices(self, step: int) -> list[tuple[int, int]]:
        return batch_indices(
            self.seed, step, self.batch_size, len(self.dataset), self.rank, self.world_size
        )
