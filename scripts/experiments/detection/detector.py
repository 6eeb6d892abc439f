"""The detectors that are compared: Faster R-CNN and R-FCN on one backbone, pooling in four ways."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FeaturePyramidNetwork

from cuda_ops import (
    AverageVote,
    MultiScaleDeformRoIPool,
    MultiScaleRoIPool,
    RFCNPool,
    RFCNPredictor,
)
from segdeform.models import build_backbone, freeze_batch_norm

Arm = Literal["plain", "deformable", "rfcn", "rfcn-deformable"]
ARMS: tuple[Arm, ...] = get_args(Arm)

LEVELS = ("0", "1", "2")  # strides 8, 16 and 32
CHANNELS, HIDDEN, BINS = 64, 256, 7
_ANCHORS = ((24,), (48,), (96,))  # sides in pixels, a level each
_CANONICAL = {"canonical_scale": 112, "canonical_level": 4}  # smaller boxes: stride 8


class Pyramid(nn.Module):
    """MobileNetV2 with a feature pyramid, strides 8, 16 and 32 (torchvision's FPN)."""

    out_channels = CHANNELS
    _blocks = (6, 13, 17)  # the last of each stride, with 32, 96 and 320 channels

    def __init__(self, weights: Path | None) -> None:
        super().__init__()
        self.body = build_backbone("mobilenet_v2", str(weights or "none"), output_stride=32)
        if weights:
            freeze_batch_norm(self.body)
        self.fpn = FeaturePyramidNetwork([32, 96, 320], CHANNELS)

    def forward(self, x: Tensor) -> dict[str, Tensor]:  # [N, 3, H, W]
        kept = OrderedDict()
        for number, block in enumerate(self.body.features):
            x = block(x)
            if number in self._blocks:
                kept[LEVELS[len(kept)]] = x
        features: dict[str, Tensor] = self.fpn(kept)
        return features


def build_detector(
    arm: Arm,
    classes: int,  # without the background
    size: int,  # pixels, shorter side of what the network sees
    seed: int,
    weights: Path | None = None,
) -> FasterRCNN:
    """Builds a detector; what two arms of a seed have in common starts with the same weights.

    All offsets start at zero.
    """
    torch.manual_seed(seed)
    backbone = Pyramid(weights)
    with torch.random.fork_rng(devices=[]):  # what follows starts the same in all arms
        pool, head, predictor = _parts(arm, classes + 1)
    return FasterRCNN(
        backbone,
        min_size=size,
        max_size=2 * size,
        rpn_anchor_generator=AnchorGenerator(_ANCHORS, ((0.5, 1.0, 2.0),) * len(LEVELS)),
        rpn_pre_nms_top_n_train=400,
        rpn_pre_nms_top_n_test=300,
        rpn_post_nms_top_n_train=200,
        rpn_post_nms_top_n_test=100,
        rpn_batch_size_per_image=128,
        box_batch_size_per_image=64,
        box_roi_pool=pool,
        box_head=head,
        box_predictor=predictor,
        box_score_thresh=0.02,
    )


def _parts(arm: Arm, classes: int) -> tuple[MultiScaleRoIPool, nn.Module, nn.Module]:
    """Returns pooler, head and predictor; `classes` with the background."""
    if arm in ("rfcn", "rfcn-deformable"):
        pool = RFCNPool(
            LEVELS,
            CHANNELS,
            classes,
            BINS,
            arm == "rfcn-deformable",
            HIDDEN,
            sample_per_part=2,
            **_CANONICAL,
        )
        return pool, AverageVote(), RFCNPredictor(classes)
    head = TwoMLPHead(CHANNELS * BINS**2, HIDDEN)
    predictor = FastRCNNPredictor(HIDDEN, classes)
    if arm == "plain":
        return MultiScaleRoIPool(LEVELS, BINS, 2, **_CANONICAL), head, predictor
    # After head and predictor, which thus start as those of the plain arm do.
    deformable = MultiScaleDeformRoIPool(LEVELS, BINS, CHANNELS, 2, hidden=HIDDEN, **_CANONICAL)
    return deformable, head, predictor


def pyramid_of(
    model: FasterRCNN, picture: Tensor
) -> tuple[dict[str, Tensor], list[tuple[int, int]], float]:
    """Returns features of a picture [3, H, W] in 0..1, the size the network saw, and its scale."""
    images: ImageList
    images, _ = model.transform([picture])
    seen = images.image_sizes
    return model.backbone(images.tensors), seen, seen[0][0] / picture.shape[1]
